//! Activations: relu, gelu, silu and softplus. Their gradient rules keep the operand and
//! nothing else, that of relu the result, which what follows keeps anyway.

use std::f64::consts::{FRAC_1_SQRT_2, PI};

use super::{AttrDef, Backprop, CompositeDef, CompositeGradient, Gradients, Lowering, OperandDef, wide};
use crate::composite::{Attr, Attrs};
use crate::tensor::{Builder, Tensor};

const X: &[OperandDef] = &[OperandDef::float("x", "any shape")];

/// `x` and the gradient of the result in `f32`.
fn wide_pair<'g>(p: &Backprop<'_, 'g>) -> Option<(Tensor<'g>, Tensor<'g>)> {
    Some((wide(p.inputs[0]), wide(p.gradients[0]?)))
}

/// See [`CompositeDef::doc`].
pub static RELU: CompositeDef = CompositeDef {
    name: "relu",
    doc: "max(x, 0), with gradient 0 at 0.",
    operands: X,
    attrs: &[],
    results: 1,
    expand: |_, inputs, _| vec![inputs[0].max(0.0)],
    gradient: CompositeGradient::Rule(|p| {
        let y = p.outputs[0];
        vec![p.gradients[0].map(|dy| y.constant_like(0.0).less(y).select(dy, dy.constant_like(0.0)))]
    }),
    lowering: Lowering::Expand,
};

/// See [`CompositeDef::doc`].
pub static GELU: CompositeDef = CompositeDef {
    name: "gelu",
    doc: "x P(X <= x) for a standard normal X (Hendrycks and Gimpel 2016), exactly or with tanh as GPT-2 has it:
0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))).",
    operands: X,
    attrs: &[AttrDef { name: "tanh", doc: "whether to use the tanh approximation", default: Attr::Bool(false) }],
    results: 1,
    expand: gelu,
    gradient: CompositeGradient::Rule(gelu_gradient),
    lowering: Lowering::Expand,
};

/// What the tanh approximation multiplies x by: since `(1 + tanh(u)) / 2 = sigmoid(2 u)`, it is
/// the sigmoid of `x (LINEAR + CUBIC x^2)`, which for negative x does not lose the digits that `1 + tanh` does.
const LINEAR: f64 = 1.595_769_121_605_731; // 2 sqrt(2 / pi)
const CUBIC: f64 = 0.044715 * LINEAR;

fn gelu<'g>(_: &'g Builder, inputs: &[Tensor<'g>], attrs: &Attrs) -> Vec<Tensor<'g>> {
    let x = wide(inputs[0]);
    let below = if attrs.flag("tanh") {
        (x * (x * x * CUBIC + LINEAR)).sigmoid()
    } else {
        ((x * FRAC_1_SQRT_2).erf() + 1.0) * 0.5
    };
    vec![(x * below).cast(inputs[0].dtype())]
}

fn gelu_gradient<'g>(p: &Backprop<'_, 'g>) -> Gradients<'g> {
    vec![wide_pair(p).map(|(x, dy)| {
        let slope = if p.attrs.flag("tanh") {
            let square = x * x;
            let below = (x * (square * CUBIC + LINEAR)).sigmoid();
            below * (x * (1.0 - below) * (square * (3.0 * CUBIC) + LINEAR) + 1.0)
        } else {
            let density = (x * x * -0.5).exp() * (1.0 / (2.0 * PI).sqrt());
            ((x * FRAC_1_SQRT_2).erf() + 1.0) * 0.5 + x * density
        };
        (dy * slope).cast(p.inputs[0].dtype())
    })]
}

/// See [`CompositeDef::doc`].
pub static SILU: CompositeDef = CompositeDef {
    name: "silu",
    doc: "x sigmoid(x), also called swish (Ramachandran et al. 2017).",
    operands: X,
    attrs: &[],
    results: 1,
    expand: |_, inputs, _| {
        let x = wide(inputs[0]);
        vec![(x * x.sigmoid()).cast(inputs[0].dtype())]
    },
    gradient: CompositeGradient::Rule(|p| {
        vec![wide_pair(p).map(|(x, dy)| {
            let s = x.sigmoid();
            (dy * (s * (x * (1.0 - s) + 1.0))).cast(p.inputs[0].dtype())
        })]
    }),
    lowering: Lowering::Expand,
};

/// `log(1 + exp(x))` without overflow.
pub(super) fn log_one_plus_exp(x: Tensor<'_>) -> Tensor<'_> {
    x.max(0.0) + (-x.abs()).exp().log1p()
}

/// See [`CompositeDef::doc`].
pub static SOFTPLUS: CompositeDef = CompositeDef {
    name: "softplus",
    doc: "log(1 + exp(x)), computed as max(x, 0) + log1p(exp(-|x|)).",
    operands: X,
    attrs: &[],
    results: 1,
    expand: |_, inputs, _| vec![log_one_plus_exp(wide(inputs[0])).cast(inputs[0].dtype())],
    gradient: CompositeGradient::Rule(|p| {
        vec![wide_pair(p).map(|(x, dy)| (dy * x.sigmoid()).cast(p.inputs[0].dtype()))]
    }),
    lowering: Lowering::Expand,
};
