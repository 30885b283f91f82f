//! How parameters start: a pure function of seed, name and place, so that neither the order of declarations nor the
//! number of threads changes a value.

use std::fmt;

use tenon_graph::random::{node_key, philox2x32_many};

use crate::model::Parameter;

/// Which connections of a weight a scaled initialiser counts. A weight is `[out, in, window..]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fan {
    /// Those that an output receives: `in` times the window.
    In,
    /// Those that an input feeds: `out` times the window.
    Out,
    /// The mean of both.
    Average,
}

/// The shape of a distribution of mean 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Distribution {
    /// Gaussian.
    Normal,
    /// Equally likely between two bounds.
    Uniform,
}

/// How a parameter starts.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Initialiser {
    /// One value everywhere.
    Constant(f64),
    /// Gaussian with mean 0.
    Normal {
        /// The standard deviation.
        std: f64,
    },
    /// Gaussian with mean 0, redrawn beyond two standard deviations.
    TruncatedNormal {
        /// The standard deviation before truncation.
        std: f64,
    },
    /// Equally likely between two bounds.
    Uniform {
        /// The lower bound.
        low: f64,
        /// The upper bound.
        high: f64,
    },
    /// Mean 0 and standard deviation `gain / sqrt(fan)`: Kaiming's and Xavier's.
    Scaled {
        /// The connections counted.
        fan: Fan,
        /// The factor, which depends on the activation.
        gain: f64,
        /// The distribution.
        distribution: Distribution,
    },
}

/// The probability of a normal number beyond two standard deviations below its mean, where a truncated one is cut.
const BELOW_CUT: f64 = 0.022_750_131_948_179_205;

/// The inputs and outputs that a weight of this shape connects.
fn fans(shape: &[usize]) -> Option<(f64, f64)> {
    let [out, input, window @ ..] = shape else { return None };
    let window: f64 = window.iter().map(|n| *n as f64).product();
    Some((*input as f64 * window, *out as f64 * window))
}

impl Initialiser {
    /// What PyTorch's `Linear` and `Conv` start their weights with: uniform within `1 / sqrt(fan in)`.
    pub const TORCH_WEIGHT: Initialiser = Initialiser::Scaled {
        fan: Fan::In,
        // kaiming_uniform_ with a = sqrt(5): sqrt(2 / (1 + 5)).
        gain: 0.577_350_269_189_625_8,
        distribution: Distribution::Uniform,
    };

    /// What PyTorch's `Linear` and `Conv` start their biases with, for a weight of this shape.
    pub fn torch_bias(weight: &[usize]) -> Initialiser {
        let (fan_in, _) = fans(weight).unwrap_or((1.0, 1.0));
        let bound = if fan_in > 0.0 { 1.0 / fan_in.sqrt() } else { 0.0 };
        Initialiser::Uniform { low: -bound, high: bound }
    }

    /// Why this cannot start a parameter of this shape.
    pub(crate) fn check(&self, shape: &[usize]) -> Result<(), String> {
        let numbers = match *self {
            Initialiser::Constant(value) => value.is_finite(),
            Initialiser::Normal { std } | Initialiser::TruncatedNormal { std } => std >= 0.0 && std.is_finite(),
            Initialiser::Uniform { low, high } => low <= high && (high - low).is_finite(),
            Initialiser::Scaled { gain, .. } => gain >= 0.0 && gain.is_finite(),
        };
        match self {
            _ if !numbers => Err(format!("{self} is no distribution")),
            Initialiser::Scaled { .. } if shape.len() < 2 => {
                Err(format!("its initialiser counts connections ({self}), and {shape:?} is no weight [out, in, ..]"))
            }
            _ => Ok(()),
        }
    }

    /// This initialiser for parameters of `shape` without reference to connections.
    fn resolved(self, shape: &[usize]) -> Initialiser {
        let Initialiser::Scaled { fan, gain, distribution } = self else { return self };
        let (fan_in, fan_out) = fans(shape).expect("checked when declared");
        let count = match fan {
            Fan::In => fan_in,
            Fan::Out => fan_out,
            Fan::Average => (fan_in + fan_out) / 2.0,
        };
        let std = if count > 0.0 { gain / count.sqrt() } else { 0.0 };
        match distribution {
            Distribution::Normal => Initialiser::Normal { std },
            Distribution::Uniform => {
                let bound = 3f64.sqrt() * std;
                Initialiser::Uniform { low: -bound, high: bound }
            }
        }
    }
}

impl fmt::Display for Initialiser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Initialiser::Constant(value) => write!(f, "constant({value:?})"),
            Initialiser::Normal { std } => write!(f, "normal({std:?})"),
            Initialiser::TruncatedNormal { std } => write!(f, "truncated_normal({std:?})"),
            Initialiser::Uniform { low, high } => write!(f, "uniform({low:?}, {high:?})"),
            Initialiser::Scaled { fan, gain, distribution } => {
                let fan = match fan {
                    Fan::In => "inputs",
                    Fan::Out => "outputs",
                    Fan::Average => "mean of inputs and outputs",
                };
                let shape = match distribution {
                    Distribution::Normal => "normal",
                    Distribution::Uniform => "uniform",
                };
                write!(f, "{shape} of standard deviation {gain:.4} / sqrt({fan})")
            }
        }
    }
}

/// The starting value of `parameter`, row-major.
///
/// Element `i` is a function of (seed, name, i) alone: word `i % 2` of Philox at the counter `i / 2`, keyed by seed and name,
/// through the inverse of the distribution function.
pub fn initialise(parameter: &Parameter, seed: u64) -> Vec<f32> {
    let mut values = vec![0.0; parameter.elements()];
    start(parameter, seed, &mut values, |value| value);
    values
}

/// Like [`initialise`], into the bytes of a buffer, little-endian: large weights are not held twice.
///
/// # Panics
/// If the buffer has not four bytes for each element of the parameter.
pub fn initialise_into(parameter: &Parameter, seed: u64, buffer: &mut [u8]) {
    assert_eq!(buffer.len(), 4 * parameter.elements(), "{}", parameter.name);
    start(parameter, seed, buffer.as_chunks_mut().0, f32::to_le_bytes);
}

/// Writes the starting value of `parameter`, each element in the form that `store` gives it.
fn start<T: Send>(parameter: &Parameter, seed: u64, values: &mut [T], store: impl Fn(f32) -> T + Copy + Send) {
    let init = parameter.init.resolved(&parameter.shape);
    if let Initialiser::Constant(value) = init {
        return values.fill_with(|| store(value as f32));
    }
    let key = stream_key(seed, &parameter.name);
    if values.len() <= CHUNK {
        return pulp::Arch::new().dispatch(Draw { init, key, first: 0, values, store });
    }
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = values.len().div_ceil(threads).next_multiple_of(CHUNK);
    std::thread::scope(|scope| {
        for (i, values) in values.chunks_mut(share).enumerate() {
            scope.spawn(move || pulp::Arch::new().dispatch(Draw { init, key, first: i * share, values, store }));
        }
    });
}

/// Elements that are computed together: enough for vectors, few enough for the innermost cache.
const BLOCK: usize = 64;

/// The least share of a thread, a multiple of a block.
const CHUNK: usize = 1 << 16;

/// Elements of a parameter from `first`, a multiple of a block, on.
///
/// All that is inlined into it is compiled for several instruction sets, of which the processor's best is taken.
struct Draw<'a, T, F> {
    /// No constant, and resolved.
    init: Initialiser,
    key: u32,
    first: usize,
    values: &'a mut [T],
    store: F,
}

impl<T, F: Fn(f32) -> T> pulp::WithSimd for Draw<'_, T, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) {
        for (i, values) in self.values.chunks_mut(BLOCK).enumerate() {
            let mut block = uniforms(self.first + i * BLOCK, self.key);
            match self.init {
                Initialiser::Normal { std } => {
                    inverse_normals(&mut block);
                    block.iter_mut().for_each(|x| *x *= std);
                }
                Initialiser::TruncatedNormal { std } => {
                    block.iter_mut().for_each(|u| *u = BELOW_CUT + *u * (1.0 - 2.0 * BELOW_CUT));
                    inverse_normals(&mut block);
                    block.iter_mut().for_each(|x| *x *= std);
                }
                Initialiser::Uniform { low, high } => block.iter_mut().for_each(|u| *u = low + *u * (high - low)),
                Initialiser::Constant(_) | Initialiser::Scaled { .. } => unreachable!("replaced by the caller"),
            }
            for (value, x) in values.iter_mut().zip(block) {
                *value = (self.store)(x as f32);
            }
        }
    }
}

/// The uniform numbers in (0, 1) of the elements from `first`, an even number, on.
#[inline(always)]
fn uniforms(first: usize, key: u32) -> [f64; BLOCK] {
    let (mut low, mut high) = ([0; BLOCK / 2], [0; BLOCK / 2]);
    for (i, (low, high)) in low.iter_mut().zip(&mut high).enumerate() {
        let index = (first / 2 + i) as u64;
        (*low, *high) = (u64::from(index as u32), index >> 32);
    }
    let [evens, odds] = philox2x32_many([low, high], key);
    // A word in the lowest bits of 2^52 is that many units more. Taken off again, it is a float, exact as all that follows.
    const TWO_52: f64 = 4_503_599_627_370_496.0;
    let uniform = |word: u64| (f64::from_bits(TWO_52.to_bits() | word) - (TWO_52 - 0.5)) / 4_294_967_296.0;
    let mut uniforms = [0.0; BLOCK];
    for (pair, (even, odd)) in uniforms.as_chunks_mut().0.iter_mut().zip(evens.into_iter().zip(odds)) {
        *pair = [uniform(even), uniform(odd)];
    }
    uniforms
}

/// The key of the random numbers that belong to a seed and a name, of which it takes the 64-bit FNV-1a hash.
fn stream_key(seed: u64, name: &str) -> u32 {
    let hash: u64 =
        name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    let by_seed = node_key([seed as u32, (seed >> 32) as u32], hash as u32);
    node_key([by_seed, hash as u32], (hash >> 32) as u32)
}

/// Numerator and denominator of [`central`].
const A: [f64; 6] = [
    -3.969683028665376e+01,
    2.209460984245205e+02,
    -2.759285104469687e+02,
    1.38357751867269e+02,
    -3.066479806614716e+01,
    2.506628277459239e+00,
];
const B: [f64; 6] = [
    -5.447609879822406e+01,
    1.615858368580409e+02,
    -1.556989798598866e+02,
    6.680131188771972e+01,
    -1.328068155288572e+01,
    1.0,
];
/// Numerator and denominator of [`tail`].
const C: [f64; 6] = [
    -7.784894002430293e-03,
    -3.223964580411365e-01,
    -2.400758277161838e+00,
    -2.549732539343734e+00,
    4.374664141464968e+00,
    2.938163982698783e+00,
];
const D: [f64; 5] = [7.784695709041462e-03, 3.224671290700398e-01, 2.445134137142996e+00, 3.754408661907416e+00, 1.0];
/// Below this probability, and above one less it, the tail's own approximation holds.
const TAIL: f64 = 0.02425;

/// Replaces each probability in (0, 1) by the inverse of the standard normal distribution function.
///
/// A rational approximation of relative error 1.15e-9 (P. J. Acklam, "An algorithm for computing the inverse normal
/// cumulative distribution function", 2003), finer than the 32 random bits that go in. Only `libm` and exact arithmetic:
/// the same bits on every machine. The central one is computed for all, in vectors, and replaced in the tails, 1 in 20.
#[inline(always)]
fn inverse_normals(block: &mut [f64; BLOCK]) {
    let mut tails = [0; BLOCK];
    let mut count = 0;
    for (i, p) in block.iter().enumerate() {
        // Without a branch, which nothing could predict.
        tails[count % BLOCK] = i;
        count += usize::from((*p < TAIL) | (*p > 1.0 - TAIL));
    }
    let probabilities = *block;
    block.iter_mut().for_each(|p| *p = central(*p));
    for i in &tails[..count] {
        block[*i] = tail(probabilities[*i]);
    }
}

/// The inverse of the standard normal distribution function away from the tails.
#[inline(always)]
fn central(p: f64) -> f64 {
    let q = p - 0.5;
    let r = q * q;
    q * polynomial(&A, r) / polynomial(&B, r)
}

/// The inverse of the standard normal distribution function in the tails.
fn tail(p: f64) -> f64 {
    let q = (-2.0 * libm::log(p.min(1.0 - p))).sqrt();
    let x = polynomial(&C, q) / polynomial(&D, q);
    if p < 0.5 { x } else { -x }
}

/// The polynomial with these coefficients, the highest power's first.
#[inline(always)]
fn polynomial<const N: usize>(coefficients: &[f64; N], x: f64) -> f64 {
    coefficients[1..].iter().fold(coefficients[0], |sum, c| sum * x + c)
}

#[cfg(test)]
#[path = "init_tests.rs"]
mod tests;
