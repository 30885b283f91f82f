//! Composites replaced by their expansions.

use crate::composite::Composite;
use crate::graph::Graph;
use crate::op::Op;
use crate::passes::rewrite::rewrite;

/// `graph` with every composite that `chosen` picks replaced by its expansion, also those inside expansions.
pub fn expand_composites(graph: &Graph, chosen: impl Fn(&Composite) -> bool) -> Graph {
    let picked = |op: &Op| matches!(op, Op::Composite(composite) if chosen(composite));
    let mut expanded = graph.clone();
    while expanded.nodes().any(|n| picked(&expanded.node(n).op)) {
        let next = rewrite(&expanded, |visit| match visit.op() {
            Op::Composite(composite) if chosen(composite) => {
                Some((composite.def.expand)(visit.builder, visit.operands, &composite.attrs).into())
            }
            _ => None,
        });
        expanded = next.expect("a composite was expanded when its node was built");
    }
    expanded
}
