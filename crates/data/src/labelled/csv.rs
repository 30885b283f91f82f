//! The one CSV reader: plain or gzip, comma, tab or semicolon, with or without header, every row checked for its width.

use std::io::{BufRead, Read};
use std::path::{Path, PathBuf};

use csv::ByteRecord;

use crate::error::{DataError, Place};
use crate::files::open_contents;
use crate::open::Progress;

/// Where a row was read: the parser's position, which blank lines may still separate from the row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowAt {
    byte: u64,
    line: u64,
}

impl RowAt {
    /// The row that starts at this byte, in this line from 1.
    pub fn new(byte: u64, line: u64) -> RowAt {
        RowAt { byte, line }
    }

    /// The line for a message. Reads the file again to pass the blank lines, so it is for errors only.
    pub fn place(self, path: &Path) -> Place {
        let blank_lines = || -> Option<u64> {
            let mut reader = open_contents(path).ok()?.reader;
            let mut before = (&mut reader).take(self.byte);
            std::io::copy(&mut before, &mut std::io::sink()).ok()?;
            let blanks = reader.bytes().map_while(Result::ok).take_while(|byte| matches!(byte, b'\r' | b'\n'));
            Some(blanks.filter(|&byte| byte == b'\n').count() as u64)
        };
        Place::Line(self.line + blank_lines().unwrap_or(0))
    }
}

/// Rows of a CSV file.
pub(crate) struct CsvFile {
    pub path: PathBuf,
    /// Names of the columns, if the first row is a header.
    pub header: Option<Vec<String>>,
    /// Cells of a row.
    pub width: usize,
    reader: csv::Reader<Box<dyn BufRead>>,
    /// The first row, where it is data.
    first: Option<ByteRecord>,
}

impl CsvFile {
    /// Opens a file. Without `header` the first row is one if none of its cells is a number.
    pub fn open(path: &Path, header: Option<bool>) -> Result<CsvFile, DataError> {
        let mut contents = open_contents(path)?.reader;
        let start = contents.fill_buf().map_err(DataError::io("read", path))?;
        let delimiter = delimiter(start);
        let mut reader =
            csv::ReaderBuilder::new().has_headers(false).flexible(true).delimiter(delimiter).from_reader(contents);
        let mut first = ByteRecord::new();
        if !read(&mut reader, path, &mut first)? {
            return Err(DataError::content(
                path,
                Place::Whole,
                "the file is empty",
                "name a CSV file with at least one row",
            ));
        }
        let width = first.len();
        let is_header = header.unwrap_or_else(|| !first.iter().any(|c| number(c).is_some()));
        let names =
            |record: &ByteRecord| record.iter().map(|cell| String::from_utf8_lossy(cell).trim().to_owned()).collect();
        Ok(CsvFile {
            path: path.to_path_buf(),
            header: is_header.then(|| names(&first)),
            width,
            reader,
            first: (!is_header).then_some(first),
        })
    }

    /// Reads the next row and says where it was; `None` at the end.
    fn next_row(&mut self, row: &mut ByteRecord) -> Result<Option<RowAt>, DataError> {
        if let Some(first) = self.first.take() {
            *row = first;
        } else if !read(&mut self.reader, &self.path, row)? {
            return Ok(None);
        }
        let at = position_of(row);
        if row.len() != self.width {
            return Err(DataError::content(
                &self.path,
                at.place(&self.path),
                format!("the row has {} cells, the first row {}", row.len(), self.width),
                "check the row for missing or additional separators and quotes",
            ));
        }
        Ok(Some(at))
    }

    /// Gives every row of this file, then those of the file `held_out`, to `each` with the file and where the row was.
    /// Returns the number of rows of this one.
    pub fn read_all(
        mut self,
        held_out: Option<&Path>,
        header: Option<bool>,
        progress: &mut dyn FnMut(Progress),
        each: &mut dyn FnMut(&CsvFile, RowAt, &ByteRecord) -> Result<(), DataError>,
    ) -> Result<usize, DataError> {
        let mut row = ByteRecord::new();
        let mut samples = 0u64;
        let mut rows = |file: &mut CsvFile| -> Result<u64, DataError> {
            while let Some(at) = file.next_row(&mut row)? {
                each(file, at, &row)?;
                samples += 1;
                if samples.is_multiple_of(1024) {
                    progress(Progress::Reading { samples });
                }
            }
            Ok(samples)
        };
        let own = rows(&mut self)?;
        if let Some(path) = held_out {
            let mut other = CsvFile::open(path, header)?;
            self.check_same_columns(&other)?;
            rows(&mut other)?;
        }
        Ok(own as usize)
    }

    /// The column that `name` (the value of setting `key`) means: one of that name in the header, or `first` or `last`.
    pub fn column(&self, key: &str, name: &str) -> Result<usize, DataError> {
        let names = self.header.as_deref().unwrap_or_default();
        if let Some(at) = names.iter().position(|n| n == name) {
            return Ok(at);
        }
        match name {
            "first" => Ok(0),
            "last" => Ok(self.width - 1),
            _ => Err(DataError::setting(
                key,
                match &self.header {
                    None => format!("no column `{name}`: {} has no header", self.path.display()),
                    Some(names) => {
                        format!("no column `{name}` in {}; its columns are {}", self.path.display(), listed(names))
                    }
                },
                "\"first\", \"last\", or a name of the header",
            )),
        }
    }

    /// The name of a column for messages: from the header, or its number from 1.
    pub fn column_name(&self, at: usize) -> String {
        match self.header.as_ref().and_then(|names| names.get(at)) {
            Some(name) => format!("column `{name}`"),
            None => format!("column {}", at + 1),
        }
    }

    /// A file of held-out rows must have the columns of the training file.
    fn check_same_columns(&self, other: &CsvFile) -> Result<(), DataError> {
        if self.width == other.width && self.header == other.header {
            return Ok(());
        }
        let describe = |file: &CsvFile| match &file.header {
            None => format!("{} columns without a header", file.width),
            Some(names) => format!("{} columns {}", file.width, listed(names)),
        };
        Err(DataError::content(
            &other.path,
            Place::Line(1),
            format!("the held-out file has {}, {} has {}", describe(other), self.path.display(), describe(self)),
            "give both files the same columns and header",
        ))
    }
}

fn listed(names: &[String]) -> String {
    const SHOWN: usize = 12;
    let mut text = names[..names.len().min(SHOWN)].join(", ");
    if names.len() > SHOWN {
        text.push_str(", ...");
    }
    text
}

/// The separator of the first line: a comma if it has one outside quotes, else a tab, else a semicolon.
fn delimiter(start: &[u8]) -> u8 {
    let mut quoted = false;
    let line = start.iter().take_while(|&&byte| byte != b'\n');
    let outside: Vec<u8> = line
        .copied()
        .filter(|&byte| {
            quoted ^= byte == b'"';
            !quoted
        })
        .collect();
    let found = b",\t;".iter().find(|&separator| outside.contains(separator));
    found.copied().unwrap_or(b',')
}

fn read(reader: &mut csv::Reader<Box<dyn BufRead>>, path: &Path, row: &mut ByteRecord) -> Result<bool, DataError> {
    reader.read_byte_record(row).map_err(|error| {
        let message = error.to_string();
        match error.into_kind() {
            csv::ErrorKind::Io(source) => DataError::io("read", path)(source),
            _ => DataError::content(path, Place::Whole, message, "check the file's quotes"),
        }
    })
}

fn position_of(row: &ByteRecord) -> RowAt {
    let start = csv::Position::new();
    let at = row.position().unwrap_or(&start);
    RowAt { byte: at.byte(), line: at.line() }
}

/// A cell as a finite number.
pub(crate) fn number(cell: &[u8]) -> Option<f64> {
    let text = std::str::from_utf8(cell).ok()?.trim();
    text.parse().ok().filter(|x: &f64| x.is_finite())
}

/// A cell for a message, shortened.
pub(crate) fn shown(cell: &[u8]) -> String {
    const SHOWN: usize = 40;
    let text = String::from_utf8_lossy(cell);
    let mut short: String = text.chars().take(SHOWN).collect();
    if short.len() < text.len() {
        short.push_str("...");
    }
    short
}
