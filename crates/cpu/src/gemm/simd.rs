//! The few vector operations that the kernels are written in, once per instruction set.
//!
//! A kernel is a generic `#[inline(always)]` body over [`Simd`] and one `#[target_feature]` function per instruction
//! set that calls it; everything is inlined into that function, where the intrinsics become single instructions.

use super::bf16;

/// Vectors of [`Simd::LANES`] f32 sums, and the step that adds products to them.
///
/// # Safety
/// Every function may be called only where the processor has the instruction set, and pointers must be valid for the
/// lanes they are used for; no alignment is needed.
pub(crate) trait Simd {
    /// `LANES` f32.
    type V: Copy;
    /// f32 in a vector.
    const LANES: usize;

    /// All zero.
    unsafe fn zero() -> Self::V;
    /// The 32 bits at `p` in every lane.
    unsafe fn splat(p: *const u32) -> Self::V;
    /// `LANES` lanes from `p`.
    unsafe fn load(p: *const u32) -> Self::V;
    /// The first `n <= LANES` lanes from `p`, the others zero.
    unsafe fn load_part(p: *const u32, n: usize) -> Self::V;
    /// All lanes to `p`.
    unsafe fn store(p: *mut f32, v: Self::V);
    /// The first `n <= LANES` lanes to `p`.
    unsafe fn store_part(p: *mut f32, v: Self::V, n: usize);
    /// The first `n <= LANES` lanes to `p`, rounded to bf16.
    unsafe fn round_part(p: *mut u16, v: Self::V, n: usize);
    /// `sum + a * b`: one fused multiply-add per lane, or the two of a pair of bf16.
    unsafe fn step(sum: Self::V, a: Self::V, b: Self::V) -> Self::V;
    /// As [`Simd::step`] for lanes that are pairs of bf16, without flushing where the instruction set has no such
    /// step: odd elements first, then even ones.
    unsafe fn step_pairs(sum: Self::V, a: Self::V, b: Self::V) -> Self::V;
}

/// Plain Rust: a lane is an f32.
pub(crate) struct Portable;

impl Simd for Portable {
    type V = [f32; 8];
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn zero() -> [f32; 8] {
        [0.0; 8]
    }

    #[inline(always)]
    unsafe fn splat(p: *const u32) -> [f32; 8] {
        // SAFETY: the caller's.
        [f32::from_bits(unsafe { p.read_unaligned() }); 8]
    }

    #[inline(always)]
    unsafe fn load(p: *const u32) -> [f32; 8] {
        // SAFETY: the caller's.
        unsafe { p.cast::<[f32; 8]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn load_part(p: *const u32, n: usize) -> [f32; 8] {
        // SAFETY: the caller's: only lanes below n are read.
        std::array::from_fn(|i| if i < n { unsafe { p.cast::<f32>().add(i).read_unaligned() } } else { 0.0 })
    }

    #[inline(always)]
    unsafe fn store(p: *mut f32, v: [f32; 8]) {
        // SAFETY: the caller's.
        unsafe { p.cast::<[f32; 8]>().write_unaligned(v) };
    }

    #[inline(always)]
    unsafe fn store_part(p: *mut f32, v: [f32; 8], n: usize) {
        for (i, x) in v.into_iter().enumerate().take(n) {
            // SAFETY: the caller's: only lanes below n are written.
            unsafe { p.add(i).write_unaligned(x) };
        }
    }

    #[inline(always)]
    unsafe fn round_part(p: *mut u16, v: [f32; 8], n: usize) {
        for (i, x) in v.into_iter().enumerate().take(n) {
            // SAFETY: the caller's: only lanes below n are written.
            unsafe { p.add(i).write_unaligned(bf16::round(x)) };
        }
    }

    #[inline(always)]
    unsafe fn step(sum: [f32; 8], a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| a[i].mul_add(b[i], sum[i]))
    }

    #[inline(always)]
    unsafe fn step_pairs(sum: [f32; 8], a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        let odd = |v: [f32; 8]| v.map(|x| f32::from_bits(x.to_bits() & 0xffff_0000));
        let even = |v: [f32; 8]| v.map(|x| f32::from_bits(x.to_bits() << 16));
        // SAFETY: the caller's.
        unsafe { Self::step(Self::step(sum, odd(a), odd(b)), even(a), even(b)) }
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512, Avx512Pairs};

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! x86-64. SAFETY of every block below: the caller vouches for the instruction set and the pointers, as
    //! [`Simd`] demands.
    use super::{Simd, bf16};
    use crate::simd::narrow_avx512;
    use std::arch::x86_64::*;

    /// AVX2 with FMA: a lane is an f32.
    pub(crate) struct Avx2;

    /// The first `n` of 8 lanes.
    #[inline(always)]
    unsafe fn mask8(n: usize) -> __m256i {
        // SAFETY: the module's argument.
        unsafe { _mm256_cmpgt_epi32(_mm256_set1_epi32(n as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)) }
    }

    impl Simd for Avx2 {
        type V = __m256;
        const LANES: usize = 8;

        #[inline(always)]
        unsafe fn zero() -> __m256 {
            // SAFETY: the module's argument.
            unsafe { _mm256_setzero_ps() }
        }

        #[inline(always)]
        unsafe fn splat(p: *const u32) -> __m256 {
            // SAFETY: the module's argument.
            unsafe { _mm256_set1_ps(p.cast::<f32>().read_unaligned()) }
        }

        #[inline(always)]
        unsafe fn load(p: *const u32) -> __m256 {
            // SAFETY: the module's argument.
            unsafe { _mm256_loadu_ps(p.cast()) }
        }

        #[inline(always)]
        unsafe fn load_part(p: *const u32, n: usize) -> __m256 {
            // SAFETY: the module's argument.
            unsafe { _mm256_maskload_ps(p.cast(), mask8(n)) }
        }

        #[inline(always)]
        unsafe fn store(p: *mut f32, v: __m256) {
            // SAFETY: the module's argument.
            unsafe { _mm256_storeu_ps(p, v) };
        }

        #[inline(always)]
        unsafe fn store_part(p: *mut f32, v: __m256, n: usize) {
            // SAFETY: the module's argument.
            unsafe { _mm256_maskstore_ps(p, mask8(n), v) };
        }

        #[inline(always)]
        unsafe fn round_part(p: *mut u16, v: __m256, n: usize) {
            // SAFETY: the module's argument; both types are 32 bytes of plain numbers.
            let lanes = unsafe { std::mem::transmute::<__m256, [f32; 8]>(v) }.map(bf16::round);
            // SAFETY: the module's argument: only lanes below n are written.
            unsafe { std::ptr::copy_nonoverlapping(lanes.as_ptr(), p, n.min(8)) };
        }

        #[inline(always)]
        unsafe fn step(sum: __m256, a: __m256, b: __m256) -> __m256 {
            // SAFETY: the module's argument.
            unsafe { _mm256_fmadd_ps(a, b, sum) }
        }

        #[inline(always)]
        unsafe fn step_pairs(sum: __m256, a: __m256, b: __m256) -> __m256 {
            // SAFETY: the module's argument.
            unsafe {
                let (a, b) = (_mm256_castps_si256(a), _mm256_castps_si256(b));
                let top = _mm256_set1_epi32(0xffff_0000u32 as i32);
                let odd = |v| _mm256_castsi256_ps(_mm256_and_si256(v, top));
                let even = |v| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(v));
                Self::step(Self::step(sum, odd(a), odd(b)), even(a), even(b))
            }
        }
    }

    /// AVX-512: a lane is an f32.
    pub(crate) struct Avx512;

    /// AVX-512 BF16: a lane of an operand is a pair of bf16, the even element in the low half.
    pub(crate) struct Avx512Pairs;

    /// The first `n` of 16 lanes.
    #[inline(always)]
    fn mask16(n: usize) -> __mmask16 {
        if n >= 16 { 0xffff } else { (1u16 << n) - 1 }
    }

    impl Simd for Avx512 {
        type V = __m512;
        const LANES: usize = 16;

        #[inline(always)]
        unsafe fn zero() -> __m512 {
            // SAFETY: the module's argument.
            unsafe { _mm512_setzero_ps() }
        }

        #[inline(always)]
        unsafe fn splat(p: *const u32) -> __m512 {
            // SAFETY: the module's argument.
            unsafe { _mm512_set1_ps(p.cast::<f32>().read_unaligned()) }
        }

        #[inline(always)]
        unsafe fn load(p: *const u32) -> __m512 {
            // SAFETY: the module's argument.
            unsafe { _mm512_loadu_ps(p.cast()) }
        }

        #[inline(always)]
        unsafe fn load_part(p: *const u32, n: usize) -> __m512 {
            // SAFETY: the module's argument.
            unsafe { _mm512_maskz_loadu_ps(mask16(n), p.cast()) }
        }

        #[inline(always)]
        unsafe fn store(p: *mut f32, v: __m512) {
            // SAFETY: the module's argument.
            unsafe { _mm512_storeu_ps(p, v) };
        }

        #[inline(always)]
        unsafe fn store_part(p: *mut f32, v: __m512, n: usize) {
            // SAFETY: the module's argument.
            unsafe { _mm512_mask_storeu_ps(p, mask16(n), v) };
        }

        #[inline(always)]
        unsafe fn round_part(p: *mut u16, v: __m512, n: usize) {
            // SAFETY: the module's argument.
            unsafe {
                let half = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(narrow_avx512(v)));
                if n >= 16 {
                    _mm256_storeu_si256(p.cast(), half);
                } else {
                    _mm256_mask_storeu_epi16(p.cast(), mask16(n), half);
                }
            }
        }

        #[inline(always)]
        unsafe fn step(sum: __m512, a: __m512, b: __m512) -> __m512 {
            // SAFETY: the module's argument.
            unsafe { _mm512_fmadd_ps(a, b, sum) }
        }

        #[inline(always)]
        unsafe fn step_pairs(sum: __m512, a: __m512, b: __m512) -> __m512 {
            // SAFETY: the module's argument.
            unsafe {
                let (a, b) = (_mm512_castps_si512(a), _mm512_castps_si512(b));
                let top = _mm512_set1_epi32(0xffff_0000u32 as i32);
                let odd = |v| _mm512_castsi512_ps(_mm512_and_si512(v, top));
                let even = |v| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(v));
                Self::step(Self::step(sum, odd(a), odd(b)), even(a), even(b))
            }
        }
    }

    impl Simd for Avx512Pairs {
        type V = __m512;
        const LANES: usize = 16;

        #[inline(always)]
        unsafe fn zero() -> __m512 {
            // SAFETY: the module's argument.
            unsafe { Avx512::zero() }
        }

        #[inline(always)]
        unsafe fn splat(p: *const u32) -> __m512 {
            // SAFETY: the module's argument.
            unsafe { Avx512::splat(p) }
        }

        #[inline(always)]
        unsafe fn load(p: *const u32) -> __m512 {
            // SAFETY: the module's argument.
            unsafe { Avx512::load(p) }
        }

        #[inline(always)]
        unsafe fn load_part(p: *const u32, n: usize) -> __m512 {
            // SAFETY: the module's argument.
            unsafe { Avx512::load_part(p, n) }
        }

        #[inline(always)]
        unsafe fn store(p: *mut f32, v: __m512) {
            // SAFETY: the module's argument.
            unsafe { Avx512::store(p, v) }
        }

        #[inline(always)]
        unsafe fn store_part(p: *mut f32, v: __m512, n: usize) {
            // SAFETY: the module's argument.
            unsafe { Avx512::store_part(p, v, n) }
        }

        #[inline(always)]
        unsafe fn round_part(p: *mut u16, v: __m512, n: usize) {
            // SAFETY: the module's argument; both types are 32 bytes of plain numbers.
            unsafe {
                // The conversion takes denormals for zero; sums of pairs are none.
                let half = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(v));
                if n >= 16 {
                    _mm256_storeu_si256(p.cast(), half);
                } else {
                    _mm256_mask_storeu_epi16(p.cast(), mask16(n), half);
                }
            }
        }

        #[inline(always)]
        unsafe fn step(sum: __m512, a: __m512, b: __m512) -> __m512 {
            // SAFETY: the module's argument; the vector types are 64 bytes of plain numbers.
            unsafe {
                let (a, b) = (std::mem::transmute::<__m512, __m512bh>(a), std::mem::transmute::<__m512, __m512bh>(b));
                _mm512_dpbf16_ps(sum, a, b)
            }
        }

        #[inline(always)]
        unsafe fn step_pairs(sum: __m512, a: __m512, b: __m512) -> __m512 {
            // SAFETY: the module's argument.
            unsafe { Self::step(sum, a, b) }
        }
    }
}
