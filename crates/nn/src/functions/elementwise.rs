//! Elementwise operations: the graph's own, from its tables.

use tenon_graph::elementwise::{Binary, Unary};
use tenon_graph::tensor::{Builder, Tensor};
use tenon_graph::types::DType;

use super::{Outcome, function};
use crate::error::ModelError;
use crate::function::{Argument, Body, Call, Function, Output};
use crate::operators::Side;

pub(super) const INTRODUCTION: &str = "`+`, `-`, `*`, `/` and unary `-` work on tensors; the other operators do not, because \
a program cannot branch on values. Operands are broadcast as in numpy, a number takes the tensor's element type, and bf16 \
with f32 gives f32. On plain numbers these functions give plain numbers.";

/// Operations that operators stand for.
const OPERATORS: [Binary; 4] = [Binary::Add, Binary::Sub, Binary::Mul, Binary::Div];

pub(super) fn functions() -> Vec<Function> {
    let unary = Unary::ALL.into_iter().filter(|op| *op != Unary::Neg).map(|op| {
        let (name, example) = match op {
            Unary::Not => ("logical_not", "logical_not(equal(x, 0))"),
            op => (op.def().name, "NAME(x)"),
        };
        Function { name, signature: "x", doc: op.def().doc, example, body: Body::Unary(op) }
    });
    let binary = Binary::ALL.into_iter().filter(|op| !OPERATORS.contains(op)).map(|op| {
        let (name, example) = match op {
            Binary::Max => ("maximum", "NAME(x, 0)"),
            Binary::Min => ("minimum", "NAME(x, 6)"),
            Binary::And => ("logical_and", "logical_and(less(x, 1), less(-1, x))"),
            Binary::Or => ("logical_or", "logical_or(less(x, -1), less(1, x))"),
            op => (op.def().name, "NAME(x, 2)"),
        };
        Function { name, signature: "left, right", doc: op.def().doc, example, body: Body::Binary(op) }
    });
    let mut all: Vec<Function> = unary.chain(binary).collect();
    all.push(function(
        "where",
        "condition, a, b",
        "`a` where the condition holds, else `b`; a tensor of truth values, and tensors or numbers.",
        "where(less(x, 0), 0.1 * x, x)",
        select,
    ));
    all.push(function(
        "cast",
        "x, dtype",
        "`x` in another element type: floats round to nearest even, floats to integers truncate.",
        "cast(x, \"bf16\")",
        |call| Ok(call.tensor("x")?.cast(super::inputs::dtype(call, "dtype")?).into()),
    ));
    all
}

/// The operand of a function that takes tensors and numbers.
fn side(call: &Call<'_>, name: &str) -> Result<Side, ModelError> {
    match call.argument(name) {
        Argument::Tensor(value) => Ok(Side::Tensor(*value)),
        Argument::Size(dim) => Ok(Side::Size(*dim)),
        _ => call.number(name).map(Side::Number).map_err(|mut error| {
            error.message = error.message.replace("is a number", "is a tensor or a number");
            error
        }),
    }
}

pub(crate) fn unary(call: &Call<'_>, op: Unary) -> Outcome {
    match side(call, "x")? {
        Side::Number(x) => Ok(Output::Number((op.def().eval)(x))),
        Side::Tensor(value) => Ok(call.session.builder.tensor(value).unary(op).into()),
        Side::Size(dim) => Ok(call.session.builder.size(dim).unary(op).into()),
        Side::Other(_) => unreachable!("refused by side"),
    }
}

pub(crate) fn binary(call: &Call<'_>, op: Binary) -> Outcome {
    let builder = &call.session.builder;
    let sides = [side(call, "left")?, side(call, "right")?];
    if let [Side::Number(a), Side::Number(b)] = sides {
        return Ok(Output::Number((op.def().eval)(a, b)));
    }
    let [a, b] = tensors(builder, sides);
    Ok(a.binary(op, b).into())
}

/// Two operands as tensors; numbers and sizes take the element type of the other one.
fn tensors(builder: &Builder, sides: [Side; 2]) -> [Tensor<'_>; 2] {
    let like = sides.iter().find_map(|side| match side {
        Side::Tensor(value) => Some(builder.tensor(*value)),
        _ => None,
    });
    sides.map(|side| match (side, like) {
        (Side::Tensor(value), _) => builder.tensor(value),
        (Side::Number(x), Some(like)) => like.constant_like(x),
        (Side::Number(x), None) => builder.scalar(x),
        (Side::Size(dim), like) => builder.size(dim).cast(like.map_or(DType::F32, |t| t.dtype())),
        (Side::Other(_), _) => unreachable!("refused by side"),
    })
}

fn select(call: &Call<'_>) -> Outcome {
    let builder = &call.session.builder;
    let condition = call.tensor("condition")?;
    let sides = [side(call, "a")?, side(call, "b")?];
    let [a, b] = tensors(builder, sides);
    Ok(condition.select(a, b).into())
}
