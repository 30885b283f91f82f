//! The order of the units: as the program was written, as far as operands and in-place updates allow.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use crate::graph::{Graph, Value};
use crate::lower::access::{Strided, resolve};
use crate::lower::fuse::Partition;
use crate::lower::once;

/// Units in the order they run, and what happens to updated inputs.
pub struct Schedule {
    /// Unit numbers.
    pub order: Vec<usize>,
    /// How many of them, the first, need to run only once.
    pub once: usize,
    /// Values that are computed right into the buffer of the input they update.
    pub in_place: HashMap<Value, Value>,
    /// Updates that are copied when everything else has run: (input, new value).
    pub copied: Vec<(Value, Value)>,
    /// What each unit reads, by unit number.
    pub read: Vec<Vec<Strided>>,
}

/// The stored values that a unit reads, with the windows through which it does.
fn reads(graph: &Graph, partition: &Partition, unit: usize) -> Vec<Strided> {
    let nodes = &partition.units[unit].nodes;
    let mut windows: Vec<Strided> = Vec::new();
    for value in nodes.iter().flat_map(|n| graph.node(*n).inputs.iter()) {
        let stored = |v: Value| partition.stored[v.index()];
        let window = resolve(graph, *value, &stored).expect("views that are no windows are stored");
        let made_here = partition.unit_of[graph.producer(window.root).index()] == Some(unit);
        if stored(window.root) && !made_here && !windows.contains(&window) {
            windows.push(window);
        }
    }
    windows
}

/// The stored values that a unit makes.
pub fn writes(graph: &Graph, partition: &Partition, unit: usize) -> Vec<Value> {
    let nodes = &partition.units[unit].nodes;
    let results = nodes.iter().flat_map(|n| graph.node(*n).outputs());
    results.filter(|v| partition.stored[v.index()]).collect()
}

/// Orders the units.
pub fn schedule(graph: &Graph, partition: &Partition) -> Schedule {
    let count = partition.units.len();
    let read: Vec<Vec<Strided>> = (0..count).map(|u| reads(graph, partition, u)).collect();
    let mut after: Vec<Vec<usize>> = vec![Vec::new(); count];
    let mut waits: Vec<usize> = vec![0; count];
    for (unit, windows) in read.iter().enumerate() {
        for window in windows {
            if let Some(producer) = partition.unit_of[graph.producer(window.root).index()] {
                after[producer].push(unit);
                waits[unit] += 1;
            }
        }
    }
    let mut in_place = HashMap::new();
    let mut copied = Vec::new();
    for (input, new) in &graph.updates {
        let stored = |v: Value| partition.stored[v.index()];
        let root = resolve(graph, *new, &stored).expect("results are whole buffers").root;
        let writer = partition.unit_of[graph.producer(root).index()];
        let readers: Vec<usize> =
            (0..count).filter(|u| Some(*u) != writer && read[*u].iter().any(|w| w.root == *input)).collect();
        let legal = writer.is_some_and(|writer| {
            !in_place.contains_key(&root)
                && reuses(graph, partition, writer, &read[writer], root, *input)
                && !depends_on_any(writer, &readers, &after)
        });
        match writer {
            Some(writer) if legal => {
                in_place.insert(root, *input);
                for reader in readers {
                    after[reader].push(writer);
                    waits[writer] += 1;
                }
            }
            _ if root == *input => {}
            _ => copied.push((*input, root)),
        }
    }
    let once = once::units(graph, partition);
    let key = |unit: usize| (!once[unit], partition.units[unit].nodes.last().map_or(0, |n| n.index()));
    let mut ready: BinaryHeap<Reverse<((bool, usize), usize)>> =
        (0..count).filter(|u| waits[*u] == 0).map(|u| Reverse((key(u), u))).collect();
    let mut order = Vec::with_capacity(count);
    while let Some(Reverse((_, unit))) = ready.pop() {
        order.push(unit);
        for next in &after[unit] {
            waits[*next] -= 1;
            if waits[*next] == 0 {
                ready.push(Reverse((key(*next), *next)));
            }
        }
    }
    assert_eq!(order.len(), count, "the units of a partition have no cycle");
    let once = order.iter().take_while(|unit| once[**unit]).count();
    Schedule { order, once, in_place, copied, read }
}

/// Whether any of `readers` needs a result of `writer`.
fn depends_on_any(writer: usize, readers: &[usize], after: &[Vec<usize>]) -> bool {
    if readers.is_empty() {
        return false;
    }
    let mut seen = vec![false; after.len()];
    let mut stack = vec![writer];
    while let Some(unit) = stack.pop() {
        for next in &after[unit] {
            if !std::mem::replace(&mut seen[*next], true) {
                stack.push(*next);
            }
        }
    }
    readers.iter().any(|r| seen[*r])
}

/// Whether `unit` may compute `result` into the buffer of `operand`: each element is read before it is written and not again.
pub fn reuses(
    graph: &Graph,
    partition: &Partition,
    unit: usize,
    read: &[Strided],
    result: Value,
    operand: Value,
) -> bool {
    use crate::lower::fuse::{Extent, UnitKind};
    use crate::op::Op;
    if graph.ty(result).bytes() != graph.ty(operand).bytes()
        || graph.ty(result).dtype.size() != graph.ty(operand).dtype.size()
    {
        return false;
    }
    let windows: Vec<&Strided> = read.iter().filter(|w| w.root == operand).collect();
    match partition.units[unit].kind {
        UnitKind::Fused => {
            let whole = |w: &&Strided| w.is_contiguous() && w.numel() == graph.ty(operand).elements();
            let at = partition.units[unit].nodes.binary_search(&graph.producer(result));
            let full = at.is_ok_and(|at| partition.units[unit].extents[at] == Extent::Full);
            let root = |v: Value| resolve(graph, v, &|v| partition.stored[v.index()]).map(|w| w.root);
            let is_key = |node: &crate::graph::Node| {
                let data = graph.node(*node);
                matches!(data.op, Op::Random(_)) && root(data.inputs[0]) == Some(operand)
            };
            full && !partition.units[unit].nodes.iter().any(is_key)
                && windows.iter().all(whole)
                && graph.ty(operand).elements() == partition.units[unit].domain
        }
        UnitKind::Kernel => {
            let node = graph.node(graph.producer(result));
            // Kernels write while they read, except for an operand that they are made to write over.
            let reads_it = |value: &Value| {
                resolve(graph, *value, &|v| partition.stored[v.index()]).is_some_and(|w| w.root == operand)
            };
            let replaced = node.op.replaced_operand(node.inputs.len());
            node.inputs.iter().enumerate().all(|(i, value)| Some(i) == replaced || !reads_it(value))
        }
        UnitKind::Copy => windows.is_empty(),
    }
}
