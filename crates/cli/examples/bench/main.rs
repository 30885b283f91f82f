//! The cases of bench/cases.json in Tenon: `bench CASE f32|bf16 THREADS [STEPS]` prints one JSON line.
//!
//! `bench/run` runs it beside `bench/torch_peer.py`.

mod classify;
mod data;
mod generate;
mod step;

use std::error::Error;

use serde_json::{Value as Json, json};
use tenon::cpu::CpuBackend;
use tenon::nn::{ArchitectureSource, HyperValue, Model};
use tenon::train::experiment::Precision;

/// The work that both sides do.
const CASES: &str = include_str!("../../../../bench/cases.json");

/// A case as it was asked for.
struct Case {
    /// Its entry in bench/cases.json.
    json: Json,
    precision: Precision,
    model: Model,
    threads: usize,
    backend: CpuBackend,
    /// Measurements that do not count, and those that do.
    warmup: u64,
    steps: u64,
}

impl Case {
    /// A number of the entry.
    fn number(&self, key: &str) -> Result<u64, Box<dyn Error>> {
        number(&self.json, key)
    }

    /// A hyperparameter of the model.
    fn size(&self, key: &str) -> Result<u64, Box<dyn Error>> {
        number(&self.json["model"], key)
    }
}

fn number(json: &Json, key: &str) -> Result<u64, Box<dyn Error>> {
    json[key].as_u64().ok_or_else(|| format!("`{key}` is no number in {json}").into())
}

/// Seconds since the process was started, of which Linux counts hundredths.
fn since_process_start() -> Result<f64, Box<dyn Error>> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let after_name = stat.rsplit_once(')').ok_or("no name in /proc/self/stat")?.1;
    let started: f64 = after_name.split_whitespace().nth(19).ok_or("no start in /proc/self/stat")?.parse()?;
    let uptime = std::fs::read_to_string("/proc/uptime")?;
    let now: f64 = uptime.split_whitespace().next().ok_or("/proc/uptime is empty")?.parse()?;
    Ok(now - started / 100.0)
}

/// The most memory that the process has had.
fn peak_bytes() -> Result<u64, Box<dyn Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM in /proc/self/status")?;
    let kib: u64 = line.trim_end_matches("kB").trim().parse()?;
    Ok(kib * 1024)
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let usage = "usage: bench CASE f32|bf16 THREADS [STEPS]";
    let [name, precision, threads, steps @ ..] = args.as_slice() else { return Err(usage.into()) };
    let cases: Json = serde_json::from_str(CASES)?;
    let json = cases.get(name).cloned().ok_or_else(|| format!("no case `{name}` in bench/cases.json"))?;
    let architecture = json["architecture"].as_str().ok_or("`architecture` is no text")?;
    let mut set = Vec::new();
    for (key, value) in json["model"].as_object().ok_or("`model` is no table")? {
        set.push((key.clone(), HyperValue::from_json(value).ok_or_else(|| format!("`{key}` cannot be {value}"))?));
    }
    let threads = threads.parse()?;
    let case = Case {
        model: Model::load(&ArchitectureSource::parse(architecture), &set)?,
        threads,
        backend: CpuBackend::new(threads)?,
        precision: match precision.as_str() {
            "f32" => Precision::F32,
            "bf16" => Precision::Bf16,
            _ => return Err(usage.into()),
        },
        warmup: number(&json, "warmup")?,
        steps: steps.first().map_or_else(|| number(&json, "steps"), |s| s.parse().map_err(|_| usage.into()))?,
        json,
    };
    let mut result = match case.json["task"].as_str() {
        Some("train") => step::run(&case)?,
        Some("classify") => classify::run(&case)?,
        Some("decode") => generate::decode(&case)?,
        Some("prompt") => generate::prompt(&case)?,
        _ => return Err(format!("`task` of {name} is none of train, classify, decode, prompt").into()),
    };
    result["case"] = json!(name);
    result["precision"] = json!(precision);
    result["who"] = json!("Tenon");
    result["version"] = json!(env!("CARGO_PKG_VERSION"));
    result["parameters"] = json!(case.model.parameter_count());
    println!("{result}");
    Ok(())
}
