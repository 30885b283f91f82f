//! Tokenizers: trained, made of characters, or loaded; always a `Tokenizer` of the crate `tokenizers`, saved as `tokenizer.json`.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Map, Value, json};
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, ModelWrapper, Tokenizer};

use super::source::{PieceReader, Source};
use crate::config::TokenizerConfig;
use crate::dataset::Split;
use crate::error::{DataError, Place};
use crate::files::write_bytes_atomically;
use crate::open::Progress;

/// The special token that ends a document (GPT-2's); the tokenizers trained here have it as token 0.
pub const END_OF_TEXT: &str = "<|endoftext|>";
/// What a character tokenizer makes of a character that the training text does not have; token 0.
pub const UNKNOWN: &str = "<unk>";

/// 256 bytes and [`END_OF_TEXT`].
const SMALLEST_BPE: usize = 257;
/// A pair must occur twice to become a token.
const MIN_FREQUENCY: u64 = 2;
const PIECE_BYTES: usize = 1 << 16;

/// BERT's special tokens, which a tokenizer for encoders has beside the others.
pub(crate) const FILLER: &str = "[PAD]";
pub(crate) const START: &str = "[CLS]";
pub(crate) const END: &str = "[SEP]";
pub(crate) const MASK: &str = "[MASK]";
/// Those that are not [`UNKNOWN`] or [`END_OF_TEXT`].
const OF_ENCODERS: [&str; 4] = [FILLER, START, END, MASK];

/// The text that a tokenizer is made from.
pub(crate) struct TrainingText<'a, I> {
    /// Its pieces, cut where no token can reach across.
    pub pieces: I,
    /// Their bytes, for the display.
    pub bytes: u64,
    /// The file, for messages.
    pub path: &'a Path,
    /// Whether it is for an encoder: then it has the special tokens of BERT, and samples start and end with one.
    pub encoder: bool,
}

/// Makes the tokenizer that `config` asks for; only training text is looked at.
pub(crate) fn build(
    config: &TokenizerConfig,
    text: TrainingText<'_, impl Iterator<Item = String> + Send>,
    base_dir: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<Tokenizer, DataError> {
    if let TokenizerConfig::File { file } = config {
        return load_tokenizer(&base_dir.join(file));
    }
    if let TokenizerConfig::Bpe { vocab } = config {
        check_bpe_vocab(*vocab)?;
    }
    progress(Progress::TrainingTokenizer { bytes: text.bytes });
    let (path, encoder) = (text.path, text.encoder);
    let mut tokenizer = match config {
        TokenizerConfig::Bpe { vocab } => train_bpe(*vocab, text)?,
        _ => characters(text)?,
    };
    if encoder {
        frame(&mut tokenizer).map_err(|error| library_error(path, &error))?;
    }
    Ok(tokenizer)
}

/// Has samples and pairs of samples framed as BERT's are.
fn frame(tokenizer: &mut Tokenizer) -> Result<(), tokenizers::Error> {
    let tokens: Vec<(String, u32)> =
        [START, END].into_iter().filter_map(|t| Some((t.to_owned(), tokenizer.token_to_id(t)?))).collect();
    let template = TemplateProcessing::builder()
        .try_single(format!("{START}:0 $A:0 {END}:0"))?
        .try_pair(format!("{START}:0 $A:0 {END}:0 $B:1 {END}:1"))?
        .special_tokens(tokens)
        .build()?;
    tokenizer.with_post_processor(Some(template));
    Ok(())
}

fn check_bpe_vocab(vocab: usize) -> Result<(), DataError> {
    if (SMALLEST_BPE..=1 << 24).contains(&vocab) {
        return Ok(());
    }
    Err(DataError::setting(
        "data.tokenizer.vocab",
        format!(
            "a vocabulary of {vocab} tokens is asked for; byte-level BPE has 256 bytes and {END_OF_TEXT}, so at least \
             {SMALLEST_BPE}, and at most {}",
            1 << 24
        ),
        "1024 for one book, 32768 for a large corpus",
    ))
}

/// Training text as an iterator of pieces cut between words, which end at the first error.
pub(crate) struct TrainingPieces<'a> {
    source: &'a Source,
    next_segment: usize,
    reader: Option<PieceReader>,
    error: &'a mut Option<DataError>,
}

impl<'a> TrainingPieces<'a> {
    /// The pieces of the training part; what goes wrong is left in `error`.
    pub fn new(source: &'a Source, error: &'a mut Option<DataError>) -> Self {
        TrainingPieces { source, next_segment: 0, reader: None, error }
    }

    fn advance(&mut self) -> Result<Option<String>, DataError> {
        loop {
            if let Some(reader) = &mut self.reader {
                if let Some(piece) = reader.next_piece(&mut |text| word_starts(text).next())? {
                    return Ok(Some(piece));
                }
                self.reader = None;
            }
            let Some(segment) = self.source.segments.get(self.next_segment) else {
                return Ok(None);
            };
            self.next_segment += 1;
            if segment.split == Split::Train {
                self.reader = Some(PieceReader::new(segment, PIECE_BYTES)?);
            }
        }
    }
}

impl Iterator for TrainingPieces<'_> {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        self.advance().unwrap_or_else(|error| {
            *self.error = Some(error);
            self.next_segment = self.source.segments.len();
            self.reader = None;
            None
        })
    }
}

/// Where text may be cut without changing GPT-2's pre-tokenisation, from the last to the first: before a lone space or newline
/// between two words. A space goes with the word after it, a lone newline is always a word of its own.
pub(crate) fn word_starts(text: &str) -> impl Iterator<Item = usize> + '_ {
    let is_word = |c: Option<char>| c.is_some_and(|c| !c.is_whitespace());
    text.rmatch_indices([' ', '\n'])
        .map(|(at, _)| at)
        .filter(move |&at| is_word(text[..at].chars().next_back()) && is_word(text[at + 1..].chars().next()))
}

/// A byte-level BPE as GPT-2's: no prefix space, all 256 bytes, one special token. The crate breaks ties between pairs of equal
/// count by their tokens, so neither its hash maps nor its threads show in the result.
fn train_bpe(
    vocab: usize,
    text: TrainingText<'_, impl Iterator<Item = String> + Send>,
) -> Result<Tokenizer, DataError> {
    let special = std::iter::once(END_OF_TEXT).chain(OF_ENCODERS.into_iter().filter(|_| text.encoder));
    let mut tokenizer = Tokenizer::new(BPE::default());
    let (no_prefix_space, trim_offsets, use_regex) = (false, false, true);
    let byte_level = ByteLevel::new(no_prefix_space, trim_offsets, use_regex);
    tokenizer.with_pre_tokenizer(Some(byte_level)).with_decoder(Some(byte_level)).with_post_processor(Some(byte_level));
    let mut trainer: TrainerWrapper = BpeTrainer::builder()
        .vocab_size(vocab)
        .min_frequency(MIN_FREQUENCY)
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(special.map(|token| AddedToken::from(token, true)).collect())
        .build()
        .into();
    tokenizer.train(&mut trainer, text.pieces).map_err(|error| library_error(text.path, &error))?;
    Ok(tokenizer)
}

/// The parts of a tokenizer, as `tokenizer.json` has them; null is none.
#[derive(Default)]
pub(super) struct Parts {
    pub normalizer: Value,
    pub pre_tokenizer: Value,
    pub post_processor: Value,
    pub decoder: Value,
    pub model: Value,
}

impl Parts {
    /// The tokenizer, made from the file at `path`.
    pub(super) fn assemble(self, path: &Path) -> Result<Tokenizer, DataError> {
        let json = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": [],
            "normalizer": self.normalizer,
            "pre_tokenizer": self.pre_tokenizer,
            "post_processor": self.post_processor,
            "decoder": self.decoder,
            "model": self.model,
        });
        parse(path, json.to_string().as_bytes())
    }
}

/// A tokenizer of single characters: a BPE without merges, which every reader of `tokenizer.json` understands.
fn characters(text: TrainingText<'_, impl Iterator<Item = String>>) -> Result<Tokenizer, DataError> {
    let mut alphabet = BTreeSet::new();
    for piece in text.pieces {
        alphabet.extend(piece.chars());
    }
    let special = std::iter::once(UNKNOWN).chain(OF_ENCODERS.into_iter().filter(|_| text.encoder));
    let tokens = special.map(str::to_owned).chain(alphabet.iter().map(char::to_string));
    let vocab: Map<String, Value> = tokens.enumerate().map(|(id, token)| (token, json!(id))).collect();
    let model = json!({
        "type": "BPE",
        "dropout": null,
        "unk_token": UNKNOWN,
        "continuing_subword_prefix": null,
        "end_of_word_suffix": null,
        "fuse_unk": false,
        "byte_fallback": false,
        "ignore_merges": false,
        "vocab": vocab,
        "merges": [],
    });
    let mut tokenizer = Parts { decoder: json!({ "type": "Fuse" }), model, ..Parts::default() }.assemble(text.path)?;
    if text.encoder {
        let special = std::iter::once(UNKNOWN).chain(OF_ENCODERS).map(|token| AddedToken::from(token, true));
        tokenizer.add_special_tokens(&special.collect::<Vec<AddedToken>>());
    }
    Ok(tokenizer)
}

/// Loads a `tokenizer.json`. Its truncation and padding settings are dropped: here texts are cut into windows.
///
/// # Errors
/// A file that cannot be read or is not a tokenizer.
pub fn load_tokenizer(path: &Path) -> Result<Tokenizer, DataError> {
    let bytes = std::fs::read(path).map_err(DataError::io("read", path))?;
    parse(path, &bytes)
}

/// A tokenizer from the text of a `tokenizer.json`; `path` is for messages.
pub(crate) fn parse(path: &Path, json: &[u8]) -> Result<Tokenizer, DataError> {
    serde_json::from_slice::<Value>(json).map_err(|error| {
        DataError::content(
            path,
            Place::Line(error.line() as u64),
            format!("not JSON: {error}"),
            "name a complete tokenizer.json, or fetch it again",
        )
    })?;
    // The crate panics on some settings that it does not expect (a damaged precompiled normalizer, for one).
    let read = std::panic::catch_unwind(|| Tokenizer::from_bytes(json))
        .unwrap_or_else(|_| Err("its settings are damaged".into()));
    let mut tokenizer = read.map_err(|e| library_error(path, &e))?;
    tokenizer.with_truncation(None).map_err(|e| library_error(path, &e))?;
    tokenizer.with_padding(None);
    if vocabulary_size(&tokenizer) == 0 {
        return Err(DataError::content(
            path,
            Place::Whole,
            "the tokenizer has no tokens",
            "name a complete tokenizer.json",
        ));
    }
    Ok(tokenizer)
}

/// Writes `tokenizer.json`, completely or not at all.
///
/// # Errors
/// A file that cannot be written.
pub fn save_tokenizer(tokenizer: &Tokenizer, path: &Path) -> Result<(), DataError> {
    let json = tokenizer_to_json(tokenizer).map_err(|message| library_error(path, &message))?;
    write_bytes_atomically(path, json.as_bytes())
}

/// The text of `tokenizer.json`; equal tokenizers give equal text.
///
/// # Errors
/// The crate's own message, if a part of the tokenizer cannot be written as JSON.
pub fn tokenizer_to_json(tokenizer: &Tokenizer) -> Result<String, tokenizers::Error> {
    let pretty = true;
    tokenizer.to_string(pretty)
}

/// Rows that an embedding table needs: the greatest token + 1, which exceeds the number of tokens where ids have gaps.
pub fn vocabulary_size(tokenizer: &Tokenizer) -> usize {
    let with_added_tokens = true;
    let greatest = tokenizer.get_vocab(with_added_tokens).into_values().max();
    greatest.map_or(0, |id| id as usize + 1)
}

/// The first of these names that is a token.
pub(crate) fn token_named(tokenizer: &Tokenizer, names: &[&str]) -> Option<u32> {
    names.iter().find_map(|name| tokenizer.token_to_id(name))
}

/// The token that stands for what the tokenizer does not know, if it has one.
pub(crate) fn unknown_token(tokenizer: &Tokenizer) -> Option<u32> {
    let name = match tokenizer.get_model() {
        ModelWrapper::BPE(model) => model.get_unk_token().as_deref()?,
        ModelWrapper::WordPiece(model) => &model.unk_token,
        ModelWrapper::WordLevel(model) => &model.unk_token,
        ModelWrapper::Unigram(_) => UNKNOWN,
    };
    tokenizer.token_to_id(name)
}

pub(crate) fn library_error(path: &Path, error: &tokenizers::Error) -> DataError {
    DataError::content(
        path,
        Place::Whole,
        format!("the tokenizer cannot be used: {error}"),
        "name a tokenizer.json as the crate `tokenizers` or Hugging Face writes it",
    )
}
