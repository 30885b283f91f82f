//! Convolution and its gradients.

use crate::pool::{around, each_tap, windows};
use crate::support::{Rng, Value, everywhere, scratch};
use tenon_cpu::kernels::{Convolution, Weights, convolve, convolve_with};
use tenon_graph::op::{Direction, Window};
use tenon_graph::types::DType;

struct Case {
    n: usize,
    spatial: Vec<usize>,
    windows: Vec<Window>,
    groups: usize,
    group_channels: usize,
    group_filters: usize,
    dtype: DType,
    result: DType,
}

impl Case {
    /// The definition, as a sum over all pairs of elements that a window joins.
    fn check(&self, rng: &mut Rng) {
        let (c, o) = (self.groups * self.group_channels, self.groups * self.group_filters);
        let outputs: Vec<usize> =
            self.windows.iter().zip(&self.spatial).map(|(w, n)| w.outputs(*n).expect("fits")).collect();
        let taps: Vec<usize> = self.windows.iter().map(|w| w.size).collect();
        let shapes =
            [around(self.n, &self.spatial, c), around(o, &taps, self.group_channels), around(self.n, &outputs, o)];
        let [x, w, y] = [0, 1, 2].map(|i: usize| Value::row_major(rng, self.dtype, &shapes[i]));
        for direction in Direction::ALL {
            let (a, b, result) = match direction {
                Direction::Forward => (&x, &w, 2),
                Direction::InputGradient => (&y, &w, 0),
                Direction::WeightGradient => (&y, &x, 1),
            };
            let to = Value::row_major(rng, self.result, &shapes[result]);
            let mut expected = vec![0.0; shapes[result].iter().product()];
            let mut terms = 0;
            let at = |shape: &[usize], index: &[usize]| index.iter().zip(shape).fold(0, |at, (i, n)| at * n + i);
            each_tap(&self.spatial, &self.windows, |output, tap, input| {
                for n in 0..self.n {
                    for f in 0..o {
                        for channel in 0..self.group_channels {
                            let whole = f / self.group_filters * self.group_channels + channel;
                            let indices = [around(n, input, whole), around(f, tap, channel), around(n, output, f)];
                            let (a, b) = match direction {
                                Direction::Forward => (x.get(&indices[0]), w.get(&indices[1])),
                                Direction::InputGradient => (y.get(&indices[2]), w.get(&indices[1])),
                                Direction::WeightGradient => (y.get(&indices[2]), x.get(&indices[0])),
                            };
                            expected[at(&shapes[result], &indices[result])] += a * b;
                            terms += 1;
                        }
                    }
                }
            });
            let what = format!(
                "{direction:?} {} to {} {:?} {:?} x {:?} in {} groups",
                self.dtype, self.result, self.windows, shapes[0], shapes[1], self.groups
            );
            let (dtype, result_type) = (self.dtype, self.result);
            let spec = Convolution::new(direction, &shapes[0], &self.windows, o, self.groups, dtype, result_type);
            let mut last = None;
            everywhere(&what, |cpu| {
                let mut to = to.clone();
                let mut memory = scratch(spec.scratch_bytes(cpu.isa(), cpu.pool.threads()));
                convolve(cpu, &spec, &a.view(), &b.view(), &mut to.view_mut(), &mut memory);
                let bits = to.bits();
                if direction == Direction::Forward {
                    let spec = spec.with_weights();
                    let mut kept = scratch(spec.weights_bytes(cpu.isa()) + 64);
                    let aligned = kept.as_ptr().align_offset(64);
                    // SAFETY: there are as many bytes behind the first cache line, and nobody else writes there.
                    let weights = unsafe { Weights::make(cpu, &spec, &b.view(), kept.as_mut_ptr().add(aligned)) };
                    let mut again = to.clone();
                    let mut memory = scratch(spec.scratch_bytes(cpu.isa(), cpu.pool.threads()));
                    convolve_with(cpu, &spec, &a.view(), &weights, &mut again.view_mut(), &mut memory);
                    assert!(again.bits() == bits, "{what}: other bits with weights made beforehand");
                }
                last = Some(to);
                bits
            });
            let depth = terms as f64 / expected.len().max(1) as f64;
            let tolerance = 1e-6 * (4.0 + depth.sqrt());
            last.expect("ran").assert_close(|index| expected[at(&shapes[result], index)], tolerance, &what);
        }
    }
}

#[test]
fn all_three_maps_are_those_of_the_definition() {
    let mut rng = Rng(1);
    for _ in 0..70 {
        let axes = rng.pick(&[1, 2, 2, 2, 3]);
        let (spatial, windows) = windows(&mut rng, axes);
        let (groups, group_channels, group_filters) = match rng.below(4) {
            0 => (rng.pick(&[1, 5, 16, 37]), 1, 1),
            1 => (rng.pick(&[2, 3]), rng.pick(&[1, 3, 8]), rng.pick(&[1, 2, 9])),
            _ => (1, rng.pick(&[1, 3, 17, 32]), rng.pick(&[1, 5, 16, 65])),
        };
        let dtype = rng.pick(&[DType::F32, DType::BF16]);
        let result = rng.pick(&[DType::F32, dtype]);
        Case { n: rng.pick(&[1, 2, 3]), spatial, windows, groups, group_channels, group_filters, dtype, result }
            .check(&mut rng);
    }
}

#[test]
fn pointwise_strided_wide_and_empty_ones() {
    let mut rng = Rng(2);
    let window = |size, stride, low, high| Window { size, stride, dilation: 1, low, high };
    for (n, spatial, windows, channels, filters) in [
        (2, vec![9, 11], vec![window(1, 1, 0, 0); 2], 20, 70),
        (1, vec![15, 15], vec![window(3, 1, 1, 1); 2], 40, 24),
        (1, vec![21, 20], vec![window(7, 2, 3, 3), window(7, 2, 3, 2)], 3, 16),
        (2, vec![16, 16], vec![window(4, 4, 0, 0); 2], 3, 24),
        (2, vec![9, 9], vec![window(1, 3, 0, 0); 2], 8, 8),
        (1, vec![1000], vec![window(5, 1, 4, 0)], 6, 6),
        // Several blocks of window elements, panels of filters and tasks of rows.
        (1, vec![6, 7], vec![window(3, 1, 1, 1); 2], 402, 66),
        (3, vec![13, 14], vec![window(3, 2, 1, 1); 2], 34, 260),
        (2, vec![15, 13], vec![window(2, 1, 1, 0), window(3, 1, 2, 0)], 6, 130),
        (1, vec![300], vec![window(451, 1, 225, 225)], 8, 6),
        // Several blocks of the weight gradient: whole maps, rows of a map, pieces of a row.
        (20, vec![7, 7], vec![window(3, 1, 1, 1); 2], 18, 70),
        (1, vec![40, 31], vec![window(3, 1, 1, 1); 2], 5, 8),
        (1, vec![1701], vec![window(5, 2, 2, 1)], 4, 6),
        (1, vec![1601], vec![window(3, 1, 1, 1)], 17, 3),
        (1, vec![30, 27], vec![window(1, 1, 0, 0); 2], 70, 5),
        (0, vec![5, 5], vec![window(3, 1, 1, 1); 2], 4, 4),
        (0, vec![5], vec![window(1, 1, 0, 0)], 4, 4),
        (2, vec![5, 5], vec![window(3, 1, 1, 1); 2], 0, 4),
        (2, vec![5, 5], vec![window(3, 1, 1, 1); 2], 4, 0),
    ] {
        for dtype in [DType::F32, DType::BF16] {
            let (group_channels, group_filters) = (channels, filters);
            let (spatial, windows) = (spatial.clone(), windows.clone());
            Case { n, spatial, windows, groups: 1, group_channels, group_filters, dtype, result: dtype }
                .check(&mut rng);
        }
    }
}

#[test]
fn minimal_filtering_has_the_sums_of_the_definition_at_every_border() {
    let mut rng = Rng(3);
    let three = |low, high| Window { size: 3, stride: 1, dilation: 1, low, high };
    let mut check =
        |images: usize, spatial: Vec<usize>, windows: Vec<Window>, [group_channels, group_filters]: [usize; 2]| {
            let outputs: usize = windows.iter().zip(&spatial).map(|(w, n)| w.outputs(*n).expect("fits")).product();
            // As many results as it takes to be done in this form.
            let n = images.max(128usize.div_ceil(outputs));
            let (dtype, result) = (DType::F32, DType::F32);
            let input = around(n, &spatial, group_channels);
            for direction in Direction::ALL {
                let spec = Convolution::new(direction, &input, &windows, group_filters, 1, dtype, result);
                assert!(spec.filtering().is_some(), "{direction:?} of {input:?} to {group_filters}");
            }
            Case { n, spatial, windows, groups: 1, group_channels, group_filters, dtype, result }.check(&mut rng);
        };
    let mut sizes = Rng(4);
    for case in 0..24 {
        let padding = if case % 3 == 0 { [1; 4] } else { [0; 4].map(|_| sizes.below(4)) };
        let mut windows = vec![three(padding[0], padding[1]), three(padding[2], padding[3])];
        let mut spatial = vec![3 + sizes.below(8), 3 + sizes.below(9)];
        if case % 4 == 3 {
            windows.insert(0, Window { size: 1, stride: 1, dilation: 1, low: 0, high: 0 });
            spatial.insert(0, 2);
        }
        check(1, spatial, windows, [sizes.pick(&[32, 37, 48]), sizes.pick(&[32, 50, 65])]);
    }
    // Several tasks of tiles, blocks of tiles, and tasks of filters.
    check(2, vec![27, 30], vec![three(1, 1); 2], [32, 40]);
    check(7, vec![30, 31], vec![three(1, 1); 2], [32, 33]);
    check(1, vec![5, 4], vec![three(1, 1); 2], [40, 330]);
}
