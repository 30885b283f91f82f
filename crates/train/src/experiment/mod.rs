//! The experiment file: what the data, the model, the training, the goal and the search are.
//!
//! Text becomes a tree in which every value knows its line (`source`), `--set` options are laid over it, the tree is
//! checked against the JSON Schema of the structs (`check`), serde fills the structs (`config`, `optimizer`, `schedule`),
//! and the rules between keys are checked (`rules`). All problems are collected and shown together.

mod check;
mod config;
mod frozen;
mod optimizer;
mod problem;
mod rules;
mod schedule;
mod source;
mod units;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tenon_data::DataConfig;
use toml::{Table, Value};

pub use config::{
    Bound, Deploy, EarlyStop, ExportFormat, Hyperparameter, Lora, Missing, Model, Objective, Precision, Sample, Search,
    StopPoor, Train, Tune,
};
pub use frozen::{Difference, differences};
pub use optimizer::{AdamW, Lion, Muon, Optimizer, Sgd};
pub use problem::{Place, Problem, Problems};
pub use schedule::{Constant, Decaying, Schedule, Span, Wsd};
pub use units::{ByteSize, TimeSpan};

pub(crate) use config::matches_any;
pub(crate) use problem::nearest;
use source::Node;

/// A whole experiment file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Experiment {
    /// Where the samples come from.
    pub data: DataConfig,
    /// The architecture and its hyperparameters.
    pub model: Model,
    /// How the model is trained.
    pub train: Train,
    /// What is good enough: metric names and their bounds. All must be met.
    #[serde(default)]
    pub goal: BTreeMap<String, Bound>,
    /// Trials with other settings when the goal is not met.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tune: Option<Tune>,
    /// What is written when training is over.
    #[serde(default)]
    pub deploy: Deploy,
}

/// Keys that may change between a run and its resumption: none of them changes a weight or a sample.
const FREE_KEYS: &[&str] = &[
    "train.memory",
    "train.threads",
    "train.log_every",
    "train.evaluate_every",
    "train.evaluate_batches",
    "train.checkpoint_every",
    "train.keep_last",
    "train.sample",
    "goal",
    "tune",
    "deploy",
];

/// The largest experiment file that is read, in bytes.
const LARGEST_FILE: u64 = 1 << 20;

impl Experiment {
    /// Reads an experiment file and lays the `--set` options (`"a.b=c"`) over it.
    ///
    /// # Errors
    /// Every problem found, with its line or its option.
    pub fn load(path: &Path, set: &[String]) -> Result<Experiment, Problems> {
        let name = path.display().to_string();
        let unreadable =
            |error: std::io::Error| Problems::one(&name, Place::Program, format!("cannot be read: {error}"));
        let size = std::fs::metadata(path).map_err(unreadable)?.len();
        if size > LARGEST_FILE {
            let message =
                format!("has {size} bytes, an experiment file at most {LARGEST_FILE}: is it another kind of file?");
            return Err(Problems::one(&name, Place::Program, message));
        }
        let bytes = std::fs::read(path).map_err(unreadable)?;
        let text = std::str::from_utf8(&bytes).map_err(|error| {
            let line = bytes[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count() + 1;
            Problems::one(&name, Place::Line(line), "is not UTF-8 text: is it another kind of file?")
        })?;
        Self::parse(text, &name, set)
    }

    /// Reads an experiment from text; `name` stands for the file in messages.
    ///
    /// # Errors
    /// Every problem found, with its line or its option.
    pub fn parse(text: &str, name: &str, set: &[String]) -> Result<Experiment, Problems> {
        let mut tree = source::parse(text).map_err(|problems| Problems::new(name, problems))?;
        name_default_kinds(&mut tree);
        let problems: Vec<Problem> =
            set.iter().filter_map(|option| source::apply_option(&mut tree, option).err()).collect();
        if !problems.is_empty() {
            return Err(Problems::new(name, problems));
        }
        Self::from_tree(&tree, name)
    }

    /// This experiment with the values of some dotted keys replaced, checked again: what a trial runs.
    ///
    /// # Errors
    /// A key that does not exist or a value that it does not take.
    pub fn with(&self, assignment: &BTreeMap<String, Hyperparameter>) -> Result<Experiment, Problems> {
        let name = "assignment";
        let mut tree = Node::from_value(Value::Table(self.to_table()), &Place::Program);
        for (key, value) in assignment {
            source::parse_path(key)
                .and_then(|path| tree.set(&path, Node::from_value(value.to_toml(), &Place::Program)))
                .map_err(|message| Problems::one(name, Place::Program, message))?;
        }
        Self::from_tree(&tree, name)
    }

    /// Checks an experiment that was filled in Rust as one from a file is checked.
    ///
    /// # Errors
    /// Every problem found.
    pub fn check(&self) -> Result<(), Problems> {
        let tree = Node::from_value(Value::Table(self.to_table()), &Place::Program);
        Self::from_tree(&tree, "experiment").map(drop)
    }

    fn from_tree(tree: &Node, name: &str) -> Result<Experiment, Problems> {
        let schema = Self::schema();
        let problems = check::check(&schema, tree);
        if !problems.is_empty() {
            return Err(Problems::new(name, problems));
        }
        let experiment = Self::read(tree).map_err(|problems| Problems::new(name, problems))?;
        let problems = rules::rules(&experiment, tree, &schema);
        if problems.is_empty() { Ok(experiment) } else { Err(Problems::new(name, problems)) }
    }

    /// Fills the structs, table by table so that what only serde refuses has at least the line of its table.
    fn read(tree: &Node) -> Result<Experiment, Vec<Problem>> {
        fn table<T: DeserializeOwned>(tree: &Node, name: &str, problems: &mut Vec<Problem>) -> Option<T> {
            let node = tree.get(&[name])?;
            node.to_value()
                .try_into()
                .map_err(|error: toml::de::Error| {
                    let message = format!("`{name}`: {}", error.to_string().trim_end().replace('\n', " "));
                    problems.push(Problem { place: node.place.clone(), message });
                })
                .ok()
        }
        let mut problems = Vec::new();
        let (data, model, train) = (
            table(tree, "data", &mut problems),
            table(tree, "model", &mut problems),
            table(tree, "train", &mut problems),
        );
        let (goal, tune, deploy) = (
            table(tree, "goal", &mut problems),
            table(tree, "tune", &mut problems),
            table(tree, "deploy", &mut problems),
        );
        match (data, model, train) {
            (Some(data), Some(model), Some(train)) if problems.is_empty() => Ok(Experiment {
                data,
                model,
                train,
                goal: goal.unwrap_or_default(),
                tune,
                deploy: deploy.unwrap_or_default(),
            }),
            _ => Err(problems),
        }
    }

    /// The experiment as TOML, every default written out. Parses back to an equal experiment.
    pub fn frozen(&self) -> String {
        frozen::write(&self.to_table())
    }

    /// The experiment as a TOML table, every default written out.
    ///
    /// # Panics
    /// If an integer set in Rust does not fit TOML's signed 64 bits; one from a file always does.
    pub fn to_table(&self) -> Table {
        Table::try_from(self).expect("an experiment is a TOML table")
    }

    /// The keys that may change between a run and its resumption. An early stop counts evaluations, and both it and the best
    /// checkpoint compare them: where there is one, evaluations stay what they were.
    pub fn free_keys(&self) -> impl Iterator<Item = &'static str> {
        let Train { early_stop, keep_best, .. } = &self.train;
        let (stops, compares) = (early_stop.is_some(), early_stop.is_some() || keep_best.is_some());
        FREE_KEYS.iter().copied().filter(move |key| match *key {
            "train.evaluate_every" => !stops,
            "train.evaluate_batches" => !compares,
            _ => true,
        })
    }

    /// What decides the weights: the table without [`Self::free_keys`].
    pub fn identity(&self) -> Table {
        let mut table = self.to_table();
        for key in self.free_keys() {
            frozen::remove(&mut table, key);
        }
        table
    }

    /// What differs between two experiments that cannot be one run: `self` is on the left.
    pub fn changes(&self, other: &Experiment) -> Vec<Difference> {
        let (mut left, mut right) = (self.to_table(), other.to_table());
        for key in self.free_keys().chain(other.free_keys()) {
            frozen::remove(&mut left, key);
            frozen::remove(&mut right, key);
        }
        differences(&left, &right)
    }

    /// BLAKE3 of [`Self::identity`] in hexadecimal: two experiments with the same checksum train the same weights.
    pub fn checksum(&self) -> String {
        blake3::hash(frozen::write(&self.identity()).as_bytes()).to_hex().to_string()
    }

    /// The JSON Schema of experiment files, for editors.
    pub fn schema() -> serde_json::Value {
        schemars::schema_for!(Experiment).to_value()
    }
}

/// Writes down the kinds of the optimizer and the schedule where the file has neither, so that `--set` and `[tune]` can
/// name their keys.
fn name_default_kinds(tree: &mut Node) {
    let kinds = Value::try_from(Train::default()).ok();
    for table in ["optimizer", "schedule"] {
        let kind = kinds.as_ref().and_then(|train| train.get(table)?.get("kind"));
        if let (Some(train), None, Some(kind)) = (tree.get(&["train"]), tree.get(&["train", table]), kind) {
            let node = Node::from_value(kind.clone(), &train.place);
            // A `train` that is no table is reported by the check.
            let _ = tree.set(&["train".into(), table.into(), "kind".into()], node);
        }
    }
}

impl Model {
    /// The Starlark file of the architecture, if it is one and not built in; `experiment` is the path of the experiment file.
    pub fn file(&self, experiment: &Path) -> Option<PathBuf> {
        let folder = experiment.parent().unwrap_or(Path::new(""));
        self.architecture.as_ref().filter(|name| name.ends_with(".star")).map(|name| folder.join(name))
    }
}

impl Hyperparameter {
    /// The value as TOML.
    pub fn to_toml(&self) -> Value {
        match self {
            Hyperparameter::Bool(value) => Value::Boolean(*value),
            Hyperparameter::Int(value) => Value::Integer(*value),
            Hyperparameter::Float(value) => Value::Float(*value),
            Hyperparameter::Text(value) => Value::String(value.clone()),
            Hyperparameter::List(values) => Value::Array(values.iter().map(Hyperparameter::to_toml).collect()),
        }
    }
}
