//! Quantities as people write them: byte sizes (`"1GiB"`) and durations (`"1h30min"`).

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A number of bytes. Text form: a number and `B`, `KB`, `MB`, `GB`, `TB` (powers of 1000) or `KiB`, `MiB`, `GiB`,
/// `TiB` (powers of 1024); without a unit, bytes. `Display` is exact: it parses back to the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

const BYTE_UNITS: &[(&str, u64)] = &[
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

/// Integers above this are not all representable as `f64`.
const EXACT_F64: f64 = 9_007_199_254_740_992.0;

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = |why: &str| {
            format!("{text:?} is not a byte size ({why}): write for example \"512MiB\", \"1.5GiB\" or \"2e9\"")
        };
        let trimmed = text.trim();
        let lower = trimmed.to_ascii_lowercase();
        let (number, unit) = BYTE_UNITS
            .iter()
            .find_map(|(name, unit)| {
                lower.strip_suffix(&name.to_ascii_lowercase()).map(|number| (number.trim_end(), *unit))
            })
            .unwrap_or((lower.as_str(), 1));
        let bytes = if let Ok(whole) = number.parse::<u64>() {
            whole.checked_mul(unit).ok_or_else(|| bad("too large"))?
        } else {
            if !number.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
                return Err(bad("a positive number comes first, then the unit"));
            }
            let number: f64 = number.parse().map_err(|_| bad("the unit is B, KB, MB, GB, TB, KiB, MiB, GiB or TiB"))?;
            whole_bytes(number * unit as f64).map_err(bad)?
        };
        if bytes == 0 {
            return Err(bad("it is zero"));
        }
        Ok(ByteSize(bytes))
    }
}

fn whole_bytes(bytes: f64) -> Result<u64, &'static str> {
    if !(bytes > 0.0 && bytes <= EXACT_F64) {
        return Err("it must be positive and at most 8PiB");
    }
    if bytes.fract() != 0.0 {
        return Err("it is not a whole number of bytes");
    }
    Ok(bytes as u64)
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, unit) =
            BYTE_UNITS[..4].iter().find(|(_, unit)| self.0 > 0 && self.0.is_multiple_of(*unit)).unwrap_or(&("B", 1));
        write!(f, "{}{name}", self.0 / unit)
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Quantity::deserialize(deserializer)? {
            Quantity::Number(bytes) => whole_bytes(bytes).map(ByteSize).map_err(de::Error::custom),
            Quantity::Text(text) => text.parse().map_err(de::Error::custom),
        }
    }
}

impl JsonSchema for ByteSize {
    fn schema_name() -> Cow<'static, str> {
        "ByteSize".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A number of bytes: \"512MiB\", \"1.5GiB\", \"2e9\", or a plain number.",
            "anyOf": [{ "type": "string", "format": "byte-size" }, { "type": "number", "exclusiveMinimum": 0 }],
        })
    }
}

/// A length of time. Text form: `"90s"`, `"20min"`, `"1h30min"`, `"2d"`, `"250ms"`; without a unit, seconds.
/// `Display` is exact to the millisecond, which is also the resolution of the type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimeSpan {
    milliseconds: u64,
}

const TIME_UNITS: &[(&str, u64)] = &[("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1_000), ("ms", 1)];

impl TimeSpan {
    /// A span of `milliseconds`.
    pub fn from_millis(milliseconds: u64) -> Self {
        TimeSpan { milliseconds }
    }

    /// Seconds in this span.
    pub fn seconds(self) -> f64 {
        self.milliseconds as f64 / 1000.0
    }
}

impl FromStr for TimeSpan {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not a duration: write for example \"90s\", \"20min\" or \"1h30min\"");
        let mut rest = text.trim();
        let mut total = 0u64;
        if rest.is_empty() {
            return Err(bad());
        }
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
            let number: f64 = rest[..digits].parse().map_err(|_| bad())?;
            rest = rest[digits..].trim_start();
            let letters = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
            let unit = match &rest[..letters] {
                "" => 1_000,
                name => TIME_UNITS.iter().find(|(unit, _)| *unit == name).ok_or_else(bad)?.1,
            };
            rest = rest[letters..].trim_start();
            let part = number * unit as f64;
            if part > EXACT_F64 {
                return Err(bad());
            }
            total = total.checked_add(part.round() as u64).ok_or_else(bad)?;
        }
        if total == 0 {
            return Err(bad());
        }
        Ok(TimeSpan { milliseconds: total })
    }
}

impl fmt::Display for TimeSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.milliseconds;
        for (name, unit) in TIME_UNITS {
            if rest >= *unit {
                write!(f, "{}{name}", rest / unit)?;
                rest %= unit;
            }
        }
        if self.milliseconds == 0 { f.write_str("0s") } else { Ok(()) }
    }
}

impl Serialize for TimeSpan {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TimeSpan {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Quantity::deserialize(deserializer)? {
            Quantity::Number(seconds) => format!("{seconds}s").parse().map_err(de::Error::custom),
            Quantity::Text(text) => text.parse().map_err(de::Error::custom),
        }
    }
}

impl JsonSchema for TimeSpan {
    fn schema_name() -> Cow<'static, str> {
        "TimeSpan".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A length of time: \"90s\", \"20min\", \"1h30min\", or a number of seconds.",
            "anyOf": [{ "type": "string", "format": "time-span" }, { "type": "number", "exclusiveMinimum": 0 }],
        })
    }
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a number, or a text with a number and a unit")]
enum Quantity {
    Number(f64),
    Text(String),
}

/// A format's name and the check of a text.
pub(crate) type Format = (&'static str, fn(&str) -> Result<(), String>);

/// The string formats of the schema that this module defines, with their checks.
pub(crate) const FORMATS: &[Format] = &[
    ("byte-size", |text| text.parse::<ByteSize>().map(drop)),
    ("time-span", |text| text.parse::<TimeSpan>().map(drop)),
];
