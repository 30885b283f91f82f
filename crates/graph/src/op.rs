//! The closed kinds of node. Every pass matches them exhaustively; an operation is an instance of a kind.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::composite::Composite;
use crate::dim::Dim;
use crate::elementwise::{Binary, Unary};
use crate::types::{DType, Shape, Type};

/// Axis numbers.
pub type Axes = SmallVec<[usize; 4]>;

/// What a node computes.
#[derive(Clone, PartialEq, Debug)]
pub enum Op {
    /// A value that comes from nowhere in the graph.
    Source(Source),
    /// One operand, element by element.
    Unary(Unary),
    /// Two operands of the same type, element by element.
    Binary(Binary),
    /// `select(condition, a, b)`: `a` where the condition holds, else `b`.
    Select,
    /// Conversion to another element type: to floats rounds to nearest even, floats to integers truncate and saturate (NaN
    /// gives 0), integers to integers wrap, and all but 0 is true.
    Cast(DType),
    /// Combination along axes, which stay with size one.
    Reduce(Reduce),
    /// Rearrangement: no arithmetic.
    View(View),
    /// Matrix product.
    Dot(Dot),
    /// Convolution and its two gradients.
    Conv(Conv),
    /// Windowed maximum or mean and their gradients.
    Pool(Pool),
    /// Reading at computed places.
    Gather(Gather),
    /// Writing at computed places.
    Scatter(Scatter),
    /// Stable sorting: the indices (`i32`) that order the operand along `axis`.
    Sort(Sort),
    /// Random bits (`u32`) as a pure function of the key operand (`u32[2]`), `stream` and the element's index:
    /// [`crate::random::random_bits`].
    Random(Random),
    /// An operation defined by its expansion into other operations.
    Composite(Composite),
}

impl Op {
    /// Whether each element of the result follows from the operands' elements at its place: it is computed where it is used.
    pub fn is_elementwise(&self) -> bool {
        match self {
            Op::Unary(_) | Op::Binary(_) | Op::Select | Op::Cast(_) | Op::Random(_) => true,
            Op::Source(_)
            | Op::Reduce(_)
            | Op::View(_)
            | Op::Dot(_)
            | Op::Conv(_)
            | Op::Pool(_)
            | Op::Gather(_)
            | Op::Scatter(_)
            | Op::Sort(_)
            | Op::Composite(_) => false,
        }
    }

    /// Whether it is a view that needs no buffer unless a kernel cannot read through it: it may be repeated anywhere.
    pub fn is_free_view(&self) -> bool {
        matches!(self, Op::View(view) if !matches!(view, View::Concat(_) | View::Pad { .. }))
    }

    /// The operand, of the number that a node has, in whose buffer its kernel may make the result; it is not read otherwise.
    pub fn replaced_operand(&self, operands: usize) -> Option<usize> {
        match self {
            Op::Scatter(Scatter::Write(_)) => Some(0),
            Op::Dot(_) | Op::Scatter(Scatter::AddRows(_)) if operands == 3 => Some(2),
            Op::Source(_)
            | Op::Unary(_)
            | Op::Binary(_)
            | Op::Select
            | Op::Cast(_)
            | Op::Reduce(_)
            | Op::View(_)
            | Op::Dot(_)
            | Op::Conv(_)
            | Op::Pool(_)
            | Op::Gather(_)
            | Op::Scatter(_)
            | Op::Sort(_)
            | Op::Random(_)
            | Op::Composite(_) => None,
        }
    }
}

/// What a graph input is for; memory is reported by role.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum Role {
    /// A weight.
    Parameter,
    /// Part of the model that is not trained by gradient, such as running statistics.
    State,
    /// State of the optimizer.
    Optimizer,
    /// An accumulated gradient.
    Gradient,
    /// A batch.
    Data,
    /// A key-value cache.
    Cache,
    /// Step counter, random key and the like.
    Control,
}

impl Role {
    /// Every role, in the order of reports.
    pub const ALL: [Role; 7] =
        [Role::Parameter, Role::State, Role::Optimizer, Role::Gradient, Role::Data, Role::Cache, Role::Control];

    /// The name in text form.
    pub const fn name(self) -> &'static str {
        match self {
            Role::Parameter => "parameter",
            Role::State => "state",
            Role::Optimizer => "optimizer",
            Role::Gradient => "gradient",
            Role::Data => "data",
            Role::Cache => "cache",
            Role::Control => "control",
        }
    }
}

/// A value without operands.
#[derive(Clone, PartialEq, Debug)]
pub enum Source {
    /// A named buffer from outside.
    Input {
        /// Unique in the graph.
        name: Arc<str>,
        /// What it is for.
        role: Role,
        /// Its type.
        ty: Type,
    },
    /// A scalar.
    Constant {
        /// The value; rounded to `dtype`.
        value: f64,
        /// Its element type.
        dtype: DType,
    },
    /// Each element is its own index along `axis`.
    Iota {
        /// The axis that counts.
        axis: usize,
        /// The type of the result.
        ty: Type,
    },
    /// A size as an `f32` scalar, known when the graph is bound.
    Size(Dim),
}

/// Combination along axes.
#[derive(Clone, PartialEq, Debug)]
pub struct Reduce {
    /// How elements are combined.
    pub op: ReduceOp,
    /// Ascending; they stay with size one.
    pub axes: Axes,
}

/// How a reduction combines elements.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ReduceOp {
    /// The sum; 0 over nothing; integers wrap.
    Sum,
    /// The maximum; minus infinity, or the smallest integer, over nothing; NaN if any element is.
    Max,
    /// The index (`i32`) of the first maximum along the one axis; of the first NaN if there is one; 0 over nothing.
    ArgMax,
}

impl ReduceOp {
    /// Every reduction.
    pub const ALL: [ReduceOp; 3] = [ReduceOp::Sum, ReduceOp::Max, ReduceOp::ArgMax];

    /// The name in text form.
    pub const fn name(self) -> &'static str {
        match self {
            ReduceOp::Sum => "reduce_sum",
            ReduceOp::Max => "reduce_max",
            ReduceOp::ArgMax => "argmax",
        }
    }
}

/// A rearrangement of elements.
#[derive(Clone, PartialEq, Debug)]
pub enum View {
    /// Another shape with the same elements in row-major order.
    Reshape(Shape),
    /// Result axis `i` is operand axis `permutation[i]`.
    Transpose(Axes),
    /// Axes of size one repeated to this shape of the same rank.
    Broadcast(Shape),
    /// Elements `start, start + step, ...` along one axis, `size` of them.
    Slice {
        /// The axis.
        axis: usize,
        /// The first element.
        start: Dim,
        /// How many.
        size: Dim,
        /// The distance between two.
        step: usize,
    },
    /// The operand at `start` along `axis` of a zero value of size `size`, its elements `step` apart: the adjoint of `Slice`.
    Pad {
        /// The axis.
        axis: usize,
        /// Where the first element goes.
        start: Dim,
        /// The size of the result along the axis.
        size: Dim,
        /// The distance between two.
        step: usize,
    },
    /// All operands, one after the other along the axis.
    Concat(usize),
}

/// `a @ b` over the last two axes; leading axes are equal in both and stay. With a third operand `c`, of the result's type,
/// `c + a @ b`: the products are added to `c` one after the other. Beside a bf16 operand an f32 one is rounded to bf16.
#[derive(Clone, PartialEq, Debug)]
pub struct Dot {
    /// Whether the last two axes of the left operand are swapped.
    pub transpose_a: bool,
    /// Whether the last two axes of the right operand are swapped.
    pub transpose_b: bool,
    /// The element type of the result; accumulation is always `f32`.
    pub dtype: DType,
}

/// Which of a linear operation's three maps this is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Direction {
    /// `(input, weight) -> output`.
    Forward,
    /// `(output gradient, weight) -> input gradient`.
    InputGradient,
    /// `(output gradient, input) -> weight gradient`.
    WeightGradient,
}

impl Direction {
    /// Every direction.
    pub const ALL: [Direction; 3] = [Direction::Forward, Direction::InputGradient, Direction::WeightGradient];

    /// The name in text form.
    pub const fn name(self) -> &'static str {
        match self {
            Direction::Forward => "forward",
            Direction::InputGradient => "input_gradient",
            Direction::WeightGradient => "weight_gradient",
        }
    }
}

/// How a window moves along one spatial axis.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Window {
    /// Elements in the window.
    pub size: usize,
    /// Distance between two windows.
    pub stride: usize,
    /// Distance between two elements of a window.
    pub dilation: usize,
    /// Padding before the first element.
    pub low: usize,
    /// Padding after the last element.
    pub high: usize,
}

impl Window {
    /// How many windows fit on `n` elements; `None` if not even one does.
    pub fn outputs(&self, n: usize) -> Option<usize> {
        let padded = n + self.low + self.high;
        let extent = self.dilation * (self.size.checked_sub(1)?) + 1;
        Some(padded.checked_sub(extent)? / self.stride + 1)
    }
}

/// Convolution, channels last: input `[n, spatial.., c]`, weight `[o, window.., c / groups]`, output `[n, spatial.., o]`.
#[derive(Clone, PartialEq, Debug)]
pub struct Conv {
    /// Which map.
    pub direction: Direction,
    /// One per spatial axis.
    pub windows: SmallVec<[Window; 2]>,
    /// Channel groups that do not mix.
    pub groups: usize,
    /// The shape of the result of the two gradients, which does not follow from the operands; empty for `Forward`.
    pub result: Shape,
    /// The element type of the result; accumulation is always `f32`.
    pub dtype: DType,
}

/// How a pooling window is combined.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PoolOp {
    /// The maximum; padding never wins.
    Max,
    /// The mean over the window's elements, padding counted.
    Mean,
    /// The mean over the window's elements, padding not counted.
    MeanValid,
}

impl PoolOp {
    /// Every combination.
    pub const ALL: [PoolOp; 3] = [PoolOp::Max, PoolOp::Mean, PoolOp::MeanValid];

    /// The name in text form.
    pub const fn name(self) -> &'static str {
        match self {
            PoolOp::Max => "max",
            PoolOp::Mean => "mean",
            PoolOp::MeanValid => "mean_valid",
        }
    }
}

/// Pooling, channels last: `[n, spatial.., c]`. Its gradient takes `(input, output gradient)`; a maximum's goes to the first.
#[derive(Clone, PartialEq, Debug)]
pub struct Pool {
    /// How a window is combined.
    pub op: PoolOp,
    /// `Forward` or `InputGradient`.
    pub direction: Direction,
    /// One per spatial axis.
    pub windows: SmallVec<[Window; 2]>,
}

/// Reading at computed places. An index outside the operand is an error when the program runs.
#[derive(Clone, PartialEq, Debug)]
pub enum Gather {
    /// `(table [v, ..], indices [i..]) -> [i.., ..]`: rows of a table.
    Rows,
    /// `(operand, indices)` of equal rank, sizes equal but for `axis`: elements along the axis.
    Along(usize),
}

/// Writing at computed places; updates to one place are added in ascending order of their own index.
#[derive(Clone, PartialEq, Debug)]
pub enum Scatter {
    /// `(indices [i..], updates [i.., ..]) -> [rows, ..]`: the adjoint of `Gather::Rows`. With a third operand of the
    /// result's type, the sum of a row's updates is added to its row, and rows without updates stay.
    AddRows(Dim),
    /// `(indices, updates)` of one shape `-> ` that shape with `size` along `axis`: the adjoint of `Gather::Along`.
    AddAlong {
        /// The axis.
        axis: usize,
        /// The size of the result along it.
        size: Dim,
    },
    /// `(operand, updates, position i32[])`: the operand with the updates written from `position` on along `axis`; an error
    /// when the program runs if they do not fit.
    Write(usize),
}

/// Stable sorting.
#[derive(Clone, PartialEq, Debug)]
pub struct Sort {
    /// The axis.
    pub axis: usize,
    /// Largest first, NaN the largest of all; equal elements keep their order either way.
    pub descending: bool,
}

/// Random bits.
#[derive(Clone, PartialEq, Debug)]
pub struct Random {
    /// Tells two random nodes of one graph apart; given when the model is built, so that no pass changes it.
    pub stream: u32,
    /// The shape of the result.
    pub shape: Shape,
}
