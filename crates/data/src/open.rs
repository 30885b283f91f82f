//! From a `[data]` table to a dataset.

use std::path::Path;

use crate::config::DataConfig;
use crate::dataset::Dataset;
use crate::error::DataError;
use crate::labelled::{self, Mixed, Weighted};
use crate::text;

/// What training asks of the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demands {
    /// Decides the order of training samples, stratified splits and masks.
    pub seed: u64,
    /// Samples of a batch: where samples are padded, those of a batch are of similar length.
    pub batch: u64,
    /// The most tokens that the model takes. Text is cut into windows of as many, and needs it.
    pub context: Option<usize>,
    /// Whether tokens of a text are masked, to be guessed from both sides; otherwise the next token is.
    pub masked: bool,
}

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
/// Relative paths start at `base_dir` (the experiment file's folder). Token shards are kept in `cache_dir`.
///
/// # Errors
/// A setting that is missing or contradictory, a file that cannot be read, or contents that are not what they should be.
pub fn open(
    config: &DataConfig,
    base_dir: &Path,
    cache_dir: &Path,
    demands: Demands,
    progress: &mut dyn FnMut(Progress),
) -> Result<Box<dyn Dataset>, DataError> {
    let mut dataset = open_source(config, base_dir, cache_dir, demands, progress)?;
    if let [only] = &dataset.facts().class_names[..] {
        let what = format!("all samples are of one class, `{only}`: there is nothing to tell apart");
        return Err(DataError::setting("data", what, "check the column, the file or the folder that says the classes"));
    }
    if let Some(weights) = &config.class_weights {
        dataset = Box::new(Weighted::new(dataset, weights)?);
    }
    let augment = config.images.as_ref().and_then(|images| images.augment.as_ref());
    if let Some(augment) = augment.filter(|augment| augment.mixes()) {
        dataset = Box::new(Mixed::new(dataset, augment, demands)?);
    }
    Ok(dataset)
}

fn open_source(
    config: &DataConfig,
    base_dir: &Path,
    cache_dir: &Path,
    demands: Demands,
    progress: &mut dyn FnMut(Progress),
) -> Result<Box<dyn Dataset>, DataError> {
    let DataConfig { text, labelled_text, images, table, validation, .. } = config;
    let validation = validation.as_ref();
    let Demands { seed, .. } = demands;
    if text.is_none() && labelled_text.is_none() && config.tokenizer.is_some() {
        return Err(DataError::setting(
            "data.tokenizer",
            "`tokenizer` is given, but there is no `text` to tokenise",
            "remove `tokenizer`, or name a text: text = \"book.txt\"",
        ));
    }
    let tokenizer = config.tokenizer.clone().unwrap_or_default();
    match (text, labelled_text, images, table) {
        (Some(paths), None, None, None) => {
            let sources = text::Settings { paths, tokenizer: &tokenizer, validation, demands };
            text::open(&sources, base_dir, cache_dir, progress)
        }
        (None, Some(texts), None, None) => {
            Ok(Box::new(labelled::open_text_set(texts, &tokenizer, validation, base_dir, demands, progress)?))
        }
        (None, None, Some(images), None) => labelled::open_images(images, validation, base_dir, seed, progress),
        (None, None, None, Some(table)) => {
            Ok(Box::new(labelled::open_table(table, validation, base_dir, seed, progress)?))
        }
        _ => {
            let sources = [
                ("text", text.is_some()),
                ("labelled_text", labelled_text.is_some()),
                ("images", images.is_some()),
                ("table", table.is_some()),
            ];
            let given: Vec<&str> = sources.into_iter().filter_map(|(name, given)| given.then_some(name)).collect();
            let what = if given.is_empty() {
                "no data is named: none of `text`, `labelled_text`, `images` and `table` is given".to_owned()
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
