//! Labelled images: the shipped digits, IDX, splits, padding, and errors.

mod common;

use std::io::Write;

use common::{Folder, batch, config, floats, ints, sample, shipped};
use flate2::Compression;
use flate2::write::GzEncoder;
use tenon_data::{Dataset, Demands, ElementType, Split, open};

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).expect("compressed");
    encoder.finish().expect("compressed")
}

fn idx(shape: &[u32], bytes: &[u8]) -> Vec<u8> {
    let mut file = vec![0, 0, 8, shape.len() as u8];
    file.extend(shape.iter().flat_map(|size| size.to_be_bytes()));
    file.extend(bytes);
    file
}

fn opened(folder: &Folder, toml: &str) -> Box<dyn Dataset> {
    folder.open(toml, None).unwrap_or_else(|error| panic!("{error}"))
}

const IDX: &str = "images = { idx = \"i\", labels = \"l\" }\n";

#[test]
fn the_shipped_digits() {
    let digits = |seed: u64| {
        let demands = Demands { seed, batch: 64, context: None, masked: false };
        let toml = r#"
            images = { csv = "mnist_5k.csv.gz", label = "last", shape = [1, 28, 28], mean = [0.1307], std = [0.3081] }
            validation = { stratified = 0.2 }
        "#;
        let nowhere = std::path::Path::new("/nonexistent");
        open(&config(toml), &shipped(), nowhere, demands, &mut |_| {}).unwrap_or_else(|error| panic!("{error}"))
    };
    let data = digits(1);
    let facts = data.facts();
    assert_eq!((facts.classes, facts.image), (Some(10), Some([1, 28, 28])));
    assert_eq!((facts.train.samples, facts.validation.samples), (4000, 1000));
    assert_eq!(facts.train.class_counts, [400; 10]);
    assert_eq!(facts.validation.class_counts, [100; 10]);
    assert_eq!(facts.class_names[9], "9");
    assert!(facts.notes.is_empty());
    let names: Vec<_> = data.fields().iter().map(|f| (f.name.as_str(), f.element, f.shape.clone())).collect();
    let wanted = [("pixel_values", ElementType::F32, vec![1, 28, 28]), ("labels", ElementType::I32, vec![])];
    assert_eq!(names, wanted);

    let (fields, _) = batch(&*data, Split::Train, 0, 4000);
    let mut counts = [0; 10];
    for label in ints(&fields[1]) {
        counts[label as usize] += 1;
    }
    assert_eq!(counts, [400; 10], "an epoch has every training sample once");
    let pixels = floats(&fields[0]);
    let mean = pixels.iter().map(|&p| f64::from(p)).sum::<f64>() / pixels.len() as f64;
    assert!(mean.abs() < 0.02, "MNIST's own mean and deviation centre the pixels: {mean}");
    let (low, high) = (-0.1307_f32 / 0.3081, (1.0_f32 - 0.1307) / 0.3081);
    assert!(pixels.iter().all(|p| (low..=high).contains(p)));
    assert!(pixels.contains(&low) && pixels.contains(&high));

    let first_labels = ints(&batch(&*data, Split::Train, 0, 100).0[1]);
    assert!((0..10).all(|c| first_labels.contains(&c)), "the file is sorted, the epoch is not");
    assert_eq!(data.checksum(), digits(1).checksum());
    assert_ne!(data.checksum(), digits(2).checksum(), "another seed holds out others");
}

#[test]
fn idx_and_csv_give_the_same_samples_plain_and_compressed() {
    let pixels: Vec<u8> = (0..60).map(|i| (i * 37 % 256) as u8).collect();
    let labels = [0u8, 1, 2, 1, 0];
    let csv: String = pixels
        .chunks(12)
        .zip(labels)
        .map(|(row, label)| {
            let cells: Vec<String> = row.iter().map(u8::to_string).collect();
            format!("{label}, {}\r\n", cells.join(","))
        })
        .collect();
    let folder = Folder::new(&[
        ("i", &idx(&[5, 3, 2, 2], &pixels)),
        ("flat", &idx(&[5, 4, 3], &pixels)),
        ("l", &idx(&[5], &labels)),
        ("c.csv", csv.as_bytes()),
        ("i.gz", &gz(&idx(&[5, 3, 2, 2], &pixels))),
        ("l.gz", &gz(&idx(&[5], &labels))),
        ("c.csv.gz", &gz(csv.as_bytes())),
    ]);
    let sources = [
        "images = { idx = \"i\", labels = \"l\" }",
        "images = { idx = \"i.gz\", labels = \"l.gz\" }",
        "images = { idx = \"flat\", labels = \"l\", shape = [3, 2, 2] }",
        "images = { csv = \"c.csv\", label = \"first\", shape = [3, 2, 2] }",
        "images = { csv = \"c.csv.gz\", label = \"first\", shape = [3, 2, 2], classes = 3 }",
    ];
    let all: Vec<Box<dyn Dataset>> = sources.iter().map(|toml| opened(&folder, toml)).collect();
    for data in &all {
        assert_eq!(data.checksum(), all[0].checksum());
        assert_eq!(data.facts(), all[0].facts());
        assert_eq!(batch(&**data, Split::Train, 3, 11), batch(&*all[0], Split::Train, 3, 11));
    }
    let (fields, _) = batch(&*all[0], Split::Train, 0, 5);
    for (image, label) in floats(&fields[0]).chunks(12).zip(ints(&fields[1])) {
        let bytes: Vec<u8> = image.iter().map(|p| (p * 255.0).round() as u8).collect();
        let row = pixels.chunks(12).position(|row| row == bytes).expect("an image of the file");
        assert_eq!(i32::from(labels[row]), label);
        assert!(image.iter().zip(&bytes).all(|(p, &b)| *p == f32::from(b) / 255.0));
    }
}

#[test]
fn every_split_is_as_named() {
    let labels: Vec<u8> = (0..100).map(|i| (i / 25) as u8).collect();
    let pixels: Vec<u8> = (0..100).collect();
    let folder = Folder::new(&[
        ("i", &idx(&[100, 1, 1], &pixels)),
        ("l", &idx(&[100], &labels)),
        ("ti", &idx(&[3, 1, 1], &[200, 201, 202])),
        ("tl", &idx(&[3], &[3, 2, 1])),
    ]);
    let held_out = |validation: &str, seed: u64| -> Vec<u8> {
        let toml = format!("{IDX}validation = {validation}");
        let data = folder.open_seeded(&toml, seed, None).unwrap_or_else(|error| panic!("{error}"));
        let side = |split| {
            let len = data.len(split) as usize;
            let pixels = floats(&batch(&*data, split, 0, len).0[0]);
            pixels.iter().map(|p| (p * 255.0).round() as u8).collect::<Vec<u8>>()
        };
        let mut all = [side(Split::Train), side(Split::Validation)].concat();
        all.sort_unstable();
        all.dedup();
        let own = if validation.contains("idx") { 103 } else { 100 };
        assert_eq!(all.len(), own, "{validation}: every sample is in exactly one split");
        side(Split::Validation)
    };
    assert!(held_out("{ last = 0.25 }", 1).into_iter().eq(75..100));
    assert!(held_out("{ last_count = 7 }", 1).into_iter().eq(93..100));
    assert!(held_out("{ every = 10 }", 1).into_iter().eq((9..100).step_by(10)));
    assert_eq!(held_out("{ idx = { images = \"ti\", labels = \"tl\" } }", 1), [200, 201, 202]);
    let stratified = held_out("{ stratified = 0.2 }", 1);
    for class in 0..4 {
        assert_eq!(stratified.iter().filter(|&&p| p / 25 == class).count(), 5, "class {class}");
    }
    assert_eq!(stratified, held_out("{ stratified = 0.2 }", 1));
    assert_ne!(stratified, held_out("{ stratified = 0.2 }", 2));
    let toml = format!("{IDX}validation = {{ last = 0.25 }}");
    let data = opened(&folder, &toml);
    let notes = &data.facts().notes;
    assert_eq!(notes.len(), 2, "{notes:?}");
    assert!(notes[0].starts_with("1 of 4 classes have no sample in the train part"), "{notes:?}");
}

#[test]
fn the_last_validation_batch_is_padded() {
    let folder = Folder::new(&[("i", &idx(&[5, 1, 1], &[1, 2, 3, 4, 5])), ("l", &idx(&[5], &[0, 1, 0, 1, 1]))]);
    let data = opened(&folder, &format!("{IDX}validation = {{ last_count = 3 }}"));
    let (fields, real) = batch(&*data, Split::Validation, 2, 4);
    assert_eq!(real, 1);
    assert_eq!(floats(&fields[0]), [5.0 / 255.0, 0.0, 0.0, 0.0]);
    assert_eq!(ints(&fields[1]), [1, -100, -100, -100]);
    assert_eq!(batch(&*data, Split::Validation, 3, 2).1, 0);
    assert_eq!(sample(&*data, Split::Validation, 0, 1), sample(&*data, Split::Validation, 9, 1));
}

#[test]
fn bad_images_are_named() {
    let good = idx(&[2, 2, 2], &[0; 8]);
    let folder = Folder::new(&[
        ("i", &good),
        ("l", &idx(&[2], &[0, 1])),
        ("l3", &idx(&[3], &[0, 1, 2])),
        ("short", &good[..good.len() - 1]),
        ("short.gz", &gz(&good[..good.len() - 1])),
        ("cut.gz", &gz(&good)[..20]),
        ("head", &good[..6]),
        ("long", &[&good[..], &[0]].concat()),
        ("long.gz", &gz(&[&good[..], &[0]].concat())),
        ("huge.gz", &gz(&idx(&[u32::MAX, u32::MAX, 2], &[0; 8]))),
        ("large.gz", &gz(&idx(&[u32::MAX, 65_535, 1], &[0; 8]))),
        ("floats", &[&[0, 0, 0x0d, 3][..], &good[4..]].concat()),
        ("png", b"\x89PNG\r\n\x1a\n"),
        ("empty", b""),
        ("c.csv", b"1,2,3,4,0\n1,2,3,4,1\n\n1,256,3,4,0\n"),
        ("d.csv", b"a,b,c,d,y\n1,2,3,4,1\n1,2,3,4\n"),
        ("e.csv", b"a,b,c,d,y\n1,2,3,4,1\n1,2,3,4,-1\n"),
        ("f.csv", b"a,b,c,d,y\n1,2,3,4,1\n1,2,x y,4,1\n1,2,3,4, \n"),
        ("g.csv", b"a,b,c,d,y\r\n\r\n1,2,3,4,1\r\n\r\n\r\n1,2,3,4, \r\n"),
        ("h.csv", b"1,2,3,4,5,0\n"),
    ]);
    let source = |i: &str, l: &str| format!("images = {{ idx = \"{i}\", labels = \"{l}\" }}");
    let csv = |c: &str, more: &str| format!("images = {{ csv = \"{c}\", label = \"last\"{more} }}");
    let cases = [
        (source("short", "l"), "the header says [2, 2, 2] bytes, the file has 7 after it\n  --> short, byte 4"),
        (source("short.gz", "l"), "the file ends: images need 24 bytes\n  --> short.gz, byte 16"),
        (source("cut.gz", "l"), "cannot read: "),
        (source("head", "l"), "the file ends: images need 16 bytes\n  --> head, byte 4"),
        (source("long", "l"), "the header says [2, 2, 2] bytes, but more follow\n  --> long, byte 24"),
        (source("long.gz", "l"), "the header says [2, 2, 2] bytes, but more follow\n  --> long.gz, byte 24"),
        (source("large.gz", "l"), "the file ends: images need 281470681677841 bytes"),
        (source("huge.gz", "l"), "the header says [4294967295, 4294967295, 2] bytes, the file has far fewer after it"),
        (source("empty", "l"), "the file ends: images need 4 bytes\n  --> empty, byte 0"),
        (
            source("floats", "l"),
            "images must be an IDX array of unsigned bytes with 3 or 4 dimensions; found an array of 32-bit floats with 3 \
             dimensions\n  --> floats, byte 0",
        ),
        (
            source("png", "l"),
            "images must be an IDX array of unsigned bytes with 3 or 4 dimensions; found the bytes [89, 50, 4e, 47], which start \
             no IDX file\n  --> png, byte 0",
        ),
        (
            source("l", "i"),
            "images must be an IDX array of unsigned bytes with 3 or 4 dimensions; found an array of unsigned",
        ),
        (source("i", "l3"), "3 labels for the 2 images of i\n  --> l3, byte 4"),
        (source("i", "missing"), "cannot open: "),
        (
            "images = { idx = \"i\", labels = \"l\", classes = 1 }".to_owned(),
            "label 1 is not one of the classes 0 to 0\n  --> l, byte 9",
        ),
        (
            "images = { idx = \"i\", labels = \"l\", shape = [3, 2, 2] }".to_owned(),
            "an image has 4 pixels in the file; shape [3, 2, 2] has another number\n  --> i, byte 4",
        ),
        (
            "images = { idx = \"i\" }".to_owned(),
            "images need `idx` and `labels`, or `csv` and `label` (and `header` where it is in doubt), or `folder` and `size`",
        ),
        (csv("c.csv", ""), "column 2 is `256`: a pixel is a whole number from 0 to 255\n  --> c.csv:4"),
        (csv("d.csv", ""), "the row has 4 cells, the first row 5\n  --> d.csv:3"),
        (csv("e.csv", ""), "label -1 is not one of the classes 0 to 65535\n  --> e.csv:3"),
        (csv("f.csv", ""), "column `c` is `x y`: a pixel is a whole number from 0 to 255\n  --> f.csv:3"),
        (csv("g.csv", ""), "the label ` ` is empty or not UTF-8\n  --> g.csv:6"),
        (csv("h.csv", ""), "a row has 5 pixels and a label; 5 pixels are no square\n  --> h.csv:1"),
        (csv("e.csv", ", mean = [0.5]"), "label -1"),
        (csv("h.csv", ", shape = [1, 1, 5], mean = [0.5]"), "one of `mean` and `std` is given without the other"),
        (
            csv("h.csv", ", shape = [1, 1, 5], mean = [0.5], std = [0.0]"),
            "mean = [0.5] and std = [0.0]; the images have 1 channels",
        ),
        (
            csv("h.csv", ", shape = [1, 1, 5]") + "\nvalidation = { last = 0.5 }",
            "of 1 samples 1 are left to train and 0 are held out",
        ),
        (csv("c.csv", "").replace("last", "digit"), "no column `digit`: c.csv has no header\n  --> data.images.label"),
        (csv("d.csv", "").replace("last", "digit"), "no column `digit` in d.csv; its columns are a, b, c, d, y"),
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
}
