//! Colour and shape changes of pictures, with Pillow's meaning: an amount of 1 is the picture as it is.

use super::picture::{Picture, luma_of};

/// `amount` of the picture and the rest of `other`, which is the value for a pixel.
fn blend(picture: &mut Picture, amount: f64, other: impl Fn(&[u8]) -> f64) {
    for pixel in picture.bytes.chunks_exact_mut(picture.channels) {
        let other = other(pixel);
        for value in pixel {
            *value = (other + (f64::from(*value) - other) * amount).clamp(0.0, 255.0) as u8;
        }
    }
}

fn grey(pixel: &[u8]) -> u8 {
    match *pixel {
        [r, g, b] => luma_of([r, g, b]),
        _ => pixel[0],
    }
}

/// Between black (0) and brighter than it is.
pub(crate) fn brightness(picture: &mut Picture, amount: f64) {
    blend(picture, amount, |_| 0.0);
}

/// Between its mean grey (0) and more contrast.
pub(crate) fn contrast(picture: &mut Picture, amount: f64) {
    let pixels = picture.bytes.chunks_exact(picture.channels);
    let count = pixels.len() as f64;
    let mean = (pixels.map(|p| f64::from(grey(p))).sum::<f64>() / count + 0.5).floor();
    blend(picture, amount, |_| mean);
}

/// Between grey (0) and stronger colours.
pub(crate) fn saturation(picture: &mut Picture, amount: f64) {
    blend(picture, amount, |pixel| f64::from(grey(pixel)));
}

/// Turns the hue by a share of the circle.
pub(crate) fn hue(picture: &mut Picture, turn: f64) {
    for pixel in picture.bytes.as_chunks_mut::<3>().0.iter_mut().filter(|_| picture.channels == 3) {
        let [r, g, b] = pixel.map(f64::from);
        let (most, least) = (r.max(g).max(b), r.min(g).min(b));
        let range = most - least;
        if range == 0.0 {
            continue;
        }
        let sixth = match most {
            m if m == r => (g - b) / range,
            m if m == g => (b - r) / range + 2.0,
            _ => (r - g) / range + 4.0,
        };
        let turned = (sixth / 6.0 + turn).rem_euclid(1.0) * 6.0;
        // Each channel is a trapezoid over the circle (Foley et al., "Computer Graphics").
        let channel = |offset: f64| {
            let k = (offset + turned).rem_euclid(6.0);
            (most - range * k.min(4.0 - k).clamp(0.0, 1.0)).round() as u8
        };
        *pixel = [channel(5.0), channel(3.0), channel(1.0)];
    }
}

/// Each channel stretched over all values.
pub(crate) fn autocontrast(picture: &mut Picture) {
    each_channel(picture, |histogram| {
        let low = histogram.iter().position(|n| *n > 0).unwrap_or(0) as f64;
        let high = histogram.iter().rposition(|n| *n > 0).unwrap_or(255) as f64;
        std::array::from_fn(|x| {
            if high <= low { x as u8 } else { ((x as f64 - low) * 255.0 / (high - low)).clamp(0.0, 255.0) as u8 }
        })
    });
}

/// Each channel so that all values are about equally frequent.
pub(crate) fn equalize(picture: &mut Picture) {
    each_channel(picture, |histogram| {
        let total: usize = histogram.iter().sum();
        let last = histogram.iter().rev().find(|n| **n > 0).copied().unwrap_or(0);
        let step = (total - last) / 255;
        let mut before = step / 2;
        std::array::from_fn(|x| {
            let value = before.checked_div(step).map_or(x, |level| level.min(255));
            before += histogram[x];
            value as u8
        })
    });
}

/// Values from `threshold` on inverted.
pub(crate) fn solarize(picture: &mut Picture, threshold: f64) {
    for value in picture.bytes.iter_mut().filter(|v| f64::from(**v) >= threshold) {
        *value = 255 - *value;
    }
}

/// Only the `bits` highest bits.
pub(crate) fn posterize(picture: &mut Picture, bits: u32) {
    let mask = !(0xff_u8.checked_shr(bits).unwrap_or(0));
    picture.bytes.iter_mut().for_each(|v| *v &= mask);
}

fn each_channel(picture: &mut Picture, table: impl Fn(&[usize; 256]) -> [u8; 256]) {
    for channel in 0..picture.channels {
        let mut histogram = [0; 256];
        let values = || (channel..picture.bytes.len()).step_by(picture.channels);
        for at in values() {
            histogram[usize::from(picture.bytes[at])] += 1;
        }
        let table = table(&histogram);
        for at in values() {
            picture.bytes[at] = table[usize::from(picture.bytes[at])];
        }
    }
}

/// The picture read at `matrix` times each place from the middle, `[a, b, c; d, e, f]` with columns x, y, 1; nearest
/// pixels, black outside.
pub(crate) fn affine(picture: &Picture, matrix: [f64; 6]) -> Picture {
    let mut out = Picture::black(picture.height, picture.width, picture.channels);
    let (middle_x, middle_y) = (picture.width as f64 / 2.0, picture.height as f64 / 2.0);
    let [a, b, c, d, e, f] = matrix;
    for row in 0..picture.height {
        for column in 0..picture.width {
            let (x, y) = (column as f64 + 0.5 - middle_x, row as f64 + 0.5 - middle_y);
            let from_x = (a * x + b * y + c + middle_x).floor();
            let from_y = (d * x + e * y + f + middle_y).floor();
            let inside =
                from_x >= 0.0 && from_y >= 0.0 && from_x < picture.width as f64 && from_y < picture.height as f64;
            if inside {
                let from = (from_y as usize * picture.width + from_x as usize) * picture.channels;
                let to = (row * picture.width + column) * picture.channels;
                out.bytes[to..to + picture.channels].copy_from_slice(&picture.bytes[from..from + picture.channels]);
            }
        }
    }
    out
}
