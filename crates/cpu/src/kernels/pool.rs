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

/// The best elements of one window, `P` vectors of channels of which the last has `count`.
///
/// # Safety
/// The channels exist.
#[inline(always)]
unsafe fn best<V: Lanes, const P: usize>(
    geometry: &Geometry,
    from: &Pixels,
    n: usize,
    output: [usize; 3],
    channel: usize,
    count: usize,
) -> [Best<V>; P] {
    let mut best = [Best { max: V::splat(f32::NEG_INFINITY), tap: V::splat(-1.0) }; P];
    let mut first = true;
    geometry.for_taps(
        output,
        #[inline(always)]
        |tap, at| {
            let from_here = from.offset(n, at) + channel;
            for (part, best) in best.iter_mut().enumerate() {
                let lanes = if part + 1 < P { LANES } else { count };
                // SAFETY: a pixel of the input, and channels of it.
                *best = best.with(unsafe { from.load(from_here + part * LANES, lanes) }, tap, first);
            }
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
        for x in 0..self.geometry.output[2] {
            let output = [self.row / self.geometry.output[1], self.row % self.geometry.output[1], x];
            let mut channel = 0;
            while channel < self.channels {
                // SAFETY: channels below their number.
                channel += unsafe {
                    match self.channels - channel {
                        WIDE.. => self.channels::<V, PARTS>(output, channel, LANES),
                        left => self.channels::<V, 1>(output, channel, left.min(LANES)),
                    }
                };
            }
        }
    }
}

impl Row<'_> {
    /// `P` vectors of channels of one output, of which the last has `count`; how many channels that is.
    ///
    /// # Safety
    /// The channels exist, and this thread alone writes them.
    #[inline(always)]
    unsafe fn channels<V: Lanes, const P: usize>(&self, output: [usize; 3], channel: usize, count: usize) -> usize {
        let Row { geometry, op, from, to, n, .. } = self;
        let mut results = [V::splat(0.0); P];
        let lanes = |part: usize| if part + 1 < P { LANES } else { count };
        // SAFETY: the caller's.
        unsafe {
            if *op == PoolOp::Max {
                let best = best::<V, P>(geometry, from, *n, output, channel, count);
                for (result, best) in results.iter_mut().zip(best) {
                    *result = best.max;
                }
            } else {
                geometry.for_taps(
                    output,
                    #[inline(always)]
                    |_, at| {
                        let from_here = from.offset(*n, at) + channel;
                        for (part, sum) in results.iter_mut().enumerate() {
                            *sum = sum.add(from.load(from_here + part * LANES, lanes(part)));
                        }
                    },
                );
                let divisor = V::splat(divisor(geometry, *op, output));
                for sum in &mut results {
                    *sum = sum.div(divisor);
                }
            }
            for (part, result) in results.into_iter().enumerate() {
                to.store(to.offset(*n, output) + channel + part * LANES, lanes(part), result);
            }
        }
        (P - 1) * LANES + count
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

/// Vectors of channels that are worked on at once at most: finding the windows of a pixel costs as much as a vector's work.
const PARTS: usize = 4;
const WIDE: usize = PARTS * LANES;
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
    /// `[outputs][vectors at once]`: the element that is the maximum of each window.
    best: *mut f32,
}

impl Task for Gradient<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes>(self) {
        // SAFETY: pixels that exist, and channels of them; the scratch has room for all outputs; this task alone writes
        // its channels of its batch entry.
        unsafe {
            if self.count == WIDE {
                return self.channels::<V, PARTS>(self.channel, LANES);
            }
            for first in (0..self.count).step_by(LANES) {
                self.channels::<V, 1>(self.channel + first, LANES.min(self.count - first));
            }
        }
    }
}

impl Gradient<'_> {
    /// `P` vectors of channels, of which the last has `count`.
    ///
    /// # Safety
    /// The channels exist, this thread alone writes them, and there is scratch for the best elements of all outputs.
    #[inline(always)]
    unsafe fn channels<V: Lanes, const P: usize>(&self, channel: usize, count: usize) {
        let Gradient { geometry, op, input, gradient, to, n, best: elements, .. } = self;
        let lanes = |part: usize| if part + 1 < P { LANES } else { count };
        let winner = |output: usize, part: usize| elements.wrapping_add((output * P + part) * LANES);
        // SAFETY: the caller's.
        unsafe {
            if *op == PoolOp::Max {
                for i in 0..geometry.outputs() {
                    let best = best::<V, P>(geometry, input, *n, place(i, geometry.output), channel, count);
                    for (part, best) in best.into_iter().enumerate() {
                        best.tap.store(winner(i, part));
                    }
                }
            }
            for i in 0..geometry.inputs() {
                let at = place(i, geometry.input);
                let mut sums = [V::splat(0.0); P];
                geometry.for_windows(
                    at,
                    #[inline(always)]
                    |tap, output| {
                        let from = gradient.offset(*n, output) + channel;
                        let window = number(output, geometry.output);
                        for (part, sum) in sums.iter_mut().enumerate() {
                            let dy = gradient.load::<V>(from + part * LANES, lanes(part));
                            let share = match op {
                                PoolOp::Max => {
                                    let winner = V::load(winner(window, part));
                                    winner.select_eq(V::splat(tap as f32), dy, V::splat(0.0))
                                }
                                PoolOp::Mean | PoolOp::MeanValid => dy.div(V::splat(divisor(geometry, *op, output))),
                            };
                            *sum = sum.add(share);
                        }
                    },
                );
                for (part, sum) in sums.into_iter().enumerate() {
                    to.store(to.offset(*n, at) + channel + part * LANES, lanes(part), sum);
                }
            }
        }
    }
}
