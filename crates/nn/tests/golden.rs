//! What models compute, against PyTorch and transformers: weights read from their files, run by the reference evaluator.

use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use tenon_graph::dim::Symbol;
use tenon_graph::passes::mode::for_evaluation;
use tenon_graph::reference::{Array, Inputs, Precision, evaluate};
use tenon_graph::types::DType;
use tenon_nn::{ArchitectureSource, Model, load_weights, open};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// The greatest distance of the model's logits from those in the fixture, and the greatest of these.
fn distance(model: &Model, folder: &str, sizes: &[(&str, usize)]) -> (f64, f64) {
    let values = load_weights(&fixture(folder).join("model.safetensors"), model).unwrap_or_else(|e| panic!("{e}"));
    let mut inputs = Inputs::new();
    for (variable, values) in model.variables().zip(values) {
        let values: Vec<f64> = values.into_iter().map(f64::from).collect();
        inputs.insert(variable.name.clone(), Array::new(DType::F32, variable.shape.clone(), values));
    }
    inputs.insert(tenon_nn::POSITION_OFFSET.to_string(), Array::scalar(DType::I32, 0.0));
    let bytes = std::fs::read(fixture(folder).join("io.safetensors")).unwrap();
    let stored = SafeTensors::deserialize(&bytes).unwrap();
    let read = |name: &str| {
        let tensor = stored.tensor(name).unwrap();
        let words = tensor.data().as_chunks::<4>().0;
        let (dtype, values): (DType, Vec<f64>) = match tensor.dtype() {
            Dtype::I32 => (DType::I32, words.iter().map(|w| f64::from(i32::from_le_bytes(*w))).collect()),
            _ => (DType::F32, words.iter().map(|w| f64::from(f32::from_le_bytes(*w))).collect()),
        };
        Array::new(dtype, tensor.shape(), values)
    };
    for input in &model.inputs {
        inputs.insert(input.name.clone(), read(&input.name));
    }
    let graph = for_evaluation(&model.graph).unwrap();
    let bindings = sizes.iter().map(|(name, n)| (Symbol::new(name).unwrap(), *n)).collect();
    let found = evaluate(&graph, &bindings, &inputs, Precision::F32).unwrap_or_else(|e| panic!("{e}"));
    let (found, expected) = (&found.outputs["logits"], read("logits"));
    assert_eq!(found.shape, expected.shape);
    let apart = found.data.iter().zip(&expected.data).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    (apart, expected.data.iter().fold(0.0, |m, x| x.abs().max(m)))
}

#[test]
fn gpt2_computes_what_transformers_does() {
    let model = open(&fixture("gpt2_tiny")).unwrap();
    let (apart, size) = distance(&model, "gpt2_tiny", &[("b", 2), ("t", 5)]);
    assert!(apart < 1e-5 * size && size > 0.1, "{apart} of {size}");
}

#[test]
fn layers_compute_what_pytorchs_do() {
    let program = r#"
inputs = dict(pixel_values = images("b", 3, 9, 8))
checkpoint = dict(ignored = ["*.num_batches_tracked"])

def model(pixel_values):
    x = relu(batch_norm(conv(pixel_values, 8, 3, stride = 2, padding = 1, name = "conv1"), name = "bn"))
    x = max_pool(x, 3, stride = 2, padding = 1)
    x = conv(x, 16, [3, 2], padding = "same", dilation = [1, 2], groups = 8, bias = False, name = "conv2")
    x = gelu(group_norm(x, 4, name = "gn"))
    x = mean_pool(x, 2, stride = 1, padding = 1, count_padding = False)
    return linear(flatten(transpose(x, [0, 3, 1, 2])), 5, name = "fc")
"#;
    let source = ArchitectureSource::Text { name: "layers.star".to_string(), text: program.to_string() };
    let model = Model::load(&source, &[]).unwrap_or_else(|e| panic!("{e}"));
    let (apart, size) = distance(&model, "layers", &[("b", 2)]);
    assert!(apart < 1e-5 * size && size > 0.1, "{apart} of {size}");
}
