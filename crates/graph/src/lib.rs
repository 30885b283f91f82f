//! The graph language: types, operations, graphs, automatic differentiation, passes, schedule and memory plan.
//!
//! It never runs anything fast and knows no files, no networks, no models and no machine: the reference evaluator is
//! here to say what a graph means. Start reading at [`op`], then [`tensor`], then [`graph`].

pub mod autodiff;
pub mod backend;
pub mod composite;
pub mod cost;
pub mod diagnostic;
pub mod dim;
pub mod elementwise;
pub mod graph;
pub mod infer;
pub mod lower;
mod names;
pub mod op;
pub mod passes;
pub mod random;
pub mod reference;
pub mod sample;
pub mod tensor;
pub mod testing;
pub mod text;
pub mod types;
pub mod verify;
