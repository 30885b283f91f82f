//! Products of rows with one of several matrices each. The rows are brought into the order of their matrices (a stable
//! counting sort), and each matrix is multiplied with its own rows: the work is that of the rows, whoever they choose.

use super::index::{OutOfRange, check, index_at};
use super::view::{DType, Pieces, Pointer, Scratch, View, ViewMut, piece, scratch_bytes};
use crate::gemm::{Float, GemmSpec, Layout, gemm, gemm_scratch_bytes};
use crate::isa::Cpu;

/// Elements that one task copies, about.
const TASK: usize = 16 * 1024;

/// The sizes and element types of a product of rows with their matrices, or of rows with rows.
#[derive(Clone, Copy, Debug)]
pub struct Experts {
    /// How many rows there are.
    pub rows: usize,
    /// How many matrices.
    pub count: usize,
    /// The width of the first operand's rows.
    pub k: usize,
    /// The width of the result's rows, or of the second operand's.
    pub m: usize,
    /// Whether the matrices lie transposed.
    pub transpose: bool,
    /// The operands' element type.
    pub operands: DType,
    /// The result's.
    pub result: DType,
}

fn float(dtype: DType) -> Float {
    if dtype == DType::BF16 { Float::Bf16 } else { Float::F32 }
}

impl Experts {
    /// The product with the `rows` rows of one expert: `[rows, k] [k, m]`.
    fn matmul_spec(&self, rows: usize) -> GemmSpec {
        let operand = float(self.operands);
        let matrix = if self.transpose {
            Layout::row_major(operand, self.k).transposed()
        } else {
            Layout::row_major(operand, self.m)
        };
        let (x, y) = (Layout::row_major(operand, self.k), Layout::row_major(float(self.result), self.m));
        GemmSpec::new(rows, self.m, self.k, x, matrix, y)
    }

    /// The sum over the `rows` rows of one expert: `[k, rows] [rows, m]`.
    fn outer_spec(&self, rows: usize) -> GemmSpec {
        let operand = float(self.operands);
        let (left, right) = (Layout::row_major(operand, self.k).transposed(), Layout::row_major(operand, self.m));
        GemmSpec::new(self.k, self.m, rows, left, right, Layout::row_major(float(self.result), self.m))
    }

    /// Bytes of scratch that [`expert_matmul`] needs.
    pub fn matmul_scratch_bytes(&self, cpu: &Cpu) -> usize {
        scratch_bytes(self.pieces(self.result, self.product_bytes(cpu, |rows| self.matmul_spec(rows))), 0, 1)
    }

    /// Bytes of scratch that [`expert_outer`] needs.
    pub fn outer_scratch_bytes(&self, cpu: &Cpu) -> usize {
        scratch_bytes(self.pieces(self.operands, self.product_bytes(cpu, |rows| self.outer_spec(rows))), 0, 1)
    }

    /// The most that a product needs, however many rows choose its expert.
    fn product_bytes(&self, cpu: &Cpu, spec: impl Fn(usize) -> GemmSpec) -> usize {
        let bytes = |rows| gemm_scratch_bytes(&spec(rows), cpu.isa(), cpu.pool.threads());
        (1..=self.rows).map(bytes).max().unwrap_or(0)
    }

    /// Bytes of all pieces of scratch; `second` is the element type of the rows of `m`.
    fn pieces(&self, second: DType, product: usize) -> usize {
        piece::<u32>(self.count + 1)
            + piece::<u32>(self.rows)
            + piece::<u8>(self.rows * self.k * self.operands.size())
            + piece::<u8>(self.rows * self.m * second.size())
            + piece::<u8>(product)
    }

    /// All of the scratch but its alignment.
    fn scratch(&self, memory: &mut [u8]) -> Pieces {
        let bytes = memory.len().saturating_sub(scratch_bytes(0, 0, 1)) / piece::<u8>(1) * piece::<u8>(1);
        Scratch::new(memory, bytes, 0, 1).shared()
    }

    /// # Panics
    /// If the operands are not what the sizes say.
    fn check(&self, left: &View<'_>, experts: &View<'_>) {
        let shape = left.shape();
        assert!(
            left.dtype() == self.operands
                && shape.len() == 3
                && shape[..2] == *experts.shape()
                && experts.len() == self.rows
                && shape[2] == self.k,
            "experts: rows {shape:?} of {:?} for {self:?}",
            experts.shape()
        );
    }
}

/// Rows in the order of their experts.
struct Sorted {
    /// `[count + 1]`: where each expert's rows start.
    starts: *const u32,
    /// `[rows]`: the rows.
    order: *const u32,
}

impl Sorted {
    /// Sorts the rows, which keep their order within an expert.
    fn new(cpu: &Cpu, sizes: &Experts, experts: &View<'_>, pieces: &mut Pieces) -> Result<Sorted, OutOfRange> {
        check(cpu, experts, sizes.count)?;
        let (starts, order) = (pieces.take::<u32>(sizes.count + 1), pieces.take::<u32>(sizes.rows));
        // SAFETY: the pieces have this room, and every index has been checked.
        unsafe {
            starts.write_bytes(0, sizes.count + 1);
            let expert = |row| index_at(experts, row) as usize;
            for row in 0..sizes.rows {
                *starts.add(expert(row) + 1) += 1;
            }
            for i in 0..sizes.count {
                *starts.add(i + 1) += *starts.add(i);
            }
            // Each row moves its expert's start on, which so becomes the next one's.
            for row in 0..sizes.rows {
                let place = starts.add(expert(row));
                *order.add(*place as usize) = row as u32;
                *place += 1;
            }
            std::ptr::copy(starts, starts.add(1), sizes.count);
            *starts = 0;
        }
        Ok(Sorted { starts, order })
    }

    /// The first row of an expert, and how many it has.
    fn rows(&self, expert: usize) -> (usize, usize) {
        // SAFETY: there is one start more than experts.
        let (first, end) = unsafe { (*self.starts.add(expert), *self.starts.add(expert + 1)) };
        (first as usize, (end - first) as usize)
    }

    /// Copies all rows of `view` `[n, r, width]` into this order at `sorted`, or from there back.
    ///
    /// # Safety
    /// `sorted` has the room, apart from the view; rows are contiguous, and may be written if they are copied back.
    unsafe fn copy(&self, cpu: &Cpu, view: &View<'_>, sorted: *mut u8, back: bool) {
        let (width, size) = (view.shape()[2], view.dtype().size());
        assert!(width <= 1 || view.strides()[2] == 1, "experts: rows are not contiguous");
        let (bytes, each, places) = (width * size, (TASK / width.max(1)).max(1), view.leading(2));
        let rows = places.len();
        let shared = &(Pointer(self.order.cast_mut()), view.bytes(), Pointer(sorted));
        cpu.pool.run(rows.div_ceil(each), |task, _| {
            for place in task * each..((task + 1) * each).min(rows) {
                // SAFETY: `order` names every row once; the rest as the caller says.
                unsafe {
                    let row = *shared.0.get().add(place) as usize;
                    let row = shared.1.get().add(places.offset(row) * size);
                    let own = shared.2.get().add(place * bytes);
                    let (from, to) = if back { (own, row) } else { (row, own) };
                    std::ptr::copy_nonoverlapping(from.cast_const(), to, bytes);
                }
            }
        });
    }
}

/// [`gemm`] with the scratch that is left.
///
/// # Safety
/// As [`gemm`].
unsafe fn multiply(cpu: &Cpu, spec: &GemmSpec, [a, b]: [*const u8; 2], c: *mut u8, (scratch, left): (*mut u8, usize)) {
    let needed = gemm_scratch_bytes(spec, cpu.isa(), cpu.pool.threads());
    assert!(needed <= left, "{left} bytes of scratch for a product, {needed} needed");
    // SAFETY: the caller's; the scratch was just checked.
    unsafe { gemm(cpu, spec, a, b, c, scratch, None) }
}

/// `to[i, j] = x[i, j] weights[experts[i, j]]`: `x` `[n, r, k]`, `weights` `[e, k, m]` or, transposed, `[e, m, k]`,
/// `experts` `[n, r]`, `to` `[n, r, m]`. Each element is summed as a product of its expert's rows in their order.
///
/// # Errors
/// An index outside the matrices.
///
/// # Panics
/// If the operands are not what `sizes` says, or the scratch is too small.
pub fn expert_matmul(
    cpu: &Cpu,
    sizes: &Experts,
    [x, weights, experts]: [&View<'_>; 3],
    to: &mut ViewMut<'_>,
    scratch: &mut [u8],
) -> Result<(), OutOfRange> {
    sizes.check(x, experts);
    assert!(
        weights.is_row_major() && weights.dtype() == sizes.operands && weights.len() == sizes.count * sizes.k * sizes.m,
        "experts: matrices {:?} for {sizes:?}",
        weights.shape()
    );
    assert!(to.dtype() == sizes.result && to.len() == sizes.rows * sizes.m, "experts: {:?} for {sizes:?}", to.shape());
    let mut pieces = sizes.scratch(scratch);
    let sorted = Sorted::new(cpu, sizes, experts, &mut pieces)?;
    let (row, result) = (sizes.k * sizes.operands.size(), sizes.m * sizes.result.size());
    let (from, into) = (pieces.take::<u8>(sizes.rows * row), pieces.take::<u8>(sizes.rows * result));
    let product = pieces.rest();
    // SAFETY: the pieces have this room and do not overlap; an expert's rows, its matrix and its part of the result
    // exist; `to` is written by this call alone.
    unsafe {
        sorted.copy(cpu, x, from, false);
        for expert in 0..sizes.count {
            let (first, rows) = sorted.rows(expert);
            if rows > 0 {
                let matrix = weights.bytes().get().add(expert * sizes.k * sizes.m * sizes.operands.size());
                let (a, c) = (from.add(first * row), into.add(first * result));
                multiply(cpu, &sizes.matmul_spec(rows), [a, matrix], c, product);
            }
        }
        sorted.copy(cpu, &to.read(), into, true);
    }
    Ok(())
}

/// `to[e] =` the sum of `left[i, j]^T right[i, j]` over the rows with `experts[i, j] = e`: `left` `[n, r, k]`, `right`
/// `[n, r, m]`, `experts` `[n, r]`, `to` `[e, k, m]`. Rows are taken in ascending order.
///
/// # Errors
/// An index outside the matrices.
///
/// # Panics
/// As [`expert_matmul`].
pub fn expert_outer(
    cpu: &Cpu,
    sizes: &Experts,
    [left, right, experts]: [&View<'_>; 3],
    to: &mut ViewMut<'_>,
    scratch: &mut [u8],
) -> Result<(), OutOfRange> {
    sizes.check(left, experts);
    assert!(
        right.dtype() == sizes.operands && right.shape() == [left.shape()[0], left.shape()[1], sizes.m],
        "experts: rows {:?} for {sizes:?}",
        right.shape()
    );
    let fits = to.dtype() == sizes.result && to.read().is_row_major() && to.len() == sizes.count * sizes.k * sizes.m;
    assert!(fits, "experts: {:?} for {sizes:?}", to.shape());
    let mut pieces = sizes.scratch(scratch);
    let sorted = Sorted::new(cpu, sizes, experts, &mut pieces)?;
    let (k, m) = (sizes.k * sizes.operands.size(), sizes.m * sizes.operands.size());
    let (lefts, rights) = (pieces.take::<u8>(sizes.rows * k), pieces.take::<u8>(sizes.rows * m));
    let product = pieces.rest();
    // SAFETY: as in `expert_matmul`; without rows the product is zero and reads nothing.
    unsafe {
        sorted.copy(cpu, left, lefts, false);
        sorted.copy(cpu, right, rights, false);
        for expert in 0..sizes.count {
            let (first, rows) = sorted.rows(expert);
            let sum = to.bytes().get().add(expert * sizes.k * sizes.m * sizes.result.size());
            let (a, b) = (lefts.add(first * k), rights.add(first * m));
            multiply(cpu, &sizes.outer_spec(rows), [a, b], sum, product);
        }
    }
    Ok(())
}
