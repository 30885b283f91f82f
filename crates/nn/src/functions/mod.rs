//! The functions of the architecture language, one file a section.

mod activation;
mod conv;
mod declare;
pub(crate) mod elementwise;
mod initialisers;
mod inputs;
mod linear;
mod norm;
mod reduce;
mod sequence;
pub(crate) mod view;

use crate::error::ModelError;
use crate::function::{Body, Call, Function, Output, Section};

/// What the bodies of functions give back.
pub(crate) type Outcome = Result<Output, ModelError>;

/// A function with a body of its own.
const fn function(
    name: &'static str,
    signature: &'static str,
    doc: &'static str,
    example: &'static str,
    body: fn(&Call<'_>) -> Outcome,
) -> Function {
    Function { name, signature, doc, example, body: Body::Build(body) }
}

/// Every section: title, what holds for all of it, functions.
pub(crate) fn sections() -> Vec<Section> {
    vec![
        ("Inputs", inputs::INTRODUCTION, inputs::functions()),
        ("Parameters and scopes", declare::INTRODUCTION, declare::functions()),
        ("Initialisers", initialisers::INTRODUCTION, initialisers::functions()),
        ("Matrices and tables", linear::INTRODUCTION, linear::functions()),
        ("Sequences", sequence::INTRODUCTION, sequence::functions()),
        ("Images", conv::INTRODUCTION, conv::functions()),
        ("Normalisation and dropout", norm::INTRODUCTION, norm::functions()),
        ("Activations", activation::INTRODUCTION, activation::functions()),
        ("Elementwise", elementwise::INTRODUCTION, elementwise::functions()),
        ("Reductions and sorting", reduce::INTRODUCTION, reduce::functions()),
        ("Shapes", view::INTRODUCTION, view::functions()),
    ]
}
