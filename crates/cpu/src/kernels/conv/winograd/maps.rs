//! Forward convolutions and input gradients.

use super::{Each, Map, OUT, POINTS, Planes, Read, SIDE, Tiled, fits, plane, read};
use crate::gemm::Float as Element;
use crate::gemm::micro::ROWS;
use crate::isa::{Cpu, Isa};
use crate::kernels::conv::gather::Gather;
use crate::kernels::conv::{Convolution, Pixels};
use crate::kernels::view::{Pieces, Pointer, Scratch, piece};
use crate::simd::{Float, LANES, Lanes, Task};
use std::ops::Range;
use tenon_graph::op::Direction;

/// Bytes of a task's tiles, before and after the products, about: a second-level cache.
const BLOCK: usize = 1024 * 1024;
/// Tiles of a task, at least and at most.
const TILES: [usize; 2] = [4 * ROWS, 16 * ROWS];
/// Tasks that there are at least, where the sizes allow it.
const TASKS: usize = 16;

/// A forward convolution or an input gradient in this form.
#[derive(Clone, Copy)]
pub(in super::super) struct Winograd {
    product: Gather,
    /// Channels of what is read, and of the results.
    from: usize,
    to: usize,
}

impl Winograd {
    /// `None` if the convolution has another form, or too few channels to gain by it.
    pub(in super::super) fn new(spec: &Convolution, isa: Isa) -> Option<Winograd> {
        let (from, to) = match spec.direction {
            Direction::Forward => (spec.channels, spec.filters),
            Direction::InputGradient => (spec.filters, spec.channels),
            Direction::WeightGradient => return None,
        };
        if !fits(spec) {
            return None;
        }
        Some(Winograd { product: Gather::new(isa, Element::F32, Element::F32, 1, from, to)?, from, to })
    }

    /// Bytes of the packed weights.
    pub(in super::super) fn weights_bytes(&self) -> usize {
        POINTS * self.product.weights_bytes()
    }

    /// Packs the weights.
    ///
    /// # Safety
    /// `packed` has room for [`Winograd::weights_bytes`], and nobody uses it.
    pub(in super::super) unsafe fn pack_weights(&self, cpu: &Cpu, spec: &Convolution, w: Pixels, packed: *mut u8) {
        let packed = Pointer(packed);
        cpu.pool.run(spec.filters.div_ceil(LANES), |block, _| {
            let filters = block * LANES..spec.filters.min((block + 1) * LANES);
            cpu.vectorise(Filters {
                product: &self.product,
                from: w.bytes(filters.start * spec.depth()).cast::<f32>().cast_const(),
                channels: spec.channels,
                filters,
                turned: spec.direction == Direction::InputGradient,
                to: packed.get().cast(),
            });
        });
    }

    /// Tiles and columns of a task.
    fn cut(&self, tiles: usize) -> [usize; 2] {
        let most = (BLOCK / (POINTS * size_of::<f32>() * (self.from + self.to))).clamp(TILES[0], TILES[1]);
        let each = tiles.div_ceil(tiles.div_ceil(most).max(1)).next_multiple_of(ROWS).max(ROWS);
        [each, self.product.columns(tiles.div_ceil(each), TASKS)]
    }

    /// Bytes of a worker's scratch.
    pub(in super::super) fn scratch(&self, spec: &Convolution) -> usize {
        let [tiles, columns] = self.cut(Map::of(spec).tiles());
        let planes = |channels| piece::<f32>(POINTS * plane(tiles, channels));
        planes(self.from) + planes(columns.min(self.to)) + piece::<f32>(self.from) + self.product.scratch()
    }

    /// `(operand, packed weights) -> result`.
    pub(in super::super) fn run(
        &self,
        cpu: &Cpu,
        spec: &Convolution,
        from: Pixels,
        weights: Pointer<u8>,
        to: Pixels,
        scratch: Scratch<'_>,
    ) {
        let map = Map::of(spec);
        let [each, columns] = self.cut(map.tiles());
        let blocks = map.tiles().div_ceil(each);
        cpu.pool.run(blocks * self.to.div_ceil(columns), |task, worker| {
            let (block, part) = (task % blocks, task / blocks);
            let tiles = block * each..map.tiles().min((block + 1) * each);
            let columns = part * columns..self.to.min((part + 1) * columns);
            // SAFETY: the pieces are this worker's; the operands have been checked to have these pixels; this task alone
            // writes these channels of its tiles' results.
            unsafe { self.part(cpu, &map, from, weights, to, (tiles, columns), &mut scratch.worker(worker)) };
        });
    }

    /// Computes some columns of the results of some tiles.
    ///
    /// # Safety
    /// The operands have these tiles, the pieces are as large as [`Winograd::scratch`] says, and nobody else writes these results.
    #[expect(clippy::too_many_arguments, reason = "the operands, and what of them")]
    unsafe fn part(
        &self,
        cpu: &Cpu,
        map: &Map,
        from: Pixels,
        weights: Pointer<u8>,
        to: Pixels,
        (tiles, columns): (Range<usize>, Range<usize>),
        pieces: &mut Pieces,
    ) {
        let [most, wide] = self.cut(map.tiles());
        let [read, sums] =
            [(self.from, self.from), (wide.min(self.to), columns.len())].map(|(most_channels, channels)| {
                let apart = plane(most, most_channels);
                Planes { start: Pointer(pieces.take(POINTS * apart)), channels, plane: apart }
            });
        let zeros = pieces.take::<f32>(self.from);
        // SAFETY: the caller's; the pieces are of these sizes.
        unsafe {
            std::ptr::write_bytes(zeros, 0, self.from);
            cpu.vectorise(Each(Read { map, from, zeros, tiles: tiles.clone(), to: read }));
            let rows = self.product.rows(pieces, tiles.len());
            for point in 0..POINTS {
                let (a, c) = (read.row(point, 0), sums.row(point, 0));
                rows.set(0, 0..tiles.len(), Some((a.cast_const().cast(), self.from * size_of::<f32>())));
                let weights = weights.get().add(point * self.product.weights_bytes());
                self.product.multiply(&rows, weights, columns.clone(), c.cast(), columns.len());
            }
            cpu.vectorise(Each(Write { map, sums, tiles, column: columns.start, to }));
        }
    }
}

/// `G g G^T` of up to 16 filters, packed.
struct Filters<'a> {
    product: &'a Gather,
    /// `[filter][3][3][channels]`.
    from: *const f32,
    channels: usize,
    filters: Range<usize>,
    /// Whether filters are read from their ends, and are the rows of the product in place of its columns.
    turned: bool,
    /// `[point]`, each as the product has its weights.
    to: *mut f32,
}

impl Filters<'_> {
    /// A point of some channels of one of the filters.
    ///
    /// # Safety
    /// There are such a filter and such channels.
    #[inline(always)]
    unsafe fn value<V: Lanes>(&self, filter: usize, point: usize, channel: usize, n: usize) -> V {
        let mut columns = [V::splat(0.0); 3];
        for (x, column) in columns.iter_mut().enumerate() {
            let first = filter * 9 * self.channels + channel;
            let (top, step) = if self.turned { (8 - x, -3) } else { (x, 3) };
            let line = |y: isize| {
                self.from.wrapping_add(first).wrapping_offset((top as isize + y * step) * self.channels as isize)
            };
            // SAFETY: the caller's.
            *column = unsafe { weighed(point / SIDE, [read(line(0), n), read(line(1), n), read(line(2), n)]) };
        }
        weighed(point % SIDE, columns)
    }

    /// Writes up to 16 columns of a row of the product's weights, the columns that fill up vectors among them.
    ///
    /// # Safety
    /// There are such a row and such a column, and `to` has room for all weights.
    #[inline(always)]
    unsafe fn put<V: Lanes>(&self, point: usize, row: usize, column: usize, values: V) {
        let (at, room) = self.product.element(row, column);
        let to = self.to.wrapping_add(point * self.product.weights_bytes() / size_of::<f32>() + at);
        // SAFETY: the caller's.
        unsafe { f32::store_first(values, to, LANES.min(room)) };
    }
}

impl Task for Filters<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes>(self) {
        for channel in (0..self.channels).step_by(LANES) {
            let n = LANES.min(self.channels - channel);
            for point in 0..POINTS {
                // SAFETY: there are so many filters and channels; the product has them as rows and columns.
                unsafe {
                    let mut values = [V::splat(0.0); LANES];
                    for (i, value) in values.iter_mut().enumerate().take(self.filters.len()) {
                        *value = self.value(i, point, channel, n);
                        if self.turned {
                            self.put(point, self.filters.start + i, channel, *value);
                        }
                    }
                    if !self.turned {
                        for (i, values) in V::transpose(values).into_iter().enumerate().take(n) {
                            self.put(point, channel + i, self.filters.start, values);
                        }
                    }
                }
            }
        }
    }
}

/// One of the rows of `G`: g0, (g0 + g1 + g2) / 2, (g0 - g1 + g2) / 2, g2.
#[inline(always)]
fn weighed<V: Lanes>(row: usize, [g0, g1, g2]: [V; 3]) -> V {
    let half = V::splat(0.5);
    match row {
        0 => g0,
        1 => g0.add(g2).add(g1).mul(half),
        2 => g0.add(g2).sub(g1).mul(half),
        _ => g2,
    }
}

/// `A^T m A` of tiles.
struct Write<'a> {
    map: &'a Map,
    sums: Planes,
    tiles: Range<usize>,
    /// The first channel of the results.
    column: usize,
    to: Pixels,
}

impl Tiled for Write<'_> {
    /// Null where there is no result.
    type Pixels = [[*mut f32; OUT]; OUT];

    fn pixels(&self, tile: usize) -> [[*mut f32; OUT]; OUT] {
        let ([n, z], [first_y, first_x]) = self.map.tile(tile);
        let mut pixels = [[std::ptr::null_mut(); OUT]; OUT];
        for (y, line) in pixels.iter_mut().enumerate().take(self.map.to[0] - first_y) {
            for (x, pixel) in line.iter_mut().enumerate().take(self.map.to[1] - first_x) {
                let at = self.to.offset(n, [z, first_y + y, first_x + x]) + self.column;
                *pixel = self.to.bytes(at).cast();
            }
        }
        pixels
    }

    fn size(&self) -> (Range<usize>, usize) {
        (self.tiles.clone(), self.sums.channels)
    }

    #[inline(always)]
    unsafe fn channels<V: Lanes>(&self, pixels: &[[*mut f32; OUT]; OUT], row: usize, channel: usize, n: usize) {
        // SAFETY: the caller's.
        unsafe {
            let mut columns = [[V::splat(0.0); OUT]; SIDE];
            for (x, column) in columns.iter_mut().enumerate() {
                *column = results(self.sums.column(x, row, channel, n));
            }
            let [left, middle, next, right] = columns;
            for y in 0..OUT {
                let line: [V; OUT] = results([left[y], middle[y], next[y], right[y]]);
                if !pixels[y][0].is_null() {
                    f32::store_first(line[0], pixels[y][0].add(channel), n);
                }
                if !pixels[y][1].is_null() {
                    f32::store_first(line[1], pixels[y][1].add(channel), n);
                }
            }
        }
    }
}

/// `A^T m`: m0 + m1 + m2, m1 - m2 - m3.
#[inline(always)]
fn results<V: Lanes>([m0, m1, m2, m3]: [V; SIDE]) -> [V; OUT] {
    [m0.add(m1).add(m2), m1.sub(m2).sub(m3)]
}
