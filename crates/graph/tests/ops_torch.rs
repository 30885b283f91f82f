//! Every sample's results and gradients against those that PyTorch computed: an oracle that shares none of our code.
//!
//! `fixtures/ops.samples` lists the samples for `tools/fixtures/ops.py`, which writes `fixtures/ops.safetensors`. After a
//! change of the list: `BLESS=1 cargo test -p tenon-graph --test ops_torch`, then the script, then the test again.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use safetensors::{Dtype, SafeTensors};
use tenon_graph::dim::Bindings;
use tenon_graph::reference::{Array, Precision, evaluate};
use tenon_graph::sample::{Sample, samples};
use tenon_graph::types::{DType, Type};

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn type_text(ty: &Type) -> String {
    let sizes: Vec<String> = ty.shape.iter().map(|d| d.to_string()).collect();
    format!("{}[{}]", ty.dtype, sizes.join(","))
}

/// One line a sample: name, operands with their domains, results, a star at those whose gradient is asked.
fn list() -> String {
    let mut text = String::new();
    for sample in samples() {
        let graph = sample.graph();
        let operands = sample.operands.iter().map(|o| {
            let (low, high) = o.domain;
            format!("{}:{low}:{high}{}", type_text(&o.ty), if o.whole { ":whole" } else { "" })
        });
        let results = graph.outputs.iter().enumerate().map(|(i, (_, y))| {
            let ty = graph.ty(*y);
            let graded = ty.dtype.is_float() && i < sample.differentiable;
            format!("{}{}", type_text(ty), if graded { "*" } else { "" })
        });
        let (operands, results): (Vec<_>, Vec<_>) = (operands.collect(), results.collect());
        writeln!(text, "{}\t{}\t{}", sample.name, operands.join(";"), results.join(";")).unwrap();
    }
    text
}

#[test]
fn the_list_for_the_script_is_up_to_date() {
    let path = fixture("ops.samples");
    let current = list();
    if std::env::var_os("BLESS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &current).unwrap();
    }
    let stored = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(stored == current, "the samples have changed: run this test with BLESS=1, then tools/fixtures/ops.py");
}

fn decode(view: &safetensors::tensor::TensorView<'_>) -> Vec<f64> {
    let bytes = view.data();
    match view.dtype() {
        Dtype::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()).into()).collect(),
        Dtype::I32 => bytes.chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().unwrap()).into()).collect(),
        Dtype::U32 => bytes.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap()).into()).collect(),
        Dtype::U8 => bytes.iter().map(|b| f64::from(*b)).collect(),
        other => panic!("the script stores no {other:?}"),
    }
}

fn compare(ours: &Array, theirs: &[f64]) -> Result<(), String> {
    if ours.data.len() != theirs.len() {
        return Err(format!("has {} elements, PyTorch's {}", ours.data.len(), theirs.len()));
    }
    // Stored in f32, whose rounding is half of 2^-23.
    let tolerance = if ours.dtype.is_float() { 1e-6 } else { 0.0 };
    for (i, (a, b)) in ours.data.iter().zip(theirs).enumerate() {
        let near = (a - b).abs() <= tolerance * b.abs().max(1.0);
        if !(near || a == b || (a.is_nan() && b.is_nan())) {
            return Err(format!("[{i}] is {a}, PyTorch's {b}"));
        }
    }
    Ok(())
}

fn check(sample: &Sample, stored: &mut BTreeMap<String, Vec<f64>>) -> Result<(), String> {
    let graph = sample.gradient_graph().unwrap_or_else(|| sample.graph());
    let found = evaluate(&graph, &Bindings::new(), &sample.inputs(), Precision::F64).map_err(|e| e.to_string())?;
    for (name, value) in &found.outputs {
        let theirs = stored.remove(&format!("{}:{name}", sample.name)).ok_or(format!("{name} is not stored"))?;
        compare(value, &theirs).map_err(|e| format!("{name}{e}"))?;
    }
    Ok(())
}

#[test]
fn values_and_gradients_are_those_of_pytorch() {
    let bytes = std::fs::read(fixture("ops.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut stored: BTreeMap<String, Vec<f64>> = file.iter().map(|(n, v)| (n.to_string(), decode(&v))).collect();
    let failures: Vec<String> =
        samples().iter().filter_map(|s| check(s, &mut stored).err().map(|e| format!("{}: {e}", s.name))).collect();
    assert!(failures.is_empty(), "{} samples differ:\n{}", failures.len(), failures.join("\n"));
    assert!(stored.is_empty(), "stored, but no sample: {:?}", stored.keys());
}

/// The file keeps floats of every type in `f32`, integers in their own type and truth values in bytes.
#[test]
fn stored_types_are_the_ones_the_script_promises() {
    let bytes = std::fs::read(fixture("ops.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    for sample in samples() {
        let graph = sample.graph();
        for (name, y) in &graph.outputs {
            let expected = match graph.ty(*y).dtype {
                DType::F32 | DType::BF16 => Dtype::F32,
                DType::I32 => Dtype::I32,
                DType::U32 => Dtype::U32,
                DType::U8 | DType::Bool => Dtype::U8,
            };
            let found = file.tensor(&format!("{}:{name}", sample.name)).map(|t| t.dtype());
            assert_eq!(found.ok(), Some(expected), "{}:{name}", sample.name);
        }
    }
}
