//! Masked language modelling: windows of a text in which tokens are to be guessed (see [`Masking`]).

use std::path::Path;

use tokenizers::Tokenizer;

use super::masking::Masking;
use super::shards::Shards;
use super::tokenizer::{END, FILLER, START, token_named};
use crate::dataset::{Dataset, ElementType, Facts, Field, IGNORED_LABEL, Split, SplitFacts};
use crate::error::{DataError, Place};
use crate::order::{Stream, random_below, shuffled};

/// A text as tokens.
pub(super) struct Tokens {
    pub shards: Shards,
    pub tokenizer: Tokenizer,
    pub from_cache: bool,
    pub notes: Vec<String>,
}

/// Masked windows of a token shard. Where the tokenizer has tokens for start and end, they frame each window.
pub(super) struct MaskedWindows {
    shards: Shards,
    tokenizer: Tokenizer,
    /// Tokens of a window that come from the text.
    stride: u64,
    /// The tokens before and after them.
    frame: Option<(u32, u32)>,
    filler: u32,
    masking: Masking,
    seed: u64,
    fields: Vec<Field>,
    facts: Facts,
    checksum: String,
}

impl MaskedWindows {
    /// Windows of `context` tokens; `file` is for messages.
    pub fn new(tokens: Tokens, context: usize, seed: u64, file: &Path) -> Result<MaskedWindows, DataError> {
        let Tokens { shards, tokenizer, from_cache, notes } = tokens;
        let named = |names: &[&str]| token_named(&tokenizer, names);
        let masking = Masking::new(&tokenizer, seed)?;
        let frame = named(&[START, "<s>"]).zip(named(&[END, "</s>"])).filter(|_| context > 2);
        let stride = context as u64 - if frame.is_some() { 2 } else { 0 };
        let counts = shards.facts.tokens;
        if counts.train < stride {
            return Err(DataError::content(
                file,
                Place::Whole,
                format!(
                    "the training text has {} tokens; one window of context {context} needs {stride}",
                    counts.train
                ),
                "use a shorter context or more text",
            ));
        }
        let windows = |split| match split {
            Split::Train => counts.train / stride,
            Split::Validation => counts.validation.div_ceil(stride),
        };
        let of = |split| SplitFacts {
            samples: windows(split),
            tokens: counts.of(split),
            bytes: shards.facts.bytes.of(split),
            class_counts: Vec::new(),
        };
        let facts = Facts {
            vocab: Some(shards.facts.vocab as usize),
            context: Some(context),
            train: of(Split::Train),
            validation: of(Split::Validation),
            from_cache,
            notes,
            ..Facts::default()
        };
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"tenon masked");
        hasher.update(&shards.checksum);
        hasher.update(&(context as u64).to_le_bytes());
        let field = |name| Field::new(name, ElementType::I32, &[context]);
        Ok(MaskedWindows {
            filler: named(&[FILLER, "<pad>"]).unwrap_or(0),
            fields: ["input_ids", "attention_mask", "token_type_ids", "labels"].map(field).to_vec(),
            checksum: hasher.finalize().to_hex().to_string(),
            shards,
            stride,
            frame,
            masking,
            seed,
            facts,
            tokenizer,
        })
    }
}

impl Dataset for MaskedWindows {
    fn fields(&self) -> &[Field] {
        &self.fields
    }

    fn len(&self, split: Split) -> u64 {
        self.facts.split(split).samples
    }

    fn write_sample(&self, split: Split, epoch: u64, index: u64, out: &mut [&mut [u8]]) {
        let [ids, seen, types, labels] = out else {
            panic!("masked text has 4 fields, {} destinations are given", out.len())
        };
        let bytes = self.fields[0].bytes();
        assert_eq!([ids.len(), seen.len(), types.len(), labels.len()], [bytes; 4], "bytes of a window");
        let windows = self.len(split);
        assert!(index < windows, "sample {index} of {windows}");
        let counts = self.shards.facts.tokens;
        let (start, real) = match split {
            Split::Train => {
                let phases = (counts.train - windows * self.stride + 1).min(self.stride);
                let phase = random_below(self.seed, Stream::Phase, epoch, phases);
                let start = phase + shuffled(self.seed, epoch, index, windows) * self.stride;
                (start, self.stride)
            }
            Split::Validation => {
                let done = index * self.stride;
                (counts.train + done, (counts.validation - done).min(self.stride))
            }
        };
        let put = |to: &mut [u8], place: usize, value: i32| to[place * 4..][..4].copy_from_slice(&value.to_le_bytes());
        let context = bytes / 4;
        let first = usize::from(self.frame.is_some());
        let real = real as usize;
        // The tokens as they are first stand where they will be shown.
        self.shards.copy_tokens(start, &mut ids[first * 4..(first + real) * 4]);
        let end = first + real + first;
        types.fill(0);
        for place in 0..context {
            put(seen, place, i32::from(place < end));
            put(labels, place, IGNORED_LABEL);
        }
        let text = first * 4..(first + real) * 4;
        self.masking.apply(self.masking.key(split, epoch), start, &mut ids[text.clone()], &mut labels[text]);
        if let Some((before, after)) = self.frame {
            put(ids, 0, before as i32);
            put(ids, first + real, after as i32);
        }
        for place in end..context {
            put(ids, place, self.filler as i32);
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
