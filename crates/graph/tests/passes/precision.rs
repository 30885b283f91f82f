//! Mixed precision: which values are bf16, that each is converted once, and what it costs in accuracy.

use std::collections::HashMap;

use super::model::{gpt, symbol, values};
use tenon_graph::autodiff::gradients;
use tenon_graph::dim::Bindings;
use tenon_graph::graph::{Graph, Phase, Value};
use tenon_graph::op::{Conv, Direction, Op, Role, Source, Window};
use tenon_graph::passes::bind::bind;
use tenon_graph::passes::mode::for_training;
use tenon_graph::passes::precision::mixed_bf16;
use tenon_graph::passes::{self, ALGEBRA};
use tenon_graph::reference::{Precision, evaluate};
use tenon_graph::tensor::Builder;
use tenon_graph::text::print;
use tenon_graph::types::{DType, Type};
use tenon_graph::verify::verify;

fn mixed() -> Graph {
    let training = for_training(&gpt(1, true, true)).unwrap();
    let mixed = mixed_bf16(&training).unwrap();
    verify(&mixed).unwrap();
    mixed
}

/// Compares with `tests/golden/<name>.txt`, or writes it where `BLESS=1`.
fn golden(name: &str, text: &str) {
    let path = format!("{}/tests/golden/{name}.txt", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("BLESS").is_some_and(|v| v == "1") {
        std::fs::write(&path, text).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    for (i, (found, expected)) in text.lines().zip(expected.lines()).enumerate() {
        assert_eq!(found, expected, "{path}:{}: differs; BLESS=1 accepts the change", i + 1);
    }
    assert_eq!(text.lines().count(), expected.lines().count(), "{path}: BLESS=1 accepts the change");
}

#[test]
fn a_training_step_in_text() {
    golden("mixed_bf16", &print(&passes::run(&mixed(), ALGEBRA, |_, _| {}).unwrap()));
}

/// Whether a value is a parameter, or a view of one.
fn is_master(graph: &Graph, mut value: Value) -> bool {
    while let Op::View(_) = graph.op_of(value) {
        value = graph.node(graph.producer(value)).inputs[0];
    }
    matches!(graph.op_of(value), Op::Source(Source::Input { role: Role::Parameter, .. }))
}

#[test]
fn products_are_bf16_and_nothing_else() {
    let graph = passes::run(&mixed(), ALGEBRA, |_, _| {}).unwrap();
    let mut last_gradients = 0;
    for node in graph.nodes() {
        let data = graph.node(node);
        let dtype = |v: &Value| graph.ty(*v).dtype;
        match &data.op {
            Op::Dot(dot) => {
                let [left, right] = [data.inputs[0], data.inputs[1]];
                assert_eq!(dtype(&left), DType::BF16);
                assert_eq!(dtype(&right) == DType::F32, is_master(&graph, right), "{}", print(&graph));
                last_gradients += usize::from(dot.dtype == DType::F32);
                assert!(dot.dtype == DType::BF16 || data.phase == Phase::Backward);
            }
            Op::Composite(c) if c.def.name.starts_with("attention") => {
                assert!(data.inputs[..3].iter().all(|v| dtype(v) == DType::BF16));
            }
            Op::View(_) | Op::Cast(_) => {}
            _ => assert!(data.inputs.iter().all(|v| dtype(v) != DType::BF16), "{} reads bf16", data.op.name()),
        }
    }
    assert_eq!(
        last_gradients, 6,
        "c_attn, c_proj, c_fc, c_proj and wte, and what flows from c_attn into the embedding"
    );
    for (input, new) in &graph.updates {
        assert_eq!((graph.ty(*input).dtype, graph.ty(*new).dtype), (DType::F32, DType::F32));
    }
    assert_eq!(graph.ty(graph.output("loss").unwrap()).dtype, DType::F32);
}

#[test]
fn each_value_is_converted_once() {
    let graph = mixed();
    let mut casts: HashMap<Value, usize> = HashMap::new();
    for node in graph.nodes() {
        if graph.node(node).op == Op::Cast(DType::BF16) {
            *casts.entry(graph.node(node).inputs[0]).or_default() += 1;
        }
    }
    assert!(casts.values().all(|n| *n == 1), "{}", print(&graph));
    assert!(casts.keys().all(|v| !is_master(&graph, *v)), "products round masters as they read them");
}

#[test]
fn a_second_conversion_changes_nothing() {
    let once = passes::run(&mixed(), ALGEBRA, |_, _| {}).unwrap();
    let twice = passes::run(&mixed_bf16(&once).unwrap(), ALGEBRA, |_, _| {}).unwrap();
    assert_eq!(print(&once), print(&twice));
}

#[test]
fn the_step_is_nearly_that_of_f32() {
    let training = for_training(&gpt(1, true, true)).unwrap();
    let sizes: Bindings = [(symbol("b"), 2), (symbol("t"), 6)].into();
    let inputs = values(&bind(&training, &sizes).unwrap(), 3);
    let run = |graph: &Graph| evaluate(graph, &sizes, &inputs, Precision::F32).unwrap();
    let (exact, narrow) = (run(&training), run(&mixed()));
    for (name, before) in inputs.iter().filter(|(name, _)| exact.updates.contains_key(name.as_str())) {
        let gradient = |e: &tenon_graph::reference::Evaluation| -> Vec<f64> {
            e.updates[name.as_str()].data.iter().zip(&before.data).map(|(new, old)| (old - new) / 0.1).collect()
        };
        let (a, b) = (gradient(&exact), gradient(&narrow));
        let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|v| v * v).sum::<f64>().sqrt();
        let error = norm(&mut a.iter().zip(&b).map(|(a, b)| a - b)) / (norm(&mut a.iter().copied()) + 1e-6);
        assert!(error > 0.0 && error < 0.05, "{name}: {error}");
    }
    let (a, b) = (exact.outputs["loss"].data[0], narrow.outputs["loss"].data[0]);
    assert!(a != b && (a - b).abs() < 0.01 * a, "{a} {b}");
}

/// The model may be converted before its gradients are taken just as well.
#[test]
fn gradients_of_a_converted_model_are_f32_for_its_parameters() {
    let model = mixed_bf16(&for_training(&gpt(1, true, false)).unwrap()).unwrap();
    let (logits, parameters) = (model.output("logits").unwrap(), model.inputs().filter(|i| i.2 == Role::Parameter));
    let parameters: Vec<Value> = parameters.map(|(value, ..)| value).collect();
    let b = Builder::extend(model);
    let wrt: Vec<_> = parameters.iter().map(|v| b.tensor(*v)).collect();
    for (i, gradient) in gradients(b.tensor(logits).exp().sum_all(), &wrt).into_iter().enumerate() {
        b.output(&format!("d{i}"), gradient);
    }
    let graph = passes::run(&b.finish().unwrap(), ALGEBRA, |_, _| {}).unwrap();
    let products: Vec<DType> = graph
        .nodes()
        .filter(|n| graph.node(*n).phase == Phase::Backward)
        .filter_map(|n| match &graph.node(n).op {
            Op::Dot(dot) => Some(dot.dtype),
            _ => None,
        })
        .collect();
    let count = |dtype| products.iter().filter(|d| **d == dtype).count();
    assert_eq!((count(DType::F32), count(DType::BF16)), (5, 5), "one for each weight, one for what it was applied to");
    assert!(graph.outputs.iter().all(|(_, v)| graph.ty(*v).dtype == DType::F32));
}

/// An image model keeps what its convolutions read in bf16 only: other readers see the rounded values.
#[test]
fn what_a_convolution_reads_is_rounded_for_all() {
    let b = Builder::new();
    let x = b.input("x", Role::Data, Type::new(DType::F32, [1, 2, 2, 3]));
    let w = b.input("w", Role::Parameter, Type::new(DType::F32, [3, 1, 1, 3]));
    let image = x.tanh();
    let window = Window { size: 1, stride: 1, dilation: 1, low: 0, high: 0 };
    let conv = Conv {
        direction: Direction::Forward,
        windows: [window; 2].into(),
        groups: 1,
        result: Default::default(),
        dtype: DType::F32,
    };
    b.output("y", image.conv(w, conv).tanh() + image);
    b.output("image", image);
    let graph = mixed_bf16(&b.finish().unwrap()).unwrap();
    verify(&graph).unwrap();
    let made = graph.node(graph.producer(graph.output("image").unwrap()));
    assert_eq!(made.op, Op::Cast(DType::F32));
    let rounded = made.inputs[0];
    let of_conv = graph.nodes().map(|n| graph.node(n)).find(|d| matches!(d.op, Op::Conv(_))).unwrap();
    assert_eq!(of_conv.inputs[0], rounded);
    assert_eq!(graph.ty(rounded).dtype, DType::BF16);
}
