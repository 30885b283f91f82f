//! Tiles of rows on their way between operands and scratch, and the steps on tiles of scores.

use crate::kernels::view::{DType, View, ViewMut};
use crate::math::exp;
use crate::simd::{LANES, Lanes, load_partial, load_partial_bf16, store_partial, store_partial_bf16};

/// Queries of a tile.
pub(super) const QUERIES: usize = 64;
/// Keys of a tile.
pub(super) const KEYS: usize = 64;

/// Rows of `d` contiguous floats inside an operand.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    ptr: *const u8,
    dtype: DType,
    stride: usize,
    d: usize,
}

impl Rows {
    /// The rows of one batch entry and head of a `[b, t, h, d]` operand, from row `start` on.
    pub(super) fn of(view: &View<'_>, b: usize, start: usize, head: usize) -> Rows {
        let (strides, dtype) = (view.strides(), view.dtype());
        let offset = b * strides[0] + start * strides[1] + head * strides[2];
        let base = if dtype == DType::F32 { view.ptr::<f32>().cast::<u8>() } else { view.ptr::<u16>().cast() };
        // Only followed for rows that exist.
        Rows { ptr: base.wrapping_add(offset * dtype.size()), dtype, stride: strides[1], d: view.shape()[3] }
    }

    /// The same for an operand to be written.
    pub(super) fn to(view: &ViewMut<'_>, b: usize, start: usize, head: usize) -> Rows {
        Rows::of(view, b, start, head)
    }

    /// Sixteen values of one row from column `at` on, 0 beyond its end.
    ///
    /// # Safety
    /// The row exists and can be read.
    #[inline(always)]
    pub(super) unsafe fn load<V: Lanes>(&self, row: usize, at: usize) -> V {
        let n = (self.d - at).min(LANES);
        let offset = (row * self.stride + at) * self.dtype.size();
        // SAFETY: inside the row, which exists.
        unsafe {
            match self.dtype {
                DType::F32 => load_partial(self.ptr.add(offset).cast(), n),
                _ => load_partial_bf16(self.ptr.add(offset).cast(), n),
            }
        }
    }

    /// Writes sixteen values of one row from column `at` on, those beyond its end dropped.
    ///
    /// # Safety
    /// The row exists, came from a `ViewMut` and is written by this thread alone.
    #[inline(always)]
    pub(super) unsafe fn store<V: Lanes>(&self, row: usize, at: usize, x: V) {
        let n = (self.d - at).min(LANES);
        let to = self.ptr.wrapping_add((row * self.stride + at) * self.dtype.size()).cast_mut();
        // SAFETY: inside the row, which is ours.
        unsafe {
            match self.dtype {
                DType::F32 => store_partial(x, to.cast(), n),
                _ => store_partial_bf16(x, to.cast(), n),
            }
        }
    }

    /// Copies `n` rows times `scale` to `to`, as `[n][padded]` with zeros beyond `d`.
    ///
    /// # Safety
    /// The rows can be read and `to` has the room.
    #[inline(always)]
    pub(super) unsafe fn copy<V: Lanes>(&self, n: usize, scale: f32, to: *mut f32) {
        let padded = self.d.next_multiple_of(LANES);
        for row in 0..n {
            for at in (0..padded).step_by(LANES) {
                // SAFETY: as the caller says.
                unsafe { self.load::<V>(row, at).mul(V::splat(scale)).store(to.add(row * padded + at)) };
            }
        }
    }

    /// Copies `n` rows times `scale` transposed to `to`, as `[d][width]` with zeros beyond `n`; `width` is a multiple
    /// of 16.
    ///
    /// # Safety
    /// The rows can be read and `to` has the room.
    #[inline(always)]
    pub(super) unsafe fn copy_transposed<V: Lanes>(&self, n: usize, width: usize, scale: f32, to: *mut f32) {
        for first in (0..width).step_by(LANES) {
            let rows = n.saturating_sub(first).min(LANES);
            for at in (0..self.d).step_by(LANES) {
                let mut block = [[0.0; LANES]; LANES];
                for (i, row) in block.iter_mut().enumerate().take(rows) {
                    // SAFETY: one of the caller's rows.
                    *row = unsafe { self.load::<V>(first + i, at) }.mul(V::splat(scale)).to_array();
                }
                for j in 0..(self.d - at).min(LANES) {
                    let mut column = [0.0; LANES];
                    for (place, row) in column.iter_mut().zip(&block) {
                        *place = row[j];
                    }
                    // SAFETY: row `at + j < d` of `to`, columns below `width`.
                    unsafe { V::from_array(column).store(to.add((at + j) * width + first)) };
                }
            }
        }
    }

    /// Writes `n` rows from `from`, `[n][padded]`, each times its factor.
    ///
    /// # Safety
    /// The rows came from a `ViewMut` and are written by this thread alone; `from` and `factors` have `n` rows.
    #[inline(always)]
    pub(super) unsafe fn write<V: Lanes>(&self, n: usize, from: *const f32, factor: impl Fn(usize) -> f32) {
        let padded = self.d.next_multiple_of(LANES);
        for row in 0..n {
            let factor = V::splat(factor(row));
            for at in (0..padded).step_by(LANES) {
                // SAFETY: as the caller says.
                unsafe { self.store::<V>(row, at, V::load(from.add(row * padded + at)).mul(factor)) };
            }
        }
    }
}

/// Sets `n` values to 0.
///
/// # Safety
/// They are writable.
#[inline(always)]
pub(super) unsafe fn clear(to: *mut f32, n: usize) {
    // SAFETY: as the caller says; zero bytes are 0.0.
    unsafe { std::ptr::write_bytes(to, 0, n) };
}

/// Makes keys `first..first + n` that `hidden` names minus infinity in a row, or column, of scores.
///
/// # Safety
/// `n` values, `step` apart, are writable.
#[inline(always)]
pub(super) unsafe fn hide(scores: *mut f32, step: usize, first: usize, n: usize, (low, high): (usize, usize)) {
    let (low, high) = (low.clamp(first, first + n) - first, high.clamp(first, first + n) - first);
    for key in (0..low).chain(high.max(low)..n) {
        // SAFETY: below n.
        unsafe { *scores.add(key * step) = f32::NEG_INFINITY };
    }
}

/// The running maximum and sum of a tile's queries.
#[derive(Clone, Copy)]
pub(super) struct Running {
    /// `[QUERIES]`, minus infinity at first.
    pub max: *mut f32,
    /// `[QUERIES]`, 0 at first.
    pub sum: *mut f32,
    /// `[QUERIES]`: what the values summed before this step are to be multiplied with.
    pub correction: *mut f32,
}

/// One step of the streaming softmax: turns scores `[keys][width]` into weights `e^(score - max)` and moves the
/// running values on.
///
/// # Safety
/// All are writable for these sizes; `width` is a multiple of 16 and at most [`QUERIES`].
#[inline(always)]
pub(super) unsafe fn softmax_step<V: Lanes>(scores: *mut f32, keys: usize, width: usize, running: Running) {
    for at in (0..width).step_by(LANES) {
        // SAFETY: columns below `width`, keys below `keys`.
        unsafe {
            let before = V::load(running.max.add(at));
            let mut max = before;
            for key in 0..keys {
                max = V::load(scores.add(key * width + at)).max(max);
            }
            max.store(running.max.add(at));
            // While a query has seen no key its maximum is minus infinity; weights relative to this are then 0, not NaN.
            let max = max.max(V::splat(f32::MIN));
            let correction = exp(before.sub(max));
            correction.store(running.correction.add(at));
            let mut sum = V::load(running.sum.add(at)).mul(correction);
            for key in 0..keys {
                let place = scores.add(key * width + at);
                let weight = exp(V::load(place).sub(max));
                weight.store(place);
                sum = sum.add(weight);
            }
            sum.store(running.sum.add(at));
        }
    }
}
