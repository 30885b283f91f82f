//! Tests of the choice of the next token.

use super::*;

/// Logits with ties and numbers that are none, another list for each `case`.
fn logits(case: u64) -> Vec<f32> {
    let value = |i| match random_bits([case as u32, 7], 1, i) % 40 {
        0 => f32::NAN,
        bits => bits as f32 / 8.0,
    };
    (0..50 + 13 * case).map(value).collect()
}

#[test]
fn greedy_takes_the_first_of_the_likeliest() {
    for case in 0..50 {
        let logits = logits(case);
        let greatest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let greedy = Sampling { temperature: 0.0, top_k: Some(3), ..Sampling::default() };
        let chosen = greedy.choose(&logits, 5);
        assert_eq!(Some(chosen), logits.iter().position(|x| *x == greatest), "{case}");
        let top_1 = Sampling { top_k: Some(1), seed: case, ..Sampling::default() };
        assert_eq!(chosen, top_1.choose(&logits, 5), "{case}");
    }
    assert_eq!(Sampling { temperature: 0.0, ..Sampling::default() }.choose(&[f32::NAN; 3], 0), 0);
}

#[test]
fn top_k_draws_as_if_the_others_were_not_there() {
    for case in 0..200 {
        let logits = logits(case % 20);
        let mut order: Vec<usize> = (0..logits.len()).filter(|i| !logits[*i].is_nan()).collect();
        order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
        for top_k in [1, 2, 7, order.len(), order.len() + 5] {
            let mut alone = vec![f32::NAN; logits.len()];
            for i in order.iter().take(top_k) {
                alone[*i] = logits[*i];
            }
            for top_p in [None, Some(0.6)] {
                let all = Sampling { temperature: 0.9, top_k: None, top_p, seed: case };
                let few = Sampling { top_k: Some(top_k), ..all.clone() };
                assert_eq!(few.choose(&logits, 3), all.choose(&alone, 3), "{case}: {top_k} of {}", order.len());
            }
        }
    }
}
