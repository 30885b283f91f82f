//! The tables of an experiment file. Every default is in a `Default` implementation below and nowhere else.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::optimizer::Optimizer;
use super::schedule::Schedule;
use super::units::{ByteSize, TimeSpan};

/// `[model]`: the architecture and its hyperparameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Model {
    /// The name of a built-in architecture ("gpt2"), or the path of a Starlark file ("my_model.star") relative to the experiment file.
    #[schemars(length(min = 1))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    /// The folder of a model to start from, imported or exported, relative to the experiment file: it gives the architecture, its
    /// hyperparameters and the weights, and the tokenizer where the data has none. Beside it, `architecture` may be a Starlark
    /// file, which then builds the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<PathBuf>,
    /// What happens to weights that the folder of `from` does not have, or in another shape. Absent: `"new"` for the folder's
    /// own architecture, `"refuse"` for a Starlark file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<Missing>,
    /// A named set of hyperparameters of the architecture ("gpt2-medium"); the keys here override its values.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preset: Option<String>,
    /// Every other key: a keyword argument of the architecture's `model` function.
    #[serde(flatten)]
    pub hyperparameters: BTreeMap<String, Hyperparameter>,
}

/// What happens to weights that the folder which training starts from does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Missing {
    /// They start anew.
    New,
    /// The run is refused, and they are named.
    Refuse,
}

/// A scalar or a list of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Hyperparameter {
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A number with a decimal point or an exponent.
    Float(f64),
    /// Text.
    Text(String),
    /// A list, which may be nested.
    List(Vec<Hyperparameter>),
}

/// `[train]`: how the model is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Train {
    /// Optimizer steps in all; give `steps` or `epochs`.
    #[schemars(range(min = 1))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// Passes over the training data, in whole or in part; give `steps` or `epochs`.
    #[schemars(extend("exclusiveMinimum" = 0, "maximum" = 1_000_000_000))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epochs: Option<f64>,
    /// Samples in one batch. With `accumulate`, a step sees `batch * accumulate` samples.
    #[schemars(range(min = 1, max = 16777216))]
    pub batch: u64,
    /// Batches whose gradients are summed before one optimizer step.
    #[schemars(range(min = 1, max = 16777216))]
    pub accumulate: u64,
    /// The type of matrix products and activations; weights and optimizer state are f32 in both.
    pub precision: Precision,
    /// The most memory the run may take ("1GiB"): activations are recomputed until the plan fits. Absent: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<ByteSize>,
    /// The update rule and its settings.
    pub optimizer: Optimizer,
    /// The learning rate over the run, as a factor of the optimizer's `lr`.
    pub schedule: Schedule,
    /// The gradient is scaled down to this global norm where it is larger. Absent: no clipping.
    #[schemars(extend("exclusiveMinimum" = 0))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip: Option<f64>,
    /// Decay of an exponential moving average of the weights, which is what is then evaluated and exported. Absent: none.
    #[schemars(extend("exclusiveMinimum" = 0, "exclusiveMaximum" = 1))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ema: Option<f64>,
    /// The share of the target probability spread over all classes (Szegedy et al. 2016).
    #[schemars(extend("minimum" = 0, "exclusiveMaximum" = 1))]
    pub label_smoothing: f64,
    /// Names (`*` matches any text) of parameters without weight decay. Parameters of one dimension (biases, norm gains) never have it.
    pub no_decay: Vec<String>,
    /// Names (`*` matches any text) of parameters that stay as they are: no gradient, no optimizer state.
    pub freeze: Vec<String>,
    /// Trains additions of low rank to matrices, and nothing else. Absent: all parameters are trained.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora: Option<Lora>,
    /// What is learnt. Absent: it follows from the data and the head (text and logits: next token).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub objective: Option<Objective>,
    /// Seed of initial weights, order of samples, dropout and trials.
    pub seed: u64,
    /// Worker threads. Absent: all processors. The results do not depend on it.
    #[schemars(range(min = 1, max = 1024))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<u64>,
    /// Steps between two records of the training loss.
    #[schemars(range(min = 1))]
    pub log_every: u64,
    /// Steps between two evaluations on the held-out data; the last step is always evaluated.
    #[schemars(range(min = 1))]
    pub evaluate_every: u64,
    /// Batches of one evaluation. Absent: all the held-out data. The last evaluation always sees all of it.
    #[schemars(range(min = 1))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evaluate_batches: Option<u64>,
    /// Steps between two checkpoints; the last step always has one.
    #[schemars(range(min = 1))]
    pub checkpoint_every: u64,
    /// The newest checkpoints that are kept.
    #[schemars(range(min = 1))]
    pub keep_last: u64,
    /// A metric: of the checkpoints that are written right after an evaluation, the one with its best value is kept too, and
    /// exported. Absent: the last one is exported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_best: Option<String>,
    /// Stops when a metric no longer improves. Absent: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub early_stop: Option<EarlyStop>,
    /// Text to generate at the end, shown and put into the report. Absent: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample: Option<Sample>,
}

impl Default for Train {
    fn default() -> Self {
        Train {
            steps: None,
            epochs: None,
            batch: 32,
            accumulate: 1,
            precision: Precision::F32,
            memory: None,
            optimizer: Optimizer::default(),
            schedule: Schedule::default(),
            clip: None,
            ema: None,
            label_smoothing: 0.0,
            no_decay: Vec::new(),
            freeze: Vec::new(),
            lora: None,
            objective: None,
            seed: 0,
            threads: None,
            log_every: 10,
            evaluate_every: 200,
            evaluate_batches: None,
            checkpoint_every: 200,
            keep_last: 2,
            keep_best: None,
            early_stop: None,
            sample: None,
        }
    }
}

impl Train {
    /// Whether the optimizer decays the parameter `name` of `rank` dimensions.
    pub fn decays(&self, name: &str, rank: usize) -> bool {
        rank > 1 && !matches_any(&self.no_decay, name)
    }
}

/// Whether `name` has the form of one of `patterns`.
pub(crate) fn matches_any(patterns: &[String], name: &str) -> bool {
    patterns.iter().any(|pattern| matches(pattern.as_bytes(), name.as_bytes()))
}

/// Whether `name` has the form of `pattern`, in which `*` stands for any text.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    // Greedy with one point of return: where the last `*` was met and how much of the name it has taken.
    let (mut p, mut n, mut star) = (0, 0, None);
    while n < name.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p, n));
            p += 1;
        } else if pattern.get(p) == Some(&name[n]) {
            p += 1;
            n += 1;
        } else if let Some((at, taken)) = star {
            star = Some((at, taken + 1));
            p = at + 1;
            n = taken + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// The type of matrix products and activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit floats everywhere.
    F32,
    /// bfloat16 activations and products with f32 accumulation and f32 master weights.
    Bf16,
}

/// What is learnt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Objective {
    /// Cross-entropy of each next token of a text.
    NextToken,
    /// Cross-entropy of tokens that are masked, to be guessed from both sides (Devlin et al. 2019).
    MaskedLm,
    /// Cross-entropy of one class a sample.
    Classification,
    /// Binary cross-entropy of several independent labels a sample.
    MultiLabel,
    /// Mean squared error.
    Regression,
}

/// Low-rank adaptation (Hu et al. 2021): a matrix W is used as W + alpha / rank * L R, and only L and R are trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Lora {
    /// The columns of L and rows of R, where W is as large.
    #[schemars(range(min = 1))]
    pub rank: u64,
    /// The additions are multiplied by `alpha / rank`.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub alpha: f64,
    /// Names (`*` matches any text) of the matrices that get additions.
    #[schemars(length(min = 1))]
    pub targets: Vec<String>,
    /// Names of parameters that are trained as they are, beside the additions.
    pub also_train: Vec<String>,
}

impl Default for Lora {
    fn default() -> Self {
        Lora { rank: 8, alpha: 16.0, targets: vec!["*".into()], also_train: Vec::new() }
    }
}

/// Stops when a metric no longer improves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EarlyStop {
    /// The metric, as evaluations name it ("val_loss").
    #[schemars(length(min = 1))]
    pub metric: String,
    /// Evaluations in a row without a better value, after which the run stops.
    #[schemars(range(min = 1))]
    pub patience: u64,
    /// The least change that counts as better.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub min_delta: f64,
}

/// Text to generate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Sample {
    /// The text to go on from.
    pub prompt: String,
    /// Tokens to generate.
    #[schemars(range(min = 1))]
    pub tokens: u64,
    /// Logits are divided by it; 0 always takes the most likely token.
    #[schemars(range(min = 0))]
    pub temperature: f64,
    /// Only the `top_k` most likely tokens are drawn from. Absent: all.
    #[schemars(range(min = 1))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<u64>,
    /// Only the most likely tokens with this probability in sum are drawn from (Holtzman et al. 2020). Absent: all.
    #[schemars(extend("exclusiveMinimum" = 0, "maximum" = 1))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f64>,
}

impl Default for Sample {
    fn default() -> Self {
        Sample { prompt: String::new(), tokens: 100, temperature: 0.8, top_k: None, top_p: None }
    }
}

/// One goal: what a metric must reach.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// Met by this value and every smaller one.
    AtMost(f64),
    /// Met by this value and every larger one.
    AtLeast(f64),
}

/// `[tune]`: trials with other settings when the goal is not met.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Tune {
    /// The most trials.
    #[schemars(range(min = 1))]
    pub trials: u64,
    /// Dotted keys of the experiment and where their values are drawn from: `search."train.optimizer.lr" = { log = [3e-4, 3e-3] }`.
    pub search: BTreeMap<String, Search>,
    /// Stops trials that do worse than the others did at the same step. Absent: every trial runs to its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_poor: Option<StopPoor>,
    /// The most time for all trials ("2h"): a trial that cannot finish in what is left is not begun. Absent: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget: Option<TimeSpan>,
}

impl Default for Tune {
    fn default() -> Self {
        Tune { trials: 16, search: BTreeMap::new(), stop_poor: None, budget: None }
    }
}

/// Where one searched value is drawn from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Search {
    /// Between two positive numbers, uniform in the logarithm.
    Log([f64; 2]),
    /// Between two numbers, uniform.
    Uniform([f64; 2]),
    /// Whole numbers between two, both included.
    Int([i64; 2]),
    /// One of a list.
    Choice(#[schemars(length(min = 1))] Vec<Hyperparameter>),
}

/// The median stopping rule (Golovin et al. 2017, Google Vizier): a trial is stopped at an evaluation if its best score so
/// far is worse than the median, over the earlier trials, of the mean of their scores up to the same step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct StopPoor {
    /// Steps every trial may take before it can be stopped.
    pub grace: u64,
    /// Earlier trials needed before any can be stopped.
    #[schemars(range(min = 1))]
    pub after_trials: u64,
}

impl Default for StopPoor {
    fn default() -> Self {
        StopPoor { grace: 0, after_trials: 3 }
    }
}

/// `[deploy]`: what is written when training is over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Deploy {
    /// The formats to export.
    pub export: Vec<ExportFormat>,
}

impl Default for Deploy {
    fn default() -> Self {
        Deploy { export: vec![ExportFormat::Safetensors] }
    }
}

/// A format of exported models.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ExportFormat {
    /// `model.safetensors`, `config.json` and `tokenizer.json` with Hugging Face names.
    Safetensors,
}
