//! The loss that transformers reports for logits and labels, computed in `f64`.

use serde_json::Value as Json;

use crate::error::ModelError;
use crate::forward::{NamedTensor, Values};
use crate::model::Model;

/// The label of what does not count.
const IGNORED: i64 = -100;
/// What transformers calls the problems of a head with one row of logits for each sample.
const REGRESSION: &str = "regression";
const SINGLE_LABEL: &str = "single_label_classification";
const MULTI_LABEL: &str = "multi_label_classification";

/// The loss of the model's `logits` against `labels`, by what they are, or for logits `[b, c]` by the `problem_type` in the keys
/// of `config`, which are those of `config.json`:
///
/// - whole numbers `[b, t]` for logits `[b, t, v]`: mean cross-entropy, of the next tokens if the model
///   [is causal](Model::is_causal), else of the tokens themselves; labels of -100 do not count
/// - whole numbers `[b]` for logits `[b, c]`: mean cross-entropy of the class
/// - numbers `[b]` or `[b, 1]` for logits `[b, 1]`, or of the shape of the logits if the problem is `regression`: mean
///   squared error
/// - real numbers `[b, c]` for logits `[b, c]`, or `multi_label_classification`: mean binary cross-entropy
///
/// With `output_router_logits` in `config`, the `aux_loss` of the experts is added.
///
/// # Errors
/// Labels of another shape or out of range; outputs without `logits`.
pub fn loss(
    model: &Model,
    outputs: &[NamedTensor],
    labels: &NamedTensor,
    config: &[(String, Json)],
) -> Result<f64, ModelError> {
    let Some(logits) = outputs.iter().find(|t| t.name == "logits") else {
        return Err(ModelError::new(format!("labels were given, but {model} has no output `logits` to compare with")));
    };
    let misfit = || {
        ModelError::new(format!("labels {:?} do not fit the model's logits", labels.shape))
            .note(format!("the logits are {:?}", logits.shape))
            .help(
                "labels have the shape of the logits without the last axis; whole numbers below its size, or -100. Real numbers, \
                 and problems of regression or with several labels, take the shape of the logits",
            )
    };
    let Values::Float(scores) = &logits.values else { return Err(misfit()) };
    let (&classes, rows) = logits.shape.split_last().filter(|(classes, _)| **classes > 0).ok_or_else(misfit)?;
    let setting = |wanted: &str| config.iter().find(|(key, _)| key == wanted).map(|(_, value)| value);
    let same_rows = labels.shape == rows;
    let each = labels.shape == logits.shape;
    let real = || match &labels.values {
        Values::Float(targets) => targets.iter().map(|y| f64::from(*y)).collect::<Vec<f64>>(),
        Values::Int(targets) => targets.iter().map(|y| *y as f64).collect(),
    };
    let problem = setting("problem_type").and_then(Json::as_str).filter(|_| rows.len() == 1).or(match &labels.values {
        _ if rows.len() == 1 && classes == 1 => Some(REGRESSION),
        Values::Float(_) if each => Some(MULTI_LABEL),
        _ => None,
    });
    let scored = || scores.iter().map(|x| f64::from(*x)).zip(real());
    let loss = match (problem, &labels.values) {
        (Some(REGRESSION), _) if each || same_rows && classes == 1 => {
            scored().map(|(x, y)| (x - y).powi(2)).sum::<f64>() / scores.len() as f64
        }
        (Some(MULTI_LABEL), _) if each => {
            let losses = scored().map(|(x, y)| x.max(0.0) - x * y + (-x.abs()).exp().ln_1p());
            losses.sum::<f64>() / scores.len() as f64
        }
        (None | Some(SINGLE_LABEL), Values::Int(targets)) if same_rows => {
            let sequence = if rows.len() == 2 && model.is_causal() { Some(rows[1]) } else { None };
            cross_entropy(scores, classes, targets, sequence).ok_or_else(misfit)?
        }
        _ => return Err(misfit()),
    };
    let balance =
        outputs.iter().find(|t| t.name == "aux_loss" && setting("output_router_logits") == Some(&Json::Bool(true)));
    Ok(match balance {
        Some(NamedTensor { values: Values::Float(added), .. }) => loss + f64::from(added[0]),
        _ => loss,
    })
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
