//! A picture of bytes, and what cuts and turns it.

use std::io::Cursor;
use std::path::Path;

use image::{ImageReader, Limits};

use crate::error::{DataError, Place};

/// The largest side that is decoded.
const MAX_SIDE: u32 = 1 << 15;
/// The most memory that a decoder may take, in bytes.
const MAX_DECODED: u64 = 1 << 30;

/// Bytes `[height, width, channels]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Picture {
    pub height: usize,
    pub width: usize,
    pub channels: usize,
    pub bytes: Vec<u8>,
}

impl Picture {
    /// A black picture.
    pub fn black(height: usize, width: usize, channels: usize) -> Picture {
        Picture { height, width, channels, bytes: vec![0; height * width * channels] }
    }

    /// Decodes the bytes of a PNG, JPEG or WebP file to 1 channel (luma) or 3 (RGB). What is transparent shows its colour,
    /// as with Pillow's `convert`; 16 bits are scaled to 8, where that cuts them off at 255.
    pub fn decode(path: &Path, bytes: &[u8], channels: usize) -> Result<Picture, DataError> {
        let damaged = |why: String| {
            DataError::content(
                path,
                Place::Whole,
                format!("the image cannot be decoded: {why}"),
                "replace or remove the file; on_corrupt = \"skip\" in data.images passes over it in a run",
            )
        };
        let mut reader =
            ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(DataError::io("read", path))?;
        let mut limits = Limits::default();
        limits.max_image_width = Some(MAX_SIDE);
        limits.max_image_height = Some(MAX_SIDE);
        limits.max_alloc = Some(MAX_DECODED);
        reader.limits(limits);
        // A decoder of foreign bytes that fails in its own way is a damaged image too.
        let decoded = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| reader.decode()))
            .map_err(|_| damaged("the decoder stopped".to_owned()))?
            .map_err(|error| damaged(error.to_string()))?;
        let grey = !decoded.color().has_color();
        let (height, width) = (decoded.height() as usize, decoded.width() as usize);
        if height == 0 || width == 0 {
            return Err(damaged(format!("it has {height} rows and {width} columns")));
        }
        let bytes = match (channels, grey) {
            (1, true) => decoded.into_luma8().into_raw(),
            (1, false) => luma(&decoded.into_rgb8().into_raw()),
            _ => decoded.into_rgb8().into_raw(),
        };
        Ok(Picture { height, width, channels, bytes })
    }

    /// The pixels of channels-first bytes.
    pub fn from_planes(bytes: &[u8], [channels, height, width]: [usize; 3]) -> Picture {
        let mut picture = Picture::black(height, width, channels);
        for (channel, plane) in bytes.chunks_exact(height * width).enumerate() {
            for (pixel, value) in picture.bytes.chunks_exact_mut(channels).zip(plane) {
                pixel[channel] = *value;
            }
        }
        picture
    }

    /// The rectangle of this size that starts at `(top, left)`; outside it is black.
    pub fn crop(&self, top: isize, left: isize, height: usize, width: usize) -> Picture {
        let mut out = Picture::black(height, width, self.channels);
        let first = left.max(0);
        let last = (left + width as isize).min(self.width as isize);
        for row in 0..height {
            let from = top + row as isize;
            if from < 0 || from >= self.height as isize || last <= first {
                continue;
            }
            let source = (from as usize * self.width + first as usize) * self.channels;
            let target = (row * width + (first - left) as usize) * self.channels;
            let length = (last - first) as usize * self.channels;
            out.bytes[target..target + length].copy_from_slice(&self.bytes[source..source + length]);
        }
        out
    }

    /// Left and right exchanged.
    pub fn flipped(&self) -> Picture {
        let mut out = self.clone();
        let row = self.width * self.channels;
        for (to, from) in out.bytes.chunks_exact_mut(row).zip(self.bytes.chunks_exact(row)) {
            for (to, from) in to.chunks_exact_mut(self.channels).zip(from.chunks_exact(self.channels).rev()) {
                to.copy_from_slice(from);
            }
        }
        out
    }
}

/// Pillow's luma of RGB bytes (ITU-R 601-2 in 16 bits).
pub(crate) fn luma(rgb: &[u8]) -> Vec<u8> {
    rgb.as_chunks::<3>().0.iter().map(|p| luma_of(*p)).collect()
}

/// Pillow's luma of a colour.
pub(crate) fn luma_of([r, g, b]: [u8; 3]) -> u8 {
    ((u32::from(r) * 19595 + u32::from(g) * 38470 + u32::from(b) * 7471 + 0x8000) >> 16) as u8
}
