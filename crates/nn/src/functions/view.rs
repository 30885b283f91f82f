//! Rearranging elements.

use tenon_graph::dim::Dim;
use tenon_graph::tensor::Tensor;
use tenon_graph::types::{Shape, Type};

use super::{Outcome, function};
use crate::error::ModelError;
use crate::function::{Argument, Call, Function, dim};
use crate::operators::Bound;

pub(super) const INTRODUCTION: &str = "A tensor has `x.shape` (a tuple of sizes), `x.dtype` and `x.rank`. A size that is \
open until a program is planned prints as its name and has `+`, `*`, `//` and `==`. `x[i]` and `x[a:b]` take elements of the \
first axis.";

pub(super) fn functions() -> Vec<Function> {
    vec![
        function(
            "reshape",
            "x, shape",
            "The same elements in another shape; one size may be -1 and follows from the others.",
            "reshape(x, [x.shape[0], 4, -1])",
            |call| {
                let (x, dims) = (call.tensor("x")?, call.dims("shape")?);
                Ok(x.reshape(infer_size(call, x, &dims)?).into())
            },
        ),
        function(
            "flatten",
            "x, first = 1",
            "All axes from `first` on as one.",
            "flatten(image)",
            |call| {
                let (x, first) = (call.tensor("x")?, call.count("first")?);
                let shape = x.shape();
                if first > shape.rank() {
                    return Err(call.error(format!("axis {first} of {shape}")));
                }
                let rest = shape[first..].iter().try_fold(Dim::ONE, |product, d| product.times(*d));
                let rest = rest.ok_or_else(|| call.error(format!("{shape} has too many symbols")))?;
                Ok(x.reshape(shape[..first].iter().copied().chain([rest]).collect::<Shape>()).into())
            },
        ),
        function(
            "transpose",
            "x, axes",
            "Axis `i` of the result is axis `axes[i]` of `x`.",
            "transpose(sequence, [0, 2, 1])",
            |call| {
                let x = call.tensor("x")?;
                let axes = call.ints("axes")?.into_iter().map(|a| x.axis("transpose", a as isize));
                match axes.collect::<Result<Vec<usize>, _>>() {
                    Ok(axes) => Ok(x.transpose(&axes).into()),
                    Err(poison) => Ok(poison.into()),
                }
            },
        ),
        function(
            "split",
            "x, parts, axis = -1",
            "A list of parts along the axis: so many equal ones, or ones of the listed sizes.",
            "split(x, 2)[0]",
            split,
        ),
        function(
            "concat",
            "tensors, axis = -1",
            "The tensors, one after the other along the axis.",
            "concat([x, x], axis = 0)",
            |call| Ok(call.session.builder.concat(&call.tensors("tensors")?, call.axis("axis")?).into()),
        ),
        function("stack", "tensors, axis = 0", "Equal shapes side by side along a new axis.", "stack([x, x])", |call| {
            let axis = call.axis("axis")?;
            let parts: Vec<_> = call.tensors("tensors")?.into_iter().map(|t| expand(t, axis)).collect();
            Ok(call.session.builder.concat(&parts, axis).into())
        }),
        function(
            "expand_dims",
            "x, axis",
            "`x` with a new axis of size 1, which is `axis` of the result.",
            "expand_dims(x, 1)",
            |call| Ok(expand(call.tensor("x")?, call.axis("axis")?).into()),
        ),
        function("squeeze", "x, axis", "`x` without an axis of size 1.", "squeeze(expand_dims(x, 1), 1)", |call| {
            let (x, axis) = (call.tensor("x")?, call.axis("axis")?);
            Ok(super::reduce::without_axes(x, x.rank(), &[axis]).into())
        }),
        function(
            "broadcast",
            "x, shape",
            "`x` repeated to `shape`: missing leading axes, and axes of size 1.",
            "broadcast(sum(x, -1, keep = True), x.shape)",
            |call| {
                let dims = call.dims("shape")?.into_iter().collect::<Option<Shape>>();
                let shape = dims.ok_or_else(|| call.error("-1 is no size"))?;
                Ok(call.tensor("x")?.broadcast(shape).into())
            },
        ),
        function(
            "pad",
            "x, low, high, axis = -1",
            "`x` with `low` zeros before and `high` zeros after along the axis.",
            "pad(x, 1, 1)",
            |call| {
                let (x, axis, low) = (call.tensor("x")?, call.axis("axis")?, call.size("low")?);
                let high = call.size("high")?;
                let Ok(at) = x.axis("pad", axis) else { return Ok(x.into()) };
                let size = x.shape()[at].plus(low).and_then(|n| n.plus(high));
                let size = size.ok_or_else(|| call.error(format!("{} + {low} + {high} is no size", x.shape()[at])))?;
                Ok(x.pad(axis, low, size, 1).into())
            },
        ),
        function(
            "slice",
            "x, start, stop = None, step = 1, axis = -1",
            "The elements from `start` up to `stop` (None: to the end), `step` apart, along the axis; what counts from the \
             end is negative.",
            "slice(x, 0, 8, axis = 1)",
            |call| {
                let bound = |name: &str| match call.argument(name) {
                    Argument::None => Ok(None),
                    Argument::Int(n) => Ok(Some(Bound::Int(*n))),
                    other => match dim(other) {
                        Some(dim) => Ok(Some(Bound::Size(dim))),
                        None => Err(call.error(format!("`{name}` is a whole number or a size"))),
                    },
                };
                let x = call.tensor("x")?;
                Ok(slice(x, bound("start")?, bound("stop")?, bound("step")?, call.axis("axis")?)?.into())
            },
        ),
        function(
            "select",
            "x, index, axis",
            "Element `index` along the axis, which disappears.",
            "select(sequence, 0, axis = 1)",
            |call| Ok(select(call.tensor("x")?, call.int("index")?, call.axis("axis")?)?.into()),
        ),
        function(
            "full",
            "value, shape, dtype = \"f32\"",
            "A constant tensor.",
            "x + full(0.5, [16])",
            |call| {
                let dims = call.dims("shape")?.into_iter().collect::<Option<Shape>>();
                let shape = dims.ok_or_else(|| call.error("-1 is no size"))?;
                let dtype = super::inputs::dtype(call, "dtype")?;
                Ok(call.session.builder.full(call.number("value")?, dtype, shape).into())
            },
        ),
        function(
            "arange",
            "size, dtype = \"i32\"",
            "0, 1, .. up to `size`, which may be symbolic: `[size]`.",
            "cast(arange(16), \"f32\") * x",
            |call| {
                let dtype = super::inputs::dtype(call, "dtype")?;
                Ok(call.session.builder.iota(0, Type::new(dtype, [call.size("size")?])).into())
            },
        ),
    ]
}

fn infer_size(call: &Call<'_>, x: Tensor<'_>, dims: &[Option<Dim>]) -> Result<Shape, ModelError> {
    let known = dims.iter().flatten().try_fold(Dim::ONE, |product, d| product.times(*d));
    let rest = match dims.iter().filter(|d| d.is_none()).count() {
        0 => Some(Dim::ONE),
        1 => x.shape().checked_numel().zip(known).and_then(|(all, known)| all.over(known)),
        _ => return Err(call.error("only one size may be -1")),
    };
    let Some(rest) = rest else {
        let sizes: Vec<String> = dims.iter().map(|d| d.map_or("-1".to_string(), |d| d.to_string())).collect();
        let message = format!("{} does not divide into [{}]", x.shape(), sizes.join(", "));
        return Err(call.error(message).note(x.describe()));
    };
    Ok(dims.iter().map(|d| d.unwrap_or(rest)).collect())
}

fn split(call: &Call<'_>) -> Outcome {
    let (x, axis) = (call.tensor("x")?, call.axis("axis")?);
    if let Argument::Int(parts) = call.argument("parts") {
        return match usize::try_from(*parts) {
            Ok(parts) if parts > 0 => Ok(x.split(parts, axis).into()),
            _ => Err(call.error(format!("{parts} parts"))),
        };
    }
    let Ok(at) = x.axis("split", axis) else { return Ok(x.into()) };
    let whole = x.shape()[at];
    let sizes = call.dims("parts")?.into_iter().collect::<Option<Vec<Dim>>>().ok_or_else(|| call.error("-1 is no size"))?;
    let ends = sizes.iter().scan(Dim::constant(0), |end, size| {
        *end = end.plus(*size)?;
        Some(*end)
    });
    let ends: Vec<Dim> = ends.collect();
    if ends.len() != sizes.len() || ends.last() != Some(&whole) {
        let sizes: Vec<String> = sizes.iter().map(Dim::to_string).collect();
        let message = format!("[{}] does not add up to {whole}", sizes.join(", "));
        return Err(call.error(message).note(x.describe()));
    }
    let starts = std::iter::once(Dim::constant(0)).chain(ends);
    Ok(starts.zip(&sizes).map(|(start, size)| x.slice(axis, start, *size)).collect::<Vec<_>>().into())
}

/// `x` with a new axis of size one, which is `axis` of the result.
fn expand(x: Tensor<'_>, axis: isize) -> Tensor<'_> {
    let rank = x.rank() as isize + 1;
    let at = if axis < 0 { axis + rank } else { axis };
    if !(0..rank).contains(&at) {
        return x.builder().fail(format!("axis {axis} of a result with {rank} axes"), &[x], None);
    }
    let shape = x.shape();
    let (before, after) = shape.split_at(at as usize);
    x.reshape(before.iter().copied().chain([Dim::ONE]).chain(after.iter().copied()).collect::<Shape>())
}

/// Element `index` along `axis`, which disappears.
pub(crate) fn select(x: Tensor<'_>, index: i64, axis: isize) -> Result<Tensor<'_>, ModelError> {
    let Ok(at) = x.axis("select", axis) else { return Ok(x) };
    let whole = x.shape()[at];
    let start = match (index, whole.as_const()) {
        (n, Some(size)) if n < 0 => usize::try_from(n + size as i64).ok(),
        (n, None) if n < 0 => {
            let message = format!("select: element {n} of the symbolic size {whole}, whose end is not known yet");
            return Err(ModelError::new(message).note(x.describe()));
        }
        (n, _) => usize::try_from(n).ok(),
    };
    match start {
        Some(start) if whole.as_const().is_none_or(|size| start < size) => {
            Ok(super::reduce::without_axes(x.slice(at as isize, start, 1), x.rank(), &[at as isize]))
        }
        _ => Err(ModelError::new(format!("select: element {index} of {whole} along axis {axis}")).note(x.describe())),
    }
}

/// The elements from `start` to `stop`, `step` apart, along `axis`.
pub(crate) fn slice(
    x: Tensor<'_>,
    start: Option<Bound>,
    stop: Option<Bound>,
    step: Option<Bound>,
    axis: isize,
) -> Result<Tensor<'_>, ModelError> {
    let Ok(at) = x.axis("slice", axis) else { return Ok(x) };
    let whole = x.shape()[at];
    let fail = |message: String| Err(ModelError::new(format!("slice: {message}")).note(x.describe()));
    let step = match step {
        None => 1,
        Some(Bound::Int(n)) if n > 0 => n as usize,
        Some(_) => return fail("a step is a whole number from 1 on".to_string()),
    };
    let place = |bound: Bound| match (bound, whole.as_const()) {
        (Bound::Size(dim), _) => Ok(dim),
        (Bound::Int(n), Some(size)) => {
            let from_front = if n < 0 { n + size as i64 } else { n };
            Ok(Dim::constant(from_front.clamp(0, size as i64) as usize))
        }
        (Bound::Int(n), None) if n >= 0 => Ok(Dim::constant(n as usize)),
        (Bound::Int(n), None) => Err(n),
    };
    let ends = (start.map_or(Ok(Dim::constant(0)), place), stop.map_or(Ok(whole), place));
    let (start, stop) = match ends {
        (Ok(start), Ok(stop)) => (start, stop),
        (Err(n), _) | (_, Err(n)) => {
            return fail(format!("{n} counts from the end of the symbolic size {whole}, which is not known yet"));
        }
    };
    let length = match (start.as_const(), stop.as_const()) {
        (Some(start), Some(stop)) => Some(Dim::constant(stop.saturating_sub(start).div_ceil(step))),
        (Some(0), None) if step == 1 => Some(stop),
        _ => None,
    };
    match length {
        Some(length) => Ok(x.slice_step(at as isize, start, length, step)),
        None => fail(format!("from {start} to {stop} by {step}: a symbolic end is sliced from 0 in steps of 1")),
    }
}
