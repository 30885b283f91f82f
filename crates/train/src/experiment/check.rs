//! Checks a tree of TOML values against the JSON Schema of the experiment and collects every problem with its place.
//!
//! The schema is derived from the same structs that serde fills, so what an editor completes, what is refused here and
//! what the program reads cannot differ. Only the part of JSON Schema that `schemars` writes is understood.

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json};
use toml::Value;

use super::problem::{Place, Problem, nearest};
use super::source::{Content, Node, key_text};
use super::units::FORMATS;

/// All the problems of `node` under `schema`.
pub(crate) fn check(schema: &Json, node: &Node) -> Vec<Problem> {
    let mut checker = Checker { root: schema, problems: Vec::new() };
    checker.value(schema, node, &mut Vec::new());
    checker.problems
}

struct Checker<'s> {
    root: &'s Json,
    problems: Vec<Problem>,
}

/// A schema with its references, `allOf` parts and the alternative that fits the value merged.
#[derive(Default)]
struct Merged<'s> {
    types: Vec<&'s str>,
    properties: BTreeMap<&'s str, &'s Json>,
    required: Vec<&'s str>,
    additional: Option<&'s Json>,
    closed: bool,
    /// Keywords with one value: bounds, `items`, `const`, `format`.
    keywords: BTreeMap<&'s str, &'s Json>,
    constants: Vec<&'s Json>,
}

impl<'s> Checker<'s> {
    fn report(&mut self, place: &Place, message: String) {
        self.problems.push(Problem { place: place.clone(), message });
    }

    fn value(&mut self, schema: &'s Json, node: &Node, path: &mut Vec<String>) {
        let mut merged = Merged::default();
        if let Err(message) = self.merge(schema, node, path, &mut merged) {
            return self.report(&node.place, message);
        }
        if !merged.types.is_empty() && !merged.types.iter().any(|kind| accepts(kind, node)) {
            let expected = merged.types.iter().filter(|kind| **kind != "null").map(|kind| a_kind(kind));
            let expected = expected.collect::<Vec<_>>().join(" or ");
            let hint = type_hint(&merged.types, node);
            return self.report(&node.place, format!("{}, expected {expected}{hint}", is(path, node)));
        }
        match &node.content {
            Content::Table(table) => self.table(&merged, node, table, path),
            Content::Array(items) => self.array(&merged, node, items, path),
            Content::Scalar(value) => self.scalar(&merged, node, value, path),
        }
    }

    fn table(&mut self, merged: &Merged<'s>, node: &Node, table: &BTreeMap<String, Node>, path: &mut Vec<String>) {
        for required in merged.required.iter().filter(|key| !table.contains_key(**key)) {
            let kind = merged.properties.get(required).and_then(|schema| self.expectation(schema));
            let kind = kind.map_or(String::new(), |kind| format!(": {kind}"));
            let message = match path.as_slice() {
                [] => format!("the table `[{required}]` is missing{kind}"),
                path => format!("`{}` needs the key `{required}`{kind}", path.join(".")),
            };
            self.report(&node.place, message);
        }
        for (key, child) in table {
            path.push(key_text(key));
            match merged.properties.get(key.as_str()).copied().or(merged.additional) {
                Some(schema) => self.value(schema, child, path),
                None if merged.closed => {
                    let hint = self.key_hint(key, merged, path);
                    self.report(&child.place, format!("unknown key `{}`{hint}", path.join(".")));
                }
                None => {}
            }
            path.pop();
        }
    }

    fn array(&mut self, merged: &Merged<'s>, node: &Node, items: &[Node], path: &mut Vec<String>) {
        let bound = |name| merged.keywords.get(name).and_then(|bound| bound.as_u64());
        let (least, most) = (bound("minItems").unwrap_or(0), bound("maxItems").unwrap_or(u64::MAX));
        let count = items.len() as u64;
        if count < least || count > most {
            let expected = match (least, most) {
                (least, most) if least == most => format!("exactly {least}"),
                (least, u64::MAX) => format!("at least {least}"),
                (_, most) => format!("at most {most}"),
            };
            self.report(&node.place, format!("`{}` has {count} values, expected {expected}", path.join(".")));
        }
        if let Some(schema) = merged.keywords.get("items") {
            for (index, item) in items.iter().enumerate() {
                let last = path.pop().unwrap_or_default();
                path.push(format!("{last}[{index}]"));
                self.value(schema, item, path);
                path.pop();
                path.push(last);
            }
        }
    }

    fn scalar(&mut self, merged: &Merged<'s>, node: &Node, value: &Value, path: &[String]) {
        if !merged.constants.is_empty() && !merged.constants.iter().any(|constant| same(constant, value)) {
            let hint = suggestion(value.as_str(), &merged.constants);
            let expected = one_of(&merged.constants);
            self.report(&node.place, format!("{}, expected {expected}{hint}", is(path, node)));
        }
        if let Some(number) = value.as_float().or(value.as_integer().map(|integer| integer as f64)) {
            if !number.is_finite() {
                return self.report(&node.place, format!("{}, expected a finite number", is(path, node)));
            }
            for (keyword, text, holds) in BOUNDS {
                let bound = merged.keywords.get(keyword).and_then(|bound| bound.as_f64());
                if let Some(bound) = bound.filter(|bound| !holds(number, *bound)) {
                    self.report(&node.place, format!("{}, it must be {text} {bound}", is(path, node)));
                    break;
                }
            }
        }
        if let Some(text) = value.as_str() {
            let least = merged.keywords.get("minLength").and_then(|least| least.as_u64()).unwrap_or(0);
            if (text.chars().count() as u64) < least {
                self.report(&node.place, format!("`{}` is empty", path.join(".")));
            }
            let format = merged.keywords.get("format").and_then(|format| format.as_str());
            let problem =
                FORMATS.iter().find(|(name, _)| Some(*name) == format).and_then(|(_, parse)| parse(text).err());
            if let Some(problem) = problem {
                self.report(&node.place, format!("`{}`: {problem}", path.join(".")));
            }
        }
    }

    /// Adds `schema` to `merged`; an error is the message that no alternative fits.
    fn merge(&self, schema: &'s Json, node: &Node, path: &[String], merged: &mut Merged<'s>) -> Result<(), String> {
        let Some(schema) = schema.as_object() else { return Ok(()) };
        for (keyword, value) in schema {
            match (keyword.as_str(), value) {
                ("$ref", Json::String(reference)) => self.merge(self.resolve(reference), node, path, merged)?,
                ("allOf", Json::Array(parts)) => {
                    for part in parts {
                        self.merge(part, node, path, merged)?;
                    }
                }
                ("oneOf" | "anyOf", Json::Array(alternatives)) => {
                    let chosen = self.choose(alternatives, node, path)?;
                    self.merge(chosen, node, path, merged)?;
                }
                ("type", Json::String(kind)) => merged.types.push(kind),
                ("type", Json::Array(kinds)) => merged.types.extend(kinds.iter().filter_map(Json::as_str)),
                ("properties", Json::Object(properties)) => {
                    merged.properties.extend(properties.iter().map(|(key, schema)| (key.as_str(), schema)));
                }
                ("required", Json::Array(keys)) => merged.required.extend(keys.iter().filter_map(Json::as_str)),
                ("additionalProperties" | "unevaluatedProperties", Json::Bool(false)) => merged.closed = true,
                ("additionalProperties" | "unevaluatedProperties", rest @ Json::Object(_)) => {
                    merged.additional = Some(rest)
                }
                ("enum", Json::Array(values)) => merged.constants.extend(values),
                ("const", value) => merged.constants.push(value),
                (keyword, value) => drop(merged.keywords.insert(keyword, value)),
            }
        }
        Ok(())
    }

    fn resolve(&self, reference: &str) -> &'s Json {
        reference.strip_prefix('#').and_then(|pointer| self.root.pointer(pointer)).unwrap_or(&Json::Null)
    }

    /// The alternative of a `oneOf` or `anyOf` that `node` means: by its type, then by its tag or its keys.
    fn choose(&self, alternatives: &'s [Json], node: &Node, path: &[String]) -> Result<&'s Json, String> {
        let outlines: Vec<(&'s Json, Outline<'s>)> = alternatives
            .iter()
            .map(|alternative| (alternative, self.outline(alternative)))
            .filter(|(_, outline)| outline.types != ["null"])
            .collect();
        let fitting: Vec<&(&'s Json, Outline<'s>)> = outlines
            .iter()
            .filter(|(_, outline)| outline.types.is_empty() || outline.types.iter().any(|kind| accepts(kind, node)))
            .collect();
        match (fitting.as_slice(), &node.content) {
            ([], _) => {
                let kinds: Vec<String> = outlines.iter().map(|(_, outline)| outline.describe()).collect();
                Err(format!("{}, expected {}", is(path, node), kinds.join(" or ")))
            }
            ([(only, _)], _) => Ok(only),
            (several, Content::Table(table)) => choose_table(several, table, path),
            (several, Content::Scalar(value)) => {
                let fits = several.iter().find(|(_, outline)| match outline.constants.as_slice() {
                    [] => outline.bounds_hold(value),
                    constants => constants.iter().any(|constant| same(constant, value)),
                });
                let constants: Vec<&Json> = several.iter().flat_map(|(_, outline)| outline.constants.clone()).collect();
                match fits {
                    Some((alternative, _)) => Ok(alternative),
                    None if constants.is_empty() => Ok(several[0].0),
                    None => {
                        let hint = suggestion(value.as_str(), &constants);
                        Err(format!("{}, expected {}{hint}", is(path, node), one_of(&constants)))
                    }
                }
            }
            (several, Content::Array(_)) => Ok(several[0].0),
        }
    }

    fn outline(&self, schema: &'s Json) -> Outline<'s> {
        let mut outline = Outline::default();
        self.add_outline(schema, &mut outline);
        outline
    }

    fn add_outline(&self, schema: &'s Json, outline: &mut Outline<'s>) {
        let Some(object) = schema.as_object() else { return };
        if let Some(reference) = object.get("$ref").and_then(Json::as_str) {
            self.add_outline(self.resolve(reference), outline);
        }
        for alternative in ["oneOf", "anyOf"].iter().filter_map(|key| object.get(*key)?.as_array()).flatten() {
            let inner = self.outline(alternative);
            outline.types.extend(inner.types);
            outline.constants.extend(inner.constants);
        }
        match object.get("type") {
            Some(Json::String(kind)) => outline.types.push(kind),
            Some(Json::Array(kinds)) => outline.types.extend(kinds.iter().filter_map(Json::as_str)),
            _ => {}
        }
        outline.constants.extend(object.get("const"));
        outline.constants.extend(object.get("enum").and_then(Json::as_array).into_iter().flatten());
        outline.properties = outline.properties.or(object.get("properties").and_then(Json::as_object));
        if let Some(required) = object.get("required").and_then(Json::as_array) {
            outline.required.extend(required.iter().filter_map(Json::as_str));
        }
        outline.object = Some(object);
    }

    /// What a missing key wants, in words.
    fn expectation(&self, schema: &'s Json) -> Option<String> {
        let outline = self.outline(schema);
        let text = schema.get("description").and_then(Json::as_str).map(first_sentence);
        match outline.constants.as_slice() {
            [] => text,
            constants => Some(one_of(constants)),
        }
    }

    /// `: did you mean ...?` from the keys of this table, else from a key of the same name elsewhere.
    fn key_hint(&self, key: &str, merged: &Merged<'s>, path: &[String]) -> String {
        if let Some(found) = nearest(key, merged.properties.keys().copied()) {
            return format!(": did you mean `{found}`?");
        }
        let mut elsewhere = Vec::new();
        self.find_key(key, self.root, &mut Vec::new(), &mut elsewhere);
        if elsewhere.contains(&path.join(".")) {
            // Another kind of this table has the key: this kind has none like it.
            elsewhere.clear();
        }
        elsewhere.sort_by_key(|found| found.len());
        match elsewhere.first() {
            Some(path) => format!(": did you mean `{path}`?"),
            None if merged.properties.is_empty() => String::new(),
            None => format!(": the keys here are {}", merged.properties.keys().copied().collect::<Vec<_>>().join(", ")),
        }
    }

    fn find_key(&self, key: &str, schema: &'s Json, path: &mut Vec<&'s str>, found: &mut Vec<String>) {
        // Deeper than any key of an experiment; a schema may refer to itself.
        const DEPTH: usize = 5;
        let Some(object) = schema.as_object().filter(|_| path.len() < DEPTH) else { return };
        if let Some(reference) = object.get("$ref").and_then(Json::as_str) {
            self.find_key(key, self.resolve(reference), path, found);
        }
        for alternative in ["oneOf", "anyOf", "allOf"].iter().filter_map(|name| object.get(*name)?.as_array()).flatten()
        {
            self.find_key(key, alternative, path, found);
        }
        for (name, property) in object.get("properties").and_then(Json::as_object).into_iter().flatten() {
            path.push(name);
            if name == key {
                found.push(path.join("."));
            }
            self.find_key(key, property, path, found);
            path.pop();
        }
    }
}

/// What is needed to tell one alternative from another.
#[derive(Default)]
struct Outline<'s> {
    types: Vec<&'s str>,
    constants: Vec<&'s Json>,
    properties: Option<&'s Map<String, Json>>,
    required: Vec<&'s str>,
    object: Option<&'s Map<String, Json>>,
}

impl<'s> Outline<'s> {
    /// The properties that have one allowed value: tags such as `kind`.
    fn tags(&self) -> impl Iterator<Item = (&'s str, &'s Json)> {
        let properties = self.properties.into_iter().flatten();
        properties.filter_map(|(name, schema)| Some((name.as_str(), schema.get("const")?)))
    }

    fn bounds_hold(&self, value: &Value) -> bool {
        let Some(number) = value.as_float().or(value.as_integer().map(|integer| integer as f64)) else { return true };
        let bound = |keyword: &str| self.object.and_then(|object| object.get(keyword)).and_then(Json::as_f64);
        BOUNDS.iter().all(|(keyword, _, holds)| bound(keyword).is_none_or(|bound| holds(number, bound)))
    }

    fn describe(&self) -> String {
        match (self.constants.as_slice(), self.required.as_slice()) {
            ([], [key]) if self.types == ["object"] && self.tags().next().is_none() => format!("{{ {key} = ... }}"),
            ([], _) => self.types.iter().map(|kind| a_kind(kind)).collect::<Vec<_>>().join(" or "),
            (constants, _) => one_of(constants),
        }
    }
}

fn choose_table<'s>(
    alternatives: &[&(&'s Json, Outline<'s>)],
    table: &BTreeMap<String, Node>,
    path: &[String],
) -> Result<&'s Json, String> {
    let holds = |(tag, constant): (&str, &Json)| table.get(tag).is_some_and(|node| same(constant, &node.to_value()));
    let tagged: Vec<_> = alternatives.iter().filter(|(_, outline)| outline.tags().next().is_some()).collect();
    if let Some((alternative, _)) = tagged.iter().find(|(_, outline)| outline.tags().all(holds)) {
        return Ok(alternative);
    }
    if tagged.len() == alternatives.len() {
        let (tag, _) = tagged[0].1.tags().next().expect("tagged");
        let constants: Vec<&Json> = tagged
            .iter()
            .flat_map(|(_, outline)| outline.tags().filter(|(name, _)| *name == tag))
            .map(|(_, c)| c)
            .collect();
        let expected = one_of(&constants);
        return Err(match table.get(tag) {
            Some(node) => {
                let full: Vec<String> = path.iter().cloned().chain([tag.to_owned()]).collect();
                let hint = suggestion(node.to_value().as_str(), &constants);
                format!("{}, expected {expected}{hint}", is(&full, node))
            }
            None => format!("`{}` needs the key `{tag}`: {expected}", path.join(".")),
        });
    }
    let has_all = |outline: &Outline<'_>| {
        !outline.required.is_empty() && outline.required.iter().all(|key| table.contains_key(*key))
    };
    if let Some((alternative, _)) = alternatives.iter().find(|(_, outline)| has_all(outline)) {
        return Ok(alternative);
    }
    let expected: Vec<String> = alternatives.iter().map(|(_, outline)| outline.describe()).collect();
    let keys = alternatives.iter().flat_map(|(_, outline)| outline.required.iter().copied());
    let hint = table.keys().find_map(|key| nearest(key, keys.clone()));
    let hint = hint.map_or(String::new(), |key| format!(": did you mean `{key}`?"));
    let found = table.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    let found = if found.is_empty() { "is empty".to_owned() } else { format!("has the keys {found}") };
    Err(format!("`{}` {found}, expected {}{hint}", path.join("."), expected.join(" or ")))
}

/// A numeric keyword, its words, and whether a number keeps it.
type Bound = (&'static str, &'static str, fn(f64, f64) -> bool);

const BOUNDS: &[Bound] = &[
    ("minimum", "at least", |number, bound| number >= bound),
    ("exclusiveMinimum", "greater than", |number, bound| number > bound),
    ("maximum", "at most", |number, bound| number <= bound),
    ("exclusiveMaximum", "less than", |number, bound| number < bound),
];

fn accepts(kind: &str, node: &Node) -> bool {
    let kinds: &[&str] = match &node.content {
        Content::Table(_) => &["object"],
        Content::Array(_) => &["array"],
        Content::Scalar(Value::String(_)) => &["string"],
        Content::Scalar(Value::Boolean(_)) => &["boolean"],
        Content::Scalar(Value::Integer(_)) => &["integer", "number"],
        Content::Scalar(Value::Float(_)) => &["number"],
        Content::Scalar(_) => &[],
    };
    kinds.contains(&kind)
}

fn a_kind(kind: &str) -> &'static str {
    match kind {
        "object" => "a table",
        "array" => "an array",
        "string" => "a string",
        "boolean" => "true or false",
        "integer" => "an integer",
        "number" => "a number",
        _ => "nothing",
    }
}

/// "`train.batch` is the string "24"".
fn is(path: &[String], node: &Node) -> String {
    let found = match &node.content {
        Content::Table(_) => "a table".to_owned(),
        Content::Array(items) => format!("an array of {}", items.len()),
        Content::Scalar(Value::String(text)) => format!("the string {:?}", shortened(text)),
        Content::Scalar(Value::Datetime(datetime)) => format!("the date {datetime}"),
        Content::Scalar(value) => value.to_string(),
    };
    format!("`{}` is {found}", path.join("."))
}

fn shortened(text: &str) -> String {
    const MOST: usize = 40;
    if text.chars().count() <= MOST { text.to_owned() } else { text.chars().take(MOST).chain(['…']).collect() }
}

fn type_hint(types: &[&str], node: &Node) -> String {
    match &node.content {
        Content::Scalar(Value::String(text)) if !types.contains(&"string") => match text.parse::<Value>() {
            Ok(value) if types.iter().any(|kind| accepts(kind, &Node::from_value(value.clone(), &Place::Program))) => {
                format!(": write {value} without quotes")
            }
            _ => String::new(),
        },
        Content::Scalar(Value::Float(value))
            if types.contains(&"integer") && value.fract() == 0.0 && value.abs() < 1e18 =>
        {
            format!(": write {}", *value as i64)
        }
        Content::Scalar(value) if types.contains(&"string") => format!(": write \"{value}\" in quotes"),
        _ => String::new(),
    }
}

fn same(constant: &Json, value: &Value) -> bool {
    match (constant, value) {
        (Json::String(a), Value::String(b)) => a == b,
        (Json::Bool(a), Value::Boolean(b)) => a == b,
        (Json::Number(a), Value::Integer(b)) => a.as_i64() == Some(*b),
        _ => false,
    }
}

fn one_of(constants: &[&Json]) -> String {
    let texts: Vec<String> = constants.iter().map(|constant| constant.to_string()).collect();
    match texts.as_slice() {
        [only] => only.clone(),
        [most @ .., last] => format!("{} or {last}", most.join(", ")),
        [] => String::new(),
    }
}

fn suggestion(text: Option<&str>, constants: &[&Json]) -> String {
    let found = text.and_then(|text| nearest(text, constants.iter().filter_map(|constant| constant.as_str())));
    found.map_or(String::new(), |found| format!(": did you mean {found:?}?"))
}

fn first_sentence(text: &str) -> String {
    let end = text.find(". ").unwrap_or(text.len());
    text[..end].trim_end_matches('.').replace('\n', " ")
}
