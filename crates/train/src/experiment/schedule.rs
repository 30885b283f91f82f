//! The learning-rate schedules an experiment can name.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `train.schedule`: the learning rate over the run, as a factor of the optimizer's `lr`. All kinds rise linearly from 0
/// during `warmup`; `floor` is the factor at the last step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Schedule {
    /// The same rate after the warmup.
    Constant(Constant),
    /// A straight line from 1 down to the floor.
    Linear(Decaying),
    /// Half a cosine from 1 down to the floor (Loshchilov and Hutter 2017).
    Cosine(Decaying),
    /// Warmup, stable, decay: constant, then a straight line down to the floor (Hu et al. 2024).
    Wsd(Wsd),
}

impl Default for Schedule {
    fn default() -> Self {
        Schedule::Constant(Constant::default())
    }
}

impl Schedule {
    /// The span of the warmup.
    pub fn warmup(&self) -> Span {
        match self {
            Schedule::Constant(settings) => settings.warmup,
            Schedule::Linear(settings) | Schedule::Cosine(settings) => settings.warmup,
            Schedule::Wsd(settings) => settings.warmup,
        }
    }

    /// The span of the decay at the end, for the kind that has one of its own.
    pub fn decay(&self) -> Option<Span> {
        match self {
            Schedule::Constant(_) | Schedule::Linear(_) | Schedule::Cosine(_) => None,
            Schedule::Wsd(settings) => Some(settings.decay),
        }
    }
}

/// A part of the run: steps when written as an integer, a share of all steps when written with a decimal point.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Span {
    /// So many steps.
    Steps(#[schemars(range(min = 0))] u64),
    /// This share of all steps, from 0 to 1.
    Share(#[schemars(range(min = 0, max = 1))] f64),
}

impl Span {
    /// Steps of a run of `total` steps, rounded to the nearest.
    pub fn steps(self, total: u64) -> u64 {
        match self {
            Span::Steps(steps) => steps,
            Span::Share(share) => (share * total as f64).round() as u64,
        }
    }
}

/// Settings of `constant`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Constant {
    /// The rise at the start.
    pub warmup: Span,
}

impl Default for Constant {
    fn default() -> Self {
        Constant { warmup: Span::Steps(0) }
    }
}

/// Settings of `linear` and `cosine`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Decaying {
    /// The rise at the start.
    pub warmup: Span,
    /// The factor at the last step.
    #[schemars(range(min = 0, max = 1))]
    pub floor: f64,
}

impl Default for Decaying {
    fn default() -> Self {
        Decaying { warmup: Span::Steps(0), floor: 0.0 }
    }
}

/// Settings of `wsd`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Wsd {
    /// The rise at the start.
    pub warmup: Span,
    /// The fall at the end.
    pub decay: Span,
    /// The factor at the last step.
    #[schemars(range(min = 0, max = 1))]
    pub floor: f64,
}

impl Default for Wsd {
    fn default() -> Self {
        Wsd { warmup: Span::Steps(0), decay: Span::Share(0.2), floor: 0.0 }
    }
}
