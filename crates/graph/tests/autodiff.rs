//! What the gradient transformation promises beyond numbers: places, phases, element types, errors, named sizes.

use tenon_graph::autodiff::gradients;
use tenon_graph::composite::{Attrs, composite};
use tenon_graph::diagnostic::Site;
use tenon_graph::dim::{Bindings, Dim, Symbol};
use tenon_graph::graph::Phase;
use tenon_graph::op::{Dot, Op, Role, View};
use tenon_graph::passes::expand::expand_composites;
use tenon_graph::reference::{Array, Inputs, Precision, evaluate};
use tenon_graph::tensor::{Builder, Tensor};
use tenon_graph::types::{DType, Type};

fn input<'g, const N: usize>(b: &'g Builder, name: &str, role: Role, dtype: DType, shape: [usize; N]) -> Tensor<'g> {
    b.input(name, role, Type::new(dtype, shape))
}

fn data<'g, const N: usize>(b: &'g Builder, name: &str, shape: [usize; N]) -> Tensor<'g> {
    input(b, name, Role::Data, DType::F32, shape)
}

#[test]
fn gradients_come_with_the_phase_and_the_place_of_what_they_belong_to() {
    let b = Builder::new();
    let line = |line| Site { file: "m.star".into(), line, ..Site::default() };
    b.set_site(&line(1));
    let x = data(&b, "x", [3]);
    b.set_site(&line(2));
    let y = x.exp();
    b.set_site(&line(3));
    let loss = (y * y).sum_all();
    let forward = b.graph().node_count();
    let dx = gradients(loss, &[x])[0];
    assert_eq!(b.phase(), Phase::Forward);
    assert_eq!(b.graph().site_at(b.site_id()).line, 3, "the builder goes on where it was");
    let graph = b.graph();
    for node in graph.nodes().skip(forward) {
        assert_eq!(graph.node(node).phase, Phase::Backward);
        assert!(matches!(graph.site(node).line, 2 | 3), "{:?}", graph.node(node).op);
    }
    assert_eq!(graph.site(graph.producer(dx.value())).line, 2);
}

#[test]
fn what_the_loss_does_not_depend_on_has_gradient_zero() {
    let b = Builder::new();
    let (x, other) = (data(&b, "x", [2]), data(&b, "other", [2, 3]));
    let through_integers = data(&b, "rounded", [2]);
    let loss = (x * through_integers.cast(DType::I32).cast(DType::F32)).sum_all();
    let found = gradients(loss, &[x, other, through_integers, loss]);
    for (i, shape) in [(0, "[2]"), (1, "[2, 3]"), (2, "[2]"), (3, "[]")] {
        b.output(&format!("{i}"), found[i]);
        assert_eq!(found[i].shape().to_string(), shape);
    }
    let graph = b.finish().unwrap();
    let two = || Array::new(DType::F32, [2], [1.5, 2.5]);
    let inputs: Inputs = [("x".to_string(), two()), ("rounded".to_string(), two())].into();
    let found = evaluate(&graph, &Bindings::new(), &inputs, Precision::F64).unwrap().outputs;
    assert_eq!(found["0"].data, [1.0, 2.0]);
    assert_eq!(found["1"].data, [0.0; 6]);
    assert_eq!(found["2"].data, [0.0; 2]);
    assert_eq!(found["3"].data, [1.0]);
}

#[test]
fn a_loss_that_is_no_float_scalar_is_an_error() {
    let b = Builder::new();
    let x = data(&b, "x", [3]);
    gradients(x.exp(), &[x]);
    gradients(x.argmax(0).reshape([] as [usize; 0]), &[x]);
    gradients(x.sum_all(), &[x.argmax(0)]);
    let messages: Vec<String> = b.take_errors().into_iter().map(|e| e.message).collect();
    assert_eq!(messages[0], "gradient: the loss is f32[3], not a float scalar");
    assert_eq!(messages[1], "gradient: the loss is i32[], not a float scalar");
    assert_eq!(messages[2], "gradient: i32[1] has none");
    assert_eq!(messages.len(), 3);
}

/// Mixed precision: the products of converted parameters give `f32` gradients, everything else its own type, and no
/// gradient of a product needs its operands transposed.
#[test]
fn products_give_wide_gradients_to_parameters_without_transpositions() {
    let (f32, bf16) = (DType::F32, DType::BF16);
    for (transpose_a, transpose_b) in [(false, false), (false, true), (true, false), (true, true)] {
        let b = Builder::new();
        let x = input(&b, "x", Role::Data, bf16, if transpose_a { [3, 2] } else { [2, 3] });
        let weight = input(&b, "weight", Role::Parameter, f32, if transpose_b { [4, 3] } else { [3, 4] });
        let h = x * 2.0;
        let y = h.dot(weight.cast(bf16), Dot { transpose_a, transpose_b, dtype: bf16 });
        let forward = b.graph().node_count();
        let found = gradients(y.cast(f32).sum_all(), &[x, weight]);
        assert_eq!(found.iter().map(|t| t.dtype()).collect::<Vec<_>>(), [bf16, f32]);
        let graph = b.graph();
        let (mut products, mut transpositions) = (Vec::new(), 0);
        for node in graph.nodes().skip(forward) {
            match &graph.node(node).op {
                Op::Dot(dot) => products.push(dot.dtype),
                Op::View(View::Transpose(_)) => transpositions += 1,
                _ => {}
            }
        }
        assert_eq!((products, transpositions), (vec![bf16, f32], 0));
        assert!(matches!(graph.op_of(found[1].value()), Op::Dot(_)), "straight into f32, not through bf16");
    }
}

#[test]
fn gradients_of_slices_are_put_side_by_side_where_they_fit_and_added_where_not() {
    // Starts and sizes along an axis of 5, in the order of use; whether they make it up.
    let cases: [(&[(usize, usize)], bool); 5] = [
        (&[(0, 2), (2, 3)], true),
        (&[(3, 2), (0, 1), (1, 2)], true),
        (&[(0, 2), (3, 2)], false),
        (&[(0, 3), (2, 3)], false),
        (&[(1, 2)], false),
    ];
    for (slices, fit) in cases {
        for (before, after) in [(0.0, 0.0), (100.0, 0.0), (0.0, 100.0)] {
            let b = Builder::new();
            let x = data(&b, "x", [2, 5]);
            let mut expected = [before + after; 5];
            let mut loss = (x * before).sum_all();
            for (i, (start, size)) in slices.iter().enumerate() {
                let factor = (i + 1) as f64;
                loss = loss + (x.slice(1, *start, *size) * factor).sum_all();
                expected[*start..start + size].iter_mut().for_each(|e| *e += factor);
            }
            if after != 0.0 {
                loss = loss + (x * after).sum_all();
            }
            b.output("dx", gradients(loss, &[x])[0]);
            let graph = b.finish().unwrap();
            let x = Array::new(DType::F32, [2, 5], [1.0; 10]);
            let found = evaluate(&graph, &Bindings::new(), &[("x".to_string(), x)].into(), Precision::F64).unwrap();
            assert_eq!(found.outputs["dx"].data, [expected, expected].concat(), "{slices:?}");
            let pads = graph.nodes().filter(|n| matches!(graph.node(*n).op, Op::View(View::Pad { .. })));
            assert_eq!(pads.count() == 0, fit && after == 0.0, "{slices:?}");
        }
    }
}

fn symbol(name: &str) -> (Symbol, Dim) {
    let symbol = Symbol::new(name).unwrap();
    (symbol, Dim::symbol(symbol))
}

/// A small model with named sizes: one graph, gradients included, bound to two sizes; and a loss that falls along minus
/// the gradient.
#[test]
fn gradients_of_a_model_with_named_sizes() {
    let ((b_symbol, n), (t_symbol, t)) = (symbol("b"), symbol("t"));
    let b = Builder::new();
    let none = Attrs::default;
    let ids = b.input("ids", Role::Data, Type::new(DType::I32, [n, t]));
    let labels = b.input("labels", Role::Data, Type::new(DType::I32, [n, t]));
    let words = input(&b, "words", Role::Parameter, DType::F32, [7, 4]);
    let weight = input(&b, "weight", Role::Parameter, DType::F32, [4]);
    let x = words.gather_rows(ids);
    let x = b.composite(composite("rms_norm").unwrap(), &[x, weight], none())[0];
    let heads = x.reshape([n, t, 2.into(), 2.into()]);
    let positions = b.iota(0, Type::new(DType::I32, [t]));
    let turned = b.composite(composite("rope").unwrap(), &[heads, positions], none())[0];
    let causal = none().with("causal", true);
    let mixed = b.composite(composite("attention").unwrap(), &[turned, turned, heads], causal)[0];
    let rows = mixed.reshape([n.times(t).unwrap(), 4.into()]);
    let logits = rows.matmul(words, false, true).reshape([n, t, 7.into()]);
    let losses = b.composite(composite("cross_entropy").unwrap(), &[logits, labels], none())[0];
    let loss = losses.mean(&[0, 1]).reshape([] as [usize; 0]);
    let found = gradients(loss, &[words, weight]);
    b.output("loss", loss);
    b.output("words", found[0]);
    b.output("weight", found[1]);
    let graph = b.finish().unwrap();

    for (batch, length) in [(1, 1), (2, 5)] {
        let bindings = Bindings::from([(b_symbol, batch), (t_symbol, length)]);
        let tokens = |seed: usize| {
            let data: Vec<f64> = (0..batch * length).map(|i| ((i * 5 + seed) % 7) as f64).collect();
            Array::new(DType::I32, [batch, length], data)
        };
        let values: Vec<f64> = (0..28).map(|i| ((i * 11 % 13) as f64 - 6.0) / 5.0).collect();
        let mut inputs: Inputs = [
            ("ids".to_string(), tokens(1)),
            ("labels".to_string(), tokens(3)),
            ("words".to_string(), Array::new(DType::F32, [7, 4], values)),
            ("weight".to_string(), Array::new(DType::F32, [4], [1.0, 0.5, 1.5, 2.0])),
        ]
        .into();
        let before = evaluate(&graph, &bindings, &inputs, Precision::F64).unwrap().outputs;
        let step = 1e-6;
        let mut squared = 0.0;
        for name in ["words", "weight"] {
            let gradient = &before[name].data;
            squared += gradient.iter().map(|g| g * g).sum::<f64>();
            let parameter = &mut inputs.get_mut(name).unwrap().data;
            parameter.iter_mut().zip(gradient).for_each(|(p, g)| *p -= step * g);
        }
        let after = evaluate(&graph, &bindings, &inputs, Precision::F64).unwrap().outputs;
        let fall = (before["loss"].data[0] - after["loss"].data[0]) / step;
        assert!((fall / squared - 1.0).abs() < 1e-4, "the loss falls by {fall}, the gradient says {squared}");
    }
}

#[test]
fn expansion_keeps_outputs_updates_places_and_phases() {
    let b = Builder::new();
    b.set_site(&Site { file: "m.star".into(), line: 7, ..Site::default() });
    let x = data(&b, "x", [4, 3]);
    let vector = |name, role| input(&b, name, role, DType::F32, [3]);
    let (weight, bias) = (vector("weight", Role::Parameter), vector("bias", Role::Parameter));
    let (mean, variance) = (vector("mean", Role::State), vector("variance", Role::State));
    let operands = [x, weight, bias, mean, variance];
    let y = b.composite(composite("batch_norm").unwrap(), &operands, Attrs::default()).to_vec();
    let y0 = b.composite(composite("gelu").unwrap(), &y[..1], Attrs::default())[0];
    b.update(mean, y[1]);
    b.update(variance, y[2]);
    let loss = y0.sum_all();
    b.output("loss", loss);
    b.output("dx", gradients(loss, &[x])[0]);
    let graph = b.finish().unwrap();

    let expanded = expand_composites(&graph, |c| c.def.name == "batch_norm");
    let composites: Vec<&str> = expanded
        .nodes()
        .filter_map(|n| match &expanded.node(n).op {
            Op::Composite(c) => Some(c.def.name),
            _ => None,
        })
        .collect();
    assert_eq!(composites, ["gelu"], "the gradients are rules, not composites");
    assert!(expanded.nodes().all(|n| expanded.site(n).line == 7));
    let phases = |phase| expanded.nodes().filter(|n| expanded.node(*n).phase == phase).count();
    assert!(phases(Phase::Forward) > 10 && phases(Phase::Backward) > 10);
    let names: Vec<&str> = expanded.outputs.iter().map(|(n, _)| &**n).collect();
    assert_eq!(names, ["loss", "dx"]);
    let updated: Vec<bool> =
        expanded.updates.iter().map(|(input, _)| matches!(expanded.op_of(*input), Op::Source(_))).collect();
    assert_eq!(updated, [true, true]);
}
