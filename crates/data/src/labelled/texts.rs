//! Labelled texts from CSV, JSON lines or folders by class, as rows: one or two texts and a class.

use std::collections::HashMap;
use std::fs;
use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::str::Utf8Error;

use serde_json::Value;

use super::csv::{CsvFile, RowAt, shown};
use super::labels::{LabelCells, Labels, WholeNumbers};
use crate::config::{Paths, TextSource, Validation};
use crate::error::{DataError, Place};
use crate::files::{is_hidden, open_contents, without_mark};
use crate::open::Progress;
use crate::text::source::list_files;

/// One sample: a text, and the second of a pair where there is one.
pub(super) type Sample = (String, Option<String>);

/// The rows of a source.
pub(super) struct TextRows {
    pub samples: Vec<Sample>,
    pub labels: Labels,
    /// How many, the first, come from the training files; the others from held-out ones.
    pub own: usize,
    pub notes: Vec<String>,
}

/// Rows as they are read.
#[derive(Default)]
struct Reading {
    samples: Vec<Sample>,
    cells: LabelCells,
}

impl Reading {
    fn push(&mut self, path: &Path, at: RowAt, sample: Sample, label: &[u8]) -> Result<(), DataError> {
        self.cells.push(path, at, label)?;
        self.samples.push(sample);
        Ok(())
    }
}

/// Reads all rows, those of a held-out file or folder last.
pub(super) fn read(
    source: &TextSource,
    validation: Option<&Validation>,
    base_dir: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<TextRows, DataError> {
    let held_out = match validation {
        Some(Validation::File(Paths::One(path))) => Some(base_dir.join(path)),
        Some(Validation::File(Paths::Many(_)) | Validation::Idx(_)) => {
            return Err(DataError::setting(
                "data.validation",
                "labelled texts are held out by one other file or folder of their kind",
                "validation = { file = \"test.csv\" } or validation = { stratified = 0.2 }",
            ));
        }
        _ => None,
    };
    let mut rows = Reading::default();
    let named = (&source.text, &source.label);
    let own = match (&source.csv, &source.jsonl, &source.folder, named) {
        (Some(csv), None, None, (Some(text), Some(label))) => {
            read_csv(source, &base_dir.join(csv), (text, label), held_out.as_deref(), &mut rows, progress)?
        }
        (None, Some(jsonl), None, (Some(text), Some(label))) if source.header.is_none() => {
            let own = read_jsonl(source, &base_dir.join(jsonl), (text, label), &mut rows, progress)?;
            if let Some(path) = held_out {
                read_jsonl(source, &path, (text, label), &mut rows, progress)?;
            }
            own
        }
        (None, None, Some(folder), (None, None)) if source.pair.is_none() && source.header.is_none() => {
            let own = read_folder(&base_dir.join(folder), &mut rows, progress)?;
            if let Some(path) = held_out {
                read_folder(&path, &mut rows, progress)?;
            }
            own
        }
        _ => {
            return Err(DataError::setting(
                "data.labelled_text",
                "labelled texts need either `csv` or `jsonl` with the columns `text` and `label`, or a `folder` with a \
                 folder for each class",
                "labelled_text = { csv = \"reviews.csv\", text = \"review\", label = \"stars\" } or \
                 labelled_text = { folder = \"mails\" }",
            ));
        }
    };
    if rows.samples.is_empty() {
        return Err(DataError::setting("data.labelled_text", "the data has no sample", "name a file that has some"));
    }
    let labels = rows.cells.finish(WholeNumbers::AreNames)?;
    let rows = TextRows { samples: rows.samples, labels, own, notes: Vec::new() };
    Ok(if source.deduplicate { without_duplicates(rows) } else { rows })
}

/// Keeps the first of equal samples; a held-out one that is also trained on goes.
fn without_duplicates(rows: TextRows) -> TextRows {
    let mut first: HashMap<Sample, u32> = HashMap::new();
    let (mut kept, mut removed, mut disagree, mut own) = (Vec::new(), 0, 0, rows.own);
    let mut values = Vec::new();
    for (row, (sample, &label)) in rows.samples.into_iter().zip(&rows.labels.values).enumerate() {
        let key = (sample.0.trim().to_owned(), sample.1.as_ref().map(|text| text.trim().to_owned()));
        if let Some(other) = first.get(&key) {
            removed += 1;
            disagree += usize::from(*other != label);
            own -= usize::from(row < rows.own);
            continue;
        }
        first.insert(key, label);
        kept.push(sample);
        values.push(label);
    }
    let mut notes = rows.notes;
    if removed > 0 {
        let other = if disagree > 0 { format!(", {disagree} of them with another label") } else { String::new() };
        notes.push(format!("{removed} samples are removed, whose text an earlier one has{other}"));
    }
    TextRows { samples: kept, labels: Labels { values, names: rows.labels.names }, own, notes }
}

fn read_csv(
    source: &TextSource,
    path: &Path,
    (text, label): (&str, &str),
    held_out: Option<&Path>,
    rows: &mut Reading,
    progress: &mut dyn FnMut(Progress),
) -> Result<usize, DataError> {
    // A text is seldom a number, so that a first row without one says little: it is a header unless the file denies it.
    let header = source.header.or(Some(true));
    let file = CsvFile::open(path, header)?;
    let text = file.column("data.labelled_text.text", text)?;
    let label = file.column("data.labelled_text.label", label)?;
    let pair = match &source.pair {
        Some(pair) => Some(file.column("data.labelled_text.pair", pair)?),
        None => None,
    };
    file.read_all(held_out, header, progress, &mut |file, at, row| {
        let cell = |column: usize| match std::str::from_utf8(&row[column]) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(not_utf8(&file.path, at.place(&file.path), &file.column_name(column), &row[column])),
        };
        let sample = (cell(text)?, pair.map(cell).transpose()?);
        rows.push(&file.path, at, sample, &row[label])
    })
}

/// The text in the bytes of a file.
///
/// # Errors
/// It is not UTF-8.
pub fn text_of(bytes: &[u8]) -> Result<&str, Utf8Error> {
    std::str::from_utf8(without_mark(bytes))
}

fn not_utf8(path: &Path, at: Place, what: &str, bytes: &[u8]) -> DataError {
    let message = format!("{what} is not UTF-8: `{}`", shown(bytes));
    DataError::content(path, at, message, "convert the file, for example: iconv -f WINDOWS-1252 -t UTF-8 FILE > NEW")
}

fn read_jsonl(
    source: &TextSource,
    path: &Path,
    (text, label): (&str, &str),
    rows: &mut Reading,
    progress: &mut dyn FnMut(Progress),
) -> Result<usize, DataError> {
    let mut reader = open_contents(path)?.reader;
    let (mut line, mut byte, mut bytes) = (0, 0, Vec::new());
    loop {
        bytes.clear();
        let read = reader.read_until(b'\n', &mut bytes).map_err(DataError::io("read", path))? as u64;
        if read == 0 {
            return Ok(rows.samples.len());
        }
        let at = RowAt::new(byte, line + 1);
        line += 1;
        byte += read;
        if bytes.trim_ascii().is_empty() {
            continue;
        }
        let wrong = |what: String, hint: &str| DataError::content(path, Place::Line(line), what, hint);
        let form = "each line is an object such as {\"text\": \"...\", \"label\": \"...\"}";
        let own = if line == 1 { without_mark(&bytes) } else { &bytes };
        let object = match serde_json::from_slice(own) {
            Ok(Value::Object(object)) => object,
            Ok(other) => return Err(wrong(format!("no object: {}", shown(other.to_string().as_bytes())), form)),
            Err(error) => return Err(wrong(format!("not JSON: {error}"), form)),
        };
        let value = |key: &str| {
            object.get(key).ok_or_else(|| {
                let keys: Vec<&str> = object.keys().map(String::as_str).collect();
                wrong(format!("no key `{key}`; the line has {}", keys.join(", ")), "give every line the same keys")
            })
        };
        let words = |key: &str| match value(key)? {
            Value::String(text) => Ok(text.clone()),
            other => Err(wrong(format!("`{key}` is {other}, not text"), "put the text between quotes")),
        };
        let class = match value(label)? {
            Value::String(name) => name.clone(),
            Value::Number(number) => number.to_string(),
            Value::Bool(truth) => truth.to_string(),
            other => return Err(wrong(format!("`{label}` is {other}, which names no class"), "a word or a number")),
        };
        let sample = (words(text)?, source.pair.as_deref().map(words).transpose()?);
        rows.push(path, at, sample, class.as_bytes())?;
        if rows.samples.len().is_multiple_of(1024) {
            progress(Progress::Reading { samples: rows.samples.len() as u64 });
        }
    }
}

/// Every folder in `folder` is a class, every text file in it a sample.
fn read_folder(folder: &Path, rows: &mut Reading, progress: &mut dyn FnMut(Progress)) -> Result<usize, DataError> {
    let mut classes: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(folder).map_err(DataError::io("list", folder))? {
        let entry = entry.map_err(DataError::io("list", folder))?;
        if entry.path().is_dir() && !is_hidden(&entry) {
            classes.push(entry.path());
        }
    }
    classes.sort();
    if classes.is_empty() {
        return Err(DataError::content(
            folder,
            Place::Whole,
            "the folder has no folders, which would be the classes",
            "put the texts of each class into a folder with its name",
        ));
    }
    for class in classes {
        let name = class.file_name().unwrap_or_default().to_string_lossy().into_owned();
        for file in list_files("data.labelled_text.folder", &Paths::One(class), Path::new(""))? {
            let bytes = fs::read(&file).map_err(DataError::io("read", &file))?;
            let text = text_of(&bytes).map_err(|error| {
                let at = error.valid_up_to();
                not_utf8(&file, Place::Byte(at as u64), "the text", &without_mark(&bytes)[at..])
            })?;
            rows.push(&file, RowAt::new(0, 1), (text.to_owned(), None), name.as_bytes())?;
            if rows.samples.len().is_multiple_of(1024) {
                progress(Progress::Reading { samples: rows.samples.len() as u64 });
            }
        }
    }
    Ok(rows.samples.len())
}
