//! Goals, the random search and the median stopping rule.

use std::collections::BTreeMap;

use proptest::prelude::*;
use tenon_train::experiment::{Bound, Experiment, Hyperparameter, Search, StopPoor, Tune};
use tenon_train::goal::{Better, Verdict, check_metrics};
use tenon_train::tune::{Status, Trial, best, is_poor, sample};

fn verdict(bound: Bound, value: Option<f64>) -> Verdict {
    let measured = value.map(|value| ("metric".to_owned(), value)).into_iter().collect();
    Verdict::of(&[("metric".to_owned(), bound)].into(), &measured)
}

#[test]
fn a_verdict_says_by_how_much() {
    let cases = [
        (Bound::AtMost(2.2), Some(2.0712), 0, "met: metric 2.071 <= 2.2"),
        (Bound::AtMost(2.2), Some(2.2), 0, "met: metric 2.200 <= 2.2"),
        (Bound::AtMost(2.2), Some(2.31), 3, "not met: metric 2.310 > 2.2, by 0.1100 (5.0%)"),
        (Bound::AtLeast(0.93), Some(0.93), 0, "met: metric 0.9300 >= 0.93"),
        (Bound::AtLeast(0.93), Some(0.9), 3, "not met: metric 0.9000 < 0.93, by 0.03000 (3.2%)"),
        (Bound::AtMost(0.0), Some(0.5), 3, "not met: metric 0.5000 > 0, by 0.5000 (50.0%)"),
        (Bound::AtMost(1.0), Some(f64::NAN), 3, "not met: metric is NaN, <= 1 was asked"),
        (Bound::AtMost(1.0), Some(f64::NEG_INFINITY), 0, "met: metric -inf <= 1"),
        (Bound::AtLeast(1.0), None, 3, "not met: metric was not measured, >= 1 was asked"),
    ];
    for (bound, value, code, text) in cases {
        let verdict = verdict(bound, value);
        assert_eq!((verdict.exit_code(), verdict.to_string().as_str()), (code, text));
        assert_eq!(verdict.met(), verdict.distance() == 0.0, "{text}");
    }
    assert!(Verdict::default().met(), "a run without goals");
}

#[test]
fn what_names_a_metric_must_name_one_that_is_evaluated() {
    let naming = |more: &str| {
        let text = format!("data.text = \"a.txt\"\nmodel.architecture = \"gpt2\"\ntrain.steps = 4\n{more}\n");
        Experiment::parse(&text, "a.toml", &[]).unwrap_or_else(|e| panic!("{e}"))
    };
    let there = ["val_loss", "bits_per_byte"];
    for (key, place) in [
        ("goal.bits_per_bite = { at_most = 2.0 }", "`goal.bits_per_bite`"),
        ("train.keep_best = \"bits_per_bite\"", "`train.keep_best` is \"bits_per_bite\""),
        (
            "train.early_stop = { metric = \"bits_per_bite\", patience = 2 }",
            "`train.early_stop.metric` is \"bits_per_bite\"",
        ),
    ] {
        let have = "evaluations of this experiment have val_loss, bits_per_byte: did you mean `bits_per_byte`?";
        assert_eq!(check_metrics(&naming(key), &there).unwrap_err(), format!("{place}: {have}"));
        assert_eq!(check_metrics(&naming(key), &["bits_per_bite"]), Ok(()));
    }
}

#[test]
fn metrics_have_a_direction() {
    for (metric, better) in [
        ("val_loss", Better::Lower),
        ("accuracy", Better::Higher),
        ("val_top5_accuracy", Better::Higher),
        ("perplexity", Better::Lower),
        ("f1", Better::Higher),
        ("bits_per_byte", Better::Lower),
    ] {
        assert_eq!(Better::of(metric), better, "{metric}");
    }
    assert!(Better::Higher.is_better(0.0, f64::NAN) && !Better::Lower.is_better(f64::NAN, 0.0));
}

fn tune(search: &[(&str, Search)]) -> Tune {
    Tune { search: search.iter().map(|(key, search)| (key.to_string(), search.clone())).collect(), ..Tune::default() }
}

fn float(value: &Hyperparameter) -> f64 {
    match value {
        Hyperparameter::Float(value) => *value,
        Hyperparameter::Int(value) => *value as f64,
        other => panic!("{other:?}"),
    }
}

#[test]
fn values_are_spread_over_their_ranges() {
    let choices = vec![Hyperparameter::Text("a".into()), Hyperparameter::Bool(true), Hyperparameter::Int(7)];
    let tune = tune(&[
        ("log", Search::Log([1e-4, 1e-2])),
        ("uniform", Search::Uniform([-1.0, 3.0])),
        ("int", Search::Int([2, 5])),
        ("choice", Search::Choice(choices.clone())),
    ]);
    const TRIALS: u64 = 4000;
    let trials: Vec<_> = (0..TRIALS).map(|trial| sample(&tune, 5, trial)).collect();
    let share = |holds: &dyn Fn(&BTreeMap<String, Hyperparameter>) -> bool| {
        trials.iter().filter(|trial| holds(trial)).count() as f64 / TRIALS as f64
    };
    assert!((share(&|trial| float(&trial["log"]) < 1e-3) - 0.5).abs() < 0.03);
    assert!((share(&|trial| float(&trial["uniform"]) < 0.0) - 0.25).abs() < 0.03);
    for value in 2..=5 {
        assert!((share(&|trial| trial["int"] == Hyperparameter::Int(value)) - 0.25).abs() < 0.03);
    }
    for choice in &choices {
        assert!((share(&|trial| trial["choice"] == *choice) - 1.0 / 3.0).abs() < 0.03);
    }
    let both = share(&|trial| float(&trial["log"]) < 1e-3 && float(&trial["uniform"]) < 1.0);
    assert!((both - 0.25).abs() < 0.03, "two keys of one trial are independent: {both}");
}

#[test]
fn the_values_of_trials_never_change() {
    // A changed sampler would mix the trials of two versions in one run folder.
    let values = sample(&tune(&[("train.optimizer.lr", Search::Uniform([0.0, 1.0]))]), 1, 2);
    assert_eq!(values["train.optimizer.lr"], Hyperparameter::Float(0.6306414729573188));
}

fn trial(number: u64, status: Status, scores: &[(u64, f64)]) -> Trial {
    Trial { trial: number, assignment: BTreeMap::new(), status, scores: scores.to_vec(), seconds: 1.0 }
}

#[test]
fn poor_trials_are_stopped_by_the_median_of_the_others() {
    let rule = StopPoor { grace: 200, after_trials: 3 };
    let earlier = [
        trial(0, Status::Finished, &[(100, 0.9), (200, 0.5), (300, 0.1)]),
        trial(1, Status::Stopped, &[(100, 0.8), (200, 0.6)]),
        trial(2, Status::Finished, &[(100, 1.0), (200, 1.0), (300, 1.0)]),
        trial(3, Status::Refused { reason: "memory".into() }, &[]),
        trial(4, Status::Failed { reason: "NaN".into() }, &[(100, 0.0)]),
    ];
    // Means up to step 200: 0.7, 0.7, 1.0; their median is 0.7.
    assert!(is_poor(&rule, &[(100, 0.9), (200, 0.71)], &earlier));
    assert!(!is_poor(&rule, &[(100, 0.69), (200, 5.0)], &earlier), "its best counts");
    assert!(!is_poor(&rule, &[(200, 0.7)], &earlier), "as good as the median");
    assert!(!is_poor(&rule, &[(100, 9.0)], &earlier), "in its grace");
    assert!(!is_poor(&rule, &[(200, 9.0)], &earlier[..2]), "too few trials");
    assert!(!is_poor(&rule, &[], &earlier));
    assert!(is_poor(&rule, &[(200, f64::NAN)], &earlier));
    // Means up to step 300: 0.5, 0.7, 1.0.
    assert!(!is_poor(&rule, &[(300, 0.65)], &earlier));
    let lost = trial(5, Status::Finished, &[(100, f64::NAN), (200, 0.1)]);
    let few = StopPoor { grace: 0, after_trials: 1 };
    assert!(!is_poor(&few, &[(200, 1e9)], &[lost]), "nothing is worse than lost numbers");
}

#[test]
fn the_best_trial_is_a_finished_one() {
    let trials = [
        trial(0, Status::Finished, &[(1, f64::NAN)]),
        trial(1, Status::Finished, &[(1, 0.1), (2, 0.3)]),
        trial(2, Status::Stopped, &[(1, 0.0)]),
        trial(3, Status::Finished, &[(2, 0.3)]),
    ];
    assert_eq!(best(&trials).map(|trial| trial.trial), Some(1));
    assert_eq!(best(&trials[2..3]), None);
}

#[test]
fn a_stored_trial_of_another_search_is_refused() {
    let tune = tune(&[("model.rate", Search::Uniform([0.0, 1.0]))]);
    let stored = Trial { assignment: sample(&tune, 3, 1), ..trial(1, Status::Finished, &[]) };
    assert_eq!(stored.check(&tune, 3), Ok(()));
    let message = stored.check(&tune, 4).unwrap_err();
    assert!(message.starts_with("trial 1 was run with model.rate = 0."), "{message}");
}

proptest! {
    #[test]
    fn a_value_depends_on_seed_trial_and_key_only(seed in any::<u64>(), number in any::<u64>(), low in 1e-6..1.0f64, width in 1e-6..9.0f64, from in any::<i64>(), to in any::<i64>()) {
        let (from, to) = (from.min(to), from.max(to));
        let ranges = [("a", Search::Log([low, low + width])), ("b", Search::Uniform([low, low + width])), ("c", Search::Int([from, to]))];
        let all = sample(&tune(&ranges), seed, number);
        for range in &ranges {
            let alone = sample(&tune(std::slice::from_ref(range)), seed, number);
            prop_assert_eq!(&alone[range.0], &all[range.0]);
        }
        prop_assert!((low..=low + width).contains(&float(&all["a"])) && (low..=low + width).contains(&float(&all["b"])));
        let Hyperparameter::Int(value) = all["c"] else { panic!() };
        prop_assert!((from..=to).contains(&value));
    }

    #[test]
    fn a_trial_is_stored_and_read(number in 0..1u64 << 60, scores in prop::collection::vec((0..1u64 << 60, prop_oneof![any::<f64>().prop_filter("equal to itself", |x| !x.is_nan())]), 0..5), which in 0..4, reason in any::<String>()) {
        let status = match which {
            0 => Status::Finished,
            1 => Status::Stopped,
            2 => Status::Refused { reason },
            _ => Status::Failed { reason },
        };
        let tune = tune(&[("train.optimizer.lr", Search::Log([1e-4, 1.0])), ("model.width", Search::Int([1, 9])), ("model.norm", Search::Choice(vec![Hyperparameter::List(vec![Hyperparameter::Text("x".into())])]))]);
        let stored = Trial { assignment: sample(&tune, 0, number), ..trial(number, status, &scores) };
        prop_assert_eq!(Trial::parse(&stored.to_toml()), Ok(stored));
    }
}
