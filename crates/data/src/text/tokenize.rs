//! Tokenises a whole source into a shard file, in pieces of bounded size that give the tokens of the whole.

use std::path::Path;

use tokenizers::Tokenizer;

use super::shards::ShardWriter;
use super::source::{PieceReader, Source};
use super::tokenizer::{END_OF_TEXT, library_error, tokenizer_to_json, unknown_token, vocabulary_size, word_starts};
use crate::dataset::Split;
use crate::error::DataError;
use crate::files::write_atomically;
use crate::open::Progress;

/// Text is tokenised in pieces of about this many bytes, a few at once.
pub(crate) const PIECE_BYTES: usize = 1 << 16;
const PIECES_AT_ONCE: usize = 16;
/// Text on either side of a cut whose tokens must not depend on the cut.
const NEIGHBOURHOOD: usize = 256;
const CUTS_TRIED: usize = 32;

/// Tokenises `source` and writes the shard file `path`.
pub(crate) fn write_shards(
    source: &Source,
    tokenizer: &Tokenizer,
    by_character: bool,
    key: [u8; 32],
    path: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), DataError> {
    let json = tokenizer_to_json(tokenizer).map_err(|error| library_error(path, &error))?;
    write_atomically(path, |file| {
        let vocab = vocabulary_size(tokenizer);
        let mut writer = ShardWriter::new(file, path, key, vocab, &json)?;
        for split in [Split::Train, Split::Validation] {
            *writer.facts().bytes.of_mut(split) = source.bytes(split);
        }
        let unknown = unknown_token(tokenizer);
        let mut first = true;
        let mut sink = |split, text: &str, tokens: &[u32]| {
            if let Some(unknown) = unknown {
                let count = tokens.iter().filter(|&&t| t == unknown).count();
                *writer.facts().unknown.of_mut(split) += count as u64;
            }
            if std::mem::take(&mut first) {
                let skip_special_tokens = false;
                let decoded = tokenizer.decode(tokens, skip_special_tokens);
                writer.facts().lossless = decoded.is_ok_and(|decoded| decoded == text);
            }
            writer.push(split, tokens)
        };
        tokenize(source, tokenizer, by_character, PIECE_BYTES, &mut sink, progress)?;
        writer.finish()
    })
}

/// Calls `sink` with the split, text and tokens of every piece in order; documents that have a successor end with the
/// tokenizer's [`END_OF_TEXT`], if it has one.
pub(crate) fn tokenize(
    source: &Source,
    tokenizer: &Tokenizer,
    by_character: bool,
    piece_bytes: usize,
    sink: &mut impl FnMut(Split, &str, &[u32]) -> Result<(), DataError>,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), DataError> {
    let separator = tokenizer.token_to_id(END_OF_TEXT);
    let total = source.bytes(Split::Train) + source.bytes(Split::Validation);
    let mut done = 0;
    let mut cut = |text: &str| match by_character {
        true => Some(text.len()),
        false => last_safe_cut(tokenizer, text),
    };
    for segment in &source.segments {
        let mut reader = PieceReader::new(segment, piece_bytes)?;
        loop {
            let mut pieces = Vec::with_capacity(PIECES_AT_ONCE);
            while pieces.len() < PIECES_AT_ONCE
                && let Some(piece) = reader.next_piece(&mut cut)?
            {
                pieces.push(piece);
            }
            if pieces.is_empty() {
                break;
            }
            let add_special_tokens = false;
            let texts: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let encodings = tokenizer
                .encode_batch_fast(texts, add_special_tokens)
                .map_err(|error| library_error(&segment.path, &error))?;
            for (piece, encoding) in pieces.iter().zip(&encodings) {
                sink(segment.split, piece, encoding.get_ids())?;
                done += piece.len() as u64;
            }
            progress(Progress::Tokenizing { done, total });
        }
        if segment.separated
            && let Some(separator) = separator
        {
            sink(segment.split, END_OF_TEXT, &[separator])?;
        }
    }
    Ok(())
}

/// The last place between two words where cutting changes no token nearby. A tokenizer for which there is none (one that marks
/// the start of its input, say) sees the whole text at once.
fn last_safe_cut(tokenizer: &Tokenizer, text: &str) -> Option<usize> {
    let ids = |text: &str| {
        let add_special_tokens = false;
        let encoding = tokenizer.encode_fast(text, add_special_tokens).ok()?;
        Some(encoding.get_ids().to_vec())
    };
    let enough = text.len().saturating_sub(NEIGHBOURHOOD);
    word_starts(text).filter(|&at| at <= enough).take(CUTS_TRIED).find(|&at| {
        let start = text.floor_char_boundary(at.saturating_sub(NEIGHBOURHOOD));
        let end = text.ceil_char_boundary(at + NEIGHBOURHOOD);
        let whole = ids(&text[start..end]);
        let parts = ids(&text[start..at]).zip(ids(&text[at..end]));
        whole.is_some() && whole == parts.map(|(left, right)| [left, right].concat())
    })
}
