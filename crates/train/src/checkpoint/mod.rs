//! Checkpoints: sets of files that are there whole or not at all.
//!
//! `checkpoints/step-00000200/` has safetensors files (weights, optimizer state, averages), `state.json` and
//! `manifest.json` with the size and the BLAKE3 of each. It is written under another name, every file and the folder
//! are synced, and the folder is renamed. There is no pointer to the newest: the folders are listed, and the newest one
//! that has all its checksums is it.

mod manifest;
mod store;
mod tensors;

use std::fmt;

pub use manifest::Damage;
pub use safetensors::Dtype;
pub use store::{Checkpoint, Checkpoints, Contents, Latest};
pub use tensors::{Mismatch, Tensor, TensorFile, TensorSpec, write_tensors};

use crate::files::FileError;

/// Why a checkpoint could not be written or read.
#[derive(Debug)]
pub enum CheckpointError {
    /// A file operation failed.
    File(FileError),
    /// The tensors are not those that were expected.
    Mismatch(Box<Mismatch>),
    /// Something was asked for, or found in a file, that cannot be.
    Invalid(String),
}

impl fmt::Display for CheckpointError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CheckpointError::File(error) => error.fmt(f),
            CheckpointError::Mismatch(mismatch) => mismatch.fmt(f),
            CheckpointError::Invalid(message) => f.write_str(message),
        }
    }
}

impl std::error::Error for CheckpointError {}

impl From<FileError> for CheckpointError {
    fn from(error: FileError) -> Self {
        CheckpointError::File(error)
    }
}

impl From<Box<Mismatch>> for CheckpointError {
    fn from(mismatch: Box<Mismatch>) -> Self {
        CheckpointError::Mismatch(mismatch)
    }
}
