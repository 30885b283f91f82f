//! Labelled sets in memory: images and tables share reading, labels, splits and this dataset; texts share labels and splits.

mod csv;
mod idx;
mod images;
mod labels;
mod mixed;
mod pictures;
mod split;
mod table;
mod text_set;
mod texts;
mod weights;

pub(crate) use self::images::open_images;
pub use self::images::read_image;
use self::labels::Labels;
pub(crate) use self::mixed::Mixed;
pub use self::mixed::{MIXED_LABEL_WEIGHTS, MIXED_LABELS};
use self::pictures::Pictures;
use self::split::Rows;
pub(crate) use self::table::open_table;
pub use self::text_set::encode_text;
pub(crate) use self::text_set::open_text_set;
pub use self::texts::text_of;
pub use self::weights::LABEL_WEIGHTS;
pub(crate) use self::weights::Weighted;
use crate::dataset::{Dataset, ElementType, Facts, Field, Split, SplitFacts};
use crate::error::DataError;
use crate::images::ahead::Slow;
use crate::order::shuffled;

/// What a sample's input is made of; row-major over all rows of the source.
enum Inputs {
    Pictures(Box<Pictures>),
    Numbers(Vec<f32>),
}

/// What is to be predicted, one for each row.
enum Targets {
    Classes(Labels),
    Numbers(Vec<f32>),
}

/// What a labelled dataset is made from.
struct Parts {
    /// The field of the inputs.
    field: Field,
    inputs: Inputs,
    targets: Targets,
    rows: Rows,
    /// Facts of the inputs; those of targets and splits are filled in.
    facts: Facts,
    seed: u64,
}

/// A labelled set whose samples are drawn by row number.
pub(crate) struct LabelledDataset {
    inputs: Inputs,
    targets: Targets,
    rows: Rows,
    fields: [Field; 2],
    facts: Facts,
    checksum: String,
    seed: u64,
}

impl LabelledDataset {
    fn new(parts: Parts) -> Self {
        let Parts { field, inputs, targets, rows, mut facts, seed } = parts;
        let labels = match &targets {
            Targets::Classes(_) => Field::new("labels", ElementType::I32, &[]),
            Targets::Numbers(_) => Field::new("labels", ElementType::F32, &[1]),
        };
        if let Targets::Classes(labels) = &targets {
            facts.classes = Some(labels.names.len());
            facts.class_names = labels.names.clone();
        }
        facts.train = split_facts(&rows.train, &targets);
        facts.validation = split_facts(&rows.validation, &targets);
        facts.notes.extend(class_notes(&facts));
        let mut dataset =
            LabelledDataset { inputs, targets, rows, fields: [field, labels], facts, checksum: String::new(), seed };
        dataset.checksum = dataset.sum();
        dataset
    }

    fn rows_of(&self, split: Split) -> &[u32] {
        match split {
            Split::Train => &self.rows.train,
            Split::Validation => &self.rows.validation,
        }
    }

    /// blake3 of all samples as the model sees them, and of the split.
    fn sum(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"tenon labelled");
        for &size in &self.fields[0].shape {
            hasher.update(&(size as u64).to_le_bytes());
        }
        let floats = |hasher: &mut blake3::Hasher, values: &[f32]| {
            for value in values {
                hasher.update(&value.to_le_bytes());
            }
        };
        match &self.inputs {
            Inputs::Pictures(pictures) => pictures.hash(&mut hasher),
            Inputs::Numbers(values) => floats(&mut hasher, values),
        }
        match &self.targets {
            Targets::Classes(labels) => {
                for label in &labels.values {
                    hasher.update(&label.to_le_bytes());
                }
                for name in &labels.names {
                    hasher.update(&(name.len() as u64).to_le_bytes());
                    hasher.update(name.as_bytes());
                }
            }
            Targets::Numbers(values) => floats(&mut hasher, values),
        }
        for row in &self.rows.validation {
            hasher.update(&row.to_le_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }
}

fn split_facts(rows: &[u32], targets: &Targets) -> SplitFacts {
    match targets {
        Targets::Numbers(_) => SplitFacts { samples: rows.len() as u64, ..SplitFacts::default() },
        Targets::Classes(labels) => class_split_facts(rows, labels),
    }
}

/// The facts of a split of labelled rows.
fn class_split_facts(rows: &[u32], labels: &Labels) -> SplitFacts {
    let mut class_counts = vec![0; labels.names.len()];
    for &row in rows {
        class_counts[labels.values[row as usize] as usize] += 1;
    }
    SplitFacts { samples: rows.len() as u64, class_counts, ..SplitFacts::default() }
}

/// Says which classes a split lacks: most often the file is sorted by class and its end was held out.
fn class_notes(facts: &Facts) -> Vec<String> {
    let splits = [Split::Train, Split::Validation];
    let lacking = splits.into_iter().filter_map(|split| {
        const SHOWN: usize = 8;
        let facts_of = facts.split(split);
        let classes = facts_of.class_counts.len();
        let empty: Vec<usize> = (0..classes).filter(|&class| facts_of.class_counts[class] == 0).collect();
        (!empty.is_empty() && facts_of.samples > 0).then(|| {
            let more = if empty.len() > SHOWN { ", ..." } else { "" };
            let names: Vec<&str> = empty.iter().take(SHOWN).map(|&class| facts.class_names[class].as_str()).collect();
            let (count, part, names) = (empty.len(), split.name(), names.join(", "));
            let elsewhere = |class: &usize| splits.iter().any(|s| facts.split(*s).class_counts.get(*class) > Some(&0));
            let hint = match empty.iter().any(elsewhere) {
                true => "; if the file is sorted by class, hold out with { stratified = 0.2 }; if another file is held out, compare the labels of both",
                false => "",
            };
            format!("{count} of {classes} classes have no sample in the {part} part: {names}{more}{hint}")
        })
    });
    lacking.collect()
}

impl Dataset for LabelledDataset {
    fn fields(&self) -> &[Field] {
        &self.fields
    }

    fn len(&self, split: Split) -> u64 {
        self.rows_of(split).len() as u64
    }

    fn write_sample(&self, split: Split, epoch: u64, index: u64, out: &mut [&mut [u8]]) {
        self.make(split, epoch, index, out).unwrap_or_else(|error| panic!("{error}"));
    }

    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn checksum(&self) -> &str {
        &self.checksum
    }
}

impl Slow for LabelledDataset {
    fn make(&self, split: Split, epoch: u64, index: u64, out: &mut [&mut [u8]]) -> Result<(), DataError> {
        let [input, label] = out else { panic!("a labelled set has 2 fields, {} destinations are given", out.len()) };
        assert_eq!(input.len(), self.fields[0].bytes(), "bytes of `{}`", self.fields[0].name);
        let rows = self.rows_of(split);
        let (place, changes) = match split {
            Split::Train => (shuffled(self.seed, epoch, index, rows.len() as u64), Some((self.seed, epoch, index))),
            Split::Validation => (index, None),
        };
        let row = rows[place as usize] as usize;
        match &self.inputs {
            Inputs::Pictures(pictures) => pictures.write(row, changes, input)?,
            Inputs::Numbers(values) => {
                let size = input.len() / 4;
                for (to, value) in input.chunks_exact_mut(4).zip(&values[row * size..][..size]) {
                    to.copy_from_slice(&value.to_le_bytes());
                }
            }
        }
        match &self.targets {
            Targets::Classes(labels) => label.copy_from_slice(&(labels.values[row] as i32).to_le_bytes()),
            Targets::Numbers(values) => label.copy_from_slice(&values[row].to_le_bytes()),
        }
        Ok(())
    }
}
