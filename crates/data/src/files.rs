//! Files: reading plain or gzip, and writing beside, synced, then renamed.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;
use tempfile::NamedTempFile;

use crate::error::{DataError, Place};

const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
/// How texts of UTF-16 begin, in both orders of bytes.
const UTF_16: [[u8; 2]; 2] = [[0xff, 0xfe], [0xfe, 0xff]];
/// How some programs begin texts of UTF-8. It is no part of the text.
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// Whether the name of a file or folder begins with a dot.
pub(crate) fn is_hidden(entry: &fs::DirEntry) -> bool {
    entry.file_name().as_encoded_bytes().starts_with(b".")
}

/// The bytes of a text from its first character on.
pub(crate) fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes)
}

/// Opens a file that must be a regular file.
pub(crate) fn open_file(path: &Path) -> Result<File, DataError> {
    let file = File::open(path).map_err(DataError::io("open", path))?;
    let kind = file.metadata().map_err(DataError::io("open", path))?;
    if kind.is_dir() {
        return Err(DataError::io("open", path)(std::io::ErrorKind::IsADirectory.into()));
    }
    Ok(file)
}

/// A file's contents, decompressed if its first bytes are gzip's, whatever its name.
pub(crate) struct Contents {
    /// The bytes.
    pub reader: Box<dyn BufRead>,
    /// Their number if the file is not compressed: gzip's own length field is neither complete nor reliable.
    pub length: Option<u64>,
}

/// Opens `path` for reading, through gzip where it is compressed.
pub(crate) fn open_contents(path: &Path) -> Result<Contents, DataError> {
    let file = open_file(path)?;
    let length = file.metadata().map_err(DataError::io("read", path))?.len();
    let mut reader = BufReader::with_capacity(1 << 16, file);
    let start = reader.fill_buf().map_err(DataError::io("read", path))?;
    if start.starts_with(&GZIP_MAGIC) {
        let decoder = MultiGzDecoder::new(reader);
        return Ok(Contents { reader: Box::new(BufReader::with_capacity(1 << 16, decoder)), length: None });
    }
    if UTF_16.iter().any(|mark| start.starts_with(mark)) {
        let hint = "convert it: iconv -f UTF-16 -t UTF-8 FILE > NEW";
        return Err(DataError::content(path, Place::Whole, "the file is UTF-16, not UTF-8", hint));
    }
    Ok(Contents { reader: Box::new(reader), length: Some(length) })
}

/// Reads exactly `count` bytes; memory grows with what the file really holds, not with what it claims. `None`: it ended before.
pub(crate) fn read_exactly(reader: &mut dyn BufRead, count: u64) -> std::io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    reader.take(count).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 == count).then_some(bytes))
}

/// Writes a file completely or not at all: `write` fills a temporary file in the same folder, which is synced and renamed.
pub(crate) fn write_atomically(
    path: &Path,
    write: impl FnOnce(&mut File) -> Result<(), DataError>,
) -> Result<(), DataError> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    fs::create_dir_all(folder).map_err(DataError::io("create the folder", folder))?;
    let mut temporary = temporary_in(folder).map_err(DataError::io("create a file in", folder))?;
    write(temporary.as_file_mut())?;
    temporary.as_file().sync_all().map_err(DataError::io("write", path))?;
    temporary.persist(path).map_err(|error| DataError::io("rename a finished file to", path)(error.error))?;
    sync_folder(folder)
}

/// A temporary file with the permissions of any other new file: it is there to stay.
fn temporary_in(folder: &Path) -> std::io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(folder)
}

/// Makes a rename survive a power cut. Windows cannot open folders for this, and does not need it.
fn sync_folder(folder: &Path) -> Result<(), DataError> {
    if cfg!(unix) {
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(DataError::io("sync the folder", folder))?;
    }
    Ok(())
}

/// Writes `bytes` to `path` completely or not at all.
pub(crate) fn write_bytes_atomically(path: &Path, bytes: &[u8]) -> Result<(), DataError> {
    write_atomically(path, |file| file.write_all(bytes).map_err(DataError::io("write", path)))
}
