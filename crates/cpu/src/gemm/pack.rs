//! Packing: operands copied into the order in which the micro-kernel reads them.
//!
//! A panel is `[lane][width]`: `width` columns of B (or rows of A) side by side for each lane of k, zero beyond the
//! operand's edge. B always goes through panels. A is read in place where its rows hold lanes already; it is packed
//! in panels of [`ROWS`] where k is not its contiguous direction, and converted row by row where only the element
//! type differs.

use super::Float;
use super::bf16::{Lowest, widen_flushed};
use super::micro::{Lane, ROWS};
use super::simd::fetch;
use crate::isa::Isa;

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

    /// Asks for `bytes` bytes of one k of the columns, which are next to each other in memory, [`AHEAD`] after `k`.
    ///
    /// The rows of a wide matrix lie pages apart, where no hardware prefetcher follows.
    #[inline(always)]
    fn fetch(&self, k: usize, bytes: usize) {
        let row = self.ptr.wrapping_add((k + AHEAD) * self.k_stride * self.dtype.bytes());
        for line in (0..bytes).step_by(64) {
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

/// The packing functions of an instruction set.
#[derive(Clone, Copy)]
pub(crate) struct Packers {
    /// One panel `[lanes][width]`; returns the lowest exponent if the lanes are widened.
    ///
    /// Safety: the instruction set is supported; the source is valid, `dst` holds `lanes * width` lanes, and `width`
    /// is at least `source.cols` and a multiple of the instruction set's vector.
    pub panel: unsafe fn(&Source, Lane, *mut u32, usize) -> Lowest,
    /// Panels `[tile][lanes][rows of the tile]` of [`ROWS`] columns each; `low` (one per tile) as for `panel`.
    ///
    /// Safety: the instruction set is supported; the source is valid and `dst` holds `lanes * cols` lanes.
    pub tiles: unsafe fn(&Source, Lane, *mut u32, &mut [Lowest]),
    /// Rows `[cols][lanes]`; `low` (one per [`ROWS`] columns) as for `panel`.
    ///
    /// Safety: as for `tiles`.
    pub rows: unsafe fn(&Source, Lane, *mut u32, &mut [Lowest]),
}

impl Packers {
    /// The packing functions of `isa`.
    pub(crate) fn of(isa: Isa) -> Packers {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Bf16 => {
                Packers { panel: x86::panel_avx512, tiles: x86::tiles_avx512, rows: x86::rows_avx512 }
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => Packers { panel: x86::panel_avx2, tiles: x86::tiles_avx2, rows: x86::rows_avx2 },
            _ => Packers { panel: panel::<8, [u32; 8]>, tiles, rows },
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

#[inline(always)]
unsafe fn panel<const N: usize, V: Square<N>>(src: &Source, kind: Lane, dst: *mut u32, width: usize) -> Lowest {
    // SAFETY: the caller's; see `Packers::panel`.
    unsafe {
        if src.cols < width {
            std::ptr::write_bytes(dst, 0, kind.count(src.k) * width);
        }
        if src.k_stride == 1 {
            panel_transposed::<N, V>(src, kind, dst, width)
        } else if src.col_stride == 1 {
            panel_contiguous(src, kind, dst, width)
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

/// Columns next to each other in memory: whole rows are copied or converted.
#[inline(always)]
unsafe fn panel_contiguous(src: &Source, kind: Lane, dst: *mut u32, width: usize) -> Lowest {
    // SAFETY: the caller's; the lanes handled here read no element beyond k.
    unsafe {
        let whole = src.whole_lanes(kind);
        let mut low = Lowest::NONE;
        for lane in 0..whole {
            let dst = dst.add(lane * width);
            match kind {
                Lane::F32 => {
                    src.fetch(lane, 4 * src.cols);
                    let row = src.ptr.cast::<u32>().add(lane * src.k_stride);
                    std::ptr::copy_nonoverlapping(row, dst, src.cols);
                }
                Lane::Pair => {
                    src.fetch(2 * lane, 2 * src.cols);
                    src.fetch(2 * lane + 1, 2 * src.cols);
                    let even = src.ptr.cast::<u16>().add(2 * lane * src.k_stride);
                    let odd = even.add(src.k_stride);
                    for col in 0..src.cols {
                        let (even, odd) = (even.add(col).read_unaligned(), odd.add(col).read_unaligned());
                        *dst.add(col) = u32::from(even) | u32::from(odd) << 16;
                    }
                }
                Lane::Widened => {
                    src.fetch(lane, 2 * src.cols);
                    let row = src.ptr.cast::<u16>().add((lane ^ 1) * src.k_stride);
                    for col in 0..src.cols {
                        let bits = widen_flushed(row.add(col).read_unaligned());
                        low = low.with(bits);
                        *dst.add(col) = bits;
                    }
                }
            }
        }
        Lowest(low.0.min(panel_part(src, kind, dst, width, whole).0))
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
        Lowest(low.into_iter().fold(rest.0, |low, l| low.min(l.0)))
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

/// Tiles packed side by side, so that whole cache lines of a row of k are used at once.
const GROUP: usize = 8;

/// One lane of `GROUP * ROWS` columns that are next to each other in memory.
#[inline(always)]
unsafe fn line(src: &Source, kind: Lane, lane: usize, low: &mut [Lowest; GROUP * ROWS]) -> [u32; GROUP * ROWS] {
    // SAFETY: the caller's: the lane is whole.
    unsafe {
        let halves =
            |k: usize| src.ptr.cast::<u16>().add(k * src.k_stride).cast::<[u16; GROUP * ROWS]>().read_unaligned();
        match kind {
            Lane::F32 => {
                src.fetch(lane, 4 * GROUP * ROWS);
                src.ptr.cast::<u32>().add(lane * src.k_stride).cast::<[u32; GROUP * ROWS]>().read_unaligned()
            }
            Lane::Pair => {
                src.fetch(2 * lane, 2 * GROUP * ROWS);
                src.fetch(2 * lane + 1, 2 * GROUP * ROWS);
                let (even, odd) = (halves(2 * lane), halves(2 * lane + 1));
                std::array::from_fn(|i| u32::from(even[i]) | u32::from(odd[i]) << 16)
            }
            Lane::Widened => {
                src.fetch(lane, 2 * GROUP * ROWS);
                let line = halves(lane ^ 1).map(widen_flushed);
                for (low, &bits) in low.iter_mut().zip(&line) {
                    *low = low.with(bits);
                }
                line
            }
        }
    }
}

#[inline(always)]
unsafe fn tiles(src: &Source, kind: Lane, dst: *mut u32, low: &mut [Lowest]) {
    // SAFETY: the caller's; see `Packers::tiles`.
    unsafe {
        let lanes = kind.count(src.k);
        low.fill(Lowest::NONE);
        let grouped = if src.col_stride == 1 { src.cols / (GROUP * ROWS) * GROUP } else { 0 };
        for group in (0..grouped).step_by(GROUP) {
            let dst = dst.add(group * ROWS * lanes);
            let src = src.part(0, src.k, group * ROWS, GROUP * ROWS);
            let whole = src.whole_lanes(kind);
            // One lowest exponent serves the group: a lower one than a tile's own costs time, not correctness.
            let mut lowest = [Lowest::NONE; GROUP * ROWS];
            for lane in 0..whole {
                let line = line(&src, kind, lane, &mut lowest);
                for (tile, part) in line.as_chunks::<ROWS>().0.iter().enumerate() {
                    dst.add((tile * lanes + lane) * ROWS).cast::<[u32; ROWS]>().write_unaligned(*part);
                }
            }
            for tile in 0..GROUP {
                let part = src.part(0, src.k, tile * ROWS, ROWS);
                let rest = panel_part(&part, kind, dst.add(tile * ROWS * lanes), ROWS, whole);
                low[group + tile] = lowest.iter().fold(rest, |low, l| Lowest(low.0.min(l.0)));
            }
        }
        for (tile, low) in low.iter_mut().enumerate().skip(grouped) {
            let first = tile * ROWS;
            let part = src.part(0, src.k, first, ROWS.min(src.cols - first));
            *low = panel_part(&part, kind, dst.add(first * lanes), part.cols, 0);
        }
    }
}

#[inline(always)]
unsafe fn rows(src: &Source, kind: Lane, dst: *mut u32, low: &mut [Lowest]) {
    // SAFETY: the caller's; see `Packers::rows`. Only whole lanes are read as neighbours.
    unsafe {
        let (lanes, whole) = (kind.count(src.k), src.whole_lanes(kind));
        low.fill(Lowest::NONE);
        for row in 0..src.cols {
            let dst = dst.add(row * lanes);
            let from = src.ptr.cast::<u16>().add(row * src.col_stride);
            let low = &mut low[row / ROWS];
            let whole = if kind == Lane::Widened && src.k_stride == 1 { whole } else { 0 };
            for lane in (0..whole).step_by(2) {
                let pair = [
                    widen_flushed(from.add(lane + 1).read_unaligned()),
                    widen_flushed(from.add(lane).read_unaligned()),
                ];
                *low = low.with(pair[0]).with(pair[1]);
                dst.add(lane).cast::<[u32; 2]>().write_unaligned(pair);
            }
            for lane in whole..lanes {
                let bits = src.lane(kind, lane, row);
                *low = low.with(bits);
                *dst.add(lane) = bits;
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! x86-64. SAFETY of every block below: the caller vouches for the instruction set and the pointers; see
    //! [`super::Packers`].
    use super::{Lane, Lowest, Source, Square, panel, rows, tiles};
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

    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn tiles_avx2(src: &Source, kind: Lane, dst: *mut u32, low: &mut [Lowest]) {
        // SAFETY: the module's argument.
        unsafe { tiles(src, kind, dst, low) }
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn rows_avx2(src: &Source, kind: Lane, dst: *mut u32, low: &mut [Lowest]) {
        // SAFETY: the module's argument.
        unsafe { rows(src, kind, dst, low) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub(super) unsafe fn panel_avx512(src: &Source, kind: Lane, dst: *mut u32, width: usize) -> Lowest {
        // SAFETY: the module's argument.
        unsafe { panel::<16, __m512i>(src, kind, dst, width) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub(super) unsafe fn tiles_avx512(src: &Source, kind: Lane, dst: *mut u32, low: &mut [Lowest]) {
        // SAFETY: the module's argument.
        unsafe { tiles(src, kind, dst, low) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub(super) unsafe fn rows_avx512(src: &Source, kind: Lane, dst: *mut u32, low: &mut [Lowest]) {
        // SAFETY: the module's argument.
        unsafe { rows(src, kind, dst, low) }
    }
}
