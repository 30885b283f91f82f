//! The rules of the code base: what can be checked is a test, not a reviewer's memory. Every test lists all offenders.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The most lines of a source file.
const MOST_LINES: usize = 600;

/// Each crate and the crates of ours that it may depend on.
const LAYERS: &[(&str, &[&str])] = &[
    ("graph", &[]),
    ("data", &[]),
    ("cpu", &["graph"]),
    ("nn", &["graph"]),
    ("train", &["graph", "nn", "data"]),
    ("cli", &["graph", "cpu", "nn", "data", "train"]),
];

/// Where `unsafe` may be written.
const UNSAFE: &[&str] = &["crates/cpu/", "crates/data/src/text/shards.rs"];

/// The pages whose relative links must lead to something; folders stand for every page in them.
const PAGES: &[&str] = &["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs", "bench"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// All files below `folder` whose name ends in `extension`, by their path from the root.
fn files(folder: &str, extension: &str) -> BTreeMap<String, String> {
    let root = root();
    let mut found = BTreeMap::new();
    let mut folders = vec![root.join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == extension) {
                let name = path.strip_prefix(&root).unwrap().to_string_lossy().replace('\\', "/");
                found.insert(name, fs::read_to_string(&path).unwrap());
            }
        }
    }
    found
}

fn sources() -> BTreeMap<String, String> {
    let sources = files("crates", "rs");
    assert!(sources.len() > 100, "only {} source files were found", sources.len());
    sources
}

fn assert_none(what: &str, offenders: &[String]) {
    assert!(offenders.is_empty(), "{what}:\n  {}", offenders.join("\n  "));
}

/// Whether `word` stands in `line` on its own.
fn has_word(line: &str, word: &str) -> bool {
    let inside = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    line.match_indices(word)
        .any(|(at, _)| !inside(line[..at].chars().next_back()) && !inside(line[at + word.len()..].chars().next()))
}

/// The lines of a file without comments and string literals, with their numbers; good enough for rules on words.
fn code(text: &str) -> impl Iterator<Item = (usize, String)> {
    text.lines().enumerate().map(|(i, line)| {
        let mut kept = String::new();
        let mut quoted = false;
        let mut characters = line.chars().peekable();
        while let Some(c) = characters.next() {
            match c {
                '\\' if quoted => drop(characters.next()),
                '"' => quoted = !quoted,
                '/' if !quoted && characters.peek() == Some(&'/') => break,
                _ if quoted => {}
                _ => kept.push(c),
            }
        }
        (i + 1, kept)
    })
}

#[test]
fn every_file_begins_with_what_it_is() {
    let silent: Vec<String> =
        sources().into_iter().filter(|(_, text)| !text.starts_with("//! ")).map(|(name, _)| name).collect();
    assert_none("files whose first line is not `//! ...`", &silent);
}

#[test]
fn no_file_is_long() {
    let lengths = sources().into_iter().map(|(name, text)| (name, text.lines().count()));
    let long: Vec<String> =
        lengths.filter(|(_, lines)| *lines > MOST_LINES).map(|(name, lines)| format!("{name}: {lines}")).collect();
    assert_none(&format!("files of more than {MOST_LINES} lines"), &long);
}

#[test]
fn crates_depend_downwards_only() {
    let mut wrong = Vec::new();
    let manifests = files("crates", "toml").into_iter().filter(|(name, _)| name.ends_with("/Cargo.toml"));
    let mut seen = 0;
    for (name, text) in manifests {
        let krate = name.split('/').nth(1).unwrap();
        let Some((_, allowed)) = LAYERS.iter().find(|(layer, _)| *layer == krate) else {
            wrong.push(format!("{name}: the crate is not in LAYERS"));
            continue;
        };
        seen += 1;
        // Dependencies of tests count too: a test that needs an upper layer belongs to that layer.
        let ours = text.lines().filter_map(|line| line.trim().strip_prefix("tenon-"));
        for line in ours {
            let dependency: String = line.chars().take_while(char::is_ascii_alphanumeric).collect();
            if !allowed.contains(&dependency.as_str()) {
                wrong.push(format!("{name}: {krate} must not depend on {dependency}"));
            }
        }
    }
    assert_eq!(seen, LAYERS.len(), "crates of LAYERS that are gone");
    assert_none("manifests against the layering", &wrong);
}

#[test]
fn unsafe_code_is_where_it_belongs() {
    let mut wrong = Vec::new();
    for (name, text) in sources() {
        if UNSAFE.iter().any(|allowed| name.starts_with(allowed)) {
            continue;
        }
        wrong.extend(code(&text).filter(|(_, line)| has_word(line, "unsafe")).map(|(n, _)| format!("{name}:{n}")));
    }
    assert_none("`unsafe` outside of its places", &wrong);
}

#[test]
fn nothing_is_unfinished() {
    // Put together here so that this file does not find itself.
    let macros = ["todo", "dbg", "unimplemented"].map(|name| format!("{name}!"));
    let notes = [["FIX", "ME"], ["TO", "DO"], ["XX", "X"]].map(|halves| halves.concat());
    let ignored = format!("#[{}", "ignore");
    let mut wrong = Vec::new();
    for (name, text) in sources() {
        for (n, line) in code(&text) {
            if macros.iter().any(|m| line.contains(m.as_str())) || line.contains(&ignored) {
                wrong.push(format!("{name}:{n}: {}", line.trim()));
            }
        }
        for (i, line) in text.lines().enumerate() {
            if notes.iter().any(|note| has_word(line, note)) {
                wrong.push(format!("{name}:{}: {}", i + 1, line.trim()));
            }
        }
    }
    assert_none("unfinished code, ignored tests", &wrong);
}

#[test]
fn what_is_allowed_has_a_reason() {
    let mut wrong = Vec::new();
    for (name, text) in sources() {
        for opening in ["allow(", "expect("] {
            for attribute in ["#[", "#!["].map(|start| format!("{start}{opening}")) {
                for (at, _) in text.match_indices(&attribute) {
                    let whole = text[at..].split(")]").next().unwrap();
                    let line = text[..at].lines().count() + 1;
                    if !whole.contains("reason = ") && !text[..at].ends_with('"') {
                        wrong.push(format!("{name}:{line}: {whole})]"));
                    }
                }
            }
        }
    }
    assert_none("lints allowed without a reason", &wrong);
}

#[test]
fn the_page_of_layers_is_current() {
    let page = fs::read_to_string(root().join("docs/layers.md")).unwrap();
    assert!(
        page == tenon::nn::reference_markdown(),
        "docs/layers.md is not current\n  try: cargo run --release -- doc layers > docs/layers.md"
    );
}

#[test]
fn the_page_of_experiments_names_every_key() {
    let schema = tenon::train::experiment::Experiment::schema();
    let page = fs::read_to_string(root().join("docs/experiment.md")).unwrap();
    let mut keys = Vec::new();
    let mut values = vec![&schema];
    while let Some(value) = values.pop() {
        if let Some(properties) = value.get("properties").and_then(|p| p.as_object()) {
            keys.extend(properties.keys().cloned());
        }
        values.extend(value.as_object().into_iter().flat_map(|object| object.values()));
        values.extend(value.as_array().into_iter().flatten());
    }
    assert!(keys.len() > 50, "only {} keys were found in the schema", keys.len());
    keys.retain(|key| !has_word(&page, key));
    keys.sort_unstable();
    keys.dedup();
    assert_none("keys that docs/experiment.md does not name", &keys);
}

#[test]
fn recipes_state_a_goal_and_their_page_names_them() {
    let page = fs::read_to_string(root().join("docs/recipes.md")).unwrap();
    let mut wrong = Vec::new();
    for name in files("recipes", "toml").keys() {
        match tenon::train::experiment::Experiment::load(&root().join(name), &[]) {
            Ok(experiment) if experiment.goal.is_empty() => wrong.push(format!("{name} has no goal")),
            Ok(_) => {}
            Err(error) => wrong.push(format!("{name}: {error}")),
        }
        if !page.contains(&format!("](../{name})")) {
            wrong.push(format!("{name} is not in docs/recipes.md"));
        }
    }
    assert_none("recipes", &wrong);
}

#[test]
fn links_lead_somewhere() {
    let root = root();
    let mut pages = BTreeMap::new();
    for page in PAGES {
        if page.ends_with(".md") {
            pages.insert(
                (*page).to_owned(),
                fs::read_to_string(root.join(page)).unwrap_or_else(|e| panic!("{page}: {e}")),
            );
        } else {
            pages.extend(files(page, "md"));
        }
    }
    let mut dead = Vec::new();
    for (name, text) in &pages {
        let folder = root.join(name).parent().unwrap().to_owned();
        for (i, line) in text.lines().enumerate() {
            let targets = line.split("](").skip(1).filter_map(|rest| rest.split(')').next());
            for target in targets {
                let path = target.split('#').next().unwrap();
                if !target.contains("://") && !path.is_empty() && !folder.join(path).exists() {
                    dead.push(format!("{name}:{}: {target}", i + 1));
                }
            }
        }
    }
    assert_none("links that lead nowhere", &dead);
}
