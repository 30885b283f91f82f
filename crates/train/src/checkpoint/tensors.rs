//! Safetensors files, written and read tensor by tensor without a copy of the whole set in memory.
//!
//! Format: <https://github.com/huggingface/safetensors#format>: 8 bytes of header length (little-endian), a JSON header
//! padded with spaces to a multiple of 8, then the data without gaps.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, Write};
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde_json::{Map, Value, json};

use super::CheckpointError;
use crate::files::FileError;

/// A tensor without its values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// The full name ("h.0.attn.c_attn.weight").
    pub name: String,
    /// The element type.
    pub dtype: Dtype,
    /// The sizes of the dimensions.
    pub shape: Vec<usize>,
}

impl fmt::Display for TensorSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}{:?}", self.name, self.dtype, self.shape)
    }
}

impl TensorSpec {
    /// Bytes of the values; `None` if the product overflows or is no whole number of bytes.
    pub fn bytes(&self) -> Option<usize> {
        let elements = self.shape.iter().try_fold(1usize, |product, size| product.checked_mul(*size))?;
        let bits = elements.checked_mul(self.dtype.bitsize())?;
        bits.is_multiple_of(8).then_some(bits / 8)
    }
}

/// A tensor with its values, little-endian and in row-major order, borrowed from where they live.
#[derive(Clone, Debug)]
pub struct Tensor<'a> {
    /// Name, type and shape.
    pub spec: TensorSpec,
    /// The values: `spec.bytes()` bytes.
    pub data: &'a [u8],
}

/// The largest header that is read, in bytes: the limit of the reference implementation.
const LARGEST_HEADER: u64 = 100_000_000;

/// Writes a safetensors file. Tensors are ordered by alignment, then by name, as the reference implementation does, so
/// that all data is aligned. `metadata` is the header's `__metadata__`; transformers wants `("format", "pt")`.
///
/// # Errors
/// A tensor whose data does not have the size of its shape, a name that comes twice, or an error of `out`.
pub fn write_tensors(out: &mut dyn Write, tensors: &[Tensor<'_>], metadata: &[(&str, &str)]) -> io::Result<()> {
    let invalid = |message: String| io::Error::new(io::ErrorKind::InvalidInput, message);
    let mut order: Vec<&Tensor<'_>> = tensors.iter().collect();
    order.sort_by(|a, b| b.spec.dtype.cmp(&a.spec.dtype).then_with(|| a.spec.name.cmp(&b.spec.name)));
    let mut header = Map::new();
    if !metadata.is_empty() {
        let entries = metadata.iter().map(|(key, value)| (key.to_string(), Value::from(*value)));
        header.insert("__metadata__".into(), Value::Object(entries.collect()));
    }
    let mut offset = 0usize;
    for Tensor { spec, data } in &order {
        if spec.bytes() != Some(data.len()) {
            return Err(invalid(format!("tensor {spec} has {} bytes of data", data.len())));
        }
        let end = offset + data.len();
        let entry = json!({ "dtype": spec.dtype.to_string(), "shape": spec.shape, "data_offsets": [offset, end] });
        if header.insert(spec.name.clone(), entry).is_some() {
            return Err(invalid(format!("two tensors have the name {}", spec.name)));
        }
        offset = end;
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    order.iter().try_for_each(|tensor| out.write_all(tensor.data))
}

/// A safetensors file that is open for reading.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    file: BufReader<File>,
    /// In the order of their data, with the position of the data in the file.
    tensors: Vec<(TensorSpec, u64)>,
}

impl TensorFile {
    /// Reads and checks the header: the data must lie in the file without gaps or overlaps and have the size of the shapes.
    ///
    /// # Errors
    /// A file that cannot be read or is not a sound safetensors file.
    pub fn open(path: &Path) -> Result<TensorFile, CheckpointError> {
        let invalid = |message: String| CheckpointError::Invalid(format!("{}: {message}", path.display()));
        let file = File::open(path).map_err(FileError::of("open", path))?;
        let size = file.metadata().map_err(FileError::of("read", path))?.len();
        let mut file = BufReader::with_capacity(1 << 16, file);
        let mut length = [0; 8];
        file.read_exact(&mut length).map_err(|_| invalid(format!("{size} bytes, too short for a safetensors file")))?;
        let length = u64::from_le_bytes(length);
        if length > LARGEST_HEADER || length > size - 8 {
            return Err(invalid(format!(
                "the header claims {length} bytes of the file's {size}: not a safetensors file"
            )));
        }
        let mut header = vec![0; length as usize];
        file.read_exact(&mut header).map_err(FileError::of("read", path))?;
        let header: Metadata =
            serde_json::from_slice(&header).map_err(|error| invalid(format!("bad safetensors header: {error}")))?;
        let data = size - 8 - length;
        if header.data_len() as u64 != data {
            let message = format!("the header describes {} bytes of data, the file has {data}", header.data_len());
            return Err(invalid(message));
        }
        let tensors = header
            .offset_keys()
            .into_iter()
            .filter_map(|name| {
                let info = header.info(&name)?;
                let spec = TensorSpec { name, dtype: info.dtype, shape: info.shape.clone() };
                Some((spec, 8 + length + info.data_offsets.0 as u64))
            })
            .collect();
        Ok(TensorFile { path: path.to_owned(), file, tensors })
    }

    /// The tensors in the order of their data.
    pub fn specs(&self) -> impl ExactSizeIterator<Item = &TensorSpec> {
        self.tensors.iter().map(|(spec, _)| spec)
    }

    /// Checks that the file has exactly the expected tensors.
    ///
    /// # Errors
    /// Every name that is missing, superfluous or of another type or shape.
    pub fn compare(&self, expected: &[TensorSpec]) -> Result<(), Box<Mismatch>> {
        let found: HashMap<&str, &TensorSpec> = self.specs().map(|spec| (spec.name.as_str(), spec)).collect();
        let names: HashSet<&str> = expected.iter().map(|spec| spec.name.as_str()).collect();
        let mut mismatch = Mismatch { path: self.path.clone(), ..Mismatch::default() };
        for spec in expected {
            match found.get(spec.name.as_str()) {
                None => mismatch.missing.push(spec.clone()),
                Some(found) if *found != spec => mismatch.different.push((spec.clone(), (*found).clone())),
                Some(_) => {}
            }
        }
        mismatch.superfluous = self.specs().filter(|spec| !names.contains(spec.name.as_str())).cloned().collect();
        let same = mismatch.missing.is_empty() && mismatch.superfluous.is_empty() && mismatch.different.is_empty();
        if same { Ok(()) } else { Err(Box::new(mismatch)) }
    }

    /// Reads the tensors in the order of their data. For each, `into` gets a reader of exactly its bytes and takes all of
    /// them, or none to skip the tensor.
    ///
    /// # Errors
    /// An error of the file or of `into`, or bytes that were left.
    pub fn read(
        &mut self,
        mut into: impl FnMut(&TensorSpec, &mut dyn Read) -> io::Result<()>,
    ) -> Result<(), CheckpointError> {
        for (spec, position) in &self.tensors {
            let failed = |source| FileError {
                action: "read",
                path: PathBuf::from(format!("{} (tensor {})", self.path.display(), spec.name)),
                source,
            };
            let bytes = spec.bytes().unwrap_or(0) as u64;
            let here = self.file.stream_position().map_err(failed)?;
            self.file.seek_relative(*position as i64 - here as i64).map_err(failed)?;
            let mut reader = Read::take(&mut self.file, bytes);
            into(spec, &mut reader).map_err(failed)?;
            let left = reader.limit();
            if left > 0 && left < bytes {
                return Err(failed(io::Error::other(format!("{left} of {bytes} bytes were not taken"))).into());
            }
        }
        Ok(())
    }
}

/// The tensors of a file and those that were expected are not the same.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mismatch {
    /// The file.
    pub path: PathBuf,
    /// Expected and not in the file.
    pub missing: Vec<TensorSpec>,
    /// In the file and not expected.
    pub superfluous: Vec<TensorSpec>,
    /// Expected, and what the file has under the name.
    pub different: Vec<(TensorSpec, TensorSpec)>,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: the tensors are not those of the model", self.path.display())?;
        let mut list = |title: &str, lines: Vec<String>| {
            const SHOWN: usize = 20;
            if lines.is_empty() {
                return Ok(());
            }
            write!(f, "\n  {title} ({}):", lines.len())?;
            lines.iter().take(SHOWN).try_for_each(|line| write!(f, "\n    {line}"))?;
            if lines.len() > SHOWN { write!(f, "\n    and {} more", lines.len() - SHOWN) } else { Ok(()) }
        };
        list("missing in the file", self.missing.iter().map(TensorSpec::to_string).collect())?;
        list("not in the model", self.superfluous.iter().map(TensorSpec::to_string).collect())?;
        let different = self.different.iter().map(|(model, file)| {
            format!("{}: model {}{:?}, file {}{:?}", model.name, model.dtype, model.shape, file.dtype, file.shape)
        });
        list("different", different.collect())
    }
}

impl std::error::Error for Mismatch {}
