//! Writing model folders: `model.safetensors`, `config.json` as the ecosystem reads it, `tenon.json` as Tenon does.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::View;
use serde_json::{Map, Value as Json, json};

use crate::checkpoint::Naming;
use crate::config::{TENON_FILE, config_keys};
use crate::error::ModelError;
use crate::model::{Model, Parameter};
use crate::weights::{stored_shape, transpose};

/// Writes `model` with these values of its variables (in the order of [`Model::variables`]) into the folder `dir`:
/// `model.safetensors` and `config.json` with the ecosystem's names, `tenon.json`, and the architecture if it is the
/// user's own. `config` adds keys to `config.json`, such as the tokenizer's special tokens. Files are complete or absent.
pub fn export<V: AsRef<[f32]>>(
    model: &Model,
    values: &[V],
    dir: &Path,
    config: &[(&str, Json)],
) -> Result<(), ModelError> {
    let variables: Vec<&Parameter> = model.variables().collect();
    for (variable, value) in variables.iter().zip(values) {
        if value.as_ref().len() != variable.elements() {
            let (found, name, shape) = (value.as_ref().len(), &variable.name, &variable.shape);
            return Err(ModelError::new(format!("export: {found} values for {name} {shape:?}")));
        }
    }
    if variables.len() != values.len() {
        return Err(ModelError::new(format!("export: {} values for {} tensors", values.len(), variables.len())));
    }
    std::fs::create_dir_all(dir).map_err(|e| ModelError::io("cannot create", dir, &e))?;

    let (table, naming) = (&model.architecture.checkpoint, Naming::of(model));
    let tensors = variables.iter().zip(values).flat_map(|(variable, value)| {
        let (names, shape) = naming.parts(&variable.name, &variable.shape);
        let transposed = table.is_transposed(&variable.name) && shape.len() == 2;
        let (shape, each) = (stored_shape(&shape, transposed), shape.iter().product::<usize>());
        let part = move |(i, name): (usize, String)| {
            let values = &value.as_ref()[i * each..(i + 1) * each];
            let counter = table.counter_of(&name).map(|name| (name, Stored::Counter));
            [(name, Stored::Floats { shape: shape.clone(), values, transposed })].into_iter().chain(counter)
        };
        names.into_iter().enumerate().flat_map(part)
    });
    // Readers in Python refuse files that do not say so.
    let info = HashMap::from([("format".to_string(), "pt".to_string())]);
    write_beside(&dir.join("model.safetensors"), |path| {
        safetensors::serialize_to_file(tensors, Some(info), path).map_err(|e| std::io::Error::other(e.to_string()))
    })?;

    let (mut keys, files) = config_keys(model);
    for (name, json) in files {
        let path = dir.join(name);
        let folder = path.parent().unwrap_or(dir);
        std::fs::create_dir_all(folder).map_err(|e| ModelError::io("cannot create", folder, &e))?;
        write_json(&path, &json)?;
    }
    keys.extend(config.iter().map(|(key, value)| (key.to_string(), value.clone())));
    write_json(&dir.join("config.json"), &Json::Object(keys))?;
    let architecture = match model.architecture.built_in {
        true => model.architecture.name.clone(),
        false => {
            let name = format!("{}.star", model.architecture.name.trim_end_matches(".star"));
            write_beside(&dir.join(&name), |path| std::fs::write(path, model.architecture.text.as_bytes()))?;
            name
        }
    };
    let hyperparameters: Map<String, Json> =
        model.hyperparameters.iter().map(|(name, value)| (name.clone(), value.to_json())).collect();
    let description = json!({
        "tenon": env!("CARGO_PKG_VERSION"),
        "architecture": architecture,
        "preset": model.preset,
        "hyperparameters": hyperparameters,
    });
    write_json(&dir.join(TENON_FILE), &description)
}

fn write_json(path: &Path, json: &Json) -> Result<(), ModelError> {
    let text = serde_json::to_string_pretty(json).expect("plain values print") + "\n";
    write_beside(path, |path| std::fs::write(path, &text))
}

/// Has `write` fill a file beside `path`, syncs it and renames it, so that `path` is complete or as it was.
fn write_beside(path: &Path, write: impl FnOnce(&Path) -> std::io::Result<()>) -> Result<(), ModelError> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".part");
    let beside = path.with_file_name(name);
    let finish = || {
        write(&beside)?;
        File::open(&beside)?.sync_all()?;
        std::fs::rename(&beside, path)?;
        File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    };
    finish().map_err(|error| {
        let mut failure = ModelError::io("cannot write", path, &error);
        if let Err(left) = std::fs::remove_file(&beside)
            && left.kind() != std::io::ErrorKind::NotFound
        {
            failure = failure.note(format!("{} is left behind: {left}", beside.display()));
        }
        failure
    })
}

/// What files hold.
enum Stored<'a> {
    /// A variable in the layout of files.
    Floats { shape: Vec<usize>, values: &'a [f32], transposed: bool },
    /// A whole number that is 0.
    Counter,
}

impl View for Stored<'_> {
    fn dtype(&self) -> Dtype {
        match self {
            Stored::Floats { .. } => Dtype::F32,
            Stored::Counter => Dtype::I64,
        }
    }

    fn shape(&self) -> &[usize] {
        match self {
            Stored::Floats { shape, .. } => shape,
            Stored::Counter => &[],
        }
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let bytes = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect();
        match self {
            Stored::Floats { shape, values, transposed } => match shape[..] {
                [input, out] if *transposed => bytes(&transpose(values, out, input)),
                _ => bytes(values),
            },
            Stored::Counter => Cow::Borrowed(&[0; size_of::<i64>()]),
        }
    }

    fn data_len(&self) -> usize {
        match self {
            Stored::Floats { values, .. } => size_of_val(*values),
            Stored::Counter => size_of::<i64>(),
        }
    }
}
