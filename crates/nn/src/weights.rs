//! Reading weights from safetensors files, in the ecosystem's names and layouts.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::Value as Json;

use crate::error::ModelError;
use crate::forward::Values;
use crate::model::{Model, Parameter};

/// The longest header of a safetensors file.
const MAX_HEADER: u64 = 100_000_000;
/// The longest index of a checkpoint in several files.
const MAX_INDEX: u64 = 100_000_000;
/// How many names of one kind a message lists.
const LISTED: usize = 12;

/// The values of all parameters and states, in the order of [`Model::variables`], from a safetensors file or from a
/// folder with `model.safetensors` or `model.safetensors.index.json`. Other float types are converted to `f32`.
///
/// # Errors
/// Every tensor that is missing, superfluous or of another shape is listed.
pub fn load_safetensors(path: &Path, model: &Model) -> Result<Vec<Vec<f32>>, ModelError> {
    let checkpoint = Checkpoint::open(path)?;
    let table = &model.architecture.checkpoint;
    let prefixed = checkpoint.tensors.keys().any(|name| !table.prefix.is_empty() && name.starts_with(&table.prefix));
    let file_name = |name: &str| if prefixed { format!("{}{name}", table.prefix) } else { name.to_string() };

    let (mut missing, mut mismatched) = (Vec::new(), Vec::new());
    let mut found = Vec::new();
    for variable in model.variables() {
        let name = file_name(&variable.name);
        match checkpoint.tensors.get(&name) {
            None => missing.push(format!("missing: {name} {:?}, declared at {}", variable.shape, variable.site)),
            Some(place) if place.info.shape != stored_shape(variable, table.is_transposed(&variable.name)) => {
                let expected = stored_shape(variable, table.is_transposed(&variable.name));
                let found = &place.info.shape;
                mismatched.push(format!("shape: {name} is {found:?} in the file, {expected:?} in the model"));
            }
            Some(place) if !is_float(place.info.dtype) => {
                mismatched.push(format!("type: {name} is {:?} in the file, f32 in the model", place.info.dtype));
            }
            Some(place) => found.push((variable, place)),
        }
    }
    let known = |name: &str| {
        let own = name.strip_prefix(&table.prefix).filter(|_| prefixed).unwrap_or(name);
        model.variables().any(|v| v.name == own) && (!prefixed || name != own)
            || table.is_ignored(own)
            || table.tied.iter().any(|(tied, _)| tied == name || tied == own)
    };
    let superfluous: Vec<String> = checkpoint
        .tensors
        .iter()
        .filter(|(name, _)| !known(name))
        .map(|(name, place)| format!("superfluous: {name} {:?}", place.info.shape))
        .collect();
    if !(missing.is_empty() && mismatched.is_empty() && superfluous.is_empty()) {
        let message = format!(
            "{} does not fit the model {model}: {} tensors missing, {} superfluous, {} of another shape or type",
            path.display(),
            missing.len(),
            superfluous.len(),
            mismatched.len()
        );
        let mut error = ModelError::new(message);
        error.notes = [missing, mismatched, superfluous].into_iter().flat_map(shorten).collect();
        return Err(error.help("check the architecture and its hyperparameters against the checkpoint's config.json"));
    }
    let values = found
        .iter()
        .map(|(variable, place)| {
            let values = checkpoint.read(&file_name(&variable.name), place)?;
            let transposed = table.is_transposed(&variable.name) && variable.shape.len() == 2;
            Ok(if transposed { transpose(&values, variable.shape[1], variable.shape[0]) } else { values })
        })
        .collect::<Result<Vec<_>, ModelError>>()?;
    check_tied(&checkpoint, model, &values)?;
    Ok(values)
}

/// Files may repeat a tied tensor, but not with other values.
fn check_tied(checkpoint: &Checkpoint, model: &Model, values: &[Vec<f32>]) -> Result<(), ModelError> {
    for (tied, own) in &model.architecture.checkpoint.tied {
        let place = checkpoint.tensors.get(tied);
        let index = model.variables().position(|v| v.name == *own);
        if let (Some(place), Some(index)) = (place, index)
            && checkpoint.read(tied, place)? != values[index]
        {
            let message = format!("{}: {tied} is not equal to {own}, to which the model ties it", place.file.display());
            return Err(
                ModelError::new(message).help("this checkpoint needs an architecture with an output head of its own")
            );
        }
    }
    Ok(())
}

fn shorten(mut notes: Vec<String>) -> Vec<String> {
    if notes.len() > LISTED {
        let more = notes.len() - LISTED;
        let kind = notes[0].split(':').next().unwrap_or_default().to_string();
        notes.truncate(LISTED);
        notes.push(format!("{kind}: and {more} more"));
    }
    notes
}

/// The shape of a variable in files.
pub(crate) fn stored_shape(variable: &Parameter, transposed: bool) -> Vec<usize> {
    match variable.shape[..] {
        [out, input] if transposed => vec![input, out],
        _ => variable.shape.clone(),
    }
}

/// The transpose of a row-major matrix.
pub(crate) fn transpose(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    const BLOCK: usize = 32;
    let mut out = vec![0.0; values.len()];
    for row_block in (0..rows).step_by(BLOCK) {
        for column_block in (0..columns).step_by(BLOCK) {
            for row in row_block..(row_block + BLOCK).min(rows) {
                for column in column_block..(column_block + BLOCK).min(columns) {
                    out[column * rows + row] = values[row * columns + column];
                }
            }
        }
    }
    out
}

fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::F64 | Dtype::F16 | Dtype::BF16)
}

/// Where a tensor lies.
struct Place {
    file: PathBuf,
    /// Where the file's data starts.
    data: u64,
    info: TensorInfo,
}

/// The tensors of one or several safetensors files.
struct Checkpoint {
    tensors: BTreeMap<String, Place>,
}

impl Checkpoint {
    fn open(path: &Path) -> Result<Checkpoint, ModelError> {
        let mut checkpoint = Checkpoint { tensors: BTreeMap::new() };
        if !path.is_dir() {
            checkpoint.add(path)?;
            return Ok(checkpoint);
        }
        let (single, index) = (path.join("model.safetensors"), path.join("model.safetensors.index.json"));
        if single.exists() || !index.exists() {
            checkpoint.add(&single)?;
            return Ok(checkpoint);
        }
        let damaged = || ModelError::new(format!("{}: not an index of safetensors files", index.display()));
        let size = std::fs::metadata(&index).map_err(|e| ModelError::io("cannot read", &index, &e))?.len();
        if size > MAX_INDEX {
            return Err(damaged());
        }
        let text = std::fs::read(&index).map_err(|e| ModelError::io("cannot read", &index, &e))?;
        let json: Json = serde_json::from_slice(&text).map_err(|_| damaged())?;
        let map = json.get("weight_map").and_then(Json::as_object).ok_or_else(damaged)?;
        let mut parts: Vec<&str> = map.values().map(|v| v.as_str().ok_or_else(damaged)).collect::<Result<_, _>>()?;
        parts.sort_unstable();
        parts.dedup();
        for part in parts {
            // A name with a folder in it could lead anywhere.
            if Path::new(part).file_name().is_none_or(|name| name != part) {
                return Err(damaged().note(format!("{part:?} is not the name of a file beside it")));
            }
            checkpoint.add(&path.join(part))?;
        }
        Ok(checkpoint)
    }

    /// Adds the tensors of a file, whose header is checked against its length.
    fn add(&mut self, path: &Path) -> Result<(), ModelError> {
        let failed = |e: std::io::Error| ModelError::io("cannot read the weights", path, &e);
        let damaged =
            |why: String| ModelError::new(format!("{} is damaged or no safetensors file: {why}", path.display()));
        let mut file = File::open(path).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
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
            let place = Place { file: path.to_path_buf(), data, info: info.clone() };
            if self.tensors.insert(name.clone(), place).is_some() {
                return Err(damaged(format!("{name} is in two files")));
            }
        }
        Ok(())
    }

    fn read(&self, name: &str, place: &Place) -> Result<Vec<f32>, ModelError> {
        let failed = |e: std::io::Error| ModelError::io(&format!("cannot read {name} from"), &place.file, &e);
        let mut file = File::open(&place.file).map_err(failed)?;
        let (start, end) = place.info.data_offsets;
        file.seek(SeekFrom::Start(place.data + start as u64)).map_err(failed)?;
        let mut bytes = vec![0; end - start];
        file.read_exact(&mut bytes).map_err(failed)?;
        match Values::decode(place.info.dtype, &bytes) {
            Some(Values::Float(values)) => Ok(values),
            _ => unreachable!("only floats are weights"),
        }
    }
}
