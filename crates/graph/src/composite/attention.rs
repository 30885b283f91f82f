//! Scaled dot-product attention and its gradient (Vaswani et al. 2017). Every backend runs them as streaming kernels
//! (Dao 2023); the expansions here, which hold the whole score matrix, say what the kernels mean.

use super::{AttrDef, Backprop, CompositeDef, CompositeGradient, Gradients, Lowering, OperandDef};
use super::{require, require_shape, results, wide};
use crate::composite::{Attr, Attrs};
use crate::dim::Dim;
use crate::op::Dot;
use crate::tensor::{Builder, Tensor};
use crate::types::{DType, Type};

const ATTRS: &[AttrDef] = &[
    AttrDef {
        name: "causal",
        doc: "whether query i sees no key after its own place: j <= position + i",
        default: Attr::Bool(false),
    },
    AttrDef { name: "scale", doc: "the factor of the scores; 0 means 1 / sqrt(d)", default: Attr::Float(0.0) },
    AttrDef {
        name: "window",
        doc: "how many places a query looks back, its own included, and forward unless causal; 0 means all",
        default: Attr::Int(0),
    },
    AttrDef { name: "has_mask", doc: "whether a mask is given", default: Attr::Bool(false) },
    AttrDef { name: "has_position", doc: "whether a position is given", default: Attr::Bool(false) },
];

const QUERY: OperandDef = OperandDef::float("query", "[b, t, h, d]");
const KEY: OperandDef = OperandDef::float("key", "[b, s, g, d], h a multiple of g: query head i uses head i / (h / g)");
const VALUE: OperandDef = OperandDef::float("value", "[b, s, g, d]");
const MASK: OperandDef = OperandDef::of(DType::Bool, "mask", "[b, s], true where a key may be seen").when("has_mask");
const POSITION: OperandDef =
    OperandDef::of(DType::I32, "position", "[], the place of query 0 among the keys; 0 if not given")
        .when("has_position");

/// See [`CompositeDef::doc`].
pub static ATTENTION: CompositeDef = CompositeDef {
    name: "attention",
    doc:
        "softmax(scale * query key^T) value as [b, t, h, d], and the logarithms of the softmax's sums as f32[b, h, t]. A
query that sees no key gives 0 and minus infinity. Without a position a causal attention has as many queries as keys.",
    operands: &[QUERY, KEY, VALUE, MASK, POSITION],
    attrs: ATTRS,
    results: 2,
    expand: |_, inputs, attrs| {
        let build = || {
            let layout = Layout::of(inputs, attrs)?;
            let scores = layout.visible_scores(inputs[0], inputs[1], &inputs[3..], attrs);
            let max = scores.max_over(&[-1]);
            let shift = max.is_finite().select(max, max.constant_like(0.0));
            let weights = (scores - shift).exp();
            let sum = weights.sum(&[-1]);
            let empty = sum.equal(0.0);
            let weights = weights / empty.select(sum.constant_like(1.0), sum);
            let out = layout.flat(weights).dot(layout.keys(inputs[2]), MATMUL);
            let log_sum = (sum.log() + shift).reshape([layout.b, layout.h, layout.t]);
            Ok(vec![layout.ungroup(out).cast(inputs[0].dtype()), log_sum])
        };
        results(&ATTENTION, build())
    },
    gradient: CompositeGradient::Rule(|p| attention_backward(p).unwrap_or_else(|_| vec![None; p.inputs.len()])),
    lowering: Lowering::Kernel,
};

/// See [`CompositeDef::doc`].
pub static ATTENTION_GRADIENT: CompositeDef = CompositeDef {
    name: "attention_gradient",
    doc: "The gradients of query, key and value of `attention` with these settings.",
    operands: &[
        QUERY,
        KEY,
        VALUE,
        OperandDef::float("out", "[b, t, h, d], the first result of `attention`"),
        OperandDef::of(DType::F32, "log_sum_exp", "[b, h, t], its second result"),
        OperandDef::float("out_gradient", "[b, t, h, d]"),
        MASK,
        POSITION,
    ],
    attrs: ATTRS,
    results: 3,
    expand: |_, inputs, attrs| results(&ATTENTION_GRADIENT, gradients(inputs, None, attrs)),
    gradient: CompositeGradient::Expand,
    lowering: Lowering::Kernel,
};

/// The factor of the scores that the settings of `attention` mean for heads of size `d`.
pub fn scale(attrs: &Attrs, d: usize) -> f64 {
    match attrs.float("scale") {
        0.0 => 1.0 / (d as f64).sqrt(),
        given => given,
    }
}

const MATMUL: Dot = Dot { transpose_a: false, transpose_b: false, dtype: DType::F32 };

/// The sizes of an attention: batch, queries, heads, head size, keys, key heads, query heads per key head.
struct Layout {
    b: Dim,
    t: Dim,
    h: Dim,
    d: Dim,
    s: Dim,
    g: Dim,
    r: Dim,
}

impl Layout {
    fn of<'g>(inputs: &[Tensor<'g>], attrs: &Attrs) -> Result<Layout, Tensor<'g>> {
        let [q, k, v] = [0, 1, 2].map(|i: usize| inputs[i]);
        let (qs, ks) = (q.shape(), k.shape());
        let all_four = qs.rank() == 4 && ks.rank() == 4;
        let message = || format!("query {qs} and key {ks} are not [b, t, h, d] and [b, s, g, d]");
        require(all_four && qs[0] == ks[0] && qs[3] == ks[3], &[q, k], message, None)?;
        require_shape("value", v, &ks)?;
        for other in [k, v] {
            let (a, b) = (q.dtype(), other.dtype());
            require(a == b, &[q, other], || format!("element types differ: {a} and {b}"), Some("cast one side"))?;
        }
        let ([b, t, h, d], [_, s, g, _]) = ([0, 1, 2, 3].map(|i: usize| qs[i]), [0, 1, 2, 3].map(|i: usize| ks[i]));
        let Some(r) = h.over(g) else {
            let message = format!("{h} query heads are not a multiple of {g} key heads");
            return Err(q.builder().fail(message, &[q, k], None));
        };
        require(d.as_const().is_some(), &[q], || format!("the head size {d} must be a number"), None)?;
        let (scale, window) = (attrs.float("scale"), attrs.int("window"));
        require(scale.is_finite(), &[q], || format!("scale is {scale}"), None)?;
        require(i32::try_from(window).is_ok_and(|w| w >= 0), &[q], || format!("window is {window}"), None)?;
        let (causal, has_position) = (attrs.flag("causal"), attrs.flag("has_position"));
        require(
            !causal || has_position || t == s,
            &[q, k],
            || format!("{t} causal queries over {s} keys have no place among them"),
            Some("give the position of the first query"),
        )?;
        let optional = &inputs[inputs.len() - usize::from(attrs.flag("has_mask")) - usize::from(has_position)..];
        if attrs.flag("has_mask") {
            require_shape("mask", optional[0], &[b, s])?;
        }
        if has_position {
            require_shape("position", optional[optional.len() - 1], &[])?;
        }
        Ok(Layout { b, t, h, d, s, g, r })
    }

    /// The rows of one key head's matrices: all queries of its query heads.
    fn rows(&self) -> Dim {
        self.r.times(self.t).expect("a factor of the operand's size")
    }

    /// `[b, t, h, d]` as `f32[b, g, r * t, d]`.
    fn group<'g>(&self, x: Tensor<'g>) -> Tensor<'g> {
        let split = wide(x).reshape([self.b, self.t, self.g, self.r, self.d]);
        split.transpose(&[0, 2, 3, 1, 4]).reshape([self.b, self.g, self.rows(), self.d])
    }

    /// `[b, g, r * t, d]` as `[b, t, h, d]`.
    fn ungroup<'g>(&self, x: Tensor<'g>) -> Tensor<'g> {
        let split = x.reshape([self.b, self.g, self.r, self.t, self.d]);
        split.transpose(&[0, 3, 1, 2, 4]).reshape([self.b, self.t, self.h, self.d])
    }

    /// `[b, s, g, d]` as `f32[b, g, s, d]`.
    fn keys<'g>(&self, x: Tensor<'g>) -> Tensor<'g> {
        wide(x).transpose(&[0, 2, 1, 3])
    }

    /// `[b, g, r, t, s]` as `[b, g, r * t, s]`.
    fn flat<'g>(&self, x: Tensor<'g>) -> Tensor<'g> {
        x.reshape([self.b, self.g, self.rows(), self.s])
    }

    /// `[b, g, r * t, s]` as `[b, g, r, t, s]`.
    fn unflat<'g>(&self, x: Tensor<'g>) -> Tensor<'g> {
        x.reshape([self.b, self.g, self.r, self.t, self.s])
    }

    /// The scaled scores `f32[b, g, r, t, s]`, minus infinity where a query does not see a key.
    fn visible_scores<'g>(&self, q: Tensor<'g>, k: Tensor<'g>, optional: &[Tensor<'g>], attrs: &Attrs) -> Tensor<'g> {
        let products = self.group(q).dot(self.keys(k), Dot { transpose_b: true, ..MATMUL });
        let scores = self.unflat(products) * self.scale(attrs);
        match self.visible(q.builder(), optional, attrs) {
            Some(visible) => visible.select(scores, scores.constant_like(f64::NEG_INFINITY)),
            None => scores,
        }
    }

    fn scale(&self, attrs: &Attrs) -> f64 {
        scale(attrs, self.d.as_const().expect("checked"))
    }

    /// Which keys each query sees, to be broadcast to `[b, g, r, t, s]`; `None` if all.
    fn visible<'g>(&self, b: &'g Builder, optional: &[Tensor<'g>], attrs: &Attrs) -> Option<Tensor<'g>> {
        let mut conditions = Vec::new();
        let (causal, window) = (attrs.flag("causal"), attrs.int("window"));
        if causal || window > 0 {
            let places = Type::new(DType::I32, [self.t, self.s]);
            let (mut i, j) = (b.iota(0, places.clone()), b.iota(1, places));
            if attrs.flag("has_position") {
                i = i + optional[optional.len() - 1];
            }
            if causal {
                conditions.push(j.less_equal(i));
            }
            if window > 0 {
                conditions.push((i - j).less(window as f64));
                if !causal {
                    conditions.push((j - i).less(window as f64));
                }
            }
        }
        if attrs.flag("has_mask") {
            conditions.push(optional[0].reshape([self.b, Dim::ONE, Dim::ONE, Dim::ONE, self.s]));
        }
        conditions.into_iter().reduce(|a, b| a.and(b))
    }
}

/// The gradients of query, key and value; `inputs` as for [`ATTENTION_GRADIENT`], and the gradient of `log_sum_exp`.
fn gradients<'g>(
    inputs: &[Tensor<'g>],
    log_sum_gradient: Option<Tensor<'g>>,
    attrs: &Attrs,
) -> Result<Vec<Tensor<'g>>, Tensor<'g>> {
    let [q, k, v, out, log_sum, out_gradient] = [0, 1, 2, 3, 4, 5].map(|i: usize| inputs[i]);
    let layout = Layout::of(inputs, attrs)?;
    require_shape("out", out, &q.shape())?;
    require_shape("out_gradient", out_gradient, &q.shape())?;
    require_shape("log_sum_exp", log_sum, &[layout.b, layout.h, layout.t])?;
    let per_query = |x: Tensor<'g>| x.reshape([layout.b, layout.g, layout.r, layout.t, Dim::ONE]);

    let scores = layout.visible_scores(q, k, &inputs[6..], attrs);
    // Minus infinity for a query without keys, whose scores all are too.
    let log_sum = log_sum.is_finite().select(log_sum, log_sum.constant_like(0.0));
    let weights = (scores - per_query(log_sum)).exp();
    let dout = layout.group(out_gradient);
    let dv = layout.flat(weights).dot(dout, Dot { transpose_a: true, ..MATMUL });
    let dweights = layout.unflat(dout.dot(layout.keys(v), Dot { transpose_b: true, ..MATMUL }));
    let mut mean = per_query((dout * layout.group(out)).sum(&[-1]));
    if let Some(gradient) = log_sum_gradient {
        mean = mean - per_query(gradient);
    }
    let dscores = layout.flat(weights * (dweights - mean) * layout.scale(attrs));
    let dq = layout.ungroup(dscores.dot(layout.keys(k), MATMUL));
    let dk = dscores.dot(layout.group(q), Dot { transpose_a: true, ..MATMUL });
    Ok(vec![
        dq.cast(q.dtype()),
        dk.transpose(&[0, 2, 1, 3]).cast(k.dtype()),
        dv.transpose(&[0, 2, 1, 3]).cast(v.dtype()),
    ])
}

fn attention_backward<'g>(p: &Backprop<'_, 'g>) -> Result<Gradients<'g>, Tensor<'g>> {
    let out_gradient = p.gradients[0].unwrap_or_else(|| p.outputs[0].zeros_like());
    let mut operands = p.inputs[..3].to_vec();
    operands.extend([p.outputs[0], p.outputs[1], out_gradient.cast(p.outputs[0].dtype())]);
    operands.extend(&p.inputs[3..]);
    let found = match p.gradients {
        [_, Some(log_sum_gradient)] => gradients(&operands, Some(*log_sum_gradient), p.attrs)?,
        _ => p.inputs[0].builder().composite(&ATTENTION_GRADIENT, &operands, p.attrs.clone()).to_vec(),
    };
    let mut all: Gradients<'g> = found.into_iter().map(Some).collect();
    all.resize(p.inputs.len(), None);
    Ok(all)
}
