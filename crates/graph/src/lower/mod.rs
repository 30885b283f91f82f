//! From a bound graph to a program: units, their order, the place of every value. Nothing here depends on a machine.

pub mod access;
pub mod again;
pub mod fuse;
pub mod fused;
pub mod isolate;
pub mod memory;
pub mod once;
pub mod schedule;

use crate::graph::{Graph, Node, Value};
use access::{Strided, resolve};
use fuse::UnitKind;
use fused::Fused;
use memory::{Buffer, Place};

/// What a step does.
#[derive(Clone, Debug)]
pub enum Work {
    /// A fused row program.
    Fused(Fused),
    /// One node with a kernel of its own, and how it reads its operands.
    Kernel {
        /// The node.
        node: Node,
        /// Its operands, in order.
        operands: Vec<Strided>,
    },
    /// The elements of a window, in row-major order, into the buffer of `target`.
    Copy {
        /// What is read.
        source: Strided,
        /// The value whose buffer is written.
        target: Value,
    },
}

/// A step of a program.
#[derive(Clone, Debug)]
pub struct Step {
    /// What it does.
    pub work: Work,
    /// The nodes that it computes, in creation order; empty for the copy of an update.
    pub nodes: Vec<Node>,
    /// The values that it stores.
    pub writes: Vec<Value>,
}

impl Step {
    /// The stored values that it reads, each once, in ascending order.
    pub fn reads(&self) -> Vec<Value> {
        let mut values: Vec<Value> = match &self.work {
            Work::Fused(fused) => fused.instructions.iter().filter_map(|i| i.code.reads()).collect(),
            Work::Kernel { operands, .. } => operands.iter().map(|w| w.root).collect(),
            Work::Copy { source, .. } => vec![source.root],
        };
        values.sort_unstable();
        values.dedup();
        values
    }
}

/// A graph with everything decided: what runs when, and where every byte is.
#[derive(Clone, Debug)]
pub struct Program {
    /// The bound graph.
    pub graph: Graph,
    /// What runs, in order.
    pub steps: Vec<Step>,
    /// How many of the steps, the first, depend on weights alone: their results stay, and they need not run again until
    /// somebody else writes the weights or uses the arena.
    pub once: usize,
    /// The place of each value, by value index; `None` for values without a buffer.
    pub places: Vec<Option<Place>>,
    /// The buffers of the arena.
    pub buffers: Vec<Buffer>,
    /// Bytes of the arena.
    pub arena_bytes: usize,
}

impl Program {
    /// The place of a value that is stored or is a view of a whole stored value, such as a result of the graph.
    pub fn place(&self, value: Value) -> Option<Place> {
        let stored = |v: Value| self.places[v.index()].is_some();
        self.places[resolve(&self.graph, value, &stored)?.root.index()]
    }

    /// Whether a stored value changes only when somebody writes the weights.
    pub fn is_fixed(&self, value: Value) -> bool {
        let made_once = |step: &Step| step.writes.contains(&value);
        once::fixed_inputs(&self.graph)[value.index()] || self.steps[..self.once].iter().any(made_once)
    }

    /// The bytes of the arena in use during each step.
    pub fn profile(&self) -> Vec<usize> {
        memory::profile(&self.buffers, self.steps.len())
    }
}

/// Makes the program of a bound graph. With `fuse` false every node is a step of its own: the program that tests compare with.
pub fn lower(mut graph: Graph, fuse: bool) -> Program {
    fuse::keep_old_values(&mut graph);
    let mut partition = fuse::partition(&graph, fuse);
    if fuse && let Some(copied) = again::compute_again(&graph, &partition) {
        graph = copied;
        partition = fuse::partition(&graph, fuse);
    }
    let schedule = schedule::schedule(&graph, &partition);
    let memory = memory::place(&graph, &partition, &schedule);
    let stored = |v: Value| partition.stored[v.index()];
    let window = |v: Value| resolve(&graph, v, &stored).expect("views that are no windows are stored");
    let mut steps: Vec<Step> = Vec::with_capacity(schedule.order.len() + schedule.copied.len());
    for index in &schedule.order {
        let unit = &partition.units[*index];
        let work = match unit.kind {
            UnitKind::Fused => Work::Fused(fused::emit(&graph, &partition, *index)),
            UnitKind::Kernel => {
                let node = unit.nodes[0];
                Work::Kernel { node, operands: graph.node(node).inputs.iter().map(|v| window(*v)).collect() }
            }
            UnitKind::Copy => {
                let node = graph.node(unit.nodes[0]);
                let crate::op::Op::View(view) = &node.op else { unreachable!("only views are copied") };
                // A reshape keeps the row-major order of its operand, so that is what its copy has.
                let operand = window(node.inputs[0]);
                let source = match view {
                    crate::op::View::Reshape(_) => operand,
                    view => operand.through(view).expect("only reshapes of windows are no windows"),
                };
                Work::Copy { source, target: node.output() }
            }
        };
        steps.push(Step { work, nodes: unit.nodes.clone(), writes: schedule::writes(&graph, &partition, *index) });
    }
    for (input, new) in &schedule.copied {
        let work = Work::Copy { source: window(*new), target: *input };
        steps.push(Step { work, nodes: Vec::new(), writes: vec![*input] });
    }
    Program {
        steps,
        once: schedule.once,
        places: memory.places,
        buffers: memory.buffers,
        arena_bytes: memory.arena_bytes,
        graph,
    }
}
