//! The reference page of the architecture language, from the registry.

use std::fmt::Write;

use crate::function::SECTIONS;

const INTRODUCTION: &str = "# Functions of the architecture language

An architecture is a Starlark file (a small, deterministic Python): `inputs` names what data brings, `def model(...)` builds
the network from it, `presets` may name sets of hyperparameters. These functions are there without import. Errors point at
the line and the scope.

Written by `tenon doc layers`; do not edit.
";

/// The reference page: every function with its signature, its meaning and an example. In the examples `x` is `[b, 16]`,
/// `sequence` `[b, t, 16]`, `image` `[b, 8, 8, 16]` and `ids` `[b, t]`.
pub fn reference_markdown() -> String {
    let mut page = INTRODUCTION.to_string();
    page.push_str("\nIn the examples `x` is `[b, 16]`, `sequence` is `[b, t, 16]`, `image` is `[b, 8, 8, 16]` and `ids` is `[b, t]`.\n");
    for (title, introduction, functions) in SECTIONS.iter() {
        write!(page, "\n## {title}\n\n{introduction}\n").expect("strings take everything");
        for function in functions {
            let doc = function.doc.split_whitespace().collect::<Vec<_>>().join(" ");
            let doc = if doc.ends_with('.') { doc } else { doc + "." };
            let example = function.example.replace("NAME", function.name);
            write!(page, "\n### {}({})\n\n{doc}\n\n    {example}\n", function.name, function.signature)
                .expect("strings take everything");
        }
    }
    page
}
