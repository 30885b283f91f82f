//! Numerics where formulas are fragile, integer arithmetic, and the evaluator's errors.

use std::collections::BTreeMap;

use tenon_graph::composite::{Attrs, composite};
use tenon_graph::dim::{Bindings, Dim, Symbol};
use tenon_graph::graph::Graph;
use tenon_graph::op::Role;
use tenon_graph::reference::{Array, Inputs, Precision, evaluate, evaluate_observed};
use tenon_graph::tensor::{Builder, Tensor};
use tenon_graph::types::{DType, Type};

const INF: f64 = f64::INFINITY;
const BOTH: [Precision; 2] = [Precision::F32, Precision::F64];

fn f32s(shape: &[usize], data: &[f64]) -> Array {
    Array::new(DType::F32, shape, data)
}

fn i32s(shape: &[usize], data: &[f64]) -> Array {
    Array::new(DType::I32, shape, data)
}

fn graph_of(inputs: &[Array], build: impl for<'g> Fn(&'g Builder, &[Tensor<'g>]) -> Vec<Tensor<'g>>) -> Graph {
    let b = Builder::new();
    let x: Vec<Tensor<'_>> =
        inputs.iter().enumerate().map(|(i, a)| b.input(&format!("x{i}"), Role::Data, a.ty())).collect();
    for (i, y) in build(&b, &x).into_iter().enumerate() {
        b.output(&format!("y{i}"), y);
    }
    b.finish().unwrap()
}

fn named(inputs: &[Array]) -> Inputs {
    inputs.iter().enumerate().map(|(i, a)| (format!("x{i}"), a.clone())).collect()
}

fn run(
    precision: Precision,
    inputs: &[Array],
    build: impl for<'g> Fn(&'g Builder, &[Tensor<'g>]) -> Vec<Tensor<'g>>,
) -> Vec<Vec<f64>> {
    let found = evaluate(&graph_of(inputs, build), &Bindings::new(), &named(inputs), precision).unwrap();
    found.outputs.into_values().map(|a| a.data).collect()
}

/// The results of a composite and the gradients of its float operands, every result weighted with 1.
fn composite_run(
    precision: Precision,
    name: &str,
    attrs: Attrs,
    inputs: &[Array],
    graded: usize,
) -> (Vec<Vec<f64>>, Vec<Vec<f64>>) {
    let mut all = run(precision, inputs, |b, x| {
        let y = b.composite(composite(name).unwrap(), x, attrs.clone());
        let loss = y[..graded].iter().fold(b.scalar(0.0), |sum, y| sum + y.sum_all());
        let floats: Vec<Tensor<'_>> = x.iter().copied().filter(|t| t.dtype().is_float()).collect();
        y.iter().copied().chain(tenon_graph::autodiff::gradients(loss, &floats)).collect()
    });
    let gradients = all.split_off(composite(name).unwrap().results);
    (all, gradients)
}

fn close(a: &[f64], b: &[f64]) -> bool {
    let near = |a: f64, b: f64| a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= 1e-6 * b.abs().max(1.0);
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| near(*a, *b))
}

#[track_caller]
fn assert_close(a: &[f64], b: &[f64]) {
    assert!(close(a, b), "{a:?} is not {b:?}");
}

#[test]
fn softmax_of_huge_values() {
    for precision in BOTH {
        let x = f32s(&[3, 3], &[1e30, 1e30, -1e30, 3e38, -3e38, 0.0, -INF, 0.0, 0.0]);
        let (y, dx) = composite_run(precision, "softmax", Attrs::default(), std::slice::from_ref(&x), 1);
        assert_close(&y[0], &[0.5, 0.5, 0.0, 1.0, 0.0, 0.0, 0.0, 0.5, 0.5]);
        assert_close(&dx[0], &[0.0; 9]);
        let (y, _) = composite_run(precision, "log_softmax", Attrs::default(), &[x], 1);
        assert_close(&y[0][..3], &[-(2f64.ln()), -(2f64.ln()), -2e30]);
        assert_close(&y[0][6..], &[-INF, -(2f64.ln()), -(2f64.ln())]);
    }
}

#[test]
fn softmax_of_nothing_but_minus_infinity_is_nan() {
    let (y, _) = composite_run(Precision::F32, "softmax", Attrs::default(), &[f32s(&[1, 2], &[-INF, -INF])], 1);
    assert_close(&y[0], &[f64::NAN, f64::NAN]);
}

#[test]
fn cross_entropy_at_the_edges() {
    for precision in BOTH {
        let logits =
            f32s(&[5, 3], &[-INF, 0.0, 0.0, 0.0, -INF, 1.0, 500.0, -500.0, 0.0, f64::NAN, INF, -INF, 1.0, 2.0, 3.0]);
        let labels = i32s(&[5], &[1.0, 1.0, 1.0, -100.0, 3.0]);
        let (y, dx) = composite_run(precision, "cross_entropy", Attrs::default(), &[logits, labels], 1);
        // Impossible label: infinite. Ignored: 0 whatever the logits. Label out of range: NaN, never read.
        assert_close(&y[0], &[2f64.ln(), INF, 1000.0, 0.0, f64::NAN]);
        assert_close(&dx[0][..3], &[0.0, -0.5, 0.5]);
        assert_close(&dx[0][6..9], &[1.0, -1.0, 0.0]);
        assert_close(&dx[0][9..12], &[0.0; 3]);
        assert!(dx[0][12..].iter().all(|g| g.is_nan()));
    }
}

#[test]
fn cross_entropy_of_a_log_sum_alone_has_a_gradient() {
    let logits = f32s(&[1, 2], &[0.0, 3f64.ln()]);
    let found = run(Precision::F64, &[logits, i32s(&[1], &[0.0])], |b, x| {
        let y = b.composite(composite("cross_entropy").unwrap(), x, Attrs::default());
        tenon_graph::autodiff::gradients(y[1].sum_all(), &x[..1])
    });
    assert_close(&found[0], &[0.25, 0.75]);
}

#[test]
fn norms_of_constants() {
    for precision in BOTH {
        let x = f32s(&[2, 4], &[7.0, 7.0, 7.0, 7.0, 1e6, 1e6, 1e6, 1e6]);
        let (weight, bias) = (f32s(&[4], &[2.0; 4]), f32s(&[4], &[0.5; 4]));
        let (y, dx) = composite_run(precision, "layer_norm", Attrs::default(), &[x, weight.clone(), bias.clone()], 1);
        assert_close(&y[0], &[0.5; 8]);
        assert!(dx.iter().flatten().all(|g| g.is_finite()));
        let zero = f32s(&[1, 4], &[0.0; 4]);
        let (y, dx) = composite_run(precision, "rms_norm", Attrs::default(), &[zero, weight.clone()], 1);
        assert_close(&y[0], &[0.0; 4]);
        assert!(dx.iter().flatten().all(|g| g.is_finite()));
        // One element per channel: variance 0, also with Bessel's correction.
        let one = f32s(&[1, 4], &[1.0, 2.0, 3.0, 4.0]);
        let running = f32s(&[4], &[1.0; 4]);
        let (y, _) =
            composite_run(precision, "batch_norm", Attrs::default(), &[one, weight, bias, running.clone(), running], 1);
        assert_close(&y[0], &[0.5; 4]);
        assert_close(&y[2], &[0.9; 4]);
    }
}

#[test]
fn logarithm_and_exponential_near_zero() {
    for precision in BOTH {
        let tiny = f32s(&[3], &[1e-20, -1e-20, 0.0]);
        let found = run(precision, &[tiny], |_, x| vec![x[0].log1p(), x[0].expm1()]);
        for y in found {
            assert!((y[0] / 1e-20 - 1.0).abs() < 1e-6 && (y[1] / -1e-20 - 1.0).abs() < 1e-6 && y[2] == 0.0, "{y:?}");
        }
    }
}

#[test]
fn activations_of_huge_values() {
    for precision in BOTH {
        let x = || f32s(&[4], &[-1e30, 1e30, -200.0, 200.0]);
        for (name, expected) in [
            ("relu", [0.0, 1e30, 0.0, 200.0]),
            ("silu", [0.0, 1e30, 0.0, 200.0]),
            ("softplus", [0.0, 1e30, 0.0, 200.0]),
            ("gelu", [0.0, 1e30, 0.0, 200.0]),
        ] {
            let (y, dx) = composite_run(precision, name, Attrs::default(), &[x()], 1);
            assert!(close(&y[0], &expected), "{name}: {:?}", y[0]);
            assert!(close(&dx[0], &[0.0, 1.0, 0.0, 1.0]), "{name}: gradient {:?}", dx[0]);
        }
        let x = f32s(&[2], &[200.0, -200.0]);
        let (y, dx) = composite_run(precision, "gelu", Attrs::default().with("tanh", true), &[x], 1);
        assert_close(&y[0], &[200.0, 0.0]);
        assert_close(&dx[0], &[1.0, 0.0]);
        let loss = [f32s(&[2], &[1e30, -1e30]), f32s(&[2], &[1.0, 1.0])];
        let (y, _) = composite_run(precision, "bce_with_logits", Attrs::default(), &loss, 1);
        assert_close(&y[0], &[0.0, 1e30]);
    }
}

#[test]
fn attention_without_keys_and_with_huge_scores() {
    for precision in BOTH {
        let q = f32s(&[2, 2, 1, 2], &[1e18; 8]);
        let k = f32s(&[2, 2, 1, 2], &[1e18, 1e18, -1e18, -1e18, 1.0, 0.0, 0.0, 1.0]);
        let v = f32s(&[2, 2, 1, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
        let mask = Array::new(DType::Bool, [2, 2], [1.0, 1.0, 0.0, 0.0]);
        let attrs = Attrs::default().with("has_mask", true);
        let (y, dx) = composite_run(precision, "attention", attrs, &[q, k, v, mask], 1);
        assert_close(&y[0], &[1.0, 2.0, 1.0, 2.0, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!(y[1][2..], [-INF, -INF]);
        assert!(dx.iter().flatten().all(|g| g.is_finite()), "{dx:?}");
        assert_close(&dx[2], &[2.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
    }
}

#[test]
fn dropout_keeps_the_mean_and_repeats_itself() {
    let n = 20_000;
    let inputs = [Array::full(DType::F32, &[n], 1.0), Array::new(DType::U32, [2], [5.0, 6.0])];
    let attrs = Attrs::default().with("rate", 0.25).with("stream", 3i64);
    let (y, dx) = composite_run(Precision::F64, "dropout", attrs, &inputs, 1);
    assert_eq!(y[0], dx[0], "the gradient draws the same bits");
    let mean = y[0].iter().sum::<f64>() / n as f64;
    assert!((mean - 1.0).abs() < 4.0 * (0.25 / 0.75 / n as f64).sqrt(), "{mean}");
    assert!(y[0].iter().all(|v| *v == 0.0 || (*v - 4.0 / 3.0).abs() < 1e-12));
}

#[test]
fn integers_wrap_and_conversions_saturate() {
    let i = i32s(&[3], &[f64::from(i32::MAX), f64::from(i32::MIN), -7.0]);
    let found = run(Precision::F32, std::slice::from_ref(&i), |_, x| {
        vec![x[0] + 1.0, -x[0], x[0] * x[0], x[0].cast(DType::U32), x[0].cast(DType::U8)]
    });
    let (min, max) = (f64::from(i32::MIN), f64::from(i32::MAX));
    assert_eq!(found[0], [min, min + 1.0, -6.0]);
    assert_eq!(found[1], [-max, min, 7.0]);
    assert_eq!(found[2], [1.0, 0.0, 49.0]);
    assert_eq!(found[3], [max, 2f64.powi(31), 2f64.powi(32) - 7.0]);
    assert_eq!(found[4], [255.0, 0.0, 249.0]);
    let u = Array::new(DType::U32, [2], [2f64.powi(32) - 1.0, 3.0]);
    let found = run(Precision::F32, &[u], |_, x| vec![x[0] * x[0], x[0] - 4.0, x[0].cast(DType::F32)]);
    assert_eq!(found, [vec![1.0, 9.0], vec![2f64.powi(32) - 5.0, 2f64.powi(32) - 1.0], vec![2f64.powi(32), 3.0]]);
    let f = f32s(&[5], &[2.9, -2.9, 1e20, -1e20, f64::NAN]);
    let found = run(Precision::F32, &[f], |_, x| vec![x[0].cast(DType::I32), x[0].cast(DType::U8)]);
    assert_eq!(found, [[2.0, -2.0, max, min, 0.0], [2.0, 0.0, 255.0, 0.0, 0.0]]);
}

#[test]
fn floats_round_to_their_type_or_not_at_all() {
    let one = f32s(&[1], &[1.0]);
    let found =
        |precision| run(precision, std::slice::from_ref(&one), |_, x| vec![(x[0] / 3.0).cast(DType::BF16)])[0][0];
    assert_eq!(found(Precision::F64), 1.0 / 3.0);
    assert_eq!(found(Precision::F32), 0.333984375);
}

#[test]
fn nan_is_the_largest_and_reductions_of_nothing_are_defined() {
    let x = f32s(&[1, 3], &[1.0, f64::NAN, 2.0]);
    let found = run(Precision::F32, &[x, f32s(&[2, 0], &[])], |_, x| {
        vec![
            x[0].max_over(&[1]),
            x[0].argmax(1),
            x[0].argsort(1, false),
            x[0].argsort(1, true),
            x[1].sum(&[1]),
            x[1].max_over(&[1]),
        ]
    });
    assert!(found[0][0].is_nan());
    assert_eq!(found[1], [1.0]);
    assert_eq!(found[2], [0.0, 2.0, 1.0]);
    assert_eq!(found[3], [1.0, 2.0, 0.0]);
    assert_eq!(found[4], [0.0, 0.0]);
    assert_eq!(found[5], [-INF, -INF]);
}

fn error(inputs: &[Array], build: impl for<'g> Fn(&'g Builder, &[Tensor<'g>]) -> Vec<Tensor<'g>>) -> String {
    evaluate(&graph_of(inputs, build), &Bindings::new(), &named(inputs), Precision::F32).unwrap_err().to_string()
}

#[test]
fn an_index_out_of_range_is_named_with_the_size() {
    let table = f32s(&[5, 2], &[0.0; 10]);
    let at = i32s(&[2, 2], &[0.0, 4.0, 1.0, 5.0]);
    let found = error(&[table.clone(), at.clone()], |_, x| vec![x[0].gather_rows(x[1])]);
    assert!(found.starts_with("gather: index 5 at [1, 1] is outside 0..5"), "{found}");
    assert!(found.contains("f32[5, 2] from input"), "{found}");
    let negative = i32s(&[5, 1], &[0.0, 0.0, -1.0, 0.0, 0.0]);
    let found = error(&[table.clone(), negative], |_, x| vec![x[0].gather_along(1, x[1])]);
    assert!(found.starts_with("gather: index -1 at [2, 0] is outside 0..2"), "{found}");
    let found = error(&[f32s(&[2, 2], &[0.0; 4]), at], |_, x| vec![x[0].scatter_add_rows(x[1], 5.into())]);
    assert!(found.starts_with("scatter: index 5 at [1, 1] is outside 0..5"), "{found}");
    let place = i32s(&[], &[4.0]);
    let found = error(&[table.clone(), f32s(&[2, 2], &[0.0; 4]), place], |_, x| vec![x[0].write(0, x[1], x[2])]);
    assert!(found.starts_with("write: 2 elements from 4 on do not fit into 5"), "{found}");
}

#[test]
fn inputs_that_are_missing_or_of_another_type_are_named() {
    let graph = graph_of(&[f32s(&[2], &[0.0; 2])], |_, x| vec![x[0].exp()]);
    let message = |inputs: &Inputs| evaluate(&graph, &Bindings::new(), inputs, Precision::F32).unwrap_err().message;
    assert_eq!(message(&BTreeMap::new()), "input x0 (f32[2]) is not given");
    assert_eq!(message(&named(&[i32s(&[3], &[0.0; 3])])), "input x0 is i32[3], not f32[2]");
}

#[test]
fn named_sizes_are_bound_and_the_observer_sees_every_node() {
    let (symbol, b) = (Symbol::new("n").unwrap(), Builder::new());
    let x = b.input("x", Role::Data, Type::new(DType::F32, [Dim::symbol(symbol), 2.into()]));
    b.output("mean", x.mean(&[0]));
    let running = b.input("running", Role::State, Type::new(DType::F32, [1, 2]));
    b.update(running, running + x.sum(&[0]));
    let graph = b.finish().unwrap();
    let inputs: Inputs = [
        ("x".to_string(), f32s(&[3, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])),
        ("running".to_string(), f32s(&[1, 2], &[0.5, 0.5])),
    ]
    .into();
    let mut seen = Vec::new();
    let mut observer = |g: &Graph, node, results: &[Array]| {
        assert_eq!(results.len(), 1);
        seen.push(g.node(node).op.name());
    };
    let bindings = Bindings::from([(symbol, 3)]);
    let found = evaluate_observed(&graph, &bindings, &inputs, Precision::F32, &mut observer).unwrap();
    assert_eq!(found.outputs["mean"].data, [3.0, 4.0]);
    assert_eq!(found.updates["running"].data, [9.5, 12.5]);
    assert!(seen.contains(&"reduce_sum") && seen.contains(&"add"), "{seen:?}");
    let unbound = evaluate(&graph, &Bindings::new(), &inputs, Precision::F32).unwrap_err();
    assert_eq!(unbound.message, "the size `n` has no value");
}
