//! Where the pictures of a labelled set are, and how they become pixels.

use std::path::PathBuf;

use crate::error::DataError;
use crate::images::augment::Augment;
use crate::images::files;
use crate::images::picture::Picture;
use crate::images::resize::{Filter, center, resize};

/// Where pictures are.
pub(crate) enum Source {
    /// Channels-first bytes of all rows, each of this `[channels, height, width]`.
    Memory { bytes: Vec<u8>, shape: [usize; 3] },
    /// A file for each row, and its checksum.
    Files { paths: Vec<PathBuf>, sums: Vec<blake3::Hash> },
}

/// The pictures of a labelled set.
pub(crate) struct Pictures {
    pub source: Source,
    /// `[channels, height, width]` as the model sees them.
    pub shape: [usize; 3],
    /// The f32 that each byte becomes, for each channel.
    pub levels: Vec<[f32; 256]>,
    pub filter: Filter,
    /// The share of the shorter side that the middle of a picture has.
    pub share: f64,
    pub augment: Option<Augment>,
}

impl Pictures {
    /// Whether a sample takes so long that it is made ahead of its use.
    pub fn are_slow(&self) -> bool {
        self.augment.is_some() || matches!(self.source, Source::Files { .. })
    }

    /// Writes the f32 pixels `[channels, height, width]` of a row, changed at random if `changes` says (seed, epoch, index).
    pub fn write(&self, row: usize, changes: Option<(u64, u64, u64)>, out: &mut [u8]) -> Result<(), DataError> {
        let [channels, height, width] = self.shape;
        let augment = self.augment.as_ref().zip(changes);
        let whole = match &self.source {
            Source::Memory { bytes, shape } => {
                let size: usize = shape.iter().product();
                let bytes = &bytes[row * size..][..size];
                if augment.is_none() && *shape == self.shape {
                    let plane = height * width;
                    for (i, (to, byte)) in out.chunks_exact_mut(4).zip(bytes).enumerate() {
                        to.copy_from_slice(&self.levels[i / plane][usize::from(*byte)].to_le_bytes());
                    }
                    return Ok(());
                }
                Picture::from_planes(bytes, *shape)
            }
            Source::Files { paths, .. } => files::read(&paths[row], channels)?,
        };
        let middle = |whole: &Picture| match self.source {
            Source::Memory { .. } => resize(whole, height, width, self.filter),
            Source::Files { .. } => center(whole, height, width, self.share, self.filter),
        };
        let picture = match augment {
            Some((augment, changes)) => augment.apply(&whole, middle, [height, width], self.filter, changes),
            None => middle(&whole),
        };
        for (channel, levels) in self.levels.iter().enumerate() {
            let plane = out[channel * height * width * 4..].chunks_exact_mut(4);
            for (to, pixel) in plane.zip(picture.bytes.chunks_exact(channels)) {
                to.copy_from_slice(&levels[usize::from(pixel[channel])].to_le_bytes());
            }
        }
        Ok(())
    }

    /// Adds all that decides the pixels.
    pub fn hash(&self, hasher: &mut blake3::Hasher) {
        match &self.source {
            Source::Memory { bytes, .. } => {
                hasher.update(bytes);
            }
            Source::Files { sums, .. } => {
                for sum in sums {
                    hasher.update(sum.as_bytes());
                }
            }
        }
        for level in self.levels.iter().flatten() {
            hasher.update(&level.to_le_bytes());
        }
        if self.are_slow() {
            hasher.update(format!("{:?} {} {:?}", self.filter, self.share, self.augment).as_bytes());
        }
    }
}
