//! Activations.

use tenon_graph::composite::{Attrs, CompositeDef, activation, softmax};

use super::{Outcome, function};
use crate::function::{Call, Function};

pub(super) const INTRODUCTION: &str = "Each takes a tensor of any shape. `tanh` and `sigmoid` are under Elementwise.";

pub(super) fn functions() -> Vec<Function> {
    vec![
        function("relu", "x", activation::RELU.doc, "relu(x)", |call| apply(call, &activation::RELU, Attrs::default())),
        function(
            "gelu",
            "x, approximate = \"none\"",
            "x times the probability that a standard normal value is at most x (Hendrycks and Gimpel 2016): exactly, or with \
             `approximate = \"tanh\"` as GPT-2 has it.",
            "gelu(x, approximate = \"tanh\")",
            |call| {
                let tanh = match call.text("approximate")? {
                    "none" => false,
                    "tanh" => true,
                    other => return Err(call.error(format!("`approximate` is \"none\" or \"tanh\", not {other:?}"))),
                };
                apply(call, &activation::GELU, Attrs::default().with("tanh", tanh))
            },
        ),
        function("silu", "x", activation::SILU.doc, "silu(x)", |call| apply(call, &activation::SILU, Attrs::default())),
        function("softplus", "x", activation::SOFTPLUS.doc, "softplus(x)", |call| {
            apply(call, &activation::SOFTPLUS, Attrs::default())
        }),
        function("softmax", "x, axis = -1", softmax::SOFTMAX.doc, "softmax(x)", |call| {
            apply(call, &softmax::SOFTMAX, Attrs::default().with("axis", call.int("axis")?))
        }),
        function("log_softmax", "x, axis = -1", softmax::LOG_SOFTMAX.doc, "log_softmax(x)", |call| {
            apply(call, &softmax::LOG_SOFTMAX, Attrs::default().with("axis", call.int("axis")?))
        }),
    ]
}

fn apply(call: &Call<'_>, def: &'static CompositeDef, attrs: Attrs) -> Outcome {
    Ok(call.session.builder.composite(def, &[call.tensor("x")?], attrs)[0].into())
}
