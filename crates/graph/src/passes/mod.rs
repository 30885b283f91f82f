//! Passes: each takes a graph and makes another.

pub mod bind;
pub mod expand;
pub mod rewrite;
