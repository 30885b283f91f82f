//! Constants through arithmetic: what is known when the graph is built is computed then, as the reference would.

use crate::diagnostic::Diagnostic;
use crate::graph::Graph;
use crate::op::{Op, ReduceOp, Source, View};
use crate::passes::rules::{Made, Rule, apply, rounded, splat};
use crate::tensor::Tensor;
use crate::types::DType;

/// `graph` with constant arithmetic done.
///
/// # Errors
/// Those of [`rewrite`](crate::passes::rewrite::rewrite).
pub fn fold(graph: &Graph) -> Result<Graph, Diagnostic> {
    apply(graph, RULES)
}

/// The rules of [`fold`].
pub static RULES: &[Rule] = &[
    Rule {
        equation: "size n = n",
        apply: |m| match &m.op {
            Op::Source(Source::Size(dim)) => Some(m.result.builder().scalar(dim.as_const()? as f64)),
            _ => None,
        },
    },
    Rule {
        equation: "f(c) = the value of f at c",
        apply: |m| match &m.op {
            Op::Unary(op) => filled(m, (op.def().eval)(splat(m.operands[0])?)),
            Op::Binary(op) => filled(m, (op.def().eval)(splat(m.operands[0])?, splat(m.operands[1])?)),
            _ => None,
        },
    },
    Rule {
        equation: "cast(c) = c in the other type",
        apply: |m| match &m.op {
            Op::Cast(dtype) => {
                let value = splat(m.operands[0])?;
                filled(m, if dtype.is_int() { value.trunc() } else { value })
            }
            _ => None,
        },
    },
    Rule {
        equation: "view(c) = c in the view's shape",
        apply: |m| {
            let (_, x) = m.view()?;
            let value = splat(m.result)?;
            // What `full` builds is left as it is: a constant, its axes, their sizes.
            let constant = |t: Tensor<'_>| matches!(Made::of(t).op, Op::Source(Source::Constant { .. }));
            let axes = |t: Tensor<'_>| matches!(&Made::of(t), Made { op: Op::View(View::Reshape(_)), operands, .. } if constant(operands[0]));
            let simplest = match &m.op {
                Op::View(View::Reshape(_)) => constant(x),
                Op::View(View::Broadcast(_)) => axes(x),
                _ => false,
            };
            if simplest { None } else { filled(m, value) }
        },
    },
    Rule {
        equation: "max(c, .. c) = c and 0 + .. + 0 = 0",
        apply: |m| match &m.op {
            Op::Reduce(reduce) => {
                let value = splat(m.operands[0])?;
                match reduce.op {
                    ReduceOp::Max => filled(m, value),
                    ReduceOp::Sum if value == 0.0 => filled(m, 0.0),
                    ReduceOp::Sum | ReduceOp::ArgMax => None,
                }
            }
            _ => None,
        },
    },
];

/// `value` everywhere in place of `m`, unless it does not fit the element type: then it is left to the program.
fn filled<'g>(m: &Made<'g>, value: f64) -> Option<Tensor<'g>> {
    let dtype = m.result.dtype();
    let whole = |low: f64, high: f64| value.fract() == 0.0 && (low..=high).contains(&value);
    let fits = match dtype {
        DType::F32 | DType::BF16 => true,
        DType::I32 => whole(i32::MIN.into(), i32::MAX.into()),
        DType::U32 => whole(0.0, u32::MAX.into()),
        DType::U8 => whole(0.0, u8::MAX.into()),
        DType::Bool => value == 0.0 || value == 1.0,
    };
    fits.then(|| m.result.filled_like(rounded(dtype, value)))
}
