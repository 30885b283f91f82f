//! Building graphs: `Tensor` is a copyable handle with arithmetic; errors are collected, so building code has no `?`.

mod builder;
mod operators;

use smallvec::SmallVec;

use crate::dim::Dim;
use crate::elementwise::{Binary, Unary};
use crate::graph::Value;
use crate::op::{Axes, Conv, Dot, Gather, Op, Pool, Reduce, ReduceOp, Scatter, Sort, Source, View};
use crate::types::{DType, MAX_RANK, Shape, Type};

pub use builder::{Builder, MAX_NODES};
pub use operators::Operand;

/// A value of a graph under construction. Arithmetic broadcasts as numpy does; axes count from the end when negative.
#[derive(Clone, Copy)]
pub struct Tensor<'g> {
    builder: &'g Builder,
    value: Value,
}

impl<'g> Tensor<'g> {
    /// The builder of this tensor's graph.
    pub fn builder(self) -> &'g Builder {
        self.builder
    }

    /// The value's id.
    pub fn value(self) -> Value {
        self.value
    }

    /// The type.
    pub fn ty(self) -> Type {
        self.builder.graph.borrow().ty(self.value).clone()
    }

    /// The element type.
    pub fn dtype(self) -> DType {
        self.builder.graph.borrow().ty(self.value).dtype
    }

    /// The shape.
    pub fn shape(self) -> Shape {
        self.builder.graph.borrow().ty(self.value).shape.clone()
    }

    /// The number of axes.
    pub fn rank(self) -> usize {
        self.builder.graph.borrow().ty(self.value).shape.rank()
    }

    /// Whether this stands for the result of an operation that failed.
    pub fn is_poisoned(self) -> bool {
        self.builder.poisoned.borrow().contains(&self.value)
    }

    /// Type, name or operation, and place, for messages.
    pub fn describe(self) -> String {
        let graph = self.builder.graph.borrow();
        let node = graph.producer(self.value);
        let site = graph.site(node);
        let what = match &graph.node(node).op {
            Op::Source(Source::Input { name, role, .. }) => format!("{} {name}", role.name()),
            op => format!("from {}", op.name()),
        };
        let ty = graph.ty(self.value);
        if site.line > 0 { format!("{ty} {what} ({site})") } else { format!("{ty} {what}") }
    }

    /// `axis` counted from the front, or a failure of `what`.
    pub fn axis(self, what: &str, axis: isize) -> Result<usize, Tensor<'g>> {
        let rank = self.rank() as isize;
        let from_front = if axis < 0 { axis + rank } else { axis };
        if (0..rank).contains(&from_front) {
            return Ok(from_front as usize);
        }
        let message = format!("{what}: axis {axis} of a value with {rank} axes");
        Err(self.builder.fail(message, &[self], None))
    }

    fn axes(self, what: &str, axes: &[isize]) -> Result<Axes, Tensor<'g>> {
        let mut found: Axes = axes.iter().map(|a| self.axis(what, *a)).collect::<Result<_, _>>()?;
        found.sort_unstable();
        if found.windows(2).any(|w| w[0] == w[1]) {
            let message = format!("{what}: an axis is named twice in {axes:?}");
            return Err(self.builder.fail(message, &[self], None));
        }
        Ok(found)
    }

    /// A unary operation.
    pub fn unary(self, op: Unary) -> Tensor<'g> {
        self.builder.add1(Op::Unary(op), &[self])
    }

    /// A binary operation; operands are broadcast, and bf16 with f32 gives f32.
    pub fn binary(self, op: Binary, other: Tensor<'g>) -> Tensor<'g> {
        let (mut a, mut b) = (self, other);
        match (a.dtype(), b.dtype()) {
            (DType::BF16, DType::F32) => a = a.cast(DType::F32),
            (DType::F32, DType::BF16) => b = b.cast(DType::F32),
            _ => {}
        }
        match a.broadcast_with(op.def().name, b) {
            Ok((a, b)) => self.builder.add1(Op::Binary(op), &[a, b]),
            Err(poison) => poison,
        }
    }

    /// Both operands in their common shape.
    pub fn broadcast_with(self, what: &str, other: Tensor<'g>) -> Result<(Tensor<'g>, Tensor<'g>), Tensor<'g>> {
        let (a, b) = (self.shape(), other.shape());
        if a == b {
            return Ok((self, other));
        }
        let rank = a.rank().max(b.rank());
        let at = |s: &Shape, i: usize| (i + s.rank()).checked_sub(rank).map_or(Dim::ONE, |i| s[i]);
        let mut common = SmallVec::<[Dim; 4]>::new();
        for i in 0..rank {
            match (at(&a, i), at(&b, i)) {
                (x, y) if x == y || y == Dim::ONE => common.push(x),
                (Dim::ONE, y) => common.push(y),
                (x, y) => {
                    let message = format!("{what}: {a} and {b} do not broadcast: {x} against {y}");
                    let help = "sizes must be equal or 1, counted from the last axis; reshape one side";
                    return Err(self.builder.fail(message, &[self, other], Some(help.into())));
                }
            }
        }
        let common: Shape = common.into_iter().collect();
        Ok((self.broadcast(common.clone()), other.broadcast(common)))
    }

    /// This value repeated to `shape`: missing leading axes and axes of size one are.
    pub fn broadcast(self, shape: impl Into<Shape>) -> Tensor<'g> {
        let shape = shape.into();
        let own = self.shape();
        if own == shape {
            return self;
        }
        if own.rank() > shape.rank() {
            let message = format!("broadcast: {own} has more axes than {shape}");
            return self.builder.fail(message, &[self], None);
        }
        let ones = std::iter::repeat_n(Dim::ONE, shape.rank() - own.rank());
        let aligned: Shape = ones.chain(own.iter().copied()).collect();
        let same_rank = self.reshape(aligned);
        if same_rank.shape() == shape {
            return same_rank;
        }
        self.builder.add1(Op::View(View::Broadcast(shape)), &[same_rank])
    }

    /// `select(self, a, b)`: `a` where this condition holds, else `b`; all three are broadcast.
    pub fn select(self, a: Tensor<'g>, b: Tensor<'g>) -> Tensor<'g> {
        let aligned = || {
            let (a, b) = a.broadcast_with("select", b)?;
            let (condition, a) = self.broadcast_with("select", a)?;
            Ok((condition, a, b.broadcast(condition.shape())))
        };
        match aligned() {
            Ok((condition, a, b)) => self.builder.add1(Op::Select, &[condition, a, b]),
            Err(poison) => poison,
        }
    }

    /// Conversion to another element type.
    pub fn cast(self, dtype: DType) -> Tensor<'g> {
        if self.dtype() == dtype {
            return self;
        }
        self.builder.add1(Op::Cast(dtype), &[self])
    }

    fn reduce(self, op: ReduceOp, axes: &[isize]) -> Tensor<'g> {
        match self.axes(op.name(), axes) {
            Ok(axes) if axes.is_empty() => self,
            Ok(axes) => self.builder.add1(Op::Reduce(Reduce { op, axes }), &[self]),
            Err(poison) => poison,
        }
    }

    /// The sum along `axes`, which stay with size one.
    pub fn sum(self, axes: &[isize]) -> Tensor<'g> {
        self.reduce(ReduceOp::Sum, axes)
    }

    /// The maximum along `axes`, which stay with size one.
    pub fn max_over(self, axes: &[isize]) -> Tensor<'g> {
        self.reduce(ReduceOp::Max, axes)
    }

    /// The index (`i32`) of the first maximum along `axis`, which stays with size one.
    pub fn argmax(self, axis: isize) -> Tensor<'g> {
        self.reduce(ReduceOp::ArgMax, &[axis])
    }

    /// The sum of all elements, a scalar.
    pub fn sum_all(self) -> Tensor<'g> {
        let axes: Vec<isize> = (0..self.rank() as isize).collect();
        self.sum(&axes).reshape(Shape::scalar())
    }

    /// The mean along `axes`, which stay with size one.
    pub fn mean(self, axes: &[isize]) -> Tensor<'g> {
        let sum = self.sum(axes);
        let (from, to) = (self.shape().checked_numel(), sum.shape().checked_numel());
        match from.zip(to).and_then(|(from, to)| from.over(to)) {
            Some(count) => sum / self.builder.size(count).cast(sum.dtype()),
            None => self.builder.fail("mean: the number of elements is no single size".into(), &[self], None),
        }
    }

    /// The same elements in another shape.
    pub fn reshape(self, shape: impl Into<Shape>) -> Tensor<'g> {
        let shape = shape.into();
        if self.shape() == shape {
            return self;
        }
        self.builder.add1(Op::View(View::Reshape(shape)), &[self])
    }

    /// Result axis `i` is operand axis `permutation[i]`.
    pub fn transpose(self, permutation: &[usize]) -> Tensor<'g> {
        if permutation.iter().enumerate().all(|(i, p)| i == *p) && permutation.len() == self.rank() {
            return self;
        }
        self.builder.add1(Op::View(View::Transpose(permutation.into())), &[self])
    }

    /// The last two axes swapped.
    pub fn transpose_last(self) -> Tensor<'g> {
        let rank = self.rank();
        if rank < 2 {
            let message = format!("transpose: a value with {rank} axes has no last two");
            return self.builder.fail(message, &[self], None);
        }
        let mut permutation: Vec<usize> = (0..rank).collect();
        permutation.swap(rank - 2, rank - 1);
        self.transpose(&permutation)
    }

    /// `size` elements from `start` on along `axis`.
    pub fn slice(self, axis: isize, start: impl Into<Dim>, size: impl Into<Dim>) -> Tensor<'g> {
        self.slice_step(axis, start, size, 1)
    }

    /// `size` elements from `start` on along `axis`, `step` apart.
    pub fn slice_step(self, axis: isize, start: impl Into<Dim>, size: impl Into<Dim>, step: usize) -> Tensor<'g> {
        let (start, size) = (start.into(), size.into());
        match self.axis("slice", axis) {
            Ok(axis) if step == 1 && size == self.shape()[axis] => self,
            Ok(axis) => self.builder.add1(Op::View(View::Slice { axis, start, size, step }), &[self]),
            Err(poison) => poison,
        }
    }

    /// This value from `start` on along `axis` of a zero value of size `size`, its elements `step` apart.
    pub fn pad(self, axis: isize, start: impl Into<Dim>, size: impl Into<Dim>, step: usize) -> Tensor<'g> {
        let (start, size) = (start.into(), size.into());
        match self.axis("pad", axis) {
            Ok(axis) if step == 1 && size == self.shape()[axis] => self,
            Ok(axis) => self.builder.add1(Op::View(View::Pad { axis, start, size, step }), &[self]),
            Err(poison) => poison,
        }
    }

    /// Equal parts along `axis`.
    pub fn split(self, parts: usize, axis: isize) -> Vec<Tensor<'g>> {
        let at = match self.axis("split", axis) {
            Ok(at) => at,
            Err(poison) => return vec![poison; parts],
        };
        let whole = self.shape()[at];
        match whole.over(Dim::constant(parts)) {
            Some(part) => {
                (0..parts).map(|i| self.slice(axis, part.times(i.into()).expect("part of a size"), part)).collect()
            }
            None => {
                let message = format!("split: {whole} elements do not divide into {parts} equal parts");
                vec![self.builder.fail(message, &[self], None); parts]
            }
        }
    }

    /// The matrix product over the last two axes; the result has this operand's element type.
    pub fn matmul(self, other: Tensor<'g>, transpose_a: bool, transpose_b: bool) -> Tensor<'g> {
        self.dot(other, Dot { transpose_a, transpose_b, dtype: self.dtype() })
    }

    /// The matrix product as `dot` says.
    pub fn dot(self, other: Tensor<'g>, dot: Dot) -> Tensor<'g> {
        self.builder.add1(Op::Dot(dot), &[self, other])
    }

    /// `start` plus the matrix product as `dot` says; see [`Dot`].
    pub fn dot_onto(self, other: Tensor<'g>, dot: Dot, start: Tensor<'g>) -> Tensor<'g> {
        self.builder.add1(Op::Dot(dot), &[self, other, start])
    }

    /// A convolution or one of its gradients; see [`Conv`] for the operands.
    pub fn conv(self, other: Tensor<'g>, conv: Conv) -> Tensor<'g> {
        self.builder.add1(Op::Conv(conv), &[self, other])
    }

    /// Pooling of this value.
    pub fn pool(self, pool: Pool) -> Tensor<'g> {
        self.builder.add1(Op::Pool(pool), &[self])
    }

    /// The gradient of pooling this value.
    pub fn pool_gradient(self, dy: Tensor<'g>, pool: Pool) -> Tensor<'g> {
        self.builder.add1(Op::Pool(pool), &[self, dy])
    }

    /// Rows of this table: `[i.., ..]` for indices `[i..]`.
    pub fn gather_rows(self, indices: Tensor<'g>) -> Tensor<'g> {
        self.builder.add1(Op::Gather(Gather::Rows), &[self, indices])
    }

    /// Elements of this value along `axis`.
    pub fn gather_along(self, axis: isize, indices: Tensor<'g>) -> Tensor<'g> {
        match self.axis("gather", axis) {
            Ok(axis) => self.builder.add1(Op::Gather(Gather::Along(axis)), &[self, indices]),
            Err(poison) => poison,
        }
    }

    /// These updates added into `rows` zero rows at `indices`.
    pub fn scatter_add_rows(self, indices: Tensor<'g>, rows: Dim) -> Tensor<'g> {
        self.builder.add1(Op::Scatter(Scatter::AddRows(rows)), &[indices, self])
    }

    /// These updates added into the rows of `start` at `indices`.
    pub fn scatter_add_rows_onto(self, indices: Tensor<'g>, start: Tensor<'g>) -> Tensor<'g> {
        let rows = start.shape().first().copied().unwrap_or(Dim::ONE);
        self.builder.add1(Op::Scatter(Scatter::AddRows(rows)), &[indices, self, start])
    }

    /// These updates added into zeros with `size` along `axis` at `indices`.
    pub fn scatter_add_along(self, axis: usize, indices: Tensor<'g>, size: Dim) -> Tensor<'g> {
        self.builder.add1(Op::Scatter(Scatter::AddAlong { axis, size }), &[indices, self])
    }

    /// This value with `updates` written from `position` on along `axis`.
    pub fn write(self, axis: usize, updates: Tensor<'g>, position: Tensor<'g>) -> Tensor<'g> {
        self.builder.add1(Op::Scatter(Scatter::Write(axis)), &[self, updates, position])
    }

    /// The indices (`i32`) that sort this value along `axis`, equal elements in their order.
    pub fn argsort(self, axis: isize, descending: bool) -> Tensor<'g> {
        match self.axis("argsort", axis) {
            Ok(axis) => self.builder.add1(Op::Sort(Sort { axis, descending }), &[self]),
            Err(poison) => poison,
        }
    }

    /// Zeros of this type.
    pub fn zeros_like(self) -> Tensor<'g> {
        self.filled_like(0.0)
    }

    /// `value` everywhere, of this type.
    pub fn filled_like(self, value: f64) -> Tensor<'g> {
        self.builder.full(value, self.dtype(), self.shape())
    }

    /// A scalar of this element type.
    pub fn constant_like(self, value: f64) -> Tensor<'g> {
        self.builder.constant(value, self.dtype())
    }
}

/// Whether a shape has few enough axes and a number of elements that can be written.
pub(crate) fn representable(shape: &Shape) -> bool {
    shape.rank() <= MAX_RANK && shape.checked_numel().is_some()
}
