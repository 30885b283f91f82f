//! Training: the experiment, the step as graph, the loop, checkpoints, goals.
//!
//! It never prints and knows no backend but the trait. Start reading at [`experiment`], then [`programs`].

pub mod checkpoint;
pub mod experiment;
pub mod files;
pub mod goal;
pub mod metrics;
mod numbers;
pub mod report;
pub mod run_folder;
pub mod tensorboard;
pub mod tune;
