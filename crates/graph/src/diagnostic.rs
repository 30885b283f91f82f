//! Where a node comes from, and what is said when one cannot be built.

use std::fmt;
use std::sync::Arc;

/// A place in a program that builds a graph: a line of an architecture file and the scope it ran in.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Site {
    /// The file as the user named it; empty where there is none.
    pub file: Arc<str>,
    /// Line, from 1; 0 where there is none.
    pub line: u32,
    /// Column, from 1.
    pub column: u32,
    /// Characters from `column` on that the call takes on its line.
    pub length: u32,
    /// The scope path, such as `h.3.mlp`.
    pub path: Arc<str>,
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 { write!(f, "{}:{}:{}", self.file, self.line, self.column) } else { f.write_str("built in") }
    }
}

/// An error in a graph under construction: what, where, both sides, what to try.
#[derive(Clone, PartialEq, Debug)]
pub struct Diagnostic {
    /// What is wrong, one line.
    pub message: String,
    /// Where.
    pub site: Site,
    /// The operands or facts that disagree, one line each.
    pub notes: Vec<String>,
    /// What to try.
    pub help: Option<String>,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.message)?;
        if self.site.line > 0 {
            write!(f, "\n  --> {}", self.site)?;
        }
        if !self.site.path.is_empty() {
            write!(f, ", in {}", self.site.path)?;
        }
        for note in &self.notes {
            write!(f, "\n  {note}")?;
        }
        if let Some(help) = &self.help {
            write!(f, "\n  try: {help}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostic {}
