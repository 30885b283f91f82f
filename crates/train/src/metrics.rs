//! `metrics.jsonl`: what a run measured, one record a line, appended as it happens.
//!
//! A killed process loses nothing that was appended. On resumption the records after the resumed step are dropped, so the
//! file of a resumed run equals that of an uninterrupted one but for `wall`. A checkpoint is therefore written after the
//! records of its step, and after [`MetricsLog::sync`].

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Seek, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::files::FileError;
use crate::numbers;

/// What a record is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Training batches since the last such record: `loss`, `lr`, `grad_norm`.
    Train,
    /// An evaluation on held-out data: `val_loss` and the metrics of the task.
    Evaluate,
    /// Generated text.
    Sample,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Record {
    /// Optimizer steps done.
    pub step: u64,
    /// What it is about.
    pub kind: Kind,
    /// What is the same on every run of the experiment.
    #[serde(with = "numbers", skip_serializing_if = "BTreeMap::is_empty")]
    pub values: BTreeMap<String, f64>,
    /// Generated text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// What depends on the machine and its load: `elapsed` (seconds in training), `tokens_per_second`, `samples_per_second`.
    #[serde(with = "numbers", skip_serializing_if = "BTreeMap::is_empty")]
    pub wall: BTreeMap<String, f64>,
}

impl Record {
    /// A record with values only.
    pub fn new<'a>(step: u64, kind: Kind, values: impl IntoIterator<Item = (&'a str, f64)>) -> Record {
        let values = values.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        Record { step, kind, values, text: None, wall: BTreeMap::new() }
    }

    /// Reads a line. Keys that this version does not know are ignored.
    fn parse(line: &str) -> Option<Record> {
        let value: Value = serde_json::from_str(line).ok()?;
        let map = |key: &str| match value.get(key) {
            None => Some(BTreeMap::new()),
            Some(map) => {
                let entry = |(key, value): (&String, &Value)| Some((key.clone(), numbers::from_json(value)?));
                map.as_object()?.iter().map(entry).collect()
            }
        };
        Some(Record {
            step: value.get("step")?.as_u64()?,
            kind: Kind::deserialize(value.get("kind")?).ok()?,
            values: map("values")?,
            text: value.get("text").and_then(Value::as_str).map(str::to_owned),
            wall: map("wall")?,
        })
    }
}

/// The longest line that is read, in bytes; a longer one is damage.
const LONGEST_LINE: u64 = 1 << 20;

/// The file, open for appending.
#[derive(Debug)]
pub struct MetricsLog {
    path: PathBuf,
    file: File,
}

impl MetricsLog {
    /// Opens the file for a run that goes on after `step` (0: that begins) and drops the records after it, as well as a
    /// last line that was cut off. Returns also the records that remain.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn resume(path: &Path, step: u64) -> Result<(MetricsLog, Vec<Record>), FileError> {
        let mut file =
            OpenOptions::new().read(true).append(true).create(true).open(path).map_err(FileError::of("open", path))?;
        let mut records = Vec::new();
        let mut keep = 0;
        scan(&mut file, |record, end| {
            // A run that begins keeps nothing, not even an evaluation before its first step.
            let keeps = step > 0 && record.step <= step;
            if keeps {
                records.push(record);
                keep = end;
            }
            keeps
        })
        .map_err(FileError::of("read", path))?;
        // Records are in the order of their steps: behind the first that goes, all go.
        if file.metadata().map_err(FileError::of("read", path))?.len() != keep {
            file.set_len(keep).and_then(|()| file.sync_all()).map_err(FileError::of("truncate", path))?;
        }
        Ok((MetricsLog { path: path.to_owned(), file }, records))
    }

    /// Appends a record with one write, so that a kill leaves it whole or, at worst, cut off at the end of the file.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn append(&mut self, record: &Record) -> Result<(), FileError> {
        let mut line = serde_json::to_vec(record).map_err(|error| FileError::of("write", &self.path)(error.into()))?;
        line.push(b'\n');
        self.file.write_all(&line).map_err(FileError::of("write", &self.path))
    }

    /// Makes what was appended last through a power failure.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn sync(&mut self) -> Result<(), FileError> {
        self.file.sync_data().map_err(FileError::of("sync", &self.path))
    }
}

/// Reads all records up to the first damaged line.
///
/// # Errors
/// A file that cannot be read. A file that does not exist has no records.
pub fn read(path: &Path) -> Result<Vec<Record>, FileError> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(FileError::of("open", path)(error)),
    };
    let mut records = Vec::new();
    scan(&mut file, |record, _| {
        records.push(record);
        true
    })
    .map_err(FileError::of("read", path))?;
    Ok(records)
}

/// Hands over the records and where each ends, until one is refused or a line is damaged.
fn scan(file: &mut File, mut take: impl FnMut(Record, u64) -> bool) -> io::Result<()> {
    file.rewind()?;
    let mut reader = BufReader::new(file);
    let mut end = 0;
    let mut line = Vec::new();
    loop {
        line.clear();
        end += io::Read::take(&mut reader, LONGEST_LINE).read_until(b'\n', &mut line)? as u64;
        let text = line.strip_suffix(b"\n").and_then(|line| std::str::from_utf8(line).ok());
        match text.and_then(Record::parse) {
            None => return Ok(()),
            Some(record) => {
                if !take(record, end) {
                    return Ok(());
                }
            }
        }
    }
}
