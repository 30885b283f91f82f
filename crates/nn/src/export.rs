//! Model folders: `model.safetensors`, `config.json` as the ecosystem reads it, `tenon.json` as Tenon does.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::View;
use serde_json::{Map, Value as Json, json};

use crate::architecture::{Architecture, ArchitectureSource, BUILT_IN};
use crate::error::ModelError;
use crate::hyper::HyperValue;
use crate::model::{Model, Parameter};
use crate::weights::{stored_shape, transpose};

/// The file that tells Tenon how to build the model again.
const TENON_FILE: &str = "tenon.json";
/// The largest JSON file that is read.
const MAX_JSON: u64 = 16 << 20;

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

    let table = &model.architecture.checkpoint;
    let tensors = variables.iter().zip(values).map(|(variable, value)| {
        let transposed = table.is_transposed(&variable.name) && variable.shape.len() == 2;
        let tensor = Stored { shape: stored_shape(variable, transposed), values: value.as_ref(), transposed };
        (format!("{}{}", table.prefix, variable.name), tensor)
    });
    // Readers in Python refuse files that do not say so.
    let info = HashMap::from([("format".to_string(), "pt".to_string())]);
    write_beside(&dir.join("model.safetensors"), |path| {
        safetensors::serialize_to_file(tensors, Some(info), path).map_err(|e| std::io::Error::other(e.to_string()))
    })?;

    let mut keys = config_keys(model);
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

/// Builds the model that a folder describes: one that Tenon wrote, or one of the ecosystem whose family Tenon knows.
/// Its weights are read with [`crate::load_safetensors`].
pub fn open(dir: &Path) -> Result<Model, ModelError> {
    let own = dir.join(TENON_FILE);
    if own.exists() {
        return open_own(dir, &own);
    }
    let path = dir.join("config.json");
    let config = read_json(&path)?;
    let kind = config.get("model_type").and_then(Json::as_str).ok_or_else(|| {
        ModelError::new(format!("{}: `model_type` is missing", path.display()))
    })?;
    let mut known = Vec::new();
    for (name, _) in BUILT_IN {
        let architecture = Architecture::load(&ArchitectureSource::Named(name.to_string()))?;
        match architecture.checkpoint.requires.get("model_type").and_then(Json::as_str) {
            Some(family) if family == kind => return from_config(architecture, &path, &config),
            Some(family) => known.push(family.to_string()),
            None => {}
        }
    }
    let message = format!("{}: no built-in architecture reads models of type `{kind}`", path.display());
    Err(ModelError::new(message).help(format!("known types: {}", known.join(", "))))
}

fn open_own(dir: &Path, path: &Path) -> Result<Model, ModelError> {
    let json = read_json(path)?;
    let damaged = |key: &str| ModelError::new(format!("{}: `{key}` is missing or damaged", path.display()));
    let name = json.get("architecture").and_then(Json::as_str).ok_or_else(|| damaged("architecture"))?;
    let source = match ArchitectureSource::parse(name) {
        ArchitectureSource::File(file) => {
            if file.file_name().is_none_or(|own| own != file.as_os_str()) {
                return Err(damaged("architecture").note(format!("{name:?} is not the name of a file beside it")));
            }
            ArchitectureSource::File(dir.join(file))
        }
        named => named,
    };
    let map = json.get("hyperparameters").and_then(Json::as_object).ok_or_else(|| damaged("hyperparameters"))?;
    let values = map.iter().map(|(key, value)| HyperValue::from_json(value).map(|v| (key.clone(), v)));
    let values = values.collect::<Option<Vec<_>>>().ok_or_else(|| damaged("hyperparameters"))?;
    // Every hyperparameter is written, so the preset only names the model.
    let mut model = Model::load(&source, &values)?;
    model.preset = json.get("preset").and_then(Json::as_str).map(str::to_string);
    Ok(model)
}

fn from_config(architecture: Architecture, path: &Path, config: &Map<String, Json>) -> Result<Model, ModelError> {
    let table = &architecture.checkpoint;
    for (key, required) in &table.requires {
        if let Some(found) = config.get(key)
            && !same(found, required)
        {
            let message = format!("{}: `{key}` is {found}, but {} has {required}", path.display(), architecture.name);
            return Err(ModelError::new(message).help("write an architecture of your own for this variant"));
        }
    }
    let mut values: Vec<(String, HyperValue, &str)> = Vec::new();
    for (key, name) in &table.config {
        let Some(value) = config.get(key) else { continue };
        let unfit = || ModelError::new(format!("{}: `{key}` is {value}, which cannot be `{name}`", path.display()));
        let value = HyperValue::from_json(value).ok_or_else(unfit)?;
        match values.iter().find(|(other, ..)| other == name) {
            Some((_, first, other)) if *first != value => {
                let message = format!("{}: `{key}` is {value} and `{other}` {first}", path.display());
                return Err(ModelError::new(message).note(format!("both are the hyperparameter `{name}`")));
            }
            _ => values.push((name.clone(), value, key)),
        }
    }
    let values: Vec<(String, HyperValue)> = values.into_iter().map(|(name, value, _)| (name, value)).collect();
    architecture.build(&values)
}

fn same(a: &Json, b: &Json) -> bool {
    a == b || a.as_f64().is_some_and(|a| Some(a) == b.as_f64())
}

/// What `config.json` says of the model.
fn config_keys(model: &Model) -> Map<String, Json> {
    let table = &model.architecture.checkpoint;
    let mut keys = table.requires.clone();
    keys.entry("model_type").or_insert_with(|| model.architecture.name.as_str().into());
    keys.extend(table.writes.clone());
    let own = |name: &str| model.hyperparameter(name).map(HyperValue::to_json);
    if table.config.is_empty() {
        keys.extend(model.hyperparameters.iter().map(|(name, value)| (name.clone(), value.to_json())));
    }
    keys.extend(table.config.iter().filter_map(|(key, name)| Some((key.clone(), own(name)?))));
    keys
}

fn read_json(path: &Path) -> Result<Map<String, Json>, ModelError> {
    let failed = |e: std::io::Error| ModelError::io("cannot read", path, &e);
    let size = std::fs::metadata(path).map_err(failed)?.len();
    if size > MAX_JSON {
        return Err(ModelError::new(format!("{} has {size} bytes: too many for a description", path.display())));
    }
    let text = std::fs::read(path).map_err(failed)?;
    match serde_json::from_slice(&text) {
        Ok(Json::Object(map)) => Ok(map),
        Ok(_) => Err(ModelError::new(format!("{}: not a JSON object", path.display()))),
        Err(error) => Err(ModelError::new(format!("{}: {error}", path.display()))),
    }
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

/// A variable in the layout of files.
struct Stored<'a> {
    shape: Vec<usize>,
    values: &'a [f32],
    transposed: bool,
}

impl View for Stored<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let bytes = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect();
        match self.shape[..] {
            [input, out] if self.transposed => bytes(&transpose(self.values, out, input)),
            _ => bytes(self.values),
        }
    }

    fn data_len(&self) -> usize {
        self.values.len() * size_of::<f32>()
    }
}
