//! The loops around the micro-kernel.

use super::bf16::{Lowest, widen};
use super::micro::{Kernels, Lane, ROWS, Tile};
use super::pack::{A_WIDTH, Pack, Source, packer};
use super::plan::{ALIGN, KBlocks, Plan};
use super::{Epilogue, Float, GemmSpec, Layout, Strip};
use crate::isa::{Cpu, Isa};
use std::ops::Range;

/// A pointer that tasks share; each writes its own part.
#[derive(Clone, Copy)]
struct Shared<T>(T);
// SAFETY: the parts are disjoint (see `run` and `pack_b`), and the caller of the kernel vouches for the memory.
unsafe impl<T> Sync for Shared<T> {}

impl<T: Copy> Shared<T> {
    fn get(&self) -> T {
        self.0
    }
}

/// The layout of a packed B: blocks of k, in each the panels `[lane][width]`, then the lowest exponent of each panel.
pub(super) struct Packed {
    kernels: &'static Kernels,
    lane: Lane,
    k: KBlocks,
    n: usize,
    /// Columns in memory.
    width: usize,
    pub(super) bytes: usize,
}

impl Packed {
    pub(super) fn new(isa: Isa, dtype: Float, k: usize, n: usize) -> Packed {
        let lane = Lane::of(dtype, isa);
        let kernels = Kernels::of(isa, lane);
        let k = KBlocks::new(lane, k);
        let width = n.next_multiple_of(kernels.vector);
        let panels = n.div_ceil(kernels.width());
        let bytes = 4 * (lane.count(k.k) * width + k.count() * panels);
        Packed { kernels, lane, k, n, width, bytes: bytes.next_multiple_of(ALIGN) }
    }

    fn panels(&self) -> usize {
        self.n.div_ceil(self.kernels.width())
    }

    /// Where a panel of a block starts, and where its lowest exponent is, in 32-bit lanes.
    fn at(&self, block: usize, panel: usize) -> (usize, usize) {
        let (first, len) = self.k.get(block);
        let panel_at = self.lane.count(first) * self.width + panel * self.kernels.width() * self.lane.count(len);
        (panel_at, self.lane.count(self.k.k) * self.width + block * self.panels() + panel)
    }
}

/// See [`super::pack_b`].
pub(super) unsafe fn pack_b(cpu: &Cpu, layout: &Layout, k: usize, n: usize, b: *const u8, dst: *mut u8) {
    let packed = Packed::new(cpu.isa(), layout.dtype, k, n);
    let pack = packer(cpu.isa());
    let source =
        Source { ptr: b, dtype: layout.dtype, k, k_stride: layout.row_stride, cols: n, col_stride: layout.col_stride };
    let (source, dst) = (Shared(source), Shared(dst.cast::<u32>()));
    cpu.pool.run(packed.panels() * packed.k.count(), |task, _| {
        let (block, panel) = (task / packed.panels(), task % packed.panels());
        let (first, len) = packed.k.get(block);
        let col = panel * packed.kernels.width();
        let cols = packed.kernels.width().min(n - col);
        let (at, low) = packed.at(block, panel);
        // SAFETY: the part lies inside B; each task writes its own panel and exponent, inside `packed.bytes`.
        unsafe {
            let part = source.get().part(first, len, col, cols);
            let lowest = pack(&part, packed.lane, dst.get().add(at), packed.kernels.panel_width(cols));
            dst.get().add(low).write(lowest.0);
        }
    });
}

/// The product of nothing: zero, or C as it is.
pub(super) unsafe fn empty(spec: &GemmSpec, c: *mut u8, epilogue: Option<Epilogue<'_>>) {
    for batch in 0..spec.batch[0] * spec.batch[1] {
        let batch = [batch / spec.batch[1], batch % spec.batch[1]];
        for i in 0..spec.m {
            for j in 0..spec.n {
                let at = spec.c.offset(batch) + (i * spec.c.row_stride + j * spec.c.col_stride) * spec.c.dtype.bytes();
                if !spec.accumulate {
                    // SAFETY: the caller's: the element lies in C.
                    unsafe { std::ptr::write_bytes(c.add(at), 0, spec.c.dtype.bytes()) };
                }
            }
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
    packed: Packed,
    pack: Pack,
    a: *const u8,
    b: *const u8,
    c: *mut u8,
    scratch: *mut u8,
    epilogue: Option<Epilogue<'a>>,
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
    let plan = Plan::new(spec, cpu.isa());
    let packed = Packed::new(cpu.isa(), spec.b.dtype, spec.k, spec.n);
    let pack = packer(cpu.isa());
    let tasks = plan.items.div_ceil(plan.items_per_task);
    let job = Shared(Job { spec, plan, packed, pack, a, b, c, scratch, epilogue });
    let job = &job;
    cpu.pool.run(tasks, |task, worker| {
        let job = &job.0;
        let first = task * job.plan.items_per_task;
        for item in first..(first + job.plan.items_per_task).min(job.plan.items) {
            // SAFETY: the caller's; items write disjoint parts of C, and each worker has its own scratch.
            unsafe { job.item(item, worker) };
        }
    });
}

impl Job<'_> {
    /// One row chunk by one column chunk of one batch entry.
    unsafe fn item(&self, item: usize, worker: usize) {
        let (spec, plan) = (self.spec, &self.plan);
        let (row_chunk, rest) = (item % plan.rows.1, item / plan.rows.1);
        let (col_chunk, batch) = (rest % plan.cols.1, rest / plan.cols.1);
        let batch = [batch / spec.batch[1], batch % spec.batch[1]];
        let chunk = |(size, _): (usize, usize), index: usize, end: usize| index * size..end.min((index + 1) * size);
        let (rows, cols) = (chunk(plan.rows, row_chunk, spec.m), chunk(plan.cols, col_chunk, spec.n));
        // SAFETY: the caller's: offsets of this batch entry, this worker's part of the scratch.
        unsafe {
            let entry = Entry {
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
                scratch: self.scratch.add(worker * plan.scratch.bytes),
            };
            for block in 0..plan.k.count() {
                entry.pack_a(block, &rows);
                for col in cols.clone().step_by(self.packed.kernels.width()) {
                    let panel = col..cols.end.min(col + self.packed.kernels.width());
                    entry.panel(block, &rows, &cols, &panel);
                    if block + 1 == plan.k.count()
                        && let Some(epilogue) = self.epilogue
                    {
                        epilogue(&Strip { batch, rows: rows.clone(), cols: panel }, worker);
                    }
                }
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

impl Entry<'_> {
    /// Packs the rows of A for one block of k, if they have to be.
    unsafe fn pack_a(&self, block: usize, rows: &Range<usize>) {
        let Job { plan, packed, pack, .. } = self.job;
        if !plan.pack_a {
            return;
        }
        let (first, len) = plan.k.get(block);
        for row in rows.clone().step_by(A_WIDTH) {
            let count = A_WIDTH.min(rows.end - row);
            let at = row - rows.start;
            // SAFETY: the part lies inside A; the scratch holds the panels of a row chunk and their exponents.
            unsafe {
                let part = self.a.part(first, len, row, count);
                let dst = self.packed_a().add(at * plan.lane.count(len));
                let low = pack(&part, plan.lane, dst, count.next_multiple_of(packed.kernels.vector));
                self.low().add(at / A_WIDTH).write(low);
            }
        }
    }

    /// The panels of the row chunk.
    unsafe fn packed_a(&self) -> *mut u32 {
        // SAFETY: inside the scratch, whose parts are aligned.
        unsafe { self.scratch.add(self.job.plan.scratch.a).cast() }
    }

    /// The lowest exponents of these panels.
    unsafe fn low(&self) -> *mut Lowest {
        // SAFETY: inside the scratch, whose parts are aligned.
        unsafe { self.scratch.add(self.job.plan.scratch.low).cast() }
    }

    /// Pointers to the rows of a tile, the step between their lanes, and their lowest exponent.
    unsafe fn rows_of_a(
        &self,
        block: usize,
        rows: &Range<usize>,
        tile: Range<usize>,
    ) -> ([*const u32; ROWS], usize, Lowest) {
        let Job { plan, packed, .. } = self.job;
        let (first, len) = plan.k.get(block);
        // Pointers beyond the tile's rows repeat its last row.
        let row = |i: usize| (tile.start + i).min(tile.end - 1);
        // SAFETY: the rows lie inside A, or in the panels that `pack_a` made of them.
        unsafe {
            if !plan.pack_a {
                let pointers = std::array::from_fn(|i| self.a.part(first, len, row(i), 1).ptr.cast());
                return (pointers, 1, Lowest::NONE);
            }
            let at = tile.start - rows.start;
            let (panel, within) = (at / A_WIDTH, at % A_WIDTH);
            let width = (rows.len() - panel * A_WIDTH).min(A_WIDTH).next_multiple_of(packed.kernels.vector);
            let panel_at = self.packed_a().add(panel * A_WIDTH * plan.lane.count(len));
            let pointers = std::array::from_fn(|i| panel_at.add(within + row(i) - tile.start).cast_const());
            (pointers, width, *self.low().add(panel))
        }
    }

    /// One panel of B, packed if it has to be, and its lowest exponent.
    unsafe fn pack_b(&self, block: usize, cols: &Range<usize>) -> (*const u32, Lowest) {
        let Job { plan, packed, pack, spec, .. } = self.job;
        // SAFETY: the panel lies inside B, packed or not; the scratch starts with room for a panel.
        unsafe {
            if spec.packed_b {
                let (at, low) = packed.at(block, cols.start / packed.kernels.width());
                let lanes = self.b.ptr.cast::<u32>();
                return (lanes.add(at), Lowest(*lanes.add(low)));
            }
            let (first, len) = plan.k.get(block);
            let part = self.b.part(first, len, cols.start, cols.len());
            let dst = self.scratch.cast::<u32>();
            let low = pack(&part, plan.lane, dst, packed.kernels.panel_width(cols.len()));
            (dst, low)
        }
    }

    /// All tiles of the row chunk over one panel, for one block of k. `chunk` is the column chunk of the panel.
    unsafe fn panel(&self, block: usize, rows: &Range<usize>, chunk: &Range<usize>, cols: &Range<usize>) {
        let Job { plan, packed, spec, .. } = self.job;
        let lanes = plan.lane.count(plan.k.get(block).1);
        let (starts, ends) = (block == 0 && !spec.accumulate, block + 1 == plan.k.count());
        // SAFETY: the caller's: every pointer stays in A, in C and in this worker's scratch.
        unsafe {
            let (b, b_low) = self.pack_b(block, cols);
            let c = |row: usize| {
                self.c.add((row * spec.c.row_stride + cols.start * spec.c.col_stride) * spec.c.dtype.bytes())
            };
            let sums = |row: usize| {
                let at = (row - rows.start) * plan.cols.0 + (cols.start - chunk.start);
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
                let (a_rows, a_step, a_low) = self.rows_of_a(block, rows, first..first + count);
                let (init, init_stride) =
                    if plan.sums { (sums(first), plan.cols.0) } else { (c(first).cast::<f32>(), spec.c.row_stride) };
                let (out, out_stride) = match (spec.c.dtype, ends) {
                    (Float::F32, _) => (c(first).cast(), spec.c.row_stride),
                    (Float::Bf16, false) => (sums(first), plan.cols.0),
                    (Float::Bf16, true) => (std::ptr::null_mut(), spec.c.row_stride),
                };
                let tile = Tile {
                    a: a_rows.as_ptr(),
                    a_step,
                    segments: 1,
                    lanes,
                    b,
                    init: if starts { std::ptr::null() } else { init },
                    init_stride,
                    out,
                    out_stride,
                    cols: cols.len(),
                };
                let low = (plan.lane == Lane::Widened).then_some([a_low, b_low]);
                if spec.c.dtype == Float::Bf16 && ends {
                    packed.kernels.run_rounded(&tile, c(first).cast(), count, low);
                } else {
                    packed.kernels.run(&tile, count, low);
                }
            }
        }
    }
}
