//! What the backward pass keeps of the forward pass, and what it computes again to fit a budget. Never approximated:
//! the same operations on the same operands give the same bits.

use std::collections::{BTreeMap, HashMap, HashSet};

use smallvec::SmallVec;

use crate::cost::cost;
use crate::diagnostic::Diagnostic;
use crate::graph::{Graph, Node, Phase, Value};
use crate::lower::{Program, lower};
use crate::op::Op;
use crate::passes::common::common;
use crate::passes::rewrite::{Results, Visit, rewrite};
use crate::tensor::Tensor;

/// The longest chain of elementwise operations that is computed again instead of stored by default.
const CHAIN: usize = 32;

/// Steps into which the recomputation of one kind of value is divided.
const SHARES: usize = 4;

/// The value behind views.
fn root(graph: &Graph, mut value: Value) -> Value {
    loop {
        let node = graph.node(graph.producer(value));
        if !node.op.is_free_view() {
            return value;
        }
        value = node.inputs[0];
    }
}

fn is_forward(graph: &Graph, node: Node) -> bool {
    graph.node(node).phase == Phase::Forward
}

fn is_source(graph: &Graph, value: Value) -> bool {
    matches!(graph.op_of(value), Op::Source(_))
}

/// The forward values that later phases read, in creation order.
fn needed_later(graph: &Graph) -> Vec<Value> {
    let later = graph.nodes().filter(|n| !is_forward(graph, *n) && !graph.node(*n).op.is_free_view());
    let mut needed: Vec<Value> = later
        .flat_map(|n| graph.node(n).inputs.clone())
        .map(|v| root(graph, v))
        .filter(|v| is_forward(graph, graph.producer(*v)) && !is_source(graph, *v))
        .collect();
    needed.sort_unstable();
    needed.dedup();
    needed
}

/// By value: the first node of a later phase that reads it, itself or through views.
fn first_later_use(graph: &Graph) -> Vec<Option<Node>> {
    let mut first = vec![None; graph.value_count()];
    for node in graph.nodes().filter(|n| !is_forward(graph, *n) && !graph.node(*n).op.is_free_view()) {
        for value in &graph.node(node).inputs {
            first[root(graph, *value).index()].get_or_insert(node);
        }
    }
    first
}

/// The elementwise values that the backward pass computes again although there is memory, in passes that it makes anyway:
/// those that nothing stores, from values that are stored, and those that only a kernel of the forward pass needs in a
/// buffer, from values that are kept anyway.
fn interior(graph: &Graph) -> HashSet<Node> {
    let mut fixed = vec![false; graph.value_count()];
    let mut read_by_kernel = vec![false; graph.value_count()];
    let mut last_forward_use = vec![None; graph.value_count()];
    for node in graph.nodes().filter(|n| is_forward(graph, *n)) {
        let data = graph.node(node);
        if !data.op.is_elementwise() {
            data.outputs().for_each(|v| fixed[v.index()] = true);
        }
        if data.op.is_free_view() {
            continue;
        }
        for value in data.inputs.iter().map(|v| root(graph, *v)) {
            last_forward_use[value.index()] = Some(node);
            read_by_kernel[value.index()] |= !data.op.is_elementwise() && !matches!(data.op, Op::Reduce(_));
        }
    }
    graph.outputs.iter().for_each(|(_, v)| fixed[root(graph, *v).index()] = true);
    let needed = needed_later(graph);
    let stored = |v: Value| fixed[v.index()] || read_by_kernel[v.index()];
    let mut kept: HashSet<Value> = needed.iter().copied().filter(|v| stored(*v)).collect();
    let mut again = HashSet::new();
    // The elementwise operations from stored values to `value`, and those of these values that are not kept yet.
    let chain_to = |value: Value, kept: &HashSet<Value>| {
        let (mut chain, mut leaves): (Vec<Node>, Vec<Value>) = (vec![graph.producer(value)], Vec::new());
        let mut stack: Vec<Value> = graph.node(chain[0]).inputs.to_vec();
        while let Some(v) = stack.pop() {
            let v = root(graph, v);
            let producer = graph.producer(v);
            if kept.contains(&v) || is_source(graph, v) || chain.contains(&producer) {
                continue;
            }
            if !stored(v) {
                chain.push(producer);
                stack.extend(graph.node(producer).inputs.iter());
            } else if !leaves.contains(&v) {
                leaves.push(v);
            }
        }
        let extra: usize = leaves.iter().map(|v| graph.ty(*v).bytes()).sum();
        (chain, leaves, extra)
    };
    for value in needed.iter().copied().filter(|v| !stored(*v)) {
        let (chain, leaves, extra) = chain_to(value, &kept);
        if chain.len() <= CHAIN && extra <= graph.ty(value).bytes() {
            kept.extend(leaves);
            again.extend(chain);
        } else {
            kept.insert(value);
        }
    }
    let first_use = first_later_use(graph);
    for value in needed.into_iter().filter(|v| stored(*v) && !fixed[v.index()]) {
        let (chain, leaves, extra) = chain_to(value, &kept);
        // In chunks of rows the passes take turns, and the value stays between them.
        let apart = last_forward_use[value.index()] < first_use[value.index()];
        if apart && chain.len() <= CHAIN && extra <= graph.ty(value).bytes() / 8 {
            kept.extend(leaves);
            kept.remove(&value);
            again.extend(chain);
        }
    }
    again
}

/// The graph in which later phases compute the results of `again` themselves instead of reading the forward pass's.
///
/// # Errors
/// Those of [`rewrite`].
pub fn rematerialise(graph: &Graph, again: &HashSet<Node>) -> Result<Graph, Diagnostic> {
    let mut moves = Moves { again, first: HashMap::new(), second: HashMap::new() };
    rewrite(graph, |visit| {
        let data = visit.data();
        let results = if data.phase == Phase::Forward {
            visit.keep()
        } else {
            let site = visit.builder.site_id();
            let operands: SmallVec<[Tensor<'_>; 4]> = data.inputs.iter().map(|v| moves.later(visit, *v)).collect();
            visit.builder.set_site_id(site);
            visit.builder.set_phase(data.phase);
            visit.builder.add(data.op.clone(), &operands, data.outputs().len())
        };
        moves.first.extend(data.outputs().zip(results.iter().map(|t| t.value())));
        Some(results)
    })
}

struct Moves<'a> {
    again: &'a HashSet<Node>,
    /// Where the values of the old graph are in the new one.
    first: HashMap<Value, Value>,
    /// Where they are when computed again.
    second: HashMap<Value, Value>,
}

impl Moves<'_> {
    /// The value for a later phase: computed again where it is to be, with everything that this needs.
    fn later<'g>(&mut self, visit: &Visit<'_, 'g>, value: Value) -> Tensor<'g> {
        let (graph, builder) = (visit.graph, visit.builder);
        if let Some(there) = self.second.get(&value) {
            return builder.tensor(*there);
        }
        let producer = graph.producer(value);
        let data = graph.node(producer);
        let again = self.again.contains(&producer);
        if data.phase != Phase::Forward || !(again || data.op.is_free_view()) {
            return builder.tensor(self.first[&value]);
        }
        let operands: SmallVec<[Tensor<'g>; 4]> = data.inputs.iter().map(|v| self.later(visit, *v)).collect();
        let unchanged = operands.iter().zip(&data.inputs).all(|(new, old)| self.first[old] == new.value());
        if unchanged && !again {
            return builder.tensor(self.first[&value]);
        }
        builder.set_phase(Phase::Backward);
        builder.set_site(graph.site(producer));
        let results: Results<'g> = builder.add(data.op.clone(), &operands, data.outputs().len());
        self.second.extend(data.outputs().zip(results.iter().map(|t| t.value())));
        builder.tensor(self.second[&value])
    }
}

/// A program and how much of the forward pass it computes twice.
pub struct Fitted {
    /// The program.
    pub program: Program,
    /// Floating-point operations that are done a second time to fit the budget.
    pub again_flops: f64,
}

/// A graph that recomputation cannot make small enough.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TooLarge {
    /// The arena's bytes without recomputation.
    pub plain: usize,
    /// The fewest bytes of an arena that recomputation reaches.
    pub smallest: usize,
}

/// Lowers a bound graph so that its arena has at most `budget` bytes.
///
/// The ladder of what is recomputed, rung by rung, does not depend on the budget; the program is that of the first rung
/// that fits. So a smaller budget never gives a larger arena.
///
/// # Errors
/// The outer error is that of [`rewrite`]; the inner one says that no rung fits.
pub fn fit(graph: &Graph, budget: Option<usize>) -> Result<Result<Fitted, TooLarge>, Diagnostic> {
    let mut ladder = Ladder { graph, again: interior(graph), flops: 0.0, tried: HashSet::new() };
    let plain = ladder.program()?;
    let Some(budget) = budget.filter(|b| plain.arena_bytes > *b) else {
        return Ok(Ok(Fitted { program: plain, again_flops: 0.0 }));
    };
    let (mut level, mut smallest) = (plain.arena_bytes, plain.arena_bytes);
    while let Some(rung) = ladder.next() {
        let (again, flops) = (ladder.again.clone(), ladder.flops);
        let mut reached = usize::MAX;
        for share in rung.chunks(rung.len().div_ceil(SHARES)) {
            ladder.take(share);
            let program = ladder.program()?;
            if program.arena_bytes <= budget {
                return Ok(Ok(Fitted { program, again_flops: ladder.flops }));
            }
            reached = program.arena_bytes;
            smallest = smallest.min(reached);
        }
        // What does not help on its own may still open the way for the next rung, but what harms is undone.
        if reached > level {
            (ladder.again, ladder.flops) = (again, flops);
        } else {
            level = reached;
        }
    }
    Ok(Err(TooLarge { plain: plain.arena_bytes, smallest }))
}

struct Ladder<'a> {
    graph: &'a Graph,
    again: HashSet<Node>,
    flops: f64,
    tried: HashSet<Node>,
}

impl Ladder<'_> {
    fn program(&self) -> Result<Program, Diagnostic> {
        Ok(lower(common(&rematerialise(self.graph, &self.again)?)?, true))
    }

    fn take(&mut self, nodes: &[Node]) {
        for node in nodes {
            if self.again.insert(*node) {
                self.flops += cost(self.graph, *node).flops;
            }
        }
    }

    /// The next rung: the values of one line of the model, in all its repetitions, that free most for their cost.
    fn next(&mut self) -> Option<Vec<Node>> {
        #[derive(Default)]
        struct Group {
            nodes: Vec<Node>,
            bytes: f64,
            cost: f64,
        }
        let graph = self.graph;
        let mut groups: BTreeMap<(u32, u32, &'static str, String), Group> = BTreeMap::new();
        for value in self.kept() {
            let node = graph.producer(value);
            if self.tried.contains(&node) {
                continue;
            }
            let site = graph.site(node);
            let bytes = graph.ty(value).bytes() as f64;
            let key = (site.line, site.column, graph.node(node).op.name(), graph.ty(value).to_string());
            let group = groups.entry(key).or_default();
            group.nodes.push(node);
            group.bytes += bytes;
            group.cost += cost(graph, node).flops + bytes;
        }
        let worth = |g: &Group| g.bytes / g.cost;
        let best = groups.into_values().max_by(|a, b| worth(a).total_cmp(&worth(b)))?;
        self.tried.extend(best.nodes.iter().copied());
        Some(best.nodes)
    }

    /// The forward values that later phases read from the forward pass, in creation order.
    fn kept(&self) -> Vec<Value> {
        let graph = self.graph;
        let mut kept = Vec::new();
        let mut seen = HashSet::new();
        let mut stack = needed_later(graph);
        while let Some(value) = stack.pop() {
            let producer = graph.producer(value);
            if !seen.insert(value) || is_source(graph, value) {
                continue;
            }
            if self.again.contains(&producer) {
                stack.extend(graph.node(producer).inputs.iter().map(|v| root(graph, *v)));
            } else {
                kept.push(value);
            }
        }
        kept.sort_unstable();
        kept
    }
}
