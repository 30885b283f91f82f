//! Resizing against Pillow, cutting, colours.

use std::path::Path;

use serde_json::Value as Json;

use super::augment::Augment;
use super::colour;
use super::picture::{Picture, luma};
use super::resize::{Filter, center, resize};

fn unhex(text: &Json) -> Vec<u8> {
    let text = text.as_str().unwrap();
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

fn fixture() -> Json {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pillow.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn number(of: &Json, key: &str) -> usize {
    of[key].as_u64().unwrap() as usize
}

fn picture() -> Picture {
    let fixture = fixture();
    let (height, width) = (number(&fixture, "height"), number(&fixture, "width"));
    Picture { height, width, channels: 3, bytes: unhex(&fixture["pixels"]) }
}

#[test]
fn sizes_and_grey_are_pillows_to_the_bit() {
    let (fixture, picture) = (fixture(), picture());
    for case in fixture["resized"].as_array().unwrap() {
        let filter = match case["filter"].as_str().unwrap() {
            "bilinear" => Filter::Bilinear,
            _ => Filter::Bicubic,
        };
        let found = resize(&picture, number(case, "height"), number(case, "width"), filter);
        assert_eq!(found.bytes, unhex(&case["pixels"]), "{filter:?} {} x {}", case["height"], case["width"]);
    }
    assert_eq!(luma(&picture.bytes), unhex(&fixture["luma"]));
}

#[test]
fn parts_and_mirror_images() {
    let picture = picture();
    assert_eq!(picture.flipped().flipped(), picture);
    assert_ne!(picture.flipped(), picture);
    let part = picture.crop(-2, 3, 5, 40);
    assert!(part.bytes[..2 * 40 * 3].iter().all(|b| *b == 0));
    assert_eq!(part.bytes[2 * 40 * 3..][..16 * 3], picture.bytes[3 * 3..19 * 3]);
    assert!(part.bytes[2 * 40 * 3 + 16 * 3..3 * 40 * 3].iter().all(|b| *b == 0));
    assert_eq!(picture.crop(90, 90, 2, 2), Picture::black(2, 2, 3));
    // The middle of a picture that has the size already is the picture.
    assert_eq!(center(&picture, 13, 19, 1.0, Filter::Bicubic), picture);
    let middle = center(&picture, 6, 6, 0.5, Filter::Bilinear);
    assert_eq!((middle.height, middle.width), (6, 6));
}

#[test]
fn colours_that_do_not_change() {
    let same = picture();
    let mut changed = same.clone();
    colour::brightness(&mut changed, 1.0);
    colour::contrast(&mut changed, 1.0);
    colour::saturation(&mut changed, 1.0);
    colour::posterize(&mut changed, 8);
    colour::hue(&mut changed, 0.0);
    assert_eq!(changed, same);
    assert_eq!(colour::affine(&same, [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]), same);
    // Three thirds of a turn, each of which moves the channels on.
    for _ in 0..3 {
        colour::hue(&mut changed, 1.0 / 3.0);
    }
    assert_eq!(changed, same);
    colour::saturation(&mut changed, 0.0);
    assert!(changed.bytes.as_chunks::<3>().0.iter().all(|[r, g, b]| r == g && g == b));
}

#[test]
fn changes_are_a_function_of_seed_epoch_and_index() {
    let augment: Augment = toml::from_str(
        "resized_crop = {}\ncrop_padding = 2\nflip = true\nrandaugment = {}\n\
         jitter = { brightness = 0.4, contrast = 0.4, saturation = 0.4, hue = 0.1 }",
    )
    .unwrap();
    augment.check(3).unwrap();
    let picture = picture();
    let of = |key| augment.apply(&picture, Picture::clone, [8, 9], Filter::Bilinear, key);
    let mut seen = Vec::new();
    for seed in 0..3 {
        for epoch in 0..3 {
            for index in 0..20 {
                let made = of((seed, epoch, index));
                assert_eq!((made.height, made.width), (8, 9));
                assert_eq!(made, of((seed, epoch, index)));
                assert!(!seen.contains(&made), "seed {seed}, epoch {epoch}, index {index} gives nothing new");
                seen.push(made);
            }
        }
    }
}
