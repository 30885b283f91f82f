//! Labelled texts: the three sources, tokens, padding, splits, duplicates, class weights, and what is refused.

mod common;

use std::collections::BTreeMap;

use common::{Folder, batch, config, floats, ints};
use tenon_data::{DataConfig, Dataset, Demands, IGNORED_LABEL, Split, Tokenizer, batch_length, save_tokenizer};

const CSV: &[u8] =
    b"id,words,more,kind\n1,good day,a,fine\n2,\"bad, \"\"very\"\" bad\",b,poor\n3,good night,c,fine\n4,so so,d,poor\n";
const JSONL: &[u8] = b"{\"words\":\"good day\",\"more\":\"a\",\"kind\":\"fine\"}\n\n{\"kind\":\"poor\",\"words\":\"bad, \\\"very\\\" bad\",\"more\":\"b\"}\n{\"words\":\"good night\",\"more\":\"c\",\"kind\":\"fine\"}\n{\"words\":\"so so\",\"more\":\"d\",\"kind\":\"poor\"}";
const BY_CHARACTER: &str = "tokenizer = { kind = \"char\" }\n";

fn opened(folder: &Folder, toml: &str) -> Box<dyn Dataset> {
    folder.open(&format!("{BY_CHARACTER}{toml}"), None).unwrap_or_else(|error| panic!("{error}"))
}

/// The texts of a split in its order, with their types as digits, and their labels.
fn texts(data: &dyn Dataset, split: Split) -> Vec<(String, String, i32)> {
    let tokenizer = data.tokenizer().expect("a tokenizer");
    let text = |index: u64| {
        let (fields, real) = batch(data, split, index, 1);
        assert_eq!(real, 1);
        let (ids, seen) = (ints(&fields[0]), ints(&fields[1]));
        let length = seen.iter().filter(|&&s| s == 1).count();
        assert!(seen[..length].iter().all(|&s| s == 1), "padding is at the end");
        assert_eq!(Some(ids.len()), batch_length(data, split, index, 1));
        let real: Vec<u32> = ids[..length].iter().map(|&id| id as u32).collect();
        let types: String = ints(&fields[2])[..length].iter().map(|ty| ty.to_string()).collect();
        assert!(ids[length..].iter().all(|&id| id as u32 == tokenizer.token_to_id("[PAD]").expect("a filler")));
        (tokenizer.decode(&real, false).expect("text"), types, ints(&fields[3])[0])
    };
    (0..data.len(split)).map(text).collect()
}

#[test]
fn csv_json_lines_and_folders_are_the_same_texts() {
    let folder = Folder::new(&[
        ("t.csv", CSV),
        ("t.jsonl", JSONL),
        ("t/fine/1.txt", b"good day"),
        ("t/fine/2/1.md", b"good night"),
        ("t/poor/1.txt", b"bad, \"very\" bad"),
        ("t/poor/2.txt", b"so so"),
        ("t/poor/2.png", b"no text"),
    ]);
    let sources = [
        "labelled_text = { csv = \"t.csv\", text = \"words\", label = \"kind\" }",
        "labelled_text = { jsonl = \"t.jsonl\", text = \"words\", label = \"kind\" }",
        "labelled_text = { folder = \"t\" }",
    ];
    for source in sources {
        let data = opened(&folder, source);
        let facts = data.facts();
        assert_eq!(facts.class_names, ["fine", "poor"], "{source}");
        assert_eq!(facts.train.class_counts, [2, 2], "{source}");
        let mut found = texts(&*data, Split::Train);
        found.sort();
        let expected = [("bad, \"very\" bad", 1), ("good day", 0), ("good night", 0), ("so so", 1)];
        let expected = expected.map(|(text, label)| (format!("[CLS]{text}[SEP]"), "0".repeat(text.len() + 2), label));
        assert_eq!(found, expected, "{source}");
    }
    let pairs =
        opened(&folder, "labelled_text = { jsonl = \"t.jsonl\", text = \"words\", pair = \"more\", label = \"kind\" }");
    assert!(texts(&*pairs, Split::Train).contains(&("[CLS]so so[SEP]d[SEP]".into(), "000000011".into(), 1)));
    let byte_pairs = folder.open(sources[0], None).unwrap();
    assert_eq!(byte_pairs.tokenizer().unwrap().token_to_id("<|endoftext|>"), Some(0));
}

#[test]
fn long_texts_are_cut_and_short_ones_padded_to_few_lengths() {
    let rows: String = (1..=200).map(|i| format!("{},{}\n", "x".repeat(1 + i * i % 97), i % 2)).collect();
    let folder = Folder::new(&[("t.csv", format!("text,label\n{rows}").as_bytes())]);
    let source = "labelled_text = { csv = \"t.csv\", text = \"text\", label = \"label\", max_tokens = 70 }\nvalidation = { stratified = 0.2 }";
    let data = opened(&folder, source);
    let lengths: Vec<usize> = data.lengths().iter().map(|l| l.length).collect();
    assert!(lengths.len() > 1 && *lengths.last().unwrap() == 70, "{lengths:?}");
    assert!(data.facts().notes.iter().any(|n| n.contains("are cut to 70 tokens")), "{:?}", data.facts().notes);
    for (split, count) in [(Split::Train, 160), (Split::Validation, 40)] {
        let mut all = texts(&*data, split);
        assert_eq!(all.len(), count);
        all.retain(|(text, ..)| !(text.starts_with("[CLS]x") && text.ends_with("[SEP]") && text.len() <= 70 + 8));
        assert_eq!(all, [], "cut texts keep their frame");
    }
    // Batches of the given size have one length, nearly all of them, in every epoch; what they hold depends on nothing else.
    let again = opened(&folder, source);
    for position in (0..640).step_by(4) {
        assert_eq!(batch(&*data, Split::Train, position, 4), batch(&*again, Split::Train, position, 4));
    }
    let mixed = (0..160u64).step_by(4).filter(|first| {
        let of = |i: u64| data.length_of(Split::Train, 0, first + i);
        (1..4).any(|i| of(i) != of(0))
    });
    assert!(mixed.count() < lengths.len());
    // A batch that the split does not fill: nothing is seen of what is missing.
    let (fields, real) = batch(&*data, Split::Validation, 38, 4);
    assert_eq!(real, 2);
    let width = ints(&fields[1]).len() / 4;
    assert!(ints(&fields[1])[2 * width..].iter().all(|&seen| seen == 0));
    assert_eq!(ints(&fields[3])[2..], [IGNORED_LABEL; 2]);
    // A context cuts as well.
    let short = folder.open(&format!("{BY_CHARACTER}{}", source.replace(", max_tokens = 70", "")), Some(20)).unwrap();
    assert_eq!(short.lengths().last().unwrap().length, 20);
}

#[test]
fn duplicates_are_removed_before_anything_is_held_out() {
    let rows = "same,a\nother,b\nsame ,a\nthird,a\nsame,b\nfourth,b\n";
    let folder = Folder::new(&[("t.csv", format!("text,label\n{rows}").as_bytes())]);
    folder.write("held.csv", b"text,label\nthird,a\nfifth,b\n");
    let source = "labelled_text = { csv = \"t.csv\", text = \"text\", label = \"label\", deduplicate = true }\n";
    let data = opened(&folder, &format!("{source}validation = {{ last_count = 1 }}"));
    assert_eq!((data.len(Split::Train), data.len(Split::Validation)), (3, 1));
    assert_eq!(
        data.facts().notes[0],
        "2 samples are removed, whose text an earlier one has, 1 of them with another label"
    );
    let data = opened(&folder, &format!("{source}validation = {{ file = \"held.csv\" }}"));
    assert_eq!((data.len(Split::Train), data.len(Split::Validation)), (4, 1));
    assert_eq!(texts(&*data, Split::Validation)[0].2, 1);
}

#[test]
fn class_weights_come_with_every_sample() {
    let rows = "w,a\nx,a\ny,a\nz,b\n";
    let folder = Folder::new(&[("t.csv", format!("text,label\n{rows}").as_bytes())]);
    let source = "labelled_text = { csv = \"t.csv\", text = \"text\", label = \"label\" }\n";
    // As scikit-learn's compute_class_weight("balanced") of three and one.
    for (config, expected) in [("\"balanced\"", [4.0 / 6.0, 2.0]), ("[1, 2.5]", [1.0, 2.5])] {
        let data = opened(&folder, &format!("class_weights = {config}\n{source}"));
        assert_eq!(data.fields().last().unwrap().name, "label_weights");
        let (fields, _) = batch(&*data, Split::Train, 0, 4);
        let found: BTreeMap<i32, f32> = ints(&fields[3]).into_iter().zip(floats(&fields[4])).collect();
        assert_eq!(found, BTreeMap::from([(0, expected[0] as f32), (1, expected[1] as f32)]));
    }
    for (config, said) in [
        ("[1.0]", "1 weights are given, the data has 2 classes: a, b"),
        ("[1.0, -1.0]", "a weight is -1"),
        ("[0.0, 0.0]", "every weight is 0"),
    ] {
        let error = folder.error(&format!("class_weights = {config}\n{BY_CHARACTER}{source}"));
        assert!(error.contains(said) && error.contains("--> data.class_weights"), "{error}");
    }
    let error = folder.error("class_weights = \"balanced\"\ntable = { csv = \"n.csv\", target = \"last\" }");
    assert!(error.contains("n.csv"), "{error}");
    assert!(toml::from_str::<DataConfig>("class_weights = \"even\"").is_err());
}

#[test]
fn a_given_tokenizer_is_used_as_it_is() {
    let folder = Folder::new(&[("t.csv", CSV)]);
    let source = "labelled_text = { csv = \"t.csv\", text = \"words\", label = \"kind\" }\n";
    let first = opened(&folder, source);
    save_tokenizer(first.tokenizer().unwrap(), &folder.dir.path().join("tokenizer.json")).unwrap();
    let toml = format!("tokenizer = {{ kind = \"file\", file = \"tokenizer.json\" }}\n{source}");
    let data = folder.open(&toml, None).unwrap();
    assert_eq!(texts(&*data, Split::Train), texts(&*first, Split::Train));
    assert_eq!(data.checksum(), first.checksum());
    let other = folder.open(&format!("{toml}validation = {{ last_count = 1 }}"), None).unwrap();
    assert_ne!(data.checksum(), other.checksum());
}

#[test]
fn what_is_wrong_is_named_with_its_place() {
    let folder = Folder::new(&[
        ("t.csv", CSV),
        ("broken.jsonl", b"{\"a\":\"x\",\"b\":1}\n{\"a\":\"x\",\n"),
        ("other.jsonl", b"{\"a\":\"x\",\"b\":1}\n\n{\"a\":\"x\",\"c\":1}\n"),
        ("number.jsonl", b"{\"a\":5,\"b\":1}\n"),
        ("list.jsonl", b"{\"a\":\"x\",\"b\":[1]}\n"),
        ("bytes.csv", b"a,b\nx,1\n\xff\xfe,2\n"),
        ("empty.jsonl", b"\n"),
        ("flat/1.txt", b"a text without a class"),
        ("bytes/a/1.txt", b"fine \xff"),
    ]);
    let jsonl = |name: &str| format!("labelled_text = {{ jsonl = \"{name}.jsonl\", text = \"a\", label = \"b\" }}");
    let cases = [
        (jsonl("broken"), "not JSON: ", "broken.jsonl:2"),
        (jsonl("other"), "no key `b`; the line has a, c", "other.jsonl:3"),
        (jsonl("number"), "`a` is 5, not text", "number.jsonl:1"),
        (jsonl("list"), "`b` is [1], which names no class", "list.jsonl:1"),
        (jsonl("empty"), "the data has no sample", "data.labelled_text"),
        (jsonl("absent"), "No such file", "absent.jsonl"),
        (
            "labelled_text = { csv = \"t.csv\", text = \"wrods\", label = \"kind\" }".into(),
            "no column `wrods`",
            "data.labelled_text.text",
        ),
        (
            "labelled_text = { csv = \"bytes.csv\", text = \"a\", label = \"b\" }".into(),
            "column `a` is not UTF-8",
            "bytes.csv:3",
        ),
        ("labelled_text = { csv = \"t.csv\" }".into(), "either `csv` or `jsonl`", "data.labelled_text"),
        ("labelled_text = { folder = \"flat\" }".into(), "the folder has no folders", "flat"),
        ("labelled_text = { folder = \"bytes\" }".into(), "not UTF-8", "bytes/a/1.txt, byte 5"),
        (
            "labelled_text = { csv = \"t.csv\", text = \"words\", label = \"kind\", max_tokens = 5 }".into(),
            "max_tokens is 5, but the model's context is 4",
            "data.labelled_text.max_tokens",
        ),
    ];
    for (toml, said, place) in cases {
        let error = folder.error(&toml);
        assert!(error.contains(said) && error.contains(&format!("--> {place}")), "{toml}: {error}");
        assert!(error.contains("try: "), "{error}");
    }
}

#[test]
fn masks_hide_a_seventh_of_the_tokens_in_the_same_places_every_time() {
    let text: String = (0..9000).map(|i| char::from(b'a' + (i * i % 23) as u8)).collect();
    let folder = Folder::new(&[("t.txt", text.as_bytes())]);
    let toml = "text = \"t.txt\"\ntokenizer = { kind = \"char\" }\nvalidation = { last = 0.3 }";
    let open = |seed| {
        let demands = Demands { seed, batch: 4, context: Some(50), masked: true };
        folder.open_for(toml, demands).unwrap_or_else(|error| panic!("{error}"))
    };
    let (data, other) = (open(1), open(2));
    let tokenizer: &Tokenizer = data.tokenizer().unwrap();
    let token = |name: &str| tokenizer.token_to_id(name).expect("a special token") as i32;
    let (start, end, mask, filler) = (token("[CLS]"), token("[SEP]"), token("[MASK]"), token("[PAD]"));
    let special = [start, end, mask, filler, token("<unk>")];
    let (mut chosen, mut masked, mut changed, mut all) = (0.0, 0.0, 0.0, 0.0);
    let mut held_out = String::new();
    for split in [Split::Train, Split::Validation] {
        for index in 0..data.len(split) {
            let (fields, _) = batch(&*data, split, index, 1);
            let fields: Vec<Vec<i32>> = fields.iter().map(|f| ints(f)).collect();
            let real = fields[1].iter().filter(|&&seen| seen == 1).count();
            assert_eq!((fields[0][0], fields[0][real - 1]), (start, end));
            assert!(fields[0][real..].iter().all(|&id| id == filler));
            for (id, label) in fields[0].iter().zip(&fields[3]) {
                if *label == IGNORED_LABEL {
                    assert!(*id != mask);
                    continue;
                }
                assert!(!special.contains(label) && (*id == mask || !special.contains(id)));
                chosen += 1.0;
                masked += f64::from(u8::from(*id == mask));
                changed += f64::from(u8::from(id != label && *id != mask));
            }
            all += real as f64 - 2.0;
            let whole: Vec<u32> =
                fields[0].iter().zip(&fields[3]).map(|(&id, &l)| if l < 0 { id } else { l } as u32).collect();
            if split == Split::Validation {
                held_out += &tokenizer.decode(&whole[1..real - 1], false).unwrap();
                assert_eq!(
                    batch(&*other, split, index, 1).0[0],
                    batch(&*data, split, index, 1).0[0],
                    "one mask for all"
                );
            } else {
                let again = batch(&*open(1), split, index, 1).0;
                assert_eq!(ints(&again[0]), fields[0]);
            }
        }
    }
    assert!(text.ends_with(&held_out) && held_out.len() == 2700, "every held-out token is in one window");
    // Three standard deviations of so many tokens.
    assert!((chosen / all - 0.15f64).abs() < 0.012, "{}", chosen / all);
    assert!(
        (masked / chosen - 0.8f64).abs() < 0.035 && (changed / chosen - 0.1f64).abs() < 0.03,
        "{masked} {changed} {chosen}"
    );
    let epoch = |epoch: u64| batch(&*data, Split::Train, epoch * data.len(Split::Train), 1).0;
    assert_ne!(epoch(0)[3], epoch(1)[3]);

    let plain = folder.open_for(toml, Demands { seed: 1, batch: 4, context: Some(50), masked: false }).unwrap();
    save_tokenizer(plain.tokenizer().unwrap(), &folder.dir.path().join("plain.json")).unwrap();
    let plain = "text = \"t.txt\"\ntokenizer = { kind = \"file\", file = \"plain.json\" }";
    let refused = folder.open_for(plain, Demands { seed: 1, batch: 4, context: Some(50), masked: true });
    let refused = refused.err().expect("it has no mask").to_string();
    assert!(refused.contains("no token [MASK] or <mask>"), "{refused}");
    assert_eq!(config(plain).validation, None);
}

/// The texts of a split as they were before they were masked, in its order, and how many tokens are to be guessed of how many.
fn unmasked(data: &dyn Dataset, split: Split, epoch: u64) -> (Vec<String>, usize, usize) {
    let tokenizer = data.tokenizer().expect("a tokenizer");
    let token = |name: &str| tokenizer.token_to_id(name).expect("a special token") as i32;
    let special = ["[CLS]", "[SEP]", "[MASK]", "[PAD]", "<unk>"].map(token);
    let (mut texts, mut chosen, mut all) = (Vec::new(), 0, 0);
    for index in 0..data.len(split) {
        let length = data.length_of(split, epoch, index);
        let mut buffers: Vec<Vec<u8>> = data.fields().iter().map(|f| vec![0xa5; f.at(length).bytes()]).collect();
        let mut parts: Vec<&mut [u8]> = buffers.iter_mut().map(Vec::as_mut_slice).collect();
        data.write_sample(split, epoch, index, &mut parts);
        let [ids, seen, _, labels] = [0, 1, 2, 3].map(|field| ints(&buffers[field]));
        let real = seen.iter().filter(|&&s| s == 1).count();
        assert!(ids[real..].iter().all(|&id| id == special[3]));
        assert!(labels[real..].iter().all(|&label| label == IGNORED_LABEL));
        for (id, label) in ids.iter().zip(&labels) {
            let guessed = *label != IGNORED_LABEL;
            assert!(if guessed { !special.contains(label) } else { *id != special[2] });
            chosen += usize::from(guessed);
        }
        all += real - 2;
        let whole = ids.iter().zip(&labels).map(|(&id, &label)| if label < 0 { id } else { label } as u32);
        texts.push(tokenizer.decode(&whole.take(real).collect::<Vec<u32>>(), false).expect("text"));
    }
    (texts, chosen, all)
}

#[test]
fn samples_are_masked_whatever_file_they_come_from() {
    let words: Vec<String> =
        (0..300usize).map(|i| "abcdefg".chars().cycle().skip(i % 7).take(1 + i * i % 83).collect()).collect();
    let line = |i: usize, text: &String| format!("{{\"text\":\"{text}{i}\",\"kind\":{}}}\n", i % 3);
    let jsonl: String = words.iter().enumerate().map(|(i, text)| line(i, text)).collect();
    let csv: String = words.iter().enumerate().map(|(i, text)| format!("{text}{i},{}\n", i % 3)).collect();
    let folder = Folder::new(&[("t.jsonl", jsonl.as_bytes()), ("t.csv", format!("text,kind\n{csv}").as_bytes())]);
    for (i, text) in words.iter().enumerate() {
        folder.write(&format!("t/{}/{i:03}.txt", ["x", "x/deeper", "y"][i % 3]), format!("{text}{i}").as_bytes());
    }
    folder.write("t/beside.txt", b"gfedcba");
    let open = |source: &str, seed, masked| {
        let toml = format!("{BY_CHARACTER}labelled_text = {{ {source} }}\nvalidation = {{ every = 5 }}\n");
        folder.open_for(&toml, Demands { seed, batch: 4, context: Some(70), masked }).map_err(|e| e.to_string())
    };
    let data = open("jsonl = \"t.jsonl\", text = \"text\"", 1, true).unwrap();
    assert!(data.lengths().len() > 1 && data.facts().classes.is_none());
    let labels = data.fields().last().unwrap();
    assert!(labels.name == "labels" && labels.padded && labels.shape == [70]);
    let (mut chosen, mut all) = (0, 0);
    for (split, epoch) in [(Split::Train, 0), (Split::Train, 3), (Split::Validation, 0)] {
        let (mut texts, some, of) = unmasked(&*data, split, epoch);
        (chosen, all) = (chosen + some, all + of);
        let held_out = |i: usize| i % 5 == 4;
        let whole = words.iter().enumerate().filter(|(i, _)| held_out(*i) == (split == Split::Validation));
        let mut expected: Vec<String> = whole
            .map(|(i, text)| format!("[CLS]{}[SEP]", format!("{text}{i}").chars().take(68).collect::<String>()))
            .collect();
        texts.sort();
        expected.sort();
        assert_eq!(texts, expected);
    }
    // Three standard deviations of so many tokens.
    assert!((chosen as f64 / all as f64 - 0.15).abs() < 0.008, "{chosen} of {all}");
    let training = |epoch| (0..data.len(Split::Train)).map(move |i| (epoch, i));
    let all_labels = |epoch| -> Vec<i32> {
        let labels = training(epoch).filter(|(e, i)| data.length_of(Split::Train, *e, *i) == Some(70));
        labels.flat_map(|(e, i)| ints(&common::sample(&*data, Split::Train, e, i)[3])).collect()
    };
    assert_ne!(all_labels(0), all_labels(1), "another mask in every epoch");

    // The same samples from a CSV file, from any seed the same held-out mask, and the classes decide the split only.
    let held_out = |data: &dyn Dataset| -> Vec<Vec<Vec<u8>>> {
        (0..data.len(Split::Validation)).map(|i| batch(data, Split::Validation, i, 1).0).collect()
    };
    let other = open("csv = \"t.csv\", text = \"text\"", 2, true).unwrap();
    assert_eq!(held_out(&*other), held_out(&*data));
    assert_eq!(other.checksum(), data.checksum());
    let stratified = |masked| {
        let source = "labelled_text = { csv = \"t.csv\", text = \"text\", label = \"kind\" }";
        let toml = format!("{BY_CHARACTER}{source}\nvalidation = {{ stratified = 0.1 }}\n");
        folder.open_for(&toml, Demands { seed: 7, batch: 4, context: None, masked }).unwrap()
    };
    let classified: Vec<String> = texts(&*stratified(false), Split::Validation).into_iter().map(|t| t.0).collect();
    assert_eq!(unmasked(&*stratified(true), Split::Validation, 0).0, classified);

    // Of a folder every text, with classes or without.
    let files = open("folder = \"t\"", 1, true).unwrap();
    let of = |split| unmasked(&*files, split, 0).0;
    let both = [of(Split::Train), of(Split::Validation)].concat();
    assert!(both.len() == 301 && both.contains(&"[CLS]gfedcba[SEP]".to_owned()));

    for (source, masked, said) in [
        ("csv = \"t.csv\", text = \"text\"", false, "to be classified, `label`"),
        ("csv = \"t.csv\"", true, "either `csv` or `jsonl` with the column `text`"),
        ("csv = \"t.csv\", text = \"text\", label = \"knid\"", true, "no column `knid`"),
    ] {
        let error = open(source, 1, masked).err().expect(said);
        assert!(error.contains(said) && error.contains("try: "), "{error}");
    }
    let toml = format!("{BY_CHARACTER}labelled_text = {{ folder = \"t\" }}\nvalidation = {{ stratified = 0.1 }}\n");
    let error = folder.open_for(&toml, Demands { seed: 7, batch: 4, context: None, masked: true }).err().unwrap();
    assert!(error.to_string().contains("a stratified split needs classes"), "{error}");
}

#[test]
fn what_programs_put_before_a_text_is_no_part_of_it() {
    let marked = |bytes: &[u8]| [b"\xef\xbb\xbf", bytes].concat();
    let folder = Folder::new(&[
        ("t.csv", &marked(b"words,kind\nhi,a\nyo,b\n")),
        ("t.jsonl", &marked(b"{\"words\":\"hi\",\"kind\":\"a\"}\n{\"words\":\"yo\",\"kind\":\"b\"}\n")),
        ("t/a/1.txt", &marked(b"hi")),
        ("t/b/1.txt", b"yo"),
        ("t/b/._1.txt", b"\xff\0"),
        ("t/.cache/1.txt", b"ok"),
    ]);
    for source in [
        "labelled_text = { csv = \"t.csv\", text = \"words\", label = \"kind\" }",
        "labelled_text = { jsonl = \"t.jsonl\", text = \"words\", label = \"kind\" }",
        "labelled_text = { folder = \"t\" }",
    ] {
        let mut found = texts(&*opened(&folder, source), Split::Train);
        found.sort();
        let found: Vec<(&str, i32)> = found.iter().map(|(text, _, label)| (text.as_str(), *label)).collect();
        assert_eq!(found, [("[CLS]hi[SEP]", 0), ("[CLS]yo[SEP]", 1)], "{source}");
    }
}

#[test]
fn files_of_another_kind_are_told_from_damaged_ones() {
    let wide: Vec<u8> = "\u{feff}words,kind\nhi,a\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let folder = Folder::new(&[
        ("wide.csv", &wide),
        ("list.jsonl", b"[{\"words\":\"hi\",\"kind\":\"a\"}]\n"),
        ("one.csv", b"words,kind\nhi,a\nyo,a\n"),
    ]);
    for (source, part) in [
        ("csv = \"wide.csv\"", "the file is UTF-16, not UTF-8"),
        ("jsonl = \"wide.csv\"", "the file is UTF-16, not UTF-8"),
        ("jsonl = \"list.jsonl\"", "no object: [{\"words\":\"hi\",\"kind\":\"a\"}]"),
        ("csv = \"one.csv\"", "all samples are of one class, `a`"),
    ] {
        let toml = format!("labelled_text = {{ {source}, text = \"words\", label = \"kind\" }}\n");
        let error = folder.open(&toml, None).err().expect(part).to_string();
        assert!(error.contains(part), "{source}: {error}");
    }
}
