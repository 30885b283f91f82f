//! Tests of reading text in pieces: the pieces give the text, and their tokens are those of the whole.

use std::path::Path;

use proptest::prelude::*;
use serde_json::json;
use tokenizers::Tokenizer;

use super::build_tokenizer;
use super::source::{PieceReader, Source};
use super::tokenize::tokenize;
use super::tokenizer::{parse, word_starts};
use crate::config::{Paths, TokenizerConfig};
use crate::dataset::Split;
use crate::error::DataError;

struct Text {
    dir: tempfile::TempDir,
    source: Source,
}

fn text(contents: &[u8]) -> Text {
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::write(dir.path().join("t.txt"), contents).expect("a file");
    let paths = Paths::One("t.txt".into());
    let source = Source::find(&paths, None, dir.path(), &mut |_| {}).expect("a source");
    Text { dir, source }
}

/// The pieces and their tokens.
fn in_pieces(text: &Text, tokenizer: &Tokenizer, by_character: bool, bytes: usize) -> (Vec<String>, Vec<u32>) {
    let (mut pieces, mut tokens) = (Vec::new(), Vec::new());
    let mut sink = |_: Split, piece: &str, ids: &[u32]| {
        pieces.push(piece.to_owned());
        tokens.extend_from_slice(ids);
        Ok(())
    };
    tokenize(&text.source, tokenizer, by_character, bytes, &mut sink, &mut |_| {}).expect("tokens");
    (pieces, tokens)
}

fn whole(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    let encoding = tokenizer.encode_fast(text, false).expect("tokens");
    encoding.get_ids().to_vec()
}

/// Tokenizers of every kind: ours, Llama 3's pattern (where a newline belongs to the punctuation before it), Metaspace, an
/// added token with a space inside, and one that marks the start of its input, so that nothing may be cut.
fn every_tokenizer(text: &Text) -> Vec<(&'static str, Tokenizer)> {
    let own = |config: &TokenizerConfig| {
        build_tokenizer(config, &text.source, false, Path::new(""), &mut |_| {}).expect("a tokenizer")
    };
    let bpe = own(&TokenizerConfig::Bpe { vocab: 400 });
    let json: serde_json::Value = serde_json::from_str(&bpe.to_string(false).expect("JSON")).expect("JSON");
    let changed = |path: &str, value: serde_json::Value| {
        let mut json = json.clone();
        json[path] = value;
        parse(Path::new("tokenizer.json"), json.to_string().as_bytes()).expect("a tokenizer")
    };
    let pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let split = json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
    ]});
    let metaspace = json!({"type": "Metaspace", "replacement": "a", "prepend_scheme": "always", "split": true});
    let added = json!([{"id": 999, "content": "b c", "single_word": false, "lstrip": true, "rstrip": true,
        "normalized": false, "special": true}]);
    vec![
        ("bpe", bpe.clone()),
        ("char", own(&TokenizerConfig::Char {})),
        ("llama 3", changed("pre_tokenizer", split)),
        ("metaspace", changed("pre_tokenizer", metaspace)),
        ("added token", changed("added_tokens", added)),
        ("prefix", changed("normalizer", json!({"type": "Prepend", "prepend": "a"}))),
    ]
}

fn check_pieces(contents: &str, bytes: usize) -> Result<(), TestCaseError> {
    let text = text(contents.as_bytes());
    for (name, tokenizer) in every_tokenizer(&text) {
        let (pieces, tokens) = in_pieces(&text, &tokenizer, name == "char", bytes);
        prop_assert_eq!(pieces.concat(), contents, "{}", name);
        prop_assert_eq!(tokens, whole(&tokenizer, contents), "{} in pieces of {}", name, bytes);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn pieces_give_the_tokens_of_the_whole(
        words in prop::collection::vec("[a-d]{0,6}|[ \n\t\r]{1,3}|\u{a0}|\u{2003} |[.,;!]{1,2}|'s|n't|é|—| 🐢|12|b c", 1..600),
        separators in prop::collection::vec(prop::sample::select(vec![" ", "\n", "", "  ", "\n\n", "\r\n"]), 600),
        bytes in 16usize..700,
    ) {
        let pairs = words.iter().zip(&separators);
        let contents: String = pairs.flat_map(|(word, separator)| [word.as_str(), separator]).collect();
        prop_assume!(!contents.is_empty());
        check_pieces(&contents, bytes)?;
    }
}

#[test]
fn memory_is_bounded_by_the_piece() {
    let contents = "It was the whale; and the sea's own wrath.\n\nThen, again: nothing\n".repeat(3000);
    let text = text(contents.as_bytes());
    for (name, tokenizer) in every_tokenizer(&text) {
        let (pieces, tokens) = in_pieces(&text, &tokenizer, name == "char", 4096);
        assert!(tokens == whole(&tokenizer, &contents), "{name}");
        if name == "prefix" {
            assert_eq!(pieces.len(), 1, "nothing may be cut");
        } else {
            let longest = pieces.iter().map(String::len).max();
            assert!(longest <= Some(4096), "{name}: {longest:?}");
        }
    }
}

#[test]
fn characters_that_straddle_reads_are_whole() {
    for shift in 0..4 {
        let contents = format!("{}{}", &"abc"[..shift.min(3)], "🐢é—x ".repeat(20_000));
        let text = text(contents.as_bytes());
        let mut reader = PieceReader::new(&text.source.segments[0], 1000).expect("a reader");
        let mut read = String::new();
        while let Some(piece) = reader.next_piece(&mut |t| Some(t.len())).expect("a piece") {
            assert!(piece.len() <= 1000);
            read.push_str(&piece);
        }
        assert!(read == contents, "shift {shift}");
    }
}

#[test]
fn what_is_not_utf8_is_named_by_its_byte() {
    for at in [0, 5, 65_535, 65_536, 65_537, 200_000] {
        let mut contents = vec![b'a'; 200_001];
        contents[at] = 0xe9;
        let text = text(&contents);
        let mut reader = PieceReader::new(&text.source.segments[0], 1000).expect("a reader");
        let error = loop {
            match reader.next_piece(&mut |t| Some(t.len())) {
                Ok(piece) => assert!(piece.is_some(), "byte {at}: no error"),
                Err(error) => break error,
            }
        };
        let message = error.to_string();
        assert!(message.contains(&format!("t.txt, byte {at}\n")), "{message}");
        let config = TokenizerConfig::Bpe { vocab: 300 };
        let trained = build_tokenizer(&config, &text.source, false, text.dir.path(), &mut |_| {});
        assert_eq!(trained.map(|_| ()).unwrap_err().to_string(), message);
    }
}

#[test]
fn a_file_that_changes_while_it_is_read_is_refused() {
    let text = text(b"the first contents");
    std::fs::write(text.dir.path().join("t.txt"), b"the other contents").expect("a file");
    let mut reader = PieceReader::new(&text.source.segments[0], 1000).expect("a reader");
    let error = reader.next_piece(&mut |_| None).expect_err("changed");
    assert!(matches!(error, DataError::Content { .. }), "{error}");
    assert!(error.to_string().contains("changed while it was being read"), "{error}");
}

#[test]
fn words_start_at_lone_separators() {
    let starts = |text: &str| word_starts(text).collect::<Vec<_>>();
    assert_eq!(starts("ab cd\nef"), [5, 2]);
    assert_eq!(starts("ab  cd\n\nef \n g"), [] as [usize; 0]);
    assert_eq!(starts(" ab cd "), [3]);
    assert_eq!(starts("a\u{a0} b é\u{2003}c"), [5]);
}
