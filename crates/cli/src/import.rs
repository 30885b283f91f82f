//! `tenon import`: models of the ecosystem as model folders of Tenon.

use std::path::{Path, PathBuf};

use serde_json::Value as Json;
use tenon_data::load_tokenizer;
use tenon_nn::{
    Architecture, ArchitectureSource, HyperValue, Model, ModelError, export, further_keys, load_weights, open,
    open_foreign,
};

/// Files beside the weights that come along as they are: text, not models.
const COMPANIONS: [&str; 12] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
    "preprocessor_config.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "chat_template.jinja",
];
/// The largest of these files.
const MAX_COMPANION: u64 = 256 << 20;

/// What to import.
pub struct Source<'a> {
    /// A model folder of the ecosystem, or a file of weights.
    pub path: &'a Path,
    /// The architecture, where the folder does not say or another is wanted.
    pub architecture: Option<&'a str>,
    /// Hyperparameters as `key=value`.
    pub set: &'a [String],
}

/// A model that was imported.
pub struct Imported {
    /// The model.
    pub model: Model,
    /// Whether a tokenizer came along.
    pub tokenizer: bool,
}

/// Reads the model of `source` and writes it as the folder `out`, which is complete or absent.
///
/// # Errors
/// A source that is no model, that no architecture builds, or whose tensors are not those of the architecture; a folder
/// `out` that holds something else than a model.
pub fn import(source: &Source<'_>, out: &Path) -> Result<Imported, ModelError> {
    let set = source.set.iter().map(|text| assignment(text)).collect::<Result<Vec<_>, _>>()?;
    check_target(out)?;
    if !source.path.exists() {
        return Err(absent(source.path));
    }
    let folder = source.path.is_dir().then_some(source.path);
    let model = describe(source, folder, &set)?;
    let values = load_weights(source.path, &model)?;
    let extra = match folder {
        Some(folder) if folder.join("config.json").exists() => further_keys(folder, &model)?,
        _ => Vec::new(),
    };
    let extra: Vec<(&str, Json)> = extra.iter().map(|(key, value)| (key.as_str(), value.clone())).collect();

    let name = out.file_name().unwrap_or_default().to_string_lossy();
    let beside = out.with_file_name(format!(".{name}.part-{}", std::process::id()));
    let written = || -> Result<bool, ModelError> {
        export(&model, &values, &beside, &extra)?;
        let tokenizer = match folder {
            Some(folder) => companions(folder, &beside)?,
            None => false,
        };
        replace(&beside, out).map_err(|e| failed("cannot write", out, &e))?;
        Ok(tokenizer)
    };
    let result = written();
    if result.is_err() {
        // The error is what the user must see, not that of tidying up.
        let _ = std::fs::remove_dir_all(&beside);
    }
    result.map(|tokenizer| Imported { model, tokenizer })
}

fn failed(doing: &str, path: &Path, error: &std::io::Error) -> ModelError {
    ModelError::new(format!("{doing} {}: {error}", path.display()))
}

/// The model that the source describes.
fn describe(source: &Source<'_>, folder: Option<&Path>, set: &[(String, HyperValue)]) -> Result<Model, ModelError> {
    let architecture =
        source.architecture.map(|name| Architecture::load(&ArchitectureSource::parse(name))).transpose()?;
    match (folder, architecture) {
        (Some(folder), None) if folder.join("tenon.json").exists() => {
            let model = open(folder)?;
            if let Some((name, _)) = set.first() {
                let message = format!("{} is a model of Tenon's: `{name}` is settled", folder.display());
                return Err(ModelError::new(message).help("import it without --set"));
            }
            Ok(model)
        }
        // A folder may have no description of its own, as timm's checkpoints; then the architecture is all.
        (Some(folder), Some(architecture)) if !folder.join("config.json").exists() => architecture.build(set),
        (Some(folder), architecture) => open_foreign(folder, architecture, set),
        (None, Some(architecture)) => architecture.build(set),
        (None, None) => {
            let message = format!("{}: a file of weights does not say which model it is of", source.path.display());
            Err(ModelError::new(message).help("name the architecture or a preset, as in `--architecture gpt2`, or import the folder with its config.json"))
        }
    }
}

/// `key=value`, the value as JSON or else a string.
fn assignment(text: &str) -> Result<(String, HyperValue), ModelError> {
    let Some((key, value)) = text.split_once('=') else {
        return Err(ModelError::new(format!("--set {text}: no `=` in it")).help("write it as in `--set classes=10`"));
    };
    let json: Json = serde_json::from_str(value).unwrap_or_else(|_| match value {
        "True" => true.into(),
        "False" => false.into(),
        "None" => Json::Null,
        _ => value.into(),
    });
    let value = HyperValue::from_json(&json).ok_or_else(|| {
        ModelError::new(format!("--set {text}: neither a number, a truth value, a string nor a list"))
    })?;
    Ok((key.trim().to_string(), value))
}

/// What is said where the source is neither a folder nor a file.
fn absent(path: &Path) -> ModelError {
    ModelError::new(format!("{}: there is no such folder or file, and Tenon downloads nothing", path.display())).help(
        "put config.json, the weights (model.safetensors, its parts with model.safetensors.index.json, or \
         pytorch_model.bin) and the tokenizer's files into one folder, and import that folder",
    )
}

/// Refuses a target that holds something else than a model.
fn check_target(out: &Path) -> Result<(), ModelError> {
    if !out.exists() || out.join("tenon.json").exists() {
        return Ok(());
    }
    let mut entries = std::fs::read_dir(out).map_err(|e| failed("cannot write into", out, &e))?;
    match entries.next() {
        None => Ok(()),
        Some(_) => Err(ModelError::new(format!("{} exists and is no model of Tenon's", out.display()))
            .help("name a new folder with --out")),
    }
}

/// Puts the folder `new` in the place of `out`.
fn replace(new: &Path, out: &Path) -> std::io::Result<()> {
    if !out.exists() {
        return std::fs::rename(new, out);
    }
    let old: PathBuf = new.with_extension("old");
    std::fs::rename(out, &old)?;
    std::fs::rename(new, out)?;
    std::fs::remove_dir_all(old)
}

/// Copies what belongs to the model beside its weights; whether a tokenizer is among it.
fn companions(folder: &Path, out: &Path) -> Result<bool, ModelError> {
    for name in COMPANIONS {
        let (from, to) = (folder.join(name), out.join(name));
        if !from.is_file() {
            continue;
        }
        let size = std::fs::metadata(&from).map_err(|e| failed("cannot read", &from, &e))?.len();
        if size > MAX_COMPANION {
            return Err(ModelError::new(format!("{} has {size} bytes: too many", from.display())));
        }
        std::fs::copy(&from, &to).map_err(|e| failed("cannot copy", &from, &e))?;
    }
    let tokenizer = out.join("tokenizer.json");
    if !tokenizer.exists() {
        return Ok(false);
    }
    load_tokenizer(&tokenizer).map_err(|e| ModelError::new(e.to_string()))?;
    Ok(true)
}
