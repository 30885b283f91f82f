//! SentencePiece models, the file `tokenizer.model` of Llama's and Mistral's folders: what the file says, and the tokenizer that
//! cuts a text as SentencePiece does (Kudo and Richardson 2018).
//!
//! Names and numbers of fields are those of sentencepiece_model.proto.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use serde_json::{Value, json};
use tokenizers::normalizers::precompiled::Precompiled;
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{NormalizerWrapper, Prepend, Replace, Sequence};
use tokenizers::{AddedToken, Tokenizer};

use super::protobuf::{Content, Fields};
use super::tokenizer::{Parts, library_error};
use crate::error::{DataError, Place};

/// What stands for a space in pieces.
const SPACE: &str = "\u{2581}";
/// The longest piece, in bytes: every way to cut a piece in two is looked at.
const LONGEST_PIECE: usize = 4096;
/// The greatest number of pieces.
const MOST_PIECES: usize = 1 << 24;

/// What a piece is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Normal = 1,
    Unknown = 2,
    /// Such as `<s>`.
    Control = 3,
    /// Taken out of the text before anything else.
    UserDefined = 4,
    Unused = 5,
    /// `<0x0A>`: what is no piece is its bytes.
    Byte = 6,
}

/// A piece of the vocabulary.
struct Piece {
    text: String,
    score: f32,
    kind: Kind,
}

/// How texts are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    /// The most probable pieces.
    Unigram,
    /// Two neighbours become one piece, that with the best score first.
    Pairs,
}

/// What the file says.
struct SentencePiece<'a> {
    pieces: Vec<Piece>,
    method: Method,
    byte_fallback: bool,
    /// How characters are replaced; empty: not at all.
    charsmap: &'a [u8],
    /// Whether a text begins with a space.
    dummy_prefix: bool,
    /// Whether spaces at the ends are left out, and several are one.
    remove_spaces: bool,
}

impl<'a> SentencePiece<'a> {
    fn read(bytes: &'a [u8], path: &Path) -> Result<SentencePiece<'a>, DataError> {
        let wrong =
            |at: Place, what: String| DataError::content(path, at, what, "fetch the file again, or a tokenizer.json");
        let damaged =
            |at: usize| wrong(Place::Byte(at as u64), "not a model of SentencePiece, or a damaged one".into());
        let mut found = SentencePiece {
            pieces: Vec::new(),
            method: Method::Unigram,
            byte_fallback: false,
            charsmap: &[],
            dummy_prefix: true,
            remove_spaces: true,
        };
        let mut unread: Option<String> = None;
        for field in Fields::of(bytes) {
            let (number, Content::Bytes(message)) = field.map_err(damaged)? else { continue };
            // Where in the file the inner message is.
            let start = message.as_ptr() as usize - bytes.as_ptr() as usize;
            let mut piece = Piece { text: String::new(), score: 0.0, kind: Kind::Normal };
            for field in Fields::of(message) {
                match (number, field.map_err(|at| damaged(start + at))?) {
                    (1, (1, Content::Bytes(text))) => {
                        piece.text = String::from_utf8(text.to_vec()).map_err(|_| damaged(start))?;
                    }
                    (1, (2, Content::Four(score))) => piece.score = f32::from_le_bytes(score),
                    (1, (3, Content::Varint(kind))) => {
                        let kinds =
                            [Kind::Normal, Kind::Unknown, Kind::Control, Kind::UserDefined, Kind::Unused, Kind::Byte];
                        let known = kinds.into_iter().find(|known| *known as u64 == kind);
                        piece.kind = known.ok_or_else(|| damaged(start))?;
                    }
                    (2, (3, Content::Varint(1))) => found.method = Method::Unigram,
                    (2, (3, Content::Varint(2))) => found.method = Method::Pairs,
                    (2, (3, Content::Varint(_))) => unread = Some("model_type is neither UNIGRAM nor BPE".into()),
                    (2, (24, Content::Varint(1))) => unread = Some("treat_whitespace_as_suffix is set".into()),
                    (2, (35, Content::Varint(on))) => found.byte_fallback = on != 0,
                    (3, (2, Content::Bytes(map))) => found.charsmap = map,
                    (3, (3, Content::Varint(on))) => found.dummy_prefix = on != 0,
                    (3, (4, Content::Varint(on))) => found.remove_spaces = on != 0,
                    (3, (5, Content::Varint(0))) => unread = Some("escape_whitespaces is not set".into()),
                    _ => {}
                }
            }
            if number == 1 {
                found.pieces.push(piece);
            }
        }
        let mut seen = HashSet::new();
        let unfit = found.pieces.iter().find_map(|Piece { text, score, kind }| match text.len() {
            0 => Some("a piece is empty".to_owned()),
            LONGEST_PIECE.. => Some(format!("a piece has {} bytes, at most {LONGEST_PIECE} are read", text.len())),
            _ if !score.is_finite() => Some(format!("the score of the piece {text:?} is {score}")),
            _ if *kind == Kind::Unused => Some(format!("the piece {text:?} is marked unused")),
            _ if !seen.insert(text) => Some(format!("the piece {text:?} is there twice")),
            _ => None,
        });
        let unknown = found.pieces.iter().filter(|piece| piece.kind == Kind::Unknown).count();
        let count = (found.pieces.len() > MOST_PIECES).then(|| format!("more than {MOST_PIECES} pieces"));
        let unknown = (unknown != 1).then(|| format!("{unknown} pieces are marked unknown, there must be one"));
        match unread.or(unfit).or(count).or(unknown) {
            Some(what) => Err(wrong(Place::Whole, what)),
            None if !is_sound(found.charsmap) => Err(wrong(Place::Whole, "its precompiled_charsmap is damaged".into())),
            None => Ok(found),
        }
    }

    fn model(&self) -> Value {
        let unknown = self.pieces.iter().position(|piece| piece.kind == Kind::Unknown).unwrap_or_default();
        if self.method == Method::Unigram {
            let vocabulary: Vec<Value> = self.pieces.iter().map(|piece| json!([piece.text, piece.score])).collect();
            return json!({
                "type": "Unigram", "unk_id": unknown, "byte_fallback": self.byte_fallback, "vocab": vocabulary,
            });
        }
        let vocabulary: serde_json::Map<String, Value> =
            self.pieces.iter().enumerate().map(|(id, piece)| (piece.text.clone(), json!(id))).collect();
        let normal = self.pieces.iter().enumerate().filter(|(_, piece)| piece.kind == Kind::Normal);
        let normal: HashMap<&str, usize> = normal.map(|(id, piece)| (piece.text.as_str(), id)).collect();
        let mut merges: Vec<(f32, [usize; 3], [&str; 2])> = Vec::new();
        for (text, id) in &normal {
            for (at, _) in text.char_indices().skip(1) {
                let (left, right) = text.split_at(at);
                if let (Some(first), Some(second)) = (normal.get(left), normal.get(right)) {
                    merges.push((self.pieces[*id].score, [*id, *first, *second], [left, right]));
                }
            }
        }
        merges.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let merges: Vec<[&str; 2]> = merges.into_iter().map(|(.., pair)| pair).collect();
        json!({
            "type": "BPE",
            "dropout": null,
            "unk_token": self.pieces[unknown].text,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": true,
            "byte_fallback": self.byte_fallback,
            "ignore_merges": false,
            "vocab": vocabulary,
            "merges": merges,
        })
    }

    /// Whether a text may be cut before every space first: no piece goes on behind one.
    fn splits(&self) -> bool {
        let later =
            |piece: &Piece| piece.text.char_indices().skip(1).any(|(at, _)| piece.text[at..].starts_with(SPACE));
        let space = |piece: &Piece| piece.text == SPACE && piece.kind == Kind::Normal;
        self.pieces.iter().any(space) && !self.pieces.iter().any(later)
    }
}

/// Whether a map of characters leads nowhere outside of itself: a trie as a double array of 32-bit units, with its bytes before
/// it, and the texts that it leads to, each with a zero behind it.
fn is_sound(map: &[u8]) -> bool {
    if map.is_empty() {
        return true;
    }
    let parts = map.split_first_chunk::<4>().and_then(|(size, rest)| {
        let size = u32::from_le_bytes(*size) as usize;
        size.is_multiple_of(4).then_some(())?;
        rest.split_at_checked(size)
    });
    let Some((units, texts)) = parts else { return false };
    let Ok(texts) = std::str::from_utf8(texts) else { return false };
    let unit = |at: usize| units.as_chunks::<4>().0.get(at).map(|bytes| u32::from_le_bytes(*bytes) as usize);
    let offset = |unit: usize| (unit >> 10) << ((unit & 1 << 9) >> 6);
    let mut seen = HashSet::new();
    let mut open: Vec<usize> = unit(0).map(offset).into_iter().collect();
    if open.is_empty() {
        return false;
    }
    while let Some(place) = open.pop() {
        if !seen.insert(place) {
            continue;
        }
        for label in 1..=0xff {
            let Some(found) = unit(place ^ label) else { return false };
            if found & (1 << 31 | 0xff) != label {
                continue;
            }
            let next = place ^ label ^ offset(found);
            if found >> 8 & 1 == 1 {
                let text = unit(next).map(|leaf| leaf & ((1 << 31) - 1));
                if !text.is_some_and(|at| texts.is_char_boundary(at)) {
                    return false;
                }
            }
            open.push(next);
        }
    }
    true
}

/// The special tokens that a text gets: those before and behind it.
pub(crate) struct Around<'a> {
    pub before: Option<&'a str>,
    pub behind: Option<&'a str>,
}

/// The tokenizer of a model of SentencePiece. `legacy`: whether a space is put before every part of a text between special
/// tokens, as transformers did before it could be asked not to.
pub(crate) fn assemble(bytes: &[u8], around: &Around<'_>, legacy: bool, path: &Path) -> Result<Tokenizer, DataError> {
    let found = SentencePiece::read(bytes, path)?;
    let failed = |error: &tokenizers::Error| library_error(path, error);
    let unigram = found.method == Method::Unigram;
    let scheme = if found.dummy_prefix && !legacy { "first" } else { "never" };
    let splits = unigram && found.splits();
    let before = (splits || scheme == "first")
        .then(|| json!({ "type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": splits }));
    let mut decoders = vec![json!({ "type": "Replace", "pattern": { "String": SPACE }, "content": " " })];
    decoders.extend([json!({ "type": "ByteFallback" }), json!({ "type": "Fuse" })]);
    // Where spaces were left out, all that a text begins with go.
    let stripped = if found.remove_spaces { u32::MAX } else { u32::from(found.dummy_prefix) };
    if stripped > 0 {
        decoders.push(json!({ "type": "Strip", "content": " ", "start": stripped, "stop": 0 }));
    }
    let parts = Parts {
        normalizer: Value::Null,
        pre_tokenizer: before.unwrap_or_default(),
        post_processor: found.template(around, path)?,
        decoder: json!({ "type": "Sequence", "decoders": decoders }),
        model: found.model(),
    };
    let mut tokenizer = parts.assemble(path)?;

    let mut steps: Vec<NormalizerWrapper> = Vec::new();
    if !found.charsmap.is_empty() {
        steps.push(Precompiled::from(found.charsmap).map_err(|error| failed(&error.into()))?.into());
    }
    let pattern = |text: &str| ReplacePattern::Regex(text.to_owned());
    if found.remove_spaces {
        // At the end what stands for a space counts as one.
        steps.push(Replace::new(pattern(&format!(r"\A +|[ {SPACE}]+\z")), "").map_err(|error| failed(&error))?.into());
        steps.push(Replace::new(pattern(" {2,}"), " ").map_err(|error| failed(&error))?.into());
    }
    if found.dummy_prefix && legacy {
        steps.push(Prepend::new(SPACE.to_owned()).into());
    }
    steps.push(Replace::new(" ", SPACE).map_err(|error| failed(&error))?.into());
    tokenizer.with_normalizer(Some(Sequence::new(steps)));
    for piece in &found.pieces {
        let token = AddedToken::from(piece.text.clone(), false).normalized(false);
        match piece.kind {
            Kind::Control => tokenizer.add_special_tokens(&[token.special(true)]),
            Kind::UserDefined => tokenizer.add_tokens(&[token]),
            _ => 0,
        };
    }
    Ok(tokenizer)
}

impl SentencePiece<'_> {
    /// What puts the special tokens around one text and around each of two.
    fn template(&self, around: &Around<'_>, path: &Path) -> Result<Value, DataError> {
        let given = [around.before, around.behind];
        let mut special = serde_json::Map::new();
        for name in given.into_iter().flatten() {
            let Some(id) = self.pieces.iter().position(|piece| piece.text == name) else {
                let what = format!("no piece is {name:?}, which is put around texts");
                let hint = "name the tokens in tokenizer_config.json as the vocabulary has them";
                return Err(DataError::content(path, Place::Whole, what, hint));
            };
            special.insert(name.to_owned(), json!({ "id": name, "ids": [id], "tokens": [name] }));
        }
        let part = |text: &str, kind: u32| -> Vec<Value> {
            let token = |name: &str| json!({ "SpecialToken": { "id": name, "type_id": kind } });
            let text = json!({ "Sequence": { "id": text, "type_id": kind } });
            given[0].map(token).into_iter().chain([text]).chain(given[1].map(token)).collect()
        };
        let pair = [part("A", 0), part("B", 1)].concat();
        Ok(json!({ "type": "TemplateProcessing", "single": part("A", 0), "pair": pair, "special_tokens": special }))
    }
}
