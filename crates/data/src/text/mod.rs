//! Text as a dataset of next-token windows.
//!
//! Source files ([`source`]) and a tokenizer ([`tokenizer`]) make a token shard ([`tokenize`], [`shards`]), which windows are
//! read from: training in windows of T that start at a random phase each epoch, validation in windows that predict every
//! held-out token exactly once. [`masked_windows`] reads windows in which tokens are to be guessed from both sides, which [`masking`]
//! chooses; [`lengths`] pads samples that are texts of their own.

pub(crate) mod lengths;
mod masked_windows;
pub(crate) mod masking;
mod protobuf;
mod sentencepiece;
pub(crate) mod shards;
pub(crate) mod source;
pub(crate) mod tokenize;
pub(crate) mod tokenizer;
pub(crate) mod vocabulary;

use std::path::Path;

use tokenizers::Tokenizer;

use self::shards::{FORMAT_VERSION, Shards};
use self::source::Source;
use self::tokenizer::{TrainingPieces, TrainingText};
use crate::config::{Paths, TokenizerConfig, Validation};
use crate::dataset::{Dataset, ElementType, Facts, Field, IGNORED_LABEL, Split, SplitFacts};
use crate::error::{DataError, Place};
use crate::open::{Demands, Progress};
use crate::order::{Stream, random_below, shuffled};

/// What decides a text dataset.
pub(crate) struct Settings<'a> {
    pub paths: &'a Paths,
    pub tokenizer: &'a TokenizerConfig,
    pub validation: Option<&'a Validation>,
    pub demands: Demands,
}

/// Windows of a token shard.
pub(crate) struct TokenDataset {
    shards: Shards,
    tokenizer: Tokenizer,
    context: u64,
    seed: u64,
    fields: Vec<Field>,
    facts: Facts,
    checksum: String,
}

/// Opens a text, from the cache if nothing has changed.
pub(crate) fn open(
    settings: &Settings<'_>,
    base_dir: &Path,
    cache_dir: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<Box<dyn Dataset>, DataError> {
    let Demands { seed, masked, .. } = settings.demands;
    let context = match settings.demands.context {
        Some(context @ 1..=0x7fff_ffff) => context,
        other => {
            return Err(DataError::setting(
                "model.context",
                format!(
                    "text needs the number of tokens of a window, at least 1; found {}",
                    other.map_or("none".to_owned(), |c| c.to_string())
                ),
                "context = 128",
            ));
        }
    };
    let source = Source::find(settings.paths, settings.validation, base_dir, progress)?;
    let key = key(settings.tokenizer, masked, &source, base_dir)?;
    let name = blake3::Hash::from_bytes(key).to_hex();
    let path = cache_dir.join(format!("tokens-{}.bin", &name[..16]));
    let mut notes = Vec::new();
    let cached = path.exists().then(|| open_shards(&path, &key));
    let (from_cache, (shards, tokenizer)) = match cached {
        Some(Ok(shards)) => (true, shards),
        missing => {
            if let Some(Err(why)) = missing {
                let why = format!("{} {why}; made again", path.display());
                progress(Progress::Rebuilding { why: why.clone() });
                notes.push(why);
            }
            let tokenizer = build_tokenizer(settings.tokenizer, &source, masked, base_dir, progress)?;
            let by_character = *settings.tokenizer == TokenizerConfig::Char {};
            tokenize::write_shards(&source, &tokenizer, by_character, key, &path, progress)?;
            let again = open_shards(&path, &key).map_err(|why| {
                DataError::content(
                    &path,
                    Place::Whole,
                    format!("the file that was just written {why}"),
                    "check the disk",
                )
            })?;
            (false, again)
        }
    };
    tokenizer_notes(settings.tokenizer, &shards, &mut notes);
    let file = &source.segments[0].path;
    if masked {
        let tokens = masked_windows::Tokens { shards, tokenizer, from_cache, notes };
        return Ok(Box::new(masked_windows::MaskedWindows::new(tokens, context, seed, file)?));
    }
    let mut dataset = TokenDataset {
        shards,
        tokenizer,
        context: context as u64,
        seed,
        fields: vec![
            Field::new("input_ids", ElementType::I32, &[context]),
            Field::new("labels", ElementType::I32, &[context]),
        ],
        facts: Facts::default(),
        checksum: String::new(),
    };
    dataset.check_long_enough(file)?;
    dataset.facts = dataset.gather_facts(from_cache, notes);
    dataset.checksum = dataset.sum();
    Ok(Box::new(dataset))
}

/// The tokenizer of a text, with the special tokens of an encoder if asked.
fn build_tokenizer(
    config: &TokenizerConfig,
    source: &Source,
    encoder: bool,
    base_dir: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<Tokenizer, DataError> {
    let mut error = None;
    let text = TrainingText {
        pieces: TrainingPieces::new(source, &mut error),
        bytes: source.bytes(Split::Train),
        path: &source.segments[0].path,
        encoder,
    };
    let built = tokenizer::build(config, text, base_dir, progress);
    error.map_or(built, Err)
}

fn open_shards(path: &Path, key: &[u8; 32]) -> Result<(Shards, Tokenizer), String> {
    let shards = Shards::open(path, key)?;
    let tokenizer = tokenizer::parse(path, shards.tokenizer_json()).map_err(|e| e.to_string())?;
    Ok((shards, tokenizer))
}

/// blake3 of all that decides the tokens: contents, cuts, tokenizer settings, format version. Names of files do not.
fn key(tokenizer: &TokenizerConfig, masked: bool, source: &Source, base_dir: &Path) -> Result<[u8; 32], DataError> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"tenon tokens");
    hasher.update(&FORMAT_VERSION.to_le_bytes());
    if masked && !matches!(tokenizer, TokenizerConfig::File { .. }) {
        hasher.update(b"encoder ");
    }
    match tokenizer {
        TokenizerConfig::Bpe { vocab } => {
            hasher.update(b"bpe ");
            hasher.update(&(*vocab as u64).to_le_bytes());
        }
        TokenizerConfig::Char {} => {
            hasher.update(b"char");
        }
        TokenizerConfig::File { file } => {
            let path = base_dir.join(file);
            let bytes = std::fs::read(&path).map_err(DataError::io("read", &path))?;
            hasher.update(b"file");
            hasher.update(blake3::hash(&bytes).as_bytes());
        }
    }
    for segment in &source.segments {
        hasher.update(segment.split.name().as_bytes());
        hasher.update(&(segment.end - segment.start).to_le_bytes());
        hasher.update(&[u8::from(segment.separated)]);
        hasher.update(segment.hash.as_bytes());
    }
    Ok(*hasher.finalize().as_bytes())
}

fn tokenizer_notes(config: &TokenizerConfig, shards: &Shards, notes: &mut Vec<String>) {
    let facts = &shards.facts;
    if let TokenizerConfig::Bpe { vocab } = config
        && facts.vocab < *vocab as u64
    {
        notes.push(format!(
            "the training text supports a vocabulary of {} tokens, not the {vocab} asked for",
            facts.vocab
        ));
    }
    for split in [Split::Train, Split::Validation] {
        let unknown = facts.unknown.of(split);
        if unknown > 0 {
            notes.push(format!(
                "{unknown} of {} {} tokens are unknown to the tokenizer: bits per byte counts each as one token, whatever it \
                 stands for",
                facts.tokens.of(split),
                split.name()
            ));
        }
    }
    if !facts.lossless && facts.unknown.train == 0 {
        notes.push(
            "the tokenizer does not restore its text exactly: bits per byte is that of the text it makes".to_owned(),
        );
    }
}

impl TokenDataset {
    fn check_long_enough(&self, path: &Path) -> Result<(), DataError> {
        let tokens = self.shards.facts.tokens;
        if tokens.train <= self.context {
            return Err(DataError::content(
                path,
                Place::Whole,
                format!(
                    "the training text has {} tokens; one window of context {} needs {}",
                    tokens.train,
                    self.context,
                    self.context + 1
                ),
                "use a shorter context or more text",
            ));
        }
        Ok(())
    }

    /// Training windows of an epoch: as many as fit at every phase.
    fn train_windows(&self) -> u64 {
        let predicted = self.shards.facts.tokens.train - 1;
        ((predicted + 1 - self.context) / self.context).max(1)
    }

    /// First token of training window `index` of `epoch`.
    fn train_start(&self, epoch: u64, index: u64) -> u64 {
        let windows = self.train_windows();
        let spare = self.shards.facts.tokens.train - 1 - windows * self.context;
        let phases = (spare + 1).min(self.context);
        let phase = random_below(self.seed, Stream::Phase, epoch, phases);
        phase + shuffled(self.seed, epoch, index, windows) * self.context
    }

    fn gather_facts(&self, from_cache: bool, notes: Vec<String>) -> Facts {
        let facts = &self.shards.facts;
        let of = |split| SplitFacts {
            samples: self.len(split),
            tokens: facts.tokens.of(split),
            bytes: facts.bytes.of(split),
            class_counts: Vec::new(),
        };
        Facts {
            vocab: Some(facts.vocab as usize),
            context: Some(self.context as usize),
            train: of(Split::Train),
            validation: of(Split::Validation),
            from_cache,
            notes,
            ..Facts::default()
        }
    }

    fn sum(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"tenon text");
        hasher.update(&self.shards.checksum);
        hasher.update(&self.context.to_le_bytes());
        hasher.finalize().to_hex().to_string()
    }
}

impl Dataset for TokenDataset {
    fn fields(&self) -> &[Field] {
        &self.fields
    }

    fn len(&self, split: Split) -> u64 {
        match split {
            Split::Train => self.train_windows(),
            Split::Validation => self.shards.facts.tokens.validation.div_ceil(self.context),
        }
    }

    fn write_sample(&self, split: Split, epoch: u64, index: u64, out: &mut [&mut [u8]]) {
        let [inputs, labels] = out else { panic!("text has 2 fields, {} destinations are given", out.len()) };
        let bytes = self.fields[0].bytes();
        assert_eq!([inputs.len(), labels.len()], [bytes; 2], "bytes of a window");
        assert!(index < self.len(split), "sample {index} of {}", self.len(split));
        let tokens = self.shards.facts.tokens;
        let (start, real) = match split {
            Split::Train => (self.train_start(epoch, index), self.context),
            // The last training token is the context of the first held-out one, so that each of these is predicted once.
            Split::Validation => {
                let done = index * self.context;
                let real = (tokens.validation - done).min(self.context);
                (tokens.train - 1 + done, real)
            }
        };
        let bytes = real as usize * 4;
        self.shards.copy_tokens(start, &mut inputs[..bytes]);
        self.shards.copy_tokens(start + 1, &mut labels[..bytes]);
        inputs[bytes..].fill(0);
        for label in labels[bytes..].chunks_exact_mut(4) {
            label.copy_from_slice(&IGNORED_LABEL.to_le_bytes());
        }
    }

    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn checksum(&self) -> &str {
        &self.checksum
    }

    fn tokenizer(&self) -> Option<&Tokenizer> {
        Some(&self.tokenizer)
    }
}

#[cfg(test)]
mod tests;
