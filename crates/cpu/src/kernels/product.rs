//! The small matrix product inside attention, on unpacked tiles: one chain of fused multiply-adds per element.

use crate::simd::{LANES, Lanes, Task};

/// Rows of a register tile.
const ROWS: usize = 6;

/// `c [m, n] = a [m, k] b [k, n]`, or `+=`. Each element of `c` is one chain over ascending `k`, started from 0 or from
/// what is there, so its bits do not depend on the tiling. `b` and `c` have contiguous rows; `n` is a multiple of 16.
#[derive(Clone, Copy)]
pub(crate) struct Product {
    /// `a[i, p]` is at `i * a_row + p * a_column`.
    pub a: *const f32,
    pub a_row: usize,
    pub a_column: usize,
    pub b: *const f32,
    pub b_row: usize,
    pub c: *mut f32,
    pub c_row: usize,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub accumulate: bool,
}

impl Product {
    /// Computes it.
    ///
    /// # Safety
    /// The elements of `a` and `b` are readable and those of `c` writable by this thread alone; `c` overlaps neither.
    #[inline(always)]
    pub(crate) unsafe fn run<V: Lanes>(self) {
        debug_assert!(self.n.is_multiple_of(LANES));
        // SAFETY: `V` exists only where the processor has it.
        unsafe { V::call(Panels(self)) }
    }
}

/// A [`Product`] whose caller has vouched for its pointers.
struct Panels(Product);

impl Task for Panels {
    type Output = ();
    #[inline(always)]
    fn run<V: Lanes>(self) {
        let mut column = 0;
        while column < self.0.n {
            let vectors = ((self.0.n - column) / LANES).min(V::TILE);
            // SAFETY: the columns from here on are inside, and `vectors` of them are left.
            unsafe {
                let part = Product { b: self.0.b.add(column), c: self.0.c.add(column), ..self.0 };
                match vectors {
                    1 => rows::<V, 1>(part),
                    2 => rows::<V, 2>(part),
                    3 => rows::<V, 3>(part),
                    _ => rows::<V, 4>(part),
                }
            }
            column += vectors * LANES;
        }
    }
}

/// One panel of `N` vectors, all rows.
///
/// # Safety
/// As [`Product::run`], for `N * 16` columns.
#[inline(always)]
unsafe fn rows<V: Lanes, const N: usize>(p: Product) {
    let mut row = 0;
    while row < p.m {
        let left = p.m - row;
        // SAFETY: `min(left, 6)` rows from here on are inside.
        unsafe {
            let part = Product { a: p.a.add(row * p.a_row), c: p.c.add(row * p.c_row), ..p };
            match left {
                1 => tile::<V, 1, N>(part),
                2 => tile::<V, 2, N>(part),
                3 => tile::<V, 3, N>(part),
                4 => tile::<V, 4, N>(part),
                5 => tile::<V, 5, N>(part),
                _ => tile::<V, ROWS, N>(part),
            }
        }
        row += ROWS;
    }
}

/// One register tile of `R` rows and `N` vectors.
///
/// # Safety
/// As [`Product::run`], for `R` rows and `N * 16` columns.
#[inline(always)]
unsafe fn tile<V: Lanes, const R: usize, const N: usize>(p: Product) {
    let mut sums = [[V::splat(0.0); N]; R];
    // SAFETY: all indices are below the sizes that the caller vouched for.
    unsafe {
        if p.accumulate {
            for (i, row) in sums.iter_mut().enumerate() {
                for (j, sum) in row.iter_mut().enumerate() {
                    *sum = V::load(p.c.add(i * p.c_row + j * LANES));
                }
            }
        }
        for depth in 0..p.k {
            let mut b = [V::splat(0.0); N];
            for (j, b) in b.iter_mut().enumerate() {
                *b = V::load(p.b.add(depth * p.b_row + j * LANES));
            }
            for (i, row) in sums.iter_mut().enumerate() {
                let a = V::splat(*p.a.add(i * p.a_row + depth * p.a_column));
                for (sum, b) in row.iter_mut().zip(b) {
                    *sum = a.mul_add(b, *sum);
                }
            }
        }
        for (i, row) in sums.iter().enumerate() {
            for (j, sum) in row.iter().enumerate() {
                sum.store(p.c.add(i * p.c_row + j * LANES));
            }
        }
    }
}
