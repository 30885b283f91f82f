//! What a trainer sees of any data: named fields, splits, facts, and samples as pure functions of (seed, epoch, index).

use serde::Serialize;
use tokenizers::Tokenizer;

/// The label that a loss ignores (PyTorch's and Hugging Face's `ignore_index`).
pub const IGNORED_LABEL: i32 = -100;

/// The type of a field's elements; both take 4 bytes, little endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ElementType {
    /// 32-bit float.
    F32,
    /// 32-bit signed integer.
    I32,
}

impl ElementType {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            ElementType::F32 | ElementType::I32 => 4,
        }
    }
}

/// One named tensor of a sample. Names are the ecosystem's: `input_ids`, `pixel_values`, `features`, `labels`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Field {
    /// Its name, as the model and the loss know it.
    pub name: String,
    /// The type of its elements.
    pub element: ElementType,
    /// The shape of one sample, row-major; empty for one number.
    pub shape: Vec<usize>,
    /// Whether the first axis is as long as the batch is padded to; `shape` then has the longest.
    pub padded: bool,
}

impl Field {
    /// A field whose samples all have this shape.
    pub fn new(name: &str, element: ElementType, shape: &[usize]) -> Self {
        Field { name: name.to_owned(), element, shape: shape.to_vec(), padded: false }
    }

    /// This field in a batch that is padded to `length`, one of [`Dataset::lengths`]; `None` where nothing is padded.
    pub fn at(&self, length: Option<usize>) -> Field {
        let mut field = self.clone();
        if let (true, Some(length)) = (self.padded, length) {
            field.shape[0] = length;
        }
        field
    }

    /// Bytes of one sample of this field.
    pub fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.element.size()
    }

    /// The element of a sample that only fills up a batch. Class labels are [`IGNORED_LABEL`]; real-valued labels are NaN, so
    /// that a metric which forgets to leave them out shows it; everything else is zero.
    fn padding(&self) -> [u8; 4] {
        match (self.name.as_str(), self.element) {
            ("labels", ElementType::I32) => IGNORED_LABEL.to_le_bytes(),
            ("labels", ElementType::F32) => f32::NAN.to_le_bytes(),
            _ => [0; 4],
        }
    }
}

/// Which part of the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// The part that is trained on, in a new shuffled order every epoch.
    Train,
    /// The held-out part, in file order, the same every epoch.
    Validation,
}

impl Split {
    /// `train` or `validation`.
    pub const fn name(self) -> &'static str {
        match self {
            Split::Train => "train",
            Split::Validation => "validation",
        }
    }
}

/// What is known of the data: what a model may need to be built, and what a report prints. Absent where it has no meaning.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Facts {
    /// Text: greatest token + 1.
    pub vocab: Option<usize>,
    /// Text: tokens of one window.
    pub context: Option<usize>,
    /// Number of classes.
    pub classes: Option<usize>,
    /// The classes' names, in the order of their labels.
    pub class_names: Vec<String>,
    /// `[channels, height, width]`.
    pub image: Option<[usize; 3]>,
    /// Tables: number of feature columns.
    pub features: Option<usize>,
    /// Tables: the features' names, where the file has a header.
    pub feature_names: Vec<String>,
    /// What was taken from and divided out of each channel or feature, if anything.
    pub standardization: Option<Standardization>,
    /// The training part.
    pub train: SplitFacts,
    /// The held-out part.
    pub validation: SplitFacts,
    /// Whether tokens came from the cache.
    pub from_cache: bool,
    /// What the user should know: a vocabulary smaller than asked for, unknown characters, classes without samples, ...
    pub notes: Vec<String>,
}

impl Facts {
    /// The facts of one split.
    pub fn split(&self, split: Split) -> &SplitFacts {
        match split {
            Split::Train => &self.train,
            Split::Validation => &self.validation,
        }
    }
}

/// Sizes of one split.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct SplitFacts {
    /// Samples of an epoch.
    pub samples: u64,
    /// Text: tokens, separators of documents included. Of the held-out part each is predicted exactly once, so
    /// bits per byte = total loss in nats / ln 2 / `bytes`.
    pub tokens: u64,
    /// Text: bytes of the source.
    pub bytes: u64,
    /// Classes: samples of each.
    pub class_counts: Vec<u64>,
}

/// Per channel or feature: the model sees `(x - mean) / std`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Standardization {
    /// Subtracted.
    pub mean: Vec<f32>,
    /// Divided by; 1 where a feature is constant.
    pub std: Vec<f32>,
}

/// A length to which batches are padded.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct PaddedLength {
    /// Elements of the first axis.
    pub length: usize,
    /// The share of the training samples that are as long, from 0 to 1.
    pub share: f64,
}

/// Named, deterministic samples. Shared by any number of threads.
pub trait Dataset: Send + Sync {
    /// The tensors of a sample, in the order of `write_sample`'s destinations.
    fn fields(&self) -> &[Field];

    /// Samples of an epoch.
    fn len(&self, split: Split) -> u64;

    /// The lengths to which batches are padded, ascending; empty where all samples have one shape.
    fn lengths(&self) -> &[PaddedLength] {
        &[]
    }

    /// The least of [`Dataset::lengths`] that holds sample `index` of `epoch`; `None` where all samples have one shape.
    fn length_of(&self, _split: Split, _epoch: u64, _index: u64) -> Option<usize> {
        None
    }

    /// Writes sample `index` of `epoch`, one destination per field, each exactly [`Field::bytes`] long (of the field at one
    /// length that is enough, where there are several), row-major, little endian.
    /// A pure function of (seed, epoch, index); the held-out part ignores `epoch`.
    ///
    /// # Panics
    /// If `index` is not below [`Dataset::len`], a destination has another length, or an image file that could be read when
    /// the data was opened has gone since.
    fn write_sample(&self, split: Split, epoch: u64, index: u64, out: &mut [&mut [u8]]);

    /// Mixes the samples of a training batch, each of which has been written; `samples` has (epoch, index) of each, `out` one
    /// buffer per field. A pure function of these and of the seed. Most data leaves samples as they are.
    fn mix(&self, _samples: &[(u64, u64)], _out: &mut [&mut [u8]]) {}

    /// What is known of the data.
    fn facts(&self) -> &Facts;

    /// blake3, in hex, over everything that decides the samples except the order of an epoch: a checkpoint keeps it, and a
    /// resume on other data is refused.
    fn checksum(&self) -> &str;

    /// The tokenizer, if this is text.
    fn tokenizer(&self) -> Option<&Tokenizer> {
        None
    }
}

/// Epoch and index of the sample at `position`; see [`fill_batch`].
fn sample_at(split: Split, position: u64, len: u64) -> (u64, u64) {
    match split {
        Split::Train => (position / len, position % len),
        Split::Validation => (0, position),
    }
}

/// The length to which the batch at `position` is padded: what its longest sample needs; `None` where all samples have one
/// shape.
pub fn batch_length(dataset: &dyn Dataset, split: Split, position: u64, batch: usize) -> Option<usize> {
    let shortest = dataset.lengths().first()?.length;
    let len = dataset.len(split);
    let samples = (position..position + batch as u64).map(|at| sample_at(split, at, len));
    let lengths = samples.filter(|(_, index)| *index < len).map(|(e, index)| dataset.length_of(split, e, index));
    Some(lengths.flatten().max().unwrap_or(shortest))
}

/// Fills one batch, `[batch, shape...]` per field at [`batch_length`], and returns how many of its samples are real.
///
/// Training: `position` counts samples since the start of the run; epoch = position / len, index = position % len, and a batch
/// may straddle epochs; all samples are real, and [mixed](Dataset::mix) where the data asks for it. Validation: `position` is the index of the first sample; where samples run
/// out the rest is padding (labels [`IGNORED_LABEL`], or NaN for real-valued targets).
///
/// # Panics
/// If `out` has not one buffer of `batch * Field::bytes()` per field, or the split is empty in training.
pub fn fill_batch(dataset: &dyn Dataset, split: Split, position: u64, batch: usize, out: &mut [&mut [u8]]) -> usize {
    let length = batch_length(dataset, split, position, batch);
    let fields: Vec<Field> = dataset.fields().iter().map(|field| field.at(length)).collect();
    let len = dataset.len(split);
    assert_eq!(out.len(), fields.len(), "one buffer per field");
    for (field, buffer) in fields.iter().zip(out.iter()) {
        assert_eq!(buffer.len(), batch * field.bytes(), "bytes of a batch of `{}`", field.name);
    }
    assert!(split == Split::Validation || len > 0, "training needs samples");
    let mut real = 0;
    for slot in 0..batch {
        let mut parts: Vec<&mut [u8]> = out
            .iter_mut()
            .zip(&fields)
            .map(|(buffer, field)| &mut buffer[slot * field.bytes()..(slot + 1) * field.bytes()])
            .collect();
        let (epoch, index) = sample_at(split, position + slot as u64, len);
        if index < len {
            dataset.write_sample(split, epoch, index, &mut parts);
            real += 1;
        } else {
            for (part, field) in parts.iter_mut().zip(&fields) {
                for element in part.chunks_exact_mut(field.element.size()) {
                    element.copy_from_slice(&field.padding());
                }
            }
        }
    }
    if split == Split::Train {
        let samples: Vec<(u64, u64)> = (0..batch as u64).map(|slot| sample_at(split, position + slot, len)).collect();
        dataset.mix(&samples, out);
    }
    real
}
