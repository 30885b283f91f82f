//! The algebraic passes: they shrink graphs and never change a bit of a result.

use proptest::prelude::*;
use tenon_graph::dim::Bindings;
use tenon_graph::graph::Graph;
use tenon_graph::op::Role;
use tenon_graph::passes::{self, Stage};
use tenon_graph::reference::{Array, Inputs, Precision, evaluate};
use tenon_graph::tensor::{Builder, Tensor};
use tenon_graph::testing::{Rng, random_graph};
use tenon_graph::text::print;
use tenon_graph::types::{DType, Type};
use tenon_graph::verify::verify;

/// Values for every input, many of them those that break careless algebra.
fn inputs(graph: &Graph, rng: &mut Rng) -> Inputs {
    let special = [0.0, -0.0, 1.0, f64::INFINITY, f64::NEG_INFINITY, f64::NAN, 1e-40, -3e38];
    let wild = rng.below(2) == 0;
    let values = graph.inputs().map(|(_, name, _, ty)| {
        let mut element = || match ty.dtype {
            DType::F32 | DType::BF16 if wild && rng.below(3) == 0 => rng.pick(&special),
            DType::F32 | DType::BF16 => rng.unit() * 3.0,
            DType::I32 => rng.below(9) as f64 - 4.0,
            DType::U32 => f64::from(rng.bits() as u32),
            DType::U8 => rng.below(256) as f64,
            DType::Bool => rng.below(2) as f64,
        };
        let data: Vec<f64> = (0..ty.elements()).map(|_| element()).collect();
        (name.to_string(), Array::new(ty.dtype, ty.shape.sizes(), data).rounded(Precision::F32))
    });
    values.collect()
}

/// The bits of every output and update; all NaN are one.
fn bits(graph: &Graph, inputs: &Inputs) -> Vec<(String, Type, Vec<u64>)> {
    let found = evaluate(graph, &Bindings::new(), inputs, Precision::F32).unwrap();
    let of = |(name, array): (&std::sync::Arc<str>, &Array)| {
        let element = |x: &f64| if x.is_nan() { f64::NAN.to_bits() } else { x.to_bits() };
        (name.to_string(), array.ty(), array.data.iter().map(element).collect())
    };
    found.outputs.iter().map(of).chain(found.updates.iter().map(of)).collect()
}

fn check(graph: &Graph, inputs: &Inputs, stages: &[Stage]) -> Result<(), TestCaseError> {
    let before = bits(graph, inputs);
    let mut current = graph.clone();
    for stage in stages {
        let next = (stage.run)(&current).unwrap();
        verify(&next).unwrap();
        let after = bits(&next, inputs);
        let (from, to) = (print(&current), print(&next));
        prop_assert!(before == after, "{} changed a result\n{from}\n{to}\n{before:?}\n{after:?}", stage.name);
        current = next;
    }
    Ok(())
}

proptest! {
    #[test]
    fn no_stage_changes_a_bit(seed: u64, size in 1usize..60) {
        let graph = random_graph(seed, size);
        check(&graph, &inputs(&graph, &mut Rng::new(seed)), passes::ALGEBRA)?;
    }

    #[test]
    fn the_result_is_a_fixed_point(seed: u64, size in 1usize..60) {
        let once = passes::run(&random_graph(seed, size), passes::ALGEBRA, |_, _| {}).unwrap();
        let twice = passes::run(&once, passes::ALGEBRA, |_, _| {}).unwrap();
        prop_assert_eq!(print(&once), print(&twice));
    }
}

type Build = for<'g> fn(&'g Builder, Tensor<'g>) -> Tensor<'g>;

/// What the passes make of an expression of `x: f32[2, 3]`, one line for each node after the input.
fn simplest(build: Build) -> Vec<String> {
    let g = Builder::new();
    let x = g.input("x", Role::Data, Type::new(DType::F32, [2, 3]));
    g.output("y", build(&g, x));
    let graph = g.finish().unwrap();
    check(&graph, &inputs(&graph, &mut Rng::new(7)), passes::ALGEBRA).unwrap();
    let text = print(&passes::run(&graph, passes::ALGEBRA, |_, _| {}).unwrap());
    let body = text.lines().filter(|l| l.starts_with('%') && !l.contains("= input"));
    body.map(|l| l.split_once(" = ").unwrap().1.to_string()).collect()
}

#[test]
fn rules_fire_where_they_are_exact() {
    let cases: &[(&str, Build, &[&str])] = &[
        ("x + -0", |_, x| x + -0.0, &[]),
        ("x + 0", |_, x| x + 0.0, &["constant 0.0", "reshape %1", "broadcast %2", "add %0, %3"]),
        ("|x| + 0", |_, x| x.abs() + 0.0, &["abs %0"]),
        ("(x + 0) + 0", |_, x| x + 0.0 + 0.0, &["constant 0.0", "reshape %1", "broadcast %2", "add %0, %3"]),
        ("x - 0", |_, x| x - 0.0, &[]),
        ("1 * x / 1", |_, x| 1.0 * x / 1.0, &[]),
        ("x * 0", |_, x| x * 0.0, &["constant 0.0", "reshape %1", "broadcast %2", "mul %0, %3"]),
        ("n * 0", |_, x| (x.cast(DType::I32) * 0.0).cast(DType::F32), &["constant 0.0", "reshape %0", "broadcast %1"]),
        ("x * -1", |_, x| x * -1.0, &["neg %0"]),
        ("x / 8", |_, x| x / 8.0, &["constant 0.125", "reshape %1", "broadcast %2", "mul %0, %3"]),
        ("x / 3", |_, x| x / 3.0, &["constant 3.0", "reshape %1", "broadcast %2", "div %0, %3"]),
        ("-(-x)", |_, x| -(-x), &[]),
        ("|-x|", |_, x| (-x).abs(), &["abs %0"]),
        ("x + -exp(x)", |_, x| x + -x.exp(), &["exp %0", "sub %0, %1"]),
        ("x - -x", |_, x| x - -x, &["add %0, %0"]),
        ("x^1", |_, x| x.pow(1.0), &[]),
        ("bf16 and back is rounding", |_, x| x.cast(DType::BF16).cast(DType::F32), &["cast %0", "cast %1"]),
        ("bf16, f32 and bf16 again", |_, x| x.cast(DType::BF16).cast(DType::F32).cast(DType::BF16), &["cast %0"]),
        (
            "concat of what was bf16",
            |g, x| {
                let parts = [x, -x].map(|part| part.cast(DType::BF16));
                g.concat(&parts.map(|part| part.cast(DType::F32).transpose_last().reshape([6])), 0)
            },
            &[
                "neg %0",
                "cast %0",
                "cast %1",
                "transpose %2 {order: [1, 0]}",
                "reshape %4",
                "transpose %3 {order: [1, 0]}",
                "reshape %6",
                "concat %5, %7 {axis: 0}",
                "cast %8",
            ],
        ),
        ("select(true, x, y)", |g, x| g.full(1.0, DType::Bool, [2, 3]).select(x, -x), &[]),
        ("select(c, x, x)", |_, x| x.less(0.0).select(x, x), &[]),
        ("select(!c, x, y)", |_, x| (!x.less(x)).select(x, -x), &["less %0, %0", "neg %0", "select %1, %2, %0"]),
        ("reshape of reshape", |_, x| x.reshape([6]).reshape([3, 2]).reshape([2, 3]), &[]),
        ("transpose of transpose", |_, x| x.transpose_last().transpose_last(), &[]),
        ("transpose of a size of one", |_, x| x.reshape([2, 1, 3]).transpose(&[1, 0, 2]), &["reshape %0"]),
        ("slice of slice", |_, x| x.slice_step(1, 0, 2, 2).slice(1, 1, 1), &["slice %0 {axis: 1, start: 2, step: 2}"]),
        ("sum over one", |_, x| x.exp().reshape([1, 2, 3]).sum(&[0]), &["exp %0", "reshape %1"]),
        (
            "max over one",
            |_, x| x.slice(0, 0, 1).max_over(&[0, 1]),
            &["slice %0 {axis: 0, start: 0}", "reduce_max %1 {axes: [1]}"],
        ),
        ("argmax over one", |_, x| x.slice(0, 0, 1).argmax(0), &["constant 0.0", "reshape %0", "broadcast %1"]),
        ("arithmetic of constants", |g, _| g.scalar(2.0).sqrt() * g.scalar(3.0) + 1.0, &["constant 5.242640495300293"]),
        ("the same twice", |_, x| x.exp() * x.exp(), &["exp %0", "mul %1, %1"]),
        (
            "a mean of eight",
            |_, x| x.broadcast([4, 2, 3]).slice(2, 0, 1).mean(&[0, 1]),
            &[
                "reshape %0",
                "broadcast %1",
                "slice %2 {axis: 2, start: 0}",
                "reduce_sum %3 {axes: [0, 1]}",
                "constant 0.125",
                "reshape %5",
                "mul %4, %6",
            ],
        ),
    ];
    let failures: Vec<String> = cases
        .iter()
        .filter_map(|(name, build, expected)| {
            let found = simplest(*build);
            (found != *expected).then(|| format!("{name}\n  expected {expected:?}\n  found    {found:?}"))
        })
        .collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn equal_nodes_of_other_phases_and_inputs_stay() {
    use tenon_graph::graph::Phase;
    let g = Builder::new();
    let x = g.input("x", Role::Data, Type::new(DType::F32, [2]));
    let y = g.input("y", Role::Data, Type::new(DType::F32, [2]));
    g.output("forward", x.exp() + y.exp());
    g.set_phase(Phase::Backward);
    g.output("backward", x.exp());
    let graph = g.finish().unwrap();
    let after = passes::common::common(&graph).unwrap();
    assert_eq!(print(&after), print(&graph));
}

/// A chain of views as long as a graph may be must not exhaust the stack.
#[test]
fn long_chains_are_walked_without_recursion() {
    let g = Builder::new();
    let mut x = g.full(2.0, DType::F32, [2, 3]);
    for _ in 0..200_000 {
        x = x.transpose_last();
    }
    g.output("y", x.matmul(x, true, false));
    let graph = g.finish().unwrap();
    let simple = passes::simplify::simplify(&graph).unwrap();
    assert!(simple.node_count() < 10);
    passes::precision::mixed_bf16(&graph).unwrap();
}
