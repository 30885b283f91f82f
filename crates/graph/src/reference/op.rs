//! The meaning of each primitive, exhaustive over the kinds. Sizes have been bound and types inferred.

use super::array::{Array, Precision, convert, each_index, offset, round, strides};
use super::{index, window};
use crate::dim::Dim;
use crate::elementwise::{Binary, Signature};
use crate::op::{Dot, Op, Reduce, ReduceOp, Source, View};
use crate::types::{DType, Shape};

/// The result of a primitive other than an input.
pub(super) fn evaluate(op: &Op, x: &[&Array], precision: Precision) -> Result<Array, String> {
    let array = |dtype, shape: &[usize], data| Array::new(dtype, shape, data).rounded(precision);
    Ok(match op {
        Op::Source(source) => self::source(source, precision),
        Op::Unary(unary) => {
            let def = unary.def();
            let data: Vec<f64> = x[0].data.iter().map(|a| (def.eval)(*a)).collect();
            array(result_dtype(def.signature, x[0]), &x[0].shape, data)
        }
        Op::Binary(binary) => self::binary(*binary, x[0], x[1], precision),
        Op::Select => {
            let branches = x[1].data.iter().zip(&x[2].data);
            let data = x[0].data.iter().zip(branches).map(|(c, (a, b))| if *c != 0.0 { *a } else { *b });
            Array::new(x[1].dtype, x[1].shape.clone(), data.collect::<Vec<_>>())
        }
        Op::Cast(dtype) => {
            let data = x[0].data.iter().map(|a| convert(*a, x[0].dtype, *dtype, precision));
            Array::new(*dtype, x[0].shape.clone(), data.collect::<Vec<_>>())
        }
        Op::Reduce(reduce) => self::reduce(reduce, x[0]).rounded(precision),
        Op::View(view) => self::view(view, x),
        Op::Dot(dot) => {
            let narrow = [x[0], x[1]].map(|x| x.dtype).contains(&DType::BF16);
            let operand = |x: &Array| {
                if narrow { Array { dtype: DType::BF16, ..x.clone() }.rounded(precision) } else { x.clone() }
            };
            self::dot(dot, &operand(x[0]), &operand(x[1]), x.get(2).copied()).rounded(precision)
        }
        Op::Conv(conv) => window::conv(conv, x[0], x[1]).rounded(precision),
        Op::Pool(pool) => window::pool(pool, x).rounded(precision),
        Op::Gather(gather) => index::gather(gather, x[0], x[1])?,
        Op::Scatter(scatter) => index::scatter(scatter, x)?.rounded(precision),
        Op::Sort(sort) => index::sort(sort, x[0]),
        Op::Random(random) => index::random(random, x[0]),
        Op::Composite(composite) => unreachable!("{} is evaluated by its expansion", composite.def.name),
    })
}

fn result_dtype(signature: Signature, operand: &Array) -> DType {
    signature.result(operand.dtype).expect("types have been inferred")
}

fn source(source: &Source, precision: Precision) -> Array {
    let scalar = |dtype, value| Array::scalar(dtype, value).rounded(precision);
    match source {
        Source::Input { name, .. } => unreachable!("input {name} is given, not computed"),
        // A constant of another kind than its element type is converted as a cast would.
        Source::Constant { value, dtype } => Array::scalar(*dtype, convert(*value, DType::F32, *dtype, precision)),
        Source::Size(dim) => scalar(DType::F32, dim.as_const().expect("the graph has been bound") as f64),
        Source::Iota { axis, ty } => {
            let shape = ty.shape.sizes();
            let mut data = Vec::new();
            each_index(&shape, |i| data.push(i[*axis] as f64));
            Array::new(ty.dtype, shape, data).rounded(precision)
        }
    }
}

fn binary(binary: Binary, a: &Array, b: &Array, precision: Precision) -> Array {
    let def = binary.def();
    let dtype = result_dtype(def.signature, a);
    let pairs = a.data.iter().zip(&b.data);
    // A product of two 32-bit integers does not fit f64.
    let data: Vec<f64> = if binary == Binary::Mul && dtype.is_int() {
        pairs.map(|(a, b)| round((*a as i64).wrapping_mul(*b as i64) as u32 as f64, dtype, precision)).collect()
    } else {
        pairs.map(|(a, b)| round((def.eval)(*a, *b), dtype, precision)).collect()
    };
    Array::new(dtype, a.shape.clone(), data)
}

fn reduce(reduce: &Reduce, x: &Array) -> Array {
    let mut shape = x.shape.clone();
    reduce.axes.iter().for_each(|a| shape[*a] = 1);
    let kept: Vec<usize> =
        strides(&shape).iter().zip(&shape).map(|(stride, n)| if *n == 1 { 0 } else { *stride }).collect();
    let start = match (reduce.op, x.dtype) {
        (ReduceOp::Sum | ReduceOp::ArgMax, _) => 0.0,
        (ReduceOp::Max, DType::I32) => f64::from(i32::MIN),
        (ReduceOp::Max, DType::U32 | DType::U8 | DType::Bool) => 0.0,
        (ReduceOp::Max, DType::F32 | DType::BF16) => f64::NEG_INFINITY,
    };
    let elements = shape.iter().product();
    let (mut result, mut best) = (vec![start; elements], vec![None::<f64>; elements]);
    let mut flat = 0;
    each_index(&x.shape, |i| {
        let (at, value) = (offset(i, &kept), x.data[flat]);
        match reduce.op {
            ReduceOp::Sum => result[at] += value,
            ReduceOp::Max => result[at] = (Binary::Max.def().eval)(result[at], value),
            // NaN counts as the largest, as it does for the maximum.
            ReduceOp::ArgMax => {
                if best[at].is_none_or(|b| value > b || (value.is_nan() && !b.is_nan())) {
                    best[at] = Some(value);
                    result[at] = i[reduce.axes[0]] as f64;
                }
            }
        }
        flat += 1;
    });
    let dtype = if reduce.op == ReduceOp::ArgMax { DType::I32 } else { x.dtype };
    Array::new(dtype, shape, result)
}

fn view(view: &View, x: &[&Array]) -> Array {
    let (first, from) = (x[0], strides(&x[0].shape));
    let read = |shape: &[usize], place: &dyn Fn(&[usize]) -> Option<usize>| {
        let mut data = Vec::new();
        each_index(shape, |i| data.push(place(i).map_or(0.0, |at| first.data[at])));
        Array::new(first.dtype, shape, data)
    };
    match view {
        View::Reshape(shape) => Array::new(first.dtype, shape.sizes(), first.data.clone()),
        View::Transpose(permutation) => {
            let shape: Vec<usize> = permutation.iter().map(|p| first.shape[*p]).collect();
            read(&shape, &|i| Some(i.iter().zip(permutation).map(|(i, p)| i * from[*p]).sum()))
        }
        View::Broadcast(shape) => {
            let repeated = |axis: usize| first.shape[axis] == 1;
            read(&shape.sizes(), &|i| Some((0..i.len()).filter(|a| !repeated(*a)).map(|a| i[a] * from[a]).sum()))
        }
        View::Slice { axis, start, size, step } => {
            let (start, shape) = (bound(*start), Shape::from(first.shape.as_slice()).with(*axis, *size).sizes());
            read(&shape, &|i| Some(offset(i, &from) + (start + i[*axis] * (step - 1)) * from[*axis]))
        }
        View::Pad { axis, start, size, step } => {
            let (start, shape) = (bound(*start), Shape::from(first.shape.as_slice()).with(*axis, *size).sizes());
            read(&shape, &|i| {
                let distance = i[*axis].checked_sub(start)?;
                let inside = distance % step == 0 && distance / step < first.shape[*axis];
                inside.then(|| offset(i, &from) - (i[*axis] - distance / step) * from[*axis])
            })
        }
        View::Concat(axis) => {
            let mut shape = first.shape.clone();
            shape[*axis] = x.iter().map(|part| part.shape[*axis]).sum();
            let mut data = Vec::new();
            let rows = |part: &Array| part.shape[*axis..].iter().product::<usize>();
            for outer in 0..shape[..*axis].iter().product() {
                for part in x {
                    data.extend_from_slice(&part.data[outer * rows(part)..(outer + 1) * rows(part)]);
                }
            }
            Array::new(first.dtype, shape, data)
        }
    }
}

fn bound(dim: Dim) -> usize {
    dim.as_const().expect("the graph has been bound")
}

fn dot(dot: &Dot, a: &Array, b: &Array, c: Option<&Array>) -> Array {
    let rank = a.shape.len();
    let (rows_a, columns_a) = (a.shape[rank - 2], a.shape[rank - 1]);
    let (rows_b, columns_b) = (b.shape[rank - 2], b.shape[rank - 1]);
    let (m, k) = if dot.transpose_a { (columns_a, rows_a) } else { (rows_a, columns_a) };
    let n = if dot.transpose_b { rows_b } else { columns_b };
    // The distances from one row and one column of the factor to the next, whichever way it is stored.
    let (am, ak) = if dot.transpose_a { (1, columns_a) } else { (columns_a, 1) };
    let (bk, bn) = if dot.transpose_b { (1, columns_b) } else { (columns_b, 1) };
    let batch: usize = a.shape[..rank - 2].iter().product();
    let mut data = Vec::with_capacity(batch * m * n);
    for p in 0..batch {
        let (a, b) = (&a.data[p * m * k..], &b.data[p * k * n..]);
        for i in 0..m {
            for j in 0..n {
                let start = c.map_or(0.0, |c| c.data[data.len()]);
                data.push((0..k).fold(start, |sum, q| sum + a[i * am + q * ak] * b[q * bk + j * bn]));
            }
        }
    }
    let mut shape = a.shape.clone();
    (shape[rank - 2], shape[rank - 1]) = (m, n);
    Array::new(dot.dtype, shape, data)
}
