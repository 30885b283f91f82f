//! Mixup and CutMix: a set of pictures whose training batches are mixed, and which has a second class for each sample.
//!
//! As timm's `Mixup` with `mode="elem"`: sample i of a batch of n takes what it is mixed with from sample n - 1 - i as it was
//! before, and draws for itself which of the two ways is used, how much of it is left, and where the box lies.

use tokenizers::Tokenizer;

use super::weights::LABEL_WEIGHTS;
use crate::dataset::{Dataset, ElementType, Facts, Field, PaddedLength, Split};
use crate::error::DataError;
use crate::images::augment::{Augment, Mixing};
use crate::open::Demands;
use crate::order::{Draws, Stream};

/// The name of the field, i32 [], that holds the class of what was mixed in.
pub const MIXED_LABELS: &str = "mixed_labels";
/// The name of the field, f32 [], that holds what this class counts for in the loss; `label_weights` has the rest.
pub const MIXED_LABEL_WEIGHTS: &str = "mixed_label_weights";

/// A data set whose training batches are mixed.
pub(crate) struct Mixed {
    inner: Box<dyn Dataset>,
    mixup: Option<f64>,
    cutmix: Option<f64>,
    seed: u64,
    fields: Vec<Field>,
    /// The places of pixels and labels among the fields; the weights and the second labels are the last three.
    pixels: usize,
    labels: usize,
}

/// How a picture is mixed with another.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Mix {
    /// Every pixel is this share of its own and the rest of the other.
    Blend(f32),
    /// The rows and columns from the first to below the second number are the other's.
    Box { rows: [usize; 2], columns: [usize; 2] },
}

impl Mix {
    /// The box that leaves about `share` of the area, around a centre, cut at the edges.
    fn around(share: f64, centre: [usize; 2], size: [usize; 2]) -> Mix {
        let side = (1.0 - share).sqrt();
        let [rows, columns] = [0, 1].map(|axis| {
            let cut = (size[axis] as f64 * side) as usize;
            [centre[axis].saturating_sub(cut / 2), (centre[axis] + cut.div_ceil(2)).min(size[axis])]
        });
        Mix::Box { rows, columns }
    }

    /// The share of the picture that is left.
    fn share(self, [height, width]: [usize; 2]) -> f32 {
        match self {
            Mix::Blend(share) => share,
            Mix::Box { rows: [top, bottom], columns: [left, right] } => {
                (1.0 - ((bottom - top) * (right - left)) as f64 / (height * width) as f64) as f32
            }
        }
    }

    /// Mixes `other` into a picture, both f32 `[channels, height, width]`.
    fn apply(self, picture: &mut [u8], other: &[u8], [height, width]: [usize; 2]) {
        match self {
            Mix::Blend(share) => {
                let rest = 1.0 - share;
                for (own, other) in picture.as_chunks_mut::<4>().0.iter_mut().zip(other.as_chunks::<4>().0) {
                    *own = (f32::from_le_bytes(*own) * share + f32::from_le_bytes(*other) * rest).to_le_bytes();
                }
            }
            Mix::Box { rows: [top, bottom], columns: [left, right] } => {
                let row = width * 4;
                let planes = picture.chunks_exact_mut(height * row).zip(other.chunks_exact(height * row));
                for (plane, other) in planes {
                    for y in top..bottom {
                        let part = y * row + left * 4..y * row + right * 4;
                        plane[part.clone()].copy_from_slice(&other[part]);
                    }
                }
            }
        }
    }
}

/// The logarithm of a number drawn from the Gamma distribution (Marsaglia and Tsang 2000): of a small `alpha` the number itself
/// is often too small for a float.
fn ln_gamma(alpha: f64, draws: &mut Draws) -> f64 {
    // For all alpha: from Gamma(alpha + 1), and then down.
    let d = alpha + 1.0 - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let radius = (-2.0 * (1.0 - draws.unit()).ln()).sqrt();
        let normal = radius * (std::f64::consts::TAU * draws.unit()).cos();
        let v = (1.0 + c * normal).powi(3);
        let u = 1.0 - draws.unit();
        if v > 0.0 && u.ln() < 0.5 * normal * normal + d - d * v + d * v.ln() {
            return (d * v).ln() + (1.0 - draws.unit()).ln() / alpha;
        }
    }
}

/// A number from 0 to 1 drawn from Beta(alpha, alpha).
fn beta(alpha: f64, draws: &mut Draws) -> f64 {
    let (own, other) = (ln_gamma(alpha, draws), ln_gamma(alpha, draws));
    1.0 / (1.0 + (other - own).exp())
}

impl Mixed {
    /// Mixes the pictures of `inner` as `augment` says.
    pub fn new(inner: Box<dyn Dataset>, augment: &Augment, demands: Demands) -> Result<Mixed, DataError> {
        if demands.batch < 2 {
            return Err(DataError::setting(
                "data.images.augment",
                "`mixup` and `cutmix` mix the images of a batch, but `train.batch` is 1",
                "train.batch = 16; `train.accumulate` does not help, as the images of one batch are mixed",
            ));
        }
        let place = |name: &str| inner.fields().iter().position(|field| field.name == name);
        let [pixels, labels] = ["pixel_values", "labels"].map(|name| place(name).expect("images have labels"));
        let mut fields = inner.fields().to_vec();
        if place(LABEL_WEIGHTS).is_none() {
            fields.push(Field::new(LABEL_WEIGHTS, ElementType::F32, &[]));
        }
        fields.push(Field::new(MIXED_LABELS, ElementType::I32, &[]));
        fields.push(Field::new(MIXED_LABEL_WEIGHTS, ElementType::F32, &[]));
        let alpha = |mixing: Option<Mixing>| mixing.map(|mixing| mixing.alpha);
        let (mixup, cutmix) = (alpha(augment.mixup), alpha(augment.cutmix));
        Ok(Mixed { inner, mixup, cutmix, seed: demands.seed, fields, pixels, labels })
    }

    /// The height and width of the pictures.
    fn size(&self) -> [usize; 2] {
        let shape = &self.fields[self.pixels].shape;
        [shape[1], shape[2]]
    }

    /// How the sample at `index` of `epoch` is mixed.
    fn draw(&self, (epoch, index): (u64, u64)) -> Mix {
        let mut draws = Draws::new(Stream::Mix, (self.seed, epoch, index));
        match (self.mixup, self.cutmix) {
            (Some(alpha), cutmix) if cutmix.is_none() || draws.unit() < 0.5 => {
                Mix::Blend(beta(alpha, &mut draws) as f32)
            }
            (_, cutmix) => {
                let share = beta(cutmix.expect("one of the two is given"), &mut draws);
                let size = self.size();
                let centre = size.map(|size| draws.up_to(size - 1));
                Mix::around(share, centre, size)
            }
        }
    }

    /// Mixes a batch as `mixes` says.
    fn mix_as(&self, mixes: &[Mix], out: &mut [&mut [u8]]) {
        let size = self.size();
        let bytes = self.fields[self.pixels].bytes();
        let labels = out[self.labels].to_vec();
        let [.., weights, mixed_labels, mixed_weights] = out else { panic!("one buffer per field") };
        let before = weights.to_vec();
        for (slot, mix) in mixes.iter().enumerate() {
            let other = mixes.len() - 1 - slot;
            let (word, others) = (slot * 4..slot * 4 + 4, other * 4..other * 4 + 4);
            let weight = |place: &[u8]| f32::from_le_bytes(place.try_into().expect("a weight has 4 bytes"));
            let share = mix.share(size);
            weights[word.clone()].copy_from_slice(&(weight(&before[word.clone()]) * share).to_le_bytes());
            mixed_labels[word.clone()].copy_from_slice(&labels[others.clone()]);
            mixed_weights[word].copy_from_slice(&(weight(&before[others]) * (1.0 - share)).to_le_bytes());
        }
        let pixels = &mut *out[self.pixels];
        for (slot, mix) in mixes.iter().enumerate().take(mixes.len() / 2) {
            let other = mixes.len() - 1 - slot;
            let (first, second) = pixels.split_at_mut(other * bytes);
            let (own, others) = (&mut first[slot * bytes..][..bytes], &mut second[..bytes]);
            let before = own.to_vec();
            mix.apply(own, others, size);
            mixes[other].apply(others, &before, size);
        }
    }
}

impl Dataset for Mixed {
    fn fields(&self) -> &[Field] {
        &self.fields
    }

    fn len(&self, split: Split) -> u64 {
        self.inner.len(split)
    }

    fn lengths(&self) -> &[PaddedLength] {
        self.inner.lengths()
    }

    fn length_of(&self, split: Split, epoch: u64, index: u64) -> Option<usize> {
        self.inner.length_of(split, epoch, index)
    }

    /// The sample by itself: all of its weight is its own class's.
    fn write_sample(&self, split: Split, epoch: u64, index: u64, out: &mut [&mut [u8]]) {
        let (own, added) = out.split_at_mut(self.inner.fields().len());
        self.inner.write_sample(split, epoch, index, own);
        let [weight @ .., mixed_label, mixed_weight] = added else { panic!("one destination per field") };
        if let [weight] = weight {
            weight.copy_from_slice(&1f32.to_le_bytes());
        }
        mixed_label.copy_from_slice(own[self.labels]);
        mixed_weight.copy_from_slice(&0f32.to_le_bytes());
    }

    fn mix(&self, samples: &[(u64, u64)], out: &mut [&mut [u8]]) {
        let mixes: Vec<Mix> = samples.iter().map(|sample| self.draw(*sample)).collect();
        self.mix_as(&mixes, out);
    }

    fn facts(&self) -> &Facts {
        self.inner.facts()
    }

    fn checksum(&self) -> &str {
        self.inner.checksum()
    }

    fn tokenizer(&self) -> Option<&Tokenizer> {
        self.inner.tokenizer()
    }
}

#[cfg(test)]
mod tests;
