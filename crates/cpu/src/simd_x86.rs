//! [`Lanes`] as two AVX2 registers and as one AVX-512 register.
//!
//! The methods are safe to name but only correct to run on a processor with the instruction set; the types are
//! private to this crate's dispatch, and every value of them is made inside [`Lanes::call`], whose caller vouches.

use std::arch::x86_64::*;

use super::{LANES, Lanes, Task};

/// Two registers of eight lanes: AVX2 with FMA.
#[derive(Clone, Copy)]
pub struct Avx2(__m256, __m256);

/// One register of sixteen lanes: AVX-512 F, BW, DQ, VL.
#[derive(Clone, Copy)]
pub struct Avx512(__m512);

#[target_feature(enable = "avx2,fma")]
fn run_avx2<T: Task>(task: T) -> T::Output {
    task.run::<Avx2>()
}

#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
fn run_avx512<T: Task>(task: T) -> T::Output {
    task.run::<Avx512>()
}

/// Rounds eight lanes to bfloat16, each in the low half of its lane.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn narrow_avx2(x: __m256) -> __m256i {
    let bits = _mm256_castps_si256(x);
    let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
    let even = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x40_0000));
    let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(x, x));
    _mm256_srli_epi32::<16>(_mm256_blendv_epi8(even, quiet, nan))
}

/// Rounds sixteen lanes to bfloat16, each in the high half of its lane; the low halves are anything.
///
/// The processor's own conversion flushes denormals, the other instruction sets cannot.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(crate) fn narrow_avx512(x: __m512) -> __m512i {
    let bits = _mm512_castps_si512(x);
    let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
    let even = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
    _mm512_mask_or_epi32(even, nan, bits, _mm512_set1_epi32(0x40_0000))
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn sum_avx2(eight: __m256) -> f32 {
    let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}

/// The columns of an 8 x 8 block of rows.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn transpose_avx2(r: [__m256; 8]) -> [__m256; 8] {
    let mut out = [_mm256_setzero_ps(); 8];
    let mut pairs = out;
    for i in 0..4 {
        pairs[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        pairs[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    // Column `j` of rows 0..4 in the low half and column `4 + j` in the high half; then the same of rows 4..8.
    let mut fours = out;
    for i in [0, 4] {
        fours[i] = _mm256_shuffle_ps::<0x44>(pairs[i], pairs[i + 2]);
        fours[i + 1] = _mm256_shuffle_ps::<0xee>(pairs[i], pairs[i + 2]);
        fours[i + 2] = _mm256_shuffle_ps::<0x44>(pairs[i + 1], pairs[i + 3]);
        fours[i + 3] = _mm256_shuffle_ps::<0xee>(pairs[i + 1], pairs[i + 3]);
    }
    for j in 0..4 {
        out[j] = _mm256_permute2f128_ps::<0x20>(fours[j], fours[4 + j]);
        out[4 + j] = _mm256_permute2f128_ps::<0x31>(fours[j], fours[4 + j]);
    }
    out
}

/// The columns of a 16 x 16 block of rows.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose_avx512(r: [__m512; LANES]) -> [__m512; LANES] {
    let mut out = [_mm512_setzero_ps(); LANES];
    let mut pairs = out;
    for i in 0..8 {
        pairs[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        pairs[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    // Quarter `q` of `fours[4 i + j]`: column `4 q + j` of rows `4 i..4 i + 4`.
    let mut fours = out;
    for i in [0, 4, 8, 12] {
        fours[i] = _mm512_shuffle_ps::<0x44>(pairs[i], pairs[i + 2]);
        fours[i + 1] = _mm512_shuffle_ps::<0xee>(pairs[i], pairs[i + 2]);
        fours[i + 2] = _mm512_shuffle_ps::<0x44>(pairs[i + 1], pairs[i + 3]);
        fours[i + 3] = _mm512_shuffle_ps::<0xee>(pairs[i + 1], pairs[i + 3]);
    }
    for j in 0..4 {
        let even_low = _mm512_shuffle_f32x4::<0x88>(fours[j], fours[4 + j]);
        let even_high = _mm512_shuffle_f32x4::<0x88>(fours[8 + j], fours[12 + j]);
        let odd_low = _mm512_shuffle_f32x4::<0xdd>(fours[j], fours[4 + j]);
        let odd_high = _mm512_shuffle_f32x4::<0xdd>(fours[8 + j], fours[12 + j]);
        out[j] = _mm512_shuffle_f32x4::<0x88>(even_low, even_high);
        out[4 + j] = _mm512_shuffle_f32x4::<0x88>(odd_low, odd_high);
        out[8 + j] = _mm512_shuffle_f32x4::<0xdd>(even_low, even_high);
        out[12 + j] = _mm512_shuffle_f32x4::<0xdd>(odd_low, odd_high);
    }
    out
}

impl Lanes for Avx2 {
    const TILE: usize = 1;

    unsafe fn call<T: Task>(task: T) -> T::Output {
        // SAFETY: as the caller says.
        unsafe { run_avx2(task) }
    }
    #[inline(always)]
    fn splat(x: f32) -> Self {
        // SAFETY: only reached below `call`; so in all methods here.
        unsafe { Avx2(_mm256_set1_ps(x), _mm256_set1_ps(x)) }
    }
    #[inline(always)]
    fn to_array(self) -> [f32; LANES] {
        let mut lanes = [0.0; LANES];
        // SAFETY: sixteen places.
        unsafe { self.store(lanes.as_mut_ptr()) };
        lanes
    }
    #[inline(always)]
    fn from_array(lanes: [f32; LANES]) -> Self {
        // SAFETY: sixteen values.
        unsafe { Self::load(lanes.as_ptr()) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: as the caller says.
        unsafe { Avx2(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: as the caller says.
        unsafe {
            _mm256_storeu_ps(to, self.0);
            _mm256_storeu_ps(to.add(8), self.1);
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        // SAFETY: as the caller says.
        unsafe {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.add(8).cast()));
            Avx2(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)), _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut u16) {
        // SAFETY: as the caller says.
        unsafe {
            // Packing works within 128-bit halves; the permutation puts the quarters in order.
            let mixed = _mm256_packus_epi32(narrow_avx2(self.0), narrow_avx2(self.1));
            _mm256_storeu_si256(to.cast(), _mm256_permute4x64_epi64::<0b11_01_10_00>(mixed));
        }
    }
    #[inline(always)]
    fn add(self, b: Self) -> Self {
        // SAFETY: see `splat`.
        unsafe { Avx2(_mm256_add_ps(self.0, b.0), _mm256_add_ps(self.1, b.1)) }
    }
    #[inline(always)]
    fn sub(self, b: Self) -> Self {
        // SAFETY: see `splat`.
        unsafe { Avx2(_mm256_sub_ps(self.0, b.0), _mm256_sub_ps(self.1, b.1)) }
    }
    #[inline(always)]
    fn mul(self, b: Self) -> Self {
        // SAFETY: see `splat`.
        unsafe { Avx2(_mm256_mul_ps(self.0, b.0), _mm256_mul_ps(self.1, b.1)) }
    }
    #[inline(always)]
    fn div(self, b: Self) -> Self {
        // SAFETY: see `splat`.
        unsafe { Avx2(_mm256_div_ps(self.0, b.0), _mm256_div_ps(self.1, b.1)) }
    }
    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        // SAFETY: see `splat`.
        unsafe { Avx2(_mm256_fmadd_ps(self.0, b.0, c.0), _mm256_fmadd_ps(self.1, b.1, c.1)) }
    }
    #[inline(always)]
    fn max(self, b: Self) -> Self {
        // SAFETY: see `splat`.
        unsafe { Avx2(_mm256_max_ps(self.0, b.0), _mm256_max_ps(self.1, b.1)) }
    }
    #[inline(always)]
    fn min(self, b: Self) -> Self {
        // SAFETY: see `splat`.
        unsafe { Avx2(_mm256_min_ps(self.0, b.0), _mm256_min_ps(self.1, b.1)) }
    }
    #[inline(always)]
    fn round(self) -> Self {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        // SAFETY: see `splat`.
        unsafe { Avx2(_mm256_round_ps::<NEAREST>(self.0), _mm256_round_ps::<NEAREST>(self.1)) }
    }
    #[inline(always)]
    fn pow2(self) -> Self {
        // SAFETY: see `splat`.
        unsafe {
            let bias = _mm256_set1_epi32(127);
            let one = _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_cvtps_epi32(self.0), bias));
            let two = _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_cvtps_epi32(self.1), bias));
            Avx2(_mm256_castsi256_ps(one), _mm256_castsi256_ps(two))
        }
    }
    #[inline(always)]
    fn select_gt(self, b: Self, x: Self, y: Self) -> Self {
        // SAFETY: see `splat`.
        unsafe {
            Avx2(
                _mm256_blendv_ps(y.0, x.0, _mm256_cmp_ps::<_CMP_GT_OQ>(self.0, b.0)),
                _mm256_blendv_ps(y.1, x.1, _mm256_cmp_ps::<_CMP_GT_OQ>(self.1, b.1)),
            )
        }
    }
    #[inline(always)]
    fn select_eq(self, b: Self, x: Self, y: Self) -> Self {
        // SAFETY: see `splat`.
        unsafe {
            Avx2(
                _mm256_blendv_ps(y.0, x.0, _mm256_cmp_ps::<_CMP_EQ_OQ>(self.0, b.0)),
                _mm256_blendv_ps(y.1, x.1, _mm256_cmp_ps::<_CMP_EQ_OQ>(self.1, b.1)),
            )
        }
    }
    #[inline(always)]
    fn transpose(rows: [Self; LANES]) -> [Self; LANES] {
        let mut out = [rows[0]; LANES];
        // SAFETY: see `splat`.
        unsafe {
            let zero = _mm256_setzero_ps();
            let (mut top, mut right, mut left, mut end) = ([zero; 8], [zero; 8], [zero; 8], [zero; 8]);
            for i in 0..8 {
                (top[i], right[i], left[i], end[i]) = (rows[i].0, rows[i].1, rows[8 + i].0, rows[8 + i].1);
            }
            let (top, left) = (transpose_avx2(top), transpose_avx2(left));
            let (right, end) = (transpose_avx2(right), transpose_avx2(end));
            for i in 0..8 {
                out[i] = Avx2(top[i], left[i]);
                out[8 + i] = Avx2(right[i], end[i]);
            }
        }
        out
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        // SAFETY: see `splat`.
        unsafe { sum_avx2(_mm256_add_ps(self.0, self.1)) }
    }
}

impl Lanes for Avx512 {
    const TILE: usize = 4;

    unsafe fn call<T: Task>(task: T) -> T::Output {
        // SAFETY: as the caller says.
        unsafe { run_avx512(task) }
    }
    #[inline(always)]
    fn splat(x: f32) -> Self {
        // SAFETY: only reached below `call`; so in all methods here.
        unsafe { Avx512(_mm512_set1_ps(x)) }
    }
    #[inline(always)]
    fn to_array(self) -> [f32; LANES] {
        let mut lanes = [0.0; LANES];
        // SAFETY: sixteen places.
        unsafe { self.store(lanes.as_mut_ptr()) };
        lanes
    }
    #[inline(always)]
    fn from_array(lanes: [f32; LANES]) -> Self {
        // SAFETY: sixteen values.
        unsafe { Self::load(lanes.as_ptr()) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: as the caller says.
        unsafe { Avx512(_mm512_loadu_ps(from)) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: as the caller says.
        unsafe { _mm512_storeu_ps(to, self.0) }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        // SAFETY: as the caller says.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            Avx512(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide)))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut u16) {
        // SAFETY: as the caller says.
        unsafe {
            let rounded = _mm512_srli_epi32::<16>(narrow_avx512(self.0));
            _mm256_storeu_si256(to.cast(), _mm512_cvtepi32_epi16(rounded));
        }
    }
    #[inline(always)]
    fn add(self, b: Self) -> Self {
        // SAFETY: see `splat`.
        unsafe { Avx512(_mm512_add_ps(self.0, b.0)) }
    }
    #[inline(always)]
    fn sub(self, b: Self) -> Self {
        // SAFETY: see `splat`.
        unsafe { Avx512(_mm512_sub_ps(self.0, b.0)) }
    }
    #[inline(always)]
    fn mul(self, b: Self) -> Self {
        // SAFETY: see `splat`.
        unsafe { Avx512(_mm512_mul_ps(self.0, b.0)) }
    }
    #[inline(always)]
    fn div(self, b: Self) -> Self {
        // SAFETY: see `splat`.
        unsafe { Avx512(_mm512_div_ps(self.0, b.0)) }
    }
    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        // SAFETY: see `splat`.
        unsafe { Avx512(_mm512_fmadd_ps(self.0, b.0, c.0)) }
    }
    #[inline(always)]
    fn max(self, b: Self) -> Self {
        // SAFETY: see `splat`.
        unsafe { Avx512(_mm512_max_ps(self.0, b.0)) }
    }
    #[inline(always)]
    fn min(self, b: Self) -> Self {
        // SAFETY: see `splat`.
        unsafe { Avx512(_mm512_min_ps(self.0, b.0)) }
    }
    #[inline(always)]
    fn round(self) -> Self {
        // SAFETY: see `splat`.
        unsafe { Avx512(_mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0)) }
    }
    #[inline(always)]
    fn pow2(self) -> Self {
        // SAFETY: see `splat`.
        unsafe {
            let biased = _mm512_add_epi32(_mm512_cvtps_epi32(self.0), _mm512_set1_epi32(127));
            Avx512(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased)))
        }
    }
    #[inline(always)]
    fn select_gt(self, b: Self, x: Self, y: Self) -> Self {
        // SAFETY: see `splat`.
        unsafe { Avx512(_mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(self.0, b.0), y.0, x.0)) }
    }
    #[inline(always)]
    fn select_eq(self, b: Self, x: Self, y: Self) -> Self {
        // SAFETY: see `splat`.
        unsafe { Avx512(_mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_EQ_OQ>(self.0, b.0), y.0, x.0)) }
    }
    #[inline(always)]
    fn transpose(rows: [Self; LANES]) -> [Self; LANES] {
        let mut out = [rows[0]; LANES];
        // SAFETY: see `splat`.
        unsafe {
            let mut raw = [_mm512_setzero_ps(); LANES];
            for i in 0..LANES {
                raw[i] = rows[i].0;
            }
            let raw = transpose_avx512(raw);
            for i in 0..LANES {
                out[i] = Avx512(raw[i]);
            }
        }
        out
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        // SAFETY: see `splat`.
        unsafe {
            let low = _mm512_castps512_ps256(self.0);
            sum_avx2(_mm256_add_ps(low, _mm512_extractf32x8_ps::<1>(self.0)))
        }
    }
}
