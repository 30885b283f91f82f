//! The folder of a run: what is where in it, who may write to it, and when a run may go on in it.
//!
//! ```text
//! runs/moby-dick/
//!   experiment.toml   the frozen experiment: every default written out
//!   run.json          where the run came from: experiment file, version, machine, data, seed
//!   model.star        the architecture, if it is the user's own
//!   metrics.jsonl     what was measured
//!   events/           TensorBoard event files
//!   checkpoints/      step-00000200/ ...
//!   export/           the model to use
//!   trials/           0000/ ... each a run folder of its own
//!   result.json       the trial that is the run's result, if one is
//!   report.html
//!   lock              held by the process that writes here
//! ```

use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::experiment::{Difference, Experiment, Problems};
use crate::files::{Disk, FileError, replace_file};

/// A run folder that this process holds. Dropping it lets go of the lock.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    /// Locked by the operating system, which unlocks it when the process ends, however it ends.
    _lock: File,
}

/// Where a run came from; `run.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The experiment file, from the root; paths in the experiment are relative to its folder.
    pub experiment: PathBuf,
    /// The folder of cached token shards, from the root.
    pub cache: PathBuf,
    /// The version of Tenon that began the run.
    pub version: String,
    /// The machine that it began on, as its backend describes itself.
    pub machine: String,
    /// The checksum of the data.
    pub data: String,
    /// The seed of weights, order of samples, dropout and trials.
    pub seed: u64,
    /// The names of the classes, in the order of their labels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<String>,
}

/// What `result.json` tells.
#[derive(Serialize, Deserialize)]
struct Chosen {
    trial: u64,
}

/// Whether a run begins or goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    /// There was nothing.
    New,
    /// The same experiment has been begun here.
    Resumed,
}

/// Why a run folder could not be opened.
#[derive(Debug)]
pub enum RunError {
    /// A file operation failed.
    File(FileError),
    /// Another process writes to it.
    Locked {
        /// The folder.
        path: PathBuf,
        /// The process, as far as it is known.
        process: String,
    },
    /// A run of another experiment is in it.
    Changed {
        /// The folder.
        path: PathBuf,
        /// What differs: the stored run on the left, the experiment given on the right.
        differences: Vec<Difference>,
        /// The keys that may differ.
        free: Vec<&'static str>,
    },
    /// The architecture's file has other text than when the run began.
    ChangedModel {
        /// The folder.
        path: PathBuf,
        /// The architecture's file.
        model: PathBuf,
    },
    /// The stored experiment cannot be read.
    Damaged(Problems),
    /// The folder is no run folder and not empty.
    Foreign {
        /// The folder.
        path: PathBuf,
    },
}

impl RunFolder {
    /// Opens `path` for a run of `experiment`: makes the folder and notes `origin`, or goes on in it if the experiment is
    /// the same. Keys that change no weight ([`Experiment::free_keys`]) may differ and are stored anew. `model` is
    /// the file of the user's own architecture and its text.
    ///
    /// # Errors
    /// See [`RunError`]. Nothing in the folder has changed then.
    pub fn open(
        path: &Path,
        experiment: &Experiment,
        origin: &Origin,
        model: Option<(&Path, &str)>,
    ) -> Result<(RunFolder, Opened), RunError> {
        fs::create_dir_all(path).map_err(FileError::of("create", path))?;
        let folder = RunFolder { path: path.to_owned(), _lock: lock(path)? };
        let opened = match folder.stored()? {
            None => {
                folder.check_unused()?;
                Opened::New
            }
            Some(stored) => {
                let differences = stored.changes(experiment);
                if !differences.is_empty() {
                    let free = stored.free_keys().collect();
                    return Err(RunError::Changed { path: path.to_owned(), differences, free });
                }
                Opened::Resumed
            }
        };
        let write = |file: &Path, bytes: &[u8]| replace_file(&Disk, file, bytes).map_err(FileError::of("write", file));
        if let Some((file, text)) = model {
            let copy = folder.model();
            let stored = fs::read(&copy).ok().filter(|_| opened == Opened::Resumed);
            if stored.is_some_and(|stored| stored != text.as_bytes()) {
                return Err(RunError::ChangedModel { path: path.to_owned(), model: file.to_owned() });
            }
            write(&copy, text.as_bytes())?;
        }
        if opened == Opened::New {
            let bytes =
                serde_json::to_vec_pretty(origin).map_err(|error| FileError::of("write", path)(error.into()))?;
            write(&path.join("run.json"), &bytes)?;
        }
        // The experiment comes last: it is what makes the folder one of a run.
        write(&folder.experiment(), experiment.frozen().as_bytes())?;
        Ok((folder, opened))
    }

    /// The experiment of the run in the folder, if there is one.
    fn stored(&self) -> Result<Option<Experiment>, RunError> {
        read_experiment(&self.path).map_err(RunError::Damaged)
    }

    /// A new run goes into an empty folder, or one in which a run was killed while it was being made.
    fn check_unused(&self) -> Result<(), RunError> {
        let ours = ["lock", "run.json", "model.star"];
        let entries = fs::read_dir(&self.path).map_err(FileError::of("list", &self.path))?;
        for entry in entries {
            let name = entry.map_err(FileError::of("list", &self.path))?.file_name();
            let name = name.to_string_lossy();
            if !ours.contains(&&*name) && !name.starts_with(".tmp-") {
                return Err(RunError::Foreign { path: self.path.clone() });
            }
        }
        Ok(())
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The frozen experiment.
    pub fn experiment(&self) -> PathBuf {
        self.path.join("experiment.toml")
    }

    /// The copy of the user's own architecture.
    pub fn model(&self) -> PathBuf {
        self.path.join("model.star")
    }

    /// The metrics log.
    pub fn metrics(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }

    /// The folder of checkpoints.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// The folder of the exported model.
    pub fn export(&self) -> PathBuf {
        self.path.join("export")
    }

    /// The folder of TensorBoard event files.
    pub fn events(&self) -> PathBuf {
        self.path.join("events")
    }

    /// The run folder of a trial.
    pub fn trial(&self, trial: u64) -> PathBuf {
        trial_folder(&self.path, trial)
    }

    /// Notes which trial is the run's result; without one, the run's own training is.
    ///
    /// # Errors
    /// A file operation.
    pub fn choose(&self, trial: Option<u64>) -> Result<(), FileError> {
        let file = self.path.join(RESULT);
        match trial {
            Some(trial) => {
                let bytes = serde_json::to_vec(&Chosen { trial })
                    .map_err(|error| FileError::of("write", &file)(error.into()))?;
                replace_file(&Disk, &file, &bytes).map_err(FileError::of("write", &file))
            }
            None if file.exists() => fs::remove_file(&file).map_err(FileError::of("remove", &file)),
            None => Ok(()),
        }
    }

    /// The report.
    pub fn report(&self) -> PathBuf {
        self.path.join("report.html")
    }
}

/// The file that tells which trial is the run's result.
const RESULT: &str = "result.json";

fn trial_folder(run: &Path, trial: u64) -> PathBuf {
    run.join("trials").join(format!("{trial:04}"))
}

/// The run folder with the result of the run in `folder`: that of the trial that won, with its number, or `folder` itself.
///
/// # Errors
/// A record that cannot be read.
pub fn result_of(folder: &Path) -> Result<(PathBuf, Option<u64>), FileError> {
    let path = folder.join(RESULT);
    if !path.exists() {
        return Ok((folder.to_owned(), None));
    }
    let bytes = fs::read(&path).map_err(FileError::of("read", &path))?;
    let Chosen { trial } =
        serde_json::from_slice(&bytes).map_err(|error| FileError::of("read", &path)(error.into()))?;
    Ok((trial_folder(folder, trial), Some(trial)))
}

/// The frozen experiment in a run folder, for those that only read; `None` if there is no run in it.
///
/// # Errors
/// A stored experiment that cannot be read.
pub fn read_experiment(folder: &Path) -> Result<Option<Experiment>, Problems> {
    let path = folder.join("experiment.toml");
    if path.exists() { Experiment::load(&path, &[]).map(Some) } else { Ok(None) }
}

/// Where the run in a folder came from, for those that only read.
///
/// # Errors
/// A file that cannot be read.
pub fn read_origin(folder: &Path) -> Result<Origin, FileError> {
    let path = folder.join("run.json");
    let bytes = fs::read(&path).map_err(FileError::of("read", &path))?;
    serde_json::from_slice(&bytes).map_err(|error| FileError::of("read", &path)(error.into()))
}

/// Takes the lock of a folder. The operating system frees the lock of a dead process, so none is ever stale; the text in
/// the file only serves the message.
fn lock(folder: &Path) -> Result<File, RunError> {
    let path = folder.join("lock");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(FileError::of("open", &path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut process = String::new();
            // The holder may be writing its text this moment; the message can do without it.
            let _ = Read::take(&mut file, 64).read_to_string(&mut process);
            return Err(RunError::Locked { path: folder.to_owned(), process: process.trim().to_owned() });
        }
        Err(TryLockError::Error(error)) => return Err(FileError::of("lock", &path)(error).into()),
    }
    let text = format!("process {}\n", std::process::id());
    let written: io::Result<()> =
        file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(text.as_bytes()));
    written.map_err(FileError::of("write", &path))?;
    Ok(file)
}

impl From<FileError> for RunError {
    fn from(error: FileError) -> Self {
        RunError::File(error)
    }
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RunError::File(error) => error.fmt(f),
            RunError::Locked { path, process } => {
                let process = if process.is_empty() { "another process" } else { process };
                write!(
                    f,
                    "{}: {process} is running here\n  try: wait for it, stop it, or give this run another name",
                    path.display()
                )
            }
            RunError::Changed { path, differences, free } => {
                let path = path.display();
                write!(f, "{path}: the run in this folder has another experiment:")?;
                for Difference { key, left, right } in differences {
                    let side = |value: &Option<String>| value.clone().unwrap_or_else(|| "absent".into());
                    write!(f, "\n  {key}: {} there, {} now", side(left), side(right))?;
                }
                write!(
                    f,
                    "\n  try: another name for this run, or remove {path} to begin anew; only {} may change in a run",
                    free.join(", ")
                )
            }
            RunError::ChangedModel { path, model } => {
                let path = path.display();
                write!(
                    f,
                    "{path}: the run in this folder has another {0}: see {path}/model.star\n  try: another name for this run, or remove {path} to begin anew",
                    model.display()
                )
            }
            RunError::Damaged(problems) => {
                write!(
                    f,
                    "{problems}\n  try: `experiment.toml` of a run is not meant to be edited; put back what it was, or remove the folder"
                )
            }
            RunError::Foreign { path } => {
                write!(
                    f,
                    "{}: the folder has files and is not the folder of a run\n  try: another name for this run",
                    path.display()
                )
            }
        }
    }
}

impl std::error::Error for RunError {}
