//! What is learnt: the loss of a batch and the counts from which metrics are made, as graph.

use tenon_graph::composite::Attr;
use tenon_graph::composite::Attrs;
use tenon_graph::composite::loss::{BCE_WITH_LOGITS, CROSS_ENTROPY, MSE};
use tenon_graph::op::Role;
use tenon_graph::tensor::{Builder, Tensor};
use tenon_graph::types::{DType, Shape, Type};

use crate::experiment::Objective;

/// The label of positions that do not count.
pub const IGNORED: i32 = -100;

/// Sums over a batch, each an `f32` scalar.
#[derive(Clone, Copy)]
pub struct Sums<'g> {
    /// The loss of all labels that count.
    pub loss: Tensor<'g>,
    /// How many labels count.
    pub count: Tensor<'g>,
    /// How many predictions are right; `None` where there is no right and wrong.
    pub correct: Option<Tensor<'g>>,
    /// The class that is predicted for each label, `i32`; `None` where there are none.
    pub predicted: Option<Tensor<'g>>,
}

/// The type of the labels that belong to predictions of this type.
pub fn labels_type(objective: Objective, predictions: &Type) -> Type {
    match objective {
        Objective::NextToken | Objective::MaskedLm | Objective::Classification => {
            let rank = predictions.shape.rank();
            let rows: Shape = predictions.shape[..rank.saturating_sub(1)].into();
            Type { dtype: DType::I32, shape: rows }
        }
        Objective::MultiLabel | Objective::Regression => Type { dtype: DType::F32, shape: predictions.shape.clone() },
    }
}

/// The objective that an output of this many axes has by itself on data with integer labels.
pub fn usual(rank: usize) -> Objective {
    if rank == 3 { Objective::NextToken } else { Objective::Classification }
}

/// The sums of a batch: predictions (`logits`) against `labels`, whose losses count as much as `weights` say.
pub fn sums<'g>(
    objective: Objective,
    predictions: Tensor<'g>,
    labels: Tensor<'g>,
    weights: Option<Tensor<'g>>,
    smoothing: f64,
) -> Sums<'g> {
    let b = predictions.builder();
    match objective {
        Objective::NextToken | Objective::MaskedLm | Objective::Classification => {
            let attrs = Attrs::default()
                .with("ignore_index", Attr::Int(IGNORED.into()))
                .with("label_smoothing", Attr::Float(smoothing));
            let losses = b.composite(&CROSS_ENTROPY, &[predictions, labels], attrs)[0];
            let counts = !labels.equal(f64::from(IGNORED));
            let predicted = predictions.argmax(-1).reshape(labels.shape());
            Sums {
                loss: weights.map_or(losses, |weights| losses * weights).sum_all(),
                count: counts.cast(DType::F32).sum_all(),
                correct: Some(predicted.equal(labels).cast(DType::F32).sum_all()),
                predicted: Some(predicted),
            }
        }
        Objective::MultiLabel | Objective::Regression => {
            // Samples that only fill a batch have NaN for targets.
            let counts = labels.equal(labels);
            let targets = counts.select(labels, labels.zeros_like());
            let (def, correct) = if objective == Objective::MultiLabel {
                let (present, predicted) = (b.scalar(0.5).less(targets), b.scalar(0.0).less(predictions));
                let hits = present.and(predicted).or((!present).and(!predicted)).and(counts);
                (&BCE_WITH_LOGITS, Some(hits.cast(DType::F32).sum_all()))
            } else {
                (&MSE, None)
            };
            let losses = b.composite(def, &[predictions, targets], Attrs::default())[0];
            Sums {
                loss: counts.select(losses, b.scalar(0.0)).sum_all(),
                count: counts.cast(DType::F32).sum_all(),
                correct,
                predicted: None,
            }
        }
    }
}

/// The name of the input that holds the labels.
pub const LABELS: &str = "labels";

/// The input that holds the labels of predictions of this type.
pub fn labels<'g>(b: &'g Builder, objective: Objective, predictions: &Type) -> Tensor<'g> {
    b.input(LABELS, Role::Data, labels_type(objective, predictions))
}
