//! Pooling and its gradient.

use crate::support::{Rng, Value, everywhere, indices, scratch};
use std::collections::HashMap;
use tenon_cpu::kernels::{pool, pool_gradient, pool_gradient_scratch_bytes};
use tenon_graph::op::{PoolOp, Window};
use tenon_graph::types::DType;

/// Windows that fit on inputs of random size, as `(spatial sizes, windows)`.
pub fn windows(rng: &mut Rng, axes: usize) -> (Vec<usize>, Vec<Window>) {
    (0..axes)
        .map(|_| {
            let window = Window {
                size: 1 + rng.below(4),
                stride: 1 + rng.below(3),
                dilation: 1 + rng.below(2),
                low: rng.below(3),
                high: rng.below(3),
            };
            let least = window.dilation * (window.size - 1) + 1;
            (least.saturating_sub(window.low + window.high).max(1) + rng.below(8), window)
        })
        .unzip()
}

/// Calls `visit(output, tap, input)` for every pair of spatial places that a window joins.
pub fn each_tap(input: &[usize], windows: &[Window], mut visit: impl FnMut(&[usize], &[usize], &[usize])) {
    let outputs: Vec<usize> = windows.iter().zip(input).map(|(w, n)| w.outputs(*n).expect("fits")).collect();
    let taps: Vec<usize> = windows.iter().map(|w| w.size).collect();
    for output in indices(&outputs) {
        for tap in indices(&taps) {
            let at: Vec<usize> = (0..windows.len())
                .map(|i| (output[i] * windows[i].stride + tap[i] * windows[i].dilation).wrapping_sub(windows[i].low))
                .collect();
            if at.iter().zip(input).all(|(at, n)| at < n) {
                visit(&output, &tap, &at);
            }
        }
    }
}

/// `[n, spatial.., c]`.
pub fn around(n: usize, spatial: &[usize], c: usize) -> Vec<usize> {
    [&[n], spatial, &[c]].concat()
}

#[test]
fn pools_and_gradients_are_those_of_the_definition() {
    let mut rng = Rng(1);
    for round in 0..90 {
        let (axes, n, c) = (rng.pick(&[1, 2, 2, 3]), 1 + rng.below(3), rng.pick(&[1, 5, 16, 33]));
        let (spatial, windows) = windows(&mut rng, axes);
        let op = rng.pick(&PoolOp::ALL);
        let dtype = rng.pick(&[DType::F32, DType::BF16]);
        let what = format!("{op:?} {dtype} {n} {spatial:?} {c} {windows:?}");
        let shape = around(n, &spatial, c);
        let mut input = Value::random(&mut rng, dtype, &shape, 1);
        if round % 3 == 0 {
            input.quantise(&mut rng);
        }
        let outputs: Vec<usize> = windows.iter().zip(&spatial).map(|(w, n)| w.outputs(*n).expect("fits")).collect();
        let output_shape = around(n, &outputs, c);
        let to = Value::random(&mut rng, dtype, &output_shape, 1);
        let dy = Value::random(&mut rng, dtype, &output_shape, 1);
        let dx = Value::random(&mut rng, dtype, &shape, 1);

        // Per output: the sum, the count, the first maximum and where it is.
        let mut naive = HashMap::<Vec<usize>, (f64, usize, f64, Vec<usize>)>::new();
        each_tap(&spatial, &windows, |output, _, at| {
            for (n, c) in (0..n).flat_map(|n| (0..c).map(move |c| (n, c))) {
                let (x, place) = (input.get(&around(n, at, c)), around(n, at, c));
                let bin = naive.entry(around(n, output, c)).or_insert((0.0, 0, x, place.clone()));
                bin.0 += x;
                bin.1 += 1;
                if x > bin.2 || (x.is_nan() && !bin.2.is_nan()) {
                    (bin.2, bin.3) = (x, place);
                }
            }
        });
        let whole: usize = windows.iter().map(|w| w.size).product();
        let divisor = |count: usize| if op == PoolOp::Mean { whole as f64 } else { count.max(1) as f64 };
        let run = |to: &Value, kernel: &mut dyn FnMut(&tenon_cpu::isa::Cpu, &mut Value)| {
            let mut last = None;
            everywhere(&what, |cpu| {
                let mut to = to.clone();
                kernel(cpu, &mut to);
                let bits = to.bits();
                last = Some(to);
                bits.into_iter().map(|x| if f32::from_bits(x).is_nan() { u32::MAX } else { x }).collect::<Vec<_>>()
            });
            last.expect("ran")
        };
        let pooled = run(&to, &mut |cpu, to| pool(cpu, op, &windows, &input.view(), &mut to.view_mut()));
        pooled.assert_close(
            |index| match (naive.get(index), op) {
                (Some(bin), PoolOp::Max) => bin.2,
                (Some(bin), _) => bin.0 / divisor(bin.1),
                (None, PoolOp::Max) => f64::NEG_INFINITY,
                (None, _) => 0.0,
            },
            1e-6,
            &what,
        );

        let mut expected = HashMap::<Vec<usize>, f64>::new();
        each_tap(&spatial, &windows, |output, _, at| {
            for (n, c) in (0..n).flat_map(|n| (0..c).map(move |c| (n, c))) {
                let (output, at) = (around(n, output, c), around(n, at, c));
                let bin = &naive[&output];
                let share = if op != PoolOp::Max {
                    dy.get(&output) / divisor(bin.1)
                } else if bin.3 == at {
                    dy.get(&output)
                } else {
                    0.0
                };
                *expected.entry(at).or_default() += share;
            }
        });
        let gradient = run(&dx, &mut |cpu, to| {
            let mut memory = scratch(pool_gradient_scratch_bytes(op, &windows, &shape, cpu.pool.threads()));
            pool_gradient(cpu, op, &windows, &input.view(), &dy.view(), &mut to.view_mut(), &mut memory);
        });
        gradient.assert_close(|index| expected.get(index).copied().unwrap_or(0.0), 1e-6, &what);
    }
}
