//! Packing: operands copied into the order in which the micro-kernel reads them.
//!
//! A panel is `[lane][width]`: `width` columns of B (or rows of A) side by side for each lane of k, zero beyond the
//! operand's edge. B always goes through panels. A is read in place where its rows hold lanes already; otherwise its
//! rows go through panels of [`A_WIDTH`], from which the micro-kernel reads a tile's rows at that step.

use super::Float;
use super::bf16::{Lowest, widen_flushed};
use super::micro::{Kernels, Lane, ROWS};
use super::plan::{ALIGN, KBlocks};
use super::simd::fetch;
use crate::isa::Isa;

/// Rows of A in a panel: whole tiles, and whole cache lines of f32.
pub(crate) const A_WIDTH: usize = 8 * ROWS;
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
        unsafe { self.ptr.cast::<u16>().add(k * self.k_stride + col * self.col_stride).read_unaligned() }
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
        for line in (0..self.cols * self.dtype.bytes()).step_by(64) {
            fetch(row.wrapping_add(line));
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

/// Packs a panel `[lanes][width]` and returns its lowest exponent if the lanes are widened.
///
/// Safety: the instruction set is supported; the source is valid, `dst` holds `lanes * width` lanes, and `width` is at
/// least `source.cols` and a multiple of the instruction set's vector.
pub(crate) type Pack = unsafe fn(&Source, Lane, *mut u32, usize) -> Lowest;

/// The packing function of `isa`.
pub(crate) fn packer(isa: Isa) -> Pack {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Bf16 => x86::panel_avx512,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => x86::panel_avx2,
        _ => panel::<8, [u32; 8]>,
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
    /// `k` by `cols` elements in panels of `panel` columns.
    pub(crate) fn new(isa: Isa, dtype: Float, k: usize, cols: usize, panel: usize) -> Packed {
        let lane = Lane::of(dtype, isa);
        let vector = Kernels::of(isa, lane).vector;
        let k = KBlocks::new(lane, k);
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
            let lowest = pack(&part, self.lane, dst.add(at), self.panel_width(panel));
            dst.add(low).write(lowest.0);
        }
    }
}

/// A vector of `N` lanes, and the transposition of `N` of them.
trait Square<const N: usize>: Copy {
    fn new(lanes: [u32; N]) -> Self;
    unsafe fn transpose(rows: &mut [Self; N]);
    unsafe fn store(self, dst: *mut u32);
}

impl Square<8> for [u32; 8] {
    #[inline(always)]
    fn new(lanes: [u32; 8]) -> Self {
        lanes
    }

    #[inline(always)]
    unsafe fn transpose(rows: &mut [Self; 8]) {
        let old = *rows;
        *rows = std::array::from_fn(|i| std::array::from_fn(|j| old[j][i]));
    }

    #[inline(always)]
    unsafe fn store(self, dst: *mut u32) {
        // SAFETY: the caller's.
        unsafe { dst.cast::<[u32; 8]>().write_unaligned(self) };
    }
}

/// The kind of lane as a constant in each arm: the loops are compiled for it.
#[inline(always)]
unsafe fn panel<const N: usize, V: Square<N>>(src: &Source, kind: Lane, dst: *mut u32, width: usize) -> Lowest {
    // SAFETY: the caller's.
    unsafe {
        match kind {
            Lane::F32 => panel_of::<N, V>(src, Lane::F32, dst, width),
            Lane::Pair => panel_of::<N, V>(src, Lane::Pair, dst, width),
            Lane::Widened => panel_of::<N, V>(src, Lane::Widened, dst, width),
        }
    }
}

#[inline(always)]
unsafe fn panel_of<const N: usize, V: Square<N>>(src: &Source, kind: Lane, dst: *mut u32, width: usize) -> Lowest {
    // SAFETY: the caller's; see [`Pack`].
    unsafe {
        if src.cols < width {
            std::ptr::write_bytes(dst, 0, kind.count(src.k) * width);
        }
        if src.k_stride == 1 {
            panel_transposed::<N, V>(src, kind, dst, width)
        } else if src.col_stride == 1 {
            panel_contiguous::<N, V>(src, kind, dst, width)
        } else {
            panel_part(src, kind, dst, width, 0)
        }
    }
}

/// The lanes from `first` on, one by one, for any strides.
#[inline(always)]
unsafe fn panel_part(src: &Source, kind: Lane, dst: *mut u32, width: usize, first: usize) -> Lowest {
    let mut low = Lowest::NONE;
    for lane in first..kind.count(src.k) {
        for col in 0..src.cols {
            // SAFETY: the caller's.
            unsafe {
                let bits = src.lane(kind, lane, col);
                low = low.with(bits);
                *dst.add(lane * width + col) = bits;
            }
        }
    }
    low
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
            match kind {
                Lane::F32 | Lane::Widened => src.fetch(lane),
                Lane::Pair => {
                    src.fetch(2 * lane);
                    src.fetch(2 * lane + 1);
                }
            }
            for col in (0..vectors).step_by(N) {
                let lanes: [u32; N] = neighbours(src, kind, lane, col);
                if kind == Lane::Widened {
                    for (low, bits) in low.iter_mut().zip(lanes) {
                        *low = low.with(bits);
                    }
                }
                V::new(lanes).store(dst.add(col));
            }
            for col in vectors..src.cols {
                let bits = src.lane(kind, lane, col);
                rest = rest.with(bits);
                *dst.add(col) = bits;
            }
        }
        rest = rest.and(panel_part(src, kind, dst, width, whole));
        low.into_iter().fold(rest, Lowest::and)
    }
}

/// One lane of `N` columns, from `col` on, that are next to each other in memory.
#[inline(always)]
unsafe fn neighbours<const N: usize>(src: &Source, kind: Lane, lane: usize, col: usize) -> [u32; N] {
    // SAFETY: the caller's: the lane needs no element beyond k, and the columns lie inside.
    unsafe {
        let halves = |k: usize| src.ptr.cast::<u16>().add(k * src.k_stride + col).cast::<[u16; N]>().read_unaligned();
        match kind {
            Lane::F32 => src.ptr.cast::<u32>().add(lane * src.k_stride + col).cast::<[u32; N]>().read_unaligned(),
            Lane::Pair => {
                let (even, odd) = (halves(2 * lane), halves(2 * lane + 1));
                std::array::from_fn(|i| u32::from(even[i]) | u32::from(odd[i]) << 16)
            }
            Lane::Widened => halves(lane ^ 1).map(widen_flushed),
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
        match kind {
            Lane::F32 | Lane::Pair => {
                squares(src, 4, whole, dst, width, |from| V::new(from.cast::<[u32; N]>().read_unaligned()));
            }
            Lane::Widened => squares(src, 2, whole, dst, width, |from| {
                let lanes = from.cast::<[u16; N]>().read_unaligned();
                let lanes: [u32; N] = std::array::from_fn(|l| widen_flushed(lanes[l ^ 1]));
                for (low, bits) in low.iter_mut().zip(lanes) {
                    *low = low.with(bits);
                }
                V::new(lanes)
            }),
        }
        let rest = panel_part(src, kind, dst, width, whole);
        low.into_iter().fold(rest, Lowest::and)
    }
}

/// The squares of the first `whole` lanes; a lane has `lane_bytes` in memory, and `load` reads N of them.
#[inline(always)]
unsafe fn squares<const N: usize, V: Square<N>>(
    src: &Source,
    lane_bytes: usize,
    whole: usize,
    dst: *mut u32,
    width: usize,
    mut load: impl FnMut(*const u8) -> V,
) {
    /// How far ahead each column is asked for, in bytes.
    const AHEAD: usize = 256;
    let step = src.col_stride * src.dtype.bytes();
    for col in (0..src.cols).step_by(N) {
        for lane in (0..whole).step_by(N) {
            let mut rows = [V::new([0; N]); N];
            // SAFETY: the caller's.
            unsafe {
                let from = src.ptr.add(col * step + lane * lane_bytes);
                if src.cols - col >= N {
                    for (i, row) in rows.iter_mut().enumerate() {
                        fetch(from.wrapping_add(i * step + AHEAD));
                        *row = load(from.add(i * step));
                    }
                } else {
                    for (i, row) in rows.iter_mut().enumerate().take(src.cols - col) {
                        *row = load(from.add(i * step));
                    }
                }
                V::transpose(&mut rows);
                for (l, row) in rows.into_iter().enumerate() {
                    row.store(dst.add((lane + l) * width + col));
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! x86-64. SAFETY of every block below: the caller vouches for the instruction set and the pointers; see
    //! [`super::Pack`].
    use super::{Lane, Lowest, Source, Square, panel};
    use std::arch::x86_64::*;

    impl Square<8> for __m256i {
        #[inline(always)]
        fn new(lanes: [u32; 8]) -> Self {
            // SAFETY: both are 32 bytes of plain numbers.
            unsafe { std::mem::transmute::<[u32; 8], __m256i>(lanes) }
        }

        #[inline(always)]
        unsafe fn transpose(r: &mut [Self; 8]) {
            // SAFETY: the module's argument.
            unsafe {
                let mut t = *r;
                for i in 0..4 {
                    t[2 * i] = _mm256_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
                    t[2 * i + 1] = _mm256_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
                }
                for i in [0, 4] {
                    r[i] = _mm256_unpacklo_epi64(t[i], t[i + 2]);
                    r[i + 1] = _mm256_unpackhi_epi64(t[i], t[i + 2]);
                    r[i + 2] = _mm256_unpacklo_epi64(t[i + 1], t[i + 3]);
                    r[i + 3] = _mm256_unpackhi_epi64(t[i + 1], t[i + 3]);
                }
                // r[i + c] holds column c of rows i..i + 4 in its low half, column c + 4 in its high half.
                for c in 0..4 {
                    t[c] = _mm256_permute2x128_si256::<0x20>(r[c], r[4 + c]);
                    t[c + 4] = _mm256_permute2x128_si256::<0x31>(r[c], r[4 + c]);
                }
                *r = t;
            }
        }

        #[inline(always)]
        unsafe fn store(self, dst: *mut u32) {
            // SAFETY: the module's argument.
            unsafe { _mm256_storeu_si256(dst.cast(), self) };
        }
    }

    impl Square<16> for __m512i {
        #[inline(always)]
        fn new(lanes: [u32; 16]) -> Self {
            // SAFETY: both are 64 bytes of plain numbers.
            unsafe { std::mem::transmute::<[u32; 16], __m512i>(lanes) }
        }

        #[inline(always)]
        unsafe fn transpose(r: &mut [Self; 16]) {
            // SAFETY: the module's argument.
            unsafe {
                let mut t = *r;
                for i in 0..8 {
                    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
                    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
                }
                for i in [0, 4, 8, 12] {
                    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
                    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
                    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
                    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
                }
                // r[i + c] holds, in its quarter q, column 4 q + c of rows i..i + 4.
                for c in 0..4 {
                    let top =
                        [_mm512_shuffle_i32x4::<0x88>(r[c], r[4 + c]), _mm512_shuffle_i32x4::<0xdd>(r[c], r[4 + c])];
                    let low = [
                        _mm512_shuffle_i32x4::<0x88>(r[8 + c], r[12 + c]),
                        _mm512_shuffle_i32x4::<0xdd>(r[8 + c], r[12 + c]),
                    ];
                    for q in 0..2 {
                        t[4 * q + c] = _mm512_shuffle_i32x4::<0x88>(top[q], low[q]);
                        t[4 * q + 8 + c] = _mm512_shuffle_i32x4::<0xdd>(top[q], low[q]);
                    }
                }
                *r = t;
            }
        }

        #[inline(always)]
        unsafe fn store(self, dst: *mut u32) {
            // SAFETY: the module's argument.
            unsafe { _mm512_storeu_si512(dst.cast(), self) };
        }
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn panel_avx2(src: &Source, kind: Lane, dst: *mut u32, width: usize) -> Lowest {
        // SAFETY: the module's argument.
        unsafe { panel::<8, __m256i>(src, kind, dst, width) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub(super) unsafe fn panel_avx512(src: &Source, kind: Lane, dst: *mut u32, width: usize) -> Lowest {
        // SAFETY: the module's argument.
        unsafe { panel::<16, __m512i>(src, kind, dst, width) }
    }
}
