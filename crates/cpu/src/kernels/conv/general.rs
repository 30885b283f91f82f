//! Convolution as matrix products whose rows are what windows read, zeros for padding: read where it lies ([`Gather`]),
//! or, where that is in short runs, unfolded into blocks of rows. Both give the same sums.

use super::gather::Gather;
use super::reads::{Reads, copy_run, lines};
use super::{Convolution, float};
use crate::gemm::micro::ROWS;
use crate::gemm::{Float, GemmSpec, Layout, gemm, gemm_scratch_bytes, pack_b, packed_bytes};
use crate::isa::{Cpu, Isa};
use crate::kernels::view::{Pieces, Pointer, Scratch, piece};
use crate::kernels::window::{Geometry, Pixels, place};
use std::ops::Range;
use tenon_graph::op::Direction;

/// Bytes of an unfolded block in one task, about: half of an L2 cache.
const BLOCK: usize = 512 * 1024;
/// Bytes of all windows, unfolded at once, at most.
const SHARED: usize = 4 * 1024 * 1024;
/// Rows that one task unfolds where there are few.
const FEW_ROWS: usize = 8;

/// The product of rows `[taps][run]` and a group's weights `[taps][run][columns]`.
#[derive(Clone, Copy)]
struct Product {
    operand: Float,
    result: Float,
    taps: usize,
    run: usize,
    columns: usize,
    /// Reads rows where they lie; else they are unfolded.
    gather: Option<Gather>,
}

/// Rows and columns that one task computes of one group.
struct Part {
    group: usize,
    rows: Range<usize>,
    columns: Range<usize>,
}

impl Product {
    fn new(spec: &Convolution, isa: Isa, taps: usize, run: usize, columns: usize) -> Product {
        let (operand, result) = (float(spec.dtype), float(spec.result));
        Product { operand, result, taps, run, columns, gather: Gather::new(isa, operand, result, taps, run, columns) }
    }

    fn forward(spec: &Convolution, isa: Isa) -> Product {
        Product::new(spec, isa, spec.geometry.taps(), spec.group_channels, spec.group_filters)
    }

    fn input_gradient(spec: &Convolution, isa: Isa, class: &Class) -> Product {
        Product::new(spec, isa, class.taps(&spec.geometry), spec.group_filters, spec.group_channels)
    }

    fn depth(&self) -> usize {
        self.taps * self.run
    }

    fn row_bytes(&self) -> usize {
        self.depth() * self.operand.bytes()
    }

    /// Bytes of the packed weights of a group.
    fn weights_bytes(&self, isa: Isa) -> usize {
        piece::<u8>(match &self.gather {
            Some(gather) => gather.weights_bytes(),
            None => packed_bytes(isa, self.operand, self.depth(), self.columns),
        })
    }

    /// Packs the weights of a group.
    ///
    /// # Safety
    /// They lie as `layout` says, and `to` has room for [`Product::weights_bytes`].
    unsafe fn pack(&self, cpu: &Cpu, layout: &Layout, weights: *const u8, to: *mut u8) {
        // SAFETY: the caller's.
        unsafe {
            match &self.gather {
                Some(gather) => gather.pack(cpu, layout, weights, to),
                None => pack_b(cpu, layout, self.depth(), self.columns, weights, to),
            }
        }
    }

    /// Rows and columns of a task, where there are `rows` in all in each of `groups`.
    fn cut(&self, rows: usize, groups: usize) -> [usize; 2] {
        match &self.gather {
            Some(gather) => gather.cut(rows, groups),
            // Whole register tiles.
            None => [(BLOCK / self.row_bytes().max(1) / ROWS * ROWS).clamp(4 * ROWS, 32 * ROWS), self.columns],
        }
    }

    /// The product of `m` unfolded rows, into rows `stride` apart.
    fn unfolded(&self, m: usize, stride: usize) -> GemmSpec {
        let operand = Layout::row_major(self.operand, self.depth());
        let result = Layout::row_major(self.result, stride);
        GemmSpec { packed_b: true, ..GemmSpec::new(m, self.columns, self.depth(), operand, operand, result) }
    }

    /// Bytes of a worker's scratch, where there are `rows` in all.
    fn scratch(&self, isa: Isa, rows: usize) -> usize {
        if let Some(gather) = &self.gather {
            return gather.scratch();
        }
        let [each, _] = self.cut(rows, 1);
        let bytes = |m| gemm_scratch_bytes(&self.unfolded(m, self.columns), isa, 1);
        piece::<u8>(each * self.row_bytes()) + piece::<u8>(bytes(each).max(bytes(rows % each)))
    }

    /// Runs a task for each part, with the scratch of its worker.
    fn share(
        &self,
        cpu: &Cpu,
        rows: usize,
        groups: usize,
        scratch: Scratch<'_>,
        task: impl Fn(Part, &mut Pieces) + Sync,
    ) {
        let [each, columns] = self.cut(rows, groups);
        let across = self.columns.div_ceil(columns.max(1));
        cpu.pool.run(rows.div_ceil(each) * groups * across, |index, worker| {
            let [at, group, column] = place(index, [rows.div_ceil(each), groups, across]);
            let (first, column) = (at * each, column * columns);
            let part = Part {
                group,
                rows: first..rows.min(first + each),
                columns: column..self.columns.min(column + columns),
            };
            task(part, &mut scratch.worker(worker));
        });
    }

    /// Computes a part into `c`, whose rows are `stride` elements apart and start at the first column of the part.
    ///
    /// # Safety
    /// The rows and the group's packed weights are there, the pieces are as large as [`Product::scratch`] says, and `c` is
    /// this thread's.
    unsafe fn compute(
        &self,
        cpu: &Cpu,
        part: &Part,
        rows: &Reads,
        weights: *const u8,
        (c, stride): (*mut u8, usize),
        pieces: &mut Pieces,
    ) {
        let m = part.rows.len();
        // SAFETY: the caller's.
        unsafe {
            match &self.gather {
                Some(gather) => {
                    let gathered = gather.rows(pieces, m);
                    rows.runs(part.rows.clone(), |tap, rows, runs| gathered.set(tap, rows, runs));
                    gather.multiply(&gathered, weights, part.columns.clone(), c, stride);
                }
                None => {
                    let product = self.unfolded(m, stride);
                    let block = pieces.take::<u8>(m * self.row_bytes());
                    let memory = pieces.take::<u8>(gemm_scratch_bytes(&product, cpu.isa(), 1));
                    rows.unfold(part.rows.clone(), block);
                    gemm(cpu, &product, block, weights, c, memory, None);
                }
            }
        }
    }
}

/// The bytes of shared scratch and of scratch per worker.
pub(super) fn scratch(spec: &Convolution, isa: Isa, threads: usize) -> (usize, usize) {
    match spec.direction {
        Direction::Forward => {
            let packed = if spec.has_weights { 0 } else { weights_bytes(spec, isa) };
            let product = Product::forward(spec, isa);
            if !unfolds_once(spec, &product) {
                return (packed, product.scratch(isa, spec.pixels()));
            }
            let bytes = gemm_scratch_bytes(&product.unfolded(spec.pixels(), spec.filters), isa, threads);
            (packed + piece::<u8>(spec.pixels() * product.row_bytes()) + piece::<u8>(bytes), 0)
        }
        Direction::InputGradient => {
            let (mut packed, mut each) = (0, 0);
            for class in classes(&spec.geometry) {
                let product = Product::input_gradient(spec, isa, &class);
                let pixels = spec.geometry.n * class.pixels(&spec.geometry);
                let [rows, columns] = product.cut(pixels, spec.groups);
                let result = piece::<u8>(rows * columns * spec.result.size());
                packed = packed.max(product.weights_bytes(isa));
                each = each.max(product.scratch(isa, pixels) + result);
            }
            (packed * spec.groups + piece::<u8>(spec.filters * spec.depth() * spec.dtype.size()), each)
        }
        Direction::WeightGradient => super::weight_gradient::scratch(spec, isa),
    }
}

/// Bytes of the packed weights.
pub(super) fn weights_bytes(spec: &Convolution, isa: Isa) -> usize {
    Product::forward(spec, isa).weights_bytes(isa) * spec.groups
}

/// Packs the weights.
///
/// # Safety
/// `packed` has room for [`weights_bytes`].
pub(super) unsafe fn pack_weights(cpu: &Cpu, spec: &Convolution, w: Pixels, packed: *mut u8) {
    let product = Product::forward(spec, cpu.isa());
    let layout = Layout::row_major(product.operand, product.depth()).transposed();
    for group in 0..spec.groups {
        // SAFETY: the filters of a group are `[columns][depth]`, and each has its piece to be packed into.
        unsafe {
            let weights = w.bytes(group * product.columns * product.depth());
            product.pack(cpu, &layout, weights, packed.add(group * product.weights_bytes(cpu.isa())));
        }
    }
}

/// Whether all windows are unfolded before one product: where there are few pixels, tasks share the filters, so that
/// each weight is read once.
fn unfolds_once(spec: &Convolution, product: &Product) -> bool {
    let few = spec.pixels() < spec.filters && spec.pixels() * product.row_bytes() <= SHARED;
    product.gather.is_none() && spec.groups == 1 && few
}

/// `(input, packed weights) -> output`.
pub(super) fn forward(cpu: &Cpu, spec: &Convolution, x: Pixels, packed: Pointer<u8>, y: Pixels, scratch: Scratch<'_>) {
    let (product, pixels) = (Product::forward(spec, cpu.isa()), spec.pixels());
    let bytes = product.weights_bytes(cpu.isa());
    if unfolds_once(spec, &product) {
        let mut shared = scratch.shared();
        if !spec.has_weights {
            shared.take::<u8>(bytes);
        }
        let block = Pointer(shared.take::<u8>(pixels * product.row_bytes()));
        let whole = product.unfolded(pixels, spec.filters);
        let memory = shared.take::<u8>(gemm_scratch_bytes(&whole, cpu.isa(), cpu.pool.threads()));
        cpu.pool.run(pixels.div_ceil(FEW_ROWS), |task, _| {
            let rows = task * FEW_ROWS..pixels.min((task + 1) * FEW_ROWS);
            // SAFETY: the pixels exist, and the tasks' rows of the block are apart.
            unsafe {
                let to = block.get().add(rows.start * product.row_bytes());
                Reads::windows(spec, x, 0).unfold(rows, to);
            }
        });
        // SAFETY: the pieces have these sizes; the output is row-major and a view of its own.
        unsafe { gemm(cpu, &whole, block.get(), packed.get(), y.bytes(0), memory, None) };
        return;
    }
    product.share(cpu, pixels, spec.groups, scratch, |part, pieces| {
        let group = part.group;
        let to = y.bytes(part.rows.start * spec.filters + group * product.columns + part.columns.start);
        // SAFETY: the pieces are this worker's; the pixels exist; this task alone writes these filters of its pixels, which
        // are rows of the row-major output.
        unsafe {
            let weights = packed.get().add(group * bytes);
            product.compute(cpu, &part, &Reads::windows(spec, x, group), weights, (to, spec.filters), pieces);
        }
    });
}

/// Input pixels whose places are equal modulo the strides: the same elements of windows reach them.
#[derive(Clone, Copy)]
pub(super) struct Class {
    pub(super) residue: [usize; 3],
}

/// All classes that have a pixel.
fn classes(geometry: &Geometry) -> impl Iterator<Item = Class> {
    let sizes: [usize; 3] = std::array::from_fn(|axis| geometry.windows[axis].stride.min(geometry.input[axis]));
    (0..sizes.iter().product()).map(move |i| Class { residue: place(i, sizes) })
}

impl Class {
    /// The elements of a window that reach the class along one axis, ascending.
    pub(super) fn taps_along(&self, geometry: &Geometry, axis: usize) -> impl Iterator<Item = usize> + Clone {
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
    pub(super) fn sizes(&self, geometry: &Geometry) -> [usize; 3] {
        std::array::from_fn(|axis| (geometry.input[axis] - self.residue[axis]).div_ceil(geometry.windows[axis].stride))
    }

    fn pixels(&self, geometry: &Geometry) -> usize {
        self.sizes(geometry).iter().product()
    }

    /// Where the pixel at a place among its own is in the input.
    fn pixel(&self, geometry: &Geometry, at: [usize; 3]) -> [usize; 3] {
        std::array::from_fn(|axis| self.residue[axis] + at[axis] * geometry.windows[axis].stride)
    }
}

/// `(output gradient, weight) -> input gradient`, one class of input pixels after the other: no multiplications with
/// the zeros that a stride leaves between outputs.
pub(super) fn input_gradient(cpu: &Cpu, spec: &Convolution, dy: Pixels, w: Pixels, dx: Pixels, scratch: Scratch<'_>) {
    let (geometry, columns) = (&spec.geometry, spec.group_channels);
    let is_whole = geometry.windows.iter().all(|window| window.stride == 1);
    for class in classes(geometry) {
        let product = Product::input_gradient(spec, cpu.isa(), &class);
        let (bytes, pixels) = (product.weights_bytes(cpu.isa()), geometry.n * class.pixels(geometry));
        let mut shared = scratch.shared();
        let turned = Pointer(shared.take::<u8>(spec.filters * spec.depth() * spec.dtype.size()));
        let packed = Pointer(shared.take::<u8>(bytes * spec.groups));
        for group in (0..spec.groups).filter(|_| product.depth() > 0) {
            // SAFETY: the pieces are of these sizes; the filters of each group exist.
            unsafe {
                let turned = turned.get().add(group * product.row_bytes() * columns);
                turn_weights(spec, &w, &class, group, turned);
                let layout = Layout::row_major(product.operand, columns);
                product.pack(cpu, &layout, turned, packed.get().add(group * bytes));
            }
        }
        let sizes = class.sizes(geometry);
        let step = dx.pixel_bytes() * geometry.windows[2].stride;
        product.share(cpu, pixels, spec.groups, scratch, |part, pieces| {
            let (group, rows) = (part.group, part.rows.clone());
            let run = part.columns.len() * spec.result.size();
            // Visits all rows, with the bytes where each belongs.
            let places = |visit: &dyn Fn(usize, *mut u8)| {
                lines(sizes, rows.clone(), |first, n, at, count| {
                    let channel = group * columns + part.columns.start;
                    let start = dx.bytes(dx.offset(n, class.pixel(geometry, at)) + channel);
                    (0..count).for_each(|i| visit(first + i, start.wrapping_add(i * step)));
                });
            };
            // SAFETY: the pieces are this worker's; the pixels exist; this task alone writes these channels of its pixels,
            // which are rows of the row-major result if the class is the only one.
            unsafe {
                if product.depth() == 0 {
                    // No output reads them.
                    return places(&|_, to| std::ptr::write_bytes(to, 0, run));
                }
                let weights = packed.get().add(group * bytes);
                let reaching = Reads::reaching(spec, dy, &class, group);
                if is_whole {
                    let to = dx.bytes(rows.start * spec.channels + group * columns + part.columns.start);
                    return product.compute(cpu, &part, &reaching, weights, (to, spec.channels), pieces);
                }
                let result = pieces.take::<u8>(rows.len() * run);
                product.compute(cpu, &part, &reaching, weights, (result, part.columns.len()), pieces);
                places(&|row, to| copy_run(result.add(row * run), to, run));
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
