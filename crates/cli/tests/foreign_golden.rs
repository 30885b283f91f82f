//! BERT and its relatives, and models for images in the names of transformers and torchvision: results, gradient norms, ten steps
//! of AdamW, and what is written again. The numbers are made by tools/fixtures/foreign_families.py.

mod common;
#[path = "common/formula.rs"]
mod formula;

use std::path::Path;

use common::Lab;
use formula::{Filled, far_apart, run_step, uniform, weights};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Map, Value as Json};
use tenon::cpu::CpuBackend;
use tenon::data::{ElementType, Facts, Field};
use tenon::graph::backend::Session;
use tenon::nn::forward::{NamedTensor, Values, forward};
use tenon::nn::{ArchitectureSource, HyperValue, Model, export, load_weights, open, open_foreign};
use tenon::tensors::read_header;
use tenon::train::experiment::Objective;
use tenon::train::objective::{IGNORED, LABELS};
use tenon::train::programs::DENOMINATOR;

const BATCH: usize = 3;
const LENGTH: usize = 17;
const VOCAB: usize = 53;
const CLASSES: usize = 5;
const FIRST: usize = 4;
const SEEN: [usize; BATCH] = [17, 11, 2];
const PIXELS: [usize; 4] = [1, 3, 24, 33];

fn golden() -> Map<String, Json> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/foreign.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn shapes(golden: &Json) -> Vec<(String, Vec<usize>)> {
    let shape = |json: &Json| json.as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect();
    golden["tensors"].as_object().unwrap().iter().map(|(name, json)| (name.clone(), shape(json))).collect()
}

/// The model and the weights of the case, read from files with the names that the script found.
fn opened(golden: &Json, dir: &Path) -> (Model, Vec<Vec<f32>>) {
    let made: Vec<(String, Vec<usize>, Dtype, Vec<u8>)> = shapes(golden)
        .into_iter()
        .map(|(name, shape)| match &*shape {
            // What a batch norm counts.
            [] => (name, shape, Dtype::I64, vec![0; 8]),
            _ => {
                let bytes = weights(&name, &shape).into_iter().flat_map(f32::to_le_bytes).collect();
                (name, shape, Dtype::F32, bytes)
            }
        })
        .collect();
    let views = made
        .iter()
        .map(|(name, shape, dtype, bytes)| (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    safetensors::serialize_to_file(views, None, &dir.join("model.safetensors")).unwrap();
    let given = golden["set"].as_object().into_iter().flatten();
    let mut set: Vec<(String, HyperValue)> =
        given.map(|(key, value)| (key.clone(), HyperValue::from_json(value).unwrap())).collect();
    let model = match golden["architecture"].as_str() {
        None => {
            std::fs::write(dir.join("config.json"), golden["config"].to_string()).unwrap();
            open_foreign(dir, None, &set).unwrap_or_else(|e| panic!("{e}"))
        }
        Some(name) => {
            for (key, value) in [("height", PIXELS[2]), ("width", PIXELS[3]), ("classes", CLASSES)] {
                set.push((key.into(), HyperValue::Int(value as i64)));
            }
            set.push(("names".into(), "torchvision".into()));
            Model::load(&ArchitectureSource::Named(name.into()), &set).unwrap_or_else(|e| panic!("{e}"))
        }
    };
    let values = load_weights(dir, &model).unwrap_or_else(|e| panic!("{e}"));
    (model, values)
}

fn whole(name: &str, count: usize, low: usize, high: usize) -> Vec<i64> {
    uniform(name, count).map(|u| ((u + 1.0) / 2.0 * (high - low) as f64) as i64 + low as i64).collect()
}

/// Which tokens are seen.
fn mask(golden: &Json) -> Vec<i64> {
    let left = golden["left"] == true;
    let seen = |n: usize, i: usize| i64::from(if left { LENGTH - 1 - i < n } else { i < n });
    SEEN.iter().flat_map(|n| (0..LENGTH).map(|i| seen(*n, i))).collect()
}

/// The script's batch of a step.
fn batch(golden: &Json, step: usize) -> Vec<(&'static str, Vec<i64>)> {
    let (mask, padding) = (mask(golden), golden["config"]["pad_token_id"].as_i64().unwrap());
    let ids = whole(&format!("input.{step}"), BATCH * LENGTH, FIRST, VOCAB).into_iter().zip(&mask);
    let ids = ids.map(|(id, seen)| if *seen == 1 { id } else { padding }).collect();
    let mut fields = vec![("input_ids", ids), ("attention_mask", mask)];
    if golden["config"]["model_type"] == "bert" {
        fields.push(("token_type_ids", whole(&format!("kind.{step}"), BATCH * LENGTH, 0, 3)));
    }
    fields
}

/// What is learnt, if the model has a head.
fn objective(golden: &Json) -> Option<Objective> {
    golden["losses"].is_array().then(|| {
        let class = golden["config"]["architectures"][0].as_str().unwrap();
        if class.contains("Sequence") { Objective::Classification } else { Objective::MaskedLm }
    })
}

fn labels(golden: &Json, objective: Objective, step: usize) -> Vec<i64> {
    let name = format!("label.{step}");
    if objective == Objective::Classification {
        return whole(&name, BATCH, 0, CLASSES);
    }
    let class = golden["config"]["architectures"][0].as_str().unwrap();
    let most = if class.contains("Masked") { VOCAB } else { CLASSES };
    let all = whole(&name, BATCH * LENGTH, 0, most).into_iter().zip(mask(golden));
    all.map(|(label, seen)| if seen == 1 { label } else { i64::from(IGNORED) }).collect()
}

/// The numbers that the script keeps of a result.
fn kept(golden: &Json, tensor: &NamedTensor) -> Vec<f32> {
    let Values::Float(values) = &tensor.values else { panic!("{} are floats", tensor.name) };
    let [_, _, width] = tensor.shape[..] else { return values.clone() };
    let mask = mask(golden);
    let ends = mask.chunks(LENGTH).enumerate().flat_map(|(i, seen)| {
        let (first, last) = (seen.iter().position(|s| *s == 1), seen.iter().rposition(|s| *s == 1));
        [i * LENGTH + first.unwrap(), i * LENGTH + last.unwrap()]
    });
    ends.flat_map(|token| values[token * width..][..width].to_vec()).collect()
}

fn inputs(golden: &Json) -> Vec<NamedTensor> {
    if golden["left"].is_null() {
        let values = uniform("pixels", PIXELS.iter().product()).map(|u| u as f32).collect();
        return vec![NamedTensor { name: "pixel_values".into(), shape: PIXELS.into(), values: Values::Float(values) }];
    }
    let tensor = |(name, values): (&str, Vec<i64>)| NamedTensor {
        name: name.into(),
        shape: vec![BATCH, LENGTH],
        values: Values::Int(values),
    };
    batch(golden, 0).into_iter().map(tensor).collect()
}

#[test]
fn results_and_files() {
    let backend = CpuBackend::new(2).unwrap();
    let lab = Lab::new("foreign");
    for (case, golden) in golden() {
        let dir = lab.path(&case.replace(' ', "-"));
        std::fs::create_dir(&dir).unwrap();
        let (model, values) = opened(&golden, &dir);
        let outputs = forward(&model, &values, &inputs(&golden), &backend).unwrap_or_else(|e| panic!("{case}: {e}"));
        for (name, wanted) in golden["results"].as_object().unwrap() {
            let wanted: Vec<f64> = wanted.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
            let found = kept(&golden, outputs.iter().find(|t| t.name == *name).unwrap());
            assert_eq!(found.len(), wanted.len(), "{case}: {name}");
            let largest = wanted.iter().fold(0.0f64, |m, x| m.max(x.abs()));
            let apart = found.iter().zip(&wanted).fold(0.0f64, |m, (a, b)| m.max((f64::from(*a) - b).abs()));
            assert!(apart <= 1e-4 * largest, "{case}: {name} is {apart} apart, the largest is {largest}");
        }

        // What is written has the names that were read, and is read again.
        let out = dir.join("again");
        export(&model, &values, &out, &[]).unwrap();
        let mut written: Vec<(String, Vec<usize>)> =
            read_header(&out.join("model.safetensors")).unwrap().into_iter().map(|e| (e.name, e.shape)).collect();
        written.sort();
        let mut read = shapes(&golden);
        read.sort();
        assert_eq!(written, read, "{case}");
        if golden["config"].is_object() {
            std::fs::remove_file(out.join("tenon.json")).unwrap();
            let config: Json = serde_json::from_slice(&std::fs::read(out.join("config.json")).unwrap()).unwrap();
            for (key, value) in config.as_object().unwrap() {
                let wanted = &golden["config"][key];
                let same = wanted == value || wanted.is_number() && wanted.as_f64() == value.as_f64();
                assert!(wanted.is_null() || same, "{case}: {key} is {value}, not {wanted}");
            }
            assert_eq!(config["architectures"], golden["config"]["architectures"], "{case}");
        }
        let again = open(&out).unwrap_or_else(|e| panic!("{case}: {e}"));
        assert_eq!(load_weights(&out, &again).unwrap(), values, "{case}");
    }
}

fn fill(session: &mut dyn Session, golden: &Json, objective: Objective, step: usize) {
    let labels = labels(golden, objective, step);
    let counted = labels.iter().filter(|label| **label != i64::from(IGNORED)).count();
    for (name, values) in batch(golden, step).into_iter().chain([(LABELS, labels)]) {
        let bytes: Vec<u8> = values.into_iter().flat_map(|x| (x as i32).to_le_bytes()).collect();
        session.input_mut(name).unwrap().copy_from_slice(&bytes);
    }
    session.input_mut(DENOMINATOR).unwrap().copy_from_slice(&(counted as f32).to_le_bytes());
}

#[test]
fn gradients_and_steps() {
    let backend = CpuBackend::new(2).unwrap();
    let lab = Lab::new("foreign-steps");
    for (case, golden) in golden() {
        let Some(objective) = objective(&golden) else { continue };
        let dir = lab.path(&case.replace(' ', "-"));
        std::fs::create_dir(&dir).unwrap();
        let (model, values) = opened(&golden, &dir);
        let names: Vec<&str> = batch(&golden, 0).into_iter().map(|(name, _)| name).collect();
        let mut fields: Vec<Field> = names.iter().map(|name| Field::new(name, ElementType::I32, &[LENGTH])).collect();
        let of_texts: &[usize] = if objective == Objective::Classification { &[] } else { &[LENGTH] };
        fields.push(Field::new(LABELS, ElementType::I32, of_texts));
        let data = Filled::new(fields, Facts { classes: Some(CLASSES), ..Facts::default() }, BATCH);
        let model = model.taking(&names).unwrap_or_else(|e| panic!("{e}"));

        let mut accumulating = data.session(&model, &values, objective, 2, &backend);
        fill(&mut *accumulating, &golden, objective, 0);
        accumulating.run(0).unwrap();
        let expected = &golden["gradient_norms"];
        assert_eq!(expected.as_object().unwrap().len(), model.parameters.len(), "{case}");
        let far = far_apart(&*accumulating, "gradient.", expected, 1e-3);
        assert!(far.is_empty(), "{case}: {far:#?}");

        let mut session = data.session(&model, &values, objective, 1, &backend);
        for (step, wanted) in golden["losses"].as_array().unwrap().iter().enumerate() {
            fill(&mut *session, &golden, objective, step);
            run_step(&case, &mut *session, step, wanted);
        }
    }
}
