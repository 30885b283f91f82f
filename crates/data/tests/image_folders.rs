//! Folders of image files: classes, formats, order whatever the threads do, held-out folders, corrupt files, errors.

mod common;

use std::io::Cursor;

use common::{Folder, config, floats, ints, sample};
use image::{DynamicImage, ImageFormat, Rgb, RgbImage};
use tenon_data::{Dataset, Split, fill_batch, read_image};

fn picture(shade: u8, format: ImageFormat) -> Vec<u8> {
    let image = RgbImage::from_fn(10, 8, |x, y| Rgb([shade, (x * 20) as u8, (y * 30) as u8]));
    let mut bytes = Cursor::new(Vec::new());
    DynamicImage::ImageRgb8(image).write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// Eleven pictures of cats and dogs.
fn animals() -> Folder {
    let folder = Folder::new(&[]);
    for i in 0..5u8 {
        folder.write(&format!("animals/cat/{i}.png"), &picture(i * 10, ImageFormat::Png));
        folder.write(&format!("animals/dog/more/{i}.webp"), &picture(100 + i * 10, ImageFormat::WebP));
    }
    folder.write("animals/dog/x.JPG", &picture(200, ImageFormat::Jpeg));
    folder.write("animals/dog/notes.txt", b"no image");
    folder
}

fn opened(folder: &Folder, toml: &str) -> Box<dyn Dataset> {
    folder.open(toml, None).unwrap_or_else(|error| panic!("{error}"))
}

const PLAIN: &str = "images = { folder = \"animals\", size = [8, 10] }\n";

#[test]
fn folders_are_classes() {
    let folder = animals();
    let data = opened(&folder, PLAIN);
    let facts = data.facts();
    assert_eq!((facts.image, facts.classes), (Some([3, 8, 10]), Some(2)));
    assert_eq!(facts.class_names, ["cat", "dog"]);
    assert_eq!(facts.train.class_counts, [5, 6]);
    assert!(facts.notes.iter().any(|n| n.contains("made ahead")), "{:?}", facts.notes);
    let mut shades = Vec::new();
    for index in 0..11 {
        let fields = sample(&*data, Split::Train, 0, index);
        let (pixels, label) = (floats(&fields[0]), ints(&fields[1])[0]);
        let shade = (pixels[0] * 255.0).round() as i32;
        assert_eq!(label, i32::from(shade >= 95), "a picture of shade {shade}");
        if shade < 195 {
            assert_eq!((pixels[80 + 3] * 255.0).round(), 60.0, "green grows along a row");
            assert_eq!((pixels[160 + 20] * 255.0).round(), 60.0, "blue grows along a column");
        }
        shades.push(shade);
    }
    shades.sort_unstable();
    shades.dedup();
    assert_eq!(shades.len(), 11, "an epoch has every picture once");
}

#[test]
fn samples_do_not_depend_on_who_asks_and_when() {
    let folder = animals();
    let toml = "images = { folder = \"animals\", size = [6, 6], augment = { resized_crop = {}, flip = true } }\n\
                validation = { stratified = 0.2 }\n";
    let data = opened(&folder, toml);
    let in_order = |data: &dyn Dataset| {
        let size: Vec<usize> = data.fields().iter().map(|f| 4 * f.bytes()).collect();
        let batch = |position| {
            let mut buffers: Vec<Vec<u8>> = size.iter().map(|n| vec![0; *n]).collect();
            let mut parts: Vec<&mut [u8]> = buffers.iter_mut().map(Vec::as_mut_slice).collect();
            fill_batch(data, Split::Train, position, 4, &mut parts);
            buffers
        };
        (0..12).map(|i| batch(i * 4)).collect::<Vec<_>>()
    };
    let first = in_order(&*data);
    assert_ne!(first[0], first[9], "epochs differ");
    let held_out = sample(&*data, Split::Validation, 0, 1);
    // From the middle, backwards, from several threads, and after the held-out part.
    std::thread::scope(|scope| {
        for start in [7u64, 3, 11] {
            let (data, first) = (&data, &first);
            scope.spawn(move || {
                for batch in (0..start).rev() {
                    let position = batch * 4 + 1;
                    let len = data.len(Split::Train);
                    let fields = sample(&**data, Split::Train, position / len, position % len);
                    let pixels = fields[0].len();
                    assert_eq!(fields[0], first[batch as usize][0][pixels..2 * pixels]);
                }
            });
        }
    });
    assert_eq!(sample(&*data, Split::Validation, 0, 1), held_out);
    assert_eq!(in_order(&*data), first);
    let again = opened(&folder, toml);
    assert_eq!((again.checksum(), in_order(&*again)), (data.checksum(), first));
    assert_ne!(opened(&folder, PLAIN).checksum(), data.checksum());
}

#[cfg(unix)]
#[test]
fn a_link_that_leads_nowhere_is_as_corrupt_as_a_damaged_file() {
    let folder = animals();
    let link = folder.dir.path().join("animals/cat/gone.png");
    std::os::unix::fs::symlink("nowhere.png", link).unwrap();
    let refused = folder.error(PLAIN);
    assert!(refused.starts_with("the link leads to no file\n  --> animals/cat/gone.png\n  try: "), "{refused}");
    let data = opened(&folder, "images = { folder = \"animals\", size = [8, 10], on_corrupt = \"skip\" }\n");
    assert_eq!(data.facts().train.class_counts, [5, 6]);
    let told = |note: &String| note.contains("1 images cannot be decoded") && note.contains("gone.png");
    assert!(data.facts().notes.iter().any(told), "{:?}", data.facts().notes);
}

#[test]
fn corrupt_files_are_named_and_skipped_or_refused() {
    let folder = animals();
    let mut torn = picture(3, ImageFormat::Png);
    torn.truncate(torn.len() / 2);
    folder.write("animals/cat/torn.png", &torn);
    folder.write("animals/dog/empty.jpg", b"");
    let refused = folder.error(PLAIN);
    assert!(refused.contains("cat/torn.png") && refused.contains("on_corrupt = \"skip\""), "{refused}");
    let data = opened(&folder, "images = { folder = \"animals\", size = [8, 10], on_corrupt = \"skip\" }\n");
    assert_eq!(data.facts().train.class_counts, [5, 6]);
    let note = data.facts().notes.iter().find(|n| n.contains("left out")).expect("a note");
    assert!(note.starts_with("2 images") && note.contains("torn.png") && note.contains("empty.jpg"), "{note}");
}

#[test]
fn another_folder_is_held_out() {
    let folder = animals();
    folder.write("other/dog/1.png", &picture(7, ImageFormat::Png));
    let toml = format!("{PLAIN}validation = {{ file = \"other\" }}\n");
    let data = opened(&folder, &toml);
    assert_eq!((data.facts().train.samples, data.facts().validation.samples), (11, 1));
    assert_eq!(ints(&sample(&*data, Split::Validation, 0, 0)[1]), [1]);
    folder.write("other/fish/1.png", &picture(7, ImageFormat::Png));
    let error = folder.error(&toml);
    assert!(error.contains("the class fish"), "{error}");
}

#[test]
fn one_file_is_read_as_held_out_images_are() {
    let folder = animals();
    let toml = "images = { folder = \"animals\", size = [6, 5], center = 0.9, filter = \"bicubic\", \
                mean = [0.5, 0.4, 0.3], std = [0.2, 0.3, 0.4], augment = { flip = true } }\n\
                validation = { file = \"animals\" }\n";
    let data = opened(&folder, toml);
    let source = config(toml).images.unwrap();
    let mut files: Vec<String> = (0..5).map(|i| format!("cat/{i}.png")).collect();
    files.extend((0..5).map(|i| format!("dog/more/{i}.webp")));
    files.push("dog/x.JPG".to_owned());
    for (index, file) in files.iter().enumerate() {
        let expected = floats(&sample(&*data, Split::Validation, 0, index as u64)[0]);
        let pixels = read_image(&source, [3, 6, 5], &folder.dir.path().join("animals").join(file));
        assert_eq!(pixels.unwrap_or_else(|error| panic!("{error}")), expected, "{file}");
    }
    let error = read_image(&source, [3, 6, 5], &folder.dir.path().join("animals/dog/notes.txt")).unwrap_err();
    let error = error.to_string();
    assert!(error.contains("cannot be decoded") && error.contains("notes.txt"), "{error}");
}

#[test]
fn settings_that_make_no_sense() {
    let folder = animals();
    folder.write("flat/1.png", &picture(1, ImageFormat::Png));
    folder.write("none/cat/1.txt", b"");
    let cases = [
        ("folder = \"animals\"", "needs the size"),
        ("folder = \"animals\", size = [0, 4]", "each side is 1 to 4096"),
        ("folder = \"animals\", size = [4, 4], channels = 2", "1 (grey) or 3"),
        ("folder = \"animals\", size = [4, 4], center = 2.0", "between 0.1 and 1"),
        ("folder = \"animals\", size = [4, 4], label = \"last\"", "`folder` and `size`"),
        ("folder = \"flat\", size = [4, 4]", "each class has one"),
        ("folder = \"none\", size = [4, 4]", "hold no image"),
        ("folder = \"nowhere\", size = [4, 4]", "cannot read the folder"),
        ("folder = \"animals\", size = [4, 4], augment = { jitter = { hue = 0.9 } }", "0 to 0.5"),
        ("folder = \"animals\", size = [4, 4], channels = 1, augment = { jitter = { hue = 0.1 } }", "3 channels"),
        ("folder = \"animals\", size = [4, 4], augment = { randaugment = { magnitude = 99 } }", "magnitude 0 to 30"),
        ("folder = \"animals\", size = [4, 4], augment = { resized_crop = { scale = [1.0, 0.5] } }", "rising pairs"),
        ("folder = \"animals\", size = [4, 4], augment = { crop_padding = 9999 }", "at most 1024"),
        ("folder = \"animals\", size = [4, 4], augment = { mixup = { alpha = 0.0 } }", "alpha = 0 is out of range"),
        ("folder = \"animals\", size = [4, 4], augment = { cutmix = { alpha = -1.0 } }", "cutmix = { alpha = 1 }"),
    ];
    for (keys, expected) in cases {
        let error = folder.error(&format!("images = {{ {keys} }}\n"));
        assert!(error.contains(expected), "{keys}: {error}");
    }
}

#[test]
fn what_other_systems_hide_in_folders_is_no_picture() {
    let folder = animals();
    for name in ["cat/._0.png", ".thumbnails/0.png", "dog/.trash/0.png"] {
        folder.write(&format!("animals/{name}"), b"no picture");
    }
    let data = opened(&folder, PLAIN);
    assert_eq!(data.facts().class_names, ["cat", "dog"]);
    assert_eq!(data.facts().train.class_counts, [5, 6]);
}

#[cfg(unix)]
#[test]
fn links_to_folders_are_followed_but_not_in_a_circle() {
    let folder = animals();
    let at = |name: &str| folder.dir.path().join(name);
    std::os::unix::fs::symlink("..", at("animals/cat/up")).unwrap();
    std::os::unix::fs::symlink(".", at("animals/dog/more/again")).unwrap();
    folder.write("elsewhere/6.png", &picture(60, ImageFormat::Png));
    std::os::unix::fs::symlink(at("elsewhere"), at("animals/cat/linked")).unwrap();
    assert_eq!(opened(&folder, PLAIN).facts().train.class_counts, [6, 6]);
}

#[test]
fn one_class_is_refused() {
    let folder = animals();
    let error =
        folder.open(&PLAIN.replace("\"animals\"", "\"animals/dog\""), None).err().expect("one class").to_string();
    assert!(error.contains("all samples are of one class, `more`: there is nothing to tell apart"), "{error}");
}

#[test]
fn of_a_long_strip_only_the_middle_is_made() {
    let folder = animals();
    let strip = RgbImage::from_fn(30_000, 1, |x, _| Rgb([if (14_998..15_002).contains(&x) { 200 } else { 10 }, 0, 0]));
    let mut bytes = Cursor::new(Vec::new());
    DynamicImage::ImageRgb8(strip).write_to(&mut bytes, ImageFormat::Png).unwrap();
    folder.write("animals/dog/strip.png", &bytes.into_inner());
    // The whole would be 4000 x 120,000,000 pixels.
    let source = config("images = { folder = \"animals\", size = [4000, 4] }\n").images.unwrap();
    let pixels = read_image(&source, [3, 4000, 4], &folder.dir.path().join("animals/dog/strip.png")).unwrap();
    let (red, others) = pixels.split_at(4000 * 4);
    assert!(red.iter().all(|x| *x == 200.0 / 255.0), "{:?}", &red[..8]);
    assert!(others.iter().all(|x| *x == 0.0));
}
