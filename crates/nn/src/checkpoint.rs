//! How checkpoints of the ecosystem name and lay out a family's parameters: the `checkpoint` table of an architecture file.

use serde_json::{Map, Value as Json};
use starlark::values::Value;
use starlark::values::dict::DictRef;
use starlark::values::list::ListRef;

use crate::error::suggest;

/// The `checkpoint` table of an architecture file. Patterns are names in which a leading `*` stands for anything.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct CheckpointTable {
    /// What stands before all names in files; it may be absent when reading.
    pub prefix: String,
    /// Patterns of weights that files hold transposed, as GPT-2's `Conv1D` does.
    pub transposed: Vec<String>,
    /// Names that files may hold beside ours, and ours that they repeat.
    pub tied: Vec<(String, String)>,
    /// Patterns of what files may hold and no model needs.
    pub ignored: Vec<String>,
    /// Keys of `config.json` and the hyperparameters that they set.
    pub config: Vec<(String, String)>,
    /// Keys of `config.json` that must have these values; the first is `model_type`.
    pub requires: Map<String, Json>,
    /// Further keys that are written.
    pub writes: Map<String, Json>,
}

const KEYS: [&str; 7] = ["prefix", "transposed", "tied", "ignored", "config", "requires", "writes"];

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
}

fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_prefix('*') {
        Some(end) => name.ends_with(end),
        None => name == pattern,
    }
}

fn strings(value: Value<'_>) -> Option<Vec<String>> {
    ListRef::from_value(value)?.iter().map(|item| item.unpack_str().map(str::to_string)).collect()
}

fn pairs(value: Value<'_>) -> Option<Vec<(String, String)>> {
    let dict = DictRef::from_value(value)?;
    dict.iter().map(|(k, v)| Some((k.unpack_str()?.to_string(), v.unpack_str()?.to_string()))).collect()
}
