//! Class weights: any set of classes with one more field, the weight of each sample's class in the training loss.

use tokenizers::Tokenizer;

use crate::config::ClassWeights;
use crate::dataset::{Dataset, ElementType, Facts, Field, PaddedLength, Split};
use crate::error::DataError;

/// The name of the field, f32 [].
pub const LABEL_WEIGHTS: &str = "label_weights";

/// A data set with weights of its classes.
pub(crate) struct Weighted {
    inner: Box<dyn Dataset>,
    /// The place of the labels among the fields.
    labels: usize,
    weights: Vec<f32>,
    fields: Vec<Field>,
}

impl Weighted {
    /// Gives `inner` the weights that `config` asks for.
    pub fn new(inner: Box<dyn Dataset>, config: &ClassWeights) -> Result<Weighted, DataError> {
        let wrong = |what: String, hint: String| Err(DataError::setting("data.class_weights", what, hint));
        let counts = &inner.facts().train.class_counts;
        let labels = inner.fields().iter().position(|f| f.name == "labels" && f.element == ElementType::I32);
        let (Some(labels), Some(classes)) = (labels, inner.facts().classes) else {
            return wrong("weights are given, but the data has no classes".into(), "remove `class_weights`".into());
        };
        let weights: Vec<f32> = match config {
            ClassWeights::Balanced => {
                let samples: u64 = counts.iter().sum();
                // A class without a sample has no weight to give.
                let weight = |&n: &u64| if n == 0 { 0.0 } else { samples as f64 / (classes as f64 * n as f64) };
                counts.iter().map(|n| weight(n) as f32).collect()
            }
            ClassWeights::List(weights) => weights.iter().map(|&w| w as f32).collect(),
        };
        if weights.len() != classes {
            let names = inner.facts().class_names.join(", ");
            return wrong(
                format!("{} weights are given, the data has {classes} classes: {names}", weights.len()),
                "one weight for each class, in this order, or class_weights = \"balanced\"".into(),
            );
        }
        if let Some(bad) = weights.iter().find(|w| !(w.is_finite() && **w >= 0.0)) {
            return wrong(format!("a weight is {bad}"), "weights are numbers from 0 on".into());
        }
        if weights.iter().zip(counts).all(|(w, n)| *w == 0.0 || *n == 0) {
            return wrong("every weight is 0: nothing would be learnt".into(), "class_weights = \"balanced\"".into());
        }
        let mut fields = inner.fields().to_vec();
        fields.push(Field::new(LABEL_WEIGHTS, ElementType::F32, &[]));
        Ok(Weighted { inner, labels, weights, fields })
    }
}

impl Dataset for Weighted {
    fn fields(&self) -> &[Field] {
        &self.fields
    }

    fn len(&self, split: Split) -> u64 {
        self.inner.len(split)
    }

    fn lengths(&self) -> &[PaddedLength] {
        self.inner.lengths()
    }

    fn length_of(&self, split: Split, epoch: u64, index: u64) -> Option<usize> {
        self.inner.length_of(split, epoch, index)
    }

    fn write_sample(&self, split: Split, epoch: u64, index: u64, out: &mut [&mut [u8]]) {
        let (weight, rest) = out.split_last_mut().expect("one destination per field");
        self.inner.write_sample(split, epoch, index, rest);
        let label: &[u8] = rest[self.labels];
        let class = u32::from_le_bytes(label.try_into().expect("a label has 4 bytes"));
        weight.copy_from_slice(&self.weights[class as usize].to_le_bytes());
    }

    fn facts(&self) -> &Facts {
        self.inner.facts()
    }

    fn checksum(&self) -> &str {
        self.inner.checksum()
    }

    fn tokenizer(&self) -> Option<&Tokenizer> {
        self.inner.tokenizer()
    }
}
