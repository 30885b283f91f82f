//! Models: architecture programs in Starlark, the parameters that they declare and how those start, and checkpoints in
//! the ecosystem's names.
//!
//! It builds graphs and never runs one; it knows no optimizer, no data set and no machine. Start reading at
//! [`architecture`], then [`function`].

pub mod architecture;
mod callable;
pub mod checkpoint;
mod config;
mod error;
mod export;
pub mod forward;
pub mod function;
mod functions;
pub mod generate;
mod hyper;
pub mod init;
pub mod lora;
pub mod loss;
pub mod model;
mod operators;
mod reference;
mod session;
mod stored;
mod value;
mod weights;

pub use architecture::{Architecture, ArchitectureSource};
pub use config::{further_keys, open, open_foreign};
pub use error::{ModelError, Report};
pub use export::export;
pub use hyper::HyperValue;
pub use init::{initialise, initialise_into};
pub use model::{Model, Parameter};
pub use reference::reference_markdown;
pub use session::{POSITION_OFFSET, RANDOM_KEY};
pub use stored::weight_files;
pub use weights::{load_body, load_weights, names_of};
