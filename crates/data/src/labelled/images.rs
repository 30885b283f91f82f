//! Labelled images from IDX or CSV: `pixel_values` f32 [c, h, w], `labels` i32 [].

use std::path::Path;

use super::csv::{CsvFile, RowAt, shown};
use super::labels::{self, LabelCells, Labels, WholeNumbers};
use super::{Inputs, LabelledDataset, Parts, Targets, idx, split};
use crate::config::{IdxPair, ImageSource, Paths, Validation};
use crate::dataset::{ElementType, Facts, Field, Standardization};
use crate::error::{DataError, Place};
use crate::open::Progress;

/// Images of the training file, then those of a held-out file.
struct Images {
    pixels: Vec<u8>,
    labels: Labels,
    shape: [usize; 3],
    /// Images of the training file.
    own: usize,
}

/// Opens labelled images.
pub(crate) fn open_images(
    source: &ImageSource,
    validation: Option<&Validation>,
    base_dir: &Path,
    seed: u64,
    progress: &mut dyn FnMut(Progress),
) -> Result<LabelledDataset, DataError> {
    let images = match (&source.idx, &source.labels, &source.csv, &source.label) {
        (Some(images), Some(labels), None, None) if source.header.is_none() => {
            let pair = IdxPair { images: images.clone(), labels: labels.clone() };
            read_idx(source, &pair, validation, base_dir, progress)?
        }
        (None, None, Some(csv), Some(label)) => read_csv(source, csv, label, validation, base_dir, progress)?,
        _ => {
            return Err(DataError::setting(
                "data.images",
                "images need either `idx` and `labels`, or `csv` and `label` (and `header` where it is in doubt)",
                "images = { csv = \"digits.csv.gz\", label = \"last\" } or \
                 images = { idx = \"train-images-idx3-ubyte\", labels = \"train-labels-idx1-ubyte\" }",
            ));
        }
    };
    let (levels, standardization) = levels(source, images.shape[0])?;
    let classes = &images.labels.values;
    let rows = split::split(validation, classes.len(), images.own, Some(classes), seed)?;
    let facts = Facts { image: Some(images.shape), standardization, ..Facts::default() };
    Ok(LabelledDataset::new(Parts {
        field: Field::new("pixel_values", ElementType::F32, &images.shape),
        inputs: Inputs::Pixels { bytes: images.pixels, levels },
        targets: Targets::Classes(images.labels),
        rows,
        facts,
        seed,
    }))
}

/// The f32 of each byte, for each channel: `value / 255`, then `(x - mean) / std`.
fn levels(source: &ImageSource, channels: usize) -> Result<(Vec<[f32; 256]>, Option<Standardization>), DataError> {
    let standardization = match (&source.mean, &source.std) {
        (None, None) => None,
        (Some(mean), Some(std)) => {
            let usable = mean.len() == channels
                && std.len() == channels
                && mean.iter().all(|m| m.is_finite())
                && std.iter().all(|s| s.is_finite() && *s > 0.0);
            if !usable {
                return Err(DataError::setting(
                    "data.images.mean",
                    format!(
                        "mean = {mean:?} and std = {std:?}; the images have {channels} channels, and each needs a finite mean and \
                         a std above 0"
                    ),
                    "for MNIST mean = [0.1307], std = [0.3081]",
                ));
            }
            Some(Standardization { mean: mean.clone(), std: std.clone() })
        }
        _ => {
            return Err(DataError::setting(
                "data.images",
                "one of `mean` and `std` is given without the other",
                "for MNIST mean = [0.1307], std = [0.3081]",
            ));
        }
    };
    let levels = (0..channels)
        .map(|channel| {
            std::array::from_fn(|byte| {
                let value = byte as f32 / 255.0;
                match &standardization {
                    None => value,
                    Some(s) => (value - s.mean[channel]) / s.std[channel],
                }
            })
        })
        .collect();
    Ok((levels, standardization))
}

fn read_idx(
    source: &ImageSource,
    pair: &IdxPair,
    validation: Option<&Validation>,
    base_dir: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<Images, DataError> {
    let held_out = match validation {
        Some(Validation::Idx(pair)) => Some(pair),
        Some(Validation::File(_)) => {
            return Err(DataError::setting(
                "data.validation.file",
                "held-out IDX images need two files",
                "validation = { idx = { images = \"t10k-images-idx3-ubyte\", labels = \"t10k-labels-idx1-ubyte\" } }",
            ));
        }
        _ => None,
    };
    let mut pixels = Vec::new();
    let mut labels = Vec::new();
    let mut shape = source.shape;
    let mut own = 0;
    for (file, pair) in std::iter::once(pair).chain(held_out).enumerate() {
        let path = base_dir.join(&pair.images);
        let images = idx::read(&path, 3..=4, "images")?;
        let found = match *images.shape.as_slice() {
            [_, height, width] => [1, height, width],
            [_, channels, height, width] => [channels, height, width],
            _ => unreachable!("idx::read was asked for 3 or 4 dimensions"),
        };
        let wanted = *shape.get_or_insert(found);
        check_shape(&path, Place::Byte(4), wanted, found.iter().product())?;
        let labels_path = base_dir.join(&pair.labels);
        let classes = idx::read(&labels_path, 1..=1, "labels")?;
        if classes.shape[0] != images.shape[0] {
            return Err(DataError::content(
                &labels_path,
                Place::Byte(4),
                format!("{} labels for the {} images of {}", classes.shape[0], images.shape[0], path.display()),
                "give the two files of one set",
            ));
        }
        let header = classes.header_bytes();
        labels::from_bytes(&classes.bytes, source.classes, |sample| {
            (labels_path.clone(), Place::Byte(header + sample as u64))
        })?;
        if file == 0 {
            own = classes.bytes.len();
            pixels = images.bytes;
        } else {
            pixels.extend(images.bytes);
        }
        labels.extend(classes.bytes);
        progress(Progress::Reading { samples: labels.len() as u64 });
    }
    let labels = labels::from_bytes(&labels, source.classes, |_| (base_dir.join(&pair.labels), Place::Whole))?;
    Ok(Images { pixels, labels, shape: shape.unwrap_or_default(), own })
}

fn read_csv(
    source: &ImageSource,
    csv: &Path,
    label: &str,
    validation: Option<&Validation>,
    base_dir: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<Images, DataError> {
    let held_out = held_out_csv(validation)?.map(|path| base_dir.join(path));
    let mut pixels = Vec::new();
    let mut cells = LabelCells::default();
    let file = CsvFile::open(&base_dir.join(csv), source.header)?;
    let shape = match source.shape {
        Some(shape) => shape,
        None => square(&file)?,
    };
    check_shape(&file.path, Place::Line(1), shape, file.width - 1)?;
    let label = file.column("data.images.label", label)?;
    let own = file.read_all(held_out.as_deref(), source.header, progress, &mut |file, at, row| {
        for (column, cell) in row.iter().enumerate() {
            if column == label {
                cells.push(&file.path, at, cell)?;
            } else {
                pixels.push(pixel(cell).ok_or_else(|| bad_pixel(file, at, column, cell))?);
            }
        }
        Ok(())
    })?;
    let labels = cells.finish(WholeNumbers::AreClasses { classes: source.classes })?;
    Ok(Images { pixels, labels, shape, own })
}

/// The held-out CSV file, if `validation` names one.
pub(super) fn held_out_csv(validation: Option<&Validation>) -> Result<Option<&Path>, DataError> {
    match validation {
        Some(Validation::File(Paths::One(path))) => Ok(Some(path)),
        Some(Validation::File(Paths::Many(_)) | Validation::Idx(_)) => Err(DataError::setting(
            "data.validation",
            "a CSV file is held out by another CSV file, just one",
            "validation = { file = \"test.csv\" } or validation = { stratified = 0.2 }",
        )),
        _ => Ok(None),
    }
}

fn pixel(cell: &[u8]) -> Option<u8> {
    std::str::from_utf8(cell).ok()?.trim().parse().ok()
}

fn bad_pixel(file: &CsvFile, at: RowAt, column: usize, cell: &[u8]) -> DataError {
    DataError::content(
        &file.path,
        at.place(&file.path),
        format!("{} is `{}`: a pixel is a whole number from 0 to 255", file.column_name(column), shown(cell)),
        "check `label` and `header`; for columns of real numbers use `table` instead of `images`",
    )
}

fn square(file: &CsvFile) -> Result<[usize; 3], DataError> {
    let pixels = file.width - 1;
    let side = pixels.isqrt();
    if pixels > 0 && side * side == pixels {
        return Ok([1, side, side]);
    }
    Err(DataError::content(
        &file.path,
        Place::Line(1),
        format!("a row has {pixels} pixels and a label; {pixels} pixels are no square"),
        "give `shape`, as in shape = [3, 32, 32]",
    ))
}

fn check_shape(path: &Path, at: Place, shape: [usize; 3], found: usize) -> Result<(), DataError> {
    let wanted = shape.iter().try_fold(1usize, |all, &n| all.checked_mul(n));
    if wanted == Some(found) && found > 0 {
        return Ok(());
    }
    Err(DataError::content(
        path,
        at,
        format!("an image has {found} pixels in the file; shape {shape:?} has another number"),
        "set `shape` to [channels, height, width] of the file's images",
    ))
}
