//! Measures of a classifier that no sum over batches gives: F1, Matthews' correlation, area under the ROC curve.

use crate::objective::IGNORED;

/// What is known of the labels and predictions of an evaluation.
#[derive(Clone, Debug, Default)]
pub struct Scores {
    /// By class: labels, predictions, and where both agree.
    classes: Vec<Counts>,
    /// Of two classes: by how much the second is preferred, and whether it is right.
    margins: Vec<(f32, bool)>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    labels: f64,
    predictions: f64,
    hits: f64,
}

impl Counts {
    /// 2 precision recall / (precision + recall); 0 where nothing is right.
    fn f1(&self) -> f64 {
        if self.hits == 0.0 { 0.0 } else { 2.0 * self.hits / (self.labels + self.predictions) }
    }
}

impl Scores {
    /// Adds a batch: labels and predicted classes as i32, and margins as f32 where there are two classes. Labels of
    /// [`IGNORED`] do not count.
    pub fn add(&mut self, labels: &[u8], predicted: &[u8], margins: Option<&[u8]>) {
        let words = |bytes: &'_ [u8]| bytes.as_chunks::<4>().0.to_vec();
        let margins = margins.map(words);
        for (i, (label, predicted)) in words(labels).into_iter().zip(words(predicted)).enumerate() {
            let (label, predicted) = (i32::from_le_bytes(label), i32::from_le_bytes(predicted));
            if label == IGNORED {
                continue;
            }
            let most = label.max(predicted) as usize;
            if self.classes.len() <= most {
                self.classes.resize(most + 1, Counts::default());
            }
            self.classes[label as usize].labels += 1.0;
            self.classes[predicted as usize].predictions += 1.0;
            self.classes[label as usize].hits += f64::from(u8::from(label == predicted));
            if let Some(margins) = &margins {
                self.margins.push((f32::from_le_bytes(margins[i]), label == 1));
            }
        }
    }

    /// `macro_f1` and `mcc`; of two classes also `f1`, of the second, and `auc` where both occur.
    pub fn metrics(&self) -> Vec<(&'static str, f64)> {
        if self.classes.is_empty() {
            return Vec::new();
        }
        let mut metrics = vec![("macro_f1", self.macro_f1()), ("mcc", self.mcc())];
        if !self.margins.is_empty() {
            metrics.push(("f1", self.classes.get(1).map_or(0.0, Counts::f1)));
            metrics.extend(self.auc().map(|auc| ("auc", auc)));
        }
        metrics
    }

    /// The mean F1 of the classes that are labelled or predicted.
    fn macro_f1(&self) -> f64 {
        let met = self.classes.iter().filter(|c| c.labels + c.predictions > 0.0);
        met.clone().map(Counts::f1).sum::<f64>() / met.count() as f64
    }

    /// Matthews' correlation of any number of classes (Gorodkin 2004); 0 where labels or predictions are all of one class.
    fn mcc(&self) -> f64 {
        let sum = |of: fn(&Counts) -> f64| self.classes.iter().map(of).sum::<f64>();
        let (samples, hits) = (sum(|c| c.labels), sum(|c| c.hits));
        let covariance = hits * samples - sum(|c| c.labels * c.predictions);
        let spread = (samples * samples - sum(|c| c.predictions * c.predictions))
            * (samples * samples - sum(|c| c.labels * c.labels));
        if spread == 0.0 { 0.0 } else { covariance / spread.sqrt() }
    }

    /// The chance that a sample of the second class has a greater margin than one of the first; equal ones count half.
    fn auc(&self) -> Option<f64> {
        let mut sorted = self.margins.clone();
        sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
        let positives = sorted.iter().filter(|(_, positive)| *positive).count() as f64;
        let negatives = sorted.len() as f64 - positives;
        let (mut below, mut wins) = (0.0, 0.0);
        for equal in sorted.chunk_by(|a, b| a.0 == b.0) {
            let right = equal.iter().filter(|(_, positive)| *positive).count() as f64;
            let wrong = equal.len() as f64 - right;
            wins += right * (below + wrong / 2.0);
            below += wrong;
        }
        (positives > 0.0 && negatives > 0.0).then(|| wins / (positives * negatives))
    }
}
