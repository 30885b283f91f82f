//! `report.html`: one file that shows how a run went, with its curves as inline SVG and without scripts.

mod plot;

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::experiment::Bound;
use crate::goal::{Outcome, Verdict, short};
use crate::metrics::{Kind, Record};
use crate::tune::{Status, Trial};
use plot::{Chart, Series, escape, short_count};

/// What a report shows. Empty parts are left out.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The name of the run.
    pub title: String,
    /// One line under it: the architecture, its parameters, the data.
    pub subtitle: String,
    /// The goals and what was reached.
    pub verdict: Verdict,
    /// What the plan said and what was measured.
    pub plan: Vec<Planned>,
    /// The metrics log.
    pub records: Vec<Record>,
    /// The trials of a search.
    pub trials: Vec<Trial>,
    /// The machine and the versions: names and values.
    pub environment: Vec<(String, String)>,
    /// The frozen experiment, as TOML.
    pub experiment: String,
}

/// One line of the comparison of plan and run.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    /// What: "weights", "peak memory", "time".
    pub name: String,
    /// Of which kind the numbers are.
    pub unit: Unit,
    /// What the plan said.
    pub planned: Option<f64>,
    /// What was measured.
    pub measured: Option<f64>,
}

/// How a number is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Bytes, written in MiB or GiB.
    Bytes,
    /// Seconds, written in minutes or hours where that is shorter.
    Seconds,
}

impl Unit {
    fn text(self, value: f64) -> String {
        match self {
            Unit::Bytes if value >= 1024.0 * 1024.0 * 1024.0 => format!("{:.2} GiB", value / 1024f64.powi(3)),
            Unit::Bytes => format!("{:.1} MiB", value / 1024f64.powi(2)),
            Unit::Seconds if value < 1.0 => format!("{:.1} ms", value * 1e3),
            Unit::Seconds if value < 100.0 => format!("{value:.2} s"),
            Unit::Seconds if value < 3600.0 => {
                format!("{:.0} min {:02.0} s", (value / 60.0).floor(), (value % 60.0).floor())
            }
            Unit::Seconds => format!("{:.0} h {:02.0} min", (value / 3600.0).floor(), (value % 3600.0 / 60.0).floor()),
        }
    }
}

impl Report {
    /// The whole page.
    pub fn html(&self) -> String {
        let title = escape(&self.title);
        let mut html = format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n\
             <style>\n{}</style>\n</head>\n<body>\n<main>\n<header>\n<h1>{title}</h1>\n<p class=\"subtitle\">{}</p>\n</header>\n",
            include_str!("style.css"),
            escape(&self.subtitle)
        );
        html.push_str(&self.verdict_html());
        html.push_str(&self.tiles());
        html.push_str("<div class=\"grid-2\">\n");
        for part in [
            self.charts(),
            self.samples(),
            self.plan_table(),
            self.environment_table(),
            self.trials_table(),
            self.experiment_text(),
        ] {
            html.push_str(&part);
        }
        html.push_str(
            "</div>\n<footer>Written by Tenon. Hover over a dot for its value.</footer>\n</main>\n</body>\n</html>\n",
        );
        html
    }

    fn verdict_html(&self) -> String {
        if self.verdict.outcomes.is_empty() {
            return String::new();
        }
        let (class, word) = if self.verdict.met() { ("met", "Goal met") } else { ("missed", "Goal not met") };
        let lines: String = self
            .verdict
            .outcomes
            .iter()
            .map(|outcome| format!("<li>{}</li>", escape(&outcome_text(outcome))))
            .collect();
        format!("<section class=\"verdict {class}\"><strong>{word}</strong><ul>{lines}</ul></section>\n")
    }

    fn tiles(&self) -> String {
        let last = |kind: Kind, name: &str| self.curve(kind, name).last().map(|(_, value)| *value);
        let mut tiles: Vec<(String, String)> = Vec::new();
        if let Some(step) = self.records.iter().map(|record| record.step).max() {
            tiles.push((short_count(step as f64), "steps".into()));
        }
        if let Some(loss) = last(Kind::Train, "loss") {
            tiles.push((short(loss), "training loss".into()));
        }
        for name in self.names(Kind::Evaluate).into_iter().take(3) {
            let value = last(Kind::Evaluate, &name).map_or(String::new(), short);
            tiles.push((value, words(&name)));
        }
        for (name, text) in [("tokens_per_second", "tokens/s, median"), ("samples_per_second", "samples/s, median")] {
            if let Some(speed) = median(self.wall(name).into_iter().map(|(_, speed)| speed).collect()) {
                tiles.push((short_count(speed.round()), text.into()));
            }
        }
        if let Some((_, seconds)) = self.wall("elapsed").last() {
            tiles.push((Unit::Seconds.text(*seconds), "training time".into()));
        }
        let tiles: String = tiles
            .iter()
            .map(|(value, name)| {
                format!("<div class=\"card tile\"><b>{}</b><span>{}</span></div>\n", escape(value), escape(name))
            })
            .collect();
        if tiles.is_empty() { tiles } else { format!("<section class=\"tiles\">\n{tiles}</section>\n") }
    }

    fn charts(&self) -> String {
        let line = |name: &str, class, points: Vec<(f64, f64)>, dots| Series {
            name: name.into(),
            class,
            points,
            dots,
            faint: false,
        };
        let chart = |title: &str, series: Vec<Series>| Chart {
            title: title.into(),
            x_label: "step".into(),
            series,
            goal: self.goal_line(title),
            from_zero: false,
            wide: false,
        };
        let raw = self.curve(Kind::Train, "loss");
        let smooth = smoothed(&raw);
        let validation = self.curve(Kind::Evaluate, "val_loss");
        let mut loss = chart(
            "loss",
            vec![
                Series { faint: true, ..line("training, each record", "train", raw, false) },
                line("training", "train", smooth, false),
                line("validation", "validation", validation, true),
            ],
        );
        loss.goal = self.goal_line("val_loss");
        loss.wide = true;
        let mut html = card(&loss);
        for name in self.names(Kind::Evaluate).iter().filter(|name| *name != "val_loss") {
            html.push_str(&card(&chart(name, vec![line(name, "validation", self.curve(Kind::Evaluate, name), true)])));
        }
        for name in self.names(Kind::Train).iter().filter(|name| *name != "loss") {
            let mut chart = chart(name, vec![line(name, "accent", self.curve(Kind::Train, name), false)]);
            chart.from_zero = name == "lr";
            html.push_str(&card(&chart));
        }
        for name in ["tokens_per_second", "samples_per_second"] {
            let mut chart = chart(name, vec![line(name, "accent", self.wall(name), false)]);
            chart.from_zero = true;
            html.push_str(&card(&chart));
        }
        html
    }

    fn goal_line(&self, metric: &str) -> Option<(f64, String)> {
        let outcome = self.verdict.outcomes.iter().find(|outcome| outcome.metric == metric)?;
        let sign = if matches!(outcome.bound, Bound::AtMost(_)) { "at most" } else { "at least" };
        let value = outcome.bound.value();
        Some((value, format!("goal: {sign} {value}")))
    }

    fn samples(&self) -> String {
        const SHOWN: usize = 3;
        let samples: Vec<(u64, &String)> =
            self.records.iter().filter_map(|record| Some((record.step, record.text.as_ref()?))).collect();
        if samples.is_empty() {
            return String::new();
        }
        let text: String = samples
            .iter()
            .rev()
            .take(SHOWN)
            .map(|(step, text)| {
                format!(
                    "<h3>after {step} steps</h3>\n<blockquote class=\"sample\">{}</blockquote>\n",
                    escape(text.trim())
                )
            })
            .collect();
        format!("<section class=\"card wide\"><h2>Samples</h2>\n{text}</section>\n")
    }

    fn plan_table(&self) -> String {
        if self.plan.is_empty() {
            return String::new();
        }
        let mut rows = String::new();
        for Planned { name, unit, planned, measured } in &self.plan {
            let text = |value: Option<f64>| value.map_or("–".to_owned(), |value| unit.text(value));
            let ratio = match (planned, measured) {
                (Some(planned), Some(measured)) if *planned > 0.0 => {
                    format!("{:+.1}%", 100.0 * (measured / planned - 1.0)).replace('-', "−")
                }
                _ => String::new(),
            };
            let _ = writeln!(
                rows,
                "<tr><td class=\"name\">{}</td><td class=\"number\">{}</td><td class=\"number\">{}</td><td class=\"number\">{ratio}</td></tr>",
                escape(name),
                text(*planned),
                text(*measured)
            );
        }
        format!(
            "<section class=\"card\"><h2>Plan and run</h2>\n<table><tr><th></th><th class=\"number\">planned</th>\
             <th class=\"number\">measured</th><th></th></tr>\n{rows}</table></section>\n"
        )
    }

    fn environment_table(&self) -> String {
        if self.environment.is_empty() {
            return String::new();
        }
        let rows: String = self
            .environment
            .iter()
            .map(|(name, value)| {
                format!("<tr><td class=\"name\">{}</td><td>{}</td></tr>\n", escape(name), escape(value))
            })
            .collect();
        format!("<section class=\"card\"><h2>Environment</h2>\n<table>{rows}</table></section>\n")
    }

    fn trials_table(&self) -> String {
        if self.trials.is_empty() {
            return String::new();
        }
        let best = crate::tune::best(&self.trials).map(|trial| trial.trial);
        let keys: Vec<&String> = self.trials[0].assignment.keys().collect();
        let heads: String = keys.iter().map(|key| format!("<th>{}</th>", escape(key))).collect();
        let mut rows = String::new();
        for trial in &self.trials {
            let value = |key: &&String| {
                let value = trial.assignment.get(*key).map(|value| match value.to_toml() {
                    toml::Value::Float(number) => short(number),
                    value => value.to_string(),
                });
                format!("<td>{}</td>", escape(&value.unwrap_or_default()))
            };
            let values: String = keys.iter().map(value).collect();
            let (class, status) = match &trial.status {
                Status::Finished if best == Some(trial.trial) => ("good", "best".to_owned()),
                Status::Finished => ("", "finished".to_owned()),
                Status::Stopped => ("", "stopped early".to_owned()),
                Status::Refused { reason } => ("bad", format!("refused: {reason}")),
                Status::Failed { reason } => ("bad", format!("failed: {reason}")),
            };
            let score =
                if trial.score().is_finite() { format!("{:.2}%", 100.0 * trial.score()) } else { "–".to_owned() };
            let _ = writeln!(
                rows,
                "<tr><td>{}</td>{values}<td class=\"{class}\">{}</td><td class=\"number\">{score}</td><td class=\"number\">{}</td></tr>",
                trial.trial,
                escape(&status),
                if trial.seconds > 0.0 { Unit::Seconds.text(trial.seconds) } else { "–".to_owned() }
            );
        }
        format!(
            "<section class=\"card wide\"><h2>Trials</h2>\n<table><tr><th>trial</th>{heads}<th>end</th>\
             <th class=\"number\">from the goal</th><th class=\"number\">time</th></tr>\n{rows}</table></section>\n"
        )
    }

    fn experiment_text(&self) -> String {
        if self.experiment.is_empty() {
            return String::new();
        }
        let line = |line: &str| match line.split_once(" = ") {
            _ if line.starts_with('[') => format!("<span class=\"section\">{}</span>\n", escape(line)),
            Some((key, value)) => format!("<span class=\"name\">{}</span> = {}\n", escape(key), escape(value)),
            None => format!("{}\n", escape(line)),
        };
        let text: String = self.experiment.lines().map(line).collect();
        format!(
            "<section class=\"card wide\"><h2>Experiment, every default written out</h2>\n<pre class=\"toml\">{text}</pre></section>\n"
        )
    }

    /// The points of a value over the steps.
    fn curve(&self, kind: Kind, name: &str) -> Vec<(f64, f64)> {
        let of_kind = self.records.iter().filter(|record| record.kind == kind);
        of_kind.filter_map(|record| Some((record.step as f64, *record.values.get(name)?))).collect()
    }

    /// The points of a value of the machine over the steps.
    fn wall(&self, name: &str) -> Vec<(f64, f64)> {
        self.records.iter().filter_map(|record| Some((record.step as f64, *record.wall.get(name)?))).collect()
    }

    /// The names of the values in records of a kind; those with a goal first.
    fn names(&self, kind: Kind) -> Vec<String> {
        let of_kind = self.records.iter().filter(|record| record.kind == kind);
        let names: BTreeMap<&String, ()> =
            of_kind.flat_map(|record| record.values.keys().map(|name| (name, ()))).collect();
        let mut names: Vec<String> = names.into_keys().cloned().collect();
        names.sort_by_key(|name| self.goal_line(name).is_none());
        names
    }
}

fn card(chart: &Chart) -> String {
    let svg = chart.svg();
    if svg.is_empty() {
        return svg;
    }
    let class = if chart.wide { "card wide" } else { "card" };
    let title = escape(&capital(&words(&chart.title)));
    format!(
        "<section class=\"{class}\"><div class=\"card-head\"><h2>{title}</h2><div>{}</div></div>\n{svg}</section>\n",
        chart.legend()
    )
}

fn outcome_text(outcome: &Outcome) -> String {
    let text = outcome.to_string();
    let text = text.strip_prefix("not met: ").or(text.strip_prefix("met: ")).unwrap_or(&text);
    text.replace("<=", "≤").replace(">=", "≥")
}

/// "bits_per_byte" as words.
fn words(name: &str) -> String {
    match name {
        "lr" => "learning rate".into(),
        "val_loss" => "validation loss".into(),
        "grad_norm" => "gradient norm".into(),
        _ => name.replace('_', " ").replace(" per second", "/s"),
    }
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or(String::new(), |first| first.to_uppercase().chain(chars).collect())
}

/// The mean over a window of about a thirtieth of the points, centred so that it does not lag where the curve falls.
fn smoothed(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let mut sums = vec![(0.0, 0usize)];
    for (_, y) in points {
        let (sum, count) = sums[sums.len() - 1];
        sums.push(if y.is_finite() { (sum + y, count + 1) } else { (sum, count) });
    }
    let mean = |(index, (x, y)): (usize, &(f64, f64))| {
        let half = (points.len() / 60).min(index).min(points.len() - 1 - index);
        let ((low, before), (high, until)) = (sums[index - half], sums[index + half + 1]);
        (*x, if y.is_finite() { (high - low) / (until - before) as f64 } else { f64::NAN })
    };
    points.iter().enumerate().map(mean).collect()
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.retain(|value| value.is_finite());
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}
