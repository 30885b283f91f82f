//! Strided copies: what stores a view. Element types are kept, bits are moved as they are.

use super::view::{Axes, MAX_RANK, Pointer, View, ViewMut};
use crate::isa::Cpu;
use crate::simd::{LANES, Lanes, Task};

/// Elements that one task moves, about.
const TASK: usize = 32 * 1024;
/// The side of a transposed tile.
const SIDE: usize = 64;

/// Copies `from` into `to`, of the same shape and element type; axes of `from` with stride 0 repeat.
///
/// # Panics
/// If shapes or element types differ.
pub fn copy(cpu: &Cpu, from: &View<'_>, to: &mut ViewMut<'_>) {
    assert!(
        from.shape() == to.shape() && from.dtype() == to.dtype(),
        "a copy of {} {:?} to {} {:?}",
        from.dtype(),
        from.shape(),
        to.dtype(),
        to.shape()
    );
    if to.is_empty() {
        return;
    }
    // SAFETY: views can be read and written wherever their shape and strides reach.
    unsafe {
        match from.dtype().size() {
            4 => Plan::new(from, to).run(cpu, from.ptr::<u32>(), to.ptr::<u32>(), transpose_words),
            2 => Plan::new(from, to).run(cpu, from.ptr::<u16>(), to.ptr::<u16>(), transpose_plain),
            _ => Plan::new(from, to).run(cpu, from.ptr::<u8>(), to.ptr::<u8>(), transpose_plain),
        }
    }
}

/// Sets every element to zero (false).
pub fn clear(cpu: &Cpu, to: &mut ViewMut<'_>) {
    static ZERO: u32 = 0;
    let strides = [0; MAX_RANK];
    let rank = to.shape().len();
    let shape = Axes::new(to.shape());
    // SAFETY: four zero bytes are a zero of every element type, read again and again.
    let zero = unsafe { View::new((&raw const ZERO).cast(), to.dtype(), &shape, &strides[..rank]) };
    copy(cpu, &zero, to);
}

/// Puts `parts` one after the other along `axis` of `to`.
///
/// # Panics
/// If they do not fit and fill it.
pub fn concat(cpu: &Cpu, parts: &[View<'_>], axis: usize, to: &mut ViewMut<'_>) {
    let mut start = 0;
    for part in parts {
        let size = part.shape()[axis];
        copy(cpu, part, &mut to.slice(axis, start, size, 1));
        start += size;
    }
    assert_eq!(start, to.shape()[axis], "the parts of a concatenation must fill {:?} along {axis}", to.shape());
}

/// Puts `from` into zeros: its elements along `axis` go to `start, start + step, ..` of `to`.
///
/// # Panics
/// If it does not fit.
pub fn pad(cpu: &Cpu, from: &View<'_>, axis: usize, start: usize, step: usize, to: &mut ViewMut<'_>) {
    let (size, whole) = (from.shape()[axis], to.shape()[axis]);
    if size == 0 {
        return clear(cpu, to);
    }
    let end = start + (size - 1) * step + 1;
    clear(cpu, &mut to.slice(axis, 0, start, 1));
    if step > 1 {
        clear(cpu, &mut to.slice(axis, start, end - start, 1));
    }
    clear(cpu, &mut to.slice(axis, end, whole - end, 1));
    copy(cpu, from, &mut to.slice(axis, start, size, step));
}

/// One axis of a copy.
#[derive(Clone, Copy, Default)]
struct Axis {
    size: usize,
    from: usize,
    to: usize,
}

/// A copy with axes merged and put in the order of the result's memory, outermost first.
struct Plan {
    axes: [Axis; MAX_RANK],
    rank: usize,
}

/// Copies a tile: `to[y * to_stride + x] = from[x * from_stride + y]` for `x` and `y` below the two sizes.
type Transpose<T> =
    unsafe fn(cpu: &Cpu, from: *const T, from_stride: usize, to: *mut T, to_stride: usize, x: usize, y: usize);

impl Plan {
    fn new(from: &View<'_>, to: &View<'_>) -> Plan {
        let mut axes = [Axis::default(); MAX_RANK];
        let mut rank = 0;
        for (i, &size) in to.shape().iter().enumerate().filter(|(_, size)| **size > 1) {
            axes[rank] = Axis { size, from: from.strides()[i], to: to.strides()[i] };
            rank += 1;
        }
        axes[..rank].sort_unstable_by_key(|axis| std::cmp::Reverse(axis.to));
        let mut merged = 0;
        for i in 1..rank {
            let (outer, inner) = (axes[merged], axes[i]);
            if outer.from == inner.size * inner.from && outer.to == inner.size * inner.to {
                axes[merged] = Axis { size: outer.size * inner.size, ..inner };
            } else {
                merged += 1;
                axes[merged] = inner;
            }
        }
        Plan { axes, rank: if rank == 0 { 0 } else { merged + 1 } }
    }

    /// Moves the axis `i` to the end.
    fn move_last(&mut self, i: usize) {
        self.axes[i..self.rank].rotate_left(1);
    }

    /// # Safety
    /// All elements of the plan are readable at `from` and writable at `to`, which is written by this call alone.
    unsafe fn run<T: Copy + Send + Sync>(mut self, cpu: &Cpu, from: *const T, to: *mut T, transpose: Transpose<T>) {
        let last = match self.rank {
            0 => Axis { size: 1, from: 1, to: 1 },
            rank => self.axes[rank - 1],
        };
        let other = self.axes[..self.rank.saturating_sub(1)].iter().position(|axis| axis.from == 1);
        let (from, to) = (Pointer(from.cast_mut()), Pointer(to));
        if let (1, 2.., Some(other)) = (last.to, last.from, other) {
            self.move_last(other);
            let rows = self.axes[self.rank - 1];
            let (across, down) = (last.size.div_ceil(SIDE), rows.size.div_ceil(SIDE));
            let outer = &self.axes[..self.rank - 2];
            let units = count(outer) * across * down;
            let each = (TASK / (SIDE * SIDE)).max(1);
            cpu.pool.run(units.div_ceil(each), |task, _| {
                for unit in task * each..((task + 1) * each).min(units) {
                    let (x, y) = (unit % across * SIDE, unit / across % down * SIDE);
                    let (from_at, to_at) = offsets(outer, unit / (across * down));
                    let (width, height) = ((last.size - x).min(SIDE), (rows.size - y).min(SIDE));
                    // SAFETY: `x` and `y` and what follows are below the sizes of their axes; tiles do not overlap.
                    unsafe {
                        let from = from.get().add(from_at + x * last.from + y);
                        let to = to.get().add(to_at + y * rows.to + x);
                        transpose(cpu, from, last.from, to, rows.to, width, height);
                    }
                }
            });
            return;
        }
        let outer = &self.axes[..self.rank.saturating_sub(1)];
        let pieces = last.size.div_ceil(TASK);
        let units = count(outer) * pieces;
        let each = (TASK / last.size.min(TASK)).max(1);
        cpu.pool.run(units.div_ceil(each), |task, _| {
            let mut place = Odometer::at(outer, task * each / pieces);
            for unit in task * each..((task + 1) * each).min(units) {
                let start = unit % pieces * TASK;
                let n = (last.size - start).min(TASK);
                // SAFETY: the elements are below the size of the last axis; pieces do not overlap.
                unsafe {
                    let from = from.get().add(place.from + start * last.from);
                    let to = to.get().add(place.to + start * last.to);
                    run_of(from, last.from, to, last.to, n);
                }
                if unit % pieces == pieces - 1 {
                    place.next();
                }
            }
        });
    }
}

fn count(axes: &[Axis]) -> usize {
    axes.iter().map(|axis| axis.size).product()
}

/// The offsets of the `index`-th combination of `axes`.
fn offsets(axes: &[Axis], mut index: usize) -> (usize, usize) {
    let (mut from, mut to) = (0, 0);
    for axis in axes.iter().rev() {
        let i = index % axis.size;
        index /= axis.size;
        from += i * axis.from;
        to += i * axis.to;
    }
    (from, to)
}

/// The offsets of the combinations of axes, one after the other.
struct Odometer<'a> {
    axes: &'a [Axis],
    index: [usize; MAX_RANK],
    from: usize,
    to: usize,
}

impl<'a> Odometer<'a> {
    fn at(axes: &'a [Axis], start: usize) -> Odometer<'a> {
        let (from, to) = offsets(axes, start);
        let mut index = [0; MAX_RANK];
        let mut rest = start;
        for (axis, i) in axes.iter().zip(&mut index).rev() {
            *i = rest % axis.size;
            rest /= axis.size;
        }
        Odometer { axes, index, from, to }
    }

    fn next(&mut self) {
        for (axis, i) in self.axes.iter().zip(&mut self.index).rev() {
            *i += 1;
            self.from += axis.from;
            self.to += axis.to;
            if *i < axis.size {
                return;
            }
            *i = 0;
            self.from -= axis.from * axis.size;
            self.to -= axis.to * axis.size;
        }
    }
}

/// # Safety
/// The elements are readable at `from` and writable at `to`.
#[inline]
unsafe fn run_of<T: Copy>(from: *const T, from_stride: usize, to: *mut T, to_stride: usize, n: usize) {
    // SAFETY: as the caller says; views to read and to write do not overlap.
    unsafe {
        match (from_stride, to_stride) {
            (1, 1) => std::ptr::copy_nonoverlapping(from, to, n),
            (0, 1) => std::slice::from_raw_parts_mut(to, n).fill(*from),
            _ => {
                for i in 0..n {
                    *to.add(i * to_stride) = *from.add(i * from_stride);
                }
            }
        }
    }
}

/// A [`Transpose`] element by element, in blocks whose rows stay in cache.
///
/// # Safety
/// As [`Transpose`] reads and writes.
unsafe fn transpose_plain<T: Copy>(
    _: &Cpu,
    from: *const T,
    from_stride: usize,
    to: *mut T,
    to_stride: usize,
    width: usize,
    height: usize,
) {
    for block in (0..height).step_by(LANES) {
        for x in 0..width {
            for y in block..(block + LANES).min(height) {
                // SAFETY: as the caller says.
                unsafe { *to.add(y * to_stride + x) = *from.add(x * from_stride + y) };
            }
        }
    }
}

/// A [`Transpose`] of 32-bit elements, 16 x 16 in registers.
///
/// # Safety
/// As [`Transpose`] reads and writes.
unsafe fn transpose_words(
    cpu: &Cpu,
    from: *const u32,
    from_stride: usize,
    to: *mut u32,
    to_stride: usize,
    width: usize,
    height: usize,
) {
    let (whole_x, whole_y) = (width / LANES * LANES, height / LANES * LANES);
    cpu.vectorise(Blocks { from: from.cast(), from_stride, to: to.cast(), to_stride, width: whole_x, height: whole_y });
    // SAFETY: what the whole blocks leave.
    unsafe {
        transpose_plain(
            cpu,
            from.add(whole_y),
            from_stride,
            to.add(whole_y * to_stride),
            to_stride,
            width,
            height - whole_y,
        );
        let (from, to) = (from.add(whole_x * from_stride), to.add(whole_x));
        transpose_plain(cpu, from, from_stride, to, to_stride, width - whole_x, whole_y);
    }
}

/// The whole 16 x 16 blocks of a tile.
struct Blocks {
    from: *const f32,
    from_stride: usize,
    to: *mut f32,
    to_stride: usize,
    width: usize,
    height: usize,
}

impl Task for Blocks {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes>(self) {
        for x in (0..self.width).step_by(LANES) {
            for y in (0..self.height).step_by(LANES) {
                let mut rows = [V::splat(0.0); LANES];
                // SAFETY: whole blocks inside the tile that the caller of `transpose_words` vouches for.
                unsafe {
                    for (i, row) in rows.iter_mut().enumerate() {
                        *row = V::load(self.from.add((x + i) * self.from_stride + y));
                    }
                    for (j, column) in V::transpose(rows).into_iter().enumerate() {
                        column.store(self.to.add((y + j) * self.to_stride + x));
                    }
                }
            }
        }
    }
}
