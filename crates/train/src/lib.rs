//! Training: the experiment, the loop, checkpoints, goals.

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
