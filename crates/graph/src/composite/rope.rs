//! Rotary position embedding.

use super::{AttrDef, CompositeDef, CompositeGradient, Lowering, OperandDef, require, results, wide};
use crate::composite::{Attr, Attrs};
use crate::dim::Dim;
use crate::tensor::Tensor;
use crate::types::{DType, Type};

/// See [`CompositeDef::doc`].
pub static ROPE: CompositeDef = CompositeDef {
    name: "rope",
    doc: "Rotates pair i of the d features of each head by position * base^(-2 i / d) (Su et al. 2021). A pair is features
i and i + d / 2 (the layout of Llama in transformers), or, interleaved, 2 i and 2 i + 1 (the paper and GPT-J).",
    operands: &[
        OperandDef::float("x", "[b, t, h, d]"),
        OperandDef::of(DType::I32, "positions", "[t] or [b, t]"),
    ],
    attrs: &[
        AttrDef { name: "base", doc: "the base of the wavelengths", default: Attr::Float(10000.0) },
        AttrDef { name: "interleaved", doc: "whether pairs are neighbours", default: Attr::Bool(false) },
    ],
    results: 1,
    expand: |_, inputs, attrs| results(&ROPE, rotate(inputs[0], inputs[1], attrs, 1.0).map(|y| vec![y])),
    // The gradient of a rotation is the rotation back.
    gradient: CompositeGradient::Rule(|p| {
        vec![p.gradients[0].and_then(|dy| rotate(dy, p.inputs[1], p.attrs, -1.0).ok()), None]
    }),
    lowering: Lowering::Expand,
};

/// `x` rotated by `direction` times the angles.
fn rotate<'g>(x: Tensor<'g>, positions: Tensor<'g>, attrs: &Attrs, direction: f64) -> Result<Tensor<'g>, Tensor<'g>> {
    let (b, shape, base) = (x.builder(), x.shape(), attrs.float("base"));
    require(base > 1.0 && base.is_finite(), &[x], || format!("base is {base}, not a number above 1"), None)?;
    require(shape.rank() == 4, &[x], || format!("x is {shape}, not [b, t, h, d]"), None)?;
    let [n, t, h, d] = [0, 1, 2, 3].map(|i: usize| shape[i]);
    let Some(half) = d.as_const().filter(|d| d % 2 == 0).map(|d| d / 2) else {
        return Err(b.fail(format!("the head size {d} is not an even number"), &[x], None));
    };
    let at = positions.shape();
    let given = match at[..] {
        [only] => only == t,
        [first, second] => first == n && second == t,
        _ => false,
    };
    require(given, &[x, positions], || format!("positions are {at}, not [{t}] or [{n}, {t}]"), None)?;

    let pair = b.iota(0, Type::new(DType::F32, [half]));
    let frequency = (pair * (-base.ln() / half as f64)).exp();
    let per_batch = if at.rank() == 2 { n } else { Dim::ONE };
    let angle = wide(positions).reshape([per_batch, t, Dim::ONE, Dim::ONE]) * frequency;
    let (cos, sin) = (angle.cos(), angle.sin() * direction);

    let wide_x = wide(x);
    let rotated = if attrs.flag("interleaved") {
        let (first, second) = (wide_x.slice_step(-1, 0, half, 2), wide_x.slice_step(-1, 1, half, 2));
        let pairs = [first * cos - second * sin, second * cos + first * sin]
            .map(|part| part.reshape([n, t, h, half.into(), Dim::ONE]));
        b.concat(&pairs, -1).reshape(shape)
    } else {
        let (first, second) = (wide_x.slice(-1, 0, half), wide_x.slice(-1, half, half));
        b.concat(&[first * cos - second * sin, second * cos + first * sin], -1)
    };
    Ok(rotated.cast(x.dtype()))
}
