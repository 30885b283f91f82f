//! Operators of architecture programs: on tensors, on sizes, and Starlark's own on everything else.

use starlark::values::float::StarlarkFloat;
use starlark::values::list::ListRef;
use starlark::values::tuple::TupleRef;
use starlark::values::{Heap, Value, ValueLike};
use tenon_graph::dim::Dim;
use tenon_graph::graph;
use tenon_graph::tensor::Tensor;
use tenon_graph::types::DType;

use crate::error::ModelError;
use crate::session::Session;
use crate::value::{SizeValue, TensorValue, alloc_size, integer, unpack_size};

/// The operators that programs call by name, so that every call knows its place.
pub(crate) const OPERATORS: [&str; 12] = ["+", "-", "*", "/", "//", "%", "==", "!=", "<", "<=", ">", ">="];

/// The longest string or list that an operator may make.
const MAX_LENGTH: usize = 1 << 20;

/// One side of arithmetic with a tensor.
#[derive(Clone, Copy)]
pub(crate) enum Side {
    Tensor(graph::Value),
    Number(f64),
    Size(Dim),
    Other(&'static str),
}

impl Side {
    pub fn new(value: Value<'_>) -> Side {
        if let Some(tensor) = value.downcast_ref::<TensorValue>() {
            Side::Tensor(tensor.value)
        } else if let Some(size) = value.downcast_ref::<SizeValue>() {
            Side::Size(size.0)
        } else {
            number(value).map_or(Side::Other(value.get_type()), Side::Number)
        }
    }
}

/// The number that `value` is.
pub(crate) fn number(value: Value<'_>) -> Option<f64> {
    match value.downcast_ref::<StarlarkFloat>() {
        Some(x) => Some(x.0),
        None => integer(value).map(|n| n as f64),
    }
}

/// `left symbol right` where at least one side is a tensor. A number takes the tensor's element type.
pub(crate) fn tensor_arithmetic<'g>(
    session: &'g Session,
    symbol: &str,
    left: Side,
    right: Side,
) -> Result<Tensor<'g>, ModelError> {
    let builder = &session.builder;
    let dtype = [left, right].into_iter().find_map(|side| match side {
        Side::Tensor(value) => Some(builder.tensor(value).dtype()),
        _ => None,
    });
    let tensor = |side: Side| match side {
        Side::Tensor(value) => Ok(builder.tensor(value)),
        Side::Number(x) => {
            let dtype = dtype.unwrap_or(DType::F32);
            if !dtype.is_float() && x.fract() != 0.0 {
                return Err(ModelError::new(format!("`{symbol}` of a tensor of {dtype} and {x}"))
                    .help("cast the tensor to f32 first"));
            }
            Ok(builder.constant(x, dtype))
        }
        Side::Size(dim) => Ok(builder.size(dim).cast(dtype.unwrap_or(DType::F32))),
        Side::Other(kind) => Err(ModelError::new(format!("`{symbol}` of a tensor and a value of type {kind}"))),
    };
    let (a, b) = (tensor(left)?, tensor(right)?);
    let function = match symbol {
        "+" => return Ok(a + b),
        "-" => return Ok(a - b),
        "*" => return Ok(a * b),
        "/" => return Ok(a / b),
        "//" => "floor(a / b)",
        "%" => "a - floor(a / b) * b",
        "==" => "equal(a, b)",
        "!=" => "logical_not(equal(a, b))",
        "<" => "less(a, b)",
        "<=" => "less_equal(a, b)",
        ">" => "less(b, a)",
        _ => "less_equal(b, a)",
    };
    Err(ModelError::new(format!("`{symbol}` has no meaning for tensors"))
        .note(a.describe())
        .note(b.describe())
        .help(format!("for the elements, write {function}; programs cannot branch on values")))
}

/// `left symbol right` where at least one side is symbolic.
pub(crate) fn size_arithmetic(symbol: &str, left: Dim, right: Dim) -> Result<Dim, ModelError> {
    let (result, rule) = match symbol {
        "+" => (left.plus(right), "sizes add up if they share their symbols"),
        "-" => ((left == right).then_some(Dim::constant(0)), "symbolic sizes cannot be subtracted"),
        "*" => (left.times(right), "a size has at most three symbols"),
        "/" | "//" => (left.over(right), "symbolic sizes divide only without remainder"),
        _ => (None, "symbolic sizes have +, *, // and =="),
    };
    result.ok_or_else(|| ModelError::new(format!("{left} {symbol} {right} is no size: {rule}")))
}

/// A bound of a slice: a whole number, which may count from the end, or a symbolic size.
#[derive(Clone, Copy)]
pub(crate) enum Bound {
    Int(i64),
    Size(Dim),
}

impl Bound {
    pub fn new(value: Value<'_>) -> Result<Bound, ModelError> {
        match (integer(value), unpack_size(value)) {
            (Some(n), _) => Ok(Bound::Int(n)),
            (None, Some(dim)) => Ok(Bound::Size(dim)),
            (None, None) => Err(ModelError::new(format!("a slice's bound is a whole number, not {}", value.to_repr()))),
        }
    }
}

/// `left symbol right` for values of any kind.
pub(crate) fn apply<'v>(
    symbol: &str,
    left: Value<'v>,
    right: Value<'v>,
    heap: Heap<'v>,
) -> starlark::Result<Value<'v>> {
    let symbolic = |v: Value<'v>| v.downcast_ref::<SizeValue>().is_some();
    if (symbolic(left) || symbolic(right))
        && !matches!(symbol, "==" | "!=")
        && let (Some(a), Some(b)) = (unpack_size(left), unpack_size(right))
        && !matches!(symbol, "<" | "<=" | ">" | ">=")
    {
        return size_arithmetic(symbol, a, b).map(|d| alloc_size(heap, d)).map_err(starlark::Error::new_other);
    }
    if symbol == "*" || symbol == "+" {
        check_length(symbol, left, right).map_err(starlark::Error::new_other)?;
    }
    match symbol {
        "+" => left.add(right, heap),
        "-" => left.sub(right, heap),
        "*" => left.mul(right, heap),
        "/" => left.div(right, heap),
        "//" => left.floor_div(right, heap),
        "%" => left.percent(right, heap),
        "==" => left.equals(right).map(Value::new_bool),
        "!=" => left.equals(right).map(|equal| Value::new_bool(!equal)),
        "<" => left.compare(right).map(|order| Value::new_bool(order.is_lt())),
        "<=" => left.compare(right).map(|order| Value::new_bool(order.is_le())),
        ">" => left.compare(right).map(|order| Value::new_bool(order.is_gt())),
        _ => left.compare(right).map(|order| Value::new_bool(order.is_ge())),
    }
}

/// Refuses strings and lists far longer than a model needs before they take the memory.
fn check_length(symbol: &str, left: Value<'_>, right: Value<'_>) -> Result<(), ModelError> {
    let length = |v: Value<'_>| match v.unpack_str() {
        Some(text) => Some(text.len()),
        None => ListRef::from_value(v)
            .map(|list| list.len())
            .or_else(|| TupleRef::from_value(v).map(|tuple| tuple.len())),
    };
    let times = |v: Value<'_>| integer(v).map(|n| n.max(0) as usize);
    let total = match (length(left), length(right)) {
        (Some(a), Some(b)) if symbol == "+" => a.checked_add(b),
        (Some(n), None) if symbol == "*" => n.checked_mul(times(right).unwrap_or(0)),
        (None, Some(n)) if symbol == "*" => n.checked_mul(times(left).unwrap_or(0)),
        _ => Some(0),
    };
    match total {
        Some(n) if n <= MAX_LENGTH => Ok(()),
        _ => Err(ModelError::new(format!("`{symbol}` makes a string or list of more than {MAX_LENGTH} elements"))),
    }
}
