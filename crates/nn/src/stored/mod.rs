//! Tensors in files of the ecosystem: safetensors and PyTorch's archives, alone or several with an index.
//!
//! Opening reads only what says which tensors there are, and checks it against the length of the files; values are
//! read one tensor at a time.

mod pickle;
mod torch;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde_json::Value as Json;

use crate::error::ModelError;
use crate::forward::Values;

/// The longest header of a safetensors file.
const MAX_HEADER: u64 = 100_000_000;
/// The longest index of a checkpoint in several files.
const MAX_INDEX: u64 = 100_000_000;
/// The files of a folder that may hold its weights, the best first.
const WEIGHTS: [&str; 4] =
    ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"];

/// What wrappers of models put before all names: data parallelism, compilation, programs that train.
const WRAPPERS: [&str; 3] = ["module.", "_orig_mod.", "model."];

/// Where a tensor lies.
pub(crate) struct Place {
    pub file: PathBuf,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// The byte of the file at which the first element begins.
    start: u64,
    /// Elements from one index to the next along each axis; `None` in row-major order.
    strides: Option<Vec<usize>>,
}

/// The tensors of one or several files.
pub(crate) struct Checkpoint {
    pub tensors: BTreeMap<String, Place>,
}

impl Checkpoint {
    /// The tensors of a file, or of the files that a folder has, without what wrappers put before all names.
    pub fn open(path: &Path) -> Result<Checkpoint, ModelError> {
        let mut checkpoint = Checkpoint { tensors: BTreeMap::new() };
        checkpoint.add_all(path)?;
        while let Some(before) = WRAPPERS.iter().find(|before| checkpoint.all_begin_with(before)) {
            let tensors = std::mem::take(&mut checkpoint.tensors).into_iter();
            checkpoint.tensors = tensors.map(|(name, place)| (name[before.len()..].to_string(), place)).collect();
        }
        Ok(checkpoint)
    }

    fn all_begin_with(&self, before: &str) -> bool {
        !self.tensors.is_empty() && self.tensors.keys().all(|name| name.starts_with(before))
    }

    /// Adds the tensors of a file, or of the files that a folder has.
    fn add_all(&mut self, path: &Path) -> Result<(), ModelError> {
        if !path.is_dir() {
            return self.add(path);
        }
        let found = WEIGHTS.iter().map(|name| path.join(name)).find(|file| file.exists());
        let Some(file) = found else {
            let message = format!("{}: no weights in it: none of {}", path.display(), WEIGHTS.join(", "));
            return Err(ModelError::new(message).help("give the file with the weights one of these names"));
        };
        match file.extension().is_some_and(|end| end == "json") {
            false => self.add(&file),
            true => weight_files(&file)?.iter().try_for_each(|part| self.add(&path.join(part))),
        }
    }

    /// Adds the tensors of a file.
    fn add(&mut self, path: &Path) -> Result<(), ModelError> {
        let failed = |e: std::io::Error| ModelError::io("cannot read the weights", path, &e);
        let mut file = File::open(path).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        let mut first = Vec::new();
        (&mut file).take(4).read_to_end(&mut first).map_err(failed)?;
        file.rewind().map_err(failed)?;
        let tensors = if torch::is_archive(&first) {
            torch::tensors(file, length, path)?
        } else {
            safetensors(file, length, path)?
        };
        for (name, place) in tensors {
            if self.tensors.contains_key(&name) {
                return Err(ModelError::new(format!("{}: {name} is in two files", path.display())));
            }
            self.tensors.insert(name, place);
        }
        Ok(())
    }
}

impl Place {
    /// The values in row-major order.
    pub fn read(&self, name: &str) -> Result<Values, ModelError> {
        let failed = |e: std::io::Error| ModelError::io(&format!("cannot read {name} from"), &self.file, &e);
        let size = self.dtype.bitsize() / 8;
        let count: usize = self.shape.iter().product();
        let mut bytes = vec![0; self.span() * size];
        let mut file = File::open(&self.file).map_err(failed)?;
        file.seek(SeekFrom::Start(self.start)).map_err(failed)?;
        file.read_exact(&mut bytes).map_err(failed)?;
        if let Some(strides) = &self.strides {
            let mut ordered = Vec::with_capacity(count * size);
            let mut index = vec![0; self.shape.len()];
            for _ in 0..count {
                let at: usize = index.iter().zip(strides).map(|(i, stride)| i * stride).sum();
                ordered.extend_from_slice(&bytes[at * size..][..size]);
                for (i, n) in index.iter_mut().zip(&self.shape).rev() {
                    *i += 1;
                    if *i < *n {
                        break;
                    }
                    *i = 0;
                }
            }
            bytes = ordered;
        }
        Values::decode(self.dtype, &bytes).ok_or_else(|| {
            ModelError::new(format!("{}: {name} is of type {:?}, which is not read", self.file.display(), self.dtype))
        })
    }

    /// The number of elements from the first to the last.
    fn span(&self) -> usize {
        if self.shape.contains(&0) {
            return 0;
        }
        match &self.strides {
            None => self.shape.iter().product(),
            Some(strides) => 1 + self.shape.iter().zip(strides).map(|(n, stride)| (n - 1) * stride).sum::<usize>(),
        }
    }
}

/// The names of the files that an index of weights, such as `model.safetensors.index.json`, lists.
///
/// # Errors
/// A file that is no such index, or that names files elsewhere.
pub fn weight_files(index: &Path) -> Result<Vec<String>, ModelError> {
    let damaged = || ModelError::new(format!("{}: not an index of safetensors files", index.display()));
    let size = std::fs::metadata(index).map_err(|e| ModelError::io("cannot read", index, &e))?.len();
    if size > MAX_INDEX {
        return Err(damaged());
    }
    let text = std::fs::read(index).map_err(|e| ModelError::io("cannot read", index, &e))?;
    let json: Json = serde_json::from_slice(&text).map_err(|_| damaged())?;
    let map = json.get("weight_map").and_then(Json::as_object).ok_or_else(damaged)?;
    let mut parts = Vec::new();
    for part in map.values() {
        let part = part.as_str().ok_or_else(damaged)?;
        // A name with a folder in it could lead anywhere.
        if Path::new(part).file_name().is_none_or(|name| name != part) {
            return Err(damaged().note(format!("{part:?} is not the name of a file beside it")));
        }
        parts.push(part.to_string());
    }
    parts.sort_unstable();
    parts.dedup();
    Ok(parts)
}

/// The tensors of a safetensors file, whose header is checked against its length.
fn safetensors(mut file: File, length: u64, path: &Path) -> Result<Vec<(String, Place)>, ModelError> {
    let failed = |e: std::io::Error| ModelError::io("cannot read the weights", path, &e);
    let damaged = |why: String| ModelError::new(format!("{} is damaged or no safetensors file: {why}", path.display()));
    let mut prefix = [0; 8];
    if length < 8 {
        return Err(damaged(format!("it has {length} bytes")));
    }
    file.read_exact(&mut prefix).map_err(failed)?;
    let header = u64::from_le_bytes(prefix);
    if header > MAX_HEADER || header > length - 8 {
        return Err(damaged(format!("a header of {header} bytes in a file of {length}")));
    }
    let mut text = vec![0; header as usize];
    file.read_exact(&mut text).map_err(failed)?;
    let metadata: Metadata = serde_json::from_slice(&text).map_err(|e| damaged(e.to_string()))?;
    let data = 8 + header;
    let mut tensors = Vec::new();
    for name in metadata.offset_keys() {
        let Some(info) = metadata.info(&name) else { continue };
        let (start, end) = info.data_offsets;
        let elements = info.shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
        let bits = elements.and_then(|n| n.checked_mul(info.dtype.bitsize()));
        let fits = end.checked_sub(start).and_then(|bytes| bytes.checked_mul(8)) == bits
            && bits.is_some()
            && end as u64 <= length - data;
        if !fits {
            let shape = &info.shape;
            return Err(damaged(format!(
                "{name} {shape:?} is said to lie at bytes {start} to {end} of {}",
                length - data
            )));
        }
        let (dtype, shape) = (info.dtype, info.shape.clone());
        let place = Place { file: path.to_path_buf(), dtype, shape, start: data + start as u64, strides: None };
        tensors.push((name, place));
    }
    Ok(tensors)
}
