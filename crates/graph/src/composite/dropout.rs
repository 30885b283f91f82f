//! Dropout.

use super::{AttrDef, CompositeDef, CompositeGradient, Lowering, OperandDef, require, results};
use crate::composite::{Attr, Attrs};
use crate::op::{Op, Random};
use crate::tensor::Tensor;
use crate::types::DType;

/// See [`CompositeDef::doc`].
pub static DROPOUT: CompositeDef = CompositeDef {
    name: "dropout",
    doc: "Each element is 0 with probability `rate`, else x / (1 - rate) (Srivastava et al. 2014, inverted). An element is
kept where its random bits are at least rate * 2^32. The gradient draws the same bits again: nothing is kept.",
    operands: &[OperandDef::float("x", "any shape"), OperandDef::of(DType::U32, "key", "[2], the random key of the step")],
    attrs: &[
        AttrDef { name: "rate", doc: "the probability of 0, from 0 to below 1", default: Attr::Float(0.1) },
        AttrDef { name: "stream", doc: "the random stream, its own in the graph", default: Attr::Int(0) },
    ],
    results: 1,
    expand: |_, inputs, attrs| results(&DROPOUT, mask(inputs[0], inputs[0], inputs[1], attrs).map(|y| vec![y])),
    gradient: CompositeGradient::Rule(|p| {
        let gradient = |dy| mask(dy, p.inputs[0], p.inputs[1], p.attrs).ok();
        vec![p.gradients[0].and_then(gradient), None]
    }),
    lowering: Lowering::Expand,
};

/// `value` where the element of `x` is kept, scaled; else 0.
fn mask<'g>(value: Tensor<'g>, x: Tensor<'g>, key: Tensor<'g>, attrs: &Attrs) -> Result<Tensor<'g>, Tensor<'g>> {
    let (rate, stream) = (attrs.float("rate"), attrs.int("stream"));
    require((0.0..1.0).contains(&rate), &[x], || format!("rate is {rate}, not from 0 to below 1"), None)?;
    require(u32::try_from(stream).is_ok(), &[x], || format!("stream is {stream}, not a u32"), None)?;
    let random = Op::Random(Random { stream: stream as u32, shape: x.shape() });
    let bits = x.builder().add(random, &[key], 1)[0];
    // Below 1, a rate times 2^32 may still round up to 2^32, which is no u32.
    let threshold = (rate * 2f64.powi(32)).round().min(f64::from(u32::MAX));
    let keep = x.builder().constant(threshold, DType::U32).less_equal(bits);
    Ok(keep.select(value * (1.0 / (1.0 - rate)), value.constant_like(0.0)))
}
