//! Which samples of a labelled set are trained on and which are held out.

use crate::config::{Validation, check_fraction};
use crate::error::DataError;
use crate::order::{Stream, random};

/// Row numbers of both splits, ascending.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Rows {
    pub train: Vec<u32>,
    pub validation: Vec<u32>,
}

/// Splits rows 0..`rows`. `own` of them, the first, come from the training file and the rest from a held-out file, if there is one.
/// `labels` are the classes of all rows, where they have any.
pub(crate) fn split(
    validation: Option<&Validation>,
    rows: usize,
    own: usize,
    labels: Option<&[u32]>,
    seed: u64,
) -> Result<Rows, DataError> {
    if u32::try_from(rows).is_err() {
        return Err(DataError::setting(
            "data",
            format!("{rows} samples; a labelled set has at most {}", u32::MAX),
            "use a part of the data",
        ));
    }
    let held_out: Vec<bool> = match validation {
        None => vec![false; rows],
        Some(Validation::File(_) | Validation::Idx(_)) => (0..rows).map(|row| row >= own).collect(),
        Some(Validation::Last(fraction)) => {
            check_fraction("data.validation.last", *fraction)?;
            let first = rows - (rows as f64 * fraction) as usize;
            (0..rows).map(|row| row >= first).collect()
        }
        Some(Validation::LastCount(count)) => {
            let first = (rows as u64).saturating_sub(*count);
            (0..rows as u64).map(|row| row >= first).collect()
        }
        Some(Validation::Every(every)) => {
            if *every < 2 {
                return Err(DataError::setting(
                    "data.validation.every",
                    format!("every = {every} leaves nothing to train on"),
                    "every = 10 holds out a tenth",
                ));
            }
            (0..rows as u64).map(|row| row % every == every - 1).collect()
        }
        Some(Validation::Stratified(fraction)) => {
            check_fraction("data.validation.stratified", *fraction)?;
            let Some(labels) = labels else {
                return Err(DataError::setting(
                    "data.validation.stratified",
                    "a stratified split needs classes, which the samples of this data do not have",
                    "validation = { every = 10 }; texts with a column of classes may name it: label = \"...\"",
                ));
            };
            stratified(labels, *fraction, seed)
        }
    };
    let side = |side: bool| -> Vec<u32> { (0..rows as u32).filter(|&row| held_out[row as usize] == side).collect() };
    let split = Rows { train: side(false), validation: side(true) };
    if split.train.is_empty() || (validation.is_some() && split.validation.is_empty()) {
        return Err(DataError::setting(
            "data.validation",
            format!(
                "of {rows} samples {} are left to train and {} are held out; neither may be none",
                split.train.len(),
                split.validation.len()
            ),
            "hold out another part: validation = { last_count = 1 } is the smallest",
        ));
    }
    Ok(split)
}

/// Holds out the share of every class, rounded, whose members hash lowest: no order of the file or of classes matters, and at least one stays.
fn stratified(labels: &[u32], fraction: f64, seed: u64) -> Vec<bool> {
    let classes = labels.iter().max().map_or(0, |&c| c as usize + 1);
    let mut members: Vec<Vec<usize>> = vec![Vec::new(); classes];
    for (row, &class) in labels.iter().enumerate() {
        members[class as usize].push(row);
    }
    let mut held_out = vec![false; labels.len()];
    for mut rows in members {
        let count = (rows.len() as f64 * fraction).round() as usize;
        let count = count.min(rows.len().saturating_sub(1));
        rows.sort_by_key(|&row| (random(seed, Stream::Stratified, row as u64), row));
        for &row in &rows[..count] {
            held_out[row] = true;
        }
    }
    held_out
}
