//! PyTorch's archives of `torch.save`: zip files since version 1.6, several pickles and the raw storages before.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use safetensors::Dtype;
use zip::{CompressionMethod, ZipArchive};

use super::Place;
use super::pickle::{Node, Pickle, Tensor};
use crate::error::ModelError;

/// The longest description of an archive's tensors.
const MAX_PICKLE: u64 = 64 << 20;
/// What the first pickle of an old archive holds, little-endian.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
/// Keys under which training programs keep the weights among other things.
const WEIGHTS: [&str; 6] = ["state_dict", "model", "model_state_dict", "state_dict_ema", "model_ema", "module"];

/// Whether a file that begins so is one of PyTorch's. A safetensors file, which begins with the length of its header, may share
/// the first two bytes.
pub(super) fn is_archive(first: &[u8]) -> bool {
    first.starts_with(b"PK\x03\x04") || first.starts_with(&[0x80, 0x02, 0x8a, 0x0a])
}

/// Where each storage begins in the file, and its bytes.
type Storages = HashMap<String, (u64, u64)>;

/// The tensors of an archive.
pub(super) fn tensors(mut file: File, length: u64, path: &Path) -> Result<Vec<(String, Place)>, ModelError> {
    let mut first = [0; 2];
    let read = file.read_exact(&mut first).and_then(|()| file.rewind());
    read.map_err(|e| ModelError::io("cannot read the weights", path, &e))?;
    let (pickle, storages) = match &first {
        b"PK" => zipped(file, length),
        _ => legacy(file, length),
    }
    .map_err(|why| refused(path, &why))?;
    let mut tensors = Vec::new();
    for (name, tensor) in weights(&pickle).map_err(|why| refused(path, &why))? {
        let place = place(tensor, &storages, path).map_err(|why| refused(path, &format!("{name}: {why}")))?;
        tensors.push((name.to_string(), place));
    }
    Ok(tensors)
}

fn refused(path: &Path, why: &str) -> ModelError {
    ModelError::new(format!("{}: no PyTorch archive of tensors: {why}", path.display()))
        .help("save the weights alone, as in torch.save(model.state_dict(), path), or as safetensors")
}

/// The dict of weights of a checkpoint: it, or what it has under a usual key.
fn weights(pickle: &Pickle) -> Result<Vec<(&str, &Tensor)>, String> {
    let tensors = |node| -> Vec<(&str, &Tensor)> {
        pickle
            .entries(node)
            .filter_map(|(name, node)| if let Node::Tensor(t) = node { Some((name, t)) } else { None })
            .collect()
    };
    let inner = |key: &str| pickle.entries(pickle.root()).find(|(name, _)| *name == key).map(|(_, node)| tensors(node));
    let candidates = std::iter::once(tensors(pickle.root())).chain(WEIGHTS.iter().filter_map(|key| inner(key)));
    candidates.into_iter().find(|found| !found.is_empty()).ok_or_else(|| {
        let keys: Vec<&str> = pickle.entries(pickle.root()).map(|(name, _)| name).take(12).collect();
        match keys.is_empty() {
            true => "it holds no dict of tensors".to_string(),
            false => format!("none of its entries is a dict of tensors: {}", keys.join(", ")),
        }
    })
}

/// The description and the storages of a zip archive.
fn zipped(file: File, length: u64) -> Result<(Pickle, Storages), String> {
    let damaged = |e: zip::result::ZipError| format!("a damaged zip file: {e}");
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(damaged)?;
    let mut storages = Storages::new();
    let mut description = None;
    for index in 0..archive.len() {
        let entry = archive.by_index_raw(index).map_err(damaged)?;
        let name = entry.name().to_string();
        let (Some(start), size) = (entry.data_start(), entry.size()) else {
            return Err(format!("{name} lies nowhere"));
        };
        // torch.save stores its entries as they are.
        if entry.compression() != CompressionMethod::Stored || start.checked_add(size).is_none_or(|end| end > length) {
            return Err(format!("{name} is compressed or cut off"));
        }
        let (_, inside) = name.split_once('/').unwrap_or(("", &name));
        match inside.strip_prefix("data/") {
            Some(key) => drop(storages.insert(key.to_string(), (start, size))),
            None if inside == "data.pkl" => description = Some((start, size)),
            None if inside == "byteorder" && size != 6 => return Err("its numbers are not little-endian".into()),
            None => {}
        }
    }
    let (start, size) = description.ok_or("it has no data.pkl")?;
    let mut reader = archive.into_inner();
    let bytes = read(&mut reader, start, size)?;
    Ok((Pickle::read(&bytes)?, storages))
}

fn read(file: &mut (impl Read + Seek), start: u64, size: u64) -> Result<Vec<u8>, String> {
    if size > MAX_PICKLE {
        return Err(format!("the description of its tensors has {size} bytes"));
    }
    let mut bytes = vec![0; size as usize];
    let read = file.seek(SeekFrom::Start(start)).and_then(|_| file.read_exact(&mut bytes));
    read.map_err(|e| e.to_string())?;
    Ok(bytes)
}

/// The description and the storages of an archive before version 1.6: pickles of a magic number, a version, facts of the
/// machine, the object and the storages' names; then for each storage its number of elements and their bytes.
fn legacy(mut file: File, length: u64) -> Result<(Pickle, Storages), String> {
    let bytes = read(&mut file, 0, length.min(MAX_PICKLE))?;
    let mut at = 0;
    let mut next = || -> Result<Pickle, String> {
        let pickle = Pickle::read(&bytes[at..])?;
        at += pickle.length;
        Ok(pickle)
    };
    if !matches!(next()?.root(), Node::Long(digits) if *digits == MAGIC) {
        return Err("its first pickle is not PyTorch's mark".into());
    }
    let (_version, _machine, object, names) = (next()?, next()?, next()?, next()?);
    let sizes: HashMap<&str, u64> = object.storages().map(|s| (s.key.as_str(), bytes_of(s.dtype))).collect();
    let Node::Sequence(names_in_order) = names.root() else { return Err("the storages have no names".into()) };
    let mut storages = Storages::new();
    let mut at = at as u64;
    for id in names_in_order {
        let Node::Text(key) = names.get(*id) else { return Err("the name of a storage is no string".into()) };
        let count = read(&mut file, at, 8)?.try_into().map(u64::from_le_bytes).expect("eight bytes");
        let size = sizes.get(key.as_str()).ok_or_else(|| format!("no tensor says the type of storage {key}"))?;
        let bytes = count.checked_mul(*size).filter(|bytes| *bytes <= length - at - 8);
        let bytes = bytes.ok_or_else(|| format!("storage {key} of {count} elements is cut off"))?;
        storages.insert(key.clone(), (at + 8, bytes));
        at += 8 + bytes;
    }
    Ok((object, storages))
}

/// Where a tensor lies, after all its numbers were checked against its storage.
fn place(tensor: &Tensor, storages: &Storages, path: &Path) -> Result<Place, String> {
    let Tensor { storage, offset, shape, strides } = tensor;
    let (start, bytes) = *storages.get(&storage.key).ok_or_else(|| format!("storage {} is missing", storage.key))?;
    let size = bytes_of(storage.dtype);
    let held = (bytes / size).min(storage.elements as u64);
    let outside = || format!("{shape:?} with strides {strides:?} does not lie in its storage of {held} elements");
    if shape.len() != strides.len() {
        return Err(outside());
    }
    let count = shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d as u64)).ok_or_else(outside)?;
    let steps = shape.iter().zip(strides).map(|(n, stride)| (n.saturating_sub(1) as u64).checked_mul(*stride as u64));
    let last = steps.into_iter().try_fold(0u64, |sum, step| sum.checked_add(step?)).ok_or_else(outside)?;
    let first = (storage.offset as u64).checked_add(*offset as u64).ok_or_else(outside)?;
    let inside = first.checked_add(last).is_some_and(|last| last < held);
    // More elements than the storage has would be one element many times.
    if count > held || (count > 0 && !inside) {
        return Err(outside());
    }
    let mut expected = 1;
    let row_major = shape.iter().zip(strides).rev().all(|(n, stride)| {
        let fits = *n == 1 || *stride == expected;
        expected *= n.max(&1);
        fits
    });
    Ok(Place {
        file: path.to_path_buf(),
        dtype: storage.dtype,
        shape: shape.clone(),
        start: if count > 0 { start + first * size } else { start },
        strides: (!row_major).then(|| strides.clone()),
    })
}

fn bytes_of(dtype: Dtype) -> u64 {
    dtype.bitsize() as u64 / 8
}
