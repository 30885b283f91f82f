//! Texts as tokens: `input_ids`, `attention_mask`, `token_type_ids` i32 [t], padded to a few lengths, and `labels` i32: the
//! class [], or the tokens to be guessed [t] where they are masked.

use std::path::Path;

use tokenizers::{EncodeInput, Tokenizer, TruncationParams};

use super::labels::Labels;
use super::texts::{self, Sample, TextRows};
use super::{class_notes, class_split_facts, split};
use crate::config::{TextSource, TokenizerConfig, Validation};
use crate::dataset::{Dataset, ElementType, Facts, Field, IGNORED_LABEL, PaddedLength, Split, SplitFacts};
use crate::error::DataError;
use crate::open::{Demands, Progress};
use crate::text::lengths::{Grouped, choose};
use crate::text::masking::Masking;
use crate::text::tokenizer::{
    self, FILLER, TrainingText, library_error, token_named, tokenizer_to_json, vocabulary_size,
};

/// Samples that are encoded at once.
const AT_ONCE: usize = 1024;

/// Texts as tokens, one after the other.
#[derive(Default)]
struct Encoded {
    tokens: Vec<u32>,
    /// Of each token: 0, or 1 in the second text of a pair.
    types: Vec<u8>,
    /// Where each sample starts; one more, the number of tokens.
    starts: Vec<usize>,
}

/// What is to be predicted of a text.
enum Target {
    Class(Labels),
    MaskedTokens(Masking),
}

/// Texts that are samples.
pub(crate) struct TextSet {
    encoded: Encoded,
    target: Target,
    /// The rows of each split, and how they are grouped by length.
    train: (Vec<u32>, Grouped),
    validation: (Vec<u32>, Grouped),
    filler: u32,
    tokenizer: Tokenizer,
    lengths: Vec<PaddedLength>,
    fields: Vec<Field>,
    facts: Facts,
    checksum: String,
    demands: Demands,
}

/// Opens texts that are samples, to be classified or masked as `demands` say.
pub(crate) fn open_text_set(
    source: &TextSource,
    tokenizer: &TokenizerConfig,
    validation: Option<&Validation>,
    base_dir: &Path,
    demands: Demands,
    progress: &mut dyn FnMut(Progress),
) -> Result<TextSet, DataError> {
    let TextRows { samples, labels, own, mut notes } =
        texts::read(source, !demands.masked, validation, base_dir, progress)?;
    let classes = labels.as_ref().map(|labels| &labels.values[..]);
    let rows = split::split(validation, samples.len(), own, classes, demands.seed)?;
    let most = match (source.max_tokens, demands.context) {
        (Some(0), _) => {
            let what = "max_tokens is 0; a sample has at least one token";
            return Err(DataError::setting("data.labelled_text.max_tokens", what, "max_tokens = 256"));
        }
        (Some(most), Some(context)) if most > context => {
            return Err(DataError::setting(
                "data.labelled_text.max_tokens",
                format!("max_tokens is {most}, but the model's context is {context}"),
                "remove `max_tokens`, or raise the context of the model",
            ));
        }
        (most, context) => most.or(context),
    };
    let path = base_dir.join(source.csv.as_ref().or(source.jsonl.as_ref()).or(source.folder.as_ref()).expect("read"));
    let words = |row: &u32| {
        let (text, pair) = &samples[*row as usize];
        std::iter::once(text.clone()).chain(pair.clone())
    };
    let text = TrainingText {
        bytes: rows.train.iter().flat_map(words).map(|text| text.len() as u64).sum(),
        pieces: rows.train.iter().flat_map(words),
        path: &path,
        encoder: true,
    };
    let tokenizer = tokenizer::build(tokenizer, text, base_dir, progress)?;
    let filler = filler_of(&tokenizer);
    let (encoded, cut) = encode(&tokenizer, &samples, most, filler).map_err(|error| library_error(&path, &error))?;
    if let (Some(most), true) = (most, cut > 0) {
        notes.push(format!("{cut} of {} samples are cut to {most} tokens", samples.len()));
    }
    let tokens_of = |rows: &[u32]| rows.iter().map(|&row| encoded.length(row)).collect::<Vec<usize>>();
    let all: Vec<usize> = (0..samples.len() as u32).map(|row| encoded.length(row)).collect();
    let lengths = choose(&all, most.unwrap_or(usize::MAX));
    let grouped = |rows: &[u32]| Grouped::new(&lengths, &tokens_of(rows));
    let (train, validation) = (grouped(&rows.train), grouped(&rows.validation));
    let shares = train.shares();
    notes.push(padding_note(&shares, &tokens_of(&rows.train)));

    let longest = lengths[lengths.len() - 1];
    let target = match labels {
        Some(labels) if !demands.masked => Target::Class(labels),
        _ => Target::MaskedTokens(Masking::new(&tokenizer, demands.seed)?),
    };
    let sequence = |name| Field { padded: true, ..Field::new(name, ElementType::I32, &[longest]) };
    let mut fields = ["input_ids", "attention_mask", "token_type_ids"].map(sequence).to_vec();
    let mut facts = Facts { vocab: Some(vocabulary_size(&tokenizer)), notes, ..Facts::default() };
    match &target {
        Target::Class(labels) => {
            fields.push(Field::new("labels", ElementType::I32, &[]));
            facts.classes = Some(labels.names.len());
            facts.class_names = labels.names.clone();
            (facts.train, facts.validation) =
                (class_split_facts(&rows.train, labels), class_split_facts(&rows.validation, labels));
            facts.notes.extend(class_notes(&facts));
        }
        Target::MaskedTokens(_) => {
            fields.push(sequence("labels"));
            let facts_of = |rows: &[u32]| SplitFacts { samples: rows.len() as u64, ..SplitFacts::default() };
            (facts.train, facts.validation) = (facts_of(&rows.train), facts_of(&rows.validation));
        }
    }
    let mut dataset = TextSet {
        encoded,
        target,
        train: (rows.train, train),
        validation: (rows.validation, validation),
        filler,
        lengths: shares,
        fields,
        facts,
        checksum: String::new(),
        demands,
        tokenizer,
    };
    dataset.checksum = dataset.sum().map_err(|error| library_error(&path, &error))?;
    Ok(dataset)
}

impl Encoded {
    fn length(&self, row: u32) -> usize {
        self.starts[row as usize + 1] - self.starts[row as usize]
    }
}

/// All samples as tokens, and how many are cut.
fn encode(
    tokenizer: &Tokenizer,
    samples: &[Sample],
    most: Option<usize>,
    filler: u32,
) -> Result<(Encoded, usize), tokenizers::Error> {
    let mut cutting = tokenizer.clone();
    if let Some(max_length) = most {
        cutting.with_truncation(Some(TruncationParams { max_length, ..TruncationParams::default() }))?;
    }
    let mut encoded = Encoded { starts: vec![0], ..Encoded::default() };
    let mut cut = 0;
    for batch in samples.chunks(AT_ONCE) {
        let inputs: Vec<EncodeInput<'_>> = batch
            .iter()
            .map(|(text, pair)| match pair {
                Some(pair) => (text.as_str(), pair.as_str()).into(),
                None => text.as_str().into(),
            })
            .collect();
        let add_special_tokens = true;
        for encoding in cutting.encode_batch_fast(inputs, add_special_tokens)? {
            cut += usize::from(!encoding.get_overflowing().is_empty());
            encoded.tokens.extend(encoding.get_ids());
            encoded.types.extend(encoding.get_type_ids().iter().map(|&ty| ty as u8));
            if encoding.get_ids().is_empty() {
                // A model needs something to look at.
                encoded.tokens.push(filler);
                encoded.types.push(0);
            }
            encoded.starts.push(encoded.tokens.len());
        }
    }
    Ok((encoded, cut))
}

/// One text as the tokens of a sample, with the tokenizer's special tokens, cut to `most` tokens.
///
/// # Errors
/// A tokenizer that cannot be used, or cannot cut to so few.
pub fn encode_text(tokenizer: &Tokenizer, text: &str, most: Option<usize>) -> Result<Vec<u32>, tokenizers::Error> {
    let sample = (text.to_owned(), None);
    Ok(encode(tokenizer, &[sample], most, filler_of(tokenizer))?.0.tokens)
}

/// The token that fills up short samples.
fn filler_of(tokenizer: &Tokenizer) -> u32 {
    token_named(tokenizer, &[FILLER, "<pad>"]).unwrap_or(0)
}

fn padding_note(shares: &[PaddedLength], tokens: &[usize]) -> String {
    let real: usize = tokens.iter().sum();
    let padded: f64 = shares.iter().map(|s| s.share * s.length as f64).sum::<f64>() * tokens.len() as f64;
    let lengths: Vec<String> = shares.iter().map(|s| s.length.to_string()).collect();
    let wasted = 100.0 * (1.0 - real as f64 / padded);
    format!("samples are padded to {} tokens: {wasted:.0} % padding", lengths.join(", "))
}

impl TextSet {
    /// The row at a place of a split, and its length.
    fn row(&self, split: Split, epoch: u64, index: u64) -> (usize, usize) {
        let (rows, (sample, length)) = match split {
            Split::Train => {
                let (rows, grouped) = &self.train;
                (rows, grouped.shuffled(self.demands.seed, epoch, index, self.demands.batch))
            }
            Split::Validation => (&self.validation.0, self.validation.1.in_order(index)),
        };
        (rows[sample as usize] as usize, length)
    }

    /// blake3 of all samples as the model sees them, and of the split.
    fn sum(&self) -> Result<String, tokenizers::Error> {
        let mut hasher = blake3::Hasher::new();
        let (kind, labels): (&[u8], &[u32]) = match &self.target {
            Target::Class(labels) => (b"tenon labelled text", &labels.values),
            Target::MaskedTokens(_) => (b"tenon masked samples", &[]),
        };
        hasher.update(kind);
        hasher.update(tokenizer_to_json(&self.tokenizer)?.as_bytes());
        for token in self.encoded.tokens.iter().chain(labels).chain(&self.validation.0) {
            hasher.update(&token.to_le_bytes());
        }
        hasher.update(&self.encoded.types);
        for size in self.encoded.starts.iter().copied().chain(self.lengths.iter().map(|l| l.length)) {
            hasher.update(&(size as u64).to_le_bytes());
        }
        for name in &self.facts.class_names {
            hasher.update(&(name.len() as u64).to_le_bytes());
            hasher.update(name.as_bytes());
        }
        Ok(hasher.finalize().to_hex().to_string())
    }
}

impl Dataset for TextSet {
    fn fields(&self) -> &[Field] {
        &self.fields
    }

    fn len(&self, split: Split) -> u64 {
        self.facts.split(split).samples
    }

    fn lengths(&self) -> &[PaddedLength] {
        &self.lengths
    }

    fn length_of(&self, split: Split, epoch: u64, index: u64) -> Option<usize> {
        Some(self.row(split, epoch, index).1)
    }

    fn write_sample(&self, split: Split, epoch: u64, index: u64, out: &mut [&mut [u8]]) {
        let [ids, seen, types, labels] = out else {
            panic!("texts have 4 fields, {} destinations are given", out.len())
        };
        let (row, _) = self.row(split, epoch, index);
        let sample = self.encoded.starts[row]..self.encoded.starts[row + 1];
        assert!([seen.len(), types.len()] == [ids.len(); 2] && sample.len() * 4 <= ids.len(), "bytes of a sample");
        let (tokens, kinds) = (&self.encoded.tokens[sample.clone()], &self.encoded.types[sample.clone()]);
        let places = ids.chunks_exact_mut(4).zip(seen.chunks_exact_mut(4)).zip(types.chunks_exact_mut(4));
        for (place, ((id, seen), ty)) in places.enumerate() {
            let real = tokens.get(place).copied();
            id.copy_from_slice(&real.unwrap_or(self.filler).to_le_bytes());
            seen.copy_from_slice(&u32::from(real.is_some()).to_le_bytes());
            ty.copy_from_slice(&u32::from(kinds.get(place).copied().unwrap_or(0)).to_le_bytes());
        }
        match &self.target {
            Target::Class(classes) => labels.copy_from_slice(&classes.values[row].to_le_bytes()),
            Target::MaskedTokens(masking) => {
                let (key, text) = (masking.key(split, epoch), tokens.len() * 4);
                masking.apply(key, sample.start as u64, &mut ids[..text], &mut labels[..text]);
                for label in labels[text..].chunks_exact_mut(4) {
                    label.copy_from_slice(&IGNORED_LABEL.to_le_bytes());
                }
            }
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
