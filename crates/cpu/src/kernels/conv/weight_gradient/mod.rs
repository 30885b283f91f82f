//! The weight gradient: for blocks of output pixels, the product of what windows read and the output gradient.
//!
//! A row of the product is a window element and a channel, a column a filter, and the sum runs over pixels. What elements
//! of windows read is copied once for each place along the width, in groups of channels: `[pixel][channel]`, zeros for
//! padding. Then places along the height only shift by whole rows, so that each row of the product is read in place. The
//! output gradient is read as it lies, or packed. Where windows are single pixels and there are fewer filters than
//! channels, filters are the rows.
//!
//! A sum is a chain over ascending pixels, or [several](crate::kernels::chains) over one part of them after the other. In bf16 the pairs are of neighbours in a [part](Part), an odd one padded with a
//! zero.

mod copy;
mod cut;

use super::ahead::Ahead;
use super::{Convolution, float};
use crate::gemm::Float;
use crate::gemm::bf16::Lowest;
use crate::gemm::micro::{Lane, ROWS, Tile};
use crate::gemm::pack::{Order, Source, packer};
use crate::isa::{Cpu, Isa};
use crate::kernels::chains::AddUp;
use crate::kernels::view::{DType, Pointer, Scratch, piece};
use crate::kernels::window::Pixels;
use crate::simd::LANES;
use copy::Copy;
use cut::{Cut, Part, Share, Side};
use std::ops::Range;

/// Rows for which packing a panel of the output gradient is not worth it.
const FEW_ROWS: usize = 192;

/// The bytes of shared scratch and of scratch per worker.
pub(super) fn scratch(spec: &Convolution, isa: Isa) -> (usize, usize) {
    let cut = Cut::of(spec, isa);
    let room = cut.room();
    let sums = piece::<f32>(room.sums);
    if cut.chains > 1 { (cut.shares() * cut.chains * sums, room.bytes()) } else { (0, room.bytes() + sums) }
}

/// `(output gradient, input) -> weight gradient`.
pub(super) fn weight_gradient(cpu: &Cpu, spec: &Convolution, dy: Pixels, x: Pixels, dw: Pixels, scratch: Scratch<'_>) {
    if spec.pixels() == 0 {
        // SAFETY: the result has this many elements, and zero bytes are zeros.
        unsafe { std::ptr::write_bytes(dw.bytes(0), 0, spec.filters * spec.depth() * spec.result.size()) };
        return;
    }
    let cut = Cut::of(spec, cpu.isa());
    let [rows, cols] = if cut.turned { [dy, x] } else { [x, dy] };
    let elements =
        cut.geometry.n * if cut.turned { cut.geometry.outputs() } else { cut.geometry.inputs() } * cut.rows.all;
    let bases = [rows, cols].map(|operand| Pointer(operand.bytes(0)));
    let (room, chains) = (cut.room(), cut.chains);
    // The sums of all chains, if there are several, of one share after the other.
    let mut shared = scratch.shared();
    let all_sums = Pointer(shared.take::<f32>(if chains > 1 { cut.shares() * chains * room.sums } else { 0 }));
    cpu.pool.run(cut.shares() * chains, |task, worker| {
        let mut pieces = scratch.worker(worker);
        let job = Job {
            cpu,
            cut: &cut,
            share: cut.share(task / chains),
            chain: cut.chain(task % chains),
            rows_of: bases[0].get(),
            cols_of: bases[1].get(),
            rows_end: bases[0].get().wrapping_add(elements * spec.dtype.size()),
            copied: pieces.take(room.copied),
            panel: pieces.take(room.panel),
            taps: pieces.take(room.taps),
            rows: pieces.take(room.rows),
        };
        // SAFETY: the operands have been checked to be row-major of these shapes; this worker alone uses its scratch, and
        // this task alone the sums of its chain, and if it is the only one, what its share has of the result.
        unsafe {
            if chains > 1 {
                job.sum(all_sums.get().add(task * room.sums));
            } else {
                let sums = pieces.take(room.sums);
                job.sum(sums);
                write(&cut, &job.share, sums, dw);
            }
        }
    });
    if chains > 1 {
        cpu.pool.run(cut.shares(), |index, _| {
            let share = cut.share(index);
            // SAFETY: all chains are done; this task alone uses the sums of this share, and writes what it has of the result.
            unsafe {
                let sums = all_sums.get().add(index * chains * room.sums);
                let len = cut.rows(&share) * stride(&share);
                cpu.vectorise(AddUp::new(sums, len, room.sums, chains));
                write(&cut, &share, sums, dw);
            }
        });
    }
}

/// From one row of the sums of a share to the next.
fn stride(share: &Share) -> usize {
    share.filters.len().next_multiple_of(LANES)
}

/// One task.
struct Job<'a> {
    cpu: &'a Cpu,
    cut: &'a Cut,
    share: Share,
    /// The parts to be summed over.
    chain: Range<usize>,
    /// The operands.
    rows_of: *const u8,
    cols_of: *const u8,
    /// Where the rows' operand ends.
    rows_end: *const u8,
    /// `[group of channels][part][copy][lane][channel]`
    copied: *mut u32,
    /// A panel of columns, `[lane][width]`.
    panel: *mut u32,
    /// Where the first channel of a window element is in a part.
    taps: *mut usize,
    /// The rows of a tile, `[part][row]`.
    rows: *mut *const u32,
}

impl Job<'_> {
    /// Fills the sums, `[window element][channel][filter]`.
    ///
    /// # Safety
    /// Operands, scratch and sums are there.
    unsafe fn sum(&self, sums: *mut f32) {
        let (cut, share, chain) = (self.cut, &self.share, &self.chain);
        let (kernels, rows, stride) = (cut.kernels(), cut.rows(share), stride(share));
        for first in chain.clone().step_by(cut.parts) {
            let parts = cut.parts.min(chain.end - first);
            // All parts of a block are of one size.
            let part = cut.part(first);
            let pixel = cut.pixel(&part);
            let (part_lanes, lanes) = (cut.part_lanes(&part, share.places.len()), cut.lane.count(part.pixels()));
            let mut low = [Lowest::NONE; 2];
            // SAFETY: the caller's; the sizes are those that the scratch was measured for.
            unsafe {
                for p in 0..parts {
                    let group_lanes = parts * part_lanes;
                    let to = self.copied.add(p * part_lanes);
                    low[0] =
                        low[0].and(self.cpu.vectorise(Copy { job: self, part: cut.part(first + p), to, group_lanes }));
                }
                self.place_taps(&part);
                let mut ahead = self.ahead(first + parts, pixel + parts * part.pixels());
                let tiles = rows.div_ceil(ROWS) * share.filters.len().div_ceil(kernels.width());
                let quotas = [0, 1].map(|i: usize| ahead[i].lines.div_ceil(tiles));
                for col in share.filters.clone().step_by(kernels.width()) {
                    let cols = (share.filters.end - col).min(kernels.width());
                    let (b, b_step, b_low) = self.panel(pixel, parts, &part, col, cols);
                    low[1] = b_low;
                    let (mut tap, mut channel) = (0, 0);
                    for row in (0..rows).step_by(ROWS) {
                        let count = ROWS.min(rows - row);
                        for i in 0..count {
                            let group = channel / cut.width * parts * part_lanes;
                            let at = self.copied.add(group + *self.taps.add(tap) + channel % cut.width);
                            for p in 0..parts {
                                *self.rows.add(p * count + i) = at.add(p * part_lanes);
                            }
                            channel += 1;
                            if channel == share.channels.len() {
                                (tap, channel) = (tap + 1, 0);
                            }
                        }
                        let out = sums.add(row * stride + (col - share.filters.start));
                        let tile = Tile {
                            a: self.rows.cast_const(),
                            segments: parts,
                            lanes,
                            a_step: cut.width,
                            b,
                            b_step,
                            init: if first == chain.start { std::ptr::null() } else { out },
                            init_stride: stride,
                            out,
                            out_stride: stride,
                            cols,
                        };
                        kernels.run(&tile, count, (cut.lane == Lane::Widened).then_some(low));
                        ahead[0].fetch(quotas[0]);
                        ahead[1].fetch(quotas[1]);
                    }
                }
            }
        }
    }

    /// What the block from a part on will read first, of the rows' operand and of the columns'.
    fn ahead(&self, first: usize, pixel: usize) -> [Ahead; 2] {
        let (cut, share, size) = (self.cut, &self.share, self.cut.spec.dtype.size());
        let parts = cut.parts.min(self.chain.end - first);
        if parts == 0 {
            return [Ahead::NOTHING; 2];
        }
        let (part, geometry) = (cut.part(first), &cut.geometry);
        let at = [1, 2].map(|axis: usize| part.at[axis] * geometry.windows[axis].stride);
        let [_, height, width] = geometry.input;
        // Rows that windows reach into on both sides are left out: the block before has read half of them.
        let line = (part.n * geometry.input[0] + part.at[0] * geometry.windows[0].stride) * height + at[0];
        let inputs = match cut.wide < geometry.output[2] {
            true => part.wide * geometry.windows[2].stride,
            false => parts * part.high * geometry.windows[1].stride * width,
        };
        let rows = line * width + at[1];
        let of = |base: *const u8, side: &Side, pixel: usize, pixels: usize, channels: &Range<usize>| {
            let first = (pixel * side.all + share.group * side.each + channels.start) * size;
            Ahead::new(base.wrapping_add(first), side.all * size, channels.len() * size, pixels)
        };
        [
            of(self.rows_of, &cut.rows, rows, inputs, &share.channels),
            of(self.cols_of, &cut.cols, pixel, parts * part.pixels(), &share.filters),
        ]
    }

    /// Notes where window elements start in a part.
    ///
    /// # Safety
    /// The scratch is there.
    unsafe fn place_taps(&self, part: &Part) {
        let (cut, places) = (self.cut, self.share.places.len());
        let [deep, tall, _] = cut.geometry.windows.map(|window| window.size);
        let heights = cut.heights(part);
        for tap in 0..deep * tall * places {
            let (d, h, w) = (tap / (tall * places), tap / places % tall, tap % places);
            let (class, row) = match heights.least {
                None => (h, 0),
                Some(least) => (cut.shift(h).1, (cut.shift(h).0 - least) as usize),
            };
            let copy = (d * heights.classes + class) * places + w;
            let lane = copy * cut.copy_lanes(part) + cut.lane.count(row * part.wide);
            // SAFETY: there is room for each window element.
            unsafe { *self.taps.add(tap) = lane * cut.width };
        }
    }

    /// A panel of columns for some parts from a pixel on, the step between its lanes, and its lowest exponent.
    ///
    /// # Safety
    /// The pixels and filters exist, and the scratch is there.
    unsafe fn panel(
        &self,
        pixel: usize,
        parts: usize,
        part: &Part,
        col: usize,
        cols: usize,
    ) -> (*const u32, usize, Lowest) {
        let (cut, spec) = (self.cut, &self.cut.spec);
        let width = cut.kernels().panel_width(cols);
        let (dtype, k_stride) = (float(spec.dtype), cut.cols.all);
        let at = |pixel: usize| (pixel * cut.cols.all + self.share.group * cut.cols.each + col) * dtype.bytes();
        // SAFETY: the caller's.
        unsafe {
            if cut.lane == Lane::F32 && width == cols && cut.rows(&self.share) <= FEW_ROWS {
                return (self.cols_of.add(at(pixel)).cast(), k_stride, Lowest::NONE);
            }
            // An odd part ends in a lane of its own.
            let (runs, k) = match cut.lane == Lane::F32 || part.pixels().is_multiple_of(2) {
                true => (1, parts * part.pixels()),
                false => (parts, part.pixels()),
            };
            let mut low = Lowest::NONE;
            for run in 0..runs {
                let ptr = self.cols_of.add(at(pixel + run * k));
                let source = Source { ptr, dtype, k, k_stride, cols, col_stride: 1 };
                let to = self.panel.add(run * cut.lane.count(k) * width);
                low = low.and(packer(cut.isa)(&source, cut.lane, to, Order::Panel { width }));
            }
            (self.panel.cast_const(), width, low)
        }
    }
}

/// Writes the sums of a share where they belong.
///
/// # Safety
/// They are there, and nobody else writes these weights.
unsafe fn write(cut: &Cut, share: &Share, sums: *const f32, dw: Pixels) {
    let (spec, stride) = (&cut.spec, stride(share));
    let (channels, filters) = (share.channels.len(), share.filters.len());
    let [deep, tall, broad] = cut.geometry.windows.map(|window| window.size);
    // From one row of the sums, and from one column, to the next.
    let (channel_step, filter_step) = if cut.turned { (spec.depth(), 1) } else { (1, spec.depth()) };
    for row in 0..deep * tall {
        for (i, place) in share.places.clone().enumerate() {
            let at = (row * broad + place) * spec.group_channels
                + share.channels.start * channel_step
                + share.filters.start * filter_step
                + share.group * spec.group_filters * spec.depth();
            // SAFETY: the caller's.
            unsafe {
                let sums = sums.add((row * share.places.len() + i) * channels * stride);
                if spec.result == DType::F32 && channel_step == 1 {
                    let (ptr, k_stride) = (sums.cast(), stride);
                    let source = Source { ptr, dtype: Float::F32, k: channels, k_stride, cols: filters, col_stride: 1 };
                    packer(cut.isa)(&source, Lane::F32, dw.bytes(at).cast(), Order::Rows { stride: filter_step });
                    continue;
                }
                for channel in 0..channels {
                    for filter in 0..filters {
                        dw.set(
                            at + channel * channel_step + filter * filter_step,
                            *sums.add(channel * stride + filter),
                        );
                    }
                }
            }
        }
    }
}
