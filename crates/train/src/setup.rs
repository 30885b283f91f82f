//! From an experiment to what a run needs: data, model, objective, number of steps.

use std::fmt;
use std::path::{Path, PathBuf};

use tenon_data::{DataError, Dataset, ElementType, Facts, Progress, Split};
use tenon_graph::backend::Backend;
use tenon_nn::{Architecture, ArchitectureSource, HyperValue, Model, ModelError};

use crate::experiment::{Experiment, Hyperparameter, Objective};
use crate::objective::{LABELS, usual};
use crate::plan::{PlanError, RunPlan, plan};
use crate::programs::Recipe;

/// Why an experiment cannot be set up.
#[derive(Debug)]
pub enum SetupError {
    /// The data.
    Data(DataError),
    /// The model.
    Model(Box<ModelError>),
    /// The two do not fit each other, or the experiment asks for what neither has.
    Mismatch(String),
    /// The plan.
    Plan(PlanError),
}

impl fmt::Display for SetupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SetupError::Data(error) => error.fmt(f),
            SetupError::Model(error) => error.fmt(f),
            SetupError::Mismatch(message) => f.write_str(message),
            SetupError::Plan(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for SetupError {}

impl From<DataError> for SetupError {
    fn from(error: DataError) -> SetupError {
        SetupError::Data(error)
    }
}

impl From<ModelError> for SetupError {
    fn from(error: ModelError) -> SetupError {
        SetupError::Model(Box::new(error))
    }
}

/// An experiment with its data and its model.
pub struct Setup {
    /// The experiment.
    pub experiment: Experiment,
    /// The file that it was read from; its paths are relative to that file's folder.
    pub origin: PathBuf,
    /// The data.
    pub data: Box<dyn Dataset>,
    /// The model.
    pub model: Model,
    /// What is learnt.
    pub objective: Objective,
    /// Optimizer steps in all.
    pub steps: u64,
}

fn hyper_value(value: &Hyperparameter) -> HyperValue {
    match value {
        Hyperparameter::Bool(value) => HyperValue::Bool(*value),
        Hyperparameter::Int(value) => HyperValue::Int(*value),
        Hyperparameter::Float(value) => HyperValue::Float(*value),
        Hyperparameter::Text(value) => HyperValue::Text(value.clone()),
        Hyperparameter::List(values) => HyperValue::List(values.iter().map(hyper_value).collect()),
    }
}

/// What the data says of hyperparameters with these names; a model may have more of a kind only where that is marked.
fn facts_of(facts: &Facts) -> Vec<(&'static str, usize, bool)> {
    let image = facts.image.map(|[channels, height, width]| {
        [("channels", channels, false), ("height", height, false), ("width", width, false)]
    });
    let counts = [("vocab", facts.vocab, true), ("classes", facts.classes, true), ("features", facts.features, false)];
    let counts = counts.into_iter().filter_map(|(name, value, more)| Some((name, value?, more)));
    image.into_iter().flatten().chain(counts).collect()
}

impl Setup {
    /// Opens data and model of an experiment that was read from `origin`.
    ///
    /// # Errors
    /// See [`SetupError`].
    pub fn open(
        experiment: Experiment,
        origin: &Path,
        cache: &Path,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Setup, SetupError> {
        let base = origin.parent().unwrap_or(Path::new(""));
        let source = match experiment.model.file(origin) {
            Some(path) => ArchitectureSource::File(path),
            None => ArchitectureSource::Named(experiment.model.architecture.clone()),
        };
        let architecture = Architecture::load(&source)?;
        let mut set: Vec<(String, HyperValue)> =
            experiment.model.hyperparameters.iter().map(|(name, value)| (name.clone(), hyper_value(value))).collect();
        if let Some(preset) = &experiment.model.preset {
            set.push(("preset".into(), HyperValue::Text(preset.clone())));
        }
        // The length of samples is the model's choice, so the model is built once before the data is there.
        let first = architecture.build(&set)?;
        let context = match first.hyperparameter("context") {
            Some(HyperValue::Int(n)) => usize::try_from(*n).ok(),
            _ => None,
        };
        let data = tenon_data::open(&experiment.data, base, cache, experiment.train.seed, context, progress)?;
        for (name, value, more) in facts_of(data.facts()) {
            if !architecture.takes(name) {
                continue;
            }
            let chosen = set.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone());
            match chosen {
                None => set.push((name.to_owned(), HyperValue::Int(value as i64))),
                Some(HyperValue::Int(n)) if n == value as i64 || (more && n > value as i64) => {}
                Some(other) => {
                    let why = if more { "at least " } else { "" };
                    return Err(SetupError::Mismatch(format!(
                        "{}: `model.{name}` is {other}, but the data has {value}\n  try: remove `model.{name}` (it follows from the data), or set it to {why}{value}",
                        origin.display()
                    )));
                }
            }
        }
        let fields: Vec<&str> = data.fields().iter().map(|f| &*f.name).collect();
        let model = architecture.build(&set)?.taking(&fields)?;
        let objective = match experiment.train.objective {
            Some(objective) => objective,
            None => objective_of(&model, &*data)?,
        };
        let samples = data.len(Split::Train);
        if samples == 0 {
            let message = format!("{}: the data has no sample to train on", origin.display());
            return Err(SetupError::Mismatch(message));
        }
        let per_step = experiment.train.batch * experiment.train.accumulate;
        let steps = match (experiment.train.steps, experiment.train.epochs) {
            (Some(steps), _) => steps,
            (None, Some(epochs)) => ((epochs * samples as f64 / per_step as f64).ceil() as u64).max(1),
            (None, None) => {
                let message = format!("{}: give `train.steps` or `train.epochs`", origin.display());
                return Err(SetupError::Mismatch(message));
            }
        };
        Ok(Setup { experiment, origin: origin.to_owned(), data, model, objective, steps })
    }

    /// What the training programs are made from.
    pub fn recipe(&self) -> Recipe<'_> {
        Recipe { model: &self.model, train: &self.experiment.train, objective: self.objective, steps: self.steps }
    }

    /// The plan of the run.
    ///
    /// # Errors
    /// See [`PlanError`].
    pub fn plan(&self, backend: &dyn Backend) -> Result<RunPlan, SetupError> {
        let budget = self.experiment.train.memory.map(|m| m.0 as usize);
        plan(&self.recipe(), &*self.data, backend, budget).map_err(SetupError::Plan)
    }

    /// The name of the run: that of the experiment file.
    pub fn name(&self) -> String {
        self.origin.file_stem().map_or_else(|| "run".into(), |s| s.to_string_lossy().into_owned())
    }

    /// The metrics that evaluations of this run have.
    pub fn metrics(&self) -> &'static [&'static str] {
        match self.objective {
            Objective::NextToken => &["val_loss", "perplexity", "bits_per_byte", "accuracy"],
            Objective::Classification => &["val_loss", "perplexity", "accuracy"],
            Objective::MultiLabel => &["val_loss", "accuracy"],
            Objective::Regression => &["val_loss"],
        }
    }
}

/// The objective that follows from the data's labels and the model's predictions.
fn objective_of(model: &Model, data: &dyn Dataset) -> Result<Objective, SetupError> {
    let labels = data.fields().iter().find(|f| f.name == LABELS);
    let named = model.outputs.iter().find(|(name, _)| name == "logits");
    let predictions = named.or(model.outputs.first());
    match (labels, predictions) {
        (Some(labels), Some((_, value))) => Ok(match labels.element {
            ElementType::F32 => Objective::Regression,
            ElementType::I32 => usual(model.graph.ty(*value).shape.rank()),
        }),
        _ => Err(SetupError::Mismatch(format!("what {model} should learn does not follow: set `train.objective`"))),
    }
}
