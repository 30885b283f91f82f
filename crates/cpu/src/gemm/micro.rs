//! The micro-kernel: one tile of at most [`ROWS`] rows by one panel of B, held in registers.
//!
//! Each output is one chain of fused multiply-adds in ascending k that starts from zero or from a value in memory, so
//! its bits do not depend on the tile, the blocking or the instruction set. Rows of A are read in place through
//! pointers, one set of pointers per *segment* of k: a matrix needs one segment, a convolution one per filter tap
//! (a padding tap points to zeros). B is a panel `[lane][width]`, `width` being the tile's columns rounded up to whole
//! vectors.
//!
//! 6 rows x 4 vectors leave 8 of AVX-512's 32 registers for B and the broadcast, and 6 row pointers fit the general
//! registers; 6 x 2 is the same for AVX2's 16.

use super::Float;
use super::bf16::{Lowest, fma_flushing};
#[cfg(target_arch = "x86_64")]
use super::simd::{Avx2, Avx512, Avx512Pairs};
use super::simd::{Portable, Simd};
use crate::isa::Isa;
use std::mem::MaybeUninit;

/// Rows of a full tile.
pub(crate) const ROWS: usize = 6;
/// Columns of the widest panel of any instruction set.
const WIDTH: usize = 64;

/// What the 32-bit lanes of packed operands hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    /// One f32.
    F32,
    /// Two neighbouring bf16 along k, the even one in the low half.
    Pair,
    /// One bf16 widened to f32, denormals flushed, the two of each pair along k swapped.
    Widened,
}

impl Lane {
    /// The lanes that `isa` multiplies operands of this type in.
    pub(crate) fn of(dtype: Float, isa: Isa) -> Lane {
        match (dtype, isa) {
            (Float::F32, _) => Lane::F32,
            (Float::Bf16, Isa::Avx512Bf16) => Lane::Pair,
            (Float::Bf16, Isa::Portable | Isa::Avx2 | Isa::Avx512) => Lane::Widened,
        }
    }

    /// Lanes for `k` elements; an odd bf16 k is padded with a zero.
    pub(crate) fn count(self, k: usize) -> usize {
        match self {
            Lane::F32 => k,
            Lane::Pair => k.div_ceil(2),
            Lane::Widened => k.next_multiple_of(2),
        }
    }
}

/// The arguments of a micro-kernel.
pub(crate) struct Tile {
    /// Row pointers `[segments][rows]`.
    pub a: *const *const u32,
    /// Sets of row pointers.
    pub segments: usize,
    /// Lanes of one segment.
    pub lanes: usize,
    /// From one lane of a row to the next: 1, or the rows of an A that is read in place as it lies transposed.
    pub a_step: usize,
    /// Panel of B: `[segments * lanes][width]`.
    pub b: *const u32,
    /// From one lane of the panel to the next: its width, or more where B is read in place.
    pub b_step: usize,
    /// Where the sums start: `[rows][cols]`, or null for zero.
    pub init: *const f32,
    /// From one row of `init` to the next, in elements.
    pub init_stride: usize,
    /// `[rows][cols]`; may be `init`.
    pub out: *mut f32,
    /// From one row of `out` to the next, in elements.
    pub out_stride: usize,
    /// Columns to store, at most `width`.
    pub cols: usize,
}

/// Computes one tile.
///
/// # Safety
/// The processor has the kernel's instruction set, and every pointer of the tile is valid for the kernel's rows and
/// the sizes given.
pub(crate) type Kernel = unsafe fn(&Tile);

/// The micro-kernels of an instruction set for one kind of lane.
pub(crate) struct Kernels {
    /// Lanes of a vector.
    pub vector: usize,
    /// `[vectors - 1][rows - 1]`
    tiles: &'static [[Kernel; ROWS]],
    /// The exact form of [`Lane::Widened`] for blocks where a denormal may occur: rows, columns of the panel.
    flushing: unsafe fn(&Tile, usize, usize),
    /// Rounds `rows` by `cols` sums at a row stride of [`WIDTH`] to bf16: sums, destination and its row stride, rows,
    /// columns.
    round: unsafe fn(*const f32, *mut u16, usize, usize, usize),
}

/// `[$f::<1, $nv>, ..., $f::<ROWS, $nv>]`
macro_rules! rows {
    ($f:ident, $nv:literal) => {
        [$f::<1, $nv>, $f::<2, $nv>, $f::<3, $nv>, $f::<4, $nv>, $f::<5, $nv>, $f::<6, $nv>]
    };
}

impl Kernels {
    /// The kernels of `isa` for `lane`.
    pub(crate) fn of(isa: Isa, lane: Lane) -> &'static Kernels {
        match (isa, lane) {
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512Bf16, Lane::Pair) => &Kernels {
                vector: Avx512Pairs::LANES,
                tiles: &[
                    rows!(avx512_pairs, 1),
                    rows!(avx512_pairs, 2),
                    rows!(avx512_pairs, 3),
                    rows!(avx512_pairs, 4),
                ],
                flushing: flushing_avx512,
                round: round_avx512_pairs,
            },
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512 | Isa::Avx512Bf16, _) => &Kernels {
                vector: Avx512::LANES,
                tiles: &[rows!(avx512, 1), rows!(avx512, 2), rows!(avx512, 3), rows!(avx512, 4)],
                flushing: flushing_avx512,
                round: round_avx512,
            },
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, _) => &Kernels {
                vector: Avx2::LANES,
                tiles: &[rows!(avx2, 1), rows!(avx2, 2)],
                flushing: flushing_avx2,
                round: round_avx2,
            },
            _ => &Kernels {
                vector: Portable::LANES,
                tiles: &[rows!(portable, 1), rows!(portable, 2)],
                flushing,
                round: round_all::<Portable>,
            },
        }
    }

    /// Columns of a full panel.
    pub(crate) fn width(&self) -> usize {
        self.tiles.len() * self.vector
    }

    /// Columns in memory of a panel that holds `cols` columns.
    pub(crate) fn panel_width(&self, cols: usize) -> usize {
        cols.min(self.width()).next_multiple_of(self.vector)
    }

    /// Computes one tile. `low` is the lowest exponents of its A and B if the lanes are [`Lane::Widened`], else `None`.
    ///
    /// # Safety
    /// As [`Kernel`], for `rows` rows and a panel of `panel_width(tile.cols)` columns.
    #[inline]
    pub(crate) unsafe fn run(&self, tile: &Tile, rows: usize, low: Option<[Lowest; 2]>) {
        // SAFETY: the caller's.
        unsafe {
            if low.is_none_or(|[a, b]| a.products_are_normal(b) && init_is_normal(tile, rows)) {
                self.tiles[tile.cols.div_ceil(self.vector) - 1][rows - 1](tile);
            } else {
                (self.flushing)(tile, rows, self.panel_width(tile.cols));
            }
        }
    }

    /// As [`Kernels::run`], but the result is rounded to bf16 and stored at `out` instead of `tile.out`.
    ///
    /// (The rounding is kept out of the micro-kernel, where its constants would take registers from the sums.)
    ///
    /// # Safety
    /// As [`Kernels::run`]; `out` is valid for `rows` rows of `tile.cols` columns at a row stride of `tile.out_stride`.
    #[inline]
    pub(crate) unsafe fn run_rounded(&self, tile: &Tile, out: *mut u16, rows: usize, low: Option<[Lowest; 2]>) {
        let mut sums = MaybeUninit::<[f32; ROWS * WIDTH]>::uninit();
        let sums = sums.as_mut_ptr().cast::<f32>();
        // SAFETY: the caller's; the sums have room for the largest tile, and are read only where the kernel wrote.
        unsafe {
            self.run(&Tile { out: sums, out_stride: WIDTH, ..*tile }, rows, low);
            (self.round)(sums, out, tile.out_stride, rows, tile.cols);
        }
    }
}

/// Whether sums may start from `tile.init` and stay multiples of 2^-126.
unsafe fn init_is_normal(tile: &Tile, rows: usize) -> bool {
    let mut lowest = Lowest::NONE;
    if !tile.init.is_null() {
        for i in 0..rows {
            for j in 0..tile.cols {
                // SAFETY: the caller vouches for `rows` rows of `cols` columns.
                lowest = lowest.with(unsafe { *tile.init.add(i * tile.init_stride + j) }.to_bits());
            }
        }
    }
    lowest.sums_are_normal()
}

#[inline(always)]
unsafe fn tile<S: Simd, const R: usize, const NV: usize>(t: &Tile) {
    // SAFETY: the caller vouches for the instruction set and that the tile's pointers hold for R rows, NV vectors.
    unsafe {
        let full = t.cols >= NV * S::LANES;
        let part = |j: usize| t.cols.saturating_sub(j * S::LANES).min(S::LANES);
        let mut sums = [[S::zero(); NV]; R];
        if !t.init.is_null() {
            for (i, row) in sums.iter_mut().enumerate() {
                for (j, sum) in row.iter_mut().enumerate() {
                    let at = t.init.add(i * t.init_stride + j * S::LANES).cast();
                    *sum = if full { S::load(at) } else { S::load_part(at, part(j)) };
                }
            }
        }
        let (mut b, a_step, b_step) = (t.b, t.a_step, t.b_step);
        for segment in 0..t.segments {
            let mut a = [std::ptr::null::<u32>(); R];
            for (i, a) in a.iter_mut().enumerate() {
                *a = *t.a.add(segment * R + i);
            }
            for lane in 0..t.lanes {
                let mut bs = [S::zero(); NV];
                for (j, bj) in bs.iter_mut().enumerate() {
                    *bj = S::load(b.add(j * S::LANES));
                }
                for i in 0..R {
                    let ai = S::splat(a[i].add(lane * a_step));
                    for j in 0..NV {
                        sums[i][j] = S::step(sums[i][j], ai, bs[j]);
                    }
                }
                b = b.add(b_step);
            }
        }
        for (i, row) in sums.iter().enumerate() {
            for (j, sum) in row.iter().enumerate() {
                let at = t.out.add(i * t.out_stride + j * S::LANES);
                if full {
                    S::store(at, *sum);
                } else {
                    S::store_part(at, *sum, part(j));
                }
            }
        }
    }
}

unsafe fn portable<const R: usize, const NV: usize>(t: &Tile) {
    // SAFETY: the caller's; this instruction set is every processor's.
    unsafe { tile::<Portable, R, NV>(t) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2<const R: usize, const NV: usize>(t: &Tile) {
    // SAFETY: the caller's.
    unsafe { tile::<Avx2, R, NV>(t) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn avx512<const R: usize, const NV: usize>(t: &Tile) {
    // SAFETY: the caller's.
    unsafe { tile::<Avx512, R, NV>(t) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn avx512_pairs<const R: usize, const NV: usize>(t: &Tile) {
    // SAFETY: the caller's.
    unsafe { tile::<Avx512Pairs, R, NV>(t) }
}

#[inline(always)]
unsafe fn flushing(t: &Tile, rows: usize, width: usize) {
    // SAFETY: the caller vouches that the tile's pointers hold for these sizes.
    unsafe {
        for i in 0..rows {
            let mut sums = [0.0f32; WIDTH];
            let sums = &mut sums[..width];
            if !t.init.is_null() {
                std::ptr::copy_nonoverlapping(t.init.add(i * t.init_stride), sums.as_mut_ptr(), t.cols);
            }
            for segment in 0..t.segments {
                let a = *t.a.add(segment * rows + i);
                for lane in 0..t.lanes {
                    let a = f32::from_bits(a.add(lane * t.a_step).read_unaligned());
                    let b = t.b.add((segment * t.lanes + lane) * t.b_step).cast::<f32>();
                    for (j, sum) in sums.iter_mut().enumerate() {
                        *sum = fma_flushing(a, *b.add(j), *sum);
                    }
                }
            }
            for (j, &sum) in sums.iter().enumerate().take(t.cols) {
                *t.out.add(i * t.out_stride + j) = sum;
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn flushing_avx2(t: &Tile, rows: usize, width: usize) {
    // SAFETY: the caller's.
    unsafe { flushing(t, rows, width) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn flushing_avx512(t: &Tile, rows: usize, width: usize) {
    // SAFETY: the caller's.
    unsafe { flushing(t, rows, width) }
}

#[inline(always)]
unsafe fn round_all<S: Simd>(sums: *const f32, out: *mut u16, out_stride: usize, rows: usize, cols: usize) {
    for i in 0..rows {
        for j in (0..cols).step_by(S::LANES) {
            let part = (cols - j).min(S::LANES);
            // SAFETY: the caller vouches for the instruction set and for `rows` rows of `cols` columns.
            unsafe {
                let lanes = S::load_part(sums.add(i * WIDTH + j).cast(), part);
                S::round_part(out.add(i * out_stride + j), lanes, part);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn round_avx2(sums: *const f32, out: *mut u16, out_stride: usize, rows: usize, cols: usize) {
    // SAFETY: the caller's.
    unsafe { round_all::<Avx2>(sums, out, out_stride, rows, cols) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn round_avx512(sums: *const f32, out: *mut u16, out_stride: usize, rows: usize, cols: usize) {
    // SAFETY: the caller's.
    unsafe { round_all::<Avx512>(sums, out, out_stride, rows, cols) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn round_avx512_pairs(sums: *const f32, out: *mut u16, out_stride: usize, rows: usize, cols: usize) {
    // SAFETY: the caller's.
    unsafe { round_all::<Avx512Pairs>(sums, out, out_stride, rows, cols) }
}
