//! Tensors in safetensors files as models take and give them.

use std::fs;
use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use tenon_nn::ModelError;
use tenon_nn::forward::{NamedTensor, Values};

/// The largest file of inputs, in bytes.
const LARGEST: u64 = 4 << 30;

fn wrong(path: &Path, what: impl std::fmt::Display) -> ModelError {
    ModelError::new(format!("{}: {what}", path.display()))
}

/// Reads all tensors of a file.
///
/// # Errors
/// A file that cannot be read, is no safetensors file, or has tensors of a type that models do not take.
pub fn read(path: &Path) -> Result<Vec<NamedTensor>, ModelError> {
    let size = fs::metadata(path).map_err(|e| wrong(path, format_args!("cannot be read: {e}")))?.len();
    if size > LARGEST {
        return Err(wrong(path, format_args!("has {size} bytes, inputs have at most {LARGEST}")));
    }
    let bytes = fs::read(path).map_err(|e| wrong(path, format_args!("cannot be read: {e}")))?;
    let file =
        SafeTensors::deserialize(&bytes).map_err(|e| wrong(path, format_args!("is no safetensors file: {e}")))?;
    let mut tensors = Vec::new();
    for (name, view) in file.tensors() {
        let values = Values::decode(view.dtype(), view.data()).ok_or_else(|| {
            wrong(
                path,
                format_args!("`{name}` is {:?}: models take F32, F16, BF16, F64, integers and BOOL", view.dtype()),
            )
        })?;
        tensors.push(NamedTensor { name, shape: view.shape().to_vec(), values });
    }
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tensors)
}

/// A tensor of a file, without its values.
pub struct Entry {
    /// The name.
    pub name: String,
    /// The element type.
    pub dtype: Dtype,
    /// The sizes.
    pub shape: Vec<usize>,
}

/// What tensors a file has; only its header is read.
///
/// # Errors
/// A file that cannot be read or is no safetensors file.
pub fn read_header(path: &Path) -> Result<Vec<Entry>, ModelError> {
    let file = tenon_train::checkpoint::TensorFile::open(path).map_err(|e| ModelError::new(e.to_string()))?;
    let entries = file.specs().map(|s| Entry { name: s.name.clone(), dtype: s.dtype, shape: s.shape.clone() });
    Ok(entries.collect())
}

/// Writes tensors: real numbers as F32, whole numbers as I64. The file is complete or absent.
///
/// # Errors
/// A file that cannot be written.
pub fn write(path: &Path, tensors: &[NamedTensor]) -> Result<(), ModelError> {
    let encoded: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|t| {
            let (dtype, bytes) = match &t.values {
                Values::Float(values) => (Dtype::F32, values.iter().flat_map(|x| x.to_le_bytes()).collect()),
                Values::Int(values) => (Dtype::I64, values.iter().flat_map(|x| x.to_le_bytes()).collect()),
            };
            (t.name.clone(), dtype, t.shape.clone(), bytes)
        })
        .collect();
    let views = encoded.iter().map(|(name, dtype, shape, bytes)| {
        let view = TensorView::new(*dtype, shape.clone(), bytes).map_err(|e| wrong(path, e))?;
        Ok((name.as_str(), view))
    });
    let views: Vec<(&str, TensorView<'_>)> = views.collect::<Result<_, ModelError>>()?;
    let bytes = safetensors::serialize(views, None).map_err(|e| wrong(path, e))?;
    tenon_train::files::replace_file(&tenon_train::files::Disk, path, &bytes)
        .map_err(|e| wrong(path, format_args!("cannot be written: {e}")))
}
