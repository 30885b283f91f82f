//! The file operations that change a run folder, behind a trait so that tests can make any one of them fail.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The operations that change files. Reading needs no trait: a reader only has to survive what is there.
pub trait FileSystem: Send + Sync {
    /// Makes one folder, which must not exist.
    fn create_folder(&self, path: &Path) -> io::Result<()>;
    /// Makes an empty file, or empties the one that is there.
    fn create(&self, path: &Path) -> io::Result<Box<dyn OpenFile>>;
    /// Renames a file or a folder; a file replaces the file that has the name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a folder with all that is in it.
    fn remove_folder(&self, path: &Path) -> io::Result<()>;
    /// Makes what was created, renamed and removed in a folder last through a power failure.
    fn sync_folder(&self, path: &Path) -> io::Result<()>;
}

/// A file that is being written.
pub trait OpenFile: Write {
    /// Makes what was written last through a power failure.
    fn sync(&mut self) -> io::Result<()>;
}

/// The computer's own files.
#[derive(Clone, Copy, Debug, Default)]
pub struct Disk;

impl FileSystem for Disk {
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        fs::create_dir(path)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn OpenFile>> {
        Ok(Box::new(File::create(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir_all(path)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        // Windows has no such operation: its folders cannot be opened as files.
        if cfg!(windows) { Ok(()) } else { File::open(path)?.sync_all() }
    }
}

impl OpenFile for File {
    fn sync(&mut self) -> io::Result<()> {
        self.sync_all()
    }
}

/// Writes a file so that at every moment its name has the old bytes or the new ones: beside, synced, renamed.
///
/// # Errors
/// Those of the file system; the old file is intact.
pub fn replace_file(files: &dyn FileSystem, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let name = path.file_name().ok_or_else(|| io::Error::other("the path has no file name"))?;
    let beside = path.with_file_name(format!(".tmp-{}", name.to_string_lossy()));
    let mut file = files.create(&beside)?;
    file.write_all(bytes)?;
    file.sync()?;
    drop(file);
    files.rename(&beside, path)?;
    files.sync_folder(parent(path))
}

/// The folder that holds `path`.
pub(crate) fn parent(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A file operation that failed: what was tried, on which path, why, and what to try.
#[derive(Debug)]
pub struct FileError {
    /// What was tried: "write", "rename", "read".
    pub action: &'static str,
    /// On which file or folder.
    pub path: PathBuf,
    /// Why it failed.
    pub source: io::Error,
}

impl FileError {
    /// For `map_err`: an error of `action` on `path`.
    pub fn of(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
        move |source| FileError { action, path: path.to_owned(), source }
    }
}

impl std::fmt::Display for FileError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cannot {} {}: {}", self.action, self.path.display(), self.source)?;
        match self.source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => f.write_str(
                "\n  try: free some space, or keep fewer checkpoints (train.keep_last); what was saved before is intact",
            ),
            io::ErrorKind::PermissionDenied => {
                f.write_str("\n  try: check who owns the folder and whether it may be written")
            }
            io::ErrorKind::ReadOnlyFilesystem => f.write_str("\n  try: another folder for the run; this disk is read-only"),
            _ => Ok(()),
        }
    }
}

impl std::error::Error for FileError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}
