//! Whatever the bytes of a file are, opening it gives a dataset or an error, never a panic.

mod common;

use common::{Folder, batch};
use proptest::prelude::*;
use tenon_data::{Split, tokenizer_to_json};

/// Opens and, where that works, reads everything once.
fn open_and_read(folder: &Folder, toml: &str) {
    match folder.open(toml, Some(3)) {
        Err(error) => {
            let message = error.to_string();
            assert!(message.contains("\n  --> ") && message.contains("\n  try: "), "{message}");
        }
        Ok(data) => {
            for split in [Split::Train, Split::Validation] {
                let len = data.len(split) as usize;
                assert_eq!(batch(&*data, split, 0, len).1, len);
            }
        }
    }
}

/// Failing cases are printed, not kept in files.
fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

/// IDX files with a right or nearly right header.
fn idx() -> impl Strategy<Value = Vec<u8>> {
    let size = prop_oneof![0u32..4, Just(u32::MAX), any::<u32>()];
    let header = (prop_oneof![Just(8u8), any::<u8>()], prop::collection::vec(size, 0..6));
    (header, prop::collection::vec(any::<u8>(), 0..40)).prop_map(|((kind, sizes), bytes)| {
        let mut file = vec![0, 0, kind, sizes.len() as u8];
        file.extend(sizes.iter().flat_map(|size| size.to_be_bytes()));
        file.extend(bytes);
        file
    })
}

proptest! {
    #![proptest_config(cases(200))]

    #[test]
    fn idx_files(images in idx(), labels in idx(), raw in prop::collection::vec(any::<u8>(), 0..60)) {
        let folder = Folder::new(&[("a", &images), ("b", &labels), ("c", &raw)]);
        for (images, labels) in [("a", "b"), ("a", "c"), ("c", "b")] {
            open_and_read(&folder, &format!("images = {{ idx = \"{images}\", labels = \"{labels}\" }}"));
        }
    }

    #[test]
    fn csv_files(
        cells in "([0-9a-z.,;\t\"\r\n -]|[0-9],|[0-9],[0-9]\n){0,80}",
        raw in prop::collection::vec(any::<u8>(), 0..60),
        gzip: bool,
    ) {
        let mut second = raw;
        if gzip {
            second.splice(..0, [0x1f, 0x8b, 8, 0]);
        }
        let folder = Folder::new(&[("a.csv", cells.as_bytes()), ("b.csv", &second)]);
        for source in ["table = { csv = \"F\", label = \"last\" }", "table = { csv = \"F\", target = \"first\" }",
            "images = { csv = \"F\", label = \"first\" }"]
        {
            for file in ["a.csv", "b.csv"] {
                let source = source.replace('F', file);
                for validation in ["{ last = 0.3 }", "{ stratified = 0.5 }", "{ every = 2 }", "{ file = \"a.csv\" }"] {
                    open_and_read(&folder, &format!("{source}\nvalidation = {validation}"));
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(cases(60))]

    #[test]
    fn text_files(raw in prop::collection::vec(any::<u8>(), 0..60), text in "\\PC{0,60}") {
        let folder = Folder::new(&[("a.txt", &raw), ("b.txt", text.as_bytes())]);
        for tokenizer in ["{ kind = \"char\" }", "{ kind = \"bpe\", vocab = 270 }"] {
            for file in ["a.txt", "b.txt"] {
                open_and_read(&folder, &format!("text = \"{file}\"\ntokenizer = {tokenizer}\nvalidation = {{ last = 0.3 }}"));
            }
        }
    }

    #[test]
    fn tokenizer_files(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4), cut: prop::sample::Index) {
        let folder = Folder::new(&[("a.txt", b"the whale and the sea")]);
        let made = folder.open("text = \"a.txt\"\ntokenizer = { kind = \"bpe\", vocab = 260 }", Some(3));
        let data = made.unwrap_or_else(|error| panic!("{error}"));
        let json = tokenizer_to_json(data.tokenizer().expect("a tokenizer")).expect("JSON");
        let mut damaged = json.into_bytes();
        for (at, byte) in &flips {
            let at = at.index(damaged.len());
            damaged[at] = *byte;
        }
        folder.write("flipped.json", &damaged);
        folder.write("cut.json", &damaged[..cut.index(damaged.len())]);
        for file in ["flipped.json", "cut.json"] {
            open_and_read(&folder, &format!("text = \"a.txt\"\ntokenizer = {{ kind = \"file\", file = \"{file}\" }}"));
        }
    }
}
