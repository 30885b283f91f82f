//! A file system that fails where a test says so. It remembers what was synced instead of syncing.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use tenon_train::files::{Disk, FileSystem, OpenFile};

/// What happens at the chosen operation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// The power fails before it: nothing works any more, and what was not synced is lost.
    Crash,
    /// It fails once; everything after it works.
    Error,
}

/// The disk, until the operation number `at` or the written byte number `space`.
#[derive(Clone)]
pub struct Faulty(Arc<Mutex<State>>);

struct State {
    at: usize,
    fault: Fault,
    space: usize,
    operations: usize,
    crashed: bool,
    unsynced: Vec<PathBuf>,
}

impl Faulty {
    pub fn at(operation: usize, fault: Fault) -> Faulty {
        Faulty::new(operation, fault, usize::MAX)
    }

    pub fn never() -> Faulty {
        Faulty::at(usize::MAX, Fault::Error)
    }

    pub fn full_after(bytes: usize) -> Faulty {
        Faulty::new(usize::MAX, Fault::Error, bytes)
    }

    fn new(at: usize, fault: Fault, space: usize) -> Faulty {
        let state = State { at, fault, space, operations: 0, crashed: false, unsynced: Vec::new() };
        Faulty(Arc::new(Mutex::new(state)))
    }

    /// Whether the chosen operation was reached.
    pub fn struck(&self) -> bool {
        let state = self.0.lock().unwrap();
        state.operations > state.at
    }

    fn step(&self) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        state.operations += 1;
        if state.crashed {
            return Err(io::Error::other("the process is dead"));
        }
        if state.operations - 1 == state.at {
            if state.fault == Fault::Crash {
                state.crashed = true;
                for path in &state.unsynced {
                    if let Ok(file) = fs::OpenOptions::new().write(true).open(path) {
                        let size = file.metadata().unwrap().len();
                        file.set_len(size / 2).unwrap();
                    }
                }
            }
            return Err(io::Error::other("an injected fault"));
        }
        Ok(())
    }
}

impl FileSystem for Faulty {
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        self.step()?;
        Disk.create_folder(path)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn OpenFile>> {
        self.step()?;
        let file = Disk.create(path)?;
        self.0.lock().unwrap().unsynced.push(path.to_owned());
        Ok(Box::new(FaultyFile { file, path: path.to_owned(), system: self.clone() }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step()?;
        Disk.rename(from, to)?;
        for path in &mut self.0.lock().unwrap().unsynced {
            if let Ok(rest) = path.strip_prefix(from) {
                *path = if rest.as_os_str().is_empty() { to.to_owned() } else { to.join(rest) };
            }
        }
        Ok(())
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        if let Err(error) = self.step() {
            // A removal that is cut short has removed some of the files.
            if let Some(Ok(first)) = fs::read_dir(path).ok().and_then(|mut entries| entries.next()) {
                fs::remove_file(first.path()).unwrap();
            }
            return Err(error);
        }
        Disk.remove_folder(path)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        self.step()?;
        if path.is_dir() { Ok(()) } else { Err(io::Error::other("no such folder")) }
    }
}

struct FaultyFile {
    file: Box<dyn OpenFile>,
    path: PathBuf,
    system: Faulty,
}

impl Write for FaultyFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.system.step()?;
        let space = self.system.0.lock().unwrap().space;
        if space == 0 && !bytes.is_empty() {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        let count = self.file.write(&bytes[..bytes.len().min(space)])?;
        self.system.0.lock().unwrap().space -= count;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl OpenFile for FaultyFile {
    fn sync(&mut self) -> io::Result<()> {
        self.system.step()?;
        self.system.0.lock().unwrap().unsynced.retain(|path| *path != self.path);
        Ok(())
    }
}
