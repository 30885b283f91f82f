//! Attention and positions.

use tenon_graph::composite::{Attrs, attention, rope};
use tenon_graph::dim::Dim;
use tenon_graph::tensor::Tensor;
use tenon_graph::types::{DType, Shape, Type};

use super::{Outcome, function};
use crate::error::ModelError;
use crate::function::{Call, Function};
use crate::session::POSITION_OFFSET;

pub(super) const INTRODUCTION: &str = "Nothing here knows whether a program trains or decodes: when text is generated, the \
keys and values of earlier tokens are kept and `positions` go on from there.";

pub(super) fn functions() -> Vec<Function> {
    vec![
        function(
            "attention",
            "q, k, v, heads, kv_heads = None, causal = False, mask = None, scale = None, window = None",
            "softmax(scale q k^T) v for each head (Vaswani et al. 2017). `q` is `[b, t, heads * d]`, `k` and `v` are \
             `[b, s, kv_heads * d]`; query head `i` uses key head `i // (heads // kv_heads)`. Gives `[b, t, heads * d]`. \
             With heads as an axis of their own (`[b, t, heads, d]`) so is the result's. `causal`: a query sees keys up to \
             its own place. `mask` `[b, s]`: what may be seen, truth values or 1 and 0. `window`: how many places a query \
             looks back, its own included. `scale` is 1 / sqrt(d) unless given.",
            "attention(sequence, sequence, sequence, heads = 4, causal = True)",
            attend,
        ),
        function(
            "rope",
            "x, positions, base = 10000.0, interleaved = False, frequencies = None",
            "Rotates the features of each head by angles proportional to their positions (Su et al. 2021). `x` is \
             `[b, t, heads, d]`, `positions` `[t]` or `[b, t]`. Pairs are features `i` and `i + d / 2`, as Llama has them, or \
             neighbours if `interleaved`. `frequencies` `[d / 2]` replaces those of `base`: the angle from one position to the \
             next.",
            "rope(reshape(sequence, [sequence.shape[0], sequence.shape[1], 4, 4]), positions(ids))",
            |call| {
                let frequencies = call.optional_tensor("frequencies")?;
                let attrs = Attrs::default()
                    .with("base", call.number("base")?)
                    .with("interleaved", call.flag("interleaved")?)
                    .with("has_frequencies", frequencies.is_some());
                let operands: Vec<_> =
                    [call.tensor("x")?, call.tensor("positions")?].into_iter().chain(frequencies).collect();
                Ok(call.session.builder.composite(&rope::ROPE, &operands, attrs)[0].into())
            },
        ),
        function(
            "positions",
            "ids, seen = None",
            "0, 1, .. along the last axis of `ids` `[.., t]`, `i32[t]`; when text is generated, counted from the first token \
             of the text. As indices of a table they limit `t` to its rows. With `seen` `[b, t]` (truth values or 1 and 0) \
             only what is seen counts, and what is not has the place of what was before it: `i32[b, t]`.",
            "embedding(positions(ids), 64, 32, name = \"places\")",
            place,
        ),
    ]
}

fn place(call: &Call<'_>) -> Outcome {
    let ids = call.tensor("ids")?;
    let Some(t) = ids.shape().last().copied() else {
        return Err(call.error("takes a tensor with at least one axis").note(ids.describe()));
    };
    let session = call.session;
    let places = match call.optional_tensor("seen")? {
        None => {
            let offset = session.control(POSITION_OFFSET, Type::new(DType::I32, Shape::scalar()));
            session.builder.iota(0, Type::new(DType::I32, [t])) + offset
        }
        Some(seen) => {
            let (from, to) = (0, 1);
            let index = |axis| session.builder.iota(axis, Type::new(DType::I32, [t, t]));
            let up_to = index(from).less_equal(index(to)).cast(DType::F32);
            let count = seen.cast(DType::F32).matmul(up_to, false, false);
            (count - count.constant_like(1.0)).max(count.constant_like(0.0)).cast(DType::I32)
        }
    };
    session.mark_positions(places, t);
    Ok(places.into())
}

/// `x` as `[b, t, heads, d]`.
fn split_heads<'c>(call: &Call<'c>, name: &str, heads: usize) -> Result<Tensor<'c>, ModelError> {
    let x = call.tensor(name)?;
    let shape = x.shape();
    let fits = |size: Dim| size == Dim::constant(heads);
    match shape[..] {
        [_, _, h, _] if fits(h) => Ok(x),
        [_, _, h, _] => Err(call.error(format!("`{name}` has {h} heads, not {heads}")).note(x.describe())),
        [b, t, c] => match c.over(Dim::constant(heads)) {
            Some(d) => Ok(x.reshape([b, t, Dim::constant(heads), d])),
            None => {
                let message = format!("the {c} features of `{name}` do not divide into {heads} heads");
                Err(call.error(message).note(x.describe()).help("make the width a multiple of the number of heads"))
            }
        },
        _ => {
            let message = format!("`{name}` is {shape}, neither [b, t, heads * d] nor [b, t, heads, d]");
            Err(call.error(message).note(x.describe()))
        }
    }
}

fn attend(call: &Call<'_>) -> Outcome {
    let heads = call.count("heads")?;
    let kv_heads = call.optional_count("kv_heads")?.unwrap_or(heads);
    if kv_heads == 0 || heads % kv_heads != 0 {
        return Err(call.error(format!("{heads} heads are no multiple of {kv_heads} key heads")));
    }
    let (q, k) = (split_heads(call, "q", heads)?, split_heads(call, "k", kv_heads)?);
    let mut operands = vec![q, k, split_heads(call, "v", kv_heads)?];
    let mask = call.optional_tensor("mask")?;
    if let Some(mask) = mask {
        operands.push(if mask.dtype() == DType::Bool { mask } else { !mask.equal(mask.constant_like(0.0)) });
    }
    let attrs = Attrs::default()
        .with("causal", call.flag("causal")?)
        .with("scale", call.optional_number("scale")?.unwrap_or(0.0))
        .with("window", call.optional_count("window")?.unwrap_or(0) as i64)
        .with("has_mask", mask.is_some());
    let y = call.session.builder.composite(&attention::ATTENTION, &operands, attrs)[0];
    // In the form in which the query came.
    Ok(y.reshape(call.tensor("q")?.shape()).into())
}
