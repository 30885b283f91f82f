//! The random numbers of Tenon: Philox2x32-10, a counter-based generator (Salmon et al. 2011, "Parallel Random Numbers:
//! As Easy as 1, 2, 3"). Any element can be drawn alone, in any order, with the same bits.

/// Philox2x32 with ten rounds: a bijection of the counter for each key.
pub fn philox2x32(counter: [u32; 2], key: u32) -> [u32; 2] {
    philox2x32_many(counter.map(|word| [u64::from(word)]), key).map(|[word]| word as u32)
}

/// [`philox2x32`] of many counters, first words and second words apart. Each word has 64 bits to itself, where vector
/// instructions leave a product: the upper 32 are zeros.
#[inline(always)]
pub fn philox2x32_many<const N: usize>(counters: [[u64; N]; 2], mut key: u32) -> [[u64; N]; 2] {
    const MULTIPLIER: u64 = 0xD256_D193;
    const WEYL: u32 = 0x9E37_79B9;
    let [mut first, mut second] = counters;
    for _ in 0..10 {
        for (a, b) in first.iter_mut().zip(&mut second) {
            let product = MULTIPLIER * u64::from(*a as u32);
            *a = (product >> 32) ^ u64::from(key) ^ *b;
            *b = u64::from(product as u32);
        }
        key = key.wrapping_add(WEYL);
    }
    [first, second]
}

/// The Philox key of one random node: the node's stream applied to the key of the step.
pub fn node_key(key: [u32; 2], stream: u32) -> u32 {
    philox2x32(key, stream)[0]
}

/// The random bits of element `index` (row-major) of a node with this key and stream: what `Op::Random` means.
///
/// A kernel computes [`node_key`] once and then the first word of [`philox2x32`] of each index, low word first.
pub fn random_bits(key: [u32; 2], stream: u32, index: u64) -> u32 {
    philox2x32([index as u32, (index >> 32) as u32], node_key(key, stream))[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers of Random123's `kat_vectors` for `philox2x32 10`.
    #[test]
    fn philox_gives_the_known_answers() {
        assert_eq!(philox2x32([0, 0], 0), [0xff1dae59, 0x6cd10df2]);
        assert_eq!(philox2x32([u32::MAX, u32::MAX], u32::MAX), [0x2c3f628b, 0xab4fd7ad]);
        assert_eq!(philox2x32([0x243f6a88, 0x85a308d3], 0x13198a2e), [0xdd7ce038, 0xf62a4c12]);
    }

    #[test]
    fn keys_streams_and_indices_all_matter() {
        let base = random_bits([1, 2], 3, 4);
        assert_eq!(base, random_bits([1, 2], 3, 4));
        for other in
            [random_bits([2, 2], 3, 4), random_bits([1, 3], 3, 4), random_bits([1, 2], 4, 4), random_bits([1, 2], 3, 5)]
        {
            assert_ne!(base, other);
        }
        assert_ne!(random_bits([1, 2], 3, 1 << 32), random_bits([1, 2], 3, 0));
    }

    #[test]
    fn bits_are_uniform() {
        let n = 1u64 << 16;
        let uniform = |i| f64::from(random_bits([7, 0], 1, i)) / 2f64.powi(32);
        let mean = (0..n).map(uniform).sum::<f64>() / n as f64;
        let lag = (1..n).map(|i| (uniform(i) - 0.5) * (uniform(i - 1) - 0.5)).sum::<f64>() / n as f64;
        // Four standard deviations of the mean of uniforms and of products of two.
        assert!((mean - 0.5).abs() < 4.0 * (1.0 / 12.0 / n as f64).sqrt(), "{mean}");
        assert!(lag.abs() < 4.0 * (1.0 / 144.0 / n as f64).sqrt(), "{lag}");
    }
}
