//! The frozen form of an experiment: TOML with every default written out, and what differs between two of them.

use std::fmt;

use toml::{Table, Value};

use super::source::{dotted, key_text};

/// One table to a section, everything deeper inline; parses back to the same table.
pub(crate) fn write(table: &Table) -> String {
    let order = ["data", "model", "train", "goal", "tune", "deploy"];
    let known = order.iter().filter_map(|name| table.get_key_value(*name));
    let others = table.iter().filter(|(name, _)| !order.contains(&name.as_str()));
    let mut text = String::new();
    for (name, section) in known.chain(others) {
        if !text.is_empty() {
            text.push('\n');
        }
        match section {
            Value::Table(section) => {
                text.push_str(&format!("[{}]\n", key_text(name)));
                for (key, value) in section {
                    text.push_str(&format!("{} = {}\n", key_text(key), Inline(value)));
                }
            }
            value => text.push_str(&format!("{} = {}\n", key_text(name), Inline(value))),
        }
    }
    text
}

/// A value on one line; `kind` comes first in a table, small and large numbers keep their exponent.
struct Inline<'a>(&'a Value);

impl fmt::Display for Inline<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Value::Float(number) if *number != 0.0 && !(1e-3..1e15).contains(&number.abs()) && number.is_finite() => {
                write!(f, "{number:e}")
            }
            Value::Array(items) => {
                f.write_str("[")?;
                for (index, item) in items.iter().enumerate() {
                    write!(f, "{}{}", if index > 0 { ", " } else { "" }, Inline(item))?;
                }
                f.write_str("]")
            }
            Value::Table(table) if table.is_empty() => f.write_str("{}"),
            Value::Table(table) => {
                f.write_str("{ ")?;
                let (tags, rest): (Vec<_>, Vec<_>) = table.iter().partition(|(key, _)| *key == "kind");
                for (index, (key, value)) in tags.into_iter().chain(rest).enumerate() {
                    write!(f, "{}{} = {}", if index > 0 { ", " } else { "" }, key_text(key), Inline(value))?;
                }
                f.write_str(" }")
            }
            scalar => write!(f, "{scalar}"),
        }
    }
}

/// A key with two values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The dotted key.
    pub key: String,
    /// The value on the left as TOML, if it is there.
    pub left: Option<String>,
    /// The value on the right as TOML, if it is there.
    pub right: Option<String>,
}

/// The keys whose values differ, in the order of the keys.
pub fn differences(left: &Table, right: &Table) -> Vec<Difference> {
    let mut found = Vec::new();
    compare(left, right, &mut Vec::new(), &mut found);
    found.sort_by(|a: &Difference, b: &Difference| a.key.cmp(&b.key));
    found
}

fn compare(left: &Table, right: &Table, path: &mut Vec<String>, found: &mut Vec<Difference>) {
    let only_right = right.keys().filter(|key| !left.contains_key(*key));
    for key in left.keys().chain(only_right) {
        path.push(key.clone());
        match (left.get(key), right.get(key)) {
            (Some(Value::Table(left)), Some(Value::Table(right))) => compare(left, right, path, found),
            (left, right) if left == right => {}
            (left, right) => {
                let text = |value: Option<&Value>| value.map(|value| Inline(value).to_string());
                found.push(Difference { key: dotted(path), left: text(left), right: text(right) });
            }
        }
        path.pop();
    }
}

/// Removes the value at a dotted key of bare parts.
pub(crate) fn remove(table: &mut Table, key: &str) {
    match key.split_once('.') {
        None => drop(table.remove(key)),
        Some((first, rest)) => {
            if let Some(Value::Table(inner)) = table.get_mut(first) {
                remove(inner, rest);
            }
        }
    }
}
