//! Numbers, sizes and the plan as people read them.

use std::collections::BTreeMap;

use tenon::cpu::speed::{Rate, Speed, Unit};
use tenon_graph::backend::{Allocation, Backend};
use tenon_graph::op::Role;
use tenon_train::plan::RunPlan;
use tenon_train::setup::Setup;

/// A count with separators: `3,454,464`.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// The metrics of an evaluation.
pub fn metrics(metrics: &BTreeMap<String, f64>, digits: usize) -> String {
    match metrics.is_empty() {
        true => "nothing is held out to measure on".to_owned(),
        false => metrics.iter().map(|(name, value)| format!("{name} {value:.digits$}")).collect::<Vec<_>>().join("  "),
    }
}

/// A size in the unit that suits it.
pub fn bytes(n: usize) -> String {
    const UNITS: [(&str, f64); 3] = [("GiB", 1073741824.0), ("MiB", 1048576.0), ("KiB", 1024.0)];
    let n = n as f64;
    match UNITS.iter().find(|(_, unit)| n >= *unit) {
        Some((name, unit)) => format!("{:.1} {name}", n / unit),
        None => format!("{n} B"),
    }
}

/// A duration: `3 min 20 s`.
pub fn seconds(s: f64) -> String {
    match s {
        s if !s.is_finite() => "unknown".into(),
        s if s < 1e-3 => format!("{:.0} µs", s * 1e6),
        s if s < 0.01 => format!("{:.1} ms", s * 1e3),
        s if s < 1.0 => format!("{:.0} ms", s * 1e3),
        s if s < 60.0 => format!("{s:.1} s"),
        s if s < 3600.0 => format!("{:.0} min {:02.0} s", (s / 60.0).floor(), (s % 60.0).floor()),
        s => format!("{:.0} h {:02.0} min", (s / 3600.0).floor(), (s % 3600.0 / 60.0).floor()),
    }
}

/// The parts of an allocation, their sum last.
pub fn allocation(a: &Allocation) -> String {
    let named = [
        (Role::Parameter, "weights"),
        (Role::State, "model state"),
        (Role::Optimizer, "optimizer"),
        (Role::Gradient, "gradients"),
        (Role::Data, "batch"),
        (Role::Cache, "caches"),
        (Role::Control, "counters"),
    ];
    let inputs = named.iter().map(|(role, name)| (*name, a.of_role(*role)));
    let parts = inputs.chain([("arena", a.arena), ("scratch", a.scratch)]);
    let parts: Vec<String> = parts.filter(|(_, n)| *n > 0).map(|(name, n)| format!("{name} {}", bytes(n))).collect();
    format!("{} = {}", parts.join(" · "), bytes(a.total()))
}

/// The lines of a plan.
pub fn plan(setup: &Setup, plan: &RunPlan, backend: &dyn Backend) -> Vec<String> {
    let train = &setup.experiment.train;
    let mut batch = format!("{} samples", train.batch * train.accumulate);
    if let Some(context) = setup.data.facts().context {
        batch = format!("{} x {context} tokens", train.batch * train.accumulate);
    }
    let start = setup.start.as_ref().map(|start| {
        let unused = match start.unused.as_slice() {
            [] => String::new(),
            unused => format!("; not used: {}", unused.join(", ")),
        };
        match start.fresh.as_slice() {
            [] => format!("starts from the folder's weights{unused}"),
            fresh => format!("starts from the folder's weights, but anew: {}{unused}", fresh.join(", ")),
        }
    });
    let trained = match plan.trained == plan.parameters {
        true => String::new(),
        false => format!(", {} trained", count(plan.trained)),
    };
    let budget = train.memory.map_or(String::new(), |m| format!(" of {m}"));
    let mut lines = vec![
        format!(
            "{} · {} parameters{trained} · {batch} a step · {:.2e} FLOP a step",
            setup.model,
            count(plan.parameters),
            plan.flops
        ),
        format!("{}{budget}", allocation(&plan.allocation)),
        format!(
            "arena {} bytes · scratch {} bytes · all {} bytes",
            count(plan.allocation.arena as u64),
            count(plan.allocation.scratch as u64),
            count(plan.allocation.total() as u64)
        ),
    ];
    let step = plan.step_seconds(backend);
    let all = step * setup.steps as f64;
    lines.push(format!("about {} a step on this machine, {} in all", seconds(step), seconds(all)));
    lines.extend(start);
    if plan.again_flops > 0.0 {
        let share = 100.0 * plan.again_flops / (plan.flops - plan.again_flops);
        lines.push(format!("{share:.1}% of the work is done a second time to fit"));
    }
    lines
}

/// The lines about the data.
pub fn data(setup: &Setup) -> Vec<String> {
    let facts = setup.data.facts();
    let mut lines = Vec::new();
    if facts.train.tokens > 0 {
        let cache = if facts.from_cache { " (from cache)" } else { "" };
        lines.push(format!(
            "{} bytes to train · {} held out · {} tokens{cache}",
            count(facts.train.bytes),
            count(facts.validation.bytes),
            count(facts.train.tokens + facts.validation.tokens)
        ));
    } else {
        lines.push(format!(
            "{} samples to train · {} held out",
            count(facts.train.samples),
            count(facts.validation.samples)
        ));
    }
    const SHOWN: usize = 8;
    if (2..=SHOWN).contains(&facts.class_names.len()) {
        let classes = facts.class_names.iter().zip(&facts.train.class_counts);
        let classes: Vec<String> = classes.map(|(name, n)| format!("{name} {}", count(*n))).collect();
        lines.push(format!("classes: {}", classes.join(" · ")));
    }
    lines.extend(facts.notes.iter().cloned());
    lines
}

/// The table of what a machine does with each of these numbers of threads.
pub fn speeds(measured: &[(usize, Speed)]) -> Vec<String> {
    let threads = |n: usize| format!("{n} thread{}", if n == 1 { "" } else { "s" });
    let columns: String = measured.iter().map(|(n, _)| format!(" {:>11}", threads(*n))).collect();
    let mut lines = vec![format!("{:24}{columns}", "")];
    for rate in Rate::ALL {
        let (scaled, unit): (fn(f64) -> f64, _) = match rate.unit() {
            Unit::Flop => (|r| r / 1e9, "GFLOP/s"),
            Unit::Byte => (|r| r / 1e9, "GB/s"),
            Unit::Step => (|r| 1e6 / r, "µs to start one"),
        };
        let values: String = measured.iter().map(|(_, s)| format!(" {:11.1}", scaled(s.get(rate)))).collect();
        lines.push(format!("{:24}{values} {unit}", rate.name()));
    }
    lines
}
