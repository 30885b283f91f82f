//! Mixed precision: products in bf16, everything else in f32 (Micikevicius et al. 2018; Kalamkar et al. 2019).
//!
//! Matrix products, convolutions and attention take bf16 operands, accumulate in f32 and give bf16 results. Parameters
//! stay f32 masters, unless they are stored in bf16 ([`bf16_weights`]). Norms, softmax, losses, reductions and the
//! optimizer are f32 and see no difference: the type of no value that they read changes.
//!
//! What a convolution reads is rounded for all its readers: so the residual stream of an image model is kept in bf16 only,
//! and not in f32 beside it.

use std::collections::{HashMap, HashSet};

use smallvec::SmallVec;

use crate::composite::attention::{ATTENTION, ATTENTION_GRADIENT};
use crate::composite::experts::{EXPERT_MATMUL, EXPERT_OUTER};
use crate::composite::{Attr, Composite, CompositeDef};
use crate::diagnostic::Diagnostic;
use crate::graph::{Graph, Phase, Value};
use crate::op::{Conv, Dot, Gather, Op, Role, Source, View};
use crate::passes::rewrite::{one, rewrite};
use crate::passes::rules::Made;
use crate::tensor::Tensor;
use crate::types::{DType, Type};

/// `graph`, which changes none of them, with its matrices among the parameters stored in bf16: half the bytes to read.
/// Vectors, such as biases and the weights of norms, stay f32. Rows of a table are converted after they are picked, so that
/// with [`mixed_bf16`] after this pass nothing converts a whole matrix.
///
/// # Errors
/// Those of [`rewrite`].
pub fn bf16_weights(graph: &Graph) -> Result<Graph, Diagnostic> {
    rewrite(graph, |visit| match visit.op() {
        Op::Source(Source::Input { name, role: Role::Parameter, ty })
            if ty.dtype == DType::F32 && ty.shape.rank() >= 2 =>
        {
            let stored = Type { dtype: DType::BF16, ..ty.clone() };
            Some(one(visit.builder.input(name, Role::Parameter, stored).cast(DType::F32)))
        }
        Op::Gather(Gather::Rows) => {
            let made = Made::of(visit.operands[0]);
            let stored =
                made.operands.first().filter(|t| made.op == Op::Cast(DType::F32) && t.dtype() == DType::BF16)?;
            let rows = visit.builder.add(visit.op().clone(), &[*stored, visit.operands[1]], 1)[0];
            Some(one(rows.cast(DType::F32)))
        }
        _ => None,
    })
}

/// `graph` with its products in bf16. It may be a model alone or have gradients and an optimizer already.
///
/// Each value is converted once, but for masters that are the right operands of matrix products, which round them as they
/// read them. Gradients of parameters keep their f32 results: products in [`Phase::Backward`] on which
/// no further product there depends, which is also true of what flows into the first layer's embedding. So do products that
/// are results of the graph and nothing else, such as logits to choose from. Products of the optimizer stay f32 throughout.
///
/// # Errors
/// Those of [`rewrite`].
pub fn mixed_bf16(graph: &Graph) -> Result<Graph, Diagnostic> {
    let (feeds, split, results) = (feeds_products(graph), split_values(graph), results(graph));
    let images = images(graph);
    let mut narrow = Narrow::default();
    rewrite(graph, |visit| {
        let data = visit.data();
        if data.phase == Phase::Update || !is_product(&data.op) {
            let mut kept = visit.keep();
            for (tensor, old) in kept.iter_mut().zip(data.outputs()).filter(|(_, old)| images[old.index()]) {
                *tensor = tensor.cast(DType::BF16).cast(visit.graph.ty(old).dtype);
            }
            let new = data.outputs().zip(&kept).filter(|(old, _)| split[old.index()]);
            narrow.split.extend(new.map(|(_, new)| new.value()));
            return Some(kept);
        }
        let last_gradient = data.phase == Phase::Backward && !data.outputs().any(|v| feeds[v.index()]);
        let is_result = data.outputs().any(|v| results.contains(&v));
        let dtype = if last_gradient || is_result { DType::F32 } else { DType::BF16 };
        let op = match &data.op {
            Op::Dot(dot) if dot.dtype == DType::F32 => Op::Dot(Dot { dtype, ..dot.clone() }),
            Op::Conv(conv) if conv.dtype == DType::F32 => Op::Conv(Conv { dtype, ..conv.clone() }),
            Op::Composite(Composite { def, attrs }) if attrs.get("dtype") == Some(&Attr::DType(DType::F32)) => {
                Op::Composite(Composite { def, attrs: attrs.clone().with("dtype", dtype) })
            }
            other => other.clone(),
        };
        let operands: SmallVec<[Tensor<'_>; 8]> = visit
            .operands
            .iter()
            .enumerate()
            .map(|(i, t)| match &op {
                Op::Dot(_) if i == 1 && is_master(*t) => *t,
                _ if may_be_narrow(&data.op, i) => narrow.of(*t, MAX_VIEWS),
                // What a product is added to has its type.
                Op::Dot(dot) => t.cast(dot.dtype),
                _ => *t,
            })
            .collect();
        let results = visit.builder.add(op, &operands, data.outputs().len());
        Some(results.iter().zip(data.outputs()).map(|(new, old)| new.cast(visit.graph.ty(old).dtype)).collect())
    })
}

/// Composites that are made of products.
const PRODUCTS: [&CompositeDef; 4] = [&ATTENTION, &ATTENTION_GRADIENT, &EXPERT_MATMUL, &EXPERT_OUTER];

fn is_product(op: &Op) -> bool {
    match op {
        Op::Dot(_) | Op::Conv(_) => true,
        Op::Composite(composite) => PRODUCTS.iter().any(|def| def.name == composite.def.name),
        Op::Source(_)
        | Op::Unary(_)
        | Op::Binary(_)
        | Op::Select
        | Op::Cast(_)
        | Op::Reduce(_)
        | Op::View(_)
        | Op::Pool(_)
        | Op::Gather(_)
        | Op::Scatter(_)
        | Op::Sort(_)
        | Op::Random(_) => false,
    }
}

/// Whether operand `i` of a product may be of any float type.
fn may_be_narrow(product: &Op, i: usize) -> bool {
    match product {
        Op::Dot(_) => i < 2,
        Op::Composite(Composite { def, attrs }) => def.operands_with(attrs).nth(i).is_some_and(|o| o.dtype.is_none()),
        _ => true,
    }
}

/// Whether `tensor` is a parameter in f32, or a window on one.
fn is_master(tensor: Tensor<'_>) -> bool {
    let mut made = Made::of(tensor);
    while let Op::View(View::Reshape(_) | View::Transpose(_) | View::Slice { .. }) = made.op {
        made = Made::of(made.operands[0]);
    }
    matches!(made.op, Op::Source(Source::Input { role: Role::Parameter, .. })) && tensor.dtype() == DType::F32
}

/// The values that are results of the graph, in another shape or not, and that no operation reads.
fn results(graph: &Graph) -> HashSet<Value> {
    let uses = graph.use_counts();
    let mut results = HashSet::new();
    let mut found: Vec<Value> = graph.outputs.iter().map(|(_, value)| *value).collect();
    while let Some(value) = found.pop() {
        if uses[value.index()] > 1 {
            continue;
        }
        let data = graph.node(graph.producer(value));
        results.insert(value);
        if matches!(data.op, Op::View(View::Reshape(_))) {
            found.push(data.inputs[0]);
        }
    }
    results
}

/// By value: whether a product in the backward phase depends on it.
fn feeds_products(graph: &Graph) -> Vec<bool> {
    let mut feeds = vec![false; graph.value_count()];
    for node in graph.nodes().rev() {
        let data = graph.node(node);
        let through = is_product(&data.op) || data.outputs().any(|v| feeds[v.index()]);
        if data.phase == Phase::Backward && through {
            for value in &data.inputs {
                feeds[value.index()] = true;
            }
        }
    }
    feeds
}

/// By value: whether it is computed in the forward pass and a convolution there reads it as its images.
fn images(graph: &Graph) -> Vec<bool> {
    let mut images = vec![false; graph.value_count()];
    for data in graph.nodes().map(|n| graph.node(n)).filter(|d| d.phase == Phase::Forward) {
        if let Op::Conv(_) = data.op {
            images[data.inputs[0].index()] = !matches!(graph.op_of(data.inputs[0]), Op::Source(_) | Op::View(_));
        }
    }
    images
}

/// By value: whether it is only taken apart, as the joint projection of query, key and value is.
fn split_values(graph: &Graph) -> Vec<bool> {
    let mut slices = vec![0; graph.value_count()];
    for node in graph.nodes().filter(|n| matches!(graph.node(*n).op, Op::View(View::Slice { .. }))) {
        slices[graph.node(node).inputs[0].index()] += 1;
    }
    slices.iter().zip(graph.use_counts()).map(|(slices, uses)| *slices >= 2 && *slices == uses).collect()
}

/// How many views a conversion moves through; programs that stack more gain nothing.
const MAX_VIEWS: usize = 8;

/// The bf16 forms of values, each made once.
#[derive(Default)]
struct Narrow {
    known: HashMap<Value, Value>,
    /// Values that are only taken apart.
    split: HashSet<Value>,
}

impl Narrow {
    /// `tensor` in bf16: what it was converted from, or its conversion. Conversions go below views where they then do no
    /// more work, so that a value is converted once for all its views and is never rearranged in f32.
    fn of<'g>(&mut self, tensor: Tensor<'g>, views: usize) -> Tensor<'g> {
        let builder = tensor.builder();
        if tensor.dtype() != DType::F32 {
            return tensor;
        }
        if let Some(value) = self.known.get(&tensor.value()) {
            return builder.tensor(*value);
        }
        let made = Made::of(tensor);
        let narrow = match &made.op {
            Op::Cast(_) if made.operands[0].dtype() == DType::BF16 => made.operands[0],
            Op::View(view) if views > 0 && self.goes_below(view, &made.operands, views) => {
                let operands: SmallVec<[Tensor<'g>; 4]> =
                    made.operands.iter().map(|t| self.of(*t, views - 1)).collect();
                builder.add(made.op.clone(), &operands, 1)[0]
            }
            _ => tensor.cast(DType::BF16),
        };
        self.known.insert(tensor.value(), narrow.value());
        narrow
    }

    /// Whether converting the operands of a view costs no more than converting its result.
    fn goes_below(&self, view: &View, operands: &[Tensor<'_>], views: usize) -> bool {
        match view {
            View::Reshape(_) | View::Transpose(_) | View::Broadcast(_) => true,
            View::Slice { .. } if self.split.contains(&operands[0].value()) => true,
            View::Slice { .. } | View::Pad { .. } | View::Concat(_) => {
                operands.iter().all(|t| self.is_free(*t, views - 1))
            }
        }
    }

    /// Whether the bf16 form of `tensor` is there already, or is wanted anyway.
    fn is_free(&self, tensor: Tensor<'_>, views: usize) -> bool {
        if self.known.contains_key(&tensor.value()) {
            return true;
        }
        let made = Made::of(tensor);
        match &made.op {
            Op::Cast(_) => made.operands[0].dtype() == DType::BF16,
            Op::Source(Source::Input { role: Role::Parameter, .. }) => true,
            Op::View(_) => views > 0 && made.operands.iter().all(|t| self.is_free(*t, views - 1)),
            _ => false,
        }
    }
}
