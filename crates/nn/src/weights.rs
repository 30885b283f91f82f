//! Reading the weights of a model, in the ecosystem's names and layouts.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use safetensors::Dtype;

use crate::checkpoint::{NAMES, Naming};
use crate::error::ModelError;
use crate::forward::Values;
use crate::hyper::HyperValue;
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
    let all = read(path, model, false)?;
    Ok(all.into_iter().map(|values| values.expect("nothing is left out unless allowed")).collect())
}

/// As [`load_weights`], but tensors of the model's head, as its architecture names it, may be missing or of another shape:
/// these are `None`.
///
/// # Errors
/// As [`load_weights`], for all other tensors.
pub fn load_body(path: &Path, model: &Model) -> Result<Vec<Option<Vec<f32>>>, ModelError> {
    read(path, model, true)
}

/// Which library's names, of those that the model's architecture knows, the tensors of a file or a folder have: the value of the
/// hyperparameter `names` with which most of the model's tensors are there.
///
/// # Errors
/// A file that cannot be read.
pub fn names_of(path: &Path, model: &Model) -> Result<Option<HyperValue>, ModelError> {
    let table = &model.architecture.checkpoint;
    let Some(own) = model.architecture.hyperparameters.iter().find(|h| h.name == NAMES) else { return Ok(None) };
    let checkpoint = Checkpoint::open(path)?;
    let there = |naming: &Naming<'_>| {
        let found: HashSet<String> = checkpoint.tensors.keys().map(|name| naming.bare(name)).collect();
        let wanted = model.variables().flat_map(|v| naming.parts(&v.name, &v.shape).0);
        wanted.filter(|name| found.contains(&naming.bare(name))).count()
    };
    let mut best = (there(&Naming::of(model)), model.hyperparameter(NAMES).cloned());
    let libraries = table.names.iter().map(|names| (Some(names), HyperValue::from(&*names.library)));
    for (library, value) in std::iter::once((None, own.default.clone())).chain(libraries) {
        let count = there(&Naming::by(model, library));
        if count > best.0 {
            best = (count, Some(value));
        }
    }
    Ok(best.1)
}

fn read(path: &Path, model: &Model, new_head: bool) -> Result<Vec<Option<Vec<f32>>>, ModelError> {
    let checkpoint = Checkpoint::open(path)?;
    let (table, naming) = (&model.architecture.checkpoint, Naming::of(model));
    let prefixed = checkpoint.tensors.keys().any(|name| !table.prefix.is_empty() && name.starts_with(&table.prefix));
    let parts = |variable: &Parameter| naming.parts(&variable.name, &variable.shape);
    let wanted: HashSet<String> = model.variables().flat_map(|v| parts(v).0).map(|name| naming.bare(&name)).collect();
    let mut places: HashMap<String, (&str, &Place)> = HashMap::new();
    let mut superfluous = Vec::new();
    for (name, place) in &checkpoint.tensors {
        let surplus = || format!("superfluous: {name} {:?}", place.shape);
        let bare = naming.bare(name);
        if let Some((other, _)) = places.get(&bare) {
            superfluous.push(format!("{}, beside {other}", surplus()));
        } else if wanted.contains(&bare) {
            places.insert(bare, (name, place));
        } else if !(table.is_ignored(name) || table.is_ignored(&bare) || is_tied(model, &naming, &bare)) {
            superfluous.push(surplus());
        }
    }
    let (mut missing, mut mismatched, mut headless) = (Vec::new(), Vec::new(), true);
    let mut found = Vec::new();
    for variable in model.variables() {
        let (names, shape) = parts(variable);
        let transposed = table.is_transposed(&variable.name);
        let expected = stored_shape(&shape, transposed);
        let may_differ = new_head && table.is_head(&variable.name);
        let fits = |part: &String| places.get(&naming.bare(part)).is_some_and(|(_, place)| place.shape == expected);
        if may_differ && !names.iter().all(fits) {
            found.push(None);
            continue;
        }
        let mut own = Vec::new();
        for part in names {
            match places.get(&naming.bare(&part)) {
                None => {
                    let part = if prefixed { &part } else { part.strip_prefix(&table.prefix).unwrap_or(&part) };
                    headless &= table.is_head(&variable.name);
                    missing.push(format!("missing: {part} {shape:?}, declared at {}", variable.site));
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
        found.push(Some((own, shape, transposed)));
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
        let only_head = headless && mismatched.is_empty() && superfluous.is_empty();
        error.notes = [missing, mismatched, superfluous].into_iter().flat_map(shorten).collect();
        let advice = checkpoint.tensors.keys().find_map(|name| table.advice_on(name));
        return Err(error.help(match only_head {
            _ if advice.is_some() => advice.unwrap_or_default(),
            true => "the file has no head: one starts anew where a hyperparameter is set, such as `--set classes=2`; `--set head=none` builds none",
            false => "check the architecture and its hyperparameters against the checkpoint's config.json",
        }));
    }
    let values = found
        .iter()
        .map(|found| {
            let Some((parts, shape, transposed)) = found else { return Ok(None) };
            let part = |(name, place): &(&str, &Place)| {
                let values = floats(name, place)?;
                Ok(if *transposed && shape.len() == 2 { transpose(&values, shape[1], shape[0]) } else { values })
            };
            match &parts[..] {
                [only] => part(only).map(Some),
                several => {
                    let all = several.iter().map(part).collect::<Result<Vec<_>, ModelError>>()?;
                    Ok(Some(all.concat()))
                }
            }
        })
        .collect::<Result<Vec<_>, ModelError>>()?;
    check_tied(&checkpoint, model, &naming, &values)?;
    Ok(values)
}

/// Whether the model ties a tensor of this bare name to another, which files may repeat.
fn is_tied(model: &Model, naming: &Naming<'_>, bare: &str) -> bool {
    let tied = &model.architecture.checkpoint.tied;
    tied.iter().any(|(tied, _)| naming.theirs(tied).iter().any(|name| naming.bare(name) == bare))
}

/// Files may repeat a tied tensor, but not with other values.
fn check_tied(
    checkpoint: &Checkpoint,
    model: &Model,
    naming: &Naming<'_>,
    values: &[Option<Vec<f32>>],
) -> Result<(), ModelError> {
    let bare = |name: &str| naming.theirs(name).first().map(|name| naming.bare(name));
    let own = |name: &str| model.variables().position(|v| bare(&v.name) == bare(name));
    for (tied, to) in &model.architecture.checkpoint.tied {
        let stored = checkpoint.tensors.iter().find(|(name, _)| Some(naming.bare(name)) == bare(tied));
        // A model may have a tensor of its own where others of its family tie one.
        if let (Some((name, place)), Some(index), None) = (stored, own(to), own(tied))
            && let Some(values) = &values[index]
            && (!is_float(place.dtype) || floats(name, place)? != *values)
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
