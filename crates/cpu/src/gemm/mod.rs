//! Matrix products on strided views: C = A B or C += A B, in f32 or bf16, one or a batch of them.
//!
//! **Bits.** An f32 output is one chain of fused multiply-adds in ascending k from 0 (or from C). bf16 operands (an f32
//! one beside a bf16 one is rounded to bf16, and a denormal in it counts as zero) are multiplied in pairs along k and summed in f32 as the module `bf16` describes, an odd k padded with a zero; a bf16
//! C is rounded once, at the end. Products with at most [`DOT_ROWS`] rows (or columns) and k contiguous in both
//! operands take another order, that of the module `dot`. The order follows from the [`GemmSpec`] alone: results are the same
//! for every instruction set, number of threads and blocking. (Which NaN a NaN result is, is left open.)
//!
//! Nothing is allocated: the caller provides [`gemm_scratch_bytes`] of scratch.
//!
//! Reading order: `micro` (what happens to one tile), `plan` (how a product is cut into tiles), `drive` (the loops),
//! `pack`, `dot`. A convolution runs on `micro` and `pack` directly: a tile may take its rows of A from several segments.

pub(crate) mod bf16;
mod dot;
mod drive;
pub(crate) mod micro;
pub(crate) mod pack;
pub(crate) mod plan;
mod simd;
mod square;

use crate::isa::{Cpu, Isa};
pub(crate) use drive::pack_panels;
use plan::Plan;
use std::ops::Range;

/// At most this many rows of A (or columns of B), with k contiguous in both operands, are multiplied as dot products
/// that read the other operand once, in place.
pub const DOT_ROWS: usize = 8;

/// The element type of an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Float {
    /// IEEE single precision.
    F32,
    /// The upper half of an [`Float::F32`].
    Bf16,
}

impl Float {
    /// Bytes of an element.
    pub fn bytes(self) -> usize {
        match self {
            Float::F32 => 4,
            Float::Bf16 => 2,
        }
    }
}

/// How a matrix lies in memory: element (i, j) of batch entry (x, y) is at
/// `i * row_stride + j * col_stride + x * batch_strides[0] + y * batch_strides[1]`, all in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Layout {
    /// Element type.
    pub dtype: Float,
    /// From one row to the next; 0 repeats a row (operands only).
    pub row_stride: usize,
    /// From one column to the next; 0 repeats a column (operands only).
    pub col_stride: usize,
    /// From one batch entry to the next; 0 repeats the matrix (operands only).
    pub batch_strides: [usize; 2],
}

impl Layout {
    /// Rows of `row_stride` elements one after the other, no batch.
    pub fn row_major(dtype: Float, row_stride: usize) -> Layout {
        Layout { dtype, row_stride, col_stride: 1, batch_strides: [0, 0] }
    }

    /// The same memory read as the transposed matrix.
    pub fn transposed(self) -> Layout {
        Layout { row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }

    /// With strides between batch entries.
    pub fn batched(self, batch_strides: [usize; 2]) -> Layout {
        Layout { batch_strides, ..self }
    }

    fn offset(&self, batch: [usize; 2]) -> usize {
        (batch[0] * self.batch_strides[0] + batch[1] * self.batch_strides[1]) * self.dtype.bytes()
    }
}

/// A product C\[m, n\] = A\[m, k\] B\[k, n\], for each entry of a two-level batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GemmSpec {
    /// Rows of A and C.
    pub m: usize,
    /// Columns of B and C.
    pub n: usize,
    /// Columns of A, rows of B.
    pub k: usize,
    /// Batch entries, outer and inner; `[1, 1]` is a single product.
    pub batch: [usize; 2],
    /// A.
    pub a: Layout,
    /// B; ignored, the element type apart, where it is packed.
    pub b: Layout,
    /// C; rows or columns contiguous (`col_stride` or `row_stride` 1), entries apart from each other.
    pub c: Layout,
    /// Whether the product is added to C.
    pub accumulate: bool,
    /// Whether B was packed by [`pack_b`]; one packed B serves all batch entries.
    pub packed_b: bool,
}

impl GemmSpec {
    /// A single product that replaces C.
    pub fn new(m: usize, n: usize, k: usize, a: Layout, b: Layout, c: Layout) -> GemmSpec {
        GemmSpec { m, n, k, batch: [1, 1], a, b, c, accumulate: false, packed_b: false }
    }

    /// The element type that the operands are multiplied in: bf16 if one of them is.
    pub fn dtype(&self) -> Float {
        if self.a.dtype == self.b.dtype { self.a.dtype } else { Float::Bf16 }
    }

    /// Whether the product is computed as dot products (see [`DOT_ROWS`]).
    pub fn is_dot(&self) -> bool {
        let contiguous = self.a.col_stride == 1 && self.b.row_stride == 1;
        self.m.min(self.n) <= DOT_ROWS && !self.packed_b && contiguous && self.a.dtype == self.b.dtype
    }

    /// C^T = B^T A^T.
    fn transposed(&self) -> GemmSpec {
        GemmSpec {
            m: self.n,
            n: self.m,
            a: self.b.transposed(),
            b: self.a.transposed(),
            c: self.c.transposed(),
            ..*self
        }
    }

    /// Whether the loops run on the transposed product: so that the rows of C are contiguous, or the dot products'
    /// short side is that of A.
    fn is_turned(&self) -> bool {
        if self.is_dot() { self.m > self.n } else { self.c.col_stride != 1 && self.n != 1 }
    }

    /// # Panics
    /// On a spec that breaks its contract.
    fn check(&self) {
        assert!(
            !self.packed_b || self.a.dtype == self.b.dtype,
            "gemm: A is {:?} and the packed B {:?}; pack it as A is",
            self.a.dtype,
            self.b.dtype
        );
        let rows_or_cols = self.c.col_stride == 1 || self.n == 1 || self.c.row_stride == 1 || self.m == 1;
        assert!(
            rows_or_cols || self.is_dot(),
            "gemm: C has row stride {} and column stride {}; one of them must be 1",
            self.c.row_stride,
            self.c.col_stride
        );
        assert!(
            !(self.packed_b && self.is_turned()),
            "gemm: a packed B needs a C with contiguous rows, not column stride {}",
            self.c.col_stride
        );
    }
}

/// A finished part of C, still in cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Strip {
    /// The batch entry.
    pub batch: [usize; 2],
    /// Rows of C.
    pub rows: Range<usize>,
    /// Columns of C.
    pub cols: Range<usize>,
}

/// Called once for every part of C when it is finished, with the worker that finished it. The parts cover C without
/// overlap.
pub type Epilogue<'a> = &'a (dyn Fn(&Strip, usize) + Sync);

/// Bytes of scratch that [`gemm`] needs on `threads` threads of `isa`.
pub fn gemm_scratch_bytes(spec: &GemmSpec, isa: Isa, threads: usize) -> usize {
    if spec.is_dot() {
        return 0;
    }
    let turned = spec.transposed();
    let spec = if spec.is_turned() { &turned } else { spec };
    // A caller with threads may find itself inside a task, where there is one.
    let bytes = |threads| {
        let plan = Plan::new(spec, isa, threads);
        plan.shared_bytes + plan.scratch.bytes * threads
    };
    bytes(threads.max(1)).max(bytes(1))
}

/// Computes the product on all threads of `cpu`; inside a task of its pool, on the calling thread alone.
///
/// `epilogue` sees every strip of C as soon as it is final.
///
/// # Panics
/// If B is packed and of another element type than A, if C has neither contiguous rows nor contiguous columns, or if B is packed
/// and C has only contiguous columns.
///
/// # Safety
/// `a`, `b` and `c` are valid for everything the spec's layouts reach (for a packed B: [`packed_bytes`]), aligned to
/// their elements, and `c` overlaps neither operand; nobody else touches C meanwhile. `scratch` is valid for
/// [`gemm_scratch_bytes`] of this spec, `cpu.isa()` and `cpu.pool.threads()` threads (one inside a task), aligned to
/// 64 bytes, and used by this call only.
pub unsafe fn gemm(
    cpu: &Cpu,
    spec: &GemmSpec,
    a: *const u8,
    b: *const u8,
    c: *mut u8,
    scratch: *mut u8,
    epilogue: Option<Epilogue<'_>>,
) {
    spec.check();
    let turned;
    let turn = |strip: &Strip, worker: usize| {
        if let Some(epilogue) = epilogue {
            let (rows, cols) = (strip.cols.clone(), strip.rows.clone());
            epilogue(&Strip { batch: strip.batch, rows, cols }, worker);
        }
    };
    let (spec, a, b, epilogue) = if spec.is_turned() {
        turned = spec.transposed();
        (&turned, b, a, epilogue.map(|_| &turn as Epilogue<'_>))
    } else {
        (spec, a, b, epilogue)
    };
    // SAFETY: the caller's, for the product or for the same product transposed.
    unsafe {
        if spec.k == 0 {
            drive::empty(spec, c, epilogue);
        } else if spec.is_dot() {
            dot::run(cpu, spec, a, b, c, epilogue);
        } else {
            drive::run(cpu, spec, a, b, c, scratch, epilogue);
        }
    }
}

/// Bytes of a packed B of `k` rows and `n` columns, for [`GemmSpec::packed_b`].
pub fn packed_bytes(isa: Isa, dtype: Float, k: usize, n: usize) -> usize {
    drive::packed_b(isa, dtype, k, n).bytes
}

/// Packs B\[k, n\] of the given layout (its batch strides are ignored) for products on this instruction set.
///
/// # Safety
/// `b` is valid for everything the layout reaches, `dst` for [`packed_bytes`], aligned to 64 bytes; nobody else
/// touches `dst` meanwhile.
pub unsafe fn pack_b(cpu: &Cpu, layout: &Layout, k: usize, n: usize, b: *const u8, dst: *mut u8) {
    // SAFETY: the caller's.
    unsafe { pack_panels(cpu, &drive::packed_b(cpu.isa(), layout.dtype, k, n), layout, b, dst) }
}
