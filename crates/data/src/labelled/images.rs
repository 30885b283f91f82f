//! Labelled images from IDX, CSV or folders: `pixel_values` f32 [c, h, w], `labels` i32 [].

use std::path::Path;

use super::csv::{CsvFile, RowAt, shown};
use super::labels::{self, LabelCells, Labels, MOST_CLASSES, WholeNumbers};
use super::pictures::{Pictures, Source};
use super::{Inputs, LabelledDataset, Parts, Targets, idx, split};
use crate::config::{IdxPair, ImageSource, OnCorrupt, Paths, Validation};
use crate::dataset::{Dataset, ElementType, Facts, Field, Standardization};
use crate::error::{DataError, Place};
use crate::images::ahead::{Ahead, depth};
use crate::images::files;
use crate::open::Progress;

/// Images of the training file or folder, then those held out elsewhere.
struct Images {
    source: Source,
    labels: Labels,
    /// `[channels, height, width]`.
    shape: [usize; 3],
    /// Images of the training file or folder.
    own: usize,
    /// What the user should know.
    notes: Vec<String>,
}

impl Images {
    fn in_memory(bytes: Vec<u8>, labels: Labels, shape: [usize; 3], own: usize) -> Images {
        Images { source: Source::Memory { bytes, shape }, labels, shape, own, notes: Vec::new() }
    }
}

/// Opens labelled images.
pub(crate) fn open_images(
    source: &ImageSource,
    validation: Option<&Validation>,
    base_dir: &Path,
    seed: u64,
    progress: &mut dyn FnMut(Progress),
) -> Result<Box<dyn Dataset>, DataError> {
    let of_files = source.size.is_some()
        || source.channels.is_some()
        || source.filter.is_some()
        || source.center.is_some()
        || source.on_corrupt.is_some();
    let of_csv = source.label.is_some() || source.header.is_some();
    let mut images = match (&source.idx, &source.labels, &source.csv, &source.folder) {
        (Some(images), Some(labels), None, None) if !of_csv && !of_files => {
            let pair = IdxPair { images: images.clone(), labels: labels.clone() };
            read_idx(source, &pair, validation, base_dir, progress)?
        }
        (None, None, Some(csv), None) if source.label.is_some() && !of_files => {
            let label = source.label.as_deref().unwrap_or_default();
            read_csv(source, csv, label, validation, base_dir, progress)?
        }
        (None, None, None, Some(folder)) if !of_csv && source.shape.is_none() && source.classes.is_none() => {
            read_folder(source, folder, validation, base_dir, progress)?
        }
        _ => {
            return Err(DataError::setting(
                "data.images",
                "images need `idx` and `labels`, or `csv` and `label` (and `header` where it is in doubt), or `folder` and \
                 `size` (and `channels`, `filter`, `center`, `on_corrupt`)",
                "images = { csv = \"digits.csv.gz\", label = \"last\" } or \
                 images = { idx = \"train-images-idx3-ubyte\", labels = \"train-labels-idx1-ubyte\" } or \
                 images = { folder = \"photos\", size = [224, 224] }",
            ));
        }
    };
    let (levels, standardization) = levels(source, images.shape[0])?;
    if let Some(augment) = &source.augment {
        augment.check(images.shape[0])?;
    }
    let classes = &images.labels.values;
    let rows = split::split(validation, classes.len(), images.own, Some(classes), seed)?;
    let field = Field::new("pixel_values", ElementType::F32, &images.shape);
    let pictures = Pictures {
        source: images.source,
        shape: images.shape,
        levels,
        filter: source.filter.unwrap_or_default(),
        share: source.center.unwrap_or(1.0),
        augment: source.augment.clone(),
    };
    let slow = pictures.are_slow();
    if slow {
        let samples = depth(field.bytes());
        let mebibytes = (samples * field.bytes()) as f64 / f64::from(1 << 20);
        images
            .notes
            .push(format!("up to {samples} images ({mebibytes:.1} MiB) are made ahead, in memory beside the plan's"));
    }
    let facts = Facts { image: Some(images.shape), standardization, notes: images.notes, ..Facts::default() };
    let targets = Targets::Classes(images.labels);
    let data =
        LabelledDataset::new(Parts { field, inputs: Inputs::Pictures(Box::new(pictures)), targets, rows, facts, seed });
    Ok(if slow { Box::new(Ahead::new(data)) } else { Box::new(data) })
}

/// The pixels of an image file as a model of `source` sees held-out images: f32 `[channels, height, width]`, which is `shape`.
///
/// # Errors
/// A file that cannot be read or decoded; settings of `source` that do not fit the channels.
pub fn read_image(source: &ImageSource, shape: [usize; 3], path: &Path) -> Result<Vec<f32>, DataError> {
    let pictures = Pictures {
        source: Source::Files { paths: vec![path.to_owned()], sums: Vec::new() },
        shape,
        levels: levels(source, shape[0])?.0,
        filter: source.filter.unwrap_or_default(),
        share: source.center.unwrap_or(1.0),
        augment: None,
    };
    let mut bytes = vec![0; shape.iter().product::<usize>() * size_of::<f32>()];
    pictures.write(0, None, &mut bytes)?;
    Ok(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
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
    Ok(Images::in_memory(pixels, labels, shape.unwrap_or_default(), own))
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
    Ok(Images::in_memory(pixels, labels, shape, own))
}

/// The most pixels of a side.
const MAX_SIDE: usize = 4096;

fn read_folder(
    source: &ImageSource,
    folder: &Path,
    validation: Option<&Validation>,
    base_dir: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<Images, DataError> {
    let Some([height, width]) = source.size.filter(|size| size.iter().all(|n| (1..=MAX_SIDE).contains(n))) else {
        let what = match source.size {
            None => "a folder of images needs the size that the model sees".to_owned(),
            Some(size) => format!("size = {size:?}: each side is 1 to {MAX_SIDE} pixels"),
        };
        return Err(DataError::setting("data.images.size", what, "size = [224, 224], height and width"));
    };
    let channels = source.channels.unwrap_or(3);
    if channels != 1 && channels != 3 {
        let what = format!("channels = {channels}: images have 1 (grey) or 3 (red, green, blue)");
        return Err(DataError::setting("data.images.channels", what, "channels = 3"));
    }
    if let Some(share) = source.center.filter(|share| !(0.1..=1.0).contains(share)) {
        let what = format!("center = {share}: the share of the shorter side lies between 0.1 and 1");
        return Err(DataError::setting("data.images.center", what, "center = 0.875"));
    }
    let held_out = match validation {
        Some(Validation::File(Paths::One(path))) => Some(base_dir.join(path)),
        Some(Validation::File(Paths::Many(_)) | Validation::Idx(_)) => {
            return Err(DataError::setting(
                "data.validation",
                "a folder of images is held out by another folder, just one",
                "validation = { file = \"validation\" } or validation = { stratified = 0.2 }",
            ));
        }
        _ => None,
    };
    let root = base_dir.join(folder);
    let names = files::class_names(&root)?;
    if names.len() > MOST_CLASSES {
        let what = format!("{} folders: at most {MOST_CLASSES} classes", names.len());
        return Err(DataError::content(
            &root,
            Place::Whole,
            what,
            "name the folder that holds one folder for each class",
        ));
    }
    let mut listing = files::list(&root, &names)?;
    let listed = listing.files.len();
    if let Some(root) = &held_out {
        if let Some(other) = files::class_names(root)?.into_iter().find(|name| !names.contains(name)) {
            let what = format!("the held-out folder has the class {other}, the training folder does not");
            return Err(DataError::content(root, Place::Whole, what, "give both the same class folders"));
        }
        let more = files::list(root, &names)?;
        listing.files.extend(more.files);
        listing.classes.extend(more.classes);
    }
    let checked = files::check(&listing.files, channels, &mut |n| progress(Progress::Reading { samples: n as u64 }));
    let skips = source.on_corrupt == Some(OnCorrupt::Skip);
    let (mut paths, mut sums, mut values, mut corrupt) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut own = 0;
    for (at, ((path, class), sum)) in listing.files.into_iter().zip(listing.classes).zip(checked).enumerate() {
        match sum {
            Ok(sum) => {
                own += usize::from(at < listed);
                paths.push(path);
                sums.push(sum);
                values.push(class);
            }
            Err(DataError::Content { path, .. }) if skips => corrupt.push(path.display().to_string()),
            Err(error) => return Err(error),
        }
    }
    let mut notes = Vec::new();
    if !corrupt.is_empty() {
        const SHOWN: usize = 12;
        let more = if corrupt.len() > SHOWN { ", ..." } else { "" };
        let shown = corrupt[..corrupt.len().min(SHOWN)].join(", ");
        notes.push(format!("{} images cannot be decoded and are left out: {shown}{more}", corrupt.len()));
    }
    let labels = Labels { values, names };
    Ok(Images { source: Source::Files { paths, sums }, labels, shape: [channels, height, width], own, notes })
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
