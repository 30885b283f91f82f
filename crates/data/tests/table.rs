//! Tables and settings: columns, classes, targets, standardisation, and errors of the `[data]` table.

mod common;

use common::{Folder, batch, config, floats, ints};
use tenon_data::{DataConfig, Dataset, ElementType, Split};

const IRIS: &[u8] = b"sepal,petal,species\n5.1,1.5,setosa\n7.0,4.5,versicolor\n6.5,5.5,virginica\n4.9,1.5,setosa\n";

fn opened(folder: &Folder, toml: &str) -> Box<dyn Dataset> {
    folder.open(toml, None).unwrap_or_else(|error| panic!("{error}"))
}

fn whole(data: &dyn Dataset, split: Split) -> Vec<Vec<u8>> {
    batch(data, split, 0, data.len(split) as usize).0
}

#[test]
fn classes_are_sorted_and_recorded() {
    let folder = Folder::new(&[("iris.csv", IRIS)]);
    let toml =
        "table = { csv = \"iris.csv\", label = \"species\", standardize = false }\nvalidation = { last_count = 1 }";
    let data = opened(&folder, toml);
    let facts = data.facts();
    assert_eq!((facts.features, facts.classes), (Some(2), Some(3)));
    assert_eq!(facts.feature_names, ["sepal", "petal"]);
    assert_eq!(facts.class_names, ["setosa", "versicolor", "virginica"]);
    assert_eq!(facts.train.class_counts, [1, 1, 1]);
    let held_out = whole(&*data, Split::Validation);
    assert_eq!(floats(&held_out[0]), [4.9, 1.5]);
    assert_eq!(ints(&held_out[1]), [0]);
    assert_eq!(data.fields()[0].name, "input_features");
    assert_eq!(data.fields()[1].shape, [] as [usize; 0]);

    for (cells, names) in [
        (["10", "9", "-1", "9"], ["-1", "9", "10"]),
        (["10.0", "9", "-1.0", "9.0"], ["-1", "9", "10"]),
        (["10", "9", "x", "9"], ["10", "9", "x"]),
    ] {
        let rows: String = cells.iter().map(|cell| format!("1;{cell};2\n")).collect();
        folder.write("n.csv", format!("a;class;b\n{rows}").as_bytes());
        let data = opened(&folder, "table = { csv = \"n.csv\", label = \"class\" }");
        assert_eq!(data.facts().class_names, names);
    }
}

#[test]
fn features_are_standardised_by_the_training_part_only() {
    let csv = b"0.1,1,7\n0.1,3,8\n0.1,1000,9\n";
    let folder = Folder::new(&[("t.csv", csv)]);
    let toml = "table = { csv = \"t.csv\", target = \"last\" }\nvalidation = { last_count = 1 }";
    let data = opened(&folder, toml);
    let standardization = data.facts().standardization.clone().expect("recorded");
    assert_eq!(standardization.mean, [0.1, 2.0]);
    assert_eq!(standardization.std, [1.0, 1.0], "a constant feature is not scaled");
    let held_out = whole(&*data, Split::Validation);
    let values = floats(&held_out[0]);
    assert!(values[0].abs() < 1e-7, "{values:?}");
    assert_eq!(values[1], 998.0);
    assert_eq!(floats(&held_out[1]), [9.0], "targets keep their unit");
    assert_eq!(data.fields()[1].element, ElementType::F32);
    assert_eq!(data.fields()[1].shape, [1]);
    assert_eq!(data.facts().classes, None);
    let (padded, real) = batch(&*data, Split::Validation, 0, 2);
    assert_eq!(real, 1);
    assert!(floats(&padded[1])[1].is_nan(), "a padded target shows if it is used");
}

#[test]
fn headers_separators_and_quotes_are_understood() {
    let tables: [&[u8]; 5] = [
        b"1,2,0\n3,4,1\n",
        b"x,y,z\n1,2,0\n3,4,1\n",
        b"\xef\xbb\xbfx\ty\tz\r\n\r\n1\t2\t0\r\n3\t4\t1\r\n",
        b"\"x, first\";\"y\"\"\";z\n1;2;0\n 3 ;4e0;1\n",
        b"x,y,z\n\"1\",\"2\",\"0\"\n3,4.000,1",
    ];
    for bytes in tables {
        let folder = Folder::new(&[("t.csv", bytes)]);
        let data = opened(&folder, "table = { csv = \"t.csv\", label = \"last\", standardize = false }");
        let mut rows: Vec<Vec<f32>> = floats(&whole(&*data, Split::Train)[0]).chunks(2).map(<[f32]>::to_vec).collect();
        rows.sort_by(|a, b| a[0].total_cmp(&b[0]));
        assert_eq!(rows, [[1.0, 2.0], [3.0, 4.0]], "{}", String::from_utf8_lossy(bytes));
    }
    let folder = Folder::new(&[("t.csv", b"1,2,0\n3,4,1\n5,6,0\n")]);
    let data = opened(&folder, "table = { csv = \"t.csv\", label = \"last\", header = true }");
    assert_eq!(data.len(Split::Train), 2);
}

#[test]
fn a_held_out_file_has_the_same_columns() {
    let folder = Folder::new(&[
        ("a.csv", IRIS),
        ("b.csv", b"sepal,petal,species\n1,2,setosa\n"),
        ("c.csv", b"petal,sepal,species\n1,2,setosa\n"),
        ("header.csv", b"sepal,petal,species\n"),
    ]);
    let toml = "table = { csv = \"a.csv\", label = \"species\" }\nvalidation = { file = \"b.csv\" }";
    let data = opened(&folder, toml);
    assert_eq!((data.len(Split::Train), data.len(Split::Validation)), (4, 1));
    let swapped = folder.error(&toml.replace("b.csv", "c.csv"));
    let wanted = "the held-out file has 3 columns petal, sepal, species, a.csv has 3 columns sepal, petal, species\n  --> c.csv:1";
    assert!(swapped.starts_with(wanted), "{swapped}");
    let empty = folder.error(&toml.replace("a.csv", "header.csv"));
    assert!(empty.starts_with("of 1 samples 0 are left to train and 1 are held out"), "{empty}");
}

#[test]
fn bad_tables_and_settings_are_named() {
    let folder = Folder::new(&[
        ("t.csv", b"a,b,y\n1,2,0\n1,,1\n"),
        ("u.csv", b"a,b,y\n1,2,0\n1,nan,1\n"),
        ("one.csv", b"a\n1\n"),
        ("empty.csv", b""),
        ("t.txt", b"some text to train on"),
        ("bom.txt", b"\xff\xfea\0b\0"),
        ("empty.txt", b""),
        ("folder/image.png", b""),
        ("tok.json", b"{\"version\":\"1.0\"}"),
    ]);
    let table = |csv: &str, more: &str| format!("table = {{ csv = \"{csv}\", label = \"last\" }}\n{more}");
    let text = |more: &str| format!("text = \"t.txt\"\n{more}");
    let cases = [
        (table("t.csv", ""), "column `b` is empty\n  --> t.csv:3"),
        (table("u.csv", ""), "column `b` is `nan`: not a finite number\n  --> u.csv:3"),
        (table("one.csv", ""), "the table has one column"),
        (table("empty.csv", ""), "the file is empty\n  --> empty.csv"),
        (table("folder", ""), "cannot open: "),
        (
            table("t.csv", "tokenizer = { kind = \"char\" }"),
            "`tokenizer` is given, but there is no `text` to tokenise\n  --> data.tokenizer",
        ),
        ("table = { csv = \"t.csv\", label = \"y\", target = \"y\" }".to_owned(), "a table needs either `label`"),
        (
            "table = { csv = \"one.csv\", target = \"a\" }\nvalidation = { stratified = 0.5 }".to_owned(),
            "the table has one column",
        ),
        (
            String::new(),
            "no data is named: none of `text`, `labelled_text`, `images` and `table` is given\n  --> data\n",
        ),
        (table("t.csv", "text = \"t.txt\""), "`text` and `table` are given; one experiment has one of them"),
        (
            text("validation = { last = 1.5 }"),
            "the held-out fraction is 1.5; it must lie between 0 and 1\n  --> data.validation.last",
        ),
        (text("validation = { last = nan }"), "the held-out fraction is NaN"),
        (
            text("validation = { last = 0.01 }"),
            "the held-out text is empty; 21 bytes are left to train\n  --> data.validation",
        ),
        (text("validation = { every = 3 }"), "text has no labelled samples to hold out\n  --> data.validation"),
        (text("tokenizer = { kind = \"bpe\", vocab = 256 }"), "a vocabulary of 256 tokens is asked for"),
        (text("tokenizer = { kind = \"file\", file = \"tok.json\" }"), "the tokenizer cannot be used: "),
        (text("tokenizer = { kind = \"file\", file = \"none.json\" }"), "cannot read: "),
        ("text = \"empty.txt\"".to_owned(), "the training text is empty\n  --> empty.txt"),
        (
            "text = \"folder\"".to_owned(),
            "the folder holds no text: no file ends in .txt, .text, .md, .rst\n  --> folder",
        ),
        ("text = []".to_owned(), "the list of files is empty\n  --> data.text"),
        ("text = [\"t.txt\", \"none.txt\"]".to_owned(), "cannot open: "),
        (
            "text = \"bom.txt\"".to_owned(),
            "not UTF-8: found byte 0xff, which no character has there\n  --> bom.txt, byte 0\n  try: the file starts like UTF-16",
        ),
    ];
    let mut wrong = Vec::new();
    for (toml, wanted) in &cases {
        let message = folder.error(toml);
        let whole = message.contains("\n  --> ") && message.contains("\n  try: ");
        if !message.starts_with(wanted) || !whole {
            wrong.push(format!("{toml}\nwanted: {wanted}\nfound:  {message}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    let short = folder.open("text = \"t.txt\"\ntokenizer = { kind = \"char\" }", Some(64)).err().expect("an error");
    assert!(
        short.to_string().starts_with("the training text has 21 tokens; one window of context 64 needs 65"),
        "{short}"
    );
    for context in [None, Some(0)] {
        let error = folder.open("text = \"t.txt\"", context).err().expect("an error");
        assert!(error.to_string().contains("--> model.context"), "{error}");
    }
}

#[test]
fn settings_are_strict_and_survive_being_written() {
    for toml in [
        "text = \"a.txt\"\ntokenizer = { kind = \"bpe\", vocab = 1024 }\nvalidation = { last = 0.1 }",
        "text = [\"a.txt\", \"b\"]\ntokenizer = { kind = \"char\" }\nvalidation = { file = [\"c.txt\"] }",
        "text = \"a.txt\"\ntokenizer = { kind = \"file\", file = \"t.json\" }",
        "images = { csv = \"a.csv\", label = \"last\", shape = [1, 28, 28] }\nvalidation = { last_count = 10 }",
        "images = { idx = \"i\", labels = \"l\" }\nvalidation = { idx = { images = \"a\", labels = \"b\" } }",
        "table = { csv = \"a.csv\", label = \"y\" }\nvalidation = { stratified = 0.2 }",
    ] {
        let first = config(toml);
        let written = toml::to_string(&first).expect("TOML");
        assert_eq!(config(&written), first, "{written}");
    }
    for (toml, wanted) in [
        ("txt = \"a\"", "unknown field `txt`"),
        ("text = 3", "expected a path or a list of paths"),
        ("validation = { lst = 0.1 }", "unknown variant `lst`"),
        ("tokenizer = { kind = \"bpe\", vocab = 3, x = 1 }", "unknown field `x`"),
        ("tokenizer = { kind = \"char\", vocab = 3 }", "unknown field `vocab`"),
        ("tokenizer = { kind = \"words\" }", "unknown variant `words`"),
        ("images = { csv = \"a\", lable = \"last\" }", "unknown field `lable`"),
    ] {
        let error = toml::from_str::<DataConfig>(toml).expect_err(toml).to_string();
        assert!(error.contains(wanted), "{toml}: {error}");
    }
    let schema = schemars::schema_for!(DataConfig).to_value();
    assert_eq!(schema["additionalProperties"], false);
    let keys: Vec<&String> = schema["properties"].as_object().expect("keys").keys().collect();
    assert_eq!(keys.len(), 7, "{keys:?}");
}
