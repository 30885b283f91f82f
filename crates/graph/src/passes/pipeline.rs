//! From a graph with named sizes to a program: the one list of what happens, in order.

use crate::composite::Lowering;
use crate::diagnostic::Diagnostic;
use crate::dim::Bindings;
use crate::graph::Graph;
use crate::lower::Program;
use crate::passes::bind::bind;
use crate::passes::chunk::{CHUNK_BYTES, chunk};
use crate::passes::expand::expand_composites;
use crate::passes::precision::mixed_bf16;
use crate::passes::recompute::plain;
use crate::passes::split::split_reductions;
use crate::passes::{ALGEBRA, run};

/// What a program is made for.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// What the symbols stand for.
    pub bindings: Bindings,
    /// Whether products and activations are bf16.
    pub bf16: bool,
}

/// The bound graph of primitives and kernels that is scheduled, before recomputation.
///
/// # Errors
/// A symbol without a value, or what does not fit once sizes are numbers.
pub fn prepare(graph: &Graph, options: &Options) -> Result<Graph, Diagnostic> {
    let mut graph = bind(graph, &options.bindings)?;
    if options.bf16 {
        graph = mixed_bf16(&graph)?;
    }
    graph = expand_composites(&graph, |c| c.def.lowering == Lowering::Expand);
    graph = split_reductions(&graph)?;
    graph = run(&graph, ALGEBRA, |_, _| {})?;
    chunk(&graph, CHUNK_BYTES)
}

/// The program of a graph.
///
/// # Errors
/// Those of [`prepare`].
pub fn compile(graph: &Graph, options: &Options) -> Result<Program, Diagnostic> {
    Ok(plain(&prepare(graph, options)?))
}
