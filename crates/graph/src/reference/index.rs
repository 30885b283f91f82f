//! Gather, scatter, sorting and random bits.

use std::cmp::Ordering;

use super::array::{Array, each_index, offset, strides};
use crate::op::{Gather, Random, Scatter, Sort};
use crate::random::random_bits;
use crate::types::DType;

/// The index at `position` of `indices` as a place among `size`.
fn place(what: &str, indices: &Array, position: usize, size: usize) -> Result<usize, String> {
    let index = indices.data[position];
    if index >= 0.0 && (index as usize) < size {
        return Ok(index as usize);
    }
    let mut rest = position;
    let at: Vec<usize> = strides(&indices.shape)
        .iter()
        .map(|stride| {
            let i = rest / stride;
            rest %= stride;
            i
        })
        .collect();
    Err(format!("{what}: index {index} at {at:?} is outside 0..{size}"))
}

/// For each position of `indices`: the position with its coordinate along `axis` replaced by the index, in a value whose
/// size along the axis is `size`.
fn along(what: &str, indices: &Array, axis: usize, size: usize) -> Result<Vec<usize>, String> {
    let mut shape = indices.shape.clone();
    shape[axis] = size;
    let into = strides(&shape);
    let mut found = Vec::with_capacity(indices.data.len());
    let (mut position, mut failure) = (0, None);
    each_index(&indices.shape, |i| {
        match place(what, indices, position, size) {
            Ok(index) => found.push(offset(i, &into) + index * into[axis] - i[axis] * into[axis]),
            Err(message) => failure = failure.take().or(Some(message)),
        }
        position += 1;
    });
    failure.map_or(Ok(found), Err)
}

pub(super) fn gather(gather: &Gather, operand: &Array, indices: &Array) -> Result<Array, String> {
    match gather {
        Gather::Rows => {
            let row: usize = operand.shape[1..].iter().product();
            let mut data = Vec::with_capacity(indices.data.len() * row);
            for position in 0..indices.data.len() {
                let index = place("gather", indices, position, operand.shape[0])?;
                data.extend_from_slice(&operand.data[index * row..(index + 1) * row]);
            }
            let shape = [&indices.shape[..], &operand.shape[1..]].concat();
            Ok(Array::new(operand.dtype, shape, data))
        }
        Gather::Along(axis) => {
            let places = along("gather", indices, *axis, operand.shape[*axis])?;
            let data: Vec<f64> = places.into_iter().map(|at| operand.data[at]).collect();
            Ok(Array::new(operand.dtype, indices.shape.clone(), data))
        }
    }
}

pub(super) fn scatter(scatter: &Scatter, x: &[&Array]) -> Result<Array, String> {
    match scatter {
        Scatter::AddRows(rows) => {
            let (indices, updates, rows) = (x[0], x[1], rows.as_const().expect("the graph has been bound"));
            let shape = [&[rows], &updates.shape[indices.shape.len()..]].concat();
            let row: usize = shape[1..].iter().product();
            let mut data = vec![0.0; rows * row];
            let mut updated = vec![false; rows];
            for position in 0..indices.data.len() {
                let index = place("scatter", indices, position, rows)?;
                updated[index] = true;
                for i in 0..row {
                    data[index * row + i] += updates.data[position * row + i];
                }
            }
            if let Some(start) = x.get(2) {
                let with_rows = data.iter_mut().zip(&start.data).enumerate();
                with_rows.for_each(|(i, (sum, a))| *sum = if updated[i / row] { a + *sum } else { *a });
            }
            Ok(Array::new(updates.dtype, shape, data))
        }
        Scatter::AddAlong { axis, size } => {
            let (indices, updates) = (x[0], x[1]);
            let mut shape = updates.shape.clone();
            shape[*axis] = size.as_const().expect("the graph has been bound");
            let mut data = vec![0.0; shape.iter().product()];
            for (from, to) in along("scatter", indices, *axis, shape[*axis])?.into_iter().enumerate() {
                data[to] += updates.data[from];
            }
            Ok(Array::new(updates.dtype, shape, data))
        }
        Scatter::Write(axis) => {
            let (operand, updates, position) = (x[0], x[1], x[2].data[0]);
            let (whole, part) = (operand.shape[*axis], updates.shape[*axis]);
            if position < 0.0 || position as usize + part > whole {
                return Err(format!("write: {part} elements from {position} on do not fit into {whole}"));
            }
            let mut result = operand.clone();
            let into = strides(&operand.shape);
            let mut from = 0;
            each_index(&updates.shape, |i| {
                result.data[offset(i, &into) + position as usize * into[*axis]] = updates.data[from];
                from += 1;
            });
            Ok(result)
        }
    }
}

pub(super) fn sort(sort: &Sort, x: &Array) -> Array {
    let (size, stride) = (x.shape[sort.axis], strides(&x.shape)[sort.axis]);
    let mut data = vec![0.0; x.data.len()];
    // NaN is the largest.
    let order = |a: f64, b: f64| a.partial_cmp(&b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()));
    let mut lines = x.shape.clone();
    lines[sort.axis] = 1;
    each_index(&lines, |i| {
        let start = offset(i, &strides(&x.shape));
        let value = |index: &usize| x.data[start + index * stride];
        let mut indices: Vec<usize> = (0..size).collect();
        indices.sort_by(|a, b| -> Ordering {
            let ascending = order(value(a), value(b));
            if sort.descending { ascending.reverse() } else { ascending }
        });
        for (rank, index) in indices.into_iter().enumerate() {
            data[start + rank * stride] = index as f64;
        }
    });
    Array::new(DType::I32, x.shape.clone(), data)
}

pub(super) fn random(random: &Random, key: &Array) -> Array {
    let key = [key.data[0] as u32, key.data[1] as u32];
    let shape = random.shape.sizes();
    let elements: usize = shape.iter().product();
    let bits = (0..elements as u64).map(|i| f64::from(random_bits(key, random.stream, i)));
    Array::new(DType::U32, shape, bits.collect::<Vec<_>>())
}
