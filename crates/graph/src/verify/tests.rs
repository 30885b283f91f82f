//! Graphs that are none, which only code inside this crate can make.

use std::sync::Arc;

use smallvec::{SmallVec, smallvec};

use super::verify;
use crate::composite::softmax::SOFTMAX;
use crate::composite::{Attrs, Composite, CompositeDef, CompositeGradient, Lowering};
use crate::elementwise::Unary;
use crate::graph::{Graph, Phase, SiteId, Value};
use crate::op::{Op, Reduce, ReduceOp, Role, Source};
use crate::types::{DType, Type};

fn vector(n: usize) -> Type {
    Type::new(DType::F32, [n])
}

fn push(graph: &mut Graph, op: Op, inputs: SmallVec<[Value; 4]>, ty: Type) -> Value {
    let node = graph.push(op, inputs, [ty], SiteId::new(0), Phase::Forward);
    graph.node(node).output()
}

fn input(graph: &mut Graph, name: &str, n: usize) -> Value {
    let source = Source::Input { name: name.into(), role: Role::Data, ty: vector(n) };
    push(graph, Op::Source(source), smallvec![], vector(n))
}

fn neg(graph: &mut Graph, inputs: &[Value], n: usize) {
    push(graph, Op::Unary(Unary::Neg), inputs.into(), vector(n));
}

static STRANGER: CompositeDef = CompositeDef {
    name: "softmax",
    doc: "",
    operands: &[],
    attrs: &[],
    results: 1,
    expand: |_, inputs, _| inputs.to_vec(),
    gradient: CompositeGradient::Expand,
    lowering: Lowering::Expand,
};

#[test]
fn what_is_broken_is_said() {
    type Break = fn(&mut Graph, Value);
    let cases: &[(&str, Break)] = &[
        ("operand %7 does not come before", |g, _| neg(g, &[Value::new(7)], 2)),
        ("operand %1 does not come before", |g, _| neg(g, &[Value::new(1)], 2)),
        ("its types are f32[3], and f32[2] follow", |g, x| neg(g, &[x], 3)),
        ("neg: takes 1 operands, not 2", |g, x| neg(g, &[x, x], 2)),
        ("axes [0, 0] do not ascend", |g, x| {
            let reduce = Reduce { op: ReduceOp::Sum, axes: smallvec![0, 0] };
            push(g, Op::Reduce(reduce), smallvec![x], vector(1));
        }),
        ("the composite is not registered", |g, x| {
            let composite = Composite { def: &STRANGER, attrs: Attrs::default() };
            push(g, Op::Composite(composite), smallvec![x], vector(2));
        }),
        ("settings are missing", |g, x| {
            let composite = Composite { def: &SOFTMAX, attrs: Attrs::default() };
            push(g, Op::Composite(composite), smallvec![x], vector(2));
        }),
        ("the name `x` is taken", |g, _| {
            input(g, "x", 2);
        }),
        ("two outputs are called `y`", |g, x| g.outputs = vec![("y".into(), x), (Arc::from("y"), x)]),
        ("output `y` is no value", |g, _| g.outputs.push(("y".into(), Value::new(9)))),
        ("an updated input is no value", |g, x| g.updates.push((Value::new(9), x))),
        ("an input's new value is no value", |g, x| g.updates.push((x, Value::new(9)))),
        ("%0 is updated a second time", |g, x| g.updates = vec![(x, x), (x, x)]),
        ("%1 is updated and is no input", |g, x| {
            let y = push(g, Op::Unary(Unary::Neg), smallvec![x], vector(2));
            g.updates.push((y, x));
        }),
        ("an input of type f32[2] cannot hold f32[3]", |g, x| {
            let y = input(g, "y", 3);
            g.updates.push((x, y));
        }),
    ];
    let mut good = Graph::default();
    let x = input(&mut good, "x", 2);
    let y = push(&mut good, Op::Unary(Unary::Neg), smallvec![x], vector(2));
    good.outputs.push(("y".into(), y));
    good.updates.push((x, y));
    assert_eq!(verify(&good), Ok(()));
    let failures: Vec<String> = cases
        .iter()
        .filter_map(|(expected, damage)| {
            let mut graph = Graph::default();
            let x = input(&mut graph, "x", 2);
            damage(&mut graph, x);
            let found = verify(&graph);
            let said = found.as_ref().is_err_and(|message| message.contains(expected));
            (!said).then(|| format!("expected {expected}, found {found:?}"))
        })
        .collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
