//! Passes: each takes a graph and makes another. None changes the bits of a result unless its purpose is to
//! ([`mode`], [`precision`]).

pub mod bind;
pub mod chunk;
pub mod common;
pub mod expand;
pub mod fold;
pub mod mixing;
pub mod mode;
pub mod pipeline;
pub mod precision;
pub mod recompute;
pub mod rewrite;
pub mod rules;
pub mod simplify;
pub mod split;

use crate::diagnostic::{Diagnostic, Site};
use crate::graph::Graph;
use crate::text::print;
use crate::verify::verify;

/// A named step of a pipeline.
pub struct Stage {
    /// The name, for reports.
    pub name: &'static str,
    /// What it does.
    pub doc: &'static str,
    /// The pass.
    pub run: fn(&Graph) -> Result<Graph, Diagnostic>,
}

/// The algebraic passes, in order. Each also drops what nothing depends on.
pub static ALGEBRA: &[Stage] = &[
    Stage { name: "fold", doc: "constants through arithmetic", run: fold::fold },
    Stage { name: "simplify", doc: "algebra that never changes a bit", run: simplify::simplify },
    Stage { name: "common", doc: "equal nodes of a phase computed once", run: common::common },
];

/// Runs `stages` again and again until a round changes nothing; `observe` sees each stage's result.
///
/// # Errors
/// A stage's own; a stage that breaks the graph, which the verifier tells.
pub fn run(graph: &Graph, stages: &[Stage], mut observe: impl FnMut(&Stage, &Graph)) -> Result<Graph, Diagnostic> {
    let mut graph = graph.clone();
    let mut text = print(&graph);
    loop {
        for stage in stages {
            graph = (stage.run)(&graph)?;
            verify(&graph).map_err(|broken| Diagnostic {
                message: format!("the pass `{}` broke the graph: {broken}", stage.name),
                site: Site::default(),
                notes: vec![],
                help: None,
            })?;
            observe(stage, &graph);
        }
        let before = std::mem::replace(&mut text, print(&graph));
        if text == before {
            return Ok(graph);
        }
    }
}
