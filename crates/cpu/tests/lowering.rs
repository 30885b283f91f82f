//! What is easily wrong when a graph becomes a program: units that need each other, keys, positions, updates in place.

mod session_support;

use session_support::{BACKENDS, Results, decode, encode, random_inputs, run};
use tenon_graph::dim::Bindings;
use tenon_graph::lower::lower;
use tenon_graph::op::Role;
use tenon_graph::reference::{Precision, evaluate};
use tenon_graph::tensor::{Builder, Tensor};
use tenon_graph::types::{DType, Type};

fn floats<'g, const N: usize>(b: &'g Builder, name: &str, shape: [usize; N]) -> Tensor<'g> {
    b.input(name, Role::State, Type::new(DType::F32, shape))
}

/// Compares results and updated inputs of the fused and the unfused program with the evaluator.
fn check(b: Builder) {
    let graph = b.finish().expect("well typed");
    let inputs = random_inputs(&graph, 7);
    let meant = evaluate(&graph, &Bindings::new(), &inputs, Precision::F32).expect("well defined");
    for fuse in [true, false] {
        let results: Results = run(&BACKENDS[0].1, &lower(graph.clone(), fuse), &inputs);
        let outputs = meant.outputs.iter().map(|(name, array)| (name.to_string(), array));
        for (name, array) in outputs.chain(meant.updates.iter().map(|(name, array)| (format!("> {name}"), array))) {
            let actual = decode(&results[&name], &array.ty());
            let near = actual.iter().zip(&array.data).all(|(a, e)| (a - e).abs() <= 1e-5 * e.abs().max(1.0));
            assert!(near, "{name}, fused: {fuse}: {actual:?} is not {:?}", array.data);
        }
        for (_, name, ..) in graph.inputs().filter(|(v, ..)| graph.updates.iter().all(|(input, _)| input != v)) {
            assert_eq!(results[&format!("> {name}")], encode(&inputs[&**name]), "{name} is not updated");
        }
    }
}

#[test]
fn units_never_need_each_other() {
    let b = Builder::new();
    let (x, y, w) = (floats(&b, "x", [8, 16]), floats(&b, "y", [8, 1]), floats(&b, "w", [16, 1]));
    let v = x.tanh();
    let u = v.matmul(w, false, false);
    let t = y.tanh();
    b.output("sum", v + t);
    b.output("other", t + u);
    check(b);
}

#[test]
fn keys_are_read_from_buffers() {
    let b = Builder::new();
    let key = b.input("key", Role::State, Type::new(DType::U32, [2]));
    let both = b.input("both", Role::State, Type::new(DType::U32, [3, 2]));
    let made = key.max(key.constant_like(5.0));
    b.output("of a unit", b.random_bits(made, [2]));
    b.output("of a constant", b.random_bits(b.full(3.0, DType::U32, [2]), [5]));
    b.output("of a part", b.random_bits(both.slice(0, 1, 1).reshape([2]), [5]));
    b.update(key, b.random_bits(key, [2]));
    check(b);
}

#[test]
fn updates_see_old_values() {
    let b = Builder::new();
    let [p, q, r, s] = ["p", "q", "r", "s"].map(|name| floats(&b, name, [3, 4]));
    b.output("p before", p);
    b.output("q before", q.reshape([12]));
    b.update(p, q);
    b.update(q, p);
    let sum = r + s;
    b.update(r, sum);
    b.update(s, sum);
    b.output("r before", r.reshape([4, 3]));
    check(b);
}

#[test]
fn a_view_with_a_buffer_moves_the_views_behind_it() {
    let b = Builder::new();
    let x = floats(&b, "x", [4, 6]);
    let turned = x.transpose(&[1, 0]);
    let rows = b.iota(0, Type::new(DType::I32, [3]));
    b.output("back", turned.transpose(&[1, 0]).gather_rows(rows));
    b.output("turned", turned);
    check(b);
}

#[test]
fn writes_in_place_leave_what_others_read() {
    let b = Builder::new();
    let x = floats(&b, "x", [4, 3]);
    let positions = b.input("positions", Role::Data, Type::new(DType::I32, [2]));
    let at = positions.slice(0, 1, 1).min(positions.slice(0, 1, 1).constant_like(3.0)).reshape([0usize; 0]);
    let base = x.tanh();
    let written = base.write(0, x.slice(0, 2, 1), b.constant(1.0, DType::I32));
    b.output("written", written.write(0, base.slice(0, 3, 1), at));
    b.output("later", base.matmul(written, false, true));
    b.update(x, x.write(0, x.slice(0, 0, 1), b.constant(2.0, DType::I32)));
    check(b);
}

#[test]
fn scalars_constants_and_joins() {
    let b = Builder::new();
    let (x, one) = (floats(&b, "x", []), b.scalar(1.0));
    b.output("constant", one);
    b.output("same", x);
    b.output("sum", (x + one).sum_all());
    let parts = [x.reshape([1]), b.full(2.0, DType::F32, [3])];
    b.output("joined", b.concat(&parts, 0));
    b.output("padded", b.full(2.0, DType::F32, [3]).pad(0, 1, 6, 1));
    check(b);
}

/// What two units need and each can make from what it reads anyway has no buffer.
#[test]
fn units_compute_cheap_values_again() {
    let b = Builder::new();
    let (x, w) = (floats(&b, "x", [512, 256]), floats(&b, "w", [256]));
    let scaled = x * w;
    let centred = scaled - scaled.sum(&[0]);
    let variance = (centred * centred).sum(&[0]);
    b.output("y", centred * variance);
    let graph = b.finish().expect("well typed");
    let inputs = random_inputs(&graph, 7);
    let [fused, plain] = [true, false].map(|fuse| lower(graph.clone(), fuse));
    let large: Vec<usize> = fused.steps.iter().flat_map(|s| &s.writes).map(|v| fused.graph.ty(*v).elements()).collect();
    assert_eq!(large.iter().filter(|elements| **elements == 512 * 256).count(), 1, "stored: {large:?}");
    let [fused, plain] = [fused, plain].map(|program| run(&BACKENDS[0].1, &program, &inputs));
    assert_eq!(fused["y"], plain["y"], "not a bit changes");
}
