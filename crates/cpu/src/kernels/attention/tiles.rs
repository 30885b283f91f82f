//! Tiles of rows on their way between operands and scratch, and the steps on tiles of scores.

use super::Band;
use crate::gemm::{self, pack::Source};
use crate::kernels::exp::{exp, exp_from};
use crate::kernels::view::{DType, View, ViewMut};
use crate::simd::{Float, LANES, Lanes};

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

    /// The rows' pointer, stride and element type for code that is generic over it.
    pub(super) fn typed<T: Float>(&self) -> Typed<T> {
        debug_assert_eq!(size_of::<T>(), self.dtype.size());
        Typed { ptr: self.ptr.cast_mut().cast(), stride: self.stride, d: self.d }
    }

    /// Whether the elements are `f32` and not `bf16`.
    #[inline(always)]
    pub(super) fn is_f32(&self) -> bool {
        self.dtype == DType::F32
    }

    /// Copies `n` rows times `scale` to `to`, as `[n][padded]` with zeros beyond `d`.
    ///
    /// # Safety
    /// The rows can be read and `to` has the room.
    #[inline(always)]
    pub(super) unsafe fn copy<V: Lanes>(&self, n: usize, scale: f32, to: *mut f32) {
        // SAFETY: as the caller says.
        unsafe {
            if self.is_f32() {
                self.typed::<f32>().copy::<V>(n, scale, to)
            } else {
                self.typed::<u16>().copy::<V>(n, scale, to)
            }
        }
    }

    /// `n` rows as an operand to be packed, whose columns they are.
    pub(super) fn columns(&self, n: usize) -> Source {
        let dtype = if self.is_f32() { gemm::Float::F32 } else { gemm::Float::Bf16 };
        Source { ptr: self.ptr, dtype, k: self.d, k_stride: 1, cols: n, col_stride: self.stride }
    }

    /// `n` rows as an operand to be packed.
    pub(super) fn rows(&self, n: usize) -> Source {
        let columns = self.columns(n);
        Source { k: n, k_stride: self.stride, cols: self.d, col_stride: 1, ..columns }
    }

    /// The product of a row with the same row of `other`: sixteen chains, then their sum.
    ///
    /// # Safety
    /// The rows can be read.
    #[inline(always)]
    pub(super) unsafe fn dot<V: Lanes>(&self, other: &Rows, row: usize) -> f32 {
        let mut sum = V::splat(0.0);
        for at in (0..self.d).step_by(LANES) {
            // SAFETY: as the caller says.
            unsafe { sum = self.load::<V>(row, at).mul_add(other.load(row, at), sum) };
        }
        sum.sum()
    }

    /// Sixteen values of one row from column `at` on, 0 beyond its end.
    ///
    /// # Safety
    /// The row exists and can be read.
    #[inline(always)]
    unsafe fn load<V: Lanes>(&self, row: usize, at: usize) -> V {
        // SAFETY: as the caller says.
        unsafe { if self.is_f32() { self.typed::<f32>().load(row, at) } else { self.typed::<u16>().load(row, at) } }
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
                unsafe {
                    let x = V::load(from.add(row * padded + at)).mul(factor);
                    if self.is_f32() {
                        self.typed::<f32>().store(row, at, x)
                    } else {
                        self.typed::<u16>().store(row, at, x)
                    }
                }
            }
        }
    }
}

/// [`Rows`] of a known element type.
#[derive(Clone, Copy)]
pub(super) struct Typed<T> {
    ptr: *mut T,
    stride: usize,
    d: usize,
}

impl<T: Float> Typed<T> {
    /// Sixteen values of one row from column `at` on, 0 beyond its end.
    ///
    /// # Safety
    /// The row exists and can be read.
    #[inline(always)]
    pub(super) unsafe fn load<V: Lanes>(&self, row: usize, at: usize) -> V {
        // SAFETY: inside the row, which exists.
        unsafe { T::load_first(self.ptr.add(row * self.stride + at), (self.d - at).min(LANES)) }
    }

    /// [`Typed::load`] of sixteen values that are all there.
    ///
    /// # Safety
    /// As [`Typed::load`]; the row has `at + 16` columns.
    #[inline(always)]
    pub(super) unsafe fn load_whole<V: Lanes>(&self, row: usize, at: usize) -> V {
        // SAFETY: as the caller says.
        unsafe { T::load(self.ptr.add(row * self.stride + at)) }
    }

    /// Writes sixteen values of one row from column `at` on, those beyond its end dropped.
    ///
    /// # Safety
    /// The row exists, came from a `ViewMut` and is written by this thread alone.
    #[inline(always)]
    pub(super) unsafe fn store<V: Lanes>(&self, row: usize, at: usize, x: V) {
        // SAFETY: inside the row, which is ours.
        unsafe { T::store_first(x, self.ptr.add(row * self.stride + at), (self.d - at).min(LANES)) };
    }

    #[inline(always)]
    unsafe fn copy<V: Lanes>(&self, n: usize, scale: f32, to: *mut f32) {
        let (padded, whole) = (self.d.next_multiple_of(LANES), self.d / LANES * LANES);
        let scale = V::splat(scale);
        for row in 0..n {
            // SAFETY: as `Rows::copy`.
            unsafe {
                let to = to.add(row * padded);
                for at in (0..whole).step_by(LANES) {
                    self.load_whole::<V>(row, at).mul(scale).store(to.add(at));
                }
                if whole < padded {
                    self.load::<V>(row, whole).mul(scale).store(to.add(whole));
                }
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

/// How scores become weights.
#[derive(Clone, Copy)]
pub(super) struct Weighing {
    /// What they are still to be multiplied with.
    pub scale: f32,
    /// The exponent below which a weight is 0.
    pub least: f32,
    /// Outside of it weights are 0.
    pub band: Band,
}

/// One step of the streaming softmax: turns scores `[keys][width]` into weights `e^(score - max)` at `weights` (which may
/// be `scores`), and moves the running values on.
///
/// # Safety
/// All are writable for these sizes; `width` is a multiple of 16 and at most [`QUERIES`].
#[inline(always)]
pub(super) unsafe fn softmax_step<V: Lanes, T: Float>(
    scores: *const f32,
    weights: *mut T,
    keys: usize,
    width: usize,
    weighing: Weighing,
    running: Running,
) {
    let (scale, least) = (V::splat(weighing.scale), V::splat(weighing.least));
    for at in (0..width).step_by(LANES) {
        // SAFETY: columns below `width`, keys below `keys`.
        unsafe {
            let seen = weighing.band.keys(at..at + LANES, keys);
            let before = V::load(running.max.add(at));
            let mut max = before;
            for key in seen.clone() {
                max = V::load(scores.add(key * width + at)).mul(scale).max(max);
            }
            max.store(running.max.add(at));
            // While a query has seen no key its maximum is minus infinity; weights relative to this are then 0, not NaN.
            let max = max.max(V::splat(f32::MIN));
            let correction = exp(before.sub(max));
            correction.store(running.correction.add(at));
            let mut sum = V::load(running.sum.add(at)).mul(correction);
            for key in (0..seen.start).chain(seen.end..keys) {
                T::store(V::splat(0.0), weights.add(key * width + at));
            }
            for key in seen {
                let place = key * width + at;
                let weight = exp_from(V::load(scores.add(place)).mul(scale).sub(max), least);
                T::store(weight, weights.add(place));
                sum = sum.add(weight);
            }
            sum.store(running.sum.add(at));
        }
    }
}
