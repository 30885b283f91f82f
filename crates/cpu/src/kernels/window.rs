//! Where windows lie on an input: shared by pooling and convolution. One and two spatial axes are three, the first of
//! size one.

use super::view::{DType, View};
use crate::simd::{Float, LANES, Lanes, narrow, widen};
use std::ops::Range;
use tenon_graph::op::Window;

/// The window on an axis that is not there.
const NONE: Window = Window { size: 1, stride: 1, dilation: 1, low: 0, high: 0 };

/// Windows over `[n, d, h, w, c]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Geometry {
    pub n: usize,
    pub input: [usize; 3],
    pub output: [usize; 3],
    pub windows: [Window; 3],
}

impl Geometry {
    /// Windows over an input of shape `[n, spatial.., c]`.
    ///
    /// # Panics
    /// If there are no or more than three spatial axes, or a window does not fit.
    pub(super) fn new(input: &[usize], windows: &[Window]) -> Geometry {
        let axes = windows.len();
        assert!(
            (1..=3).contains(&axes) && input.len() == axes + 2,
            "windows over {axes} axes of {input:?}; one, two or three between batch and channels are supported"
        );
        let mut geometry = Geometry { n: input[0], input: [1; 3], output: [1; 3], windows: [NONE; 3] };
        for (i, window) in windows.iter().enumerate() {
            let axis = 3 - axes + i;
            geometry.input[axis] = input[1 + i];
            geometry.windows[axis] = *window;
            let outputs = window.outputs(input[1 + i]);
            geometry.output[axis] = outputs.unwrap_or_else(|| panic!("no {window:?} fits on {}", input[1 + i]));
        }
        geometry
    }

    /// Elements of a window.
    pub(super) fn taps(&self) -> usize {
        self.windows.iter().map(|window| window.size).product()
    }

    /// Input pixels of one batch entry.
    pub(super) fn inputs(&self) -> usize {
        self.input.iter().product()
    }

    /// Output pixels of one batch entry.
    pub(super) fn outputs(&self) -> usize {
        self.output.iter().product()
    }

    /// The element of an axis' input that element `tap` of window `output` is; `None` in the padding.
    #[inline(always)]
    pub(super) fn reads(&self, axis: usize, output: usize, tap: usize) -> Option<usize> {
        let window = &self.windows[axis];
        let at = (output * window.stride + tap * window.dilation).checked_sub(window.low)?;
        (at < self.input[axis]).then_some(at)
    }

    /// The window of an axis whose element `tap` is `input`.
    #[inline(always)]
    pub(super) fn window_of(&self, axis: usize, input: usize, tap: usize) -> Option<usize> {
        let window = &self.windows[axis];
        let at = (input + window.low).checked_sub(tap * window.dilation)?;
        (at.is_multiple_of(window.stride) && at / window.stride < self.output[axis]).then_some(at / window.stride)
    }

    /// The elements of a window that are not padding: how many.
    #[inline(always)]
    pub(super) fn valid(&self, output: [usize; 3]) -> usize {
        let along = |axis: usize| {
            (0..self.windows[axis].size).filter(|tap| self.reads(axis, output[axis], *tap).is_some()).count()
        };
        along(0) * along(1) * along(2)
    }

    /// Calls `visit(tap, input)` for the elements of a window that are not padding, taps ascending.
    #[inline(always)]
    pub(super) fn for_taps(&self, output: [usize; 3], mut visit: impl FnMut(usize, [usize; 3])) {
        for d in 0..self.windows[0].size {
            let Some(z) = self.reads(0, output[0], d) else { continue };
            for h in 0..self.windows[1].size {
                let Some(y) = self.reads(1, output[1], h) else { continue };
                for w in 0..self.windows[2].size {
                    let Some(x) = self.reads(2, output[2], w) else { continue };
                    visit((d * self.windows[1].size + h) * self.windows[2].size + w, [z, y, x]);
                }
            }
        }
    }

    /// The windows of an axis whose first to last element has `input` between them.
    #[inline(always)]
    fn windows_around(&self, axis: usize, input: usize) -> Range<usize> {
        let window = &self.windows[axis];
        let (at, extent) = (input + window.low, (window.size - 1) * window.dilation);
        at.saturating_sub(extent).div_ceil(window.stride)..(at / window.stride + 1).min(self.output[axis])
    }

    /// The element of one of [`Geometry::windows_around`] that is `input`; `None` if dilation skips it.
    #[inline(always)]
    fn element(&self, axis: usize, output: usize, input: usize) -> Option<usize> {
        let window = &self.windows[axis];
        let back = input + window.low - output * window.stride;
        match window.dilation {
            1 => Some(back),
            dilation => back.is_multiple_of(dilation).then_some(back / dilation),
        }
    }

    /// Calls `visit(tap, output)` for the windows that an input is an element of, windows ascending.
    #[inline(always)]
    pub(super) fn for_windows(&self, input: [usize; 3], mut visit: impl FnMut(usize, [usize; 3])) {
        let [around_z, around_y, around_x] = [0, 1, 2].map(|axis: usize| self.windows_around(axis, input[axis]));
        for z in around_z {
            let Some(d) = self.element(0, z, input[0]) else { continue };
            for y in around_y.clone() {
                let Some(h) = self.element(1, y, input[1]) else { continue };
                for x in around_x.clone() {
                    let Some(w) = self.element(2, x, input[2]) else { continue };
                    visit((d * self.windows[1].size + h) * self.windows[2].size + w, [z, y, x]);
                }
            }
        }
    }
}

/// The place number `index` among `sizes`, the last axis fastest.
#[inline(always)]
pub(super) fn place(index: usize, sizes: [usize; 3]) -> [usize; 3] {
    [index / (sizes[1] * sizes[2]), index / sizes[2] % sizes[1], index % sizes[2]]
}

/// The number of a place among `sizes`.
#[inline(always)]
pub(super) fn number(place: [usize; 3], sizes: [usize; 3]) -> usize {
    (place[0] * sizes[1] + place[1]) * sizes[2] + place[2]
}

/// Pixels of an operand `[n, spatial.., c]` with contiguous channels.
#[derive(Clone, Copy)]
pub(super) struct Pixels {
    ptr: *mut u8,
    dtype: DType,
    strides: [usize; 4],
}

// SAFETY: it is only followed where the code that follows it argues for it.
unsafe impl Send for Pixels {}
// SAFETY: as above.
unsafe impl Sync for Pixels {}

impl Pixels {
    /// # Panics
    /// If it is no float or its channels are not contiguous.
    pub(super) fn of(name: &str, view: &View<'_>) -> Pixels {
        let rank = view.shape().len();
        assert!(view.dtype().is_float(), "{name} is {}, not a float", view.dtype());
        let dense = view.shape()[rank - 1] <= 1 || view.strides()[rank - 1] == 1;
        assert!(dense, "{name}'s channels are not contiguous");
        let mut strides = [0; 4];
        strides[0] = view.strides()[0];
        strides[6 - rank..].copy_from_slice(&view.strides()[1..rank - 1]);
        Pixels { ptr: view.bytes().get(), dtype: view.dtype(), strides }
    }

    /// The offset of a pixel's first channel.
    #[inline(always)]
    pub(super) fn offset(&self, n: usize, [z, y, x]: [usize; 3]) -> usize {
        n * self.strides[0] + z * self.strides[1] + y * self.strides[2] + x * self.strides[3]
    }

    /// Bytes from a pixel to the next along the last axis.
    pub(super) fn pixel_bytes(&self) -> usize {
        self.strides[3] * self.dtype.size()
    }

    /// The first byte of what is at an offset.
    #[inline(always)]
    pub(super) fn bytes(&self, offset: usize) -> *mut u8 {
        self.ptr.wrapping_add(offset * self.dtype.size())
    }

    /// The value at an offset.
    ///
    /// # Safety
    /// It exists.
    pub(super) unsafe fn get(&self, offset: usize) -> f32 {
        // SAFETY: as the caller says.
        unsafe {
            match self.dtype {
                DType::F32 => *self.ptr.cast::<f32>().add(offset),
                _ => widen(*self.ptr.cast::<u16>().add(offset)),
            }
        }
    }

    /// Writes the value at an offset.
    ///
    /// # Safety
    /// It exists in memory to be written, by this thread alone.
    pub(super) unsafe fn set(&self, offset: usize, x: f32) {
        // SAFETY: as the caller says.
        unsafe {
            match self.dtype {
                DType::F32 => *self.ptr.cast::<f32>().add(offset) = x,
                _ => *self.ptr.cast::<u16>().add(offset) = narrow(x),
            }
        }
    }

    /// `count <= 16` channels from an offset on, the other lanes 0.
    ///
    /// # Safety
    /// They exist.
    #[inline(always)]
    pub(super) unsafe fn load<V: Lanes>(&self, offset: usize, count: usize) -> V {
        debug_assert!(count <= LANES);
        // SAFETY: as the caller says.
        unsafe {
            match self.dtype {
                DType::F32 => f32::load_first(self.ptr.cast::<f32>().add(offset), count),
                _ => u16::load_first(self.ptr.cast::<u16>().add(offset), count),
            }
        }
    }

    /// Writes `count <= 16` channels from an offset on.
    ///
    /// # Safety
    /// They exist in memory to be written, by this thread alone.
    #[inline(always)]
    pub(super) unsafe fn store<V: Lanes>(&self, offset: usize, count: usize, x: V) {
        debug_assert!(count <= LANES);
        // SAFETY: as the caller says.
        unsafe {
            match self.dtype {
                DType::F32 => f32::store_first(x, self.ptr.cast::<f32>().add(offset), count),
                _ => u16::store_first(x, self.ptr.cast::<u16>().add(offset), count),
            }
        }
    }
}
