//! The type of every node's results, or why there is none.

use smallvec::{SmallVec, smallvec};

use crate::dim::Dim;
use crate::op::{Conv, Direction, Dot, Gather, Op, Pool, PoolOp, ReduceOp, Scatter, Source, View, Window};
use crate::tensor::representable;
use crate::types::{DType, Shape, Type};

/// Why a node cannot be.
#[derive(Clone, PartialEq, Debug)]
pub struct InferError {
    /// What is wrong.
    pub message: String,
    /// What to try.
    pub help: Option<String>,
}

impl InferError {
    pub(crate) fn new(message: impl Into<String>) -> InferError {
        InferError { message: message.into(), help: None }
    }

    pub(crate) fn help(self, help: impl Into<String>) -> InferError {
        InferError { help: Some(help.into()), ..self }
    }
}

type Types = SmallVec<[Type; 2]>;

macro_rules! fail {
    ($($arg:tt)*) => { return Err(InferError::new(format!($($arg)*))) };
}

/// The types of the results of `op` on operands of types `inputs`.
pub fn infer(op: &Op, inputs: &[Type]) -> Result<Types, InferError> {
    let name = op.name();
    let count = |n: usize| match inputs.len() {
        found if found == n => Ok(()),
        found => Err(InferError::new(format!("{name}: takes {n} operands, not {found}"))),
    };
    let result: Type = match op {
        Op::Source(source) => {
            count(0)?;
            match source {
                Source::Input { ty, .. } => ty.clone(),
                Source::Constant { dtype, .. } => Type::new(*dtype, Shape::scalar()),
                Source::Iota { ty, .. } if ty.dtype == DType::Bool => fail!("iota: truth values do not count"),
                Source::Iota { axis, ty } if *axis < ty.shape.rank() => ty.clone(),
                Source::Iota { axis, ty } => fail!("iota: axis {axis} of {ty}"),
                Source::Size(_) => Type::new(DType::F32, Shape::scalar()),
            }
        }
        Op::Unary(unary) => {
            count(1)?;
            elementwise(name, unary.def().signature, &inputs[0])?
        }
        Op::Binary(binary) => {
            count(2)?;
            same_types(name, &inputs[0], &inputs[1])?;
            elementwise(name, binary.def().signature, &inputs[0])?
        }
        Op::Select => {
            count(3)?;
            if inputs[0].dtype != DType::Bool || inputs[0].shape != inputs[1].shape {
                fail!("select: the condition is {}, not bool{}", inputs[0], inputs[1].shape);
            }
            same_types(name, &inputs[1], &inputs[2])?;
            inputs[1].clone()
        }
        Op::Cast(dtype) => {
            count(1)?;
            Type { dtype: *dtype, shape: inputs[0].shape.clone() }
        }
        Op::Reduce(reduce) => {
            count(1)?;
            let ty = &inputs[0];
            if let Some(axis) = reduce.axes.iter().find(|a| **a >= ty.shape.rank()) {
                fail!("{name}: axis {axis} of {ty}");
            }
            if ty.dtype == DType::Bool {
                fail!("{name}: truth values do not add up; cast them first");
            }
            if reduce.op == ReduceOp::ArgMax && reduce.axes.len() != 1 {
                fail!("argmax: takes one axis, not {:?}", reduce.axes.as_slice());
            }
            let shape = reduce.axes.iter().fold(ty.shape.clone(), |s, a| s.with(*a, Dim::ONE));
            let dtype = if reduce.op == ReduceOp::ArgMax { DType::I32 } else { ty.dtype };
            Type { dtype, shape }
        }
        Op::View(view) => {
            if !matches!(view, View::Concat(_)) {
                count(1)?;
            }
            self::view(view, inputs)?
        }
        Op::Dot(spec) => added_to(name, inputs, |i| dot(spec, &i[0], &i[1]))?,
        Op::Conv(spec) => {
            count(2)?;
            conv(spec, &inputs[0], &inputs[1])?
        }
        Op::Pool(spec) => {
            count(if spec.direction == Direction::Forward { 1 } else { 2 })?;
            pool(spec, inputs)?
        }
        Op::Gather(gather) => {
            count(2)?;
            self::gather(gather, &inputs[0], &inputs[1])?
        }
        Op::Scatter(scatter) => match scatter {
            Scatter::AddRows(_) => added_to(name, inputs, |i| self::scatter(scatter, i))?,
            Scatter::AddAlong { .. } => count(2).and_then(|()| self::scatter(scatter, inputs))?,
            Scatter::Write(_) => count(3).and_then(|()| self::scatter(scatter, inputs))?,
        },
        Op::Sort(sort) => {
            count(1)?;
            if sort.axis >= inputs[0].shape.rank() {
                fail!("argsort: axis {} of {}", sort.axis, inputs[0]);
            }
            Type { dtype: DType::I32, shape: inputs[0].shape.clone() }
        }
        Op::Random(random) => {
            count(1)?;
            let key = Type::new(DType::U32, [2]);
            if inputs[0] != key {
                fail!("random: the key is {}, not {key}", inputs[0]);
            }
            Type { dtype: DType::U32, shape: random.shape.clone() }
        }
        Op::Composite(composite) => return composite.infer(inputs),
    };
    if !representable(&result.shape) {
        fail!("{name}: the result {result} has too many axes or symbols, or its size overflows");
    }
    Ok(smallvec![result])
}

fn elementwise(name: &str, signature: crate::elementwise::Signature, ty: &Type) -> Result<Type, InferError> {
    match signature.result(ty.dtype) {
        Some(dtype) => Ok(Type { dtype, shape: ty.shape.clone() }),
        None => Err(InferError::new(format!("{name}: takes {}, not {ty}", signature.takes())).help("cast it first")),
    }
}

fn same_types(name: &str, a: &Type, b: &Type) -> Result<(), InferError> {
    if a.dtype != b.dtype {
        let message = format!("{name}: element types differ: {} and {}", a.dtype, b.dtype);
        return Err(InferError::new(message).help("cast one side"));
    }
    if a.shape != b.shape {
        fail!("{name}: shapes differ: {} and {}", a.shape, b.shape);
    }
    Ok(())
}

fn view(view: &View, inputs: &[Type]) -> Result<Type, InferError> {
    let Some(ty) = inputs.first() else { fail!("concat: no operands") };
    let shape = match view {
        View::Reshape(shape) => {
            let (from, to) = (ty.shape.checked_numel(), shape.checked_numel());
            if to.is_none() || from != to {
                let count = |n: Option<Dim>| n.map_or("too many".into(), |n| n.to_string());
                fail!("reshape: {} has {} elements, {shape} has {}", ty.shape, count(from), count(to));
            }
            shape.clone()
        }
        View::Transpose(permutation) => {
            let mut seen = permutation.clone();
            seen.sort_unstable();
            if !seen.iter().copied().eq(0..ty.shape.rank()) {
                fail!("transpose: {:?} does not order the axes of {}", permutation.as_slice(), ty.shape);
            }
            permutation.iter().map(|p| ty.shape[*p]).collect()
        }
        View::Broadcast(shape) => {
            let fits = |(from, to): (&Dim, &Dim)| from == to || *from == Dim::ONE;
            if ty.shape.rank() != shape.rank() || !ty.shape.iter().zip(shape.iter()).all(fits) {
                fail!("broadcast: {} cannot be repeated to {shape}", ty.shape);
            }
            shape.clone()
        }
        View::Slice { axis, start, size, step } => {
            let whole = axis_size("slice", &ty.shape, *axis)?;
            // Symbolic bounds are checked when the graph is bound.
            if let (Some(start), Some(size), Some(whole)) = (start.as_const(), size.as_const(), whole.as_const())
                && (*step == 0 || (size > 0 && start + (size - 1) * step >= whole))
            {
                fail!(
                    "slice: {size} elements from {start} on, {step} apart, of {whole} along axis {axis} of {}",
                    ty.shape
                );
            }
            ty.shape.with(*axis, *size)
        }
        View::Pad { axis, start, size, step } => {
            let part = axis_size("pad", &ty.shape, *axis)?;
            if let (Some(start), Some(part), Some(size)) = (start.as_const(), part.as_const(), size.as_const())
                && (*step == 0 || (part > 0 && start + (part - 1) * step >= size))
            {
                fail!("pad: {part} elements from {start} on, {step} apart, do not fit into {size}");
            }
            ty.shape.with(*axis, *size)
        }
        View::Concat(axis) => {
            let mut size = axis_size("concat", &ty.shape, *axis)?;
            for part in &inputs[1..] {
                let rest_equal = part.dtype == ty.dtype
                    && part.shape.rank() == ty.shape.rank()
                    && part.shape.with(*axis, Dim::ONE) == ty.shape.with(*axis, Dim::ONE);
                let sum = rest_equal.then(|| size.plus(part.shape[*axis])).flatten();
                match sum {
                    Some(sum) => size = sum,
                    None => fail!("concat: {part} does not continue {ty} along axis {axis}"),
                }
            }
            ty.shape.with(*axis, size)
        }
    };
    Ok(Type { dtype: ty.dtype, shape })
}

fn axis_size(what: &str, shape: &Shape, axis: usize) -> Result<Dim, InferError> {
    match shape.get(axis) {
        Some(size) => Ok(*size),
        None => Err(InferError::new(format!("{what}: axis {axis} of {shape}"))),
    }
}

fn floats(name: &str, a: &Type, b: &Type) -> Result<(), InferError> {
    if !a.dtype.is_float() || a.dtype != b.dtype {
        let message = format!("{name}: takes two operands of one float type, not {} and {}", a.dtype, b.dtype);
        return Err(InferError::new(message).help("cast one side"));
    }
    Ok(())
}

/// The type of an operation of two operands, which a third of that type may start from.
fn added_to(
    name: &str,
    inputs: &[Type],
    infer: impl FnOnce(&[Type]) -> Result<Type, InferError>,
) -> Result<Type, InferError> {
    if !(2..=3).contains(&inputs.len()) {
        fail!("{name}: takes two operands, or three, not {}", inputs.len());
    }
    let ty = infer(inputs)?;
    match inputs.get(2) {
        Some(start) if *start != ty => fail!("{name}: {ty} cannot be added to {start}"),
        _ => Ok(ty),
    }
}

fn dot(spec: &Dot, a: &Type, b: &Type) -> Result<Type, InferError> {
    if !a.dtype.is_float() || !b.dtype.is_float() {
        fail!("matmul: takes two floats, not {} and {}", a.dtype, b.dtype);
    }
    let rank = a.shape.rank();
    if rank < 2 || rank != b.shape.rank() {
        fail!("matmul: takes two matrices, or stacks of them with equally many axes, not {} and {}", a.shape, b.shape);
    }
    let matrix = |s: &Shape, swap: bool| if swap { (s[rank - 1], s[rank - 2]) } else { (s[rank - 2], s[rank - 1]) };
    let (m, ka) = matrix(&a.shape, spec.transpose_a);
    let (kb, n) = matrix(&b.shape, spec.transpose_b);
    if ka != kb {
        return Err(InferError::new(format!("matmul: inner sizes differ: {ka} and {kb}"))
            .help("the last size of the left operand must be the first of the right (or its last, with transpose_b)"));
    }
    if a.shape[..rank - 2] != b.shape[..rank - 2] {
        fail!("matmul: leading sizes differ: {} and {}", a.shape, b.shape);
    }
    Ok(Type { dtype: spec.dtype, shape: a.shape.with(rank - 2, m).with(rank - 1, n) })
}

fn spatial_outputs(name: &str, shape: &Shape, windows: &[Window]) -> Result<Shape, InferError> {
    if shape.rank() != windows.len() + 2 || windows.is_empty() {
        fail!("{name}: {} spatial windows over {shape}, which is not [n, spatial.., c]", windows.len());
    }
    let mut result = shape.clone();
    for (i, window) in windows.iter().enumerate() {
        if window.stride == 0 || window.dilation == 0 || window.size == 0 {
            fail!("{name}: size, stride and dilation of a window are at least 1");
        }
        let Some(n) = shape[i + 1].as_const() else {
            fail!("{name}: the spatial size {} of {shape} must be a number", shape[i + 1]);
        };
        let Some(out) = window.outputs(n) else {
            let Window { size, dilation, low, high, .. } = window;
            fail!(
                "{name}: a window of {size} (dilation {dilation}) does not fit on {n} elements padded by {low} and {high}"
            );
        };
        result = result.with(i + 1, out.into());
    }
    Ok(result)
}

fn conv(spec: &Conv, a: &Type, b: &Type) -> Result<Type, InferError> {
    floats("conv", a, b)?;
    let shape = match spec.direction {
        Direction::Forward => forward_conv(spec, &a.shape, &b.shape)?,
        // The result's shape is an attribute; the forward map of it must give the output gradient's shape.
        Direction::InputGradient => {
            if forward_conv(spec, &spec.result, &b.shape)? != a.shape {
                fail!("conv input gradient: {} is no output of {} under {}", a.shape, spec.result, b.shape);
            }
            spec.result.clone()
        }
        Direction::WeightGradient => {
            if forward_conv(spec, &b.shape, &spec.result)? != a.shape {
                fail!("conv weight gradient: {} is no output of {} under {}", a.shape, b.shape, spec.result);
            }
            spec.result.clone()
        }
    };
    Ok(Type { dtype: spec.dtype, shape })
}

fn forward_conv(spec: &Conv, input: &Shape, weight: &Shape) -> Result<Shape, InferError> {
    let rank = spec.windows.len() + 2;
    if weight.rank() != rank {
        fail!("conv: the weight is {weight}, not [o, window.., c / groups] with {rank} axes");
    }
    let result = spatial_outputs("conv", input, &spec.windows)?;
    let c = input[rank - 1];
    let groups = Dim::constant(spec.groups);
    if c.over(groups) != Some(weight[rank - 1]) || weight[0].over(groups).is_none() {
        fail!("conv: {c} channels and {} filters in {} groups do not fit the weight {weight}", weight[0], spec.groups);
    }
    for (window, size) in spec.windows.iter().zip(&weight[1..]) {
        if size.as_const() != Some(window.size) {
            fail!("conv: the weight {weight} does not have windows of {}", window.size);
        }
    }
    Ok(result.with(rank - 1, weight[0]))
}

fn pool(spec: &Pool, inputs: &[Type]) -> Result<Type, InferError> {
    let ty = &inputs[0];
    if !ty.dtype.is_float() {
        fail!("pool: takes floats, not {ty}");
    }
    let shape = spatial_outputs("pool", &ty.shape, &spec.windows)?;
    if spec.op == PoolOp::Max
        && spec.windows.iter().any(|w| w.low >= w.size * w.dilation || w.high >= w.size * w.dilation)
    {
        fail!("pool: padding as wide as the window leaves windows without elements");
    }
    match spec.direction {
        Direction::Forward => Ok(Type { dtype: ty.dtype, shape }),
        Direction::InputGradient if inputs[1].shape == shape => Ok(ty.clone()),
        Direction::InputGradient => fail!("pool gradient: {} is no output of {ty}", inputs[1]),
        Direction::WeightGradient => fail!("pool: has no weights"),
    }
}

fn indices(name: &str, ty: &Type) -> Result<(), InferError> {
    if ty.dtype != DType::I32 {
        fail!("{name}: indices are i32, not {}", ty.dtype);
    }
    Ok(())
}

fn equal_but(axis: usize, a: &Shape, b: &Shape) -> bool {
    a.rank() == b.rank() && axis < a.rank() && a.with(axis, Dim::ONE) == b.with(axis, Dim::ONE)
}

fn gather(gather: &Gather, operand: &Type, at: &Type) -> Result<Type, InferError> {
    indices("gather", at)?;
    let shape = match gather {
        Gather::Rows => {
            if operand.shape.rank() == 0 {
                fail!("gather: a scalar has no rows");
            }
            at.shape.iter().chain(&operand.shape[1..]).copied().collect()
        }
        Gather::Along(axis) => {
            if !equal_but(*axis, &operand.shape, &at.shape) {
                fail!("gather: indices {} do not fit {} along axis {axis}", at.shape, operand.shape);
            }
            at.shape.clone()
        }
    };
    Ok(Type { dtype: operand.dtype, shape })
}

fn scatter(scatter: &Scatter, inputs: &[Type]) -> Result<Type, InferError> {
    match scatter {
        Scatter::AddRows(rows) => {
            let (at, updates) = (&inputs[0], &inputs[1]);
            indices("scatter", at)?;
            let rank = at.shape.rank();
            if updates.shape.len() < rank || updates.shape[..rank] != at.shape[..] {
                fail!("scatter: updates {} do not start with the indices' {}", updates.shape, at.shape);
            }
            let shape = std::iter::once(*rows).chain(updates.shape[rank..].iter().copied()).collect::<Shape>();
            Ok(Type { dtype: updates.dtype, shape })
        }
        Scatter::AddAlong { axis, size } => {
            let (at, updates) = (&inputs[0], &inputs[1]);
            indices("scatter", at)?;
            if at.shape != updates.shape || *axis >= at.shape.rank() {
                fail!("scatter: indices {} and updates {} differ, or have no axis {axis}", at.shape, updates.shape);
            }
            Ok(Type { dtype: updates.dtype, shape: updates.shape.with(*axis, *size) })
        }
        Scatter::Write(axis) => {
            let (operand, updates, position) = (&inputs[0], &inputs[1], &inputs[2]);
            if *position != Type::new(DType::I32, Shape::scalar()) {
                fail!("write: the position is {position}, not i32[]");
            }
            if operand.dtype != updates.dtype || !equal_but(*axis, &operand.shape, &updates.shape) {
                fail!("write: {updates} does not go into {operand} along axis {axis}");
            }
            Ok(operand.clone())
        }
    }
}
