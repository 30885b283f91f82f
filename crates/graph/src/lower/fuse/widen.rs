//! Where conversions to a wider type run: in the unit that reads the result, so that the narrow value is what is written
//! and read.

use crate::graph::{Graph, Node, Value};
use crate::lower::fuse::{Extent, Fuser, Unit, UnitKind};
use crate::op::Op;

/// The operand of a conversion to a wider type.
pub fn widened(graph: &Graph, node: Node) -> Option<Value> {
    let data = graph.node(node);
    let Op::Cast(to) = &data.op else { return None };
    (graph.ty(data.inputs[0]).dtype.size() < to.size()).then_some(data.inputs[0])
}

/// Who reads a value.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Readers {
    Nobody,
    Unit(usize),
    Several,
}

impl Fuser<'_> {
    /// Moves conversions to a wider type, which only one other unit reads, into that unit.
    pub(super) fn widen_late(&mut self, live: &[bool]) {
        let graph = self.graph;
        let mut readers = vec![Readers::Nobody; graph.value_count()];
        for node in graph.nodes().filter(|n| live[n.index()]) {
            let here = self.partition.unit_of[node.index()].map_or(Readers::Several, Readers::Unit);
            for window in &self.roots[node.index()] {
                let known = &mut readers[window.root.index()];
                *known = if *known == Readers::Nobody || *known == here { here } else { Readers::Several };
            }
        }
        let results = graph.outputs.iter().map(|(_, v)| v).chain(graph.updates.iter().map(|(_, v)| v));
        results.for_each(|v| readers[v.index()] = Readers::Several);
        for node in graph.nodes().filter(|n| widened(graph, *n).is_some()) {
            let result = graph.node(node).output();
            if let (Some(home), Readers::Unit(reader)) = (self.partition.unit_of[node.index()], readers[result.index()])
                && home != reader
            {
                self.move_node(node, home, reader);
            }
        }
    }

    /// Moves a node of the fused unit `from`, whose result only the unit `to` reads, if it fits there.
    fn move_node(&mut self, node: Node, from: usize, to: usize) {
        let phase = |n: &Node| self.graph.node(*n).phase;
        let (old, new) = (&self.partition.units[from], &self.partition.units[to]);
        if new.kind != UnitKind::Fused
            || new.domain != old.domain
            || !new.nodes.iter().all(|n| phase(n) == phase(&node))
        {
            return;
        }
        let Ok(at) = old.nodes.binary_search(&node) else { return };
        if old.extents[at] != Extent::Full || old.nodes.len() == 1 {
            return;
        }
        let mut nodes = new.nodes.clone();
        nodes.insert(nodes.partition_point(|n| *n < node), node);
        let empty = Unit { nodes: vec![], extents: vec![], outer: None, ..new.clone() };
        let Some(joined) = nodes.iter().try_fold(empty, |unit, node| self.with_node(&unit, *node)) else { return };
        self.partition.units[to] = joined;
        self.partition.unit_of[node.index()] = Some(to);
        let old = &mut self.partition.units[from];
        old.nodes.remove(at);
        old.extents.remove(at);
    }
}
