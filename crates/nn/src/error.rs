//! What is said when an architecture cannot be built, read or written.

use std::fmt;

use tenon_graph::diagnostic::{Diagnostic, Site};

/// An error: what, where, both sides, what to try.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct ModelError {
    /// What is wrong, one line.
    pub message: String,
    /// Where; line 0 where there is no place in a file.
    pub site: Site,
    /// The source line at `site`.
    pub excerpt: Option<String>,
    /// The operands or facts that disagree, one each.
    pub notes: Vec<String>,
    /// What to try.
    pub help: Option<String>,
}

impl ModelError {
    /// An error without a place.
    pub fn new(message: impl Into<String>) -> ModelError {
        ModelError { message: message.into(), ..ModelError::default() }
    }

    /// This error with one more fact.
    pub fn note(mut self, note: impl Into<String>) -> ModelError {
        self.notes.push(note.into());
        self
    }

    /// This error with something to try.
    pub fn help(mut self, help: impl Into<String>) -> ModelError {
        self.help = Some(help.into());
        self
    }

    /// An error of reading or writing a file.
    pub(crate) fn io(doing: &str, path: &std::path::Path, error: &std::io::Error) -> ModelError {
        ModelError::new(format!("{doing} {}: {error}", path.display()))
    }
}

impl From<Diagnostic> for ModelError {
    fn from(diagnostic: Diagnostic) -> ModelError {
        let Diagnostic { message, site, notes, help } = diagnostic;
        ModelError { message, site, excerpt: None, notes, help }
    }
}

impl fmt::Display for ModelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ModelError { message, site, excerpt, notes, help } = self;
        write!(f, "{message}")?;
        if site.line > 0 {
            write!(f, "\n  --> {site}")?;
            if !site.path.is_empty() {
                write!(f, ", in {}", site.path)?;
            }
        }
        let mut separate = notes.as_slice();
        if let Some(source) = excerpt {
            let line = site.line.to_string();
            let gutter = " ".repeat(line.len());
            let indent = " ".repeat(site.column.saturating_sub(1) as usize);
            let carets = "^".repeat(site.length.max(1) as usize);
            write!(f, "\n{gutter} |\n{line} | {source}\n{gutter} | {indent}{carets}")?;
            // Two sides fit beside the carets; more facts read better one a line.
            if notes.len() <= 2 {
                separate = &[];
                for (i, note) in notes.iter().enumerate() {
                    write!(f, "{}{note}", if i == 0 { " " } else { ", " })?;
                }
            }
        }
        for note in separate {
            write!(f, "\n  {note}")?;
        }
        if let Some(help) = help {
            write!(f, "\n  try: {help}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ModelError {}

/// `, did you mean ...` if one of `known` is close to `name`, else all of them.
pub(crate) fn suggest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let known: Vec<&str> = known.into_iter().collect();
    let closest = known.iter().map(|k| (strsim::damerau_levenshtein(name, k), k)).min();
    match closest {
        Some((distance, close)) if distance <= 1 + name.len() / 4 => format!("did you mean `{close}`?"),
        Some(_) => format!("one of {}", known.join(", ")),
        None => "there are none".to_string(),
    }
}
