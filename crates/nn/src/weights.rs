//! Reading the weights of a model, in the ecosystem's names and layouts.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use safetensors::Dtype;

use crate::error::ModelError;
use crate::forward::Values;
use crate::model::{Model, Parameter};
use crate::stored::{Checkpoint, Place};

/// How many names of one kind a message lists.
const LISTED: usize = 12;

/// The values of all parameters and states, in the order of [`Model::variables`], from a file of safetensors or of
/// `torch.save`, or from a folder with such files. Other float types are converted to `f32`.
///
/// # Errors
/// Every tensor that is missing, superfluous or of another shape is listed.
pub fn load_weights(path: &Path, model: &Model) -> Result<Vec<Vec<f32>>, ModelError> {
    let checkpoint = Checkpoint::open(path)?;
    let table = &model.architecture.checkpoint;
    let prefixed = checkpoint.tensors.keys().any(|name| !table.prefix.is_empty() && name.starts_with(&table.prefix));
    let parts = |variable: &Parameter| table.parts(&variable.name, &variable.shape);
    let wanted: HashSet<String> = model.variables().flat_map(|v| parts(v).0).map(|name| table.bare(&name)).collect();
    let mut places: HashMap<String, (&str, &Place)> = HashMap::new();
    let mut superfluous = Vec::new();
    for (name, place) in &checkpoint.tensors {
        let surplus = || format!("superfluous: {name} {:?}", place.shape);
        let bare = table.bare(name);
        if let Some((other, _)) = places.get(&bare) {
            superfluous.push(format!("{}, beside {other}", surplus()));
        } else if wanted.contains(&bare) {
            places.insert(bare, (name, place));
        } else if !(table.is_ignored(name) || table.is_ignored(&bare) || is_tied(model, &bare)) {
            superfluous.push(surplus());
        }
    }
    let (mut missing, mut mismatched) = (Vec::new(), Vec::new());
    let mut found = Vec::new();
    for variable in model.variables() {
        let (names, shape) = parts(variable);
        let transposed = table.is_transposed(&variable.name);
        let expected = stored_shape(&shape, transposed);
        let mut own = Vec::new();
        for part in names {
            match places.get(&table.bare(&part)) {
                None => {
                    let prefix = if prefixed { &table.prefix } else { "" };
                    missing.push(format!("missing: {prefix}{part} {shape:?}, declared at {}", variable.site));
                }
                Some((name, place)) if place.shape != expected => {
                    let found = &place.shape;
                    mismatched.push(format!("shape: {name} is {found:?} in the file, {expected:?} in the model"));
                }
                Some((name, place)) if !is_float(place.dtype) => {
                    mismatched.push(format!("type: {name} is {:?} in the file, f32 in the model", place.dtype));
                }
                Some((name, place)) => own.push((*name, *place)),
            }
        }
        found.push((own, shape, transposed));
    }
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
        .map(|(parts, shape, transposed)| {
            let part = |(name, place): &(&str, &Place)| {
                let values = floats(name, place)?;
                Ok(if *transposed && shape.len() == 2 { transpose(&values, shape[1], shape[0]) } else { values })
            };
            match &parts[..] {
                [only] => part(only),
                several => Ok(several.iter().map(part).collect::<Result<Vec<_>, ModelError>>()?.concat()),
            }
        })
        .collect::<Result<Vec<_>, ModelError>>()?;
    check_tied(&checkpoint, model, &values)?;
    Ok(values)
}

/// Whether the model ties a tensor of this bare name to another, which files may repeat.
fn is_tied(model: &Model, bare: &str) -> bool {
    let table = &model.architecture.checkpoint;
    table.tied.iter().any(|(tied, _)| table.bare(tied) == bare)
}

/// Files may repeat a tied tensor, but not with other values.
fn check_tied(checkpoint: &Checkpoint, model: &Model, values: &[Vec<f32>]) -> Result<(), ModelError> {
    let table = &model.architecture.checkpoint;
    let own = |name: &str| model.variables().position(|v| table.bare(&v.name) == table.bare(name));
    for (tied, to) in &table.tied {
        let stored = checkpoint.tensors.iter().find(|(name, _)| table.bare(name) == table.bare(tied));
        // A model may have a tensor of its own where others of its family tie one.
        if let (Some((name, place)), Some(index), None) = (stored, own(to), own(tied))
            && (!is_float(place.dtype) || floats(name, place)? != values[index])
        {
            let message = format!("{}: {name} is not equal to {to}, to which the model ties it", place.file.display());
            return Err(
                ModelError::new(message).help("this checkpoint needs an architecture with an output head of its own")
            );
        }
    }
    Ok(())
}

fn floats(name: &str, place: &Place) -> Result<Vec<f32>, ModelError> {
    match place.read(name)? {
        Values::Float(values) => Ok(values),
        Values::Int(_) => unreachable!("only floats are weights"),
    }
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

/// The shape in files of what has this shape in the model.
pub(crate) fn stored_shape(shape: &[usize], transposed: bool) -> Vec<usize> {
    match *shape {
        [out, input] if transposed => vec![input, out],
        _ => shape.to_vec(),
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
