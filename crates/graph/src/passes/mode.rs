//! From a model, which knows no modes, to the programs that train, evaluate and decode with it.
//!
//! A model is built once: it has dropout and the statistics of the batch, attends over the tokens it is given, and adds
//! the input [`POSITION_OFFSET`] to the places of its tokens. What differs between programs is decided here.

use std::collections::HashMap;
use std::sync::Arc;

use crate::composite::attention::ATTENTION;
use crate::composite::batch_norm::{BATCH_NORM, BATCH_NORM_INFERENCE};
use crate::composite::dropout::DROPOUT;
use crate::composite::{Attrs, Composite};
use crate::diagnostic::Diagnostic;
use crate::graph::Graph;
use crate::op::{Op, Role, Source};
use crate::passes::mixing;
use crate::passes::rewrite::{Results, Visit, one, rewrite, try_rewrite};
use crate::tensor::{Builder, Tensor};
use crate::types::{DType, Shape, Type};

/// The input (`i32[]`, [`Role::Control`]) that a model adds to the places of its tokens.
pub const POSITION_OFFSET: &str = "position_offset";

/// The input (`i32[]`, [`Role::Control`]) of a decoding program: how many tokens the caches hold already.
pub const POSITION: &str = "position";

/// The model as it is trained: its first token is at place 0.
///
/// # Errors
/// Those of [`rewrite`].
pub fn for_training(graph: &Graph) -> Result<Graph, Diagnostic> {
    rewrite(graph, from_the_start)
}

/// The model as it is evaluated: no dropout, running statistics instead of the batch's, inputs of [`Role::State`] not
/// updated, and its first token at place 0.
///
/// # Errors
/// Those of [`rewrite`].
pub fn for_evaluation(graph: &Graph) -> Result<Graph, Diagnostic> {
    rewrite(&without_state_updates(graph), |visit| deterministic(visit).or_else(|| from_the_start(visit)))
}

/// The model as it continues a text, any number of tokens at a time: as in evaluation, and each attention keeps the keys
/// and values of up to `capacity` places.
///
/// The caches are inputs `[b, capacity, g, d]` of [`Role::Cache`], `cache.<scope path>.key` and `cache.<scope path>.value`,
/// which the program updates; [`POSITION`] says how much of them is filled. Prefill and decoding are this graph, bound to
/// the length of the prompt and to 1.
///
/// # Errors
/// An attention that is not causal, or that has a mask or a position already; any other operation that mixes tokens
/// ([`mixing`]). Such a model cannot decode.
pub fn for_decoding(graph: &Graph, capacity: usize) -> Result<Graph, Diagnostic> {
    let model = rewrite(&without_state_updates(graph), deterministic)?;
    let mut paths: HashMap<Arc<str>, usize> = HashMap::new();
    let decoding = try_rewrite(&model, |visit| match visit.op() {
        Op::Source(Source::Input { name, .. }) if [POSITION, POSITION_OFFSET].contains(&&**name) => {
            Ok(Some(one(position(visit.builder))))
        }
        Op::Composite(attention) if attention.def.name == ATTENTION.name => {
            refuse(visit, &attention.attrs)?;
            let path = &visit.graph.site(visit.node).path;
            let count = paths.entry(path.clone()).or_default();
            *count += 1;
            let name = if *count == 1 { path.to_string() } else { format!("{path}.{count}") };
            Ok(Some(attend(visit, &attention.attrs, &name, capacity)))
        }
        _ => Ok(None),
    })?;
    mixing::check(&model)?;
    Ok(decoding)
}

fn without_state_updates(graph: &Graph) -> Graph {
    let mut graph = graph.clone();
    let state: Vec<_> = graph.inputs().filter(|(_, _, role, _)| *role == Role::State).map(|(v, ..)| v).collect();
    graph.updates.retain(|(input, _)| !state.contains(input));
    graph
}

/// The place of the first token where there is nothing before it.
fn from_the_start<'g>(visit: &Visit<'_, 'g>) -> Option<Results<'g>> {
    match visit.op() {
        Op::Source(Source::Input { name, .. }) if **name == *POSITION_OFFSET => {
            Some(one(visit.builder.constant(0.0, DType::I32)))
        }
        _ => None,
    }
}

/// What takes the place of operations that behave otherwise in training.
fn deterministic<'g>(visit: &Visit<'_, 'g>) -> Option<Results<'g>> {
    let Op::Composite(Composite { def, attrs }) = visit.op() else { return None };
    if def.name == DROPOUT.name {
        return Some(one(visit.operands[0]));
    }
    if def.name == BATCH_NORM.name {
        let eps = Attrs::default().with("eps", attrs.float("eps"));
        let mut results = visit.builder.composite(&BATCH_NORM_INFERENCE, visit.operands, eps);
        let [mean, variance] = [visit.operands[3], visit.operands[4]];
        let scale = (variance.cast(DType::F32) + attrs.float("eps")).rsqrt();
        results.extend([mean, variance, mean.cast(DType::F32), scale]);
        return Some(results);
    }
    None
}

fn position(builder: &Builder) -> Tensor<'_> {
    let known = builder.graph().input(POSITION);
    match known {
        Some(value) => builder.tensor(value),
        None => builder.input(POSITION, Role::Control, Type::new(DType::I32, Shape::scalar())),
    }
}

/// An error if an attention cannot be given a cache.
fn refuse(visit: &Visit<'_, '_>, attrs: &Attrs) -> Result<(), Diagnostic> {
    let (why, help) = if !attrs.flag("causal") {
        ("it is not causal", "decode only with models whose every attention is causal")
    } else if attrs.flag("has_mask") {
        ("it has a mask, which says nothing of the places in the cache", "build the model without a mask")
    } else if attrs.flag("has_position") {
        ("it has a position already", "leave the position to the decoding program")
    } else {
        return Ok(());
    };
    Err(Diagnostic {
        message: format!("this model cannot decode: an attention cannot keep its keys and values, because {why}"),
        site: visit.graph.site(visit.node).clone(),
        notes: visit.operands.iter().map(|t| t.describe()).collect(),
        help: Some(help.into()),
    })
}

/// The attention over the caches `cache.<name>.key` and `.value` with the new keys and values written into them.
fn attend<'g>(visit: &Visit<'_, 'g>, attrs: &Attrs, name: &str, capacity: usize) -> Results<'g> {
    let builder = visit.builder;
    let position = position(builder);
    let kept = |what: &str, new: Tensor<'g>| {
        let shape = new.shape().with(1, capacity.into());
        let cache = builder.input(&format!("cache.{name}.{what}"), Role::Cache, Type { dtype: new.dtype(), shape });
        let filled = cache.write(1, new, position);
        builder.update(cache, filled);
        filled
    };
    let (key, value) = (kept("key", visit.operands[1]), kept("value", visit.operands[2]));
    let attrs = attrs.clone().with("has_position", true);
    builder.composite(&ATTENTION, &[visit.operands[0], key, value, position], attrs)
}
