//! Products with few rows: each row of B^T (a weight matrix `[n, k]`, usually) is read once, in place, and multiplied
//! with all rows of A. The memory sets the pace, so nothing is packed.
//!
//! **Order.** [`SUMS`] partial sums: number `l` is the chain over lanes `l`, `l + SUMS`, `l + 2 SUMS`, ... of k (a lane
//! is an f32 or a pair of bf16, as in the micro-kernel), k padded with zeros to whole rounds. Then the upper half of
//! the sums is added to the lower half until one is left, and C, if the product is added to it.

use super::bf16::{Lowest, fma_flushing, round, widen};
use super::micro::Lane;
#[cfg(target_arch = "x86_64")]
use super::simd::{Avx2, Avx512, Avx512Pairs};
use super::simd::{Portable, Simd};
use super::{DOT_ROWS, Epilogue, Float, GemmSpec, Strip};
use crate::isa::{Cpu, Isa};
use crate::simd::fetch;

/// Partial sums of a dot product: two AVX-512 vectors hide most of an FMA's latency.
const SUMS: usize = 32;
/// Bytes of B in a task.
const TASK_BYTES: usize = 128 << 10;
/// How far ahead B is fetched into the cache, in bytes.
const AHEAD: usize = 4096;

/// Dot products of one row of B with up to [`DOT_ROWS`] rows of A: `out[i]`, elements of k, rows of A, row of B.
///
/// Safety: the instruction set is supported; every row is valid for k elements.
type Dots = unsafe fn(&mut [f32], usize, &[*const u8], *const u8);

/// The pointers that the tasks share.
struct Operands {
    a: *const u8,
    b: *const u8,
    c: *mut u8,
}
// SAFETY: tasks read A and B and write disjoint columns of C; the caller of the product vouches for the memory.
unsafe impl Sync for Operands {}

/// See [`super::gemm`]; k is not 0, k is contiguous in A and B, and A has at most [`DOT_ROWS`] rows.
pub(super) unsafe fn run(
    cpu: &Cpu,
    spec: &GemmSpec,
    a: *const u8,
    b: *const u8,
    c: *mut u8,
    epilogue: Option<Epilogue<'_>>,
) {
    let dots = select(cpu.isa(), spec.a.dtype);
    let bytes = spec.a.dtype.bytes();
    let per_task = (TASK_BYTES / (spec.k * bytes)).clamp(1, spec.n.max(1));
    let chunks = spec.n.div_ceil(per_task);
    let batches = if spec.m == 0 { 0 } else { spec.batch[0] * spec.batch[1] };
    let operands = &Operands { a, b, c };
    cpu.pool.run(batches * chunks, |task, worker| {
        let (chunk, batch) = (task % chunks, task / chunks);
        let batch = [batch / spec.batch[1], batch % spec.batch[1]];
        let cols = chunk * per_task..spec.n.min((chunk + 1) * per_task);
        // SAFETY: the caller's: every row lies in A or B, every element in C; the instruction set is the Cpu's.
        unsafe {
            let mut rows = [std::ptr::null(); DOT_ROWS];
            let rows = &mut rows[..spec.m];
            for (i, row) in rows.iter_mut().enumerate() {
                *row = operands.a.add(spec.a.offset(batch) + i * spec.a.row_stride * bytes);
            }
            let mut out = [0.0; DOT_ROWS];
            let out = &mut out[..spec.m];
            for j in cols.clone() {
                let row = operands.b.add(spec.b.offset(batch) + j * spec.b.col_stride * bytes);
                dots(out, spec.k, rows, row);
                for (i, &sum) in out.iter().enumerate() {
                    let at = (i * spec.c.row_stride + j * spec.c.col_stride) * spec.c.dtype.bytes();
                    let at = operands.c.add(spec.c.offset(batch) + at);
                    match spec.c.dtype {
                        Float::F32 => {
                            let at = at.cast::<f32>();
                            *at = if spec.accumulate { *at + sum } else { sum };
                        }
                        Float::Bf16 => {
                            let at = at.cast::<u16>();
                            *at = round(if spec.accumulate { widen(*at) + sum } else { sum });
                        }
                    }
                }
            }
        }
        if let Some(epilogue) = epilogue {
            epilogue(&Strip { batch, rows: 0..spec.m, cols }, worker);
        }
    });
}

fn select(isa: Isa, dtype: Float) -> Dots {
    match (isa, dtype) {
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512 | Isa::Avx512Bf16, Float::F32) => x86::f32_avx512,
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512Bf16, Float::Bf16) => x86::bf16_pairs,
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512, Float::Bf16) => x86::bf16_avx512,
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx2, Float::F32) => x86::f32_avx2,
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx2, Float::Bf16) => x86::bf16_avx2,
        (_, Float::F32) => f32_dots::<Portable, { SUMS / Portable::LANES }>,
        (_, Float::Bf16) => bf16_dots::<Portable, { SUMS / Portable::LANES }>,
    }
}

/// The dot products of f32 rows; `NV` vectors hold the sums.
#[inline(always)]
unsafe fn f32_dots<S: Simd, const NV: usize>(out: &mut [f32], k: usize, a: &[*const u8], b: *const u8) {
    // SAFETY: the caller's.
    unsafe { all_dots::<S, NV, false>(out, k, a, b) }
}

/// The dot products of bf16 rows, for an instruction set without the pair product: exact steps where a denormal may
/// occur.
#[inline(always)]
unsafe fn bf16_dots<S: Simd, const NV: usize>(out: &mut [f32], k: usize, a: &[*const u8], b: *const u8) {
    // SAFETY: the caller's.
    unsafe {
        let b_low = lowest(b, k);
        if a.iter().all(|&a| lowest(a, k).products_are_normal(b_low)) {
            all_dots::<S, NV, true>(out, k, a, b);
        } else {
            for (out, &a) in out.iter_mut().zip(a) {
                *out = flushing_dot(k, a.cast(), b.cast());
            }
        }
    }
}

/// The lowest exponent of a bf16 row; denormals count with exponent 0, which no product passes.
#[inline(always)]
unsafe fn lowest(row: *const u8, k: usize) -> Lowest {
    // SAFETY: the caller's: the row has k elements.
    let row = unsafe { std::slice::from_raw_parts(row.cast::<u16>(), k) };
    row.iter().fold(Lowest::NONE, |low, &bits| low.with(u32::from(bits) << 16))
}

#[inline(always)]
unsafe fn all_dots<S: Simd, const NV: usize, const PAIRS: bool>(
    out: &mut [f32],
    k: usize,
    a: &[*const u8],
    b: *const u8,
) {
    let lane = if PAIRS { Lane::Pair } else { Lane::F32 };
    let element = if PAIRS { 2 } else { 4 };
    let rounds = k * element / 4 / SUMS;
    let rest = k * element - rounds * SUMS * 4;
    debug_assert!(lane.count(k) <= (rounds + 1) * SUMS);
    let mut last = 0;
    // SAFETY: the caller's: every row has k elements; the last, partial round is copied to zero-padded lanes.
    unsafe {
        while last < a.len() {
            let (a, out) = (&a[last..], &mut out[last..]);
            last += match a.len() {
                1 => some_dots::<S, NV, PAIRS, 1>(out, rounds, rest, a, b),
                2 | 3 => some_dots::<S, NV, PAIRS, 2>(out, rounds, rest, a, b),
                // More vectors of sums than this would not fit AVX2's 16 registers.
                _ if NV > 2 => some_dots::<S, NV, PAIRS, 2>(out, rounds, rest, a, b),
                _ => some_dots::<S, NV, PAIRS, 4>(out, rounds, rest, a, b),
            };
        }
    }
}

/// The first `M` dot products; returns `M`. `rounds` whole rounds, then `rest` bytes of each row.
#[inline(always)]
unsafe fn some_dots<S: Simd, const NV: usize, const PAIRS: bool, const M: usize>(
    out: &mut [f32],
    rounds: usize,
    rest: usize,
    a: &[*const u8],
    b: *const u8,
) -> usize {
    // SAFETY: the caller's.
    unsafe {
        let mut sums = [[S::zero(); NV]; M];
        let mut a_rows = [std::ptr::null::<u32>(); M];
        for (row, &a) in a_rows.iter_mut().zip(a) {
            *row = a.cast();
        }
        let b_row = b.cast::<u32>();
        for round in 0..rounds {
            let at = round * SUMS;
            for ahead in (0..4 * SUMS).step_by(64) {
                fetch(b.wrapping_add(4 * at + AHEAD + ahead));
            }
            add::<S, NV, PAIRS, M>(&mut sums, a_rows.map(|a| a.add(at)), b_row.add(at));
        }
        if rest > 0 {
            let mut padded = [[0u32; SUMS]; M];
            let mut padded_b = [0u32; SUMS];
            for (lanes, a) in padded.iter_mut().zip(a_rows) {
                std::ptr::copy_nonoverlapping(a.add(rounds * SUMS).cast::<u8>(), lanes.as_mut_ptr().cast(), rest);
            }
            std::ptr::copy_nonoverlapping(b_row.add(rounds * SUMS).cast::<u8>(), padded_b.as_mut_ptr().cast(), rest);
            add::<S, NV, PAIRS, M>(&mut sums, std::array::from_fn(|i| padded[i].as_ptr()), padded_b.as_ptr());
        }
        for (out, sums) in out.iter_mut().zip(sums) {
            let mut lanes = [0.0f32; SUMS];
            for (j, sum) in sums.into_iter().enumerate() {
                S::store(lanes.as_mut_ptr().add(j * S::LANES), sum);
            }
            *out = fold(lanes);
        }
    }
    M
}

/// One round.
#[inline(always)]
unsafe fn add<S: Simd, const NV: usize, const PAIRS: bool, const M: usize>(
    sums: &mut [[S::V; NV]; M],
    a: [*const u32; M],
    b: *const u32,
) {
    // SAFETY: the caller's: SUMS lanes at every pointer.
    unsafe {
        for j in 0..NV {
            let bj = S::load(b.add(j * S::LANES));
            for (sums, &a) in sums.iter_mut().zip(&a) {
                let aj = S::load(a.add(j * S::LANES));
                sums[j] = if PAIRS { S::step_pairs(sums[j], aj, bj) } else { S::step(sums[j], aj, bj) };
            }
        }
    }
}

/// The upper half onto the lower half until one is left.
#[inline(always)]
fn fold(mut sums: [f32; SUMS]) -> f32 {
    let mut half = SUMS / 2;
    while half > 0 {
        for l in 0..half {
            sums[l] += sums[l + half];
        }
        half /= 2;
    }
    sums[0]
}

/// One bf16 dot product in exact steps.
unsafe fn flushing_dot(k: usize, a: *const u16, b: *const u16) -> f32 {
    let mut sums = [0.0f32; SUMS];
    let pairs = Lane::Pair.count(k);
    for pair in 0..pairs.next_multiple_of(SUMS) {
        let sum = &mut sums[pair % SUMS];
        for element in [2 * pair + 1, 2 * pair] {
            // SAFETY: the caller's: both rows have k elements.
            let (a, b) = if element < k { unsafe { (*a.add(element), *b.add(element)) } } else { (0, 0) };
            *sum = fma_flushing(widen(a), widen(b), *sum);
        }
    }
    fold(sums)
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! x86-64. SAFETY of every block below: the caller vouches for the instruction set and the rows.
    use super::{Avx2, Avx512, Avx512Pairs, all_dots, bf16_dots, f32_dots};

    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn f32_avx2(out: &mut [f32], k: usize, a: &[*const u8], b: *const u8) {
        // SAFETY: the module's argument.
        unsafe { f32_dots::<Avx2, 4>(out, k, a, b) }
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn bf16_avx2(out: &mut [f32], k: usize, a: &[*const u8], b: *const u8) {
        // SAFETY: the module's argument.
        unsafe { bf16_dots::<Avx2, 4>(out, k, a, b) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub(super) unsafe fn f32_avx512(out: &mut [f32], k: usize, a: &[*const u8], b: *const u8) {
        // SAFETY: the module's argument.
        unsafe { f32_dots::<Avx512, 2>(out, k, a, b) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub(super) unsafe fn bf16_avx512(out: &mut [f32], k: usize, a: &[*const u8], b: *const u8) {
        // SAFETY: the module's argument.
        unsafe { bf16_dots::<Avx512, 2>(out, k, a, b) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub(super) unsafe fn bf16_pairs(out: &mut [f32], k: usize, a: &[*const u8], b: *const u8) {
        // SAFETY: the module's argument.
        unsafe { all_dots::<Avx512Pairs, 2, true>(out, k, a, b) }
    }
}
