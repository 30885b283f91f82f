//! Tokenizers of model folders that have no `tokenizer.json`: BERT's `vocab.txt`, `vocab.json` with `merges.txt` as GPT-2 and
//! RoBERTa have them, and `tokenizer.model` of SentencePiece as Llama and Mistral have it.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};
use tokenizers::{AddedToken, Tokenizer};

use super::sentencepiece::{Around, assemble};
use super::tokenizer::{Parts, library_error};
use crate::error::{DataError, Place};

/// The largest file of a vocabulary, in bytes.
const LARGEST: u64 = 256 << 20;
/// The longest word that WordPiece takes apart, as everywhere.
const LONGEST_WORD: usize = 100;

/// A way of cutting text.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Bert,
    Gpt2,
    Roberta,
    SentencePiece,
}

impl Kind {
    /// The files that it needs; the first is that of the vocabulary.
    fn files(self) -> &'static [&'static str] {
        match self {
            Kind::Bert => &["vocab.txt"],
            Kind::Gpt2 | Kind::Roberta => &["vocab.json", "merges.txt"],
            Kind::SentencePiece => &["tokenizer.model"],
        }
    }
}

/// The tokenizer that the vocabulary in `folder` means, with the settings of its `tokenizer_config.json`: what the class of
/// transformers that the folder names would build. `None` where there is no vocabulary, or that class is not known here.
///
/// # Errors
/// Files that cannot be read, or that are no vocabulary.
pub fn assemble_tokenizer(folder: &Path) -> Result<Option<Tokenizer>, DataError> {
    let settings = object(&folder.join("tokenizer_config.json"))?;
    let Some(kind) = kind_of(folder, &settings)? else { return Ok(None) };
    let special = special_tokens(folder, kind, &settings)?;
    let name = |role: &str| special.iter().find(|(other, _)| *other == role).map(|(_, token)| token.content.as_str());
    let path = folder.join(kind.files()[0]);
    let mut tokenizer = match kind {
        Kind::Bert => word_piece(&lines_as_vocabulary(&path)?, &settings, &name, &path)?.assemble(&path)?,
        Kind::Gpt2 | Kind::Roberta => {
            let merges = text(&folder.join("merges.txt"))?;
            byte_pairs(kind, &object(&path)?, &merges, &settings, &name, &path)?.assemble(&path)?
        }
        Kind::SentencePiece => {
            let flag = |key: &str, usual: bool| settings.get(key).and_then(Value::as_bool).unwrap_or(usual);
            let around = Around {
                before: name("bos_token").filter(|_| flag("add_bos_token", true)),
                behind: name("eos_token").filter(|_| flag("add_eos_token", false)),
            };
            assemble(&read(&path)?, &around, flag("legacy", true), &path)?
        }
    };
    for token in added_tokens(folder, &settings)? {
        if token.special {
            tokenizer.add_special_tokens(&[token])
        } else {
            tokenizer.add_tokens(&[token])
        };
    }
    let known = |token: &AddedToken| tokenizer.token_to_id(&token.content).is_some();
    let asked = |role: &str| settings.contains_key(role);
    let all = special.iter().filter(|(role, token)| asked(role) || known(token)).map(|(_, token)| token.clone());
    let all: Vec<AddedToken> = all.collect();
    tokenizer.add_special_tokens(&all);
    // A vocabulary that cannot be saved is of no use.
    super::tokenizer::tokenizer_to_json(&tokenizer).map_err(|error| library_error(&path, &error))?;
    Ok(Some(tokenizer))
}

/// The class that the settings name, or else the model, or else the files.
fn kind_of(folder: &Path, settings: &Map<String, Value>) -> Result<Option<Kind>, DataError> {
    let there = |kind: Kind| kind.files().iter().all(|file| folder.join(file).is_file());
    let config = object(&folder.join("config.json"))?;
    let class = settings.get("tokenizer_class").and_then(Value::as_str).map(|class| class.trim_end_matches("Fast"));
    let kind = match (class, config.get("model_type").and_then(Value::as_str)) {
        (Some("BertTokenizer" | "DistilBertTokenizer"), _) => Kind::Bert,
        (Some("GPT2Tokenizer"), _) => Kind::Gpt2,
        (Some("RobertaTokenizer"), _) => Kind::Roberta,
        (Some("LlamaTokenizer"), _) => Kind::SentencePiece,
        (Some(_), _) => return Ok(None),
        (None, Some("bert" | "distilbert")) => Kind::Bert,
        (None, Some("gpt2")) => Kind::Gpt2,
        (None, Some("roberta")) => Kind::Roberta,
        (None, Some("llama" | "mistral" | "mixtral")) => Kind::SentencePiece,
        (None, Some(_)) => return Ok(None),
        (None, None) => {
            return Ok([Kind::Bert, Kind::Gpt2, Kind::SentencePiece].into_iter().find(|kind| there(*kind)));
        }
    };
    Ok(Some(kind).filter(|kind| there(*kind)))
}

/// The special tokens by their roles: the settings', or those that the class has.
fn special_tokens(
    folder: &Path,
    kind: Kind,
    settings: &Map<String, Value>,
) -> Result<Vec<(&'static str, AddedToken)>, DataError> {
    let usual: &[(&str, &str)] = match kind {
        Kind::Bert => &[
            ("unk_token", "[UNK]"),
            ("sep_token", "[SEP]"),
            ("pad_token", "[PAD]"),
            ("cls_token", "[CLS]"),
            ("mask_token", "[MASK]"),
        ],
        Kind::Gpt2 => &[
            ("bos_token", "<|endoftext|>"),
            ("eos_token", "<|endoftext|>"),
            ("unk_token", "<|endoftext|>"),
            ("pad_token", ""),
        ],
        Kind::Roberta => &[
            ("bos_token", "<s>"),
            ("eos_token", "</s>"),
            ("sep_token", "</s>"),
            ("cls_token", "<s>"),
            ("unk_token", "<unk>"),
            ("pad_token", "<pad>"),
            ("mask_token", "<mask>"),
        ],
        Kind::SentencePiece => {
            &[("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>"), ("pad_token", "")]
        }
    };
    let map = object(&folder.join("special_tokens_map.json"))?;
    let named = |(role, usual): &(&'static str, &str)| {
        let given = settings.get(*role).or_else(|| map.get(*role)).and_then(token);
        (*role, given.unwrap_or_else(|| AddedToken::from(*usual, true)))
    };
    Ok(usual.iter().map(named).filter(|(_, token)| !token.content.is_empty()).collect())
}

/// A token as settings write it: a string, or an object with its properties.
fn token(value: &Value) -> Option<AddedToken> {
    let content = value.as_str().or_else(|| value.get("content")?.as_str())?;
    let flag = |key: &str| value.get(key).and_then(Value::as_bool).unwrap_or(false);
    let token = AddedToken::from(content, true).lstrip(flag("lstrip")).rstrip(flag("rstrip"));
    Some(token.single_word(flag("single_word")).normalized(flag("normalized")))
}

/// The tokens that were added to the vocabulary, in the order of their numbers.
fn added_tokens(folder: &Path, settings: &Map<String, Value>) -> Result<Vec<AddedToken>, DataError> {
    let mut found: Vec<(u64, AddedToken)> = Vec::new();
    if let Some(decoder) = settings.get("added_tokens_decoder").and_then(Value::as_object) {
        for (id, value) in decoder {
            let special = value.get("special").and_then(Value::as_bool).unwrap_or(false);
            found.extend(id.parse().ok().zip(token(value).map(|t| t.special(special))));
        }
    } else {
        for (content, id) in object(&folder.join("added_tokens.json"))? {
            found.extend(id.as_u64().map(|id| (id, AddedToken::from(content, false))));
        }
    }
    found.sort_by_key(|(id, _)| *id);
    Ok(found.into_iter().map(|(_, token)| token).collect())
}

/// The number of a special token of this role.
fn numbered(
    vocabulary: &Map<String, Value>,
    name: &str,
    role: &str,
    path: &Path,
) -> Result<(String, Value), DataError> {
    match vocabulary.get(name) {
        Some(id) => Ok((name.to_owned(), id.clone())),
        None => Err(DataError::content(
            path,
            Place::Whole,
            format!("the vocabulary has no {name:?}, which is the `{role}`"),
            "name the tokens in tokenizer_config.json as the vocabulary has them",
        )),
    }
}

fn word_piece<'a>(
    vocabulary: &Map<String, Value>,
    settings: &Map<String, Value>,
    name: &impl Fn(&str) -> Option<&'a str>,
    path: &Path,
) -> Result<Parts, DataError> {
    let flag = |key: &str| settings.get(key).and_then(Value::as_bool);
    let part = |role: &str| numbered(vocabulary, name(role).unwrap_or_default(), role, path);
    let (unknown, _) = part("unk_token")?;
    Ok(Parts {
        normalizer: json!({
            "type": "BertNormalizer",
            "clean_text": true,
            "handle_chinese_chars": flag("tokenize_chinese_chars").unwrap_or(true),
            "strip_accents": flag("strip_accents"),
            "lowercase": flag("do_lower_case").unwrap_or(true),
        }),
        pre_tokenizer: json!({ "type": "BertPreTokenizer" }),
        post_processor: json!({ "type": "BertProcessing", "sep": part("sep_token")?, "cls": part("cls_token")? }),
        decoder: json!({ "type": "WordPiece", "prefix": "##", "cleanup": true }),
        model: json!({
            "type": "WordPiece",
            "unk_token": unknown,
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": LONGEST_WORD,
            "vocab": vocabulary,
        }),
    })
}

fn byte_pairs<'a>(
    kind: Kind,
    vocabulary: &Map<String, Value>,
    merges: &str,
    settings: &Map<String, Value>,
    name: &impl Fn(&str) -> Option<&'a str>,
    path: &Path,
) -> Result<Parts, DataError> {
    let flag = |key: &str| settings.get(key).and_then(Value::as_bool).unwrap_or(false);
    let part = |role: &str| numbered(vocabulary, name(role).unwrap_or_default(), role, path);
    let prefix_space = flag("add_prefix_space");
    let bytes = |prefix: bool| json!({ "type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": true });
    let after = match kind {
        Kind::Roberta => json!({
            "type": "RobertaProcessing",
            "sep": part("sep_token")?,
            "cls": part("cls_token")?,
            "trim_offsets": true,
            "add_prefix_space": prefix_space,
        }),
        _ if flag("add_bos_token") => {
            let (first, id) = part("bos_token")?;
            let special = json!({ "SpecialToken": { "id": first, "type_id": 0 } });
            let text = |id: &str, kind: u32| json!({ "Sequence": { "id": id, "type_id": kind } });
            json!({
                "type": "TemplateProcessing",
                "single": [special, text("A", 0)],
                "pair": [special, text("A", 0), special, text("B", 1)],
                "special_tokens": { &first: { "id": first, "ids": [id], "tokens": [first] } },
            })
        }
        _ => Value::Null,
    };
    // The first line may be a comment; the rest are pairs.
    let merges: Vec<&str> = merges.lines().filter(|line| !line.is_empty() && !line.starts_with("#version")).collect();
    Ok(Parts {
        normalizer: Value::Null,
        pre_tokenizer: bytes(prefix_space),
        post_processor: after,
        decoder: bytes(true),
        model: json!({
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": false,
            "vocab": vocabulary,
            "merges": merges,
        }),
    })
}

/// A file with a token in each line; of equal ones the last counts.
fn lines_as_vocabulary(path: &Path) -> Result<Map<String, Value>, DataError> {
    Ok(text(path)?.lines().enumerate().map(|(id, token)| (token.to_owned(), json!(id))).collect())
}

fn text(path: &Path) -> Result<String, DataError> {
    let not_text = |_| DataError::content(path, Place::Whole, "not UTF-8 text", "fetch the file again");
    String::from_utf8(read(path)?).map_err(not_text)
}

fn read(path: &Path) -> Result<Vec<u8>, DataError> {
    let size = fs::metadata(path).map_err(DataError::io("read", path))?.len();
    if size > LARGEST {
        let what = format!("{size} bytes, a vocabulary has at most {LARGEST}");
        return Err(DataError::content(path, Place::Whole, what, "name the folder of a model"));
    }
    fs::read(path).map_err(DataError::io("read", path))
}

/// The JSON object in a file; an empty one where there is no file.
fn object(path: &Path) -> Result<Map<String, Value>, DataError> {
    if !path.is_file() {
        return Ok(Map::new());
    }
    let wrong = |line: usize, what: String| {
        DataError::content(path, Place::Line(line as u64), what, "fetch the file again, or remove it")
    };
    match serde_json::from_str(&text(path)?) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(wrong(1, "not a JSON object".into())),
        Err(error) => Err(wrong(error.line(), format!("not JSON: {error}"))),
    }
}
