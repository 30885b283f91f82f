//! How a product is cut up: blocks of k, chunks of rows and columns, tasks, and the scratch each worker needs.
//!
//! A worker takes an item (batch entry, column chunk, row chunk), and for each block of k packs one panel of B after
//! the other (some 200 KB, so that it stays in the second-level cache) and passes all tiles of the row chunk over it.
//! A panel is packed again for each row chunk, which costs as much as some ten rows of the product; in return no
//! worker waits for another. Rows of A that cannot be read in place are packed beforehand, by all workers together, for
//! as many rows as a bounded scratch holds; in a batch, or with a very long k, each worker packs those of its item.

use super::micro::{Kernels, Lane};
use super::pack::{GROUP, PackedRows};
use super::{Float, GemmSpec};
use crate::isa::Isa;

/// Lanes in a block of k: enough to make loading and storing the sums cheap, few enough for the panel to stay in the
/// second-level cache.
const BLOCK_LANES: usize = 768;
/// Rows of a chunk at most; bounds the scratch and keeps a task short. Half of it where the worker packs the rows.
const CHUNK_ROWS: usize = 3072;
/// Bytes of rows of A that are packed for all workers at most.
const SHARED_BYTES: usize = 8 << 20;
/// A chunk is not split below these: packing its panels, or its rows, again would cost more than a few percent.
const LEAST_ROWS: usize = 384;
const LEAST_COLS: usize = 256;
/// Columns of a chunk.
const NARROW: usize = 64;
/// Columns of a chunk where the worker packs the rows of A, which is paid once per chunk.
const WIDE: usize = 768;
/// Items worth having for each thread, so that all end at about the same time.
const ITEMS: usize = 4;
/// Items that a large product has in any case, so that few threads share it evenly.
const FEW: usize = 4;
/// Rows and columns of a chunk then, at least.
const FEW_ROWS: usize = GROUP;
const FEW_COLS: usize = 128;
/// Rows for which packing a panel of B is not worth it where it can be read in place.
const PACKED_ROWS: usize = 192;
/// Columns for which packing the rows of A is not worth it where they can be read in place, as they lie transposed.
const PACKED_COLS: usize = 256;
/// Multiply-adds below which a task is not worth handing to another thread: some microseconds.
const TASK_WORK: usize = 1 << 18;
/// Blocks of an odd k in pairs from which on it is worth reading all but the last in place.
const PACKED_LAST: usize = 4;
/// Alignment of the scratch and of its parts, in bytes.
pub(crate) const ALIGN: usize = 64;

/// How the rows of A reach the micro-kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowsOfA {
    /// Read in place; the last block of an odd k in pairs, whose last lane needs a zero, packed by each worker.
    InPlace,
    /// Read in place, as they lie transposed.
    Transposed,
    /// Packed for all workers, this many rows at a time: a whole number of row chunks.
    Shared(usize),
    /// Packed by each worker for its item, one block of k at a time.
    Own,
}

/// The cutting of one product.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub lane: Lane,
    pub a: RowsOfA,
    /// Whole vectors of B are read in place.
    pub b_in_place: bool,
    pub k: KBlocks,
    /// Rows of a chunk, a multiple of [`GROUP`].
    pub rows: usize,
    /// Columns of a chunk, a multiple of every panel's.
    pub cols: usize,
    /// Consecutive items that make a task.
    pub items_per_task: usize,
    /// Sums go through f32 scratch on the way to a bf16 C.
    pub sums: bool,
    /// Bytes of the scratch that all workers share, before theirs.
    pub shared_bytes: usize,
    /// Bytes of one worker's scratch, and where its parts start.
    pub scratch: Scratch,
}

/// The blocks of k.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KBlocks {
    pub k: usize,
    /// Elements of every block but the last: whole lanes.
    pub block: usize,
}

impl KBlocks {
    pub(crate) fn new(lane: Lane, k: usize) -> KBlocks {
        let most = KBlocks::most(lane);
        KBlocks { k, block: k.div_ceil(k.div_ceil(most).max(1)).next_multiple_of(2).max(2) }
    }

    /// Blocks of whole runs of a k that consists of them.
    pub(crate) fn of_runs(lane: Lane, runs: usize, run: usize) -> KBlocks {
        let blocks = runs.div_ceil((KBlocks::most(lane) / run.max(1)).max(1)).max(1);
        KBlocks { k: runs * run, block: (runs.div_ceil(blocks) * run).max(1) }
    }

    /// Elements of a block at most.
    fn most(lane: Lane) -> usize {
        if lane == Lane::Pair { 2 * BLOCK_LANES } else { BLOCK_LANES }
    }

    pub(crate) fn count(self) -> usize {
        self.k.div_ceil(self.block)
    }

    /// Whether rows of A may be read in place in this block.
    pub(crate) fn is_in_place(self, lane: Lane, index: usize) -> bool {
        lane == Lane::F32 || self.get(index).1.is_multiple_of(2)
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
    pub sums: usize,
    pub bytes: usize,
}

impl Plan {
    /// Row chunks of `rows` rows by column chunks by batch entries.
    pub(crate) fn items(&self, spec: &GemmSpec, rows: usize) -> usize {
        spec.batch[0] * spec.batch[1] * rows.div_ceil(self.rows) * spec.n.div_ceil(self.cols)
    }

    /// For a region of `threads` threads.
    pub(crate) fn new(spec: &GemmSpec, isa: Isa, threads: usize) -> Plan {
        let lane = Lane::of(spec.dtype(), isa);
        let k = KBlocks::new(lane, spec.k);
        let in_place = match lane {
            Lane::F32 => spec.a.col_stride == 1,
            Lane::Pair => {
                let even = spec.k.is_multiple_of(2) || k.count() >= PACKED_LAST;
                spec.a.dtype == Float::Bf16 && spec.a.col_stride == 1 && even
            }
            Lane::Widened => false,
        };
        let batch = spec.batch[0] * spec.batch[1];
        let fits = SHARED_BYTES / (4 * lane.count(spec.k)).max(1);
        let own = !in_place && (batch != 1 || spec.n <= NARROW || fits < LEAST_ROWS.min(spec.m));
        let (tallest, wide) = if own { (CHUNK_ROWS / 2, WIDE) } else { (CHUNK_ROWS, NARROW) };
        let tallest = if in_place || own { tallest } else { (tallest.min(fits) / GROUP * GROUP).max(GROUP) };
        let (mut row_chunks, mut col_chunks) = (spec.m.div_ceil(tallest), spec.n.div_ceil(wide));
        let wanted = |others: usize| (ITEMS * threads).div_ceil((batch * others).max(1));
        row_chunks = row_chunks.max(wanted(col_chunks).min(spec.m / LEAST_ROWS));
        col_chunks = col_chunks.max(wanted(row_chunks).min(spec.n / LEAST_COLS));
        if spec.m * spec.n * spec.k >= FEW * FEW * TASK_WORK {
            let more = |others: usize| FEW.div_ceil(batch * others);
            col_chunks = col_chunks.max(more(row_chunks).min(spec.n / FEW_COLS));
            row_chunks = row_chunks.max(more(col_chunks).min(spec.m / FEW_ROWS));
        }
        let rows = spec.m.div_ceil(row_chunks.max(1)).next_multiple_of(GROUP).max(GROUP);
        let cols = spec.n.div_ceil(col_chunks.max(1)).next_multiple_of(NARROW).max(NARROW);
        let work = rows.min(spec.m) * cols.min(spec.n) * spec.k;
        let transposed = lane == Lane::F32 && spec.a.row_stride == 1 && cols <= PACKED_COLS;
        let b_in_place = lane == Lane::F32 && !spec.packed_b && spec.b.col_stride == 1 && rows <= PACKED_ROWS;
        let a = match (in_place, own) {
            (true, _) => RowsOfA::InPlace,
            (_, true) if transposed => RowsOfA::Transposed,
            (_, true) => RowsOfA::Own,
            (_, false) => RowsOfA::Shared((fits / rows).max(1) * rows),
        };

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
        let packed = |rows: usize, k: KBlocks| PackedRows::new(lane, k, rows.min(spec.m)).bytes();
        let scratch = Scratch {
            a: part(if a == RowsOfA::Own || in_place && !k.is_in_place(lane, k.count() - 1) {
                packed(rows, KBlocks::new(lane, k.block.min(spec.k)))
            } else {
                0
            }),
            sums: part(if sums { 4 * rows.min(spec.m) * cols } else { 0 }),
            bytes: 0,
        };
        let shared_bytes = if let RowsOfA::Shared(rows) = a { packed(rows, k) } else { 0 };
        Plan {
            lane,
            a,
            b_in_place,
            k,
            rows,
            cols,
            items_per_task: TASK_WORK.div_ceil(work.max(1)),
            sums,
            shared_bytes,
            scratch: Scratch { bytes, ..scratch },
        }
    }
}
