//! Random numbers, strided buffers of either float type, and the loop over instruction sets and threads.

use half::bf16;
use tenon_cpu::isa::{Cpu, Isa};
use tenon_cpu::kernels::{Axes, View, ViewMut};
use tenon_graph::types::DType;

/// A linear congruential generator: enough for test data.
pub struct Rng(pub u64);

impl Rng {
    pub fn bits(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 32) as u32
    }

    /// One of `0..n`.
    pub fn below(&mut self, n: usize) -> usize {
        self.bits() as usize % n
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    pub fn chance(&mut self, one_in: usize) -> bool {
        self.below(one_in) == 0
    }

    /// Uniform in -1..1.
    pub fn float(&mut self) -> f32 {
        self.bits() as f32 / 2f32.powi(31) - 1.0
    }

    /// Strides for `shape` with axes in random order in memory and gaps, the last `dense` axes row-major and innermost.
    pub fn strides(&mut self, shape: &[usize], dense: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..shape.len() - dense).collect();
        for i in (1..order.len()).rev() {
            order.swap(i, self.below(i + 1));
        }
        order.extend(shape.len() - dense..shape.len());
        let mut strides = vec![0; shape.len()];
        let mut step = 1;
        for &axis in order.iter().rev() {
            strides[axis] = step;
            step *= shape[axis].max(1);
            if axis < shape.len() - dense || axis == shape.len() - dense {
                step += self.pick(&[0, 0, 1, 5]);
            }
        }
        strides
    }
}

/// Memory of either float type.
#[derive(Clone, Debug)]
pub enum Data {
    F32(Vec<f32>),
    BF16(Vec<bf16>),
}

/// A strided value that owns its memory.
#[derive(Clone, Debug)]
pub struct Value {
    pub data: Data,
    pub shape: Vec<usize>,
    pub strides: Vec<usize>,
}

impl Value {
    /// Random values in -1..1; what is between the elements is random too, so that reading it shows.
    pub fn random(rng: &mut Rng, dtype: DType, shape: &[usize], dense: usize) -> Value {
        let strides = rng.strides(shape, dense);
        let len = if shape.contains(&0) { 0 } else { offset_of_last(shape, &strides) + 1 };
        let data = match dtype {
            DType::F32 => Data::F32((0..len).map(|_| rng.float()).collect()),
            _ => Data::BF16((0..len).map(|_| bf16::from_f32(rng.float())).collect()),
        };
        Value { data, shape: shape.to_vec(), strides }
    }

    pub fn row_major(rng: &mut Rng, dtype: DType, shape: &[usize]) -> Value {
        let mut value = Value::random(rng, dtype, shape, shape.len());
        value.strides = Axes::new(shape).row_major_strides().to_vec();
        value
    }

    pub fn view(&self) -> View<'_> {
        match &self.data {
            Data::F32(data) => View::of(data, &self.shape, &self.strides),
            Data::BF16(data) => View::of(data, &self.shape, &self.strides),
        }
    }

    pub fn view_mut(&mut self) -> ViewMut<'_> {
        match &mut self.data {
            Data::F32(data) => ViewMut::of(data, &self.shape, &self.strides),
            Data::BF16(data) => ViewMut::of(data, &self.shape, &self.strides),
        }
    }

    /// Few different values, so that maxima have equals, with NaN and infinities among them.
    pub fn quantise(&mut self, rng: &mut Rng) {
        let mut draw = || rng.pick(&[0.0, -0.0, 1.0, 1.0, -1.0, 0.5, f32::NAN, f32::INFINITY, f32::NEG_INFINITY]);
        match &mut self.data {
            Data::F32(data) => data.iter_mut().for_each(|x| *x = draw()),
            Data::BF16(data) => data.iter_mut().for_each(|x| *x = bf16::from_f32(draw())),
        }
    }

    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        match &mut self.data {
            Data::F32(data) => data.as_mut_ptr().cast(),
            Data::BF16(data) => data.as_mut_ptr().cast(),
        }
    }

    pub fn get(&self, index: &[usize]) -> f64 {
        let at: usize = index.iter().zip(&self.strides).map(|(i, s)| i * s).sum();
        match &self.data {
            Data::F32(data) => f64::from(data[at]),
            Data::BF16(data) => data[at].to_f64(),
        }
    }

    /// The whole memory, gaps included.
    pub fn bits(&self) -> Vec<u32> {
        match &self.data {
            Data::F32(data) => data.iter().map(|x| x.to_bits()).collect(),
            Data::BF16(data) => data.iter().map(|x| u32::from(x.to_bits())).collect(),
        }
    }

    /// Asserts that every element is within `tolerance * (1 + |expected|)`, or the rounding to bfloat16.
    pub fn assert_close(&self, expected: impl Fn(&[usize]) -> f64, tolerance: f64, what: &str) {
        let tolerance = if matches!(self.data, Data::BF16(_)) { tolerance.max(1.0 / 256.0) } else { tolerance };
        for index in indices(&self.shape) {
            let (got, expected) = (self.get(&index), expected(&index));
            let close = got == expected || (got - expected).abs() <= tolerance * (1.0 + expected.abs());
            assert!(close || got.is_nan() && expected.is_nan(), "{what} at {index:?}: {got}, not {expected}");
        }
    }
}

fn offset_of_last(shape: &[usize], strides: &[usize]) -> usize {
    shape.iter().zip(strides).map(|(n, s)| (n - 1) * s).sum()
}

/// Every index of a shape in row-major order.
pub fn indices(shape: &[usize]) -> Vec<Vec<usize>> {
    let mut all = vec![vec![]];
    for &n in shape {
        all = all.iter().flat_map(|index| (0..n).map(|i| [&index[..], &[i]].concat())).collect();
    }
    all
}

/// Runs `f` on every supported instruction set with 1, 2 and 3 threads, asserts that all results are equal, and gives
/// the first.
pub fn everywhere<T: PartialEq>(what: &str, mut f: impl FnMut(&Cpu) -> T) -> T {
    CPUS.with(|cpus| {
        let first = f(&cpus[0]);
        for cpu in &cpus[1..] {
            assert!(f(cpu) == first, "{what}: other bits on {:?} with {} threads", cpu.isa(), cpu.pool.threads());
        }
        first
    })
}

thread_local! {
    static CPUS: Vec<Cpu> = Isa::supported()
        .into_iter()
        .flat_map(|isa| [1, 2, 3].map(|threads| Cpu::with_isa(threads, isa).expect("supported")))
        .collect();
}

/// Scratch of exactly the size asked for, filled with what must not matter.
pub fn scratch(bytes: usize) -> Vec<u8> {
    vec![0xff; bytes]
}
