//! Training: the experiment, the loop, checkpoints, goals.

pub mod experiment;
