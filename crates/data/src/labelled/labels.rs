//! Class labels: from cells or bytes to 0..classes, with names.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use super::csv::{RowAt, shown};
use crate::error::{DataError, Place};

/// More classes than this are taken for a mistake, and would be one to allocate for.
pub(crate) const MOST_CLASSES: usize = 1 << 16;

/// Labels 0..names.len() of all samples.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Labels {
    pub values: Vec<u32>,
    pub names: Vec<String>,
}

/// What whole-number labels mean.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum WholeNumbers {
    /// The class itself: 3 is class 3, even if no sample has 2.
    AreClasses {
        /// Number of classes, if the settings give it.
        classes: Option<usize>,
    },
    /// Names like any other, sorted by value.
    AreNames,
}

/// Gathers label cells: each distinct one once, with where it was first seen.
#[derive(Default)]
pub(crate) struct LabelCells {
    ids: HashMap<String, u32>,
    distinct: Vec<Distinct>,
    samples: Vec<u32>,
}

struct Distinct {
    name: String,
    path: PathBuf,
    at: RowAt,
}

impl LabelCells {
    /// Adds the label of the next sample.
    pub fn push(&mut self, path: &Path, at: RowAt, cell: &[u8]) -> Result<(), DataError> {
        let name = std::str::from_utf8(cell).map(str::trim).unwrap_or_default();
        if name.is_empty() {
            return Err(DataError::content(
                path,
                at.place(path),
                format!("the label `{}` is empty or not UTF-8", shown(cell)),
                "give every row a label",
            ));
        }
        let id = match self.ids.get(name) {
            Some(&id) => id,
            None => {
                let id = self.distinct.len();
                if id == MOST_CLASSES {
                    return Err(DataError::content(
                        path,
                        at.place(path),
                        format!("the label column has more than {MOST_CLASSES} distinct values"),
                        "check `label`; to predict a number of a table use `target` instead",
                    ));
                }
                self.distinct.push(Distinct { name: name.to_owned(), path: path.to_path_buf(), at });
                self.ids.insert(name.to_owned(), id as u32);
                id as u32
            }
        };
        self.samples.push(id);
        Ok(())
    }

    /// Gives the classes their order: whole numbers by value, words by code point.
    pub fn finish(self, rule: WholeNumbers) -> Result<Labels, DataError> {
        let numbers: Option<Vec<i64>> = self.distinct.iter().map(|d| whole(&d.name)).collect();
        let (classes, names) = match (numbers, rule) {
            (Some(numbers), WholeNumbers::AreClasses { classes }) => {
                let count = self.check_range(&numbers, classes)?;
                let classes = numbers.iter().map(|&n| n as u32).collect();
                (classes, (0..count).map(|c| c.to_string()).collect())
            }
            (Some(numbers), WholeNumbers::AreNames) => {
                let (classes, sorted) = ranks(&numbers);
                (classes, sorted.iter().map(|n| n.to_string()).collect())
            }
            (None, rule) => {
                let names: Vec<&str> = self.distinct.iter().map(|d| d.name.as_str()).collect();
                let (classes, sorted) = ranks(&names);
                if let WholeNumbers::AreClasses { classes: Some(n) } = rule
                    && n != sorted.len()
                {
                    return Err(DataError::setting(
                        "data.images.classes",
                        format!("classes = {n}, but the label column has {} distinct words", sorted.len()),
                        format!("classes = {}, or remove it", sorted.len()),
                    ));
                }
                (classes, sorted.iter().map(|n| (*n).to_owned()).collect())
            }
        };
        let values = self.samples.iter().map(|&id| classes[id as usize]).collect();
        Ok(Labels { values, names })
    }

    fn check_range(&self, numbers: &[i64], classes: Option<usize>) -> Result<usize, DataError> {
        let limit = classes.unwrap_or(MOST_CLASSES) as i64;
        for (distinct, &number) in self.distinct.iter().zip(numbers) {
            if !(0..limit).contains(&number) {
                return Err(out_of_range(&distinct.path, distinct.at.place(&distinct.path), number, limit));
            }
        }
        Ok(classes.unwrap_or_else(|| numbers.iter().max().map_or(0, |&n| n as usize + 1)))
    }
}

/// Labels that are one byte each, as in IDX files; `at` gives the place of a sample in the file for messages.
pub(crate) fn from_bytes(
    bytes: &[u8],
    classes: Option<usize>,
    at: impl Fn(usize) -> (PathBuf, Place),
) -> Result<Labels, DataError> {
    let limit = classes.unwrap_or(MOST_CLASSES);
    if let Some(sample) = bytes.iter().position(|&b| usize::from(b) >= limit) {
        let (path, place) = at(sample);
        return Err(out_of_range(&path, place, i64::from(bytes[sample]), limit as i64));
    }
    let seen = bytes.iter().max().map_or(0, |&b| usize::from(b) + 1);
    Ok(Labels {
        values: bytes.iter().map(|&b| u32::from(b)).collect(),
        names: (0..classes.unwrap_or(seen)).map(|c| c.to_string()).collect(),
    })
}

fn out_of_range(path: &Path, at: Place, label: i64, classes: i64) -> DataError {
    DataError::content(
        path,
        at,
        format!("label {label} is not one of the classes 0 to {}", classes - 1),
        "check the label column, or set `classes` to the greatest label + 1",
    )
}

/// `3`, `-3`, or `3.0` as spreadsheets write it.
fn whole(text: &str) -> Option<i64> {
    text.parse().ok().or_else(|| {
        let number: f64 = text.parse().ok()?;
        (number.fract() == 0.0 && number.abs() < 9e15).then_some(number as i64)
    })
}

/// The rank of each value among the sorted distinct ones, and these.
fn ranks<T: Ord + Copy>(values: &[T]) -> (Vec<u32>, Vec<T>) {
    let sorted: Vec<T> = values.iter().copied().collect::<BTreeSet<T>>().into_iter().collect();
    let rank = |value| sorted.partition_point(|other| other < value) as u32;
    (values.iter().map(rank).collect(), sorted)
}
