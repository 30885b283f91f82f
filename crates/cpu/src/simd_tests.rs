//! Every instruction set against the plain one, bit by bit, and `exp` against f64.

use super::*;
use crate::kernels::exp;

/// Applies every operation to two vectors.
struct Everything([f32; LANES], [f32; LANES]);

impl Task for Everything {
    type Output = Vec<u32>;
    #[inline(always)]
    fn run<V: Lanes>(self) -> Vec<u32> {
        let (a, b) = (V::from_array(self.0), V::from_array(self.1));
        let small = a.round().max(V::splat(-126.0)).min(V::splat(127.0));
        let vectors = [
            a.add(b),
            a.sub(b),
            a.mul(b),
            a.div(b),
            a.mul_add(b, a),
            a.max(b),
            a.min(b),
            a.round(),
            small.pow2(),
            a.select_gt(b, b, a),
            a.select_eq(b, a, b),
            exp(a),
            exp(b),
        ];
        let mut bits: Vec<u32> = vectors.iter().flat_map(|v| v.to_array()).map(canonical).collect();
        let rows = std::array::from_fn(|i| V::from_array(std::array::from_fn(|j| self.0[(3 * i + 5 * j) % LANES])));
        bits.extend(V::transpose(rows).iter().flat_map(|v| v.to_array()).map(f32::to_bits));
        bits.push(canonical(a.sum()));
        let mut narrow = [0u16; LANES];
        // SAFETY: sixteen places.
        unsafe { a.store_bf16(narrow.as_mut_ptr()) };
        // SAFETY: sixteen values.
        let wide = unsafe { V::load_bf16(narrow.as_ptr()) };
        for n in 0..=LANES {
            let (mut some, mut few) = ([7.0f32; LANES], [7u16; LANES]);
            // SAFETY: n places and n values.
            unsafe {
                f32::store_first(b, some.as_mut_ptr(), n);
                u16::store_first(b, few.as_mut_ptr(), n);
                bits.extend(f32::load_first::<V>(some.as_ptr(), n).to_array().map(f32::to_bits));
            }
            bits.extend(some.map(f32::to_bits).into_iter().chain(few.map(u32::from)));
        }
        bits.extend(narrow.map(u32::from));
        bits.extend(wide.to_array().map(f32::to_bits));
        bits
    }
}

/// The sign and payload of a NaN that an operation makes are not promised.
fn canonical(x: f32) -> u32 {
    if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() }
}

#[test]
fn all_instruction_sets_give_the_bits_of_the_plain_one() {
    let special = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        f32::MIN_POSITIVE,
        1e-41,
        -1e-45,
        f32::MAX,
        f32::MIN,
        0.5,
        1.5,
        2.5,
        -104.5,
        88.7,
        88.73,
        -87.4,
        -103.9,
        1.003_906_2,
        3.389_531_4e38,
    ];
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let draw = (state >> 33) as u32;
        match draw % 4 {
            0 => special[draw as usize / 4 % special.len()],
            1 => f32::from_bits((state >> 20) as u32),
            _ => (draw as f32 / 2f32.powi(31) - 0.5) * 60.0,
        }
    };
    let cpus: Vec<Cpu> = Isa::supported().into_iter().filter_map(|isa| Cpu::with_isa(1, isa).ok()).collect();
    for _ in 0..4000 {
        let (a, b) = (std::array::from_fn(|_| next()), std::array::from_fn(|_| next()));
        let expected = cpus[0].vectorise(Everything(a, b));
        for cpu in &cpus[1..] {
            assert_eq!(cpu.vectorise(Everything(a, b)), expected, "{:?} on {a:?} and {b:?}", cpu.isa());
        }
    }
}

#[test]
fn narrowing_is_that_of_the_crate_half() {
    for high in 0..=u16::MAX {
        for low in [0u32, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
            let x = f32::from_bits((u32::from(high) << 16) | low);
            assert_eq!(narrow(x), half::bf16::from_f32(x).to_bits(), "{x:e}");
        }
    }
}

struct Exp([f32; LANES]);

impl Task for Exp {
    type Output = [f32; LANES];
    #[inline(always)]
    fn run<V: Lanes>(self) -> [f32; LANES] {
        exp(V::from_array(self.0)).to_array()
    }
}

#[test]
fn exp_is_within_one_unit_in_the_last_place() {
    let cpu = Cpu::with_isa(1, Isa::supported().pop().unwrap_or(Isa::Portable)).expect("supported");
    let mut worst = 0.0f64;
    for step in 0..200_000 {
        let x: [f32; LANES] = std::array::from_fn(|i| -87.3 + (step * LANES + i) as f32 * (176.0 / 3.2e6));
        for (x, y) in x.into_iter().zip(cpu.vectorise(Exp(x))) {
            let exact = f64::from(x).exp();
            let ulp = f64::from(f32::from_bits((exact as f32).to_bits() + 1)) - f64::from(exact as f32);
            worst = worst.max((f64::from(y) - exact).abs() / ulp);
        }
    }
    assert!(worst < 1.0, "{worst} units in the last place");
    let edges = cpu.vectorise(Exp([
        f32::NEG_INFINITY,
        -1e30,
        -104.0,
        0.0,
        -0.0,
        f32::INFINITY,
        1e30,
        88.8,
        f32::NAN,
        1.0,
        -1.0,
        1e-45,
        -100.0,
        0.5,
        -0.5,
        2.0,
    ]));
    assert_eq!(&edges[..8], &[0.0, 0.0, 0.0, 1.0, 1.0, f32::INFINITY, f32::INFINITY, f32::INFINITY]);
    assert!(edges[8].is_nan() && edges[12] > 0.0);
}
