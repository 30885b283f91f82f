//! Rotary position embedding.

use super::{
    AttrDef, Backprop, CompositeDef, CompositeGradient, Lowering, OperandDef, require, require_shape, results, wide,
};
use crate::composite::{Attr, Attrs};
use crate::dim::Dim;
use crate::tensor::Tensor;
use crate::types::{DType, Type};

/// See [`CompositeDef::doc`].
pub static ROPE: CompositeDef = CompositeDef {
    name: "rope",
    doc: "Rotates pair i of the d features of each head by position * base^(-2 i / d) (Su et al. 2021). A pair is features
i and i + d / 2 (the layout of Llama in transformers), or, interleaved, 2 i and 2 i + 1 (the paper and GPT-J). Frequencies
other than those of a base may be given.",
    operands: &[
        OperandDef::float("x", "[b, t, h, d]"),
        OperandDef::of(DType::I32, "positions", "[t] or [b, t]"),
        OperandDef::float("frequencies", "[d / 2], by how much a pair turns from one position to the next")
            .when("has_frequencies"),
    ],
    attrs: &[
        AttrDef { name: "base", doc: "the base of the wavelengths", default: Attr::Float(10000.0) },
        AttrDef { name: "interleaved", doc: "whether pairs are neighbours", default: Attr::Bool(false) },
        AttrDef {
            name: "has_frequencies",
            doc: "whether frequencies are given",
            default: Attr::Bool(false),
        },
    ],
    results: 1,
    expand: |_, inputs, attrs| results(&ROPE, rotate(inputs[0], &inputs[1..], attrs, 1.0).map(|y| vec![y])),
    // The gradient of a rotation is the rotation back.
    gradient: CompositeGradient::Rule(|p| {
        let back = p.gradients[0].and_then(|dy| rotate(dy, &p.inputs[1..], p.attrs, -1.0).ok());
        let frequencies = p.inputs.get(2).map(|f| p.gradients[0].map(|dy| turning(p, dy).cast(f.dtype())));
        [back, None].into_iter().chain(frequencies).collect()
    }),
    lowering: Lowering::Expand,
};

/// The gradient of the frequencies from that of the result: by the angle, the first of a pair changes by minus the
/// second, the second by the first.
fn turning<'g>(p: &Backprop<'_, 'g>, dy: Tensor<'g>) -> Tensor<'g> {
    let (y, places) = (p.outputs[0], p.inputs[1]);
    let (shape, at, half) = (y.shape(), places.shape(), p.inputs[2].shape()[0]);
    let Some(half) = half.as_const() else { return p.inputs[2].zeros_like() };
    let ([first, second], [dfirst, dsecond]) =
        (<[_; 2]>::from(pairs(y, half, p.attrs)), pairs(dy, half, p.attrs).into());
    let per_batch = if at.rank() == 2 { shape[0] } else { Dim::ONE };
    let places = wide(places).reshape([per_batch, shape[1], Dim::ONE, Dim::ONE]);
    ((dsecond * first - dfirst * second) * places).sum(&[0, 1, 2]).reshape([half])
}

/// The first and the second features of all pairs, in `f32`.
fn pairs<'g>(x: Tensor<'g>, half: usize, attrs: &Attrs) -> (Tensor<'g>, Tensor<'g>) {
    let x = wide(x);
    if attrs.flag("interleaved") {
        (x.slice_step(-1, 0, half, 2), x.slice_step(-1, 1, half, 2))
    } else {
        (x.slice(-1, 0, half), x.slice(-1, half, half))
    }
}

/// `x` rotated by `direction` times the angles, which follow from positions and frequencies.
fn rotate<'g>(x: Tensor<'g>, places: &[Tensor<'g>], attrs: &Attrs, direction: f64) -> Result<Tensor<'g>, Tensor<'g>> {
    let positions = places[0];
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

    let frequency = if attrs.flag("has_frequencies") {
        require_shape("frequencies", places[1], &[half.into()])?;
        wide(places[1])
    } else {
        (b.iota(0, Type::new(DType::F32, [half])) * (-base.ln() / half as f64)).exp()
    };
    let per_batch = if at.rank() == 2 { n } else { Dim::ONE };
    let angle = wide(positions).reshape([per_batch, t, Dim::ONE, Dim::ONE]) * frequency;
    let (cos, sin) = (angle.cos(), angle.sin() * direction);

    let (first, second) = pairs(x, half, attrs);
    let rotated = if attrs.flag("interleaved") {
        let pairs = [first * cos - second * sin, second * cos + first * sin]
            .map(|part| part.reshape([n, t, h, half.into(), Dim::ONE]));
        b.concat(&pairs, -1).reshape(shape)
    } else {
        b.concat(&[first * cos - second * sin, second * cos + first * sin], -1)
    };
    Ok(rotated.cast(x.dtype()))
}
