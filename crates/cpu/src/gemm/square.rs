//! Vectors of lanes, and squares of them transposed in registers.

use super::bf16;

#[cfg(target_arch = "x86_64")]
pub(super) use x86::Bf16Square;

/// A vector of `N` lanes, and the transposition of `N` of them.
pub(super) trait Square<const N: usize>: Copy {
    fn new(lanes: [u32; N]) -> Self;
    unsafe fn transpose(rows: &mut [Self; N]);
    unsafe fn store(self, dst: *mut u32);

    /// `N` floats rounded to bf16, as the upper halves of lanes.
    #[inline(always)]
    unsafe fn round(from: *const f32) -> [u32; N] {
        let mut lanes = [0; N];
        for (i, lane) in lanes.iter_mut().enumerate() {
            // SAFETY: the caller's.
            *lane = u32::from(bf16::round_operand(unsafe { from.add(i).read_unaligned() })) << 16;
        }
        lanes
    }

    /// Lanes of `N` even and `N` odd floats, rounded to bf16.
    #[inline(always)]
    unsafe fn pair_rounded(even: *const f32, odd: *const f32) -> [u32; N] {
        // SAFETY: the caller's.
        let (even, mut lanes) = unsafe { (Self::round(even), Self::round(odd)) };
        for (lane, even) in lanes.iter_mut().zip(even) {
            *lane |= even >> 16;
        }
        lanes
    }

    /// Lanes of `2 N` floats, even and odd ones in turn, rounded to bf16.
    #[inline(always)]
    unsafe fn round_pairs(from: *const f32) -> [u32; N] {
        let mut lanes = [0; N];
        for (i, lane) in lanes.iter_mut().enumerate() {
            // SAFETY: the caller's.
            let [even, odd] = unsafe { [from.add(2 * i).read_unaligned(), from.add(2 * i + 1).read_unaligned()] };
            *lane = u32::from(bf16::round_operand(even)) | u32::from(bf16::round_operand(odd)) << 16;
        }
        lanes
    }
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

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! x86-64. SAFETY of every block below: the caller vouches for the instruction set and the pointers.
    use super::Square;
    use crate::simd::narrow_avx512;
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

    #[inline(always)]
    unsafe fn rounded(from: *const f32) -> __m512i {
        const DENORMAL: i32 = 0x20;
        // SAFETY: the module's argument.
        unsafe {
            let x = _mm512_loadu_ps(from);
            let denormal = _mm512_fpclass_ps_mask::<DENORMAL>(x);
            let sign = _mm512_set1_ps(-0.0);
            narrow_avx512(_mm512_mask_and_ps(x, denormal, x, sign))
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

        #[inline(always)]
        unsafe fn round(from: *const f32) -> [u32; 16] {
            // SAFETY: the module's argument; both types are 64 bytes of plain numbers.
            unsafe {
                let high = _mm512_and_si512(rounded(from), _mm512_set1_epi32(0xffff_0000u32 as i32));
                std::mem::transmute::<__m512i, [u32; 16]>(high)
            }
        }

        #[inline(always)]
        unsafe fn pair_rounded(even: *const f32, odd: *const f32) -> [u32; 16] {
            // SAFETY: as in `round`.
            unsafe {
                let (even, odd) = (_mm512_srli_epi32::<16>(rounded(even)), rounded(odd));
                let pairs = _mm512_mask_blend_epi16(0xaaaa_aaaa, even, odd);
                std::mem::transmute::<__m512i, [u32; 16]>(pairs)
            }
        }

        #[inline(always)]
        unsafe fn round_pairs(from: *const f32) -> [u32; 16] {
            /// The upper halves of 32 lanes.
            const UPPER: [u16; 32] = {
                let mut upper = [0; 32];
                let mut i = 0;
                while i < 32 {
                    upper[i] = 2 * i as u16 + 1;
                    i += 1;
                }
                upper
            };
            // SAFETY: as in `round`.
            unsafe {
                let upper = std::mem::transmute::<[u16; 32], __m512i>(UPPER);
                let pairs = _mm512_permutex2var_epi16(rounded(from), upper, rounded(from.add(16)));
                std::mem::transmute::<__m512i, [u32; 16]>(pairs)
            }
        }
    }

    /// Rounds with the processor's conversion.
    #[derive(Clone, Copy)]
    #[repr(transparent)]
    pub struct Bf16Square(__m512i);

    /// 32 floats, each the nearest bf16.
    #[inline(always)]
    unsafe fn converted(first: *const f32, second: *const f32) -> __m512i {
        // SAFETY: the module's argument; both types are 64 bytes of plain numbers.
        unsafe {
            let both = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(second), _mm512_loadu_ps(first));
            std::mem::transmute::<__m512bh, __m512i>(both)
        }
    }

    impl Square<16> for Bf16Square {
        #[inline(always)]
        fn new(lanes: [u32; 16]) -> Self {
            Bf16Square(Square::new(lanes))
        }

        #[inline(always)]
        unsafe fn transpose(rows: &mut [Self; 16]) {
            // SAFETY: a transparent wrapper.
            unsafe { Square::transpose(&mut *std::ptr::from_mut(rows).cast::<[__m512i; 16]>()) };
        }

        #[inline(always)]
        unsafe fn store(self, dst: *mut u32) {
            // SAFETY: the module's argument.
            unsafe { self.0.store(dst) };
        }

        #[inline(always)]
        unsafe fn pair_rounded(even: *const f32, odd: *const f32) -> [u32; 16] {
            /// Lane i of the first half, then lane i of the second.
            const IN_TURN: [u16; 32] = {
                let mut turn = [0; 32];
                let mut i = 0;
                while i < 32 {
                    turn[i] = (i / 2 + i % 2 * 16) as u16;
                    i += 1;
                }
                turn
            };
            // SAFETY: as in `converted`.
            unsafe {
                let turn = std::mem::transmute::<[u16; 32], __m512i>(IN_TURN);
                std::mem::transmute::<__m512i, [u32; 16]>(_mm512_permutexvar_epi16(turn, converted(even, odd)))
            }
        }

        #[inline(always)]
        unsafe fn round_pairs(from: *const f32) -> [u32; 16] {
            // SAFETY: as in `converted`.
            unsafe { std::mem::transmute::<__m512i, [u32; 16]>(converted(from, from.add(16))) }
        }
    }
}
