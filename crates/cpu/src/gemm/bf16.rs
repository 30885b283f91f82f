//! The arithmetic of bf16 products, defined once: what `vdpbf16ps` computes, and how to compute it without that
//! instruction.
//!
//! A pair of bf16 products is added to an f32 sum by two fused multiply-adds, first the odd element's, then the even
//! one's; denormal inputs count as zero and denormal results become zero, both with their sign. (Found by comparing
//! with the instruction on Zen 4 and Zen 5; Intel's manual says the same. "Denormal result" is decided after rounding
//! to 24 bits with an unbounded exponent.)
//!
//! Without the instruction, operands are widened to f32 while they are packed (denormals flushed, the elements of
//! each pair swapped), and an ordinary f32 chain over the result gives the same bits as long as no result is denormal.
//! [`Lowest`] decides that in advance: sums of multiples of 2^-126 are never denormal. Blocks that fail the test,
//! which real data hardly ever does, take [`fma_flushing`].

pub(crate) use crate::simd::{narrow as round, widen};

/// As [`widen`], with denormals flushed to zero. Returns the bits.
#[inline(always)]
pub(crate) fn widen_flushed(bits: u16) -> u32 {
    let wide = u32::from(bits) << 16;
    if wide & 0x7f80_0000 == 0 { wide & 0x8000_0000 } else { wide }
}

/// `x`, or zero of the same sign if it is denormal.
#[inline(always)]
fn flush(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE { f32::from_bits(x.to_bits() & 0x8000_0000) } else { x }
}

/// The nearest bf16 of an f32 operand, of which a denormal counts as zero, as `vcvtneps2bf16` has it.
#[inline(always)]
pub(crate) fn round_operand(x: f32) -> u16 {
    round(flush(x))
}

/// `a * b + c`, rounded once, as one half of `vdpbf16ps` computes it. `a` and `b` hold bf16 values.
#[inline(always)]
pub(crate) fn fma_flushing(a: f32, b: f32, c: f32) -> f32 {
    /// A magnitude below this rounds to less than the least normal number when the exponent is unbounded.
    const TINY: f64 = f32::MIN_POSITIVE as f64 * (1.0 - 1.0 / (1u64 << 25) as f64);
    let (a, b, c) = (flush(a), flush(b), flush(c));
    let sum = a.mul_add(b, c);
    // Where the f32 result is the least normal number, the f64 sum is exact: the product has 16 bits, and the sum's
    // bits span at most 41.
    let rounded_up = sum.abs() == f32::MIN_POSITIVE && (f64::from(a) * f64::from(b) + f64::from(c)).abs() < TINY;
    if rounded_up { f32::from_bits(sum.to_bits() & 0x8000_0000) } else { flush(sum) }
}

/// The lowest exponent among nonzero numbers, as the number `2 * |x| - 1` of their bits (zero wraps to the top).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct Lowest(pub(crate) u32);

impl Lowest {
    /// Of no numbers.
    pub(crate) const NONE: Lowest = Lowest(u32::MAX);

    /// With one more number, given by its f32 bits.
    #[inline(always)]
    pub(crate) fn with(self, bits: u32) -> Lowest {
        Lowest(self.0.min((bits << 1).wrapping_sub(1)))
    }

    /// Of the numbers of both.
    #[inline(always)]
    pub(crate) fn and(self, other: Lowest) -> Lowest {
        Lowest(self.0.min(other.0))
    }

    /// The biased exponent, 255 if all are zero.
    #[inline(always)]
    pub(crate) fn exponent(self) -> u32 {
        self.0.checked_add(1).map_or(255, |twice| twice >> 24)
    }

    /// Whether every product of two bf16 numbers with these lowest exponents is a multiple of 2^-126, so that no sum
    /// of such products is denormal. A bf16 number of biased exponent `e >= 1` is a multiple of 2^(e - 134).
    #[inline(always)]
    pub(crate) fn products_are_normal(self, other: Lowest) -> bool {
        let (a, b) = (self.exponent(), other.exponent());
        a >= 1 && b >= 1 && a + b >= 142
    }

    /// Whether f32 numbers with this lowest exponent are multiples of 2^-126.
    #[inline(always)]
    pub(crate) fn sums_are_normal(self) -> bool {
        self.exponent() >= 24
    }
}
