//! Algebra that never changes a bit: infinities, NaN and the sign of zero count.

use smallvec::SmallVec;

use crate::diagnostic::Diagnostic;
use crate::dim::Dim;
use crate::elementwise::{Binary, Unary};
use crate::graph::Graph;
use crate::op::{Axes, Op, Reduce, ReduceOp, Source, View};
use crate::passes::rules::{Made, Rule, apply, lossless, rounded, splat};
use crate::tensor::Tensor;
use crate::types::DType;

/// `graph` with every rule of [`RULES`] applied.
///
/// # Errors
/// Those of [`rewrite`](crate::passes::rewrite::rewrite).
pub fn simplify(graph: &Graph) -> Result<Graph, Diagnostic> {
    apply(graph, RULES)
}

/// The rules of [`simplify`].
pub static RULES: &[Rule] = &[
    // Arithmetic.
    Rule {
        equation: "x + -0 = x, and x + 0 = x where x is never -0",
        apply: |m| m.constant(Binary::Add).filter(|(x, c)| *c == 0.0 && adding_zero_is_exact(*x, *c)).map(|(x, _)| x),
    },
    Rule {
        equation: "x - 0 = x, and x - -0 = x where x is never -0",
        apply: |m| {
            m.right_constant(Binary::Sub).filter(|(x, c)| *c == 0.0 && adding_zero_is_exact(*x, -*c)).map(|(x, _)| x)
        },
    },
    Rule { equation: "x * 1 = x", apply: |m| m.constant(Binary::Mul).filter(|(_, c)| *c == 1.0).map(|(x, _)| x) },
    Rule { equation: "x / 1 = x", apply: |m| m.right_constant(Binary::Div).filter(|(_, c)| *c == 1.0).map(|(x, _)| x) },
    Rule { equation: "x ^ 1 = x", apply: |m| m.right_constant(Binary::Pow).filter(|(_, c)| *c == 1.0).map(|(x, _)| x) },
    Rule {
        equation: "n * 0 = 0 for whole numbers",
        apply: |m| {
            m.constant(Binary::Mul).filter(|(n, c)| *c == 0.0 && n.dtype().is_int()).map(|(n, _)| n.zeros_like())
        },
    },
    Rule {
        equation: "x * -1 = -x for floats",
        apply: |m| m.constant(Binary::Mul).filter(|(x, c)| *c == -1.0 && x.dtype().is_float()).map(|(x, _)| -x),
    },
    Rule {
        equation: "x / 2^k = x * 2^-k",
        apply: |m| {
            let (x, c) = m.right_constant(Binary::Div)?;
            power_of_two(c).then(|| x.binary(Binary::Mul, x.filled_like(1.0 / c)))
        },
    },
    Rule { equation: "-(-x) = x", apply: |m| Made::of(m.unary(Unary::Neg)?).unary(Unary::Neg) },
    Rule { equation: "!(!x) = x", apply: |m| Made::of(m.unary(Unary::Not)?).unary(Unary::Not) },
    Rule {
        equation: "|-x| = |x| and ||x|| = |x|",
        apply: |m| {
            let inner = Made::of(m.unary(Unary::Abs)?);
            let x = inner.unary(Unary::Neg).or_else(|| inner.unary(Unary::Abs))?;
            (x.dtype().is_float()).then(|| x.abs())
        },
    },
    Rule {
        equation: "a + -b = a - b and -a + b = b - a",
        apply: |m| {
            let (a, b) = m.binary(Binary::Add).filter(|(a, _)| a.dtype().is_float())?;
            let minus = |t: Tensor<'_>| Made::of(t).op == Op::Unary(Unary::Neg);
            match (minus(a), minus(b)) {
                (_, true) => Some(a.binary(Binary::Sub, Made::of(b).operands[0])),
                (true, false) => Some(b.binary(Binary::Sub, Made::of(a).operands[0])),
                (false, false) => None,
            }
        },
    },
    Rule {
        equation: "a - -b = a + b",
        apply: |m| {
            let (a, b) = m.binary(Binary::Sub).filter(|(a, _)| a.dtype().is_float())?;
            Some(a.binary(Binary::Add, Made::of(b).unary(Unary::Neg)?))
        },
    },
    // Truth.
    Rule {
        equation: "x & true = x and x & false = false",
        apply: |m| m.constant(Binary::And).map(|(x, c)| if c != 0.0 { x } else { x.filled_like(0.0) }),
    },
    Rule {
        equation: "x | false = x and x | true = true",
        apply: |m| m.constant(Binary::Or).map(|(x, c)| if c == 0.0 { x } else { x.filled_like(1.0) }),
    },
    Rule {
        equation: "select(true, a, b) = a and select(false, a, b) = b",
        apply: |m| selection(m).and_then(|(c, a, b)| Some(if splat(c)? != 0.0 { a } else { b })),
    },
    Rule {
        equation: "select(c, a, a) = a",
        apply: |m| selection(m).filter(|(_, a, b)| a.value() == b.value()).map(|(_, a, _)| a),
    },
    Rule {
        equation: "select(!c, a, b) = select(c, b, a)",
        apply: |m| selection(m).and_then(|(c, a, b)| Some(Made::of(c).unary(Unary::Not)?.select(b, a))),
    },
    Rule {
        equation: "select(c, cast(a), k) = cast(select(c, a, k)) where the cast loses nothing and k is of its operand's type",
        apply: |m| {
            let (c, a, k) = selection(m)?;
            let wide = Made::of(a);
            let Op::Cast(_) = wide.op else { return None };
            let narrow = wide.operands[0];
            let number = splat(k)?;
            let fits = lossless(narrow.dtype(), a.dtype()) && rounded(narrow.dtype(), number) == number;
            (fits && narrow.dtype().size() < a.dtype().size() && narrow.dtype().is_float())
                .then(|| c.select(narrow, narrow.filled_like(number)).cast(a.dtype()))
        },
    },
    // Conversions.
    Rule {
        equation: "cast(cast(x)) = cast(x) where the inner cast loses nothing",
        apply: |m| {
            let Op::Cast(to) = m.op else { return None };
            let inner = Made::of(m.operands[0]);
            let Op::Cast(through) = inner.op else { return None };
            lossless(inner.operands[0].dtype(), through).then(|| inner.operands[0].cast(to))
        },
    },
    Rule {
        equation: "cast(x) = x to its own type",
        apply: |m| matches!(m.op, Op::Cast(dtype) if dtype == m.operands[0].dtype()).then(|| m.operands[0]),
    },
    Rule {
        equation: "concat(cast(a), cast(b)) = cast(concat(a, b)) where the casts lose nothing, views of them alike",
        apply: |m| {
            let Op::View(View::Concat(axis)) = m.op else { return None };
            let parts: Vec<Tensor<'_>> = m.operands.iter().map(|part| narrow(*part)).collect::<Option<_>>()?;
            let same = parts.iter().all(|part| part.dtype() == parts[0].dtype());
            same.then(|| m.result.builder().concat(&parts, axis as isize).cast(m.result.dtype()))
        },
    },
    // Views.
    Rule {
        equation: "view(x) = x where it changes nothing",
        apply: |m| m.view().filter(|(v, x)| identity(v, *x)).map(|(_, x)| x),
    },
    Rule {
        equation: "reshape(reshape(x)) = reshape(x)",
        apply: |m| match inner_view(m)? {
            (View::Reshape(shape), View::Reshape(_), x) => Some(x.reshape(shape.clone())),
            _ => None,
        },
    },
    Rule {
        equation: "broadcast(broadcast(x)) = broadcast(x)",
        apply: |m| match inner_view(m)? {
            (View::Broadcast(shape), View::Broadcast(_), x) => Some(x.broadcast(shape.clone())),
            _ => None,
        },
    },
    Rule {
        equation: "transpose(transpose(x)) = transpose(x)",
        apply: |m| match inner_view(m)? {
            (View::Transpose(outer), View::Transpose(inner), x) => {
                let order: Axes = outer.iter().map(|axis| inner[*axis]).collect();
                Some(x.transpose(&order))
            }
            _ => None,
        },
    },
    Rule {
        equation: "transpose(x) = reshape(x) where it only moves axes of size one",
        apply: |m| match m.view()? {
            (View::Transpose(order), x) => {
                let shape = x.shape();
                let long: Vec<usize> = order.iter().copied().filter(|axis| shape[*axis] != Dim::ONE).collect();
                long.is_sorted().then(|| x.reshape(m.result.shape()))
            }
            _ => None,
        },
    },
    Rule {
        equation: "slice(slice(x)) = slice(x) along one axis",
        apply: |m| match inner_view(m)? {
            (
                View::Slice { axis, start, size, step },
                View::Slice { axis: axis0, start: start0, step: step0, .. },
                x,
            ) if *axis == axis0 => {
                let start = start.times(step0.into())?.plus(start0)?;
                Some(x.slice_step(*axis as isize, start, *size, step.checked_mul(step0)?))
            }
            _ => None,
        },
    },
    // Reductions.
    Rule {
        equation: "argmax(x) = 0 along an axis of size one",
        apply: |m| match &m.op {
            Op::Reduce(Reduce { op: ReduceOp::ArgMax, axes }) => {
                (m.operands[0].shape()[axes[0]] == Dim::ONE).then(|| m.result.zeros_like())
            }
            _ => None,
        },
    },
    Rule {
        equation: "reduce(x) = reduce(x) along the axes longer than one",
        apply: |m| match &m.op {
            Op::Reduce(Reduce { op: op @ (ReduceOp::Sum | ReduceOp::Max), axes }) => {
                let x = m.operands[0];
                let shape = x.shape();
                let long: SmallVec<[isize; 4]> =
                    axes.iter().filter(|a| shape[**a] != Dim::ONE).map(|a| *a as isize).collect();
                if long.len() == axes.len() {
                    return None;
                }
                Some(match op {
                    ReduceOp::Max => x.max_over(&long),
                    // A sum starts from 0, and 0 + -0 is 0.
                    _ if long.is_empty() && x.dtype().is_float() => x.binary(Binary::Add, x.zeros_like()),
                    _ => x.sum(&long),
                })
            }
            _ => None,
        },
    },
];

fn selection<'g>(m: &Made<'g>) -> Option<(Tensor<'g>, Tensor<'g>, Tensor<'g>)> {
    (m.op == Op::Select).then(|| (m.operands[0], m.operands[1], m.operands[2]))
}

/// This view, the view that it is of, and what that one is of.
fn inner_view<'a, 'g>(m: &'a Made<'g>) -> Option<(&'a View, View, Tensor<'g>)> {
    let (outer, middle) = m.view()?;
    let inner = Made::of(middle);
    let (view, x) = inner.view()?;
    Some((outer, view.clone(), x))
}

fn identity(view: &View, x: Tensor<'_>) -> bool {
    let shape = x.shape();
    match view {
        View::Reshape(to) | View::Broadcast(to) => *to == shape,
        View::Transpose(order) => order.is_sorted(),
        View::Slice { axis, size, step, .. } | View::Pad { axis, size, step, .. } => {
            *step == 1 && *size == shape[*axis]
        }
        View::Concat(_) => false,
    }
}

/// What `x` is a cast of that loses nothing, from fewer bytes; of that, a few views in between.
fn narrow(x: Tensor<'_>) -> Option<Tensor<'_>> {
    const VIEWS: usize = 4;
    let (mut made, mut views) = (Made::of(x), SmallVec::<[View; VIEWS]>::new());
    while let Some((view @ (View::Reshape(_) | View::Transpose(_)), inner)) = made.view()
        && views.len() < VIEWS
    {
        views.push(view.clone());
        made = Made::of(inner);
    }
    let Op::Cast(wide) = made.op else { return None };
    let inner = made.operands[0];
    let fits = inner.dtype().is_float() && inner.dtype().size() < wide.size() && lossless(inner.dtype(), wide);
    fits.then(|| {
        views.into_iter().rev().fold(inner, |part, view| match view {
            View::Reshape(shape) => part.reshape(shape),
            View::Transpose(order) => part.transpose(&order),
            _ => part,
        })
    })
}

/// Whether adding `zero` to `x` gives the bits of `x`: 0 + -0 is 0.
fn adding_zero_is_exact(x: Tensor<'_>, zero: f64) -> bool {
    x.dtype().is_int() || zero.is_sign_negative() || never_negative_zero(x, 6)
}

/// Whether `x` has no element -0, as far as the last `depth` operations tell.
fn never_negative_zero(x: Tensor<'_>, depth: usize) -> bool {
    if depth == 0 {
        return false;
    }
    let made = Made::of(x);
    let operand = |i: usize| never_negative_zero(made.operands[i], depth - 1);
    match &made.op {
        Op::Source(Source::Constant { value, .. }) => *value != 0.0 || value.is_sign_positive(),
        Op::Source(Source::Iota { .. } | Source::Size(_)) => true,
        Op::Unary(Unary::Abs | Unary::Exp | Unary::Sigmoid) => true,
        Op::Binary(Binary::Add) => operand(0) || operand(1),
        Op::Binary(Binary::Mul) => made.operands[0].value() == made.operands[1].value(),
        Op::Select => operand(1) && operand(2),
        Op::Cast(_) => made.operands[0].dtype().is_int() || made.operands[0].dtype() == DType::Bool || operand(0),
        Op::Reduce(reduce) => reduce.op == ReduceOp::Sum || operand(0),
        Op::View(View::Concat(_)) => (0..made.operands.len()).all(operand),
        Op::View(_) => operand(0),
        _ => false,
    }
}

/// Whether `c` is a power of two whose inverse is a normal `f32` and `bf16`.
fn power_of_two(c: f64) -> bool {
    const SIGNIFICAND: u64 = (1 << 52) - 1;
    (2f64.powi(-126)..=2f64.powi(126)).contains(&c) && c.to_bits() & SIGNIFICAND == 0
}
