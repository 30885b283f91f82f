//! Rewrite rules: each looks at one new value and may name a simpler one that has the same bits.

use smallvec::SmallVec;

use crate::diagnostic::Diagnostic;
use crate::elementwise::{Binary, Unary};
use crate::graph::Graph;
use crate::op::{Op, Source, View};
use crate::passes::rewrite::{one, rewrite};
use crate::tensor::Tensor;
use crate::types::DType;

/// A rule that reads like the algebra.
pub struct Rule {
    /// The equation.
    pub equation: &'static str,
    /// The right side where the left side is what `Made` shows. It must be closer to its simplest form than the left.
    pub apply: for<'g> fn(&Made<'g>) -> Option<Tensor<'g>>,
}

/// A value of the graph under construction, with the operation and operands that make it.
pub struct Made<'g> {
    /// The value.
    pub result: Tensor<'g>,
    /// The operation.
    pub op: Op,
    /// Its operands.
    pub operands: SmallVec<[Tensor<'g>; 4]>,
}

impl<'g> Made<'g> {
    /// How `result` is made.
    pub fn of(result: Tensor<'g>) -> Made<'g> {
        let builder = result.builder();
        let graph = builder.graph();
        let data = graph.node(graph.producer(result.value()));
        Made { result, op: data.op.clone(), operands: data.inputs.iter().map(|v| builder.tensor(*v)).collect() }
    }

    /// The operand if this is `op`.
    pub fn unary(&self, op: Unary) -> Option<Tensor<'g>> {
        (self.op == Op::Unary(op)).then(|| self.operands[0])
    }

    /// The operands if this is `op`.
    pub fn binary(&self, op: Binary) -> Option<(Tensor<'g>, Tensor<'g>)> {
        (self.op == Op::Binary(op)).then(|| (self.operands[0], self.operands[1]))
    }

    /// The left operand and the constant on the right if this is `op` with one.
    pub fn right_constant(&self, op: Binary) -> Option<(Tensor<'g>, f64)> {
        let (a, b) = self.binary(op)?;
        Some((a, splat(b)?))
    }

    /// The other operand and the constant if this is `op`, which commutes, with one on either side.
    pub fn constant(&self, op: Binary) -> Option<(Tensor<'g>, f64)> {
        let (a, b) = self.binary(op)?;
        splat(b).map(|c| (a, c)).or_else(|| Some((b, splat(a)?)))
    }

    /// The view and its operand if this is a view of one value.
    pub fn view(&self) -> Option<(&View, Tensor<'g>)> {
        match &self.op {
            Op::View(View::Concat(_)) => None,
            Op::View(view) => Some((view, self.operands[0])),
            _ => None,
        }
    }
}

/// Rebuilds `graph`, applying the first of `rules` that fits to each new value until none does.
pub fn apply(graph: &Graph, rules: &[Rule]) -> Result<Graph, Diagnostic> {
    rewrite(graph, |visit| {
        let kept = visit.keep();
        let [result] = kept[..] else { return Some(kept) };
        let mut result = result;
        loop {
            let made = Made::of(result);
            match rules.iter().find_map(|rule| (rule.apply)(&made)) {
                Some(simpler) => result = simpler,
                None => return Some(one(result)),
            }
        }
    })
}

/// The number that all elements of `tensor` are, if it is built from a constant.
pub fn splat(tensor: Tensor<'_>) -> Option<f64> {
    let mut made = Made::of(tensor);
    while let Op::View(View::Reshape(_) | View::Transpose(_) | View::Broadcast(_) | View::Slice { .. }) = made.op {
        made = Made::of(made.operands[0]);
    }
    match made.op {
        Op::Source(Source::Constant { value, dtype }) => Some(rounded(dtype, value)),
        _ => None,
    }
}

/// `value` as an element of type `dtype` holds it: rounded to nearest even, truncated and saturated, or whether not 0.
pub fn rounded(dtype: DType, value: f64) -> f64 {
    match dtype {
        DType::F32 => f64::from(value as f32),
        // Through f32, as all arithmetic in bf16 is done.
        DType::BF16 => half::bf16::from_f32(value as f32).to_f64(),
        DType::I32 => f64::from(value as i32),
        DType::U32 => f64::from(value as u32),
        DType::U8 => f64::from(value as u8),
        DType::Bool => f64::from(u8::from(value != 0.0)),
    }
}

/// Whether every value of type `from` is one of type `to`.
pub fn lossless(from: DType, to: DType) -> bool {
    match from {
        DType::F32 => to == DType::F32,
        DType::BF16 => to.is_float(),
        DType::I32 | DType::U32 => to == from,
        // The 8 bits of a byte fit the 8 of a bf16's significand.
        DType::U8 => to != DType::Bool,
        DType::Bool => true,
    }
}
