//! The rules between keys that a schema cannot say.

use serde_json::Value as Json;
use toml::Value;

use super::Experiment;
use super::check::check;
use super::config::{EarlyStop, Hyperparameter, Search, Tune};
use super::optimizer::Optimizer;
use super::problem::{Place, Problem};
use super::schedule::Span;
use super::source::{Node, parse_path};

/// All the rules that `experiment` breaks; `tree` is where it was read from and gives the places.
pub(crate) fn rules(experiment: &Experiment, tree: &Node, schema: &Json) -> Vec<Problem> {
    let mut problems = training_rules(experiment, tree);
    let mut report = |path: &[&str], message: String| problems.push(Problem { place: tree.place_of(path), message });
    if let Some(tune) = &experiment.tune {
        if experiment.goal.is_empty() {
            report(&["tune"], "`[tune]` needs a `[goal]`: say which metric the trials shall reach".to_owned());
        }
        if tune.search.is_empty() {
            let message = "`tune.search` is empty: name what may change, for example search.\"train.optimizer.lr\" = { log = [1e-4, 1e-2] }";
            report(&["tune"], message.to_owned());
        }
        if problems.is_empty() {
            problems = search_rules(tune, tree, schema);
        }
    }
    problems
}

fn training_rules(experiment: &Experiment, tree: &Node) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut report = |path: &[&str], message: String| problems.push(Problem { place: tree.place_of(path), message });
    let model = &experiment.model;
    match (&model.architecture, &model.from) {
        (None, None) => report(&["model"], "`model` needs the key `architecture` or `from`: what to train".to_owned()),
        (Some(name), Some(from)) if !name.ends_with(".star") => {
            let from = from.display();
            let message = format!(
                "`model.architecture` is \"{name}\" and `model.from` is \"{from}\", which has its own: give one of the two, or a Starlark file of yours"
            );
            report(&["model", "architecture"], message);
        }
        (None, Some(_)) if model.preset.is_some() => {
            report(
                &["model", "preset"],
                "`model.preset` has no meaning with `from`: the folder has all values".to_owned(),
            );
        }
        _ => {}
    }
    if model.missing.is_some() && model.from.is_none() {
        let message = "`model.missing` has no meaning without `from`: nothing is read that could lack weights";
        report(&["model", "missing"], message.to_owned());
    }
    let train = &experiment.train;
    match (train.steps, train.epochs) {
        (None, None) => report(&["train"], "`train` needs the key `steps` or `epochs`: how long to train".to_owned()),
        (Some(steps), Some(epochs)) => {
            let message = format!("`train.epochs` is {epochs} and `train.steps` is {steps}: give one of the two");
            report(&["train", "epochs"], message);
        }
        _ => {}
    }
    if let Some(total) = train.steps {
        let (warmup, decay) = (train.schedule.warmup(), train.schedule.decay());
        let (warmup, decay) = (warmup.steps(total), decay.map_or(0, |decay| decay.steps(total)));
        if warmup > total {
            let message = format!("`train.schedule.warmup` is {warmup} steps, more than the {total} of `train.steps`");
            report(&["train", "schedule", "warmup"], message);
        } else if decay.saturating_add(warmup) > total {
            let message = format!(
                "`train.schedule` has {warmup} steps of warmup and {decay} of decay, together more than the {total} of `train.steps`"
            );
            report(&["train", "schedule", "decay"], message);
        }
    } else if let (Span::Share(warmup), Some(Span::Share(decay))) = (train.schedule.warmup(), train.schedule.decay())
        && warmup + decay > 1.0
    {
        let message =
            format!("`train.schedule`: the shares of warmup, {warmup}, and decay, {decay}, are together more than 1");
        report(&["train", "schedule", "decay"], message);
    }
    if train.lora.is_some() && !train.freeze.is_empty() {
        let message = "`train.freeze` is given beside `train.lora`, which freezes everything but its additions: name what else is trained in `train.lora.also_train`";
        report(&["train", "freeze"], message.to_owned());
    }
    if let Optimizer::Sgd(sgd) = &train.optimizer
        && sgd.nesterov
        && sgd.momentum == 0.0
    {
        report(
            &["train", "optimizer", "nesterov"],
            "`train.optimizer.nesterov` needs a `momentum` above 0: set for example momentum = 0.9".to_owned(),
        );
    }
    if let Some(EarlyStop { metric, .. }) = &train.early_stop
        && metric == "loss"
    {
        let message = "`train.early_stop.metric` is \"loss\", the loss of training batches: name one of evaluations, for example \"val_loss\"";
        report(&["train", "early_stop", "metric"], message.to_owned());
    }
    problems
}

/// Each searched key must be one of the experiment and take the values at the ends of its range.
fn search_rules(tune: &Tune, tree: &Node, schema: &Json) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (key, search) in &tune.search {
        let place = tree.place_of(&["tune", "search", key]);
        let mut report = |message: String| {
            let message = format!("`tune.search.\"{key}\"`: {message}");
            problems.push(Problem { place: place.clone(), message });
        };
        let path = match parse_path(key) {
            Ok(path) if path.len() > 1 && ["data", "model", "train"].contains(&path[0].as_str()) => path,
            Ok(_) => {
                report("name a key of data, model or train, for example \"train.optimizer.lr\"".to_owned());
                continue;
            }
            Err(message) => {
                report(message);
                continue;
            }
        };
        let candidates = match candidates(search) {
            Ok(candidates) => candidates,
            Err(message) => {
                report(message);
                continue;
            }
        };
        for candidate in candidates {
            let mut trial = tree.clone();
            let text = candidate.to_string();
            let message = match trial.set(&path, Node::from_value(candidate, &Place::Program)) {
                Err(message) => Some(message),
                Ok(()) => first_problem(&trial, schema),
            };
            if let Some(message) = message {
                report(format!("with the value {text}: {message}"));
                break;
            }
        }
    }
    problems
}

fn first_problem(tree: &Node, schema: &Json) -> Option<String> {
    if let Some(problem) = check(schema, tree).into_iter().next() {
        return Some(problem.message);
    }
    match Experiment::read(tree) {
        Ok(experiment) => training_rules(&experiment, tree).into_iter().next().map(|problem| problem.message),
        Err(problems) => problems.into_iter().next().map(|problem| problem.message),
    }
}

/// The values to try a searched key with: the ends of the range, or every choice.
fn candidates(search: &Search) -> Result<Vec<Value>, String> {
    let ordered = |name: &str, low: f64, high: f64| {
        if low < high {
            Ok(())
        } else {
            Err(format!("`{name}` goes from {low} to {high}: the smaller number comes first"))
        }
    };
    match search {
        Search::Log([low, high]) => {
            if *low <= 0.0 {
                return Err(format!("`log` begins at {low}, it must be above 0"));
            }
            ordered("log", *low, *high)?;
            Ok(vec![Value::Float(*low), Value::Float(*high)])
        }
        Search::Uniform([low, high]) => {
            ordered("uniform", *low, *high)?;
            Ok(vec![Value::Float(*low), Value::Float(*high)])
        }
        Search::Int([low, high]) => {
            ordered("int", *low as f64, *high as f64)?;
            Ok(vec![Value::Integer(*low), Value::Integer(*high)])
        }
        Search::Choice(values) => Ok(values.iter().map(Hyperparameter::to_toml).collect()),
    }
}
