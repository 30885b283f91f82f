//! Weight gradients: what tiles read times the gradients of their results, summed over tiles.

use super::{Each, Map, OUT, POINTS, Planes, Read, SIDE, Tiled, fits, plane, read};
use crate::gemm::micro::ROWS;
use crate::gemm::{Float as Element, GemmSpec, Layout, gemm, gemm_scratch_bytes};
use crate::isa::{Cpu, Isa};
use crate::kernels::conv::{Convolution, Pixels};
use crate::kernels::view::{Pointer, Scratch, piece};
use crate::simd::{Float, LANES, Lanes, Task};
use std::ops::Range;
use tenon_graph::op::Direction;

/// Bytes of the tiles that are summed in one chain, about: they stay in the third-level cache.
const BLOCK: usize = 2 * 1024 * 1024;
/// Tiles that are summed in one chain, at least and at most.
const TILES: [usize; 2] = [256, 768];
/// Tiles that one task makes.
const EACH: usize = 2 * ROWS;
/// Filters of a product at least, where there are more tasks than points.
const FILTERS: usize = 128;

/// A weight gradient in this form.
#[derive(Clone, Copy)]
pub(in super::super) struct WeightGradient {
    map: Map,
    channels: usize,
    filters: usize,
    /// Tiles that are summed in one chain; the chains' results are added one after the other.
    tiles: usize,
}

impl WeightGradient {
    /// `None` if the convolution has another form, or too few channels to gain by it.
    pub(in super::super) fn new(spec: &Convolution) -> Option<WeightGradient> {
        if spec.direction != Direction::WeightGradient || !fits(spec) {
            return None;
        }
        let (map, channels, filters) = (Map::of(spec), spec.channels, spec.filters);
        let most = (BLOCK / (POINTS * size_of::<f32>() * (channels + filters))).clamp(TILES[0], TILES[1]);
        Some(WeightGradient { map, channels, filters, tiles: most.min(map.tiles()) })
    }

    /// Filters of a product.
    fn part(&self) -> usize {
        let parts = (self.filters / FILTERS).max(1);
        self.filters.div_ceil(parts)
    }

    /// The product of one point for `filters` filters, of `tiles` tiles.
    fn product(&self, filters: usize, tiles: usize) -> GemmSpec {
        let rows = |channels| Layout::row_major(Element::F32, channels);
        let (gradients, inputs) = (rows(self.filters).transposed(), rows(self.channels));
        GemmSpec::new(filters, self.channels, tiles, gradients, inputs, inputs)
    }

    /// The bytes of shared scratch and of scratch per worker.
    pub(in super::super) fn scratch(&self, isa: Isa) -> (usize, usize) {
        let planes = |channels| piece::<f32>(POINTS * plane(self.tiles, channels));
        let sums = piece::<f32>(POINTS * self.filters * self.channels);
        let shared =
            planes(self.channels) + planes(self.filters) + sums + piece::<f32>(self.channels.max(self.filters));
        let mut each = 0;
        for filters in [self.part(), self.filters % self.part()] {
            for tiles in [self.tiles, self.map.tiles() % self.tiles] {
                each = each.max(gemm_scratch_bytes(&self.product(filters, tiles), isa, 1));
            }
        }
        (shared, piece::<u8>(each))
    }

    /// `(output gradient, input) -> weight gradient`.
    pub(in super::super) fn run(&self, cpu: &Cpu, dy: Pixels, x: Pixels, dw: Pixels, scratch: Scratch<'_>) {
        let (channels, filters) = (self.channels, self.filters);
        let mut shared = scratch.shared();
        let mut planes = |channels: usize| {
            let apart = plane(self.tiles, channels);
            Planes { start: Pointer(shared.take(POINTS * apart)), channels, plane: apart }
        };
        let (inputs, gradients) = (planes(channels), planes(filters));
        let sums =
            Planes { start: Pointer(shared.take(POINTS * filters * channels)), channels, plane: filters * channels };
        let zeros = Pointer(shared.take::<f32>(channels.max(filters)));
        // SAFETY: there is room for them.
        unsafe { std::ptr::write_bytes(zeros.get(), 0, channels.max(filters)) };
        for first in (0..self.map.tiles()).step_by(self.tiles) {
            let tiles = self.tiles.min(self.map.tiles() - first);
            cpu.pool.run(tiles.div_ceil(EACH), |task, _| {
                let part = task * EACH..tiles.min((task + 1) * EACH);
                let tiles = first + part.start..first + part.end;
                let [inputs, gradients] = [inputs, gradients].map(|planes| planes.after(part.start));
                let (map, zeros) = (&self.map, zeros.get().cast_const());
                cpu.vectorise(Each(Read { map, from: x, zeros, tiles: tiles.clone(), to: inputs }));
                cpu.vectorise(Each(Spread { map, from: dy, zeros, tiles, to: gradients }));
            });
            let part = self.part();
            let parts = filters.div_ceil(part);
            cpu.pool.run(POINTS * parts, |task, worker| {
                let (point, start) = (task / parts, task % parts * part);
                let product = self.product(part.min(filters - start), tiles);
                let memory = scratch.worker(worker).take::<u8>(gemm_scratch_bytes(&product, cpu.isa(), 1));
                let a = gradients.row(point, 0).wrapping_add(start);
                let (b, c) = (inputs.row(point, 0), sums.row(point, start));
                // SAFETY: the planes have so many tiles; this task alone adds to these sums; the scratch is this worker's.
                unsafe { gemm(cpu, &product, a.cast_const().cast(), b.cast_const().cast(), c.cast(), memory, None) };
            });
            cpu.pool.run(filters, |filter, _| {
                let to = dw.bytes(filter * 9 * channels).cast();
                cpu.vectorise(Gather { sums, filter, to, onto: first > 0 });
            });
        }
    }
}

/// `A y A^T` of tiles.
struct Spread<'a> {
    map: &'a Map,
    from: Pixels,
    /// As many as there are filters.
    zeros: *const f32,
    tiles: Range<usize>,
    to: Planes,
}

impl Tiled for Spread<'_> {
    type Pixels = [[*const f32; OUT]; OUT];

    fn pixels(&self, tile: usize) -> [[*const f32; OUT]; OUT] {
        let ([n, z], [first_y, first_x]) = self.map.tile(tile);
        let mut pixels = [[self.zeros; OUT]; OUT];
        for (y, line) in pixels.iter_mut().enumerate().take(self.map.to[0] - first_y) {
            for (x, pixel) in line.iter_mut().enumerate().take(self.map.to[1] - first_x) {
                *pixel = self.from.bytes(self.from.offset(n, [z, first_y + y, first_x + x])).cast::<f32>().cast_const();
            }
        }
        pixels
    }

    fn size(&self) -> (Range<usize>, usize) {
        (self.tiles.clone(), self.to.channels)
    }

    #[inline(always)]
    unsafe fn channels<V: Lanes>(&self, pixels: &[[*const f32; OUT]; OUT], row: usize, channel: usize, n: usize) {
        let [[a, b], [c, d]] = *pixels;
        // SAFETY: the caller's.
        unsafe {
            let left: [V; SIDE] = spread([read(a.add(channel), n), read(c.add(channel), n)]);
            let right: [V; SIDE] = spread([read(b.add(channel), n), read(d.add(channel), n)]);
            for y in 0..SIDE {
                self.to.put(y, row, channel, n, spread([left[y], right[y]]));
            }
        }
    }
}

/// `A y`: y0, y0 + y1, y0 - y1, -y1.
#[inline(always)]
fn spread<V: Lanes>([y0, y1]: [V; OUT]) -> [V; SIDE] {
    [y0, y0.add(y1), y0.sub(y1), V::splat(0.0).sub(y1)]
}

/// `G^T u G` of one filter.
struct Gather {
    sums: Planes,
    filter: usize,
    /// `[3][3][channels]`.
    to: *mut f32,
    /// Whether it is added to what is there.
    onto: bool,
}

impl Gather {
    /// Up to 16 channels.
    ///
    /// # Safety
    /// The planes have these sums, and the filter the room.
    #[inline(always)]
    unsafe fn channels<V: Lanes>(&self, channel: usize, n: usize) {
        // SAFETY: the caller's.
        unsafe {
            let mut columns = [[V::splat(0.0); 3]; SIDE];
            for (x, column) in columns.iter_mut().enumerate() {
                *column = gathered(self.sums.column(x, self.filter, channel, n));
            }
            let [left, middle, next, right] = columns;
            for y in 0..3 {
                let mut line: [V; 3] = gathered([left[y], middle[y], next[y], right[y]]);
                for (x, value) in line.iter_mut().enumerate() {
                    let to = self.to.add((y * 3 + x) * self.sums.channels + channel);
                    if self.onto {
                        *value = read::<V>(to, n).add(*value);
                    }
                    f32::store_first(*value, to, n);
                }
            }
        }
    }
}

impl Task for Gather {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes>(self) {
        for channel in (0..self.sums.channels).step_by(LANES) {
            // SAFETY: there are as many channels in the sums and in a filter.
            unsafe { self.channels::<V>(channel, LANES.min(self.sums.channels - channel)) };
        }
    }
}

/// `G^T u`: u0 + (u1 + u2) / 2, (u1 - u2) / 2, (u1 + u2) / 2 + u3.
#[inline(always)]
fn gathered<V: Lanes>([u0, u1, u2, u3]: [V; SIDE]) -> [V; 3] {
    let half = V::splat(0.5);
    let (sum, difference) = (u1.add(u2).mul(half), u1.sub(u2).mul(half));
    [u0.add(sum), difference, sum.add(u3)]
}
