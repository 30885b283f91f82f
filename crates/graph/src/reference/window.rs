//! Convolution, pooling and their gradients.

use super::array::{Array, each_index, offset, strides};
use crate::op::{Conv, Direction, Pool, PoolOp, Window};

/// Calls `visit` with every window's place (`[spatial..]`), every place in the window (`[window..]`), and the element of
/// the operand (`[spatial..]`) there, unless that is padding.
fn each_tap(
    windows: &[Window],
    input: &[usize],
    output: &[usize],
    mut visit: impl FnMut(&[usize], &[usize], &[usize]),
) {
    let sizes: Vec<usize> = windows.iter().map(|w| w.size).collect();
    each_index(output, |o| {
        each_index(&sizes, |t| {
            let at = |axis: usize| {
                let w = &windows[axis];
                (o[axis] * w.stride + t[axis] * w.dilation).checked_sub(w.low).filter(|i| *i < input[axis])
            };
            if let Some(i) = (0..windows.len()).map(at).collect::<Option<Vec<usize>>>() {
                visit(o, t, &i);
            }
        });
    });
}

fn outputs(windows: &[Window], input: &[usize]) -> Vec<usize> {
    windows.iter().zip(input).map(|(w, n)| w.outputs(*n).expect("types have been inferred")).collect()
}

/// The distances between spatial neighbours of a channels-last value.
fn spatial(shape: &[usize]) -> Vec<usize> {
    let all = strides(shape);
    all[1..all.len() - 1].to_vec()
}

pub(super) fn conv(conv: &Conv, a: &Array, b: &Array) -> Array {
    let result = conv.result.sizes();
    // The shapes of the three values that the direction's map relates.
    let (input, weight) = match conv.direction {
        Direction::Forward => (a.shape.clone(), b.shape.clone()),
        Direction::InputGradient => (result, b.shape.clone()),
        Direction::WeightGradient => (b.shape.clone(), result),
    };
    let rank = input.len();
    let mut output = input.clone();
    output[1..rank - 1].copy_from_slice(&outputs(&conv.windows, &input[1..rank - 1]));
    output[rank - 1] = weight[0];
    let (into_input, into_weight, into_output) = (spatial(&input), spatial(&weight), spatial(&output));
    let (batch, c, o) = (input[0], input[rank - 1], output[rank - 1]);
    let (c_group, o_group) = (c / conv.groups, o / conv.groups);
    let per_example = |shape: &[usize]| shape[1..].iter().product::<usize>();
    let (x_step, y_step, w_step) = (per_example(&input), per_example(&output), per_example(&weight));

    let shape = match conv.direction {
        Direction::Forward => &output,
        Direction::InputGradient => &input,
        Direction::WeightGradient => &weight,
    };
    let mut data = vec![0.0; shape.iter().product()];
    each_tap(&conv.windows, &input[1..rank - 1], &output[1..rank - 1], |place, tap, element| {
        let x_at = offset(element, &into_input);
        let (w_at, y_at) = (offset(tap, &into_weight), offset(place, &into_output));
        for n in 0..batch {
            for filter in 0..o {
                for channel in 0..c_group {
                    let x = n * x_step + x_at + filter / o_group * c_group + channel;
                    let w = filter * w_step + w_at + channel;
                    let y = n * y_step + y_at + filter;
                    match conv.direction {
                        Direction::Forward => data[y] += a.data[x] * b.data[w],
                        Direction::InputGradient => data[x] += a.data[y] * b.data[w],
                        Direction::WeightGradient => data[w] += a.data[y] * b.data[x],
                    }
                }
            }
        }
    });
    Array::new(conv.dtype, shape.clone(), data)
}

/// What one pooling window holds at one channel.
#[derive(Clone, Default)]
struct Bin {
    sum: f64,
    count: usize,
    /// The first maximum and where it is.
    max: Option<(f64, usize)>,
}

pub(super) fn pool(pool: &Pool, x: &[&Array]) -> Array {
    let input = &x[0].shape;
    let rank = input.len();
    let mut output = input.clone();
    output[1..rank - 1].copy_from_slice(&outputs(&pool.windows, &input[1..rank - 1]));
    let (into_input, into_output) = (spatial(input), spatial(&output));
    let c = input[rank - 1];
    let each = |visit: &mut dyn FnMut(usize, usize)| {
        let per_example = |shape: &[usize]| shape[1..].iter().product::<usize>();
        each_tap(&pool.windows, &input[1..rank - 1], &output[1..rank - 1], |place, _, element| {
            for n in 0..input[0] {
                for channel in 0..c {
                    let from = n * per_example(input) + offset(element, &into_input) + channel;
                    visit(n * per_example(&output) + offset(place, &into_output) + channel, from);
                }
            }
        });
    };
    let mut bins = vec![Bin::default(); output.iter().product()];
    each(&mut |y, from| {
        let (bin, value) = (&mut bins[y], x[0].data[from]);
        bin.sum += value;
        bin.count += 1;
        if bin.max.is_none_or(|(max, _)| value > max || (value.is_nan() && !max.is_nan())) {
            bin.max = Some((value, from));
        }
    });
    let whole: usize = pool.windows.iter().map(|w| w.size).product();
    // A window that lies wholly in padding has no elements, and its mean is 0.
    let divisor = |bin: &Bin| match pool.op {
        PoolOp::Mean => whole as f64,
        PoolOp::MeanValid | PoolOp::Max => bin.count.max(1) as f64,
    };
    match pool.direction {
        Direction::Forward => {
            let value = |bin: &Bin| match pool.op {
                PoolOp::Max => bin.max.map_or(f64::NEG_INFINITY, |(max, _)| max),
                PoolOp::Mean | PoolOp::MeanValid => bin.sum / divisor(bin),
            };
            let data: Vec<f64> = bins.iter().map(value).collect();
            Array::new(x[0].dtype, output, data)
        }
        Direction::InputGradient | Direction::WeightGradient => {
            let dy = &x[1].data;
            let mut data = vec![0.0; x[0].data.len()];
            each(&mut |y, from| match pool.op {
                PoolOp::Max if bins[y].max.is_some_and(|(_, at)| at == from) => data[from] += dy[y],
                PoolOp::Max => {}
                PoolOp::Mean | PoolOp::MeanValid => data[from] += dy[y] / divisor(&bins[y]),
            });
            Array::new(x[0].dtype, input.clone(), data)
        }
    }
}
