//! Greedy decoding after a prompt, and the reading of a long prompt, both up to the logits of the next token.

use std::error::Error;
use std::hint::black_box;
use std::time::Instant;

use serde_json::{Value as Json, json};
use tenon::nn::generate::{Generator, Sampling};
use tenon::nn::initialise;
use tenon::train::experiment::Precision;

use crate::data::numbers;
use crate::{Case, peak_bytes, since_process_start};

/// Bytes that each thread reads to measure the bandwidth: far more than the caches hold.
const READ: usize = 256 << 20;

/// Times the tokens of a text, each with its choice. A measurement is a whole text.
pub fn decode(case: &Case) -> Result<Json, Box<dyn Error>> {
    let tokens = case.number("tokens")? as usize;
    let (mut generator, prompt) = ready(case, tokens)?;
    let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
    let mut first_step = 0.0;
    let mut seconds = measure(case, || {
        generator.clear();
        let mut logits = generator.read(&prompt)?;
        if first_step == 0.0 {
            first_step = since_process_start()?;
        }
        let began = Instant::now();
        for _ in 0..tokens {
            let token = greedy.choose(&logits, generator.len());
            logits = generator.read(&[token as u32])?;
        }
        Ok(began.elapsed().as_secs_f64() / tokens as f64)
    })?;
    let mut result = report(&mut seconds, first_step)?;
    // The peak is read before: these buffers are none of the model's.
    result["read_bandwidth"] = json!(read_bandwidth(case.threads));
    Ok(result)
}

/// Times the reading of the prompt.
pub fn prompt(case: &Case) -> Result<Json, Box<dyn Error>> {
    let (mut generator, prompt) = ready(case, 0)?;
    let mut first_step = 0.0;
    let mut seconds = measure(case, || {
        generator.clear();
        let began = Instant::now();
        black_box(generator.read(&prompt)?);
        let taken = began.elapsed().as_secs_f64();
        if first_step == 0.0 {
            first_step = since_process_start()?;
        }
        Ok(taken)
    })?;
    report(&mut seconds, first_step)
}

/// A generator with room for the prompt and more tokens, and the prompt.
fn ready(case: &Case, more: usize) -> Result<(Generator, Vec<u32>), Box<dyn Error>> {
    let values: Vec<Vec<f32>> = case.model.variables().map(|v| initialise(v, 0)).collect();
    let length = case.number("length")? as usize;
    let bf16 = case.precision == Precision::Bf16;
    let generator = Generator::new(&case.model, &values, &case.backend, length + more, bf16)?;
    let (vocab, mut random) = (case.size("vocab")?, numbers());
    Ok((generator, (0..length).map(|_| (random() % vocab) as u32).collect()))
}

/// The seconds of each measurement but those that warm up.
pub fn measure(case: &Case, mut once: impl FnMut() -> Result<f64, Box<dyn Error>>) -> Result<Vec<f64>, Box<dyn Error>> {
    let all: Result<Vec<f64>, _> = (0..case.warmup + case.steps).map(|_| once()).collect();
    Ok(all?.split_off(case.warmup as usize))
}

/// The median, the fastest, and what else every case tells.
pub fn report(seconds: &mut [f64], first_step: f64) -> Result<Json, Box<dyn Error>> {
    seconds.sort_by(f64::total_cmp);
    Ok(json!({
        "seconds": seconds.get(seconds.len() / 2),
        "fastest": seconds.first(),
        "first_step": first_step,
        "peak_bytes": peak_bytes()?,
    }))
}

/// Bytes per second that all threads read together from memory, the best of five times.
fn read_bandwidth(threads: usize) -> f64 {
    let buffers: Vec<Vec<u64>> = (0..threads).map(|i| vec![i as u64 + 1; READ / 8]).collect();
    let once = || {
        let began = Instant::now();
        std::thread::scope(|scope| {
            for buffer in &buffers {
                scope.spawn(|| black_box(buffer.iter().fold(0, |sum: u64, x| sum.wrapping_add(*x))));
            }
        });
        (threads * READ) as f64 / began.elapsed().as_secs_f64()
    };
    (0..5).map(|_| once()).fold(0.0, f64::max)
}
