//! Pooling, channels last, sixteen channels at a time.

use super::view::{Scratch, View, ViewMut, piece, scratch_bytes};
use super::window::{Geometry, Pixels, number, place};
use crate::isa::Cpu;
use crate::simd::{LANES, Lanes, Task};
use tenon_graph::op::{PoolOp, Window};

/// The maximum or mean of every window of `from` (`[n, spatial.., c]`, one to three spatial axes) into `to`. Padding
/// never is the maximum; NaN is if a window has one. A window without elements has the maximum minus infinity and the
/// mean 0. Channels are contiguous in both; sums are chains over ascending window elements.
///
/// # Panics
/// If shapes do not fit.
pub fn pool(cpu: &Cpu, op: PoolOp, windows: &[Window], from: &View<'_>, to: &mut ViewMut<'_>) {
    let geometry = Geometry::new(from.shape(), windows);
    let channels = check(&geometry, from, to);
    let (from, to) = (Pixels::of("the input of a pool", from), Pixels::of("the output of a pool", to));
    let rows = geometry.output[0] * geometry.output[1];
    cpu.pool.run(geometry.n * rows, |task, _| {
        cpu.vectorise(Row { geometry: &geometry, op, from, to, channels, n: task / rows, row: task % rows });
    });
}

/// The number of channels.
fn check(geometry: &Geometry, input: &View<'_>, output: &View<'_>) -> usize {
    let rank = input.shape().len();
    let expected = &geometry.output[5 - rank..];
    let shape = output.shape();
    let fits = shape.len() == rank && shape[0] == input.shape()[0] && shape[1..rank - 1] == *expected;
    assert!(fits && shape[rank - 1] == input.shape()[rank - 1], "pool of {:?} into {shape:?}", input.shape());
    shape[rank - 1]
}

/// What the sum of a window is divided by.
#[inline(always)]
fn divisor(geometry: &Geometry, op: PoolOp, output: [usize; 3]) -> f32 {
    match op {
        PoolOp::Mean => geometry.taps() as f32,
        PoolOp::MeanValid | PoolOp::Max => geometry.valid(output).max(1) as f32,
    }
}

/// The maximum of a window so far and the element that is it.
#[derive(Clone, Copy)]
struct Best<V> {
    max: V,
    tap: V,
}

impl<V: Lanes> Best<V> {
    /// With one more element. The first one wins over none, a greater one or a first NaN over the best before it.
    #[inline(always)]
    fn with(self, x: V, tap: usize, first: bool) -> Best<V> {
        let new = V::splat(tap as f32);
        if first {
            return Best { max: x, tap: new };
        }
        let greater = x.select_gt(self.max, new, self.tap);
        // Where x is NaN: the best stays if it is one already.
        let tap = x.select_eq(x, greater, self.max.select_eq(self.max, new, self.tap));
        let greater = x.select_gt(self.max, x, self.max);
        let max = x.select_eq(x, greater, self.max.select_eq(self.max, x, self.max));
        Best { max, tap }
    }
}

/// The best element of one window, sixteen channels.
///
/// # Safety
/// The channels exist.
#[inline(always)]
unsafe fn best<V: Lanes>(
    geometry: &Geometry,
    from: &Pixels,
    n: usize,
    output: [usize; 3],
    channel: usize,
    count: usize,
) -> Best<V> {
    let mut best = Best { max: V::splat(f32::NEG_INFINITY), tap: V::splat(-1.0) };
    let mut first = true;
    geometry.for_taps(
        output,
        #[inline(always)]
        |tap, at| {
            // SAFETY: a pixel of the input, and channels of it.
            best = best.with(unsafe { from.load(from.offset(n, at) + channel, count) }, tap, first);
            first = false;
        },
    );
    best
}

/// One row of outputs.
struct Row<'a> {
    geometry: &'a Geometry,
    op: PoolOp,
    from: Pixels,
    to: Pixels,
    channels: usize,
    n: usize,
    row: usize,
}

impl Task for Row<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes>(self) {
        let Row { geometry, op, from, to, channels, n, row } = self;
        for x in 0..geometry.output[2] {
            let output = [row / geometry.output[1], row % geometry.output[1], x];
            let divisor = V::splat(divisor(geometry, op, output));
            for channel in (0..channels).step_by(LANES) {
                let count = (channels - channel).min(LANES);
                let result = match op {
                    // SAFETY: channels below their number.
                    PoolOp::Max => unsafe { best::<V>(geometry, &from, n, output, channel, count) }.max,
                    PoolOp::Mean | PoolOp::MeanValid => {
                        let mut sum = V::splat(0.0);
                        geometry.for_taps(
                            output,
                            #[inline(always)]
                            |_, at| {
                                // SAFETY: a pixel of the input, and channels of it.
                                sum = sum.add(unsafe { from.load(from.offset(n, at) + channel, count) });
                            },
                        );
                        sum.div(divisor)
                    }
                };
                // SAFETY: this task alone writes its row of outputs.
                unsafe { to.store(to.offset(n, output) + channel, count, result) };
            }
        }
    }
}

/// The bytes of scratch that [`pool_gradient`] over an input of this shape needs on a pool of `threads`.
///
/// # Panics
/// If the windows do not fit.
pub fn pool_gradient_scratch_bytes(op: PoolOp, windows: &[Window], input: &[usize], threads: usize) -> usize {
    let geometry = Geometry::new(input, windows);
    scratch_bytes(0, best_elements(op, &geometry, parts(&geometry, input[input.len() - 1])), threads)
}

/// Vectors of channels that one task of the gradient takes at most: finding the windows of a pixel costs as much as a
/// vector's work.
const PARTS: usize = 4;
/// Tasks worth having, so that a few threads share them evenly.
const TASKS: usize = 16;

/// Vectors of channels of a task.
fn parts(geometry: &Geometry, channels: usize) -> usize {
    (geometry.n * channels.div_ceil(LANES) / TASKS).clamp(1, PARTS)
}

fn best_elements(op: PoolOp, geometry: &Geometry, parts: usize) -> usize {
    match op {
        PoolOp::Max => piece::<f32>(geometry.outputs() * parts * LANES),
        PoolOp::Mean | PoolOp::MeanValid => 0,
    }
}

/// The gradient of [`pool`]'s input: a maximum's goes to the first element that is it. Windows that share an element
/// are added in ascending order. Channels are contiguous in all.
///
/// # Panics
/// If shapes do not fit or the scratch is too small.
pub fn pool_gradient(
    cpu: &Cpu,
    op: PoolOp,
    windows: &[Window],
    input: &View<'_>,
    output_gradient: &View<'_>,
    to: &mut ViewMut<'_>,
    scratch_memory: &mut [u8],
) {
    let geometry = Geometry::new(input.shape(), windows);
    let channels = check(&geometry, input, output_gradient);
    assert!(to.shape() == input.shape(), "the gradient of {:?} is not {:?}", input.shape(), to.shape());
    let parts = parts(&geometry, channels);
    let scratch = Scratch::new(scratch_memory, 0, best_elements(op, &geometry, parts), cpu.pool.threads());
    let input = Pixels::of("the input of a pool", input);
    let gradient = Pixels::of("the output gradient of a pool", output_gradient);
    let to = Pixels::of("the input gradient of a pool", to);
    let blocks = channels.div_ceil(parts * LANES);
    cpu.pool.run(geometry.n * blocks, |task, worker| {
        let best = match op {
            PoolOp::Max => scratch.worker(worker).take::<f32>(geometry.outputs() * parts * LANES),
            PoolOp::Mean | PoolOp::MeanValid => std::ptr::null_mut(),
        };
        let channel = task % blocks * parts * LANES;
        let count = (channels - channel).min(parts * LANES);
        cpu.vectorise(Gradient {
            geometry: &geometry,
            op,
            input,
            gradient,
            to,
            n: task / blocks,
            channel,
            count,
            best,
        });
    });
}

/// The input gradient of `count` channels of one batch entry, [`PARTS`] vectors at most.
struct Gradient<'a> {
    geometry: &'a Geometry,
    op: PoolOp,
    input: Pixels,
    gradient: Pixels,
    to: Pixels,
    n: usize,
    channel: usize,
    count: usize,
    /// `[outputs][vectors]`: the element that is the maximum of each window.
    best: *mut f32,
}

impl Task for Gradient<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes>(self) {
        let Gradient { geometry, op, input, gradient, to, n, channel, count, best: elements } = self;
        let parts = count.div_ceil(LANES);
        let lanes = |part: usize| (count - part * LANES).min(LANES);
        // SAFETY: pixels that exist, and channels of them; the scratch has room for all outputs; this task alone writes
        // its channels of its batch entry.
        unsafe {
            let winner = |output: usize, part: usize| elements.add((output * parts + part) * LANES);
            if op == PoolOp::Max {
                for i in 0..geometry.outputs() {
                    let output = place(i, geometry.output);
                    for part in 0..parts {
                        let first = channel + part * LANES;
                        best::<V>(geometry, &input, n, output, first, lanes(part)).tap.store(winner(i, part));
                    }
                }
            }
            for i in 0..geometry.inputs() {
                let at = place(i, geometry.input);
                let mut sums = [V::splat(0.0); PARTS];
                geometry.for_windows(
                    at,
                    #[inline(always)]
                    |tap, output| {
                        let from = gradient.offset(n, output) + channel;
                        let window = number(output, geometry.output);
                        for (part, sum) in sums.iter_mut().enumerate().take(parts) {
                            let dy = gradient.load::<V>(from + part * LANES, lanes(part));
                            let share = match op {
                                PoolOp::Max => {
                                    let winner = V::load(winner(window, part));
                                    winner.select_eq(V::splat(tap as f32), dy, V::splat(0.0))
                                }
                                PoolOp::Mean | PoolOp::MeanValid => dy.div(V::splat(divisor(geometry, op, output))),
                            };
                            *sum = sum.add(share);
                        }
                    },
                );
                for (part, sum) in sums.iter().enumerate().take(parts) {
                    to.store(to.offset(n, at) + channel + part * LANES, lanes(part), *sum);
                }
            }
        }
    }
}
