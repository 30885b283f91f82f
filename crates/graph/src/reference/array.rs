//! A value of the reference evaluator.

use half::bf16;

use crate::types::{DType, Shape, Type};

/// How exactly floats are kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Precision {
    /// Every result is rounded to its element type, after exact enough arithmetic.
    F32,
    /// Floats of every element type are kept in `f64`: for finite differences.
    F64,
}

/// A dense value, row-major. Every element type fits `f64` exactly; truth values are 0 and 1.
#[derive(Clone, PartialEq, Debug)]
pub struct Array {
    /// The element type.
    pub dtype: DType,
    /// The sizes of the axes.
    pub shape: Vec<usize>,
    /// The elements.
    pub data: Vec<f64>,
}

impl Array {
    /// A value.
    ///
    /// # Panics
    /// If the number of elements is not that of the shape.
    pub fn new(dtype: DType, shape: impl Into<Vec<usize>>, data: impl Into<Vec<f64>>) -> Array {
        let array = Array { dtype, shape: shape.into(), data: data.into() };
        let (elements, shape) = (array.data.len(), &array.shape);
        assert_eq!(elements, shape.iter().product::<usize>(), "{elements} elements for {shape:?}");
        array
    }

    /// A scalar.
    pub fn scalar(dtype: DType, value: f64) -> Array {
        Array::new(dtype, [], [value])
    }

    /// A value whose elements all are `value`.
    pub fn full(dtype: DType, shape: &[usize], value: f64) -> Array {
        Array::new(dtype, shape, vec![value; shape.iter().product()])
    }

    /// The type.
    pub fn ty(&self) -> Type {
        Type { dtype: self.dtype, shape: Shape::from(self.shape.as_slice()) }
    }

    /// This value with every element as its element type keeps it at this precision.
    pub fn rounded(mut self, precision: Precision) -> Array {
        for x in &mut self.data {
            *x = round(*x, self.dtype, precision);
        }
        self
    }
}

/// The result `x` of arithmetic as `dtype` keeps it: floats are rounded to nearest even, integers wrap.
pub(super) fn round(x: f64, dtype: DType, precision: Precision) -> f64 {
    match (dtype, precision) {
        (DType::F32 | DType::BF16, Precision::F64) => x,
        (DType::F32, Precision::F32) => f64::from(x as f32),
        // Through f32, in which every backend accumulates.
        (DType::BF16, Precision::F32) => bf16::from_f32(x as f32).to_f64(),
        (DType::I32, _) => f64::from(x as i64 as i32),
        (DType::U32, _) => f64::from(x as i64 as u32),
        (DType::U8, _) => f64::from(x as i64 as u8),
        (DType::Bool, _) => f64::from(u8::from(x != 0.0)),
    }
}

/// `x` of type `from` converted to `to`: floats to integers truncate and saturate (NaN gives 0), integers wrap.
pub(super) fn convert(x: f64, from: DType, to: DType, precision: Precision) -> f64 {
    match to {
        DType::I32 if from.is_float() => f64::from(x as i32),
        DType::U32 if from.is_float() => f64::from(x as u32),
        DType::U8 if from.is_float() => f64::from(x as u8),
        _ => round(x, to, precision),
    }
}

/// The distances between neighbours along each axis of a row-major value.
pub(super) fn strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis];
    }
    strides
}

/// Calls `visit` with every index of `shape`, row-major.
pub(super) fn each_index(shape: &[usize], mut visit: impl FnMut(&[usize])) {
    if shape.contains(&0) {
        return;
    }
    let mut index = vec![0; shape.len()];
    loop {
        visit(&index);
        let Some(axis) = (0..shape.len()).rev().find(|a| index[*a] + 1 < shape[*a]) else { return };
        index[axis] += 1;
        index[axis + 1..].fill(0);
    }
}

/// The position of `index` in a value with these strides.
pub(super) fn offset(index: &[usize], strides: &[usize]) -> usize {
    index.iter().zip(strides).map(|(i, s)| i * s).sum()
}
