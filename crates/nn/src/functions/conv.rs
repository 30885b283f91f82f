//! Convolution and pooling, channels last.

use tenon_graph::op::{Conv, Direction, Pool, PoolOp, Window};
use tenon_graph::tensor::Tensor;

use super::linear::{features, weight};
use super::reduce::without_axes;
use super::{Outcome, function};
use crate::error::ModelError;
use crate::function::{Argument, Call, Function};
use crate::init::Initialiser;

pub(super) const INTRODUCTION: &str = "Tensors are channels last: `[b, height, width, channels]`, and `[b, length, channels]` \
in one dimension; `images` arrive so. `size`, `stride`, `padding` and `dilation` are a whole number for all spatial axes or a \
list with one for each. `padding` may also be `[low, high]` pairs, \"same\" (as PyTorch: what a stride of 1 needs to keep the \
size, the odd one after), or \"same-tf\" (as TensorFlow: ceil(n / stride) outputs).";

pub(super) fn functions() -> Vec<Function> {
    vec![
        function(
            "conv",
            "x, out, size, name, stride = 1, padding = 0, dilation = 1, groups = 1, bias = True, init = None, bias_init = None",
            "Convolution to `out` channels. The weight `name.weight` is `[out, channels / groups, size..]`, as PyTorch has it. \
             `groups` equal to the channels is a depthwise convolution.",
            "conv(image, 32, 3, name = \"conv1\", stride = 2, padding = \"same\")",
            conv,
        ),
        function(
            "max_pool",
            "x, size, stride = None, padding = 0",
            "The maximum over windows; padding never wins. `stride` is `size` unless given.",
            "max_pool(image, 2)",
            |call| pool(call, PoolOp::Max),
        ),
        function(
            "mean_pool",
            "x, size, stride = None, padding = 0, count_padding = True",
            "The mean over windows. `stride` is `size` unless given. Padding counts as zeros, or not at all.",
            "mean_pool(image, 3, stride = 2, padding = 1, count_padding = False)",
            |call| pool(call, if call.flag("count_padding")? { PoolOp::Mean } else { PoolOp::MeanValid }),
        ),
        function("global_mean_pool", "x", "The mean over all places: `[b, channels]`.", "global_mean_pool(image)", |call| {
            global(call, |x, axes| x.mean(axes))
        }),
        function("global_max_pool", "x", "The maximum over all places: `[b, channels]`.", "global_max_pool(image)", |call| {
            global(call, |x, axes| x.max_over(axes))
        }),
    ]
}

/// The number of spatial axes of `x` and their sizes.
fn spatial(call: &Call<'_>, x: Tensor<'_>) -> Result<Vec<usize>, ModelError> {
    let shape = x.shape();
    let sizes = (3..=5).contains(&shape.rank()).then(|| shape[1..shape.rank() - 1].iter().map(|d| d.as_const()).collect());
    let fail = || {
        let message = format!("takes [b, height, width, channels] (or one or three spatial axes) of known sizes, not {shape}");
        call.error(message).note(x.describe())
    };
    sizes.flatten().ok_or_else(fail)
}

/// A whole number for each of `n` axes.
fn each(call: &Call<'_>, name: &str, n: usize) -> Result<Vec<usize>, ModelError> {
    if let Argument::Int(_) = call.argument(name) {
        return Ok(vec![call.count(name)?; n]);
    }
    let counts = call.counts(name)?;
    if counts.len() != n {
        return Err(call.error(format!("`{name}` has {} numbers for {n} spatial axes", counts.len())));
    }
    Ok(counts)
}

/// The windows that the arguments describe over axes of these sizes.
fn windows(call: &Call<'_>, sizes: &[usize], stride: &[usize], dilation: &[usize]) -> Result<Vec<Window>, ModelError> {
    let n = sizes.len();
    let window = each(call, "size", n)?;
    let bad = |name: &str| Err(call.error(format!("`{name}` is at least 1")));
    for (name, numbers) in [("size", &window[..]), ("stride", stride), ("dilation", dilation)] {
        if numbers.contains(&0) {
            return bad(name);
        }
    }
    let reach = |i: usize| dilation[i].saturating_mul(window[i] - 1);
    let pairs: Vec<(usize, usize)> = match call.argument("padding") {
        Argument::Text(text) if text == "same" => (0..n).map(|i| (reach(i) / 2, reach(i) - reach(i) / 2)).collect(),
        Argument::Text(text) if text == "same-tf" => {
            let total = |i: usize| {
                let last = (sizes[i].div_ceil(stride[i]).max(1) - 1) * stride[i];
                (last + reach(i) + 1).saturating_sub(sizes[i])
            };
            (0..n).map(|i| (total(i) / 2, total(i) - total(i) / 2)).collect()
        }
        Argument::List(items) if items.len() == n && items.iter().all(|i| matches!(i, Argument::List(_))) => {
            let pair = |item: &Argument| match item {
                Argument::List(pair) => match pair[..] {
                    [Argument::Int(low), Argument::Int(high)] => {
                        Some((usize::try_from(low).ok()?, usize::try_from(high).ok()?))
                    }
                    _ => None,
                },
                _ => None,
            };
            let pairs = items.iter().map(pair).collect::<Option<_>>();
            pairs.ok_or_else(|| call.error("a pair of paddings is [low, high]"))?
        }
        Argument::Int(_) | Argument::List(_) => each(call, "padding", n)?.into_iter().map(|p| (p, p)).collect(),
        _ => return Err(call.error("`padding` is a whole number, a list, \"same\" or \"same-tf\"")),
    };
    let make = |i: usize| Window { size: window[i], stride: stride[i], dilation: dilation[i], low: pairs[i].0, high: pairs[i].1 };
    Ok((0..n).map(make).collect())
}

fn conv(call: &Call<'_>) -> Outcome {
    let x = call.tensor("x")?;
    let sizes = spatial(call, x)?;
    let (channels, out, groups) = (features(call, x)?, call.count("out")?, call.count("groups")?);
    if groups == 0 || channels % groups != 0 || out % groups != 0 {
        let message = format!("{channels} channels and {out} outputs do not divide into {groups} groups");
        return Err(call.error(message).note(x.describe()));
    }
    let (stride, dilation) = (each(call, "stride", sizes.len())?, each(call, "dilation", sizes.len())?);
    let windows = windows(call, &sizes, &stride, &dilation)?;
    let shape: Vec<usize> = [out, channels / groups].into_iter().chain(windows.iter().map(|w| w.size)).collect();
    let init = call.optional_init("init")?.unwrap_or(Initialiser::TORCH_WEIGHT);
    // From [out, in, window..] to [out, window.., in].
    let order: Vec<usize> = std::iter::once(0).chain(2..shape.len()).chain([1]).collect();
    let filters = weight(call, "weight", &shape, init)?.transpose(&order);
    let spec = Conv {
        direction: Direction::Forward,
        windows: windows.into(),
        groups,
        result: Default::default(),
        dtype: x.dtype(),
    };
    let mut y = x.conv(filters, spec);
    if call.flag("bias")? {
        let init = call.optional_init("bias_init")?.unwrap_or(Initialiser::torch_bias(&shape));
        y = y + weight(call, "bias", &[out], init)?;
    }
    Ok(y.into())
}

fn pool(call: &Call<'_>, op: PoolOp) -> Outcome {
    let x = call.tensor("x")?;
    let sizes = spatial(call, x)?;
    let stride = each(call, if call.given("stride") { "stride" } else { "size" }, sizes.len())?;
    let windows = windows(call, &sizes, &stride, &vec![1; sizes.len()])?;
    Ok(x.pool(Pool { op, direction: Direction::Forward, windows: windows.into() }).into())
}

fn global(call: &Call<'_>, reduce: impl for<'g> Fn(Tensor<'g>, &[isize]) -> Tensor<'g>) -> Outcome {
    let x = call.tensor("x")?;
    let axes: Vec<isize> = (1..x.rank() as isize - 1).collect();
    let reduced = reduce(x, &axes);
    Ok(if reduced.is_poisoned() { reduced } else { without_axes(reduced, x.rank(), &axes) }.into())
}
