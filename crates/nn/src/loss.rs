//! The loss that transformers reports for logits and labels, computed in `f64`.

use crate::error::ModelError;
use crate::forward::{NamedTensor, Values};
use crate::model::Model;

/// The label of what does not count.
const IGNORED: i64 = -100;

/// The loss of the model's `logits` against `labels`, by what they are:
///
/// - whole numbers `[b, t]` for logits `[b, t, v]`: mean cross-entropy, of the next tokens if the model
///   [is causal](Model::is_causal), else of the tokens themselves; labels of -100 do not count
/// - whole numbers `[b]` for logits `[b, c]`: mean cross-entropy of the class
/// - real numbers `[b]` or `[b, 1]` for logits `[b, 1]`: mean squared error
/// - real numbers `[b, c]` for logits `[b, c]`: mean binary cross-entropy
///
/// # Errors
/// Labels of another shape or out of range; outputs without `logits`.
pub fn loss(model: &Model, outputs: &[NamedTensor], labels: &NamedTensor) -> Result<f64, ModelError> {
    let Some(logits) = outputs.iter().find(|t| t.name == "logits") else {
        return Err(ModelError::new(format!("labels were given, but {model} has no output `logits` to compare with")));
    };
    let misfit = || {
        ModelError::new(format!("labels {:?} do not fit the model's logits", labels.shape))
            .note(format!("the logits are {:?}", logits.shape))
            .help("labels have the shape of the logits without the last axis; whole numbers below its size, or -100")
    };
    let Values::Float(scores) = &logits.values else { return Err(misfit()) };
    let (&classes, rows) = logits.shape.split_last().filter(|(classes, _)| **classes > 0).ok_or_else(misfit)?;
    let same_rows = labels.shape == rows;
    match &labels.values {
        Values::Int(targets) if same_rows => {
            let sequence = if rows.len() == 2 && model.is_causal() { Some(rows[1]) } else { None };
            cross_entropy(scores, classes, targets, sequence).ok_or_else(misfit)
        }
        Values::Float(targets) if classes == 1 && (same_rows || labels.shape == logits.shape) => {
            let squares = scores.iter().zip(targets).map(|(x, y)| f64::from(x - y).powi(2));
            Ok(squares.sum::<f64>() / scores.len() as f64)
        }
        Values::Float(targets) if labels.shape == logits.shape => {
            let each = scores.iter().zip(targets).map(|(x, y)| {
                let (x, y) = (f64::from(*x), f64::from(*y));
                x.max(0.0) - x * y + (-x.abs()).exp().ln_1p()
            });
            Ok(each.sum::<f64>() / scores.len() as f64)
        }
        _ => Err(misfit()),
    }
}

/// The mean over the targets that count; `sequence` is the length of sequences whose next tokens are the targets.
fn cross_entropy(scores: &[f32], classes: usize, targets: &[i64], sequence: Option<usize>) -> Option<f64> {
    let shift = usize::from(sequence.is_some());
    let (mut sum, mut count) = (0.0, 0);
    for (row, scores) in scores.chunks_exact(classes).enumerate() {
        if sequence.is_some_and(|length| row % length == length - 1) {
            continue;
        }
        let target = targets[row + shift];
        let Some(at_target) = usize::try_from(target).ok().and_then(|t| scores.get(t)) else {
            if target == IGNORED {
                continue;
            }
            return None;
        };
        let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let total: f64 = scores.iter().map(|s| f64::from(s - max).exp()).sum();
        sum += total.ln() + f64::from(max) - f64::from(*at_target);
        count += 1;
    }
    Some(sum / f64::from(count))
}
