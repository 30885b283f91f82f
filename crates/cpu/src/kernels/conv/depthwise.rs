//! Depthwise convolution: one filter for each channel, sixteen channels at a time.
//!
//! Neighbouring results whose windows lie wholly inside read their weights together; the rest, at the borders, go one by
//! one. Both add in the same order.

use super::Convolution;
use super::ahead::Ahead;
use crate::isa::Cpu;
use crate::kernels::chains::{AddUp, chain, chains};
use crate::kernels::view::{DType, Pointer, Scratch, piece};
use crate::kernels::window::{Pixels, place};
use crate::simd::{Float, LANES, Lanes, Task};
use std::marker::PhantomData;
use std::ops::Range;
use tenon_graph::op::Direction;

/// What a result reads for one window element: an offset into the other map, and one into the turned weights.
type Tap = (usize, usize);

/// The bytes of shared scratch, the weights as `f32[taps][channels, padded]`, and of scratch per worker.
pub(super) fn scratch(spec: &Convolution) -> (usize, usize) {
    match spec.direction {
        Direction::Forward | Direction::InputGradient => {
            let turned = if spec.has_weights { 0 } else { piece::<f32>(weights(spec)) };
            (turned, piece::<Tap>(spec.geometry.taps()))
        }
        Direction::WeightGradient => {
            let shares = Shares::of(spec);
            let sums = piece::<f32>(shares.sums);
            if shares.chains > 1 { (shares.count * shares.chains * sums, 0) } else { (0, sums) }
        }
    }
}

/// Elements of the turned weights.
pub(super) fn weights(spec: &Convolution) -> usize {
    spec.geometry.taps() * spec.channels.next_multiple_of(LANES)
}

/// Writes the weights as the loops read them.
///
/// # Safety
/// `to` has room for [`weights`].
pub(super) unsafe fn turn_weights(spec: &Convolution, w: Pixels, to: *mut f32) {
    let (taps, padded) = (spec.geometry.taps(), spec.channels.next_multiple_of(LANES));
    for channel in 0..padded {
        for tap in 0..taps {
            // SAFETY: the caller's; weights are row-major, `[channels][taps]`.
            unsafe {
                *to.add(tap * padded + channel) =
                    if channel < spec.channels { w.get(channel * taps + tap) } else { 0.0 }
            };
        }
    }
}

/// `(input, turned weights) -> output`: sums over ascending window elements.
pub(super) fn forward(cpu: &Cpu, spec: &Convolution, x: Pixels, weights: Pointer<u8>, y: Pixels, scratch: Scratch<'_>) {
    run_rows(cpu, spec, x, Pointer(weights.get().cast()), y, scratch);
}

/// `(output gradient, weight) -> input gradient`: sums over ascending windows.
pub(super) fn input_gradient(cpu: &Cpu, spec: &Convolution, dy: Pixels, w: Pixels, dx: Pixels, scratch: Scratch<'_>) {
    let turned = scratch.shared().take::<f32>(weights(spec));
    // SAFETY: the piece has the room.
    unsafe { turn_weights(spec, w, turned) };
    run_rows(cpu, spec, dy, Pointer(turned), dx, scratch);
}

fn run_rows(cpu: &Cpu, spec: &Convolution, from: Pixels, weights: Pointer<f32>, to: Pixels, scratch: Scratch<'_>) {
    let sizes = match spec.direction {
        Direction::Forward => spec.geometry.output,
        Direction::InputGradient | Direction::WeightGradient => spec.geometry.input,
    };
    let rows = sizes[0] * sizes[1];
    cpu.pool.run(spec.geometry.n * rows, |task, worker| {
        let taps = scratch.worker(worker).take::<Tap>(spec.geometry.taps());
        let row = Row { spec, from, to, weights: weights.get(), taps, n: task / rows, row: task % rows, sizes };
        match spec.dtype {
            DType::F32 => cpu.vectorise(Of::<f32, _>(row, PhantomData)),
            _ => cpu.vectorise(Of::<u16, _>(row, PhantomData)),
        }
    });
}

/// Work on operands of element type `F`.
struct Of<F, W>(W, PhantomData<F>);

/// One row of results, of either map.
struct Row<'a> {
    spec: &'a Convolution,
    from: Pixels,
    to: Pixels,
    weights: *const f32,
    /// Room for what one result reads.
    taps: *mut Tap,
    n: usize,
    row: usize,
    sizes: [usize; 3],
}

impl<F: Float> Task for Of<F, Row<'_>> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes>(self) {
        let row = self.0;
        let window = &row.spec.geometry.windows[2];
        // Results `step` apart read neighbouring elements of the other map, or such that are a stride apart.
        let (step, ahead) = match row.spec.direction {
            Direction::Forward => (1, window.stride),
            Direction::InputGradient | Direction::WeightGradient => (window.stride, 1),
        };
        let ahead = row.from.offset(0, [0, 0, ahead]);
        let mut soon = row.soon();
        let quota = soon.lines * 8 / row.sizes[2];
        for residue in 0..step.min(row.sizes[2]) {
            let mut x = residue;
            while x < row.sizes[2] {
                // Where both ends of a run are inside, so is what lies between.
                let run = |n: usize| {
                    let last = x + (n - 1) * step;
                    last < row.sizes[2] && row.is_inside(x) && row.is_inside(last)
                };
                // SAFETY: the results exist, and their windows are whole.
                unsafe {
                    let taps = row.taps_of(x);
                    if run(8) {
                        row.results::<F, V, 8>(taps, x, step, ahead);
                        soon.fetch(quota);
                        x += 8 * step;
                    } else if run(4) {
                        row.results::<F, V, 4>(taps, x, step, ahead);
                        x += 4 * step;
                    } else {
                        row.results::<F, V, 1>(taps, x, step, ahead);
                        x += step;
                    }
                }
            }
        }
    }
}

impl<'a> Row<'a> {
    /// What the rows after the next read that this one does not: the next may be another thread's.
    fn soon(&self) -> Ahead {
        let geometry = &self.spec.geometry;
        let window = &geometry.windows[1];
        let (z, row) = (self.row / self.sizes[1], self.row % self.sizes[1] + 2);
        let (end, rows, sizes) = match self.spec.direction {
            Direction::Forward => {
                let end = row * window.stride + (window.size - 1) * window.dilation + 1;
                (end.saturating_sub(window.low), window.stride, geometry.input)
            }
            Direction::InputGradient | Direction::WeightGradient => {
                ((row + window.low) / window.stride + 1, 1, geometry.output)
            }
        };
        if end > sizes[1] || end < rows || z >= sizes[0] {
            return Ahead::NOTHING;
        }
        let first = self.from.offset(self.n, [z, end - rows, 0]);
        let bytes = self.spec.channels * self.spec.dtype.size();
        Ahead::new(self.from.bytes(first), bytes, bytes, rows * sizes[2])
    }

    /// Whether no element that the result's window, or the windows that reach it, may have along the row is missing.
    #[inline(always)]
    fn is_inside(&self, x: usize) -> bool {
        let geometry = &self.spec.geometry;
        let window = geometry.windows[2];
        let mut taps = 0..window.size;
        match self.spec.direction {
            Direction::Forward => taps.all(|tap| geometry.reads(2, x, tap).is_some()),
            Direction::InputGradient | Direction::WeightGradient => {
                let reaches = |tap: usize| (x + window.low) % window.stride == tap * window.dilation % window.stride;
                taps.all(|tap| !reaches(tap) || geometry.window_of(2, x, tap).is_some())
            }
        }
    }

    /// What a result of the row reads, in order.
    #[inline(always)]
    fn taps_of(&self, x: usize) -> &'a [Tap] {
        let at = [self.row / self.sizes[1], self.row % self.sizes[1], x];
        let (geometry, padded) = (&self.spec.geometry, self.spec.channels.next_multiple_of(LANES));
        let mut count = 0;
        let mut push = |tap: usize, other: [usize; 3]| {
            // SAFETY: the room is for as many as a window has elements.
            unsafe { self.taps.add(count).write((self.from.offset(self.n, other), tap * padded)) };
            count += 1;
        };
        match self.spec.direction {
            Direction::Forward => geometry.for_taps(at, &mut push),
            Direction::InputGradient | Direction::WeightGradient => geometry.for_windows(at, &mut push),
        }
        // SAFETY: that many have been written; nobody writes while they are read.
        unsafe { std::slice::from_raw_parts(self.taps, count) }
    }

    /// `T` results, `step` apart in this row; what each reads lies `ahead` elements behind what the one before reads.
    ///
    /// # Safety
    /// The results exist, and so does what they read.
    #[inline(always)]
    unsafe fn results<F: Float, V: Lanes, const T: usize>(&self, taps: &[Tap], x: usize, step: usize, ahead: usize) {
        let at = |t: usize| {
            let place = [self.row / self.sizes[1], self.row % self.sizes[1], x + t * step];
            self.to.offset(self.n, place)
        };
        for channel in (0..self.spec.channels).step_by(LANES) {
            let count = (self.spec.channels - channel).min(LANES);
            let mut sums = [V::splat(0.0); T];
            // SAFETY: as the caller says; this task alone writes its row.
            unsafe {
                for (offset, weight) in taps {
                    let weight = V::load(self.weights.add(weight + channel));
                    let from = self.from.bytes(offset + channel).cast::<F>().cast_const();
                    for (t, sum) in sums.iter_mut().enumerate() {
                        *sum = F::load_first::<V>(from.add(t * ahead), count).mul_add(weight, *sum);
                    }
                }
                for (t, sum) in sums.iter().enumerate() {
                    self.to.store(at(t) + channel, count, *sum);
                }
            }
        }
    }
}

/// Vectors of channels of a share of the weight gradient at most.
const PARTS: usize = 4;
/// Rows of outputs that a chain of its sums goes over at least.
const CHAIN_ROWS: usize = 32;

/// How the weight gradient is cut into tasks: shares of the channels, and chains.
struct Shares {
    vectors: usize,
    count: usize,
    chains: usize,
    /// Floats of the sums of a task.
    sums: usize,
}

impl Shares {
    fn of(spec: &Convolution) -> Shares {
        let vectors = spec.channels.div_ceil(LANES);
        let count = vectors.div_ceil(PARTS);
        Shares {
            vectors,
            count,
            chains: chains(count, rows(spec), CHAIN_ROWS),
            sums: spec.geometry.taps() * PARTS * LANES,
        }
    }

    /// The vectors of a share.
    fn get(&self, index: usize) -> Range<usize> {
        index * self.vectors / self.count..(index + 1) * self.vectors / self.count
    }
}

/// Rows of outputs.
fn rows(spec: &Convolution) -> usize {
    spec.geometry.n * spec.geometry.output[0] * spec.geometry.output[1]
}

/// `(output gradient, input) -> weight gradient`: sums over ascending output pixels, in [chains](crate::kernels::chains).
pub(super) fn weight_gradient(cpu: &Cpu, spec: &Convolution, dy: Pixels, x: Pixels, dw: Pixels, scratch: Scratch<'_>) {
    let shares = Shares::of(spec);
    let chains = shares.chains;
    let mut shared = scratch.shared();
    let all_sums = Pointer(shared.take::<f32>(if chains > 1 { shares.count * chains * shares.sums } else { 0 }));
    let write = |vectors: Range<usize>, sums: *const f32| {
        let (taps, channel) = (spec.geometry.taps(), vectors.start * LANES);
        for lane in 0..(spec.channels - channel).min(vectors.len() * LANES) {
            for tap in 0..taps {
                // SAFETY: the sums are there, and one task alone writes the filters of its channels.
                unsafe { dw.set((channel + lane) * taps + tap, *sums.add(tap * vectors.len() * LANES + lane)) };
            }
        }
    };
    cpu.pool.run(shares.count * chains, |task, worker| {
        let vectors = shares.get(task / chains);
        let sums = if chains > 1 {
            all_sums.get().wrapping_add(task * shares.sums)
        } else {
            scratch.worker(worker).take::<f32>(shares.sums)
        };
        // SAFETY: there is room for them, and zero bytes are zeros.
        unsafe { std::ptr::write_bytes(sums, 0, shares.sums) };
        let rows = chain(task % chains, chains, rows(spec));
        let whole = spec.channels >= vectors.end * LANES;
        let work = Weights { spec, dy, x, sums, rows, channel: vectors.start * LANES, whole };
        match (spec.dtype, vectors.len()) {
            (DType::F32, 1) => cpu.vectorise(Parts::<f32, 1>(work, PhantomData)),
            (DType::F32, 2) => cpu.vectorise(Parts::<f32, 2>(work, PhantomData)),
            (DType::F32, 3) => cpu.vectorise(Parts::<f32, 3>(work, PhantomData)),
            (DType::F32, _) => cpu.vectorise(Parts::<f32, PARTS>(work, PhantomData)),
            (_, 1) => cpu.vectorise(Parts::<u16, 1>(work, PhantomData)),
            (_, 2) => cpu.vectorise(Parts::<u16, 2>(work, PhantomData)),
            (_, 3) => cpu.vectorise(Parts::<u16, 3>(work, PhantomData)),
            (..) => cpu.vectorise(Parts::<u16, PARTS>(work, PhantomData)),
        }
        if chains == 1 {
            write(vectors, sums);
        }
    });
    if chains > 1 {
        cpu.pool.run(shares.count, |share, _| {
            let sums = all_sums.get().wrapping_add(share * chains * shares.sums);
            // SAFETY: all chains are done, and this task alone uses their sums.
            cpu.vectorise(unsafe { AddUp::new(sums, shares.sums, shares.sums, chains) });
            write(shares.get(share), sums);
        });
    }
}

/// The sums of some channels' filters over some rows of outputs.
struct Weights<'a> {
    spec: &'a Convolution,
    dy: Pixels,
    x: Pixels,
    /// `[taps][channels of the task]`
    sums: *mut f32,
    rows: Range<usize>,
    channel: usize,
    /// Whether the last vector of channels is a whole one.
    whole: bool,
}

/// The same, `P` vectors of channels of element type `F`.
struct Parts<'a, F, const P: usize>(Weights<'a>, PhantomData<F>);

impl<F: Float, const P: usize> Task for Parts<'_, F, P> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes>(self) {
        let work = self.0;
        let geometry = &work.spec.geometry;
        let [deep, high, wide] = geometry.windows.map(|w| w.size);
        for row in work.rows.clone() {
            let at = place(row * geometry.output[2] % geometry.outputs().max(1), geometry.output);
            let n = row / (geometry.output[0] * geometry.output[1]);
            let mut soon = work.soon(n, at, P);
            let quotas = soon.map(|ahead| ahead.lines.div_ceil(geometry.output[2]));
            for d in 0..deep {
                let Some(z) = geometry.reads(0, at[0], d) else { continue };
                for h in 0..high {
                    let Some(y) = geometry.reads(1, at[1], h) else { continue };
                    let (dy, x) = (work.dy.offset(n, [at[0], at[1], 0]), work.x.offset(n, [z, y, 0]));
                    let tap = (d * high + h) * wide;
                    // SAFETY: rows that exist.
                    unsafe {
                        match wide {
                            3 => work.row::<F, V, P, 3>(dy, x, tap, 0, &mut soon, quotas),
                            5 => work.row::<F, V, P, 5>(dy, x, tap, 0, &mut soon, quotas),
                            _ => (0..wide).for_each(|w| work.row::<F, V, P, 1>(dy, x, tap + w, w, &mut soon, quotas)),
                        }
                    }
                }
            }
        }
    }
}

impl Weights<'_> {
    /// What the next row of outputs reads of `parts` vectors that this one does not, of the output gradient and the input.
    fn soon(&self, n: usize, at: [usize; 3], parts: usize) -> [Ahead; 2] {
        let geometry = &self.spec.geometry;
        let window = &geometry.windows[1];
        let next = at[1] + 1;
        let end = (next * window.stride + (window.size - 1) * window.dilation + 1).saturating_sub(window.low);
        if next == geometry.output[1] || end < window.stride || end > geometry.input[1] {
            return [Ahead::NOTHING; 2];
        }
        let size = self.spec.dtype.size();
        let of = |map: &Pixels, place: [usize; 3], pixels: usize| {
            let first = map.bytes(map.offset(n, place) + self.channel);
            Ahead::new(first, self.spec.channels * size, parts * LANES * size, pixels)
        };
        let z = (at[0] * geometry.windows[0].stride).min(geometry.input[0] - 1);
        [
            of(&self.dy, [at[0], next, 0], geometry.output[2]),
            of(&self.x, [z, end - window.stride, 0], window.stride * geometry.input[2]),
        ]
    }

    /// Adds one row of output pixels to the sums of `K` window elements from `tap` on, the first of which is `first` in its
    /// row of the window. `dy` and `x` are the offsets of both rows; meanwhile lines of `soon` are asked for.
    ///
    /// # Safety
    /// The rows exist.
    #[inline(always)]
    unsafe fn row<F: Float, V: Lanes, const P: usize, const K: usize>(
        &self,
        dy: usize,
        x: usize,
        tap: usize,
        first: usize,
        soon: &mut [Ahead; 2],
        quotas: [usize; 2],
    ) {
        let geometry = &self.spec.geometry;
        let count = |p: usize| if self.whole || p + 1 < P { LANES } else { self.spec.channels % LANES };
        let (dy_step, x_step) = (self.dy.offset(0, [0, 0, 1]), self.x.offset(0, [0, 0, 1]));
        let window = geometry.windows[2];
        // SAFETY: as the caller says; channels of the task, and taps of a window.
        unsafe {
            let sums_at = |k: usize, p: usize| self.sums.add(((tap + k) * P + p) * LANES);
            let mut sums = [[V::splat(0.0); P]; K];
            for (k, sums) in sums.iter_mut().enumerate() {
                for (p, sum) in sums.iter_mut().enumerate() {
                    *sum = V::load(sums_at(k, p));
                }
            }
            for output in 0..geometry.output[2] {
                soon[0].fetch(quotas[0]);
                soon[1].fetch(quotas[1]);
                let mut gradient = [V::splat(0.0); P];
                for (p, gradient) in gradient.iter_mut().enumerate() {
                    let at = self.dy.bytes(dy + output * dy_step + self.channel + p * LANES);
                    *gradient = F::load_first(at.cast::<F>().cast_const(), count(p));
                }
                let inside =
                    geometry.reads(2, output, first).is_some() && geometry.reads(2, output, first + K - 1).is_some();
                let start = (output * window.stride + first * window.dilation).wrapping_sub(window.low);
                for (k, sums) in sums.iter_mut().enumerate() {
                    if inside || geometry.reads(2, output, first + k).is_some() {
                        let pixel = start.wrapping_add(k * window.dilation);
                        for (p, sum) in sums.iter_mut().enumerate() {
                            let at = self.x.bytes(x + pixel * x_step + self.channel + p * LANES);
                            *sum = gradient[p].mul_add(F::load_first(at.cast::<F>().cast_const(), count(p)), *sum);
                        }
                    }
                }
            }
            for (k, sums) in sums.iter().enumerate() {
                for (p, sum) in sums.iter().enumerate() {
                    sum.store(sums_at(k, p));
                }
            }
        }
    }
}
