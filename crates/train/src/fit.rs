//! The training loop: steps, records, evaluations, checkpoints, and how it ends.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::checkpoint::{CheckpointError, Checkpoints, Damage};
use crate::experiment::Train;
use crate::files::FileError;
use crate::goal::{Better, Verdict};
use crate::metrics::{Kind, MetricsLog, Record};
use crate::run_folder::RunFolder;
use crate::tensorboard::EventWriter;
use crate::trainer::{TrainError, Trainer};
use crate::tune::{Assignment, Trial};

/// What the loop tells while it runs.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// It goes on from a checkpoint of this step.
    Resumed {
        /// The step.
        step: u64,
        /// Newer checkpoints that are damaged.
        damaged: &'a [Damage],
    },
    /// A step is done.
    Step {
        /// Steps done.
        step: u64,
        /// Steps in all.
        steps: u64,
        /// The loss of the step.
        loss: f32,
        /// Samples of a step.
        samples: u64,
    },
    /// An evaluation is done.
    Evaluated {
        /// Steps done.
        step: u64,
        /// The metrics.
        metrics: &'a BTreeMap<String, f64>,
    },
    /// A checkpoint is written.
    Saved {
        /// Steps done.
        step: u64,
    },
    /// Text was generated.
    Sampled {
        /// Prompt and continuation.
        text: &'a str,
    },
    /// A trial of the search begins.
    Trial {
        /// Its number, from 0.
        trial: u64,
        /// The values it has.
        assignment: &'a Assignment,
    },
    /// A trial of the search is over.
    TrialEnded {
        /// What is known of it.
        trial: &'a Trial,
    },
    /// A trial did better than the run's own training and is its result.
    Chosen {
        /// Its number, from 0.
        trial: u64,
    },
    /// The goals were looked at.
    Judged {
        /// Met or not.
        verdict: &'a Verdict,
    },
    /// The model was exported, read again and compared.
    Exported {
        /// The folder.
        folder: &'a Path,
        /// The greatest difference of a weight that was read again.
        difference: f64,
    },
    /// The report was written.
    Reported {
        /// The file.
        file: &'a Path,
    },
}

/// Follows the loop.
pub trait Observer {
    /// Something has happened.
    fn event(&mut self, event: Event<'_>);
}

/// How the loop ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// After the last step.
    Finished,
    /// A metric had not improved for as long as the experiment allows.
    EarlyStop,
    /// It was asked to stop; a checkpoint is written.
    Interrupted,
    /// The judge of its evaluations had seen enough.
    Poor,
}

/// The result of a run's training.
#[derive(Clone, PartialEq, Debug)]
pub struct Trained {
    /// How it ended.
    pub ended: Ended,
    /// The metrics of the weights that the trainer holds now.
    pub metrics: BTreeMap<String, f64>,
    /// Seconds in training, over all resumptions.
    pub seconds: f64,
    /// Seconds of one step: the median of this process's steps.
    pub step_seconds: Option<f64>,
}

/// What a checkpoint keeps of the loop.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct State {
    /// The sum of the losses since the last record (the bits of an `f64`), and how many.
    losses: (u64, u64),
    /// The best value of the early stop's metric (bits), and evaluations since.
    best: Option<(u64, u64)>,
    /// The last evaluation on all of the held-out data, if no step followed.
    evaluated: Option<BTreeMap<String, u64>>,
    /// Whether the loop had ended.
    done: bool,
    /// Seconds in training.
    seconds: u64,
}

impl From<FileError> for TrainError {
    fn from(error: FileError) -> TrainError {
        TrainError::Checkpoint(CheckpointError::from(error))
    }
}

/// Where a run writes, and who follows it.
pub struct Surroundings<'a> {
    /// Its folder.
    pub folder: &'a RunFolder,
    /// Who follows it.
    pub observer: &'a mut dyn Observer,
    /// Set from outside to stop after the current step.
    pub stop: &'a AtomicBool,
    /// Asked after every evaluation whether the run is poor and should end.
    pub is_poor: &'a mut dyn FnMut(u64, &BTreeMap<String, f64>) -> bool,
}

struct Loop<'a, 'b> {
    trainer: &'a mut Trainer<'b>,
    train: &'a Train,
    steps: u64,
    around: Surroundings<'a>,
    checkpoints: Checkpoints,
    log: MetricsLog,
    events: EventWriter,
    state: State,
    started: Instant,
    before: f64,
}

/// Trains up to step `steps`, from the newest sound checkpoint of the folder on if there is one.
///
/// # Errors
/// See [`TrainError`]; checkpoints that have been written stay.
pub fn fit<'a>(
    trainer: &'a mut Trainer<'_>,
    train: &'a Train,
    steps: u64,
    around: Surroundings<'a>,
) -> Result<Trained, TrainError> {
    let checkpoints = Checkpoints::open(&around.folder.checkpoints())?;
    let latest = checkpoints.latest()?;
    let mut state = State::default();
    if let Some(checkpoint) = &latest.checkpoint {
        state = trainer.load(checkpoint)?;
        around.observer.event(Event::Resumed { step: trainer.steps_done(), damaged: &latest.damaged });
    } else if !latest.damaged.is_empty() {
        let what: Vec<String> = latest.damaged.iter().map(ToString::to_string).collect();
        return Err(TrainError::Mismatch(format!(
            "no checkpoint of {} is sound:\n  {}\n  try: remove the damaged checkpoints to start again from step 0",
            around.folder.path().display(),
            what.join("\n  ")
        )));
    }
    let (log, _) = MetricsLog::resume(&around.folder.metrics(), trainer.steps_done())?;
    let folder = around.folder.events();
    std::fs::create_dir_all(&folder).map_err(FileError::of("create", &folder))?;
    let events = EventWriter::create(&folder, trainer.steps_done())?;
    let before = f64::from_bits(state.seconds);
    Loop { trainer, train, steps, around, checkpoints, log, events, state, started: Instant::now(), before }.run()
}

impl Loop<'_, '_> {
    fn seconds(&self) -> f64 {
        self.before + self.started.elapsed().as_secs_f64()
    }

    fn run(mut self) -> Result<Trained, TrainError> {
        let mut times: Vec<f64> = Vec::new();
        let mut ended = if self.state.done { Some(Ended::Finished) } else { None };
        if self.trainer.steps_done() >= self.steps {
            ended = Some(Ended::Finished);
        }
        let mut metrics = self.state.evaluated.as_ref().map(decode).unwrap_or_default();
        while ended.is_none() {
            let began = Instant::now();
            let report = self.trainer.step()?;
            times.push(began.elapsed().as_secs_f64());
            let step = report.step;
            let (sum, count) = (f64::from_bits(self.state.losses.0) + f64::from(report.loss), self.state.losses.1 + 1);
            self.state.losses = (sum.to_bits(), count);
            // A checkpoint has the metrics of its own weights, or none.
            self.state.evaluated = None;
            metrics.clear();
            let samples = self.trainer.samples_per_step();
            self.around.observer.event(Event::Step { step, steps: self.steps, loss: report.loss, samples });
            let last = step == self.steps;
            if step.is_multiple_of(self.train.log_every) || last {
                let values = [
                    ("loss", sum / count as f64),
                    ("lr", f64::from(report.lr)),
                    ("grad_norm", f64::from(report.grad_norm)),
                ];
                let mut record = Record::new(step, Kind::Train, values);
                record.wall.insert("elapsed".into(), self.seconds());
                record.wall.insert("samples_per_second".into(), samples as f64 / median(&times).unwrap_or(f64::NAN));
                self.record(&record)?;
                self.state.losses = (0, 0);
            }
            let mut poor = false;
            if step.is_multiple_of(self.train.evaluate_every) || last {
                metrics = self.evaluate(step, last)?;
                poor = (self.around.is_poor)(step, &metrics);
                if self.no_longer_improves(&metrics) {
                    ended = Some(Ended::EarlyStop);
                }
            }
            if last {
                ended = Some(Ended::Finished);
            } else if ended.is_none() && poor {
                ended = Some(Ended::Poor);
            } else if ended.is_none() && self.around.stop.load(Ordering::Relaxed) {
                ended = Some(Ended::Interrupted);
            }
            if ended == Some(Ended::EarlyStop) && !last && self.train.evaluate_batches.is_some() {
                metrics = self.evaluate(step, true)?;
            }
            if step.is_multiple_of(self.train.checkpoint_every) || ended.is_some() {
                self.state.done = matches!(ended, Some(Ended::Finished | Ended::EarlyStop));
                self.save(&metrics)?;
            }
        }
        let ended = ended.unwrap_or(Ended::Finished);
        if matches!(ended, Ended::Finished | Ended::EarlyStop) {
            metrics = self.take_best(metrics)?;
        }
        Ok(Trained { ended, metrics, seconds: self.seconds(), step_seconds: median(&times) })
    }

    fn record(&mut self, record: &Record) -> Result<(), TrainError> {
        self.log.append(record)?;
        let group = match record.kind {
            Kind::Train => "train",
            Kind::Evaluate => "validation",
            Kind::Sample => "sample",
        };
        let tags: Vec<(String, f64)> = record.values.iter().map(|(k, v)| (format!("{group}/{k}"), *v)).collect();
        self.events.scalars(record.step, tags.iter().map(|(tag, value)| (tag.as_str(), *value)))?;
        Ok(())
    }

    fn evaluate(&mut self, step: u64, all: bool) -> Result<BTreeMap<String, f64>, TrainError> {
        let batches = if all { None } else { self.train.evaluate_batches };
        let metrics = self.trainer.evaluate(batches)?;
        let record = Record::new(step, Kind::Evaluate, metrics.iter().map(|(k, v)| (k.as_str(), *v)));
        self.record(&record)?;
        self.around.observer.event(Event::Evaluated { step, metrics: &metrics });
        self.state.evaluated =
            batches.is_none().then(|| metrics.iter().map(|(k, v)| (k.clone(), v.to_bits())).collect());
        Ok(metrics)
    }

    fn no_longer_improves(&mut self, metrics: &BTreeMap<String, f64>) -> bool {
        let Some(rule) = &self.train.early_stop else { return false };
        let value = metrics.get(&rule.metric).copied().unwrap_or(f64::NAN);
        let better = match Better::of(&rule.metric) {
            Better::Lower => value + rule.min_delta,
            Better::Higher => value - rule.min_delta,
        };
        match self.state.best {
            Some((best, since)) if !Better::of(&rule.metric).is_better(better, f64::from_bits(best)) => {
                self.state.best = Some((best, since + 1));
                since + 1 >= rule.patience
            }
            _ => {
                self.state.best = Some((value.to_bits(), 0));
                false
            }
        }
    }

    fn save(&mut self, metrics: &BTreeMap<String, f64>) -> Result<(), TrainError> {
        // Records come first: a checkpoint must never know of a step that the log has lost.
        self.log.sync()?;
        self.state.seconds = self.seconds().to_bits();
        self.trainer.save(&self.checkpoints, metrics.clone(), &self.state)?;
        let best = self.train.keep_best.as_deref().map(|metric| (metric, Better::of(metric)));
        self.checkpoints.prune(self.train.keep_last as usize, best)?;
        self.around.observer.event(Event::Saved { step: self.trainer.steps_done() });
        Ok(())
    }

    /// Takes the weights of the best checkpoint where the experiment wants them.
    fn take_best(&mut self, metrics: BTreeMap<String, f64>) -> Result<BTreeMap<String, f64>, TrainError> {
        let Some(metric) = &self.train.keep_best else { return Ok(metrics) };
        let Some(step) = self.checkpoints.best(metric, Better::of(metric))? else { return Ok(metrics) };
        if step == self.trainer.steps_done() {
            return Ok(metrics);
        }
        match self.checkpoints.get(step) {
            Ok(checkpoint) => {
                let _: State = self.trainer.load(&checkpoint)?;
                self.trainer.evaluate(None)
            }
            Err(damage) => {
                let what: Vec<String> = damage.iter().map(ToString::to_string).collect();
                Err(TrainError::Mismatch(format!("the best checkpoint is damaged:\n  {}", what.join("\n  "))))
            }
        }
    }
}

fn decode(metrics: &BTreeMap<String, u64>) -> BTreeMap<String, f64> {
    metrics.iter().map(|(name, bits)| (name.clone(), f64::from_bits(*bits))).collect()
}

fn median(times: &[f64]) -> Option<f64> {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}
