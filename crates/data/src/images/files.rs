//! Folders of image files, one folder a class.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::picture::Picture;
use crate::error::{DataError, Place};
use crate::files::is_hidden;

/// Endings of image files.
const ENDINGS: [&str; 4] = ["png", "jpg", "jpeg", "webp"];

/// Image files and their classes.
pub(crate) struct Listing {
    /// Sorted by class, then by path.
    pub files: Vec<PathBuf>,
    /// The class of each.
    pub classes: Vec<u32>,
}

/// The names of the folders in `root`, sorted: the classes.
pub(crate) fn class_names(root: &Path) -> Result<Vec<String>, DataError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(root).map_err(DataError::io("read the folder", root))? {
        let entry = entry.map_err(DataError::io("read the folder", root))?;
        if entry.path().is_dir() && !is_hidden(&entry) {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    if names.is_empty() {
        return Err(DataError::content(
            root,
            Place::Whole,
            "the folder has no folders: each class has one, named after it",
            "put the images of each class into a folder: images/cat/1.jpg, images/dog/1.jpg",
        ));
    }
    Ok(names)
}

/// The image files of each of the classes `names` in `root`, at any depth.
pub(crate) fn list(root: &Path, names: &[String]) -> Result<Listing, DataError> {
    let mut listing = Listing { files: Vec::new(), classes: Vec::new() };
    for (class, name) in names.iter().enumerate() {
        let mut files = Vec::new();
        let folder = root.join(name);
        if folder.is_dir() {
            gather(&folder, &mut vec![real(root)?], &mut files)?;
        }
        files.sort();
        listing.classes.resize(listing.classes.len() + files.len(), class as u32);
        listing.files.append(&mut files);
    }
    if listing.files.is_empty() {
        return Err(DataError::content(
            root,
            Place::Whole,
            format!("the class folders hold no image: none ends in {}", ENDINGS.join(", ")),
            "put the images of each class into its folder",
        ));
    }
    Ok(listing)
}

/// Links to folders are followed, but not to one of the folders `above`: they would lead in a circle. What is hidden is not
/// the user's: other systems put files of their own, with the same endings, beside those that are copied.
fn gather(folder: &Path, above: &mut Vec<PathBuf>, files: &mut Vec<PathBuf>) -> Result<(), DataError> {
    let own = real(folder)?;
    if above.contains(&own) {
        return Ok(());
    }
    above.push(own);
    for entry in fs::read_dir(folder).map_err(DataError::io("read the folder", folder))? {
        let entry = entry.map_err(DataError::io("read the folder", folder))?;
        let path = entry.path();
        let ending = path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
        if is_hidden(&entry) {
            continue;
        } else if path.is_dir() {
            gather(&path, above, files)?;
        } else if ENDINGS.contains(&ending.as_str()) {
            files.push(path);
        }
    }
    above.pop();
    Ok(())
}

/// The folder without links on the way to it.
fn real(folder: &Path) -> Result<PathBuf, DataError> {
    fs::canonicalize(folder).map_err(DataError::io("read the folder", folder))
}

/// Reads and decodes a file.
pub(crate) fn read(path: &Path, channels: usize) -> Result<Picture, DataError> {
    let bytes = fs::read(path).map_err(DataError::io("read", path))?;
    Picture::decode(path, &bytes, channels)
}

/// A link that leads nowhere is no image, as a damaged file is none.
fn unread(path: &Path, error: io::Error) -> DataError {
    if error.kind() == io::ErrorKind::NotFound && path.is_symlink() {
        let hint = "remove the link; on_corrupt = \"skip\" in data.images passes over it in a run";
        return DataError::content(path, Place::Whole, "the link leads to no file", hint);
    }
    DataError::io("read", path)(error)
}

/// Decodes every file once, on all processors, and gives the checksum of each, or why it cannot be decoded; in the order of
/// `files`.
pub(crate) fn check(
    files: &[PathBuf],
    channels: usize,
    progress: &mut dyn FnMut(usize),
) -> Vec<Result<blake3::Hash, DataError>> {
    /// Files between two reports.
    const CHUNK: usize = 256;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut results = Vec::with_capacity(files.len());
    for chunk in files.chunks(CHUNK) {
        let next = AtomicUsize::new(0);
        let work = || {
            let mut found = Vec::new();
            while let at = next.fetch_add(1, Ordering::Relaxed)
                && let Some(path) = chunk.get(at)
            {
                let checked = fs::read(path).map_err(|error| unread(path, error)).and_then(|bytes| {
                    Picture::decode(path, &bytes, channels)?;
                    Ok(blake3::hash(&bytes))
                });
                found.push((at, checked));
            }
            found
        };
        let mut found: Vec<_> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            workers.into_iter().flat_map(|w| w.join().expect("a decoder does not panic")).collect()
        });
        found.sort_by_key(|(at, _)| *at);
        results.extend(found.into_iter().map(|(_, checked)| checked));
        progress(results.len());
    }
    results
}
