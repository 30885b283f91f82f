//! Losses of each element or row, in `f32`: cross-entropy, binary cross-entropy, squared error.

use super::activation::log_one_plus_exp;
use super::softmax::log_sum_exp;
use super::{AttrDef, Backprop, CompositeDef, CompositeGradient, Gradients, Lowering, OperandDef};
use super::{require, results, wide};
use crate::composite::{Attr, Attrs};
use crate::tensor::{Builder, Tensor};
use crate::types::{DType, Shape, Type};

/// See [`CompositeDef::doc`].
pub static CROSS_ENTROPY: CompositeDef = CompositeDef {
    name: "cross_entropy",
    doc: "-sum(target * log_softmax(logits)) of each row as f32[n..], and the rows' log(sum(exp(logits))) as f32[n..]. The
target is 1 - label_smoothing at the label and label_smoothing / v everywhere. A row whose label is ignore_index has
loss 0 and no gradient; any other label outside 0..v makes the row's loss and gradient NaN.",
    operands: &[
        OperandDef::float("logits", "[n.., v]"),
        OperandDef::of(DType::I32, "labels", "[n..]"),
    ],
    attrs: &[
        AttrDef { name: "ignore_index", doc: "the label of rows that do not count", default: Attr::Int(-100) },
        AttrDef { name: "label_smoothing", doc: "from 0 to 1", default: Attr::Float(0.0) },
    ],
    results: 2,
    expand: |b, inputs, attrs| results(&CROSS_ENTROPY, cross_entropy(b, inputs, attrs)),
    gradient: CompositeGradient::Rule(cross_entropy_gradient),
    lowering: Lowering::Expand,
};

/// Which logits the labels name (`[n.., v]`), which rows are ignored and which have a label in range (`[n.., 1]`).
struct Rows<'g> {
    hit: Tensor<'g>,
    ignored: Tensor<'g>,
    in_range: Tensor<'g>,
}

fn rows<'g>(logits: Tensor<'g>, labels: Tensor<'g>, attrs: &Attrs) -> Rows<'g> {
    let (b, shape) = (logits.builder(), logits.shape());
    let last = shape.rank() - 1;
    let labels = labels.reshape(shape.with(last, 1.into()));
    let hit = b.iota(last, Type::new(DType::I32, shape.clone())).equal(labels);
    let ignored = labels.equal(attrs.int("ignore_index") as f64);
    let first = b.constant(0.0, DType::I32).less_equal(labels);
    let in_range = first.and(labels.less(b.size(shape[last]).cast(DType::I32)));
    Rows { hit, ignored, in_range }
}

fn cross_entropy<'g>(b: &'g Builder, inputs: &[Tensor<'g>], attrs: &Attrs) -> Result<Vec<Tensor<'g>>, Tensor<'g>> {
    let (logits, labels) = (inputs[0], inputs[1]);
    let (shape, rows_shape, smoothing) = (logits.shape(), labels.shape(), attrs.float("label_smoothing"));
    require(
        shape.rank() == rows_shape.rank() + 1 && shape[..rows_shape.rank()] == rows_shape[..],
        inputs,
        || format!("logits {shape} and labels {rows_shape} do not fit"),
        Some("the labels have the shape of the logits without the last axis"),
    )?;
    let valid = (0.0..=1.0).contains(&smoothing);
    require(valid, inputs, || format!("label_smoothing is {smoothing}, not between 0 and 1"), None)?;
    let ignore = attrs.int("ignore_index");
    require(i32::try_from(ignore).is_ok(), inputs, || format!("ignore_index is {ignore}, not an i32"), None)?;

    let x = wide(logits);
    let rows = rows(logits, labels, attrs);
    let log_sum = log_sum_exp(x);
    let at_label = rows.hit.select(x, b.scalar(0.0)).sum(&[-1]);
    // Without smoothing a logit of minus infinity away from the label must not count: 0 times infinity is NaN.
    let expected = if smoothing == 0.0 { at_label } else { at_label * (1.0 - smoothing) + x.mean(&[-1]) * smoothing };
    let loss = rows.in_range.select(log_sum - expected, b.scalar(f64::NAN));
    let loss = rows.ignored.select(b.scalar(0.0), loss);
    Ok(vec![loss.reshape(rows_shape.clone()), log_sum.reshape(rows_shape)])
}

fn cross_entropy_gradient<'g>(p: &Backprop<'_, 'g>) -> Gradients<'g> {
    let (logits, b) = (p.inputs[0], p.inputs[0].builder());
    let shape = logits.shape();
    let last = shape.rank() - 1;
    let column = |t: Tensor<'g>| t.reshape(shape.with(last, 1.into()));
    let probability = (wide(logits) - column(p.outputs[1])).exp();
    let through_loss = p.gradients[0].map(|dloss| {
        let smoothing = p.attrs.float("label_smoothing");
        let rows = rows(logits, p.inputs[1], p.attrs);
        let elsewhere = if smoothing == 0.0 { b.scalar(0.0) } else { smoothing / b.size(shape[last]) };
        let target = rows.hit.select(elsewhere + (1.0 - smoothing), elsewhere);
        let weight = rows.in_range.select(column(dloss), b.scalar(f64::NAN));
        let weight = rows.ignored.select(b.scalar(0.0), weight);
        // The whole row is selected away as well: 0 times what its logits may hold need not be 0.
        rows.ignored.select(b.scalar(0.0), (probability - target) * weight)
    });
    let through_log_sum = p.gradients[1].map(|d| probability * column(d));
    let total = match (through_loss, through_log_sum) {
        (Some(a), Some(b)) => Some(a + b),
        (a, b) => a.or(b),
    };
    vec![total.map(|g| g.cast(logits.dtype())), None]
}

/// Two operands of one shape.
fn pair<'g>(inputs: &[Tensor<'g>]) -> Result<(Tensor<'g>, Tensor<'g>), Tensor<'g>> {
    let (a, b): (Shape, Shape) = (inputs[0].shape(), inputs[1].shape());
    let help = "reshape one side; losses do not broadcast, because that hides mistakes";
    require(a == b, inputs, || format!("shapes differ: {a} and {b}"), Some(help))?;
    Ok((wide(inputs[0]), wide(inputs[1])))
}

/// See [`CompositeDef::doc`].
pub static BCE_WITH_LOGITS: CompositeDef = CompositeDef {
    name: "bce_with_logits",
    doc: "-(target log(sigmoid(x)) + (1 - target) log(1 - sigmoid(x))) of each element, in f32, computed as
max(x, 0) - x target + log1p(exp(-|x|)).",
    operands: &[OperandDef::float("x", "any shape"), OperandDef::float("target", "the shape of x, from 0 to 1")],
    attrs: &[],
    results: 1,
    expand: |_, inputs, _| {
        results(&BCE_WITH_LOGITS, pair(inputs).map(|(x, target)| vec![log_one_plus_exp(x) - x * target]))
    },
    gradient: CompositeGradient::Rule(|p| {
        let Some((dy, (x, target))) = p.gradients[0].zip(pair(p.inputs).ok()) else { return vec![None; 2] };
        vec![Some((dy * (x.sigmoid() - target)).cast(p.inputs[0].dtype())), Some((-dy * x).cast(p.inputs[1].dtype()))]
    }),
    lowering: Lowering::Expand,
};

/// See [`CompositeDef::doc`].
pub static MSE: CompositeDef = CompositeDef {
    name: "mse",
    doc: "(a - b)^2 of each element, in f32.",
    operands: &[OperandDef::float("a", "any shape"), OperandDef::float("b", "the shape of a")],
    attrs: &[],
    results: 1,
    expand: |_, inputs, _| {
        let built = pair(inputs).map(|(a, b)| {
            let difference = a - b;
            vec![difference * difference]
        });
        results(&MSE, built)
    },
    gradient: CompositeGradient::Rule(|p| {
        let Some((dy, (a, b))) = p.gradients[0].zip(pair(p.inputs).ok()) else { return vec![None; 2] };
        let da = dy * ((a - b) * 2.0);
        vec![Some(da.cast(p.inputs[0].dtype())), Some((-da).cast(p.inputs[1].dtype()))]
    }),
    lowering: Lowering::Expand,
};
