//! The folder `checkpoints/`: writing a checkpoint as a set, finding the newest sound one, removing old ones.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::CheckpointError;
use super::manifest::{Damage, FileEntry, MANIFEST, Manifest};
use super::tensors::{Tensor, TensorFile, write_tensors};
use crate::files::{Disk, FileError, FileSystem, OpenFile};
use crate::goal::Better;

const STATE: &str = "state.json";
/// A checkpoint that is being written.
const UNFINISHED: &str = ".tmp-";
/// A checkpoint that is being removed.
const REMOVED: &str = ".removed-";
/// A checkpoint that gives way to a new one of the same step.
const REPLACED: &str = ".replaced-";

/// The folder of a run's checkpoints. One process at a time writes to it (the run folder's lock sees to that).
pub struct Checkpoints {
    folder: PathBuf,
    files: Arc<dyn FileSystem>,
}

/// What a checkpoint holds.
#[derive(Debug)]
pub struct Contents<'a, S> {
    /// Optimizer steps done.
    pub step: u64,
    /// Metrics of the last evaluation, by which the best checkpoint is kept.
    pub metrics: BTreeMap<String, f64>,
    /// Everything of the run's state that is no tensor: data position, random state, checksums.
    pub state: &'a S,
    /// Sets of tensors and their names: "weights" becomes `weights.safetensors`.
    pub tensors: &'a [(&'a str, Vec<Tensor<'a>>)],
}

/// The result of looking for the newest sound checkpoint.
#[derive(Debug)]
pub struct Latest {
    /// The newest sound checkpoint. With `None` and damage, the run has checkpoints and none is sound.
    pub checkpoint: Option<Checkpoint>,
    /// What is wrong with newer ones.
    pub damaged: Vec<Damage>,
}

/// A checkpoint whose files have been checked.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    folder: PathBuf,
    manifest: Manifest,
}

impl Checkpoints {
    /// Opens the folder, makes it if need be, and cleans up after a process that was killed.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn open(folder: &Path) -> Result<Checkpoints, CheckpointError> {
        Self::open_on(folder, Arc::new(Disk))
    }

    /// As [`Self::open`] with other file operations.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn open_on(folder: &Path, files: Arc<dyn FileSystem>) -> Result<Checkpoints, CheckpointError> {
        if !folder.is_dir() {
            files.create_folder(folder).map_err(FileError::of("create", folder))?;
        }
        let checkpoints = Checkpoints { folder: folder.to_owned(), files };
        checkpoints.recover()?;
        Ok(checkpoints)
    }

    /// Finishes or undoes what a killed process had begun.
    fn recover(&self) -> Result<(), CheckpointError> {
        for name in self.names()? {
            let path = self.folder.join(&name);
            if let Some(step) = name.strip_prefix(REPLACED)
                && !self.folder.join(step).exists()
            {
                self.rename(&path, &self.folder.join(step))?;
            } else if [UNFINISHED, REMOVED, REPLACED].iter().any(|prefix| name.starts_with(prefix)) {
                self.files.remove_folder(&path).map_err(FileError::of("remove", &path))?;
            }
        }
        Ok(())
    }

    fn names(&self) -> Result<Vec<String>, CheckpointError> {
        let failed = || FileError::of("list", &self.folder);
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(failed())? {
            names.extend(entry.map_err(failed())?.file_name().into_string());
        }
        Ok(names)
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), CheckpointError> {
        self.files.rename(from, to).map_err(FileError::of("rename", from))?;
        Ok(self.files.sync_folder(&self.folder).map_err(FileError::of("sync", &self.folder))?)
    }

    fn path(&self, step: u64) -> PathBuf {
        self.folder.join(folder_name(step))
    }

    /// The steps that have a checkpoint, sound or not, in ascending order.
    ///
    /// # Errors
    /// A folder that cannot be listed.
    pub fn steps(&self) -> Result<Vec<u64>, CheckpointError> {
        let steps: BTreeSet<u64> = self.names()?.iter().filter_map(|name| step_of(name)).collect();
        Ok(steps.into_iter().collect())
    }

    /// Writes a checkpoint: all files beside, each synced, then renamed as a set. When this returns, the checkpoint
    /// survives a power failure. One of the same step is replaced.
    ///
    /// # Errors
    /// A full disk, missing rights, tensors that are not as their shapes say. The older checkpoints are intact, and
    /// what was written is removed again where that is possible.
    pub fn write<S: Serialize>(&self, contents: &Contents<'_, S>) -> Result<PathBuf, CheckpointError> {
        let unfinished = self.folder.join(format!("{UNFINISHED}{}", folder_name(contents.step)));
        if unfinished.exists() {
            self.files.remove_folder(&unfinished).map_err(FileError::of("remove", &unfinished))?;
        }
        let result = self.write_files(&unfinished, contents).and_then(|()| self.publish(&unfinished, contents.step));
        if result.is_err() && unfinished.exists() {
            // The first error is the one to report; what cannot be removed now is removed at the next opening.
            let _ = self.files.remove_folder(&unfinished);
        }
        result
    }

    fn write_files<S: Serialize>(&self, folder: &Path, contents: &Contents<'_, S>) -> Result<(), CheckpointError> {
        self.files.create_folder(folder).map_err(FileError::of("create", folder))?;
        let mut manifest = Manifest::new(contents.step, contents.metrics.clone());
        for (name, tensors) in contents.tensors {
            let name = format!("{name}.safetensors");
            if name.contains(['/', '\\']) || name.starts_with('.') || manifest.files.contains_key(&name) {
                return Err(CheckpointError::Invalid(format!("{name:?} cannot name a file of a checkpoint")));
            }
            let entry = self.write_file(&folder.join(&name), |out| write_tensors(out, tensors, &[]))?;
            manifest.files.insert(name, entry);
        }
        let state = serde_json::to_vec_pretty(contents.state)
            .map_err(|error| CheckpointError::Invalid(format!("the state is no JSON: {error}")))?;
        let entry = self.write_file(&folder.join(STATE), |out| out.write_all(&state))?;
        manifest.files.insert(STATE.to_owned(), entry);
        let bytes = manifest
            .to_bytes()
            .map_err(|error| CheckpointError::Invalid(format!("the manifest is no JSON: {error}")))?;
        self.write_file(&folder.join(MANIFEST), |out| out.write_all(&bytes))?;
        Ok(self.files.sync_folder(folder).map_err(FileError::of("sync", folder))?)
    }

    fn write_file(
        &self,
        path: &Path,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<FileEntry, CheckpointError> {
        let result = self.files.create(path).and_then(|file| {
            let mut out = Hashed { file, hasher: blake3::Hasher::new(), bytes: 0 };
            write(&mut out)?;
            out.file.sync()?;
            Ok(FileEntry { bytes: out.bytes, blake3: out.hasher.finalize().to_hex().to_string() })
        });
        Ok(result.map_err(FileError::of("write", path))?)
    }

    /// Gives a finished folder its name.
    fn publish(&self, unfinished: &Path, step: u64) -> Result<PathBuf, CheckpointError> {
        let path = self.path(step);
        if !path.exists() {
            self.rename(unfinished, &path)?;
            return Ok(path);
        }
        // Between the two renames neither folder has the name: `recover` then gives it back to the old one.
        let replaced = self.folder.join(format!("{REPLACED}{}", folder_name(step)));
        self.rename(&path, &replaced)?;
        if let Err(error) = self.rename(unfinished, &path) {
            if !path.exists() {
                let _ = self.files.rename(&replaced, &path);
            }
            return Err(error);
        }
        self.files.remove_folder(&replaced).map_err(FileError::of("remove", &replaced))?;
        Ok(path)
    }

    /// The newest checkpoint whose files are all there and have their checksums, and what is wrong with newer ones.
    ///
    /// # Errors
    /// A folder that cannot be listed.
    pub fn latest(&self) -> Result<Latest, CheckpointError> {
        let mut damaged = Vec::new();
        for step in self.steps()?.into_iter().rev() {
            match self.get(step) {
                Ok(checkpoint) => return Ok(Latest { checkpoint: Some(checkpoint), damaged }),
                Err(damage) => damaged.extend(damage),
            }
        }
        Ok(Latest { checkpoint: None, damaged })
    }

    /// The checkpoint of a step, with all its files checked.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn get(&self, step: u64) -> Result<Checkpoint, Vec<Damage>> {
        let folder = self.path(step);
        let manifest = Manifest::read(&folder, step).map_err(|damage| vec![damage])?;
        let damaged = manifest.check(&folder);
        if damaged.is_empty() { Ok(Checkpoint { folder, manifest }) } else { Err(damaged) }
    }

    /// The step whose checkpoint has the best value of a metric; of equals the earliest. Files are not checked.
    ///
    /// # Errors
    /// A folder that cannot be listed.
    pub fn best(&self, metric: &str, better: Better) -> Result<Option<u64>, CheckpointError> {
        let mut best: Option<(u64, f64)> = None;
        for step in self.steps()? {
            let manifest = Manifest::read(&self.path(step), step).ok();
            let value = manifest.and_then(|manifest| manifest.metrics.get(metric).copied());
            if let Some(value) = value.filter(|value| !value.is_nan())
                && best.is_none_or(|(_, best)| better.is_better(value, best))
            {
                best = Some((step, value));
            }
        }
        Ok(best.map(|(step, _)| step))
    }

    /// Removes all but the newest `keep_last` checkpoints, the best one by a metric and the newest sound one, which may be
    /// older than those. If none is sound, nothing is removed. Returns the removed steps.
    ///
    /// # Errors
    /// Those of the file system; what is not removed stays as it is.
    pub fn prune(&self, keep_last: usize, keep_best: Option<(&str, Better)>) -> Result<Vec<u64>, CheckpointError> {
        let steps = self.steps()?;
        let mut kept: BTreeSet<u64> = steps.iter().rev().take(keep_last.max(1)).copied().collect();
        if let Some((metric, better)) = keep_best {
            kept.extend(self.best(metric, better)?);
        }
        if kept.len() == steps.len() {
            return Ok(Vec::new());
        }
        match steps.iter().rev().find(|step| self.get(**step).is_ok()) {
            Some(sound) => kept.insert(*sound),
            None => return Ok(Vec::new()),
        };
        let removed: Vec<u64> = steps.into_iter().filter(|step| !kept.contains(step)).collect();
        for step in &removed {
            // A folder that is half removed must not look like a damaged checkpoint.
            let away = self.folder.join(format!("{REMOVED}{}", folder_name(*step)));
            self.rename(&self.path(*step), &away)?;
            self.files.remove_folder(&away).map_err(FileError::of("remove", &away))?;
        }
        Ok(removed)
    }
}

impl Checkpoint {
    /// Optimizer steps done.
    pub fn step(&self) -> u64 {
        self.manifest.step
    }

    /// The folder with its files.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The metrics it was written with.
    pub fn metrics(&self) -> &BTreeMap<String, f64> {
        &self.manifest.metrics
    }

    /// The state it was written with.
    ///
    /// # Errors
    /// A state of another form, as another version may have written.
    pub fn state<S: DeserializeOwned>(&self) -> Result<S, CheckpointError> {
        let path = self.folder.join(STATE);
        let bytes = fs::read(&path).map_err(FileError::of("read", &path))?;
        serde_json::from_slice(&bytes).map_err(|error| CheckpointError::Invalid(format!("{}: {error}", path.display())))
    }

    /// A set of tensors by its name ("weights").
    ///
    /// # Errors
    /// A set that the checkpoint does not have, or a file that cannot be read.
    pub fn tensors(&self, name: &str) -> Result<TensorFile, CheckpointError> {
        let file = format!("{name}.safetensors");
        if !self.manifest.files.contains_key(&file) {
            let there = self.manifest.files.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            let folder = self.folder.display();
            return Err(CheckpointError::Invalid(format!("{folder} has no {file}: its files are {there}")));
        }
        TensorFile::open(&self.folder.join(file))
    }
}

fn folder_name(step: u64) -> String {
    format!("step-{step:08}")
}

fn step_of(name: &str) -> Option<u64> {
    let step = name.strip_prefix("step-")?.parse().ok()?;
    (folder_name(step) == name).then_some(step)
}

/// Writes through to a file and hashes what it writes.
struct Hashed {
    file: Box<dyn OpenFile>,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // In pieces that are still in cache when they are hashed.
        const PIECE: usize = 1 << 20;
        let count = self.file.write(&bytes[..bytes.len().min(PIECE)])?;
        self.hasher.update(&bytes[..count]);
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
