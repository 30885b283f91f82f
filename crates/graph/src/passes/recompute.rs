//! What the backward pass keeps of the forward pass, and what it computes again to fit a budget. Never approximated:
//! the same operations on the same operands give the same bits.

use std::collections::{BTreeMap, HashSet};

use smallvec::SmallVec;

use crate::cost::cost;
use crate::graph::{Graph, Node, Phase, Value};
use crate::lower::{Program, lower};
use crate::op::Op;
use crate::passes::common::{Merge, kinds};
use crate::passes::rewrite::{Moves, sweep};

/// The longest chain of elementwise operations that is computed again instead of stored by default.
const CHAIN: usize = 32;

/// Parts into which the recomputation of one kind of value is divided.
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

/// The graph in which later phases compute the results of `again` themselves instead of reading the forward pass's, with
/// equal nodes of a phase merged. `kinds` are those of the graph's nodes.
fn rematerialise(graph: &Graph, kinds: &[u32], again: &HashSet<Node>) -> Graph {
    let live = graph.live_nodes();
    let mut merge = Merge::of(graph, kinds);
    // Where the values of the old graph are in the new one, and where those that are computed again are.
    let mut first = Moves::of(graph);
    let mut second: Vec<Option<Value>> = vec![None; graph.value_count()];
    for node in graph.nodes().filter(|n| live[n.index()]) {
        let data = graph.node(node);
        let forward = data.phase == Phase::Forward;
        if !forward {
            for node in computed_again(graph, &data.inputs, again, &second) {
                let data = graph.node(node);
                let there = |v: &Value| second[v.index()].unwrap_or_else(|| first.value(*v));
                let operands: SmallVec<[Value; 4]> = data.inputs.iter().map(there).collect();
                if !again.contains(&node) && data.inputs.iter().all(|v| second[v.index()].is_none()) {
                    continue;
                }
                let new = merge.add(&mut first, node, operands, Phase::Backward);
                for (old, new) in data.outputs().zip(merge.new.node(new).outputs()) {
                    second[old.index()] = Some(new);
                }
            }
        }
        let there = |v: &Value| second[v.index()].filter(|_| !forward).unwrap_or_else(|| first.value(*v));
        let operands = data.inputs.iter().map(there).collect();
        let new = merge.add(&mut first, node, operands, data.phase);
        first.set(graph, node, merge.new.node(new));
    }
    first.roots(graph, &mut merge.new);
    sweep(&merge.new)
}

/// The nodes of `again`, and the views of their results, that `values` still need, in creation order.
fn computed_again(graph: &Graph, values: &[Value], again: &HashSet<Node>, second: &[Option<Value>]) -> Vec<Node> {
    let mut nodes = Vec::new();
    let mut seen = HashSet::new();
    let mut stack: Vec<Value> = values.to_vec();
    while let Some(value) = stack.pop() {
        let node = graph.producer(value);
        let data = graph.node(node);
        let wanted = data.phase == Phase::Forward && (again.contains(&node) || data.op.is_free_view());
        if wanted && second[value.index()].is_none() && seen.insert(node) {
            nodes.push(node);
            stack.extend(&data.inputs);
        }
    }
    nodes.sort_unstable();
    nodes
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
    /// The size without recomputation.
    pub plain: usize,
    /// The smallest size that recomputation reaches: the least budget that can be kept.
    pub smallest: usize,
}

/// The program of a bound graph.
pub fn plain(graph: &Graph) -> Program {
    let ladder = Ladder::of(graph);
    ladder.program(&ladder.again)
}

/// The program of a bound graph whose size, in bytes as `size` tells it, is at most `budget`.
///
/// The ladder of what is recomputed does not depend on the budget. It goes down rung by rung, and none is larger than the one
/// before; the program is that of the first that fits, or of a part of that rung. So a smaller budget never gives a
/// larger program, and the last rung is the least budget that can be kept.
///
/// # Errors
/// No rung fits.
pub fn fit(graph: &Graph, budget: usize, size: &dyn Fn(&Program) -> usize) -> Result<Fitted, TooLarge> {
    let mut ladder = Ladder::of(graph);
    let program = ladder.program(&ladder.again);
    let plain = size(&program);
    if plain <= budget {
        return Ok(Fitted { program, again_flops: 0.0 });
    }
    let mut smallest = plain;
    while let Some(nodes) = ladder.next() {
        let again = ladder.with(&nodes);
        let program = ladder.program(&again);
        let reached = size(&program);
        // What does not help on its own may still open the way for the next rung, but what harms is left out.
        if reached > smallest {
            continue;
        }
        if reached <= budget {
            for parts in 1..SHARES {
                let again = ladder.with(&nodes[..nodes.len() * parts / SHARES]);
                let program = ladder.program(&again);
                // A part that is smaller than the whole would be what a smaller budget cannot have.
                if (reached..=budget).contains(&size(&program)) {
                    return Ok(ladder.fitted(program, &again));
                }
            }
            return Ok(ladder.fitted(program, &again));
        }
        smallest = reached;
        ladder.again = again;
    }
    let mut improved = false;
    for again in ladder.segments() {
        let program = ladder.program(&again);
        let reached = size(&program);
        if reached <= smallest {
            if reached <= budget {
                return Ok(ladder.fitted(program, &again));
            }
            (smallest, improved) = (reached, true);
        } else if improved {
            break;
        }
    }
    Err(TooLarge { plain, smallest })
}

struct Ladder<'a> {
    graph: &'a Graph,
    kinds: Vec<u32>,
    /// What is computed again whatever the budget.
    always: HashSet<Node>,
    again: HashSet<Node>,
    tried: HashSet<Node>,
}

impl Ladder<'_> {
    fn of(graph: &Graph) -> Ladder<'_> {
        let always = interior(graph);
        Ladder { graph, kinds: kinds(graph), again: always.clone(), always, tried: HashSet::new() }
    }

    fn program(&self, again: &HashSet<Node>) -> Program {
        lower(rematerialise(self.graph, &self.kinds, again), true)
    }

    fn fitted(&self, program: Program, again: &HashSet<Node>) -> Fitted {
        let needed = needed_later(self.graph);
        let nodes = computed_again(self.graph, &needed, again, &vec![None; self.graph.value_count()]);
        let twice = nodes.into_iter().filter(|n| again.contains(n) && !self.always.contains(n));
        Fitted { program, again_flops: twice.map(|n| cost(self.graph, n).flops).sum() }
    }

    fn with(&self, nodes: &[Node]) -> HashSet<Node> {
        self.again.iter().chain(nodes).copied().collect()
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

    /// The last rungs: of the forward pass only what crosses from one segment to the next is kept, and of a segment the rest
    /// is computed again when the backward pass comes to it (Chen et al. 2016). From many segments to few.
    fn segments(&self) -> Vec<HashSet<Node>> {
        let graph = self.graph;
        let of_forward = |n: &Node| is_forward(graph, *n) && !graph.node(*n).op.is_free_view();
        let end = graph.nodes().find(|n| !is_forward(graph, *n) && !is_source(graph, graph.node(*n).output()));
        let end = end.map_or(graph.node_count(), |n| n.index());
        let made = |v: Value| graph.producer(v).index() < end && !is_source(graph, v);
        let mut last_use: BTreeMap<Value, usize> = BTreeMap::new();
        for node in graph.nodes().filter(of_forward) {
            last_use.extend(graph.node(node).inputs.iter().map(|v| (root(graph, *v), node.index())));
        }
        last_use.retain(|v, _| made(*v));
        // By node: the bytes that cross from it to the nodes behind it, and those that the backward pass needs so far.
        let mut change = vec![0isize; graph.node_count() + 1];
        for (value, last) in &last_use {
            let bytes = graph.ty(*value).bytes() as isize;
            change[graph.producer(*value).index()] += bytes;
            change[*last] -= bytes;
        }
        let mut needed = vec![0usize; end + 1];
        for value in needed_later(graph).into_iter().filter(|v| made(*v)) {
            needed[graph.producer(value).index()] += graph.ty(value).bytes();
        }
        let running = |sum: &mut usize, bytes: usize| {
            *sum += bytes;
            Some(*sum)
        };
        let needed: Vec<usize> = needed.into_iter().scan(0, running).collect();
        let crossing: Vec<isize> = change
            .into_iter()
            .scan(0, |sum, bytes| {
                *sum += bytes;
                Some(*sum)
            })
            .collect();
        let all = needed[end];
        let most = needed_later(graph).len() / 4;
        let counts = (1..usize::BITS).rev().flat_map(|i| [1usize << i, (1usize << i) / 4 * 3]);
        let counts = counts.filter(|n| (2..=most).contains(n));
        let segmented = |count: usize| {
            let mut kept: HashSet<Node> = HashSet::new();
            for segment in 1..=count {
                let border = |halves: usize| needed.partition_point(|b| *b < all / 2 * halves / count);
                let (from, to) = (border(2 * segment - 1), border(2 * segment + 1).min(end));
                let ideal = border(2 * segment).min(end);
                let Some(cut) = (from..to).min_by_key(|i| (crossing[*i], i.abs_diff(ideal))) else { continue };
                let crosses = last_use.iter().filter(|(v, last)| graph.producer(**v).index() <= cut && **last > cut);
                kept.extend(crosses.map(|(v, _)| graph.producer(*v)));
            }
            let forward = graph.nodes().take(end).filter(|n| of_forward(n) && !kept.contains(n));
            let forward = forward.filter(|n| !matches!(graph.node(*n).op, Op::Source(_)));
            forward.chain(self.always.iter().copied().filter(|n| n.index() >= end)).collect()
        };
        counts.map(segmented).collect()
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
