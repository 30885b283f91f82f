//! Asking for memory before it is read: of windows, and of some channels of pixels, no hardware prefetcher knows what comes
//! next.

use crate::simd::{LINE, fetch};

/// Cache lines that will be read soon: those of some bytes of each pixel.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    pixel: *const u8,
    /// From one pixel to the next, and lines of each.
    step: usize,
    lines_each: usize,
    line: usize,
    /// That are left.
    pub(super) lines: usize,
}

impl Ahead {
    pub(super) const NOTHING: Ahead = Ahead { pixel: std::ptr::null(), step: 0, lines_each: 1, line: 0, lines: 0 };

    pub(super) fn new(pixel: *const u8, step: usize, bytes: usize, pixels: usize) -> Ahead {
        // Where they follow each other, lines are counted without regard to pixels.
        let (step, bytes, pixels) = if bytes == step { (0, bytes * pixels, 1) } else { (step, bytes, pixels) };
        let lines_each = bytes.div_ceil(LINE).max(1);
        Ahead { pixel, step, lines_each, line: 0, lines: lines_each * pixels }
    }

    /// Asks for the next lines.
    #[inline(always)]
    pub(super) fn fetch(&mut self, lines: usize) {
        for _ in 0..lines.min(self.lines) {
            fetch(self.pixel.wrapping_add(self.line * LINE));
            self.line += 1;
            if self.line == self.lines_each {
                (self.pixel, self.line) = (self.pixel.wrapping_add(self.step), 0);
            }
        }
        self.lines = self.lines.saturating_sub(lines);
    }
}
