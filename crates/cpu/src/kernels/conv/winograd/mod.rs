//! 3 x 3 convolutions of stride 1 in f32 by minimal filtering, F(2 x 2, 3 x 3) (Winograd 1980; Lavin and Gray 2016): sixteen
//! products for four results where windows take thirty-six.
//!
//! Results are computed in tiles of 2 x 2. What a tile reads, 4 x 4 pixels, becomes `B^T d B`; each of its sixteen elements, its
//! points, is multiplied by the same one of `G g G^T` and summed over channels as [`gemm`](crate::gemm) does; and `A^T m A` of
//! the sums are the results ([`maps`]). The weight gradient goes the other way: `A y A^T` of a tile's output gradients times
//! `B^T d B`, summed over tiles in ascending order, becomes `G^T u G` ([`weight_gradient`]).
//!
//! A result depends on its own window alone. Its error is no more than that of direct sums, whose chains are longer: of 64 channels
//! 2.4e-7 against 4.1e-7 of the results' size.

mod maps;
mod weight_gradient;

use super::{Convolution, Pixels};
use crate::kernels::view::{DType, Pointer};
use crate::kernels::window::place;
use crate::simd::{Float, LANES, Lanes, Task};
pub(super) use maps::Winograd;
use std::ops::Range;
use tenon_graph::op::{Direction, Window};
pub(super) use weight_gradient::WeightGradient;

/// Elements of what a tile reads, along an axis and in all.
const SIDE: usize = 4;
const POINTS: usize = SIDE * SIDE;
/// Results of a tile along an axis.
const OUT: usize = 2;
/// Channels and filters at least: with fewer, making sums and differences takes longer than what they save.
const LEAST: usize = 32;
/// Floats between the planes of two points beside what is in them: planes that are a power of two apart share few places of the
/// first-level cache.
const APART: usize = LANES;

/// Results of a channel at least, and pairs of a channel and a filter for each of them at most: making the points of filters
/// must take less than what they save.
const LEAST_PIXELS: usize = 128;
const FILTERS_EACH: usize = 512;

/// Whether a convolution has this form, and enough of everything to gain by it.
fn fits(spec: &Convolution) -> bool {
    let plain = Window { size: 1, stride: 1, dilation: 1, low: 0, high: 0 };
    let [depth, high, wide] = spec.geometry.windows;
    let three = |w: Window| (w.size, w.stride, w.dilation) == (3, 1, 1);
    let floats = (spec.dtype, spec.result) == (DType::F32, DType::F32);
    let (pixels, pairs) = (spec.pixels(), spec.channels * spec.filters);
    let enough = spec.channels.min(spec.filters) >= LEAST && pixels >= LEAST_PIXELS.max(pairs / FILTERS_EACH);
    depth == plain && three(high) && three(wide) && floats && spec.groups == 1 && enough
}

/// What a convolution does in place of the multiply-adds that its windows take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Filtering {
    /// Its multiply-adds, as a share of those.
    pub products: f64,
    /// What sums and differences take, as a share of what the products take.
    pub sums: f64,
    /// Bytes of the filters' points, written and read.
    pub bytes: f64,
}

impl Convolution {
    /// What minimal filtering does, where this is such a convolution.
    pub fn filtering(&self) -> Option<Filtering> {
        // Measured: with 64 channels and filters a seventh, with 128 half of it.
        const SUMS: f64 = 4.5;
        let (channels, filters) = (self.channels as f64, self.filters as f64);
        fits(self).then(|| Filtering {
            products: (Map::of(self).tiles() * POINTS) as f64 / (self.pixels() * self.geometry.taps()) as f64,
            sums: SUMS * (1.0 / channels + 1.0 / filters),
            bytes: 2.0 * (POINTS * size_of::<f32>()) as f64 * channels * filters,
        })
    }
}

/// Which pixels tiles read and write.
#[derive(Clone, Copy)]
struct Map {
    /// Images, and slices of each.
    images: usize,
    slices: usize,
    /// Height and width of what is read and of the results.
    from: [usize; 2],
    to: [usize; 2],
    /// Pixels before the first result's that its window starts.
    low: [isize; 2],
}

impl Map {
    fn of(spec: &Convolution) -> Map {
        let geometry = &spec.geometry;
        let [depth, input @ ..] = geometry.input;
        let [_, output @ ..] = geometry.output;
        let low = [1, 2].map(|axis: usize| geometry.windows[axis].low as isize);
        let (from, to, low) = match spec.direction {
            // What a gradient reads are the windows that reach a pixel: another convolution, its filters turned around.
            Direction::InputGradient => (output, input, low.map(|low| 2 - low)),
            _ => (input, output, low),
        };
        Map { images: geometry.n, slices: depth, from, to, low }
    }

    /// Slices, and tiles along both axes of each.
    fn sizes(&self) -> [usize; 3] {
        [self.images * self.slices, self.to[0].div_ceil(OUT), self.to[1].div_ceil(OUT)]
    }

    fn tiles(&self) -> usize {
        self.sizes().iter().product()
    }

    /// Image and slice of a tile, and the first of its results.
    fn tile(&self, tile: usize) -> ([usize; 2], [usize; 2]) {
        let [slice, y, x] = place(tile, self.sizes());
        ([slice / self.slices, slice % self.slices], [y * OUT, x * OUT])
    }

    /// What the tile reads at a place of its own; `None` in the padding.
    fn read(&self, [y, x]: [usize; 2], at: [usize; 2]) -> Option<[usize; 2]> {
        let along = |axis: usize, first: usize| {
            let place = (first + at[axis]).checked_add_signed(-self.low[axis])?;
            (place < self.from[axis]).then_some(place)
        };
        Some([along(0, y)?, along(1, x)?])
    }
}

/// The values of tiles, `[point][tile][channel]`.
#[derive(Clone, Copy)]
struct Planes {
    start: Pointer<f32>,
    channels: usize,
    plane: usize,
}

impl Planes {
    #[inline(always)]
    fn row(&self, point: usize, tile: usize) -> *mut f32 {
        self.start.get().wrapping_add(point * self.plane + tile * self.channels)
    }

    /// Those from a tile on.
    fn after(&self, tile: usize) -> Planes {
        Planes { start: Pointer(self.row(0, tile)), ..*self }
    }

    /// `n` channels, from one on, of the points of a tile in a column.
    ///
    /// # Safety
    /// They are there.
    #[inline(always)]
    unsafe fn column<V: Lanes>(&self, x: usize, tile: usize, channel: usize, n: usize) -> [V; SIDE] {
        let from = self.row(x, tile).wrapping_add(channel);
        let line = SIDE * self.plane;
        let points = [from, from.wrapping_add(line), from.wrapping_add(2 * line), from.wrapping_add(3 * line)];
        // SAFETY: the caller's.
        unsafe { [read(points[0], n), read(points[1], n), read(points[2], n), read(points[3], n)] }
    }

    /// Writes `n` channels, from one on, of the points of a tile in a line.
    ///
    /// # Safety
    /// There is room, and nobody else writes there.
    #[inline(always)]
    unsafe fn put<V: Lanes>(&self, y: usize, tile: usize, channel: usize, n: usize, line: [V; SIDE]) {
        let to = self.row(y * SIDE, tile).wrapping_add(channel);
        // SAFETY: the caller's.
        unsafe {
            f32::store_first(line[0], to, n);
            f32::store_first(line[1], to.wrapping_add(self.plane), n);
            f32::store_first(line[2], to.wrapping_add(2 * self.plane), n);
            f32::store_first(line[3], to.wrapping_add(3 * self.plane), n);
        }
    }
}

/// Floats from the plane of a point to the next, of so many tiles with so many channels.
fn plane(tiles: usize, channels: usize) -> usize {
    (tiles * channels).next_multiple_of(LANES) + APART
}

/// Reads 16 values or, if `n` is less, so many and zeros.
///
/// # Safety
/// They are readable.
#[inline(always)]
unsafe fn read<V: Lanes>(from: *const f32, n: usize) -> V {
    // SAFETY: the caller's.
    unsafe { f32::load_first(from, n) }
}

/// What is done with tiles one after the other, some channels at a time.
trait Tiled {
    /// Where the pixels of a tile are.
    type Pixels;
    fn pixels(&self, tile: usize) -> Self::Pixels;
    /// All tiles, and how many channels they have.
    fn size(&self) -> (Range<usize>, usize);
    /// Up to 16 channels of the tile that is number `row` of all.
    ///
    /// # Safety
    /// The pixels and the planes have these channels, and nobody else what is written.
    unsafe fn channels<V: Lanes>(&self, pixels: &Self::Pixels, row: usize, channel: usize, n: usize);
}

/// All channels of all tiles.
struct Each<T>(T);

impl<T: Tiled> Task for Each<T> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes>(self) {
        let (tiles, channels) = self.0.size();
        let whole = channels / LANES * LANES;
        for (row, tile) in tiles.enumerate() {
            let pixels = self.0.pixels(tile);
            // SAFETY: pixels and planes have so many channels, and whoever asks for these tiles alone writes them.
            unsafe {
                for channel in (0..whole).step_by(LANES) {
                    self.0.channels::<V>(&pixels, row, channel, LANES);
                }
                if whole < channels {
                    self.0.channels::<V>(&pixels, row, whole, channels - whole);
                }
            }
        }
    }
}

/// `B^T d B` of tiles.
struct Read<'a> {
    map: &'a Map,
    from: Pixels,
    /// As many as there are channels.
    zeros: *const f32,
    tiles: Range<usize>,
    to: Planes,
}

impl Tiled for Read<'_> {
    type Pixels = [[*const f32; SIDE]; SIDE];

    fn pixels(&self, tile: usize) -> [[*const f32; SIDE]; SIDE] {
        let ([n, z], first) = self.map.tile(tile);
        let mut pixels = [[self.zeros; SIDE]; SIDE];
        for (y, line) in pixels.iter_mut().enumerate() {
            for (x, pixel) in line.iter_mut().enumerate() {
                if let Some([y, x]) = self.map.read(first, [y, x]) {
                    *pixel = self.from.bytes(self.from.offset(n, [z, y, x])).cast::<f32>().cast_const();
                }
            }
        }
        pixels
    }

    fn size(&self) -> (Range<usize>, usize) {
        (self.tiles.clone(), self.to.channels)
    }

    #[inline(always)]
    unsafe fn channels<V: Lanes>(&self, pixels: &[[*const f32; SIDE]; SIDE], row: usize, channel: usize, n: usize) {
        let [top, upper, lower, bottom] = pixels;
        // SAFETY: the caller's.
        unsafe {
            let mut columns = [[V::splat(0.0); SIDE]; SIDE];
            for x in 0..SIDE {
                let pixels =
                    [top[x].add(channel), upper[x].add(channel), lower[x].add(channel), bottom[x].add(channel)];
                columns[x] =
                    differences([read(pixels[0], n), read(pixels[1], n), read(pixels[2], n), read(pixels[3], n)]);
            }
            let [left, middle, next, right] = columns;
            for y in 0..SIDE {
                self.to.put::<V>(y, row, channel, n, differences([left[y], middle[y], next[y], right[y]]));
            }
        }
    }
}

/// `B^T d`: d0 - d2, d1 + d2, d2 - d1, d1 - d3.
#[inline(always)]
fn differences<V: Lanes>([d0, d1, d2, d3]: [V; SIDE]) -> [V; SIDE] {
    [d0.sub(d2), d1.add(d2), d2.sub(d1), d1.sub(d3)]
}
