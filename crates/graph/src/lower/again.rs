//! Values that several units need and that each computes for itself: where what an elementwise value is made of takes no
//! more bytes to read than the value, and is in memory anyway, writing it first would be a detour.
//!
//! The same operations on the same operands: no bit changes.

use std::collections::HashMap;

use crate::graph::{Graph, Node, Phase, Value};
use crate::lower::access::resolve;
use crate::lower::fuse::{Extent, Partition, UnitKind};
use crate::op::{Op, Source, View};
use crate::passes::rewrite::{Results, Visit, rewrite};
use crate::tensor::Tensor;

/// The most operations of a value that is computed again.
const CHAIN: usize = 12;
/// Values with fewer bytes stay in the caches between two units.
const LEAST: usize = 1 << 18;
/// An operand this many times smaller than the value costs nothing to read.
const SMALL: usize = 8;

/// `graph` in which units compute again what they would read from others; `None` if there is nothing of that kind.
pub fn compute_again(graph: &Graph, partition: &Partition) -> Option<Graph> {
    let again = Candidates::of(graph, partition).choose();
    if !again.contains(&true) {
        return None;
    }
    let mut copies = Copies { graph, partition, again, first: HashMap::new(), made: HashMap::new() };
    let rebuilt = rewrite(graph, |visit| {
        let results = copies.visit(visit);
        copies.first.extend(visit.data().outputs().zip(results.iter().map(|t| t.value())));
        Some(results)
    });
    Some(rebuilt.expect("the same operations on operands of the same types"))
}

/// The value behind views.
fn root(graph: &Graph, mut value: Value) -> Value {
    while graph.op_of(value).is_free_view() {
        value = graph.node(graph.producer(value)).inputs[0];
    }
    value
}

struct Candidates<'a> {
    graph: &'a Graph,
    partition: &'a Partition,
    /// By value: the units that read it, if it is one that units may compute again.
    readers: Vec<Option<Vec<usize>>>,
    /// By unit: the stored values that it reads.
    reads: Vec<Vec<Value>>,
    again: Vec<bool>,
}

impl<'a> Candidates<'a> {
    fn of(graph: &'a Graph, partition: &'a Partition) -> Candidates<'a> {
        let stored = |v: Value| partition.stored[v.index()];
        let mut readers: Vec<Option<Vec<usize>>> = vec![None; graph.value_count()];
        for (index, unit) in partition.units.iter().enumerate().filter(|(_, u)| u.kind == UnitKind::Fused) {
            for (node, extent) in unit.nodes.iter().zip(&unit.extents) {
                let data = graph.node(*node);
                if data.op.is_elementwise() && *extent == Extent::Full && data.phase != Phase::Update {
                    let large = graph.ty(data.output()).bytes() >= LEAST;
                    readers[data.output().index()] = (large && stored(data.output())).then(Vec::new);
                }
            }
            debug_assert!(unit.nodes.iter().all(|n| partition.unit_of[n.index()] == Some(index)));
        }
        let mut reads = vec![Vec::new(); partition.units.len()];
        for (index, unit) in partition.units.iter().enumerate() {
            for node in &unit.nodes {
                let data = graph.node(*node);
                for input in &data.inputs {
                    let value = resolve(graph, *input, &stored).expect("views that are no windows are stored").root;
                    reads[index].push(value);
                    let of_value = graph.node(graph.producer(value));
                    let may = unit.kind == UnitKind::Fused && of_value.phase == data.phase && through(graph, *input);
                    match &mut readers[value.index()] {
                        Some(units) if may => units.push(index),
                        other => *other = None,
                    }
                }
            }
        }
        let results = graph.outputs.iter().map(|(_, v)| v).chain(graph.updates.iter().map(|(_, v)| v));
        for value in results {
            readers[root(graph, *value).index()] = None;
        }
        Candidates { graph, partition, readers, reads, again: vec![false; graph.value_count()] }
    }

    fn choose(mut self) -> Vec<bool> {
        for index in 0..self.graph.value_count() {
            let Some(readers) = &self.readers[index] else { continue };
            let value = Value::new(index);
            let home = self.partition.unit_of[self.graph.producer(value).index()];
            let Some(leaves) = self.leaves(value) else { continue };
            let bytes = self.graph.ty(value).bytes();
            let pays = |unit: &usize| {
                let more = leaves.iter().filter(|leaf| !self.reads[*unit].contains(leaf));
                more.map(|leaf| self.graph.ty(*leaf).bytes()).sum::<usize>() <= bytes
            };
            if readers.iter().filter(|unit| Some(**unit) != home).all(pays) {
                self.again[index] = true;
            }
        }
        self.again
    }

    /// The large stored values that a value is made of element by element; `None` if it is not, or in too many steps.
    fn leaves(&self, value: Value) -> Option<Vec<Value>> {
        let (mut leaves, mut stack, mut steps) = (Vec::new(), vec![value], 0);
        while let Some(v) = stack.pop() {
            let data = self.graph.node(self.graph.producer(v));
            steps += 1;
            if steps > CHAIN || !data.op.is_elementwise() || data.phase == Phase::Update {
                return None;
            }
            for input in &data.inputs {
                if !through(self.graph, *input) {
                    return None;
                }
                let input = root(self.graph, *input);
                match self.graph.op_of(input) {
                    Op::Source(Source::Constant { .. } | Source::Iota { .. }) => {}
                    _ if self.partition.stored[input.index()] && !self.again[input.index()] => {
                        let large = self.graph.ty(input).elements() * SMALL > self.graph.ty(value).elements();
                        if large && !leaves.contains(&input) {
                            leaves.push(input);
                        }
                    }
                    _ => stack.push(input),
                }
            }
        }
        Some(leaves)
    }
}

/// Whether only views that keep elements in order lie between `value` and its root.
fn through(graph: &Graph, mut value: Value) -> bool {
    while graph.op_of(value).is_free_view() {
        if !matches!(graph.op_of(value), Op::View(View::Reshape(_) | View::Broadcast(_))) {
            return false;
        }
        value = graph.node(graph.producer(value)).inputs[0];
    }
    true
}

struct Copies<'a> {
    graph: &'a Graph,
    partition: &'a Partition,
    again: Vec<bool>,
    /// Where the values of the old graph are in the new one.
    first: HashMap<Value, Value>,
    /// Where a unit's own copies are.
    made: HashMap<(usize, Value), Value>,
}

impl Copies<'_> {
    fn visit<'g>(&mut self, visit: &Visit<'_, 'g>) -> Results<'g> {
        let Some(unit) = self.partition.unit_of[visit.node.index()] else { return visit.keep() };
        let (data, site) = (visit.data(), visit.builder.site_id());
        let operands: Vec<Tensor<'g>> = data.inputs.iter().map(|v| self.operand(visit, unit, *v)).collect();
        visit.builder.set_site_id(site);
        visit.builder.set_phase(data.phase);
        visit.builder.add(data.op.clone(), &operands, data.outputs().len())
    }

    /// The value as the unit reads it: its own copy where another unit makes what is computed again.
    fn operand<'g>(&mut self, visit: &Visit<'_, 'g>, unit: usize, value: Value) -> Tensor<'g> {
        let behind = root(self.graph, value);
        let makes = |v: Value| self.partition.unit_of[self.graph.producer(v).index()];
        let here = makes(behind) == Some(unit) || makes(behind).is_none();
        if here || (self.partition.stored[behind.index()] && !self.again[behind.index()]) {
            return visit.builder.tensor(self.first[&value]);
        }
        if let Some(made) = self.made.get(&(unit, value)) {
            return visit.builder.tensor(*made);
        }
        let node: Node = self.graph.producer(value);
        let data = self.graph.node(node);
        let operands: Vec<Tensor<'g>> = data.inputs.iter().map(|v| self.operand(visit, unit, *v)).collect();
        visit.builder.set_site(self.graph.site(node));
        visit.builder.set_phase(data.phase);
        let copy = visit.builder.add(data.op.clone(), &operands, 1)[0];
        self.made.insert((unit, value), copy.value());
        copy
    }
}
