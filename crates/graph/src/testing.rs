//! Random graphs for property tests: of passes here, of backends elsewhere.

use crate::diagnostic::Site;
use crate::dim::Dim;
use crate::elementwise::{Binary, Unary};
use crate::graph::{Graph, Phase};
use crate::op::{Conv, Direction, Dot, Pool, PoolOp, Role, Window};
use crate::tensor::{Builder, Tensor};
use crate::types::{DType, Shape, Type};

/// The most elements of a value in a random graph.
const MAX_ELEMENTS: usize = 4096;

/// A deterministic generator: splitmix64.
pub struct Rng(u64);

impl Rng {
    /// The generator of this seed.
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`, which is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// One of `items`, which are not empty.
    pub fn pick<T: Clone>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())].clone()
    }

    /// A number from -1 up to 1.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    fn chance(&mut self, of: usize) -> bool {
        self.below(of) == 0
    }
}

/// A well-typed graph of about `size` operations, the same for the same seed, with sizes that are numbers.
///
/// Its inputs are floats for any values, `i32` for small ones, and `key`, two `u32`; indices stay within bounds. It has
/// elementwise operations, selections, casts, reductions, views, products, convolutions, pooling, gathers, scatters,
/// sorting, random bits, and the patterns of softmax and normalisation. Every value leads to an output or an update.
pub fn random_graph(seed: u64, size: usize) -> Graph {
    let builder = Builder::new();
    let mut maker = Maker { builder: &builder, rng: Rng::new(seed), floats: Vec::new(), ints: Vec::new() };
    let inputs = maker.inputs();
    for step in 0..size {
        let file = maker.rng.pick(&["my.star", "a b.star", ""]);
        let path = maker.rng.pick(&["h.0.mlp", "h.1 \"x\"", ""]);
        let (line, column, length) = (maker.rng.below(3) as u32, maker.rng.below(9) as u32, maker.rng.below(5) as u32);
        builder.set_site(&Site { file: file.into(), line, column, length, path: path.into() });
        builder.set_phase(Phase::ALL[3 * step / size.max(1)]);
        maker.step();
    }
    for input in inputs {
        let fits = maker.floats.iter().rev().find(|t| t.ty() == input.ty() && t.value() != input.value());
        if let Some(new) = fits
            && maker.rng.chance(2)
        {
            builder.update(input, *new);
        }
    }
    let unused: Vec<_> = {
        let graph = builder.graph();
        let counts = graph.use_counts();
        graph.nodes().flat_map(|n| graph.node(n).outputs()).filter(|v| counts[v.index()] == 0).collect()
    };
    for (i, value) in unused.into_iter().enumerate() {
        builder.output(&format!("y{i}"), builder.tensor(value));
    }
    builder.finish().expect("random graphs are well typed")
}

struct Maker<'g> {
    builder: &'g Builder,
    rng: Rng,
    /// `F32` and `BF16`.
    floats: Vec<Tensor<'g>>,
    /// `I32`.
    ints: Vec<Tensor<'g>>,
}

fn sizes(t: Tensor<'_>) -> Vec<usize> {
    t.shape().sizes()
}

fn window(size: usize, stride: usize, pad: usize) -> Window {
    Window { size, stride, dilation: 1, low: pad, high: pad }
}

impl<'g> Maker<'g> {
    fn inputs(&mut self) -> Vec<Tensor<'g>> {
        let g = self.builder;
        let roles = [Role::Data, Role::Parameter, Role::State];
        for (i, shape) in [vec![3, 4], vec![2, 3, 4], vec![4], vec![], vec![1, 5]].into_iter().enumerate() {
            let dtype = if self.rng.chance(5) { DType::BF16 } else { DType::F32 };
            let role = self.rng.pick(&roles);
            self.floats.push(g.input(&format!("x{i}"), role, Type::new(dtype, &shape[..])));
        }
        self.ints.push(g.input("n", Role::Data, Type::new(DType::I32, [3, 4])));
        self.floats.clone()
    }

    fn float(&mut self) -> Tensor<'g> {
        // Recent values more often, so that graphs get deep.
        let n = self.floats.len();
        let back = self.rng.below(n).min(self.rng.below(n));
        self.floats[n - 1 - back]
    }

    /// A float with at least `rank` axes.
    fn ranked(&mut self, rank: usize) -> Tensor<'g> {
        let x = self.float();
        let missing = rank.saturating_sub(x.rank());
        let shape: Vec<usize> = std::iter::repeat_n(1, missing).chain(sizes(x)).collect();
        x.reshape(&shape[..])
    }

    fn axis(&mut self, t: Tensor<'g>) -> usize {
        self.rng.below(t.rank())
    }

    fn keep(&mut self, t: Tensor<'g>) {
        let small = t.shape().numel().as_const().is_some_and(|n| n <= MAX_ELEMENTS);
        match t.dtype() {
            DType::F32 | DType::BF16 if small => self.floats.push(t),
            DType::I32 if small => self.ints.push(t),
            _ => {}
        }
    }

    fn step(&mut self) {
        let made = match self.rng.below(20) {
            0 | 1 => self.unary(),
            2..=4 => self.binary(),
            5 => self.select(),
            6 => self.cast(),
            7 | 8 => self.reduce(),
            9..=11 => self.view(),
            12 => self.join(),
            13 => self.dot(),
            14 => self.softmax(),
            15 => self.normalise(),
            16 => self.gather(),
            17 => self.source(),
            18 => self.windowed(),
            _ => self.integers(),
        };
        self.keep(made);
    }

    fn unary(&mut self) -> Tensor<'g> {
        let x = self.float();
        match self.rng.pick(&Unary::ALL) {
            op @ (Unary::Log | Unary::Log1p | Unary::Sqrt | Unary::Rsqrt) => (x.abs() + 0.5).unary(op),
            op @ (Unary::Exp | Unary::Expm1) => x.tanh().unary(op),
            Unary::Not => (!x.less(0.5)).cast(DType::F32),
            Unary::IsFinite => x.is_finite().cast(x.dtype()),
            op => x.unary(op),
        }
    }

    /// An operand that broadcasts with `x`.
    fn beside(&mut self, x: Tensor<'g>) -> Tensor<'g> {
        match self.rng.below(4) {
            0 => {
                let values = [0.0, -0.0, 1.0, -1.0, 2.0, 0.1, f64::INFINITY];
                let value = self.rng.pick(&values);
                x.constant_like(value)
            }
            1 if x.rank() > 0 => {
                let axis = self.axis(x) as isize;
                x.mean(&[axis])
            }
            _ => {
                let shape = x.shape();
                let same: Vec<_> = self.floats.iter().copied().filter(|t| t.shape() == shape).chain([x]).collect();
                self.rng.pick(&same)
            }
        }
    }

    fn binary(&mut self) -> Tensor<'g> {
        let a = self.float();
        let b = self.beside(a);
        let (a, b) = if self.rng.chance(4) { (b, a) } else { (a, b) };
        match self.rng.pick(&Binary::ALL) {
            Binary::Pow => (a.abs() + 0.1).pow(b.tanh()),
            Binary::Div => a / (b.abs() + 0.5),
            op @ (Binary::Equal | Binary::Less | Binary::LessEqual) => a.binary(op, b).cast(DType::F32),
            op @ (Binary::And | Binary::Or) => a.less(0.0).binary(op, b.less(0.0)).cast(DType::BF16),
            op => a.binary(op, b),
        }
    }

    fn select(&mut self) -> Tensor<'g> {
        let a = self.float();
        let (b, c) = (self.beside(a), self.beside(a));
        a.less(b).select(c.cast(a.dtype()), a)
    }

    fn cast(&mut self) -> Tensor<'g> {
        let x = self.float();
        let through = self.rng.pick(&[DType::F32, DType::BF16]);
        match self.rng.below(3) {
            0 => x.cast(through),
            1 => x.tanh().cast(through).cast(x.dtype()),
            _ => (x.tanh() * 9.0).cast(DType::I32),
        }
    }

    fn reduce(&mut self) -> Tensor<'g> {
        let x = self.ranked(1);
        let axis = self.axis(x) as isize;
        let all: Vec<isize> = (0..x.rank() as isize).collect();
        match self.rng.below(5) {
            0 => x.max_over(&[axis]),
            1 => x.argmax(axis),
            2 => x.sum(&all),
            3 => x.max_over(&all),
            _ => x.sum(&[axis]),
        }
    }

    fn view(&mut self) -> Tensor<'g> {
        let x = self.ranked(1);
        let axis = self.axis(x);
        let n = sizes(x)[axis];
        match self.rng.below(7) {
            0 => {
                let mut order: Vec<usize> = (0..x.rank()).collect();
                order.swap(axis, self.rng.below(x.rank()));
                order.rotate_left(self.rng.below(2));
                x.transpose(&order)
            }
            1 => {
                let (start, step) = (self.rng.below(n), 1 + self.rng.below(2));
                let most = (n - 1 - start) / step + 1;
                x.slice_step(axis as isize, start, 1 + self.rng.below(most), step)
            }
            2 => {
                let (start, step) = (self.rng.below(3), 1 + self.rng.below(2));
                let end = start + (n - 1) * step + 1;
                x.pad(axis as isize, start, end + self.rng.below(3), step)
            }
            3 => x.reshape([x.shape().numel()]),
            4 if x.rank() < 5 => {
                let mut shape = sizes(x);
                shape.insert(axis, 1);
                x.reshape(&shape[..])
            }
            5 => {
                let half = Dim::constant(n).over(2.into());
                let split = half.map(|h| {
                    let mut shape: Vec<Dim> = x.shape().to_vec();
                    shape.splice(axis..=axis, [2.into(), h]);
                    shape
                });
                split.filter(|s| s.len() < 6).map_or(x, |s| x.reshape(&s[..]))
            }
            _ => {
                let wide: Shape =
                    sizes(x).into_iter().map(|n| if n == 1 { 1 + self.rng.below(4) } else { n }).collect();
                x.broadcast(wide)
            }
        }
    }

    fn join(&mut self) -> Tensor<'g> {
        let x = self.ranked(1);
        let y = self.beside(x).cast(x.dtype()).broadcast(x.shape());
        let axis = self.axis(x) as isize;
        self.builder.concat(&[x, y, x], axis)
    }

    fn dot(&mut self) -> Tensor<'g> {
        let a = self.ranked(2);
        let dtype = self.rng.pick(&[DType::F32, a.dtype()]);
        let (transpose_a, transpose_b) = (self.rng.chance(2), self.rng.chance(2));
        let b = if transpose_a == transpose_b { a.transpose_last() } else { a };
        // b has a's inner size where the product contracts.
        a.dot(b.tanh(), Dot { transpose_a, transpose_b, dtype })
    }

    fn softmax(&mut self) -> Tensor<'g> {
        let x = self.ranked(1);
        let axis = self.axis(x) as isize;
        let e = (x - x.max_over(&[axis])).exp();
        e / e.sum(&[axis])
    }

    fn normalise(&mut self) -> Tensor<'g> {
        let x = self.ranked(1);
        let axis = self.axis(x) as isize;
        let centred = x - x.mean(&[axis]);
        centred * ((centred * centred).mean(&[axis]) + 1e-5).rsqrt()
    }

    fn gather(&mut self) -> Tensor<'g> {
        let x = self.ranked(1);
        let axis = self.axis(x);
        let n = sizes(x)[axis];
        let order = x.argsort(axis as isize, self.rng.chance(2));
        match self.rng.below(5) {
            0 => x.gather_along(axis as isize, order),
            1 => x.scatter_add_along(axis, order, (n + 1).into()),
            2 => x.gather_rows(x.argmax(0).reshape([x.shape().numel().over(x.shape()[0]).unwrap_or(Dim::ONE)])),
            3 => {
                let rows = self.builder.iota(0, Type::new(DType::I32, [x.shape()[0]]));
                x.scatter_add_rows(rows, x.shape()[0])
            }
            _ => {
                let part = x.slice(axis as isize, 0, 1).tanh();
                x.write(axis, part, self.builder.constant((n - 1) as f64, DType::I32))
            }
        }
    }

    fn source(&mut self) -> Tensor<'g> {
        let g = self.builder;
        let x = self.ranked(1);
        let axis = self.axis(x);
        match self.rng.below(4) {
            0 => g.iota(axis, Type { dtype: DType::F32, shape: x.shape() }),
            1 => g.iota(axis, Type { dtype: DType::I32, shape: x.shape() }),
            2 => {
                let value = self.rng.unit() * 10f64.powi(self.rng.below(20) as i32 - 10);
                x.filled_like(value)
            }
            _ => {
                let known = g.graph().input("key");
                let key = match known {
                    Some(key) => g.tensor(key),
                    None => g.input("key", Role::Control, Type::new(DType::U32, [2])),
                };
                x + g.random_bits(key, x.shape()).cast(DType::F32) * 2f64.powi(-32)
            }
        }
    }

    fn windowed(&mut self) -> Tensor<'g> {
        let flat = self.float();
        let n = flat.shape().numel();
        let x = flat.reshape([Dim::ONE, n, Dim::ONE]);
        let windows = [window(1 + self.rng.below(3), 1 + self.rng.below(2), 1)];
        if self.rng.chance(2) {
            let op = self.rng.pick(&PoolOp::ALL);
            let windows = [window(2, windows[0].stride, 1)];
            let fits = n.as_const().is_some_and(|n| windows[0].outputs(n).is_some());
            return if fits {
                x.pool(Pool { op, direction: Direction::Forward, windows: windows.into_iter().collect() })
            } else {
                x
            };
        }
        let weight = self.builder.iota(0, Type::new(DType::F32, [2, windows[0].size, 1])).cast(x.dtype()) * 0.25 + 0.1;
        x.conv(
            weight,
            Conv {
                direction: Direction::Forward,
                windows: windows.into_iter().collect(),
                groups: 1,
                result: Shape::default(),
                dtype: x.dtype(),
            },
        )
    }

    fn integers(&mut self) -> Tensor<'g> {
        let ints = self.ints.clone();
        let n = self.rng.pick(&ints);
        match self.rng.below(4) {
            0 => n.cast(DType::F32),
            1 => n.max(n.constant_like(2.0)).min(n.constant_like(5.0)),
            2 => n.sign() * 3.0 - n.sign(),
            _ => n.equal(n.constant_like(1.0)).cast(DType::F32),
        }
    }
}
