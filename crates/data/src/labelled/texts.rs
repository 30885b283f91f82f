//! Texts from CSV, JSON lines or folders, as rows: one or two texts, and a class where one is to be told.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
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
    /// The class of each; absent where none was asked for and the settings name none.
    pub labels: Option<Labels>,
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
    fn push(&mut self, path: &Path, at: RowAt, sample: Sample, label: Option<&[u8]>) -> Result<(), DataError> {
        if let Some(label) = label {
            self.cells.push(path, at, label)?;
        }
        self.samples.push(sample);
        Ok(())
    }
}

/// Reads all rows, those of a held-out file or folder last. They have a class each where that is `needed` or named.
pub(super) fn read(
    source: &TextSource,
    needed: bool,
    validation: Option<&Validation>,
    base_dir: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<TextRows, DataError> {
    let held_out = match validation {
        Some(Validation::File(Paths::One(path))) => Some(base_dir.join(path)),
        Some(Validation::File(Paths::Many(_)) | Validation::Idx(_)) => {
            return Err(DataError::setting(
                "data.validation",
                "such texts are held out by one other file or folder of their kind",
                "validation = { file = \"test.csv\" } or validation = { every = 10 }",
            ));
        }
        _ => None,
    };
    let mut rows = Reading::default();
    let label = source.label.as_deref();
    let complete = label.is_some() || !needed;
    let own = match (&source.csv, &source.jsonl, &source.folder, &source.text) {
        (Some(csv), None, None, Some(text)) if complete => {
            read_csv(source, &base_dir.join(csv), text, held_out.as_deref(), &mut rows, progress)?
        }
        (None, Some(jsonl), None, Some(text)) if complete && source.header.is_none() => {
            let own = read_jsonl(source, &base_dir.join(jsonl), text, &mut rows, progress)?;
            if let Some(path) = held_out {
                read_jsonl(source, &path, text, &mut rows, progress)?;
            }
            own
        }
        (None, None, Some(folder), None) if label.or(source.pair.as_deref()).is_none() && source.header.is_none() => {
            let own = read_folder(&base_dir.join(folder), needed, &mut rows, progress)?;
            if let Some(path) = held_out {
                read_folder(&path, needed, &mut rows, progress)?;
            }
            own
        }
        _ => {
            return Err(DataError::setting(
                "data.labelled_text",
                "texts are either `csv` or `jsonl` with the column `text` and, to be classified, `label`; or a `folder`, to be \
                 classified with a folder for each class",
                "labelled_text = { csv = \"reviews.csv\", text = \"review\", label = \"stars\" } or \
                 labelled_text = { folder = \"mails\" }; texts without classes are for train.objective = \"masked-lm\"",
            ));
        }
    };
    if rows.samples.is_empty() {
        return Err(DataError::setting("data.labelled_text", "the data has no sample", "name a file that has some"));
    }
    let labelled = needed || label.is_some();
    let labels = labelled.then(|| rows.cells.finish(WholeNumbers::AreNames)).transpose()?;
    let rows = TextRows { samples: rows.samples, labels, own, notes: Vec::new() };
    Ok(if source.deduplicate { without_duplicates(rows) } else { rows })
}

/// Keeps the first of equal samples; a held-out one that is also trained on goes.
fn without_duplicates(rows: TextRows) -> TextRows {
    let mut first: HashMap<Sample, usize> = HashMap::new();
    let mut kept: Vec<usize> = Vec::new();
    let label = |row: usize| rows.labels.as_ref().map(|labels| labels.values[row]);
    let mut disagree = 0;
    for (row, (text, pair)) in rows.samples.iter().enumerate() {
        match first.entry((text.trim().to_owned(), pair.as_ref().map(|text| text.trim().to_owned()))) {
            Entry::Occupied(other) => disagree += usize::from(label(*other.get()) != label(row)),
            Entry::Vacant(place) => {
                place.insert(row);
                kept.push(row);
            }
        }
    }
    let removed = rows.samples.len() - kept.len();
    let mut notes = rows.notes;
    if removed > 0 {
        let other = if disagree > 0 { format!(", {disagree} of them with another label") } else { String::new() };
        notes.push(format!("{removed} samples are removed, whose text an earlier one has{other}"));
    }
    let mut samples: Vec<Option<Sample>> = rows.samples.into_iter().map(Some).collect();
    TextRows {
        samples: kept.iter().filter_map(|&row| samples[row].take()).collect(),
        labels: rows
            .labels
            .map(|Labels { values, names }| Labels { values: kept.iter().map(|&row| values[row]).collect(), names }),
        own: kept.partition_point(|&row| row < rows.own),
        notes,
    }
}

fn read_csv(
    source: &TextSource,
    path: &Path,
    text: &str,
    held_out: Option<&Path>,
    rows: &mut Reading,
    progress: &mut dyn FnMut(Progress),
) -> Result<usize, DataError> {
    // A text is seldom a number, so that a first row without one says little: it is a header unless the file denies it.
    let header = source.header.or(Some(true));
    let file = CsvFile::open(path, header)?;
    let text = file.column("data.labelled_text.text", text)?;
    let other = |key: &str, name: &Option<String>| name.as_ref().map(|name| file.column(key, name)).transpose();
    let label = other("data.labelled_text.label", &source.label)?;
    let pair = other("data.labelled_text.pair", &source.pair)?;
    file.read_all(held_out, header, progress, &mut |file, at, row| {
        let cell = |column: usize| match std::str::from_utf8(&row[column]) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(not_utf8(&file.path, at.place(&file.path), &file.column_name(column), &row[column])),
        };
        let sample = (cell(text)?, pair.map(cell).transpose()?);
        rows.push(&file.path, at, sample, label.map(|label| &row[label]))
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
    text: &str,
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
        let class = |key: &str| match value(key)? {
            Value::String(name) => Ok(name.clone()),
            Value::Number(number) => Ok(number.to_string()),
            Value::Bool(truth) => Ok(truth.to_string()),
            other => Err(wrong(format!("`{key}` is {other}, which names no class"), "a word or a number")),
        };
        let class = source.label.as_deref().map(class).transpose()?;
        let sample = (words(text)?, source.pair.as_deref().map(words).transpose()?);
        rows.push(path, at, sample, class.as_deref().map(str::as_bytes))?;
        if rows.samples.len().is_multiple_of(1024) {
            progress(Progress::Reading { samples: rows.samples.len() as u64 });
        }
    }
}

/// Every text file in `folder` is a sample; to be `classified`, every folder in it is a class.
fn read_folder(
    folder: &Path,
    classified: bool,
    rows: &mut Reading,
    progress: &mut dyn FnMut(Progress),
) -> Result<usize, DataError> {
    if !classified {
        read_texts(folder, None, rows, progress)?;
        return Ok(rows.samples.len());
    }
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
        read_texts(&class, Some(name.as_bytes()), rows, progress)?;
    }
    Ok(rows.samples.len())
}

fn read_texts(
    folder: &Path,
    class: Option<&[u8]>,
    rows: &mut Reading,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), DataError> {
    for file in list_files("data.labelled_text.folder", &Paths::One(folder.to_owned()), Path::new(""))? {
        let bytes = fs::read(&file).map_err(DataError::io("read", &file))?;
        let text = text_of(&bytes).map_err(|error| {
            let at = error.valid_up_to();
            not_utf8(&file, Place::Byte(at as u64), "the text", &without_mark(&bytes)[at..])
        })?;
        rows.push(&file, RowAt::new(0, 1), (text.to_owned(), None), class)?;
        if rows.samples.len().is_multiple_of(1024) {
            progress(Progress::Reading { samples: rows.samples.len() as u64 });
        }
    }
    Ok(())
}
