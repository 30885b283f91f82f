//! Mixing against timm's `Mixup`, the distribution of shares, and batches against an oracle of a few lines.

use std::path::Path;

use proptest::prelude::*;
use serde_json::Value as Json;

use super::*;
use crate::dataset::fill_batch;

/// Pictures and classes that are functions of the index; of class c the weight is c + 1 where there are weights.
struct Formula {
    fields: Vec<Field>,
    facts: Facts,
    samples: u64,
    classes: i32,
}

impl Formula {
    fn new(shape: [usize; 3], samples: u64, weighted: bool) -> Formula {
        let mut fields =
            vec![Field::new("pixel_values", ElementType::F32, &shape), Field::new("labels", ElementType::I32, &[])];
        if weighted {
            fields.push(Field::new(LABEL_WEIGHTS, ElementType::F32, &[]));
        }
        Formula { fields, facts: Facts::default(), samples, classes: 3 }
    }
}

impl Dataset for Formula {
    fn fields(&self) -> &[Field] {
        &self.fields
    }

    fn len(&self, _split: Split) -> u64 {
        self.samples
    }

    fn write_sample(&self, _split: Split, epoch: u64, index: u64, out: &mut [&mut [u8]]) {
        for (place, pixel) in out[0].as_chunks_mut::<4>().0.iter_mut().enumerate() {
            *pixel = ((epoch * 1000 + index * 100 + place as u64) as f32).to_le_bytes();
        }
        let class = index as i32 % self.classes;
        out[1].copy_from_slice(&class.to_le_bytes());
        if let Some(weight) = out.get_mut(2) {
            weight.copy_from_slice(&(class as f32 + 1.0).to_le_bytes());
        }
    }

    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn checksum(&self) -> &str {
        ""
    }

    fn tokenizer(&self) -> Option<&Tokenizer> {
        None
    }
}

fn augment(mixup: Option<f64>, cutmix: Option<f64>) -> Augment {
    let mixing = |alpha: Option<f64>| alpha.map(|alpha| Mixing { alpha });
    Augment { mixup: mixing(mixup), cutmix: mixing(cutmix), ..Augment::default() }
}

fn mixed(formula: Formula, augment: &Augment, seed: u64, batch: u64) -> Mixed {
    let demands = Demands { seed, batch, context: None, masked: false };
    Mixed::new(Box::new(formula), augment, demands).unwrap_or_else(|error| panic!("{error}"))
}

fn batch(data: &dyn Dataset, split: Split, position: u64, batch: usize) -> Vec<Vec<u8>> {
    let mut buffers: Vec<Vec<u8>> = data.fields().iter().map(|field| vec![0xa5; field.bytes() * batch]).collect();
    let mut parts: Vec<&mut [u8]> = buffers.iter_mut().map(Vec::as_mut_slice).collect();
    fill_batch(data, split, position, batch, &mut parts);
    buffers
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn ints(bytes: &[u8]) -> Vec<i32> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| i32::from_le_bytes(*bytes)).collect()
}

fn numbers(json: &Json) -> Vec<f64> {
    json.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

#[test]
fn as_timm_for_given_shares_and_boxes() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/timm_mixup.json");
    let fixture: Json = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let shape: Vec<usize> = numbers(&fixture["shape"]).into_iter().map(|size| size as usize).collect();
    let [channels, height, width] = shape[..] else { panic!("{shape:?}") };
    let centres = fixture["centres"].as_array().unwrap();
    let mixes: Vec<Mix> = numbers(&fixture["shares"])
        .into_iter()
        .zip(centres)
        .map(|(share, centre)| match centre {
            Json::Null => Mix::Blend(share as f32),
            centre => {
                let centre = numbers(centre);
                Mix::around(share, [centre[0] as usize, centre[1] as usize], [height, width])
            }
        })
        .collect();
    let samples = mixes.len();
    let data =
        mixed(Formula::new([channels, height, width], 9, false), &augment(Some(1.0), Some(1.0)), 0, samples as u64);
    let words = |values: Vec<f64>| values.into_iter().flat_map(|x| (x as f32).to_le_bytes()).collect::<Vec<u8>>();
    let labels = numbers(&fixture["labels"]);
    let label_bytes: Vec<u8> = labels.iter().flat_map(|label| (*label as i32).to_le_bytes()).collect();
    let mut buffers = [
        words(numbers(&fixture["pictures"])),
        label_bytes,
        words(vec![1.0; samples]),
        vec![0; 4 * samples],
        vec![0; 4 * samples],
    ];
    let mut parts: Vec<&mut [u8]> = buffers.iter_mut().map(Vec::as_mut_slice).collect();
    data.mix_as(&mixes, &mut parts);

    let near = |found: f64, wanted: f64| (found - wanted).abs() < 1e-6;
    let pixels = floats(&buffers[0]);
    assert!(pixels.iter().zip(numbers(&fixture["mixed"])).all(|(found, wanted)| near((*found).into(), wanted)));
    let classes = fixture["classes"].as_u64().unwrap() as usize;
    let smoothing = fixture["smoothing"].as_f64().unwrap();
    let (own, others, weights) = (floats(&buffers[2]), ints(&buffers[3]), floats(&buffers[4]));
    for (slot, wanted) in numbers(&fixture["targets"]).chunks(classes).enumerate() {
        for (class, wanted) in wanted.iter().enumerate() {
            let of = |label: usize| if label == class { 1.0 - smoothing } else { 0.0 } + smoothing / classes as f64;
            let found =
                f64::from(own[slot]) * of(labels[slot] as usize) + f64::from(weights[slot]) * of(others[slot] as usize);
            assert!(near(found, *wanted), "sample {slot}, class {class}: {found}, timm has {wanted}");
        }
    }
}

#[test]
fn shares_have_the_moments_of_their_distribution() {
    const COUNT: u64 = 40_000;
    for alpha in [0.01, 0.2, 1.0, 3.0, 200.0] {
        let shares: Vec<f64> =
            (0..COUNT).map(|index| beta(alpha, &mut Draws::new(Stream::Mix, (5, 0, index)))).collect();
        assert!(shares.iter().all(|share| (0.0..=1.0).contains(share)));
        // Of Beta(a, a): E[x] = 1/2, and E[(x - 1/2)^2] = 1 / (4 (2a + 1)).
        let mean = shares.iter().sum::<f64>() / COUNT as f64;
        let variance = shares.iter().map(|share| (share - 0.5).powi(2)).sum::<f64>() / COUNT as f64;
        let wanted = 1.0 / (4.0 * (2.0 * alpha + 1.0));
        assert!((mean - 0.5).abs() < 5.0 * (wanted / COUNT as f64).sqrt(), "alpha {alpha}: mean {mean}");
        assert!((variance / wanted - 1.0).abs() < 0.03, "alpha {alpha}: variance {variance}, expected {wanted}");
        if alpha == 1.0 {
            let below = |x: f64| shares.iter().filter(|share| **share < x).count() as f64 / COUNT as f64;
            assert!((1..10).all(|i| (below(f64::from(i) / 10.0) - f64::from(i) / 10.0).abs() < 0.015));
        }
    }
}

proptest! {
    /// Every pixel and label of a batch follows from the samples by themselves and from what each draws.
    #[test]
    fn a_batch_is_its_samples_mixed_in_pairs(
        seed in 0u64..50, samples in 1u64..20, size in 2usize..9, position in 0u64..60,
        ways in prop::sample::select(vec![(Some(0.2), None), (None, Some(1.0)), (Some(1.0), Some(1.0))]),
        weighted: bool,
    ) {
        let shape = [2, 3, 5];
        let make = || mixed(Formula::new(shape, samples, weighted), &augment(ways.0, ways.1), seed, size as u64);
        let data = make();
        let found = batch(&data, Split::Train, position, size);
        prop_assert_eq!(&found, &batch(&make(), Split::Train, position, size));
        let (pixels, labels, weights) = (floats(&found[0]), ints(&found[1]), floats(&found[2]));
        let (others, rest) = (ints(&found[3]), floats(&found[4]));
        let of = |slot: usize| ((position + slot as u64) / samples, (position + slot as u64) % samples);
        let pixel = |(epoch, index): (u64, u64), place: usize| (epoch * 1000 + index * 100 + place as u64) as f32;
        let weight = |class: i32| if weighted { class as f32 + 1.0 } else { 1.0 };
        for slot in 0..size {
            let (own, other) = (of(slot), of(size - 1 - slot));
            let mix = data.draw(own);
            prop_assert_eq!((labels[slot], others[slot]), (own.1 as i32 % 3, other.1 as i32 % 3));
            let share = mix.share([3, 5]);
            prop_assert!((0.0..=1.0).contains(&share));
            prop_assert_eq!(weights[slot], weight(labels[slot]) * share);
            prop_assert_eq!(rest[slot], weight(others[slot]) * (1.0 - share));
            let mut taken = 0;
            for place in 0..30 {
                let (x, y) = (pixel(own, place), pixel(other, place));
                let (row, column) = (place % 15 / 5, place % 5);
                let wanted = match mix {
                    // The middle of an odd batch has only itself.
                    Mix::Blend(_) if own == other => x,
                    Mix::Blend(share) => x * share + y * (1.0 - share),
                    Mix::Box { rows, columns } => {
                        let inside = (rows[0]..rows[1]).contains(&row) && (columns[0]..columns[1]).contains(&column);
                        taken += usize::from(inside);
                        if inside { y } else { x }
                    }
                };
                prop_assert_eq!(pixels[slot * 30 + place], wanted);
            }
            if let Mix::Box { .. } = mix {
                prop_assert!((1.0 - taken as f32 / 30.0 - share).abs() < 1e-6);
            }
        }
        let held_out = batch(&data, Split::Validation, 0, size);
        let real = samples.min(size as u64) as usize;
        prop_assert_eq!(&floats(&held_out[4])[..real], &vec![0.0; real][..]);
        prop_assert_eq!(floats(&held_out[0])[0], 0.0);
    }
}

#[test]
fn both_ways_are_drawn_alike() {
    let data = mixed(Formula::new([1, 8, 8], 1000, false), &augment(Some(1.0), Some(1.0)), 3, 2);
    let blends = (0..1000).filter(|index| matches!(data.draw((0, *index)), Mix::Blend(_))).count();
    assert!((430..570).contains(&blends), "{blends} of 1000");
}

#[test]
fn a_batch_of_one_has_nothing_to_mix() {
    let demands = Demands { seed: 0, batch: 1, context: None, masked: false };
    let refused = Mixed::new(Box::new(Formula::new([1, 4, 4], 9, false)), &augment(Some(0.2), None), demands).err();
    let text = refused.unwrap().to_string();
    assert!(text.contains("`train.batch` is 1") && text.contains("data.images.augment"), "{text}");
}
