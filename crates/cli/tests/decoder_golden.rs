//! Llama, Mistral, Qwen and Mixtral against transformers and PyTorch: logits, also of padded texts, gradient norms, ten steps of
//! AdamW, and the names of exported files. The numbers are made by tools/fixtures/decoder_families.py.

mod common;
#[path = "common/formula.rs"]
mod formula;

use std::path::Path;

use common::Lab;
use formula::{Filled, far_apart, run_step, uniform, weights};
use serde_json::{Map, Value as Json};
use tenon::cpu::CpuBackend;
use tenon::data::{ElementType, Facts, Field};
use tenon::graph::backend::Session;
use tenon::nn::forward::{NamedTensor, Values, forward};
use tenon::nn::{Model, export, load_weights, open};
use tenon::train::experiment::Objective;
use tenon::train::objective::LABELS;
use tenon::train::programs::DENOMINATOR;

const BATCH: usize = 3;
const LENGTH: usize = 19;
const VOCAB: usize = 101;
const SEEN: [usize; BATCH] = [19, 7, 12];
const KEPT: usize = 16;

fn golden() -> Map<String, Json> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/decoders.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The model that the case's config.json describes, and the script's weights.
fn opened(golden: &Json, dir: &Path) -> (Model, Vec<Vec<f32>>) {
    std::fs::write(dir.join("config.json"), golden["config"].to_string()).unwrap();
    let model = open(dir).unwrap_or_else(|e| panic!("{e}"));
    // Files number the matrices of experts.
    let values = model.variables().map(|v| match v.name.split_once("experts.") {
        Some((before, after)) => {
            (0..v.shape[0]).flat_map(|i| weights(&format!("{before}experts.{i}.{after}"), &v.shape[1..])).collect()
        }
        None => weights(&v.name, &v.shape),
    });
    let values = values.collect();
    (model, values)
}

fn tokens(name: &str) -> Vec<i32> {
    uniform(name, BATCH * LENGTH).map(|u| ((u + 1.0) / 2.0 * VOCAB as f64) as i32).collect()
}

/// The script's batches.
fn batches() -> Filled {
    let fields = ["input_ids", LABELS].map(|name| Field::new(name, ElementType::I32, &[LENGTH]));
    Filled::new(fields.into(), Facts::default(), BATCH)
}

/// Asserts that numbers are those of the script, up to 1e-4 of the largest.
fn assert_near(case: &str, found: &[f32], wanted: &Json) {
    let wanted: Vec<f64> = wanted.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
    assert_eq!(found.len(), wanted.len(), "{case}");
    let largest = wanted.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    let apart = found.iter().zip(&wanted).fold(0.0f64, |m, (a, b)| m.max((f64::from(*a) - b).abs()));
    assert!(apart <= 1e-4 * largest, "{case}: {apart} apart, the largest is {largest}");
}

fn fill(session: &mut dyn Session, step: usize) {
    for (name, values) in [("input_ids", format!("input.{step}")), (LABELS, format!("label.{step}"))] {
        let bytes: Vec<u8> = tokens(&values).into_iter().flat_map(i32::to_le_bytes).collect();
        session.input_mut(name).unwrap().copy_from_slice(&bytes);
    }
    session.input_mut(DENOMINATOR).unwrap().copy_from_slice(&((BATCH * LENGTH) as f32).to_le_bytes());
}

#[test]
fn logits_gradients_steps_and_files() {
    let backend = CpuBackend::new(2).unwrap();
    let lab = Lab::new("decoders");
    for (case, golden) in golden() {
        let dir = lab.path(&case.replace(' ', "-"));
        std::fs::create_dir(&dir).unwrap();
        let (model, values) = opened(&golden, &dir);
        let ids = Values::Int(tokens("input.0").into_iter().map(i64::from).collect());
        let input = NamedTensor { name: "input_ids".into(), shape: vec![BATCH, LENGTH], values: ids };
        let outputs =
            forward(&model, &values, std::slice::from_ref(&input), &backend).unwrap_or_else(|e| panic!("{case}: {e}"));
        let Values::Float(found) = &outputs.iter().find(|t| t.name == "logits").unwrap().values else {
            panic!("logits are floats")
        };
        let last: Vec<f32> =
            found.chunks_exact(LENGTH * VOCAB).flat_map(|sample| sample[(LENGTH - 1) * VOCAB..].to_vec()).collect();
        assert_near(&case, &last, &golden["logits"]);

        let mut of_padded = Vec::new();
        for left in [false, true] {
            let seen = |n: usize, i: usize| if left { LENGTH - 1 - i < n } else { i < n };
            let mask = SEEN.iter().flat_map(|n| (0..LENGTH).map(|i| i64::from(seen(*n, i)))).collect();
            let shape = vec![BATCH, LENGTH];
            let mask = NamedTensor { name: "attention_mask".into(), shape, values: Values::Int(mask) };
            let outputs = forward(&model, &values, &[input.clone(), mask], &backend).unwrap_or_else(|e| panic!("{e}"));
            let logits = outputs.into_iter().find(|t| t.name == "logits").unwrap();
            let Values::Float(found) = logits.values else { panic!("logits are floats") };
            for (text, n) in found.chunks_exact(LENGTH * VOCAB).zip(SEEN) {
                let last = if left { LENGTH } else { n } - 1;
                of_padded.extend(text[last * VOCAB..][..KEPT].to_vec());
            }
        }
        assert_near(&format!("{case}, padded"), &of_padded, &golden["padded"]);

        // An accumulated step has half the auxiliary loss, so that one is compared in steps only.
        if golden["config"]["router_aux_loss_coef"].is_null() {
            let mut accumulating = batches().session(&model, &values, Objective::NextToken, 2, &backend);
            fill(&mut *accumulating, 0);
            accumulating.run(0).unwrap();
            let far = far_apart(&*accumulating, "gradient.", &golden["gradient_norms"], 1e-3);
            assert!(far.is_empty(), "{case}: {far:#?}");
        }
        assert_eq!(golden["gradient_norms"].as_object().unwrap().len(), model.parameters.len(), "{case}");

        let mut session = batches().session(&model, &values, Objective::NextToken, 1, &backend);
        for (step, wanted) in golden["losses"].as_array().unwrap().iter().enumerate() {
            fill(&mut *session, step);
            run_step(&case, &mut *session, step, wanted);
        }

        // What is written is what was read, in the names of the file and with its class.
        export(&model, &values, &dir, &[]).unwrap();
        std::fs::remove_file(dir.join("tenon.json")).unwrap();
        let again = open(&dir).unwrap_or_else(|e| panic!("{case}: {e}"));
        assert_eq!(load_weights(&dir, &again).unwrap(), values, "{case}");
        let config: Json = serde_json::from_slice(&std::fs::read(dir.join("config.json")).unwrap()).unwrap();
        for key in ["architectures", "model_type", "head_dim", "sliding_window", "num_key_value_heads"] {
            let (wanted, found) = (&golden["config"][key], &config[key]);
            assert!(wanted.is_null() || wanted == found || found.is_null(), "{case}: {key} is {found}, not {wanted}");
        }
        assert_eq!(config["architectures"], golden["config"]["architectures"], "{case}");
    }
}
