//! Products whose rows are windows read where they lie: the micro-kernel follows a pointer to each element of a window,
//! which leads to zeros where that is padding.

use crate::gemm::micro::{Kernels, Lane, ROWS, Tile};
use crate::gemm::pack::Packed;
use crate::gemm::plan::KBlocks;
use crate::gemm::{Float, Layout, pack_panels};
use crate::isa::{Cpu, Isa};
use crate::kernels::view::{Pieces, piece};
use crate::simd::{LINE, fetch};
use std::ops::Range;

/// Rows of a task at most: what they read stays in the second-level cache, beside a panel of weights.
const TASK_ROWS: usize = 192;
/// Bytes of the pointers of a task, about: windows of many elements have fewer rows.
const POINTERS: usize = 128 * 1024;
/// Tasks that there are at least, where the sizes allow it.
const TASKS: usize = 16;
/// Lanes of a run at least. Following pointers to shorter ones takes longer than copying them next to each other.
const LEAST_LANES: usize = 4;

/// A product of rows `[taps][run]`, each run contiguous somewhere, and weights `[taps][run][columns]`.
#[derive(Clone, Copy)]
pub(super) struct Gather {
    isa: Isa,
    weights: Packed,
    taps: usize,
    run: usize,
    result: Float,
}

impl Gather {
    /// `None` if runs are too short, or not made of the lanes in which they are multiplied.
    pub(super) fn new(
        isa: Isa,
        operand: Float,
        result: Float,
        taps: usize,
        run: usize,
        columns: usize,
    ) -> Option<Gather> {
        let lane = Lane::of(operand, isa);
        let whole = match lane {
            Lane::F32 => true,
            Lane::Pair => run.is_multiple_of(2),
            Lane::Widened => false,
        };
        let weights = Packed::new(isa, operand, KBlocks::of_runs(lane, taps, run), columns);
        (whole && taps > 0 && lane.count(run) >= LEAST_LANES).then_some(Gather { isa, weights, taps, run, result })
    }

    /// Bytes of the packed weights.
    pub(super) fn weights_bytes(&self) -> usize {
        self.weights.bytes
    }

    /// Packs the weights, of which `layout` says how they lie.
    ///
    /// # Safety
    /// They are there, and `to` has room for [`Gather::weights_bytes`].
    pub(super) unsafe fn pack(&self, cpu: &Cpu, layout: &Layout, weights: *const u8, to: *mut u8) {
        // SAFETY: the caller's.
        unsafe { pack_panels(cpu, &self.weights, layout, weights, to) };
    }

    /// Where an element of packed `f32` weights of one tap is, and how many in the columns from it on follow it there.
    pub(super) fn element(&self, k: usize, column: usize) -> (usize, usize) {
        debug_assert!(self.weights.k.count() <= 1 && self.weights.lane == Lane::F32, "several blocks, or pairs");
        let (panel, inside) = (column / self.weights.panel, column % self.weights.panel);
        let width = self.weights.panel_width(panel);
        (self.weights.at(0, panel).0 + k * width + inside, width - inside)
    }

    /// Rows of a task at most: whole tiles.
    fn task_rows(&self) -> usize {
        let rows = POINTERS / (size_of::<*const u32>() * self.taps);
        (rows / ROWS * ROWS).clamp(4 * ROWS, TASK_ROWS)
    }

    /// Rows and columns of a task, where there are `rows` in all, and `groups` of weights.
    pub(super) fn cut(&self, rows: usize, groups: usize) -> [usize; 2] {
        let each = rows.div_ceil(rows.div_ceil(self.task_rows()).max(1)).next_multiple_of(ROWS).max(ROWS);
        [each, self.columns(rows.div_ceil(each) * groups, TASKS)]
    }

    /// Columns of a task, whole panels, where each part of them makes `others` tasks and there should be `tasks`.
    pub(super) fn columns(&self, others: usize, tasks: usize) -> usize {
        let panels = self.weights.panels();
        let parts = tasks.div_ceil(others.max(1)).min(panels);
        panels.div_ceil(parts.max(1)) * self.weights.panel
    }

    fn sums(&self) -> usize {
        let needed = self.result == Float::Bf16 && self.weights.k.count() > 1;
        if needed { self.task_rows() * self.weights.panel } else { 0 }
    }

    /// Bytes of a worker's scratch.
    pub(super) fn scratch(&self) -> usize {
        piece::<*const u32>(self.task_rows() * self.taps)
            + piece::<u32>(self.weights.lane.count(self.run))
            + piece::<f32>(self.sums())
    }

    /// Room for the rows of a task.
    ///
    /// # Safety
    /// The pieces have [`Gather::scratch`] bytes, and `m` rows are those of a task.
    pub(super) unsafe fn rows(&self, pieces: &mut Pieces, m: usize) -> Rows {
        let lanes = self.weights.lane.count(self.run);
        let (runs, zeros) = (pieces.take(self.task_rows() * self.taps), pieces.take::<u32>(lanes));
        // SAFETY: there is room for them.
        unsafe { std::ptr::write_bytes(zeros, 0, lanes) };
        Rows { runs, zeros, sums: pieces.take(self.sums()), taps: self.taps, m }
    }

    /// Computes columns of the product of all runs of the rows into `c`, whose rows are `c_stride` elements apart and start at
    /// the first of the columns.
    ///
    /// # Safety
    /// The rows' runs and the packed weights are there, the columns are those of a task, and `c` is this thread's.
    pub(super) unsafe fn multiply(
        &self,
        rows: &Rows,
        weights: *const u8,
        columns: Range<usize>,
        c: *mut u8,
        c_stride: usize,
    ) {
        let (packed, run) = (&self.weights, self.run);
        let (kernels, size) = (Kernels::of(self.isa, packed.lane), self.result.bytes());
        for first_column in columns.clone().step_by(packed.panel) {
            let cols = packed.panel.min(columns.end - first_column);
            let c = |row: usize| c.wrapping_add((row * c_stride + first_column - columns.start) * size);
            for block in 0..packed.k.count() {
                let (first, len) = packed.k.get(block);
                let (starts, ends) = (block == 0, block + 1 == packed.k.count());
                let (at, _) = packed.at(block, first_column / packed.panel);
                for row in (0..rows.m).step_by(ROWS) {
                    let count = ROWS.min(rows.m - row);
                    // As in a matrix product: the next tile's part of C.
                    for next in row + count..rows.m.min(row + count + ROWS) {
                        for byte in (0..cols * size).step_by(LINE) {
                            fetch(c(next).wrapping_add(byte));
                        }
                    }
                    let rounded = ends && self.result == Float::Bf16;
                    // SAFETY: the caller's.
                    unsafe {
                        let (sums, sums_stride) = match self.result {
                            Float::F32 => (c(row).cast(), c_stride),
                            Float::Bf16 => (rows.sums.wrapping_add(row * packed.panel), packed.panel),
                        };
                        let tile = Tile {
                            a: rows.tile(row, first / run),
                            segments: len / run,
                            lanes: packed.lane.count(run),
                            a_step: 1,
                            b: weights.cast::<u32>().add(at),
                            b_step: kernels.panel_width(cols),
                            init: if starts { std::ptr::null() } else { sums },
                            init_stride: sums_stride,
                            out: sums,
                            out_stride: if rounded { c_stride } else { sums_stride },
                            cols,
                        };
                        if rounded {
                            kernels.run_rounded(&tile, c(row).cast(), count, None);
                        } else {
                            kernels.run(&tile, count, None);
                        }
                    }
                }
            }
        }
    }
}

/// Where the runs of some rows are, in tiles `[tap][row]` of as many rows as a tile has.
pub(super) struct Rows {
    runs: *mut *const u32,
    zeros: *const u32,
    sums: *mut f32,
    taps: usize,
    m: usize,
}

impl Rows {
    /// Says where the runs of neighbouring rows for one tap are: the first, and the bytes from each to the next.
    ///
    /// # Safety
    /// There are such rows and such a tap.
    #[inline(always)]
    pub(super) unsafe fn set(&self, tap: usize, rows: Range<usize>, runs: Option<(*const u8, usize)>) {
        let (mut first, step) = runs.unwrap_or((self.zeros.cast(), 0));
        let mut row = rows.start;
        while row < rows.end {
            let end = rows.end.min(row / ROWS * ROWS + ROWS);
            let place = self.tile(row / ROWS * ROWS, tap).wrapping_add(row % ROWS).cast_mut();
            for i in 0..end - row {
                // SAFETY: the caller's.
                unsafe { *place.add(i) = first.cast() };
                first = first.wrapping_add(step);
            }
            row = end;
        }
    }

    /// The runs of the tile that starts at a row, from one tap on.
    #[inline(always)]
    fn tile(&self, row: usize, tap: usize) -> *const *const u32 {
        self.runs.wrapping_add(row * self.taps + tap * ROWS.min(self.m - row)).cast_const()
    }
}
