//! The one way a pass makes a new graph: walk the old one in order, say for each node what takes its place.

use smallvec::{SmallVec, smallvec};

use crate::diagnostic::Diagnostic;
use crate::graph::{Graph, Node, NodeData, Phase, SiteId, Value};
use crate::op::{Op, Source};
use crate::tensor::{Builder, Tensor};

/// What takes the place of a node's results, one tensor for each.
pub type Results<'g> = SmallVec<[Tensor<'g>; 2]>;

/// A node of the old graph whose turn it is.
pub struct Visit<'a, 'g> {
    /// The old graph.
    pub graph: &'a Graph,
    /// The node.
    pub node: Node,
    /// What took the place of the node's operands.
    pub operands: &'a [Tensor<'g>],
    /// The new graph. New nodes get the site and the phase of `node` unless the rule says otherwise.
    pub builder: &'g Builder,
}

impl<'a, 'g> Visit<'a, 'g> {
    /// The node's data.
    pub fn data(&self) -> &'a NodeData {
        self.graph.node(self.node)
    }

    /// What the node computes.
    pub fn op(&self) -> &'a Op {
        &self.data().op
    }

    /// The same operation on the new operands.
    pub fn keep(&self) -> Results<'g> {
        self.replace(self.op().clone())
    }

    /// Another operation with as many results on the new operands.
    pub fn replace(&self, op: Op) -> Results<'g> {
        self.builder.add(op, self.operands, self.data().outputs().len())
    }
}

/// Rebuilds `graph`, with what `rule` returns in the place of each node, or the node itself where it returns `None`.
///
/// Sites, phases, outputs and updates stay; outputs and updates that the rule gives the builder come after them. Nodes on
/// which neither depends are not visited, and are not in the result.
/// A rule that adds random bits gives their stream itself: [`Builder::random_bits`] does not know the old graph's.
///
/// # Errors
/// The first error of the new graph's builder, at the site of the node that met it.
pub fn rewrite<R>(graph: &Graph, mut rule: R) -> Result<Graph, Diagnostic>
where
    R: for<'g> FnMut(&Visit<'_, 'g>) -> Option<Results<'g>>,
{
    try_rewrite(graph, |visit| Ok(rule(visit)))
}

/// [`rewrite`] with a rule that may refuse.
///
/// # Errors
/// The rule's, and those of [`rewrite`].
pub fn try_rewrite<R>(graph: &Graph, mut rule: R) -> Result<Graph, Diagnostic>
where
    R: for<'g> FnMut(&Visit<'_, 'g>) -> Result<Option<Results<'g>>, Diagnostic>,
{
    let live = graph.live_nodes();
    let builder = Builder::new();
    let mut moves = Moves::of(graph);
    for node in graph.nodes().filter(|n| live[n.index()]) {
        let data = graph.node(node);
        match moves.sites[data.site.index()] {
            Some(site) => builder.set_site_id(site),
            None => {
                builder.set_site(graph.site(node));
                moves.sites[data.site.index()] = Some(builder.site_id());
            }
        }
        builder.set_phase(data.phase);
        let operands: SmallVec<[Tensor<'_>; 4]> = data.inputs.iter().map(|v| builder.tensor(moves.value(*v))).collect();
        let visit = Visit { graph, node, operands: &operands, builder: &builder };
        let results = rule(&visit)?.unwrap_or_else(|| visit.keep());
        if let Some(error) = builder.take_errors().into_iter().next() {
            return Err(error);
        }
        assert_eq!(results.len(), data.outputs().len(), "{}: a rule replaces all results", data.op.name());
        for (old, new) in data.outputs().zip(results) {
            moves.values[old.index()] = Some(new.value());
        }
    }
    let mut new = builder.finish().map_err(|mut errors| errors.swap_remove(0))?;
    moves.roots(graph, &mut new);
    Ok(sweep(&new))
}

/// `graph` without the nodes that no output and no update depends on.
pub fn sweep(graph: &Graph) -> Graph {
    let live = graph.live_nodes();
    let mut new = Graph::with_capacity(graph.node_count(), graph.value_count());
    let mut moves = Moves::of(graph);
    for node in graph.nodes().filter(|n| live[n.index()]) {
        let data = graph.node(node);
        let inputs = data.inputs.iter().map(|v| moves.value(*v)).collect();
        let copy = moves.copy(graph, node, inputs, data.phase, &mut new);
        moves.set(graph, node, new.node(copy));
    }
    moves.roots(graph, &mut new);
    new
}

/// Where the values and sites of an old graph are in the new one.
pub(crate) struct Moves {
    values: Vec<Option<Value>>,
    /// Kept because looking a site up by its content is linear in their number.
    sites: Vec<Option<SiteId>>,
}

impl Moves {
    pub(crate) fn of(graph: &Graph) -> Moves {
        let sites = graph.nodes().map(|n| graph.node(n).site.index() + 1).max().unwrap_or(0);
        Moves { values: vec![None; graph.value_count()], sites: vec![None; sites] }
    }

    pub(crate) fn value(&self, old: Value) -> Value {
        self.values[old.index()].expect("operands come before their users")
    }

    /// The results of `new` take the place of those of `node`.
    pub(crate) fn set(&mut self, old: &Graph, node: Node, new: &NodeData) {
        for (old, new) in old.node(node).outputs().zip(new.outputs()) {
            self.values[old.index()] = Some(new);
        }
    }

    /// Adds `node` of `old` to `new` as it is, on these operands of `new`.
    pub(crate) fn copy(
        &mut self,
        old: &Graph,
        node: Node,
        inputs: SmallVec<[Value; 4]>,
        phase: Phase,
        new: &mut Graph,
    ) -> Node {
        let data = old.node(node);
        let site = *self.sites[data.site.index()].get_or_insert_with(|| new.intern_site(old.site(node)));
        let types: SmallVec<[_; 2]> = data.outputs().map(|v| old.ty(v).clone()).collect();
        new.push(data.op.clone(), inputs, types, site, phase)
    }

    /// Puts the outputs and updates of `old` before those of `new`.
    pub(crate) fn roots(&self, old: &Graph, new: &mut Graph) {
        let outputs = old.outputs.iter().map(|(name, v)| (name.clone(), self.value(*v)));
        new.outputs.splice(0..0, outputs);
        let updates = old.updates.iter().map(|(input, v)| (self.value(*input), self.value(*v)));
        new.updates.splice(0..0, updates);
    }
}

/// `graph` with other names for the inputs that `name` gives one.
///
/// # Errors
/// A name that is taken.
pub fn rename_inputs(graph: &Graph, name: impl Fn(&str) -> Option<String>) -> Result<Graph, Diagnostic> {
    rewrite(graph, |visit| {
        let Op::Source(Source::Input { name: old, role, ty }) = visit.op() else { return None };
        Some(one(visit.builder.input(&name(old)?, *role, ty.clone())))
    })
}

/// The results of a node that has one.
pub fn one(tensor: Tensor<'_>) -> Results<'_> {
    smallvec![tensor]
}
