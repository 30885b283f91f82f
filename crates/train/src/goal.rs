//! Goals against measured metrics: met or not, and by how much.

use std::collections::BTreeMap;
use std::fmt;

use crate::experiment::{Bound, EarlyStop, Experiment, Train, nearest};

/// Which values of a metric are better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// Smaller ones: losses, errors, perplexity.
    Lower,
    /// Larger ones: accuracy and its like.
    Higher,
}

/// The metrics of which more is better; of all others less is.
const HIGHER: &[&str] = &["accuracy", "precision", "recall", "f1", "auc", "mcc", "r2", "bleu", "rouge", "iou", "map"];

impl Better {
    /// The direction of a metric by its name: `val_accuracy`, `top5_accuracy` and `accuracy` are of one kind.
    pub fn of(metric: &str) -> Better {
        let parts: Vec<&str> = metric.split(['_', '.', '/', '-']).collect();
        if parts.iter().any(|part| HIGHER.contains(part)) { Better::Higher } else { Better::Lower }
    }

    /// Whether `a` is better than `b`; a number is better than NaN.
    pub fn is_better(self, a: f64, b: f64) -> bool {
        if b.is_nan() {
            return !a.is_nan();
        }
        match self {
            Better::Lower => a < b,
            Better::Higher => a > b,
        }
    }
}

/// One goal and what was measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The name of the metric.
    pub metric: String,
    /// What it should reach.
    pub bound: Bound,
    /// What it is; `None` if the run did not measure it.
    pub value: Option<f64>,
}

/// All goals of a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verdict {
    /// One for each goal, in the order of the names.
    pub outcomes: Vec<Outcome>,
}

impl Bound {
    /// The bounding value.
    pub fn value(self) -> f64 {
        match self {
            Bound::AtMost(bound) | Bound::AtLeast(bound) => bound,
        }
    }

    /// How far `value` is on the wrong side; 0 if the bound is kept, infinite for NaN.
    pub fn shortfall(self, value: f64) -> f64 {
        let by = match self {
            Bound::AtMost(bound) => value - bound,
            Bound::AtLeast(bound) => bound - value,
        };
        if value.is_nan() { f64::INFINITY } else { by.max(0.0) }
    }
}

impl Outcome {
    /// Whether the goal is met: measured, a number, and on the right side of the bound.
    pub fn met(&self) -> bool {
        self.value.is_some_and(|value| self.bound.shortfall(value) == 0.0)
    }

    /// How far from met, as a share of the bound's size (of 1 for a bound of 0); infinite if not measured.
    pub fn distance(&self) -> f64 {
        let size = if self.bound.value() == 0.0 { 1.0 } else { self.bound.value().abs() };
        self.value.map_or(f64::INFINITY, |value| self.bound.shortfall(value) / size)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sign, opposite) = match self.bound {
            Bound::AtMost(_) => ("<=", ">"),
            Bound::AtLeast(_) => (">=", "<"),
        };
        let (metric, bound) = (&self.metric, self.bound.value());
        match self.value {
            None => write!(f, "not met: {metric} was not measured, {sign} {bound} was asked"),
            Some(value) if self.met() => write!(f, "met: {metric} {} {sign} {bound}", short(value)),
            Some(value) if value.is_nan() => write!(f, "not met: {metric} is NaN, {sign} {bound} was asked"),
            Some(value) => {
                let by = self.bound.shortfall(value);
                let share = 100.0 * self.distance();
                write!(f, "not met: {metric} {} {opposite} {bound}, by {} ({share:.1}%)", short(value), short(by))
            }
        }
    }
}

/// Four significant digits.
pub(crate) fn short(value: f64) -> String {
    let magnitude = value.abs();
    if value == 0.0 || !value.is_finite() {
        format!("{value}")
    } else if (1e-4..1e6).contains(&magnitude) {
        let digits = (3 - magnitude.log10().floor() as i32).clamp(0, 8) as usize;
        format!("{value:.digits$}")
    } else {
        format!("{value:.3e}")
    }
}

impl Verdict {
    /// Compares goals with what was measured.
    pub fn of(goals: &BTreeMap<String, Bound>, measured: &BTreeMap<String, f64>) -> Verdict {
        let outcomes = goals.iter().map(|(metric, bound)| Outcome {
            metric: metric.clone(),
            bound: *bound,
            value: measured.get(metric).copied(),
        });
        Verdict { outcomes: outcomes.collect() }
    }

    /// Whether every goal is met. A run without goals meets them.
    pub fn met(&self) -> bool {
        self.outcomes.iter().all(Outcome::met)
    }

    /// The sum of the distances: 0 if met, and what tuning makes small.
    pub fn distance(&self) -> f64 {
        self.outcomes.iter().map(Outcome::distance).sum()
    }

    /// The exit code of a run with this verdict: 0 met, 3 not met.
    pub fn exit_code(&self) -> u8 {
        if self.met() { 0 } else { 3 }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, outcome) in self.outcomes.iter().enumerate() {
            write!(f, "{}{outcome}", if index > 0 { "\n" } else { "" })?;
        }
        Ok(())
    }
}

/// Checks before a run that goals, `keep_best` and `early_stop` name metrics that its evaluations will have.
///
/// # Errors
/// The first name without its metric, with what there is.
pub fn check_metrics(experiment: &Experiment, evaluated: &[&str]) -> Result<(), String> {
    let Train { keep_best, early_stop, .. } = &experiment.train;
    let goals = experiment.goal.keys().map(|metric| (format!("`goal.{metric}`"), metric));
    let kept = keep_best.iter().map(|metric| (format!("`train.keep_best` is \"{metric}\""), metric));
    let stops = early_stop
        .iter()
        .map(|EarlyStop { metric, .. }| (format!("`train.early_stop.metric` is \"{metric}\""), metric));
    match goals.chain(kept).chain(stops).find(|(_, metric)| !evaluated.contains(&metric.as_str())) {
        None => Ok(()),
        Some((place, metric)) => {
            let hint = nearest(metric, evaluated.iter().copied());
            let hint = hint.map_or(String::new(), |found| format!(": did you mean `{found}`?"));
            let there = evaluated.join(", ");
            Err(format!("{place}: evaluations of this experiment have {there}{hint}"))
        }
    }
}
