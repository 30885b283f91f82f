//! `tokenizer.model` files: the pieces of SentencePiece itself, stored by tools/fixtures/sentencepiece_models.py; and no damaged
//! file does harm. tools/check_tokenizers.py compares with transformers too.

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use serde_json::Value as Json;
use tenon_data::{Tokenizer, assemble_tokenizer};

fn fixture() -> Json {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/sentencepiece.json");
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn unhex(text: &Json) -> Vec<u8> {
    let text = text.as_str().unwrap();
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

fn opened(model: &[u8], settings: &str) -> Result<Option<Tokenizer>, String> {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("tokenizer.model"), model).unwrap();
    fs::write(dir.path().join("tokenizer_config.json"), settings).unwrap();
    assemble_tokenizer(dir.path()).map_err(|error| error.to_string())
}

fn made(model: &[u8], settings: &str) -> Tokenizer {
    opened(model, settings).unwrap_or_else(|error| panic!("{error}")).expect("a tokenizer")
}

fn ids(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    tokenizer.encode(text, true).unwrap().get_ids().to_vec()
}

const PLAIN: &str = r#"{"tokenizer_class": "LlamaTokenizer", "add_bos_token": false}"#;

#[test]
fn texts_are_cut_as_by_sentencepiece() {
    let fixture = fixture();
    let strings: Vec<&str> = fixture["strings"].as_array().unwrap().iter().map(|s| s.as_str().unwrap()).collect();
    let mut wrong = Vec::new();
    for (name, case) in fixture["cases"].as_object().unwrap() {
        let tokenizer = made(&unhex(&case["model"]), PLAIN);
        let numbers = |list: &Json| list.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
        let wanted: Vec<Vec<u32>> = case["ids"].as_array().unwrap().iter().map(numbers).collect();
        for (at, (text, wanted)) in strings.iter().zip(wanted).enumerate() {
            let found = ids(&tokenizer, text);
            if found != wanted {
                wrong.push(format!("{name}: {text:?}: {found:?}, expected {wanted:?}"));
            }
            let unknown = tokenizer.token_to_id("<unk>").unwrap();
            if !wanted.contains(&unknown) {
                let (back, wanted) = (tokenizer.decode(&wanted, false).unwrap(), case["decoded"][at].as_str().unwrap());
                if back != wanted {
                    wrong.push(format!("{name}: {text:?} comes back as {back:?}, not {wanted:?}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn special_tokens_are_put_around_texts() {
    let model = unhex(&fixture()["cases"]["pairs, as Llama has them"]["model"]);
    let plain = ids(&made(&model, PLAIN), "a text");
    let usual = made(&model, r#"{"tokenizer_class": "LlamaTokenizerFast"}"#);
    assert_eq!(ids(&usual, "a text"), [&[1], &plain[..]].concat());
    assert_eq!(ids(&usual, "a text</s>"), [&[1], &plain[..], &[2]].concat());
    let both = made(&model, r#"{"tokenizer_class": "LlamaTokenizer", "add_eos_token": true, "pad_token": "<pad>"}"#);
    let two = both.encode(("a text", "a text"), true).unwrap();
    assert_eq!(two.get_ids(), [&[1], &plain[..], &[2, 1], &plain[..], &[2]].concat());
    assert_eq!(two.get_type_ids().iter().sum::<u32>() as usize, plain.len() + 2);
    assert_eq!(both.token_to_id("<pad>").map(|id| id as usize), Some(both.get_vocab_size(false)));
    let refused = opened(&model, r#"{"tokenizer_class": "LlamaTokenizer", "bos_token": "<begin>"}"#).unwrap_err();
    assert!(refused.contains("no piece is \"<begin>\""), "{refused}");
    assert!(opened(&model, r#"{"tokenizer_class": "T5Tokenizer"}"#).unwrap().is_none());
}

#[test]
fn what_is_not_read_is_said() {
    let piece = |text: &str, kind: u8, score: f32| {
        let mut message = vec![0x0a, text.len() as u8];
        message.extend(text.as_bytes());
        message.push(0x15);
        message.extend(score.to_le_bytes());
        message.extend([0x18, kind]);
        [&[0x0a, message.len() as u8], &message[..]].concat()
    };
    let model = |pieces: &[(&str, u8, f32)]| pieces.iter().flat_map(|(t, k, s)| piece(t, *k, *s)).collect::<Vec<u8>>();
    let usual = [("<unk>", 2, 0.0), ("<s>", 3, 0.0), ("</s>", 3, 0.0), ("a", 1, -1.0)];
    assert_eq!(ids(&made(&model(&usual), PLAIN), "a"), [0, 3]);
    for (last, said) in [
        (("a", 1, -2.0), "the piece \"a\" is there twice"),
        (("", 1, -2.0), "a piece is empty"),
        (("b", 5, -2.0), "the piece \"b\" is marked unused"),
        (("b", 1, f32::NAN), "the score of the piece \"b\" is NaN"),
        (("b", 2, 0.0), "2 pieces are marked unknown"),
        (("b", 7, 0.0), "a damaged one"),
    ] {
        let error = opened(&model(&[&usual[..], &[last]].concat()), PLAIN).unwrap_err();
        assert!(error.contains(said) && error.contains("tokenizer.model"), "{error}");
    }
    let with = |settings: &[u8]| opened(&[&model(&usual), settings].concat(), PLAIN).unwrap_err();
    assert!(with(&[0x12, 2, 0x18, 3]).contains("neither UNIGRAM nor BPE"));
    assert!(with(&[0x1a, 2, 0x28, 0]).contains("escape_whitespaces is not set"));
    // A trie of one unit, which leads outside.
    assert!(with(&[0x1a, 10, 0x12, 8, 4, 0, 0, 0, 0, 4, 0, 0]).contains("precompiled_charsmap is damaged"));
    let error = opened(b"{\"not\": \"a model\"}", PLAIN).unwrap_err();
    assert!(error.contains("not a model of SentencePiece"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// A damaged file is refused, or it makes a tokenizer that cuts any text without a panic.
    #[test]
    fn damaged_files_do_no_harm(
        case in 0usize..5, cut in prop::option::of(0usize..7000), changes in prop::collection::vec((0usize..7000, any::<u8>()), 0..6),
        text in "[ a-zA-Z0-9\u{3000}é🦀\u{2581}]{0,20}",
    ) {
        let fixture = fixture();
        let mut model = unhex(&fixture["cases"].as_object().unwrap().values().nth(case).unwrap()["model"]);
        for (place, byte) in changes {
            let count = model.len();
            model[place % count] = byte;
        }
        if let Some(cut) = cut {
            let count = model.len();
            model.truncate(cut % count);
        }
        if let Ok(Some(tokenizer)) = opened(&model, PLAIN) {
            let encoded = tokenizer.encode(text.as_str(), true);
            let _ = encoded.map(|encoded| tokenizer.decode(encoded.get_ids(), false));
        }
    }
}
