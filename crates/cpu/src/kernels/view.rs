//! Strided views of memory that the caller owns, and the scratch memory that kernels carve.

use std::marker::PhantomData;

use half::bf16;
pub use tenon_graph::types::{DType, MAX_RANK};

/// The sizes or strides of up to [`MAX_RANK`] axes, outermost first.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Axes {
    rank: u8,
    values: [usize; MAX_RANK],
}

impl Axes {
    /// These values.
    ///
    /// # Panics
    /// If there are more than [`MAX_RANK`].
    pub fn new(values: &[usize]) -> Axes {
        assert!(values.len() <= MAX_RANK, "{} axes are more than {MAX_RANK}", values.len());
        let mut all = [0; MAX_RANK];
        all[..values.len()].copy_from_slice(values);
        Axes { rank: values.len() as u8, values: all }
    }

    /// The strides, in elements, of a row-major value of this shape.
    pub fn row_major_strides(&self) -> Axes {
        let mut strides = *self;
        let mut step = 1;
        for axis in (0..self.len()).rev() {
            strides[axis] = step;
            step *= self[axis].max(1);
        }
        strides
    }
}

impl std::ops::Deref for Axes {
    type Target = [usize];
    fn deref(&self) -> &[usize] {
        &self.values[..usize::from(self.rank)]
    }
}

impl std::ops::DerefMut for Axes {
    fn deref_mut(&mut self) -> &mut [usize] {
        &mut self.values[..usize::from(self.rank)]
    }
}

impl std::fmt::Debug for Axes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self[..].fmt(f)
    }
}

/// A Rust type that is stored as a [`DType`].
pub trait Element: Copy + Send + Sync + 'static {
    /// The type in the graph.
    const DTYPE: DType;
}

macro_rules! element {
    ($($rust:ty => $dtype:ident),*) => { $(impl Element for $rust { const DTYPE: DType = DType::$dtype; })* };
}
element!(f32 => F32, bf16 => BF16, i32 => I32, u32 => U32, u8 => U8, bool => Bool);

/// A strided view to read: element `[i, j, ..]` is at `i * strides[0] + j * strides[1] + ..` elements from the pointer.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    ptr: *const u8,
    dtype: DType,
    shape: Axes,
    strides: Axes,
    memory: PhantomData<&'a [u8]>,
}

/// A strided view to write; no element is at two places.
#[derive(Debug)]
pub struct ViewMut<'a> {
    view: View<'a>,
    memory: PhantomData<&'a mut [u8]>,
}

// SAFETY: reading through a view is what `View::new`'s caller promised to be possible for its lifetime, by any thread.
unsafe impl Send for View<'_> {}
// SAFETY: as above.
unsafe impl Sync for View<'_> {}
// SAFETY: the view is the only access to its memory for its lifetime; it can move to another thread.
unsafe impl Send for ViewMut<'_> {}
// SAFETY: a shared reference to it gives raw pointers only; who follows them argues for disjointness.
unsafe impl Sync for ViewMut<'_> {}

impl<'a> View<'a> {
    /// A view of memory at `ptr`, aligned for `dtype`; strides in elements, 0 to repeat along an axis.
    ///
    /// # Safety
    /// Every element that shape and strides reach can be read and is not written for `'a`, and is a value of `dtype`
    /// (a `Bool` is 0 or 1).
    ///
    /// # Panics
    /// If shape and strides differ in rank.
    pub unsafe fn new(ptr: *const u8, dtype: DType, shape: &[usize], strides: &[usize]) -> View<'a> {
        assert_eq!(shape.len(), strides.len(), "a view of shape {shape:?} cannot have strides {strides:?}");
        View { ptr, dtype, shape: Axes::new(shape), strides: Axes::new(strides), memory: PhantomData }
    }

    /// A view of a slice.
    ///
    /// # Panics
    /// If shape and strides reach beyond it.
    pub fn of<T: Element>(data: &'a [T], shape: &[usize], strides: &[usize]) -> View<'a> {
        assert!(reach(shape, strides) <= data.len(), "{shape:?} by {strides:?} leaves {} elements", data.len());
        // SAFETY: inside the slice, as just checked, and of its type.
        unsafe { View::new(data.as_ptr().cast(), T::DTYPE, shape, strides) }
    }

    /// A row-major view of a slice.
    ///
    /// # Panics
    /// If the shape needs more elements than the slice has.
    pub fn row_major<T: Element>(data: &'a [T], shape: &[usize]) -> View<'a> {
        View::of(data, shape, &Axes::new(shape).row_major_strides())
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The sizes.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The strides in elements.
    pub fn strides(&self) -> &[usize] {
        &self.strides
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.shape.contains(&0)
    }

    /// The first element, for reading elements of type `T`.
    ///
    /// # Panics
    /// If the elements are not of `T`'s size.
    pub(crate) fn ptr<T>(&self) -> *const T {
        assert_eq!(size_of::<T>(), self.dtype.size(), "{} read at another size", self.dtype);
        self.ptr.cast()
    }

    /// The first element's first byte.
    pub(crate) fn bytes(&self) -> Pointer<u8> {
        Pointer(self.ptr.cast_mut())
    }

    /// Elements `start, start + step, ..` along one axis, `size` of them.
    ///
    /// # Panics
    /// If they are not all there.
    pub fn slice(&self, axis: usize, start: usize, size: usize, step: usize) -> View<'a> {
        let whole = self.shape[axis];
        assert!(
            size == 0 || (step > 0 && start + (size - 1) * step < whole),
            "{size} elements from {start} by {step} of axis {axis} leave {:?}",
            self.shape
        );
        let mut part = *self;
        if size > 0 {
            // SAFETY: the first element of the slice is an element of the view.
            part.ptr = unsafe { self.ptr.add(start * self.strides[axis] * self.dtype.size()) };
        }
        part.shape[axis] = size;
        part.strides[axis] *= step;
        part
    }

    /// The first `size` elements along one axis, or, for a caller that will not follow the others, any number.
    pub(crate) fn with_size(mut self, axis: usize, size: usize) -> View<'a> {
        self.shape[axis] = size;
        self
    }

    /// The same with another stride along one axis.
    pub(crate) fn with_stride(mut self, axis: usize, stride: usize) -> View<'a> {
        self.strides[axis] = stride;
        self
    }

    /// The first elements along all axes but the leading ones, which stay.
    pub(crate) fn leading(mut self, axes: usize) -> View<'a> {
        (self.shape.rank, self.strides.rank) = (axes as u8, axes as u8);
        self
    }

    /// The offset, in elements, of the `place`-th element in row-major order.
    #[inline(always)]
    pub(crate) fn offset(&self, mut place: usize) -> usize {
        let mut offset = 0;
        for (size, stride) in self.shape.iter().zip(self.strides.iter()).rev() {
            offset += place % size * stride;
            place /= size;
        }
        offset
    }

    /// The same view with axes in another order: axis `i` is axis `order[i]` of this.
    ///
    /// # Panics
    /// If `order` is not a permutation of the axes.
    pub fn permute(&self, order: &[usize]) -> View<'a> {
        let mut seen = [false; MAX_RANK];
        order.iter().for_each(|&axis| seen[axis] = true);
        assert!(order.len() == self.shape.len() && seen[..order.len()].iter().all(|s| *s), "{order:?} is no order");
        let mut part = *self;
        for (i, &axis) in order.iter().enumerate() {
            part.shape[i] = self.shape[axis];
            part.strides[i] = self.strides[axis];
        }
        part
    }

    /// Whether the elements lie in row-major order without gaps.
    pub fn is_row_major(&self) -> bool {
        let dense = self.shape.row_major_strides();
        self.is_empty() || (0..self.shape.len()).all(|i| self.shape[i] == 1 || self.strides[i] == dense[i])
    }
}

impl<'a> ViewMut<'a> {
    /// A view of memory at `ptr`, aligned for `dtype`; strides in elements.
    ///
    /// # Safety
    /// Every element that shape and strides reach can be written, by this view alone for `'a`; no two elements overlap.
    ///
    /// # Panics
    /// If shape and strides differ in rank.
    pub unsafe fn new(ptr: *mut u8, dtype: DType, shape: &[usize], strides: &[usize]) -> ViewMut<'a> {
        // SAFETY: as the caller says; what can be written can be read.
        ViewMut { view: unsafe { View::new(ptr, dtype, shape, strides) }, memory: PhantomData }
    }

    /// A view of a slice.
    ///
    /// # Panics
    /// If shape and strides reach beyond it, or the strides do not visibly keep elements apart: sorted, each must be at
    /// least the extent of the ones below it.
    pub fn of<T: Element>(data: &'a mut [T], shape: &[usize], strides: &[usize]) -> ViewMut<'a> {
        assert!(reach(shape, strides) <= data.len(), "{shape:?} by {strides:?} leaves {} elements", data.len());
        let mut axes: Vec<_> = strides.iter().zip(shape).filter(|(_, n)| **n > 1).map(|(s, n)| (*s, *n)).collect();
        axes.sort_unstable();
        axes.iter().fold(1, |extent, (stride, n)| {
            assert!(*stride >= extent, "elements of {shape:?} by {strides:?} overlap");
            extent + stride * (n - 1)
        });
        // SAFETY: inside the slice and apart from each other, as just checked.
        unsafe { ViewMut::new(data.as_mut_ptr().cast(), T::DTYPE, shape, strides) }
    }

    /// A row-major view of a slice.
    ///
    /// # Panics
    /// If the shape needs more elements than the slice has.
    pub fn row_major<T: Element>(data: &'a mut [T], shape: &[usize]) -> ViewMut<'a> {
        ViewMut::of(data, shape, &Axes::new(shape).row_major_strides())
    }

    /// The same elements, to read while this view is not written.
    pub fn read(&self) -> View<'_> {
        self.view
    }

    /// The same view again, as long as this one is not used.
    pub fn reborrow(&mut self) -> ViewMut<'_> {
        ViewMut { view: self.view, memory: PhantomData }
    }

    /// Elements `start, start + step, ..` along one axis, `size` of them.
    ///
    /// # Panics
    /// If they are not all there.
    pub fn slice(&mut self, axis: usize, start: usize, size: usize, step: usize) -> ViewMut<'_> {
        ViewMut { view: self.view.slice(axis, start, size, step), memory: PhantomData }
    }

    /// The first element, for writing elements of type `T`.
    ///
    /// # Panics
    /// If the elements are not of `T`'s size.
    pub(crate) fn ptr<T>(&self) -> *mut T {
        self.view.ptr::<T>().cast_mut()
    }
}

impl<'a> std::ops::Deref for ViewMut<'a> {
    type Target = View<'a>;
    fn deref(&self) -> &View<'a> {
        &self.view
    }
}

/// One more than the greatest offset of an element, 0 for no elements.
fn reach(shape: &[usize], strides: &[usize]) -> usize {
    if shape.contains(&0) {
        return 0;
    }
    shape.iter().zip(strides).map(|(n, stride)| (n - 1) * stride).sum::<usize>() + 1
}

/// Bytes to which every piece of scratch is aligned.
const ALIGN: usize = 64;

/// The bytes that a piece of `n` elements of type `T` takes in scratch.
pub(crate) const fn piece<T>(n: usize) -> usize {
    (n * size_of::<T>()).next_multiple_of(ALIGN)
}

/// The bytes of scratch for `shared` bytes of pieces and `each` bytes of pieces per worker.
pub(crate) const fn scratch_bytes(shared: usize, each: usize, threads: usize) -> usize {
    let threads = if threads == 0 { 1 } else { threads };
    ALIGN + shared.next_multiple_of(ALIGN) + each.next_multiple_of(ALIGN) * threads
}

/// A pointer that tasks share.
#[derive(Clone, Copy)]
pub(crate) struct Pointer<T>(pub *mut T);

// SAFETY: it is only followed where the code that follows it argues for it.
unsafe impl<T> Send for Pointer<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Pointer<T> {}

impl<T> Pointer<T> {
    /// The pointer. A method, so that closures capture the wrapper.
    pub(crate) fn get(&self) -> *mut T {
        self.0
    }
}

/// Scratch memory divided into a shared part and one part for each worker.
#[derive(Clone, Copy)]
pub(crate) struct Scratch<'a> {
    base: *mut u8,
    shared: usize,
    each: usize,
    memory: PhantomData<&'a mut [u8]>,
}

// SAFETY: only raw pointers come out of it; who follows them argues for disjointness.
unsafe impl Send for Scratch<'_> {}
// SAFETY: as above.
unsafe impl Sync for Scratch<'_> {}

impl<'a> Scratch<'a> {
    /// Divides `memory`.
    ///
    /// # Panics
    /// If it is smaller than [`scratch_bytes`] says.
    pub(crate) fn new(memory: &'a mut [u8], shared: usize, each: usize, threads: usize) -> Scratch<'a> {
        let needed = scratch_bytes(shared, each, threads);
        assert!(memory.len() >= needed, "{} bytes of scratch, {needed} needed", memory.len());
        let skip = memory.as_ptr().align_offset(ALIGN);
        // SAFETY: `skip` is below ALIGN, which `needed` includes.
        let base = unsafe { memory.as_mut_ptr().add(skip) };
        let (shared, each) = (shared.next_multiple_of(ALIGN), each.next_multiple_of(ALIGN));
        Scratch { base, shared, each, memory: PhantomData }
    }

    /// The pieces that all workers share.
    pub(crate) fn shared(&self) -> Pieces {
        Pieces { next: self.base, left: self.shared }
    }

    /// The pieces of one worker.
    pub(crate) fn worker(&self, worker: usize) -> Pieces {
        // SAFETY: the memory has room for every worker of the pool it was measured for.
        Pieces { next: unsafe { self.base.add(self.shared + worker * self.each) }, left: self.each }
    }
}

/// Pieces of scratch, taken one after the other.
pub(crate) struct Pieces {
    next: *mut u8,
    left: usize,
}

impl Pieces {
    /// Room for `n` elements of type `T`, aligned to [`ALIGN`]; its contents are whatever was there.
    ///
    /// # Panics
    /// If the room was not asked for.
    pub(crate) fn take<T>(&mut self, n: usize) -> *mut T {
        let bytes = piece::<T>(n);
        assert!(bytes <= self.left, "scratch of {} bytes asked for {bytes}", self.left);
        let start = self.next;
        // SAFETY: within the part, as just checked.
        self.next = unsafe { start.add(bytes) };
        self.left -= bytes;
        start.cast()
    }

    /// What is left, aligned to [`ALIGN`], and how many bytes.
    pub(crate) fn rest(&self) -> (*mut u8, usize) {
        (self.next, self.left)
    }
}
