//! Pictures: decoding, resizing as Pillow does, random changes, folders of files. Samples that take time to make are made
//! ahead of their use by threads of their own.

pub(crate) mod ahead;
pub(crate) mod augment;
pub(crate) mod colour;
pub(crate) mod files;
pub(crate) mod picture;
pub(crate) mod resize;

#[cfg(test)]
mod tests;
