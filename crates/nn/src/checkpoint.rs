//! How checkpoints of the ecosystem name and lay out a family's parameters: the `checkpoint` table of an architecture file.

use serde_json::{Map, Value as Json};
use starlark::values::Value;
use starlark::values::dict::DictRef;
use starlark::values::list::ListRef;
use starlark::values::tuple::TupleRef;

use crate::architecture::HyperValues;
use crate::error::suggest;
use crate::hyper::HyperValue;
use crate::model::Model;

/// The `checkpoint` table of an architecture file. Patterns are names in which `*` stands for anything.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct CheckpointTable {
    /// What stands before all names in files but the head's; it may be absent when reading.
    pub prefix: String,
    /// The scope of the model without its head, with the dot: files of the model alone do not have it, and either form
    /// is read.
    pub base: String,
    /// Pieces of names in files, and what stands for them in the model.
    pub renamed: Vec<(String, String)>,
    /// Names that files of other libraries give the tensors. The hyperparameter `names` chooses one of them; its default
    /// stands for our own.
    pub names: Vec<Names>,
    /// Patterns of the model's head, which may start anew where a checkpoint is of another task.
    pub head: Vec<String>,
    /// The scope after which files number the matrices of experts that the model holds in one parameter, with the dot.
    pub stacked: Option<String>,
    /// Patterns of weights that files hold transposed, as GPT-2's `Conv1D` does.
    pub transposed: Vec<String>,
    /// Names that files may hold beside ours, and ours that they repeat.
    pub tied: Vec<(String, String)>,
    /// Patterns of what files may hold and no model needs.
    pub ignored: Vec<String>,
    /// Patterns of tensors that only files of a form that is not read have, and what to do with such a file.
    pub unread: Vec<(String, String)>,
    /// Patterns of tensors in files, and the name of a whole number beside each that a library counts and no model needs: it is
    /// written as 0.
    pub counters: Vec<(String, String)>,
    /// Classes of models that the file builds; the first that fits is written.
    pub variants: Vec<Variant>,
    /// Keys of `config.json` and the hyperparameters that they set; dots lead into nested objects, and `len(key)`, which
    /// is only read, is the number of its entries. Several keys of one hyperparameter are spellings that must agree. A key
    /// of several hyperparameters is one value for all, or a list with one for each.
    pub config: Vec<(String, Vec<String>)>,
    /// What values of keys of `config` are as hyperparameters, where they are not the same.
    pub meanings: Vec<(String, HyperValues)>,
    /// Hyperparameters where neither `config.json` nor its class says them, if they are others than elsewhere.
    pub assumes: Vec<(String, HyperValue)>,
    /// Those of the keys of `config` that are not written where they are nothing; others are written as null.
    pub optional: Vec<String>,
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
    pub values: HyperValues,
    /// Hyperparameters where its `config.json` does not say them, if they are others than elsewhere. A model in which one of
    /// them is nothing is not of this class: it could not be written.
    pub assumes: HyperValues,
}

/// The names that a library's files give the tensors.
#[derive(Clone, PartialEq, Debug)]
pub struct Names {
    /// What `names` is where a file has them, such as `torchvision`.
    pub library: String,
    /// What stands in place of `base`; or, in a family without one, before all names but the head's if there is a head.
    pub base: String,
    /// Patterns of our names without `base`, and of theirs: each `*` of theirs is what that of ours stands for. Several of
    /// theirs are rows of one of ours, one after the other. The first that fits counts.
    pub patterns: Vec<(String, Vec<String>)>,
}

/// The hyperparameter that chooses among [`CheckpointTable::names`].
pub(crate) const NAMES: &str = "names";

const KEYS: [&str; 18] = [
    "prefix",
    "base",
    "names",
    "head",
    "renamed",
    "stacked",
    "transposed",
    "tied",
    "ignored",
    "unread",
    "counters",
    "variants",
    "config",
    "meanings",
    "assumes",
    "optional",
    "requires",
    "writes",
];

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
                "stacked" => table.stacked = Some(value.unpack_str().ok_or_else(|| wrong("a string"))?.to_string()),
                "renamed" => table.renamed = pairs(value).ok_or_else(|| wrong("a dict from pieces to pieces"))?,
                "names" => {
                    let form = "a dict from libraries to pairs of a scope and a dict from patterns to patterns";
                    table.names = libraries(value).ok_or_else(|| wrong(form))?;
                }
                "head" => table.head = strings(value).ok_or_else(|| wrong("a list of names"))?,
                "variants" => {
                    let form = "a dict from classes to a model type, a dict of hyperparameters, and maybe one of what is assumed";
                    table.variants = variants(value).ok_or_else(|| wrong(form))?;
                }
                "transposed" => table.transposed = strings(value).ok_or_else(|| wrong("a list of names"))?,
                "ignored" => table.ignored = strings(value).ok_or_else(|| wrong("a list of names"))?,
                "tied" => table.tied = pairs(value).ok_or_else(|| wrong("a dict from names to names"))?,
                "counters" => table.counters = pairs(value).ok_or_else(|| wrong("a dict from patterns to patterns"))?,
                "unread" => table.unread = pairs(value).ok_or_else(|| wrong("a dict from patterns to advice"))?,
                "optional" => table.optional = strings(value).ok_or_else(|| wrong("a list of keys"))?,
                "config" => table.config = lists(value).ok_or_else(|| wrong("a dict from keys to hyperparameters"))?,
                "meanings" => {
                    let form = "a dict from keys of `config` to dicts from texts to hyperparameters";
                    table.meanings = meanings(value).ok_or_else(|| wrong(form))?;
                }
                "assumes" => {
                    table.assumes = HyperValue::pairs(value).ok_or_else(|| wrong("a dict of hyperparameters"))?;
                }
                "requires" => table.requires = json()?,
                "writes" => table.writes = json()?,
                _ => return Err(format!("`checkpoint` has no key `{key}`: {}", suggest(key, KEYS))),
            }
        }
        Ok(table)
    }

    /// The values that a key of `config` may have, and what they mean; none where values mean themselves.
    pub fn meanings_of(&self, key: &str) -> Option<&[(String, HyperValue)]> {
        self.meanings.iter().find(|(own, _)| own == key).map(|(_, meanings)| meanings.as_slice())
    }

    /// The counter beside the tensor of this name in files.
    pub fn counter_of(&self, name: &str) -> Option<String> {
        self.counters.iter().find_map(|(tensor, counter)| Some(filled(counter, &captures(tensor, name)?)))
    }

    /// Whether files hold the parameter transposed.
    pub fn is_transposed(&self, name: &str) -> bool {
        self.transposed.iter().any(|pattern| matches(pattern, name))
    }

    /// Whether files may hold this name though no model needs it.
    pub fn is_ignored(&self, name: &str) -> bool {
        self.ignored.iter().any(|pattern| matches(pattern, name))
    }

    /// What to do with a file that has a tensor of this name, if its form is not read.
    pub fn advice_on(&self, name: &str) -> Option<&str> {
        self.unread.iter().find(|(pattern, _)| matches(pattern, name)).map(|(_, advice)| advice.as_str())
    }

    /// Whether the parameter belongs to the head.
    pub fn is_head(&self, name: &str) -> bool {
        self.head.iter().any(|pattern| matches(pattern, name))
    }
}

/// How files name the tensors of a model.
pub(crate) struct Naming<'a> {
    table: &'a CheckpointTable,
    library: Option<&'a Names>,
    /// Whether the library's base stands before what is not the head.
    scoped: bool,
}

impl<'a> Naming<'a> {
    /// The names that the model's hyperparameter chooses.
    pub fn of(model: &'a Model) -> Naming<'a> {
        let chosen = model.hyperparameter(NAMES);
        let names = &model.architecture.checkpoint.names;
        Naming::by(model, names.iter().find(|names| chosen == Some(&HyperValue::Text(names.library.clone()))))
    }

    /// The names of this library, or our own.
    pub fn by(model: &'a Model, library: Option<&'a Names>) -> Naming<'a> {
        let table = &model.architecture.checkpoint;
        let scoped = table.base.is_empty() && model.variables().any(|v| table.is_head(&v.name));
        Naming { table, library, scoped }
    }

    /// The tensors of files that make a variable of this name and shape: their names, and the shape that each has in the
    /// model. There is one, or one for each expert or part.
    pub fn parts(&self, name: &str, shape: &[usize]) -> (Vec<String>, Vec<usize>) {
        let stacked = self.table.stacked.as_ref().and_then(|scope| name.split_once(scope.as_str()).zip(Some(scope)));
        let (ours, mut shape) = match (stacked, shape) {
            (Some(((before, after), scope)), [count, each @ ..]) => {
                ((0..*count).map(|i| format!("{before}{scope}{i}.{after}")).collect(), each.to_vec())
            }
            _ => (vec![name.to_string()], shape.to_vec()),
        };
        let theirs: Vec<String> = ours.iter().flat_map(|name| self.theirs(name)).collect();
        if let Some(rows) = shape.first_mut() {
            *rows /= theirs.len() / ours.len();
        }
        (theirs, shape)
    }

    /// What files call the tensor or the parts of a tensor that we call `name`.
    pub fn theirs(&self, name: &str) -> Vec<String> {
        let Some(Names { base, patterns, .. }) = self.library else {
            let before = if self.table.is_head(name) { "" } else { &self.table.prefix };
            return vec![format!("{before}{name}")];
        };
        let (before, rest) = match name.strip_prefix(self.table.base.as_str()) {
            Some(rest) if !self.table.base.is_empty() || self.scoped && !self.table.is_head(name) => {
                (base.as_str(), rest)
            }
            _ => ("", name),
        };
        let found = patterns.iter().find_map(|(ours, theirs)| Some(theirs).zip(captures(ours, rest)));
        match found {
            Some((theirs, parts)) => {
                theirs.iter().map(|pattern| format!("{before}{}", filled(pattern, &parts))).collect()
            }
            None => vec![format!("{before}{rest}")],
        }
    }

    /// What identifies a tensor of a file: its name with neither prefix nor base, and with our pieces.
    pub fn bare(&self, name: &str) -> String {
        let mut name = name.to_string();
        for (theirs, ours) in &self.table.renamed {
            name = name.replace(theirs, ours);
        }
        let base = self.library.map_or(&self.table.base, |names| &names.base);
        for before in [&self.table.prefix, base] {
            name = name.strip_prefix(before.as_str()).map(str::to_string).unwrap_or(name);
        }
        name
    }
}

/// Whether a name is `pattern`, in which `*` stands for anything.
fn matches(pattern: &str, name: &str) -> bool {
    captures(pattern, name).is_some()
}

/// What the `*` of a pattern stand for in a name, the first as short as can be.
fn captures<'n>(pattern: &str, name: &'n str) -> Option<Vec<&'n str>> {
    let Some((before, after)) = pattern.split_once('*') else {
        return (name == pattern).then(Vec::new);
    };
    let rest = name.strip_prefix(before)?;
    (0..=rest.len()).filter(|at| rest.is_char_boundary(*at)).find_map(|at| {
        let mut found = captures(after, &rest[at..])?;
        found.insert(0, &rest[..at]);
        Some(found)
    })
}

/// The pattern with these texts in place of each `*`.
fn filled(pattern: &str, parts: &[&str]) -> String {
    let mut parts = parts.iter();
    let mut pieces = pattern.split('*');
    let first = pieces.next().unwrap_or_default().to_string();
    pieces.fold(first, |text, piece| text + parts.next().copied().unwrap_or_default() + piece)
}

fn strings(value: Value<'_>) -> Option<Vec<String>> {
    ListRef::from_value(value)?.iter().map(|item| item.unpack_str().map(str::to_string)).collect()
}

fn pairs(value: Value<'_>) -> Option<Vec<(String, String)>> {
    let dict = DictRef::from_value(value)?;
    dict.iter().map(|(k, v)| Some((k.unpack_str()?.to_string(), v.unpack_str()?.to_string()))).collect()
}

/// A dict from strings to strings or lists of strings.
fn lists(value: Value<'_>) -> Option<Vec<(String, Vec<String>)>> {
    let all = |value: Value<'_>| value.unpack_str().map(|one| vec![one.to_string()]).or_else(|| strings(value));
    DictRef::from_value(value)?.iter().map(|(k, v)| Some((k.unpack_str()?.to_string(), all(v)?))).collect()
}

fn meanings(value: Value<'_>) -> Option<Vec<(String, HyperValues)>> {
    let dict = DictRef::from_value(value)?;
    dict.iter().map(|(k, v)| Some((k.unpack_str()?.to_string(), HyperValue::pairs(v)?))).collect()
}

fn libraries(value: Value<'_>) -> Option<Vec<Names>> {
    let names = |(library, value): (Value<'_>, Value<'_>)| {
        let [base, patterns] = TupleRef::from_value(value)?.content() else { return None };
        let (library, base) = (library.unpack_str()?.to_string(), base.unpack_str()?.to_string());
        Some(Names { library, base, patterns: lists(*patterns)? })
    };
    DictRef::from_value(value)?.iter().map(names).collect()
}

fn variants(value: Value<'_>) -> Option<Vec<Variant>> {
    let variant = |(class, value): (Value<'_>, Value<'_>)| {
        let (model_type, values, assumes) = match *TupleRef::from_value(value)?.content() {
            [model_type, values] => (model_type, values, HyperValues::new()),
            [model_type, values, assumes] => (model_type, values, HyperValue::pairs(assumes)?),
            _ => return None,
        };
        let (class, model_type) = (class.unpack_str()?.to_string(), model_type.unpack_str()?.to_string());
        Some(Variant { class, model_type, values: HyperValue::pairs(values)?, assumes })
    };
    DictRef::from_value(value)?.iter().map(variant).collect()
}
