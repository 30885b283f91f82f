//! The optimizers an experiment can name, with PyTorch's names and defaults where PyTorch has the optimizer.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// `train.optimizer`: `kind` and the settings of that kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Optimizer {
    /// Adam with decoupled weight decay (Loshchilov and Hutter 2019).
    Adamw(AdamW),
    /// Stochastic gradient descent, with momentum if asked.
    Sgd(Sgd),
    /// Sign of an interpolated momentum (Chen et al. 2023).
    Lion(Lion),
    /// Orthogonalised momentum for matrices, AdamW for everything else (Jordan et al. 2024).
    Muon(Muon),
}

impl Default for Optimizer {
    fn default() -> Self {
        Optimizer::Adamw(AdamW::default())
    }
}

impl Optimizer {
    /// The peak learning rate; for Muon that of the matrices.
    pub fn lr(&self) -> f64 {
        match self {
            Optimizer::Adamw(settings) => settings.lr,
            Optimizer::Sgd(settings) => settings.lr,
            Optimizer::Lion(settings) => settings.lr,
            Optimizer::Muon(settings) => settings.lr,
        }
    }
}

/// Adam with decoupled weight decay.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AdamW {
    /// Peak learning rate.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub lr: f64,
    /// Decay of the running means of the gradient and of its square.
    #[schemars(schema_with = "betas")]
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub eps: f64,
    /// Decoupled weight decay, multiplied by the learning rate of the step.
    #[schemars(range(min = 0))]
    pub weight_decay: f64,
}

impl Default for AdamW {
    fn default() -> Self {
        AdamW { lr: 1e-3, betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.01 }
    }
}

/// Stochastic gradient descent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Sgd {
    /// Peak learning rate.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub lr: f64,
    /// Share of the last update that is kept.
    #[schemars(extend("minimum" = 0, "exclusiveMaximum" = 1))]
    pub momentum: f64,
    /// Nesterov's form of momentum.
    pub nesterov: bool,
    /// Added to the gradient as `weight_decay * weight` (L2 form).
    #[schemars(range(min = 0))]
    pub weight_decay: f64,
}

impl Default for Sgd {
    fn default() -> Self {
        Sgd { lr: 1e-3, momentum: 0.0, nesterov: false, weight_decay: 0.0 }
    }
}

/// Lion.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Lion {
    /// Peak learning rate.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub lr: f64,
    /// Interpolation for the update, and decay of the momentum.
    #[schemars(schema_with = "betas")]
    pub betas: [f64; 2],
    /// Decoupled weight decay, multiplied by the learning rate of the step.
    #[schemars(range(min = 0))]
    pub weight_decay: f64,
}

impl Default for Lion {
    fn default() -> Self {
        Lion { lr: 1e-4, betas: [0.9, 0.99], weight_decay: 0.0 }
    }
}

/// Muon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Muon {
    /// Peak learning rate of the matrices.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub lr: f64,
    /// Decay of the momentum.
    #[schemars(extend("minimum" = 0, "exclusiveMaximum" = 1))]
    pub momentum: f64,
    /// Nesterov's form of momentum.
    pub nesterov: bool,
    /// Newton-Schulz iterations of one orthogonalisation.
    #[schemars(range(min = 1, max = 20))]
    pub ns_steps: u64,
    /// Decoupled weight decay, multiplied by the learning rate of the step.
    #[schemars(range(min = 0))]
    pub weight_decay: f64,
    /// For embeddings, the head and everything that is no matrix.
    pub adamw: AdamW,
}

impl Default for Muon {
    fn default() -> Self {
        Muon { lr: 0.02, momentum: 0.95, nesterov: true, ns_steps: 5, weight_decay: 0.0, adamw: AdamW::default() }
    }
}

fn betas(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "items": { "type": "number", "minimum": 0, "exclusiveMaximum": 1 },
        "minItems": 2,
        "maxItems": 2,
    })
}
