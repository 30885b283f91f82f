//! Tuning without the training: which values a trial has, when a poor trial is stopped, and the records of trials.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::experiment::{Hyperparameter, Search, StopPoor, Tune};

/// The values of the searched keys in one trial.
pub type Assignment = BTreeMap<String, Hyperparameter>;

/// Draws the values of trial `trial` (from 0) by random search (Bergstra and Bengio 2012). Each value is a pure function
/// of the seed, the trial and its key: neither other keys nor the number of trials change it.
pub fn sample(tune: &Tune, seed: u64, trial: u64) -> Assignment {
    tune.search.iter().map(|(key, search)| (key.clone(), draw(search, uniform(seed, trial, key)))).collect()
}

/// A number in [0, 1) from 53 bits of BLAKE3.
fn uniform(seed: u64, trial: u64, key: &str) -> f64 {
    let mut hasher = blake3::Hasher::new_derive_key("tenon tune: value of a searched key");
    hasher.update(&seed.to_le_bytes()).update(&trial.to_le_bytes()).update(key.as_bytes());
    let mut bits = [0; 8];
    hasher.finalize_xof().fill(&mut bits);
    (u64::from_le_bytes(bits) >> 11) as f64 / (1u64 << 53) as f64
}

/// The value at `u` in [0, 1) of a range.
fn draw(search: &Search, u: f64) -> Hyperparameter {
    match search {
        Search::Log([low, high]) => {
            Hyperparameter::Float((low.ln() + u * (high.ln() - low.ln())).exp().clamp(*low, *high))
        }
        Search::Uniform([low, high]) => Hyperparameter::Float((low + u * (high - low)).clamp(*low, *high)),
        Search::Int([low, high]) => {
            let count = (i128::from(*high) - i128::from(*low) + 1) as f64;
            let offset = (u * count) as i128;
            Hyperparameter::Int((i128::from(*low) + offset).clamp(i128::from(*low), i128::from(*high)) as i64)
        }
        Search::Choice(values) => values[((u * values.len() as f64) as usize).min(values.len() - 1)].clone(),
    }
}

/// How a trial ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "kind")]
pub enum Status {
    /// It trained to its end.
    Finished,
    /// It was stopped because it did worse than the others.
    Stopped,
    /// It was not begun: it could not fit, or could not finish in the budget.
    Refused {
        /// Which of the two, with the figures.
        reason: String,
    },
    /// It failed: a loss that is not a number, for example.
    Failed {
        /// The error.
        reason: String,
    },
}

/// What is known of one trial; stored as `trial.toml` in its folder. (TOML, because JSON has no infinity.)
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// Its number, from 0.
    pub trial: u64,
    /// The values it had.
    pub assignment: Assignment,
    /// How it ended.
    pub status: Status,
    /// Its evaluations in order: the step, and the distance of the metrics from the goal (smaller is better, 0 is met).
    pub scores: Vec<(u64, f64)>,
    /// Seconds it took.
    pub seconds: f64,
}

impl Trial {
    /// The text of `trial.toml`.
    ///
    /// # Panics
    /// If the trial or a step has a number that does not fit TOML's signed 64 bits.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a trial is a TOML table")
    }

    /// Reads the text of `trial.toml`.
    ///
    /// # Errors
    /// What is wrong and where.
    pub fn parse(text: &str) -> Result<Trial, String> {
        toml::from_str(text).map_err(|error| error.to_string())
    }

    /// The distance at its last evaluation; infinite if it had none or a number was missing.
    pub fn score(&self) -> f64 {
        self.scores.last().map_or(f64::INFINITY, |(_, score)| if score.is_nan() { f64::INFINITY } else { *score })
    }

    /// Whether this stored trial is trial number `self.trial` of this search.
    ///
    /// # Errors
    /// What differs and what to do, if the experiment's search has changed since.
    pub fn check(&self, tune: &Tune, seed: u64) -> Result<(), String> {
        let expected = sample(tune, seed, self.trial);
        if expected == self.assignment {
            return Ok(());
        }
        let show = |assignment: &Assignment| {
            let entries = assignment.iter().map(|(key, value)| format!("{key} = {}", value.to_toml()));
            entries.collect::<Vec<_>>().join(", ")
        };
        Err(format!(
            "trial {} was run with {}, but `[tune]` now gives it {}: the search or the seed has changed. \
             Give the run another name, or remove its folder trials/",
            self.trial,
            show(&self.assignment),
            show(&expected)
        ))
    }
}

/// The trial with the smallest distance among those that finished; of equals the first.
pub fn best(trials: &[Trial]) -> Option<&Trial> {
    let finished = trials.iter().filter(|trial| trial.status == Status::Finished);
    finished.min_by(|a, b| a.score().total_cmp(&b.score()))
}

/// The median stopping rule (Golovin et al. 2017, section 3.2.2): whether a trial with these scores so far should stop,
/// given the earlier trials. It stops if its best score is worse than the median of the others' running means up to the
/// same step. Trials without an evaluation by then do not count; refused and failed ones never do.
pub fn is_poor(rule: &StopPoor, scores: &[(u64, f64)], earlier: &[Trial]) -> bool {
    let Some(&(step, _)) = scores.last() else { return false };
    if step < rule.grace {
        return false;
    }
    let ran = earlier.iter().filter(|trial| matches!(trial.status, Status::Finished | Status::Stopped));
    let mut means: Vec<f64> = ran.filter_map(|trial| mean_up_to(&trial.scores, step)).collect();
    if means.is_empty() || (means.len() as u64) < rule.after_trials {
        return false;
    }
    means.sort_by(f64::total_cmp);
    let middle = means.len() / 2;
    let median = if means.len().is_multiple_of(2) { (means[middle - 1] + means[middle]) / 2.0 } else { means[middle] };
    // `min` passes over NaN; a trial with nothing else is poor.
    let best = scores.iter().map(|(_, score)| *score).fold(f64::INFINITY, f64::min);
    best > median
}

fn mean_up_to(scores: &[(u64, f64)], step: u64) -> Option<f64> {
    let until: Vec<f64> = scores.iter().take_while(|(at, _)| *at <= step).map(|(_, score)| *score).collect();
    let mean = until.iter().sum::<f64>() / until.len() as f64;
    // A trial that lost its numbers is worse than all others, not incomparable.
    (!until.is_empty()).then_some(if mean.is_nan() { f64::INFINITY } else { mean })
}
