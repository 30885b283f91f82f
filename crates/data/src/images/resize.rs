//! Resizing with Pillow's numbers: filters that widen where a picture shrinks, in 22-bit fixed point, rows first.

use std::ops::Range;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::picture::Picture;

/// Bits behind the point: 8 bits of a pixel and 2 for sums beyond one leave 22 of 32.
const PRECISION: u32 = 22;

/// How pixels are weighed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Filter {
    /// A triangle over two pixels.
    #[default]
    Bilinear,
    /// Keys's cubic (a = -0.5) over four pixels.
    Bicubic,
}

impl Filter {
    /// How far it reaches, in pixels.
    fn support(self) -> f64 {
        match self {
            Filter::Bilinear => 1.0,
            Filter::Bicubic => 2.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        let x = x.abs();
        match self {
            Filter::Bilinear => (1.0 - x).max(0.0),
            Filter::Bicubic => {
                const A: f64 = -0.5;
                match x {
                    x if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
                    x if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
                    _ => 0.0,
                }
            }
        }
    }
}

/// Places of one side of a resized picture.
struct Part {
    /// The length of the whole side.
    whole: usize,
    wanted: Range<usize>,
}

impl Part {
    fn all(whole: usize) -> Part {
        Part { whole, wanted: 0..whole }
    }

    /// `length` places in the middle.
    fn middle(whole: usize, length: usize) -> Part {
        let start = ((whole as f64 - length as f64) / 2.0).round_ties_even() as usize;
        Part { whole, wanted: start..start + length }
    }

    /// Whether the side of this length stays as it is.
    fn is_all_of(&self, length: usize) -> bool {
        self.whole == length && self.wanted == (0..length)
    }
}

/// For each place of the result: the first place that it sees, and the weights from there on.
fn weights(filter: Filter, from: usize, to: &Part) -> Vec<(usize, Vec<i32>)> {
    if to.whole == from {
        return to.wanted.clone().map(|place| (place, vec![1 << PRECISION])).collect();
    }
    let scale = from as f64 / to.whole as f64;
    let widened = scale.max(1.0);
    let support = filter.support() * widened;
    let of = |place: usize| {
        let center = (place as f64 + 0.5) * scale;
        let first = (center - support + 0.5).max(0.0) as usize;
        let last = ((center + support + 0.5) as usize).min(from);
        let raw: Vec<f64> = (first..last).map(|x| filter.weight((x as f64 - center + 0.5) * (1.0 / widened))).collect();
        let sum: f64 = raw.iter().sum();
        let fixed = raw.iter().map(|w| (w / sum * f64::from(1 << PRECISION)).round() as i32).collect();
        (first, fixed)
    };
    to.wanted.clone().map(of).collect()
}

fn weighed(pixels: impl Iterator<Item = u8>, weights: &[i32]) -> u8 {
    let sum: i32 = pixels.zip(weights).map(|(p, w)| i32::from(p) * w).sum();
    ((sum + (1 << (PRECISION - 1))) >> PRECISION).clamp(0, 255) as u8
}

/// The picture in another size.
pub(crate) fn resize(picture: &Picture, height: usize, width: usize, filter: Filter) -> Picture {
    resized(picture, Part::all(height), Part::all(width), filter)
}

/// A part of the picture in another size: of a long strip that grows, the whole would not fit in any memory.
fn resized(picture: &Picture, rows: Part, columns: Part, filter: Filter) -> Picture {
    let c = picture.channels;
    let (height, width) = (rows.wanted.len(), columns.wanted.len());
    let narrow = if columns.is_all_of(picture.width) {
        None
    } else {
        let mut out = Picture::black(picture.height, width, c);
        let weights = weights(filter, picture.width, &columns);
        let rows = picture.bytes.chunks_exact(picture.width * c);
        for (to, from) in out.bytes.chunks_exact_mut(width * c).zip(rows) {
            for (pixel, (first, weights)) in to.chunks_exact_mut(c).zip(&weights) {
                for (channel, value) in pixel.iter_mut().enumerate() {
                    *value = weighed(from[first * c + channel..].iter().step_by(c).copied(), weights);
                }
            }
        }
        Some(out)
    };
    let picture = narrow.as_ref().unwrap_or(picture);
    if rows.is_all_of(picture.height) {
        return picture.clone();
    }
    let mut out = Picture::black(height, width, c);
    let weights = weights(filter, picture.height, &rows);
    let row = width * c;
    for (to, (first, weights)) in out.bytes.chunks_exact_mut(row).zip(&weights) {
        for (at, value) in to.iter_mut().enumerate() {
            *value = weighed(picture.bytes[first * row + at..].iter().step_by(row).copied(), weights);
        }
    }
    out
}

/// The picture with its shorter side scaled so that the middle `height x width` is `share` of it, and that middle.
pub(crate) fn center(picture: &Picture, height: usize, width: usize, share: f64, filter: Filter) -> Picture {
    let [tall, wide] = [height, width].map(|n| (n as f64 / share).floor().max(1.0));
    let scale = (tall / picture.height as f64).max(wide / picture.width as f64);
    let scaled = |n: usize, least: f64| ((n as f64 * scale).floor().max(least)) as usize;
    let (full_height, full_width) = (scaled(picture.height, tall), scaled(picture.width, wide));
    resized(picture, Part::middle(full_height, height), Part::middle(full_width, width), filter)
}
