//! Convolution as matrix products of unfolded blocks: each row holds what one window reads, zeros for padding.
//!
//! A kernel that reads its rows in place through pointers replaces [`unfold`] and [`fold_rows`] with the same sums.

use super::{Convolution, float};
use crate::gemm::{GemmSpec, Layout, gemm, gemm_scratch_bytes, pack_b, packed_bytes};
use crate::isa::{Cpu, Isa};
use crate::kernels::view::{Pointer, Scratch, piece};
use crate::kernels::window::{Geometry, Pixels, place};
use tenon_graph::op::Direction;

/// Bytes of an unfolded block in one task, about: half of an L2 cache.
const BLOCK: usize = 512 * 1024;
/// Bytes of all windows, unfolded at once, at most.
const SHARED: usize = 4 * 1024 * 1024;
/// Rows that one task unfolds where there are few.
const FEW_ROWS: usize = 8;

/// Rows of an unfolded block with rows of `bytes`: whole register tiles.
fn block_rows(bytes: usize) -> usize {
    (BLOCK / bytes.max(1) / 6 * 6).clamp(24, 192)
}

/// The bytes of shared scratch and of scratch per worker.
pub(super) fn scratch(spec: &Convolution, isa: Isa, threads: usize) -> (usize, usize) {
    let dtype = float(spec.dtype);
    match spec.direction {
        Direction::Forward => {
            let packed = if spec.has_weights { 0 } else { weights_bytes(spec, isa) };
            if unfolds_once(spec) {
                let product = gemm_scratch_bytes(&whole_product(spec), isa, threads);
                return (packed + piece::<u8>(unfolded_bytes(spec)) + piece::<u8>(product), 0);
            }
            (packed, blocks_scratch(spec, spec.depth(), spec.group_filters, spec.pixels(), isa))
        }
        Direction::InputGradient => {
            let (mut packed, mut each) = (0, 0);
            for class in classes(&spec.geometry) {
                let depth = class.taps(&spec.geometry) * spec.group_filters;
                packed = packed.max(piece::<u8>(packed_bytes(isa, dtype, depth, spec.group_channels)));
                let pixels = spec.geometry.n * class.pixels(&spec.geometry);
                let blocks = blocks_scratch(spec, depth, spec.group_channels, pixels, isa);
                let rows = block_rows(depth * spec.dtype.size()) * spec.group_channels;
                each = each.max(blocks + piece::<u8>(rows * spec.result.size()));
            }
            (packed * spec.groups + piece::<u8>(spec.filters * spec.depth() * spec.dtype.size()), each)
        }
        Direction::WeightGradient => (0, super::weight_gradient::scratch(spec, isa)),
    }
}

/// The scratch of a worker for blocks of `pixels` rows: the block and what its product needs.
fn blocks_scratch(spec: &Convolution, depth: usize, columns: usize, pixels: usize, isa: Isa) -> usize {
    let rows = block_rows(depth * spec.dtype.size());
    let bytes = |m| gemm_scratch_bytes(&block_product(spec, m, depth, columns, columns), isa, 1);
    piece::<u8>(rows * depth * spec.dtype.size()) + piece::<u8>(bytes(rows).max(bytes(pixels % rows)))
}

/// The product of a block and packed weights, into rows `stride` apart.
fn block_product(spec: &Convolution, m: usize, depth: usize, columns: usize, stride: usize) -> GemmSpec {
    let operand = Layout::row_major(float(spec.dtype), depth);
    let result = Layout::row_major(float(spec.result), stride);
    GemmSpec { packed_b: true, ..GemmSpec::new(m, columns, depth, operand, operand, result) }
}

/// Bytes of the packed weights.
pub(super) fn weights_bytes(spec: &Convolution, isa: Isa) -> usize {
    piece::<u8>(packed_bytes(isa, float(spec.dtype), spec.depth(), spec.group_filters)) * spec.groups
}

/// Packs the weights.
///
/// # Safety
/// `packed` has room for [`weights_bytes`].
pub(super) unsafe fn pack_weights(cpu: &Cpu, spec: &Convolution, w: Pixels, packed: *mut u8) {
    let (depth, columns) = (spec.depth(), spec.group_filters);
    let bytes = weights_bytes(spec, cpu.isa()) / spec.groups;
    let layout = Layout::row_major(float(spec.dtype), depth).transposed();
    for group in 0..spec.groups {
        // SAFETY: the filters of a group are `[columns][depth]`, and each has its piece to be packed into.
        unsafe { pack_b(cpu, &layout, depth, columns, w.bytes(group * columns * depth), packed.add(group * bytes)) };
    }
}

/// Whether all windows are unfolded before one product: where there are few pixels, tasks share the filters, so that
/// each weight is read once.
fn unfolds_once(spec: &Convolution) -> bool {
    spec.groups == 1 && spec.pixels() < spec.filters && unfolded_bytes(spec) <= SHARED
}

fn unfolded_bytes(spec: &Convolution) -> usize {
    spec.pixels() * spec.depth() * spec.dtype.size()
}

fn whole_product(spec: &Convolution) -> GemmSpec {
    block_product(spec, spec.pixels(), spec.depth(), spec.filters, spec.filters)
}

/// `(input, packed weights) -> output`.
pub(super) fn forward(cpu: &Cpu, spec: &Convolution, x: Pixels, packed: Pointer<u8>, y: Pixels, scratch: Scratch<'_>) {
    let (depth, columns, size) = (spec.depth(), spec.group_filters, spec.dtype.size());
    let bytes = weights_bytes(spec, cpu.isa()) / spec.groups;
    if unfolds_once(spec) {
        let mut shared = scratch.shared();
        if !spec.has_weights {
            shared.take::<u8>(bytes);
        }
        let block = Pointer(shared.take::<u8>(unfolded_bytes(spec)));
        let product = whole_product(spec);
        let memory = shared.take::<u8>(gemm_scratch_bytes(&product, cpu.isa(), cpu.pool.threads()));
        cpu.pool.run(spec.pixels().div_ceil(FEW_ROWS), |task, _| {
            let first = task * FEW_ROWS;
            let n = (spec.pixels() - first).min(FEW_ROWS);
            // SAFETY: the pixels exist, and the tasks' rows of the block are apart.
            unsafe { unfold(spec, &x, 0, first, n, block.get().add(first * depth * size)) };
        });
        // SAFETY: the pieces have these sizes; the output is row-major and a view of its own.
        unsafe { gemm(cpu, &product, block.get(), packed.get(), y.bytes(0), memory, None) };
        return;
    }
    let (rows, pixels) = (block_rows(depth * size), spec.pixels());
    cpu.pool.run(pixels.div_ceil(rows) * spec.groups, |task, worker| {
        let (first, group) = (task / spec.groups * rows, task % spec.groups);
        let m = (pixels - first).min(rows);
        let mut pieces = scratch.worker(worker);
        let block = pieces.take::<u8>(rows * depth * size);
        let product = block_product(spec, m, depth, columns, spec.filters);
        let memory = pieces.take::<u8>(gemm_scratch_bytes(&product, cpu.isa(), 1));
        // SAFETY: the pieces are this worker's; the pixels exist; this task alone writes the group's filters of its
        // pixels, which are rows of the row-major output.
        unsafe {
            unfold(spec, &x, group, first, m, block);
            let to = y.bytes(first * spec.filters + group * columns);
            gemm(cpu, &product, block, packed.get().add(group * bytes), to, memory, None);
        }
    });
}

/// Writes the windows of output pixels `first..first + n` over the group's channels as rows `[taps][channels]`.
///
/// # Safety
/// The pixels exist and `to` has the room.
unsafe fn unfold(spec: &Convolution, x: &Pixels, group: usize, first: usize, n: usize, to: *mut u8) {
    let geometry = &spec.geometry;
    let size = spec.dtype.size();
    let run = spec.group_channels * size;
    let wide = geometry.windows[2].size;
    // Neighbouring window elements are neighbours in memory.
    let dense = geometry.windows[2].dilation == 1 && spec.groups == 1;
    let mut to = to;
    for pixel in first..first + n {
        let batch = pixel / geometry.outputs();
        let output = place(pixel % geometry.outputs(), geometry.output);
        for tap in 0..geometry.windows[0].size * geometry.windows[1].size {
            let (d, h) = (tap / geometry.windows[1].size, tap % geometry.windows[1].size);
            let at = geometry.reads(0, output[0], d).zip(geometry.reads(1, output[1], h));
            // SAFETY: pixels that exist; `to` moves over one row of `taps * run` bytes for each output pixel.
            unsafe {
                match at {
                    None => std::ptr::write_bytes(to, 0, wide * run),
                    Some((z, y)) if dense => {
                        let start = output[2] * geometry.windows[2].stride;
                        let low = geometry.windows[2].low;
                        let before = low.saturating_sub(start).min(wide);
                        let end = (geometry.input[2] + low).saturating_sub(start).clamp(before, wide);
                        if before > 0 {
                            std::ptr::write_bytes(to, 0, before * run);
                        }
                        if end > before {
                            let from = x.bytes(x.offset(batch, [z, y, start + before - low]));
                            copy_run(from, to.add(before * run), (end - before) * run);
                        }
                        if end < wide {
                            std::ptr::write_bytes(to.add(end * run), 0, (wide - end) * run);
                        }
                    }
                    Some((z, y)) => {
                        for w in 0..wide {
                            let to = to.add(w * run);
                            match geometry.reads(2, output[2], w) {
                                None => std::ptr::write_bytes(to, 0, run),
                                Some(at) => {
                                    let from = x.offset(batch, [z, y, at]) + group * spec.group_channels;
                                    copy_run(x.bytes(from), to, run);
                                }
                            }
                        }
                    }
                }
                to = to.add(wide * run);
            }
        }
    }
}

/// Copies `bytes` bytes. The short runs of images with few channels are not worth a call: two moves cover them, which
/// overlap.
///
/// # Safety
/// Both are there and apart.
#[inline(always)]
unsafe fn copy_run(from: *const u8, to: *mut u8, bytes: usize) {
    /// # Safety
    /// As above, for `2 N >= bytes >= N`.
    #[inline(always)]
    unsafe fn ends<const N: usize>(from: *const u8, to: *mut u8, bytes: usize) {
        // SAFETY: the first and the last N bytes of both.
        unsafe {
            let first = from.cast::<[u8; N]>().read_unaligned();
            let last = from.add(bytes - N).cast::<[u8; N]>().read_unaligned();
            to.cast::<[u8; N]>().write_unaligned(first);
            to.add(bytes - N).cast::<[u8; N]>().write_unaligned(last);
        }
    }
    // SAFETY: the caller's.
    unsafe {
        match bytes {
            16..=31 => ends::<16>(from, to, bytes),
            32..=63 => ends::<32>(from, to, bytes),
            64..=128 => ends::<64>(from, to, bytes),
            _ => std::ptr::copy_nonoverlapping(from, to, bytes),
        }
    }
}

/// Input pixels whose places are equal modulo the strides: the same elements of windows reach them.
#[derive(Clone, Copy)]
struct Class {
    residue: [usize; 3],
}

/// All classes that have a pixel.
fn classes(geometry: &Geometry) -> impl Iterator<Item = Class> {
    let sizes: [usize; 3] = std::array::from_fn(|axis| geometry.windows[axis].stride.min(geometry.input[axis]));
    (0..sizes.iter().product()).map(move |i| Class { residue: place(i, sizes) })
}

impl Class {
    /// The elements of a window that reach the class along one axis, ascending.
    fn taps_along(&self, geometry: &Geometry, axis: usize) -> impl Iterator<Item = usize> + Clone {
        let window = geometry.windows[axis];
        let place = self.residue[axis] + window.low;
        // What reaches is a progression: from the first such element on, every `step`-th.
        let reaches = move |tap: &usize| place % window.stride == tap * window.dilation % window.stride;
        let step = (1..window.stride).find(|step| (step * window.dilation).is_multiple_of(window.stride));
        let first = (0..window.size).find(reaches).unwrap_or(window.size);
        (first..window.size).step_by(step.unwrap_or(window.stride))
    }

    /// The elements of a window that reach the class, ascending, as places in the window.
    fn for_taps(&self, geometry: &Geometry, mut visit: impl FnMut([usize; 3])) {
        let [along_d, along_h, along_w] = [0, 1, 2].map(|axis: usize| self.taps_along(geometry, axis));
        for d in along_d {
            for h in along_h.clone() {
                for w in along_w.clone() {
                    visit([d, h, w]);
                }
            }
        }
    }

    fn taps(&self, geometry: &Geometry) -> usize {
        let mut taps = 0;
        self.for_taps(geometry, |_| taps += 1);
        taps
    }

    /// Its pixels along each axis.
    fn sizes(&self, geometry: &Geometry) -> [usize; 3] {
        std::array::from_fn(|axis| (geometry.input[axis] - self.residue[axis]).div_ceil(geometry.windows[axis].stride))
    }

    fn pixels(&self, geometry: &Geometry) -> usize {
        self.sizes(geometry).iter().product()
    }

    /// The place of its `index`-th pixel.
    fn pixel(&self, geometry: &Geometry, index: usize) -> [usize; 3] {
        let at = place(index, self.sizes(geometry));
        std::array::from_fn(|axis| self.residue[axis] + at[axis] * geometry.windows[axis].stride)
    }
}

/// `(output gradient, weight) -> input gradient`, one class of input pixels after the other: no multiplications with
/// the zeros that a stride leaves between outputs.
pub(super) fn input_gradient(cpu: &Cpu, spec: &Convolution, dy: Pixels, w: Pixels, dx: Pixels, scratch: Scratch<'_>) {
    let (geometry, size) = (&spec.geometry, spec.dtype.size());
    let (columns, run) = (spec.group_channels, spec.group_filters);
    let turned_bytes = spec.filters * spec.depth() * size;
    for class in classes(geometry) {
        let taps = class.taps(geometry);
        let depth = taps * run;
        let mut shared = scratch.shared();
        let turned = Pointer(shared.take::<u8>(turned_bytes));
        let bytes = piece::<u8>(packed_bytes(cpu.isa(), float(spec.dtype), depth, columns));
        let packed = Pointer(shared.take::<u8>(bytes * spec.groups));
        for group in (0..spec.groups).filter(|_| depth > 0) {
            // SAFETY: the pieces are of these sizes; filters `run` of each group exist.
            unsafe {
                let turned = turned.get().add(group * depth * columns * size);
                turn_weights(spec, &w, &class, group, turned);
                let layout = Layout::row_major(float(spec.dtype), columns);
                pack_b(cpu, &layout, depth, columns, turned, packed.get().add(group * bytes));
            }
        }
        let rows = block_rows(depth * size);
        let each = class.pixels(geometry);
        let pixels = geometry.n * each;
        cpu.pool.run(pixels.div_ceil(rows) * spec.groups, |task, worker| {
            let (first, group) = (task / spec.groups * rows, task % spec.groups);
            let m = (pixels - first).min(rows);
            let run = columns * spec.result.size();
            let to = |i: usize| {
                let (n, pixel) = ((first + i) / each, (first + i) % each);
                dx.bytes(dx.offset(n, class.pixel(geometry, pixel)) + group * columns)
            };
            if depth == 0 {
                // SAFETY: this task alone writes the group's channels of its pixels, which no output reads.
                (0..m).for_each(|i| unsafe { std::ptr::write_bytes(to(i), 0, run) });
                return;
            }
            let mut pieces = scratch.worker(worker);
            let block = pieces.take::<u8>(rows * depth * size);
            let result = pieces.take::<u8>(rows * columns * spec.result.size());
            let product = block_product(spec, m, depth, columns, columns);
            let memory = pieces.take::<u8>(gemm_scratch_bytes(&product, cpu.isa(), 1));
            // SAFETY: the pieces are this worker's; the pixels exist; this task alone writes the group's channels of
            // its pixels.
            unsafe {
                fold_rows(spec, &dy, &class, group, first, m, block);
                gemm(cpu, &product, block, packed.get().add(group * bytes), result, memory, None);
                (0..m).for_each(|i| std::ptr::copy_nonoverlapping(result.add(i * run), to(i), run));
            }
        });
    }
}

/// Writes a group's weights at the class's window elements as `[taps][filters][channels]`.
///
/// # Safety
/// `to` has the room.
unsafe fn turn_weights(spec: &Convolution, w: &Pixels, class: &Class, group: usize, to: *mut u8) {
    let (run, [_, high, wide]) = (spec.group_channels * spec.dtype.size(), spec.geometry.windows.map(|w| w.size));
    let mut to = to;
    class.for_taps(&spec.geometry, |tap| {
        let tap = (tap[0] * high + tap[1]) * wide + tap[2];
        for filter in group * spec.group_filters..(group + 1) * spec.group_filters {
            let from = filter * spec.depth() + tap * spec.group_channels;
            // SAFETY: the weights are row-major; `to` moves over as many runs as there are taps and filters.
            unsafe {
                std::ptr::copy_nonoverlapping(w.bytes(from), to, run);
                to = to.add(run);
            }
        }
    });
}

/// Writes the output gradients that reach the class's pixels `first..first + n` as rows `[taps][filters]`.
///
/// # Safety
/// The pixels exist and `to` has the room.
unsafe fn fold_rows(spec: &Convolution, dy: &Pixels, class: &Class, group: usize, first: usize, n: usize, to: *mut u8) {
    let (geometry, run) = (&spec.geometry, spec.group_filters * spec.dtype.size());
    let [along_d, along_h, along_w] = [0, 1, 2].map(|axis: usize| class.taps_along(geometry, axis));
    let pixels = class.pixels(geometry);
    let mut to = to;
    for index in first..first + n {
        let (batch, at) = (index / pixels, class.pixel(geometry, index % pixels));
        for d in along_d.clone() {
            let z = geometry.window_of(0, at[0], d);
            for h in along_h.clone() {
                let zy = z.zip(geometry.window_of(1, at[1], h));
                for w in along_w.clone() {
                    // SAFETY: windows that exist; `to` moves over as many runs as there are pixels and taps.
                    unsafe {
                        match zy.zip(geometry.window_of(2, at[2], w)) {
                            Some(((z, y), x)) => {
                                let from = dy.offset(batch, [z, y, x]) + group * spec.group_filters;
                                std::ptr::copy_nonoverlapping(dy.bytes(from), to, run);
                            }
                            None => std::ptr::write_bytes(to, 0, run),
                        }
                        to = to.add(run);
                    }
                }
            }
        }
    }
}
