//! Random graphs: fusing changes no bit, on any instruction set, with any number of threads.

mod session_support;

use session_support::{BACKENDS, random_inputs, run};
use tenon_graph::graph::Graph;
use tenon_graph::lower::lower;
use tenon_graph::passes::pipeline::{Options, prepare};
use tenon_graph::testing::random_graph;
use tenon_graph::types::DType;

/// The bits of results with every NaN the same: its payload is not promised.
fn canonical(graph: &Graph, mut results: session_support::Results) -> session_support::Results {
    let outputs = graph.outputs.iter().map(|(name, v)| (name.to_string(), graph.ty(*v)));
    let inputs = graph.inputs().map(|(_, name, _, ty)| (format!("> {name}"), ty));
    for (name, ty) in outputs.chain(inputs) {
        let bytes = results.get_mut(&name).expect("a result");
        match ty.dtype {
            DType::F32 => bytes.chunks_exact_mut(4).for_each(|b| {
                if f32::from_le_bytes([b[0], b[1], b[2], b[3]]).is_nan() {
                    b.copy_from_slice(&f32::NAN.to_le_bytes());
                }
            }),
            DType::BF16 => bytes.chunks_exact_mut(2).for_each(|b| {
                if half::bf16::from_le_bytes([b[0], b[1]]).is_nan() {
                    b.copy_from_slice(&half::bf16::NAN.to_le_bytes());
                }
            }),
            DType::I32 | DType::U32 | DType::U8 | DType::Bool => {}
        }
    }
    results
}

#[test]
fn fusing_changes_no_bit() {
    for seed in 0..150 {
        let graph =
            prepare(&random_graph(seed, 10 + seed as usize % 50), &Options::default()).expect("sizes are numbers");
        let inputs = random_inputs(&graph, seed);
        let (fused, unfused) = (lower(graph.clone(), true), lower(graph.clone(), false));
        let mut expected = None;
        for (i, (name, backend)) in BACKENDS.iter().enumerate() {
            // All of them on some graphs, one on each.
            if i != 0 && seed % 8 != 0 && seed as usize % BACKENDS.len() != i {
                continue;
            }
            let expected = expected.get_or_insert_with(|| canonical(&graph, run(backend, &unfused, &inputs)));
            let actual = canonical(&graph, run(backend, &fused, &inputs));
            for (result, bytes) in &actual {
                assert!(expected[result] == *bytes, "seed {seed}: {result} differs when fused, {name}");
            }
        }
    }
}
