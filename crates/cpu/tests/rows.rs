//! Row programs: random graphs and the patterns of real models, fused against unfused against `f64`, everywhere.

mod rows_harness;

use rows_harness::{Rng, check};
use tenon_graph::elementwise::{Binary, Unary};
use tenon_graph::op::Role;
use tenon_graph::tensor::{Builder, Tensor};
use tenon_graph::types::{DType, Type};

/// Sizes around what tiles, lanes and vectors cut at.
const SIZES: [usize; 16] = [1, 2, 3, 5, 10, 31, 32, 33, 64, 100, 127, 257, 768, 1000, 2053, 2500];

/// A random graph of elementwise operations and reductions over `[rows, cols]`.
fn random_graph(rng: &mut Rng) -> tenon_graph::graph::Graph {
    let b = Builder::new();
    let cols = rng.pick(&SIZES);
    let rows = loop {
        let rows = rng.pick(&SIZES);
        if rows * cols <= 70_000 {
            break rows;
        }
    };
    let input = |name: &str, dtype, shape: [usize; 2]| b.input(name, Role::Data, Type::new(dtype, shape));
    let x = input("x", DType::F32, [rows, cols]);
    let transposed = input("transposed", DType::F32, [cols, rows]).transpose(&[1, 0]);
    let wide = input("wide", DType::F32, [rows, cols + 3]).slice(1, 2, cols);
    let stepped = input("stepped", DType::BF16, [rows, 2 * cols]).slice_step(1, 1, cols, 2);
    let row = input("row", DType::F32, [rows, 1]);
    let col = input("col", DType::BF16, [1, cols]);
    let one = input("one", DType::F32, [1, 1]);
    let labels = input("labels", DType::I32, [rows, 1]);
    let bytes = input("bytes", DType::U8, [rows, cols]);
    let iota = b.iota(1, Type::new(DType::I32, [rows, cols]));
    let lines = b.iota(0, Type::new(DType::F32, [rows, cols]));
    let mut floats: Vec<Tensor<'_>> = vec![x, transposed, wide, stepped, row, col, one, lines, b.scalar(0.7)];
    let mut whole: Vec<Tensor<'_>> = vec![labels, iota];
    let mut bools: Vec<Tensor<'_>> = vec![iota.equal(labels)];
    let mut last = x;
    for _ in 0..3 + rng.below(24) {
        let a = if rng.below(3) == 0 { last } else { rng.pick(&floats) };
        let c = rng.pick(&floats);
        match rng.below(16) {
            0..=4 => last = a.unary(rng.pick(&Unary::ALL[..16])),
            5..=8 => last = a.binary(rng.pick(&Binary::ALL[..7]), c),
            9 => bools.push(a.binary(rng.pick(&[Binary::Equal, Binary::Less, Binary::LessEqual]), c.cast(a.dtype()))),
            10 => last = rng.pick(&bools).select(a.cast(DType::F32), c.cast(DType::F32)),
            11 => last = a.cast(rng.pick(&[DType::BF16, DType::F32])),
            12 => {
                let i = rng.pick(&whole);
                let j = i.binary(rng.pick(&[Binary::Add, Binary::Mul, Binary::Max]), rng.pick(&whole));
                whole.push(j.unary(rng.pick(&[Unary::Neg, Unary::Abs, Unary::Sign])));
                last = j.cast(DType::F32);
            }
            13 => {
                bools.push(!rng.pick(&bools));
                bools.push(rng.pick(&bools).and(rng.pick(&bools)));
                last = (bytes * bytes).cast(rng.pick(&[DType::F32, DType::I32])).cast(DType::F32) * 0.01;
            }
            14 => last = a.broadcast([rows, cols]).tanh().sum(&[rng.pick(&[0, 1])]),
            _ => {
                let full = a.broadcast([rows, cols]);
                last = full.max_over(&[1]);
                if rng.below(2) == 0 {
                    whole.push(full.argmax(1));
                }
            }
        }
        floats.push(last);
    }
    for i in 0..1 + rng.below(3) {
        b.output(&format!("float {i}"), rng.pick(&floats[9..]) + 0.0);
    }
    b.output("last", last.cast(DType::F32) * 1.0);
    if whole.len() > 2 {
        b.output("whole", rng.pick(&whole[2..]) + 1.0);
    }
    b.output("bool", !rng.pick(&bools));
    match rng.below(3) {
        0 => b.output("total", rng.pick(&floats).cast(DType::F32).broadcast([rows, cols]).sum_all()),
        1 => b.update(x, x + last.broadcast([rows, cols]).cast(DType::F32)),
        _ => {}
    }
    b.finish().expect("random graphs are well formed")
}

#[test]
fn random_graphs_are_right_and_the_same_everywhere() {
    let failures: Vec<String> = (0..250u64)
        .filter_map(|seed| {
            let mut rng = Rng(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
            check(&format!("seed {seed}"), random_graph(&mut rng), &mut rng).err()
        })
        .collect();
    assert!(failures.is_empty(), "{} failures\n{}", failures.len(), failures[0]);
}
