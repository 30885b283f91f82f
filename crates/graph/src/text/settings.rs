//! The settings of each operation in text form: written and read side by side.

use std::fmt;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::composite::{Attr, Attrs, Composite, composite};
use crate::dim::Dim;
use crate::elementwise::{Binary, Unary};
use crate::op::{
    Axes, Conv, Direction, Dot, Gather, Op, Pool, PoolOp, Random, Reduce, ReduceOp, Role, Scatter, Sort, Source, View,
    Window,
};
use crate::text::scan::{Fields, Problem};
use crate::types::{DType, Shape, Type};

/// A setting's value as it is written.
pub enum Setting {
    Count(usize),
    Int(i64),
    Float(f64),
    Bool(bool),
    Size(Dim),
    Word(&'static str),
    Counts(Axes),
    Windows(SmallVec<[Window; 2]>),
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Setting::Count(n) => write!(f, "{n}"),
            Setting::Int(n) => write!(f, "{n}"),
            // The shortest text that reads back as the same number.
            Setting::Float(x) => write!(f, "{x:?}"),
            Setting::Bool(b) => write!(f, "{b}"),
            Setting::Size(dim) => write!(f, "{dim}"),
            Setting::Word(word) => f.write_str(word),
            Setting::Counts(counts) => write!(f, "{:?}", counts.as_slice()),
            Setting::Windows(windows) => {
                let rows: Vec<_> = windows.iter().map(|w| [w.size, w.stride, w.dilation, w.low, w.high]).collect();
                write!(f, "{rows:?}")
            }
        }
    }
}

/// The settings of `op` that neither its name nor the types of its results tell.
pub fn settings(op: &Op) -> Vec<(&'static str, Setting)> {
    use Setting::{Bool, Count, Counts, Float, Int, Size, Windows, Word};
    let flag = |name, on: bool| on.then_some((name, Bool(true)));
    let step = |n: usize| (n != 1).then_some(("step", Count(n)));
    match op {
        Op::Source(source) => match source {
            Source::Input { .. } | Source::Constant { .. } | Source::Size(_) => vec![],
            Source::Iota { axis, .. } => vec![("axis", Count(*axis))],
        },
        Op::Unary(_) | Op::Binary(_) | Op::Select | Op::Cast(_) => vec![],
        Op::Reduce(reduce) => vec![("axes", Counts(reduce.axes.clone()))],
        Op::View(view) => match view {
            View::Reshape(_) | View::Broadcast(_) => vec![],
            View::Transpose(order) => vec![("order", Counts(order.clone()))],
            View::Slice { axis, start, step: n, .. } | View::Pad { axis, start, step: n, .. } => {
                [("axis", Count(*axis)), ("start", Size(*start))].into_iter().chain(step(*n)).collect()
            }
            View::Concat(axis) => vec![("axis", Count(*axis))],
        },
        Op::Dot(dot) => {
            flag("transpose_a", dot.transpose_a).into_iter().chain(flag("transpose_b", dot.transpose_b)).collect()
        }
        Op::Conv(conv) => vec![("windows", Windows(conv.windows.clone())), ("groups", Count(conv.groups))],
        Op::Pool(pool) => vec![("op", Word(pool.op.name())), ("windows", Windows(pool.windows.clone()))],
        Op::Gather(Gather::Rows) | Op::Scatter(Scatter::AddRows(_)) => vec![],
        Op::Gather(Gather::Along(axis)) | Op::Scatter(Scatter::AddAlong { axis, .. } | Scatter::Write(axis)) => {
            vec![("axis", Count(*axis))]
        }
        Op::Sort(sort) => [("axis", Count(sort.axis))].into_iter().chain(flag("descending", sort.descending)).collect(),
        Op::Random(random) => vec![("stream", Count(random.stream as usize))],
        Op::Composite(composite) => {
            let written = |attr: &Attr| match attr {
                Attr::Int(n) => Int(*n),
                Attr::Float(x) => Float(*x),
                Attr::Bool(b) => Bool(*b),
                Attr::Size(dim) => Size(*dim),
                Attr::DType(dtype) => Word(dtype.name()),
            };
            composite.attrs.iter().map(|(name, attr)| (*name, written(attr))).collect()
        }
    }
}

/// What stands between an operation's name and its operands.
pub enum Argument {
    /// `input parameter wte.weight`
    Input(Role, Arc<str>),
    /// `constant 0.5`
    Constant(f64),
    /// `size b*t`
    Size(Dim),
    /// Nothing.
    None,
}

/// The operation with this name, these settings and results of these types: the inverse of [`settings`].
pub fn build(name: &str, argument: Argument, fields: &mut Fields<'_>, results: &[Type]) -> Result<Op, Problem> {
    let result = &results[0];
    let shape = &result.shape;
    let along = |axis: usize| match shape.get(axis) {
        Some(size) => Ok(*size),
        None => Err(Problem::at_start(format!("{name}: axis {axis} of {result}"))),
    };
    let conv = |direction, fields: &mut Fields<'_>| {
        Ok(Op::Conv(Conv {
            direction,
            windows: windows(fields)?,
            groups: fields.count("groups")?,
            result: if direction == Direction::Forward { Shape::default() } else { shape.clone() },
            dtype: result.dtype,
        }))
    };
    let pool = |direction, fields: &mut Fields<'_>| {
        let op = fields.word("op", |word| PoolOp::ALL.into_iter().find(|p| p.name() == word))?;
        Ok(Op::Pool(Pool { op, direction, windows: windows(fields)? }))
    };
    Ok(match name {
        "input" | "constant" | "size" => Op::Source(match argument {
            Argument::Input(role, name) => Source::Input { name, role, ty: result.clone() },
            Argument::Constant(value) => Source::Constant { value, dtype: result.dtype },
            Argument::Size(dim) => Source::Size(dim),
            Argument::None => return Err(Problem::at_start(format!("{name}: nothing after it"))),
        }),
        "iota" => Op::Source(Source::Iota { axis: fields.count("axis")?, ty: result.clone() }),
        "select" => Op::Select,
        "cast" => Op::Cast(result.dtype),
        "reshape" => Op::View(View::Reshape(shape.clone())),
        "transpose" => Op::View(View::Transpose(fields.counts("order")?)),
        "broadcast" => Op::View(View::Broadcast(shape.clone())),
        "slice" => {
            let axis = fields.count("axis")?;
            let (start, step) = (fields.size("start")?, fields.count_or("step", 1)?);
            Op::View(View::Slice { axis, start, size: along(axis)?, step })
        }
        "pad" => {
            let axis = fields.count("axis")?;
            let (start, step) = (fields.size("start")?, fields.count_or("step", 1)?);
            Op::View(View::Pad { axis, start, size: along(axis)?, step })
        }
        "concat" => Op::View(View::Concat(fields.count("axis")?)),
        "matmul" => Op::Dot(Dot {
            transpose_a: fields.flag("transpose_a")?,
            transpose_b: fields.flag("transpose_b")?,
            dtype: result.dtype,
        }),
        "conv" => conv(Direction::Forward, fields)?,
        "conv_input_gradient" => conv(Direction::InputGradient, fields)?,
        "conv_weight_gradient" => conv(Direction::WeightGradient, fields)?,
        "pool" => pool(Direction::Forward, fields)?,
        "pool_gradient" => pool(Direction::InputGradient, fields)?,
        "gather_rows" => Op::Gather(Gather::Rows),
        "gather_along" => Op::Gather(Gather::Along(fields.count("axis")?)),
        "scatter_add_rows" => Op::Scatter(Scatter::AddRows(along(0)?)),
        "scatter_add_along" => {
            let axis = fields.count("axis")?;
            Op::Scatter(Scatter::AddAlong { axis, size: along(axis)? })
        }
        "write" => Op::Scatter(Scatter::Write(fields.count("axis")?)),
        "argsort" => Op::Sort(Sort { axis: fields.count("axis")?, descending: fields.flag("descending")? }),
        "random_bits" => Op::Random(Random { stream: fields.stream("stream")?, shape: shape.clone() }),
        _ => {
            if let Some(op) = ReduceOp::ALL.into_iter().find(|op| op.name() == name) {
                let axes = fields.counts("axes")?;
                Op::Reduce(Reduce { op, axes })
            } else if let Some(op) = Unary::from_name(name) {
                Op::Unary(op)
            } else if let Some(op) = Binary::from_name(name) {
                Op::Binary(op)
            } else if let Some(def) = composite(name) {
                let attrs = def.attrs.iter().try_fold(Attrs::default(), |attrs, setting| {
                    let value = match &setting.default {
                        Attr::Int(n) => Attr::Int(fields.int_or(setting.name, *n)?),
                        Attr::Float(x) => Attr::Float(fields.float_or(setting.name, *x)?),
                        Attr::Bool(b) => Attr::Bool(fields.bool_or(setting.name, *b)?),
                        Attr::Size(dim) => Attr::Size(fields.size_or(setting.name, *dim)?),
                        Attr::DType(dtype) => Attr::DType(fields.word_or(setting.name, DType::from_name, *dtype)?),
                    };
                    Ok(attrs.with(setting.name, value))
                });
                Op::Composite(Composite { def, attrs: attrs? })
            } else {
                return Err(Problem::at_start(format!("no operation is called `{name}`")));
            }
        }
    })
}

fn windows(fields: &mut Fields<'_>) -> Result<SmallVec<[Window; 2]>, Problem> {
    let rows = fields.rows("windows")?;
    let window = |(column, row): (usize, Axes)| match row.as_slice() {
        [size, stride, dilation, low, high] => {
            Ok(Window { size: *size, stride: *stride, dilation: *dilation, low: *low, high: *high })
        }
        _ => Err(Problem::at(column, "a window is [size, stride, dilation, low, high]".into())),
    };
    rows.into_iter().map(window).collect()
}
