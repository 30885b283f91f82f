//! A step of a program as a graph of its own, for the reference evaluator: the oracle of tests and of fault reports.

use std::collections::BTreeMap;

use crate::graph::{Graph, Value};
use crate::lower::{Program, Step, Work};
use crate::op::{Op, Role, Source};
use crate::tensor::{Builder, Tensor};

/// The name of the input or result that stands for a stored value.
pub fn name(value: Value) -> String {
    format!("v{}", value.index())
}

/// A step as a graph of its own.
pub struct Isolated {
    /// The graph: its inputs are the stored values that the step reads, its results the values that it writes, both called
    /// by [`name`]. Nodes keep their order and their sites.
    pub graph: Graph,
    /// The values that it reads.
    pub reads: Vec<Value>,
}

/// The graph of a step.
pub fn isolate(program: &Program, step: &Step) -> Isolated {
    let b = Builder::new();
    let mut copy = Copy { program, step, builder: &b, done: BTreeMap::new(), reads: Vec::new() };
    match &step.work {
        // The copy of an update has no node: its source is the new value.
        Work::Copy { source, target } if step.nodes.is_empty() => {
            let copied = copy.operand(source.root).reshape(program.graph.ty(*target).shape.clone());
            b.output(&name(*target), copied);
        }
        _ => {
            for value in step.nodes.iter().flat_map(|node| program.graph.node(*node).outputs()) {
                copy.made(value);
            }
            for value in &step.writes {
                let result = copy.made(*value);
                b.output(&name(*value), result);
            }
        }
    }
    let reads = copy.reads;
    Isolated { graph: b.finish().expect("the nodes of a program fit together"), reads }
}

struct Copy<'a, 'g> {
    program: &'a Program,
    step: &'a Step,
    builder: &'g Builder,
    done: BTreeMap<Value, Tensor<'g>>,
    reads: Vec<Value>,
}

impl<'g> Copy<'_, 'g> {
    /// A value as an operand: read if another step stored it.
    fn operand(&mut self, value: Value) -> Tensor<'g> {
        if let Some(tensor) = self.done.get(&value) {
            return *tensor;
        }
        let graph = &self.program.graph;
        let node = graph.producer(value);
        let elsewhere = self.program.places[value.index()].is_some() && !self.step.nodes.contains(&node);
        if elsewhere || matches!(graph.node(node).op, Op::Source(Source::Input { .. })) {
            let tensor = self.builder.input(&name(value), Role::Data, graph.ty(value).clone());
            self.done.insert(value, tensor);
            self.reads.push(value);
            return tensor;
        }
        self.made(value)
    }

    /// A value computed here.
    fn made(&mut self, value: Value) -> Tensor<'g> {
        if let Some(tensor) = self.done.get(&value) {
            return *tensor;
        }
        let graph = &self.program.graph;
        let node = graph.producer(value);
        let data = graph.node(node);
        let operands: Vec<Tensor<'g>> = data.inputs.iter().map(|v| self.operand(*v)).collect();
        self.builder.set_site(graph.site(node));
        self.builder.set_phase(data.phase);
        let results = self.builder.add(data.op.clone(), &operands, data.outputs().len());
        self.done.extend(data.outputs().zip(results));
        self.done[&value]
    }
}
