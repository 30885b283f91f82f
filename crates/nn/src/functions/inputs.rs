//! Types of inputs.

use tenon_graph::dim::{Dim, Symbol};
use tenon_graph::types::DType;

use super::{Outcome, function};
use crate::error::ModelError;
use crate::function::{Argument, Call, Function, Output, dim};
use crate::value::InputValue;

pub(super) const INTRODUCTION: &str = "A file's `inputs` is a dict from names to input types, or a function of some \
hyperparameters that returns one. A size is a whole number, or a name of up to eight letters: `b` (batch) and `t` \
(sequence) stay open until a program is planned. Where an input is `optional` and not given, `model` is called without it, \
so its parameter has the default None.";

pub(super) fn functions() -> Vec<Function> {
    vec![
        function("tokens", "*dims, optional = False", "Token numbers, `i32[dims]`.", "tokens(\"b\", \"t\")", |call| {
            input(call, DType::I32, call.argument("dims"), false)
        }),
        function(
            "features",
            "*dims, optional = False",
            "Real-valued features, `f32[dims]`.",
            "features(\"b\", 784)",
            |call| input(call, DType::F32, call.argument("dims"), false),
        ),
        function(
            "images",
            "batch, channels, height, width, optional = False",
            "Images, `f32[batch, channels, height, width]` as data brings them (channels first, the ecosystem's \
             `pixel_values`). The model sees them channels last, `[batch, height, width, channels]`: convolutions, pooling \
             and normalisation work on the last axis.",
            "images(\"b\", 3, 224, 224)",
            |call| {
                let dims = ["batch", "channels", "height", "width"].map(|name| call.argument(name).clone());
                input(call, DType::F32, &Argument::List(dims.to_vec()), true)
            },
        ),
        function(
            "tensor",
            "dtype, *dims, optional = False",
            "Any other input: `dtype` is `f32`, `bf16`, `i32`, `u32`, `u8` or `bool`.",
            "tensor(\"u8\", \"b\", 32)",
            |call| input(call, dtype(call, "dtype")?, call.argument("dims"), false),
        ),
    ]
}

/// The element type that a string names.
pub(super) fn dtype(call: &Call<'_>, name: &str) -> Result<DType, ModelError> {
    let text = call.text(name)?;
    DType::from_name(text).ok_or_else(|| {
        let known = DType::ALL.map(DType::name);
        call.error(format!("there is no element type `{text}`: {}", crate::error::suggest(text, known)))
    })
}

fn input(call: &Call<'_>, dtype: DType, dims: &Argument, image: bool) -> Outcome {
    let Argument::List(dims) = dims else { unreachable!("collected by the call") };
    let size = |argument: &Argument| match argument {
        Argument::Text(name) => Symbol::new(name).map(Dim::symbol).ok_or_else(|| {
            call.error(format!("`{name}` names no size"))
                .help("a size's name is a letter and up to seven letters or digits")
        }),
        other => dim(other).ok_or_else(|| call.error("a size is a whole number or a name such as \"b\"")),
    };
    let dims = dims.iter().map(size).collect::<Result<Vec<_>, _>>()?;
    Ok(Output::Input(InputValue { dtype, dims, image, optional: call.flag("optional")? }))
}
