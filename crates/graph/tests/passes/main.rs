//! Tests of the text form, the verifier, costs and passes.

mod algebra;
mod bind;
mod cost;
mod mode;
mod model;
mod precision;
mod text;
