//! How checkpoints of the ecosystem name and lay out a family's parameters: the `checkpoint` table of an architecture file.

use serde_json::{Map, Value as Json};
use starlark::values::Value;
use starlark::values::dict::DictRef;
use starlark::values::list::ListRef;
use starlark::values::tuple::TupleRef;

use crate::error::suggest;
use crate::hyper::HyperValue;

/// The `checkpoint` table of an architecture file. Patterns are names in which `*` stands for anything.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct CheckpointTable {
    /// What stands before all names in files; it may be absent when reading.
    pub prefix: String,
    /// The scope of the model without its head, with the dot: files of the model alone do not have it, and either form
    /// is read.
    pub base: String,
    /// Pieces of names in files, and what stands for them in the model.
    pub renamed: Vec<(String, String)>,
    /// Patterns of weights that files hold transposed, as GPT-2's `Conv1D` does.
    pub transposed: Vec<String>,
    /// Names that files may hold beside ours, and ours that they repeat.
    pub tied: Vec<(String, String)>,
    /// Patterns of what files may hold and no model needs.
    pub ignored: Vec<String>,
    /// Classes of models that the file builds; the first that fits is written.
    pub variants: Vec<Variant>,
    /// Keys of `config.json` and the hyperparameters that they set; dots lead into nested objects, and `len(key)`, which
    /// is only read, is the number of its entries. Several keys of one hyperparameter are spellings that must agree.
    pub config: Vec<(String, String)>,
    /// Keys of `config.json` that must have these values, or one of a list; the first is written.
    pub requires: Map<String, Json>,
    /// Further keys that are written.
    pub writes: Map<String, Json>,
}

/// A class of models.
#[derive(Clone, PartialEq, Debug)]
pub struct Variant {
    /// Its name in `architectures` of `config.json`, such as `BertForMaskedLM`.
    pub class: String,
    /// The `model_type`.
    pub model_type: String,
    /// The hyperparameters that make it.
    pub values: Vec<(String, HyperValue)>,
}

const KEYS: [&str; 10] =
    ["prefix", "base", "renamed", "transposed", "tied", "ignored", "variants", "config", "requires", "writes"];

impl CheckpointTable {
    /// The table that a Starlark dict means, or what is wrong with it.
    pub(crate) fn new(value: Value<'_>) -> Result<CheckpointTable, String> {
        let dict = DictRef::from_value(value).ok_or("`checkpoint` is a dict")?;
        let mut table = CheckpointTable::default();
        for (key, value) in dict.iter() {
            let key = key.unpack_str().ok_or("the keys of `checkpoint` are strings")?;
            let wrong = |takes: &str| format!("`checkpoint`: `{key}` is {takes}, not {}", value.to_repr());
            let json = || match value.to_json_value() {
                Ok(Json::Object(map)) => Ok(map),
                _ => Err(wrong("a dict of plain values")),
            };
            match key {
                "prefix" => table.prefix = value.unpack_str().ok_or_else(|| wrong("a string"))?.to_string(),
                "base" => table.base = value.unpack_str().ok_or_else(|| wrong("a string"))?.to_string(),
                "renamed" => table.renamed = pairs(value).ok_or_else(|| wrong("a dict from pieces to pieces"))?,
                "variants" => {
                    let form = "a dict from classes to pairs of a model type and a dict of hyperparameters";
                    table.variants = variants(value).ok_or_else(|| wrong(form))?;
                }
                "transposed" => table.transposed = strings(value).ok_or_else(|| wrong("a list of names"))?,
                "ignored" => table.ignored = strings(value).ok_or_else(|| wrong("a list of names"))?,
                "tied" => table.tied = pairs(value).ok_or_else(|| wrong("a dict from names to names"))?,
                "config" => table.config = pairs(value).ok_or_else(|| wrong("a dict from keys to hyperparameters"))?,
                "requires" => table.requires = json()?,
                "writes" => table.writes = json()?,
                _ => return Err(format!("`checkpoint` has no key `{key}`: {}", suggest(key, KEYS))),
            }
        }
        Ok(table)
    }

    /// Whether files hold the parameter transposed.
    pub fn is_transposed(&self, name: &str) -> bool {
        self.transposed.iter().any(|pattern| matches(pattern, name))
    }

    /// Whether files may hold this name though no model needs it.
    pub fn is_ignored(&self, name: &str) -> bool {
        self.ignored.iter().any(|pattern| matches(pattern, name))
    }

    /// What identifies a name of ours or of a file: neither prefix nor base, and our pieces.
    pub(crate) fn bare(&self, name: &str) -> String {
        let mut name = name.to_string();
        for (theirs, ours) in &self.renamed {
            name = name.replace(theirs, ours);
        }
        for before in [&self.prefix, &self.base] {
            name = name.strip_prefix(before.as_str()).map(str::to_string).unwrap_or(name);
        }
        name
    }
}

/// Whether a name is `pattern`, in which `*` stands for anything.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => name == pattern,
        Some((before, after)) => name
            .strip_prefix(before)
            .is_some_and(|rest| (0..=rest.len()).any(|at| rest.get(at..).is_some_and(|end| matches(after, end)))),
    }
}

fn strings(value: Value<'_>) -> Option<Vec<String>> {
    ListRef::from_value(value)?.iter().map(|item| item.unpack_str().map(str::to_string)).collect()
}

fn pairs(value: Value<'_>) -> Option<Vec<(String, String)>> {
    let dict = DictRef::from_value(value)?;
    dict.iter().map(|(k, v)| Some((k.unpack_str()?.to_string(), v.unpack_str()?.to_string()))).collect()
}

fn variants(value: Value<'_>) -> Option<Vec<Variant>> {
    let variant = |(class, value): (Value<'_>, Value<'_>)| {
        let [model_type, values] = TupleRef::from_value(value)?.content() else { return None };
        let (class, model_type) = (class.unpack_str()?.to_string(), model_type.unpack_str()?.to_string());
        Some(Variant { class, model_type, values: HyperValue::pairs(*values)? })
    };
    DictRef::from_value(value)?.iter().map(variant).collect()
}
