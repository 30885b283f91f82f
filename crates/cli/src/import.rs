//! `tenon import`: models of the ecosystem as model folders of Tenon.

use std::path::{Path, PathBuf};

use serde_json::Value as Json;
use tenon_data::{DataError, assemble_tokenizer, load_tokenizer, save_tokenizer};
use tenon_nn::{
    Architecture, ArchitectureSource, HyperValue, Model, ModelError, export, further_keys, initialise, load_body,
    load_weights, names_of, open, open_foreign,
};

use crate::hub::{fetch, is_name};

/// Files beside the weights that come along as they are.
pub(crate) const COMPANIONS: [&str; 13] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "generation_config.json",
    "preprocessor_config.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "chat_template.jinja",
];
/// The largest of these files.
const MAX_COMPANION: u64 = 256 << 20;

/// What to try where there is no model.
pub(crate) const BY_HAND: &str = "put config.json, the weights (model.safetensors, its parts with model.safetensors.index.json, \
    or pytorch_model.bin) and the tokenizer's files into one folder, and import that folder";
/// The seed of weights that start anew.
const SEED: u64 = 0;

/// What to import.
pub struct Source<'a> {
    /// A model folder of the ecosystem, a file of weights, or the name of a model of the hub.
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
    /// The weights of the head that the source does not have, or has in another shape: they start anew.
    pub fresh: Vec<String>,
}

/// Reads the model of `source` and writes it as the folder `out`, which is complete or absent. `tell` gets what is
/// downloaded: a file and its bytes.
///
/// # Errors
/// A source that is no model, that no architecture builds, or whose tensors are not those of the architecture; a folder
/// `out` that holds something else than a model.
pub fn import(source: &Source<'_>, out: &Path, tell: &mut dyn FnMut(&str, u64)) -> Result<Imported, ModelError> {
    let set = source.set.iter().map(|text| assignment(text)).collect::<Result<Vec<_>, _>>()?;
    check_target(out)?;
    let downloaded = match source.path.to_str().filter(|name| is_name(name)) {
        _ if source.path.exists() => None,
        Some(name) => Some(fetch(name, tell)?),
        None => {
            let message = format!("{}: there is no such folder or file", source.path.display());
            return Err(ModelError::new(message).help(BY_HAND));
        }
    };
    let source = &Source { path: downloaded.as_deref().unwrap_or(source.path), ..*source };
    let folder = source.path.is_dir().then_some(source.path);
    let model = describe(source, folder, &set)?;
    let (values, fresh) = weights(source.path, &model, !set.is_empty())?;
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
    result.map(|tokenizer| Imported { model, tokenizer, fresh })
}

/// The weights, and the names of those that start anew: of the head, where it `may` be another one than the source's.
fn weights(source: &Path, model: &Model, may: bool) -> Result<(Vec<Vec<f32>>, Vec<String>), ModelError> {
    if !may {
        return Ok((load_weights(source, model)?, Vec::new()));
    }
    let read = load_body(source, model)?;
    let absent = model.variables().zip(&read).filter(|(_, values)| values.is_none());
    let fresh = absent.map(|(variable, _)| variable.name.clone()).collect();
    let all =
        model.variables().zip(read).map(|(variable, values)| values.unwrap_or_else(|| initialise(variable, SEED)));
    Ok((all.collect(), fresh))
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
        (Some(folder), Some(architecture)) if !folder.join("config.json").exists() => {
            of_weights(source.path, &architecture, set)
        }
        (Some(folder), architecture) => open_foreign(folder, architecture, set),
        (None, Some(architecture)) => of_weights(source.path, &architecture, set),
        (None, None) => {
            let message = format!("{}: a file of weights does not say which model it is of", source.path.display());
            Err(ModelError::new(message).help("name the architecture or a preset, as in `--architecture gpt2`, or import the folder with its config.json"))
        }
    }
}

/// The model of a file of weights alone, whose tensors say which library wrote it.
fn of_weights(path: &Path, architecture: &Architecture, set: &[(String, HyperValue)]) -> Result<Model, ModelError> {
    let model = architecture.build(set)?;
    if set.iter().any(|(name, _)| name == "names") {
        return Ok(model);
    }
    match names_of(path, &model)? {
        Some(names) if model.hyperparameter("names") != Some(&names) => {
            architecture.build(&[set, &[("names".to_string(), names)]].concat())
        }
        _ => Ok(model),
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
    let tokenizer = folder.join("tokenizer.json");
    let wrong = |e: DataError| ModelError::new(e.to_string());
    if tokenizer.exists() {
        load_tokenizer(&tokenizer).map_err(wrong)?;
        return Ok(true);
    }
    let Some(assembled) = assemble_tokenizer(folder).map_err(wrong)? else { return Ok(false) };
    save_tokenizer(&assembled, &out.join("tokenizer.json")).map_err(wrong)?;
    Ok(true)
}
