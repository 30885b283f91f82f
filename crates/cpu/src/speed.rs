//! A short measurement of this machine, and from it an estimate of a program's time.

use std::sync::OnceLock;
use std::time::Instant;

use tenon_graph::cost::cost;
use tenon_graph::lower::{Program, Step, Work};
use tenon_graph::op::Op;
use tenon_graph::types::DType;

use crate::gemm::{Float, GemmSpec, Layout, gemm, gemm_scratch_bytes};
use crate::isa::Cpu;

/// Rows, columns and depth of the product that is timed: a few milliseconds.
const SIZE: usize = 384;
/// How often; the fastest counts.
const TIMES: usize = 5;
/// The part of the product's speed that attention and convolution reach.
const KERNEL_SHARE: f64 = 0.5;
/// The part of the product's `f32` speed that fused units reach: they have few multiply-adds and wait for the cache.
const FUSED_SHARE: f64 = 0.2;
/// Bytes that are read and written to time memory: more than the caches near the cores hold, and little beside a model.
const COPIED: usize = 24 << 20;
/// Seconds to start a step.
const START: f64 = 2e-6;

/// What a machine does in a second with all the threads of a pool.
#[derive(Clone, Copy, Debug)]
pub struct Speed {
    /// Floating-point operations of an `f32` product.
    f32: f64,
    /// Floating-point operations of a `bf16` product.
    bf16: f64,
    /// Bytes read and written.
    bytes: f64,
}

impl Speed {
    /// Measures once per process, in less than a tenth of a second.
    pub fn of(cpu: &Cpu) -> Speed {
        static MEASURED: OnceLock<Speed> = OnceLock::new();
        *MEASURED.get_or_init(|| Speed {
            f32: product(cpu, Float::F32),
            bf16: product(cpu, Float::Bf16),
            bytes: memory(cpu),
        })
    }

    /// About how long a program takes.
    pub fn estimate(&self, program: &Program) -> f64 {
        program.steps.iter().map(|step| self.step(program, step)).sum()
    }

    fn step(&self, program: &Program, step: &Step) -> f64 {
        let graph = &program.graph;
        let flops: f64 = step.nodes.iter().map(|n| cost(graph, *n).flops).sum();
        let bytes: f64 = step.writes.iter().chain(&step.reads()).map(|v| graph.ty(*v).bytes() as f64).sum();
        let rate = match &step.work {
            Work::Fused(_) | Work::Copy { .. } => self.f32 * FUSED_SHARE,
            Work::Kernel { node, .. } => {
                let data = graph.node(*node);
                match (&data.op, data.inputs.first().map(|v| graph.ty(*v).dtype)) {
                    (Op::Dot(_), Some(DType::BF16)) => self.bf16,
                    (Op::Dot(_), _) => self.f32,
                    (Op::Conv(_), Some(DType::BF16)) => self.bf16 * KERNEL_SHARE,
                    _ => self.f32 * KERNEL_SHARE,
                }
            }
        };
        START + (flops / rate).max(bytes / self.bytes)
    }
}

fn fastest(mut run: impl FnMut()) -> f64 {
    let once = |run: &mut dyn FnMut()| {
        let began = Instant::now();
        run();
        began.elapsed().as_secs_f64()
    };
    (0..TIMES).map(|_| once(&mut run)).fold(f64::INFINITY, f64::min).max(1e-9)
}

fn product(cpu: &Cpu, dtype: Float) -> f64 {
    let layout = Layout::row_major(dtype, SIZE);
    let spec = GemmSpec::new(SIZE, SIZE, SIZE, layout, layout, Layout::row_major(Float::F32, SIZE));
    let scratch = gemm_scratch_bytes(&spec, cpu.isa(), cpu.pool.threads());
    // In words of a cache line, so that every part is aligned.
    let lines = |bytes: usize| vec![Line([0; 64]); bytes.div_ceil(64).max(1)];
    let (mut a, mut b, mut c) = (lines(4 * SIZE * SIZE), lines(4 * SIZE * SIZE), lines(4 * SIZE * SIZE));
    let mut scratch = lines(scratch);
    let seconds = fastest(|| {
        // SAFETY: matrices of `SIZE` squared elements of at most four bytes, and the scratch that the spec asks for.
        unsafe {
            gemm(
                cpu,
                &spec,
                a.as_mut_ptr().cast(),
                b.as_mut_ptr().cast(),
                c.as_mut_ptr().cast(),
                scratch.as_mut_ptr().cast(),
                None,
            );
        }
    });
    2.0 * (SIZE * SIZE * SIZE) as f64 / seconds
}

fn memory(cpu: &Cpu) -> f64 {
    let from = vec![1u8; COPIED / 2];
    let mut to = vec![0u8; COPIED / 2];
    let shape = [COPIED / 2];
    let seconds = fastest(|| {
        let mut target = crate::kernels::ViewMut::row_major(&mut to, &shape);
        crate::kernels::copy(cpu, &crate::kernels::View::row_major(&from, &shape), &mut target);
    });
    COPIED as f64 / seconds
}

/// A cache line of bytes.
#[derive(Clone)]
#[repr(align(64))]
struct Line(#[expect(dead_code, reason = "read through pointers only")] [u8; 64]);
