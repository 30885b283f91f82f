//! The training steps of bench/cases.json in Tenon: `bench_step CASE f32|bf16 THREADS [STEPS]` prints one JSON line.
//!
//! The data is random and made before anything is timed; a step is the trainer's own, from filling the batch to the
//! reported loss. `bench/run` runs it beside `bench/torch_peer.py`.

use std::error::Error;
use std::time::Instant;

use serde_json::{Value as Json, json};
use tenon::cpu::CpuBackend;
use tenon::data::{Dataset, ElementType, Facts, Field, Split, Tokenizer};
use tenon::nn::{ArchitectureSource, HyperValue, Model};
use tenon::train::experiment::{AdamW, Objective, Optimizer, Precision, Train};
use tenon::train::objective::LABELS;
use tenon::train::plan::plan;
use tenon::train::programs::Recipe;
use tenon::train::trainer::Trainer;

/// The work that both sides do.
const CASES: &str = include_str!("../../../bench/cases.json");
/// Samples of the data.
const SAMPLES: usize = 512;

/// Random samples, ready to be copied.
struct Random {
    fields: Vec<Field>,
    facts: Facts,
    /// The bytes of each field, by sample.
    samples: Vec<Vec<Vec<u8>>>,
}

impl Random {
    /// Windows of random tokens, each labelled with the next.
    fn tokens(vocab: u64, length: usize) -> Random {
        let field = |name: &str| Field { name: name.into(), element: ElementType::I32, shape: vec![length] };
        let mut random = numbers();
        let mut sample = || {
            let tokens: Vec<[u8; 4]> = (0..=length).map(|_| ((random() % vocab) as i32).to_le_bytes()).collect();
            vec![tokens[..length].concat(), tokens[1..].concat()]
        };
        let samples = (0..SAMPLES).map(|_| sample()).collect();
        Random { fields: vec![field("input_ids"), field(LABELS)], facts: Facts::default(), samples }
    }

    /// Random pixels with a random class.
    fn images(shape: [usize; 3], classes: u64) -> Random {
        let fields = vec![
            Field { name: "pixel_values".into(), element: ElementType::F32, shape: shape.to_vec() },
            Field { name: LABELS.into(), element: ElementType::I32, shape: vec![] },
        ];
        let mut random = numbers();
        let mut sample = || {
            let pixels = shape.iter().product();
            let pixels: Vec<[u8; 4]> = (0..pixels).map(|_| ((random() % 256) as f32 / 255.0).to_le_bytes()).collect();
            vec![pixels.concat(), ((random() % classes) as i32).to_le_bytes().to_vec()]
        };
        let samples = (0..SAMPLES).map(|_| sample()).collect();
        Random { fields, facts: Facts::default(), samples }
    }
}

impl Dataset for Random {
    fn fields(&self) -> &[Field] {
        &self.fields
    }

    fn len(&self, _: Split) -> u64 {
        SAMPLES as u64
    }

    fn write_sample(&self, _: Split, _: u64, index: u64, out: &mut [&mut [u8]]) {
        for (bytes, sample) in out.iter_mut().zip(&self.samples[index as usize]) {
            bytes.copy_from_slice(sample);
        }
    }

    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn checksum(&self) -> &str {
        "random"
    }

    fn tokenizer(&self) -> Option<&Tokenizer> {
        None
    }
}

/// Always the same 31-bit random numbers.
fn numbers() -> impl FnMut() -> u64 {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state >> 33
    }
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
    let usage = "usage: bench_step CASE f32|bf16 THREADS [STEPS]";
    let [name, precision, threads, steps @ ..] = args.as_slice() else { return Err(usage.into()) };
    let cases: Json = serde_json::from_str(CASES)?;
    let case = cases.get(name).ok_or_else(|| format!("no case `{name}` in bench/cases.json"))?;
    let number = |json: &Json, key: &str| json[key].as_u64().ok_or_else(|| format!("`{key}` of {name} is no number"));
    let settings = case["model"].as_object().ok_or("`model` is no table")?;
    let steps = steps.first().map_or_else(|| number(case, "steps"), |s| s.parse().map_err(|_| usage.into()))?;
    let (batch, warmup) = (number(case, "batch")?, number(case, "warmup")?);

    let architecture = case["architecture"].as_str().ok_or("`architecture` is no text")?;
    let mut set = Vec::new();
    for (key, value) in settings {
        set.push((key.clone(), HyperValue::from_json(value).ok_or_else(|| format!("`{key}` cannot be {value}"))?));
    }
    let model = Model::load(&ArchitectureSource::parse(architecture), &set)?;
    let size = |key: &str| number(&case["model"], key);
    let (data, objective) = match architecture {
        "mlp" => {
            let shape = [size("channels")? as usize, size("height")? as usize, size("width")? as usize];
            (Random::images(shape, size("classes")?), Objective::Classification)
        }
        _ => (Random::tokens(size("vocab")?, number(case, "length")? as usize), Objective::NextToken),
    };
    let train = Train {
        batch,
        precision: match precision.as_str() {
            "f32" => Precision::F32,
            "bf16" => Precision::Bf16,
            _ => return Err(usage.into()),
        },
        optimizer: Optimizer::Adamw(AdamW { lr: 1e-4, betas: [0.9, 0.95], eps: 1e-8, weight_decay: 0.1 }),
        ..Train::default()
    };
    let backend = CpuBackend::new(threads.parse()?)?;
    let recipe = Recipe { model: &model, train: &train, objective, steps: warmup + steps };
    let plan = plan(&recipe, &data, &backend, None)?;
    let planned = plan.allocation.total();
    let mut trainer = Trainer::new(plan, &model, &train, &data, &backend)?;

    let (mut seconds, mut first_step, mut first_loss) = (Vec::new(), 0.0, 0.0);
    for step in 0..warmup + steps {
        let began = Instant::now();
        let report = trainer.step()?;
        let taken = began.elapsed().as_secs_f64();
        if step == 0 {
            (first_step, first_loss) = (since_process_start()?, report.loss);
        }
        if step >= warmup {
            seconds.push(taken);
        }
    }
    seconds.sort_by(f64::total_cmp);
    let result = json!({
        "case": name,
        "precision": precision,
        "who": "Tenon",
        "version": env!("CARGO_PKG_VERSION"),
        "parameters": model.parameter_count(),
        "seconds": seconds.get(seconds.len() / 2),
        "fastest": seconds.first(),
        "first_step": first_step,
        "planned_bytes": planned,
        "allocated_bytes": trainer.allocation().total(),
        "peak_bytes": peak_bytes()?,
        "first_loss": first_loss,
    });
    println!("{result}");
    Ok(())
}
