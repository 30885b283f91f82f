//! The shuffle: a keyed bijection over 0..n, computed for one index at a time, and the counter-based hash behind it.
//!
//! Nothing is stored: position *i* of epoch *e* is found in constant time from (seed, e, i), so a restart, another
//! number of workers or another order of access meets the same samples. The bijection is a balanced Feistel network over
//! the next even power of two with cycle walking (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002).

const ROUNDS: u64 = 6;
/// Bits of the smallest half. Narrower halves have too few round functions to reach all orders of a handful of samples fairly.
const SMALLEST_HALF: u32 = 4;

/// What a random number is for; each purpose has its own stream.
#[derive(Clone, Copy)]
pub(crate) enum Stream {
    /// The order of the samples of an epoch.
    Order = 1,
    /// Where the first window of an epoch starts.
    Phase = 2,
    /// Which samples a stratified split holds out.
    Stratified = 3,
    /// The order of samples of one length.
    Lengths = 4,
    /// The order of batches of one length.
    Batches = 5,
    /// Which tokens are masked, and by what.
    Mask = 6,
    /// How a training picture is changed.
    Augment = 7,
    /// How two training pictures are mixed.
    Mix = 8,
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): a bijection of 64 bits in which every input bit reaches
/// every output bit.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// 64 random bits: a pure function of its arguments.
pub(crate) fn random(seed: u64, stream: Stream, counter: u64) -> u64 {
    mix(mix(mix(seed) ^ stream as u64) ^ counter)
}

/// A number below `n` (`n` > 0), by multiplication; the bias is below n / 2^64.
pub(crate) fn random_below(seed: u64, stream: Stream, counter: u64, n: u64) -> u64 {
    ((u128::from(random(seed, stream, counter)) * u128::from(n)) >> 64) as u64
}

/// The sample that stands at `index` (< `n`) in the shuffled order of `epoch`: for fixed (seed, epoch) a bijection of 0..n.
pub(crate) fn shuffled(seed: u64, epoch: u64, index: u64, n: u64) -> u64 {
    assert!(index < n, "index {index} of {n} samples");
    let bits = 64 - (n - 1).leading_zeros();
    let half = bits.div_ceil(2).max(SMALLEST_HALF);
    let mask = (1u64 << half) - 1;
    let key = random(seed, Stream::Order, epoch);
    let mut x = index;
    // The walk follows the cycle that `index` lies on, so it returns below n; the domain is at most 4n (or 256), so it is short.
    loop {
        let (mut left, mut right) = (x >> half, x & mask);
        for round in 0..ROUNDS {
            let next = left ^ (mix(key ^ mix(round << 32 ^ right)) & mask);
            left = right;
            right = next;
        }
        x = left << half | right;
        if x < n {
            return x;
        }
    }
}

/// Random numbers of one sample for one purpose, one after the other.
pub(crate) struct Draws {
    stream: Stream,
    key: u64,
    count: u64,
}

impl Draws {
    /// Those of the sample at `index` of `epoch`.
    pub fn new(stream: Stream, (seed, epoch, index): (u64, u64, u64)) -> Draws {
        Draws { stream, key: random(random(seed, stream, epoch), stream, index), count: 0 }
    }

    pub fn bits(&mut self) -> u64 {
        self.count += 1;
        random(self.key, self.stream, self.count)
    }

    /// From 0 to below 1.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// A whole number from 0 to `most`, inclusive.
    pub fn up_to(&mut self, most: usize) -> usize {
        (self.unit() * (most + 1) as f64) as usize
    }
}

#[cfg(test)]
mod tests;
