//! Packing: operands copied into the order in which the micro-kernel reads them.
//!
//! B goes through panels `[lane][width]`: `width` columns side by side for each lane of k, zero beyond the operand's
//! edge. A is read in place where its rows hold lanes already; otherwise its rows are packed as `[row][lane]`. For bf16
//! lanes f32 elements are rounded.

use super::Float;
use super::bf16::{Lowest, round_operand, widen_flushed};
use super::micro::{Kernels, Lane, ROWS};
use super::plan::{ALIGN, KBlocks};
use super::square::Square;
use crate::isa::Isa;
use crate::simd::{LINE, fetch};
use std::ops::Range;

/// Rows of A that are packed at a time: whole tiles, and whole cache lines of f32.
pub(crate) const GROUP: usize = 8 * ROWS;
/// How many rows of k ahead packing asks for.
const AHEAD: usize = 12;

/// Part of an operand: `k` elements deep, `cols` across.
#[derive(Clone, Copy)]
pub(crate) struct Source {
    pub ptr: *const u8,
    pub dtype: Float,
    pub k: usize,
    /// From one k to the next, in elements.
    pub k_stride: usize,
    pub cols: usize,
    /// From one column to the next, in elements.
    pub col_stride: usize,
}

impl Source {
    /// The operand without its first `k` and columns, `k_len` by `cols` of it.
    ///
    /// # Safety
    /// That part lies inside.
    pub(crate) unsafe fn part(&self, k: usize, k_len: usize, col: usize, cols: usize) -> Source {
        let at = (k * self.k_stride + col * self.col_stride) * self.dtype.bytes();
        // SAFETY: the caller's.
        Source { ptr: unsafe { self.ptr.add(at) }, k: k_len, cols, ..*self }
    }

    #[inline(always)]
    unsafe fn f32(&self, k: usize, col: usize) -> u32 {
        // SAFETY: the caller's: k and col lie inside.
        unsafe { self.ptr.cast::<u32>().add(k * self.k_stride + col * self.col_stride).read_unaligned() }
    }

    #[inline(always)]
    unsafe fn bf16(&self, k: usize, col: usize) -> u16 {
        // SAFETY: the caller's: k and col lie inside.
        unsafe {
            match self.dtype {
                Float::F32 => round_operand(f32::from_bits(self.f32(k, col))),
                Float::Bf16 => self.ptr.cast::<u16>().add(k * self.k_stride + col * self.col_stride).read_unaligned(),
            }
        }
    }

    /// The element `at` places behind the first, and what follows it in memory.
    #[inline(always)]
    unsafe fn at<T>(&self, at: usize) -> *const T {
        // SAFETY: the caller's: it lies inside.
        unsafe { self.ptr.cast::<T>().add(at) }
    }

    /// One lane of one column.
    #[inline(always)]
    unsafe fn lane(&self, kind: Lane, lane: usize, col: usize) -> u32 {
        // SAFETY: the caller's: lane and col lie inside; elements beyond an odd k are not read.
        unsafe {
            match kind {
                Lane::F32 => self.f32(lane, col),
                Lane::Pair => {
                    let odd = if 2 * lane + 1 < self.k { self.bf16(2 * lane + 1, col) } else { 0 };
                    u32::from(self.bf16(2 * lane, col)) | u32::from(odd) << 16
                }
                Lane::Widened => {
                    let k = lane ^ 1;
                    if k < self.k { widen_flushed(self.bf16(k, col)) } else { 0 }
                }
            }
        }
    }

    /// Asks for the columns, which are next to each other in memory, [`AHEAD`] after `k`.
    ///
    /// The rows of a wide matrix lie pages apart, where no hardware prefetcher follows.
    #[inline(always)]
    fn fetch(&self, k: usize) {
        let row = self.ptr.wrapping_add((k + AHEAD) * self.k_stride * self.dtype.bytes());
        for line in (0..self.cols * self.dtype.bytes()).step_by(LINE) {
            fetch(row.wrapping_add(line));
        }
    }

    /// Asks for the elements of as many lanes of a column as from `lane` on, some way behind; they are next to each other in
    /// memory.
    #[inline(always)]
    fn fetch_along_k<const LANES: usize>(&self, kind: Lane, lane: usize, col: usize) {
        /// In bytes: what is packed while the memory answers.
        const AHEAD: usize = 1024;
        let lane_bytes = self.dtype.bytes() * if kind == Lane::Pair { 2 } else { 1 };
        let first = self.ptr.wrapping_add(col * self.col_stride * self.dtype.bytes() + lane * lane_bytes + AHEAD);
        for line in (0..LANES * lane_bytes).step_by(LINE) {
            fetch(first.wrapping_add(line));
        }
    }

    /// As [`Source::fetch`], for what one lane is made of.
    #[inline(always)]
    fn fetch_lane(&self, kind: Lane, lane: usize) {
        match kind {
            Lane::F32 | Lane::Widened => self.fetch(lane),
            Lane::Pair => {
                self.fetch(2 * lane);
                self.fetch(2 * lane + 1);
            }
        }
    }

    /// Lanes that need no element beyond k.
    fn whole_lanes(&self, kind: Lane) -> usize {
        match kind {
            Lane::F32 => self.k,
            Lane::Pair => self.k / 2,
            Lane::Widened => self.k / 2 * 2,
        }
    }
}

/// How packed lanes lie in memory.
#[derive(Clone, Copy)]
pub(crate) enum Order {
    /// `[lane][width]`, columns beyond the source's zero; the width is a multiple of the instruction set's vector.
    Panel { width: usize },
    /// `[column][stride]`, lanes beyond the source's not written.
    Rows { stride: usize },
}

/// Packs a source and returns its lowest exponent if the lanes are widened.
///
/// Safety: the instruction set is supported; the source is valid, and so is the destination for lanes and columns in
/// that order.
pub(crate) type Pack = unsafe fn(&Source, Lane, *mut u32, Order) -> Lowest;

/// The packing function of `isa`.
pub(crate) fn packer(isa: Isa) -> Pack {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bf16 => x86::pack_avx512_bf16,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => x86::pack_avx512,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => x86::pack_avx2,
        _ => pack::<8, [u32; 8]>,
    }
}

/// The layout of packed operands: blocks of k, in each the panels, then the lowest exponent of every panel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packed {
    pub lane: Lane,
    pub k: KBlocks,
    /// Columns in all.
    pub cols: usize,
    /// Columns of a full panel, a multiple of the vector.
    pub panel: usize,
    /// Lanes of a vector, to which the last panel is filled up.
    pub vector: usize,
    /// In all, a multiple of [`ALIGN`].
    pub bytes: usize,
}

impl Packed {
    /// `k` by `cols` elements of this type.
    pub(crate) fn new(isa: Isa, dtype: Float, k: KBlocks, cols: usize) -> Packed {
        let lane = Lane::of(dtype, isa);
        let kernels = Kernels::of(isa, lane);
        let (panel, vector) = (kernels.width(), kernels.vector);
        let exponents = k.count() * cols.div_ceil(panel);
        let bytes = 4 * (lane.count(k.k) * cols.next_multiple_of(vector) + exponents);
        Packed { lane, k, cols, panel, vector, bytes: bytes.next_multiple_of(ALIGN) }
    }

    pub(crate) fn panels(&self) -> usize {
        self.cols.div_ceil(self.panel)
    }

    fn panel_cols(&self, panel: usize) -> usize {
        self.panel.min(self.cols - panel * self.panel)
    }

    /// Columns of a panel in memory.
    pub(crate) fn panel_width(&self, panel: usize) -> usize {
        self.panel_cols(panel).next_multiple_of(self.vector)
    }

    /// Where a panel of a block starts, and where its lowest exponent is, in lanes.
    pub(crate) fn at(&self, block: usize, panel: usize) -> (usize, usize) {
        let (first, len) = self.k.get(block);
        let width = self.cols.next_multiple_of(self.vector);
        let start = self.lane.count(first) * width + panel * self.panel * self.lane.count(len);
        (start, self.lane.count(self.k.k) * width + block * self.panels() + panel)
    }

    /// Packs one panel of a block.
    ///
    /// # Safety
    /// As [`Pack`]; the source has `k` by `cols` elements, and `dst` is valid for `bytes`.
    pub(crate) unsafe fn fill(&self, pack: Pack, source: &Source, dst: *mut u32, block: usize, panel: usize) {
        let (first, len) = self.k.get(block);
        let (at, low) = self.at(block, panel);
        // SAFETY: the caller's; the part lies inside the source.
        unsafe {
            let part = source.part(first, len, panel * self.panel, self.panel_cols(panel));
            let lowest = pack(&part, self.lane, dst.add(at), Order::Panel { width: self.panel_width(panel) });
            dst.add(low).write(lowest.0);
        }
    }
}

/// The layout of packed rows of A: for each block of k `[row][lane]`, then the lowest exponent of every [`GROUP`] of
/// rows in every block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PackedRows {
    lane: Lane,
    k: KBlocks,
    rows: usize,
}

impl PackedRows {
    pub(crate) fn new(lane: Lane, k: KBlocks, rows: usize) -> PackedRows {
        PackedRows { lane, k, rows }
    }

    pub(crate) fn groups(&self) -> usize {
        self.rows.div_ceil(GROUP)
    }

    /// From one row to the next, in lanes: an odd number of cache lines, or else the rows of a tile would meet in few
    /// sets of the cache.
    fn stride(&self) -> usize {
        self.lane.count(self.k.block.min(self.k.k)).next_multiple_of(16) | 16
    }

    /// In all, a multiple of [`ALIGN`].
    pub(crate) fn bytes(&self) -> usize {
        let exponents = self.k.count() * self.groups();
        (4 * (self.k.count() * self.rows * self.stride() + exponents)).next_multiple_of(ALIGN)
    }

    /// Where a row of a block starts, in lanes.
    pub(crate) fn at(&self, block: usize, row: usize) -> usize {
        (block * self.rows + row) * self.stride()
    }

    /// Where the lowest exponent of a group is, in lanes.
    pub(crate) fn low(&self, block: usize, group: usize) -> usize {
        self.at(self.k.count(), 0) + block * self.groups() + group
    }

    /// Packs one group of a block; the columns of `source` are the rows.
    ///
    /// # Safety
    /// As [`Pack`]; the source has `k` by `rows` elements, and `dst` is valid for `bytes`.
    pub(crate) unsafe fn fill(&self, pack: Pack, source: &Source, dst: *mut u32, block: usize, group: usize) {
        let (first, len) = self.k.get(block);
        let row = group * GROUP;
        // SAFETY: the caller's; the part lies inside the source.
        unsafe {
            let part = source.part(first, len, row, GROUP.min(self.rows - row));
            let order = Order::Rows { stride: self.stride() };
            let lowest = pack(&part, self.lane, dst.add(self.at(block, row)), order);
            dst.add(self.low(block, group)).write(lowest.0);
        }
    }
}

/// The kind of lane and the element type as constants in each arm: the loops are compiled for them.
#[inline(always)]
unsafe fn pack<const N: usize, V: Square<N>>(src: &Source, kind: Lane, dst: *mut u32, order: Order) -> Lowest {
    // SAFETY: the caller's.
    unsafe {
        let of = |dtype| Source { dtype, ..*src };
        match (kind, src.dtype) {
            (Lane::F32, _) => pack_of::<N, V>(&of(Float::F32), Lane::F32, dst, order),
            (Lane::Pair, Float::Bf16) => pack_of::<N, V>(&of(Float::Bf16), Lane::Pair, dst, order),
            (Lane::Pair, Float::F32) => pack_of::<N, V>(&of(Float::F32), Lane::Pair, dst, order),
            (Lane::Widened, Float::Bf16) => pack_of::<N, V>(&of(Float::Bf16), Lane::Widened, dst, order),
            (Lane::Widened, Float::F32) => pack_of::<N, V>(&of(Float::F32), Lane::Widened, dst, order),
        }
    }
}

#[inline(always)]
unsafe fn pack_of<const N: usize, V: Square<N>>(src: &Source, kind: Lane, dst: *mut u32, order: Order) -> Lowest {
    let (lanes, cols) = (0..kind.count(src.k), 0..src.cols);
    // SAFETY: the caller's; see [`Pack`].
    unsafe {
        match order {
            Order::Panel { width } => {
                if src.cols < width {
                    std::ptr::write_bytes(dst, 0, lanes.len() * width);
                }
                if src.k_stride == 1 {
                    panel_transposed::<N, V>(src, kind, dst, width)
                } else if src.col_stride == 1 {
                    panel_contiguous::<N, V>(src, kind, dst, width)
                } else {
                    one_by_one(src, kind, dst, [width, 1], lanes, cols)
                }
            }
            Order::Rows { stride } => {
                if src.k_stride == 1 {
                    rows_contiguous::<N, V>(src, kind, dst, stride)
                } else if src.col_stride == 1 {
                    rows_transposed::<N, V>(src, kind, dst, stride)
                } else {
                    one_by_one(src, kind, dst, [1, stride], lanes, cols)
                }
            }
        }
    }
}

/// Some lanes of some columns, for any strides; `steps` are the destination's from lane to lane and column to column.
#[inline(always)]
unsafe fn one_by_one(
    src: &Source,
    kind: Lane,
    dst: *mut u32,
    steps: [usize; 2],
    lanes: Range<usize>,
    cols: Range<usize>,
) -> Lowest {
    let mut low = Lowest::NONE;
    for lane in lanes {
        for col in cols.clone() {
            // SAFETY: the caller's.
            unsafe {
                let bits = src.lane(kind, lane, col);
                low = low.with(bits);
                *dst.add(lane * steps[0] + col * steps[1]) = bits;
            }
        }
    }
    low
}

/// Rows next to each other in memory, lane by lane: squares of N lanes by N rows are transposed in registers.
#[inline(always)]
unsafe fn rows_transposed<const N: usize, V: Square<N>>(
    src: &Source,
    kind: Lane,
    dst: *mut u32,
    stride: usize,
) -> Lowest {
    // SAFETY: the caller's; the squares need no element beyond k.
    unsafe {
        let (whole, square) = (src.whole_lanes(kind) / N * N, src.cols / N * N);
        let mut low = [Lowest::NONE; N];
        for lane in (0..whole).step_by(N) {
            for l in lane..lane + N {
                src.fetch_lane(kind, l);
            }
            for col in (0..square).step_by(N) {
                let mut vectors = [V::new([0; N]); N];
                for (l, vector) in vectors.iter_mut().enumerate() {
                    let lanes: [u32; N] = neighbours::<N, V>(src, kind, lane + l, col);
                    note(&mut low, kind, lanes);
                    *vector = V::new(lanes);
                }
                V::transpose(&mut vectors);
                for (c, vector) in vectors.into_iter().enumerate() {
                    vector.store(dst.add((col + c) * stride + lane));
                }
            }
        }
        let lanes = kind.count(src.k);
        let right = one_by_one(src, kind, dst, [1, stride], 0..whole, square..src.cols);
        let below = one_by_one(src, kind, dst, [1, stride], whole..lanes, 0..src.cols);
        low.into_iter().fold(right.and(below), Lowest::and)
    }
}

/// Rows with k next to each other in memory: whole vectors are copied or converted.
#[inline(always)]
unsafe fn rows_contiguous<const N: usize, V: Square<N>>(
    src: &Source,
    kind: Lane,
    dst: *mut u32,
    stride: usize,
) -> Lowest {
    // SAFETY: the caller's; the vectors need no element beyond k.
    unsafe {
        let whole = src.whole_lanes(kind) / N * N;
        let mut low = [Lowest::NONE; N];
        for col in 0..src.cols {
            for lane in (0..whole).step_by(N) {
                let lanes: [u32; N] = along_k::<N, V>(src, kind, lane, col);
                note(&mut low, kind, lanes);
                V::new(lanes).store(dst.add(col * stride + lane));
            }
        }
        let rest = one_by_one(src, kind, dst, [1, stride], whole..kind.count(src.k), 0..src.cols);
        low.into_iter().fold(rest, Lowest::and)
    }
}

/// Takes note of the exponents of lanes, if they are widened.
#[inline(always)]
fn note<const N: usize>(low: &mut [Lowest; N], kind: Lane, lanes: [u32; N]) {
    if kind == Lane::Widened {
        for (low, bits) in low.iter_mut().zip(lanes) {
            *low = low.with(bits);
        }
    }
}

/// `N` lanes of a column, from `lane` on, with k next to each other in memory.
#[inline(always)]
unsafe fn along_k<const N: usize, V: Square<N>>(src: &Source, kind: Lane, lane: usize, col: usize) -> [u32; N] {
    let at = col * src.col_stride;
    // SAFETY: the caller's: the lanes need no element beyond k, and the column lies inside.
    unsafe {
        match kind {
            Lane::F32 => src.ptr.cast::<u32>().add(at + lane).cast::<[u32; N]>().read_unaligned(),
            Lane::Pair => match src.dtype {
                Float::F32 => V::round_pairs(src.at(at + 2 * lane)),
                Float::Bf16 => src.at::<u16>(at + 2 * lane).cast::<[u32; N]>().read_unaligned(),
            },
            Lane::Widened => {
                let halves = halves::<N, V>(src, at + lane);
                std::array::from_fn(|l| widen_flushed(halves[l ^ 1]))
            }
        }
    }
}

/// Columns next to each other in memory: whole vectors are copied or converted.
#[inline(always)]
unsafe fn panel_contiguous<const N: usize, V: Square<N>>(
    src: &Source,
    kind: Lane,
    dst: *mut u32,
    width: usize,
) -> Lowest {
    // SAFETY: the caller's; the lanes read as vectors need no element beyond k.
    unsafe {
        let (whole, vectors) = (src.whole_lanes(kind), src.cols / N * N);
        let mut low = [Lowest::NONE; N];
        let mut rest = Lowest::NONE;
        for lane in 0..whole {
            let dst = dst.add(lane * width);
            src.fetch_lane(kind, lane);
            for col in (0..vectors).step_by(N) {
                let lanes: [u32; N] = neighbours::<N, V>(src, kind, lane, col);
                note(&mut low, kind, lanes);
                V::new(lanes).store(dst.add(col));
            }
            for col in vectors..src.cols {
                let bits = src.lane(kind, lane, col);
                rest = rest.with(bits);
                *dst.add(col) = bits;
            }
        }
        rest = rest.and(one_by_one(src, kind, dst, [width, 1], whole..kind.count(src.k), 0..src.cols));
        low.into_iter().fold(rest, Lowest::and)
    }
}

/// One lane of `N` columns, from `col` on, that are next to each other in memory.
#[inline(always)]
unsafe fn neighbours<const N: usize, V: Square<N>>(src: &Source, kind: Lane, lane: usize, col: usize) -> [u32; N] {
    // SAFETY: the caller's: the lane needs no element beyond k, and the columns lie inside.
    unsafe {
        let at = |k: usize| k * src.k_stride + col;
        match kind {
            Lane::F32 => src.ptr.cast::<u32>().add(lane * src.k_stride + col).cast::<[u32; N]>().read_unaligned(),
            Lane::Pair => match src.dtype {
                Float::F32 => V::pair_rounded(src.at(at(2 * lane)), src.at(at(2 * lane + 1))),
                Float::Bf16 => {
                    let halves = |k| src.at::<u16>(at(k)).cast::<[u16; N]>().read_unaligned();
                    let (even, odd) = (halves(2 * lane), halves(2 * lane + 1));
                    std::array::from_fn(|i| u32::from(even[i]) | u32::from(odd[i]) << 16)
                }
            },
            Lane::Widened => {
                let halves = halves::<N, V>(src, at(lane ^ 1));
                std::array::from_fn(|i| widen_flushed(halves[i]))
            }
        }
    }
}

/// `N` bf16 elements that are next to each other in memory, from the one `at` places behind the first on.
#[inline(always)]
unsafe fn halves<const N: usize, V: Square<N>>(src: &Source, at: usize) -> [u16; N] {
    // SAFETY: the caller's: they lie inside.
    unsafe {
        match src.dtype {
            Float::F32 => {
                let high = V::round(src.at(at));
                std::array::from_fn(|i| (high[i] >> 16) as u16)
            }
            Float::Bf16 => src.at::<u16>(at).cast::<[u16; N]>().read_unaligned(),
        }
    }
}

/// Columns with k next to each other in memory: squares of N lanes by N columns are transposed in registers.
#[inline(always)]
unsafe fn panel_transposed<const N: usize, V: Square<N>>(
    src: &Source,
    kind: Lane,
    dst: *mut u32,
    width: usize,
) -> Lowest {
    // SAFETY: the caller's; whole squares of lanes read no element beyond k, and the width is a multiple of N.
    unsafe {
        let whole = src.whole_lanes(kind) / N * N;
        let mut low = [Lowest::NONE; N];
        for col in (0..src.cols).step_by(N) {
            for lane in (0..whole).step_by(N) {
                let mut vectors = [V::new([0; N]); N];
                for (c, vector) in vectors.iter_mut().enumerate().take(src.cols - col) {
                    src.fetch_along_k::<N>(kind, lane, col + c);
                    let lanes: [u32; N] = along_k::<N, V>(src, kind, lane, col + c);
                    note(&mut low, kind, lanes);
                    *vector = V::new(lanes);
                }
                V::transpose(&mut vectors);
                for (l, vector) in vectors.into_iter().enumerate() {
                    vector.store(dst.add((lane + l) * width + col));
                }
            }
        }
        let rest = one_by_one(src, kind, dst, [width, 1], whole..kind.count(src.k), 0..src.cols);
        low.into_iter().fold(rest, Lowest::and)
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! x86-64. SAFETY of every block below: the caller vouches for the instruction set and the pointers; see
    //! [`super::Pack`].
    use super::super::square::Bf16Square;
    use super::{Lane, Lowest, Order, Source, pack};
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn pack_avx2(src: &Source, kind: Lane, dst: *mut u32, order: Order) -> Lowest {
        // SAFETY: the module's argument.
        unsafe { pack::<8, __m256i>(src, kind, dst, order) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub(super) unsafe fn pack_avx512(src: &Source, kind: Lane, dst: *mut u32, order: Order) -> Lowest {
        // SAFETY: the module's argument.
        unsafe { pack::<16, __m512i>(src, kind, dst, order) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub(super) unsafe fn pack_avx512_bf16(src: &Source, kind: Lane, dst: *mut u32, order: Order) -> Lowest {
        // SAFETY: the module's argument.
        unsafe { pack::<16, Bf16Square>(src, kind, dst, order) }
    }
}
