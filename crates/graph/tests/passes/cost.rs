//! Costs against work that is counted by hand or by brute force.

use proptest::prelude::*;
use tenon_graph::composite::attention::{ATTENTION, ATTENTION_GRADIENT};
use tenon_graph::composite::softmax::SOFTMAX;
use tenon_graph::composite::{Attr, Attrs};
use tenon_graph::cost::{Cost, cost, costs};
use tenon_graph::graph::Phase;
use tenon_graph::op::{Conv, Direction, Dot, Op, Role, Window};
use tenon_graph::passes::expand::expand_composites;
use tenon_graph::tensor::{Builder, Tensor};
use tenon_graph::testing::random_graph;
use tenon_graph::types::{DType, Shape, Type};

fn input<'g>(g: &'g Builder, name: &str, shape: &[usize]) -> Tensor<'g> {
    g.input(name, Role::Data, Type::new(DType::F32, shape))
}

fn cost_of(t: Tensor<'_>) -> Cost {
    let graph = t.builder().graph();
    cost(&graph, graph.producer(t.value()))
}

#[test]
fn products_and_traffic_are_counted() {
    let g = Builder::new();
    let (a, b) = (input(&g, "a", &[7, 3, 5]), input(&g, "b", &[7, 11, 3]));
    let dot = a.dot(b, Dot { transpose_a: true, transpose_b: true, dtype: DType::BF16 });
    let expected = Cost { flops: (2 * 7 * 3 * 5 * 11) as f64, read: 4 * (105 + 231), written: 2 * 7 * 5 * 11 };
    assert_eq!(cost_of(dot), expected);

    assert_eq!(cost_of(a + a), Cost { flops: 105.0, read: 840, written: 420 });
    assert_eq!(cost_of(a.exp()).flops, 105.0 * 12.0);
    assert_eq!(cost_of(a.sum(&[0, 2])), Cost { flops: 105.0, read: 420, written: 12 });
    assert_eq!(cost_of(a.reshape([105])), Cost::default());
    assert_eq!(cost_of(a.slice(0, 1, 2)), Cost { flops: 0.0, read: 120, written: 120 });

    let rows = g.iota(0, Type::new(DType::I32, [2]));
    assert_eq!(cost_of(a.gather_rows(rows)), Cost { flops: 0.0, read: 120 + 8, written: 120 });
    let row = a.slice(0, 0, 1);
    assert_eq!(cost_of(a.write(0, row, g.constant(3.0, DType::I32))), Cost { flops: 0.0, read: 64, written: 60 });
}

#[test]
fn the_three_maps_of_a_convolution_cost_the_same() {
    let g = Builder::new();
    let window = |size, stride, dilation| Window { size, stride, dilation, low: 1, high: 1 };
    let conv = |direction, result: Shape| Conv {
        direction,
        windows: [window(3, 2, 1), window(2, 1, 2)].into_iter().collect(),
        groups: 2,
        result,
        dtype: DType::F32,
    };
    let (x, w) = (input(&g, "x", &[2, 9, 8, 4]), input(&g, "w", &[6, 3, 2, 2]));
    let y = x.conv(w, conv(Direction::Forward, Shape::default()));
    let flops = (2 * 2 * 5 * 8 * 6 * (3 * 2 * 2)) as f64;
    assert_eq!(y.shape(), Shape::from([2, 5, 8, 6]));
    assert_eq!(cost_of(y).flops, flops);
    assert_eq!(cost_of(y.conv(w, conv(Direction::InputGradient, x.shape()))).flops, flops);
    assert_eq!(cost_of(y.conv(x, conv(Direction::WeightGradient, w.shape()))).flops, flops);
}

/// The pairs that an attention's definition makes visible, counted one by one.
fn pairs(t: usize, s: usize, causal: bool, window: usize) -> usize {
    let seen = |i: usize, j: usize| {
        let back = window == 0 || i < j + window;
        let forward = if causal { j <= i } else { window == 0 || j < i + window };
        back && forward
    };
    (0..t).map(|i| (0..s).filter(|j| seen(i, *j)).count()).sum()
}

proptest! {
    #[test]
    fn attention_counts_visible_pairs(t in 1usize..20, s in 1usize..20, causal: bool, window in 0usize..25) {
        let s = if causal { t } else { s };
        let (b, h, d) = (2, 6, 8);
        let g = Builder::new();
        let (q, k) = (input(&g, "q", &[b, t, h, d]), input(&g, "k", &[b, s, 3, d]));
        let attrs = Attrs::default().with("causal", causal).with("window", Attr::Int(window as i64));
        let out = g.composite(&ATTENTION, &[q, k, k], attrs.clone());
        let count = (b * h * pairs(t, s, causal, window)) as f64;
        prop_assert_eq!(cost_of(out[0]).flops, count * (4 * d + 16) as f64);
        prop_assert_eq!(cost_of(out[0]).written, 4 * (b * t * h * d + b * h * t) as u64);
        let gradient = g.composite(&ATTENTION_GRADIENT, &[q, k, k, out[0], out[1], q], attrs);
        prop_assert_eq!(cost_of(gradient[0]).flops, count * (10 * d + 16) as f64);
    }

    #[test]
    fn every_node_has_a_cost(seed: u64) {
        let graph = random_graph(seed, 60);
        let total = costs(&graph).total();
        prop_assert!(total.flops.is_finite() && total.flops >= 0.0);
        let views: u64 = graph.nodes().map(|n| cost(&graph, n).written).sum();
        prop_assert_eq!(total.written, views);
    }
}

#[test]
fn a_composite_costs_its_expansion_and_phases_are_apart() {
    let g = Builder::new();
    let x = input(&g, "x", &[4, 16]);
    g.output("forward", g.composite(&SOFTMAX, &[x], Attrs::default())[0]);
    g.set_phase(Phase::Backward);
    g.output("backward", x + x);
    g.set_phase(Phase::Update);
    g.update(x, x * x);
    let graph = g.finish().unwrap();
    let expanded = expand_composites(&graph, |_| true);
    assert!(!expanded.nodes().any(|n| matches!(expanded.node(n).op, Op::Composite(_))));
    assert_eq!(costs(&graph).forward.flops, costs(&expanded).forward.flops);
    assert_eq!(costs(&graph).forward.written, 4 * 64, "a composite is one program: its inner values stay inside");
    assert_eq!(costs(&graph).backward.flops, 64.0);
    assert_eq!(costs(&graph).update.flops, 64.0);
}
