//! Shared by the tests: temporary folders, opening from TOML, and batches as numbers.
#![allow(dead_code, reason = "every test file is its own crate and uses a part")]

use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tenon_data::{
    DataConfig, DataError, Dataset, Demands, ElementType, Field, Progress, Split, batch_length, fill_batch, open,
};

/// The folder of the data files that the repository ships.
pub fn shipped() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes/data")
}

/// A folder with files, and a cache beside them.
pub struct Folder {
    pub dir: TempDir,
}

impl Folder {
    pub fn new(files: &[(&str, &[u8])]) -> Folder {
        let folder = Folder { dir: tempfile::tempdir().expect("a temporary folder") };
        for (name, bytes) in files {
            folder.write(name, bytes);
        }
        folder
    }

    pub fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.dir.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        std::fs::write(path, bytes).expect("a file");
    }

    pub fn cache(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    /// The token shard files of the cache.
    pub fn shards(&self) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> = std::fs::read_dir(self.cache())
            .map(|entries| entries.map(|e| e.expect("an entry").path()).collect())
            .unwrap_or_default();
        files.sort();
        files
    }

    pub fn open(&self, toml: &str, context: Option<usize>) -> Result<Box<dyn Dataset>, DataError> {
        self.open_seeded(toml, 1, context)
    }

    pub fn open_seeded(&self, toml: &str, seed: u64, context: Option<usize>) -> Result<Box<dyn Dataset>, DataError> {
        self.open_for(toml, Demands { seed, batch: 4, context, masked: false })
    }

    pub fn open_for(&self, toml: &str, demands: Demands) -> Result<Box<dyn Dataset>, DataError> {
        open(&config(toml), self.dir.path(), &self.cache(), demands, &mut |_: Progress| {})
    }

    /// The text of the error that opening gives, with the folder's own path left out.
    pub fn error(&self, toml: &str) -> String {
        let Err(error) = self.open(toml, Some(4)) else {
            panic!("no error for {toml}");
        };
        let path = format!("{}{}", self.dir.path().display(), std::path::MAIN_SEPARATOR);
        error.to_string().replace(&path, "")
    }
}

pub fn config(toml: &str) -> DataConfig {
    toml::from_str(toml).unwrap_or_else(|error| panic!("{toml}: {error}"))
}

/// A batch as bytes, one buffer per field, and its number of real samples.
pub fn batch(data: &dyn Dataset, split: Split, position: u64, size: usize) -> (Vec<Vec<u8>>, usize) {
    // Filled with a pattern that no sample has, so that what is not written shows.
    let length = batch_length(data, split, position, size);
    let fields: Vec<Field> = data.fields().iter().map(|field| field.at(length)).collect();
    let mut buffers: Vec<Vec<u8>> = fields.iter().map(|field| vec![0xa5; field.bytes() * size]).collect();
    let mut parts: Vec<&mut [u8]> = buffers.iter_mut().map(Vec::as_mut_slice).collect();
    let real = fill_batch(data, split, position, size, &mut parts);
    (buffers, real)
}

pub fn ints(bytes: &[u8]) -> Vec<i32> {
    let elements = bytes.chunks_exact(ElementType::I32.size());
    elements.map(|e| i32::from_le_bytes(e.try_into().expect("4 bytes"))).collect()
}

pub fn floats(bytes: &[u8]) -> Vec<f32> {
    let elements = bytes.chunks_exact(ElementType::F32.size());
    elements.map(|e| f32::from_le_bytes(e.try_into().expect("4 bytes"))).collect()
}

/// One sample as bytes, one buffer per field.
pub fn sample(data: &dyn Dataset, split: Split, epoch: u64, index: u64) -> Vec<Vec<u8>> {
    let mut buffers: Vec<Vec<u8>> = data.fields().iter().map(|f| vec![0xa5; f.bytes()]).collect();
    let mut parts: Vec<&mut [u8]> = buffers.iter_mut().map(Vec::as_mut_slice).collect();
    data.write_sample(split, epoch, index, &mut parts);
    buffers
}
