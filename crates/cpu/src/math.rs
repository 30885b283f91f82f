//! Elementary functions on `f32`: the same bits on every instruction set.
//!
//! Each function is straight-line code on one lane: correctly rounded operations (fused multiply-adds only where
//! `mul_add` is written), selections, no table and no branch, so a loop over it becomes vector code inside a function
//! that enables the instructions, and plain code elsewhere, with equal results; what is written for any [`Real`] also
//! becomes machine code while Tenon runs (`rows::compiled`). Bounds are in units in the last place of
//! the result and hold for every operand, subnormals included; `tests/rows_math.rs` measures them.
//!
//! Polynomials are Chebyshev fits of the function named beside them. Range reductions are those of Cody and Waite (1980)
//! and, for large angles, of Payne and Hanek (1983).

use std::ops::{Add, Div, Mul, Neg, Sub};

/// What a [`Real`] is compared for. No comparison holds for NaN, except that it has no place.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Is {
    /// `a < b`
    Less,
    /// `a <= b`
    LessEqual,
    /// `a == b`
    Equal,
    /// Either is NaN.
    Unordered,
}

/// A float of 32 bits: an `f32`, or one that is known when the code that computes it runs.
pub trait Real:
    Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self> + Neg<Output = Self>
{
    /// The same 32 bits as a whole number.
    type Bits: Bits;
    /// This number.
    fn of(x: f32) -> Self;
    /// These bits.
    fn from_bits(bits: Self::Bits) -> Self;
    /// Its bits.
    fn to_bits(self) -> Self::Bits;
    /// The nearest to a signed whole number.
    fn from_whole(whole: Self::Bits) -> Self;
    /// `self * b + c`, rounded once.
    fn mul_add(self, b: Self, c: Self) -> Self;
    /// The square root.
    fn sqrt(self) -> Self;
    /// `then` where `self` is that of `than`, else `otherwise`.
    fn choose(self, is: Is, than: Self, then: Self, otherwise: Self) -> Self;
    /// `self * 2^k` for `0.5 <= self < 2`, rounded once, where `shifted` is [`ROUND`]` + k` and `-160 <= k <= 160`.
    fn times_power(self, shifted: Self) -> Self;

    /// The magnitude.
    #[inline(always)]
    fn abs(self) -> Self {
        Self::from_bits(self.to_bits().and(Bits::of(!SIGN)))
    }

    /// The magnitude with the sign of `of`.
    #[inline(always)]
    fn copysign(self, of: Self) -> Self {
        Self::from_bits(self.to_bits().and(Bits::of(!SIGN)).or(of.to_bits().and(Bits::of(SIGN))))
    }

    /// `zero` where `self` is zero: the sign that a formula has lost.
    #[inline(always)]
    fn keeping_zero(self, x: Self) -> Self {
        x.choose(Is::Equal, Self::of(0.0), x, self)
    }
}

/// A whole number of 32 bits; arithmetic wraps.
pub trait Bits: Copy {
    /// This number.
    fn of(bits: u32) -> Self;
    /// The sum.
    fn add(self, b: Self) -> Self;
    /// The difference.
    fn sub(self, b: Self) -> Self;
    /// The bits that both have.
    fn and(self, b: Self) -> Self;
    /// The bits that either has.
    fn or(self, b: Self) -> Self;
    /// Shifted left.
    fn shl<const BY: u32>(self) -> Self;
    /// Shifted right, zeros following.
    fn shr<const BY: u32>(self) -> Self;
    /// Shifted right as a signed number.
    fn sar<const BY: u32>(self) -> Self;
}

impl Real for f32 {
    type Bits = u32;
    #[inline(always)]
    fn of(x: f32) -> f32 {
        x
    }
    #[inline(always)]
    fn from_bits(bits: u32) -> f32 {
        f32::from_bits(bits)
    }
    #[inline(always)]
    fn to_bits(self) -> u32 {
        self.to_bits()
    }
    #[inline(always)]
    fn from_whole(whole: u32) -> f32 {
        whole.cast_signed() as f32
    }
    #[inline(always)]
    fn mul_add(self, b: f32, c: f32) -> f32 {
        self.mul_add(b, c)
    }
    #[inline(always)]
    fn sqrt(self) -> f32 {
        self.sqrt()
    }
    #[inline(always)]
    fn choose(self, is: Is, than: f32, then: f32, otherwise: f32) -> f32 {
        let chosen = match is {
            Is::Less => self < than,
            Is::LessEqual => self <= than,
            Is::Equal => self == than,
            Is::Unordered => self.is_nan() || than.is_nan(),
        };
        if chosen { then } else { otherwise }
    }
    #[inline(always)]
    fn times_power(self, shifted: f32) -> f32 {
        // Two factors: `2^k` alone may be out of range where the result is subnormal or `k` is 128.
        let k = whole_of(shifted);
        let half = k.sar::<1>();
        self * power_of_two::<f32>(half) * power_of_two::<f32>(Bits::sub(k, half))
    }
}

impl Bits for u32 {
    #[inline(always)]
    fn of(bits: u32) -> u32 {
        bits
    }
    #[inline(always)]
    fn add(self, b: u32) -> u32 {
        self.wrapping_add(b)
    }
    #[inline(always)]
    fn sub(self, b: u32) -> u32 {
        self.wrapping_sub(b)
    }
    #[inline(always)]
    fn and(self, b: u32) -> u32 {
        self & b
    }
    #[inline(always)]
    fn or(self, b: u32) -> u32 {
        self | b
    }
    #[inline(always)]
    fn shl<const BY: u32>(self) -> u32 {
        self << BY
    }
    #[inline(always)]
    fn shr<const BY: u32>(self) -> u32 {
        self >> BY
    }
    #[inline(always)]
    fn sar<const BY: u32>(self) -> u32 {
        (self.cast_signed() >> BY).cast_unsigned()
    }
}

/// The bit of the sign.
const SIGN: u32 = 0x8000_0000;

/// `1.5 * 2^23`: adding it rounds to a whole number, which is then in the low bits.
pub const ROUND: f32 = 12_582_912.0;
/// `1.5 * 2^52`, for `f64`.
const ROUND_F64: f64 = 6_755_399_441_055_744.0;
/// `ln 2` in two parts; the first has nine bits, so its multiples by an exponent are exact.
const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];

/// `(exp(r) - 1 - r) / r^2` for `|r| <= ln(2) / 2`.
const EXP: [f32; 6] = [0.5, 0.166_666_67, 0.041_666_463, 0.008_333_31, 0.001_393_388_1, 1.989_124_7e-4];
/// `(ln(1 + f) - f + f^2 / 2) / f^3` for `sqrt(1/2) <= 1 + f <= sqrt(2)`.
const LOG: [f32; 9] = [
    0.333_333_3,
    -0.249_999_97,
    0.200_007_23,
    -0.166_678_49,
    0.142_488_39,
    -0.124_242_84,
    0.116_862_126,
    -0.114_913_076,
    0.069_848_51,
];
/// `(tanh(x) - x) / x^3` in `x^2`, for `|x| <= 0.63`.
const TANH: [f32; 6] = [-0.333_333_34, 0.133_333, -0.053_958_46, 0.021_762_503, -0.008_323_187, 0.002_269_501_8];
/// `(erf(x) - x) / x` in `x^2`, for `|x| <= 0.93`.
const ERF: [f32; 7] =
    [0.128_379_17, -0.376_126_32, 0.112_836_89, -0.026_858_997, 0.005_199_989_3, -8.130_444_5e-4, 8.316_879_4e-5];
/// `(ln(1 - erf(t)) + t) / t` for `0.92 <= t <= 3.93`.
const ERFC: [f32; 7] =
    [-0.128_692_98, -0.634_933_4, -0.106_654_085, 0.024_164_092, -0.003_848_999_3, 3.766_720_5e-4, -1.682_718_4e-5];

/// The bits of `2 / pi` after the point.
const TWO_OVER_PI: [u32; 7] =
    [0xA2F9_836E, 0x4E44_1529, 0xFC27_57D1, 0xF534_DDC0, 0xDB62_9599, 0x3C43_9041, 0xFE51_63AB];

/// Angles from here on need [`sin_large`] and [`cos_large`].
pub const LARGE_ANGLE: f32 = 1_099_511_627_776.0;

/// The polynomial with these coefficients, the constant first.
#[inline(always)]
fn polynomial<T: Real, const N: usize>(coefficients: [f32; N], x: T) -> T {
    let mut sum = T::of(coefficients[N - 1]);
    for i in (0..N - 1).rev() {
        sum = sum.mul_add(x, T::of(coefficients[i]));
    }
    sum
}

#[inline(always)]
fn polynomial_f64<const N: usize>(coefficients: [f64; N], x: f64) -> f64 {
    let mut sum = coefficients[N - 1];
    for i in (0..N - 1).rev() {
        sum = sum.mul_add(x, coefficients[i]);
    }
    sum
}

/// `2^k` for `-126 <= k <= 127`; any bits otherwise.
#[inline(always)]
fn power_of_two<T: Real>(k: T::Bits) -> T {
    T::from_bits(k.add(Bits::of(127)).shl::<23>())
}

/// `(`[`ROUND`]` + k, exp(r) - 1)` with `x = k ln(2) + r`, `|r| <= ln(2) / 2`, for `|x| < 2^21`.
#[inline(always)]
fn exp_parts<T: Real>(x: T) -> (T, T) {
    let shifted = x.mul_add(T::of(std::f32::consts::LOG2_E), T::of(ROUND));
    let whole = shifted - T::of(ROUND);
    let r = whole.mul_add(T::of(-LN_2[1]), whole.mul_add(T::of(-LN_2[0]), x));
    let tail = (r * r).mul_add(polynomial(EXP, r), r);
    (shifted, tail)
}

/// The whole number in the low bits.
#[inline(always)]
fn whole_of<T: Real>(shifted: T) -> T::Bits {
    shifted.to_bits().sub(Bits::of(ROUND.to_bits()))
}

/// `x` kept within `low..=high`; NaN stays.
#[inline(always)]
fn clamp<T: Real>(x: T, low: f32, high: f32) -> T {
    let (low, high) = (T::of(low), T::of(high));
    let x = x.choose(Is::Less, low, low, x);
    high.choose(Is::Less, x, high, x)
}

/// `exp(x)` for `|x| <= 87`; within 1 ULP.
#[inline(always)]
fn exp_normal<T: Real>(x: T) -> T {
    let (shifted, tail) = exp_parts(x);
    (T::of(1.0) + tail) * power_of_two(whole_of(shifted))
}

/// `e^x`; within 1 ULP.
#[inline(always)]
pub fn exp<T: Real>(x: T) -> T {
    let (shifted, tail) = exp_parts(clamp(x, -104.0, 89.0));
    (T::of(1.0) + tail).times_power(shifted)
}

/// `e^x - 1`; within 2 ULP.
#[inline(always)]
pub fn expm1<T: Real>(x: T) -> T {
    let (shifted, tail) = exp_parts(clamp(x, -20.0, 89.0));
    // Halved: `2^128` is out of range where the result is not.
    let half: T = power_of_two(whole_of(shifted).sub(Bits::of(1)));
    (T::of(2.0) * half.mul_add(tail, half - T::of(0.5))).keeping_zero(x)
}

/// `ln(m 2^e)` for `m` in `sqrt(1/2)..sqrt(2)` and `f = m - 1`.
#[inline(always)]
fn log_parts<T: Real>(f: T, e: T::Bits) -> T {
    let e = T::from_whole(e);
    let square = f * f;
    let tail = (f * square).mul_add(polynomial(LOG, f), e * T::of(LN_2[1]));
    e.mul_add(T::of(LN_2[0]), f + square.mul_add(T::of(-0.5), tail))
}

/// The exponent `e` that leaves `x / 2^e` within `sqrt(1/2)..sqrt(2)`, and that quotient.
#[inline(always)]
fn balanced<T: Real>(x: T) -> (T::Bits, T) {
    let bits = x.to_bits();
    let e = bits.sub(Bits::of(std::f32::consts::FRAC_1_SQRT_2.to_bits())).sar::<23>();
    (e, T::from_bits(bits.sub(e.shl::<23>())))
}

/// The logarithm where `y` is it for positive finite `x`.
#[inline(always)]
fn log_edges<T: Real>(x: T, y: T) -> T {
    let zero = T::of(0.0);
    let positive = x.choose(Is::Less, T::of(f32::INFINITY), y, x);
    let other = x.choose(Is::Equal, zero, T::of(f32::NEG_INFINITY), T::of(f32::NAN));
    zero.choose(Is::Less, x, positive, other)
}

/// `ln(x)`; within 1 ULP.
#[inline(always)]
pub fn log<T: Real>(x: T) -> T {
    let least = T::of(f32::MIN_POSITIVE);
    let normal = x.choose(Is::Less, least, x * T::of(8_388_608.0), x);
    let scaled = x.choose(Is::Less, least, T::from_bits(Bits::of(23)), T::of(0.0));
    let (e, m) = balanced(normal);
    log_edges(x, log_parts(m - T::of(1.0), e.sub(scaled.to_bits())))
}

/// `ln(1 + x)`; within 2 ULP.
#[inline(always)]
pub fn log1p<T: Real>(x: T) -> T {
    let one = T::of(1.0);
    let u = one + x;
    let lost = x - (u - one);
    let (e, m) = balanced(u);
    // What the sum has lost no longer matters where the exponent is large.
    let (down, least) = (T::from_bits(T::Bits::of(0).sub(e)), T::from_bits(Bits::of(100u32.wrapping_neg())));
    let scale: T = power_of_two(T::from_whole(e).choose(Is::Less, T::of(100.0), down, least).to_bits());
    log_edges(u, log_parts((m - one) + lost * scale, e)).keeping_zero(x)
}

/// `x^(1/2)`, correctly rounded.
#[inline(always)]
pub fn sqrt<T: Real>(x: T) -> T {
    x.sqrt()
}

/// `x^(-1/2)`; within 1.5 ULP.
#[inline(always)]
pub fn rsqrt<T: Real>(x: T) -> T {
    T::of(1.0) / x.sqrt()
}

/// `sin(r + q pi / 2)` for `|r| <= 1`.
#[inline(always)]
fn sin_quadrant(q: u32, r: f64) -> f32 {
    const SIN: [f64; 6] =
        [-1.0 / 6.0, 1.0 / 120.0, -1.0 / 5_040.0, 1.0 / 362_880.0, -1.0 / 39_916_800.0, 1.0 / 6_227_020_800.0];
    const COS: [f64; 7] = [
        -0.5,
        1.0 / 24.0,
        -1.0 / 720.0,
        1.0 / 40_320.0,
        -1.0 / 3_628_800.0,
        1.0 / 479_001_600.0,
        -1.0 / 87_178_291_200.0,
    ];
    let square = r * r;
    let sin = (r * square).mul_add(polynomial_f64(SIN, square), r);
    let cos = square.mul_add(polynomial_f64(COS, square), 1.0);
    let magnitude = if q & 1 == 0 { sin } else { cos };
    (if q & 2 == 0 { magnitude } else { -magnitude }) as f32
}

/// `(q, r)` with `x = q pi / 2 + r` and `|r| <= 1`, the lowest two bits of `q` right, for `|x| < LARGE_ANGLE`.
#[inline(always)]
fn quadrant(x: f32) -> (u32, f64) {
    const HALF_PI: [f64; 2] = [std::f64::consts::FRAC_PI_2, 6.123_233_995_736_766e-17];
    let x = f64::from(x);
    let shifted = x.mul_add(std::f64::consts::FRAC_2_PI, ROUND_F64);
    let whole = shifted - ROUND_F64;
    (shifted.to_bits() as u32, whole.mul_add(-HALF_PI[1], whole.mul_add(-HALF_PI[0], x)))
}

/// [`quadrant`] for finite `|x| >= LARGE_ANGLE`: the product with the bits of `2 / pi` that matter.
fn quadrant_large(x: f32) -> (u32, f64) {
    let exponent = ((x.to_bits() >> 23) & 0xFF) as usize - 150;
    let mantissa = u128::from((x.to_bits() & 0x7F_FFFF) | 0x80_0000);
    // Bits of weight 2 and below in the product start here; 96 of them leave an error below 2^-70.
    let first = exponent - 2;
    let mut window = 0u128;
    for word in 0..4 {
        window = window << 32 | u128::from(TWO_OVER_PI.get(first / 32 + word).copied().unwrap_or(0));
    }
    let window = (window << (first % 32)) >> 32;
    let product = (mantissa * window) & ((1 << 96) - 1);
    let q = (product + (1 << 93)) >> 94;
    let rest = product as i128 - (q << 94) as i128;
    let r = rest as f64 * (-94f64).exp2() * std::f64::consts::FRAC_PI_2;
    if x < 0.0 { ((q as u32).wrapping_neg(), -r) } else { (q as u32, r) }
}

/// The sine of `x` radians for `|x| < LARGE_ANGLE`; within 1 ULP.
#[inline(always)]
pub fn sin(x: f32) -> f32 {
    let (q, r) = quadrant(x);
    let result = sin_quadrant(q, r);
    if x == 0.0 { x } else { result }
}

/// The cosine of `x` radians for `|x| < LARGE_ANGLE`; within 1 ULP.
#[inline(always)]
pub fn cos(x: f32) -> f32 {
    let (q, r) = quadrant(x);
    sin_quadrant(q.wrapping_add(1), r)
}

/// The sine where [`sin`] does not reach: large angles, infinities (NaN) and NaN; within 1 ULP.
#[cold]
pub fn sin_large(x: f32) -> f32 {
    if !x.is_finite() {
        return f32::NAN;
    }
    let (q, r) = quadrant_large(x);
    sin_quadrant(q, r)
}

/// The cosine where [`cos`] does not reach; see [`sin_large`].
#[cold]
pub fn cos_large(x: f32) -> f32 {
    if !x.is_finite() {
        return f32::NAN;
    }
    let (q, r) = quadrant_large(x);
    sin_quadrant(q.wrapping_add(1), r)
}

/// The hyperbolic tangent; within 2 ULP.
#[inline(always)]
pub fn tanh<T: Real>(x: T) -> T {
    let square = x * x;
    let small = (x * square).mul_add(polynomial(TANH, square), x).keeping_zero(x);
    let (t, most, one, two) = (x.abs(), T::of(10.0), T::of(1.0), T::of(2.0));
    // From 10 on the result is 1.
    let e = exp_normal(two * most.choose(Is::Less, t, most, t));
    let large = (one - two / (e + one)).copysign(x);
    t.choose(Is::Less, T::of(0.625), small, large)
}

/// The error function; within 2 ULP.
#[inline(always)]
pub fn erf<T: Real>(x: T) -> T {
    let small = x.mul_add(polynomial(ERF, x * x), x);
    let (t, most) = (x.abs(), T::of(4.0));
    // From 3.92 on the result is 1.
    let t = most.choose(Is::Less, t, most, t);
    let large = (T::of(1.0) - exp_normal(t.mul_add(polynomial(ERFC, t), -t))).copysign(x);
    t.choose(Is::Less, T::of(0.925), small, large)
}

/// `1 / (1 + e^-x)`; within 2 ULP.
#[inline(always)]
pub fn sigmoid<T: Real>(x: T) -> T {
    let one = T::of(1.0);
    // The exponential of the negative side neither overflows nor loses what is small.
    let e = exp(-x.abs());
    let numerator = x.choose(Is::Less, T::of(0.0), e, one);
    let sum = one + e;
    let quotient = numerator / sum;
    // One Newton step takes back what the sum and the division have rounded off; a straight line is near enough to 1 / sum.
    let rest = (-quotient).mul_add(e - (sum - one), (-quotient).mul_add(sum, numerator));
    rest.mul_add(sum.mul_add(T::of(-0.5), T::of(1.457)), quotient)
}

/// The nearest bf16, halves to even; NaN stays NaN.
#[inline(always)]
pub fn round_to_bf16<T: Real>(x: T) -> T {
    T::from_bits(bf16_above(x).and(Bits::of(0xFFFF_0000)))
}

/// Bits whose upper half is the nearest bf16.
#[inline(always)]
pub fn bf16_above<T: Real>(x: T) -> T::Bits {
    let bits = x.to_bits();
    let odd = bits.shr::<16>().and(Bits::of(1));
    let rounded = bits.add(odd.add(Bits::of(0x7FFF)));
    let quiet = bits.or(Bits::of(0x0040_0000));
    x.choose(Is::Unordered, x, T::from_bits(quiet), T::from_bits(rounded)).to_bits()
}

/// `a^b`; within 1 ULP. Special cases are those of IEEE 754 `pow`.
#[inline(always)]
pub fn pow(a: f32, b: f32) -> f32 {
    let magnitude = pow_positive(a.abs(), b);
    let whole = b as i32;
    let integral = b.abs() >= 8_388_608.0 || whole as f32 == b;
    let odd = b.abs() < 16_777_216.0 && integral && whole & 1 == 1;
    let negative = a.is_sign_negative();
    let signed = if negative && odd { -magnitude } else { magnitude };
    // A negative base has no real power with a fraction; zero and infinity have.
    let none = a < 0.0 && !integral && a != f32::NEG_INFINITY;
    let result = if none { f32::NAN } else { signed };
    if b == 0.0 || a == 1.0 { 1.0 } else { result }
}

/// `a^b` for `a >= 0` in `f64`, which leaves bits to spare.
#[inline(always)]
fn pow_positive(a: f32, b: f32) -> f32 {
    const ATANH: [f64; 8] = [1.0, 1.0 / 3.0, 1.0 / 5.0, 1.0 / 7.0, 1.0 / 9.0, 1.0 / 11.0, 1.0 / 13.0, 1.0 / 15.0];
    const EXP: [f64; 12] = [
        1.0,
        1.0,
        1.0 / 2.0,
        1.0 / 6.0,
        1.0 / 24.0,
        1.0 / 120.0,
        1.0 / 720.0,
        1.0 / 5_040.0,
        1.0 / 40_320.0,
        1.0 / 362_880.0,
        1.0 / 3_628_800.0,
        1.0 / 39_916_800.0,
    ];
    // Every positive f32 is a normal f64.
    let bits = f64::from(a).to_bits();
    let e = (bits.wrapping_sub(std::f64::consts::FRAC_1_SQRT_2.to_bits()) as i64) >> 52;
    let m = f64::from_bits(bits.wrapping_sub((e << 52) as u64));
    let s = (m - 1.0) / (m + 1.0);
    let log2 = (s * polynomial_f64(ATANH, s * s)).mul_add(2.0 * std::f64::consts::LOG2_E, e as i32 as f64);
    let edge = if a == 0.0 { f64::NEG_INFINITY } else { f64::INFINITY };
    let log2 = if a > 0.0 && a < f32::INFINITY { log2 } else { edge };
    let log2 = if a.is_nan() { f64::NAN } else { log2 };
    let log2 = if a == 1.0 { 0.0 } else { log2 };
    let product = f64::from(b) * log2;
    // One to an infinite power is one.
    let product = if a == 1.0 && !b.is_nan() { 0.0 } else { product };
    let product = if product < -200.0 { -200.0 } else { product };
    let product = if product > 200.0 { 200.0 } else { product };
    let shifted = product + ROUND_F64;
    let fraction = (product - (shifted - ROUND_F64)) * std::f64::consts::LN_2;
    let k = (shifted.to_bits() as u32) as i32;
    let scale = f64::from_bits(((i64::from(k) + 1023) as u64) << 52);
    (polynomial_f64(EXP, fraction) * scale) as f32
}
