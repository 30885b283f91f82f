//! How parameters start: a pure function of seed, name and place, so that neither the order of declarations nor the
//! number of threads changes a value.

use std::fmt;

use tenon_graph::random::{node_key, philox2x32};

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

/// Beyond how many standard deviations a truncated normal is cut.
const CUT: f64 = 2.0;

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
                Err(format!("{self} counts connections, and {shape:?} is no weight [out, in, ..]"))
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
                write!(f, "scaled({fan:?}, {gain:?}, {distribution:?})")
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
    initialise_into(parameter, seed, &mut values);
    values
}

/// Like [`initialise`], into a buffer of as many elements as the parameter has.
pub fn initialise_into(parameter: &Parameter, seed: u64, values: &mut [f32]) {
    assert_eq!(values.len(), parameter.elements(), "{}", parameter.name);
    let key = stream_key(seed, &parameter.name);
    match parameter.init.resolved(&parameter.shape) {
        Initialiser::Constant(value) => values.fill(value as f32),
        Initialiser::Normal { std } => fill(values, key, |u| inverse_normal(u) * std),
        Initialiser::TruncatedNormal { std } => {
            let below = cumulative_normal(-CUT);
            fill(values, key, |u| inverse_normal(below + u * (1.0 - 2.0 * below)) * std);
        }
        Initialiser::Uniform { low, high } => fill(values, key, |u| low + u * (high - low)),
        Initialiser::Scaled { .. } => unreachable!("resolved above"),
    }
}

/// The least share of a thread, a multiple of the two elements that one block of random bits gives.
const CHUNK: usize = 1 << 16;

/// Each element from its own uniform number in (0, 1).
fn fill(values: &mut [f32], key: u32, from_uniform: impl Fn(f64) -> f64 + Sync) {
    let chunk = |first: usize, part: &mut [f32]| {
        for (block, pair) in part.chunks_mut(2).enumerate() {
            let index = (first / 2 + block) as u64;
            let bits = philox2x32([index as u32, (index >> 32) as u32], key);
            for (value, bits) in pair.iter_mut().zip(bits) {
                *value = from_uniform((f64::from(bits) + 0.5) / 4_294_967_296.0) as f32;
            }
        }
    };
    if values.len() <= CHUNK {
        return chunk(0, values);
    }
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = values.len().div_ceil(threads).next_multiple_of(CHUNK);
    std::thread::scope(|scope| {
        for (i, part) in values.chunks_mut(share).enumerate() {
            let chunk = &chunk;
            scope.spawn(move || chunk(i * share, part));
        }
    });
}

/// The key of the random numbers that belong to a seed and a name, of which it takes the 64-bit FNV-1a hash.
fn stream_key(seed: u64, name: &str) -> u32 {
    let hash: u64 =
        name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    let by_seed = node_key([seed as u32, (seed >> 32) as u32], hash as u32);
    node_key([by_seed, hash as u32], (hash >> 32) as u32)
}

/// The standard normal distribution function.
fn cumulative_normal(x: f64) -> f64 {
    0.5 * libm::erfc(-x * std::f64::consts::FRAC_1_SQRT_2)
}

/// The inverse of the standard normal distribution function on (0, 1).
///
/// A rational approximation of relative error 1.15e-9 (P. J. Acklam, "An algorithm for computing the inverse normal
/// cumulative distribution function", 2003), finer than the 32 random bits that go in. Only `libm` and exact arithmetic:
/// the same bits on every machine.
fn inverse_normal(p: f64) -> f64 {
    const A: [f64; 6] = [
        -3.969683028665376e+01,
        2.209460984245205e+02,
        -2.759285104469687e+02,
        1.383577518672690e+02,
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
    const C: [f64; 6] = [
        -7.784894002430293e-03,
        -3.223964580411365e-01,
        -2.400758277161838e+00,
        -2.549732539343734e+00,
        4.374664141464968e+00,
        2.938163982698783e+00,
    ];
    const D: [f64; 5] =
        [7.784695709041462e-03, 3.224671290700398e-01, 2.445134137142996e+00, 3.754408661907416e+00, 1.0];
    /// Below this probability the tail's own approximation holds.
    const TAIL: f64 = 0.02425;
    let tail = |p: f64| {
        let q = (-2.0 * libm::log(p)).sqrt();
        polynomial(&C, q) / polynomial(&D, q)
    };
    if p < TAIL {
        tail(p)
    } else if p > 1.0 - TAIL {
        -tail(1.0 - p)
    } else {
        let q = p - 0.5;
        let r = q * q;
        q * polynomial(&A, r) / polynomial(&B, r)
    }
}

/// The polynomial with these coefficients, the highest power's first.
fn polynomial(coefficients: &[f64], x: f64) -> f64 {
    coefficients.iter().fold(0.0, |sum, c| sum * x + c)
}

#[cfg(test)]
#[path = "init_tests.rs"]
mod tests;
