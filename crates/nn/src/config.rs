//! What model folders say of their models: `config.json` as the ecosystem writes it, `tenon.json` as Tenon does.

use std::path::Path;

use serde_json::{Map, Value as Json, json};

use crate::architecture::{Architecture, ArchitectureSource, BUILT_IN, HyperValues};
use crate::checkpoint::Variant;
use crate::error::ModelError;
use crate::hyper::HyperValue;
use crate::model::Model;

/// The number of classes in a `config.json` of timm.
const TIMM_CLASSES: &str = "num_classes";
/// The file that tells Tenon how to build the model again.
pub(crate) const TENON_FILE: &str = "tenon.json";
/// The largest JSON file that is read.
const MAX_JSON: u64 = 16 << 20;
/// The class that stands for the modules of a sentence-transformers folder, and their part of `config.json` here.
const SENTENCE_CLASS: &str = "SentenceTransformer";
const SENTENCE_KEY: &str = "sentence_transformers";

/// Builds the model that a folder describes: one that Tenon wrote, or one of the ecosystem whose family Tenon knows.
/// Its weights are read with [`crate::load_weights`].
pub fn open(dir: &Path) -> Result<Model, ModelError> {
    let own = dir.join(TENON_FILE);
    if own.exists() { open_own(dir, &own) } else { open_foreign(dir, None, &[]) }
}

/// Builds the model that the `config.json` of a folder describes, of this architecture if one is given, with these
/// hyperparameters in place of the folder's.
///
/// # Errors
/// A family, class or variant that no architecture builds.
pub fn open_foreign(
    dir: &Path,
    architecture: Option<Architecture>,
    set: &[(String, HyperValue)],
) -> Result<Model, ModelError> {
    let path = dir.join("config.json");
    if !path.exists() {
        let message =
            format!("{}: there is no such file, which says what the weights beside it are of", path.display());
        return Err(
            ModelError::new(message).help("put it there, or name the architecture, as in `--architecture bert-base`")
        );
    }
    let mut config = read_json(&path)?;
    if let Some(modules) = sentence_modules(dir)? {
        config.insert("architectures".into(), vec![SENTENCE_CLASS].into());
        config.insert(SENTENCE_KEY.into(), modules.into());
    }
    let kind = config.get("model_type").and_then(Json::as_str);
    if let Some(architecture) = architecture {
        return from_config(&architecture, &path, &config, set);
    }
    if let (None, Some(name)) = (kind, config.get("architecture").and_then(Json::as_str)) {
        let values = of_timm(&path, &config)?;
        let named = Architecture::load(&ArchitectureSource::Named(name.to_string()));
        let architecture =
            named.map_err(|e| e.note(format!("{}: `architecture` names it, as timm's do", path.display())))?;
        return architecture.build(&[&values, set].concat());
    }
    let kind = kind.ok_or_else(|| {
        ModelError::new(format!("{}: `model_type` is missing", path.display()))
            .help("name the architecture, as in `--architecture bert`")
    })?;
    let mut known = Vec::new();
    for (name, _) in BUILT_IN {
        let architecture = Architecture::load(&ArchitectureSource::Named(name.to_string()))?;
        let types = model_types(&architecture);
        if types.iter().any(|family| family == kind) {
            return from_config(&architecture, &path, &config, set);
        }
        known.extend(types);
    }
    let message = format!("{}: no built-in architecture reads models of type `{kind}`", path.display());
    Err(ModelError::new(message).help(format!("known types: {}", known.join(", "))))
}

/// What a `config.json` of timm says beside the name of the model.
fn of_timm(path: &Path, config: &Map<String, Json>) -> Result<HyperValues, ModelError> {
    let none = Map::new();
    let arguments = config.get("model_args").and_then(Json::as_object).unwrap_or(&none);
    let mut values = HyperValues::new();
    for (key, value) in config.get_key_value(TIMM_CLASSES).into_iter().chain(arguments) {
        let each = |i: usize| if value.is_array() { value.get(i) } else { Some(value) };
        let named = match key.as_str() {
            TIMM_CLASSES => vec![("classes", Some(value))],
            "in_chans" => vec![("channels", Some(value))],
            "img_size" => vec![("height", each(0)), ("width", each(1))],
            _ => vec![],
        };
        let read = |(name, value): &(&str, Option<&Json>)| Some((name.to_string(), HyperValue::from_json((*value)?)?));
        match named.iter().map(read).collect::<Option<HyperValues>>() {
            Some(read) if !read.is_empty() => values.extend(read),
            _ => {
                let message = format!("{}: `{key}` is {value}, which is not read", path.display());
                return Err(ModelError::new(message).help("write an architecture of your own for this variant"));
            }
        }
    }
    Ok(values)
}

/// The model types that an architecture reads.
fn model_types(architecture: &Architecture) -> Vec<String> {
    let table = &architecture.checkpoint;
    let required = table.requires.get("model_type").and_then(Json::as_str).map(str::to_string);
    let mut types: Vec<String> = table.variants.iter().map(|v| v.model_type.clone()).chain(required).collect();
    types.dedup();
    types
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

fn from_config(
    architecture: &Architecture,
    path: &Path,
    config: &Map<String, Json>,
    set: &[(String, HyperValue)],
) -> Result<Model, ModelError> {
    let table = &architecture.checkpoint;
    for (key, required) in &table.requires {
        let found = at(config, key);
        let accepted = required.as_array().map_or(std::slice::from_ref(required), Vec::as_slice);
        if let Some(found) = found
            && !accepted.iter().any(|one| same(found, one))
        {
            let accepted: Vec<String> = accepted.iter().map(Json::to_string).collect();
            let takes = accepted.join(" or ");
            let message = format!("{}: `{key}` is {found}, but {} has {takes}", path.display(), architecture.name);
            return Err(ModelError::new(message).help("write an architecture of your own for this variant"));
        }
    }
    let mut values: HyperValues = table.assumes.clone();
    let mut read: Vec<(&str, HyperValue, &str)> = Vec::new();
    for (key, names) in &table.config {
        let counted = counted(key);
        let Some(found) = at(config, counted.unwrap_or(key)) else { continue };
        let unfit = || {
            let names = names.join("`, `");
            let error = ModelError::new(format!("{}: `{key}` is {found}, which cannot be `{names}`", path.display()));
            match table.meanings_of(key) {
                Some(known) => {
                    let known: Vec<&str> = known.iter().map(|(text, _)| text.as_str()).collect();
                    error.note(format!("it is one of {}", known.join(", ")))
                }
                None => error,
            }
        };
        let meant = |known: &[(String, HyperValue)]| {
            known.iter().find(|(text, _)| found.as_str() == Some(text)).map(|(_, value)| value.clone())
        };
        let value = match (found, counted) {
            (Json::Object(map), Some(_)) => HyperValue::Int(map.len() as i64),
            (plain, _) => match table.meanings_of(key) {
                Some(known) => meant(known).ok_or_else(unfit)?,
                None => HyperValue::from_json(plain).ok_or_else(unfit)?,
            },
        };
        let values = match (value, names.len()) {
            (HyperValue::List(each), 2..) if each.len() == names.len() => each,
            (HyperValue::List(_), 2..) => return Err(unfit()),
            (one, count) => vec![one; count],
        };
        for (name, value) in names.iter().zip(values) {
            match read.iter().find(|(other, ..)| other == name) {
                Some((_, first, other)) if *first != value => {
                    let message = format!("{}: `{key}` is {value} and `{other}` {first}", path.display());
                    return Err(ModelError::new(message).note(format!("both are the hyperparameter `{name}`")));
                }
                _ => read.push((name, value, key)),
            }
        }
    }
    // What the file says stands before what its class implies, and what was asked for before both.
    let variant = variant(architecture, path, config, set)?;
    let implied = variant.into_iter().flat_map(|variant| variant.assumes.iter().chain(&variant.values).cloned());
    let read = read.into_iter().map(|(name, value, _)| (name.to_string(), value));
    for (name, value) in implied.chain(read).chain(set.iter().cloned()) {
        values.retain(|(other, _)| *other != name);
        values.push((name, value));
    }
    architecture.build(&values).map_err(|error| error.note(format!("built as {} says", path.display())))
}

/// The class that `architectures` names; without that key, the first of the model type. None is needed where all that a
/// class decides is asked for.
fn variant<'a>(
    architecture: &'a Architecture,
    path: &Path,
    config: &Map<String, Json>,
    set: &[(String, HyperValue)],
) -> Result<Option<&'a Variant>, ModelError> {
    let variants = &architecture.checkpoint.variants;
    let class = config.get("architectures").and_then(|classes| classes.get(0)).and_then(Json::as_str);
    let of_type: Vec<&Variant> =
        variants.iter().filter(|v| config.get("model_type").is_none_or(|kind| *kind == v.model_type)).collect();
    let Some(class) = class else { return Ok(of_type.first().copied()) };
    if let Some(found) = of_type.iter().find(|v| v.class == class) {
        return Ok(Some(found));
    }
    let asked = |name: &str| set.iter().any(|(other, _)| other == name);
    if of_type.iter().all(|v| v.values.iter().all(|(name, _)| asked(name))) {
        return Ok(None);
    }
    let known: Vec<&str> = of_type.iter().map(|v| v.class.as_str()).collect();
    let message = format!("{}: {} builds no {class}", path.display(), architecture.name);
    let error = ModelError::new(message).note(format!("it builds {}", known.join(", ")));
    // Where there is one class, its values are no choice of a part.
    let choice = of_type.iter().flat_map(|v| &v.values).next().filter(|_| of_type.len() > 1);
    Err(match choice {
        Some((name, value)) => error.help(format!("for the part that it has, set the kind: `--set {name}={value}`")),
        None => error.help("write an architecture of your own for this class"),
    })
}

/// What sentence-transformers does after the model, if the folder says so.
fn sentence_modules(dir: &Path) -> Result<Option<Map<String, Json>>, ModelError> {
    let path = dir.join("modules.json");
    if !path.exists() {
        return Ok(None);
    }
    let damaged = || ModelError::new(format!("{}: not a list of modules", path.display()));
    let Json::Array(modules) = read_any(&path)? else { return Err(damaged()) };
    let named = |end: &str| {
        modules.iter().find(|m| m.get("type").and_then(Json::as_str).is_some_and(|t| t.rsplit('.').next() == Some(end)))
    };
    if let Some(other) = modules.iter().find(|m| {
        let kind = m.get("type").and_then(Json::as_str).and_then(|t| t.rsplit('.').next());
        !kind.is_some_and(|kind| ["Transformer", "Pooling", "Normalize"].contains(&kind))
    }) {
        let kind = other.get("type").cloned().unwrap_or_default();
        return Err(ModelError::new(format!("{}: a module of type {kind}", path.display()))
            .help("modules Transformer, Pooling and Normalize are read"));
    }
    let pooling = named("Pooling").ok_or_else(damaged)?;
    let folder = pooling.get("path").and_then(Json::as_str).ok_or_else(damaged)?;
    if folder.is_empty() || Path::new(folder).file_name().is_none_or(|name| name != folder) {
        return Err(damaged().note(format!("{folder:?} is not the name of a folder beside it")));
    }
    let settings = read_json(&dir.join(folder).join("config.json"))?;
    let modes = settings.iter().filter(|(_, on)| **on == Json::Bool(true));
    let modes = modes.filter_map(|(key, _)| key.strip_prefix("pooling_mode_")?.strip_suffix("_tokens"));
    let pooling = settings.get("pooling_mode").and_then(Json::as_str).map(str::to_string);
    let mut found = Map::new();
    found.insert("pooling".into(), pooling.unwrap_or_else(|| modes.collect::<Vec<_>>().join(", ")).into());
    found.insert("normalize".into(), named("Normalize").is_some().into());
    Ok(Some(found))
}

/// What the `config.json` of a folder says beside what the model follows from: tokens, names of classes and the like.
///
/// # Errors
/// The file cannot be read.
pub fn further_keys(dir: &Path, model: &Model) -> Result<Vec<(String, Json)>, ModelError> {
    let table = &model.architecture.checkpoint;
    let first = |path: &str| path.split('.').next().unwrap_or_default().to_string();
    let mut own: Vec<String> = table.config.iter().map(|(key, _)| first(key)).collect();
    own.extend(table.requires.keys().map(|key| first(key)));
    // Types and versions are those of the files that are written.
    let replaced =
        ["model_type", "architectures", "dtype", "torch_dtype", "transformers_version", "quantization_config"];
    let config = read_json(&dir.join("config.json"))?;
    // Names of classes say nothing of a head with another number of them.
    let classes = config.get("id2label").and_then(Json::as_object).map(|names| HyperValue::Int(names.len() as i64));
    let other_head = classes.is_some() && model.hyperparameter("classes") != classes.as_ref();
    let dropped = |key: &str| {
        own.iter().any(|own| own == key)
            || replaced.contains(&key)
            || other_head && ["id2label", "label2id"].contains(&key)
    };
    let kept = config.into_iter().filter(|(key, _)| !dropped(key));
    let counted = |(key, value): (String, Json)| match model.hyperparameter("classes") {
        Some(classes) if key == TIMM_CLASSES => (key, classes.to_json()),
        _ => (key, value),
    };
    Ok(kept.map(counted).collect())
}

/// The key of `len(key)`, whose entries are counted.
fn counted(key: &str) -> Option<&str> {
    key.strip_prefix("len(")?.strip_suffix(')')
}

/// The value at a path of keys.
fn at<'a>(config: &'a Map<String, Json>, path: &str) -> Option<&'a Json> {
    let mut keys = path.split('.');
    let first = config.get(keys.next()?)?;
    keys.try_fold(first, |value, key| value.get(key))
}

fn same(a: &Json, b: &Json) -> bool {
    a == b || a.as_f64().is_some_and(|a| Some(a) == b.as_f64())
}

/// What `config.json` says of the model, and further files.
pub(crate) fn config_keys(model: &Model) -> (Map<String, Json>, Vec<(&'static str, Json)>) {
    let table = &model.architecture.checkpoint;
    let mut keys = Map::new();
    let own = |name: &str| model.hyperparameter(name);
    // A key that is left out must not be one for which the class has another value.
    let left_out = |name: &String| {
        let mut keys = table.config.iter().filter(|(_, names)| names.contains(name));
        own(name) == Some(&HyperValue::None) && keys.any(|(key, _)| table.optional.contains(key))
    };
    let fits = |v: &&Variant| {
        let said = v.assumes.iter().all(|(name, _)| !left_out(name));
        said && v.values.iter().all(|(name, value)| own(name) == Some(value))
    };
    let variant = table.variants.iter().find(fits);
    // Where no class of transformers is the model, its keys would lead others to build one that is not.
    if table.config.is_empty() || variant.is_none() && !table.variants.is_empty() {
        keys.insert("model_type".into(), model.architecture.name.as_str().into());
        keys.extend(model.hyperparameters.iter().map(|(name, value)| (name.clone(), value.to_json())));
        return (keys, Vec::new());
    }
    if let Some(variant) = variant {
        // What follows the model has files of its own, so the model is the first of its type.
        let own = variant.class != SENTENCE_CLASS;
        let class =
            table.variants.iter().find(|v| if own { *v == variant } else { v.model_type == variant.model_type });
        keys.insert("architectures".into(), class.map(|v| v.class.as_str()).into_iter().collect());
        keys.insert("model_type".into(), variant.model_type.as_str().into());
    }
    for (key, required) in &table.requires {
        put(&mut keys, key, required.get(0).unwrap_or(required).clone());
    }
    keys.entry("model_type").or_insert_with(|| model.architecture.name.as_str().into());
    keys.extend(table.writes.clone());
    for (key, names) in table.config.iter().filter(|(key, _)| counted(key).is_none()) {
        let values: Vec<&HyperValue> = names.iter().filter_map(|name| own(name)).collect();
        let Some(first) = values.first() else { continue };
        let one = values.iter().all(|value| value == first);
        if !(one && **first == HyperValue::None && table.optional.contains(key)) {
            let text = table.meanings_of(key).and_then(|known| known.iter().find(|(_, value)| value == *first));
            let all = || values.iter().map(|value| value.to_json()).collect();
            let value = match text {
                Some((text, _)) => text.as_str().into(),
                None if one => first.to_json(),
                None => all(),
            };
            put(&mut keys, key, value);
        }
    }
    let sentence = keys.remove(SENTENCE_KEY);
    let files = match (variant, sentence) {
        (Some(variant), Some(settings)) if variant.class == SENTENCE_CLASS => sentence_files(&settings, &keys),
        _ => Vec::new(),
    };
    (keys, files)
}

/// The files in which sentence-transformers finds what follows the model: names and contents.
fn sentence_files(settings: &Json, config: &Map<String, Json>) -> Vec<(&'static str, Json)> {
    let module = |index: usize, path: &str, kind: &str| json!({"idx": index, "name": index.to_string(), "path": path, "type": format!("sentence_transformers.models.{kind}")});
    let mut modules = vec![module(0, "", "Transformer"), module(1, "1_Pooling", "Pooling")];
    if settings["normalize"] == true {
        modules.push(module(2, "2_Normalize", "Normalize"));
    }
    let pooling = json!({"word_embedding_dimension": config.get("hidden_size"), "pooling_mode_mean_tokens": true});
    vec![("modules.json", modules.into()), ("1_Pooling/config.json", pooling)]
}

/// Puts a value at a path of keys. Nothing is not written into nested objects, whose readers take keys for settings.
fn put(keys: &mut Map<String, Json>, path: &str, value: Json) {
    match path.split_once('.') {
        None => {
            keys.insert(path.to_string(), value);
        }
        Some(_) if value.is_null() => {}
        Some((first, rest)) => {
            let inner = keys.entry(first).or_insert_with(|| Map::new().into());
            if let Json::Object(inner) = inner {
                put(inner, rest, value);
            }
        }
    }
}

/// The JSON object in a file of the ecosystem.
pub(crate) fn read_json(path: &Path) -> Result<Map<String, Json>, ModelError> {
    match read_any(path)? {
        Json::Object(map) => Ok(map),
        _ => Err(ModelError::new(format!("{}: not a JSON object", path.display()))),
    }
}

fn read_any(path: &Path) -> Result<Json, ModelError> {
    let failed = |e: std::io::Error| ModelError::io("cannot read", path, &e);
    let size = std::fs::metadata(path).map_err(failed)?.len();
    if size > MAX_JSON {
        return Err(ModelError::new(format!("{} has {size} bytes: too many for a description", path.display())));
    }
    let text = std::fs::read(path).map_err(failed)?;
    serde_json::from_slice(&text).map_err(|error| ModelError::new(format!("{}: {error}", path.display())))
}
