//! Tokenizers made from the vocabularies of model folders. tools/check_tokenizers.py compares them with transformers'.

use std::fs;
use std::path::Path;

use tenon_data::{Tokenizer, assemble_tokenizer};

const PAIRS: &str = "#version: 0.2\na b\n\u{120} ab\n";

fn made(files: &[(&str, &str)]) -> Result<Option<Tokenizer>, String> {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
    }
    let folder = |text: String, dir: &Path| text.replace(&dir.display().to_string(), "DIR");
    assemble_tokenizer(dir.path()).map_err(|error| folder(error.to_string(), dir.path()))
}

fn ids(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    tokenizer.encode(text, true).unwrap().get_ids().to_vec()
}

#[test]
fn pairs_of_bytes_as_gpt2_and_roberta_have_them() {
    let vocabulary = "{\"<|endoftext|>\": 0, \"\u{120}\": 1, \"a\": 2, \"b\": 3, \"ab\": 4, \"\u{120}ab\": 5}";
    let gpt2 = [("vocab.json", vocabulary), ("merges.txt", PAIRS)];
    let tokenizer = made(&gpt2).unwrap().unwrap();
    assert_eq!(ids(&tokenizer, "ab aba<|endoftext|>"), [4, 5, 2, 0]);
    assert_eq!(tokenizer.decode(&[4, 5, 2, 0], false).unwrap(), "ab aba<|endoftext|>");
    let settings = r#"{"add_prefix_space": true, "add_bos_token": true, "pad_token": "<pad>"}"#;
    let tokenizer = made(&[&gpt2[..], &[("tokenizer_config.json", settings)]].concat()).unwrap().unwrap();
    assert_eq!(ids(&tokenizer, "ab<pad>"), [0, 5, 6]);

    let vocabulary = vocabulary.replace("{\"<|endoftext|>\": 0", "{\"<s>\": 0, \"</s>\": 7, \"<mask>\": 6");
    let roberta =
        [("vocab.json", &*vocabulary), ("merges.txt", PAIRS), ("config.json", r#"{"model_type": "roberta"}"#)];
    let tokenizer = made(&roberta).unwrap().unwrap();
    assert_eq!(ids(&tokenizer, "ab<mask>"), [0, 4, 6, 7]);
    let pair = tokenizer.encode(("ab", "a"), true).unwrap();
    assert_eq!(pair.get_ids(), [0, 4, 7, 7, 2, 7]);
}

#[test]
fn what_makes_no_tokenizer() {
    assert!(made(&[]).unwrap().is_none());
    assert!(
        made(&[("vocab.txt", "a\n"), ("tokenizer_config.json", r#"{"tokenizer_class": "Other"}"#)]).unwrap().is_none()
    );
    let damaged = made(&[("vocab.json", "[1]"), ("merges.txt", PAIRS)]).err().unwrap();
    assert!(damaged.contains("not a JSON object") && damaged.contains("DIR/vocab.json"), "{damaged}");
    let unfit = made(&[("vocab.json", r#"{"a": 0}"#), ("merges.txt", "a b\n")]).err().unwrap();
    assert!(unfit.contains("the tokenizer cannot be used"), "{unfit}");
}
