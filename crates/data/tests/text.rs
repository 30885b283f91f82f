//! Text as next-token windows: tokenizers, coverage, order, documents.

mod common;

use std::collections::HashMap;

use common::{Folder, batch, config, ints, sample, shipped};
use tenon_data::{Dataset, Demands, Split, Tokenizer, load_tokenizer, open, save_tokenizer};

const BOOK: &str = r#"
    text = "moby-dick.txt"
    tokenizer = { kind = "bpe", vocab = 1024 }
    validation = { last = 0.1 }
"#;

/// The start of the book, for what need not be done with all of it.
fn excerpt() -> String {
    let mut text = book_text();
    text.truncate(text.floor_char_boundary(200_000));
    text
}

fn book_text() -> String {
    std::fs::read_to_string(shipped().join("moby-dick.txt")).expect("the book")
}

fn encode(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    let encoding = tokenizer.encode_fast(text, false).expect("text encodes");
    encoding.get_ids().to_vec()
}

/// All tokens that the held-out windows predict, in order, and all that are ignored.
fn predicted(data: &dyn Dataset, batch_size: usize) -> (Vec<u32>, u64) {
    let (mut tokens, mut ignored, mut position) = (Vec::new(), 0, 0);
    while position < data.len(Split::Validation) {
        let (fields, real) = batch(data, Split::Validation, position, batch_size);
        let context = data.fields()[1].shape[0];
        for (row, labels) in ints(&fields[1]).chunks(context).enumerate() {
            if row >= real {
                assert!(labels.iter().all(|&l| l == -100), "padding is ignored");
            }
        }
        for label in ints(&fields[1]) {
            match label {
                -100 => ignored += 1,
                token => tokens.push(token as u32),
            }
        }
        position += batch_size as u64;
    }
    (tokens, ignored)
}

#[test]
fn the_book_is_split_tokenised_and_covered() {
    let cache = Folder::new(&[]);
    let data = open(
        &config(BOOK),
        &shipped(),
        &cache.cache(),
        Demands { seed: 1, batch: 4, context: Some(128), masked: false },
        &mut |_| {},
    )
    .unwrap_or_else(|error| panic!("{error}"));
    let facts = data.facts();
    let text = book_text();
    let held_out = text.len() as u64 / 10;
    assert_eq!(facts.vocab, Some(1024));
    assert_eq!(facts.train.bytes + facts.validation.bytes, text.len() as u64);
    assert!(facts.validation.bytes.abs_diff(held_out) < 4, "{}", facts.validation.bytes);
    assert_eq!(facts.notes, Vec::<String>::new());

    let tokenizer = data.tokenizer().expect("text has a tokenizer");
    let cut = facts.train.bytes as usize;
    let train = encode(tokenizer, &text[..cut]);
    let validation = encode(tokenizer, &text[cut..]);
    assert_eq!(facts.train.tokens, train.len() as u64, "pieces give the tokens of the whole");

    for batch_size in [1, 7, 24] {
        let (tokens, ignored) = predicted(&*data, batch_size);
        assert!(tokens == validation, "every held-out token is predicted once, in order");
        let slots = data.len(Split::Validation).next_multiple_of(batch_size as u64) * 128;
        assert_eq!(ignored, slots - validation.len() as u64);
    }
    let first = ints(&sample(&*data, Split::Validation, 0, 0)[0]);
    assert_eq!(first[0] as u32, train[train.len() - 1], "the first is predicted from its predecessor");

    let windows = data.len(Split::Train);
    assert_eq!(windows, (train.len() as u64 - 128) / 128);
    let mut places: HashMap<&[u32], Vec<usize>> = HashMap::new();
    for (at, start) in train.windows(8).enumerate() {
        places.entry(start).or_default().push(at);
    }
    for epoch in 0..3 {
        let mut starts: Vec<usize> = (0..windows)
            .map(|index| {
                let fields = sample(&*data, Split::Train, epoch, index);
                let (inputs, labels) = (ints(&fields[0]), ints(&fields[1]));
                assert_eq!(inputs[1..], labels[..127], "labels are the next tokens");
                let wanted: Vec<u32> = inputs.iter().map(|&t| t as u32).collect();
                let places = places.get(&wanted[..8]).map_or(&[][..], Vec::as_slice);
                let at = places
                    .iter()
                    .copied()
                    .find(|&at| train[at..].starts_with(&wanted))
                    .expect("a window is a stretch of the text");
                assert_eq!(labels[127] as u32, train[at + 128]);
                at
            })
            .collect();
        starts.sort_unstable();
        let phase = starts[0] % 128;
        assert!(starts.iter().all(|s| s % 128 == phase), "windows share a phase");
        starts.dedup();
        assert_eq!(starts.len() as u64, windows, "no window occurs twice in an epoch");
    }
}

#[test]
fn bpe_training_gives_the_same_file_every_time_and_whatever_the_threads() {
    let tokenizers: Vec<String> = [true, true, false]
        .into_iter()
        .map(|parallel| {
            tokenizers::utils::parallelism::set_parallelism(parallel);
            let folder = Folder::new(&[("book.txt", excerpt().as_bytes())]);
            let data = folder
                .open("text = \"book.txt\"\ntokenizer = { kind = \"bpe\", vocab = 3000 }", Some(64))
                .unwrap_or_else(|error| panic!("{error}"));
            let path = folder.dir.path().join("out/tokenizer.json");
            save_tokenizer(data.tokenizer().expect("a tokenizer"), &path).expect("saved");
            std::fs::read_to_string(path).expect("read")
        })
        .collect();
    tokenizers::utils::parallelism::set_parallelism(true);
    assert!(tokenizers.iter().all(|t| *t == tokenizers[0]));
}

#[test]
fn tokenizers_restore_every_text() {
    let text = excerpt();
    let folder = Folder::new(&[("book.txt", text.as_bytes())]);
    for kind in [r#"{ kind = "bpe", vocab = 600 }"#, r#"{ kind = "char" }"#] {
        let data = folder
            .open(&format!("text = \"book.txt\"\ntokenizer = {kind}"), Some(32))
            .unwrap_or_else(|error| panic!("{error}"));
        let made = data.tokenizer().expect("a tokenizer");
        let path = folder.dir.path().join("tokenizer.json");
        save_tokenizer(made, &path).expect("saved");
        let loaded = load_tokenizer(&path).expect("loaded");
        for tokenizer in [made, &loaded] {
            for part in [&text[..], "whale\n\n  and ship—", " ", ""] {
                let ids = encode(tokenizer, part);
                assert_eq!(tokenizer.decode(&ids, false).expect("decodes"), part);
            }
        }
        assert!(encode(made, &text[..50_000]) == encode(&loaded, &text[..50_000]));
        if kind.contains("bpe") {
            let foreign = "żółw 🐢 中文\r\n\u{0}\u{7f} ’tis";
            assert_eq!(made.decode(&encode(made, foreign), false).expect("decodes"), foreign);
        }
    }
}

#[test]
fn unknown_characters_of_the_held_out_part_are_counted_and_said() {
    let folder = Folder::new(&[("a.txt", b"abab cdcd abab"), ("b.txt", "abéxab".as_bytes())]);
    let data = folder
        .open("text = \"a.txt\"\ntokenizer = { kind = \"char\" }\nvalidation = { file = \"b.txt\" }", Some(3))
        .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(data.facts().vocab, Some(6), "<unk>, space, a, b, c, d");
    let (tokens, _) = predicted(&*data, 2);
    assert_eq!(tokens, [2, 3, 0, 0, 2, 3]);
    assert_eq!(data.facts().validation.bytes, 7);
    assert_eq!(data.facts().notes.len(), 1);
    assert!(data.facts().notes[0].starts_with("2 of 6 validation tokens are unknown"));
}

#[test]
fn a_folder_is_read_in_path_order_with_separators() {
    let folder = Folder::new(&[
        ("in/b.txt", b"bbb"),
        ("in/a.md", b"aaa"),
        ("in/sub/c.TXT", "ccc\u{e9}".as_bytes()),
        ("in/image.png", &[0xff, 0xfe, 0xfd]),
        ("in/empty.txt", b""),
    ]);
    let toml = "text = \"in\"\ntokenizer = { kind = \"bpe\", vocab = 257 }\nvalidation = { last = 0.45 }";
    let data = folder.open(toml, Some(2)).unwrap_or_else(|error| panic!("{error}"));
    let tokenizer = data.tokenizer().expect("a tokenizer");
    // 11 bytes, the last 4 held out: the cut is at byte 7, inside the third document.
    assert_eq!((data.facts().train.bytes, data.facts().validation.bytes), (7, 4));
    let (tokens, _) = predicted(&*data, 3);
    assert_eq!(tokenizer.decode(&tokens, false).expect("decodes"), "cc\u{e9}");
    assert_eq!(data.facts().train.tokens, 7 + 3, "a document with a successor ends with a separator");
    assert_eq!(ints(&sample(&*data, Split::Validation, 0, 0)[0])[0], encode(tokenizer, "c")[0] as i32);
}

#[test]
fn the_cut_moves_to_the_start_of_a_character() {
    let text = "🐢".repeat(10);
    let folder = Folder::new(&[("t.txt", text.as_bytes())]);
    for (fraction, held_out) in [(0.1, 4), (0.125, 8), (0.13, 8), (0.175, 8), (0.2, 8), (0.23, 12)] {
        let toml = format!("text = \"t.txt\"\ntokenizer = {{ kind = \"char\" }}\nvalidation = {{ last = {fraction} }}");
        let data = folder.open(&toml, Some(2)).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(data.facts().validation.bytes, held_out, "last = {fraction}");
    }
}

#[test]
fn every_order_of_access_meets_the_same_samples() {
    let folder = Folder::new(&[("book.txt", excerpt().as_bytes())]);
    let book = |seed, context| {
        folder
            .open_seeded("text = \"book.txt\"\nvalidation = { last = 0.1 }", seed, Some(context))
            .unwrap_or_else(|error| panic!("{error}"))
    };
    let data = book(7, 96);
    let len = data.len(Split::Train);
    let start = 2 * len - 5;
    let (straddling, real) = batch(&*data, Split::Train, start, 9);
    assert_eq!(real, 9);
    let inputs = data.fields()[0].bytes();
    for slot in (0..9).rev() {
        let at = start + slot as u64;
        let alone = sample(&*data, Split::Train, at / len, at % len);
        assert_eq!(straddling[0][slot * inputs..][..inputs], alone[0], "sample {at}");
        assert_eq!(straddling[1][slot * inputs..][..inputs], alone[1], "sample {at}");
        let (single, _) = batch(&*data, Split::Train, at, 1);
        assert_eq!(single, alone);
    }
    let again = book(7, 96);
    assert_eq!(batch(&*again, Split::Train, start, 9).0, straddling, "a restart changes nothing");
    let other = book(8, 96);
    assert_ne!(batch(&*other, Split::Train, start, 9).0, straddling, "the seed decides the order");
    assert_eq!(data.checksum(), other.checksum(), "the order is not part of the checksum");
    assert_ne!(data.checksum(), book(7, 64).checksum(), "the window is");
}

#[test]
fn the_shortest_texts_work() {
    for (length, context, windows) in [(5, 4, 1), (8, 4, 1), (9, 4, 1), (12, 4, 2), (3, 1, 2), (2, 1, 1)] {
        let text: String = ('a'..='z').take(length).collect();
        let folder = Folder::new(&[("t.txt", text.as_bytes())]);
        let data = folder
            .open("text = \"t.txt\"\ntokenizer = { kind = \"char\" }", Some(context))
            .unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(data.len(Split::Train), windows, "{length} tokens in windows of {context}");
        assert_eq!(data.len(Split::Validation), 0);
        for epoch in 0..20 {
            for index in 0..windows {
                let fields = sample(&*data, Split::Train, epoch, index);
                let (inputs, labels) = (ints(&fields[0]), ints(&fields[1]));
                assert!(inputs.iter().zip(&labels).all(|(i, l)| i + 1 == *l));
            }
        }
    }
}
