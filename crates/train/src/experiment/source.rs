//! TOML text as a tree in which every value knows its line, and the `--set` options laid over it.

use std::collections::BTreeMap;

use toml::de::{DeTable, DeValue};
use toml::{Spanned, Value};

use super::problem::{Place, Problem};

/// A TOML value and where it was written.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub content: Content,
    pub place: Place,
}

#[derive(Clone, Debug)]
pub(crate) enum Content {
    /// Anything but an array or a table.
    Scalar(Value),
    Array(Vec<Node>),
    Table(BTreeMap<String, Node>),
}

impl Node {
    fn empty_table(place: Place) -> Node {
        Node { content: Content::Table(BTreeMap::new()), place }
    }

    /// The tree of a value that no file wrote.
    pub fn from_value(value: Value, place: &Place) -> Node {
        let content = match value {
            Value::Array(items) => {
                Content::Array(items.into_iter().map(|item| Node::from_value(item, place)).collect())
            }
            Value::Table(table) => {
                Content::Table(table.into_iter().map(|(key, value)| (key, Node::from_value(value, place))).collect())
            }
            scalar => Content::Scalar(scalar),
        };
        Node { content, place: place.clone() }
    }

    /// The value without its places.
    pub fn to_value(&self) -> Value {
        match &self.content {
            Content::Scalar(value) => value.clone(),
            Content::Array(items) => Value::Array(items.iter().map(Node::to_value).collect()),
            Content::Table(table) => {
                Value::Table(table.iter().map(|(key, node)| (key.clone(), node.to_value())).collect())
            }
        }
    }

    pub fn table(&self) -> Option<&BTreeMap<String, Node>> {
        match &self.content {
            Content::Table(table) => Some(table),
            _ => None,
        }
    }

    /// The value at a path of keys.
    pub fn get(&self, path: &[&str]) -> Option<&Node> {
        path.iter().try_fold(self, |node, key| node.table()?.get(*key))
    }

    /// The place of the deepest existing value on a path of keys.
    pub fn place_of(&self, path: &[&str]) -> Place {
        let mut node = self;
        for key in path {
            match node.table().and_then(|table| table.get(*key)) {
                Some(next) => node = next,
                None => break,
            }
        }
        node.place.clone()
    }

    /// Puts `value` at a path of keys, making the tables on the way; a value that is no table on the way is an error.
    pub fn set(&mut self, path: &[String], value: Node) -> Result<(), String> {
        let (last, parents) = path.split_last().expect("a path has at least one key");
        let mut node = self;
        for (depth, key) in parents.iter().enumerate() {
            let place = value.place.clone();
            let Content::Table(table) = &mut node.content else {
                return Err(format!("`{}` is not a table, so it has no key `{key}`", dotted(&path[..depth])));
            };
            node = table.entry(key.clone()).or_insert_with(|| Node::empty_table(place));
        }
        let Content::Table(table) = &mut node.content else {
            return Err(format!("`{}` is not a table, so it has no key `{last}`", dotted(parents)));
        };
        table.insert(last.clone(), value);
        Ok(())
    }
}

/// Parses TOML; all syntax errors are returned together.
pub(crate) fn parse(text: &str) -> Result<Node, Vec<Problem>> {
    let lines = Lines::new(text);
    let (table, errors) = DeTable::parse_recoverable(text);
    let mut problems: Vec<Problem> = errors
        .iter()
        .map(|error| Problem {
            place: Place::Line(error.span().map_or(1, |span| lines.line(span.start))),
            message: format!("not valid TOML: {}", error.message()),
        })
        .collect();
    let content = convert_table(table.get_ref(), &|offset| Place::Line(lines.line(offset)), &mut problems);
    if problems.is_empty() { Ok(Node { content, place: Place::Line(1) }) } else { Err(problems) }
}

/// Lays one `--set a.b=c` option over the tree. The right side is a TOML value; text that is not one is a string.
pub(crate) fn apply_option(root: &mut Node, option: &str) -> Result<(), Problem> {
    let place = Place::Option(option.to_owned());
    let problem = |message: String| Problem { place: place.clone(), message };
    let (key, text) = split_option(option).map_err(problem)?;
    let path = parse_path(&key).map_err(problem)?;
    let mut problems = Vec::new();
    let value = match DeValue::parse(text.trim()) {
        Ok(value) => convert(&value, &|_| place.clone(), &mut problems),
        Err(_) => Node { content: Content::Scalar(Value::String(text.to_owned())), place: place.clone() },
    };
    if let Some(first) = problems.into_iter().next() {
        return Err(first);
    }
    root.set(&path, value).map_err(problem)
}

/// The keys of a dotted path, which may have quoted parts: `tune.search."train.optimizer.lr"`.
pub(crate) fn parse_path(key: &str) -> Result<Vec<String>, String> {
    let bad = || format!("`{key}` is not a dotted key: write for example `train.optimizer.lr`");
    if key.contains(['\n', '=', '#', '[']) {
        return Err(bad());
    }
    let document = format!("{key} = 0");
    let table = DeTable::parse(&document).map_err(|_| bad())?;
    let mut path = Vec::new();
    let mut table = table.into_inner();
    while let Some((key, value)) = table.into_iter().next() {
        path.push(key.into_inner().into_owned());
        match value.into_inner() {
            DeValue::Table(next) => table = next,
            _ => break,
        }
    }
    Ok(path)
}

/// A path as one writes it: parts that are no bare keys are quoted.
pub(crate) fn dotted<S: AsRef<str>>(path: &[S]) -> String {
    path.iter().map(|key| key_text(key.as_ref())).collect::<Vec<_>>().join(".")
}

/// One key as TOML writes it.
pub(crate) fn key_text(key: &str) -> String {
    let bare = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if bare { key.to_owned() } else { Value::String(key.to_owned()).to_string() }
}

fn split_option(option: &str) -> Result<(String, &str), String> {
    let mut quote = None;
    for (index, c) in option.char_indices() {
        match (quote, c) {
            (None, '"' | '\'') => quote = Some(c),
            (Some(open), c) if open == c => quote = None,
            (None, '=') => return Ok((option[..index].trim().to_owned(), &option[index + 1..])),
            _ => {}
        }
    }
    Err("there is no `=`: write --set key=value, for example --set train.optimizer.lr=3e-4".to_owned())
}

fn convert(value: &Spanned<DeValue<'_>>, place: &dyn Fn(usize) -> Place, problems: &mut Vec<Problem>) -> Node {
    let at = place(value.span().start);
    let scalar = match value.get_ref() {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Boolean(value) => Value::Boolean(*value),
        DeValue::Datetime(value) => Value::Datetime(*value),
        DeValue::Integer(integer) => match i64::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(value) => Value::Integer(value),
            Err(_) => {
                let message = format!("the integer {} does not fit in 64 bits with a sign", integer.as_str());
                problems.push(Problem { place: at.clone(), message });
                Value::Integer(0)
            }
        },
        DeValue::Float(float) => match float.as_str().parse() {
            Ok(value) => Value::Float(value),
            Err(_) => {
                problems.push(Problem { place: at.clone(), message: format!("{} is not a number", float.as_str()) });
                Value::Float(0.0)
            }
        },
        DeValue::Array(items) => {
            let items = items.iter().map(|item| convert(item, place, problems)).collect();
            return Node { content: Content::Array(items), place: at };
        }
        DeValue::Table(table) => return Node { content: convert_table(table, place, problems), place: at },
    };
    Node { content: Content::Scalar(scalar), place: at }
}

fn convert_table(table: &DeTable<'_>, place: &dyn Fn(usize) -> Place, problems: &mut Vec<Problem>) -> Content {
    let mut entries = BTreeMap::new();
    for (key, value) in table {
        let mut node = convert(value, place, problems);
        node.place = place(key.span().start);
        entries.insert(key.get_ref().to_string(), node);
    }
    Content::Table(entries)
}

/// Byte offset of the start of each line.
struct Lines(Vec<usize>);

impl Lines {
    fn new(text: &str) -> Self {
        Lines(std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect())
    }

    /// The line, from 1, of a byte offset.
    fn line(&self, offset: usize) -> usize {
        self.0.partition_point(|start| *start <= offset)
    }
}
