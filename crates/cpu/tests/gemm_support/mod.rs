//! What the product tests share: operands that end at an unreadable page, and the definition of a product.

use tenon_cpu::gemm::{Float, GemmSpec, Layout, gemm, gemm_scratch_bytes, pack_b, packed_bytes};
use tenon_cpu::isa::{Cpu, Isa};

/// Memory whose last byte is followed by a page that may not be touched.
pub struct Guarded {
    map: *mut libc::c_void,
    mapped: usize,
    start: *mut u8,
    bytes: usize,
}

const PAGE: usize = 4096;

impl Guarded {
    pub fn new(bytes: usize) -> Guarded {
        let mapped = bytes.next_multiple_of(PAGE) + PAGE;
        // SAFETY: a fresh private mapping; the page made unreadable is its last one.
        unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let map = libc::mmap(std::ptr::null_mut(), mapped, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
            assert!(map != libc::MAP_FAILED, "cannot map {mapped} bytes");
            let end = map.cast::<u8>().add(mapped - PAGE);
            assert_eq!(libc::mprotect(end.cast(), PAGE, libc::PROT_NONE), 0);
            Guarded { map, mapped, start: end.sub(bytes), bytes }
        }
    }

    pub fn of(dtype: Float, values: &[f32]) -> Guarded {
        let guarded = Guarded::new(values.len() * dtype.bytes());
        for (i, &x) in values.iter().enumerate() {
            guarded.set(dtype, i, x);
        }
        guarded
    }

    pub fn ptr(&self) -> *mut u8 {
        self.start
    }

    pub fn get(&self, dtype: Float, i: usize) -> f32 {
        assert!((i + 1) * dtype.bytes() <= self.bytes);
        // SAFETY: inside, as just asserted.
        unsafe {
            match dtype {
                Float::F32 => self.start.cast::<f32>().add(i).read_unaligned(),
                Float::Bf16 => half::bf16::from_bits(self.start.cast::<u16>().add(i).read_unaligned()).to_f32(),
            }
        }
    }

    pub fn set(&self, dtype: Float, i: usize, x: f32) {
        assert!((i + 1) * dtype.bytes() <= self.bytes);
        // SAFETY: inside, as just asserted.
        unsafe {
            match dtype {
                Float::F32 => self.start.cast::<f32>().add(i).write_unaligned(x),
                Float::Bf16 => self.start.cast::<u16>().add(i).write_unaligned(half::bf16::from_f32(x).to_bits()),
            }
        }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`.
        unsafe { libc::munmap(self.map, self.mapped) };
    }
}

/// xorshift64*.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() >> 33) as usize % n
    }

    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// In -0.5..0.5.
    pub fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    }
}

/// Elements that a layout of `rows` by `cols` and `batch` reaches.
pub fn reach(layout: &Layout, rows: usize, cols: usize, batch: [usize; 2]) -> usize {
    if rows * cols * batch[0] * batch[1] == 0 {
        return 0;
    }
    let last = |n: usize, stride: usize| (n - 1) * stride;
    let batches = last(batch[0], layout.batch_strides[0]) + last(batch[1], layout.batch_strides[1]);
    1 + last(rows, layout.row_stride) + last(cols, layout.col_stride) + batches
}

pub fn at(layout: &Layout, batch: [usize; 2], row: usize, col: usize) -> usize {
    let entry = batch[0] * layout.batch_strides[0] + batch[1] * layout.batch_strides[1];
    entry + row * layout.row_stride + col * layout.col_stride
}

pub fn batches(spec: &GemmSpec) -> impl Iterator<Item = [usize; 2]> {
    let [outer, inner] = spec.batch;
    (0..outer).flat_map(move |x| (0..inner).map(move |y| [x, y]))
}

/// One half of a bf16 pair product: denormals in and out are zero. Whether a result is denormal is decided on the
/// exact sum, rounded to 24 bits with an unbounded exponent: here by scaling it up by 2^64 first.
fn flushing(a: f32, b: f32, c: f32) -> f32 {
    let flush = |x: f32| {
        if x.is_subnormal() { 0.0f32.copysign(x) } else { x }
    };
    let (a, b, c) = (flush(a), flush(b), flush(c));
    let up = 2f32.powi(64);
    let (big, small) = if a.abs() > b.abs() { (a, b) } else { (b, a) };
    let scaled = (small * up).mul_add(big, c * up);
    if scaled.abs() < f32::MIN_POSITIVE * up && (c * up).is_finite() && (small * up).is_finite() {
        0.0f32.copysign(scaled)
    } else {
        flush(a.mul_add(b, c))
    }
}

/// The definition: one output element from its operands along k.
pub fn element(spec: &GemmSpec, start: f32, k: impl Fn(usize) -> (f32, f32)) -> f32 {
    const SUMS: usize = 32;
    let bf16 = spec.dtype() == Float::Bf16;
    let step = if bf16 { flushing } else { f32::mul_add };
    let take = |i: usize| if i < spec.k { k(i) } else { (0.0, 0.0) };
    let lanes = if bf16 { spec.k.div_ceil(2) } else { spec.k };
    let lane = |sum: f32, lane: usize| {
        let order = if bf16 { [2 * lane + 1, 2 * lane] } else { [lane, lane] };
        order[..if bf16 { 2 } else { 1 }].iter().fold(sum, |sum, &i| {
            let (a, b) = take(i);
            step(a, b, sum)
        })
    };
    if spec.k == 0 {
        return start;
    }
    if !spec.is_dot() {
        return (0..lanes).fold(start, lane);
    }
    let mut sums = [0.0f32; SUMS];
    for l in 0..lanes.next_multiple_of(SUMS) {
        let padding = if bf16 { 2 * l >= spec.k } else { l >= spec.k };
        sums[l % SUMS] = if padding { step(0.0, 0.0, sums[l % SUMS]) } else { lane(sums[l % SUMS], l) };
    }
    let mut half = SUMS / 2;
    while half > 0 {
        for l in 0..half {
            sums[l] += sums[l + half];
        }
        half /= 2;
    }
    if spec.accumulate { start + sums[0] } else { sums[0] }
}

/// What C holds after the product; `a`, `b` and `c` are the memory that the layouts reach.
pub fn expected(spec: &GemmSpec, a: &[f32], b: &[f32], c: &[f32]) -> Vec<f32> {
    let mut out = c.to_vec();
    for batch in batches(spec) {
        for i in 0..spec.m {
            for j in 0..spec.n {
                let c_at = at(&spec.c, batch, i, j);
                let start = if spec.accumulate { c[c_at] } else { 0.0 };
                let entry = if spec.packed_b { [0, 0] } else { batch };
                let operand = |x: f32| rounded(spec.dtype(), x);
                let sum = element(spec, start, |k| {
                    (operand(a[at(&spec.a, batch, i, k)]), operand(b[at(&spec.b, entry, k, j)]))
                });
                out[c_at] = rounded(spec.c.dtype, sum);
            }
        }
    }
    out
}

pub fn rounded(dtype: Float, x: f32) -> f32 {
    match dtype {
        Float::F32 => x,
        Float::Bf16 => half::bf16::from_f32(x).to_f32(),
    }
}

/// Runs the product and returns all memory of C.
pub fn product(cpu: &Cpu, spec: &GemmSpec, a: &Guarded, b: &Guarded, c: &[f32]) -> Vec<f32> {
    let out = Guarded::of(spec.c.dtype, c);
    let threads = cpu.pool.threads();
    let scratch = Guarded::new(gemm_scratch_bytes(spec, cpu.isa(), threads).next_multiple_of(64));
    let packed;
    let mut b_ptr = b.ptr().cast_const();
    if spec.packed_b {
        packed = Guarded::new(packed_bytes(cpu.isa(), spec.b.dtype, spec.k, spec.n));
        // SAFETY: b holds all the layout reaches and `packed` has the size asked for.
        unsafe { pack_b(cpu, &spec.b, spec.k, spec.n, b_ptr, packed.ptr()) };
        b_ptr = packed.ptr();
    }
    // SAFETY: every buffer holds all that its layout reaches.
    unsafe { gemm(cpu, spec, a.ptr(), b_ptr, out.ptr(), scratch.ptr(), None) };
    (0..c.len()).map(|i| out.get(spec.c.dtype, i)).collect()
}

/// Checks the product against the definition, on every supported instruction set and 1, 2 and 3 threads.
pub fn check(cpus: &[Cpu], spec: &GemmSpec, value: impl FnMut() -> f32) {
    let mut value = value;
    let mut memory =
        |layout: &Layout, len: usize| -> Vec<f32> { (0..len).map(|_| rounded(layout.dtype, value())).collect() };
    let a = memory(&spec.a, reach(&spec.a, spec.m, spec.k, spec.batch));
    let b = memory(&spec.b, reach(&spec.b, spec.k, spec.n, if spec.packed_b { [1, 1] } else { spec.batch }));
    let c = memory(&spec.c, reach(&spec.c, spec.m, spec.n, spec.batch));
    let expected = expected(spec, &a, &b, &c);
    let (a, b) = (Guarded::of(spec.a.dtype, &a), Guarded::of(spec.b.dtype, &b));
    for cpu in cpus {
        let got = product(cpu, spec, &a, &b, &c);
        for (i, (&got, &want)) in got.iter().zip(&expected).enumerate() {
            assert!(
                got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(),
                "{} on {} threads: element {i} of C's memory is {got:e}, not {want:e}\n{spec:?}",
                cpu.isa().name(),
                cpu.pool.threads()
            );
        }
    }
}

/// One context per supported instruction set and thread count.
pub fn cpus() -> Vec<Cpu> {
    let mut cpus = Vec::new();
    for isa in Isa::supported() {
        for threads in [1, 2, 3] {
            cpus.push(Cpu::with_isa(threads, isa).expect("supported"));
        }
    }
    cpus
}
