//! Source text: which files, which stretch of each belongs to which split, and reading them in pieces of bounded size.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Take};
use std::path::{Path, PathBuf};

use crate::config::{Paths, Validation};
use crate::dataset::Split;
use crate::error::{DataError, Place};
use crate::files::{is_hidden, open_file};
use crate::open::Progress;

/// Extensions of the files that are taken from a folder.
const TEXT_EXTENSIONS: [&str; 4] = ["txt", "text", "md", "rst"];
const READ_BYTES: usize = 1 << 16;

/// A stretch of one file that belongs to one split.
#[derive(Debug, Clone)]
pub(crate) struct Segment {
    pub path: PathBuf,
    pub start: u64,
    pub end: u64,
    pub split: Split,
    /// Whether another document follows, so that a separator does, too.
    pub separated: bool,
    /// blake3 of the stretch.
    pub hash: blake3::Hash,
}

/// All source text, training segments before held-out ones.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub segments: Vec<Segment>,
}

impl Source {
    /// Finds and hashes the files of a text and cuts them into splits.
    pub fn find(
        paths: &Paths,
        validation: Option<&Validation>,
        base_dir: &Path,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Source, DataError> {
        let train = list_files("data.text", paths, base_dir)?;
        let mut segments = whole_files(&train, Split::Train)?;
        match validation {
            None => {}
            Some(Validation::Last(fraction)) => cut_last(&mut segments, *fraction)?,
            Some(Validation::File(paths)) => {
                let held_out = list_files("data.validation.file", paths, base_dir)?;
                segments.extend(whole_files(&held_out, Split::Validation)?);
            }
            Some(Validation::LastCount(_) | Validation::Stratified(_) | Validation::Every(_) | Validation::Idx(_)) => {
                return Err(DataError::setting(
                    "data.validation",
                    "text has no labelled samples to hold out",
                    "validation = { last = 0.1 } or validation = { file = \"held-out.txt\" }",
                ));
            }
        }
        for next in 1..segments.len() {
            let (before, after) = (&segments[next - 1], &segments[next]);
            segments[next - 1].separated = before.path != after.path || after.start == 0;
        }
        let mut source = Source { segments };
        source.check_not_empty(validation.is_some())?;
        source.hash(progress)?;
        Ok(source)
    }

    /// Bytes of one split.
    pub fn bytes(&self, split: Split) -> u64 {
        let of_split = self.segments.iter().filter(|s| s.split == split);
        of_split.map(|s| s.end - s.start).sum()
    }

    fn check_not_empty(&self, has_validation: bool) -> Result<(), DataError> {
        let first = &self.segments[0].path;
        if self.bytes(Split::Train) == 0 {
            return Err(DataError::content(
                first,
                Place::Whole,
                "the training text is empty",
                "name a text that is not empty, or hold out less of it",
            ));
        }
        if has_validation && self.bytes(Split::Validation) == 0 {
            return Err(DataError::setting(
                "data.validation",
                format!("the held-out text is empty; {} bytes are left to train", self.bytes(Split::Train)),
                "hold out more, or remove `validation`",
            ));
        }
        Ok(())
    }

    fn hash(&mut self, progress: &mut dyn FnMut(Progress)) -> Result<(), DataError> {
        let total = self.bytes(Split::Train) + self.bytes(Split::Validation);
        let mut done = 0;
        let mut buffer = vec![0; READ_BYTES];
        for segment in &mut self.segments {
            let mut hasher = blake3::Hasher::new();
            let mut file = open_segment(segment)?;
            loop {
                let n = file.read(&mut buffer).map_err(DataError::io("read", &segment.path))?;
                if n == 0 {
                    break;
                }
                hasher.update(&buffer[..n]);
                done += n as u64;
                progress(Progress::Hashing { done, total });
            }
            segment.hash = hasher.finalize();
        }
        Ok(())
    }
}

fn open_segment(segment: &Segment) -> Result<Take<File>, DataError> {
    let mut file = open_file(&segment.path)?;
    file.seek(SeekFrom::Start(segment.start)).map_err(DataError::io("read", &segment.path))?;
    Ok(file.take(segment.end - segment.start))
}

/// The text files that `paths` name; `key` is the setting, for messages.
pub(crate) fn list_files(key: &str, paths: &Paths, base_dir: &Path) -> Result<Vec<PathBuf>, DataError> {
    let mut files = Vec::new();
    for path in paths.as_slice() {
        let path = base_dir.join(path);
        let kind = fs::metadata(&path).map_err(DataError::io("open", &path))?;
        if !kind.is_dir() {
            files.push(path);
            continue;
        }
        let before = files.len();
        list_folder(&path, &mut files)?;
        files[before..].sort();
        if files.len() == before {
            return Err(DataError::content(
                &path,
                Place::Whole,
                format!("the folder holds no text: no file ends in .{}", TEXT_EXTENSIONS.join(", .")),
                "rename the files, or name them one by one in a list",
            ));
        }
    }
    if files.is_empty() {
        return Err(DataError::setting(key, "the list of files is empty", "name at least one file or folder"));
    }
    Ok(files)
}

/// Links to folders are not followed: they may lead in a circle. What is hidden is not the user's.
fn list_folder(folder: &Path, files: &mut Vec<PathBuf>) -> Result<(), DataError> {
    for entry in fs::read_dir(folder).map_err(DataError::io("list", folder))? {
        let entry = entry.map_err(DataError::io("list", folder))?;
        let path = entry.path();
        let kind = entry.file_type().map_err(DataError::io("list", &path))?;
        if is_hidden(&entry) {
            continue;
        } else if kind.is_dir() {
            list_folder(&path, files)?;
        } else if path
            .extension()
            .and_then(OsStr::to_str)
            .is_some_and(|e| TEXT_EXTENSIONS.iter().any(|t| t.eq_ignore_ascii_case(e)))
        {
            files.push(path);
        }
    }
    Ok(())
}

fn whole_files(files: &[PathBuf], split: Split) -> Result<Vec<Segment>, DataError> {
    files
        .iter()
        .map(|path| {
            let kind = fs::metadata(path).map_err(DataError::io("open", path))?;
            Ok(Segment {
                path: path.clone(),
                start: 0,
                end: kind.len(),
                split,
                separated: false,
                hash: blake3::Hash::from_bytes([0; 32]),
            })
        })
        .collect()
}

/// Gives the last `fraction` of all bytes to validation; the cut moves back to the start of a character.
fn cut_last(segments: &mut Vec<Segment>, fraction: f64) -> Result<(), DataError> {
    crate::config::check_fraction("data.validation.last", fraction)?;
    let total: u64 = segments.iter().map(|s| s.end).sum();
    let mut cut = total - (total as f64 * fraction) as u64;
    let index = segments
        .iter()
        .position(|segment| {
            let inside = cut < segment.end;
            if !inside {
                cut -= segment.end;
            }
            inside
        })
        .unwrap_or(segments.len());
    for segment in &mut segments[index..] {
        segment.split = Split::Validation;
    }
    if index < segments.len() && cut > 0 {
        let mut head = segments[index].clone();
        let cut = start_of_character(&head, cut)?;
        head.split = Split::Train;
        head.end = cut;
        segments[index].start = cut;
        if cut > 0 {
            segments.insert(index, head);
        }
    }
    Ok(())
}

/// The last position at or before `cut` where a UTF-8 character starts.
fn start_of_character(segment: &Segment, cut: u64) -> Result<u64, DataError> {
    let io = || DataError::io("read", &segment.path);
    let mut file = open_file(&segment.path)?;
    let first = cut.saturating_sub(3);
    file.seek(SeekFrom::Start(first)).map_err(io())?;
    let mut bytes = Vec::new();
    file.take(cut - first + 1).read_to_end(&mut bytes).map_err(io())?;
    let is_start = |byte: &u8| byte & 0b1100_0000 != 0b1000_0000;
    Ok(bytes.iter().rposition(is_start).map_or(cut, |at| first + at as u64))
}

/// Reads one segment as pieces of text of about `target` bytes that may be tokenised one by one.
pub(crate) struct PieceReader {
    segment: Segment,
    file: Take<File>,
    hasher: blake3::Hasher,
    /// Text that has been read but not handed out.
    pending: String,
    /// The first bytes of a character whose rest has not been read.
    partial: Vec<u8>,
    /// File offset of the end of `pending`.
    offset: u64,
    ended: bool,
    target: usize,
}

impl PieceReader {
    /// Starts reading `segment`.
    pub fn new(segment: &Segment, target: usize) -> Result<Self, DataError> {
        Ok(PieceReader {
            file: open_segment(segment)?,
            hasher: blake3::Hasher::new(),
            pending: String::new(),
            partial: Vec::new(),
            offset: segment.start,
            ended: false,
            segment: segment.clone(),
            target,
        })
    }

    /// The next piece. `cut` finds the last position above 0 where its argument may be cut; while it finds none, more is read.
    pub fn next_piece(&mut self, cut: &mut dyn FnMut(&str) -> Option<usize>) -> Result<Option<String>, DataError> {
        let mut wanted = self.target;
        loop {
            while self.pending.len() < wanted && !self.ended {
                self.read_more()?;
            }
            if self.pending.len() <= wanted && self.ended {
                let rest = std::mem::take(&mut self.pending);
                return Ok((!rest.is_empty()).then_some(rest));
            }
            let window = self.pending.floor_char_boundary(wanted);
            if let Some(at) = cut(&self.pending[..window]).filter(|&at| at > 0) {
                let rest = self.pending.split_off(at);
                return Ok(Some(std::mem::replace(&mut self.pending, rest)));
            }
            wanted *= 2;
        }
    }

    fn read_more(&mut self) -> Result<(), DataError> {
        let path = &self.segment.path;
        let mut bytes = std::mem::take(&mut self.partial);
        let kept = bytes.len();
        bytes.resize(kept + READ_BYTES, 0);
        let n = self.file.read(&mut bytes[kept..]).map_err(DataError::io("read", path))?;
        bytes.truncate(kept + n);
        self.hasher.update(&bytes[kept..]);
        self.ended = n == 0;
        match std::str::from_utf8(&bytes) {
            Ok(text) => self.pending.push_str(text),
            Err(error) => {
                let good = error.valid_up_to();
                if error.error_len().is_some() || self.ended {
                    return Err(not_utf8(path, self.offset + good as u64, &bytes[good..]));
                }
                self.partial = bytes.split_off(good);
                self.pending.push_str(&String::from_utf8_lossy(&bytes));
            }
        }
        self.offset += (bytes.len()) as u64;
        if self.ended && self.hasher.finalize() != self.segment.hash {
            return Err(DataError::content(
                path,
                Place::Whole,
                "the file changed while it was being read",
                "start again when nothing writes to it",
            ));
        }
        Ok(())
    }
}

fn not_utf8(path: &Path, at: u64, bytes: &[u8]) -> DataError {
    let hint = if at == 0 && (bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff])) {
        "the file starts like UTF-16: iconv -f UTF-16 -t UTF-8 FILE > NEW"
    } else {
        "convert it, for example: iconv -f WINDOWS-1252 -t UTF-8 FILE > NEW"
    };
    DataError::content(
        path,
        Place::Byte(at),
        format!("not UTF-8: found byte 0x{:02x}, which no character has there", bytes[0]),
        hint,
    )
}
