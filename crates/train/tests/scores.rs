//! Measures of classifiers against values of scikit-learn 1.9.1: f1_score, matthews_corrcoef, roc_auc_score.

use tenon_train::scores::Scores;

fn bytes(words: &[i32]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

/// Labels, predictions and margins as the script had them that asked scikit-learn.
fn case(classes: u64, samples: usize, seed: u64) -> (Vec<i32>, Vec<i32>, Vec<f32>) {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        state >> 33
    };
    let (mut labels, mut predicted, mut margins) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..samples {
        let label = next() % classes;
        labels.push(label as i32);
        predicted.push(if next() % 3 != 0 { label } else { next() % classes } as i32);
        margins.push((next() % 9) as f32 - 4.0 + if label == 1 { 1.5 } else { 0.0 });
    }
    (labels, predicted, margins)
}

/// Classes, samples, seed, and what scikit-learn says.
type Stored = (u64, usize, u64, &'static [(&'static str, f64)]);

#[test]
fn they_are_those_of_scikit_learn() {
    let stored: [Stored; 4] = [
        (
            2,
            50,
            1,
            &[
                ("macro_f1", 0.7877758913412564),
                ("mcc", 0.6011591171947755),
                ("f1", 0.7368421052631579),
                ("auc", 0.59375),
            ],
        ),
        (
            2,
            301,
            2,
            &[
                ("macro_f1", 0.857117624330739),
                ("mcc", 0.7144056071316904),
                ("f1", 0.8552188552188552),
                ("auc", 0.6111258278145696),
            ],
        ),
        (3, 70, 3, &[("macro_f1", 0.813596837944664), ("mcc", 0.7252634088161317)]),
        (7, 40, 4, &[("macro_f1", 0.860949764521193), ("mcc", 0.8813853555688241)]),
    ];
    for (classes, samples, seed, expected) in stored {
        let (labels, predicted, margins) = case(classes, samples, seed);
        let mut scores = Scores::default();
        // In batches, with samples that only fill one.
        for at in (0..samples).step_by(16) {
            let part = at..(at + 16).min(samples);
            let (mut labels, mut predicted) = (labels[part.clone()].to_vec(), predicted[part.clone()].to_vec());
            let mut margins = margins[part].to_vec();
            labels.resize(16, -100);
            predicted.resize(16, 1);
            margins.resize(16, 9.0);
            let margins: Vec<u8> = margins.iter().flat_map(|m| m.to_le_bytes()).collect();
            scores.add(&bytes(&labels), &bytes(&predicted), (classes == 2).then_some(&margins));
        }
        let found = scores.metrics();
        assert_eq!(
            found.iter().map(|(name, _)| *name).collect::<Vec<_>>(),
            expected.iter().map(|e| e.0).collect::<Vec<_>>()
        );
        for ((name, found), (_, expected)) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-12, "{name} of {classes} classes: {found}, {expected} expected");
        }
    }
}

#[test]
fn nothing_right_and_one_class_only_have_values_or_none() {
    let of = |labels: &[i32], predicted: &[i32]| {
        let mut scores = Scores::default();
        scores.add(&bytes(labels), &bytes(predicted), Some(&bytes(&vec![0; labels.len()])));
        scores.metrics()
    };
    assert_eq!(of(&[0, 0, 1], &[1, 1, 0]), [("macro_f1", 0.0), ("mcc", -1.0), ("f1", 0.0), ("auc", 0.5)]);
    assert_eq!(of(&[0, 0], &[0, 0]), [("macro_f1", 1.0), ("mcc", 0.0), ("f1", 0.0)]);
    assert_eq!(of(&[-100, -100], &[0, 1]), []);
}
