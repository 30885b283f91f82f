//! Values of hyperparameters: plain data that Starlark, TOML and JSON share.

use std::fmt;

use serde_json::Value as Json;
use starlark::values::dict::DictRef;
use starlark::values::float::StarlarkFloat;
use starlark::values::list::ListRef;
use starlark::values::tuple::TupleRef;
use starlark::values::{Heap, Value, ValueLike};

use crate::value::{SizeValue, integer};

/// The value of a hyperparameter.
#[derive(Clone, PartialEq, Debug)]
pub enum HyperValue {
    /// Nothing.
    None,
    /// A truth value.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A number.
    Float(f64),
    /// A string.
    Text(String),
    /// A list.
    List(Vec<HyperValue>),
}

impl HyperValue {
    /// What kind of value this is, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            HyperValue::None => "nothing",
            HyperValue::Bool(_) => "a truth value",
            HyperValue::Int(_) => "a whole number",
            HyperValue::Float(_) => "a number",
            HyperValue::Text(_) => "a string",
            HyperValue::List(_) => "a list",
        }
    }

    /// This value where `default` stands, or `None` if the kinds do not fit. A whole number is a number.
    pub fn fit(&self, default: &HyperValue) -> Option<HyperValue> {
        match (self, default) {
            (_, HyperValue::None) | (HyperValue::None, _) => Some(self.clone()),
            (HyperValue::Int(n), HyperValue::Float(_)) => Some(HyperValue::Float(*n as f64)),
            (HyperValue::List(items), HyperValue::List(defaults)) => {
                let Some(sample) = defaults.first() else { return Some(self.clone()) };
                items.iter().map(|item| item.fit(sample)).collect::<Option<_>>().map(HyperValue::List)
            }
            _ => (self.kind() == default.kind()).then(|| self.clone()),
        }
    }

    /// The value in JSON.
    pub fn to_json(&self) -> Json {
        match self {
            HyperValue::None => Json::Null,
            HyperValue::Bool(b) => Json::from(*b),
            HyperValue::Int(n) => Json::from(*n),
            HyperValue::Float(x) => Json::from(*x),
            HyperValue::Text(text) => Json::from(text.as_str()),
            HyperValue::List(items) => items.iter().map(HyperValue::to_json).collect(),
        }
    }

    /// The value of this JSON, `None` for objects and numbers out of range.
    pub fn from_json(json: &Json) -> Option<HyperValue> {
        Some(match json {
            Json::Null => HyperValue::None,
            Json::Bool(b) => HyperValue::Bool(*b),
            Json::Number(n) if n.is_f64() => HyperValue::Float(n.as_f64()?),
            Json::Number(n) => HyperValue::Int(n.as_i64()?),
            Json::String(text) => HyperValue::Text(text.clone()),
            Json::Array(items) => HyperValue::List(items.iter().map(HyperValue::from_json).collect::<Option<_>>()?),
            Json::Object(_) => return None,
        })
    }

    pub(crate) fn to_starlark<'v>(&self, heap: Heap<'v>) -> Value<'v> {
        match self {
            HyperValue::None => Value::new_none(),
            HyperValue::Bool(b) => Value::new_bool(*b),
            HyperValue::Int(n) => heap.alloc(*n),
            HyperValue::Float(x) => heap.alloc(*x),
            HyperValue::Text(text) => heap.alloc(text.as_str()),
            HyperValue::List(items) => {
                let items: Vec<Value<'v>> = items.iter().map(|i| i.to_starlark(heap)).collect();
                heap.alloc(items)
            }
        }
    }

    /// The value of this Starlark value, `None` if it is no plain data.
    pub(crate) fn from_starlark(value: Value<'_>) -> Option<HyperValue> {
        if value.is_none() {
            return Some(HyperValue::None);
        }
        if let Some(b) = value.unpack_bool() {
            return Some(HyperValue::Bool(b));
        }
        if let Some(n) = integer(value) {
            return Some(HyperValue::Int(n));
        }
        if let Some(x) = value.downcast_ref::<StarlarkFloat>() {
            return Some(HyperValue::Float(x.0));
        }
        if let Some(text) = value.unpack_str() {
            return Some(HyperValue::Text(text.to_string()));
        }
        if let Some(size) = value.downcast_ref::<SizeValue>() {
            return size.0.as_const().map(|n| HyperValue::Int(n as i64));
        }
        let list = |items: &[Value<'_>]| items.iter().map(|i| HyperValue::from_starlark(*i)).collect::<Option<_>>();
        if let Some(items) = ListRef::from_value(value) {
            return list(items.content()).map(HyperValue::List);
        }
        TupleRef::from_value(value).and_then(|items| list(items.content())).map(HyperValue::List)
    }

    /// The pairs of a Starlark dict from names to plain data.
    pub(crate) fn pairs(value: Value<'_>) -> Option<Vec<(String, HyperValue)>> {
        let dict = DictRef::from_value(value)?;
        dict.iter().map(|(k, v)| Some((k.unpack_str()?.to_string(), HyperValue::from_starlark(v)?))).collect()
    }
}

impl fmt::Display for HyperValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HyperValue::None => f.write_str("None"),
            HyperValue::Bool(true) => f.write_str("True"),
            HyperValue::Bool(false) => f.write_str("False"),
            HyperValue::Int(n) => write!(f, "{n}"),
            HyperValue::Float(x) => write!(f, "{x:?}"),
            HyperValue::Text(text) => write!(f, "{text:?}"),
            HyperValue::List(items) => {
                f.write_str("[")?;
                for (i, item) in items.iter().enumerate() {
                    write!(f, "{}{item}", if i > 0 { ", " } else { "" })?;
                }
                f.write_str("]")
            }
        }
    }
}

macro_rules! from {
    ($($ty:ty => |$x:ident| $make:expr;)*) => {$(
        impl From<$ty> for HyperValue {
            fn from($x: $ty) -> HyperValue {
                $make
            }
        }
    )*};
}

from! {
    bool => |x| HyperValue::Bool(x);
    i64 => |x| HyperValue::Int(x);
    f64 => |x| HyperValue::Float(x);
    &str => |x| HyperValue::Text(x.to_string());
}
