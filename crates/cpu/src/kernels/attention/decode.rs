//! Attention of a single query over a cache: bound by reading keys and values, so they are read once and in place.

use super::tiles::{Rows, Typed, clear};
use super::{Attention, Operands, Sizes};
use crate::isa::Cpu;
use crate::kernels::exp::exp;
use crate::kernels::view::{Scratch, ViewMut, piece};
use crate::simd::{Float, LANES, Lanes, Task};

/// Keys of one task, for all heads: caches that keep a key's heads together are then read from end to end.
const BLOCK: usize = 128;
/// Keys that all heads look at before the next: as many rows, a power of two apart, as L1 has ways.
const STEP: usize = 8;

/// Whether this is the way for these sizes.
pub(super) fn applies(sizes: &Sizes) -> bool {
    sizes.t == 1
}

/// Values that a block leaves for each head: the weighted sum `[padded]`, its maximum and its sum of weights.
fn partial(sizes: &Sizes) -> usize {
    sizes.d.next_multiple_of(LANES) + LANES
}

/// The bytes of shared scratch and of scratch per worker.
pub(super) fn scratch(sizes: &Sizes) -> (usize, usize) {
    let blocks = sizes.s.div_ceil(BLOCK);
    let padded = sizes.d.next_multiple_of(LANES);
    (piece::<f32>(sizes.b * sizes.h * blocks * partial(sizes)), sizes.h * (piece::<f32>(padded) + piece::<f32>(BLOCK)))
}

/// See [`super::attention`].
pub(super) fn run(
    cpu: &Cpu,
    spec: &Attention,
    operands: &Operands<'_>,
    sizes: &Sizes,
    out: &mut ViewMut<'_>,
    log_sum_exp: &mut ViewMut<'_>,
    scratch_memory: &mut [u8],
) {
    let Sizes { b, h, s, .. } = *sizes;
    let blocks = s.div_ceil(BLOCK);
    let (shared, each) = scratch(sizes);
    let scratch = Scratch::new(scratch_memory, shared, each, cpu.pool.threads());
    cpu.pool.run(b * blocks, |task, worker| {
        let (batch, block) = (task / blocks, task % blocks);
        cpu.vectorise(Block { spec, operands, sizes, batch, block, scratch, worker });
    });
    let (out, log_sum_exp) = (&*out, &*log_sum_exp);
    cpu.pool.run(b * h, |task, _| {
        cpu.vectorise(Combine { sizes, batch: task / h, head: task % h, out, log_sum_exp, scratch });
    });
}

/// One block of keys.
struct Block<'a> {
    spec: &'a Attention,
    operands: &'a Operands<'a>,
    sizes: &'a Sizes,
    batch: usize,
    block: usize,
    scratch: Scratch<'a>,
    worker: usize,
}

impl Task for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes>(self) {
        let Sizes { h, g, s, d, .. } = *self.sizes;
        let padded = d.next_multiple_of(LANES);
        let (low, high) = self.spec.visible(0, s);
        let first = (self.block * BLOCK).max(low);
        let keys = (self.block * BLOCK + BLOCK).min(high).saturating_sub(first);
        let mut pieces = self.scratch.worker(self.worker);
        let group = h / g.max(1);
        let queries = pieces.take::<f32>(h * padded);
        let weights = pieces.take::<f32>(h * BLOCK);
        let result = |head| partial_result(&self.scratch, self.sizes, self.batch, head, self.block);
        // SAFETY: the pieces are this worker's; keys `first..first + keys` exist, and so do the queries; the partial
        // results of this block are written by this task alone.
        unsafe {
            for head in 0..h {
                let rows = Rows::of(&self.operands.query, self.batch, 0, head);
                rows.copy::<V>(1, self.spec.scale, queries.add(head * padded));
                clear(result(head), padded);
            }
            for at in (0..keys).step_by(STEP) {
                let n = (keys - at).min(STEP);
                for head in 0..h {
                    let (query, scores) = (queries.add(head * padded), weights.add(head * BLOCK + at));
                    let key_rows = Rows::of(&self.operands.key, self.batch, first + at, head / group);
                    if key_rows.is_f32() {
                        products::<V, f32>(query, key_rows.typed(), d, n, scores);
                    } else {
                        products::<V, u16>(query, key_rows.typed(), d, n, scores);
                    }
                }
            }
            for head in 0..h {
                let weights = weights.add(head * BLOCK);
                for key in keys..keys.next_multiple_of(LANES) {
                    *weights.add(key) = f32::NEG_INFINITY;
                }
                if let Some(mask) = &self.operands.mask {
                    let strides = mask.strides();
                    let seen = mask.ptr::<u8>().wrapping_add(self.batch * strides[0] + first * strides[1]);
                    for key in (0..keys).filter(|key| *seen.add(key * strides[1]) == 0) {
                        *weights.add(key) = f32::NEG_INFINITY;
                    }
                }
                let (max, sum) = weigh::<V>(weights, keys);
                *result(head).add(padded) = max;
                *result(head).add(padded + 1) = sum;
            }
            for at in (0..keys).step_by(STEP) {
                let n = (keys - at).min(STEP);
                for head in 0..h {
                    let weights = weights.add(head * BLOCK + at);
                    let value_rows = Rows::of(&self.operands.value, self.batch, first + at, head / group);
                    if value_rows.is_f32() {
                        add_values::<V, f32>(weights, value_rows.typed(), d, n, result(head));
                    } else {
                        add_values::<V, u16>(weights, value_rows.typed(), d, n, result(head));
                    }
                }
            }
        }
    }
}

/// The products of a query, `[padded]`, and `keys` keys.
///
/// # Safety
/// All exist and `scores` has room for them.
#[inline(always)]
unsafe fn products<V: Lanes, T: Float>(query: *const f32, rows: Typed<T>, d: usize, keys: usize, scores: *mut f32) {
    let whole = d / LANES * LANES;
    for key in 0..keys {
        let mut score = V::splat(0.0);
        // SAFETY: as the caller says.
        unsafe {
            for at in (0..whole).step_by(LANES) {
                score = V::load(query.add(at)).mul_add(rows.load_whole(key, at), score);
            }
            if whole < d {
                score = V::load(query.add(whole)).mul_add(rows.load(key, whole), score);
            }
            *scores.add(key) = score.sum();
        }
    }
}

/// Adds `keys` weighted values to `sums`, `[padded]`.
///
/// # Safety
/// All exist.
#[inline(always)]
unsafe fn add_values<V: Lanes, T: Float>(weights: *const f32, rows: Typed<T>, d: usize, keys: usize, sums: *mut f32) {
    const VECTORS: usize = 4;
    let blocks = d / (VECTORS * LANES) * (VECTORS * LANES);
    // SAFETY: as the caller says.
    unsafe {
        for from in (0..blocks).step_by(VECTORS * LANES) {
            let mut totals = [V::splat(0.0); VECTORS];
            for (i, total) in totals.iter_mut().enumerate() {
                *total = V::load(sums.add(from + i * LANES));
            }
            for key in 0..keys {
                let weight = V::splat(*weights.add(key));
                for (i, total) in totals.iter_mut().enumerate() {
                    *total = weight.mul_add(rows.load_whole(key, from + i * LANES), *total);
                }
            }
            for (i, total) in totals.into_iter().enumerate() {
                total.store(sums.add(from + i * LANES));
            }
        }
        for at in (blocks..d).step_by(LANES) {
            let mut total = V::load(sums.add(at));
            for key in 0..keys {
                total = V::splat(*weights.add(key)).mul_add(rows.load(key, at), total);
            }
            total.store(sums.add(at));
        }
    }
}

/// Turns `keys` scores, padded with minus infinity to whole vectors, into weights; gives their maximum and sum.
///
/// # Safety
/// They are writable.
#[inline(always)]
unsafe fn weigh<V: Lanes>(weights: *mut f32, keys: usize) -> (f32, f32) {
    let mut max = V::splat(f32::NEG_INFINITY);
    for at in (0..keys).step_by(LANES) {
        // SAFETY: as the caller says.
        max = unsafe { V::load(weights.add(at)) }.max(max);
    }
    let max = max.to_array().into_iter().fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a });
    let shift = V::splat(max.max(f32::MIN));
    let mut sum = V::splat(0.0);
    for at in (0..keys).step_by(LANES) {
        // SAFETY: as the caller says.
        unsafe {
            let weight = exp(V::load(weights.add(at)).sub(shift));
            weight.store(weights.add(at));
            sum = sum.add(weight);
        }
    }
    (max, sum.sum())
}

/// Where a block's result for a head lies.
fn partial_result(scratch: &Scratch<'_>, sizes: &Sizes, batch: usize, head: usize, block: usize) -> *mut f32 {
    let blocks = sizes.s.div_ceil(BLOCK);
    let all = scratch.shared().take::<f32>(sizes.b * sizes.h * blocks * partial(sizes));
    all.wrapping_add(((batch * sizes.h + head) * blocks + block) * partial(sizes))
}

/// The results of a head's blocks, in ascending order, as one.
struct Combine<'a> {
    sizes: &'a Sizes,
    batch: usize,
    head: usize,
    out: &'a ViewMut<'a>,
    log_sum_exp: &'a ViewMut<'a>,
    scratch: Scratch<'a>,
}

impl Task for Combine<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes>(self) {
        let padded = self.sizes.d.next_multiple_of(LANES);
        let blocks = self.sizes.s.div_ceil(BLOCK);
        let result = |block| partial_result(&self.scratch, self.sizes, self.batch, self.head, block);
        // SAFETY: every block has left its result, and this task alone reads this head's.
        let max = (0..blocks).map(|i| unsafe { *result(i).add(padded) });
        let max = max.fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a });
        let shift = max.max(f32::MIN);
        let factor = |block: usize| {
            // SAFETY: as above.
            let own = unsafe { *result(block).add(padded) };
            exp(V::splat(own - shift)).to_array()[0]
        };
        // SAFETY: as above.
        let sum = (0..blocks).fold(0.0f32, |sum, i| unsafe { factor(i).mul_add(*result(i).add(padded + 1), sum) });
        let inverse = if sum == 0.0 { 0.0 } else { 1.0 / sum };
        let to = Rows::to(self.out, self.batch, 0, self.head);
        for at in (0..padded).step_by(LANES) {
            let mut total = V::splat(0.0);
            for block in 0..blocks {
                // SAFETY: as above.
                total = V::splat(factor(block)).mul_add(unsafe { V::load(result(block).add(at)) }, total);
            }
            // SAFETY: this task alone writes the output of its head.
            unsafe {
                let total = total.mul(V::splat(inverse));
                if to.is_f32() { to.typed::<f32>().store(0, at, total) } else { to.typed::<u16>().store(0, at, total) }
            }
        }
        let strides = self.log_sum_exp.strides();
        // SAFETY: as above.
        unsafe {
            *self.log_sum_exp.ptr::<f32>().add(self.batch * strides[0] + self.head * strides[1]) =
                max + libm::logf(sum);
        }
    }
}
