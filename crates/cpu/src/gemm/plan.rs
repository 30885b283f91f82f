//! How a product is cut up: blocks of k, chunks of rows and columns, tasks, and the scratch each worker needs.
//!
//! A worker takes an item (batch entry, column chunk, row chunk), and for each block of k packs the rows if it must,
//! then packs one panel of B after the other (some 200 KB, so that it stays in the second-level cache) and passes all
//! tiles of the row chunk over it. Nothing is shared between workers, so there is nothing to wait for. The price is
//! that a panel is packed again for each row chunk, which costs as much as some ten rows of the product.

use super::micro::{Kernels, Lane, ROWS};
use super::pack::A_WIDTH;
use super::{Float, GemmSpec};
use crate::isa::Isa;

/// Lanes in a block of k: enough to make loading and storing the sums cheap, few enough for the panel to stay in the
/// second-level cache.
const BLOCK_LANES: usize = 768;
/// Rows of a chunk at most; bounds the scratch and keeps a task short.
const CHUNK_ROWS: usize = 576;
/// A chunk is not split below these: packing its panels, or its rows, again would cost more than a few percent.
const LEAST_ROWS: usize = 384;
const LEAST_COLS: usize = 256;
/// Columns of a chunk where A is read in place.
const NARROW: usize = 64;
/// Columns of a chunk where A is packed: its packing is paid once per chunk.
const WIDE: usize = 768;
/// Items worth having, so that any number of threads up to about half of it is kept busy.
const ITEMS: usize = 24;
/// Multiply-adds below which a task is not worth handing to another thread: some microseconds.
const TASK_WORK: usize = 1 << 18;
/// Alignment of the scratch and of its parts, in bytes.
pub(crate) const ALIGN: usize = 64;

/// The cutting of one product.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub lane: Lane,
    /// Whether rows of A go through panels; otherwise they are read in place.
    pub pack_a: bool,
    pub k: KBlocks,
    /// Rows of a chunk, and chunks.
    pub rows: (usize, usize),
    /// Columns of a chunk, and chunks.
    pub cols: (usize, usize),
    /// Consecutive items that make a task.
    pub items_per_task: usize,
    /// Items in all.
    pub items: usize,
    /// Sums go through f32 scratch on the way to a bf16 C.
    pub sums: bool,
    /// Bytes of one worker's scratch, and where its parts start.
    pub scratch: Scratch,
}

/// The blocks of k.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KBlocks {
    pub k: usize,
    /// Elements of every block but the last, even.
    pub block: usize,
}

impl KBlocks {
    pub(crate) fn new(lane: Lane, k: usize) -> KBlocks {
        let most = if lane == Lane::Pair { 2 * BLOCK_LANES } else { BLOCK_LANES };
        KBlocks { k, block: k.div_ceil(k.div_ceil(most).max(1)).next_multiple_of(2).max(2) }
    }

    pub(crate) fn count(self) -> usize {
        self.k.div_ceil(self.block)
    }

    /// First element and number of elements of a block.
    pub(crate) fn get(self, index: usize) -> (usize, usize) {
        let first = index * self.block;
        (first, self.block.min(self.k - first))
    }
}

/// Byte offsets of the parts of a worker's scratch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scratch {
    pub a: usize,
    pub low: usize,
    pub sums: usize,
    pub bytes: usize,
}

impl Plan {
    pub(crate) fn new(spec: &GemmSpec, isa: Isa) -> Plan {
        let lane = Lane::of(spec.a.dtype, isa);
        let pack_a = match lane {
            Lane::F32 => spec.a.col_stride != 1,
            Lane::Pair => spec.a.col_stride != 1 || spec.k % 2 == 1,
            Lane::Widened => true,
        };
        let batch = spec.batch[0] * spec.batch[1];
        let wide = if pack_a { WIDE } else { NARROW };
        let (mut row_chunks, mut col_chunks) = (spec.m.div_ceil(CHUNK_ROWS), spec.n.div_ceil(wide));
        let wanted = |others: usize| ITEMS.div_ceil((batch * others).max(1));
        row_chunks = row_chunks.max(wanted(col_chunks).min(spec.m / LEAST_ROWS));
        col_chunks = col_chunks.max(wanted(row_chunks).min(spec.n / LEAST_COLS));
        let rows = spec.m.div_ceil(row_chunks.max(1)).next_multiple_of(ROWS).max(ROWS);
        let cols = spec.n.div_ceil(col_chunks.max(1)).next_multiple_of(NARROW).max(NARROW);
        let (row_chunks, col_chunks) = (spec.m.div_ceil(rows), spec.n.div_ceil(cols));
        let items = batch * row_chunks * col_chunks;
        let work = rows.min(spec.m) * cols.min(spec.n) * spec.k;

        let k = KBlocks::new(lane, spec.k);
        let lanes = lane.count(k.block.min(spec.k));
        let sums = spec.c.dtype == Float::Bf16 && (k.count() > 1 || spec.accumulate);
        let mut bytes = 0;
        let mut part = |size: usize| {
            let start = bytes;
            bytes = (bytes + size).next_multiple_of(ALIGN);
            start
        };
        let kernels = Kernels::of(isa, lane);
        part(if spec.packed_b { 0 } else { 4 * lanes * kernels.panel_width(cols.min(spec.n).max(1)) });
        let rows_of_a = if pack_a { rows.min(spec.m).next_multiple_of(kernels.vector) } else { 0 };
        let scratch = Scratch {
            a: part(4 * lanes * rows_of_a),
            low: part(4 * rows_of_a.div_ceil(A_WIDTH)),
            sums: part(if sums { 4 * rows.min(spec.m) * cols } else { 0 }),
            bytes: 0,
        };
        Plan {
            lane,
            pack_a,
            k,
            rows: (rows, row_chunks),
            cols: (cols, col_chunks),
            items_per_task: TASK_WORK.div_ceil(work.max(1)),
            items,
            sums,
            scratch: Scratch { bytes, ..scratch },
        }
    }
}
