//! Common subexpressions: the same operation on the same operands is computed once in a phase.

use std::collections::HashMap;

use smallvec::SmallVec;

use crate::diagnostic::Diagnostic;
use crate::graph::{Graph, Node, Phase, Value};
use crate::op::Op;
use crate::passes::rewrite::{Moves, sweep};
use crate::text;

/// `graph` with equal nodes of a phase merged into the first.
///
/// Phases are kept apart because sharing across them would keep forward values alive until the backward pass: whether
/// that pays is the memory plan's choice. Sources and views hold no memory, so they have no phase here.
///
/// # Errors
/// None: passes have this form.
pub fn common(graph: &Graph) -> Result<Graph, Diagnostic> {
    let kinds = kinds(graph);
    let live = graph.live_nodes();
    let mut merge = Merge::of(graph, &kinds);
    let mut moves = Moves::of(graph);
    for node in graph.nodes().filter(|n| live[n.index()]) {
        let data = graph.node(node);
        let operands = data.inputs.iter().map(|v| moves.value(*v)).collect();
        let new = merge.add(&mut moves, node, operands, data.phase);
        moves.set(graph, node, merge.new.node(new));
    }
    moves.roots(graph, &mut merge.new);
    Ok(sweep(&merge.new))
}

/// What each node computes, its operands left aside: equal numbers are equal operations with results of equal types.
pub(crate) fn kinds(graph: &Graph) -> Vec<u32> {
    let mut known: HashMap<String, u32> = HashMap::new();
    let kind = |node| {
        let next = known.len() as u32;
        *known.entry(text::computation(graph, node)).or_insert(next)
    };
    graph.nodes().map(kind).collect()
}

/// What two nodes have in common that compute the same: the phase unless they hold no memory, the kind, the operands.
type Key = (Option<Phase>, u32, SmallVec<[Value; 4]>);

/// A graph made of nodes of another, of which equal ones of a phase are one.
pub(crate) struct Merge<'a> {
    old: &'a Graph,
    kinds: &'a [u32],
    known: HashMap<Key, Node>,
    /// The new graph.
    pub(crate) new: Graph,
}

impl<'a> Merge<'a> {
    /// An empty graph for nodes of `old`, which have these [`kinds`].
    pub(crate) fn of(old: &'a Graph, kinds: &'a [u32]) -> Merge<'a> {
        // Recomputation adds less than there was.
        let new = Graph::with_capacity(2 * old.node_count(), 2 * old.value_count());
        Merge { old, kinds, known: HashMap::with_capacity(2 * old.node_count()), new }
    }

    /// A node of the new graph that computes what `node` does on these operands of the new graph.
    pub(crate) fn add(&mut self, moves: &mut Moves, node: Node, operands: SmallVec<[Value; 4]>, phase: Phase) -> Node {
        let op = &self.old.node(node).op;
        let free = matches!(op, Op::Source(_)) || op.is_free_view();
        let key = ((!free).then_some(phase), self.kinds[node.index()], operands);
        if let Some(known) = self.known.get(&key) {
            return *known;
        }
        let new = moves.copy(self.old, node, key.2.clone(), phase, &mut self.new);
        self.known.insert(key, new);
        new
    }
}
