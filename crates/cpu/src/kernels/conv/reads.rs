//! What the rows of convolutions' products read.

use super::Convolution;
use super::general::Class;
use crate::kernels::window::{Pixels, place};
use std::ops::Range;

/// What the rows of a product read along one axis: row `i` reads for tap `t` what is at `first + t * tap_step + i * step`, or
/// padding if that is not below `size`.
#[derive(Clone, Copy)]
struct Along {
    rows: usize,
    taps: usize,
    first: isize,
    tap_step: isize,
    step: usize,
    size: usize,
}

impl Along {
    /// What a row reads for a tap.
    #[inline(always)]
    fn at(&self, row: usize, tap: usize) -> Option<usize> {
        let at = self.first + tap as isize * self.tap_step + (row * self.step) as isize;
        (at >= 0 && at < self.size as isize).then_some(at as usize)
    }

    /// The rows that do not read padding for a tap.
    #[inline(always)]
    fn inside(&self, tap: usize) -> Range<usize> {
        let first = self.first + tap as isize * self.tap_step;
        // The first row from which on something is read that is at least this far.
        let from = |far: isize| match self.step {
            1 => far.max(0) as usize,
            step => (far.max(0) as usize).div_ceil(step),
        };
        let end = from(self.size as isize - first).min(self.rows);
        from(-first).min(end)..end
    }
}

/// What the rows of a group's product read of an operand: `[taps][run]`.
pub(super) struct Reads {
    operand: Pixels,
    /// The first of the group's channels, and the bytes of all of them.
    channel: usize,
    bytes: usize,
    along: [Along; 3],
}

impl Reads {
    /// The windows of output pixels.
    pub(super) fn windows(spec: &Convolution, x: Pixels, group: usize) -> Reads {
        let geometry = &spec.geometry;
        let along = std::array::from_fn(|axis| {
            let window = geometry.windows[axis];
            Along {
                rows: geometry.output[axis],
                taps: window.size,
                first: -(window.low as isize),
                tap_step: window.dilation as isize,
                step: window.stride,
                size: geometry.input[axis],
            }
        });
        let channels = spec.group_channels;
        Reads { operand: x, channel: group * channels, bytes: channels * spec.dtype.size(), along }
    }

    /// The output gradients that reach the pixels of a class.
    pub(super) fn reaching(spec: &Convolution, dy: Pixels, class: &Class, group: usize) -> Reads {
        let geometry = &spec.geometry;
        let (sizes, filters) = (class.sizes(geometry), spec.group_filters);
        let along = std::array::from_fn(|axis| {
            let (window, taps) = (geometry.windows[axis], class.taps_along(geometry, axis));
            let back = |tap: usize| {
                let at = (class.residue[axis] + window.low) as isize - (tap * window.dilation) as isize;
                at / window.stride as isize
            };
            let first = taps.clone().next().map_or(0, back);
            let next = taps.clone().nth(1).map_or(first, back);
            Along {
                rows: sizes[axis],
                taps: taps.count(),
                first,
                tap_step: next - first,
                step: 1,
                size: geometry.output[axis],
            }
        });
        Reads { operand: dy, channel: group * filters, bytes: filters * spec.dtype.size(), along }
    }

    /// Calls `visit(tap, rows, runs)` so that every run of every row is told once: of neighbouring rows, numbered from the
    /// first one, where the first run is and how many bytes there are from each to the next; `None` for zeros.
    #[inline(always)]
    pub(super) fn runs(
        &self,
        rows: Range<usize>,
        mut visit: impl FnMut(usize, Range<usize>, Option<(*const u8, usize)>),
    ) {
        let [deep, tall, wide] = self.along;
        let step = self.operand.pixel_bytes() * wide.step;
        lines(self.along.map(|along| along.rows), rows, |first, batch, [z, y, x], count| {
            for tap in 0..deep.taps * tall.taps {
                let line = deep.at(z, tap / tall.taps).zip(tall.at(y, tap % tall.taps));
                for w in 0..wide.taps {
                    let tap = tap * wide.taps + w;
                    let inside = if line.is_some() { wide.inside(w) } else { 0..0 };
                    let inside = inside.start.clamp(x, x + count) - x..inside.end.clamp(x, x + count) - x;
                    let rows = |range: Range<usize>| first + range.start..first + range.end;
                    if let Some((z, y)) = line.filter(|_| !inside.is_empty()) {
                        let at = wide.at(x + inside.start, w).map(|x| self.offset(batch, [z, y, x]));
                        let from = self.operand.bytes(at.expect("inside"));
                        visit(tap, rows(inside.clone()), Some((from.cast_const(), step)));
                    }
                    for outside in [0..inside.start, inside.end..count] {
                        visit(tap, rows(outside), None);
                    }
                }
            }
        });
    }

    #[inline(always)]
    fn offset(&self, batch: usize, at: [usize; 3]) -> usize {
        self.operand.offset(batch, at) + self.channel
    }

    /// Writes rows next to each other.
    ///
    /// # Safety
    /// The rows exist and `to` has the room.
    pub(super) unsafe fn unfold(&self, rows: Range<usize>, to: *mut u8) {
        let ([deep, tall, wide], bytes) = (self.along, self.bytes);
        let taps = deep.taps * tall.taps * wide.taps;
        if wide.tap_step != 1 || self.operand.pixel_bytes() != bytes {
            return self.runs(rows, |tap, rows, runs| {
                for (i, row) in rows.enumerate() {
                    // SAFETY: the caller's.
                    unsafe {
                        let to = to.add((row * taps + tap) * bytes);
                        match runs {
                            Some((first, step)) => copy_run(first.add(i * step), to, bytes),
                            None => std::ptr::write_bytes(to, 0, bytes),
                        }
                    }
                }
            });
        }
        // Taps that are neighbours in memory are copied together.
        lines(self.along.map(|along| along.rows), rows, |first, batch, [z, y, x], count| {
            for row in 0..count {
                let start = wide.first + ((x + row) * wide.step) as isize;
                let before = (-start).clamp(0, wide.taps as isize) as usize;
                let end = (wide.size as isize - start).clamp(before as isize, wide.taps as isize) as usize;
                for tap in 0..deep.taps * tall.taps {
                    // SAFETY: the caller's.
                    unsafe {
                        let to = to.add(((first + row) * taps + tap * wide.taps) * bytes);
                        let Some((z, y)) = deep.at(z, tap / tall.taps).zip(tall.at(y, tap % tall.taps)) else {
                            std::ptr::write_bytes(to, 0, wide.taps * bytes);
                            continue;
                        };
                        if before > 0 {
                            std::ptr::write_bytes(to, 0, before * bytes);
                        }
                        if end > before {
                            let at = self.offset(batch, [z, y, (start + before as isize) as usize]);
                            copy_run(self.operand.bytes(at), to.add(before * bytes), (end - before) * bytes);
                        }
                        if end < wide.taps {
                            std::ptr::write_bytes(to.add(end * bytes), 0, (wide.taps - end) * bytes);
                        }
                    }
                }
            }
        });
    }
}

/// Calls `visit(first, batch, place, count)` for those of some rows that differ in the last axis alone: the number of the first
/// among them, where it is, and how many they are. A batch entry has rows of these `sizes`.
#[inline(always)]
pub(super) fn lines(sizes: [usize; 3], rows: Range<usize>, mut visit: impl FnMut(usize, usize, [usize; 3], usize)) {
    let each = sizes.iter().product::<usize>();
    let mut row = rows.start;
    while row < rows.end {
        let at = place(row % each, sizes);
        let count = (sizes[2] - at[2]).min(rows.end - row);
        visit(row - rows.start, row / each, at, count);
        row += count;
    }
}

/// Copies `bytes` bytes. The short runs of images with few channels are not worth a call: two moves cover them, which
/// overlap.
///
/// # Safety
/// Both are there and apart.
#[inline(always)]
pub(super) unsafe fn copy_run(from: *const u8, to: *mut u8, bytes: usize) {
    /// # Safety
    /// As above, for `2 N >= bytes >= N`.
    #[inline(always)]
    unsafe fn ends<const N: usize>(from: *const u8, to: *mut u8, bytes: usize) {
        // SAFETY: the first and the last N bytes of both.
        unsafe {
            let first = from.cast::<[u8; N]>().read_unaligned();
            let last = from.add(bytes - N).cast::<[u8; N]>().read_unaligned();
            to.cast::<[u8; N]>().write_unaligned(first);
            to.add(bytes - N).cast::<[u8; N]>().write_unaligned(last);
        }
    }
    // SAFETY: the caller's.
    unsafe {
        match bytes {
            16..=31 => ends::<16>(from, to, bytes),
            32..=63 => ends::<32>(from, to, bytes),
            64..=128 => ends::<64>(from, to, bytes),
            _ => std::ptr::copy_nonoverlapping(from, to, bytes),
        }
    }
}
