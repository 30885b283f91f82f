//! Learning-rate schedules as graph.

use std::f64::consts::PI;

use tenon_graph::tensor::Tensor;

use crate::experiment::Schedule;

/// The factor of the peak learning rate at `step`, an `f32` scalar that counts from 1 to `total`.
pub fn factor<'g>(schedule: &Schedule, step: Tensor<'g>, total: u64) -> Tensor<'g> {
    let b = step.builder();
    let warmup = schedule.warmup().steps(total) as f64;
    let total = total as f64;
    // 0 at the end of the warmup, 1 at the last step.
    let progress = |from: f64| ((step - from) * (1.0 / (total - from).max(1.0))).max(0.0).min(1.0);
    let after = match schedule {
        Schedule::Constant(_) => b.scalar(1.0),
        Schedule::Linear(decay) => 1.0 - progress(warmup) * (1.0 - decay.floor),
        Schedule::Cosine(decay) => {
            let wave = ((progress(warmup) * PI).cos() + 1.0) * 0.5;
            wave * (1.0 - decay.floor) + decay.floor
        }
        Schedule::Wsd(wsd) => {
            let from = total - wsd.decay.steps(total as u64) as f64;
            1.0 - progress(from) * (1.0 - wsd.floor)
        }
    };
    if warmup == 0.0 { after } else { after.min(step * (1.0 / warmup)) }
}
