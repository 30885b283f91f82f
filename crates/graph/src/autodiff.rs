//! Gradients by reverse accumulation, as nodes of the same graph.
//!
//! New nodes belong to [`Phase::Backward`] and to the site of the forward node whose gradient they carry on. Several
//! gradients of one value are added in the order in which they appear, the value's last user first; those of slices that
//! make up the value are concatenated instead.

use smallvec::SmallVec;

use crate::composite::{Backprop, CompositeGradient};
use crate::dim::Dim;
use crate::elementwise::{Binary, BinaryGradient, Unary, UnaryGradient};
use crate::graph::{Graph, Node, NodeData, Phase, Value};
use crate::op::{Conv, Direction, Dot, Gather, Op, Pool, PoolOp, Reduce, ReduceOp, Role, Scatter, Source, View};
use crate::tensor::{Builder, Tensor};
use crate::types::{DType, Shape, Type};

/// The gradients of the float scalar `loss` with respect to each of `wrt`, of their types; zeros where the loss does not
/// depend on one.
///
/// Gradients of matrix products and convolutions are `f32` where the operand is a parameter or a rearranged or converted
/// one, whatever the element types of the operands; elsewhere they have the operand's element type.
///
/// A loss that is no float scalar, or a `wrt` that is no float, is reported to the builder.
pub fn gradients<'g>(loss: Tensor<'g>, wrt: &[Tensor<'g>]) -> Vec<Tensor<'g>> {
    let b = loss.builder();
    if loss.is_poisoned() {
        return vec![loss; wrt.len()];
    }
    let ty = loss.ty();
    if !ty.dtype.is_float() || ty.shape.rank() != 0 {
        let message = format!("gradient: the loss is {ty}, not a float scalar");
        let poison = b.fail(message, &[loss], Some("reduce it first, by its sum or mean".into()));
        return vec![poison; wrt.len()];
    }
    if let Some(other) = wrt.iter().find(|t| !t.dtype().is_float()) {
        let poison = b.fail(format!("gradient: {} has none", other.ty()), &[*other], None);
        return vec![poison; wrt.len()];
    }
    let (site, phase) = (b.site_id(), b.phase());
    b.set_phase(Phase::Backward);
    let mut pass = Backward::new(b, wrt);
    let end = b.graph().node_count();
    pass.add(loss.value(), loss.constant_like(1.0));
    pass.walk(0, end);
    let found = wrt.iter().map(|t| match pass.gradient(t.value()) {
        Some(gradient) => gradient.cast(t.dtype()),
        None => t.zeros_like(),
    });
    let found = found.collect();
    b.set_site_id(site);
    b.set_phase(phase);
    found
}

struct Backward<'g> {
    b: &'g Builder,
    /// By value: whether it is a float that depends on a value whose gradient is wanted.
    wanted: Vec<bool>,
    /// By value: the gradients found so far.
    found: Vec<Option<Gradient<'g>>>,
}

/// The gradients of a value found so far.
enum Gradient<'g> {
    /// Their sum.
    Sum(Tensor<'g>),
    /// Those of slices along one axis, with the places where they start.
    Slices(usize, Vec<(Dim, Tensor<'g>)>),
}

impl<'g> Backward<'g> {
    fn new(b: &'g Builder, wrt: &[Tensor<'g>]) -> Backward<'g> {
        let mut wanted = vec![false; b.graph().value_count()];
        for tensor in wrt {
            wanted[tensor.value().index()] = true;
        }
        let mut pass = Backward { b, wanted, found: Vec::new() };
        pass.spread(0);
        pass
    }

    /// Marks what depends on wanted values among the nodes from `first` on.
    fn spread(&mut self, first: usize) {
        let graph = self.b.graph();
        self.wanted.resize(graph.value_count(), false);
        for index in first..graph.node_count() {
            let data = graph.node(Node::new(index));
            if data.inputs.iter().any(|v| self.wanted[v.index()]) {
                for output in data.outputs() {
                    self.wanted[output.index()] |= graph.ty(output).dtype.is_float();
                }
            }
        }
    }

    /// The gradient of a value all of whose users are done.
    fn gradient(&mut self, value: Value) -> Option<Tensor<'g>> {
        let found = self.found.get_mut(value.index())?.take()?;
        let sum = match found {
            Gradient::Sum(sum) => sum,
            Gradient::Slices(axis, slices) => joined(self.b.tensor(value).shape(), axis, slices),
        };
        self.found[value.index()] = Some(Gradient::Sum(sum));
        Some(sum)
    }

    /// The place for the gradients of a value.
    fn place(&mut self, value: Value) -> &mut Option<Gradient<'g>> {
        if self.found.len() <= value.index() {
            self.found.resize_with(value.index() + 1, || None);
        }
        &mut self.found[value.index()]
    }

    fn add(&mut self, value: Value, gradient: Tensor<'g>) {
        let so_far = self.gradient(value);
        *self.place(value) = Some(Gradient::Sum(so_far.map_or(gradient, |so_far| so_far + gradient)));
    }

    /// Adds the gradient of the slice of `value` that starts at `start` on an axis.
    fn add_slice(&mut self, value: Value, axis: usize, start: Dim, gradient: Tensor<'g>) {
        match self.place(value) {
            Some(Gradient::Slices(other, slices)) if *other == axis => slices.push((start, gradient)),
            place @ None => *place = Some(Gradient::Slices(axis, vec![(start, gradient)])),
            Some(_) => {
                let whole = self.b.tensor(value).shape()[axis];
                self.add(value, gradient.pad(axis as isize, start, whole, 1));
            }
        }
    }

    /// Carries gradients through the nodes of this range, the last first.
    fn walk(&mut self, first: usize, end: usize) {
        for index in (first..end).rev() {
            let data = self.b.graph().node(Node::new(index)).clone();
            if data.inputs.iter().any(|v| self.wanted[v.index()]) {
                self.b.set_site_id(data.site);
                let gradients: SmallVec<[_; 2]> = data.outputs().map(|v| self.gradient(v)).collect();
                if gradients.iter().any(Option::is_some) {
                    self.node(&data, &gradients);
                }
            }
        }
    }

    fn node(&mut self, data: &NodeData, gradients: &[Option<Tensor<'g>>]) {
        let inputs: SmallVec<[Tensor<'g>; 4]> = data.inputs.iter().map(|v| self.b.tensor(*v)).collect();
        let outputs: SmallVec<[Tensor<'g>; 2]> = data.outputs().map(|v| self.b.tensor(v)).collect();
        if let Op::Composite(composite) = &data.op {
            let attrs = &composite.attrs;
            match composite.def.gradient {
                CompositeGradient::Rule(rule) => {
                    let found = rule(&Backprop { inputs: &inputs, outputs: &outputs, gradients, attrs });
                    assert_eq!(found.len(), inputs.len(), "{}: a gradient for each operand", composite.def.name);
                    self.add_wanted(&inputs, found);
                }
                CompositeGradient::Expand => {
                    let first = self.b.graph().node_count();
                    let expanded = (composite.def.expand)(self.b, &inputs, attrs);
                    let end = self.b.graph().node_count();
                    self.spread(first);
                    for (result, gradient) in expanded.iter().zip(gradients) {
                        if let Some(gradient) = gradient {
                            self.add(result.value(), *gradient);
                        }
                    }
                    self.walk(first, end);
                }
            }
        } else if let Op::View(View::Slice { axis, start, step: 1, .. }) = &data.op {
            self.add_slice(data.inputs[0], *axis, *start, gradients[0].expect("its only output has one"));
        } else if let Some(dy) = gradients[0] {
            if let (Op::Gather(Gather::Rows), Some(sum)) = (&data.op, self.gradient(data.inputs[0])) {
                // Few rows of a large table: no zeros around them, and no sum of two whole tables.
                let sum = dy.scatter_add_rows_onto(inputs[1], sum);
                *self.place(data.inputs[0]) = Some(Gradient::Sum(sum));
                return;
            }
            let wanted: SmallVec<[bool; 4]> = data.inputs.iter().map(|v| self.wanted[v.index()]).collect();
            let found = primitive(&data.op, &Known { inputs: &inputs, y: outputs[0], dy, wanted: &wanted });
            self.add_wanted(&inputs, found);
        }
    }

    fn add_wanted(&mut self, inputs: &[Tensor<'g>], found: impl IntoIterator<Item = Option<Tensor<'g>>>) {
        for (input, gradient) in inputs.iter().zip(found) {
            if let Some(gradient) = gradient
                && self.wanted[input.value().index()]
            {
                self.add(input.value(), gradient);
            }
        }
    }
}

/// The gradient of a value from those of its slices: their concatenation where each starts where another ends.
fn joined<'g>(shape: Shape, axis: usize, slices: Vec<(Dim, Tensor<'g>)>) -> Tensor<'g> {
    let mut sorted = slices.clone();
    sorted.sort_by_key(|(start, _)| start.as_const());
    let end =
        sorted.iter().try_fold(
            Dim::constant(0),
            |end, (start, slice)| {
                if *start == end { end.plus(slice.shape()[axis]) } else { None }
            },
        );
    if end == Some(shape[axis]) {
        let parts: Vec<Tensor<'g>> = sorted.into_iter().map(|(_, slice)| slice).collect();
        return parts[0].builder().concat(&parts, axis as isize);
    }
    let padded = slices.into_iter().map(|(start, slice)| slice.pad(axis as isize, start, shape[axis], 1));
    padded.reduce(|sum, slice| sum + slice).expect("there is a slice")
}

/// A primitive node whose operands' gradients are wanted.
struct Known<'a, 'g> {
    inputs: &'a [Tensor<'g>],
    y: Tensor<'g>,
    dy: Tensor<'g>,
    /// Which operands' gradients are.
    wanted: &'a [bool],
}

impl<'g> Known<'_, 'g> {
    /// Gradients of two operands, each built only if it is wanted.
    fn pair(&self, first: impl FnOnce() -> Tensor<'g>, second: impl FnOnce() -> Tensor<'g>) -> Found<'g> {
        SmallVec::from_buf([self.wanted[0].then(first), self.wanted[1].then(second), None])
    }
}

type Found<'g> = SmallVec<[Option<Tensor<'g>>; 3]>;

fn only<'g>(gradient: Tensor<'g>) -> Found<'g> {
    SmallVec::from_buf([Some(gradient), None, None])
}

fn nothing<'g>() -> Found<'g> {
    SmallVec::new()
}

fn primitive<'g>(op: &Op, k: &Known<'_, 'g>) -> Found<'g> {
    let (inputs, y, dy) = (k.inputs, k.y, k.dy);
    match op {
        Op::Source(_) | Op::Random(_) | Op::Sort(_) => nothing(),
        Op::Unary(unary) => unary_gradient(*unary, inputs[0], y, dy),
        Op::Binary(binary) => binary_gradient(*binary, k),
        Op::Select => {
            let zero = dy.constant_like(0.0);
            let [a, b] = [(dy, zero), (zero, dy)].map(|(a, b)| inputs[0].select(a, b));
            SmallVec::from_buf([None, Some(a), Some(b)])
        }
        Op::Cast(_) => only(dy.cast(inputs[0].dtype())),
        Op::Reduce(reduce) => reduce_gradient(reduce, inputs[0], y, dy),
        Op::View(view) => view_gradient(view, inputs, dy),
        Op::Dot(dot) => dot_gradient(dot, k),
        Op::Conv(conv) => conv_gradient(conv, k),
        Op::Pool(pool) => pool_gradient(pool, k),
        Op::Gather(Gather::Rows) => only(dy.scatter_add_rows(inputs[1], inputs[0].shape()[0])),
        Op::Gather(Gather::Along(axis)) => only(dy.scatter_add_along(*axis, inputs[1], inputs[0].shape()[*axis])),
        Op::Scatter(Scatter::AddRows(_)) => {
            SmallVec::from_buf([None, Some(dy.gather_rows(inputs[0])), inputs.get(2).map(|_| dy)])
        }
        Op::Scatter(Scatter::AddAlong { axis, .. }) => {
            SmallVec::from_buf([None, Some(dy.gather_along(*axis as isize, inputs[0])), None])
        }
        Op::Scatter(Scatter::Write(axis)) => {
            let (updates, position) = (inputs[1], inputs[2]);
            k.pair(
                || dy.write(*axis, dy.builder().full(0.0, dy.dtype(), updates.shape()), position),
                || {
                    let places = dy.builder().iota(*axis, Type::new(DType::I32, updates.shape()));
                    dy.gather_along(*axis as isize, places + position)
                },
            )
        }
        Op::Composite(_) => unreachable!("composites have rules of their own"),
    }
}

fn unary_gradient<'g>(unary: Unary, x: Tensor<'g>, y: Tensor<'g>, dy: Tensor<'g>) -> Found<'g> {
    match unary.def().gradient {
        UnaryGradient::Zero => nothing(),
        UnaryGradient::Rule(rule) => only(rule(x, y, dy)),
    }
}

fn binary_gradient<'g>(binary: Binary, k: &Known<'_, 'g>) -> Found<'g> {
    let gradient = |i: usize| match binary.def().gradient[i] {
        BinaryGradient::Rule(rule) if k.wanted[i] => Some(rule(k.inputs[0], k.inputs[1], k.y, k.dy)),
        BinaryGradient::Rule(_) | BinaryGradient::Zero => None,
    };
    SmallVec::from_buf([gradient(0), gradient(1), None])
}

fn reduce_gradient<'g>(reduce: &Reduce, x: Tensor<'g>, y: Tensor<'g>, dy: Tensor<'g>) -> Found<'g> {
    match reduce.op {
        ReduceOp::Sum => only(dy.broadcast(x.shape())),
        // Equal maxima share the gradient, as in torch.amax.
        ReduceOp::Max => {
            let axes: Vec<isize> = reduce.axes.iter().map(|a| *a as isize).collect();
            let largest = x.equal(y);
            let share = dy / largest.cast(dy.dtype()).sum(&axes);
            only(largest.select(share, dy.constant_like(0.0)))
        }
        ReduceOp::ArgMax => nothing(),
    }
}

fn view_gradient<'g>(view: &View, inputs: &[Tensor<'g>], dy: Tensor<'g>) -> Found<'g> {
    let shape = inputs[0].shape();
    match view {
        View::Reshape(_) => only(dy.reshape(shape)),
        View::Transpose(permutation) => {
            let mut inverse = vec![0; permutation.len()];
            for (to, from) in permutation.iter().enumerate() {
                inverse[*from] = to;
            }
            only(dy.transpose(&inverse))
        }
        View::Broadcast(to) => {
            let repeated = (0..shape.rank()).filter(|i| shape[*i] != to[*i]).map(|i| i as isize);
            only(dy.sum(&repeated.collect::<Vec<_>>()))
        }
        View::Slice { axis, start, step, .. } => only(dy.pad(*axis as isize, *start, shape[*axis], *step)),
        View::Pad { axis, start, step, .. } => only(dy.slice_step(*axis as isize, *start, shape[*axis], *step)),
        View::Concat(axis) => {
            let mut start = crate::dim::Dim::constant(0);
            let part = |input: &Tensor<'g>| {
                let size = input.shape()[*axis];
                let slice = dy.slice(*axis as isize, start, size);
                start = start.plus(size).expect("the sum of the parts is the size of the whole");
                Some(slice)
            };
            inputs.iter().map(part).collect()
        }
    }
}

/// The element type of the gradient that a matrix product or convolution gives its operand.
fn weight_dtype(operand: Tensor<'_>) -> DType {
    let graph = operand.builder().graph();
    if is_parameter(&graph, operand.value()) { DType::F32 } else { operand.dtype() }
}

/// Whether the value is a parameter, converted or rearranged or as it is.
fn is_parameter(graph: &Graph, value: Value) -> bool {
    let data = graph.node(graph.producer(value));
    match &data.op {
        Op::Source(Source::Input { role, .. }) => *role == Role::Parameter,
        Op::Cast(_) | Op::View(View::Reshape(_) | View::Transpose(_) | View::Slice { .. }) => {
            is_parameter(graph, data.inputs[0])
        }
        _ => false,
    }
}

fn dot_gradient<'g>(dot: &Dot, k: &Known<'_, 'g>) -> Found<'g> {
    let (a, b) = (k.inputs[0], k.inputs[1]);
    // The operands' element type, which is the fast one where the product's is wider.
    let dy = k.dy.cast(a.dtype());
    let product = |left: Tensor<'g>, transpose_a, right, transpose_b, operand| {
        left.dot(right, Dot { transpose_a, transpose_b, dtype: weight_dtype(operand) })
    };
    let Dot { transpose_a, transpose_b, .. } = *dot;
    let mut found = k.pair(
        || match transpose_a {
            false => product(dy, false, b, !transpose_b, a),
            true => product(b, transpose_b, dy, true, a),
        },
        || match transpose_b {
            false => product(a, !transpose_a, dy, false, b),
            true => product(dy, true, a, transpose_a, b),
        },
    );
    found[2] = k.inputs.get(2).map(|_| k.dy);
    found
}

/// The three maps of a convolution are linear in both operands, and each one's gradients are the other two.
fn conv_gradient<'g>(conv: &Conv, k: &Known<'_, 'g>) -> Found<'g> {
    let (a, b) = (k.inputs[0], k.inputs[1]);
    let dy = k.dy.cast(a.dtype());
    let map = |left: Tensor<'g>, right: Tensor<'g>, direction, operand: Tensor<'g>| {
        let result = if direction == Direction::Forward { Shape::scalar() } else { operand.shape() };
        left.conv(right, Conv { direction, result, dtype: weight_dtype(operand), ..conv.clone() })
    };
    use Direction::{Forward, InputGradient, WeightGradient};
    match conv.direction {
        Forward => k.pair(|| map(dy, b, InputGradient, a), || map(dy, a, WeightGradient, b)),
        InputGradient => k.pair(|| map(dy, b, Forward, a), || map(a, dy, WeightGradient, b)),
        WeightGradient => k.pair(|| map(b, dy, Forward, a), || map(a, dy, InputGradient, b)),
    }
}

fn pool_gradient<'g>(pool: &Pool, k: &Known<'_, 'g>) -> Found<'g> {
    let (x, dy) = (k.inputs[0], k.dy);
    match (pool.direction, pool.op) {
        (Direction::Forward, _) => {
            only(x.pool_gradient(dy, Pool { direction: Direction::InputGradient, ..pool.clone() }))
        }
        // The gradient of pooling is linear in the output gradient, and its adjoint is pooling again: of what stands where
        // the maximum was, or of the mean.
        (_, PoolOp::Max) => SmallVec::from_buf([None, Some(at_first_maximum(pool, x, dy)), None]),
        (_, PoolOp::Mean | PoolOp::MeanValid) => {
            let forward = Pool { direction: Direction::Forward, ..pool.clone() };
            SmallVec::from_buf([None, Some(dy.pool(forward)), None])
        }
    }
}

/// The elements of `values` at the first maximum of each window over `x`: one pass over the places of a window.
fn at_first_maximum<'g>(pool: &Pool, x: Tensor<'g>, values: Tensor<'g>) -> Tensor<'g> {
    let shape = x.shape();
    let padded = |t: Tensor<'g>| {
        pool.windows.iter().enumerate().fold(t, |t, (i, w)| {
            let n = shape[i + 1].as_const().expect("spatial sizes are numbers");
            t.pad(i as isize + 1, w.low, n + w.low + w.high, 1)
        })
    };
    let inside = padded(x.filled_like(1.0)).equal(1.0);
    let (x, values) = (inside.select(padded(x), x.constant_like(f64::NEG_INFINITY)), padded(values));
    let at = |t: Tensor<'g>, place: &[usize]| {
        pool.windows.iter().zip(place).enumerate().fold(t, |t, (i, (w, p))| {
            let n = t.shape()[i + 1].as_const().expect("spatial sizes are numbers");
            let outputs = (n - w.dilation * (w.size - 1) - 1) / w.stride + 1;
            t.slice_step(i as isize + 1, p * w.dilation, outputs, w.stride)
        })
    };
    let mut place = vec![0; pool.windows.len()];
    let (mut largest, mut value) = (at(x, &place), at(values, &place));
    while advance(&mut place, pool) {
        let (candidate, beside) = (at(x, &place), at(values, &place));
        let larger = largest.less(candidate);
        (largest, value) = (larger.select(candidate, largest), larger.select(beside, value));
    }
    value
}

/// Moves to the next place in a window, row-major; false at the end.
fn advance(place: &mut [usize], pool: &Pool) -> bool {
    for (p, window) in place.iter_mut().zip(&pool.windows).rev() {
        *p += 1;
        if *p < window.size {
            return true;
        }
        *p = 0;
    }
    false
}
