//! The `[data]` table of an experiment file. Paths are relative to the experiment file's folder.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::DataError;
use crate::images::augment::Augment;
use crate::images::resize::Filter;

/// What to train on: exactly one of `text`, `labelled_text`, `images` and `table`.
///
/// ```toml
/// [data]
/// text = "moby-dick.txt"
/// tokenizer = { kind = "bpe", vocab = 1024 }
/// validation = { last = 0.1 }
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Text for next-token training: a file, a folder (its .txt, .text, .md and .rst files, recursively, sorted by path), or
    /// a list of them. UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<Paths>,
    /// Texts that are samples, with a class each or to be masked: CSV, JSON lines, or folders.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labelled_text: Option<TextSource>,
    /// Labelled images, as IDX, CSV or folders of files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<ImageSource>,
    /// A CSV table of numbers with a label or a target column.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<TableSource>,
    /// How text becomes tokens; only with text. Default: that of the model that training starts from, or else a byte-level BPE
    /// of 1,024 tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<TokenizerConfig>,
    /// Which part is held out. Without it nothing is, and nothing can be evaluated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<Validation>,
    /// What each class counts for in the training loss, where there are classes: `"balanced"`, or a list in the order of the
    /// classes. Absent: all the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class_weights: Option<ClassWeights>,
}

/// What each class counts for in the training loss.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase", expecting = "expected \"balanced\" or a list of numbers")]
pub enum ClassWeights {
    /// Samples divided by classes and by the samples of the class, as measured on the training part.
    Balanced,
    /// One number for each class.
    #[serde(untagged)]
    List(Vec<f64>),
}

/// Texts that are samples: either `csv` or `jsonl` with `text` and `label`, or `folder`. Masked language modelling needs no
/// classes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TextSource {
    /// CSV file, plain or gzip. Cells are separated by commas, tabs or semicolons, whichever the first line has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub csv: Option<PathBuf>,
    /// File of JSON objects, one a line, plain or gzip.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jsonl: Option<PathBuf>,
    /// Folder with a folder for each class, in which every .txt, .text, .md and .rst file is a text. Hidden files and folders (`.name`) are passed over. To be masked, every such file in it is a text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub folder: Option<PathBuf>,
    /// The column or key of the text; of a CSV also `first` and `last`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The column or key of a second text, where samples are pairs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pair: Option<String>,
    /// The column or key of the class. Words or whole numbers; the classes are the distinct values, sorted. To be masked, texts need none; a stratified split goes by it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Whether the first row of the CSV is a header. Default: it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub header: Option<bool>,
    /// Longer samples are cut to so many tokens. Default: the model's context.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<usize>,
    /// Whether of samples with the same text only the first is kept, before anything is held out.
    pub deduplicate: bool,
}

/// One path or several.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a path or a list of paths")]
pub enum Paths {
    /// One file or folder.
    One(PathBuf),
    /// Several, in this order.
    Many(Vec<PathBuf>),
}

impl Paths {
    /// The paths as a slice.
    pub fn as_slice(&self) -> &[PathBuf] {
        match self {
            Paths::One(path) => std::slice::from_ref(path),
            Paths::Many(paths) => paths,
        }
    }
}

/// How text becomes tokens. Whatever the kind, the result is a `tokenizer.json` of the crate `tokenizers`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum TokenizerConfig {
    /// Byte-level BPE (GPT-2's), trained on the training part only.
    Bpe {
        /// Tokens in all: 256 bytes, `<|endoftext|>` and the merges. A small text may support fewer.
        vocab: usize,
    },
    /// One token for every character of the training part, and `<unk>` for any other.
    Char {},
    /// A given `tokenizer.json`.
    File {
        /// Its path.
        file: PathBuf,
    },
}

impl Default for TokenizerConfig {
    fn default() -> Self {
        TokenizerConfig::Bpe { vocab: 1024 }
    }
}

/// Which part of the data is held out for validation.
///
/// | | text | labelled texts, images, tables |
/// |---|---|---|
/// | `last` | the last fraction of the bytes, cut at a character | the last fraction of the samples |
/// | `last_count` | - | the last so many samples |
/// | `stratified` | - | a fraction of each class, chosen by the seed |
/// | `every` | - | samples n-1, 2n-1, ... of the file |
/// | `file` | other files | another CSV with the same columns; another file or folder of texts; another folder of images |
/// | `idx` | - | another pair of IDX files |
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Validation {
    /// The last fraction, between 0 and 1.
    Last(f64),
    /// The last so many samples.
    LastCount(u64),
    /// This fraction of every class, chosen by the seed.
    Stratified(f64),
    /// Every n-th sample.
    Every(u64),
    /// Other files.
    File(Paths),
    /// Another pair of IDX files.
    Idx(IdxPair),
}

/// A pair of IDX files (MNIST's format), plain or gzip.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct IdxPair {
    /// Images: unsigned bytes, `[n, height, width]` or `[n, channels, height, width]`.
    pub images: PathBuf,
    /// Labels: unsigned bytes, `[n]`.
    pub labels: PathBuf,
}

/// Labelled images: `idx` and `labels`, or `csv` and `label`, or `folder` and `size`.
///
/// Pixels are whole numbers 0 to 255; the model sees `value / 255`, then `(x - mean) / std` where these are given.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageSource {
    /// IDX file of images, plain or gzip.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idx: Option<PathBuf>,
    /// IDX file of labels, plain or gzip.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<PathBuf>,
    /// CSV file, plain or gzip: one image a row, its pixels in the order of `shape`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub csv: Option<PathBuf>,
    /// The label's column in the CSV: `first`, `last`, or its name in the header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Whether the first row of the CSV is a header. Default: it is one if none of its cells is a number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<bool>,
    /// `[channels, height, width]` of one image. Default: what the IDX file says; for CSV one square channel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shape: Option<[usize; 3]>,
    /// Number of classes. Default: the greatest label + 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classes: Option<usize>,
    /// Mean of each channel, of pixels scaled to 0..1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean: Option<Vec<f32>>,
    /// Standard deviation of each channel, of pixels scaled to 0..1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub std: Option<Vec<f32>>,
    /// Folder with one folder for each class, named after it: PNG, JPEG and WebP files, at any depth. Hidden files and folders (`.name`) are passed over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folder: Option<PathBuf>,
    /// `[height, width]` that the model sees of the images of a folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<[usize; 2]>,
    /// 1 (grey) or 3 (red, green, blue, the default) channels of the images of a folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channels: Option<usize>,
    /// How images change their size, with Pillow's numbers. Default: bilinear.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<Filter>,
    /// The model sees the middle of an image, of which this share of the shorter side is left. Default: 1.0, all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub center: Option<f64>,
    /// What happens when a file of a folder cannot be decoded. Default: refuse.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_corrupt: Option<OnCorrupt>,
    /// Random changes of training images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub augment: Option<Augment>,
}

/// What happens when an image cannot be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnCorrupt {
    /// The run does not start; the error names the file.
    Refuse,
    /// It is left out, and a note names it.
    Skip,
}

/// A CSV table (plain or gzip): numeric feature columns and either a class (`label`) or a number (`target`) to predict.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TableSource {
    /// The file. Cells are separated by commas, tabs or semicolons, whichever the first line has.
    pub csv: PathBuf,
    /// Column of the class: `first`, `last`, or its name in the header. Words or whole numbers; the classes are the distinct
    /// values of the file, sorted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Column of the number to predict: `first`, `last`, or its name in the header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Whether the first row is a header. Default: it is one if none of its cells is a number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<bool>,
    /// Whether each feature is shifted and scaled to mean 0 and standard deviation 1, as measured on the training part.
    #[serde(default = "yes")]
    pub standardize: bool,
}

fn yes() -> bool {
    true
}

/// A held-out fraction lies between 0 and 1, both excluded.
pub(crate) fn check_fraction(key: &str, fraction: f64) -> Result<(), DataError> {
    if fraction > 0.0 && fraction < 1.0 {
        return Ok(());
    }
    Err(DataError::setting(
        key,
        format!("the held-out fraction is {fraction}; it must lie between 0 and 1"),
        "a tenth is 0.1",
    ))
}
