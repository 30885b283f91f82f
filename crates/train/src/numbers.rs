//! Maps of numbers in JSON that keep NaN and the infinities, which JSON lacks, as the strings "NaN", "Infinity", "-Infinity".

use std::collections::BTreeMap;

use serde::de::{Deserializer, Error};
use serde::{Deserialize, Serializer};
use serde_json::Value;

/// The JSON form of a number.
pub(crate) fn to_json(number: f64) -> Value {
    match number {
        number if number.is_nan() => "NaN".into(),
        f64::INFINITY => "Infinity".into(),
        f64::NEG_INFINITY => "-Infinity".into(),
        number => number.into(),
    }
}

/// The number of a JSON form.
pub(crate) fn from_json(value: &Value) -> Option<f64> {
    match value.as_str() {
        Some("NaN") => Some(f64::NAN),
        Some("Infinity") => Some(f64::INFINITY),
        Some("-Infinity") => Some(f64::NEG_INFINITY),
        Some(_) => None,
        None => value.as_f64(),
    }
}

/// For `#[serde(with = "numbers")]`.
pub(crate) fn serialize<S: Serializer>(map: &BTreeMap<String, f64>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(map.iter().map(|(key, number)| (key, to_json(*number))))
}

/// For `#[serde(with = "numbers")]`. Goes through [`Value`]: with serde_json's `arbitrary_precision`, which a dependency
/// turns on, a number is a map to every visitor that can take anything.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, f64>, D::Error> {
    let map = BTreeMap::<String, Value>::deserialize(deserializer)?;
    let number = |(key, value): (String, Value)| {
        let number = from_json(&value).ok_or_else(|| D::Error::custom(format!("`{key}` is {value}, not a number")))?;
        Ok((key, number))
    };
    map.into_iter().map(number).collect()
}
