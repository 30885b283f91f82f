//! Reductions and sorting.

use tenon_graph::tensor::Tensor;
use tenon_graph::types::Shape;

use super::{Outcome, function};
use crate::function::{Call, Function};

pub(super) const INTRODUCTION: &str = "`axes` is an axis or a list of axes, counted from the end if negative; None means \
all. The axes disappear unless `keep` is true, which leaves them with size 1.";

pub(super) fn functions() -> Vec<Function> {
    vec![
        function("sum", "x, axes = None, keep = False", "The sum.", "sum(x, -1)", |call| {
            reduce(call, |x, axes| x.sum(axes))
        }),
        function("mean", "x, axes = None, keep = False", "The mean.", "mean(image, [1, 2])", |call| {
            reduce(call, |x, axes| x.mean(axes))
        }),
        function(
            "variance",
            "x, axes = None, keep = False",
            "The mean squared distance from the mean.",
            "variance(x, -1, keep = True)",
            |call| {
                reduce(call, |x, axes| {
                    let centred = x - x.mean(axes);
                    (centred * centred).mean(axes)
                })
            },
        ),
        function("amax", "x, axes = None, keep = False", "The maximum.", "amax(x, -1)", |call| {
            reduce(call, |x, axes| x.max_over(axes))
        }),
        function("amin", "x, axes = None, keep = False", "The minimum.", "amin(x, -1)", |call| {
            reduce(call, |x, axes| -(-x).max_over(axes))
        }),
        function(
            "argmax",
            "x, axis = -1, keep = False",
            "The index (`i32`) of the first maximum along one axis.",
            "argmax(x)",
            |call| {
                let (x, axis) = (call.tensor("x")?, call.axis("axis")?);
                finish(call, x, x.argmax(axis), &[axis])
            },
        ),
        function(
            "argsort",
            "x, axis = -1, descending = False",
            "The indices (`i32`) that sort `x` along the axis; equal elements keep their order.",
            "argsort(x)",
            |call| Ok(call.tensor("x")?.argsort(call.axis("axis")?, call.flag("descending")?).into()),
        ),
        function(
            "top_k",
            "x, k, axis = -1",
            "The `k` largest elements along the axis, largest first, and their indices (`i32`): a list of two tensors.",
            "top_k(x, 2)[0]",
            |call| {
                let (x, axis) = (call.tensor("x")?, call.axis("axis")?);
                let indices = x.argsort(axis, true).slice(axis, 0, call.size("k")?);
                Ok(vec![x.gather_along(axis, indices), indices].into())
            },
        ),
        function(
            "gather",
            "x, indices, axis = -1",
            "The elements of `x` at `indices` (`i32`) along the axis; all other sizes are equal. The gradient goes back to \
             the places that were read.",
            "gather(x, argsort(x), axis = -1)",
            |call| Ok(call.tensor("x")?.gather_along(call.axis("axis")?, call.tensor("indices")?).into()),
        ),
    ]
}

fn reduce(call: &Call<'_>, reduce: impl for<'g> Fn(Tensor<'g>, &[isize]) -> Tensor<'g>) -> Outcome {
    let x = call.tensor("x")?;
    let axes = call.axes("axes", x)?;
    finish(call, x, reduce(x, &axes), &axes)
}

/// `reduced` without its axes unless they are to be kept.
fn finish(call: &Call<'_>, x: Tensor<'_>, reduced: Tensor<'_>, axes: &[isize]) -> Outcome {
    if call.flag("keep")? || reduced.is_poisoned() {
        return Ok(reduced.into());
    }
    Ok(without_axes(reduced, x.rank(), axes).into())
}

/// `x` reshaped to lack `axes`, all of size one.
pub(super) fn without_axes<'g>(x: Tensor<'g>, rank: usize, axes: &[isize]) -> Tensor<'g> {
    let gone: Vec<usize> = axes.iter().map(|a| a.rem_euclid(rank.max(1) as isize) as usize).collect();
    let rest: Shape = x.shape().iter().enumerate().filter(|(i, _)| !gone.contains(i)).map(|(_, d)| *d).collect();
    x.reshape(rest)
}
