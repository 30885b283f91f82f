//! Copies, concatenation and padding.

use crate::support::{Data, Rng, Value, everywhere, indices};
use tenon_cpu::kernels::{Element, View, ViewMut, clear, concat, copy, pad};
use tenon_graph::types::DType;

/// The memory of a value after a kernel wrote to it, and the memory that element-wise writing gives.
fn check(
    value: &Value,
    what: &str,
    mut kernel: impl FnMut(&tenon_cpu::isa::Cpu, ViewMut<'_>),
    expected: impl Fn(&[usize]) -> f64,
) {
    let written = everywhere(what, |cpu| {
        let mut value = value.clone();
        kernel(cpu, value.view_mut());
        value.bits()
    });
    let mut naive = value.bits();
    for index in indices(&value.shape) {
        let at: usize = index.iter().zip(&value.strides).map(|(i, s)| i * s).sum();
        naive[at] = match value.data {
            Data::F32(_) => (expected(&index) as f32).to_bits(),
            Data::BF16(_) => u32::from(half::bf16::from_f64(expected(&index)).to_bits()),
        };
    }
    assert!(written == naive, "{what}: wrong elements, or gaps written");
}

fn shape(rng: &mut Rng) -> Vec<usize> {
    let rank = rng.below(6);
    (0..rank).map(|_| rng.pick(&[1, 2, 3, 5, 7, 17, 40]).min(if rank > 3 { 7 } else { 40 })).collect()
}

#[test]
fn copies_between_any_strides_and_leaves_gaps_alone() {
    let mut rng = Rng(1);
    for _ in 0..150 {
        let (shape, dtype) = (shape(&mut rng), rng.pick(&[DType::F32, DType::BF16]));
        let from = Value::random(&mut rng, dtype, &shape, 0);
        let dense = rng.below(shape.len() + 1);
        let to = Value::random(&mut rng, dtype, &shape, dense);
        let what = format!("copy {shape:?} {:?} to {:?}", from.strides, to.strides);
        check(&to, &what, |cpu, mut to| copy(cpu, &from.view(), &mut to), |index| from.get(index));
        check(&to, &what, |cpu, mut to| clear(cpu, &mut to), |_| 0.0);
    }
}

#[test]
fn repeats_axes_of_stride_zero() {
    let mut rng = Rng(2);
    for shape in [vec![300, 70], vec![3, 5, 7], vec![1, 9], vec![40_000]] {
        let mut from = Value::random(&mut rng, DType::F32, &shape, shape.len());
        for axis in 0..shape.len() {
            if rng.chance(2) || shape.len() == 1 {
                from.strides[axis] = 0;
            }
        }
        let to = Value::random(&mut rng, DType::F32, &shape, 0);
        check(&to, "repeat", |cpu, mut to| copy(cpu, &from.view(), &mut to), |index| from.get(index));
    }
}

fn transposes<T: Element + PartialEq + std::fmt::Debug>(make: impl Fn(usize) -> T) {
    for (rows, columns) in [(1, 1), (64, 64), (65, 130), (16, 300), (3, 700), (257, 63)] {
        let from: Vec<T> = (0..rows * columns).map(&make).collect();
        let naive: Vec<T> = (0..rows * columns).map(|i| from[i % rows * columns + i / rows]).collect();
        let transposed = everywhere("transpose", |cpu| {
            let mut to: Vec<T> = (0..rows * columns).map(|_| make(0)).collect();
            let view = View::row_major(&from, &[rows, columns]).permute(&[1, 0]);
            copy(cpu, &view, &mut ViewMut::row_major(&mut to, &[columns, rows]));
            to
        });
        assert!(transposed == naive, "{rows} x {columns}");
    }
}

#[test]
fn transposes_every_element_size() {
    transposes(|i| i as u32);
    // Signalling NaN patterns must move unchanged.
    transposes(|i| (0x7f80_0001u32 + i as u32) as i32);
    transposes(|i| i as u8);
    transposes(|i| half::bf16::from_bits(i as u16));
    transposes(|i| i % 3 == 0);
}

#[test]
fn joins_parts_along_any_axis() {
    let mut rng = Rng(3);
    for _ in 0..60 {
        let mut shape = shape(&mut rng);
        shape.push(2);
        let axis = rng.below(shape.len());
        let sizes: Vec<usize> = (0..1 + rng.below(4)).map(|_| rng.below(5)).collect();
        let parts: Vec<Value> = sizes
            .iter()
            .map(|size| {
                shape[axis] = *size;
                Value::random(&mut rng, DType::BF16, &shape, 0)
            })
            .collect();
        shape[axis] = sizes.iter().sum();
        let to = Value::random(&mut rng, DType::BF16, &shape, 0);
        let views: Vec<View<'_>> = parts.iter().map(Value::view).collect();
        let expected = |index: &[usize]| {
            let mut index = index.to_vec();
            let mut part = 0;
            while index[axis] >= sizes[part] {
                index[axis] -= sizes[part];
                part += 1;
            }
            parts[part].get(&index)
        };
        check(&to, "concat", |cpu, mut to| concat(cpu, &views, axis, &mut to), expected);
    }
}

#[test]
fn pads_with_zeros_before_after_and_between() {
    let mut rng = Rng(4);
    for _ in 0..80 {
        let mut shape = shape(&mut rng);
        shape.push(rng.below(6));
        let axis = if rng.chance(2) { shape.len() - 1 } else { rng.below(shape.len()) };
        let (size, start, step) = (shape[axis], rng.below(4), 1 + rng.below(3));
        let from = Value::random(&mut rng, DType::F32, &shape, 0);
        shape[axis] = if size == 0 { rng.below(4) } else { start + (size - 1) * step + 1 + rng.below(4) };
        let to = Value::random(&mut rng, DType::F32, &shape, 0);
        let expected = |index: &[usize]| {
            let mut index = index.to_vec();
            let at = index[axis].wrapping_sub(start);
            index[axis] = at / step;
            if at % step == 0 && at / step < size { from.get(&index) } else { 0.0 }
        };
        let what = format!("pad {size} from {start} by {step} along {axis} of {shape:?}");
        check(&to, &what, |cpu, mut to| pad(cpu, &from.view(), axis, start, step, &mut to), expected);
    }
}
