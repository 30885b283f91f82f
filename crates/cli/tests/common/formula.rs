//! What the scripts of tools/fixtures and the tests of model families share: weights made by a formula, batches that are
//! filled step by step, norms compared.

use serde_json::Value as Json;
use tenon::cpu::CpuBackend;
use tenon::data::{Dataset, Facts, Field, Split};
use tenon::graph::backend::{Backend, Session};
use tenon::nn::Model;
use tenon::nn::forward::set_variables;
use tenon::train::experiment::{AdamW, Objective, Optimizer, Train};
use tenon::train::plan::plan;
use tenon::train::programs::Recipe;

/// FNV-1a of 64 bits.
pub fn fnv(text: &str) -> u64 {
    text.bytes().fold(0xCBF2_9CE4_8422_2325, |h, byte| (h ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3))
}

/// The script's numbers in [-1, 1) of a name.
pub fn uniform(name: &str, count: usize) -> impl Iterator<Item = f64> {
    let seed = fnv(name) as u32;
    (0..count as u32).map(move |i| {
        let mut x = i.wrapping_mul(0x9E37_79B1).wrapping_add(seed);
        x = (x ^ (x >> 16)).wrapping_mul(0x85EB_CA6B);
        x = (x ^ (x >> 13)).wrapping_mul(0xC2B2_AE35);
        x ^= x >> 16;
        f64::from(x >> 8) / f64::from(1 << 23) - 1.0
    })
}

/// The script's weights of a name.
pub fn weights(name: &str, shape: &[usize]) -> Vec<f32> {
    let count: usize = shape.iter().product();
    let make = |u: f64| match shape.len() {
        1 if name.ends_with("weight") || name.ends_with("running_var") => 1.0 + 0.25 * u,
        1 => 0.1 * u,
        _ => u * (6.0 / (count / shape[0]) as f64).sqrt(),
    };
    uniform(name, count).map(|u| make(u) as f32).collect()
}

fn norm(session: &dyn Session, name: &str) -> f64 {
    let bytes = session.input(name).unwrap_or_else(|| panic!("no buffer `{name}`"));
    let squares = bytes.as_chunks::<4>().0.iter().map(|b| f64::from(f32::from_le_bytes(*b)).powi(2));
    squares.sum::<f64>().sqrt()
}

/// Lists the norms that are further apart than `bound`, relative to what is expected and to a hundredth of the greatest: the
/// gradient of what a batch norm takes away again is nothing but rounding.
pub fn far_apart(found: &dyn Session, prefix: &str, expected: &Json, bound: f64) -> Vec<String> {
    let expected: Vec<(&String, f64)> =
        expected.as_object().unwrap().iter().map(|(name, norm)| (name, norm.as_f64().unwrap())).collect();
    let greatest = expected.iter().fold(0.0f64, |m, (_, norm)| m.max(*norm));
    let pairs = expected.iter().map(|(name, wanted)| (*name, norm(found, &format!("{prefix}{name}")), *wanted));
    let far = pairs.filter(|(_, found, wanted)| (found - wanted).abs() > bound * wanted.max(greatest / 100.0));
    far.map(|(name, found, wanted)| format!("{name}: {found}, expected {wanted}")).collect()
}

/// Runs a step and compares its loss: the first within 1e-5, later ones within 1e-3.
pub fn run_step(case: &str, session: &mut dyn Session, step: usize, wanted: &Json) {
    session.run(0).unwrap();
    let (_, bytes) = session.output(0, "loss").unwrap();
    let (found, wanted) = (f64::from(f32::from_le_bytes(bytes.try_into().unwrap())), wanted.as_f64().unwrap());
    let bound = if step == 0 { 1e-5 } else { 1e-3 };
    assert!((found - wanted).abs() <= bound * wanted, "{case}, step {step}: {found}, expected {wanted}");
}

/// A data set of these fields whose batches a test fills step by step.
pub struct Filled {
    fields: Vec<Field>,
    facts: Facts,
    batch: usize,
}

impl Filled {
    pub fn new(fields: Vec<Field>, facts: Facts, batch: usize) -> Filled {
        Filled { fields, facts, batch }
    }

    /// A session that trains the model from these values by the scripts' AdamW: `accumulate` batches a step.
    pub fn session(
        &self,
        model: &Model,
        values: &[Vec<f32>],
        objective: Objective,
        accumulate: u64,
        backend: &CpuBackend,
    ) -> Box<dyn Session> {
        let adamw = AdamW { lr: 1e-3, betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.0 };
        let (batch, optimizer) = (self.batch as u64, Optimizer::Adamw(adamw));
        let train = Train { batch, optimizer, clip: None, accumulate, ..Train::default() };
        let recipe = Recipe { model, train: &train, objective, weighted: false, mixed: false, steps: 10 };
        let plan = plan(&recipe, self, backend, None).unwrap_or_else(|e| panic!("{e}"));
        let mut session = backend.session(plan.programs()).unwrap();
        set_variables(&mut *session, model, values);
        session
    }
}

impl Dataset for Filled {
    fn fields(&self) -> &[Field] {
        &self.fields
    }

    fn len(&self, _: Split) -> u64 {
        self.batch as u64
    }

    fn write_sample(&self, _: Split, _: u64, _: u64, _: &mut [&mut [u8]]) {
        unreachable!("batches are filled by step")
    }

    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn checksum(&self) -> &str {
        "fixture"
    }
}
