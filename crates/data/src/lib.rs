//! Data: turns files into named, deterministic, batched host buffers.
//!
//! A `[data]` table ([`DataConfig`]) names text, labelled images or a table; [`open`] reads, tokenises, splits and checks it
//! and gives a [`Dataset`]. What every dataset keeps: sample *i* of epoch *e* is a pure function of (seed, e, i), so the
//! position of a training run is one number and [`fill_batch`] needs nothing else.
//!
//! This crate knows nothing of graphs, models, training or command lines. Start reading at [`dataset`], then `order.rs`
//! (the shuffle), `text/` (tokenizer, shards, windows), `labelled/` (IDX, CSV, splits) and `images/` (files, sizes, changes).

mod config;
pub mod dataset;
mod error;
mod files;
mod images;
mod labelled;
mod open;
mod order;
mod text;

pub use config::{
    ClassWeights, DataConfig, IdxPair, ImageSource, OnCorrupt, Paths, TableSource, TextSource, TokenizerConfig,
    Validation,
};
pub use dataset::{
    Dataset, ElementType, Facts, Field, IGNORED_LABEL, PaddedLength, Split, SplitFacts, Standardization, batch_length,
    fill_batch,
};
pub use error::{DataError, Place};
pub use images::augment::{Augment, Jitter, Mixing, RandAugment, ResizedCrop};
pub use images::resize::Filter;
pub use labelled::{LABEL_WEIGHTS, MIXED_LABEL_WEIGHTS, MIXED_LABELS, encode_text, read_image, text_of};
pub use open::{Demands, Progress, open};
pub use text::tokenizer::{END_OF_TEXT, UNKNOWN, load_tokenizer, save_tokenizer, tokenizer_to_json, vocabulary_size};
pub use text::vocabulary::assemble_tokenizer;
pub use tokenizers::Tokenizer;
