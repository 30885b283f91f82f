//! Attention and its gradient.

use crate::support::{Rng, Value, everywhere, scratch};

use tenon_cpu::kernels::attention::{
    Attention, Gradients, Operands, Results, Sizes, attention, attention_gradient, attention_gradient_scratch_bytes,
    attention_scratch_bytes,
};
use tenon_cpu::kernels::{View, ViewMut};
use tenon_graph::types::DType;

struct Case {
    sizes: Sizes,
    spec: Attention,
    query: Value,
    key: Value,
    value: Value,
    mask: Option<Vec<bool>>,
}

impl Case {
    fn new(rng: &mut Rng, sizes: Sizes, spec: Attention, masked: bool) -> Case {
        let Sizes { b, t, h, s, g, d, dtype } = sizes;
        Case {
            sizes,
            spec,
            query: Value::random(rng, dtype, &[b, t, h, d], 1),
            key: Value::random(rng, dtype, &[b, s, g, d], 1),
            value: Value::random(rng, dtype, &[b, s, g, d], 1),
            mask: masked.then(|| (0..b * s).map(|_| !rng.chance(4)).collect()),
        }
    }

    fn random(rng: &mut Rng) -> Case {
        let g = rng.pick(&[1, 1, 2, 3]);
        let sizes = Sizes {
            b: rng.pick(&[1, 1, 2, 3]),
            t: rng.pick(&[1, 1, 2, 7, 16, 63, 64, 65, 130, 300]),
            h: g * rng.pick(&[1, 1, 2, 3]),
            s: rng.pick(&[1, 2, 7, 63, 64, 65, 130, 300]),
            g,
            d: rng.pick(&[1, 3, 8, 16, 17, 40, 64, 80]),
            dtype: rng.pick(&[DType::F32, DType::F32, DType::BF16, DType::BF16]),
        };
        let spec = Attention {
            causal: rng.chance(2),
            window: rng.pick(&[0, 0, 1, 5, 64, 100]),
            position: rng.pick(&[0, 0, 1, 40, 200, -3, -100]),
            scale: rng.pick(&[1.0, 0.125, -2.0, 4.0]),
        };
        let masked = rng.chance(2);
        Case::new(rng, sizes, spec, masked)
    }

    fn describe(&self) -> String {
        format!("{:?} {:?} mask {}", self.sizes, self.spec, self.mask.is_some())
    }

    fn operands(&self) -> Operands<'_> {
        let mask = self.mask.as_ref().map(|mask| View::row_major(mask, &[self.sizes.b, self.sizes.s]));
        Operands { query: self.query.view(), key: self.key.view(), value: self.value.view(), mask }
    }

    fn sees(&self, b: usize, i: usize, j: usize) -> bool {
        let (place, j, window) = (i as i64 + i64::from(self.spec.position), j as i64, self.spec.window as i64);
        let near = window == 0 || (place < j + window && (self.spec.causal || j < place + window));
        let masked = self.mask.as_ref().is_some_and(|mask| !mask[b * self.sizes.s + j as usize]);
        (!self.spec.causal || j <= place) && near && !masked
    }

    /// The scaled score of a query and a key that it sees.
    fn score(&self, b: usize, h: usize, i: usize, j: usize) -> f64 {
        let head = h / (self.sizes.h / self.sizes.g);
        let product: f64 =
            (0..self.sizes.d).map(|c| self.query.get(&[b, i, h, c]) * self.key.get(&[b, j, head, c])).sum();
        product * f64::from(self.spec.scale)
    }

    /// Output row and log-sum-exp of one query.
    fn naive(&self, b: usize, h: usize, i: usize) -> (Vec<f64>, f64) {
        let head = h / (self.sizes.h / self.sizes.g);
        let seen: Vec<(usize, f64)> =
            (0..self.sizes.s).filter(|j| self.sees(b, i, *j)).map(|j| (j, self.score(b, h, i, j))).collect();
        let max = seen.iter().fold(f64::NEG_INFINITY, |max, (_, score)| max.max(*score));
        let sum: f64 = seen.iter().map(|(_, score)| (score - max).exp()).sum();
        let out = (0..self.sizes.d)
            .map(|c| seen.iter().map(|(j, x)| (x - max).exp() / sum * self.value.get(&[b, *j, head, c])).sum::<f64>());
        (out.collect(), if seen.is_empty() { f64::NEG_INFINITY } else { max + sum.ln() })
    }

    /// Runs the kernel everywhere; output and log-sum-exp.
    fn forward(&self, rng: &mut Rng) -> (Value, Value) {
        let Sizes { b, t, h, d, .. } = self.sizes;
        let (out, lse) =
            (Value::random(rng, self.sizes.dtype, &[b, t, h, d], 1), Value::random(rng, DType::F32, &[b, h, t], 0));
        let mut result = None;
        everywhere(&self.describe(), |cpu| {
            let (mut out, mut lse) = (out.clone(), lse.clone());
            let mut memory = scratch(attention_scratch_bytes(&self.sizes, cpu.isa(), cpu.pool.threads()));
            attention(cpu, &self.spec, &self.operands(), out.view_mut(), lse.view_mut(), &mut memory);
            let bits = (out.bits(), lse.bits());
            result = Some((out, lse));
            bits
        });
        result.expect("ran")
    }
}

#[test]
fn forward_is_softmax_of_scores_times_values_on_every_instruction_set() {
    let mut rng = Rng(1);
    for _ in 0..40 {
        let case = Case::random(&mut rng);
        let (out, lse) = case.forward(&mut rng);
        for b in 0..case.sizes.b {
            for h in 0..case.sizes.h {
                for i in 0..case.sizes.t {
                    let (row, sum) = case.naive(b, h, i);
                    let what = format!("{} at {b} {h} {i}", case.describe());
                    let got = lse.get(&[b, h, i]);
                    assert!(got == sum || (got - sum).abs() < 1e-5 * (1.0 + sum.abs()), "{what}: lse {got}, not {sum}");
                    let tolerance = if case.sizes.dtype == DType::F32 { 1e-5 } else { 1.0 / 256.0 };
                    for (c, expected) in row.iter().enumerate() {
                        let got = out.get(&[b, i, h, c]);
                        assert!((got - expected).abs() < tolerance, "{what} {c}: {got}, not {expected}");
                    }
                }
            }
        }
    }
}

#[test]
fn gradients_are_those_of_the_definition_on_every_instruction_set() {
    let mut rng = Rng(2);
    for round in 0..30 {
        let mut case = Case::random(&mut rng);
        if round % 5 == 0 {
            // So few heads with so many queries that these are cut into parts.
            let sizes = Sizes { b: 1, t: 300, h: 3, s: 130, g: 1, d: rng.pick(&[3, 16]), dtype: case.sizes.dtype };
            case = Case::new(&mut rng, sizes, case.spec, case.mask.is_some());
        }
        let Sizes { b, t, h, s, g, d, dtype: operands } = case.sizes;
        let (out, lse) = case.forward(&mut rng);
        let dout = Value::random(&mut rng, operands, &[b, t, h, d], 1);
        let results = Results { out: out.view(), log_sum_exp: lse.view(), out_gradient: dout.view() };
        let dtype = rng.pick(&[DType::F32, operands]);
        // All three gradients as slices of one buffer, as those of a joint projection are.
        let width = (h + 2 * g) * d;
        let joint = Value::row_major(&mut rng, dtype, &[b, t.max(s), width]);
        let mut written = joint.clone();
        everywhere(&case.describe(), |cpu| {
            written = joint.clone();
            let mut memory = scratch(attention_gradient_scratch_bytes(&case.sizes, cpu.isa(), cpu.pool.threads()));
            let base = written.as_mut_ptr();
            let part = |start: usize, n: usize, heads: usize| {
                let strides = [t.max(s) * width, width, d, 1];
                // SAFETY: inside the buffer, and the three parts are of different columns.
                unsafe { ViewMut::new(base.add(start * d * dtype.size()), dtype, &[b, n, heads, d], &strides) }
            };
            let mut gradients = Gradients { query: part(0, t, h), key: part(h, s, g), value: part(h + g, s, g) };
            attention_gradient(cpu, &case.spec, &case.operands(), &results, &mut gradients, &mut memory);
            written.bits()
        });
        check_gradients(&case, &out, &lse, &dout, &written);
    }
}

fn check_gradients(case: &Case, out: &Value, lse: &Value, dout: &Value, written: &Value) {
    let Sizes { b, t, h, s, g, d, dtype } = case.sizes;
    // Values, and the sums of their terms' sizes.
    let [mut dq, mut dk, mut dv] = [t * h, s * g, s * g].map(|rows| vec![[0.0; 2]; b * rows * d]);
    let add = |sum: &mut [f64; 2], term: f64| *sum = [sum[0] + term, sum[1] + term.abs()];
    for (b, i, h) in (0..b).flat_map(|b| (0..t).flat_map(move |i| (0..h).map(move |h| (b, i, h)))) {
        let head = h / (case.sizes.h / g);
        let mean: f64 = (0..d).map(|c| dout.get(&[b, i, h, c]) * out.get(&[b, i, h, c])).sum();
        for j in (0..s).filter(|j| case.sees(b, i, *j)) {
            let weight = (case.score(b, h, i, j) - lse.get(&[b, h, i])).exp();
            let dweight: f64 = (0..d).map(|c| dout.get(&[b, i, h, c]) * case.value.get(&[b, j, head, c])).sum();
            let dscore = weight * (dweight - mean) * f64::from(case.spec.scale);
            for c in 0..d {
                let (query, key) = (((b * t + i) * case.sizes.h + h) * d + c, ((b * s + j) * g + head) * d + c);
                add(&mut dq[query], dscore * case.key.get(&[b, j, head, c]));
                add(&mut dk[key], dscore * case.query.get(&[b, i, h, c]));
                add(&mut dv[key], weight * dout.get(&[b, i, h, c]));
            }
        }
    }
    let check = |name: &str, expected: &[[f64; 2]], n: usize, heads: usize, start: usize| {
        let scale = expected.iter().fold(1.0f64, |max, [x, _]| max.max(x.abs()));
        let bf16 = matches!(written.data, crate::support::Data::BF16(_));
        for (at, [expected, size]) in expected.iter().enumerate() {
            let (row, column) = (at / (heads * d), at % (heads * d));
            let got = written.get(&[row / n, row % n, start * d + column]);
            let rounded = if dtype == DType::BF16 { size / 256.0 } else { 0.0 };
            let tolerance = 3e-5 * scale + rounded + if bf16 { expected.abs() / 256.0 } else { 0.0 };
            assert!((got - expected).abs() < tolerance, "{}: {name} {at}: {got}, not {expected}", case.describe());
        }
    };
    check("query gradient", &dq, t, h, 0);
    check("key gradient", &dk, s, g, h);
    check("value gradient", &dv, s, g, h + g);
}

#[test]
fn huge_scores_neither_overflow_nor_make_nan() {
    let mut rng = Rng(3);
    for t in [1, 70] {
        let spec = Attention { causal: true, window: 0, position: 0, scale: 1e4 };
        let sizes = Sizes { b: 1, t, h: 1, s: t, g: 1, d: 16, dtype: DType::F32 };
        let case = Case::new(&mut rng, sizes, spec, false);
        let (out, lse) = case.forward(&mut rng);
        for i in 0..t {
            let (_, sum) = case.naive(0, 0, i);
            assert!((lse.get(&[0, 0, i]) - sum).abs() < 1e-5 * sum.abs().max(1.0));
            assert!((0..16).all(|c| out.get(&[0, i, 0, c]).abs() <= 1.0));
        }
    }
}

#[test]
fn nothing_to_attend_with_and_nothing_to_attend_to() {
    let mut rng = Rng(4);
    let spec = Attention { causal: false, window: 0, position: 0, scale: 1.0 };
    for (b, t, s, h) in [(0, 3, 3, 1), (1, 0, 3, 1), (2, 3, 0, 1), (1, 1, 0, 2), (1, 3, 3, 0)] {
        let sizes = Sizes { b, t, h, s, g: 1, d: 5, dtype: DType::F32 };
        let case = Case::new(&mut rng, sizes, spec, false);
        let (out, lse) = case.forward(&mut rng);
        if s == 0 {
            out.assert_close(|_| 0.0, 0.0, "out");
            lse.assert_close(|_| f64::NEG_INFINITY, 0.0, "log_sum_exp");
        }
    }
}
