//! What windows read, copied in the order of the product.

use super::Job;
use super::cut::{FEW_CHANNELS, Part};
use crate::gemm::bf16::{Lowest, widen_flushed};
use crate::gemm::micro::Lane;
use crate::simd::{LANES, Lanes, Task};
use std::ops::Range;

/// Copies what windows of a part read, and gives the lowest exponent.
pub(super) struct Copy<'a> {
    pub(super) job: &'a Job<'a>,
    pub(super) part: Part,
    /// `[group of channels][copy][lane][channel]`
    pub(super) to: *mut u32,
    /// From one group of channels to the next.
    pub(super) group_lanes: usize,
}

impl Task for Copy<'_> {
    type Output = Lowest;

    #[inline(always)]
    fn run<V: Lanes>(self) -> Lowest {
        let (cut, share, part) = (self.job.cut, &self.job.share, &self.part);
        let geometry = &cut.geometry;
        let heights = cut.heights(part);
        let (lanes, size) = (cut.copy_lanes(part), cut.spec.dtype.size());
        let pixel = cut.rows.all * size;
        let mut low = Lowest::NONE;
        let mut to = self.to;
        for d in 0..geometry.windows[0].size {
            let z = geometry.reads(0, part.at[0], d);
            for class in 0..heights.classes {
                if heights.least.is_some() && !(0..geometry.windows[1].size).any(|tap| cut.shift(tap).1 == class) {
                    to = to.wrapping_add(lanes * cut.width * share.places.len());
                    continue;
                }
                for place in share.places.clone() {
                    let row = |row: usize| -> *const u8 {
                        let window = geometry.windows[1];
                        let at = ((part.at[1] + row) * window.stride) as isize;
                        let y = match heights.least {
                            None => at + (class * window.dilation) as isize - window.low as isize,
                            Some(least) => at + least * window.stride as isize + class as isize,
                        };
                        match z {
                            Some(z) if (y as usize) < geometry.input[1] => {
                                let line = (part.n * geometry.input[0] + z) * geometry.input[1] + y as usize;
                                let channel = share.group * cut.rows.each + share.channels.start;
                                let at = line * geometry.input[2] * cut.rows.all + channel;
                                self.job.rows_of.wrapping_add(at * size)
                            }
                            _ => std::ptr::null(),
                        }
                    };
                    let window = geometry.windows[2];
                    let (start, before) = (part.at[2] * window.stride + place * window.dilation, window.low);
                    // The pixels whose element is not padding.
                    let inside =
                        |end: usize| (end + before).saturating_sub(start).div_ceil(window.stride).min(part.wide);
                    let run = Run {
                        inside: inside(0)..inside(geometry.input[2]),
                        start: start.wrapping_sub(before).wrapping_mul(pixel),
                        step: window.stride * pixel,
                    };
                    // SAFETY: pixels that exist, and the room that was measured for the copies.
                    low = low.and(unsafe {
                        if cut.width == LANES {
                            self.copy::<LANES>(to, heights.rows, row, &run)
                        } else {
                            self.copy::<FEW_CHANNELS>(to, heights.rows, row, &run)
                        }
                    });
                    to = to.wrapping_add(lanes * cut.width);
                }
            }
        }
        low
    }
}

/// What a place along the width reads of a row.
struct Run {
    /// The pixels of the part for which that is no padding.
    inside: Range<usize>,
    /// Bytes from the start of the row to what pixel 0 reads, wrapping, and from one to the next.
    start: usize,
    step: usize,
}

impl Run {
    /// What a pixel reads, or null.
    #[inline(always)]
    fn at<T>(&self, line: *const u8, col: usize) -> *const T {
        if line.is_null() || !self.inside.contains(&col) {
            return std::ptr::null();
        }
        line.wrapping_add(self.start).wrapping_add(col * self.step).cast()
    }
}

impl Copy<'_> {
    /// Writes one copy; `row` gives where a row starts, or null.
    ///
    /// # Safety
    /// The pixels exist, and so does the room.
    #[inline(always)]
    unsafe fn copy<const N: usize>(
        &self,
        to: *mut u32,
        rows: usize,
        row: impl Fn(usize) -> *const u8,
        run: &Run,
    ) -> Lowest {
        let (channels, wide, end) = (self.job.share.channels.len(), self.part.wide, self.job.rows_end);
        let mut low = Lowest::NONE;
        // SAFETY: the caller's.
        unsafe {
            match self.job.cut.lane {
                Lane::F32 => {
                    for r in 0..rows {
                        let line = row(r);
                        let inside = if line.is_null() { 0..0 } else { run.inside.clone() };
                        let to = to.add(r * wide * N);
                        for col in (0..inside.start).chain(inside.end..wide) {
                            for group in 0..channels.div_ceil(N) {
                                to.add(group * self.group_lanes + col * N).cast::<[u32; N]>().write_unaligned([0; N]);
                            }
                        }
                        for col in inside {
                            let from = line.wrapping_add(run.start).wrapping_add(col * run.step).cast();
                            for (group, channel) in (0..channels).step_by(N).enumerate() {
                                let to = to.add(group * self.group_lanes + col * N).cast::<[u32; N]>();
                                to.write_unaligned(some::<u32, N>(from, end, channel, channels));
                            }
                        }
                    }
                }
                kind => {
                    let (mut r, mut col, mut line) = (0, 0, row(0));
                    let mut next = || {
                        if r == rows {
                            return std::ptr::null();
                        }
                        let from = run.at::<u16>(line, col);
                        col += 1;
                        if col == wide {
                            (r, col) = (r + 1, 0);
                            line = row(r);
                        }
                        from
                    };
                    let mut to = to;
                    for _ in 0..(rows * wide).div_ceil(2) {
                        let pair = [next(), next()];
                        for (group, channel) in (0..channels).step_by(N).enumerate() {
                            let to = to.add(group * self.group_lanes).cast::<[u32; N]>();
                            let [even, odd] = pair.map(|from| some::<u16, N>(from, end, channel, channels));
                            if kind == Lane::Pair {
                                let pairs = std::array::from_fn(|i| u32::from(even[i]) | u32::from(odd[i]) << 16);
                                to.write_unaligned(pairs);
                                continue;
                            }
                            for (i, half) in [odd, even].into_iter().enumerate() {
                                let lanes: [u32; N] = half.map(widen_flushed);
                                low = lanes.iter().fold(low, |low, bits| low.with(*bits));
                                to.add(i).write_unaligned(lanes);
                            }
                        }
                        to = to.add(if kind == Lane::Pair { N } else { 2 * N });
                    }
                }
            }
        }
        low
    }
}

/// `N` of a pixel's channels, from one on, zeros where there is no pixel. Beyond the last channel is anything.
///
/// # Safety
/// The pixel exists in an operand that ends at `end`, or is null.
#[inline(always)]
unsafe fn some<T: Default + std::marker::Copy, const N: usize>(
    pixel: *const T,
    end: *const u8,
    channel: usize,
    channels: usize,
) -> [T; N] {
    let mut lanes = [T::default(); N];
    // SAFETY: the caller's.
    unsafe {
        if pixel.is_null() {
            return lanes;
        }
        let from = pixel.add(channel);
        if from.wrapping_add(N).cast() <= end {
            return from.cast::<[T; N]>().read_unaligned();
        }
        for (i, lane) in lanes.iter_mut().enumerate().take(channels - channel) {
            *lane = from.add(i).read_unaligned();
        }
    }
    lanes
}
