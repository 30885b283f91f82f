//! The one error of this crate: what is wrong, where, both sides, and what to try.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Why data could not be opened. `Display` prints what is wrong, then `-->` where, then `try:` what to do.
#[derive(Debug)]
pub enum DataError {
    /// A setting of the `[data]` table is missing, contradictory or out of range.
    Setting {
        /// Full key of the setting, as in `data.validation.last`.
        key: String,
        /// What is wrong, with the value found and the values allowed.
        what: String,
        /// What to try.
        hint: String,
    },
    /// The operating system refused a file operation.
    Io {
        /// What was being done, as in `read`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A file holds something else than the settings or its own header say.
    Content {
        /// The file.
        path: PathBuf,
        /// Where in the file.
        at: Place,
        /// What is wrong, both sides.
        what: String,
        /// What to try.
        hint: String,
    },
}

/// A place inside a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The file as a whole.
    Whole,
    /// A line, counted from 1.
    Line(u64),
    /// A byte offset, counted from 0.
    Byte(u64),
}

impl DataError {
    pub(crate) fn setting(key: impl Into<String>, what: impl Into<String>, hint: impl Into<String>) -> Self {
        DataError::Setting { key: key.into(), what: what.into(), hint: hint.into() }
    }

    pub(crate) fn content(path: &Path, at: Place, what: impl Into<String>, hint: impl Into<String>) -> Self {
        DataError::Content { path: path.to_path_buf(), at, what: what.into(), hint: hint.into() }
    }

    /// For `map_err`: an `io::Error` of `action` on `path`.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| DataError::Io { action, path: path.to_path_buf(), source }
    }
}

impl fmt::Display for DataError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DataError::Setting { key, what, hint } => {
                write!(f, "{what}\n  --> {key}\n  try: {hint}")
            }
            DataError::Io { action, path, source } => {
                write!(f, "cannot {action}: {source}\n  --> {}\n  try: {}", path.display(), hint_for(source.kind()))
            }
            DataError::Content { path, at, what, hint } => {
                write!(f, "{what}\n  --> {}{at}\n  try: {hint}", path.display())
            }
        }
    }
}

fn hint_for(kind: io::ErrorKind) -> &'static str {
    match kind {
        io::ErrorKind::NotFound => "check the name; paths are relative to the folder of the experiment file",
        io::ErrorKind::PermissionDenied => "check the permissions of the file and its folder",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "free some space, or choose another cache folder",
        io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput | io::ErrorKind::UnexpectedEof => {
            "the file is damaged or incomplete: fetch it again"
        }
        _ => "check that the disk and the file can be used",
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Whole => Ok(()),
            Place::Line(line) => write!(f, ":{line}"),
            Place::Byte(byte) => write!(f, ", byte {byte}"),
        }
    }
}

impl std::error::Error for DataError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            DataError::Io { source, .. } => Some(source),
            DataError::Setting { .. } | DataError::Content { .. } => None,
        }
    }
}
