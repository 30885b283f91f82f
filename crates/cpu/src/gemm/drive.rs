//! The loops around the micro-kernel.

use super::bf16::{Lowest, widen};
use super::micro::{Kernels, Lane, ROWS, Tile};
use super::pack::{GROUP, Order, Pack, Packed, PackedRows, Source, packer};
use super::plan::{KBlocks, Plan, RowsOfA};
use super::{Epilogue, Float, GemmSpec, Layout, Strip};
use crate::isa::{Cpu, Isa};
use crate::simd::{LINE, fetch};
use std::ops::Range;

/// A pointer that tasks share; each writes its own part.
#[derive(Clone, Copy)]
struct Shared<T>(T);
// SAFETY: the parts are disjoint (see `run` and `pack_panels`), and the caller of the kernel vouches for the memory.
unsafe impl<T> Sync for Shared<T> {}

/// Packs a B of which `layout` says how it lies.
///
/// # Safety
/// As [`super::pack_b`], with `packed.bytes` of room.
pub(crate) unsafe fn pack_panels(cpu: &Cpu, packed: &Packed, layout: &Layout, b: *const u8, dst: *mut u8) {
    let source = Source {
        ptr: b,
        dtype: layout.dtype,
        k: packed.k.k,
        k_stride: layout.row_stride,
        cols: packed.cols,
        col_stride: layout.col_stride,
    };
    let (pack, panels) = (packer(cpu.isa()), packed.panels());
    let shared = &Shared((source, dst.cast::<u32>()));
    cpu.pool.run(panels * packed.k.count(), |task, _| {
        let (source, dst) = shared.0;
        // SAFETY: the caller's; each task writes its own panel and exponent, inside `packed.bytes`.
        unsafe { packed.fill(pack, &source, dst, task / panels, task % panels) };
    });
}

/// The layout of the packed B of a product.
pub(super) fn packed_b(isa: Isa, dtype: Float, k: usize, n: usize) -> Packed {
    Packed::new(isa, dtype, KBlocks::new(Lane::of(dtype, isa), k), n)
}

/// The product of nothing: zero, or C as it is.
pub(super) unsafe fn empty(spec: &GemmSpec, c: *mut u8, epilogue: Option<Epilogue<'_>>) {
    for batch in 0..spec.batch[0] * spec.batch[1] {
        let batch = [batch / spec.batch[1], batch % spec.batch[1]];
        let elements = if spec.accumulate { 0 } else { spec.m * spec.n };
        for element in 0..elements {
            let (i, j) = (element / spec.n, element % spec.n);
            let at = spec.c.offset(batch) + (i * spec.c.row_stride + j * spec.c.col_stride) * spec.c.dtype.bytes();
            // SAFETY: the caller's: the element lies in C.
            unsafe { std::ptr::write_bytes(c.add(at), 0, spec.c.dtype.bytes()) };
        }
        if let Some(epilogue) = epilogue
            && spec.m * spec.n > 0
        {
            epilogue(&Strip { batch, rows: 0..spec.m, cols: 0..spec.n }, 0);
        }
    }
}

/// What the tasks of one product share.
struct Job<'a> {
    spec: &'a GemmSpec,
    plan: Plan,
    kernels: &'static Kernels,
    packed: Packed,
    pack: Pack,
    a: *const u8,
    b: *const u8,
    c: *mut u8,
    scratch: *mut u8,
    epilogue: Option<Epilogue<'a>>,
    /// The first of the rows in the shared scratch, and their layout.
    shared: Option<(usize, PackedRows)>,
}

/// See [`super::gemm`]; k is not 0 and the rows of C are contiguous.
pub(super) unsafe fn run(
    cpu: &Cpu,
    spec: &GemmSpec,
    a: *const u8,
    b: *const u8,
    c: *mut u8,
    scratch: *mut u8,
    epilogue: Option<Epilogue<'_>>,
) {
    let plan = Plan::new(spec, cpu.isa(), cpu.pool.available());
    let kernels = Kernels::of(cpu.isa(), plan.lane);
    let packed = packed_b(cpu.isa(), spec.dtype(), spec.k, spec.n);
    let at_once = if let RowsOfA::Shared(rows) = plan.a { rows } else { spec.m.next_multiple_of(plan.rows) };
    let mut job =
        Shared(Job { spec, plan, kernels, packed, pack: packer(cpu.isa()), a, b, c, scratch, epilogue, shared: None });
    for first in (0..spec.m).step_by(at_once.max(1)) {
        let rows = first..spec.m.min(first + at_once);
        if let RowsOfA::Shared(_) = job.0.plan.a {
            // SAFETY: the caller's; the scratch starts with room for these rows.
            job.0.shared = Some((first, unsafe { job.0.pack_rows(cpu, &rows) }));
        }
        let items = job.0.plan.items(spec, rows.len());
        let per_task = job.0.plan.items_per_task;
        let job = &job;
        cpu.pool.run(items.div_ceil(per_task), |task, worker| {
            for item in task * per_task..items.min((task + 1) * per_task) {
                // SAFETY: the caller's; items write disjoint parts of C, and each worker has its own scratch.
                unsafe { job.0.item(item, &rows, worker) };
            }
        });
    }
}

impl Job<'_> {
    /// One row chunk of `rows` by one column chunk of one batch entry.
    unsafe fn item(&self, item: usize, rows: &Range<usize>, worker: usize) {
        let (spec, plan) = (self.spec, &self.plan);
        let (row_chunks, col_chunks) = (rows.len().div_ceil(plan.rows), spec.n.div_ceil(plan.cols));
        // What is larger, A or B, is gone through once.
        let (at, batch) = (item % (row_chunks * col_chunks), item / (row_chunks * col_chunks));
        let (row_chunk, col_chunk) =
            if spec.m > spec.n { (at / col_chunks, at % col_chunks) } else { (at % row_chunks, at / row_chunks) };
        let batch = [batch / spec.batch[1], batch % spec.batch[1]];
        let row = rows.start + row_chunk * plan.rows;
        let rows = row..rows.end.min(row + plan.rows);
        let cols = col_chunk * plan.cols..spec.n.min((col_chunk + 1) * plan.cols);
        // SAFETY: the caller's.
        unsafe {
            let entry = self.entry(batch, worker);
            for block in 0..plan.k.count() {
                let a = entry.rows_of_a(block, &rows);
                for col in cols.clone().step_by(self.packed.panel) {
                    let panel = col..cols.end.min(col + self.packed.panel);
                    entry.panel(block, &rows, &cols, &panel, &a);
                    if block + 1 == plan.k.count()
                        && let Some(epilogue) = self.epilogue
                    {
                        epilogue(&Strip { batch, rows: rows.clone(), cols: panel }, worker);
                    }
                }
            }
        }
    }

    /// Packs rows of A for all workers, each group of each block of k a task.
    unsafe fn pack_rows(&self, cpu: &Cpu, rows: &Range<usize>) -> PackedRows {
        let packed = PackedRows::new(self.plan.lane, self.plan.k, rows.len());
        // SAFETY: the caller's.
        let source = unsafe { self.entry([0, 0], 0).a.part(0, self.spec.k, rows.start, rows.len()) };
        let (pack, shared) = (self.pack, &Shared((source, self.scratch.cast::<u32>())));
        cpu.pool.run(packed.groups() * self.plan.k.count(), |task, _| {
            let (source, dst) = shared.0;
            // SAFETY: the caller's; each task writes its own group and exponent, inside `packed.bytes()`.
            unsafe { packed.fill(pack, &source, dst, task / packed.groups(), task % packed.groups()) };
        });
        packed
    }

    /// The operands of a batch entry and the scratch of a worker.
    unsafe fn entry(&self, batch: [usize; 2], worker: usize) -> Entry<'_> {
        let (spec, plan) = (self.spec, &self.plan);
        // SAFETY: the caller's: offsets of this batch entry, this worker's part of the scratch.
        unsafe {
            Entry {
                job: self,
                a: Source {
                    ptr: self.a.add(spec.a.offset(batch)),
                    dtype: spec.a.dtype,
                    k: spec.k,
                    k_stride: spec.a.col_stride,
                    cols: spec.m,
                    col_stride: spec.a.row_stride,
                },
                b: Source {
                    ptr: if spec.packed_b { self.b } else { self.b.add(spec.b.offset(batch)) },
                    dtype: spec.b.dtype,
                    k: spec.k,
                    k_stride: spec.b.row_stride,
                    cols: spec.n,
                    col_stride: spec.b.col_stride,
                },
                c: self.c.add(spec.c.offset(batch)),
                scratch: self.scratch.add(plan.shared_bytes + worker * plan.scratch.bytes),
            }
        }
    }
}

/// One batch entry as a worker sees it.
struct Entry<'a> {
    job: &'a Job<'a>,
    a: Source,
    b: Source,
    c: *mut u8,
    scratch: *mut u8,
}

/// The rows of A of one block of k.
enum Rows {
    /// In place.
    InPlace(Source),
    /// Packed, from row `first` on: their layout, and the block of it.
    Packed { packed: PackedRows, lanes: *const u32, first: usize, block: usize },
}

impl Rows {
    /// Pointers to the rows of a tile.
    unsafe fn tile(&self, tile: Range<usize>) -> [*const u32; ROWS] {
        // Pointers beyond the tile's rows repeat its last row.
        let row = |i: usize| (tile.start + i).min(tile.end - 1);
        // SAFETY: the caller's: the rows lie inside A, or were packed.
        unsafe {
            match self {
                Rows::InPlace(a) => std::array::from_fn(|i| a.part(0, a.k, row(i), 1).ptr.cast()),
                Rows::Packed { packed, lanes, first, block } => {
                    std::array::from_fn(|i| lanes.add(packed.at(*block, row(i) - first)))
                }
            }
        }
    }

    /// The lowest exponent of the group of rows that this one is in.
    unsafe fn low(&self, row: usize) -> Lowest {
        match self {
            Rows::InPlace(_) => Lowest::NONE,
            Rows::Packed { packed, lanes, first, block } => {
                // SAFETY: the exponents follow the rows.
                Lowest(unsafe { *lanes.add(packed.low(*block, (row - first) / GROUP)) })
            }
        }
    }
}

impl Entry<'_> {
    /// The rows of A for one block of k, packed now if it is this worker's turn.
    unsafe fn rows_of_a(&self, block: usize, rows: &Range<usize>) -> Rows {
        let Job { plan, spec, pack, .. } = self.job;
        let (first, len) = plan.k.get(block);
        // SAFETY: the part lies inside A; the scratch holds the rows of a chunk.
        unsafe {
            if let Some((first, packed)) = self.job.shared {
                return Rows::Packed { packed, lanes: self.job.scratch.cast(), first, block };
            }
            if plan.a == RowsOfA::Transposed || plan.a == RowsOfA::InPlace && plan.k.is_in_place(plan.lane, block) {
                return Rows::InPlace(self.a.part(first, len, 0, spec.m));
            }
            let packed = PackedRows::new(plan.lane, KBlocks::new(plan.lane, len), rows.len());
            let lanes = self.scratch.add(plan.scratch.a).cast::<u32>();
            let source = self.a.part(first, len, rows.start, rows.len());
            for group in 0..packed.groups() {
                packed.fill(*pack, &source, lanes, 0, group);
            }
            Rows::Packed { packed, lanes, first: rows.start, block: 0 }
        }
    }

    /// One panel of B, packed if it has to be, the step from one of its lanes to the next, and its lowest exponent.
    unsafe fn panel_of_b(&self, block: usize, cols: &Range<usize>) -> (*const u32, usize, Lowest) {
        let Job { plan, packed, pack, spec, .. } = self.job;
        // SAFETY: the panel lies inside B, packed or not; the scratch starts with room for a panel.
        unsafe {
            let width = packed.panel_width(cols.start / packed.panel);
            if spec.packed_b {
                let (at, low) = packed.at(block, cols.start / packed.panel);
                let lanes = self.b.ptr.cast::<u32>();
                return (lanes.add(at), width, Lowest(*lanes.add(low)));
            }
            let (first, len) = plan.k.get(block);
            let part = self.b.part(first, len, cols.start, cols.len());
            if plan.b_in_place && width == cols.len() {
                return (part.ptr.cast(), part.k_stride, Lowest::NONE);
            }
            let dst = self.scratch.cast::<u32>();
            let low = pack(&part, plan.lane, dst, Order::Panel { width });
            (dst, width, low)
        }
    }

    /// All tiles of the row chunk over one panel, for one block of k. `chunk` is the column chunk of the panel.
    unsafe fn panel(&self, block: usize, rows: &Range<usize>, chunk: &Range<usize>, cols: &Range<usize>, a: &Rows) {
        let Job { plan, kernels, spec, .. } = self.job;
        let lanes = plan.lane.count(plan.k.get(block).1);
        let (starts, ends) = (block == 0 && !spec.accumulate, block + 1 == plan.k.count());
        // SAFETY: the caller's: every pointer stays in A, in C and in this worker's scratch.
        unsafe {
            let (b, b_step, b_low) = self.panel_of_b(block, cols);
            let c = |row: usize| {
                self.c.add((row * spec.c.row_stride + cols.start * spec.c.col_stride) * spec.c.dtype.bytes())
            };
            let sums = |row: usize| {
                let at = (row - rows.start) * plan.cols + (cols.start - chunk.start);
                self.scratch.add(plan.scratch.sums).cast::<f32>().add(at)
            };
            if plan.sums && block == 0 && spec.accumulate {
                for row in rows.clone() {
                    for col in 0..cols.len() {
                        *sums(row).add(col) = widen(*c(row).cast::<u16>().add(col));
                    }
                }
            }
            for first in rows.clone().step_by(ROWS) {
                let count = ROWS.min(rows.end - first);
                // The next tile's part of C: neither its loads nor its stores will have to wait for the memory.
                for row in first + count..rows.end.min(first + count + ROWS) {
                    for byte in (0..cols.len() * spec.c.dtype.bytes()).step_by(LINE) {
                        fetch(c(row).wrapping_add(byte));
                    }
                }
                let a_rows = a.tile(first..first + count);
                let (init, init_stride) =
                    if plan.sums { (sums(first), plan.cols) } else { (c(first).cast::<f32>(), spec.c.row_stride) };
                let (out, out_stride) = match (spec.c.dtype, ends) {
                    (Float::F32, _) => (c(first).cast(), spec.c.row_stride),
                    (Float::Bf16, false) => (sums(first), plan.cols),
                    (Float::Bf16, true) => (std::ptr::null_mut(), spec.c.row_stride),
                };
                let tile = Tile {
                    a: a_rows.as_ptr(),
                    segments: 1,
                    lanes,
                    a_step: if plan.a == RowsOfA::Transposed { self.a.k_stride } else { 1 },
                    b,
                    b_step,
                    init: if starts { std::ptr::null() } else { init },
                    init_stride,
                    out,
                    out_stride,
                    cols: cols.len(),
                };
                let low = (plan.lane == Lane::Widened).then(|| [a.low(first), b_low]);
                if spec.c.dtype == Float::Bf16 && ends {
                    kernels.run_rounded(&tile, c(first).cast(), count, low);
                } else {
                    kernels.run(&tile, count, low);
                }
            }
        }
    }
}
