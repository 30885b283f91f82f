//! Samples of sources, reductions, views, gather, scatter, sorting and random bits.

use super::{Operand, Sample};
use crate::dim::Dim;
use crate::tensor::Tensor;
use crate::types::{DType, Type};

/// The operations here.
pub(super) const NAMES: &[&str] = &[
    "constant",
    "iota",
    "size",
    "reduce_sum",
    "reduce_max",
    "argmax",
    "reshape",
    "transpose",
    "broadcast",
    "slice",
    "pad",
    "concat",
    "gather_rows",
    "gather_along",
    "scatter_add_rows",
    "scatter_add_along",
    "write",
    "argsort",
    "random_bits",
];

pub(super) fn samples() -> Vec<Sample> {
    let mut all = sources();
    all.extend(reductions());
    all.extend(views());
    all.extend(places());
    all
}

fn sources() -> Vec<Sample> {
    let mut all = vec![Sample::one("size/number", vec![], |b, _| b.size(Dim::constant(12)))];
    for dtype in DType::ALL {
        all.push(Sample::one(format!("constant/{dtype}"), vec![], move |b, _| b.constant(1.0, dtype)));
    }
    for dtype in DType::ALL.into_iter().filter(|d| *d != DType::Bool) {
        let ty = Type::new(dtype, [3, 4, 2]);
        all.push(Sample::one(format!("iota/{dtype}"), vec![], move |b, _| b.iota(1, ty.clone())));
    }
    all
}

fn reductions() -> Vec<Sample> {
    let mut all = Vec::new();
    let sets: [(&str, &'static [isize]); 5] =
        [("first", &[0]), ("middle", &[1]), ("last", &[2]), ("outer", &[0, 2]), ("all", &[0, 1, 2])];
    for (name, axes) in sets {
        let operand = || vec![Operand::float([3, 4, 5])];
        all.push(Sample::one(format!("reduce_sum/{name}"), operand(), move |_, x| x[0].sum(axes)));
        all.push(Sample::one(format!("reduce_max/{name}"), operand(), move |_, x| x[0].max_over(axes)));
    }
    for dtype in [DType::BF16, DType::I32, DType::U32, DType::U8] {
        let operand = || vec![Operand::new(dtype, [3, 17], (0.0, 40.0))];
        all.push(Sample::one(format!("reduce_sum/{dtype}"), operand(), |_, x| x[0].sum(&[-1])));
        all.push(Sample::one(format!("reduce_max/{dtype}"), operand(), |_, x| x[0].max_over(&[-1])));
    }
    let wide = vec![Operand::float([2, 131])];
    all.push(Sample::one("reduce_sum/wide", wide, |_, x| x[0].sum(&[1])));
    let ties = || vec![Operand::float([3, 7]).whole()];
    all.push(Sample::one("reduce_max/ties", ties(), |_, x| x[0].max_over(&[1])).kink());
    all.push(Sample::one("argmax/ties", ties(), |_, x| x[0].argmax(1)));
    all.push(Sample::one("argmax/first", vec![Operand::float([5, 3])], |_, x| x[0].argmax(0)));
    all.push(Sample::one("argmax/i32", vec![Operand::int([2, 6], -9, 9)], |_, x| x[0].argmax(-1)));
    all
}

fn views() -> Vec<Sample> {
    let f = || vec![Operand::float([2, 3, 4])];
    let mut all = vec![
        Sample::one("reshape/merge", f(), |_, x| x[0].reshape([6, 4])),
        Sample::one("reshape/split", f(), |_, x| x[0].reshape([2, 3, 2, 2])),
        Sample::one("transpose/matrix", vec![Operand::float([3, 5])], |_, x| x[0].transpose_last()),
        Sample::one("transpose/heads", vec![Operand::float([2, 3, 2, 4])], |_, x| x[0].transpose(&[0, 2, 1, 3])),
        Sample::one("transpose/cycle", f(), |_, x| x[0].transpose(&[2, 0, 1])),
        Sample::one("broadcast/scalar", vec![Operand::float([])], |_, x| x[0].broadcast([2, 3])),
        Sample::one("broadcast/ends", vec![Operand::float([1, 3, 1])], |_, x| x[0].broadcast([2, 3, 4])),
        Sample::one("broadcast/rows", vec![Operand::float([3])], |_, x| x[0].broadcast([2, 3])),
        Sample::one("slice/start", f(), |_, x| x[0].slice(1, 1, 2)),
        Sample::one("slice/step", vec![Operand::float([2, 9])], |_, x| x[0].slice_step(1, 2, 3, 3)),
        Sample::one("pad/both", f(), |_, x| x[0].pad(1, 2, 6, 1)),
        Sample::one("pad/step", f(), |_, x| x[0].pad(2, 1, 13, 3)),
        Sample::one("concat/last", vec![Operand::float([2, 3]), Operand::float([2, 1])], |b, x| b.concat(x, -1)),
        Sample::one(
            "concat/three",
            vec![Operand::float([1, 3]), Operand::float([2, 3]), Operand::float([3, 3])],
            |b, x| b.concat(x, 0),
        ),
        Sample::one("concat/twice", vec![Operand::float([2, 3])], |b, x| b.concat(&[x[0], x[0]], 1)),
    ];
    type Rearrange = for<'g> fn(Tensor<'g>) -> Tensor<'g>;
    let build: [(&str, Rearrange); 5] = [
        ("reshape", |x| x.reshape([6])),
        ("transpose", |x| x.transpose_last()),
        ("broadcast", |x| x.reshape([2, 1, 3]).broadcast([2, 2, 3])),
        ("slice", |x| x.slice(1, 1, 2)),
        ("pad", |x| x.pad(0, 1, 4, 1)),
    ];
    for dtype in DType::ALL.into_iter().filter(|d| *d != DType::F32) {
        for (name, build) in build {
            let operand = Operand::new(dtype, [2, 3], (0.0, 9.0));
            let operand = if dtype == DType::Bool { operand.within(0.0, 1.0) } else { operand };
            all.push(Sample::one(format!("{name}/{dtype}"), vec![operand], move |_, x| build(x[0])));
        }
    }
    all
}

fn places() -> Vec<Sample> {
    let rows = || Operand::int([2, 3], 0, 5);
    let along = || Operand::int([2, 3, 4], 0, 5);
    let scalar = |at: i32| Operand::int([], at, at + 1);
    let f = Operand::float;
    let mut all = vec![
        Sample::one("gather_rows/table", vec![f([5, 4]), rows()], |_, x| x[0].gather_rows(x[1])),
        Sample::one("gather_rows/bf16", vec![f([5, 4]).of(DType::BF16), rows()], |_, x| x[0].gather_rows(x[1])),
        Sample::one("gather_rows/vector", vec![Operand::float([5]), rows()], |_, x| x[0].gather_rows(x[1])),
        Sample::one("gather_rows/one", vec![f([5, 4]), scalar(3)], |_, x| x[0].gather_rows(x[1])),
        Sample::one("gather_along/middle", vec![Operand::float([2, 5, 4]), along()], |_, x| x[0].gather_along(1, x[1])),
        Sample::one("gather_along/last", vec![f([3, 5]), Operand::int([3, 1], 0, 5)], |_, x| {
            x[0].gather_along(-1, x[1])
        }),
        Sample::one("scatter_add_rows/table", vec![Operand::float([2, 3, 4]), rows()], |_, x| {
            x[0].scatter_add_rows(x[1], 5.into())
        }),
        Sample::one("scatter_add_rows/bf16", vec![Operand::float([2, 3, 4]).of(DType::BF16), rows()], |_, x| {
            x[0].scatter_add_rows(x[1], 5.into())
        }),
        Sample::one("scatter_add_rows/one", vec![Operand::float([4]), scalar(2)], |_, x| {
            x[0].scatter_add_rows(x[1], 5.into())
        }),
        Sample::one("scatter_add_rows/onto", vec![Operand::float([2, 3, 4]), rows(), f([5, 4])], |_, x| {
            x[0].scatter_add_rows_onto(x[1], x[2])
        }),
        Sample::one("scatter_add_along/middle", vec![Operand::float([2, 3, 4]), along()], |_, x| {
            x[0].scatter_add_along(1, x[1], 5.into())
        }),
        Sample::one("write/middle", vec![Operand::float([2, 6, 3]), Operand::float([2, 2, 3]), scalar(3)], |_, x| {
            x[0].write(1, x[1], x[2])
        }),
        Sample::one("write/bf16", vec![f([4, 3]).of(DType::BF16), f([1, 3]).of(DType::BF16), scalar(3)], |_, x| {
            x[0].write(0, x[1], x[2])
        }),
        Sample::one("argsort/i32", vec![Operand::int([3, 6], -9, 9)], |_, x| x[0].argsort(1, false)),
        Sample::one("random_bits/matrix", vec![Operand::key()], |b, x| b.random_bits(x[0], [3, 5])),
    ];
    for (name, descending) in [("ascending", false), ("descending", true)] {
        let ties = vec![Operand::float([7, 3]).whole()];
        all.push(Sample::one(format!("argsort/{name}"), vec![Operand::float([2, 9])], move |_, x| {
            x[0].argsort(-1, descending)
        }));
        all.push(Sample::one(format!("argsort/{name}/ties"), ties, move |_, x| x[0].argsort(0, descending)));
    }
    all
}
