//! Reading and writing at computed places. Indices are checked before anything is written.

use super::copy::copy;
use super::view::{DType, Scratch, View, ViewMut, piece, scratch_bytes};
use crate::isa::Cpu;
use crate::simd::{Float, LANES, Lanes, Task, widen};
use std::fmt;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicUsize, Ordering};

/// An index found in data that is outside what it indexes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfRange {
    /// The index.
    pub index: i64,
    /// Its place among the indices, counted in row-major order; the first if there are several.
    pub place: usize,
    /// Indices are from 0 to below this.
    pub size: usize,
}

impl fmt::Display for OutOfRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "index {} (number {} of the indices) is outside 0..{}", self.index, self.place, self.size)
    }
}

impl std::error::Error for OutOfRange {}

/// Elements that one task handles, about.
const TASK: usize = 16 * 1024;

/// The `place`-th index.
///
/// # Safety
/// There are more than `place`.
#[inline(always)]
pub(super) unsafe fn index_at(indices: &View<'_>, place: usize) -> i32 {
    // SAFETY: an element of the view.
    unsafe { *indices.ptr::<i32>().add(indices.offset(place)) }
}

/// Whether all indices are below `size`.
pub(super) fn check(cpu: &Cpu, indices: &View<'_>, size: usize) -> Result<(), OutOfRange> {
    assert_eq!(indices.dtype(), DType::I32, "indices are i32");
    let n = indices.len();
    let first = AtomicUsize::new(usize::MAX);
    cpu.pool.run(n.div_ceil(TASK), |task, _| {
        for place in task * TASK..((task + 1) * TASK).min(n) {
            // SAFETY: below the number of indices.
            let index = unsafe { index_at(indices, place) };
            if usize::try_from(index).is_ok_and(|index| index < size) {
                continue;
            }
            first.fetch_min(place, Ordering::Relaxed);
            break;
        }
    });
    match first.into_inner() {
        usize::MAX => Ok(()),
        // SAFETY: a place found above.
        place => Err(OutOfRange { index: i64::from(unsafe { index_at(indices, place) }), place, size }),
    }
}

/// The elements of one row that are next to each other: the last axes, if they are row-major without gaps.
fn row_elements(name: &str, view: &View<'_>, row_axes: usize) -> usize {
    let axes = view.shape().len() - row_axes..view.shape().len();
    let mut step = 1;
    for axis in axes.rev() {
        let adjacent = view.is_empty() || view.shape()[axis] == 1 || view.strides()[axis] == step;
        assert!(adjacent, "{name}: rows are not contiguous");
        step *= view.shape()[axis];
    }
    step
}

/// `to[i.., ..] = table[indices[i..], ..]`; rows (all axes of the table but the first) are contiguous in `table` and `to`.
///
/// # Errors
/// An index outside the table.
///
/// # Panics
/// If shapes or element types do not fit, or rows are not contiguous.
pub fn gather_rows(cpu: &Cpu, table: &View<'_>, indices: &View<'_>, to: &mut ViewMut<'_>) -> Result<(), OutOfRange> {
    let lead = indices.shape().len();
    assert!(
        table.dtype() == to.dtype()
            && to.shape()[..lead] == *indices.shape()
            && to.shape()[lead..] == table.shape()[1..],
        "gather of {:?} at {:?} into {:?}",
        table.shape(),
        indices.shape(),
        to.shape()
    );
    check(cpu, indices, table.shape()[0])?;
    let width = row_elements("gather", table, table.shape().len() - 1);
    if to.is_empty() {
        return Ok(());
    }
    row_elements("gather", to, table.shape().len() - 1);
    let bytes = table.dtype().size();
    let starts = to.read().leading(lead);
    let (n, each) = (indices.len(), (TASK / width).max(1));
    let (from, into) = (table.bytes(), to.bytes());
    let (from, into) = (&from, &into);
    cpu.pool.run(n.div_ceil(each), |task, _| {
        for place in task * each..((task + 1) * each).min(n) {
            // SAFETY: the index was checked; the row of `to` is this place's own.
            unsafe {
                let row = index_at(indices, place) as usize;
                let from = from.get().add(row * table.strides()[0] * bytes);
                let into = into.get().add(starts.offset(place) * bytes);
                std::ptr::copy_nonoverlapping(from, into, width * bytes);
            }
        }
    });
    Ok(())
}

/// `to[.., i, ..] = from[.., indices[.., i, ..], ..]`: elements along `axis`.
///
/// # Errors
/// An index outside the axis.
///
/// # Panics
/// If shapes or element types do not fit.
pub fn gather_along(
    cpu: &Cpu,
    from: &View<'_>,
    indices: &View<'_>,
    axis: usize,
    to: &mut ViewMut<'_>,
) -> Result<(), OutOfRange> {
    assert!(
        from.dtype() == to.dtype() && to.shape() == indices.shape() && equal_but(axis, from.shape(), to.shape()),
        "gather of {:?} at {:?} along {axis} into {:?}",
        from.shape(),
        indices.shape(),
        to.shape()
    );
    check(cpu, indices, from.shape()[axis])?;
    // SAFETY: the indices were checked.
    unsafe {
        match from.dtype().size() {
            4 => gather_elements::<u32>(cpu, from, indices, axis, to),
            2 => gather_elements::<u16>(cpu, from, indices, axis, to),
            _ => gather_elements::<u8>(cpu, from, indices, axis, to),
        }
    }
    Ok(())
}

/// # Safety
/// Every index is below the size of `axis`.
unsafe fn gather_elements<T: Copy>(cpu: &Cpu, from: &View<'_>, indices: &View<'_>, axis: usize, to: &ViewMut<'_>) {
    let n = to.len();
    // Where the element 0 along the axis is.
    let starts = from.with_size(axis, to.shape()[axis]).with_stride(axis, 0);
    cpu.pool.run(n.div_ceil(TASK), |task, _| {
        for place in task * TASK..((task + 1) * TASK).min(n) {
            // SAFETY: the index was checked; the element of `to` is this place's own.
            unsafe {
                let index = index_at(indices, place) as usize;
                let from = from.ptr::<T>().add(starts.offset(place) + index * from.strides()[axis]);
                *to.ptr::<T>().add(to.offset(place)) = *from;
            }
        }
    });
}

fn equal_but(axis: usize, a: &[usize], b: &[usize]) -> bool {
    a.len() == b.len() && axis < a.len() && (0..a.len()).all(|i| i == axis || a[i] == b[i])
}

/// Sorted places that a task of [`scatter_add_rows`] starts from, and columns that it adds.
const PLACES: usize = 64;
const COLUMNS: usize = 256;

/// The bytes of scratch that [`scatter_add_rows`] of `n` indices needs on a pool of `threads`.
pub fn scatter_add_rows_scratch_bytes(n: usize, threads: usize) -> usize {
    scratch_bytes(piece::<u64>(n), 0, threads)
}

/// `to[indices[i..], ..] += updates[i.., ..]`, from zero or `onto` what `to` holds: the adjoint of [`gather_rows`]. `f32` or
/// `bf16`; the updates of one row are added in `f32`, in ascending order of their place, and then to what the row holds.
/// Rows are contiguous in `updates` and `to`.
///
/// # Errors
/// An index outside the rows of `to`.
///
/// # Panics
/// If shapes or element types do not fit, rows are not contiguous, or the scratch is too small.
pub fn scatter_add_rows(
    cpu: &Cpu,
    indices: &View<'_>,
    updates: &View<'_>,
    onto: bool,
    to: &mut ViewMut<'_>,
    scratch_memory: &mut [u8],
) -> Result<(), OutOfRange> {
    let (lead, row_axes) = (indices.shape().len(), to.shape().len() - 1);
    assert!(
        updates.dtype() == to.dtype()
            && to.dtype().is_float()
            && updates.shape()[..lead] == *indices.shape()
            && updates.shape()[lead..] == to.shape()[1..],
        "scatter of {:?} at {:?} into {:?}",
        updates.shape(),
        indices.shape(),
        to.shape()
    );
    check(cpu, indices, to.shape()[0])?;
    if !onto {
        super::copy::clear(cpu, to);
    }
    if updates.is_empty() {
        return Ok(());
    }
    let n = indices.len();
    assert!(u32::try_from(n).is_ok(), "{n} indices are too many");
    let width = row_elements("scatter", updates, row_axes);
    row_elements("scatter", to, row_axes);
    let sorted = Scratch::new(scratch_memory, piece::<u64>(n), 0, cpu.pool.threads()).shared().take::<u64>(n);
    // SAFETY: the piece has room for n, and is written before the slice is made.
    let sorted = unsafe {
        for place in 0..n {
            *sorted.add(place) = (index_at(indices, place) as u64) << 32 | place as u64;
        }
        std::slice::from_raw_parts_mut(sorted, n)
    };
    sorted.sort_unstable();
    let sorted = &*sorted;
    let starts = updates.leading(lead);
    let parts = width.div_ceil(COLUMNS);
    let to = &*to;
    cpu.pool.run(n.div_ceil(PLACES) * parts, |task, _| {
        let (first, column) = (task / parts * PLACES, task % parts * COLUMNS);
        let width = (width - column).min(COLUMNS);
        if to.dtype() == DType::F32 {
            let element = PhantomData::<f32>;
            cpu.vectorise(AddRows { updates, to, starts, sorted, onto, first, column, width, element });
        } else {
            let element = PhantomData::<u16>;
            cpu.vectorise(AddRows { updates, to, starts, sorted, onto, first, column, width, element });
        }
    });
    Ok(())
}

/// The sums, over some columns, of the rows whose first update is among the sorted places `first..first + PLACES`.
struct AddRows<'a, T> {
    updates: &'a View<'a>,
    to: &'a ViewMut<'a>,
    starts: View<'a>,
    sorted: &'a [u64],
    onto: bool,
    first: usize,
    column: usize,
    width: usize,
    element: PhantomData<T>,
}

impl<T: Float> Task for AddRows<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes>(self) {
        let row = |i: usize| (self.sorted[i] >> 32) as usize;
        let end = (self.first + PLACES).min(self.sorted.len());
        let mut at = self.first;
        while at < end && at > 0 && row(at) == row(at - 1) {
            at += 1;
        }
        while at < end {
            let mut next = at + 1;
            while next < self.sorted.len() && row(next) == row(at) {
                next += 1;
            }
            for from in (0..self.width).step_by(LANES) {
                let n = (self.width - from).min(LANES);
                let mut sum = V::splat(0.0);
                // SAFETY: columns of rows that exist; this task alone writes these columns of this row.
                unsafe {
                    for entry in &self.sorted[at..next] {
                        let start = self.starts.offset((entry & u64::from(u32::MAX)) as usize);
                        sum = sum.add(T::load_first(self.updates.ptr::<T>().add(start + self.column + from), n));
                    }
                    let place = self.to.ptr::<T>().add(row(at) * self.to.strides()[0] + self.column + from);
                    if self.onto {
                        sum = T::load_first::<V>(place, n).add(sum);
                    }
                    T::store_first(sum, place, n);
                }
            }
            at = next;
        }
    }
}

/// The bytes of scratch that [`scatter_add_along`] into an axis of `size` needs on a pool of `threads`.
pub fn scatter_add_along_scratch_bytes(size: usize, threads: usize) -> usize {
    scratch_bytes(0, piece::<f32>(size), threads)
}

/// `to[.., indices[.., i, ..], ..] += updates[.., i, ..]` from zero: the adjoint of [`gather_along`]. `f32` or `bf16`;
/// added in `f32` in ascending order of `i`.
///
/// # Errors
/// An index outside the axis.
///
/// # Panics
/// If shapes or element types do not fit, or the scratch is too small.
pub fn scatter_add_along(
    cpu: &Cpu,
    indices: &View<'_>,
    updates: &View<'_>,
    axis: usize,
    to: &mut ViewMut<'_>,
    scratch_memory: &mut [u8],
) -> Result<(), OutOfRange> {
    assert!(
        updates.dtype() == to.dtype()
            && to.dtype().is_float()
            && updates.shape() == indices.shape()
            && equal_but(axis, updates.shape(), to.shape()),
        "scatter of {:?} at {:?} along {axis} into {:?}",
        updates.shape(),
        indices.shape(),
        to.shape()
    );
    let size = to.shape()[axis];
    check(cpu, indices, size)?;
    let scratch = Scratch::new(scratch_memory, 0, piece::<f32>(size), cpu.pool.threads());
    let [index_lines, update_lines, to_lines] = [*indices, *updates, **to].map(|view| view.with_size(axis, 1));
    let (lines, each) = (to_lines.len(), (TASK / (size + updates.shape()[axis]).max(1)).max(1));
    let to = &*to;
    cpu.pool.run(lines.div_ceil(each), |task, worker| {
        let sums = scratch.worker(worker).take::<f32>(size);
        for line in task * each..((task + 1) * each).min(lines) {
            // SAFETY: the piece is this worker's; indices were checked; this task alone writes its lines of `to`.
            unsafe {
                std::ptr::write_bytes(sums, 0, size);
                let index = indices.ptr::<i32>().add(index_lines.offset(line));
                let at = update_lines.offset(line);
                for i in 0..updates.shape()[axis] {
                    let sum = sums.add(*index.add(i * indices.strides()[axis]) as usize);
                    let update = at + i * updates.strides()[axis];
                    *sum += match updates.dtype() {
                        DType::F32 => *updates.ptr::<f32>().add(update),
                        _ => widen(*updates.ptr::<u16>().add(update)),
                    };
                }
                let at = to_lines.offset(line);
                for i in 0..size {
                    let place = at + i * to.strides()[axis];
                    match to.dtype() {
                        DType::F32 => *to.ptr::<f32>().add(place) = *sums.add(i),
                        _ => *to.ptr::<u16>().add(place) = crate::simd::narrow(*sums.add(i)),
                    }
                }
            }
        }
    });
    Ok(())
}

/// Writes `updates` into `to` from `position` on along `axis`; the rest of `to` stays, so it holds the operand.
///
/// # Errors
/// The updates reach outside.
///
/// # Panics
/// If shapes or element types do not fit.
pub fn write(
    cpu: &Cpu,
    updates: &View<'_>,
    position: i32,
    axis: usize,
    to: &mut ViewMut<'_>,
) -> Result<(), OutOfRange> {
    assert!(equal_but(axis, updates.shape(), to.shape()), "write of {:?} into {:?}", updates.shape(), to.shape());
    let (n, size) = (updates.shape()[axis], to.shape()[axis]);
    let Some(start) = usize::try_from(position).ok().filter(|start| start + n <= size) else {
        let last = i64::from(position) + n as i64 - 1;
        let index = if position < 0 { i64::from(position) } else { last };
        return Err(OutOfRange { index, place: 0, size });
    };
    copy(cpu, updates, &mut to.slice(axis, start, n, 1));
    Ok(())
}
