//! Softmax and its logarithm along one axis. Their gradient rules keep the result and nothing else.

use super::{AttrDef, CompositeDef, CompositeGradient, Lowering, OperandDef, results, wide};
use crate::composite::{Attr, Attrs};
use crate::tensor::Tensor;

const X: &[OperandDef] = &[OperandDef::float("x", "any shape with the axis")];
const AXIS: &[AttrDef] =
    &[AttrDef { name: "axis", doc: "the axis, counted from the end if negative", default: Attr::Int(-1) }];

/// The axis of the settings, counted from the front.
fn axis<'g>(x: Tensor<'g>, attrs: &Attrs) -> Result<isize, Tensor<'g>> {
    // An axis that does not fit `isize` is no axis of anything either.
    let given = isize::try_from(attrs.int("axis")).unwrap_or(isize::MAX);
    x.axis("softmax", given).map(|axis| axis as isize)
}

/// See [`CompositeDef::doc`].
pub static SOFTMAX: CompositeDef = CompositeDef {
    name: "softmax",
    doc: "exp(x - max x) over its sum along the axis. A row of minus infinity gives NaN.",
    operands: X,
    attrs: AXIS,
    results: 1,
    expand: |_, inputs, attrs| {
        let build = || {
            let axis = axis(inputs[0], attrs)?;
            let x = wide(inputs[0]);
            let e = (x - x.max_over(&[axis])).exp();
            Ok(vec![(e / e.sum(&[axis])).cast(inputs[0].dtype())])
        };
        results(&SOFTMAX, build())
    },
    gradient: CompositeGradient::Rule(|p| {
        let gradient = |dy| {
            let axis = axis(p.inputs[0], p.attrs).ok()?;
            let (y, dy) = (wide(p.outputs[0]), wide(dy));
            Some((y * (dy - (dy * y).sum(&[axis]))).cast(p.inputs[0].dtype()))
        };
        vec![p.gradients[0].and_then(gradient)]
    }),
    lowering: Lowering::Expand,
};

/// See [`CompositeDef::doc`].
pub static LOG_SOFTMAX: CompositeDef = CompositeDef {
    name: "log_softmax",
    doc: "x - max x - log(sum exp(x - max x)) along the axis. A row of minus infinity gives NaN.",
    operands: X,
    attrs: AXIS,
    results: 1,
    expand: |_, inputs, attrs| {
        let build = || {
            let axis = axis(inputs[0], attrs)?;
            let x = wide(inputs[0]);
            let shifted = x - x.max_over(&[axis]);
            Ok(vec![(shifted - shifted.exp().sum(&[axis]).log()).cast(inputs[0].dtype())])
        };
        results(&LOG_SOFTMAX, build())
    },
    gradient: CompositeGradient::Rule(|p| {
        let gradient = |dy| {
            let axis = axis(p.inputs[0], p.attrs).ok()?;
            let (y, dy) = (wide(p.outputs[0]), wide(dy));
            Some((dy - y.exp() * dy.sum(&[axis])).cast(p.inputs[0].dtype()))
        };
        vec![p.gradients[0].and_then(gradient)]
    }),
    lowering: Lowering::Expand,
};

/// `log(sum(exp(x)))` along the last axis, which stays with size one; minus infinity where all of `x` is.
pub(super) fn log_sum_exp(x: Tensor<'_>) -> Tensor<'_> {
    let max = x.max_over(&[-1]);
    // An infinite maximum would make `x - max` NaN; the plain sum is exact there.
    let shift = max.is_finite().select(max, max.constant_like(0.0));
    (x - shift).exp().sum(&[-1]).log() + shift
}
