//! Tests of the shuffle: a bijection for every length, different in every epoch, fair for small lengths.

use super::*;
use proptest::prelude::*;

fn whole(seed: u64, epoch: u64, n: u64) -> Vec<u64> {
    (0..n).map(|i| shuffled(seed, epoch, i, n)).collect()
}

#[test]
fn every_length_is_a_bijection() {
    let mut lengths: Vec<u64> = (1..=130).collect();
    for k in 8..=16 {
        lengths.extend([(1 << k) - 1, 1 << k, (1 << k) + 1]);
    }
    lengths.extend([997, 7919, 65_537, 99_991]);
    for n in lengths {
        for epoch in [0, 1, 1000] {
            let mut seen = whole(42, epoch, n);
            seen.sort_unstable();
            assert!(seen.iter().copied().eq(0..n), "length {n}, epoch {epoch} is not a bijection");
        }
    }
}

proptest! {
    #[test]
    fn any_seed_and_epoch_give_a_bijection(seed: u64, epoch: u64, n in 1u64..3000) {
        let mut seen = whole(seed, epoch, n);
        seen.sort_unstable();
        prop_assert!(seen.into_iter().eq(0..n));
    }

    #[test]
    fn huge_lengths_stay_in_range(seed: u64, epoch: u64, n in 1u64.., index: u64) {
        let index = index % n;
        prop_assert!(shuffled(seed, epoch, index, n) < n);
    }
}

#[test]
fn epochs_and_seeds_give_different_orders() {
    let n = 1000;
    let first = whole(1, 0, n);
    for other in [whole(1, 1, n), whole(2, 0, n)] {
        let same = first.iter().zip(&other).filter(|(a, b)| a == b).count();
        assert!(same < 10, "{same} of {n} samples keep their place");
    }
    let kept = first.iter().zip(0..n).filter(|(a, b)| **a == *b).count();
    assert!(kept < 10, "{kept} samples are where they were");
    let neighbours = first.windows(2).filter(|w| w[1] == w[0] + 1).count();
    assert!(neighbours < 10, "{neighbours} neighbours stay neighbours");
}

#[test]
fn small_lengths_are_fair() {
    for n in 2..=9u64 {
        let epochs = 6_000u64;
        let mut counts = vec![0u64; (n * n) as usize];
        for epoch in 0..epochs {
            for i in 0..n {
                counts[(i * n + shuffled(7, epoch, i, n)) as usize] += 1;
            }
        }
        let expected = epochs as f64 / n as f64;
        for (cell, &count) in counts.iter().enumerate() {
            let off = (count as f64 - expected).abs() / expected.sqrt();
            assert!(off < 6.0, "length {n}, cell {cell}: {count}, expected {expected:.0}");
        }
    }
}

#[test]
fn random_below_is_below_and_reaches_all() {
    for n in [1, 2, 3, 10, 127] {
        let mut seen = vec![false; n as usize];
        for counter in 0..4000 {
            seen[random_below(3, Stream::Phase, counter, n) as usize] = true;
        }
        assert!(seen.iter().all(|&s| s), "not every number below {n} occurs");
    }
}
