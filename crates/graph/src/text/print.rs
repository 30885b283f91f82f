//! Writing text form.

use std::fmt::{self, Write};

use crate::diagnostic::Site;
use crate::graph::{Graph, Node, Phase, Value};
use crate::op::{Op, Source};
use crate::text::scan::is_bare;
use crate::text::settings::settings;

/// The graph in text form. [`parse`](super::parse) gives it back: the same nodes, sites, outputs and updates.
pub fn print(graph: &Graph) -> String {
    let mut text = String::new();
    for node in graph.nodes() {
        line(&mut text, graph, node).expect("writing to a string does not fail");
    }
    for (name, value) in &graph.outputs {
        text += &format!("output {} = %{}\n", Name(name), value.index());
    }
    for (input, new) in &graph.updates {
        text += &format!("update %{} = %{}\n", input.index(), new.index());
    }
    text
}

/// The types, operation and settings of a node: on equal operands, equal texts are equal computations.
pub(crate) fn computation(graph: &Graph, node: Node) -> String {
    let data = graph.node(node);
    let mut text = String::new();
    let written = data.outputs().try_for_each(|v| write!(text, "{} ", graph.ty(v)));
    written.and_then(|()| operation(&mut text, &data.op, &[])).expect("writing to a string does not fail");
    text
}

fn operation(text: &mut String, op: &Op, operands: &[Value]) -> fmt::Result {
    text.push_str(op.name());
    match op {
        Op::Source(Source::Input { name, role, .. }) => write!(text, " {} {}", role.name(), Name(name))?,
        Op::Source(Source::Constant { value, .. }) => write!(text, " {value:?}")?,
        Op::Source(Source::Size(dim)) => write!(text, " {dim}")?,
        _ => {}
    }
    for (i, operand) in operands.iter().enumerate() {
        write!(text, "{} %{}", if i > 0 { "," } else { "" }, operand.index())?;
    }
    let settings = settings(op);
    for (i, (name, setting)) in settings.iter().enumerate() {
        write!(text, "{}{name}: {setting}", if i > 0 { ", " } else { " {" })?;
    }
    if !settings.is_empty() {
        text.push('}');
    }
    Ok(())
}

fn line(text: &mut String, graph: &Graph, node: Node) -> fmt::Result {
    let data = graph.node(node);
    for (i, value) in data.outputs().enumerate() {
        write!(text, "{}%{}: {}", if i > 0 { ", " } else { "" }, value.index(), graph.ty(value))?;
    }
    text.push_str(" = ");
    operation(text, &data.op, &data.inputs)?;
    if data.phase != Phase::Forward {
        write!(text, "  @{}", data.phase.name())?;
    }
    site(text, graph.site(node))?;
    text.push('\n');
    Ok(())
}

fn site(text: &mut String, site: &Site) -> fmt::Result {
    if *site == Site::default() {
        return Ok(());
    }
    let Site { file, line, column, length, path } = site;
    if file.is_empty() && (*line, *column, *length) == (0, 0, 0) {
        text.push_str("  // -");
    } else {
        write!(text, "  // {}:{line}:{column}", Name(file))?;
        if *length > 0 {
            write!(text, "+{length}")?;
        }
    }
    if !path.is_empty() {
        write!(text, " {}", Name(path))?;
    }
    Ok(())
}

/// A name, quoted if it has to be.
struct Name<'a>(&'a str);

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.0.is_empty() && self.0.chars().all(is_bare) {
            return f.write_str(self.0);
        }
        f.write_char('"')?;
        for c in self.0.chars() {
            match c {
                '"' | '\\' => write!(f, "\\{c}")?,
                c if c.is_control() => write!(f, "\\u{{{:x}}}", c as u32)?,
                c => f.write_char(c)?,
            }
        }
        f.write_char('"')
    }
}
