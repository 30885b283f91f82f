//! Tenon as a library: the crates under one roof, and the few things that need all of them.
//!
//! Programs in Rust reach everything from here; the binary `tenon` is arguments and printing on top of it. Only this
//! crate knows which backends exist.

pub mod hub;
pub mod import;
pub mod model_folder;
pub mod predict;
pub mod tensors;

pub use tenon_cpu as cpu;
pub use tenon_data as data;
pub use tenon_graph as graph;
pub use tenon_nn as nn;
pub use tenon_train as train;
