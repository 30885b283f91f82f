//! What a program that leaves the weights alone need not compute again: what depends on them only.
//!
//! It comes first in the order of steps, its results stay in memory, and a backend runs it again only when somebody else
//! has written the weights or used the memory. Only what convolutions read as weights is kept, in whatever form they read
//! it, and what is small: a copy of every matrix would double the memory.

use crate::graph::{Graph, Value};
use crate::lower::access::resolve;
use crate::lower::fuse::Partition;
use crate::op::{Direction, Op, Role, Source};

/// A result up to this many bytes is small.
const SMALL: usize = 1 << 14;

/// By value: whether it is a weight or state that the program leaves alone.
pub fn fixed_inputs(graph: &Graph) -> Vec<bool> {
    let is_weight = |v: Value| match graph.op_of(v) {
        Op::Source(Source::Input { role, .. }) => matches!(role, Role::Parameter | Role::State),
        _ => false,
    };
    let leaves_alone = graph.updates.iter().all(|(input, _)| !is_weight(*input));
    (0..graph.value_count()).map(|i| leaves_alone && is_weight(Value::new(i))).collect()
}

/// By unit: whether it runs once.
pub fn units(graph: &Graph, partition: &Partition) -> Vec<bool> {
    let fixed = fixed_inputs(graph);
    let mut once = vec![false; partition.units.len()];
    if !fixed.contains(&true) {
        return once;
    }
    let stored = |v: Value| partition.stored[v.index()];
    let unit_of = |v: Value| partition.unit_of[graph.producer(v).index()];
    let operands = |unit: usize| {
        let inputs = partition.units[unit].nodes.iter().flat_map(|n| graph.node(*n).inputs.iter());
        let roots = inputs.map(|v| resolve(graph, *v, &stored).expect("views that are no windows are stored").root);
        roots.filter(move |v| unit_of(*v) != Some(unit)).collect::<Vec<Value>>()
    };
    // Units have operands of units that end before them.
    let mut order: Vec<usize> = (0..once.len()).collect();
    order.sort_by_key(|u| partition.units[*u].nodes.last().copied());
    let mut constant = once.clone();
    for unit in &order {
        let is_constant = |v: &Value| match unit_of(*v) {
            Some(other) => constant[other],
            None => fixed[v.index()] || matches!(graph.op_of(*v), Op::Source(Source::Constant { .. })),
        };
        let reads = operands(*unit);
        constant[*unit] = !reads.is_empty() && reads.iter().all(is_constant);
    }
    let mut wanted = vec![false; once.len()];
    for data in graph.nodes().map(|n| graph.node(n)) {
        if let Op::Conv(conv) = &data.op
            && conv.direction == Direction::Forward
            && let Some(unit) = resolve(graph, data.inputs[1], &stored).and_then(|w| unit_of(w.root))
        {
            wanted[unit] = true;
        }
    }
    for unit in order.iter().rev().filter(|u| constant[**u]) {
        let results = partition.units[*unit].nodes.iter().flat_map(|n| graph.node(*n).outputs()).filter(|v| stored(*v));
        let small = results.map(|v| graph.ty(v).bytes()).sum::<usize>() <= SMALL;
        once[*unit] = wanted[*unit] || small;
        if wanted[*unit] {
            operands(*unit).into_iter().filter_map(unit_of).for_each(|other| wanted[other] = true);
        }
    }
    // Whatever runs once has operands that are there by then.
    for unit in &order {
        once[*unit] &= operands(*unit).into_iter().filter_map(unit_of).all(|other| once[other]);
    }
    once
}
