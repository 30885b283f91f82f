//! Samples of matrix products, convolution and pooling.

use smallvec::SmallVec;

use super::{Operand, Sample};
use crate::op::{Conv, Direction, Dot, Pool, PoolOp, Window};
use crate::types::{DType, Shape};

/// The operations here.
pub(super) const NAMES: &[&str] =
    &["matmul", "conv", "conv_input_gradient", "conv_weight_gradient", "pool", "pool_gradient"];

pub(super) fn samples() -> Vec<Sample> {
    let mut all = products();
    all.extend(convolutions());
    all.extend(pools());
    all
}

fn products() -> Vec<Sample> {
    let mut all = Vec::new();
    for (transpose_a, transpose_b) in [(false, false), (false, true), (true, false), (true, true)] {
        let name = |t| if t { "t" } else { "n" };
        let name = format!("{}{}", name(transpose_a), name(transpose_b));
        let (a, b) = (if transpose_a { [5, 3] } else { [3, 5] }, if transpose_b { [4, 5] } else { [5, 4] });
        let spec = move |dtype| Dot { transpose_a, transpose_b, dtype };
        let f = vec![Operand::float(a), Operand::float(b)];
        all.push(Sample::one(format!("matmul/{name}"), f, move |_, x| x[0].dot(x[1], spec(DType::F32))));
        let bf16 = || vec![Operand::float(a).of(DType::BF16), Operand::float(b).of(DType::BF16)];
        all.push(Sample::one(format!("matmul/{name}/bf16"), bf16(), move |_, x| x[0].dot(x[1], spec(DType::BF16))));
        all.push(Sample::one(format!("matmul/{name}/bf16/wide"), bf16(), move |_, x| x[0].dot(x[1], spec(DType::F32))));
        let mixed = vec![Operand::float(a).of(DType::BF16), Operand::float(b)];
        all.push(Sample::one(format!("matmul/{name}/mixed"), mixed, move |_, x| x[0].dot(x[1], spec(DType::BF16))));
        let stack = vec![Operand::float([2, 3, a[0], a[1]]), Operand::float([2, 3, b[0], b[1]])];
        all.push(Sample::one(format!("matmul/{name}/stack"), stack, move |_, x| x[0].dot(x[1], spec(DType::F32))));
    }
    let plain = Dot { transpose_a: false, transpose_b: false, dtype: DType::F32 };
    for (name, [m, k, n]) in [("row", [1, 7, 3]), ("outer", [4, 1, 3]), ("column", [5, 2, 1])] {
        let operands = vec![Operand::float([m, k]), Operand::float([k, n])];
        let plain = plain.clone();
        all.push(Sample::one(format!("matmul/{name}"), operands, move |_, x| x[0].dot(x[1], plain.clone())));
    }
    for dtype in [DType::F32, DType::BF16] {
        let operands = [[3, 5], [5, 4], [3, 4]].map(|sizes| Operand::float(sizes).of(dtype)).to_vec();
        let dot = Dot { dtype, ..plain.clone() };
        let onto =
            Sample::one(format!("matmul/onto/{dtype}"), operands, move |_, x| x[0].dot_onto(x[1], dot.clone(), x[2]));
        all.push(onto);
    }
    all.push(Sample::one("matmul/square", vec![Operand::float([3, 3])], move |_, x| x[0].dot(x[0], plain.clone())));
    all
}

/// A window of `size` that moves by `stride`, with neighbours `dilation` apart and this padding.
const fn window(size: usize, stride: usize, dilation: usize, low: usize, high: usize) -> Window {
    Window { size, stride, dilation, low, high }
}

fn convolutions() -> Vec<Sample> {
    /// Name, input, filters, groups, windows.
    type Case = (&'static str, &'static [usize], usize, usize, &'static [Window]);
    const THREE: Window = window(3, 1, 1, 1, 1);
    const CASES: [Case; 9] = [
        ("1d", &[2, 7, 3], 4, 1, &[window(3, 1, 1, 0, 0)]),
        ("1d/causal", &[1, 6, 2], 3, 1, &[window(3, 1, 2, 4, 0)]),
        ("2d", &[2, 5, 4, 3], 2, 1, &[THREE, THREE]),
        ("2d/stride", &[1, 7, 6, 2], 3, 1, &[window(3, 2, 1, 1, 1), window(2, 3, 1, 0, 1)]),
        ("2d/dilation", &[1, 7, 5, 2], 2, 1, &[window(3, 1, 2, 1, 2), window(2, 1, 3, 1, 0)]),
        ("2d/groups", &[1, 4, 4, 4], 6, 2, &[THREE, window(1, 1, 1, 0, 0)]),
        ("2d/depthwise", &[2, 5, 4, 3], 6, 3, &[window(3, 2, 1, 1, 0), THREE]),
        ("2d/pointwise", &[1, 3, 3, 4], 5, 1, &[window(1, 1, 1, 0, 0), window(1, 1, 1, 0, 0)]),
        ("3d", &[1, 3, 4, 3, 2], 2, 1, &[window(2, 1, 1, 0, 0), window(2, 2, 1, 0, 0), window(3, 1, 1, 1, 1)]),
    ];
    let mut all = Vec::new();
    for (name, input, filters, groups, windows) in CASES {
        for dtype in [DType::F32, DType::BF16] {
            if dtype == DType::F32 || name == "2d" {
                let name = if dtype == DType::BF16 { format!("{name}/bf16") } else { name.to_string() };
                all.extend(convolution(&name, input, filters, groups, windows, dtype));
            }
        }
    }
    all
}

/// A convolution's THREE maps.
fn convolution(
    name: &str,
    input: &[usize],
    filters: usize,
    groups: usize,
    windows: &[Window],
    dtype: DType,
) -> [Sample; 3] {
    let last = input.len() - 1;
    let sizes = windows.iter().map(|w| w.size);
    let weight: Vec<usize> = std::iter::once(filters).chain(sizes).chain([input[last] / groups]).collect();
    let places = windows.iter().zip(&input[1..]).map(|(w, n)| w.outputs(*n).expect("windows fit"));
    let output: Vec<usize> = std::iter::once(input[0]).chain(places).chain([filters]).collect();
    let windows: SmallVec<[Window; 2]> = windows.into();
    let one = |what: &str, direction, operands: [&[usize]; 2], result: &[usize]| {
        let result = if direction == Direction::Forward { Shape::scalar() } else { Shape::from(result) };
        let spec = Conv { direction, windows: windows.clone(), groups, result, dtype };
        let operands = operands.map(|shape| Operand::shaped(shape).of(dtype)).into();
        Sample::one(format!("{what}/{name}"), operands, move |_, x| x[0].conv(x[1], spec.clone()))
    };
    [
        one("conv", Direction::Forward, [input, &weight], &output),
        one("conv_input_gradient", Direction::InputGradient, [&output, &weight], input),
        one("conv_weight_gradient", Direction::WeightGradient, [&output, input], &weight),
    ]
}

fn pools() -> Vec<Sample> {
    // Name, input, windows.
    let cases: [(&str, &[usize], &[Window]); 5] = [
        ("1d", &[2, 7, 3], &[window(3, 2, 1, 0, 0)]),
        ("2d", &[1, 6, 4, 2], &[window(2, 2, 1, 0, 0), window(2, 2, 1, 0, 0)]),
        ("2d/overlap", &[1, 5, 6, 2], &[window(3, 2, 1, 1, 1), window(3, 1, 1, 1, 0)]),
        ("2d/dilation", &[1, 6, 5, 1], &[window(2, 1, 2, 1, 1), window(2, 2, 3, 0, 1)]),
        ("2d/global", &[2, 3, 4, 3], &[window(3, 1, 1, 0, 0), window(4, 1, 1, 0, 0)]),
    ];
    let mut all = Vec::new();
    for op in PoolOp::ALL {
        for (name, input, windows) in cases {
            let name = format!("{}/{name}", op.name());
            all.extend(pool(&name, op, Operand::shaped(input), windows));
        }
        let bf16 = Operand::shaped(&[1, 5, 5, 3]).of(DType::BF16);
        let overlap = [window(3, 2, 1, 1, 1), window(3, 2, 1, 1, 1)];
        all.extend(pool(&format!("{}/bf16", op.name()), op, bf16, &overlap));
    }
    let ties = Operand::shaped(&[1, 6, 6, 2]).whole();
    let overlap = [window(3, 2, 1, 1, 1), window(3, 2, 1, 1, 1)];
    all.extend(pool("max/ties", PoolOp::Max, ties, &overlap).map(Sample::kink));
    all
}

/// Pooling and its gradient.
fn pool(name: &str, op: PoolOp, input: Operand, windows: &[Window]) -> [Sample; 2] {
    let mut output = input.ty.shape.clone();
    for (i, w) in windows.iter().enumerate() {
        let n = output[i + 1].as_const().expect("samples have numbers for sizes");
        output = output.with(i + 1, w.outputs(n).expect("windows fit").into());
    }
    let dy = Operand::shaped(&output.sizes()).of(input.ty.dtype);
    let spec = |direction| Pool { op, direction, windows: windows.into() };
    let (forward, backward) = (spec(Direction::Forward), spec(Direction::InputGradient));
    [
        Sample::one(format!("pool/{name}"), vec![input.clone()], move |_, x| x[0].pool(forward.clone())),
        Sample::one(format!("pool_gradient/{name}"), vec![input, dy], move |_, x| {
            x[0].pool_gradient(x[1], backward.clone())
        }),
    ]
}
