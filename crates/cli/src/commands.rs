//! What each command does: plain functions of what was typed.

use std::fmt::Display;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tenon::cpu::CpuBackend;
use tenon::cpu::speed::Speed;
use tenon::data::Progress;
use tenon::graph::backend::{Allocation, Backend};
use tenon::import::{self, Imported, Source};
use tenon::model_folder::open_model;
use tenon::nn::forward::{NamedTensor, Values, forward};
use tenon::nn::generate::{self, Generator, Sampling};
use tenon::nn::loss::loss;
use tenon::nn::{HyperValue, ModelError, further_keys, reference_markdown};
use tenon::predict::Classifier;
use tenon::tensors;
use tenon::train::experiment::{Experiment, Objective};
use tenon::train::fit::Ended;
use tenon::train::goal::check_metrics;
use tenon::train::run::{self, Job};
use tenon::train::run_folder::{read_experiment, read_origin, result_of};
use tenon::train::setup::Setup;
use tenon::train::trainer::Trainer;

use crate::args;
use crate::machine;
use crate::picture;
use crate::profile;
use crate::show;
use crate::watch::{Watch, line, note};

/// Why a command failed: what is shown.
pub struct Failure(pub String);

impl<E: Display> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure(error.to_string())
    }
}

/// The exit code of a command.
pub type Outcome = Result<u8, Failure>;

/// Where token shards are kept.
const CACHE: &str = "runs/cache";

fn all_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn backend(threads: Option<u64>) -> Result<CpuBackend, Failure> {
    let backend = CpuBackend::new(threads.map_or(all_threads(), |t| t as usize))?;
    if let Some(speed) = machine::file().and_then(|file| machine::load(&file, &backend.describe())) {
        backend.set_speed(speed);
    }
    Ok(backend)
}

fn progress(event: Progress) {
    match event {
        Progress::TrainingTokenizer { bytes } => {
            line("data", &format!("learning a vocabulary from {} bytes", show::count(bytes)))
        }
        Progress::Rebuilding { why } => line("data", &format!("made again: {why}")),
        Progress::Hashing { .. } | Progress::Tokenizing { .. } | Progress::Reading { .. } => {}
    }
}

fn set_up(experiment: Experiment, origin: &Path, cache: &Path) -> Result<Setup, Failure> {
    let setup = Setup::open(experiment, origin, cache, &mut progress)?;
    check_metrics(&setup.experiment, setup.metrics()).map_err(|e| Failure(format!("{}: {e}", origin.display())))?;
    Ok(setup)
}

/// Prints what a command lists. A reader that has gone away (`tenon inspect ... | head`) wanted no more.
fn page(text: &str) -> Outcome {
    let mut out = std::io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure(format!("cannot write to standard output: {error}")))
        }
        _ => Ok(0),
    }
}

fn lines(label: &str, lines: &[String]) {
    for (i, text) in lines.iter().enumerate() {
        line(if i == 0 { label } else { "" }, text);
    }
}

/// `tenon plan`.
pub fn plan(args: &args::Experiment) -> Outcome {
    let setup = set_up(Experiment::load(&args.experiment, &args.set)?, &args.experiment, Path::new(CACHE))?;
    let backend = backend(setup.experiment.train.threads)?;
    lines("data", &show::data(&setup));
    let plan = setup.plan(&backend)?;
    lines("plan", &show::plan(&setup, &plan, &backend));
    if let (Objective::NextToken, Some(context)) = (setup.objective, setup.data.facts().context) {
        let said = match generate::programs(&setup.model, context, false) {
            Ok((programs, _)) => {
                let scratch = programs.iter().map(|p| backend.scratch_bytes(p)).max().unwrap_or(0);
                format!("generating {context} tokens: {}", show::allocation(&Allocation::of(&programs, scratch)))
            }
            Err(error) => error.message.clone(),
        };
        lines("", &[said]);
    }
    Ok(0)
}

/// `tenon run` and `tenon train`.
pub fn run(args: &args::RunArgs, whole: bool, stop: &AtomicBool) -> Outcome {
    let file = &args.experiment.experiment;
    let setup = set_up(Experiment::load(file, &args.experiment.set)?, file, Path::new(CACHE))?;
    let folder = args.out.clone().unwrap_or_else(|| PathBuf::from("runs").join(setup.name()));
    let backend = backend(setup.experiment.train.threads)?;
    lines("data", &show::data(&setup));
    lines("plan", &show::plan(&setup, &setup.plan(&backend)?, &backend));
    let job = Job { backend: &backend, folder: &folder, cache: Path::new(CACHE), stop };
    let mut watch = Watch::new(setup.data.facts().context);
    let outcome = run::run(&setup, &job, whole, &mut watch)?;
    if outcome.ended == Ended::Interrupted {
        line("stop", &format!("saved; the same command goes on from here: {}", folder.display()));
        return Ok(130);
    }
    Ok(if whole { outcome.verdict.exit_code() } else { 0 })
}

/// Training steps that `tenon profile` times; the median counts.
const PROFILED: usize = 5;

/// `tenon profile`.
pub fn profile(args: &args::Profile) -> Outcome {
    let file = &args.experiment.experiment;
    let setup = set_up(Experiment::load(file, &args.experiment.set)?, file, Path::new(CACHE))?;
    let backend = backend(setup.experiment.train.threads)?;
    let plan = setup.plan(&backend)?;
    let programs = plan.training.clone();
    let settings = &setup.experiment.train;
    if let Some(path) = &args.picture {
        let svg = picture::memory(&format!("{}, {}", setup.name(), setup.model), &programs, &plan.allocation);
        std::fs::write(path, svg).map_err(|e| Failure(format!("{}: cannot be written: {e}", path.display())))?;
    }
    let mut trainer = Trainer::new(plan, &setup.trained, settings, &*setup.data, &backend)?;
    let times = trainer.profile(PROFILED)?;
    // With accumulation the first of two programs runs several times for one update.
    let runs = [settings.accumulate as usize, 1];
    page(&(profile::table(&programs, &runs, &times, backend.speed()).join("\n") + "\n"))
}

/// The time for which `tenon bench` measures each rate.
const MEASURED: Duration = Duration::from_millis(150);

/// `tenon bench`.
pub fn bench() -> Outcome {
    let mut counts = vec![1, all_threads()];
    counts.dedup();
    let mut measured = Vec::new();
    for threads in counts {
        let backend = CpuBackend::new(threads)?;
        measured.push((threads, backend.describe(), Speed::measure(&backend, MEASURED)));
    }
    let (_, machine, _) = measured.last().expect("one thread at least");
    let mut lines = vec![machine.clone()];
    let columns: Vec<(usize, Speed)> = measured.iter().map(|(threads, _, speed)| (*threads, *speed)).collect();
    lines.extend(show::speeds(&columns));
    page(&(lines.join("\n") + "\n"))?;
    let Some(file) = machine::file() else {
        return Err(Failure("not stored: neither XDG_CACHE_HOME nor HOME names a folder".into()));
    };
    let entries: Vec<(String, Speed)> = measured.into_iter().map(|(_, machine, speed)| (machine, speed)).collect();
    machine::store(&file, &entries).map_err(|e| Failure(format!("{}: cannot be written: {e}", file.display())))?;
    page(&format!("stored in {}\n", file.display()))
}

/// The folder with the result of the run in `folder`, or `folder` itself; says so if it is that of a trial.
fn result(folder: &Path) -> Result<PathBuf, Failure> {
    let (result, trial) = result_of(folder)?;
    if let Some(trial) = trial {
        // Standard output may be a text or a list that others read.
        note(&format!("trial {trial} is the result of this run"));
    }
    Ok(result)
}

/// The result of a run as it was begun, its folder and its cache.
fn reopen(folder: &Path) -> Result<(Setup, PathBuf, PathBuf), Failure> {
    let folder = result(folder)?;
    let Some(mut experiment) = read_experiment(&folder)? else {
        return Err(Failure(format!(
            "{}: no run in it (experiment.toml)\n  try: name a folder that `tenon run` made",
            folder.display()
        )));
    };
    // The user's own architecture may have changed since; the run has the text that it began with.
    let copy = folder.join("model.star");
    if copy.exists() {
        experiment.model.architecture = Some(std::path::absolute(copy)?.to_string_lossy().into_owned());
    }
    let origin = read_origin(&folder)?;
    Ok((set_up(experiment, &origin.experiment, &origin.cache)?, folder, origin.cache))
}

/// `tenon eval`.
pub fn eval(args: &args::RunDir, stop: &AtomicBool) -> Outcome {
    let (setup, folder, cache) = reopen(&args.run)?;
    let backend = backend(setup.experiment.train.threads)?;
    let job = Job { backend: &backend, folder: &folder, cache: &cache, stop };
    let (step, metrics) = run::evaluate(&setup, &job)?;
    line("eval", &format!("step {step}  {}", show::metrics(&metrics, 6)));
    Ok(0)
}

/// `tenon export`.
pub fn export(args: &args::Export, stop: &AtomicBool) -> Outcome {
    let (setup, folder, cache) = reopen(&args.run)?;
    let backend = backend(setup.experiment.train.threads)?;
    let job = Job { backend: &backend, folder: &folder, cache: &cache, stop };
    let difference = run::export_run(&setup, &job, &args.out)?;
    line(
        "export",
        &format!("{}  read again and compared: greatest difference {difference} (bound 0)", args.out.display()),
    );
    Ok(0)
}

/// `tenon import`.
pub fn import(args: &args::Import) -> Outcome {
    let source = Source { path: &args.source, architecture: args.architecture.as_deref(), set: &args.set };
    let Imported { model, tokenizer, fresh } = import::import(&source, &args.out, &mut |file, bytes| {
        line("download", &format!("{file} · {} bytes", show::count(bytes)));
    })?;
    let count = show::count(model.parameter_count() as u64);
    let with = if tokenizer { " · with its tokenizer" } else { "" };
    line("import", &format!("{model} · {count} parameters{with} · {}", args.out.display()));
    if !fresh.is_empty() {
        line("", &format!("not from the source, but anew: {}", fresh.join(", ")));
    }
    Ok(0)
}

/// `tenon generate`.
pub fn generate(args: &args::Generate, stop: &AtomicBool) -> Outcome {
    result(&args.model)?;
    let open = open_model(&args.model)?;
    let tokenizer = open.tokenizer()?;
    let prompt = tokenizer.encode(args.prompt.as_str(), false)?.get_ids().to_vec();
    let context = match open.model.hyperparameter("context") {
        Some(HyperValue::Int(n)) => *n as usize,
        _ => prompt.len() + args.tokens,
    };
    if let Some(vocab) = open.model.hyperparameter("vocab")
        && let HyperValue::Int(vocab) = vocab
        && prompt.iter().any(|t| i64::from(*t) >= *vocab)
    {
        return Err(Failure(format!(
            "the tokenizer gives tokens beyond the model's vocabulary of {vocab}\n  try: the tokenizer.json that the model was trained with"
        )));
    }
    let backend = backend(None)?;
    let bf16 = args.precision == args::Precision::Bf16;
    let mut generator = Generator::new(&open.model, &open.values, &backend, context, bf16)?;
    let sampling = Sampling { temperature: args.temperature, top_k: args.top_k, top_p: args.top_p, seed: args.seed };
    let mut text = prompt.clone();
    let mut shown = String::new();
    let mut out = std::io::stdout();
    let mut listening = true;
    let mut show_new = |text: &[u32]| {
        // Tokens may be parts of characters: what is shown is what no longer changes.
        let whole = tokenizer.decode(text, false).unwrap_or_default();
        let whole = whole.trim_end_matches('\u{fffd}');
        if let Some(new) = whole.strip_prefix(shown.as_str()) {
            listening = write!(out, "{new}").and_then(|()| out.flush()).is_ok();
            shown = whole.to_owned();
        }
        listening
    };
    show_new(&text);
    let tokens = generator.generate(&prompt, args.tokens, &sampling, |token| {
        text.push(token);
        show_new(&text) && !stop.load(Ordering::Relaxed)
    })?;
    if listening && tokens.len() < prompt.len() + args.tokens && !stop.load(Ordering::Relaxed) {
        note(&format!("stopped at {} tokens: the model's context is {context}", tokens.len()));
    }
    page("\n")
}

/// The most classes that `tenon predict` names for a file.
const NAMED: usize = 5;

/// `tenon predict`.
pub fn predict(args: &args::Predict) -> Outcome {
    let classifier = Classifier::open(&args.run, &result(&args.run)?)?;
    let backend = backend(None)?;
    for file in &args.files {
        let classes = classifier.classes_of(file, &backend)?;
        let named: Vec<String> = classes.iter().take(NAMED).map(|(name, p)| format!("{name} {p:.4}")).collect();
        page(&format!("{}  {}\n", file.display(), named.join("  ")))?;
    }
    Ok(0)
}

/// `tenon forward`.
pub fn forward_pass(args: &args::Forward) -> Outcome {
    result(&args.model)?;
    let open = open_model(&args.model)?;
    let mut inputs = tensors::read(&args.inputs)?;
    let takes_labels = open.model.inputs.iter().any(|i| i.name == "labels");
    let labels = inputs.iter().position(|t| t.name == "labels").filter(|_| !takes_labels).map(|i| inputs.remove(i));
    let backend = backend(None)?;
    let mut outputs = forward(&open.model, &open.values, &inputs, &backend)?;
    if let Some(labels) = labels {
        let loss = loss(&open.model, &outputs, &labels, &further_keys(&open.folder, &open.model)?)?;
        outputs.push(NamedTensor { name: "loss".into(), shape: vec![], values: Values::Float(vec![loss as f32]) });
    }
    tensors::write(&args.outputs, &outputs)?;
    for tensor in &outputs {
        line("", &format!("{} {:?}", tensor.name, tensor.shape));
    }
    Ok(0)
}

/// `tenon inspect`.
pub fn inspect(args: &args::Inspect) -> Outcome {
    if args.path.is_file() {
        let tensors = tensors::read_header(&args.path)?;
        let elements: u64 = tensors.iter().map(|t| t.shape.iter().product::<usize>() as u64).sum();
        let list = tensors.iter().map(|t| format!("{:?}\t{:?}\t{}\n", t.dtype, t.shape, t.name));
        let all = format!("{} tensors, {} elements\n", tensors.len(), show::count(elements));
        return page(&list.chain([all]).collect::<String>());
    }
    let mut text = String::new();
    if let Some(experiment) = read_experiment(&result(&args.path)?)? {
        text += &format!("{}\n", experiment.frozen());
    }
    if let Ok(folder) = tenon::model_folder::resolve(&args.path) {
        let model = tenon::nn::open(&folder)?;
        let count = show::count(model.parameter_count() as u64);
        text += &format!("{model} · {count} parameters · {}\n", folder.display());
        text.extend(model.hyperparameters.iter().map(|(name, value)| format!("  {name} = {value}\n")));
        text.extend(model.variables().map(|v| format!("{:?}\t{}\n", v.shape, v.name)));
    }
    if text.is_empty() {
        let message = format!("{}: neither a run, nor a model, nor a safetensors file", args.path.display());
        return Err(ModelError::new(message).into());
    }
    page(&text)
}

/// `tenon schema`.
pub fn schema() -> Outcome {
    page(&(serde_json::to_string_pretty(&Experiment::schema())? + "\n"))
}

/// `tenon doc`.
pub fn doc(args: &args::Doc) -> Outcome {
    match args.page {
        args::Page::Layers => page(&reference_markdown()),
    }
}
