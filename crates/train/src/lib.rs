//! Training: the experiment, the step as graph, the loop, checkpoints, goals.
//!
//! It never prints and knows no backend but the trait. Start reading at [`experiment`], then [`programs`].

pub mod checkpoint;
pub mod experiment;
pub mod files;
pub mod fit;
pub mod goal;
pub mod metrics;
mod numbers;
pub mod objective;
pub mod plan;
pub mod programs;
pub mod rate;
pub mod report;
pub mod run;
pub mod run_folder;
pub mod scores;
pub mod setup;
pub mod tensorboard;
pub mod trainer;
pub mod tune;
pub mod update;
