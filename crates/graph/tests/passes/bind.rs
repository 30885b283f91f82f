//! Binding: named sizes become numbers, and what does not fit is said.

use tenon_graph::diagnostic::Site;
use tenon_graph::dim::{Bindings, Dim, Symbol};
use tenon_graph::graph::{Graph, Phase};
use tenon_graph::op::{Op, Role, Source};
use tenon_graph::passes::bind::bind;
use tenon_graph::tensor::Builder;
use tenon_graph::types::{DType, Type};

fn dim(name: &str) -> Dim {
    Dim::symbol(Symbol::new(name).unwrap())
}

fn bindings(of: &[(&str, usize)]) -> Bindings {
    of.iter().map(|(name, n)| (Symbol::new(name).unwrap(), *n)).collect()
}

/// The mean of a window of `[b, t, 4]`, and an unused input.
fn graph() -> Graph {
    let g = Builder::new();
    g.input("unused", Role::Data, Type::new(DType::F32, [dim("z")]));
    let x = g.input("x", Role::Data, Type::new(DType::F32, [dim("b"), dim("t"), 4.into()]));
    g.set_site(&Site { file: "my.star".into(), line: 7, column: 3, length: 5, path: "h.0".into() });
    g.set_phase(Phase::Backward);
    let flat = x.slice(1, 2, 3).reshape([dim("b").times(12.into()).unwrap()]);
    g.output("mean", flat.mean(&[0]));
    g.update(x, x + x);
    g.finish().unwrap()
}

#[test]
fn sizes_become_numbers() {
    let bound = bind(&graph(), &bindings(&[("b", 2), ("t", 5)])).unwrap();
    let x = bound.input("x").unwrap();
    assert_eq!(bound.ty(x).to_string(), "f32[2, 5, 4]");
    assert!(bound.input("unused").is_none(), "what nothing depends on goes, with its unbound symbol");
    let mean = bound.output("mean").unwrap();
    let node = bound.node(bound.producer(mean));
    assert_eq!(node.phase, Phase::Backward);
    assert_eq!(bound.site(bound.producer(mean)).to_string(), "my.star:7:3");
    let sizes: Vec<f64> = bound
        .nodes()
        .filter_map(|n| match bound.node(n).op {
            Op::Source(Source::Constant { value, .. }) => Some(value),
            _ => None,
        })
        .collect();
    assert_eq!(sizes, [24.0], "the number of elements is a constant now");
    assert_eq!(bound.updates.len(), 1);
    assert_eq!(bound.updates[0].0, x);
}

#[test]
fn what_does_not_fit_is_said() {
    let says = |of: &[(&str, usize)]| bind(&graph(), &bindings(of)).unwrap_err().to_string();
    assert_eq!(
        says(&[("b", 2)]),
        "the size `t` has no value\n  f32[b, t, 4] data x\n  try: give it one when binding the graph"
    );
    assert_eq!(says(&[("b", 0), ("t", 5)]), "the size `b` is 0\n  f32[b, t, 4] data x\n  try: sizes are at least 1");
    let short = says(&[("b", 2), ("t", 4)]);
    assert!(short.starts_with("slice: 3 elements from 2 on, 1 apart, of 4 along axis 1 of [2, 4, 4]"), "{short}");
    assert!(short.contains("my.star:7:3, in h.0"), "{short}");
    let huge = says(&[("b", usize::MAX / 4), ("t", 5)]);
    assert!(huge.contains("overflows"), "{huge}");
    assert!(says(&[("b", 1 << 50), ("t", 5)]).contains("too large for any machine"));
}
