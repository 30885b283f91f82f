//! Training: the experiment, the step as graph, the loop, checkpoints, goals.
//!
//! It never prints and knows no backend but the trait. Start reading at [`experiment`], then [`programs`].

pub mod experiment;
