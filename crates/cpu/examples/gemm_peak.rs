//! Measures the matrix products against this machine's own peak and the crate `gemm`:
//! `cargo run --release -p tenon-cpu --example gemm_peak [threads] [milliseconds per figure] [f32|bf16 product ...]`.
//!
//! With products, such as `1024x768x3072:nt` (m, n, k; whether A and B are transposed in memory), it prints their seconds
//! as one line of JSON, as bench/run wants them, and no table.
//!
//! The peak is what multiply-adds on registers alone reach, measured before and after the table. Figures are medians
//! with warm buffers; `B packed` leaves the packing of B out.

use std::time::{Duration, Instant};

use memmap2::MmapMut;
use tenon_cpu::gemm::{Float, GemmSpec, Layout, gemm, gemm_scratch_bytes, pack_b, packed_bytes};
use tenon_cpu::isa::Cpu;

/// Seconds, the median of runs that take `budget` in all; at least 3 runs after one that is not counted.
fn median(budget: Duration, mut run: impl FnMut()) -> f64 {
    run();
    let start = Instant::now();
    let mut times = Vec::new();
    while times.len() < 3 || start.elapsed() < budget {
        let t = Instant::now();
        run();
        times.push(t.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Zeros in large pages where the system has them, as a session's memory is.
struct Buffer(MmapMut, usize);

impl Buffer {
    fn new(bytes: usize) -> Buffer {
        const LARGE_PAGE: usize = 2 << 20;
        let map = MmapMut::map_anon(bytes + LARGE_PAGE).unwrap_or_else(|e| panic!("no {bytes} bytes: {e}"));
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        let start = map.as_ptr().align_offset(LARGE_PAGE);
        Buffer(map, start)
    }

    fn random(dtype: Float, len: usize) -> Buffer {
        let mut buffer = Buffer::new(len * dtype.bytes());
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        for i in 0..len {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let x = (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
            // SAFETY: the buffer holds `len` elements.
            unsafe {
                match dtype {
                    Float::F32 => buffer.ptr().cast::<f32>().add(i).write(x),
                    Float::Bf16 => buffer.ptr().cast::<u16>().add(i).write((x.to_bits() >> 16) as u16),
                }
            }
        }
        buffer
    }

    fn ptr(&mut self) -> *mut u8 {
        self.0.as_mut_ptr().wrapping_add(self.1)
    }
}

#[cfg(target_arch = "x86_64")]
mod peak {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    /// Rounds of a loop; each adds to all its sums.
    pub const STEPS: usize = 2_000_000;

    #[target_feature(enable = "avx512f")]
    pub unsafe fn f32_avx512() {
        let x = _mm512_set1_ps(black_box(0.5));
        let mut sums = [_mm512_setzero_ps(); 24];
        for _ in 0..STEPS {
            for s in &mut sums {
                *s = _mm512_fmadd_ps(x, x, *s);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub unsafe fn bf16_avx512() {
        // SAFETY: both are 64 bytes of plain numbers.
        let x = unsafe { std::mem::transmute::<__m512, __m512bh>(_mm512_set1_ps(black_box(0.5))) };
        let mut sums = [_mm512_setzero_ps(); 24];
        for _ in 0..STEPS {
            for s in &mut sums {
                *s = _mm512_dpbf16_ps(*s, x, x);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn f32_avx2() {
        let x = _mm256_set1_ps(black_box(0.5));
        let mut sums = [_mm256_setzero_ps(); 12];
        for _ in 0..STEPS {
            for s in &mut sums {
                *s = _mm256_fmadd_ps(x, x, *s);
            }
        }
        black_box(sums);
    }
}

/// GFLOP/s of multiply-adds on registers, all threads; `None` where this program has no loop for it.
#[cfg(target_arch = "x86_64")]
fn peak(cpu: &Cpu, dtype: Float) -> Option<f64> {
    use tenon_cpu::isa::Isa;
    let (run, flop): (unsafe fn(), usize) = match (cpu.isa(), dtype) {
        (Isa::Avx512Bf16, Float::Bf16) => (peak::bf16_avx512, 24 * 64),
        (Isa::Avx512 | Isa::Avx512Bf16, _) => (peak::f32_avx512, 24 * 32),
        (Isa::Avx2, _) => (peak::f32_avx2, 12 * 16),
        (Isa::Portable, _) => return None,
    };
    let threads = cpu.pool.threads();
    let time = median(Duration::from_millis(300), || {
        // SAFETY: the processor has the instruction set of the Cpu.
        cpu.pool.run(threads, |_, _| unsafe { run() });
    });
    Some((threads * flop * peak::STEPS) as f64 / time / 1e9)
}

#[cfg(not(target_arch = "x86_64"))]
fn peak(_: &Cpu, _: Float) -> Option<f64> {
    None
}

/// Seconds of Tenon.
fn ours(cpu: &Cpu, spec: &GemmSpec, budget: Duration) -> f64 {
    let batch = spec.batch[0] * spec.batch[1];
    let (dtype, mut c) = (spec.a.dtype, Buffer::new(batch * spec.m * spec.n * spec.c.dtype.bytes()));
    let (mut a, mut b) =
        (Buffer::random(dtype, batch * spec.m * spec.k), Buffer::random(dtype, batch * spec.k * spec.n));
    let mut scratch = Buffer::new(gemm_scratch_bytes(spec, cpu.isa(), cpu.pool.threads()));
    let mut packed = Buffer::new(if spec.packed_b { packed_bytes(cpu.isa(), dtype, spec.k, spec.n) } else { 0 });
    // SAFETY: every buffer holds all that its layout reaches.
    unsafe {
        if spec.packed_b {
            pack_b(cpu, &spec.b, spec.k, spec.n, b.ptr(), packed.ptr());
        }
        let b = if spec.packed_b { packed.ptr() } else { b.ptr() };
        median(budget, || gemm(cpu, spec, a.ptr(), b, c.ptr(), scratch.ptr(), None))
    }
}

/// An operand as it lies in memory.
fn operand(dtype: Float, rows: usize, cols: usize, transposed: bool) -> Layout {
    let layout = if transposed { Layout::row_major(dtype, rows).transposed() } else { Layout::row_major(dtype, cols) };
    layout.batched([0, rows * cols])
}

/// A product with an `f32` result.
fn product(dtype: Float, [m, n, k]: [usize; 3], [trans_a, trans_b]: [bool; 2]) -> GemmSpec {
    let (a, b) = (operand(dtype, m, k, trans_a), operand(dtype, k, n, trans_b));
    GemmSpec::new(m, n, k, a, b, operand(Float::F32, m, n, false))
}

/// The seconds of products, B as it lies and B packed, as JSON.
fn compare(cpu: &Cpu, budget: Duration, precision: &str, products: &[String]) -> String {
    let dtype = if precision == "bf16" { Float::Bf16 } else { Float::F32 };
    let seconds = |packed_b: bool| {
        let entries = products.iter().map(|name| {
            let (sizes, transposed) = name.split_once(':').unwrap_or((name, "nn"));
            let sizes: Vec<usize> = sizes.split('x').map_while(|n| n.parse().ok()).collect();
            let ([m, n, k], [a, b]) = (sizes.as_slice(), transposed.as_bytes()) else { panic!("no product: {name}") };
            let spec = GemmSpec { packed_b, ..product(dtype, [*m, *n, *k], [*a == b't', *b == b't']) };
            format!("{name:?}: {}", ours(cpu, &spec, budget))
        });
        entries.collect::<Vec<_>>().join(", ")
    };
    let [plain, packed] = [false, true].map(seconds);
    let version = env!("CARGO_PKG_VERSION");
    format!(
        "{{\"case\": \"gemm\", \"precision\": {precision:?}, \"who\": \"Tenon\", \"version\": {version:?}, \"products\": {{{plain}}}, \"packed\": {{{packed}}}}}"
    )
}

/// GFLOP/s of the crate `gemm`, f32.
fn theirs(threads: usize, spec: &GemmSpec, budget: Duration) -> f64 {
    let batch = spec.batch[0] * spec.batch[1];
    let mut c = Buffer::new(4 * batch * spec.m * spec.n);
    let mut a = Buffer::random(Float::F32, batch * spec.m * spec.k);
    let mut b = Buffer::random(Float::F32, batch * spec.k * spec.n);
    let parallelism = if threads == 1 { gemm::Parallelism::None } else { gemm::Parallelism::Rayon(threads) };
    let time = median(budget, || {
        for entry in 0..batch {
            // SAFETY: every buffer holds all that its layout reaches.
            unsafe {
                gemm::gemm(
                    spec.m,
                    spec.n,
                    spec.k,
                    c.ptr().cast::<f32>().add(entry * spec.m * spec.n),
                    1,
                    spec.n as isize,
                    false,
                    a.ptr().cast::<f32>().add(entry * spec.m * spec.k).cast_const(),
                    spec.a.col_stride as isize,
                    spec.a.row_stride as isize,
                    b.ptr().cast::<f32>().add(entry * spec.k * spec.n).cast_const(),
                    spec.b.col_stride as isize,
                    spec.b.row_stride as isize,
                    0.0,
                    1.0,
                    false,
                    false,
                    false,
                    parallelism,
                );
            }
        }
    });
    flop(spec) / time / 1e9
}

fn flop(spec: &GemmSpec) -> f64 {
    2.0 * (spec.batch[0] * spec.batch[1] * spec.m * spec.n * spec.k) as f64
}

/// What is multiplied: name, entries, m, n, k, whether A and B are transposed in memory.
const SHAPES: [(&str, usize, [usize; 3], [bool; 2]); 17] = [
    ("linear 768->768", 1, [1024, 768, 768], [false, true]),
    ("linear 768->3072", 1, [1024, 3072, 768], [false, true]),
    ("linear 3072->768", 1, [1024, 768, 3072], [false, true]),
    ("same, B row-major", 1, [1024, 768, 3072], [false, false]),
    ("both transposed", 1, [1024, 768, 768], [true, true]),
    ("head 768->50257", 1, [1024, 50257, 768], [false, true]),
    ("head, to inputs", 1, [1024, 768, 50257], [false, false]),
    ("head, to weights", 1, [50257, 768, 1024], [true, false]),
    ("3072x768 weights", 1, [768, 3072, 1024], [true, false]),
    ("784->128, batch 64", 1, [64, 128, 784], [false, true]),
    ("128->10, batch 64", 1, [64, 10, 128], [false, true]),
    ("768->768, 128 rows", 1, [128, 768, 768], [false, true]),
    ("256->1024, 3072 rows", 1, [3072, 1024, 256], [false, true]),
    ("1x1 conv 256->64", 1, [50176, 64, 256], [false, false]),
    ("attention P V", 24, [512, 64, 512], [false, false]),
    ("attention Q K^T", 24, [512, 512, 64], [false, true]),
    ("1 row, 768->50257", 1, [1, 50257, 768], [false, true]),
];

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let mut numbers = args.iter().take(2).map(|arg| arg.parse().unwrap_or_else(|_| panic!("not a number: {arg}")));
    let threads = numbers.next().unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get()));
    let budget = Duration::from_millis(numbers.next().unwrap_or(300) as u64);
    let cpu = Cpu::new(threads).unwrap_or_else(|e| panic!("{e}"));
    if let [_, _, precision, products @ ..] = args.as_slice() {
        println!("{}", compare(&cpu, budget, precision, products));
        return;
    }
    println!("{} thread(s), {}", cpu.pool.threads(), cpu.isa().name());
    let before = [Float::F32, Float::Bf16].map(|dtype| peak(&cpu, dtype));
    println!("peak GFLOP/s: f32 {:.0}, bf16 {:.0}", before[0].unwrap_or(f64::NAN), before[1].unwrap_or(f64::NAN));
    println!(
        "{:>20} {:>18} | {:>6} {:>5} {:>8} | {:>6} {:>5} {:>8} | {:>10}",
        "GFLOP/s", "m x n x k", "f32", "peak", "B packed", "bf16", "peak", "B packed", "crate gemm"
    );
    for (name, entries, [m, n, k], transposed) in SHAPES {
        let mut line = format!("{name:>20} {:>18} |", format!("{m} x {n} x {k}"));
        for (dtype, peak) in [(Float::F32, before[0]), (Float::Bf16, before[1])] {
            let mut spec = GemmSpec { batch: [1, entries], ..product(dtype, [m, n, k], transposed) };
            let ours = |spec: &GemmSpec| flop(spec) / ours(&cpu, spec, budget) / 1e9;
            let plain = ours(&spec);
            let share = 100.0 * plain / peak.unwrap_or(f64::NAN);
            spec.packed_b = true;
            let packed = if entries == 1 { ours(&spec) } else { f64::NAN };
            line += &format!(" {plain:>6.0} {share:>4.0}% {packed:>8.0} |");
        }
        let spec = GemmSpec { batch: [1, entries], ..product(Float::F32, [m, n, k], transposed) };
        println!("{line} {:>10.0}", theirs(threads, &spec, budget));
    }
    let after = [Float::F32, Float::Bf16].map(|dtype| peak(&cpu, dtype));
    println!("peak GFLOP/s after: f32 {:.0}, bf16 {:.0}", after[0].unwrap_or(f64::NAN), after[1].unwrap_or(f64::NAN));
}
