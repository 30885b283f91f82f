//! Over the one list of samples: it is complete, values have their inferred types, gradients agree with differences.

use std::collections::{BTreeMap, BTreeSet};

use tenon_graph::composite::COMPOSITES;
use tenon_graph::dim::Bindings;
use tenon_graph::elementwise::{Binary, Unary};
use tenon_graph::graph::Graph;
use tenon_graph::passes::{self, expand::expand_composites};
use tenon_graph::reference::{Array, Inputs, Precision, evaluate};
use tenon_graph::sample::{Sample, operation_names, samples};
use tenon_graph::text::{parse, print};
use tenon_graph::types::DType;
use tenon_graph::verify::verify;

fn run(graph: &Graph, inputs: &Inputs, precision: Precision) -> BTreeMap<String, Array> {
    let found = evaluate(graph, &Bindings::new(), inputs, precision).unwrap();
    found.outputs.into_iter().map(|(name, value)| (name.to_string(), value)).collect()
}

/// Runs `check` on every sample and lists the ones that fail.
fn all(check: impl Fn(&Sample) -> Result<(), String>) {
    let failures: Vec<String> =
        samples().iter().filter_map(|s| check(s).err().map(|e| format!("{}: {e}", s.name))).collect();
    assert!(failures.is_empty(), "{} samples fail:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn every_operation_has_samples_a_doc_and_a_name_of_its_own() {
    let mut names = BTreeSet::new();
    for name in operation_names() {
        assert!(names.insert(name), "the name {name} is used twice");
    }
    let sampled: BTreeSet<String> = samples().iter().map(|s| s.op().to_string()).collect();
    assert_eq!(sampled, names.into_iter().map(str::to_string).collect());

    let mut seen = BTreeSet::new();
    all(|sample| {
        let graph = sample.graph();
        let present = graph.nodes().any(|n| graph.node(n).op.name() == sample.op());
        present.then_some(()).ok_or(format!("has no {}", sample.op()))
    });
    for sample in samples() {
        assert!(seen.insert(sample.name.clone()), "two samples are named {}", sample.name);
    }

    let docs = Unary::ALL.map(|op| (op.def().name, op.def().doc)).into_iter();
    let docs = docs.chain(Binary::ALL.map(|op| (op.def().name, op.def().doc)));
    for (name, doc) in docs.chain(COMPOSITES.iter().map(|c| (c.name, c.doc))) {
        assert!(!doc.is_empty(), "{name} has no doc");
    }
    for def in COMPOSITES {
        assert!(def.operands.iter().all(|o| !o.doc.is_empty()) && def.attrs.iter().all(|a| !a.doc.is_empty()));
    }
}

/// The evaluator asserts it for every node; here for both graphs and both precisions of each sample.
#[test]
fn values_have_their_inferred_types() {
    all(|sample| {
        let inputs = sample.inputs();
        for graph in std::iter::once(sample.graph()).chain(sample.gradient_graph()) {
            for precision in [Precision::F64, Precision::F32] {
                for (name, array) in run(&graph, &inputs, precision) {
                    if array.ty() != *graph.ty(graph.output(&name).unwrap()) {
                        return Err(format!("{name} is {}", array.ty()));
                    }
                    let kept = array.clone().rounded(precision);
                    if kept.data.iter().zip(&array.data).any(|(a, b)| a.to_bits() != b.to_bits()) {
                        return Err(format!("{name} is not rounded to its type"));
                    }
                }
            }
        }
        Ok(())
    });
}

/// Expansion, the text form and the algebraic passes, with composites whole and expanded, all keep every bit.
#[test]
fn rewriting_changes_no_value() {
    all(|sample| {
        let inputs = sample.inputs();
        for graph in std::iter::once(sample.graph()).chain(sample.gradient_graph()) {
            let expected = format!("{:?}", run(&graph, &inputs, Precision::F32));
            let same = |what: &str, graph: &Graph| {
                verify(graph).map_err(|e| format!("{what}: {e}"))?;
                let found = format!("{:?}", run(graph, &inputs, Precision::F32));
                (found == expected).then_some(()).ok_or(format!("{what} changes {expected} to {found}"))
            };
            let expanded = expand_composites(&graph, |_| true);
            same("expansion", &expanded)?;
            for (what, graph) in [("whole", &graph), ("expanded", &expanded)] {
                let text = print(graph);
                let read = parse(&text).map_err(|e| format!("{e:?} in\n{text}"))?;
                same(&format!("{what}: the text form"), &read)?;
                let algebra = passes::run(graph, passes::ALGEBRA, |_, _| {}).map_err(|e| e.to_string())?;
                same(&format!("{what}: algebra"), &algebra)?;
            }
        }
        Ok(())
    });
}

/// The results weighted with `dy0`, ...: the loss whose gradient the gradient graph has.
fn loss(graph: &Graph, inputs: &Inputs, results: usize) -> f64 {
    let found = run(graph, inputs, Precision::F64);
    let weighted = |i: usize| {
        let (y, dy) = (found.get(&format!("y{i}"))?, inputs.get(&format!("dy{i}"))?);
        Some(y.data.iter().zip(&dy.data).map(|(y, dy)| y * dy).sum::<f64>())
    };
    (0..results.min(found.len())).filter_map(weighted).sum()
}

#[test]
fn gradients_agree_with_finite_differences() {
    all(|sample| {
        let (true, Some(backward)) = (sample.smooth, sample.gradient_graph()) else { return Ok(()) };
        let graph = expand_composites(&sample.graph(), |_| true);
        let inputs = sample.inputs();
        let gradients = run(&backward, &inputs, Precision::F64);
        for (i, operand) in sample.operands.iter().enumerate().filter(|(_, o)| o.ty.dtype.is_float()) {
            let gradient = &gradients[&format!("dx{i}")].data;
            let size = gradient.iter().fold(1.0f64, |m, g| m.max(g.abs()));
            let elements = operand.ty.elements();
            for element in (0..elements).step_by(elements.div_ceil(24).max(1)) {
                let at = |step: f64| {
                    let mut moved = inputs.clone();
                    moved.get_mut(&format!("x{i}")).unwrap().data[element] += step;
                    loss(&graph, &moved, sample.differentiable)
                };
                // Of fourth order: rounding, about 1e-11, is what remains of the error.
                let h = 1e-4;
                let difference = (8.0 * (at(h) - at(-h)) - (at(2.0 * h) - at(-2.0 * h))) / (12.0 * h);
                let error = (difference - gradient[element]).abs() / size;
                if error.is_nan() || error > 1e-6 {
                    return Err(format!("dx{i}[{element}] is {}, differences give {difference}", gradient[element]));
                }
            }
        }
        Ok(())
    });
}

/// The gradients of the gradients, which the rules give for each other's nodes.
#[test]
fn gradients_have_gradients() {
    use tenon_graph::autodiff::gradients;
    use tenon_graph::op::Role;
    use tenon_graph::tensor::Builder;
    all(|sample| {
        let (true, Some(backward)) = (sample.smooth, sample.gradient_graph()) else { return Ok(()) };
        let b = Builder::extend(backward.clone());
        let mut loss = b.scalar(0.0);
        let mut inputs = sample.inputs();
        for (name, value) in backward.outputs.iter().filter(|(name, _)| name.starts_with("dx")) {
            let dx = b.tensor(*value);
            let weight = b.input(&format!("weight {name}"), Role::Data, dx.ty());
            let elements = dx.ty().elements();
            let values: Vec<f64> = (0..elements).map(|i| ((i * 7 % 5) as f64 - 1.5) * 0.5).collect();
            inputs.insert(format!("weight {name}"), Array::new(dx.dtype(), dx.shape().sizes(), values));
            loss = loss + (dx * weight).sum_all().cast(DType::F32);
        }
        let wrt: Vec<_> = (0..sample.operands.len()).filter(|i| sample.operands[*i].ty.dtype.is_float()).collect();
        let x: Vec<_> = wrt.iter().map(|i| b.tensor(backward.input(&format!("x{i}")).unwrap())).collect();
        for (i, gradient) in wrt.iter().zip(gradients(loss, &x)) {
            b.output(&format!("ddx{i}"), gradient);
        }
        b.output("loss", loss);
        let graph = expand_composites(&b.finish().map_err(|e| format!("{e:?}"))?, |_| true);
        let base = run(&graph, &inputs, Precision::F64);
        for i in wrt {
            let gradient = &base[&format!("ddx{i}")].data;
            let size = gradient.iter().fold(1.0f64, |m, g| m.max(g.abs()));
            let elements = gradient.len();
            for element in (0..elements).step_by(elements.div_ceil(4).max(1)) {
                let at = |step: f64| {
                    let mut moved = inputs.clone();
                    moved.get_mut(&format!("x{i}")).unwrap().data[element] += step;
                    run(&graph, &moved, Precision::F64)["loss"].data[0]
                };
                let h = 1e-4;
                let difference = (8.0 * (at(h) - at(-h)) - (at(2.0 * h) - at(-2.0 * h))) / (12.0 * h);
                let error = (difference - gradient[element]).abs() / size;
                if error.is_nan() || error > 1e-5 {
                    return Err(format!("ddx{i}[{element}] is {}, differences give {difference}", gradient[element]));
                }
            }
        }
        Ok(())
    });
}
