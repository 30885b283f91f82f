//! Moving elements between buffers and lanes, through strided windows, and generating them from their position.

use std::marker::PhantomData;
use std::slice::{from_raw_parts, from_raw_parts_mut};

use smallvec::{SmallVec, smallvec};
use tenon_graph::lower::access::Strided;
use tenon_graph::types::{DType, MAX_RANK};

use super::kernel::{Body, Indices, Kernel, Load, RandomBits, Store};
use crate::math::round_to_bf16;

/// Where elements lie in a buffer, in order: an offset and a loop nest of (size, stride), outermost first, in elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    offset: usize,
    runs: SmallVec<[(usize, usize); 4]>,
}

impl Window {
    /// The window of a strided view.
    pub fn new(strided: &Strided) -> Window {
        Window { offset: strided.offset, runs: strided.runs() }
    }

    /// Elements evenly spaced from the first of the buffer on.
    pub fn spaced(size: usize, stride: usize) -> Window {
        Window { offset: 0, runs: smallvec![(size, stride)] }
    }

    /// Whether all elements are one.
    pub fn is_uniform(&self) -> bool {
        self.runs.iter().all(|(_, stride)| *stride == 0)
    }

    /// Whether the elements lie one after the other.
    pub fn is_contiguous(&self) -> bool {
        matches!(self.runs.as_slice(), [] | [(_, 1)])
    }

    /// Where element `first` is if they lie one after the other.
    pub fn place(&self, first: usize) -> usize {
        debug_assert!(self.is_contiguous());
        self.offset + first
    }

    /// After how many elements a row of a buffer is read again from its start, if nothing else is read.
    pub fn period(&self) -> Option<usize> {
        match self.runs.as_slice() {
            [(_, 0), (size, 1)] => Some(*size),
            _ => None,
        }
    }

    /// The window of one element per row where each of the rows of `cols` elements repeats one.
    pub fn per_row(&self, cols: usize) -> Option<Window> {
        let mut runs = self.runs.clone();
        let mut left = cols;
        while left > 1 {
            let (size, stride) = runs.pop()?;
            if stride != 0 {
                return None;
            }
            if size > left {
                if !size.is_multiple_of(left) {
                    return None;
                }
                runs.push((size / left, 0));
                left = 1;
            } else if left.is_multiple_of(size) {
                left /= size;
            } else {
                return None;
            }
        }
        Some(Window { offset: self.offset, runs })
    }

    /// Calls `visit` with (element of the buffer, stride, how many) for each evenly spaced piece of the elements
    /// `first..first + n`, in order.
    #[inline]
    pub fn pieces(&self, first: usize, n: usize, mut visit: impl FnMut(usize, usize, usize)) {
        let Some((inner, outer)) = self.runs.split_last() else {
            return visit(self.offset, 0, n);
        };
        let (size, stride) = *inner;
        let mut index = [0usize; MAX_RANK + 1];
        let mut place = self.offset;
        let mut at = first % size;
        if !outer.is_empty() {
            let mut rest = first / size;
            for (i, (size, stride)) in outer.iter().enumerate().rev() {
                index[i] = rest % size;
                rest /= size;
                place += index[i] * stride;
            }
        }
        let mut left = n;
        loop {
            let count = left.min(size - at);
            visit(place + at * stride, stride, count);
            left -= count;
            if left == 0 {
                return;
            }
            at = 0;
            for (i, (size, stride)) in outer.iter().enumerate().rev() {
                index[i] += 1;
                place += stride;
                if index[i] < *size {
                    break;
                }
                index[i] = 0;
                place -= size * stride;
            }
        }
    }

    /// Where the elements `first..first + n` start if they lie one after the other.
    #[inline]
    pub fn contiguous_piece(&self, first: usize, n: usize) -> Option<usize> {
        let (size, stride) = *self.runs.last()?;
        if stride != 1 {
            return None;
        }
        if self.runs.len() == 1 {
            return Some(self.offset + first);
        }
        if first % size + n > size {
            return None;
        }
        let mut start = 0;
        self.pieces(first, n, |at, _, _| start = at);
        Some(start)
    }
}

/// How elements of one type are read and written.
#[derive(Clone, Copy)]
pub struct Format {
    /// Bytes of an element.
    pub size: usize,
    load: Kernel<Load>,
    store: Kernel<Store>,
}

/// An element as it lies in memory.
trait Element: Copy {
    fn widen(self) -> u32;
    fn narrow(lane: u32) -> Self;
}

impl Element for u32 {
    #[inline(always)]
    fn widen(self) -> u32 {
        self
    }
    #[inline(always)]
    fn narrow(lane: u32) -> u32 {
        lane
    }
}

/// A bf16: the upper half of an `f32`.
impl Element for u16 {
    #[inline(always)]
    fn widen(self) -> u32 {
        u32::from(self) << 16
    }
    #[inline(always)]
    fn narrow(lane: u32) -> u16 {
        (round_to_bf16(f32::from_bits(lane)).to_bits() >> 16) as u16
    }
}

impl Element for u8 {
    #[inline(always)]
    fn widen(self) -> u32 {
        u32::from(self)
    }
    #[inline(always)]
    fn narrow(lane: u32) -> u8 {
        lane as u8
    }
}

struct LoadBody<E>(PhantomData<E>);

impl<E: Element> Body for LoadBody<E> {
    type Args = Load;

    #[inline(always)]
    unsafe fn run(args: &Load) {
        let from: *const E = args.from.cast();
        // SAFETY: the arguments say that `n` lanes and, `stride` apart, `n` elements are there and do not overlap.
        unsafe {
            let to = from_raw_parts_mut(args.to, args.n);
            match args.stride {
                1 => widen(to, from_raw_parts(from, args.n)),
                0 => to.fill((*from).widen()),
                stride => {
                    for (i, y) in to.iter_mut().enumerate() {
                        *y = (*from.add(i * stride)).widen();
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn widen<E: Element>(to: &mut [u32], from: &[E]) {
    for (y, x) in to.iter_mut().zip(from) {
        *y = x.widen();
    }
}

struct StoreBody<E>(PhantomData<E>);

impl<E: Element> Body for StoreBody<E> {
    type Args = Store;

    #[inline(always)]
    unsafe fn run(args: &Store) {
        // SAFETY: the arguments say that `n` lanes and `n` elements are there and do not overlap.
        unsafe { narrow(from_raw_parts_mut(args.to.cast::<E>(), args.n), from_raw_parts(args.from, args.n)) }
    }
}

#[inline(always)]
fn narrow<E: Element>(to: &mut [E], from: &[u32]) {
    for (y, x) in to.iter_mut().zip(from) {
        *y = E::narrow(*x);
    }
}

impl Format {
    /// The format of an element type.
    pub fn new(dtype: DType) -> Format {
        fn of<E: Element>() -> Format {
            Format { size: size_of::<E>(), load: Kernel::new::<LoadBody<E>>(), store: Kernel::new::<StoreBody<E>>() }
        }
        match dtype {
            DType::F32 | DType::I32 | DType::U32 => of::<u32>(),
            DType::BF16 => of::<u16>(),
            DType::U8 | DType::Bool => of::<u8>(),
        }
    }

    /// Reads the elements `first..first + n` of `window` of the buffer at `from` into the lanes at `to`.
    ///
    /// # Safety
    /// The elements and lanes are there and do not overlap; the processor has `isa`.
    pub unsafe fn load(
        &self,
        isa: crate::isa::Isa,
        window: &Window,
        from: *const u8,
        first: usize,
        n: usize,
        to: *mut u32,
    ) {
        let (kernel, mut to) = (self.load.get(isa), to);
        // SAFETY: the window stays within the buffer, and the pieces have `n` elements together.
        window.pieces(first, n, |at, stride, n| unsafe {
            kernel(&Load { to, from: from.add(at * self.size), stride, n });
            to = to.add(n);
        });
    }

    /// Writes `n` lanes as elements from `first` on of the buffer at `to`, unless they are there already.
    ///
    /// # Safety
    /// The elements and lanes are there and do not overlap unless they are the same; the processor has `isa`.
    pub unsafe fn store(&self, isa: crate::isa::Isa, from: *const u32, to: *mut u8, first: usize, n: usize) {
        // SAFETY: the caller says that the elements are there.
        let to = unsafe { to.add(first * self.size) };
        if to.cast_const() != from.cast() {
            // SAFETY: as the caller says.
            unsafe { self.store.get(isa)(&Store { to, from, n }) };
        }
    }
}

/// What gives each element the index of its position along an axis.
#[derive(Clone, Debug)]
pub struct Positions {
    /// The position of each element in the value that counts.
    pub window: Window,
    /// Positions that share an index.
    pub divide: usize,
    /// The number of indices.
    pub modulo: usize,
}

impl Positions {
    /// Writes the indices of the elements `first..first + n` at `to`.
    ///
    /// # Safety
    /// The lanes are there; the processor has `isa`.
    pub unsafe fn write(&self, isa: crate::isa::Isa, first: usize, n: usize, mut to: *mut u32) {
        let kernel = Kernel::new::<IndicesBody>().get(isa);
        self.window.pieces(first, n, |at, stride, n| {
            let (mut at, mut left) = (at, n);
            while left > 0 {
                let index = at / self.divide % self.modulo;
                let (increment, count) = match (stride, self.divide) {
                    (0, _) => (0, left),
                    (stride, 1) => (stride, (self.modulo - index).div_ceil(stride)),
                    (stride, divide) => (0, (divide - at % divide).div_ceil(stride)),
                };
                let count = count.min(left);
                // SAFETY: the pieces have `n` elements together.
                unsafe {
                    kernel(&Indices { to, first: index as u32, increment: increment as u32, n: count });
                    to = to.add(count);
                }
                at += count * stride;
                left -= count;
            }
        });
    }
}

struct IndicesBody;

impl Body for IndicesBody {
    type Args = Indices;

    #[inline(always)]
    unsafe fn run(args: &Indices) {
        // SAFETY: the arguments say that `n` lanes are there.
        let to = unsafe { from_raw_parts_mut(args.to, args.n) };
        for (y, i) in to.iter_mut().zip(0u32..) {
            *y = args.first + i * args.increment;
        }
    }
}

struct RandomBody;

impl Body for RandomBody {
    type Args = RandomBits;

    #[inline(always)]
    unsafe fn run(args: &RandomBits) {
        // SAFETY: the arguments say that `n` lanes are there.
        let to = unsafe { from_raw_parts_mut(args.to, args.n) };
        for (i, y) in to.iter_mut().enumerate() {
            let index = args.first + i as u64;
            *y = philox([index as u32, (index >> 32) as u32], args.key);
        }
    }
}

/// The kernel of random bits.
pub fn random_kernel() -> Kernel<RandomBits> {
    Kernel::new::<RandomBody>()
}

/// The first word of `tenon_graph::random::philox2x32`, here so that it becomes part of a vector loop.
#[inline(always)]
fn philox(counter: [u32; 2], key: u32) -> u32 {
    const MULTIPLIER: u64 = 0xD256_D193;
    const WEYL: u32 = 0x9E37_79B9;
    let ([mut a, mut b], mut key) = (counter, key);
    for _ in 0..10 {
        let product = MULTIPLIER * u64::from(a);
        (a, b) = ((product >> 32) as u32 ^ key ^ b, product as u32);
        key = key.wrapping_add(WEYL);
    }
    a
}
