//! Batch normalisation, with the statistics of the batch and with running ones.

use super::norm::{EPS, check_eps, check_vectors, normalise, normalise_gradient, sum_to_last};
use super::{AttrDef, Backprop, CompositeDef, CompositeGradient, Gradients, Lowering, OperandDef};
use super::{require, results, wide};
use crate::composite::{Attr, Attrs};
use crate::dim::Dim;
use crate::tensor::{Builder, Tensor};

const OPERANDS: &[OperandDef] = &[
    OperandDef::float("x", "[n, spatial.., c], channels last"),
    OperandDef::float("weight", "[c]"),
    OperandDef::float("bias", "[c]"),
    OperandDef::float("running_mean", "[c]"),
    OperandDef::float("running_var", "[c]"),
];
const VECTORS: &[&str] = &["weight", "bias", "running_mean", "running_var"];

/// See [`CompositeDef::doc`].
pub static BATCH_NORM: CompositeDef = CompositeDef {
    name: "batch_norm",
    doc: "y = (x - mean) / sqrt(variance + eps) * weight + bias, statistics of each channel over the batch and all places
(Ioffe and Szegedy 2015), and the new running mean and variance: (1 - momentum) old + momentum batch, the batch's variance
with Bessel's correction there, as in PyTorch (a single element per channel counts as variance 0). No gradient flows
through the running statistics.",
    operands: OPERANDS,
    attrs: &[EPS, AttrDef { name: "momentum", doc: "the weight of the batch's statistics", default: Attr::Float(0.1) }],
    results: 3,
    expand: |b, inputs, attrs| results(&BATCH_NORM, batch_norm(b, inputs, attrs)),
    gradient: CompositeGradient::Rule(batch_norm_gradient),
    lowering: Lowering::Expand,
};

fn batch_norm<'g>(b: &'g Builder, inputs: &[Tensor<'g>], attrs: &Attrs) -> Result<Vec<Tensor<'g>>, Tensor<'g>> {
    let eps = check_eps(inputs, attrs)?;
    let c = check_vectors(inputs, VECTORS, 2)?;
    let momentum = attrs.float("momentum");
    let valid = (0.0..=1.0).contains(&momentum);
    require(valid, inputs, || format!("momentum is {momentum}, not between 0 and 1"), None)?;

    let x = wide(inputs[0]);
    let n = normalise(x, &batch_axes(x), eps);
    let y = n.value * wide(inputs[1]) + wide(inputs[2]);

    let shape = x.shape();
    let count = shape[..shape.rank() - 1].iter().try_fold(Dim::ONE, |p, d| p.times(*d)).expect("a factor of the size");
    let unbiased = n.variance * (b.size(count) / (b.size(count) - 1.0).max(1.0));
    let blend = |old: Tensor<'g>, new: Tensor<'g>| {
        (wide(old) * (1.0 - momentum) + new.reshape([c]) * momentum).cast(old.dtype())
    };
    Ok(vec![y.cast(inputs[0].dtype()), blend(inputs[3], n.mean), blend(inputs[4], unbiased)])
}

/// All axes but the last.
fn batch_axes(x: Tensor<'_>) -> Vec<isize> {
    (0..x.rank() as isize - 1).collect()
}

fn batch_norm_gradient<'g>(p: &Backprop<'_, 'g>) -> Gradients<'g> {
    let Some(dy) = p.gradients[0].map(wide) else { return vec![None; 5] };
    let axes = batch_axes(dy);
    let n = normalise(wide(p.inputs[0]), &axes, p.attrs.float("eps"));
    let dx = normalise_gradient(&n, dy * wide(p.inputs[1]), &axes);
    vec![
        Some(dx.cast(p.inputs[0].dtype())),
        Some(sum_to_last(dy * n.value, p.inputs[1])),
        Some(sum_to_last(dy, p.inputs[2])),
        None,
        None,
    ]
}

/// See [`CompositeDef::doc`].
pub static BATCH_NORM_INFERENCE: CompositeDef = CompositeDef {
    name: "batch_norm_inference",
    doc: "(x - running_mean) / sqrt(running_var + eps) * weight + bias.",
    operands: OPERANDS,
    attrs: &[EPS],
    results: 1,
    expand: |_, inputs, attrs| {
        let build = || {
            let eps = check_eps(inputs, attrs)?;
            check_vectors(inputs, VECTORS, 2)?;
            let [x, weight, bias, mean, variance] = [0, 1, 2, 3, 4].map(|i: usize| wide(inputs[i]));
            // All channel arithmetic first: one multiply and one add remain per element.
            let scale = (variance + eps).rsqrt() * weight;
            Ok(vec![(x * scale + (bias - mean * scale)).cast(inputs[0].dtype())])
        };
        results(&BATCH_NORM_INFERENCE, build())
    },
    gradient: CompositeGradient::Expand,
    lowering: Lowering::Expand,
};
