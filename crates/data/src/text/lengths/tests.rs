//! Chosen lengths against all choices, and the order as a bijection whose batches have one length.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn padded(lengths: &[usize], tokens: &[usize]) -> usize {
    let most = lengths[lengths.len() - 1];
    tokens.iter().map(|&n| *lengths.iter().find(|&&l| l >= n.min(most)).expect("long enough")).sum()
}

proptest! {
    #[test]
    fn few_lengths_waste_little(tokens in prop::collection::vec(0usize..300, 1..80), most in 1usize..260) {
        let lengths = choose(&tokens, most);
        prop_assert!(lengths.is_sorted_by(|a, b| a < b) && lengths.len() <= MOST_LENGTHS);
        let longest = tokens.iter().map(|&n| n.clamp(1, most)).max().expect("some");
        let last = lengths[lengths.len() - 1];
        prop_assert!(last >= longest && last <= most && last < longest + STEP);
        let all: Vec<usize> = (1..=longest.div_ceil(STEP)).map(|i| (i * STEP).min(most)).collect();
        let accepted = ACCEPTED * padded(&all, &tokens) as f64;
        if lengths.len() < MOST_LENGTHS {
            prop_assert!(padded(&lengths, &tokens) as f64 <= accepted);
        }
        // No set with one length less would do.
        for left_out in 0..all.len() {
            for second in left_out..all.len() {
                let pair: Vec<usize> = [all[left_out], all[second]].into_iter().filter(|&l| l != last).collect();
                if pair.len() + 1 < lengths.len() {
                    let fewer: Vec<usize> = BTreeSet::from_iter(pair.into_iter().chain([last])).into_iter().collect();
                    prop_assert!(padded(&fewer, &tokens) as f64 > accepted, "{fewer:?} instead of {lengths:?}");
                }
            }
        }
    }

    #[test]
    fn an_epoch_has_every_sample_once_in_batches_of_one_length(
        tokens in prop::collection::vec(1usize..200, 1..150), batch in 1u64..20, epoch in 0u64..5, seed: u64,
    ) {
        let lengths = choose(&tokens, 500);
        let grouped = Grouped::new(&lengths, &tokens);
        let n = tokens.len() as u64;
        let order: Vec<(u32, usize)> = (0..n).map(|i| grouped.shuffled(seed, epoch, i, batch)).collect();
        prop_assert_eq!(order.iter().map(|(s, _)| *s).collect::<BTreeSet<u32>>().len() as u64, n);
        for (sample, length) in &order {
            let n = tokens[*sample as usize];
            prop_assert!(*length >= n && lengths.iter().all(|l| l >= length || *l < n));
        }
        let first = epoch * n;
        let mut mixed = 0;
        let whole = first.div_ceil(batch)..(first + n) / batch;
        for number in whole {
            let members = &order[(number * batch - first) as usize..][..batch as usize];
            mixed += usize::from(members.iter().any(|(_, length)| *length != members[0].1));
        }
        prop_assert!(mixed < lengths.len(), "{} batches of several lengths, {:?}", mixed, lengths);
        prop_assert!((grouped.shares().iter().map(|s| s.share).sum::<f64>() - 1.0).abs() < 1e-9);
    }
}
