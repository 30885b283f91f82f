//! Common subexpressions: the same operation on the same operands is computed once in a phase.

use std::collections::HashMap;

use smallvec::SmallVec;

use crate::diagnostic::Diagnostic;
use crate::graph::{Graph, Phase, Value};
use crate::op::Op;
use crate::passes::rewrite::rewrite;
use crate::text;

/// `graph` with equal nodes of a phase merged into the first.
///
/// Phases are kept apart because sharing across them would keep forward values alive until the backward pass: whether
/// that pays is the memory plan's choice. Sources and views hold no memory, so they have no phase here.
///
/// # Errors
/// Those of [`rewrite`].
pub fn common(graph: &Graph) -> Result<Graph, Diagnostic> {
    let mut known: HashMap<(Option<Phase>, String), SmallVec<[Value; 2]>> = HashMap::new();
    rewrite(graph, |visit| {
        let operands: SmallVec<[Value; 4]> = visit.operands.iter().map(|t| t.value()).collect();
        let free = matches!(visit.op(), Op::Source(_)) || visit.op().is_free_view();
        let phase = (!free).then_some(visit.data().phase);
        let key = (phase, text::computation(visit.graph, visit.node, &operands));
        let values = known.entry(key).or_insert_with(|| visit.keep().iter().map(|t| t.value()).collect());
        Some(values.iter().map(|v| visit.builder.tensor(*v)).collect())
    })
}
