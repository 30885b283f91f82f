//! The classification of one batch of images: the model's evaluation program alone, on weights that stay where they are.

use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

use serde_json::Value as Json;
use tenon::graph::backend::Backend;
use tenon::graph::dim::{Bindings, Symbol};
use tenon::graph::passes::mode::for_evaluation;
use tenon::graph::passes::pipeline::{Options, compile};
use tenon::graph::passes::precision::bf16_weights;
use tenon::nn::forward::set_variables;
use tenon::nn::initialise;
use tenon::train::experiment::Precision;

use crate::data::numbers;
use crate::generate::{measure, report};
use crate::{Case, since_process_start};

/// Times the runs of a case.
pub fn run(case: &Case) -> Result<Json, Box<dyn Error>> {
    let mut graph = for_evaluation(&case.model.graph)?;
    let bf16 = case.precision == Precision::Bf16;
    if bf16 {
        graph = bf16_weights(&graph)?;
    }
    let b = Symbol::new("b").ok_or("no symbol")?;
    let bindings = Bindings::from([(b, case.number("batch")? as usize)]);
    let program = compile(&graph, &Options { bindings, bf16 })?;
    let mut session = case.backend.session(vec![Arc::new(program)])?;
    let values: Vec<Vec<f32>> = case.model.variables().map(|v| initialise(v, 0)).collect();
    set_variables(&mut *session, &case.model, &values);
    drop(values);
    let mut random = numbers();
    let pixels = session.input_mut("pixel_values").ok_or("no input `pixel_values`")?;
    for bytes in pixels.as_chunks_mut::<4>().0 {
        *bytes = ((random() % 256) as f32 / 255.0).to_le_bytes();
    }
    let mut first_step = 0.0;
    let mut seconds = measure(case, || {
        let began = Instant::now();
        session.run(0)?;
        let taken = began.elapsed().as_secs_f64();
        if first_step == 0.0 {
            first_step = since_process_start()?;
        }
        Ok(taken)
    })?;
    report(&mut seconds, first_step)
}
