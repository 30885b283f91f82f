//! The vision families against timm and PyTorch: names and shapes of the presets, logits, loss, gradient norms, steps of
//! AdamW, running statistics. The numbers are made by tools/fixtures/vision_families.py.

#[path = "common/formula.rs"]
mod formula;

use std::path::Path;

use formula::{Filled, far_apart, fnv, run_step, uniform, weights};
use serde_json::{Map, Value as Json};
use tenon::cpu::CpuBackend;
use tenon::data::{ElementType, Facts, Field};
use tenon::graph::backend::Session;
use tenon::nn::forward::{NamedTensor, Values, forward};
use tenon::nn::{ArchitectureSource, HyperValue, Model};
use tenon::train::experiment::Objective;
use tenon::train::objective::LABELS;
use tenon::train::programs::DENOMINATOR;

const BATCH: usize = 3;
const CLASSES: usize = 7;

fn fixture(name: &str) -> Map<String, Json> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/vision").join(name);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn pixels(name: &str, count: usize) -> Vec<f32> {
    uniform(&format!("pixels.{name}"), count).map(|u| u as f32).collect()
}

/// The hyperparameters of a case of the script.
fn hyperparameters(case: &str) -> (&str, Vec<(&'static str, HyperValue)>) {
    let ints = |values: &[i64]| HyperValue::List(values.iter().map(|v| HyperValue::Int(*v)).collect());
    let (yes, int) = (HyperValue::Bool(true), HyperValue::Int);
    match case {
        "resnet_small" => {
            ("resnet", vec![("blocks", ints(&[2, 1, 1, 1])), ("features", int(5)), ("small_images", yes)])
        }
        "resnet_dilated" => (
            "resnet",
            vec![("blocks", ints(&[1, 2, 1, 2])), ("bottleneck", yes), ("features", int(6)), ("output_stride", int(8))],
        ),
        "efficientnet" => {
            ("efficientnet", vec![("wider", HyperValue::Float(0.25)), ("deeper", HyperValue::Float(0.6))])
        }
        "efficientnet_tf" => (
            "efficientnet",
            vec![("wider", HyperValue::Float(0.25)), ("deeper", HyperValue::Float(0.6)), ("tensorflow", yes)],
        ),
        "vit" => (
            "vit",
            vec![("patch", int(8)), ("dim", int(36)), ("hidden", int(144)), ("layers", int(3)), ("heads", int(3))],
        ),
        preset => (preset, vec![]),
    }
}

fn model(case: &str, golden: &Json) -> Model {
    let (name, mut set) = hyperparameters(case);
    let size = |key: &str| HyperValue::Int(golden[key].as_i64().unwrap());
    set.extend([("height", size("height")), ("width", size("width")), ("classes", HyperValue::Int(CLASSES as i64))]);
    // The script trains without what is random.
    set.push(("rate", HyperValue::Float(0.0)));
    if !name.starts_with("resnet") {
        set.push(("drop_path_rate", HyperValue::Float(0.0)));
    }
    let set: Vec<(String, HyperValue)> = set.into_iter().map(|(key, value)| (key.to_string(), value)).collect();
    Model::load(&ArchitectureSource::Named(name.to_string()), &set).unwrap_or_else(|e| panic!("{e}"))
}

fn values(model: &Model) -> Vec<Vec<f32>> {
    model.variables().map(|v| weights(&v.name, &v.shape)).collect()
}

/// The script's batches.
fn batches(height: usize, width: usize) -> Filled {
    let pixel_values = Field::new("pixel_values", ElementType::F32, &[3, height, width]);
    let fields = vec![pixel_values, Field::new(LABELS, ElementType::I32, &[])];
    Filled::new(fields, Facts { classes: Some(CLASSES), ..Facts::default() }, BATCH)
}

fn fill(session: &mut dyn Session, step: usize) {
    let buffer = session.input_mut("pixel_values").unwrap();
    let bytes = pixels(&step.to_string(), buffer.len() / 4).into_iter().flat_map(f32::to_le_bytes);
    buffer.copy_from_slice(&bytes.collect::<Vec<u8>>());
    let labels = (0..BATCH).flat_map(|i| (((step * 5 + i * 3) % CLASSES) as i32).to_le_bytes());
    session.input_mut(LABELS).unwrap().copy_from_slice(&labels.collect::<Vec<u8>>());
    session.input_mut(DENOMINATOR).unwrap().copy_from_slice(&(BATCH as f32).to_le_bytes());
}

#[test]
fn presets_have_the_names_and_shapes_of_timm() {
    let mut wrong = Vec::new();
    for (name, expected) in fixture("presets.json") {
        let model = Model::load(&ArchitectureSource::Named(name.clone()), &[]).unwrap_or_else(|e| panic!("{e}"));
        let mut lines: Vec<String> = model.variables().map(|v| format!("{} {:?}", v.name, v.shape)).collect();
        lines.sort();
        let found = (model.parameter_count() as u64, format!("{:016x}", fnv(&lines.join("\n"))));
        if Some(found.0) != expected["parameters"].as_u64() || Some(&*found.1) != expected["names"].as_str() {
            wrong.push(format!("{name}: {found:?}, expected {expected}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn logits() {
    let backend = CpuBackend::new(2).unwrap();
    for (case, golden) in fixture("golden.json") {
        let model = model(&case, &golden);
        let shape: Vec<usize> = model.inputs[0].shape.iter().map(|d| d.as_const().unwrap_or(1)).collect();
        let values_of_pixels = Values::Float(pixels("alone", shape.iter().product()));
        let input = NamedTensor { name: "pixel_values".into(), shape, values: values_of_pixels };
        let outputs = forward(&model, &values(&model), &[input], &backend).unwrap_or_else(|e| panic!("{e}"));
        let Values::Float(found) = &outputs.iter().find(|t| t.name == "logits").unwrap().values else {
            panic!("logits are floats")
        };
        let wanted: Vec<f64> = golden["logits"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
        let largest = wanted.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        let apart = found.iter().zip(&wanted).fold(0.0f64, |m, (a, b)| m.max((f64::from(*a) - b).abs()));
        assert!(found.len() == CLASSES && apart <= 1e-4 * largest, "{case}: {found:?}, expected {wanted:?}");
    }
}

#[test]
fn gradients_and_steps() {
    let backend = CpuBackend::new(2).unwrap();
    for (case, golden) in fixture("golden.json").into_iter().filter(|(_, golden)| golden["losses"].is_array()) {
        let model = model(&case, &golden);
        let size = |key: &str| golden[key].as_u64().unwrap() as usize;
        let data = batches(size("height"), size("width"));
        let values = values(&model);

        // The program of an accumulated step leaves the gradients in buffers.
        let mut accumulating = data.session(&model, &values, Objective::Classification, 2, &backend);
        fill(&mut *accumulating, 0);
        accumulating.run(0).unwrap();
        let expected = &golden["gradient_norms"];
        assert_eq!(expected.as_object().unwrap().len(), model.parameters.len(), "{case}");
        let far = far_apart(&*accumulating, "gradient.", expected, 1e-3);
        assert!(far.is_empty(), "{case}: {far:#?}");

        let mut session = data.session(&model, &values, Objective::Classification, 1, &backend);
        for (step, wanted) in golden["losses"].as_array().unwrap().iter().enumerate() {
            fill(&mut *session, step);
            run_step(&case, &mut *session, step, wanted);
            if step == 0 {
                // Later steps differ: Adam makes whole steps of gradients that are nothing but rounding.
                assert_eq!(golden["statistics"].as_object().unwrap().len(), model.states.len(), "{case}");
                let far = far_apart(&*session, "", &golden["statistics"], 1e-3);
                assert!(far.is_empty(), "{case}: {far:#?}");
            }
        }
    }
}
