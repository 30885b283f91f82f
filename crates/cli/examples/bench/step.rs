//! A training step: the trainer's own, from filling the batch to the reported loss.

use std::error::Error;
use std::time::Instant;

use serde_json::{Value as Json, json};
use tenon::train::experiment::{AdamW, Objective, Optimizer, Train};
use tenon::train::plan::plan;
use tenon::train::programs::Recipe;
use tenon::train::trainer::Trainer;

use crate::data::Random;
use crate::{Case, peak_bytes, since_process_start};

/// Times the steps of a case.
pub fn run(case: &Case) -> Result<Json, Box<dyn Error>> {
    let (batch, samples) = (case.number("batch")?, case.number("samples")?);
    let (data, objective) = match case.json["architecture"].as_str() {
        Some("mlp" | "vit") => {
            let shape = [case.size("channels")? as usize, case.size("height")? as usize, case.size("width")? as usize];
            (Random::images(samples, shape, case.size("classes")?), Objective::Classification)
        }
        Some("bench/resnet50.star" | "bench/efficientnet_b0.star") => {
            let size = case.size("size")? as usize;
            (Random::images(samples, [3, size, size], case.size("classes")?), Objective::Classification)
        }
        Some("gpt2") => {
            (Random::tokens(samples, case.size("vocab")?, case.number("length")? as usize), Objective::NextToken)
        }
        _ => {
            let (length, classes) = (case.number("length")? as usize, case.size("classes")?);
            let data = Random::sentences(samples, case.size("vocab")?, case.size("types")?, length, classes);
            (data, Objective::Classification)
        }
    };
    let train = Train {
        batch,
        precision: case.precision,
        optimizer: Optimizer::Adamw(AdamW { lr: 1e-4, betas: [0.9, 0.95], eps: 1e-8, weight_decay: 0.1 }),
        ..Train::default()
    };
    let recipe = Recipe {
        model: &case.model,
        train: &train,
        objective,
        weighted: false,
        mixed: false,
        steps: case.warmup + case.steps,
    };
    let plan = plan(&recipe, &data, &case.backend, None)?;
    let planned = plan.allocation.total();
    let mut trainer = Trainer::new(plan, &case.model, &train, &data, &case.backend)?;

    let (mut seconds, mut first_step, mut first_loss) = (Vec::new(), 0.0, 0.0);
    for step in 0..case.warmup + case.steps {
        let began = Instant::now();
        let report = trainer.step()?;
        let taken = began.elapsed().as_secs_f64();
        if step == 0 {
            (first_step, first_loss) = (since_process_start()?, report.loss);
        }
        if step >= case.warmup {
            seconds.push(taken);
        }
    }
    seconds.sort_by(f64::total_cmp);
    // Before the speed is measured for the estimate.
    let peak = peak_bytes()?;
    Ok(json!({
        "seconds": seconds.get(seconds.len() / 2),
        "fastest": seconds.first(),
        "first_step": first_step,
        "estimated_seconds": trainer.plan().step_seconds(&case.backend),
        "planned_bytes": planned,
        "allocated_bytes": trainer.allocation().total(),
        "peak_bytes": peak,
        "first_loss": first_loss,
    }))
}
