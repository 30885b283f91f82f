//! What each node costs: floating-point operations, bytes read and bytes written.
//!
//! Costs are of nodes alone: a value that a fused program keeps in registers is counted here as written and read. They
//! serve to tell where the work is and to estimate time, not to tell memory, which the plan knows.

use std::iter::Sum;
use std::ops::Add;

use crate::composite::attention::{ATTENTION, ATTENTION_GRADIENT};
use crate::composite::experts::{EXPERT_MATMUL, EXPERT_OUTER};
use crate::composite::{Attrs, Composite};
use crate::elementwise::Unary;
use crate::graph::{Graph, Node, Phase};
use crate::op::{Conv, Direction, Gather, Op, ReduceOp, Role, Scatter, Source, View, Window};
use crate::tensor::Builder;
use crate::types::Type;

/// Operations that the counter-based generator takes for each `u32`, integer ones: ten rounds of four.
const RANDOM_OPERATIONS: f64 = 40.0;

/// Work and traffic.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Cost {
    /// Floating-point operations; a multiplication and an addition are two.
    pub flops: f64,
    /// Bytes read.
    pub read: u64,
    /// Bytes written.
    pub written: u64,
}

impl Add for Cost {
    type Output = Cost;
    fn add(self, other: Cost) -> Cost {
        Cost {
            flops: self.flops + other.flops,
            read: self.read.saturating_add(other.read),
            written: self.written.saturating_add(other.written),
        }
    }
}

impl Sum for Cost {
    fn sum<I: Iterator<Item = Cost>>(costs: I) -> Cost {
        costs.fold(Cost::default(), Add::add)
    }
}

/// The costs of a graph by phase.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Costs {
    /// The model and its loss.
    pub forward: Cost,
    /// The gradients.
    pub backward: Cost,
    /// The optimizer.
    pub update: Cost,
}

impl Costs {
    /// All phases together.
    pub fn total(&self) -> Cost {
        self.forward + self.backward + self.update
    }
}

/// The costs of a bound graph.
pub fn costs(graph: &Graph) -> Costs {
    let mut costs = Costs::default();
    for node in graph.nodes() {
        let phase = match graph.node(node).phase {
            Phase::Forward => &mut costs.forward,
            Phase::Backward => &mut costs.backward,
            Phase::Update => &mut costs.update,
        };
        *phase = *phase + cost(graph, node);
    }
    costs
}

/// The cost of a node of a bound graph.
pub fn cost(graph: &Graph, node: Node) -> Cost {
    let data = graph.node(node);
    let operands: Vec<&Type> = data.inputs.iter().map(|v| graph.ty(*v)).collect();
    let results: Vec<&Type> = data.outputs().map(|v| graph.ty(v)).collect();
    let bytes = |types: &[&Type]| types.iter().map(|ty| ty.bytes() as u64).sum::<u64>();
    let whole = |flops: f64| Cost { flops, read: bytes(&operands), written: bytes(&results) };
    let elements = |ty: &Type| ty.elements() as f64;
    match &data.op {
        // Inputs lie in memory already; constants and sizes are part of the program.
        Op::Source(Source::Input { .. } | Source::Constant { .. } | Source::Size(_)) => Cost::default(),
        Op::Source(Source::Iota { .. }) => whole(0.0),
        Op::Unary(op) => whole(f64::from(op.def().flops) * elements(results[0])),
        Op::Binary(op) => whole(f64::from(op.def().flops) * elements(results[0])),
        Op::Select | Op::Cast(_) => whole(elements(results[0])),
        Op::Reduce(reduce) => match reduce.op {
            ReduceOp::Sum | ReduceOp::Max | ReduceOp::ArgMax => whole(elements(operands[0])),
        },
        Op::View(view) => match view {
            View::Reshape(_) => Cost::default(),
            View::Slice { .. } => Cost { read: bytes(&results), ..whole(0.0) },
            View::Transpose(_) | View::Broadcast(_) | View::Pad { .. } | View::Concat(_) => whole(0.0),
        },
        Op::Dot(dot) => {
            let shape = &operands[0].shape;
            let inner = shape[shape.rank() - if dot.transpose_a { 2 } else { 1 }].as_const().expect("bound");
            whole(2.0 * inner as f64 * elements(results[0]))
        }
        Op::Conv(conv) => whole(2.0 * multiplications(conv, &operands, results[0])),
        Op::Pool(pool) => {
            // The value of one element per window: the result, or its gradient.
            let windows = if pool.direction == Direction::Forward { results[0] } else { operands[1] };
            whole(elements(windows) * window_elements(&pool.windows))
        }
        Op::Gather(gather) => match gather {
            Gather::Rows | Gather::Along(_) => Cost { read: bytes(&results) + bytes(&operands[1..]), ..whole(0.0) },
        },
        Op::Scatter(scatter) => match scatter {
            Scatter::AddRows(_) if operands.len() == 3 => {
                // Only the rows of the indices are touched.
                let updates = operands[1].bytes() as u64;
                Cost { flops: elements(operands[1]), read: bytes(&operands[..2]) + updates, written: updates }
            }
            Scatter::AddRows(_) | Scatter::AddAlong { .. } => whole(elements(operands[1])),
            // The operand's buffer is the result's.
            Scatter::Write(_) => Cost { flops: 0.0, read: bytes(&operands[1..]), written: operands[1].bytes() as u64 },
        },
        Op::Sort(sort) => {
            let n = operands[0].shape[sort.axis].as_const().expect("bound");
            whole(elements(operands[0]) * (n.max(1) as f64).log2().ceil())
        }
        Op::Random(_) => whole(RANDOM_OPERATIONS * elements(results[0])),
        Op::Composite(composite) => whole(composite_flops(composite, &operands)),
    }
}

fn window_elements(windows: &[Window]) -> f64 {
    windows.iter().map(|w| w.size as f64).product()
}

/// How many products a convolution or one of its gradients adds: every output with every weight of its filter.
fn multiplications(conv: &Conv, operands: &[&Type], result: &Type) -> f64 {
    let (output, weight) = match conv.direction {
        Direction::Forward => (result, operands[1]),
        Direction::InputGradient => (operands[0], operands[1]),
        Direction::WeightGradient => (operands[0], result),
    };
    let filters = weight.shape[0].as_const().expect("bound");
    output.elements() as f64 * (weight.elements() / filters.max(1)) as f64
}

fn composite_flops(composite: &Composite, operands: &[&Type]) -> f64 {
    let name = composite.def.name;
    if name == ATTENTION.name || name == ATTENTION_GRADIENT.name {
        let (query, key) = (operands[0].shape.sizes(), operands[1].shape.sizes());
        let ([b, t, h, d], s) = ([query[0], query[1], query[2], query[3]], key[1]);
        let pairs = b as f64 * h as f64 * visible_pairs(t, s, &composite.attrs);
        // Forward: scores and weighted values. Backward: the scores again and one product for each of the weights, the
        // query, the key and the value. The softmax takes an exponential and a handful of operations for each pair.
        let products = if name == ATTENTION.name { 2.0 } else { 5.0 };
        let softmax = f64::from(Unary::Exp.def().flops) + 4.0;
        return pairs * (products * 2.0 * d as f64 + softmax);
    }
    if name == EXPERT_MATMUL.name || name == EXPERT_OUTER.name {
        let transposed = name == EXPERT_MATMUL.name && composite.attrs.flag("transpose");
        let width = operands[1].shape.sizes()[if transposed { 1 } else { 2 }];
        return 2.0 * operands[0].elements() as f64 * width as f64;
    }
    let scratch = Builder::new();
    let inputs: Vec<_> = operands
        .iter()
        .enumerate()
        .map(|(i, ty)| scratch.input(&format!("operand {i}"), Role::Data, (*ty).clone()))
        .collect();
    (composite.def.expand)(&scratch, &inputs, &composite.attrs);
    let graph = scratch.finish().expect("a composite was expanded when its node was built");
    costs(&graph).total().flops
}

/// How many (query, key) pairs of one head are computed. A causal attention without a position, and so without a
/// cache, skips what lies after the query; a mask's content is unknown, and nothing is taken off for it.
fn visible_pairs(t: usize, s: usize, attrs: &Attrs) -> f64 {
    let (causal, window) = (attrs.flag("causal"), attrs.int("window") as usize);
    let reach = if window == 0 { usize::MAX } else { window };
    if attrs.flag("has_position") {
        let seen = if causal { reach } else { reach.saturating_mul(2).saturating_sub(1) };
        return t as f64 * s.min(seen) as f64;
    }
    let keys = |query: usize| {
        let first = (query + 1).saturating_sub(reach);
        let end = if causal { query + 1 } else { query.saturating_add(reach) };
        end.min(s).saturating_sub(first) as f64
    };
    (0..t).map(keys).sum()
}
