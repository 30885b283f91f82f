//! The list of a checkpoint's files with their sizes and checksums, and the check of a checkpoint against it.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::numbers;

pub(super) const MANIFEST: &str = "manifest.json";

/// The version of the layout of checkpoints.
const FORMAT: u32 = 1;

/// The largest manifest that is read, in bytes.
const LARGEST_MANIFEST: u64 = 1 << 20;

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    format: u32,
    pub step: u64,
    #[serde(with = "numbers")]
    pub metrics: BTreeMap<String, f64>,
    pub files: BTreeMap<String, FileEntry>,
    /// BLAKE3 of the manifest with this field empty.
    checksum: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileEntry {
    pub bytes: u64,
    pub blake3: String,
}

/// What is wrong with a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The step of the checkpoint.
    pub step: u64,
    /// The file that is damaged or missing.
    pub path: PathBuf,
    /// What is wrong with it.
    pub what: String,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.what)
    }
}

impl Manifest {
    pub fn new(step: u64, metrics: BTreeMap<String, f64>) -> Self {
        Manifest { format: FORMAT, step, metrics, files: BTreeMap::new(), checksum: String::new() }
    }

    /// The file, with its checksum.
    pub fn to_bytes(&self) -> serde_json::Result<Vec<u8>> {
        let unsealed = Manifest { checksum: String::new(), ..self.clone() };
        let checksum = blake3::hash(&serde_json::to_vec_pretty(&unsealed)?).to_hex().to_string();
        serde_json::to_vec_pretty(&Manifest { checksum, ..unsealed })
    }

    /// Reads the manifest of a checkpoint of `step`; it must be, byte for byte, what [`Self::to_bytes`] writes.
    pub fn read(folder: &Path, step: u64) -> Result<Manifest, Damage> {
        let path = folder.join(MANIFEST);
        let damage = |what: String| Damage { step, path: path.clone(), what };
        let size = fs::metadata(&path).map_err(|error| damage(unreadable(&error)))?.len();
        if size > LARGEST_MANIFEST {
            return Err(damage(format!("damaged: it has {size} bytes")));
        }
        let bytes = fs::read(&path).map_err(|error| damage(unreadable(&error)))?;
        let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|error| damage(format!("damaged: {error}")))?;
        if manifest.format != FORMAT {
            let format = manifest.format;
            return Err(damage(format!("format {format}, this version of Tenon reads format {FORMAT}")));
        }
        if manifest.step != step || manifest.to_bytes().ok().as_deref() != Some(&bytes) {
            return Err(damage("damaged: it is not as it was written".into()));
        }
        match manifest.files.keys().find(|name| name.contains(['/', '\\']) || name.starts_with('.')) {
            Some(name) => Err(damage(format!("damaged: {name:?} is no file name"))),
            None => Ok(manifest),
        }
    }

    /// Everything that is wrong with the files of the checkpoint.
    pub fn check(&self, folder: &Path) -> Vec<Damage> {
        let check = |(name, entry): (&String, &FileEntry)| {
            let path = folder.join(name);
            let what = entry.check(&path).err()?;
            Some(Damage { step: self.step, path, what })
        };
        self.files.iter().filter_map(check).collect()
    }
}

impl FileEntry {
    fn check(&self, path: &Path) -> Result<(), String> {
        let mut file = File::open(path).map_err(|error| unreadable(&error))?;
        let bytes = file.metadata().map_err(|error| unreadable(&error))?.len();
        if bytes != self.bytes {
            return Err(format!("damaged: it has {bytes} bytes, {} were written", self.bytes));
        }
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; 1 << 20];
        loop {
            match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => drop(hasher.update(&buffer[..count])),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(unreadable(&error)),
            }
        }
        let found = hasher.finalize().to_hex();
        if found.as_str() == self.blake3 {
            return Ok(());
        }
        Err(format!("damaged: its BLAKE3 is {}…, {}… was written", &found[..12], self.blake3.get(..12).unwrap_or("")))
    }
}

fn unreadable(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "missing".into(),
        _ => format!("cannot be read: {error}"),
    }
}
