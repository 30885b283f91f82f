//! The one list of samples: every operation on small operands, for the tests of each part that gives operations a meaning.
//!
//! The evaluator, automatic differentiation and every backend are tested on this list, and the values of the same samples
//! computed by PyTorch are stored with the tests. A sample's operands follow from its name alone, so that a script in
//! another language draws the same ones.

mod composite;
mod elementwise;
mod linear;
mod rearrange;

use crate::autodiff::gradients;
use crate::elementwise::{Binary, Unary};
use crate::graph::Graph;
use crate::op::Role;
use crate::random::random_bits;
use crate::reference::{Array, Inputs};
use crate::tensor::{Builder, Tensor};
use crate::types::{DType, Type};

/// Builds the operation on its operands.
type Build = Box<dyn for<'g> Fn(&'g Builder, &[Tensor<'g>]) -> Vec<Tensor<'g>>>;

/// An operand of a sample.
#[derive(Clone, PartialEq, Debug)]
pub struct Operand {
    /// Its type.
    pub ty: Type,
    /// Its elements lie between: floats in `[low, high)`; integers are such numbers rounded down; truth values hold for
    /// numbers from 0.5 on.
    pub domain: (f64, f64),
    /// Whether floats are rounded down to whole numbers, so that some are equal.
    pub whole: bool,
}

impl Operand {
    fn new<const N: usize>(dtype: DType, shape: [usize; N], domain: (f64, f64)) -> Operand {
        Operand { ty: Type::new(dtype, shape), domain, whole: false }
    }

    /// `f32` between -2 and 2.
    fn float<const N: usize>(shape: [usize; N]) -> Operand {
        Operand::shaped(&shape)
    }

    /// `f32` between -2 and 2.
    fn shaped(shape: &[usize]) -> Operand {
        Operand { ty: Type::new(DType::F32, shape), domain: (-2.0, 2.0), whole: false }
    }

    /// `i32` from `low` to below `high`.
    fn int<const N: usize>(shape: [usize; N], low: i32, high: i32) -> Operand {
        Operand::new(DType::I32, shape, (low.into(), high.into()))
    }

    fn bool<const N: usize>(shape: [usize; N]) -> Operand {
        Operand::new(DType::Bool, shape, (0.0, 1.0))
    }

    /// A random key.
    fn key() -> Operand {
        Operand::new(DType::U32, [2], (0.0, 2f64.powi(32)))
    }

    fn within(self, low: f64, high: f64) -> Operand {
        Operand { domain: (low, high), ..self }
    }

    fn of(self, dtype: DType) -> Operand {
        Operand { ty: Type { dtype, ..self.ty }, ..self }
    }

    fn whole(self) -> Operand {
        Operand { whole: true, ..self }
    }

    /// The elements of the operand number `stream` of the sample with this key: element `i` is
    /// `low + (high - low) * bits / 2^32`, with the bits of [`random_bits`].
    fn draw(&self, key: [u32; 2], stream: u32) -> Array {
        let (shape, dtype) = (self.ty.shape.sizes(), self.ty.dtype);
        let (low, high) = self.domain;
        let element = |i: u64| {
            let x = low + (high - low) * (f64::from(random_bits(key, stream, i)) / 2f64.powi(32));
            match dtype {
                DType::F32 | DType::BF16 if self.whole => x.floor(),
                DType::F32 => f64::from(x as f32),
                DType::BF16 => half::bf16::from_f32(x as f32).to_f64(),
                DType::I32 | DType::U32 | DType::U8 => x.floor(),
                DType::Bool => f64::from(u8::from(x >= 0.5)),
            }
        };
        let elements: usize = shape.iter().product();
        Array::new(dtype, shape, (0..elements as u64).map(element).collect::<Vec<_>>())
    }
}

/// An operation on small operands.
pub struct Sample {
    /// The operation and what is special here, such as `conv/2d/stride`: unique.
    pub name: String,
    /// The operands, `x0`, `x1`, ... in the graphs.
    pub operands: Vec<Operand>,
    /// How many of the results, `y0`, `y1`, ..., have a gradient: the first so many, of those that are floats.
    pub differentiable: usize,
    /// Whether the gradient agrees with finite differences: it does not where it is a convention, as at equal maxima.
    pub smooth: bool,
    build: Build,
}

impl Sample {
    fn new(
        name: impl Into<String>,
        operands: Vec<Operand>,
        build: impl for<'g> Fn(&'g Builder, &[Tensor<'g>]) -> Vec<Tensor<'g>> + 'static,
    ) -> Sample {
        let build = Box::new(build);
        Sample { name: name.into(), operands, differentiable: usize::MAX, smooth: true, build }
    }

    /// A sample whose operation has one result.
    fn one(
        name: impl Into<String>,
        operands: Vec<Operand>,
        build: impl for<'g> Fn(&'g Builder, &[Tensor<'g>]) -> Tensor<'g> + 'static,
    ) -> Sample {
        Sample::new(name, operands, move |b, x| vec![build(b, x)])
    }

    fn kink(self) -> Sample {
        Sample { smooth: false, ..self }
    }

    fn differentiable(self, results: usize) -> Sample {
        Sample { differentiable: results, ..self }
    }

    /// The operation's name.
    pub fn op(&self) -> &str {
        self.name.split('/').next().unwrap_or_default()
    }

    /// The operation alone: inputs `x0`, ..., results `y0`, ....
    pub fn graph(&self) -> Graph {
        let b = Builder::new();
        self.forward(&b);
        b.finish().unwrap_or_else(|errors| panic!("{}: {errors:?}", self.name))
    }

    /// The operation and the gradients `dx0`, ... of its float operands, with the gradients `dy0`, ... of its
    /// differentiable results as inputs; `None` where there are no such operands or results.
    pub fn gradient_graph(&self) -> Option<Graph> {
        let b = Builder::new();
        let (x, y) = self.forward(&b);
        let (x, y) = (floats(x), floats(y.into_iter().take(self.differentiable)));
        let mut loss = None;
        for (i, y) in &y {
            let dy = b.input(&format!("dy{i}"), Role::Data, y.ty());
            let term = (*y * dy).sum_all().cast(DType::F32);
            loss = Some(loss.map_or(term, |so_far| so_far + term));
        }
        let loss = loss.filter(|_| !x.is_empty())?;
        let wrt: Vec<Tensor<'_>> = x.iter().map(|(_, t)| *t).collect();
        for ((i, _), gradient) in x.iter().zip(gradients(loss, &wrt)) {
            b.output(&format!("dx{i}"), gradient);
        }
        Some(b.finish().unwrap_or_else(|errors| panic!("{}: {errors:?}", self.name)))
    }

    fn forward<'g>(&self, b: &'g Builder) -> (Vec<Tensor<'g>>, Vec<Tensor<'g>>) {
        let operands = self.operands.iter().enumerate();
        let x: Vec<Tensor<'g>> = operands.map(|(i, o)| b.input(&format!("x{i}"), Role::Data, o.ty.clone())).collect();
        let y = (self.build)(b, &x);
        for (i, y) in y.iter().enumerate() {
            b.output(&format!("y{i}"), *y);
        }
        (x, y)
    }

    /// Values for the inputs of both graphs; the gradients of the results lie between -1 and 1.
    pub fn inputs(&self) -> Inputs {
        // FNV-1a of the name.
        let hash = self.name.bytes().fold(0x811c_9dc5u32, |h, c| (h ^ u32::from(c)).wrapping_mul(0x0100_0193));
        let key = [hash, 0];
        let draw = |(i, o): (usize, &Operand)| (format!("x{i}"), o.draw(key, i as u32));
        let mut inputs: Inputs = self.operands.iter().enumerate().map(draw).collect();
        let graph = self.graph();
        for (i, (_, y)) in graph.outputs.iter().enumerate() {
            let operand = Operand { ty: graph.ty(*y).clone(), domain: (-1.0, 1.0), whole: false };
            if operand.ty.dtype.is_float() {
                inputs.insert(format!("dy{i}"), operand.draw(key, 100 + i as u32));
            }
        }
        inputs
    }
}

/// The floats among these tensors and their places.
fn floats<'g>(tensors: impl IntoIterator<Item = Tensor<'g>>) -> Vec<(usize, Tensor<'g>)> {
    tensors.into_iter().enumerate().filter(|(_, t)| t.dtype().is_float()).collect()
}

/// Every sample.
pub fn samples() -> Vec<Sample> {
    let mut all = elementwise::samples();
    all.extend(rearrange::samples());
    all.extend(linear::samples());
    all.extend(composite::samples());
    all
}

/// The names of all operations: each has samples.
pub fn operation_names() -> Vec<&'static str> {
    let tables = Unary::ALL.iter().map(|op| op.def().name).chain(Binary::ALL.iter().map(|op| op.def().name));
    let composites = crate::composite::COMPOSITES.iter().map(|c| c.name);
    let others = elementwise::NAMES.iter().chain(rearrange::NAMES).chain(linear::NAMES).copied();
    tables.chain(others).chain(composites).collect()
}
