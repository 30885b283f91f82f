//! The exponential on [`Lanes`]: polynomials with fused multiply-adds, the same bits on every instruction set.

use crate::simd::Lanes;

/// `e^x`, within 1 unit in the last place; 0 from -104 down, infinity from 88.73 up, NaN for NaN.
///
/// `e^x = 2^n e^r` with `|r| <= ln(2) / 2` and the polynomial of Cephes' `expf` for `e^r`.
#[inline(always)]
pub fn exp<V: Lanes>(x: V) -> V {
    // In this order a NaN passes through both.
    let x = V::splat(89.0).min(V::splat(-104.0).max(x));
    let (n, p) = parts(x);
    // 2^n may leave the normal range; its halves do not, and only the last product rounds.
    let half = n.mul(V::splat(0.5)).round();
    p.mul(half.pow2()).mul(n.sub(half).pow2())
}

/// `e^x` as [`exp`] has it for x up to 88, and 0 for x below `least`, which is at least -87.
#[inline(always)]
pub fn exp_from<V: Lanes>(x: V, least: V) -> V {
    let (n, p) = parts(x);
    least.select_gt(x, V::splat(0.0), p.mul(n.pow2()))
}

/// `n` and `e^r` of `x = n ln(2) + r`.
#[inline(always)]
fn parts<V: Lanes>(x: V) -> (V, V) {
    let n = x.mul(V::splat(std::f32::consts::LOG2_E)).round();
    // ln(2) in two parts, the first with trailing zeros, so that n times it is exact.
    let r = n.mul_add(V::splat(-0.693_359_4), x);
    let r = n.mul_add(V::splat(2.121_944_4e-4), r);
    let p = V::splat(1.987_569_1e-4);
    let p = p.mul_add(r, V::splat(1.398_199_9e-3));
    let p = p.mul_add(r, V::splat(8.333_452e-3));
    let p = p.mul_add(r, V::splat(4.166_579_6e-2));
    let p = p.mul_add(r, V::splat(1.666_666_5e-1));
    let p = p.mul_add(r, V::splat(0.5));
    let p = p.mul_add(r.mul(r), r).add(V::splat(1.0));
    (n, p)
}
