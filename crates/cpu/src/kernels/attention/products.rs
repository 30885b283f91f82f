//! Products of tiles on the micro-kernels of matrix products, in the arithmetic that [`crate::gemm`] defines.

use super::Band;
use crate::gemm::Float;
use crate::gemm::bf16::Lowest;
use crate::gemm::micro::{Kernels, Lane, ROWS, Tile};
use crate::gemm::pack::{Order, Pack, Source, packer};
use crate::isa::Isa;
use crate::simd::LANES;

/// The kernels of an instruction set for operands of one type.
#[derive(Clone, Copy)]
pub(super) struct Products {
    kernels: &'static Kernels,
    pack: Pack,
    lane: Lane,
}

/// The rows of a product's A.
#[derive(Clone, Copy)]
pub(super) struct RowsOfA {
    ptr: *const u32,
    /// From one row to the next, and from one lane of a row to the next.
    steps: [usize; 2],
    low: Lowest,
}

impl RowsOfA {
    /// Without the first `n` rows.
    pub(super) fn skip(self, n: usize) -> RowsOfA {
        RowsOfA { ptr: self.ptr.wrapping_add(n * self.steps[0]), ..self }
    }
}

/// A product's B, packed in panels.
#[derive(Clone, Copy)]
pub(super) struct Panels {
    pub ptr: *const u32,
    /// Of each column; a product may use fewer.
    pub lanes: usize,
    pub low: Lowest,
}

/// A tile of weights `[keys][width]`, rounded or not as [`Products::rounds`] says, with zeros behind the queries of a row.
#[derive(Clone, Copy)]
pub(super) struct Weights {
    pub ptr: *const u8,
    pub keys: usize,
    pub queries: usize,
    /// From one key to the next, in weights: a multiple of 16.
    pub width: usize,
}

/// A product `c [m, n] = a [m, k] b [k, n]`, or `+=`; the rows of `c` are `c_row` apart.
pub(super) struct Product {
    pub a: RowsOfA,
    pub b: Panels,
    pub c: *mut f32,
    pub c_row: usize,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub accumulate: bool,
    pub seen: Seen,
}

/// The part of a product that counts. What a query does not see has no weight, and takes no time.
#[derive(Clone, Copy)]
pub(super) enum Seen {
    /// Rows are keys, columns are queries; results that no query sees are left out, in whole vectors.
    Scores(Band),
    /// Rows are queries, k are keys; terms of keys that no query of a tile of rows sees are left out, in pairs.
    Keys(Band),
    /// Rows are keys, k are queries; likewise.
    Queries(Band),
}

/// The logarithm of the least weight that counts, about that of the least normal number.
const LEAST: f32 = -87.0;
/// The same for rounded weights, about 2^-40: so small a share of a sum is lost in its rounding, and with smaller ones
/// products might need the slow arithmetic of denormal numbers.
const LEAST_ROUNDED: f32 = -27.75;

impl Products {
    pub(super) fn new(isa: Isa, dtype: Float) -> Products {
        let lane = Lane::of(dtype, isa);
        Products { kernels: Kernels::of(isa, lane), pack: packer(isa), lane }
    }

    /// Lanes of `k` elements.
    pub(super) fn lanes(&self, k: usize) -> usize {
        self.lane.count(k)
    }

    /// Lanes of panels for `k` by `columns` elements.
    pub(super) fn panel_lanes(&self, k: usize, columns: usize) -> usize {
        self.lanes(k) * columns.next_multiple_of(self.kernels.vector)
    }

    /// Whether weights are rounded to bf16.
    pub(super) fn rounds(&self) -> bool {
        self.lane != Lane::F32
    }

    /// The logarithm of the least weight that is not to be 0.
    pub(super) fn least(&self) -> f32 {
        if self.rounds() { LEAST_ROUNDED } else { LEAST }
    }

    /// Packs the columns of `source` as rows of an A, `[columns][lanes]`.
    ///
    /// # Safety
    /// The source is readable, `to` has the room, and the processor has the instruction set.
    pub(super) unsafe fn rows(&self, source: &Source, to: *mut u32) -> RowsOfA {
        let stride = self.lanes(source.k);
        // SAFETY: as the caller says.
        let low = unsafe { (self.pack)(source, self.lane, to, Order::Rows { stride }) };
        RowsOfA { ptr: to, steps: [stride, 1], low }
    }

    /// Packs a B.
    ///
    /// # Safety
    /// As [`Products::rows`].
    pub(super) unsafe fn panels(&self, source: &Source, to: *mut u32) -> Panels {
        let (lanes, mut low) = (self.lanes(source.k), Lowest::NONE);
        for first in (0..source.cols).step_by(self.kernels.width()) {
            let columns = (source.cols - first).min(self.kernels.width());
            let width = self.kernels.panel_width(columns);
            // SAFETY: as the caller says; the columns are inside.
            low = low.and(unsafe {
                let part = source.part(0, source.k, first, columns);
                (self.pack)(&part, self.lane, to.add(first * lanes), Order::Panel { width })
            });
        }
        Panels { ptr: to, lanes, low }
    }

    /// The columns of `source` as rows of an A: in place, or packed at `to`.
    ///
    /// # Safety
    /// As [`Products::rows`].
    pub(super) unsafe fn rows_in_place(&self, source: &Source, to: *mut u32) -> RowsOfA {
        let per_lane = match self.lane {
            Lane::F32 => Some(1),
            Lane::Pair => Some(2),
            Lane::Widened => None,
        };
        let whole =
            |n: &usize| source.k_stride == 1 && source.k.is_multiple_of(*n) && source.col_stride.is_multiple_of(*n);
        match per_lane.filter(whole) {
            Some(n) => RowsOfA { ptr: source.ptr.cast(), steps: [source.col_stride / n, 1], low: Lowest::NONE },
            // SAFETY: as the caller says.
            None => unsafe { self.rows(source, to) },
        }
    }

    /// A tile of weights as an A with its keys for rows: in place, or packed at `to`.
    ///
    /// # Safety
    /// As [`Products::rows`].
    pub(super) unsafe fn weights(&self, tile: Weights, to: *mut u32) -> RowsOfA {
        let dtype = if self.rounds() { Float::Bf16 } else { Float::F32 };
        let Weights { ptr, keys, queries, width } = tile;
        // An odd number of queries is followed by a 0.
        let k = queries.next_multiple_of(2);
        // SAFETY: as the caller says; `width` is even.
        unsafe { self.rows_in_place(&Source { ptr, dtype, k, k_stride: 1, cols: keys, col_stride: width }, to) }
    }

    /// A tile of weights as an A with its queries for rows: in place, or packed at `to`.
    ///
    /// # Safety
    /// As [`Products::rows`].
    pub(super) unsafe fn turned(&self, tile: Weights, to: *mut u32) -> RowsOfA {
        let Weights { ptr, keys, queries, width } = tile;
        if !self.rounds() {
            return RowsOfA { ptr: ptr.cast(), steps: [1, width], low: Lowest::NONE };
        }
        let source = Source { ptr, dtype: Float::Bf16, k: keys, k_stride: width, cols: queries, col_stride: 1 };
        // SAFETY: as the caller says.
        let low = unsafe { (self.pack)(&source, self.lane, to, Order::Panel { width }) };
        RowsOfA { ptr: to, steps: [1, width], low }
    }

    /// Computes a product.
    ///
    /// # Safety
    /// The operands hold `k` elements of `m` rows and `n` columns, `c` is writable by this thread alone and overlaps
    /// neither, and the processor has the instruction set.
    pub(super) unsafe fn run(&self, p: Product) {
        let low = (self.lane == Lane::Widened).then_some([p.a.low, p.b.low]);
        for column in (0..p.n).step_by(self.kernels.width()) {
            let panel = column..p.n.min(column + self.kernels.width());
            for row in (0..p.m).step_by(ROWS) {
                let rows = (p.m - row).min(ROWS);
                let (mut columns, mut terms) = (panel.clone(), 0..p.k);
                let seen = match p.seen {
                    Seen::Scores(band) => {
                        let seen = band.queries(row..row + rows, p.n);
                        let seen = seen.start / LANES * LANES..seen.end.next_multiple_of(LANES);
                        columns = columns.start.max(seen.start)..columns.end.min(seen.end);
                        &columns
                    }
                    Seen::Keys(band) => {
                        terms = band.keys(row..row + rows, p.k);
                        &terms
                    }
                    Seen::Queries(band) => {
                        terms = band.queries(row..row + rows, p.k);
                        &terms
                    }
                };
                if seen.is_empty() {
                    continue;
                }
                let (from, cols) = (self.lanes(terms.start / 2 * 2), columns.len());
                let lanes = self.lanes(terms.end.next_multiple_of(2).min(p.k)) - from;
                let [row_step, lane_step] = p.a.steps;
                // Pointers beyond the rows repeat the last.
                let a: [*const u32; ROWS] = std::array::from_fn(|i| {
                    p.a.ptr.wrapping_add((row + i.min(rows - 1)) * row_step + from * lane_step)
                });
                let b_step = self.kernels.panel_width(panel.len());
                // SAFETY: as the caller says.
                unsafe {
                    let c = p.c.add(row * p.c_row + columns.start);
                    let tile = Tile {
                        a: a.as_ptr(),
                        segments: 1,
                        lanes,
                        a_step: lane_step,
                        b: p.b.ptr.add(column * p.b.lanes + from * b_step + columns.start - column),
                        b_step,
                        init: if p.accumulate { c } else { std::ptr::null() },
                        init_stride: p.c_row,
                        out: c,
                        out_stride: p.c_row,
                        cols,
                    };
                    self.kernels.run(&tile, rows, low);
                }
            }
        }
    }
}
