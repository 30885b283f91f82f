//! From an experiment to what a run needs: data, model, objective, number of steps.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use tenon_data::{
    DataConfig, DataError, Dataset, Demands, ElementType, Facts, LABEL_WEIGHTS, MIXED_LABELS, Progress, Split,
    TokenizerConfig,
};
use tenon_graph::backend::Backend;
use tenon_graph::types::Type;
use tenon_nn::lora::{Adapter, check_matches, freeze, lora};
use tenon_nn::{Architecture, ArchitectureSource, HyperValue, Model, ModelError, Parameter, load_weights};

use crate::experiment::{Experiment, Hyperparameter, Lora, Missing, Objective, Train, matches_any};
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
    /// The model, as it is exported.
    pub model: Model,
    /// What training starts from; absent: initial weights.
    pub start: Option<Start>,
    /// The model as it is trained: with additions of low rank and frozen parameters where the experiment asks for them.
    pub trained: Model,
    /// The additions.
    pub adapters: Vec<Adapter>,
    /// What is learnt.
    pub objective: Objective,
    /// Optimizer steps in all.
    pub steps: u64,
}

/// A folder that has less than one in so many weights was not meant.
const LEAST_KEPT: usize = 10;

/// A model whose weights training starts from.
pub struct Start {
    folder: PathBuf,
    model: Model,
    /// The weights that are there: their names in the model that starts, and here.
    kept: Vec<(String, String)>,
    /// The weights that are not there or of another shape, and so start anew.
    pub fresh: Vec<String>,
    /// The folder's weights that the model does not have.
    pub unused: Vec<String>,
}

impl Start {
    fn open(folder: PathBuf) -> Result<Start, ModelError> {
        if !folder.is_dir() {
            let message = format!("model.from: there is no folder {}", folder.display());
            return Err(ModelError::new(message).help(
                "name a run, an export or what tenon import made; a recipe's first lines say how to bring what it needs",
            ));
        }
        let model = tenon_nn::open(&folder)?;
        Ok(Start { folder, model, kept: Vec::new(), fresh: Vec::new(), unused: Vec::new() })
    }

    /// Notes what of `model` is there and what is not; an error if that is nearly all, or if nothing may be `missing`.
    fn compare(&mut self, model: &Model, missing: Missing) -> Result<(), SetupError> {
        // With a head the rest of a model may be in a scope, which the rest alone is not: one such scope is passed over.
        let bare = |name: &str, scope: &str| name.strip_prefix(scope).unwrap_or(name).to_owned();
        let pairs = |scope: &str| -> Vec<(&Parameter, Option<&Parameter>)> {
            let own: BTreeMap<String, &Parameter> = self.model.variables().map(|v| (bare(&v.name, scope), v)).collect();
            let found = |v: &Parameter| own.get(&bare(&v.name, scope)).copied().filter(|own| own.shape == v.shape);
            model.variables().map(|v| (v, found(v))).collect()
        };
        let there =
            |scope: &str| -> usize { pairs(scope).iter().filter_map(|(v, found)| found.map(|_| v.elements())).sum() };
        let names = model.variables().chain(self.model.variables());
        let scopes: BTreeSet<String> =
            names.filter_map(|v| v.name.split_once('.')).map(|(scope, _)| format!("{scope}.")).collect();
        let best = scopes.iter().map(String::as_str).max_by_key(|scope| there(scope));
        let scope = best.filter(|scope| there(scope) > there("")).unwrap_or("");
        let (mut kept, mut absent) = (Vec::new(), Vec::new());
        for (variable, found) in pairs(scope) {
            match found {
                Some(own) => kept.push((variable.name.clone(), own.name.clone())),
                None => absent.push(variable),
            }
        }
        let unused = self.model.variables().filter(|own| kept.iter().all(|(_, name)| *name != own.name));
        let unused: Vec<&Parameter> = unused.collect();
        if missing == Missing::Refuse && !absent.is_empty() {
            let list = |variables: &[&Parameter]| -> String {
                variables.iter().map(|v| format!("\n    {} {:?}", v.name, v.shape)).collect()
            };
            let mut message =
                format!("{} does not have all weights of {model}\n  missing:{}", self.folder.display(), list(&absent));
            if !unused.is_empty() {
                message += &format!("\n  there, but not used:{}", list(&unused));
            }
            message += "\n  try: the names and shapes of the folder in the architecture's file, or model.missing = \"new\" to start what is missing anew";
            return Err(SetupError::Mismatch(message));
        }
        let (there, all) = (there(scope), model.variables().map(Parameter::elements).sum::<usize>());
        if there < all / LEAST_KEPT {
            let message = format!(
                "{} has only {there} of the {all} weights of the model {model} that is to start from it",
                self.folder.display()
            );
            return Err(SetupError::Mismatch(format!(
                "{message}\n  try: remove the hyperparameters that change its sizes"
            )));
        }
        let names = |variables: Vec<&Parameter>| variables.into_iter().map(|v| v.name.clone()).collect();
        (self.fresh, self.unused, self.kept) = (names(absent), names(unused), kept);
        Ok(())
    }

    /// The values of the weights that are there, by their names in the model that starts.
    ///
    /// # Errors
    /// Files that cannot be read.
    pub fn weights(&self) -> Result<Vec<(String, Vec<f32>)>, ModelError> {
        let values = load_weights(&self.folder, &self.model)?;
        let mut by_name: BTreeMap<&str, Vec<f32>> =
            self.model.variables().map(|v| v.name.as_str()).zip(values).collect();
        let taken =
            self.kept.iter().map(|(name, own)| (name.clone(), by_name.remove(own.as_str()).unwrap_or_default()));
        Ok(taken.collect())
    }
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
        let mut start = match &experiment.model.from {
            Some(folder) => Some(Start::open(base.join(folder))?),
            None => None,
        };
        let own = experiment.model.file(origin);
        let missing = if own.is_some() { Missing::Refuse } else { Missing::New };
        let architecture = match (&start, own) {
            (_, Some(path)) => Architecture::load(&ArchitectureSource::File(path))?,
            (Some(start), None) => start.model.architecture.clone(),
            (None, None) => {
                let name = experiment.model.architecture.clone().unwrap_or_default();
                Architecture::load(&ArchitectureSource::Named(name))?
            }
        };
        let mut set: Vec<(String, HyperValue)> =
            experiment.model.hyperparameters.iter().map(|(name, value)| (name.clone(), hyper_value(value))).collect();
        if let Some(preset) = &experiment.model.preset {
            set.push(("preset".into(), HyperValue::Text(preset.clone())));
        }
        let given: Vec<String> = set.iter().map(|(name, _)| name.clone()).collect();
        let inherited = start.iter().filter(|_| experiment.model.preset.is_none());
        let inherited = inherited.flat_map(|start| &start.model.hyperparameters);
        set.extend(inherited.filter(|(name, _)| !given.contains(name) && architecture.takes(name)).cloned());
        // The length of samples is the model's choice, so the model is built once before the data is there.
        let first = architecture.build(&set)?;
        let context = match first.hyperparameter("context") {
            Some(HyperValue::Int(n)) => usize::try_from(*n).ok(),
            _ => None,
        };
        let Train { seed, batch, .. } = experiment.train;
        let masked = experiment.train.objective == Some(Objective::MaskedLm);
        let demands = Demands { seed, batch, context, masked };
        let data = tenon_data::open(&data_of(&experiment), base, cache, demands, progress)?;
        for (name, value, more) in facts_of(data.facts()) {
            if !architecture.takes(name) {
                continue;
            }
            // The folder's vocabulary has its rows; of what else it inherits the data knows better.
            let stays = given.iter().any(|n| n == name) || name == "vocab" && start.is_some();
            if !stays {
                set.retain(|(n, _)| n != name);
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
        if let Some(start) = &mut start {
            start.compare(&model, experiment.model.missing.unwrap_or(missing))?;
        }
        let (mut trained, mut adapters) = (model.clone(), Vec::new());
        if let Some(Lora { rank, alpha, targets, also_train }) = &experiment.train.lora {
            for pattern in also_train.chunks(1) {
                let setting = format!("lora.also_train = {pattern:?}");
                check_matches(&model, &setting, &|name| matches_any(pattern, name))?;
            }
            let (targets, also) = (|name: &str| matches_any(targets, name), |name: &str| matches_any(also_train, name));
            (trained, adapters) = lora(&model, *rank as usize, *alpha, &targets, &also)?;
        }
        if !experiment.train.freeze.is_empty() {
            freeze(&mut trained, &|name| matches_any(&experiment.train.freeze, name))?;
        }
        for pattern in experiment.train.no_decay.chunks(1) {
            check_matches(&trained, &format!("no_decay = {pattern:?}"), &|name| matches_any(pattern, name))?;
        }
        let objective = match experiment.train.objective {
            Some(objective) => objective,
            None => objective_of(&model, &*data)?,
        };
        if objective != Objective::Classification && data.fields().iter().any(|field| field.name == MIXED_LABELS) {
            return Err(SetupError::Mismatch(format!(
                "{}: `data.images.augment` mixes classes, which the objective does not learn\n  try: train.objective = \"classification\", or neither `mixup` nor `cutmix`",
                origin.display()
            )));
        }
        if matches!(objective, Objective::NextToken | Objective::MaskedLm) {
            check_token_labels(&model, &*data, origin)?;
        }
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
        Ok(Setup { experiment, origin: origin.to_owned(), data, model, trained, adapters, start, objective, steps })
    }

    /// Whether samples have a field.
    fn brings(&self, name: &str) -> bool {
        self.data.fields().iter().any(|field| field.name == name)
    }

    /// What the training programs are made from.
    pub fn recipe(&self) -> Recipe<'_> {
        Recipe {
            model: &self.trained,
            train: &self.experiment.train,
            objective: self.objective,
            weighted: self.brings(LABEL_WEIGHTS),
            mixed: self.brings(MIXED_LABELS),
            steps: self.steps,
        }
    }

    /// The plan of the run.
    ///
    /// # Errors
    /// See [`PlanError`].
    pub fn plan(&self, backend: &dyn Backend) -> Result<RunPlan, SetupError> {
        let budget = self.experiment.train.memory.map(|m| m.0 as usize);
        let plan_with = |train: &Train| plan(&Recipe { train, ..self.recipe() }, &*self.data, backend, budget);
        let train = &self.experiment.train;
        plan_with(train).map_err(|error| {
            // What fits together for one sample is no fault of the model.
            let one = Train { batch: 1, ..train.clone() };
            match error {
                PlanError::Graph(found) if train.batch > 1 && plan_with(&one).is_ok() => SetupError::Mismatch(format!(
                    "{}: `train.batch` is {}: {}\n  try: a smaller batch; `train.accumulate` sums several before a step",
                    self.origin.display(),
                    train.batch,
                    found[0].message
                )),
                other => SetupError::Plan(other),
            }
        })
    }

    /// The name of the run: that of the experiment file.
    pub fn name(&self) -> String {
        self.origin.file_stem().map_or_else(|| "run".into(), |s| s.to_string_lossy().into_owned())
    }

    /// The metrics that evaluations of this run have.
    pub fn metrics(&self) -> &'static [&'static str] {
        match self.objective {
            Objective::NextToken => &["val_loss", "perplexity", "bits_per_byte", "accuracy"],
            Objective::MaskedLm => &["val_loss", "perplexity", "masked_accuracy"],
            Objective::Classification if self.data.facts().classes == Some(2) => {
                &["val_loss", "perplexity", "accuracy", "f1", "macro_f1", "mcc", "auc"]
            }
            Objective::Classification => &["val_loss", "perplexity", "accuracy", "macro_f1", "mcc"],
            Objective::MultiLabel => &["val_loss", "accuracy"],
            Objective::Regression => &["val_loss"],
        }
    }
}

/// The data as the experiment names it, with the tokenizer of the model that training starts from unless it has its own.
fn data_of(experiment: &Experiment) -> DataConfig {
    let mut data = experiment.data.clone();
    let takes_text = data.text.is_some() || data.labelled_text.is_some();
    if let (Some(folder), true, None) = (&experiment.model.from, takes_text, &data.tokenizer) {
        data.tokenizer = Some(TokenizerConfig::File { file: folder.join("tokenizer.json") });
    }
    data
}

/// The predictions that a model is trained by.
fn predictions(model: &Model) -> Option<&Type> {
    let found = model.outputs.iter().find(|(name, _)| name == "logits").or(model.outputs.first());
    found.map(|(_, value)| model.graph.ty(*value))
}

/// An error unless tokens are both what the data has as labels and what the model predicts.
fn check_token_labels(model: &Model, data: &dyn Dataset, origin: &Path) -> Result<(), SetupError> {
    let guesses = format!("{}: `train.objective` guesses the tokens of a text, but", origin.display());
    if data.fields().iter().any(|field| field.name == LABELS && field.shape.is_empty()) {
        return Err(SetupError::Mismatch(format!(
            "{guesses} the data has one label for each sample\n  try: remove it, name files of text alone (data.text), or for a model that sees both sides of a token: \"masked-lm\" with data.labelled_text"
        )));
    }
    if predictions(model).is_some_and(|ty| ty.shape.rank() < 3) {
        return Err(SetupError::Mismatch(format!(
            "{guesses} {model} gives one answer for each sample\n  try: remove it, or a head that gives logits for every token; in bert: model.head = \"masked_lm\""
        )));
    }
    Ok(())
}

/// The objective that follows from the data's labels and the model's predictions.
fn objective_of(model: &Model, data: &dyn Dataset) -> Result<Objective, SetupError> {
    let labels = data.fields().iter().find(|f| f.name == LABELS);
    match (labels, predictions(model)) {
        (Some(labels), Some(ty)) => Ok(match labels.element {
            ElementType::F32 => Objective::Regression,
            ElementType::I32 => match usual(ty.shape.rank()) {
                Objective::NextToken if !model.is_causal() => {
                    return Err(SetupError::Mismatch(format!(
                        "in {model} a token sees those that follow it, so that it has nothing to guess\n  try: train.objective = \"masked-lm\", or a model whose attention is causal"
                    )));
                }
                usual => usual,
            },
        }),
        _ => Err(SetupError::Mismatch(format!("what {model} should learn does not follow: set `train.objective`"))),
    }
}
