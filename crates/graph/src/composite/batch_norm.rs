//! Batch normalisation, with the statistics of the batch and with running ones.

use super::norm::{EPS, check_eps, check_vectors, normalise};
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
with Bessel's correction there, as in PyTorch (a single element per channel counts as variance 0). Then the batch's mean and
1 / sqrt(variance + eps), `[c]` in f32, which the gradient reads. No gradient flows
through the running statistics.",
    operands: OPERANDS,
    attrs: &[EPS, AttrDef { name: "momentum", doc: "the weight of the batch's statistics", default: Attr::Float(0.1) }],
    results: 5,
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
    // All channel arithmetic first: one multiply and one add remain per element, as in PyTorch.
    let scale = n.scale * wide(inputs[1]);
    let y = x * scale + (wide(inputs[2]) - n.mean * scale);

    let count = b.size(places(x));
    let unbiased = n.variance * (count / (count - 1.0).max(1.0));
    let vector = |x: Tensor<'g>| x.reshape([c]);
    let blend =
        |old: Tensor<'g>, new: Tensor<'g>| (wide(old) * (1.0 - momentum) + vector(new) * momentum).cast(old.dtype());
    let running = [blend(inputs[3], n.mean), blend(inputs[4], unbiased)];
    Ok(vec![y.cast(inputs[0].dtype()), running[0], running[1], vector(n.mean), vector(n.scale)])
}

/// All axes but the last.
fn batch_axes(x: Tensor<'_>) -> Vec<isize> {
    (0..x.rank() as isize - 1).collect()
}

/// The elements of each channel.
fn places(x: Tensor<'_>) -> Dim {
    let shape = x.shape();
    shape[..shape.rank() - 1].iter().try_fold(Dim::ONE, |p, d| p.times(*d)).expect("a factor of the size")
}

/// Two passes over the batch: the sums for weight and bias, from which the gradient of `x` follows element by element.
fn batch_norm_gradient<'g>(p: &Backprop<'_, 'g>) -> Gradients<'g> {
    let (x, weight) = (wide(p.inputs[0]), wide(p.inputs[1]));
    let (mean, scale) = (p.outputs[3], p.outputs[4]);
    let count = x.builder().size(places(x));
    let sums = p.gradients[0].map(wide).map(|dy| {
        let axes = batch_axes(dy);
        (dy, dy.sum(&axes), (dy * (x - mean)).sum(&axes) * scale)
    });
    // (dy - sum / count - (x - mean) * scale * along / count) * scale * weight, what depends on the channel alone first.
    let of_y = sums.map(|(dy, sum, along)| {
        let of_dy = weight * scale;
        let of_x = of_dy * scale * (along / -count);
        dy * of_dy + (x * of_x - (of_dy * (sum / count) + mean * of_x))
    });
    let of_mean = p.gradients[3].map(|g| g / count);
    let of_scale = p.gradients[4].map(|g| (x - mean) * (g * scale * scale * scale / -count));
    let dx = [of_y, of_mean, of_scale].into_iter().flatten().reduce(|a, b| a + b);
    let dx = dx.map(|dx| dx.broadcast(x.shape()).cast(p.inputs[0].dtype()));
    let like = |sum: Tensor<'g>, operand: Tensor<'g>| sum.reshape(operand.shape()).cast(operand.dtype());
    let of_weight = sums.map(|(_, _, along)| like(along, p.inputs[1]));
    vec![dx, of_weight, sums.map(|(_, sum, _)| like(sum, p.inputs[2])), None, None]
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
