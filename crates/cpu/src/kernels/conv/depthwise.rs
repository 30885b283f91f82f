//! Depthwise convolution: one filter for each channel, sixteen channels at a time.

use super::Convolution;
use crate::isa::Cpu;
use crate::kernels::view::{Scratch, piece};
use crate::kernels::window::{Pixels, place};
use crate::simd::{LANES, Lanes, Task};
use tenon_graph::op::Direction;

/// The bytes of shared scratch: the weights as `f32[taps][channels, padded]`.
pub(super) fn scratch(spec: &Convolution) -> usize {
    match spec.direction {
        Direction::Forward | Direction::InputGradient => piece::<f32>(weights(spec)),
        Direction::WeightGradient => 0,
    }
}

fn weights(spec: &Convolution) -> usize {
    spec.geometry.taps() * spec.channels.next_multiple_of(LANES)
}

/// `(input, weight) -> output`: sums over ascending window elements.
pub(super) fn forward(cpu: &Cpu, spec: &Convolution, x: Pixels, w: Pixels, y: Pixels, scratch: Scratch<'_>) {
    let weights = turn_weights(spec, w, scratch);
    run_rows(cpu, spec, x, y, weights, spec.geometry.output);
}

/// `(output gradient, weight) -> input gradient`: sums over ascending windows.
pub(super) fn input_gradient(cpu: &Cpu, spec: &Convolution, dy: Pixels, w: Pixels, dx: Pixels, scratch: Scratch<'_>) {
    let weights = turn_weights(spec, w, scratch);
    run_rows(cpu, spec, dy, dx, weights, spec.geometry.input);
}

fn turn_weights(spec: &Convolution, w: Pixels, scratch: Scratch<'_>) -> *const f32 {
    let (taps, padded) = (spec.geometry.taps(), spec.channels.next_multiple_of(LANES));
    let to = scratch.shared().take::<f32>(weights(spec));
    for channel in 0..padded {
        for tap in 0..taps {
            // SAFETY: inside the piece; weights are row-major, `[channels][taps]`.
            unsafe {
                *to.add(tap * padded + channel) =
                    if channel < spec.channels { w.get(channel * taps + tap) } else { 0.0 }
            };
        }
    }
    to
}

fn run_rows(cpu: &Cpu, spec: &Convolution, from: Pixels, to: Pixels, weights: *const f32, sizes: [usize; 3]) {
    let rows = sizes[0] * sizes[1];
    let weights = crate::kernels::view::Pointer(weights.cast_mut());
    cpu.pool.run(spec.geometry.n * rows, |task, _| {
        let (n, row) = (task / rows, task % rows);
        cpu.vectorise(Row { spec, from, to, weights: weights.get(), sizes, n, row });
    });
}

/// One row of results, of either map.
struct Row<'a> {
    spec: &'a Convolution,
    from: Pixels,
    to: Pixels,
    weights: *const f32,
    sizes: [usize; 3],
    n: usize,
    row: usize,
}

impl Task for Row<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes>(self) {
        let Row { spec, from, to, weights, sizes, n, row } = self;
        let padded = spec.channels.next_multiple_of(LANES);
        for x in 0..sizes[2] {
            let at = [row / sizes[1], row % sizes[1], x];
            for channel in (0..spec.channels).step_by(LANES) {
                let count = (spec.channels - channel).min(LANES);
                let mut sum = V::splat(0.0);
                match spec.direction {
                    Direction::Forward => spec.geometry.for_taps(
                        at,
                        #[inline(always)]
                        |tap, other| {
                            // SAFETY: a pixel of the other operand, channels of it, and their weights.
                            unsafe {
                                let weight = V::load(weights.add(tap * padded + channel));
                                sum = from.load::<V>(from.offset(n, other) + channel, count).mul_add(weight, sum);
                            }
                        },
                    ),
                    Direction::InputGradient | Direction::WeightGradient => spec.geometry.for_windows(
                        at,
                        #[inline(always)]
                        |tap, other| {
                            // SAFETY: as above.
                            unsafe {
                                let weight = V::load(weights.add(tap * padded + channel));
                                sum = from.load::<V>(from.offset(n, other) + channel, count).mul_add(weight, sum);
                            }
                        },
                    ),
                }
                // SAFETY: this task alone writes its row.
                unsafe { to.store(to.offset(n, at) + channel, count, sum) };
            }
        }
    }
}

/// `(output gradient, input) -> weight gradient`: sums over ascending output pixels.
pub(super) fn weight_gradient(cpu: &Cpu, spec: &Convolution, dy: Pixels, x: Pixels, dw: Pixels) {
    let windows = spec.geometry.windows.map(|w| w.size);
    let rows = windows[0] * windows[1];
    cpu.pool.run(spec.channels.div_ceil(LANES) * rows, |task, _| {
        let (channel, row) = (task / rows * LANES, task % rows);
        cpu.vectorise(WeightRow { spec, dy, x, dw, channel, row });
    });
}

/// Window elements of a row that are summed at once.
const TAPS: usize = 8;

/// One row of the window, sixteen channels.
struct WeightRow<'a> {
    spec: &'a Convolution,
    dy: Pixels,
    x: Pixels,
    dw: Pixels,
    channel: usize,
    row: usize,
}

impl Task for WeightRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes>(self) {
        let WeightRow { spec, dy, x, dw, channel, row } = self;
        let (geometry, count) = (&spec.geometry, (spec.channels - self.channel).min(LANES));
        let [_, high, wide] = geometry.windows.map(|w| w.size);
        for first in (0..wide).step_by(TAPS) {
            let mut sums = [V::splat(0.0); TAPS];
            for pixel in 0..spec.pixels() {
                let n = pixel / geometry.outputs();
                let output = place(pixel % geometry.outputs(), geometry.output);
                let Some(z) = geometry.reads(0, output[0], row / high) else { continue };
                let Some(y) = geometry.reads(1, output[1], row % high) else { continue };
                // SAFETY: pixels and channels that exist.
                unsafe {
                    let gradient = dy.load::<V>(dy.offset(n, output) + channel, count);
                    for (i, sum) in sums.iter_mut().enumerate().take(wide - first) {
                        if let Some(at) = geometry.reads(2, output[2], first + i) {
                            *sum = gradient.mul_add(x.load(x.offset(n, [z, y, at]) + channel, count), *sum);
                        }
                    }
                }
            }
            for (i, sum) in sums.iter().enumerate().take(wide - first) {
                for (lane, value) in sum.to_array().into_iter().enumerate().take(count) {
                    let at = (channel + lane) * geometry.taps() + row * wide + first + i;
                    // SAFETY: this task alone writes these elements of these filters.
                    unsafe { dw.set(at, value) };
                }
            }
        }
    }
}
