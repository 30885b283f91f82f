//! Every sample of every operation on the CPU backend, against the reference evaluator.

mod session_support;

use session_support::{BACKENDS, decode, run};
use tenon_graph::dim::Bindings;
use tenon_graph::graph::Graph;
use tenon_graph::passes::pipeline::{Options, compile};
use tenon_graph::reference::{Inputs, Precision, evaluate};
use tenon_graph::sample::samples;
use tenon_graph::types::DType;

/// How far a result may be from the exact one, for magnitudes from one on relative to it.
fn tolerance(graph: &Graph, dtype: DType) -> f64 {
    let bf16 = graph.nodes().flat_map(|n| graph.node(n).outputs()).any(|v| graph.ty(v).dtype == DType::BF16);
    match dtype {
        DType::F32 if !bf16 => 1e-5,
        DType::F32 | DType::BF16 => 2e-2,
        DType::I32 | DType::U32 | DType::U8 | DType::Bool => 0.0,
    }
}

/// What is wrong with a graph on the CPU.
fn faults(graph: &Graph, inputs: &Inputs) -> Vec<String> {
    let program = match compile(graph, &Options::default()) {
        Ok(program) => program,
        Err(e) => return vec![e.message],
    };
    let expected = evaluate(graph, &Bindings::new(), inputs, Precision::F64).expect("the evaluator knows every sample");
    let mut faults = Vec::new();
    let mut first = None;
    for (name, backend) in BACKENDS.iter() {
        let results = run(backend, &program, inputs);
        if first.as_ref().is_some_and(|first| *first != results) {
            faults.push(format!("other bits on {name}"));
        }
        first.get_or_insert(results);
    }
    let results = first.expect("a backend");
    for (name, exact) in &expected.outputs {
        let ty = exact.ty();
        let tolerance = tolerance(graph, ty.dtype);
        let actual = decode(&results[&**name], &ty);
        let far = |(a, e): (&f64, &f64)| {
            let near = (a - e).abs() <= tolerance * e.abs().max(1.0);
            !(a == e || near || (a.is_nan() && e.is_nan()))
        };
        if let Some(i) = actual.iter().zip(&exact.data).position(far) {
            faults.push(format!("{name}[{i}] of {ty} is {}, not {}", actual[i], exact.data[i]));
        }
    }
    faults
}

fn check(part: impl Fn(&tenon_graph::sample::Sample) -> Option<Graph>) {
    let mut faulty = Vec::new();
    for sample in samples() {
        let Some(graph) = part(&sample) else { continue };
        let found = faults(&graph, &sample.inputs());
        faulty.extend(found.into_iter().map(|fault| format!("{}: {fault}", sample.name)));
    }
    assert!(faulty.is_empty(), "{} faults:\n{}", faulty.len(), faulty.join("\n"));
}

#[test]
fn every_operation_agrees_with_the_evaluator() {
    check(|sample| Some(sample.graph()));
}

#[test]
fn every_gradient_agrees_with_the_evaluator() {
    check(|sample| sample.gradient_graph());
}
