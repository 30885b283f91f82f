//! Gather, scatter, write and sort.

use crate::support::{Data, Rng, Value, everywhere, indices, scratch};
use std::cmp::Ordering;
use tenon_cpu::isa::Cpu;
use tenon_cpu::kernels::{
    Element, OutOfRange, View, ViewMut, argsort, argsort_scratch_bytes, gather_along, gather_rows, scatter_add_along,
    scatter_add_along_scratch_bytes, scatter_add_rows, scatter_add_rows_scratch_bytes, write,
};
use tenon_graph::types::DType;

/// Random indices with strides of their own.
struct Places {
    data: Vec<i32>,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

impl Places {
    fn random(rng: &mut Rng, shape: &[usize], below: usize) -> Places {
        let strides = rng.strides(shape, 0);
        let len = shape.iter().zip(&strides).map(|(n, s)| n.saturating_sub(1) * s).sum::<usize>() + 1;
        let data = (0..len).map(|_| rng.below(below.max(1)) as i32).collect();
        Places { data, shape: shape.to_vec(), strides }
    }

    fn view(&self) -> View<'_> {
        View::of(&self.data, &self.shape, &self.strides)
    }

    fn get(&self, index: &[usize]) -> usize {
        self.data[index.iter().zip(&self.strides).map(|(i, s)| i * s).sum::<usize>()] as usize
    }
}

fn run(to: &Value, what: &str, mut kernel: impl FnMut(&Cpu, ViewMut<'_>) -> Result<(), OutOfRange>) -> Value {
    let mut written = None;
    everywhere(what, |cpu| {
        let mut to = to.clone();
        kernel(cpu, to.view_mut()).expect("indices are inside");
        let bits = to.bits();
        written = Some(to);
        bits
    });
    written.expect("ran")
}

fn sizes(rng: &mut Rng, rank: usize) -> Vec<usize> {
    (0..rank).map(|_| rng.pick(&[1, 2, 3, 7, 20])).collect()
}

#[test]
fn rows_are_gathered_and_their_updates_added_in_ascending_order() {
    let mut rng = Rng(1);
    for _ in 0..60 {
        let dtype = rng.pick(&[DType::F32, DType::BF16]);
        let (rows, inner_axes, lead_axes) = (rng.pick(&[1, 5, 300]), rng.below(3), rng.below(3));
        let mut inner = sizes(&mut rng, inner_axes);
        if rng.chance(3) {
            inner.push(rng.pick(&[0, 16, 300, 700]));
        }
        let lead = sizes(&mut rng, lead_axes);
        let places = Places::random(&mut rng, &lead, rows);
        let table_shape = [&[rows], &inner[..]].concat();
        let shape = [&lead[..], &inner[..]].concat();
        let what = format!("{dtype} rows of {table_shape:?} at {lead:?}");

        let table = Value::random(&mut rng, dtype, &table_shape, inner.len());
        let to = Value::random(&mut rng, dtype, &shape, inner.len());
        let gathered = run(&to, &what, |cpu, mut to| gather_rows(cpu, &table.view(), &places.view(), &mut to));
        for index in indices(&shape) {
            let row = places.get(&index[..lead.len()]);
            assert_eq!(gathered.get(&index), table.get(&[&[row], &index[lead.len()..]].concat()), "{what}");
        }

        let updates = Value::random(&mut rng, dtype, &shape, inner.len());
        let to = Value::random(&mut rng, dtype, &table_shape, inner.len());
        let scattered = run(&to, &what, |cpu, mut to| {
            let n = lead.iter().product();
            let mut memory = scratch(scatter_add_rows_scratch_bytes(n, cpu.pool.threads()));
            scatter_add_rows(cpu, &places.view(), &updates.view(), false, &mut to, &mut memory)
        });
        // In f32 and in the promised order, so the sums are exact.
        let mut sums = std::collections::HashMap::<Vec<usize>, f32>::new();
        for index in indices(&shape) {
            let place = [&[places.get(&index[..lead.len()])], &index[lead.len()..]].concat();
            *sums.entry(place).or_default() += updates.get(&index) as f32;
        }
        check_sums(&scattered, &sums, &what);
    }
}

fn check_sums(scattered: &Value, sums: &std::collections::HashMap<Vec<usize>, f32>, what: &str) {
    for index in indices(&scattered.shape) {
        let sum = sums.get(&index).copied().unwrap_or(0.0);
        let expected = match scattered.data {
            Data::F32(_) => f64::from(sum),
            Data::BF16(_) => half::bf16::from_f32(sum).to_f64(),
        };
        assert_eq!(scattered.get(&index), expected, "{what} at {index:?}");
    }
}

#[test]
fn elements_along_an_axis_are_gathered_and_added() {
    let mut rng = Rng(2);
    for _ in 0..60 {
        let dtype = rng.pick(&[DType::F32, DType::BF16]);
        let rank = 1 + rng.below(3);
        let mut shape = sizes(&mut rng, rank);
        let axis = rng.below(shape.len());
        let size = shape[axis];
        shape[axis] = rng.pick(&[0, 1, 3, 50]);
        let places = Places::random(&mut rng, &shape, size);
        let mut whole = shape.clone();
        whole[axis] = size;
        let what = format!("{dtype} {whole:?} at {shape:?} along {axis}");
        let at = |index: &[usize]| {
            let mut place = index.to_vec();
            place[axis] = places.get(index);
            place
        };

        let from = Value::random(&mut rng, dtype, &whole, 0);
        let to = Value::random(&mut rng, dtype, &shape, 0);
        let gathered = run(&to, &what, |cpu, mut to| gather_along(cpu, &from.view(), &places.view(), axis, &mut to));
        for index in indices(&shape) {
            assert_eq!(gathered.get(&index), from.get(&at(&index)), "{what} at {index:?}");
        }

        let updates = Value::random(&mut rng, dtype, &shape, 0);
        let to = Value::random(&mut rng, dtype, &whole, 0);
        let scattered = run(&to, &what, |cpu, mut to| {
            let mut memory = scratch(scatter_add_along_scratch_bytes(size, cpu.pool.threads()));
            scatter_add_along(cpu, &places.view(), &updates.view(), axis, &mut to, &mut memory)
        });
        let mut sums = std::collections::HashMap::<Vec<usize>, f32>::new();
        for index in indices(&shape) {
            *sums.entry(at(&index)).or_default() += updates.get(&index) as f32;
        }
        check_sums(&scattered, &sums, &what);
    }
}

#[test]
fn an_index_outside_is_named_and_nothing_is_written() {
    let cpu = Cpu::new(2).expect("detected");
    for (bad, place) in [(-1, 0), (5, 40_000), (i32::MIN, 20_000), (i32::MAX, 99_999)] {
        let mut data = vec![4i32; 100_000];
        data[place] = bad;
        data[99_999] = data[99_999].max(5);
        let places = View::row_major(&data, &[100, 1000]);
        let error = OutOfRange { index: i64::from(bad), place, size: 5 };
        let (table, mut to) = ([1.0f32; 10], vec![7.0f32; 200_000]);
        let mut view = ViewMut::row_major(&mut to, &[100, 1000, 2]);
        assert_eq!(gather_rows(&cpu, &View::row_major(&table, &[5, 2]), &places, &mut view), Err(error));
        assert!(to.iter().all(|x| *x == 7.0));

        let mut sums = [7.0f32; 10];
        let mut memory = scratch(scatter_add_rows_scratch_bytes(100_000, 2));
        let updates = View::row_major(&to, &[100, 1000, 2]);
        let mut view = ViewMut::row_major(&mut sums, &[5, 2]);
        assert_eq!(scatter_add_rows(&cpu, &places, &updates, false, &mut view, &mut memory), Err(error));
        assert_eq!(sums, [7.0; 10]);

        let wide = vec![1.0f32; 5000];
        let from = View::row_major(&wide, &[5, 1000]);
        let mut view = ViewMut::row_major(&mut to, &[100, 1000]);
        assert_eq!(gather_along(&cpu, &from, &places, 0, &mut view), Err(error));
        let mut sums = vec![7.0f32; 5000];
        let mut memory = scratch(scatter_add_along_scratch_bytes(5, 2));
        let updates = View::row_major(&to, &[100, 1000]);
        let mut view = ViewMut::row_major(&mut sums, &[5, 1000]);
        assert_eq!(scatter_add_along(&cpu, &places, &updates, 0, &mut view, &mut memory), Err(error));
        assert!(sums.iter().all(|x| *x == 7.0));
    }
    let text = OutOfRange { index: 50_257, place: 3, size: 50_257 }.to_string();
    assert_eq!(text, "index 50257 (number 3 of the indices) is outside 0..50257");
}

#[test]
fn a_write_replaces_its_part_and_refuses_to_leave() {
    let mut rng = Rng(3);
    let whole = Value::random(&mut rng, DType::BF16, &[2, 9, 5], 0);
    let updates = Value::random(&mut rng, DType::BF16, &[2, 4, 5], 0);
    for position in 0..=5 {
        let written = run(&whole, "write", |cpu, mut to| write(cpu, &updates.view(), position, 1, &mut to));
        for index in indices(&[2, 9, 5]) {
            let row = index[1].wrapping_sub(position as usize);
            let expected = if row < 4 { updates.get(&[index[0], row, index[2]]) } else { whole.get(&index) };
            assert_eq!(written.get(&index), expected);
        }
    }
    let cpu = Cpu::new(1).expect("detected");
    for (position, index) in [(-1, -1), (6, 9), (i32::MAX, i64::from(i32::MAX) + 3)] {
        let result = write(&cpu, &updates.view(), position, 1, &mut whole.clone().view_mut());
        assert_eq!(result, Err(OutOfRange { index, place: 0, size: 9 }));
    }
}

fn sorts<T: Element + PartialEq>(rng: &mut Rng, make: impl Fn(&mut Rng) -> T, order: impl Fn(T, T) -> Ordering) {
    for shape in [vec![1], vec![1000], vec![7, 33], vec![3, 50, 2], vec![4, 0], vec![0, 4], vec![90, 300]] {
        let axis = rng.below(shape.len());
        let strides = rng.strides(&shape, 0);
        let len = shape.iter().zip(&strides).map(|(n, s)| n.saturating_sub(1) * s).sum::<usize>() + 1;
        let data: Vec<T> = (0..len).map(|_| make(rng)).collect();
        for descending in [false, true] {
            let sorted = everywhere("argsort", |cpu| {
                let mut to = vec![-1i32; shape.iter().product()];
                let mut memory = scratch(argsort_scratch_bytes(shape[axis], cpu.pool.threads()));
                let view = View::of(&data, &shape, &strides);
                argsort(cpu, &view, axis, descending, &mut ViewMut::row_major(&mut to, &shape), &mut memory);
                to
            });
            let mut lines = shape.clone();
            lines[axis] = lines[axis].min(1);
            for line in indices(&lines) {
                let at = |strides: &[usize], i: usize| {
                    line.iter().zip(strides).map(|(i, s)| i * s).sum::<usize>() + i * strides[axis]
                };
                let mut expected: Vec<usize> = (0..shape[axis]).collect();
                expected.sort_by(|a, b| {
                    let order = order(data[at(&strides, *a)], data[at(&strides, *b)]);
                    if descending { order.reverse() } else { order }
                });
                let dense = tenon_cpu::kernels::Axes::new(&shape).row_major_strides();
                let got: Vec<usize> = (0..shape[axis]).map(|i| sorted[at(&dense, i)] as usize).collect();
                assert_eq!(got, expected, "{shape:?} along {axis}, descending {descending}");
            }
        }
    }
}

#[test]
fn sorting_is_stable_for_every_type() {
    let mut rng = Rng(4);
    let floats = |rng: &mut Rng| match rng.below(8) {
        0 => rng.pick(&[f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e-45, -1e-45]),
        1 | 2 => rng.pick(&[0.0, -0.0]),
        _ => (rng.float() * 5.0).round(),
    };
    let order = |a: f32, b: f32| a.partial_cmp(&b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()));
    sorts(&mut rng, floats, order);
    sorts(&mut rng, |rng| half::bf16::from_f32(floats(rng)), |a, b| order(a.to_f32(), b.to_f32()));
    sorts(&mut rng, |rng| rng.pick(&[i32::MIN, -3, 0, 2, 2, i32::MAX]), |a, b| a.cmp(&b));
    sorts(&mut rng, |rng| rng.pick(&[0u32, 5, 5, 1 << 31, u32::MAX]), |a, b| a.cmp(&b));
    sorts(&mut rng, |rng| rng.bits() as u8, |a, b| a.cmp(&b));
    sorts(&mut rng, |rng| rng.chance(2), |a, b| a.cmp(&b));
}
