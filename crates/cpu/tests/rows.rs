//! Row programs: random graphs and the patterns of real models, fused against unfused against `f64`, everywhere.

mod rows_harness;

use rows_harness::{Inputs, Rng, check, check_with, encode};
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
        if rows * cols <= 40_000 {
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
    let failures: Vec<String> = (0..150u64)
        .filter_map(|seed| {
            let mut rng = Rng(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
            check(&format!("seed {seed}"), random_graph(&mut rng), &mut rng).err()
        })
        .collect();
    assert!(failures.is_empty(), "{} failures\n{}", failures.len(), failures[0]);
}

/// Softmax, the mean of a loss and its gradient over `[rows, vocabulary]`, as a language model has them.
fn cross_entropy(rows: usize, vocabulary: usize) -> tenon_graph::graph::Graph {
    let b = Builder::new();
    let logits = b.input("logits", Role::Data, Type::new(DType::F32, [rows, vocabulary]));
    let labels = b.input("labels", Role::Data, Type::new(DType::I32, [rows, 1]));
    let shifted = logits - logits.max_over(&[1]);
    let sum = shifted.exp().sum(&[1]);
    let hot = b.iota(1, Type::new(DType::I32, [rows, vocabulary])).equal(labels);
    let picked = hot.select(shifted, b.scalar(0.0)).sum(&[1]);
    let loss = (sum.log() - picked).sum_all() / rows as f64;
    let gradient = (shifted.exp() / sum - hot.cast(DType::F32)) / rows as f64;
    b.output("loss", loss);
    b.output("gradient", gradient);
    b.output("best", logits.argmax(1));
    b.finish().expect("well formed")
}

/// Layer norm and its three gradients over `[b, t, c]`.
fn layer_norm(dtype: DType, shape: [usize; 3]) -> tenon_graph::graph::Graph {
    let b = Builder::new();
    let c = shape[2];
    let x = b.input("x", Role::Data, Type::new(dtype, shape)).cast(DType::F32);
    let scale = b.input("scale", Role::Parameter, Type::new(DType::F32, [c]));
    let shift = b.input("shift", Role::Parameter, Type::new(DType::F32, [c]));
    let dy = b.input("dy", Role::Data, Type::new(dtype, shape)).cast(DType::F32);
    let centred = x - x.sum(&[2]) / c as f64;
    let rstd = ((centred * centred).sum(&[2]) / c as f64 + 1e-5).rsqrt();
    let normal = centred * rstd;
    b.output("y", (normal * scale + shift).cast(dtype));
    let dn = dy * scale;
    let mean = dn.sum(&[2]) / c as f64;
    let along = (dn * normal).sum(&[2]) / c as f64;
    b.output("dx", ((dn - mean - normal * along) * rstd).cast(dtype));
    b.output("dscale", (dy * normal).sum(&[0, 1]));
    b.output("dshift", dy.sum(&[0, 1]));
    b.finish().expect("well formed")
}

/// Both forms of gelu with gradients and a bias, and dropout.
fn gelu(rows: usize, cols: usize) -> tenon_graph::graph::Graph {
    let b = Builder::new();
    let x = b.input("x", Role::Data, Type::new(DType::F32, [rows, cols]));
    let bias = b.input("bias", Role::Parameter, Type::new(DType::F32, [cols]));
    let key = b.input("key", Role::Control, Type::new(DType::U32, [2]));
    let h = x + bias;
    let exact = h * 0.5 * ((h * std::f64::consts::FRAC_1_SQRT_2).erf() + 1.0);
    let inner = (h + h * h * h * 0.044715) * (2.0 / std::f64::consts::PI).sqrt();
    let approximate = h * 0.5 * (inner.tanh() + 1.0);
    let kept = b.random_bits(key, [rows, cols]).less(b.constant(3e9, DType::U32));
    b.output("exact", exact);
    b.output("dropped", kept.select(approximate / 0.7, b.scalar(0.0)));
    b.output("dbias", (approximate * x).sum(&[0]));
    b.finish().expect("well formed")
}

/// Causal attention weights over `[b, h, t, t]`, heads beside each other in memory.
fn causal_softmax(b: usize, t: usize, h: usize) -> tenon_graph::graph::Graph {
    let builder = Builder::new();
    let scores = builder.input("scores", Role::Data, Type::new(DType::F32, [b, t, h, t])).transpose(&[0, 2, 1, 3]);
    let position = |axis| builder.iota(axis, Type::new(DType::I32, [b, h, t, t]));
    let seen = position(3).less_equal(position(2));
    let masked = seen.select(scores, builder.scalar(f64::NEG_INFINITY));
    let exp = (masked - masked.max_over(&[3])).exp();
    builder.output("weights", (exp / exp.sum(&[3])).cast(DType::BF16));
    builder.output("batch", position(0) + position(1) * 100.0);
    builder.finish().expect("well formed")
}

/// AdamW in place, with the norm of the gradient.
fn adamw(n: usize) -> tenon_graph::graph::Graph {
    let b = Builder::new();
    let state = |name: &str, role| b.input(name, role, Type::new(DType::F32, [n]));
    let (p, g) = (state("p", Role::Parameter), state("g", Role::Gradient));
    let (m, v) = (state("m", Role::Optimizer), state("v", Role::Optimizer));
    let step = b.input("step", Role::Control, Type::new(DType::F32, [1]));
    let norm = (g * g).sum_all().sqrt();
    let clipped = g * (1.0 / norm.max(1.0)).min(1.0);
    let new_m = m * 0.9 + clipped * 0.1;
    let new_v = v.abs() * 0.95 + clipped * clipped * 0.05;
    let bias = |beta: f64| 1.0 - b.scalar(beta).pow(step);
    let update = new_m / bias(0.9) / ((new_v / bias(0.95)).sqrt() + 1e-8);
    b.update(p, p * (1.0 - 1e-4) - update * 1e-3);
    b.update(m, new_m);
    b.update(v, new_v);
    b.output("half", (p * 1.0).cast(DType::BF16));
    b.finish().expect("well formed")
}

/// Reductions over rows in groups, and of what is no float.
fn reductions(outer: usize, rows: usize, cols: usize) -> tenon_graph::graph::Graph {
    let b = Builder::new();
    let x = b.input("x", Role::Data, Type::new(DType::F32, [outer, rows, cols]));
    let half = b.input("half", Role::Data, Type::new(DType::BF16, [outer, rows, cols]));
    let bytes = b.input("bytes", Role::Data, Type::new(DType::U8, [outer, rows, cols]));
    let whole = b.input("whole", Role::Data, Type::new(DType::I32, [outer, rows, cols]));
    b.output("sum", (x * x).sum(&[1]));
    b.output("largest", (-x).max_over(&[1]));
    b.output("half", half.sum(&[1]));
    b.output("half rows", half.sum(&[2]));
    b.output("bytes", bytes.sum(&[1]));
    b.output("byte rows", bytes.sum(&[2]));
    b.output("whole", (whole * whole).sum(&[1]));
    b.output("largest whole", (whole - 30.0).max_over(&[2]));
    b.output("best whole", whole.argmax(2));
    b.output("best byte", bytes.argmax(2));
    b.output("total", half.cast(DType::F32).sum_all());
    b.output("all bytes", bytes.sum(&[0, 1, 2]));
    b.output("largest of all", whole.max_over(&[0, 1, 2]));
    b.finish().expect("well formed")
}

#[test]
fn the_patterns_of_models_are_right_and_the_same_everywhere() {
    let mut graphs = Vec::new();
    for (rows, vocabulary) in [(1, 1), (5, 10), (37, 1024), (3, 9001), (2, 50_257)] {
        graphs.push((format!("cross-entropy {rows} x {vocabulary}"), cross_entropy(rows, vocabulary)));
    }
    for shape in [[1, 1, 1], [2, 3, 8], [2, 65, 96], [3, 20, 768], [1, 7, 4096], [1, 3, 10_007]] {
        graphs.push((format!("layer norm {shape:?}"), layer_norm(DType::F32, shape)));
        graphs.push((format!("layer norm in bf16 {shape:?}"), layer_norm(DType::BF16, shape)));
    }
    for (rows, cols) in [(1, 1), (64, 128), (13, 3072), (3, 12_289)] {
        graphs.push((format!("gelu {rows} x {cols}"), gelu(rows, cols)));
    }
    for (b, t, h) in [(1, 1, 1), (2, 33, 3), (1, 300, 2)] {
        graphs.push((format!("causal softmax {b} x {t} x {h}"), causal_softmax(b, t, h)));
    }
    for n in [1, 2, 4096, 4097, 65_539] {
        graphs.push((format!("AdamW {n}"), adamw(n)));
    }
    for (outer, rows, cols) in
        [(1, 1, 1), (1, 700, 33), (5, 7, 3), (3, 900, 17), (100, 40, 9), (2, 5, 4099), (70, 30, 16), (1, 2, 9000)]
    {
        graphs.push((format!("reductions {outer} x {rows} x {cols}"), reductions(outer, rows, cols)));
    }
    let mut rng = Rng(7);
    let failures: Vec<String> = graphs.into_iter().filter_map(|(name, g)| check(&name, g, &mut rng).err()).collect();
    assert!(failures.is_empty(), "{} failures\n{}", failures.len(), failures[0]);
}

/// A result in place of an input that is read before and after it is made, alone and over long rows in stages.
fn in_place(dtype: DType, rows: usize, cols: usize) -> tenon_graph::graph::Graph {
    let b = Builder::new();
    let input = |name: &str| b.input(name, Role::Data, Type::new(dtype, [rows, cols]));
    let (x, y, z) = (input("x"), input("y"), input("z"));
    let doubled = y + y;
    b.update(x, doubled);
    b.output("after", doubled * x);
    let tripled = z * 3.0;
    b.update(z, tripled);
    b.output("before", tripled - z + x);
    let sum = (x * z).cast(DType::F32).sum(&[1]);
    b.update(y, (y.cast(DType::F32) - sum).cast(dtype));
    b.finish().expect("well formed")
}

#[test]
fn results_in_place_of_operands_come_after_their_last_use() {
    for (rows, cols) in [(1, 1), (40, 1), (7, 31), (3, 700), (2, 9001)] {
        for dtype in [DType::F32, DType::BF16, DType::I32] {
            check(&format!("in place {rows} x {cols}"), in_place(dtype, rows, cols), &mut Rng(3)).expect("the same");
        }
    }
}

/// More values at once than there are vector registers.
fn crowd(rows: usize, cols: usize, values: usize) -> tenon_graph::graph::Graph {
    let b = Builder::new();
    let x = b.input("x", Role::Data, Type::new(DType::F32, [rows, cols]));
    let half = b.input("half", Role::Data, Type::new(DType::BF16, [rows, cols])).cast(DType::F32);
    let made: Vec<Tensor<'_>> = (0..values).map(|i| (x * 0.1 + i as f64 * 0.01).exp() - half * i as f64).collect();
    let total = made[0].sum(&[1]);
    let ends = made.iter().zip(made.iter().rev()).map(|(a, c)| *a * *c).reduce(|a, c| a + c).expect("some");
    b.output("together", (ends - total).cast(DType::BF16));
    b.output("one", made[values / 2]);
    b.finish().expect("well formed")
}

#[test]
fn more_values_at_once_than_registers_are_right() {
    for (rows, cols) in [(1, 1), (3, 100), (2, 9001)] {
        for values in [12, 29, 31, 70] {
            check(&format!("{values} values of {rows} x {cols}"), crowd(rows, cols, values), &mut Rng(5))
                .expect("right");
        }
    }
}

#[test]
fn special_values_go_through_every_operation() {
    let positive = [
        0.0,
        1.0,
        0.5,
        2.0,
        3.5,
        1e-45,
        1e-40,
        1.2e-38,
        88.5,
        104.5,
        2.5e9,
        5e9,
        1e13,
        1.7e30,
        f64::from(f32::MAX),
        f64::INFINITY,
        f64::NAN,
    ];
    let values: Vec<f64> = positive.into_iter().flat_map(|x| [x, -x]).collect();
    let n = values.len();
    for dtype in [DType::F32, DType::BF16, DType::I32, DType::U32, DType::U8] {
        let b = Builder::new();
        let x = b.input("x", Role::Data, Type::new(dtype, [n]));
        let across = x.reshape([n, 1]).broadcast([n, n]);
        let along = x.broadcast([n, n]);
        for op in Unary::ALL.into_iter().filter(|op| op.def().signature.result(dtype).is_some()) {
            b.output(op.def().name, x.unary(op));
        }
        for op in Binary::ALL.into_iter().filter(|op| op.def().signature.result(dtype).is_some()) {
            b.output(op.def().name, across.binary(op, along));
        }
        for to in DType::ALL.into_iter().filter(|to| *to != dtype) {
            b.output(&format!("to {to}"), x.cast(to));
        }
        let shifted = along.less(across).select(across, along);
        b.output("max", shifted.max_over(&[1]));
        b.output("argmax", shifted.argmax(1));
        b.output("max of columns", shifted.max_over(&[0]));
        let bytes = values.iter().flat_map(|x| encode(*x, dtype)).collect();
        let inputs = Inputs::from([("x".to_string(), bytes)]);
        check_with(dtype.name(), b.finish().expect("well formed"), &inputs).expect("the same");
    }
}

#[test]
fn nothing_reduces_to_the_start_of_the_reduction() {
    for shape in [[0, 3, 4], [3, 0, 4], [3, 4, 0]] {
        check(&format!("{shape:?}"), reductions(shape[0], shape[1], shape[2]), &mut Rng(1)).expect("the same");
    }
}
