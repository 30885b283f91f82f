//! What a trained classifier says of files with texts or pictures, which are read as its run read its data.

use std::fs;
use std::path::Path;

use tenon_data::{ImageSource, Tokenizer, encode_text, read_image, text_of};
use tenon_graph::backend::Backend;
use tenon_nn::forward::{NamedTensor, Values, forward};
use tenon_nn::{HyperValue, Model, ModelError};
use tenon_train::run_folder::{read_experiment, read_origin};

use crate::model_folder::{OpenModel, open_model};

/// A trained classifier of texts or pictures.
pub struct Classifier {
    model: OpenModel,
    /// The names of the classes, in the order of the logits.
    classes: Vec<String>,
    reading: Reading,
}

/// How a file becomes what the model takes.
enum Reading {
    Text { tokenizer: Box<Tokenizer>, most: Option<usize> },
    Picture { source: Box<ImageSource>, shape: [usize; 3] },
}

impl Classifier {
    /// The model of the run in the folder `run`, whose result is in the folder `result` (see
    /// [`result_of`](tenon_train::run_folder::result_of)).
    ///
    /// # Errors
    /// No run, or one that classifies neither texts nor pictures; a model that cannot be read.
    pub fn open(run: &Path, result: &Path) -> Result<Classifier, ModelError> {
        let foreign = |error: &dyn std::fmt::Display| ModelError::new(error.to_string());
        let Some(experiment) = read_experiment(result).map_err(|e| foreign(&e))? else {
            let message = format!("{}: no run in it (experiment.toml), which tells how files are read", run.display());
            return Err(ModelError::new(message).help("name a folder that `tenon run` made"));
        };
        let classes = read_origin(result).map_err(|e| foreign(&e))?.classes;
        let model = open_model(run)?;
        let reading = match (experiment.data.labelled_text, experiment.data.images) {
            (Some(source), _) if source.pair.is_none() && !classes.is_empty() => {
                let context = match model.model.hyperparameter("context") {
                    Some(HyperValue::Int(n)) => usize::try_from(*n).ok(),
                    _ => None,
                };
                Reading::Text { tokenizer: Box::new(model.tokenizer()?), most: source.max_tokens.or(context) }
            }
            (None, Some(source)) => Reading::Picture { source: Box::new(source), shape: picture(&model.model)? },
            _ => {
                let message = format!("{}: its samples are neither texts nor pictures, one to a class", run.display());
                return Err(ModelError::new(message).help("tenon forward runs any model on tensors"));
            }
        };
        Ok(Classifier { model, classes, reading })
    }

    /// The classes with the probability of each for the text or picture in `file`, the likeliest first.
    ///
    /// # Errors
    /// A file that is no such text or picture; a model that gives no logit for each class.
    pub fn classes_of(&self, file: &Path, backend: &dyn Backend) -> Result<Vec<(&str, f32)>, ModelError> {
        let model = &self.model.model;
        let mut outputs = forward(model, &self.model.values, &self.read(file)?, backend)?;
        outputs.retain(|output| output.name == "logits" && output.shape == [1, self.classes.len()]);
        let Some(NamedTensor { values: Values::Float(logits), .. }) = outputs.pop() else {
            let message = format!("{model} gives no `logits` [1, {}], one for each class", self.classes.len());
            return Err(ModelError::new(message).help("tenon forward shows what it gives"));
        };
        let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let total: f32 = logits.iter().map(|x| (x - most).exp()).sum();
        let probabilities = logits.iter().map(|x| (x - most).exp() / total);
        let mut named: Vec<(&str, f32)> = self.classes.iter().map(String::as_str).zip(probabilities).collect();
        named.sort_by(|a, b| b.1.total_cmp(&a.1));
        Ok(named)
    }

    fn read(&self, file: &Path) -> Result<Vec<NamedTensor>, ModelError> {
        let model = &self.model.model;
        let wrong = |what: &dyn std::fmt::Display| ModelError::new(format!("{}: {what}", file.display()));
        match &self.reading {
            Reading::Text { tokenizer, most } => {
                let bytes = fs::read(file).map_err(|e| wrong(&format!("cannot be read: {e}")))?;
                let text = text_of(&bytes).map_err(|e| wrong(&format!("is not UTF-8: {e}")))?;
                let ids = encode_text(tokenizer, text, *most).map_err(|e| wrong(&e))?;
                let filled = |value| vec![value; ids.len()];
                let inputs = [
                    ("attention_mask", filled(1)),
                    ("token_type_ids", filled(0)),
                    ("input_ids", ids.iter().map(|&id| i64::from(id)).collect()),
                ];
                let takes = |name| model.inputs.iter().any(|input| input.name == name);
                let taken = inputs.into_iter().filter(|(name, _)| takes(*name));
                let tensor = |(name, values): (&str, Vec<i64>)| NamedTensor {
                    name: name.into(),
                    shape: vec![1, values.len()],
                    values: Values::Int(values),
                };
                Ok(taken.map(tensor).collect())
            }
            Reading::Picture { source, shape } => {
                let pixels = read_image(source, *shape, file).map_err(|e| ModelError::new(e.to_string()))?;
                let [channels, height, width] = *shape;
                let shape = vec![1, channels, height, width];
                Ok(vec![NamedTensor { name: "pixel_values".into(), shape, values: Values::Float(pixels) }])
            }
        }
    }
}

/// `[channels, height, width]` of the pictures that a model takes.
fn picture(model: &Model) -> Result<[usize; 3], ModelError> {
    let input = model.inputs.iter().find(|input| input.name == "pixel_values");
    let sizes: Vec<Option<usize>> =
        input.iter().flat_map(|i| i.shape.iter().skip(1).map(|dim| dim.as_const())).collect();
    match sizes[..] {
        [Some(channels), Some(height), Some(width)] => Ok([channels, height, width]),
        _ => Err(ModelError::new(format!("{model} takes no pictures (`pixel_values`) of one size"))),
    }
}
