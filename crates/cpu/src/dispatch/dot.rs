//! Matrix products of a program on [`crate::gemm`].

use smallvec::SmallVec;
use tenon_graph::backend::BackendError;
use tenon_graph::graph::Value;
use tenon_graph::lower::access::Strided;
use tenon_graph::op::Dot;
use tenon_graph::types::DType;

use super::{Kernel, Operand, Target};
use crate::gemm::{Float, GemmSpec, Layout, gemm, gemm_scratch_bytes};
use crate::isa::Cpu;
use crate::kernels::copy;
use crate::session::Table;

/// A batch axis: its size and the strides of both operands and the result.
type BatchAxis = (usize, [usize; 3]);

/// A product, as one or several calls of [`gemm`].
pub struct Product {
    spec: GemmSpec,
    a: (Value, usize),
    b: (Value, usize),
    c: Target,
    /// What C holds before the products are added, where it is another buffer.
    start: Option<Operand>,
    /// Batch axes beyond the two that the kernel knows.
    outer: SmallVec<[BatchAxis; 2]>,
    scratch: usize,
}

fn float(dtype: DType) -> Float {
    match dtype {
        DType::F32 => Float::F32,
        DType::BF16 => Float::Bf16,
        DType::I32 | DType::U32 | DType::U8 | DType::Bool => unreachable!("products of floats are checked when built"),
    }
}

impl Product {
    /// The kernel of a dot node.
    pub fn new(cpu: &Cpu, dot: &Dot, operands: &[Operand], c: Target) -> Product {
        let [Operand { window: a, dtype: a_type }, Operand { window: b, dtype: b_type }, start @ ..] = operands else {
            unreachable!("a product has two operands, or three")
        };
        let sizes = &c.sizes;
        let rank = sizes.len();
        let (m, n) = (sizes[rank - 2], sizes[rank - 1]);
        let k = a.sizes[if dot.transpose_a { rank - 2 } else { rank - 1 }];
        let layout = |w: &Strided, transposed: bool, dtype: DType| {
            let plain = Layout {
                dtype: float(dtype),
                row_stride: w.strides[rank - 2],
                col_stride: w.strides[rank - 1],
                batch_strides: [0, 0],
            };
            if transposed { plain.transposed() } else { plain }
        };
        let mut batch: SmallVec<[BatchAxis; 2]> = SmallVec::new();
        let mut c_stride = m * n;
        for axis in (0..rank - 2).rev() {
            let strides = [a.strides[axis], b.strides[axis], c_stride];
            c_stride *= sizes[axis];
            if sizes[axis] == 1 {
                continue;
            }
            match batch.last_mut() {
                Some((size, inner)) if (0..3).all(|i| strides[i] == *size * inner[i]) => *size *= sizes[axis],
                _ => batch.push((sizes[axis], strides)),
            }
        }
        let outer: SmallVec<[BatchAxis; 2]> = batch.iter().skip(2).copied().collect();
        let axis = |i: usize| batch.get(i).copied().unwrap_or((1, [0; 3]));
        let (inner, middle) = (axis(0), axis(1));
        let strides = |i: usize| [middle.1[i], inner.1[i]];
        let spec = GemmSpec {
            batch: [middle.0, inner.0],
            accumulate: !start.is_empty(),
            ..GemmSpec::new(
                m,
                n,
                k,
                layout(a, dot.transpose_a, *a_type).batched(strides(0)),
                layout(b, dot.transpose_b, *b_type).batched(strides(1)),
                Layout::row_major(float(dot.dtype), n).batched(strides(2)),
            )
        };
        let scratch = gemm_scratch_bytes(&spec, cpu.isa(), cpu.pool.threads());
        let start = start.first().cloned();
        Product { spec, a: (a.root, a.offset), b: (b.root, b.offset), c, start, outer, scratch }
    }
}

impl Kernel for Product {
    fn scratch_bytes(&self) -> usize {
        self.scratch
    }

    unsafe fn run(&self, cpu: &Cpu, table: &Table, scratch: *mut u8) -> Result<(), BackendError> {
        if let Some(start) = &self.start
            && table.get(start.window.root) != table.get(self.c.value)
        {
            // SAFETY: window and target were made for these buffers, which differ.
            unsafe { copy(cpu, &start.view(table), &mut self.c.view(table)) };
        }
        let calls: usize = self.outer.iter().map(|(n, _)| n).product();
        for call in 0..calls {
            let (mut rest, mut at) = (call, [self.a.1, self.b.1, 0]);
            for (n, strides) in &self.outer {
                (0..3).for_each(|i| at[i] += rest % n * strides[i]);
                rest /= n;
            }
            // SAFETY: the windows were made for these buffers, which are aligned to cache lines; the memory plan keeps
            // the result apart from the operands, and the scratch is as large as was asked for.
            unsafe {
                let a = table.get(self.a.0).add(at[0] * self.spec.a.dtype.bytes());
                let b = table.get(self.b.0).add(at[1] * self.spec.b.dtype.bytes());
                let c = table.get(self.c.value).add(at[2] * self.spec.c.dtype.bytes());
                gemm(cpu, &self.spec, a, b, c, scratch, None);
            }
        }
        Ok(())
    }
}
