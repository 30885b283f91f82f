//! Models on disk: an exported or foreign folder, or the run that made one.

use std::path::{Path, PathBuf};

use tenon_data::{Tokenizer, load_tokenizer};
use tenon_nn::{Model, ModelError, load_weights, open};

/// A model with its weights.
pub struct OpenModel {
    /// The folder that it was read from.
    pub folder: PathBuf,
    /// The model.
    pub model: Model,
    /// The values of its variables, in the order of [`Model::variables`].
    pub values: Vec<Vec<f32>>,
}

/// The folder with a model's files that `path` means: itself, or its `export`.
///
/// # Errors
/// Neither has one.
pub fn resolve(path: &Path) -> Result<PathBuf, ModelError> {
    let holds = |folder: &Path| folder.join("config.json").exists() || folder.join("tenon.json").exists();
    let export = path.join("export");
    if holds(path) {
        return Ok(path.to_owned());
    }
    if holds(&export) {
        return Ok(export);
    }
    if !path.exists() {
        return Err(ModelError::new(format!("{}: there is no such folder", path.display())));
    }
    let message = format!("{}: no exported model in it (config.json or tenon.json)", path.display());
    let help = if path.join("checkpoints").exists() {
        format!("tenon export {} --out DIR writes the newest checkpoint as one", path.display())
    } else {
        "name a run folder, an export of one, or a Hugging Face model folder".into()
    };
    Err(ModelError::new(message).help(help))
}

/// Opens the model that `path` means.
///
/// # Errors
/// See [`resolve`]; a folder whose model or weights cannot be read.
pub fn open_model(path: &Path) -> Result<OpenModel, ModelError> {
    let folder = resolve(path)?;
    let model = open(&folder)?;
    let values = load_weights(&folder, &model)?;
    Ok(OpenModel { folder, model, values })
}

impl OpenModel {
    /// The tokenizer beside the model.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub fn tokenizer(&self) -> Result<Tokenizer, ModelError> {
        let path = self.folder.join("tokenizer.json");
        if !path.exists() {
            let message = format!("{}: the model has no tokenizer.json beside it", self.folder.display());
            return Err(ModelError::new(message).help("copy the tokenizer that the model was trained with there"));
        }
        load_tokenizer(&path).map_err(|e| ModelError::new(e.to_string()))
    }
}
