//! Which nodes run together: elementwise operations and reductions over one domain become one fused row program.
//!
//! A fused unit works on a domain of `rows x cols` elements in row-major order. Inside it a value is *full* (one
//! element per domain element), *row* (one per row) or the result of a reduction over rows, which is only written out.
//! Because everything is stated on the linear order of elements, shapes inside a unit may differ (`[b, t, c]` and
//! `[b * t, c]`); what decides is [`Strided::runs`].

use std::cell::Cell;
use std::collections::HashSet;

use smallvec::{SmallVec, smallvec};

use crate::graph::{Graph, Node, Phase, Value};
use crate::lower::access::{Strided, resolve};
use crate::op::{Op, Reduce, ReduceOp, Source, View};

/// The most nodes of one fused unit; more would not keep their values in the first-level cache.
const MAX_NODES_PER_UNIT: usize = 64;

/// A sum over everything up to this many elements is one row, so that what follows it may fuse too.
const SINGLE_ROW: usize = 4096;

/// What runs as one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UnitKind {
    /// A fused row program.
    Fused,
    /// One node with a kernel of its own.
    Kernel,
    /// A view whose result gets a buffer of its own.
    Copy,
}

/// How a value of a fused unit lies in the unit's domain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Extent {
    /// One element per domain element.
    Full,
    /// One element per row.
    Row,
    /// `outer x cols` elements, combined over the rows between; not read inside the unit.
    Column,
}

/// Nodes that run as one.
#[derive(Clone, Debug)]
pub struct Unit {
    /// How they run.
    pub kind: UnitKind,
    /// In creation order.
    pub nodes: Vec<Node>,
    /// Elements of a fused unit's domain.
    pub domain: usize,
    /// Elements of a row, once a reduction has settled it.
    pub cols: Option<usize>,
    /// How many results a reduction over rows has for each column, once one has settled it.
    pub outer: Option<usize>,
    /// The extent of each node of a fused unit.
    pub extents: Vec<Extent>,
}

/// The units of a graph and the values that get buffers.
pub struct Partition {
    /// Every unit; not in an order to run them.
    pub units: Vec<Unit>,
    /// The unit of each node, by node index; `None` for sources and views without a buffer.
    pub unit_of: Vec<Option<usize>>,
    /// The values with a buffer, by value index, inputs included.
    pub stored: Vec<bool>,
}

/// How a reduction's axes lie in its operand: kept, reduced and kept sizes.
struct Pattern {
    outer: usize,
    reduced: usize,
    inner: usize,
}

fn pattern(graph: &Graph, operand: Value, reduce: &Reduce) -> Option<Pattern> {
    let sizes = graph.ty(operand).shape.sizes();
    let mut parts: SmallVec<[(bool, usize); 4]> = SmallVec::new();
    for (axis, size) in sizes.into_iter().enumerate().filter(|(_, size)| *size != 1) {
        let reduced = reduce.axes.contains(&axis);
        match parts.last_mut() {
            Some((same, n)) if *same == reduced => *n *= size,
            _ => parts.push((reduced, size)),
        }
    }
    let (outer, reduced, inner) = match parts.as_slice() {
        [] => (1, 1, 1),
        [(false, outer)] => (*outer, 1, 1),
        [(true, reduced)] => (1, *reduced, 1),
        [(false, outer), (true, reduced)] => (*outer, *reduced, 1),
        [(true, reduced), (false, inner)] => (1, *reduced, *inner),
        [(false, outer), (true, reduced), (false, inner)] => (*outer, *reduced, *inner),
        _ => return None,
    };
    Some(Pattern { outer, reduced, inner })
}

/// Whether a reduction fits the patterns that fused units know; others are split before.
pub fn fusible_reduction(graph: &Graph, operand: Value, reduce: &Reduce) -> bool {
    pattern(graph, operand, reduce).is_some_and(|p| reduce.op != ReduceOp::ArgMax || p.inner == 1)
}

struct Fuser<'a> {
    graph: &'a Graph,
    partition: Partition,
    /// The stored value that each operand of each node reads, by node index.
    roots: Vec<SmallVec<[Strided; 4]>>,
    /// For each node one at or before it, in the same run of nodes that the spans of units connect; at the first, itself.
    runs: Vec<Cell<usize>>,
    /// The last node of the forward pass, so far, with a kernel of its own.
    last_forward_kernel: Option<Node>,
}

/// Partitions a bound graph. With `fuse` false every node is a unit of its own.
pub fn partition(graph: &Graph, fuse: bool) -> Partition {
    let mut stored = stored_views(graph);
    let roots = graph
        .nodes()
        .map(|n| {
            let inputs = &graph.node(n).inputs;
            let window = |v: &Value| resolve(graph, *v, &|v| stored[v.index()]);
            inputs.iter().map(|v| window(v).expect("views that are no windows are stored")).collect()
        })
        .collect();
    let live = graph.live_nodes();
    let mut fuser = Fuser {
        graph,
        partition: Partition { units: Vec::new(), unit_of: vec![None; graph.node_count()], stored: Vec::new() },
        roots,
        runs: (0..graph.node_count()).map(Cell::new).collect(),
        last_forward_kernel: None,
    };
    for node in graph.nodes().filter(|n| live[n.index()]) {
        fuser.place(node, &stored, fuse);
    }
    fuser.mark_stored(&mut stored, &live);
    fuser.partition.units.retain(|unit| !unit.nodes.is_empty());
    for (index, unit) in fuser.partition.units.iter().enumerate() {
        for node in &unit.nodes {
            fuser.partition.unit_of[node.index()] = Some(index);
        }
    }
    Partition { stored, ..fuser.partition }
}

/// Views that need a buffer: no strided window, read by a kernel that cannot stride, or a result that is not a whole buffer.
fn stored_views(graph: &Graph) -> Vec<bool> {
    let mut stored = vec![false; graph.value_count()];
    // A view that gets a buffer changes the windows of the views behind it, also of those looked at before.
    loop {
        let before = stored.clone();
        add_stored_views(graph, &mut stored);
        if stored == before {
            return stored;
        }
    }
}

fn add_stored_views(graph: &Graph, stored: &mut [bool]) {
    let live = graph.live_nodes();
    for node in graph.nodes().filter(|n| live[n.index()]) {
        let data = graph.node(node);
        match &data.op {
            Op::View(View::Concat(_) | View::Pad { .. }) => {}
            Op::View(_) => {
                if resolve(graph, data.output(), &|v| stored[v.index()]).is_none() {
                    stored[data.output().index()] = true;
                }
            }
            op => {
                for (i, value) in data.inputs.iter().enumerate() {
                    let window = resolve(graph, *value, &|v| stored[v.index()]).expect("stored above");
                    if window.root != *value && !takes(op, i, &window) {
                        stored[value.index()] = true;
                    }
                }
            }
        }
    }
    let results = graph.outputs.iter().map(|(_, v)| (None, *v));
    for (target, value) in results.chain(graph.updates.iter().map(|(input, v)| (Some(*input), *v))) {
        let window = resolve(graph, value, &|v| stored[v.index()]).expect("stored above");
        let whole = graph.ty(window.root).elements();
        let changes = target != Some(window.root) && graph.updates.iter().any(|(input, _)| *input == window.root);
        if window.root != value && (changes || !window.is_contiguous() || window.numel() != whole) {
            stored[value.index()] = true;
        }
    }
}

/// Gives each result that is an updated input itself a view of its own, which gets a buffer: the old value.
pub fn keep_old_values(graph: &mut Graph) {
    let updated: Vec<Value> = graph.updates.iter().map(|(input, _)| *input).collect();
    let keep = |graph: &mut Graph, target: Option<Value>, value: Value| {
        if target == Some(value) || !updated.contains(&value) {
            return value;
        }
        let ty = graph.ty(value).clone();
        let site = graph.node(graph.producer(value)).site;
        let view = Op::View(View::Reshape(ty.shape.clone()));
        let node = graph.push(view, smallvec![value], [ty], site, Phase::Update);
        graph.node(node).output()
    };
    for i in 0..graph.outputs.len() {
        let value = graph.outputs[i].1;
        graph.outputs[i].1 = keep(graph, None, value);
    }
    for i in 0..graph.updates.len() {
        let (input, value) = graph.updates[i];
        graph.updates[i].1 = keep(graph, Some(input), value);
    }
}

/// Whether the kernel of `op` can read operand `index` through `window`. Every backend keeps to this.
fn takes(op: &Op, index: usize, window: &Strided) -> bool {
    match op {
        Op::Source(_) | Op::Unary(_) | Op::Binary(_) | Op::Select | Op::Cast(_) | Op::Reduce(_) | Op::View(_) => true,
        Op::Dot(_) if index == 2 => starts_alone(window),
        Op::Dot(_) => {
            let rank = window.sizes.len();
            let unit = |axis: usize| window.strides[axis] == 1 || window.sizes[axis] == 1;
            unit(rank - 1) || unit(rank - 2)
        }
        Op::Composite(composite) => {
            let (tensors, rank) = match composite.def.name {
                "attention" => (3, 4),
                "attention_gradient" => (6, 4),
                "expert_matmul" => (1, 3),
                "expert_outer" => (2, 3),
                _ => (0, 0),
            };
            let last = window.sizes.len().saturating_sub(1);
            let row = window.sizes.len() == rank && (window.strides[last] == 1 || window.sizes[last] == 1);
            starts_alone(window) || (index < tensors && row)
        }
        Op::Scatter(_) => starts_alone(window),
        Op::Random(_) => window.is_contiguous() && window.offset == 0,
        Op::Conv(_) | Op::Pool(_) | Op::Gather(_) | Op::Sort(_) => window.is_contiguous(),
    }
}

/// Whether a window has no strides, and is at the start of its buffer if it is one element: a position is read there.
fn starts_alone(window: &Strided) -> bool {
    window.is_contiguous() && (window.numel() != 1 || window.offset == 0)
}

impl Fuser<'_> {
    fn place(&mut self, node: Node, stored: &[bool], fuse: bool) {
        let data = self.graph.node(node);
        let kind = match &data.op {
            Op::Source(_) => return,
            Op::View(View::Concat(_) | View::Pad { .. }) => UnitKind::Kernel,
            Op::View(_) if stored[data.output().index()] => UnitKind::Copy,
            Op::View(_) => return,
            Op::Unary(_) | Op::Binary(_) | Op::Select | Op::Cast(_) | Op::Reduce(_) | Op::Random(_) => UnitKind::Fused,
            Op::Dot(_)
            | Op::Conv(_)
            | Op::Pool(_)
            | Op::Gather(_)
            | Op::Scatter(_)
            | Op::Sort(_)
            | Op::Composite(_) => UnitKind::Kernel,
        };
        if kind == UnitKind::Kernel && data.phase == Phase::Forward {
            self.last_forward_kernel = Some(node);
        }
        let mut candidates: Vec<usize> = Vec::new();
        if kind == UnitKind::Fused && fuse {
            let units = self.roots[node.index()].iter().filter_map(|w| self.unit_of_value(w.root));
            candidates =
                units.filter(|u| self.partition.units[*u].kind == UnitKind::Fused && self.may_join(node, *u)).collect();
            candidates.sort_unstable_by_key(|u| std::cmp::Reverse(self.last(*u)));
            candidates.dedup();
        }
        let home = candidates.iter().copied().find_map(|unit| {
            let joined = self.joined(unit, node)?;
            let others = self.operand_units(node).filter(|u| *u != unit).collect();
            (!self.reaches(others, unit)).then_some((unit, joined))
        });
        let Some((home, joined)) = home else {
            let unit = self.alone(kind, node);
            self.partition.unit_of[node.index()] = Some(self.partition.units.len());
            self.partition.units.push(unit);
            return;
        };
        self.partition.units[home] = joined;
        self.partition.unit_of[node.index()] = Some(home);
        self.connect(home);
        for other in candidates.into_iter().filter(|u| *u != home) {
            self.merge(home, other);
        }
    }

    /// Whether the results of `node` are wanted soon after `unit` runs. What a later phase makes of forward values runs
    /// in that phase, where it is needed, and not in the forward pass, which would have to store it till then. Behind the
    /// last kernel of the forward pass there is nothing to wait for. The update waits for the norm of all gradients: in
    /// one unit with what makes a gradient it would keep new weights and state until the norm is known.
    fn may_join(&self, node: Node, unit: usize) -> bool {
        let phase = |n: Node| self.graph.node(n).phase;
        let forward = |n: Node| phase(n) == Phase::Forward;
        let nodes = &self.partition.units[unit].nodes;
        nodes.iter().all(|n| (phase(*n) == Phase::Update) == (phase(node) == Phase::Update))
            && (forward(node) || nodes.iter().all(|n| !forward(*n) || Some(*n) > self.last_forward_kernel))
    }

    /// A unit of one node.
    fn alone(&self, kind: UnitKind, node: Node) -> Unit {
        let data = self.graph.node(node);
        let mut unit = Unit { kind, nodes: vec![], domain: 0, cols: None, outer: None, extents: vec![] };
        if kind == UnitKind::Fused {
            let widest = match &data.op {
                Op::Reduce(_) => data.inputs[0],
                _ => data.output(),
            };
            unit.domain = self.graph.ty(widest).elements();
            return self.with_node(&unit, node).expect("a node fits a unit of its own; reductions have been split");
        }
        unit.nodes.push(node);
        unit
    }

    fn unit_of_value(&self, value: Value) -> Option<usize> {
        self.partition.unit_of[self.graph.producer(value).index()]
    }

    fn operand_units(&self, node: Node) -> impl Iterator<Item = usize> + '_ {
        self.roots[node.index()].iter().filter_map(|w| self.unit_of_value(w.root))
    }

    fn last(&self, unit: usize) -> usize {
        self.partition.units[unit].nodes.last().map_or(0, |n| n.index())
    }

    fn first(&self, unit: usize) -> usize {
        self.partition.units[unit].nodes.first().map_or(usize::MAX, |n| n.index())
    }

    /// Makes the nodes from the first to the last of a unit one run.
    fn connect(&self, unit: usize) {
        let first = self.run_start(self.first(unit));
        let mut at = self.run_start(self.last(unit));
        while at > first {
            self.runs[at].set(first);
            at = self.run_start(at - 1);
        }
    }

    /// The first node of a node's run.
    fn run_start(&self, mut node: usize) -> usize {
        while self.runs[node].get() != node {
            let before = self.runs[self.runs[node].get()].get();
            self.runs[node].set(before);
            node = before;
        }
        node
    }

    /// Whether any of `from` needs a result of `target`, through whatever units.
    fn reaches(&self, mut from: Vec<usize>, target: usize) -> bool {
        // No unit has nodes both before the start of a run and in it, so what lies before needs nothing of the run.
        let earliest = self.run_start(self.first(target));
        let mut seen: HashSet<usize> = HashSet::new();
        while let Some(unit) = from.pop() {
            if unit == target {
                return true;
            }
            if self.last(unit) < earliest || !seen.insert(unit) {
                continue;
            }
            for node in &self.partition.units[unit].nodes {
                from.extend(self.operand_units(*node).filter(|u| *u != unit));
            }
        }
        false
    }

    /// `unit` with `node`, where every operand that the unit makes can be read inside it.
    fn joined(&self, unit: usize, node: Node) -> Option<Unit> {
        let unit = &self.partition.units[unit];
        (unit.nodes.len() < MAX_NODES_PER_UNIT).then(|| self.with_node(unit, node))?
    }

    fn with_node(&self, unit: &Unit, node: Node) -> Option<Unit> {
        let data = self.graph.node(node);
        let mut unit = unit.clone();
        let extent = match &data.op {
            Op::Reduce(reduce) => {
                if self.graph.ty(data.inputs[0]).elements() != unit.domain {
                    return None;
                }
                let p = pattern(self.graph, data.inputs[0], reduce)?;
                let by_row =
                    p.inner == 1 && (p.outer > 1 || unit.domain <= SINGLE_ROW || reduce.op == ReduceOp::ArgMax);
                let cols = if by_row { p.reduced } else { p.inner };
                // A sum over everything leaves the rows open: its partial sums follow any split.
                let settles = by_row || p.inner > 1;
                let has_total = unit.outer.is_some() && unit.cols.is_none();
                if settles && (has_total || unit.cols.is_some_and(|c| c != cols)) {
                    return None;
                }
                if by_row {
                    unit.cols = Some(cols);
                    Extent::Row
                } else {
                    if unit.outer.is_some_and(|o| o != p.outer) || (!settles && unit.cols.is_some()) {
                        return None;
                    }
                    if settles {
                        unit.cols = Some(cols);
                    }
                    unit.outer = Some(p.outer);
                    Extent::Column
                }
            }
            // The key is read from a buffer.
            Op::Random(_) if unit.nodes.contains(&self.graph.producer(self.roots[node.index()][0].root)) => {
                return None;
            }
            _ => {
                let elements = self.graph.ty(data.output()).elements();
                if elements == unit.domain {
                    Extent::Full
                } else if unit.cols.is_some_and(|c| elements * c == unit.domain) {
                    Extent::Row
                } else {
                    return None;
                }
            }
        };
        let wanted = if matches!(data.op, Op::Reduce(_)) { Extent::Full } else { extent };
        for window in &self.roots[node.index()] {
            if !readable(&unit, window, wanted, self.graph.producer(window.root)) {
                return None;
            }
        }
        let at = unit.nodes.partition_point(|n| *n < node);
        unit.nodes.insert(at, node);
        unit.extents.insert(at, extent);
        Some(unit)
    }

    /// Merges the fused unit `other`, which makes operands of `home`, into `home` where that is possible.
    fn merge(&mut self, home: usize, other: usize) {
        let (a, b) = (&self.partition.units[home], &self.partition.units[other]);
        if a.domain != b.domain || a.nodes.len() + b.nodes.len() > MAX_NODES_PER_UNIT {
            return;
        }
        let outside = |unit: usize, not: usize| -> Vec<usize> {
            let nodes = &self.partition.units[unit].nodes;
            nodes.iter().flat_map(|n| self.operand_units(*n)).filter(|u| *u != unit && *u != not).collect()
        };
        if self.reaches(outside(home, other), other) || self.reaches(outside(other, home), home) {
            return;
        }
        let mut nodes: Vec<Node> = a.nodes.iter().chain(&b.nodes).copied().collect();
        nodes.sort_unstable();
        let empty = Unit { nodes: vec![], extents: vec![], cols: a.cols.or(b.cols), outer: None, ..a.clone() };
        let merged = nodes.iter().try_fold(empty, |unit, node| self.with_node(&unit, *node));
        let Some(merged) = merged else { return };
        for node in &merged.nodes {
            self.partition.unit_of[node.index()] = Some(home);
        }
        self.partition.units[home] = merged;
        self.partition.units[other].nodes.clear();
        self.connect(home);
    }

    /// Marks what is read from outside its unit, and sources that kernels or results read.
    fn mark_stored(&mut self, stored: &mut [bool], live: &[bool]) {
        let graph = self.graph;
        for node in graph.nodes().filter(|n| live[n.index()]) {
            let Some(unit) = self.partition.unit_of[node.index()] else {
                if let Op::Source(Source::Input { .. }) = graph.node(node).op {
                    stored[graph.node(node).output().index()] = true;
                }
                continue;
            };
            let fused = self.partition.units[unit].kind == UnitKind::Fused;
            let random = matches!(graph.node(node).op, Op::Random(_));
            if !fused {
                for value in graph.node(node).outputs() {
                    stored[value.index()] = true;
                }
            }
            for window in &self.roots[node.index()] {
                let producer = graph.producer(window.root);
                let inside = self.partition.unit_of[producer.index()] == Some(unit);
                let generated = fused && !random && matches!(graph.node(producer).op, Op::Source(_));
                if !inside && !generated {
                    stored[window.root.index()] = true;
                }
            }
        }
        let results = graph.outputs.iter().map(|(_, v)| v).chain(graph.updates.iter().map(|(_, v)| v));
        for value in results {
            let window = resolve(graph, *value, &|v| stored[v.index()]).expect("results are whole buffers");
            stored[window.root.index()] = true;
        }
        // A generated value that needs a buffer is a unit of its own.
        for node in graph.nodes().filter(|n| live[n.index()]) {
            let data = graph.node(node);
            if let Op::Source(Source::Constant { .. } | Source::Iota { .. }) = data.op
                && stored[data.output().index()]
            {
                let domain = graph.ty(data.output()).elements();
                let unit = Unit {
                    kind: UnitKind::Fused,
                    nodes: vec![node],
                    domain,
                    cols: None,
                    outer: None,
                    extents: vec![Extent::Full],
                };
                self.partition.units.push(unit);
            }
        }
    }
}

/// Whether a node of extent `wanted` can read `window` inside `unit`; what other units make can always be read.
fn readable(unit: &Unit, window: &Strided, wanted: Extent, producer: Node) -> bool {
    let Ok(at) = unit.nodes.binary_search(&producer) else { return true };
    let cols = unit.cols.unwrap_or(1);
    let rows = unit.domain.checked_div(cols).unwrap_or(0);
    let identity = window.is_contiguous() && window.offset == 0;
    match (unit.extents[at], wanted) {
        (Extent::Full, Extent::Full) => identity && window.numel() == unit.domain,
        (Extent::Row, Extent::Row) => identity && window.numel() == rows,
        (Extent::Row, Extent::Full) => repeats_rows(window, rows, cols),
        _ => false,
    }
}

/// Whether `window` reads each of `rows` elements `cols` times in a row.
pub(crate) fn repeats_rows(window: &Strided, rows: usize, cols: usize) -> bool {
    let runs = window.runs();
    let runs: &[(usize, usize)] = &runs;
    let expected: &[(usize, usize)] = match (rows, cols) {
        (_, 1) => return window.is_contiguous() && window.numel() == rows,
        (1, _) => return matches!(runs, [(n, 0)] if *n == cols),
        _ => &[(rows, 1), (cols, 0)],
    };
    window.offset == 0 && runs == expected
}
