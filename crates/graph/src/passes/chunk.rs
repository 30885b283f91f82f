//! Wide results of a product in chunks of rows: the logits of a large vocabulary are never whole.
//!
//! A product `x W` whose result is larger than [`CHUNK_BYTES`] starts a *region*: what works on its rows one by one, up to
//! rows without that width (a loss), to products of the rows with a matrix, and to sums of products over the rows (the
//! gradient of `W`). The region is computed once per chunk of rows. No bit changes: rows do not know each other, and a
//! product over the rows goes on from the sum of the chunks before, one product after the other.

use std::collections::{HashMap, HashSet};

use smallvec::SmallVec;

use crate::diagnostic::Diagnostic;
use crate::graph::{Graph, Node, Value};
use crate::op::{Dot, Op, Reduce, View};
use crate::passes::rewrite::{Results, Visit, rewrite};
use crate::tensor::Tensor;
use crate::types::DType;

/// The most bytes of a chunk of a wide value. Smaller chunks would read the matrix, and the gradient's sum, from memory too
/// often for their work.
pub const CHUNK_BYTES: usize = 128 << 20;

/// Chunks may have so many rows whatever their bytes.
const ROWS: usize = 64;

/// Chunks begin at multiples of this many rows, and none has fewer: a product of few rows, or of an odd number of rows in
/// bf16, adds in another order.
const STEP: usize = 16;

/// `graph` with every region whose wide value has more than `limit` bytes in chunks.
///
/// # Errors
/// Those of [`rewrite`].
pub fn chunk(graph: &Graph, limit: usize) -> Result<Graph, Diagnostic> {
    let mut graph = graph.clone();
    // The products of chunks are no larger than allowed, so each round leaves one product less.
    while let Some(region) = graph.nodes().find_map(|node| Region::of(&graph, node, limit)) {
        graph = region.rewritten(&graph)?;
    }
    Ok(graph)
}

/// How a value of a region lies in its `rows x cols` elements. Both keep the row-major order whatever their shape.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extent {
    /// An element for each.
    Wide,
    /// An element for each row.
    Row,
}

/// What leaves a region.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Exit {
    /// A product of wide rows with a matrix: rows again.
    Rows,
    /// A product that sums over the rows.
    Sum,
}

struct Region {
    rows: usize,
    cols: usize,
    /// Where the chunks start.
    starts: Vec<usize>,
    /// The product that it starts with.
    start: Node,
    /// The extents of values that can be computed chunk by chunk.
    extents: HashMap<Value, Extent>,
    /// The products at its end.
    exits: HashMap<Node, Exit>,
    /// The nodes that depend on the product, in creation order: they exist chunk by chunk only.
    nodes: Vec<Node>,
    /// Other nodes whose rows they need and which are not stored: computed for each chunk as well, in creation order.
    others: Vec<Node>,
}

impl Region {
    /// The region that starts with the product `start`, if there is one.
    fn of(graph: &Graph, start: Node, limit: usize) -> Option<Region> {
        let data = graph.node(start);
        let Op::Dot(Dot { transpose_a: false, .. }) = &data.op else { return None };
        let ty = graph.ty(data.output());
        let [rows, cols] = *ty.shape.sizes().as_slice() else { return None };
        let most = (limit / (cols * ty.dtype.size()).max(1)).max(ROWS) / STEP * STEP;
        if rows <= most || cols < 2 || data.inputs.len() != 2 {
            return None;
        }
        let chunks = rows.div_ceil(most);
        let each = rows.div_ceil(chunks).next_multiple_of(STEP);
        let last = (rows - STEP) / STEP * STEP;
        let starts = (0..chunks).map(|i| (i * each).min(last)).collect();
        let mut region = Region {
            rows,
            cols,
            starts,
            start,
            extents: HashMap::from([(data.output(), Extent::Wide)]),
            exits: HashMap::new(),
            nodes: vec![start],
            others: Vec::new(),
        };
        region.grow(graph)?;
        (region.nodes.len() > 1).then_some(region)
    }

    /// Adds what follows; `None` if a wide value is wanted as a whole.
    fn grow(&mut self, graph: &Graph) -> Option<()> {
        let live = graph.live_nodes();
        // By value: whether it depends on the product.
        let mut depends = vec![false; graph.value_count()];
        let mut inside = vec![false; graph.node_count()];
        depends[graph.node(self.start).output().index()] = true;
        inside[self.start.index()] = true;
        for node in graph.nodes().filter(|n| live[n.index()] && *n != self.start) {
            let data = graph.node(node);
            let from_start = data.inputs.iter().any(|v| depends[v.index()]);
            data.outputs().for_each(|v| depends[v.index()] = from_start);
            // What depends on a result of the region can be no operand of it.
            let late = |v: &Value| depends[v.index()] && !inside[graph.producer(*v).index()];
            let ready = !data.inputs.iter().any(late);
            let extent = if ready { self.extent(graph, node) } else { None };
            let exit = if ready && from_start { self.exit(graph, node) } else { None };
            if let Some(extent) = extent {
                self.extents.insert(data.output(), extent);
            } else if let Some(exit) = exit {
                self.exits.insert(node, exit);
            } else {
                let whole = |v: &Value| depends[v.index()] && self.extents.get(v) == Some(&Extent::Wide);
                if data.inputs.iter().any(whole) {
                    return None;
                }
                continue;
            }
            // What ends in an exit is no operand of the region either, so `inside` holds for extents only.
            inside[node.index()] = extent.is_some();
            if from_start {
                self.nodes.push(node);
            } else {
                self.others.push(node);
            }
        }
        let results = graph.outputs.iter().map(|(_, v)| v).chain(graph.updates.iter().map(|(_, v)| v));
        let whole = |v: &Value| depends[v.index()] && self.extents.get(v) == Some(&Extent::Wide);
        if results.into_iter().any(whole) {
            return None;
        }
        let mut needed: HashSet<Value> = self.nodes.iter().flat_map(|n| self.rows_of(graph, *n)).collect();
        for node in std::mem::take(&mut self.others).into_iter().rev() {
            if needed.contains(&graph.node(node).output()) {
                needed.extend(self.rows_of(graph, node));
                self.others.push(node);
            }
        }
        self.others.reverse();
        Some(())
    }

    /// The operands of which a node of the region needs the rows of a chunk: all but the matrix that rows are multiplied by.
    fn rows_of(&self, graph: &Graph, node: Node) -> SmallVec<[Value; 4]> {
        let data = graph.node(node);
        let with_matrix = matches!(data.op, Op::Dot(_)) && self.exits.get(&node) != Some(&Exit::Sum);
        if with_matrix { SmallVec::from_slice(&data.inputs[..1]) } else { data.inputs.clone() }
    }

    /// The extent of a node's result if the region can compute it.
    fn extent(&self, graph: &Graph, node: Node) -> Option<Extent> {
        let data = graph.node(node);
        let known = |i: usize| self.extents.get(&data.inputs[i]).copied();
        let sizes = |v: Value| graph.ty(v).shape.sizes();
        let is_wide = |v: Value| sizes(v).last() == Some(&self.cols) && graph.ty(v).elements() == self.rows * self.cols;
        match &data.op {
            Op::Unary(_) | Op::Binary(_) | Op::Select | Op::Cast(_) => {
                // Also what does not depend on the product: stored for all rows it would be as large.
                let wide = is_wide(data.output()).then_some(Extent::Wide);
                (0..data.inputs.len()).find_map(known).or(wide)
            }
            Op::View(View::Reshape(_)) => known(0),
            Op::View(View::Broadcast(to)) => {
                let (from, to) = (sizes(data.inputs[0]), to.sizes());
                let along_rows = from.split_last()?.1 == to.split_last()?.1 && is_wide(data.output());
                (known(0)? == Extent::Row && along_rows).then_some(Extent::Wide)
            }
            Op::Reduce(Reduce { axes, .. }) => {
                let last = sizes(data.inputs[0]).len().checked_sub(1)?;
                let of_rows = axes.as_slice() == [last] && is_wide(data.inputs[0]);
                (known(0)? == Extent::Wide && of_rows).then_some(Extent::Row)
            }
            Op::Source(_)
            | Op::View(_)
            | Op::Dot(_)
            | Op::Conv(_)
            | Op::Pool(_)
            | Op::Gather(_)
            | Op::Scatter(_)
            | Op::Sort(_)
            | Op::Random(_)
            | Op::Composite(_) => None,
        }
    }

    /// How a node that is no part of the region takes its wide rows, if chunk by chunk.
    fn exit(&self, graph: &Graph, node: Node) -> Option<Exit> {
        let data = graph.node(node);
        let Op::Dot(dot) = &data.op else { return None };
        let [a, b] = *data.inputs.as_slice() else { return None };
        let is_matrix = |v: Value| graph.ty(v).shape.sizes().as_slice() == [self.rows, self.cols];
        let wide = [a, b].map(|v| self.extents.get(&v) == Some(&Extent::Wide) && is_matrix(v));
        match (wide, dot.transpose_a, dot.transpose_b) {
            ([true, false], false, _) if !self.extents.contains_key(&b) => Some(Exit::Rows),
            // A sum that is rounded to bf16 after each chunk would be another.
            ([true, false] | [false, true], true, false) if dot.dtype == DType::F32 => Some(Exit::Sum),
            _ => None,
        }
    }

    /// `graph` with the region in chunks, at the place of its first product.
    fn rewritten(&self, graph: &Graph) -> Result<Graph, Diagnostic> {
        let mut done: HashMap<Value, Value> = HashMap::new();
        let within: HashSet<Node> = self.nodes.iter().copied().collect();
        rewrite(graph, |visit| {
            if visit.node == self.start {
                self.compute(visit, &mut done);
            }
            let data = visit.data();
            if !within.contains(&visit.node) && data.outputs().any(|v| !done.contains_key(&v)) {
                done.extend(data.outputs().zip(visit.keep().iter().map(|t| t.value())));
            }
            Some(data.outputs().map(|v| visit.builder.tensor(done[&v])).collect())
        })
    }

    /// All chunks, one after the other, and what is made of them. `done` then has every value of the region: those that
    /// nothing outside reads stand for their last chunk.
    fn compute(&self, visit: &Visit<'_, '_>, done: &mut HashMap<Value, Value>) {
        let (graph, builder) = (visit.graph, visit.builder);
        let (site, phase) = (builder.site_id(), builder.phase());
        let mut nodes: Vec<Node> = self.nodes.iter().chain(&self.others).copied().collect();
        nodes.sort_unstable();
        let made: HashSet<Value> = nodes.iter().map(|n| graph.node(*n).output()).collect();
        for node in &nodes {
            let operands = &graph.node(*node).inputs;
            let of_rows = self.rows_of(graph, *node).len();
            let rows = operands[..of_rows].iter().filter(|v| !made.contains(v));
            rows.chain(&operands[of_rows..]).for_each(|v| ensure(visit, *v, done));
        }
        let ends = self.starts[1..].iter().copied().chain([self.rows]);
        let mut parts: HashMap<Value, Vec<Value>> = HashMap::new();
        for rows in self.starts.iter().zip(ends).map(|(start, end)| *start..end) {
            let mut part: HashMap<Value, Value> = HashMap::new();
            for node in &nodes {
                let data = graph.node(*node);
                builder.set_site(graph.site(*node));
                builder.set_phase(data.phase);
                let so_far = parts.get(&data.output()).and_then(|p| p.last().copied());
                let result = self.part(visit, *node, &rows, done, &part, so_far);
                part.insert(data.output(), result.value());
                parts.entry(data.output()).or_default().push(result.value());
            }
        }
        for node in &self.nodes {
            let value = graph.node(*node).output();
            let pieces: Vec<Tensor<'_>> = parts[&value].iter().map(|v| builder.tensor(*v)).collect();
            let last = *pieces.last().expect("there are chunks");
            let whole = match (self.exits.get(node), self.extents.get(&value)) {
                (Some(Exit::Sum), _) | (None, Some(Extent::Wide) | None) => last,
                (Some(Exit::Rows), _) | (None, Some(Extent::Row)) => {
                    builder.set_site(graph.site(*node));
                    builder.set_phase(graph.node(*node).phase);
                    builder.concat(&pieces, 0).reshape(graph.ty(value).shape.clone())
                }
            };
            done.insert(value, whole.value());
        }
        builder.set_site_id(site);
        builder.set_phase(phase);
    }

    /// The result of a node for some rows: `[rows, cols]` where it is wide, `[rows, 1]` where it has an element per row.
    fn part<'g>(
        &self,
        visit: &Visit<'_, 'g>,
        node: Node,
        rows: &std::ops::Range<usize>,
        done: &HashMap<Value, Value>,
        part: &HashMap<Value, Value>,
        so_far: Option<Value>,
    ) -> Tensor<'g> {
        let (graph, builder) = (visit.graph, visit.builder);
        let data = graph.node(node);
        let whole = |v: Value| builder.tensor(done[&v]);
        // These rows of a value that was computed as a whole, with `cols` elements each.
        let sliced = |v: Value| {
            let cols = graph.ty(v).elements() / self.rows;
            whole(v).reshape([self.rows, cols]).slice(0, rows.start, rows.len())
        };
        let operand = |v: Value| part.get(&v).map_or_else(|| sliced(v), |v| builder.tensor(*v));
        let of_rows = self.rows_of(graph, node);
        let matrix = data.inputs[of_rows.len()..].iter().map(|v| whole(*v));
        let mut operands: SmallVec<[Tensor<'g>; 4]> = of_rows.iter().map(|v| operand(*v)).chain(matrix).collect();
        if self.exits.get(&node) == Some(&Exit::Sum) {
            operands.extend(so_far.map(|v| builder.tensor(v)));
        }
        match &data.op {
            Op::View(View::Broadcast(_)) => operands[0].broadcast([rows.len(), self.cols]),
            Op::View(_) => operands[0],
            Op::Reduce(reduce) => {
                builder.add(Op::Reduce(Reduce { axes: SmallVec::from_slice(&[1]), ..reduce.clone() }), &operands, 1)[0]
            }
            op => builder.add(op.clone(), &operands, 1)[0],
        }
    }
}

/// Adds a value from outside the region, with all that it needs, to the new graph if it is not there yet.
fn ensure(visit: &Visit<'_, '_>, value: Value, done: &mut HashMap<Value, Value>) {
    let (graph, builder) = (visit.graph, visit.builder);
    let mut stack = vec![value];
    while let Some(value) = stack.last().copied() {
        let node = graph.producer(value);
        let data = graph.node(node);
        let missing: Vec<Value> = data.inputs.iter().copied().filter(|v| !done.contains_key(v)).collect();
        if done.contains_key(&value) {
            stack.pop();
        } else if missing.is_empty() {
            builder.set_site(graph.site(node));
            builder.set_phase(data.phase);
            let operands: SmallVec<[Tensor<'_>; 4]> = data.inputs.iter().map(|v| builder.tensor(done[v])).collect();
            let results: Results<'_> = builder.add(data.op.clone(), &operands, data.outputs().len());
            done.extend(data.outputs().zip(results.iter().map(|t| t.value())));
        } else {
            stack.extend(missing);
        }
    }
}
