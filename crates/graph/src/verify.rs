//! The verifier: whether a graph is one. It runs after every pass.

use std::collections::HashSet;

use smallvec::SmallVec;

use crate::composite::composite;
use crate::graph::{Graph, Node, Value};
use crate::infer::infer;
use crate::op::{Op, Source};
use crate::types::Type;

#[cfg(test)]
mod tests;

/// Checks that operands come before their users, that types are those that follow, that names of inputs and of outputs
/// are unique, that updates are of inputs, of equal types and one for each, and that composites are registered.
///
/// # Errors
/// The first thing that is wrong, with the node.
pub fn verify(graph: &Graph) -> Result<(), String> {
    let mut names = HashSet::new();
    for node in graph.nodes() {
        let wrong = |message: String| {
            let data = graph.node(node);
            format!("node {} ({}, {}): {message}", node.index(), data.op.name(), graph.site(node))
        };
        check_node(graph, node).map_err(wrong)?;
        if let Op::Source(Source::Input { name, .. }) = &graph.node(node).op
            && !names.insert(name.clone())
        {
            return Err(wrong(format!("the name `{name}` is taken")));
        }
    }
    let exists = |value: Value, what: &str| {
        if value.index() < graph.value_count() { Ok(()) } else { Err(format!("{what} is no value of the graph")) }
    };
    let mut outputs = HashSet::new();
    for (name, value) in &graph.outputs {
        exists(*value, &format!("the output `{name}`"))?;
        if !outputs.insert(name) {
            return Err(format!("two outputs are called `{name}`"));
        }
    }
    let mut updated = HashSet::new();
    for (input, new) in &graph.updates {
        exists(*input, "an updated input")?;
        exists(*new, "an input's new value")?;
        can_update(graph, *input, *new)?;
        if !updated.insert(*input) {
            return Err(format!("%{} is updated a second time", input.index()));
        }
    }
    Ok(())
}

fn check_node(graph: &Graph, node: Node) -> Result<(), String> {
    let data = graph.node(node);
    for operand in &data.inputs {
        if operand.index() >= graph.value_count() || graph.producer(*operand) >= node {
            return Err(format!("the operand %{} does not come before it", operand.index()));
        }
    }
    well_formed(&data.op)?;
    let operands: SmallVec<[Type; 4]> = data.inputs.iter().map(|v| graph.ty(*v).clone()).collect();
    let inferred = infer(&data.op, &operands).map_err(|e| e.message)?;
    let have: SmallVec<[Type; 2]> = data.outputs().map(|v| graph.ty(v).clone()).collect();
    if inferred != have {
        let list = |types: &[Type]| types.iter().map(Type::to_string).collect::<Vec<_>>().join(", ");
        return Err(format!("its types are {}, and {} follow", list(&have), list(&inferred)));
    }
    Ok(())
}

/// What holds of every operation and no operand's type can tell.
pub(crate) fn well_formed(op: &Op) -> Result<(), String> {
    match op {
        Op::Reduce(reduce) if reduce.axes.windows(2).any(|w| w[0] >= w[1]) => {
            Err(format!("the axes {:?} do not ascend", reduce.axes.as_slice()))
        }
        Op::Composite(c) if !composite(c.def.name).is_some_and(|known| std::ptr::eq(known, c.def)) => {
            Err("the composite is not registered".into())
        }
        _ => Ok(()),
    }
}

/// Whether `input` is one and can hold `new`.
pub(crate) fn can_update(graph: &Graph, input: Value, new: Value) -> Result<(), String> {
    if !matches!(graph.op_of(input), Op::Source(Source::Input { .. })) {
        return Err(format!("%{} is updated and is no input", input.index()));
    }
    let (old, new) = (graph.ty(input), graph.ty(new));
    if old != new { Err(format!("an input of type {old} cannot hold {new}")) } else { Ok(()) }
}
