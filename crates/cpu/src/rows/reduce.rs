//! Reductions. Their shape depends on nothing but the number of elements: lane `i` of [`LANES`] takes elements `i`,
//! `i + LANES`, ... in order, then halves are combined until one is left.

use std::marker::PhantomData;
use std::slice::{from_raw_parts, from_raw_parts_mut};

use tenon_graph::op::ReduceOp;
use tenon_graph::types::DType;

use super::kernel::{Accumulate, Body, Finish, FoldRows, Kernel, Lane, ReduceRows};

/// How many elements of a row are combined side by side.
pub const LANES: usize = 32;

/// A reduction under way.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Accumulator {
    /// A result for each lane.
    pub lanes: [u32; LANES],
    /// For `ArgMax`: where it was found.
    pub indices: [u32; LANES],
}

/// The larger; NaN if either is.
#[inline(always)]
pub fn max_f32(a: f32, b: f32) -> f32 {
    if a.is_nan() || a >= b { a } else { b }
}

/// An associative combination.
trait Fold {
    type T: Lane;
    const START: Self::T;
    fn combine(a: Self::T, b: Self::T) -> Self::T;

    /// Halves combined until one lane is left.
    #[inline(always)]
    fn finish(lanes: &[Self::T; LANES]) -> Self::T {
        let mut lanes = *lanes;
        let mut half = LANES / 2;
        while half > 0 {
            for i in 0..half {
                lanes[i] = Self::combine(lanes[i], lanes[i + half]);
            }
            half /= 2;
        }
        lanes[0]
    }
}

macro_rules! folds {
    ($($name:ident $t:ty, $start:expr, |$a:ident, $b:ident| $result:expr $(, $four:path)?;)*) => {$(
        struct $name;
        impl Fold for $name {
            type T = $t;
            const START: $t = $start;
            #[inline(always)]
            fn combine($a: $t, $b: $t) -> $t {
                $result
            }
            $(
                #[cfg(target_arch = "x86_64")]
                #[inline(always)]
                fn finish(lanes: &[f32; LANES]) -> f32 {
                    x86::finish(lanes, |a, b| $four(a, b))
                }
            )?
        }
    )*};
}

folds! {
    SumF32 f32, 0.0, |a, b| a + b, x86::sum;
    SumU32 u32, 0, |a, b| a.wrapping_add(b);
    SumU8 u32, 0, |a, b| a.wrapping_add(b) & 0xFF;
    MaxF32 f32, f32::NEG_INFINITY, |a, b| max_f32(a, b), x86::max;
    MaxI32 i32, i32::MIN, |a, b| a.max(b);
    MaxU32 u32, 0, |a, b| a.max(b);
}

#[inline(always)]
fn accumulate<F: Fold>(lanes: &mut [F::T; LANES], from: &[F::T]) {
    let (blocks, rest) = from.as_chunks::<LANES>();
    let mut sums = *lanes;
    for block in blocks {
        for i in 0..LANES {
            sums[i] = F::combine(sums[i], block[i]);
        }
    }
    *lanes = sums;
    for (sum, x) in lanes.iter_mut().zip(rest) {
        *sum = F::combine(*sum, *x);
    }
}

/// The halves of floats combined four lanes at a time: with what every x86-64 has, since the compiler keeps to single
/// lanes where it may not change the order.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::LANES;

    #[inline(always)]
    pub fn sum(a: __m128, b: __m128) -> __m128 {
        // SAFETY: every x86-64 processor has SSE.
        unsafe { _mm_add_ps(a, b) }
    }

    /// [`super::max_f32`] on four lanes.
    #[inline(always)]
    pub fn max(a: __m128, b: __m128) -> __m128 {
        // SAFETY: every x86-64 processor has SSE.
        unsafe {
            let only_b = _mm_andnot_ps(_mm_cmpunord_ps(a, a), _mm_cmpunord_ps(b, b));
            let take_b = _mm_or_ps(_mm_cmplt_ps(a, b), only_b);
            _mm_or_ps(_mm_and_ps(take_b, b), _mm_andnot_ps(take_b, a))
        }
    }

    #[inline(always)]
    pub fn finish(lanes: &[f32; LANES], combine: impl Fn(__m128, __m128) -> __m128) -> f32 {
        // SAFETY: every x86-64 processor has SSE, and each load is of four lanes.
        unsafe {
            let mut fours = [_mm_setzero_ps(); LANES / 4];
            for (four, from) in fours.iter_mut().zip(lanes.as_chunks::<4>().0) {
                *four = _mm_loadu_ps(from.as_ptr());
            }
            let mut half = fours.len() / 2;
            while half > 0 {
                for i in 0..half {
                    fours[i] = combine(fours[i], fours[i + half]);
                }
                half /= 2;
            }
            let two = combine(fours[0], _mm_movehl_ps(fours[0], fours[0]));
            _mm_cvtss_f32(combine(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }
}

struct ReduceRowsBody<F>(PhantomData<F>);

impl<F: Fold> Body for ReduceRowsBody<F> {
    type Args = ReduceRows;

    #[inline(always)]
    unsafe fn run(args: &ReduceRows) {
        // SAFETY: the arguments say that these are there and do not overlap.
        let (to, from): (&mut [F::T], &[F::T]) = unsafe {
            (from_raw_parts_mut(args.to.cast(), args.rows), from_raw_parts(args.from.cast(), args.rows * args.width))
        };
        if args.width == 1 {
            for (y, x) in to.iter_mut().zip(from) {
                *y = F::combine(F::START, *x);
            }
            return;
        }
        for (row, y) in to.iter_mut().enumerate() {
            let mut lanes = [F::START; LANES];
            accumulate::<F>(&mut lanes, &from[row * args.width..(row + 1) * args.width]);
            *y = F::finish(&lanes);
        }
    }
}

struct AccumulateBody<F>(PhantomData<F>);

impl<F: Fold> Body for AccumulateBody<F> {
    type Args = Accumulate;

    #[inline(always)]
    unsafe fn run(args: &Accumulate) {
        // SAFETY: the arguments say that these are there and do not overlap; every content of a lane is as wide.
        let (into, from) =
            unsafe { (&mut *(*args.into).lanes.as_mut_ptr().cast(), from_raw_parts(args.from.cast(), args.n)) };
        if args.first == 0 {
            *into = [F::START; LANES];
        }
        accumulate::<F>(into, from);
    }
}

struct FinishBody<F>(PhantomData<F>);

impl<F: Fold> Body for FinishBody<F> {
    type Args = Finish;

    #[inline(always)]
    unsafe fn run(args: &Finish) {
        // SAFETY: the arguments say that both are there; every content of a lane is as wide.
        unsafe { *args.to.cast() = F::finish(&*(*args.from).lanes.as_ptr().cast()) }
    }
}

struct FoldRowsBody<F>(PhantomData<F>);

impl<F: Fold> Body for FoldRowsBody<F> {
    type Args = FoldRows;

    #[inline(always)]
    unsafe fn run(args: &FoldRows) {
        // SAFETY: the arguments say that these are there and do not overlap.
        let (into, from): (&mut [F::T], &[F::T]) = unsafe {
            (from_raw_parts_mut(args.into.cast(), args.width), from_raw_parts(args.from.cast(), args.rows * args.width))
        };
        let (blocks, rest) = into.as_chunks_mut::<LANES>();
        let after = blocks.len() * LANES;
        for (index, block) in blocks.iter_mut().enumerate() {
            let mut sums = *block;
            for row in 0..args.rows {
                let at = row * args.width + index * LANES;
                let x: &[F::T; LANES] = from[at..at + LANES].try_into().expect("a block");
                for i in 0..LANES {
                    sums[i] = F::combine(sums[i], x[i]);
                }
            }
            *block = sums;
        }
        for row in 0..args.rows {
            for (sum, x) in rest.iter_mut().zip(&from[row * args.width + after..(row + 1) * args.width]) {
                *sum = F::combine(*sum, *x);
            }
        }
    }
}

/// What `ArgMax` compares.
trait Ordered: Lane {
    const LEAST: Self;
    /// Whether this is larger, NaN being the largest.
    fn above(self, other: Self) -> bool;
}

impl Ordered for f32 {
    const LEAST: f32 = f32::NEG_INFINITY;
    #[inline(always)]
    fn above(self, other: f32) -> bool {
        self > other || (self.is_nan() & !other.is_nan())
    }
}

impl Ordered for i32 {
    const LEAST: i32 = i32::MIN;
    #[inline(always)]
    fn above(self, other: i32) -> bool {
        self > other
    }
}

impl Ordered for u32 {
    const LEAST: u32 = 0;
    #[inline(always)]
    fn above(self, other: u32) -> bool {
        self > other
    }
}

/// The largest in each lane and where it is.
#[derive(Clone, Copy)]
#[repr(C)]
struct Best<T> {
    values: [T; LANES],
    indices: [u32; LANES],
}

impl<T: Ordered> Best<T> {
    #[inline(always)]
    fn new() -> Best<T> {
        Best { values: [T::LEAST; LANES], indices: std::array::from_fn(|i| i as u32) }
    }

    /// Takes the elements from position `first` on, a multiple of `LANES`.
    #[inline(always)]
    fn accumulate(&mut self, from: &[T], first: usize) {
        let (blocks, rest) = from.as_chunks::<LANES>();
        let mut best = *self;
        for (index, block) in blocks.iter().enumerate() {
            let at = (first + index * LANES) as u32;
            for (i, x) in block.iter().enumerate() {
                let above = x.above(best.values[i]);
                best.values[i] = if above { *x } else { best.values[i] };
                best.indices[i] = if above { at + i as u32 } else { best.indices[i] };
            }
        }
        *self = best;
        let at = (first + blocks.len() * LANES) as u32;
        for (i, x) in rest.iter().enumerate() {
            if x.above(self.values[i]) {
                (self.values[i], self.indices[i]) = (*x, at + i as u32);
            }
        }
    }

    #[inline(always)]
    fn finish(&self) -> u32 {
        let (mut value, mut index) = (self.values[0], self.indices[0]);
        for i in 1..LANES {
            let (v, at) = (self.values[i], self.indices[i]);
            if v.above(value) || (!value.above(v) && at < index) {
                (value, index) = (v, at);
            }
        }
        index
    }
}

struct ArgMaxRowsBody<T>(PhantomData<T>);

impl<T: Ordered> Body for ArgMaxRowsBody<T> {
    type Args = ReduceRows;

    #[inline(always)]
    unsafe fn run(args: &ReduceRows) {
        for row in 0..args.rows {
            let mut best = Best::<T>::new();
            // SAFETY: the arguments say that the rows are there, and a result for each.
            unsafe {
                best.accumulate(from_raw_parts(args.from.add(row * args.width).cast(), args.width), 0);
                *args.to.add(row) = best.finish();
            }
        }
    }
}

struct ArgMaxAccumulateBody<T>(PhantomData<T>);

impl<T: Ordered> Body for ArgMaxAccumulateBody<T> {
    type Args = Accumulate;

    #[inline(always)]
    unsafe fn run(args: &Accumulate) {
        // SAFETY: the arguments say that these are there and do not overlap; `Best` has the layout of the accumulator.
        let (best, from) = unsafe { (&mut *args.into.cast::<Best<T>>(), from_raw_parts(args.from.cast(), args.n)) };
        if args.first == 0 {
            *best = Best::new();
        }
        best.accumulate(from, args.first);
    }
}

struct ArgMaxFinishBody<T>(PhantomData<T>);

impl<T: Ordered> Body for ArgMaxFinishBody<T> {
    type Args = Finish;

    #[inline(always)]
    unsafe fn run(args: &Finish) {
        // SAFETY: the arguments say that both are there; `Best` has the layout of the accumulator.
        unsafe { *args.to = (*args.from.cast::<Best<T>>()).finish() }
    }
}

/// The kernels of one reduction.
#[derive(Clone, Copy)]
pub struct Reduction {
    /// Whole rows at once.
    pub rows: Kernel<ReduceRows>,
    /// A row piece by piece.
    pub accumulate: Kernel<Accumulate>,
    /// The result of the pieces.
    pub finish: Kernel<Finish>,
    /// Over rows; absent for `ArgMax`.
    pub columns: Option<Columns>,
}

/// The kernel of a column reduction.
#[derive(Clone, Copy)]
pub struct Columns {
    /// Takes rows.
    pub fold: Kernel<FoldRows>,
    /// The bits of the result over nothing.
    pub start: u32,
}

fn fold<F: Fold>(start: u32) -> Reduction {
    Reduction {
        rows: Kernel::new::<ReduceRowsBody<F>>(),
        accumulate: Kernel::new::<AccumulateBody<F>>(),
        finish: Kernel::new::<FinishBody<F>>(),
        columns: Some(Columns { fold: Kernel::new::<FoldRowsBody<F>>(), start }),
    }
}

fn argmax<T: Ordered>() -> Reduction {
    Reduction {
        rows: Kernel::new::<ArgMaxRowsBody<T>>(),
        accumulate: Kernel::new::<ArgMaxAccumulateBody<T>>(),
        finish: Kernel::new::<ArgMaxFinishBody<T>>(),
        columns: None,
    }
}

/// The kernels that reduce elements of type `dtype`, before rounding to bf16.
pub fn reduction(op: ReduceOp, dtype: DType) -> Reduction {
    match (op, dtype) {
        (ReduceOp::Sum, DType::F32 | DType::BF16) => fold::<SumF32>(0),
        (ReduceOp::Sum, DType::I32 | DType::U32 | DType::Bool) => fold::<SumU32>(0),
        (ReduceOp::Sum, DType::U8) => fold::<SumU8>(0),
        (ReduceOp::Max, DType::F32 | DType::BF16) => fold::<MaxF32>(f32::NEG_INFINITY.to_bits()),
        (ReduceOp::Max, DType::I32) => fold::<MaxI32>(i32::MIN.cast_unsigned()),
        (ReduceOp::Max, DType::U32 | DType::U8 | DType::Bool) => fold::<MaxU32>(0),
        (ReduceOp::ArgMax, DType::F32 | DType::BF16) => argmax::<f32>(),
        (ReduceOp::ArgMax, DType::I32) => argmax::<i32>(),
        (ReduceOp::ArgMax, DType::U32 | DType::U8 | DType::Bool) => argmax::<u32>(),
    }
}

/// The bits of the result of a reduction over nothing.
pub fn over_nothing(op: ReduceOp, dtype: DType) -> u32 {
    reduction(op, dtype).columns.map_or(0, |columns| columns.start)
}
