//! The token cache: reused only if nothing changed, made again if it is damaged.

mod common;

use common::{Folder, config, ints, sample, shipped};
use tenon_data::{Dataset, Demands, Progress, Split, open};

const TOML: &str = r#"
    text = "t.txt"
    tokenizer = { kind = "bpe", vocab = 300 }
    validation = { last = 0.2 }
"#;

fn excerpt() -> Vec<u8> {
    let mut book = std::fs::read(shipped().join("moby-dick.txt")).expect("the book");
    book.truncate(20_000);
    book.truncate(String::from_utf8_lossy(&book).trim_end_matches('\u{fffd}').len());
    book
}

fn opened(folder: &Folder, toml: &str) -> Box<dyn Dataset> {
    folder.open(toml, Some(16)).unwrap_or_else(|error| panic!("{error}"))
}

fn first_sample(data: &dyn Dataset) -> Vec<i32> {
    ints(&sample(data, Split::Train, 3, 5)[0])
}

#[test]
fn the_cache_is_reused_only_for_the_same_contents_and_settings() {
    let folder = Folder::new(&[("t.txt", &excerpt())]);
    let made = opened(&folder, TOML);
    assert!(!made.facts().from_cache);
    let reused = opened(&folder, TOML);
    assert!(reused.facts().from_cache);
    assert_eq!(made.checksum(), reused.checksum());
    assert_eq!(first_sample(&*made), first_sample(&*reused));
    assert_eq!(made.facts().train, reused.facts().train);

    folder.write("other-name.txt", &excerpt());
    let renamed = opened(&folder, &TOML.replace("t.txt", "other-name.txt"));
    assert!(renamed.facts().from_cache, "contents count, not names");

    for change in [
        TOML.replace("300", "301"),
        TOML.replace("0.2", "0.3"),
        TOML.replace("{ kind = \"bpe\", vocab = 300 }", "{ kind = \"char\" }"),
    ] {
        let data = opened(&folder, &change);
        assert!(!data.facts().from_cache, "{change}");
        assert_ne!(data.checksum(), made.checksum());
    }

    let mut changed = excerpt();
    changed[100] ^= 1;
    folder.write("t.txt", &changed);
    let data = opened(&folder, TOML);
    assert!(!data.facts().from_cache, "one bit of the source changed, its size did not");
    assert_ne!(data.checksum(), made.checksum());
}

#[test]
fn every_kind_of_damage_is_found_said_and_repaired() {
    let folder = Folder::new(&[("t.txt", &excerpt())]);
    let good = opened(&folder, TOML);
    let path = folder.shards().pop().expect("a shard file");
    let bytes = std::fs::read(&path).expect("read");

    let mut damages: Vec<(String, Vec<u8>)> = Vec::new();
    let places = (0..bytes.len()).filter(|at| (*at < 190 && at % 3 == 0) || at % 4999 == 0 || at + 4 > bytes.len());
    for at in places {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << (at % 8);
        damages.push((format!("bit flip at {at}"), flipped));
    }
    for length in [0, 1, 8, 183, 184, 185, bytes.len() / 2, bytes.len() - 1] {
        damages.push((format!("truncated to {length}"), bytes[..length].to_vec()));
    }
    damages.push(("longer".to_owned(), [&bytes[..], &[0]].concat()));
    damages.push(("foreign".to_owned(), b"not a shard at all".repeat(100)));

    for (damage, contents) in damages {
        // A new file, not the old one changed: `good` still maps that.
        std::fs::remove_file(&path).expect("removed");
        std::fs::write(&path, contents).expect("damaged");
        let mut said = Vec::new();
        let mut listen = |progress| {
            if let Progress::Rebuilding { why } = progress {
                said.push(why);
            }
        };
        let data = open(
            &config(TOML),
            folder.dir.path(),
            &folder.cache(),
            Demands { seed: 1, batch: 4, context: Some(16), masked: false },
            &mut listen,
        )
        .unwrap_or_else(|error| panic!("{damage}: {error}"));
        assert!(!data.facts().from_cache, "{damage}: used");
        assert_eq!(said.len(), 1, "{damage}: not said");
        assert_eq!(data.facts().notes, said, "{damage}");
        assert_eq!(data.checksum(), good.checksum(), "{damage}");
        assert!(std::fs::read(&path).expect("read") == bytes, "{damage}: not repaired");
    }
    assert_eq!(first_sample(&*good), first_sample(&*opened(&folder, TOML)));
    assert_eq!(folder.shards().len(), 1, "no temporary file is left");
}

#[test]
fn small_and_large_vocabularies_are_stored_and_read_alike() {
    let words: Vec<String> = (0..70_000).map(|i| format!("w{i}")).collect();
    let vocab: Vec<String> = words.iter().enumerate().map(|(i, w)| format!("\"{w}\":{i}")).collect();
    let tokenizer = format!(
        r#"{{"version":"1.0","truncation":{{"direction":"Right","max_length":3,"strategy":"LongestFirst","stride":0}},
        "padding":null,"added_tokens":[],"normalizer":null,"pre_tokenizer":{{"type":"Whitespace"}},"post_processor":null,
        "decoder":null,"model":{{"type":"WordLevel","vocab":{{{}}},"unk_token":"w0"}}}}"#,
        vocab.join(",")
    );
    let text = words.iter().rev().step_by(7).cloned().collect::<Vec<_>>().join("\n");
    let folder = Folder::new(&[("t.txt", text.as_bytes()), ("tok.json", tokenizer.as_bytes())]);
    let data = folder
        .open("text = \"t.txt\"\ntokenizer = { kind = \"file\", file = \"tok.json\" }", Some(9_000))
        .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(data.facts().vocab, Some(70_000));
    assert_eq!(data.facts().train.tokens, 10_000, "the file's truncation to 3 tokens is not applied");
    let inputs = ints(&sample(&*data, Split::Train, 0, 0)[0]);
    assert!(inputs.windows(2).all(|w| w[0] == w[1] + 7), "ids above 65,535 are whole");
    assert_eq!(
        data.facts().notes.len(),
        1,
        "this decoder joins words by spaces, the text has lines: {:?}",
        data.facts().notes
    );
}

#[test]
fn a_cache_that_cannot_be_written_is_an_error() {
    let folder = Folder::new(&[("t.txt", &excerpt()), ("cache", b"a file, not a folder")]);
    let message = folder.error(TOML);
    assert!(message.starts_with("cannot create the folder: "), "{message}");
    assert!(message.contains("\n  --> cache\n"), "{message}");
}
