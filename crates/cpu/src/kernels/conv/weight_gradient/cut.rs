//! How a weight gradient is cut into tasks and blocks, and the scratch of a worker.

use crate::gemm::micro::{Kernels, Lane, ROWS};
use crate::isa::Isa;
use crate::kernels::chains::{chain, chains};
use crate::kernels::conv::{Convolution, float};
use crate::kernels::view::piece;
use crate::kernels::window::{Geometry, number};
use crate::simd::LANES;
use std::ops::Range;

/// Output pixels of a block, at most: what is copied and packed for it stays in the second-level cache.
const BLOCK: usize = 768;
/// Rows and columns of a task, about: its sums stay there too.
const TASK_ROWS: usize = 288;
const TASK_COLS: usize = 256;
/// Tasks that there are at least, where the sizes allow it. If not by several chains, then by smaller shares, for which the
/// same is copied and packed again.
const TASKS: usize = 4;
/// Blocks of a chain at least.
const CHAIN_BLOCKS: usize = 4;
/// Up to so many channels are a group of copies; more are in groups of [`LANES`].
pub(super) const FEW_CHANNELS: usize = 4;

/// How the work is cut; it depends on the instruction set only in how lanes lie in memory.
pub(super) struct Cut {
    pub(super) spec: Convolution,
    pub(super) geometry: Geometry,
    pub(super) lane: Lane,
    pub(super) isa: Isa,
    /// What makes rows, the input's channels unless turned, and what makes columns.
    pub(super) rows: Side,
    pub(super) cols: Side,
    /// Whether filters are the rows.
    pub(super) turned: bool,
    /// Channels of a group of copies.
    pub(super) width: usize,
    /// Pixels of a part along width and height, and parts of a block.
    pub(super) wide: usize,
    pub(super) high: usize,
    pub(super) parts: usize,
    /// Channels, places along the width and filters of a task.
    pub(super) channels: usize,
    pub(super) places: usize,
    pub(super) filters: usize,
    /// Chains that the sum over pixels consists of.
    pub(super) chains: usize,
}

/// One operand's channels: of a pixel, and those of one of the convolution's groups.
#[derive(Clone, Copy)]
pub(super) struct Side {
    pub(super) all: usize,
    pub(super) each: usize,
}

/// Neighbouring output pixels of one map: whole rows, or a piece of one row.
#[derive(Clone, Copy)]
pub(super) struct Part {
    pub(super) n: usize,
    pub(super) at: [usize; 3],
    pub(super) high: usize,
    pub(super) wide: usize,
}

impl Part {
    pub(super) fn pixels(&self) -> usize {
        self.high * self.wide
    }
}

/// A share of the result: channels and filters of a group, and places along the width of the window.
pub(super) struct Share {
    pub(super) group: usize,
    pub(super) channels: Range<usize>,
    pub(super) places: Range<usize>,
    pub(super) filters: Range<usize>,
}

/// `n` in even pieces of at most `most`.
fn even(n: usize, most: usize) -> usize {
    n.div_ceil(n.div_ceil(most.max(1)).max(1)).max(1)
}

impl Cut {
    pub(super) fn of(spec: &Convolution, isa: Isa) -> Cut {
        let mut geometry = spec.geometry;
        if spec.is_plain() {
            // Nothing but a row of pixels.
            let row = [1, 1, spec.pixels()];
            geometry = Geometry { n: 1, input: row, output: row, ..geometry };
        }
        let [deep, tall, broad] = geometry.output;
        let wide = if broad > BLOCK { even(broad, BLOCK).next_multiple_of(LANES) } else { broad.max(1) };
        let high = if wide < broad { 1 } else { even(tall, BLOCK / wide) };
        let parts = if high * wide < tall * broad { 1 } else { (BLOCK / (high * wide)).min(geometry.n * deep).max(1) };
        let [d, h, places] = geometry.windows.map(|window| window.size);
        let taps = d * h * places;
        let whole = |n: usize| (n / LANES * LANES).max(LANES);
        let input = Side { all: spec.channels, each: spec.group_channels };
        let output = Side { all: spec.filters, each: spec.group_filters };
        let turned = spec.is_plain() && output.each < input.each;
        let (rows, cols) = if turned { (output, input) } else { (input, output) };
        let mut cut = Cut {
            spec: *spec,
            geometry,
            lane: Lane::of(float(spec.dtype), isa),
            isa,
            rows,
            cols,
            turned,
            width: if rows.each <= FEW_CHANNELS { FEW_CHANNELS } else { LANES },
            wide,
            high,
            parts,
            channels: whole(TASK_ROWS / taps.max(1)).min(rows.each),
            places,
            filters: TASK_COLS.min(cols.each),
            chains: 1,
        };
        let blocks = cut.all_parts().div_ceil(cut.parts);
        cut.chains = chains(cut.shares(), blocks, CHAIN_BLOCKS);
        while cut.shares() * cut.chains < TASKS {
            if cut.filters > 64 && cut.filters >= cut.channels * d * h * cut.places {
                cut.filters = cut.filters.div_ceil(2).next_multiple_of(64);
            } else if cut.channels > LANES {
                cut.channels = whole(cut.channels.div_ceil(2));
            } else if cut.places > 1 {
                cut.places = cut.places.div_ceil(2);
            } else {
                break;
            }
        }
        cut
    }

    pub(super) fn kernels(&self) -> &'static Kernels {
        Kernels::of(self.isa, self.lane)
    }

    /// Tasks along groups, channels, places and filters.
    pub(super) fn grid(&self) -> [usize; 4] {
        let channels = self.rows.each.div_ceil(self.channels.max(1));
        let filters = self.cols.each.div_ceil(self.filters.max(1));
        [self.spec.groups, channels, self.geometry.windows[2].size.div_ceil(self.places), filters]
    }

    /// Shares of the result.
    pub(super) fn shares(&self) -> usize {
        self.grid().iter().product()
    }

    pub(super) fn share(&self, index: usize) -> Share {
        let [_, channels, places, filters] = self.grid();
        let range = |index: usize, step: usize, n: usize| index * step..n.min((index + 1) * step);
        let (filter, rest) = (index % filters, index / filters);
        let (place, rest) = (rest % places, rest / places);
        Share {
            group: rest / channels,
            channels: range(rest % channels, self.channels, self.rows.each),
            places: range(place, self.places, self.geometry.windows[2].size),
            filters: range(filter, self.filters, self.cols.each),
        }
    }

    /// Parts of a map along depth, height and width.
    pub(super) fn part_grid(&self) -> [usize; 3] {
        let [deep, tall, broad] = self.geometry.output;
        [deep, tall.div_ceil(self.high), broad.div_ceil(self.wide)]
    }

    pub(super) fn all_parts(&self) -> usize {
        self.geometry.n * self.part_grid().iter().product::<usize>()
    }

    /// A part; they are in the order of their pixels.
    pub(super) fn part(&self, index: usize) -> Part {
        let [deep, tall, broad] = self.part_grid();
        let at = [index / (tall * broad) % deep, index / broad % tall * self.high, index % broad * self.wide];
        let [_, height, width] = self.geometry.output;
        let (high, wide) = (self.high.min(height - at[1]), self.wide.min(width - at[2]));
        Part { n: index / (deep * tall * broad), at, high, wide }
    }

    /// The parts of a chain: whole blocks.
    pub(super) fn chain(&self, index: usize) -> Range<usize> {
        let blocks = chain(index, self.chains, self.all_parts().div_ceil(self.parts));
        blocks.start * self.parts..(blocks.end * self.parts).min(self.all_parts())
    }

    /// The number of a part's first output pixel.
    pub(super) fn pixel(&self, part: &Part) -> usize {
        let [deep, ..] = self.geometry.output;
        number([part.n * deep + part.at[0], part.at[1], part.at[2]], self.geometry.output)
    }

    /// Where element `tap` of the windows along the height reads, in rows of the input relative to the window of row 0:
    /// `(rows / stride, rows % stride)`.
    pub(super) fn shift(&self, tap: usize) -> (isize, usize) {
        let window = self.geometry.windows[1];
        let rows = (tap * window.dilation) as isize - window.low as isize;
        (rows.div_euclid(window.stride as isize), rows.rem_euclid(window.stride as isize) as usize)
    }

    /// The rows that elements along the height read. Those with the same remainder share them, where lanes of the shared
    /// rows are the same for all; else each has its own.
    pub(super) fn heights(&self, part: &Part) -> Heights {
        let window = self.geometry.windows[1];
        let shares = self.lane == Lane::F32 || part.wide.is_multiple_of(2);
        if !shares {
            return Heights { classes: window.size, rows: part.high, least: None };
        }
        let least = self.shift(0).0;
        let most = self.shift(window.size - 1).0;
        Heights { classes: window.stride, rows: part.high + (most - least) as usize, least: Some(least) }
    }

    /// Lanes of a copy of a part.
    pub(super) fn copy_lanes(&self, part: &Part) -> usize {
        self.lane.count(self.heights(part).rows * part.wide)
    }

    /// Copies of a part in a task of `places` places.
    pub(super) fn copies(&self, part: &Part, places: usize) -> usize {
        self.geometry.windows[0].size * self.heights(part).classes * places
    }

    /// Lanes that one group of channels has in a part, times its width.
    pub(super) fn part_lanes(&self, part: &Part, places: usize) -> usize {
        self.copies(part, places) * self.copy_lanes(part) * self.width
    }

    /// Pixels of a task's window elements times channels.
    pub(super) fn rows(&self, share: &Share) -> usize {
        let [d, h, _] = self.geometry.windows.map(|window| window.size);
        d * h * share.places.len() * share.channels.len()
    }

    /// The scratch of a worker.
    pub(super) fn room(&self) -> Room {
        let whole = Part { n: 0, at: [0; 3], high: self.high, wide: self.wide };
        // A last, narrower part may have rows of its own for each element along the height.
        let narrow = Part { wide: self.geometry.output[2] % self.wide, ..whole };
        let part = |part: &Part| self.part_lanes(part, self.places);
        let windows = self.geometry.windows.map(|window| window.size);
        let filters = self.filters.next_multiple_of(LANES);
        Room {
            copied: self.channels.div_ceil(self.width) * self.parts * part(&whole).max(part(&narrow)),
            panel: self.parts * self.lane.count(whole.pixels()) * self.kernels().width(),
            sums: windows[0] * windows[1] * self.places * self.channels * filters,
            taps: windows[0] * windows[1] * self.places,
            rows: self.parts * ROWS,
        }
    }
}

/// What elements of windows along the height read of a part.
pub(super) struct Heights {
    pub(super) classes: usize,
    /// Rows of a class.
    pub(super) rows: usize,
    /// If classes are remainders of the stride: how many strides the first row is away from the part's first.
    pub(super) least: Option<isize>,
}

/// Elements of the pieces of a worker's scratch.
pub(super) struct Room {
    pub(super) copied: usize,
    pub(super) panel: usize,
    pub(super) sums: usize,
    pub(super) taps: usize,
    pub(super) rows: usize,
}

impl Room {
    /// All but the sums.
    pub(super) fn bytes(&self) -> usize {
        let lanes = piece::<u32>(self.copied) + piece::<u32>(self.panel);
        lanes + piece::<usize>(self.taps) + piece::<*const u32>(self.rows)
    }
}
