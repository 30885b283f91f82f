//! A run in memory: weights, optimizer and the position in the data, moved on one optimizer step at a time.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;

use safetensors::Dtype;
use serde::{Deserialize, Serialize};
use tenon_data::{Dataset, ElementType, Field, LABEL_WEIGHTS, MIXED_LABEL_WEIGHTS, Split, batch_length, fill_batch};
use tenon_graph::backend::{Backend, BackendError, NonFinite, Session};
use tenon_graph::op::Role;
use tenon_graph::types::{DType, Type};
use tenon_nn::{Model, RANDOM_KEY, initialise_into};

use crate::checkpoint::{Checkpoint, CheckpointError, Checkpoints, Contents, Tensor, TensorSpec};
use crate::experiment::{Objective, Train};
use crate::objective::{IGNORED, LABELS};
use crate::plan::RunPlan;
use crate::programs::{DENOMINATOR, LOSS_SUM};
use crate::scores::Scores;

/// Why a run stops before its end.
#[derive(Debug)]
pub enum TrainError {
    /// The backend cannot go on.
    Backend(BackendError),
    /// Loss or gradient are not finite; the weights are those of the step before.
    NonFinite(Box<Diverged>),
    /// A checkpoint cannot be written or read.
    Checkpoint(CheckpointError),
    /// A checkpoint is of another run.
    Mismatch(String),
}

/// A step that would have spoilt the weights.
#[derive(Clone, PartialEq, Debug)]
pub struct Diverged {
    /// The step, from 1.
    pub step: u64,
    /// Its loss.
    pub loss: f32,
    /// Its gradient norm.
    pub grad_norm: f32,
    /// The first value that is not finite.
    pub first: Option<NonFinite>,
}

impl fmt::Display for TrainError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TrainError::Backend(error) => error.fmt(f),
            TrainError::Checkpoint(error) => error.fmt(f),
            TrainError::Mismatch(message) => f.write_str(message),
            TrainError::NonFinite(diverged) => {
                let Diverged { step, loss, grad_norm, first } = &**diverged;
                write!(
                    f,
                    "step {step} is not finite: loss {loss}, gradient norm {grad_norm}; the weights were left as they were"
                )?;
                if let Some(first) = first {
                    let phase = format!("{:?}", first.phase).to_lowercase();
                    write!(
                        f,
                        "\n  first in the {phase} pass: {} gives {} at element {} of {}",
                        first.op, first.value, first.index, first.ty
                    )?;
                    if first.site.line > 0 {
                        write!(f, "\n  --> {}", first.site)?;
                    }
                    if !first.site.path.is_empty() {
                        write!(f, ", in {}", first.site.path)?;
                    }
                }
                write!(f, "\n  try: a lower train.optimizer.lr, a longer warmup, or train.clip = 1.0")
            }
        }
    }
}

impl std::error::Error for TrainError {}

impl From<BackendError> for TrainError {
    fn from(error: BackendError) -> TrainError {
        TrainError::Backend(error)
    }
}

impl From<CheckpointError> for TrainError {
    fn from(error: CheckpointError) -> TrainError {
        TrainError::Checkpoint(error)
    }
}

/// What one optimizer step did.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct StepReport {
    /// The step, from 1.
    pub step: u64,
    /// The mean loss of its samples.
    pub loss: f32,
    /// The norm of the gradient before clipping.
    pub grad_norm: f32,
    /// The learning rate.
    pub lr: f32,
}

/// The part of a checkpoint that is no tensor.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Progress<X> {
    /// Samples of the training data used so far: the position in the data.
    pub samples: u64,
    /// The checksum of the data.
    pub data: String,
    /// What the loop keeps beside.
    pub extra: X,
}

/// A run in memory.
pub struct Trainer<'a> {
    train: &'a Train,
    data: &'a dyn Dataset,
    session: Box<dyn Session>,
    plan: RunPlan,
    /// Optimizer steps done.
    step: u64,
    /// Name, role and type of every buffer that outlives a step.
    persistent: Vec<(String, Role, Type)>,
}

/// The sets of tensors of a checkpoint and the roles in them.
const SETS: &[(&str, &[Role])] =
    &[("weights", &[Role::Parameter, Role::State]), ("optimizer", &[Role::Optimizer]), ("control", &[Role::Control])];

/// The buffers that every step counts up, also one that fails.
const COUNTERS: [&str; 2] = ["step", RANDOM_KEY];

fn tensor_spec(name: &str, ty: &Type) -> TensorSpec {
    let dtype = match ty.dtype {
        DType::F32 => Dtype::F32,
        DType::BF16 => Dtype::BF16,
        DType::I32 => Dtype::I32,
        DType::U32 => Dtype::U32,
        DType::U8 => Dtype::U8,
        DType::Bool => Dtype::BOOL,
    };
    TensorSpec { name: name.into(), dtype, shape: ty.shape.sizes() }
}

impl<'a> Trainer<'a> {
    /// Allocates what the plan says and gives the weights their initial values.
    ///
    /// # Errors
    /// The machine does not have the memory.
    pub fn new(
        plan: RunPlan,
        model: &Model,
        train: &'a Train,
        data: &'a dyn Dataset,
        backend: &dyn Backend,
    ) -> Result<Trainer<'a>, TrainError> {
        let mut session = backend.session(plan.programs())?;
        let mut persistent: Vec<(String, Role, Type)> = Vec::new();
        for program in plan.programs() {
            for (_, name, role, ty) in program.graph.inputs() {
                let kept = SETS.iter().any(|(_, roles)| roles.contains(&role));
                if kept && !persistent.iter().any(|(n, ..)| **n == **name) {
                    persistent.push((name.to_string(), role, ty.clone()));
                }
            }
        }
        for parameter in model.variables() {
            for name in [parameter.name.clone(), format!("ema.{}", parameter.name)] {
                if let Some(buffer) = session.input_mut(&name) {
                    initialise_into(parameter, train.seed, buffer);
                }
            }
        }
        if let Some(key) = session.input_mut(RANDOM_KEY) {
            let seed = (train.seed ^ (train.seed >> 32)) as u32;
            key[..4].copy_from_slice(&seed.to_le_bytes());
        }
        Ok(Trainer { train, data, session, plan, step: 0, persistent })
    }

    /// Gives weights, and their averages, other values to start from, by name.
    pub fn start_from(&mut self, weights: &[(String, Vec<f32>)]) {
        for (name, values) in weights {
            for name in [name.clone(), format!("ema.{name}")] {
                let Some(buffer) = self.session.input_mut(&name) else { continue };
                for (bytes, value) in buffer.as_chunks_mut::<4>().0.iter_mut().zip(values) {
                    *bytes = value.to_le_bytes();
                }
            }
        }
    }

    /// The plan.
    pub fn plan(&self) -> &RunPlan {
        &self.plan
    }

    /// Optimizer steps done.
    pub fn steps_done(&self) -> u64 {
        self.step
    }

    /// What the session allocated.
    pub fn allocation(&self) -> &tenon_graph::backend::Allocation {
        self.session.allocation()
    }

    /// Samples of one optimizer step.
    pub fn samples_per_step(&self) -> u64 {
        self.train.batch * self.train.accumulate
    }

    /// Fills the batch buffers and returns the length of the batch, if batches are padded to one of several.
    fn fill(&mut self, split: Split, position: u64) -> Option<usize> {
        let batch = self.train.batch as usize;
        let length = batch_length(self.data, split, position, batch);
        let fields: Vec<Field> = self.data.fields().iter().map(|f| f.at(length)).collect();
        let mut buffers: Vec<Vec<u8>> = fields.iter().map(|f| vec![0; batch * f.bytes()]).collect();
        let mut parts: Vec<&mut [u8]> = buffers.iter_mut().map(Vec::as_mut_slice).collect();
        fill_batch(self.data, split, position, batch, &mut parts);
        for (field, bytes) in fields.iter().zip(&buffers) {
            // A field that the model does not take has no buffer.
            if let Some(buffer) = self.session.input_mut(&field.name) {
                buffer[..bytes.len()].copy_from_slice(bytes);
            }
        }
        length
    }

    /// The labels in the batch buffers that count, of a batch of this length, or the sum of their weights where they have some.
    fn count_labels(&self, length: Option<usize>) -> f64 {
        let weights = |name| {
            let bytes = &self.session.input(name)?[..self.train.batch as usize * 4];
            Some(bytes.as_chunks::<4>().0.iter().map(|w| f64::from(f32::from_le_bytes(*w))).sum::<f64>())
        };
        if let Some(own) = weights(LABEL_WEIGHTS) {
            return own + weights(MIXED_LABEL_WEIGHTS).unwrap_or(0.0);
        }
        let Some(field) = self.data.fields().iter().find(|f| f.name == LABELS).map(|f| f.at(length)) else {
            return 0.0;
        };
        let bytes = self.session.input(LABELS).unwrap_or_default();
        let words = bytes[..self.train.batch as usize * field.bytes()].chunks_exact(4);
        let words = words.map(|w| [w[0], w[1], w[2], w[3]]);
        match field.element {
            ElementType::I32 => words.filter(|w| i32::from_le_bytes(*w) != IGNORED).count() as f64,
            ElementType::F32 => words.filter(|w| !f32::from_le_bytes(*w).is_nan()).count() as f64,
        }
    }

    fn scalar(&self, program: usize, name: &str) -> Option<f32> {
        let (ty, bytes) = self.session.output(program, name)?;
        Some(match ty.dtype {
            DType::Bool => f32::from(bytes[0]),
            _ => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
        })
    }

    fn set_scalar(&mut self, name: &str, value: f32) {
        if let Some(buffer) = self.session.input_mut(name) {
            buffer.copy_from_slice(&value.to_le_bytes());
        }
    }

    /// One optimizer step.
    ///
    /// # Errors
    /// The backend's, or a loss or gradient that is not finite: then nothing has changed.
    pub fn step(&mut self) -> Result<StepReport, TrainError> {
        let first = self.step * self.samples_per_step();
        let batches = self.train.accumulate;
        let batch = self.train.batch;
        let before = COUNTERS.map(|name| self.session.input(name).map(<[u8]>::to_vec));
        let position = |i: u64| first + i * batch;
        let mut labels = 0.0;
        if batches > 1 {
            for i in 0..batches {
                let length = self.fill(Split::Train, position(i));
                labels += self.count_labels(length);
            }
        }
        let mut last = 0;
        for i in 0..batches {
            let length = self.fill(Split::Train, position(i));
            if batches == 1 {
                labels = self.count_labels(length);
            }
            // A batch without a label, or with weights of 0 only, has a loss of 0.
            self.set_scalar(DENOMINATOR, if labels > 0.0 { labels as f32 } else { 1.0 });
            last = self.plan.batch_program(length);
            self.session.run(last)?;
        }
        let mut loss = None;
        if self.plan.training.len() > 1 {
            last = self.plan.training.len() - 1;
            // The update sets the sums of the gradients and of the loss to zero.
            loss = self.session.input(LOSS_SUM).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            self.session.run(last)?;
        }
        let output = |name| self.scalar(last, name).unwrap_or(f32::NAN);
        let report = StepReport {
            step: self.step + 1,
            loss: loss.unwrap_or_else(|| output("loss")),
            grad_norm: output("grad_norm"),
            lr: output("lr"),
        };
        if output("finite") == 0.0 {
            self.set_counters(&before);
            let first = self.find_non_finite()?;
            // Looking for it has run the step once more.
            self.set_counters(&before);
            let StepReport { step, loss, grad_norm, .. } = report;
            return Err(TrainError::NonFinite(Box::new(Diverged { step, loss, grad_norm, first })));
        }
        self.step += 1;
        Ok(report)
    }

    fn set_counters(&mut self, values: &[Option<Vec<u8>>]) {
        for (name, value) in COUNTERS.iter().zip(values) {
            if let (Some(buffer), Some(value)) = (self.session.input_mut(name), value) {
                buffer.copy_from_slice(value);
            }
        }
    }

    /// Runs the failed step again with every value looked at: nothing that it read has changed.
    fn find_non_finite(&mut self) -> Result<Option<NonFinite>, TrainError> {
        let first = self.step * self.samples_per_step();
        for i in 0..self.train.accumulate {
            let length = self.fill(Split::Train, first + i * self.train.batch);
            let found = self.session.run_checked(self.plan.batch_program(length))?;
            if found.is_some() {
                return Ok(found);
            }
        }
        let last = self.plan.training.len() - 1;
        Ok(if last > 0 { self.session.run_checked(last)? } else { None })
    }

    /// Runs the training programs `runs` times on the first batch and returns the median seconds of each of their steps.
    /// The weights change.
    ///
    /// # Errors
    /// The backend's.
    pub fn profile(&mut self, runs: usize) -> Result<Vec<Vec<f64>>, TrainError> {
        let length = self.fill(Split::Train, 0);
        let labels = self.count_labels(length);
        self.set_scalar(DENOMINATOR, if labels > 0.0 { labels as f32 } else { 1.0 });
        let mut all: Vec<Vec<Vec<f64>>> = Vec::new();
        for _ in 0..runs.max(1) {
            let run: Result<Vec<Vec<f64>>, BackendError> = std::iter::once(self.plan.batch_program(length))
                .chain(1..self.plan.training.len())
                .map(|p| self.session.run_timed(p))
                .collect();
            all.push(run?);
        }
        let median = |program: usize, step: usize| {
            let mut times: Vec<f64> = all.iter().map(|run| run[program][step]).collect();
            times.sort_by(f64::total_cmp);
            times[times.len() / 2]
        };
        let programs = all[0].iter().enumerate();
        Ok(programs.map(|(p, steps)| (0..steps.len()).map(|s| median(p, s)).collect()).collect())
    }

    /// Metrics on the held-out data: all of it, or the first `batches` batches.
    ///
    /// # Errors
    /// The backend's.
    pub fn evaluate(&mut self, batches: Option<u64>) -> Result<BTreeMap<String, f64>, TrainError> {
        let samples = self.data.len(Split::Validation);
        let all = samples.div_ceil(self.train.batch);
        let (mut loss, mut count, mut correct) = (0.0, 0.0, None);
        let mut scores = Scores::default();
        for i in 0..batches.map_or(all, |b| b.min(all)) {
            let length = self.fill(Split::Validation, i * self.train.batch);
            let program = self.plan.evaluation(length);
            self.session.run(program)?;
            loss += f64::from(self.scalar(program, "loss_sum").unwrap_or(f32::NAN));
            count += f64::from(self.scalar(program, "count").unwrap_or(0.0));
            if let Some(hits) = self.scalar(program, "correct") {
                *correct.get_or_insert(0.0) += f64::from(hits);
            }
            if let Some((ty, predicted)) = self.session.output(program, "predicted") {
                let labels = self.session.input(LABELS).unwrap_or_default();
                let margins = self.session.output(program, "margin").map(|(_, bytes)| bytes);
                scores.add(&labels[..ty.bytes()], predicted, margins);
            }
        }
        let mut metrics = BTreeMap::new();
        if count == 0.0 {
            return Ok(metrics);
        }
        let mean = loss / count;
        metrics.insert("val_loss".into(), mean);
        if let Some(correct) = correct {
            let masked = self.plan.objective == Objective::MaskedLm;
            metrics.insert(if masked { "masked_accuracy" } else { "accuracy" }.into(), correct / count);
            metrics.insert("perplexity".into(), mean.exp());
        }
        metrics.extend(scores.metrics().into_iter().map(|(name, value)| (name.to_owned(), value)));
        let text = &self.data.facts().validation;
        if self.plan.objective == Objective::NextToken && text.bytes > 0 && text.tokens > 0 {
            let bytes = text.bytes as f64 * count / text.tokens as f64;
            metrics.insert("bits_per_byte".into(), loss / std::f64::consts::LN_2 / bytes);
        }
        Ok(metrics)
    }

    /// The bytes of a weight: its moving average where there is one.
    pub fn weight(&self, name: &str) -> Option<&[u8]> {
        self.session.input(&format!("ema.{name}")).or_else(|| self.session.input(name))
    }

    /// The blake3 checksum of all weights, optimizer state and counters, in hex.
    pub fn checksum(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for (name, _, ty) in &self.persistent {
            hasher.update(name.as_bytes());
            let bytes = self.session.input(name).unwrap_or_default();
            hasher.update(&bytes[..ty.bytes()]);
        }
        hasher.finalize().to_hex().to_string()
    }

    /// Writes a checkpoint of this moment.
    ///
    /// # Errors
    /// Those of [`Checkpoints::write`].
    pub fn save<X: Serialize>(
        &self,
        checkpoints: &Checkpoints,
        metrics: BTreeMap<String, f64>,
        extra: X,
    ) -> Result<(), TrainError> {
        let set = |roles: &[Role]| -> Vec<Tensor<'_>> {
            let members = self.persistent.iter().filter(|(_, role, _)| roles.contains(role));
            members
                .filter_map(|(name, _, ty)| {
                    let bytes = self.session.input(name)?;
                    Some(Tensor { spec: tensor_spec(name, ty), data: &bytes[..ty.bytes()] })
                })
                .collect()
        };
        let tensors: Vec<(&str, Vec<Tensor<'_>>)> = SETS.iter().map(|(name, roles)| (*name, set(roles))).collect();
        let samples = self.step * self.samples_per_step();
        let state = Progress { samples, data: self.data.checksum().to_owned(), extra };
        checkpoints.write(&Contents { step: self.step, metrics, state: &state, tensors: &tensors })?;
        Ok(())
    }

    /// Takes up the run where a checkpoint left it, and returns what the loop kept beside.
    ///
    /// # Errors
    /// A checkpoint that cannot be read, of another model, or of a run on other data.
    pub fn load<X: for<'d> Deserialize<'d>>(&mut self, checkpoint: &Checkpoint) -> Result<X, TrainError> {
        let state: Progress<X> = checkpoint.state()?;
        if state.data != self.data.checksum() {
            return Err(TrainError::Mismatch(format!(
                "the data has changed since {} was written: its checksum was {}, now it is {}\n  try: restore the data, or start a new run in another folder",
                checkpoint.folder().display(),
                state.data,
                self.data.checksum()
            )));
        }
        for (set, roles) in SETS {
            let mut file = checkpoint.tensors(set)?;
            let members = self.persistent.iter().filter(|(_, role, _)| roles.contains(role));
            let expected: Vec<TensorSpec> = members.map(|(name, _, ty)| tensor_spec(name, ty)).collect();
            file.compare(&expected).map_err(|m| TrainError::Mismatch(m.to_string()))?;
            let session = &mut self.session;
            file.read(|spec, reader: &mut dyn Read| {
                let bytes = spec.bytes().unwrap_or(0);
                match session.input_mut(&spec.name) {
                    Some(buffer) => reader.read_exact(&mut buffer[..bytes]),
                    None => Ok(()),
                }
            })?;
        }
        self.step = checkpoint.step();
        Ok(state.extra)
    }
}
