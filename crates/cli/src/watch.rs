//! What a run shows while it goes on: a live line on a terminal, plain lines elsewhere.

use std::io::{IsTerminal, Write, stderr, stdout};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tenon_train::fit::{Event, Observer};
use tenon_train::tune::Status;

use crate::show;

/// Between two plain lines.
const QUIET: Duration = Duration::from_secs(10);

/// Follows a run.
pub struct Watch {
    bar: Option<ProgressBar>,
    plain: bool,
    began: Instant,
    first: Option<u64>,
    told: Instant,
    losses: f64,
    metrics: String,
    /// What one sample has: tokens of its window, or itself.
    per_sample: u64,
    unit: &'static str,
}

/// A line of the run: a label and what there is to say.
pub fn line(label: &str, text: &str) {
    // A reader that has gone away (`tenon run ... | head`) must not end the run.
    let _ = writeln!(stdout(), "{label:<6} {text}");
}

/// Prints a line on standard error: not a part of what a command gives.
pub fn note(text: &str) {
    let _ = writeln!(stderr(), "{text}");
}

impl Watch {
    /// Follows a run whose samples have this many tokens, or none.
    pub fn new(context: Option<usize>) -> Watch {
        let now = Instant::now();
        Watch {
            bar: None,
            plain: !stderr().is_terminal(),
            began: now,
            first: None,
            told: now,
            losses: f64::NAN,
            metrics: String::new(),
            per_sample: context.unwrap_or(1) as u64,
            unit: if context.is_some() { "tokens/s" } else { "samples/s" },
        }
    }

    fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        self.first = None;
        self.losses = f64::NAN;
    }

    fn say(&self, label: &str, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| line(label, text)),
            None => line(label, text),
        }
    }

    fn step(&mut self, step: u64, steps: u64, loss: f32, samples: u64) {
        if self.first.is_none() {
            self.began = Instant::now();
            self.first = Some(step);
        }
        // A mean over the last steps: single losses jump.
        let loss = f64::from(loss);
        self.losses = if self.losses.is_nan() { loss } else { 0.95 * self.losses + 0.05 * loss };
        let done = step - self.first.unwrap_or(step);
        let elapsed = self.began.elapsed().as_secs_f64();
        let rate = done as f64 / elapsed;
        let left = match steps - step {
            0 => "done".into(),
            _ if done == 0 => "... left".into(),
            steps => format!("{} left", show::seconds(steps as f64 / rate)),
        };
        let speed = show::count((rate * (samples * self.per_sample) as f64) as u64);
        let text = format!("loss {:.4}{}  {speed} {}  {left}", self.losses, self.metrics, self.unit);
        if self.plain {
            if step == steps || self.told.elapsed() > QUIET {
                self.told = Instant::now();
                line("train", &format!("{step}/{steps}  {text}"));
            }
            return;
        }
        let bar = self.bar.get_or_insert_with(|| {
            let bar = ProgressBar::with_draw_target(Some(steps), ProgressDrawTarget::stderr_with_hz(10));
            let colour = if std::env::var_os("NO_COLOR").is_some() { "" } else { ".cyan" };
            // What is wider than the terminal would be drawn again on every line of it.
            let style = format!("train  {{bar:16{colour}}}  {{pos}}/{{len}}  {{wide_msg}}");
            if let Ok(style) = ProgressStyle::with_template(&style) {
                bar.set_style(style.progress_chars("█▌░"));
            }
            bar
        });
        bar.set_position(step);
        bar.set_message(text);
    }
}

impl Observer for Watch {
    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Resumed { step, damaged } => {
                for damage in damaged {
                    self.say("resume", &format!("passed over: {damage}"));
                }
                self.say("resume", &format!("from the checkpoint of step {}", show::count(step)));
            }
            Event::Step { step, steps, loss, samples } => self.step(step, steps, loss, samples),
            Event::Evaluated { step, metrics } => {
                let shown = ["bits_per_byte", "accuracy", "masked_accuracy", "val_loss"]
                    .iter()
                    .find_map(|m| Some((m, metrics.get(*m)?)));
                if let Some((name, value)) = shown {
                    self.metrics = format!("  {name} {value:.4}");
                }
                self.say("eval", &format!("step {step}  {}", show::metrics(metrics, 4)));
            }
            Event::Saved { .. } => {}
            Event::Sampled { text } => {
                self.clear();
                line("sample", &text.replace('\n', "\n       "));
            }
            Event::Trial { trial, assignment } => {
                self.clear();
                let values: Vec<String> = assignment.iter().map(|(k, v)| format!("{k} = {}", v.to_toml())).collect();
                line("tune", &format!("trial {trial}: {}", values.join(", ")));
            }
            Event::TrialEnded { trial } => {
                self.clear();
                let how = match &trial.status {
                    Status::Finished => format!("{:.4} from the goal", trial.score()),
                    Status::Stopped => "stopped: poorer than the others".into(),
                    Status::Refused { reason } | Status::Failed { reason } => reason.clone(),
                };
                line("tune", &format!("trial {}: {how}", trial.trial));
            }
            Event::Chosen { trial } => {
                self.clear();
                line("tune", &format!("trial {trial} is the result of this run"));
            }
            Event::Judged { verdict } => {
                self.clear();
                for outcome in &verdict.outcomes {
                    line("goal", &outcome.to_string());
                }
            }
            Event::Exported { folder, difference } => {
                self.clear();
                let what = format!("read again and compared: greatest difference {difference} (bound 0)");
                line("export", &format!("{}  {what}", folder.display()));
            }
            Event::Reported { file } => {
                self.clear();
                line("report", &file.display().to_string());
            }
        }
    }
}
