//! A whole run: plan, train, judge, search if need be, sample, export, report.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use tenon_data::{DataError, Facts, save_tokenizer};
use tenon_graph::backend::Backend;
use tenon_nn::generate::{Generator, Sampling, programs};
use tenon_nn::{ModelError, export, load_weights, open};

use crate::checkpoint::Checkpoints;
use crate::experiment::{Experiment, Objective, Problems};
use crate::files::{Disk, FileError, replace_file};
use crate::fit::{Ended, Event, Observer, Surroundings, Trained, fit};
use crate::goal::{Better, Verdict};
use crate::metrics::{Kind, MetricsLog, Record, read};
use crate::plan::PlanError;
use crate::report::{Planned, Report, Unit};
use crate::run_folder::{Origin, RunError, RunFolder};
use crate::setup::{Setup, SetupError};
use crate::trainer::{TrainError, Trainer};
use crate::tune::{Status, Trial, best, is_poor, sample};

/// Why a run failed.
#[derive(Debug)]
pub enum RunFailure {
    /// It could not be set up.
    Setup(SetupError),
    /// Its folder could not be opened.
    Folder(RunError),
    /// Training.
    Train(TrainError),
    /// The search's experiment.
    Problems(Problems),
    /// Export or generation.
    Model(Box<ModelError>),
    /// A tokenizer that cannot be written.
    Data(DataError),
    /// A file.
    File(FileError),
    /// A stored trial is of another search.
    Search(String),
}

impl fmt::Display for RunFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RunFailure::Setup(error) => error.fmt(f),
            RunFailure::Folder(error) => error.fmt(f),
            RunFailure::Train(error) => error.fmt(f),
            RunFailure::Problems(error) => error.fmt(f),
            RunFailure::Model(error) => error.fmt(f),
            RunFailure::Data(error) => error.fmt(f),
            RunFailure::File(error) => error.fmt(f),
            RunFailure::Search(message) => f.write_str(message),
        }
    }
}

impl std::error::Error for RunFailure {}

macro_rules! from {
    ($($variant:ident $error:ty;)*) => {$(
        impl From<$error> for RunFailure {
            fn from(error: $error) -> RunFailure {
                RunFailure::$variant(error)
            }
        }
    )*};
}

from! {
    Setup SetupError;
    Folder RunError;
    Train TrainError;
    Problems Problems;
    Data DataError;
    File FileError;
}

impl From<ModelError> for RunFailure {
    fn from(error: ModelError) -> RunFailure {
        RunFailure::Model(Box::new(error))
    }
}

/// What a run is given beside its experiment.
pub struct Job<'a> {
    /// What runs it.
    pub backend: &'a dyn Backend,
    /// The run folder.
    pub folder: &'a Path,
    /// The folder of cached token shards.
    pub cache: &'a Path,
    /// Set from outside to stop after the current step.
    pub stop: &'a AtomicBool,
}

/// How a run ended.
pub struct Outcome {
    /// How its training ended.
    pub ended: Ended,
    /// The goals against the metrics; of an interrupted run, none is judged.
    pub verdict: Verdict,
    /// The metrics of the final weights.
    pub metrics: BTreeMap<String, f64>,
}

/// Weights at the end of a training run.
struct Candidate {
    values: Vec<Vec<f32>>,
    trained: Trained,
    planned: Vec<Planned>,
}

/// Runs an experiment to its verdict. With `whole` false it only trains and evaluates.
///
/// # Errors
/// See [`RunFailure`]. Checkpoints that have been written stay, and the same call goes on from them.
pub fn run(setup: &Setup, job: &Job<'_>, whole: bool, observer: &mut dyn Observer) -> Result<Outcome, RunFailure> {
    if whole
        && let Some(sample) = setup.experiment.train.sample.as_ref()
        && setup.objective == Objective::NextToken
    {
        // What cannot be generated at the end is refused before it costs anything.
        programs(&setup.model, setup.data.facts().context.unwrap_or(sample.tokens as usize), false)?;
    }
    let folder = begin(setup, job, job.folder)?;
    let goals = &setup.experiment.goal;
    let candidate = train(setup, job, &folder, observer, &mut |_, _| false)?;
    let mut verdict = Verdict::of(goals, &candidate.trained.metrics);
    let ended = candidate.trained.ended;
    if ended == Ended::Interrupted || !whole {
        return Ok(Outcome { ended, verdict, metrics: candidate.trained.metrics });
    }
    observer.event(Event::Judged { verdict: &verdict });
    let mut trials = Vec::new();
    let mut chosen = None;
    if !verdict.met() && setup.experiment.tune.is_some() {
        chosen = search(setup, job, &folder, verdict.distance(), &mut trials, observer)?;
        if let Some(trial) = &chosen {
            verdict = Verdict::of(goals, &trial.candidate.trained.metrics);
        }
    }
    folder.choose(chosen.as_ref().map(|trial| trial.number))?;
    let mut result = Finished { setup, folder: &folder, candidate: &candidate };
    if let Some(Attempt { number, setup, folder, candidate }) = &chosen {
        observer.event(Event::Chosen { trial: *number });
        result = Finished { setup, folder, candidate };
    }
    let metrics = result.candidate.trained.metrics.clone();
    if job.stop.load(std::sync::atomic::Ordering::Relaxed) {
        return Ok(Outcome { ended: Ended::Interrupted, verdict, metrics });
    }
    if !trials.is_empty() {
        observer.event(Event::Judged { verdict: &verdict });
    }
    if let Some(text) = generate(&result, job)? {
        let step = result.setup.steps;
        let (mut log, records) = MetricsLog::resume(&result.folder.metrics(), step)?;
        if !records.iter().any(|r| r.kind == Kind::Sample) {
            log.append(&Record { text: Some(text.clone()), ..Record::new(step, Kind::Sample, []) })?;
        }
        observer.event(Event::Sampled { text: &text });
    }
    if !setup.experiment.deploy.export.is_empty() {
        let difference = deploy(result.setup, &result.candidate.values, &folder.export())?;
        observer.event(Event::Exported { folder: &folder.export(), difference });
    }
    let title = setup.name() + &chosen.as_ref().map_or(String::new(), |trial| format!(", trial {}", trial.number));
    let file = folder.report();
    let page = report(&result, job, title, &verdict, trials)?.html();
    replace_file(&Disk, &file, page.as_bytes()).map_err(FileError::of("write", &file))?;
    observer.event(Event::Reported { file: &file });
    Ok(Outcome { ended, verdict, metrics })
}

/// A training run that has ended.
#[derive(Clone, Copy)]
struct Finished<'a> {
    setup: &'a Setup,
    folder: &'a RunFolder,
    candidate: &'a Candidate,
}

/// Opens the folder of a run.
fn begin(setup: &Setup, job: &Job<'_>, path: &Path) -> Result<RunFolder, RunError> {
    let file = setup.experiment.model.file(&setup.origin);
    let file = file.as_deref().map(|file| (file, &*setup.model.architecture.text));
    // From the root, so that the run can be opened from any folder.
    let absolute = |path: &Path| std::path::absolute(path).map_err(FileError::of("find", path));
    let origin = Origin {
        experiment: absolute(&setup.origin)?,
        cache: absolute(job.cache)?,
        version: env!("CARGO_PKG_VERSION").into(),
        machine: job.backend.describe(),
        data: setup.data.checksum().into(),
        seed: setup.experiment.train.seed,
        classes: setup.data.facts().class_names.clone(),
    };
    RunFolder::open(path, &setup.experiment, &origin, file).map(|(folder, _)| folder)
}

/// Plans and trains one experiment in its folder.
fn train(
    setup: &Setup,
    job: &Job<'_>,
    folder: &RunFolder,
    observer: &mut dyn Observer,
    is_poor: &mut dyn FnMut(u64, &BTreeMap<String, f64>) -> bool,
) -> Result<Candidate, RunFailure> {
    let plan = setup.plan(job.backend)?;
    let settings = &setup.experiment.train;
    let (step_seconds, steps) = (plan.step_seconds(job.backend), setup.steps as f64);
    reset_peak();
    let before = resident_bytes(NOW);
    let mut trainer = Trainer::new(plan, &setup.trained, settings, &*setup.data, job.backend)?;
    if let Some(start) = &setup.start {
        trainer.start_from(&start.weights()?);
    }
    let around = Surroundings { folder, observer, stop: job.stop, is_poor };
    let trained = fit(&mut trainer, settings, setup.steps, around)?;
    let bytes = |planned: usize, measured: Option<usize>| (Some(planned as f64), measured.map(|m| m as f64));
    let (planned, measured) = bytes(
        trainer.allocation().total(),
        before.zip(resident_bytes(PEAK)).map(|(before, after)| after.saturating_sub(before)),
    );
    let planned = vec![
        Planned { name: "memory".into(), unit: Unit::Bytes, planned, measured },
        Planned {
            name: "one step".into(),
            unit: Unit::Seconds,
            planned: Some(step_seconds),
            measured: trained.step_seconds,
        },
        Planned {
            name: "training".into(),
            unit: Unit::Seconds,
            planned: Some(step_seconds * steps),
            measured: Some(trained.seconds),
        },
    ];
    let values = weights(setup, &trainer);
    Ok(Candidate { values, trained, planned })
}

/// The weights of a run as its newest sound checkpoint has them, measured on the held-out data.
///
/// # Errors
/// No sound checkpoint, or one of another model or on other data.
pub fn evaluate(setup: &Setup, job: &Job<'_>) -> Result<(u64, BTreeMap<String, f64>), RunFailure> {
    let (mut trainer, step) = restore(setup, job)?;
    Ok((step, trainer.evaluate(None)?))
}

/// Exports the weights of a run as its newest sound checkpoint has them; see [`Event::Exported`].
///
/// # Errors
/// As [`evaluate`], and those of the export.
pub fn export_run(setup: &Setup, job: &Job<'_>, folder: &Path) -> Result<f64, RunFailure> {
    let (trainer, _) = restore(setup, job)?;
    let values = weights(setup, &trainer);
    deploy(setup, &values, folder)
}

fn restore<'a>(setup: &'a Setup, job: &Job<'_>) -> Result<(Trainer<'a>, u64), RunFailure> {
    let checkpoints = Checkpoints::open(&job.folder.join("checkpoints")).map_err(TrainError::from)?;
    let latest = checkpoints.latest().map_err(TrainError::from)?;
    let settings = &setup.experiment.train;
    let mut found = latest.checkpoint;
    if let Some(metric) = &settings.keep_best
        && let Some(step) = checkpoints.best(metric, Better::of(metric)).map_err(TrainError::from)?
        && let Ok(best) = checkpoints.get(step)
    {
        found = Some(best);
    }
    let Some(checkpoint) = found else {
        let what: Vec<String> = latest.damaged.iter().map(|damage| format!("\n  {damage}")).collect();
        let message = format!("{} has no sound checkpoint{}", job.folder.display(), what.concat());
        return Err(TrainError::Mismatch(message).into());
    };
    let mut trainer = Trainer::new(setup.plan(job.backend)?, &setup.trained, settings, &*setup.data, job.backend)?;
    let _: serde_json::Value = trainer.load(&checkpoint)?;
    let step = trainer.steps_done();
    Ok((trainer, step))
}

/// The values of the model's variables, additions of low rank merged.
fn weights(setup: &Setup, trainer: &Trainer<'_>) -> Vec<Vec<f32>> {
    let floats = |name: &str| floats(trainer.weight(name).unwrap_or_default());
    let merged = setup.model.variables().map(|variable| {
        let mut values = floats(&variable.name);
        if let Some(adapter) = setup.adapters.iter().find(|a| a.weight == variable.name) {
            adapter.merge(&mut values, &floats(&adapter.left), &floats(&adapter.right));
        }
        values
    });
    merged.collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// Random search until a trial meets the goal: the best trial, if it is better than `distance`.
fn search(
    setup: &Setup,
    job: &Job<'_>,
    folder: &RunFolder,
    distance: f64,
    trials: &mut Vec<Trial>,
    observer: &mut dyn Observer,
) -> Result<Option<Attempt>, RunFailure> {
    let Some(tune) = &setup.experiment.tune else { return Ok(None) };
    let began = Instant::now();
    let mut found: Option<Attempt> = None;
    for number in 0..tune.trials {
        let assignment = sample(tune, setup.experiment.train.seed, number);
        observer.event(Event::Trial { trial: number, assignment: &assignment });
        let mut trial = Trial { trial: number, assignment, status: Status::Finished, scores: vec![], seconds: 0.0 };
        let path = folder.trial(number);
        let record = path.join("trial.toml");
        if let Some(stored) = stored_trial(&record)? {
            stored.check(tune, setup.experiment.train.seed).map_err(RunFailure::Search)?;
            trial = stored;
        } else {
            let spent = began.elapsed().as_secs_f64();
            let expected = trials.iter().map(|t| t.seconds).fold(0.0, f64::max);
            let over_budget = tune.budget.filter(|budget| spent + expected > budget.seconds());
            match over_budget {
                Some(budget) => {
                    let reason = format!("{spent:.0} s of {budget} are spent and a trial takes {expected:.0} s");
                    trial.status = Status::Refused { reason };
                }
                None => {
                    if let Some(ended) = attempt(setup, job, &path, &mut trial, trials, observer)? {
                        if ended.candidate.trained.ended == Ended::Interrupted {
                            break;
                        }
                        if trial.status == Status::Finished && best(trials).is_none_or(|t| trial.score() < t.score()) {
                            found = Some(ended);
                        }
                    }
                }
            }
            // A refused trial has no run, and so no folder yet.
            std::fs::create_dir_all(&path).map_err(FileError::of("create", &path))?;
            replace_file(&Disk, &record, trial.to_toml().as_bytes()).map_err(FileError::of("write", &record))?;
        }
        observer.event(Event::TrialEnded { trial: &trial });
        let met = trial.status == Status::Finished && trial.score() == 0.0;
        trials.push(trial);
        if met {
            break;
        }
    }
    let Some(winner) = best(trials).filter(|t| t.score() < distance) else { return Ok(None) };
    match found {
        Some(found) if found.number == winner.trial => Ok(Some(found)),
        // It ran in an earlier process: its checkpoints have its weights.
        _ => {
            let mut again = winner.clone();
            attempt(setup, job, &folder.trial(winner.trial), &mut again, &[], observer)
        }
    }
}

fn stored_trial(path: &Path) -> Result<Option<Trial>, RunFailure> {
    if !path.exists() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(path).map_err(FileError::of("read", path))?;
    Trial::parse(&text).map(Some).map_err(|e| RunFailure::Search(format!("{}: {e}", path.display())))
}

/// A trial that ran.
struct Attempt {
    number: u64,
    setup: Setup,
    folder: RunFolder,
    candidate: Candidate,
}

/// One trial; what it learnt is in `trial`, and `None` comes back if it did not run to an end.
fn attempt(
    setup: &Setup,
    job: &Job<'_>,
    path: &Path,
    trial: &mut Trial,
    earlier: &[Trial],
    observer: &mut dyn Observer,
) -> Result<Option<Attempt>, RunFailure> {
    let began = Instant::now();
    let mut experiment: Experiment = setup.experiment.with(&trial.assignment)?;
    experiment.tune = None;
    let own = Setup::open(experiment, &setup.origin, job.cache, &mut |_| {})?;
    match own.plan(job.backend) {
        Ok(_) => {}
        Err(SetupError::Plan(PlanError::Memory(over))) => {
            trial.status = Status::Refused { reason: PlanError::Memory(over).to_string() };
            return Ok(None);
        }
        Err(other) => return Err(other.into()),
    }
    let folder = begin(&own, job, path)?;
    let rule = setup.experiment.tune.as_ref().and_then(|t| t.stop_poor.clone());
    let goals = &setup.experiment.goal;
    let mut scores = Vec::new();
    let mut judge = |step: u64, metrics: &BTreeMap<String, f64>| {
        scores.push((step, Verdict::of(goals, metrics).distance()));
        rule.as_ref().is_some_and(|rule| is_poor(rule, &scores, earlier))
    };
    let result = train(&own, job, &folder, observer, &mut judge);
    trial.seconds = began.elapsed().as_secs_f64();
    match result {
        Ok(candidate) => {
            scores.push((own.steps, Verdict::of(goals, &candidate.trained.metrics).distance()));
            trial.scores = scores;
            if candidate.trained.ended == Ended::Poor {
                trial.status = Status::Stopped;
            }
            Ok(Some(Attempt { number: trial.trial, setup: own, folder, candidate }))
        }
        Err(RunFailure::Train(TrainError::NonFinite(diverged))) => {
            trial.scores = scores;
            trial.status = Status::Failed { reason: TrainError::NonFinite(diverged).to_string() };
            Ok(None)
        }
        Err(other) => Err(other),
    }
}

/// The text that the experiment wants generated.
fn generate(run: &Finished<'_>, job: &Job<'_>) -> Result<Option<String>, RunFailure> {
    let setup = run.setup;
    let (Some(wanted), Some(tokenizer)) = (&setup.experiment.train.sample, setup.data.tokenizer()) else {
        return Ok(None);
    };
    if setup.objective != Objective::NextToken {
        return Ok(None);
    }
    let broken = |e: Box<dyn std::error::Error + Send + Sync>| ModelError::new(format!("tokenizer: {e}"));
    let prompt = tokenizer.encode(wanted.prompt.as_str(), false).map_err(broken)?.get_ids().to_vec();
    let context = setup.data.facts().context.unwrap_or(prompt.len() + wanted.tokens as usize);
    let mut generator = Generator::new(&setup.model, &run.candidate.values, job.backend, context, false)?;
    let sampling = Sampling {
        temperature: wanted.temperature,
        top_k: wanted.top_k.map(|k| k as usize),
        top_p: wanted.top_p,
        seed: setup.experiment.train.seed,
    };
    let tokens = generator.generate(&prompt, wanted.tokens as usize, &sampling, |_| true)?;
    Ok(Some(tokenizer.decode(&tokens, false).map_err(broken)?))
}

/// The names of the classes as `config.json` has them.
fn class_names(facts: &Facts) -> Vec<(&'static str, serde_json::Value)> {
    if facts.class_names.is_empty() {
        return Vec::new();
    }
    let names = || facts.class_names.iter().enumerate();
    let by_id: BTreeMap<String, &String> = names().map(|(id, name)| (id.to_string(), name)).collect();
    let by_name: BTreeMap<&String, usize> = names().map(|(id, name)| (name, id)).collect();
    vec![("id2label", serde_json::json!(by_id)), ("label2id", serde_json::json!(by_name))]
}

/// Exports a model, reads it again and returns the greatest difference of a weight.
fn deploy(setup: &Setup, values: &[Vec<f32>], folder: &Path) -> Result<f64, RunFailure> {
    export(&setup.model, values, folder, &class_names(setup.data.facts()))?;
    if let Some(tokenizer) = setup.data.tokenizer() {
        save_tokenizer(tokenizer, &folder.join("tokenizer.json"))?;
    }
    let again = load_weights(folder, &open(folder)?)?;
    let pairs = values.iter().flatten().zip(again.iter().flatten());
    let difference = pairs.map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max);
    let lengths = |values: &[Vec<f32>]| values.iter().map(Vec::len).collect::<Vec<_>>();
    if difference > 0.0 || lengths(&again) != lengths(values) {
        let message =
            format!("{}: what was read again differs by {difference} from what was trained", folder.display());
        return Err(ModelError::new(message).into());
    }
    Ok(difference)
}

fn report(
    run: &Finished<'_>,
    job: &Job<'_>,
    title: String,
    verdict: &Verdict,
    trials: Vec<Trial>,
) -> Result<Report, RunFailure> {
    let setup = run.setup;
    let facts: &Facts = setup.data.facts();
    let data = match facts.train.tokens {
        0 => format!("{} samples to train, {} held out", facts.train.samples, facts.validation.samples),
        tokens => format!("{tokens} tokens to train, {} held out", facts.validation.tokens),
    };
    Ok(Report {
        title,
        subtitle: format!("{} · {} parameters · {data}", setup.model, setup.model.parameter_count()),
        verdict: verdict.clone(),
        plan: run.candidate.planned.clone(),
        records: read(&run.folder.metrics())?,
        trials,
        environment: vec![
            ("machine".into(), job.backend.describe()),
            ("Tenon".into(), env!("CARGO_PKG_VERSION").into()),
            ("data".into(), setup.data.checksum().into()),
            ("seed".into(), setup.experiment.train.seed.to_string()),
        ],
        experiment: setup.experiment.frozen(),
    })
}

/// The line of the process's status that tells its greatest resident memory.
const PEAK: &str = "VmHWM:";

/// The line that tells its present resident memory.
const NOW: &str = "VmRSS:";

/// Starts the measurement of the greatest resident memory anew, where the system can; else it is that of the whole process.
fn reset_peak() {
    #[cfg(target_os = "linux")]
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// A size from the process's status, where the system tells it.
fn resident_bytes(line: &str) -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let found = status.lines().find_map(|l| l.strip_prefix(line))?;
    Some(found.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()? << 10)
}
