//! Normalisation of each example by itself: layer norm, RMS norm, group norm.
//!
//! The gradient rules keep the operands and compute the statistics again. A row program has the row in its tile when it
//! needs them, so that costs two passes over cached data, while keeping the normalised values would cost a buffer of the
//! size of `x` for as long as the activations live.

use super::{AttrDef, Backprop, CompositeDef, CompositeGradient, Gradients, Lowering, OperandDef};
use super::{require, require_shape, results, wide};
use crate::composite::{Attr, Attrs};
use crate::dim::Dim;
use crate::tensor::Tensor;
use crate::types::Shape;

pub(super) const EPS: AttrDef = AttrDef { name: "eps", doc: "added to the variance", default: Attr::Float(1e-5) };

/// A value shifted to mean 0 and scaled to variance 1 along some axes, and the statistics.
pub(super) struct Normalised<'g> {
    pub(super) value: Tensor<'g>,
    pub(super) mean: Tensor<'g>,
    /// Mean squared deviation.
    pub(super) variance: Tensor<'g>,
    /// `1 / sqrt(variance + eps)`.
    pub(super) scale: Tensor<'g>,
}

/// `x` (`f32`) normalised along `axes`.
pub(super) fn normalise<'g>(x: Tensor<'g>, axes: &[isize], eps: f64) -> Normalised<'g> {
    let mean = x.mean(axes);
    let centred = x - mean;
    let variance = (centred * centred).mean(axes);
    let scale = (variance + eps).rsqrt();
    Normalised { value: centred * scale, mean, variance, scale }
}

/// The gradient of `x` where `g` is that of its normalised value.
pub(super) fn normalise_gradient<'g>(n: &Normalised<'g>, g: Tensor<'g>, axes: &[isize]) -> Tensor<'g> {
    n.scale * (g - g.mean(axes) - n.value * (g * n.value).mean(axes))
}

/// Sums all but the last axis: the gradient of a value `[c]` that was broadcast to the shape of `g`.
pub(super) fn sum_to_last<'g>(g: Tensor<'g>, like: Tensor<'g>) -> Tensor<'g> {
    let leading: Vec<isize> = (0..g.rank() as isize - 1).collect();
    g.sum(&leading).reshape(like.shape()).cast(like.dtype())
}

pub(super) fn check_eps<'g>(operands: &[Tensor<'g>], attrs: &Attrs) -> Result<f64, Tensor<'g>> {
    let eps = attrs.float("eps");
    require(eps >= 0.0 && eps.is_finite(), operands, || format!("eps is {eps}, not a number from 0 on"), None)?;
    Ok(eps)
}

/// The size of the last axis of the first operand, which the vectors after it must have.
pub(super) fn check_vectors<'g>(operands: &[Tensor<'g>], names: &[&str], least_rank: usize) -> Result<Dim, Tensor<'g>> {
    let shape = operands[0].shape();
    let (rank, first) = (shape.rank(), &operands[..1]);
    require(rank >= least_rank, first, || format!("x is {shape}: fewer than {least_rank} axes"), None)?;
    for (name, vector) in names.iter().zip(&operands[1..]) {
        require_shape(name, *vector, &shape[rank - 1..])?;
    }
    Ok(shape[rank - 1])
}

/// See [`CompositeDef::doc`].
pub static LAYER_NORM: CompositeDef = CompositeDef {
    name: "layer_norm",
    doc: "(x - mean) / sqrt(variance + eps) * weight + bias, statistics over the last axis (Ba et al. 2016).",
    operands: &[
        OperandDef::float("x", "[.., c]"),
        OperandDef::float("weight", "[c]"),
        OperandDef::float("bias", "[c]"),
    ],
    attrs: &[EPS],
    results: 1,
    expand: |_, inputs, attrs| {
        let build = || {
            let eps = check_eps(inputs, attrs)?;
            check_vectors(inputs, &["weight", "bias"], 1)?;
            let y = normalise(wide(inputs[0]), &[-1], eps).value * wide(inputs[1]) + wide(inputs[2]);
            Ok(vec![y.cast(inputs[0].dtype())])
        };
        results(&LAYER_NORM, build())
    },
    gradient: CompositeGradient::Rule(layer_norm_gradient),
    lowering: Lowering::Expand,
};

fn layer_norm_gradient<'g>(p: &Backprop<'_, 'g>) -> Gradients<'g> {
    let Some(dy) = p.gradients[0].map(wide) else { return vec![None; 3] };
    let n = normalise(wide(p.inputs[0]), &[-1], p.attrs.float("eps"));
    let dx = normalise_gradient(&n, dy * wide(p.inputs[1]), &[-1]);
    vec![
        Some(dx.cast(p.inputs[0].dtype())),
        Some(sum_to_last(dy * n.value, p.inputs[1])),
        Some(sum_to_last(dy, p.inputs[2])),
    ]
}

/// See [`CompositeDef::doc`].
pub static RMS_NORM: CompositeDef = CompositeDef {
    name: "rms_norm",
    doc: "x / sqrt(mean(x^2) + eps) * weight over the last axis (Zhang and Sennrich 2019).",
    operands: &[OperandDef::float("x", "[.., c]"), OperandDef::float("weight", "[c]")],
    attrs: &[EPS],
    results: 1,
    expand: |_, inputs, attrs| {
        let build = || {
            let eps = check_eps(inputs, attrs)?;
            check_vectors(inputs, &["weight"], 1)?;
            let (value, _) = root_mean_square(wide(inputs[0]), eps);
            Ok(vec![(value * wide(inputs[1])).cast(inputs[0].dtype())])
        };
        results(&RMS_NORM, build())
    },
    gradient: CompositeGradient::Rule(rms_norm_gradient),
    lowering: Lowering::Expand,
};

/// `x` scaled to mean square 1 along the last axis, and the factor.
fn root_mean_square(x: Tensor<'_>, eps: f64) -> (Tensor<'_>, Tensor<'_>) {
    let scale = ((x * x).mean(&[-1]) + eps).rsqrt();
    (x * scale, scale)
}

fn rms_norm_gradient<'g>(p: &Backprop<'_, 'g>) -> Gradients<'g> {
    let Some(dy) = p.gradients[0].map(wide) else { return vec![None; 2] };
    let (value, scale) = root_mean_square(wide(p.inputs[0]), p.attrs.float("eps"));
    let g = dy * wide(p.inputs[1]);
    let dx = scale * (g - value * (g * value).mean(&[-1]));
    vec![Some(dx.cast(p.inputs[0].dtype())), Some(sum_to_last(dy * value, p.inputs[1]))]
}

/// See [`CompositeDef::doc`].
pub static GROUP_NORM: CompositeDef = CompositeDef {
    name: "group_norm",
    doc:
        "(x - mean) / sqrt(variance + eps) * weight + bias, statistics of each example over all places and the channels
of a group (Wu and He 2018). One group per channel is instance norm.",
    operands: &[
        OperandDef::float("x", "[n, spatial.., c], channels last"),
        OperandDef::float("weight", "[c]"),
        OperandDef::float("bias", "[c]"),
    ],
    attrs: &[AttrDef { name: "groups", doc: "how many groups the channels form", default: Attr::Int(1) }, EPS],
    results: 1,
    expand: |_, inputs, attrs| {
        let build = || {
            let eps = check_eps(inputs, attrs)?;
            check_vectors(inputs, &["weight", "bias"], 2)?;
            let x = inputs[0];
            let value = normalise(wide(x).reshape(grouped(x, attrs)?), GROUP_AXES, eps).value.reshape(x.shape());
            Ok(vec![(value * wide(inputs[1]) + wide(inputs[2])).cast(x.dtype())])
        };
        results(&GROUP_NORM, build())
    },
    gradient: CompositeGradient::Rule(group_norm_gradient),
    lowering: Lowering::Expand,
};

/// The axes of `[n, places, groups, c / groups]` that share statistics.
const GROUP_AXES: &[isize] = &[1, 3];

/// The shape `[n, places, groups, c / groups]`.
fn grouped<'g>(x: Tensor<'g>, attrs: &Attrs) -> Result<Shape, Tensor<'g>> {
    let (shape, groups) = (x.shape(), attrs.int("groups"));
    let (last, places) = (shape.rank() - 1, shape[1..shape.rank() - 1].iter().try_fold(Dim::ONE, |p, d| p.times(*d)));
    let count = Dim::constant(usize::try_from(groups).unwrap_or(0));
    match places.zip(shape[last].over(count)) {
        Some((places, part)) => Ok([shape[0], places, count, part].into()),
        None => {
            let message = format!("{} channels do not form {groups} equal groups", shape[last]);
            Err(x.builder().fail(message, &[x], None))
        }
    }
}

fn group_norm_gradient<'g>(p: &Backprop<'_, 'g>) -> Gradients<'g> {
    let x = p.inputs[0];
    let (Some(dy), Ok(shape)) = (p.gradients[0].map(wide), grouped(x, p.attrs)) else { return vec![None; 3] };
    let n = normalise(wide(x).reshape(shape.clone()), GROUP_AXES, p.attrs.float("eps"));
    let dx = normalise_gradient(&n, (dy * wide(p.inputs[1])).reshape(shape), GROUP_AXES);
    vec![
        Some(dx.reshape(x.shape()).cast(x.dtype())),
        Some(sum_to_last(dy * n.value.reshape(x.shape()), p.inputs[1])),
        Some(sum_to_last(dy, p.inputs[2])),
    ]
}
