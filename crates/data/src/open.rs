//! From a `[data]` table to a dataset.

use std::path::Path;

use crate::config::DataConfig;
use crate::dataset::Dataset;
use crate::error::DataError;
use crate::{labelled, text};

/// What [`open`] is doing, for a progress display.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Source text is being hashed, in bytes.
    Hashing {
        /// Done so far.
        done: u64,
        /// In all.
        total: u64,
    },
    /// A BPE or character vocabulary is being made from the training text.
    TrainingTokenizer {
        /// Bytes of text.
        bytes: u64,
    },
    /// Text is being turned into tokens, in bytes.
    Tokenizing {
        /// Done so far.
        done: u64,
        /// In all.
        total: u64,
    },
    /// Samples are being read from a labelled file.
    Reading {
        /// Rows or images so far.
        samples: u64,
    },
    /// A cached file was damaged or foreign and is being made again, and why.
    Rebuilding {
        /// The file and what is wrong with it.
        why: String,
    },
}

/// Opens what `config` names.
///
/// Relative paths start at `base_dir` (the experiment file's folder). Token shards are kept in `cache_dir`. `seed` decides the
/// order of training samples and stratified splits. `context` is the window of next-token training; only text needs it.
///
/// # Errors
/// A setting that is missing or contradictory, a file that cannot be read, or contents that are not what they should be.
pub fn open(
    config: &DataConfig,
    base_dir: &Path,
    cache_dir: &Path,
    seed: u64,
    context: Option<usize>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Box<dyn Dataset>, DataError> {
    let validation = config.validation.as_ref();
    if config.text.is_none() && config.tokenizer.is_some() {
        return Err(DataError::setting(
            "data.tokenizer",
            "`tokenizer` is given, but there is no `text` to tokenise",
            "remove `tokenizer`, or name a text: text = \"book.txt\"",
        ));
    }
    match (&config.text, &config.images, &config.table) {
        (Some(paths), None, None) => {
            let tokenizer = config.tokenizer.clone().unwrap_or_default();
            let sources = text::Settings { paths, tokenizer: &tokenizer, validation, context };
            let dataset = text::open(&sources, base_dir, cache_dir, seed, progress)?;
            Ok(Box::new(dataset))
        }
        (None, Some(images), None) => labelled::open_images(images, validation, base_dir, seed, progress),
        (None, None, Some(table)) => Ok(Box::new(labelled::open_table(table, validation, base_dir, seed, progress)?)),
        (text, images, table) => {
            let given: Vec<&str> = [("text", text.is_some()), ("images", images.is_some()), ("table", table.is_some())]
                .into_iter()
                .filter_map(|(name, given)| given.then_some(name))
                .collect();
            let what = if given.is_empty() {
                "no data is named: none of `text`, `images` and `table` is given".to_owned()
            } else {
                format!("`{}` are given; one experiment has one of them", given.join("` and `"))
            };
            Err(DataError::setting(
                "data",
                what,
                "name one source: text = \"book.txt\", images = { csv = \"digits.csv.gz\", label = \"last\" } or \
                 table = { csv = \"iris.csv\", label = \"species\" }",
            ))
        }
    }
}
