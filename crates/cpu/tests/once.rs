//! What depends on weights alone is computed once, and again as soon as the weights or its memory may have changed.

mod session_support;

use session_support::{BACKENDS, encode, random_inputs, results, session, set_inputs};
use tenon_graph::graph::{Graph, Phase};
use tenon_graph::lower::Program;
use tenon_graph::op::{Conv, Direction, Op, Role, Window};
use tenon_graph::passes::pipeline::{Options, compile};
use tenon_graph::reference::Inputs;
use tenon_graph::tensor::Builder;
use tenon_graph::types::{DType, Shape, Type};

/// Two convolutions on weights that are stored as PyTorch has them, one depthwise, a norm with running statistics and a
/// product; with a step of its gradient if `train`.
fn model(train: bool) -> Graph {
    let b = Builder::new();
    let input = |name: &str, role, shape: &[usize]| b.input(name, role, Type::new(DType::F32, shape));
    let x = input("x", Role::Data, &[2, 6, 5, 3]);
    let weight = input("weight", Role::Parameter, &[40, 3, 3, 3]).transpose(&[0, 2, 3, 1]);
    let depthwise = input("depthwise", Role::Parameter, &[40, 1, 3, 3]).transpose(&[0, 2, 3, 1]);
    let point = input("point", Role::Parameter, &[7, 40, 1, 1]).transpose(&[0, 2, 3, 1]);
    let (variance, scale) = (input("variance", Role::State, &[40]), input("scale", Role::Parameter, &[40]));
    let head = input("head", Role::Parameter, &[7, 2]);
    let window = Window { size: 3, stride: 1, dilation: 1, low: 1, high: 1 };
    let plain = Window { size: 1, stride: 1, dilation: 1, low: 0, high: 0 };
    let conv = |window: Window, groups| Conv {
        windows: [window; 2].into_iter().collect(),
        groups,
        direction: Direction::Forward,
        result: Shape::scalar(),
        dtype: DType::F32,
    };
    let y = x.conv(weight, conv(window, 1)) * ((variance.abs() + 1e-5).rsqrt() * scale);
    let y = y.conv(depthwise, conv(window, 40)).conv(point, conv(plain, 1));
    let logits = y.mean(&[1, 2]).reshape([2, 7]).matmul(head, false, false);
    b.output("logits", logits);
    if train {
        b.set_phase(Phase::Backward);
        let gradient = tenon_graph::autodiff::gradients(logits.sum_all(), &[scale])[0];
        b.update(scale, scale - gradient);
    }
    b.finish().expect("well typed")
}

fn program(train: bool, bf16: bool) -> Program {
    compile(&model(train), &Options { bf16, ..Options::default() }).expect("sizes are numbers")
}

#[test]
fn what_is_computed_once_follows_the_weights() {
    for bf16 in [false, true] {
        let program = program(false, bf16);
        let graph = &program.graph;
        let (first, second) = (random_inputs(graph, 1), random_inputs(graph, 2));
        for (name, backend) in BACKENDS.iter() {
            let expected = |inputs: &Inputs| {
                let mut fresh = session(backend, &program);
                set_inputs(&mut *fresh, graph, inputs);
                fresh.run(0).expect("a run");
                results(&*fresh, graph)
            };
            let mut kept = session(backend, &program);
            set_inputs(&mut *kept, graph, &first);
            kept.run(0).expect("a run");
            let mut inputs = first.clone();
            // One input after the other changes, and each time somebody else has used the memory or not.
            for (i, (input, value)) in second.iter().enumerate() {
                kept.input_mut(input).expect("an input").copy_from_slice(&encode(value));
                inputs.insert(input.clone(), value.clone());
                if i % 2 == 1 {
                    kept.run(1).expect("constants");
                }
                for _ in 0..2 {
                    kept.run(0).expect("a run");
                    assert!(results(&*kept, graph) == expected(&inputs), "{input} changed, {name}, bf16 {bf16}");
                }
            }
        }
    }
}

#[test]
fn weights_are_kept_where_the_program_leaves_them_alone() {
    let is_copy = |program: &Program, step: usize| {
        program.steps[step].nodes.iter().any(|n| matches!(program.graph.node(*n).op, Op::View(_)))
    };
    let evaluation = program(false, false);
    assert!(evaluation.once > 0 && (0..evaluation.once).any(|step| is_copy(&evaluation, step)));
    let left = evaluation.once..evaluation.steps.len();
    assert!(!left.into_iter().any(|step| is_copy(&evaluation, step)), "a weight is copied in every run");
    assert_eq!(program(true, false).once, 0);
}
