//! Tables: numeric columns as `features` f32 [F] and a class (`labels` i32 []) or a number (`labels` f32 [1]) to predict.

use std::path::Path;

use super::csv::{CsvFile, RowAt, number, shown};
use super::images::held_out_csv;
use super::labels::{LabelCells, WholeNumbers};
use super::{Inputs, LabelledDataset, Parts, Targets, split};
use crate::config::{TableSource, Validation};
use crate::dataset::{ElementType, Facts, Field, Standardization};
use crate::error::{DataError, Place};
use crate::open::Progress;

/// Opens a table.
pub(crate) fn open_table(
    source: &TableSource,
    validation: Option<&Validation>,
    base_dir: &Path,
    seed: u64,
    progress: &mut dyn FnMut(Progress),
) -> Result<LabelledDataset, DataError> {
    let held_out = held_out_csv(validation)?.map(|path| base_dir.join(path));
    let file = CsvFile::open(&base_dir.join(&source.csv), source.header)?;
    let (answer, is_class) = match (&source.label, &source.target) {
        (Some(label), None) => (file.column("data.table.label", label)?, true),
        (None, Some(target)) => (file.column("data.table.target", target)?, false),
        _ => {
            return Err(DataError::setting(
                "data.table",
                "a table needs either `label` (the column of a class) or `target` (the column of a number)",
                "table = { csv = \"iris.csv\", label = \"species\" }",
            ));
        }
    };
    let features = file.width - 1;
    if features == 0 {
        return Err(DataError::content(
            &file.path,
            Place::Line(1),
            "the table has one column: there is nothing to predict it from",
            "check the separator: commas, tabs and semicolons are understood",
        ));
    }
    let feature_names = file.header.clone().map(|mut names| {
        names.remove(answer);
        names
    });

    let mut values: Vec<f64> = Vec::new();
    let mut cells = LabelCells::default();
    let mut numbers: Vec<f32> = Vec::new();
    let mut samples = 0;
    let own = file.read_all(held_out.as_deref(), source.header, progress, &mut |file, at, row| {
        for (column, cell) in row.iter().enumerate() {
            if column == answer && is_class {
                cells.push(&file.path, at, cell)?;
                continue;
            }
            let value = number(cell).ok_or_else(|| bad_number(file, at, column, cell))?;
            if column == answer {
                numbers.push(value as f32);
            } else {
                values.push(value);
            }
        }
        samples += 1;
        Ok(())
    })?;

    let targets =
        if is_class { Targets::Classes(cells.finish(WholeNumbers::AreNames)?) } else { Targets::Numbers(numbers) };
    let classes = match &targets {
        Targets::Classes(labels) => Some(labels.values.as_slice()),
        Targets::Numbers(_) => None,
    };
    let rows = split::split(validation, samples, own, classes, seed)?;
    let standardization = source.standardize.then(|| fit(&values, features, &rows.train));
    let inputs = match &standardization {
        None => values.iter().map(|&x| x as f32).collect(),
        Some(s) => apply(&values, s),
    };
    let facts = Facts {
        features: Some(features),
        feature_names: feature_names.unwrap_or_default(),
        standardization,
        ..Facts::default()
    };
    Ok(LabelledDataset::new(Parts {
        field: Field::new("input_features", ElementType::F32, &[features]),
        inputs: Inputs::Numbers(inputs),
        targets,
        rows,
        facts,
        seed,
    }))
}

fn bad_number(file: &CsvFile, at: RowAt, column: usize, cell: &[u8]) -> DataError {
    let what = match cell.trim_ascii() {
        [] => format!("{} is empty", file.column_name(column)),
        _ => format!("{} is `{}`: not a finite number", file.column_name(column), shown(cell)),
    };
    DataError::content(
        &file.path,
        at.place(&file.path),
        what,
        "fill in or remove the row, or the column; `header` and `label` say what is not data",
    )
}

/// Mean and population standard deviation of each feature over the training rows; 1 for a constant feature.
fn fit(values: &[f64], features: usize, rows: &[u32]) -> Standardization {
    let count = rows.len() as f64;
    let of_rows = || rows.iter().map(|&row| &values[row as usize * features..][..features]);
    let mut mean = vec![0.0; features];
    for row in of_rows() {
        for (mean, x) in mean.iter_mut().zip(row) {
            *mean += x / count;
        }
    }
    let mut variance = vec![0.0; features];
    for row in of_rows() {
        for ((variance, mean), x) in variance.iter_mut().zip(&mean).zip(row) {
            *variance += (x - mean) * (x - mean) / count;
        }
    }
    // A constant such as 0.1 leaves a rounding error for a mean, which must not be scaled up.
    let is_constant = |(variance, mean): (&f64, &f64)| variance.sqrt() <= 1e-12 * mean.abs();
    let std = variance.iter().zip(&mean).map(|pair| if is_constant(pair) { 1.0 } else { pair.0.sqrt() as f32 });
    Standardization { std: std.collect(), mean: mean.iter().map(|&m| m as f32).collect() }
}

/// Uses the recorded f32 values, so that whoever has the record computes the same features.
fn apply(values: &[f64], standardization: &Standardization) -> Vec<f32> {
    let Standardization { mean, std } = standardization;
    let scale = |(i, x): (usize, &f64)| {
        let feature = i % mean.len();
        ((x - f64::from(mean[feature])) / f64::from(std[feature])) as f32
    };
    values.iter().enumerate().map(scale).collect()
}
