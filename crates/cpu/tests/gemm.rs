//! Matrix products against their definition, bit for bit, on every instruction set and 1, 2 and 3 threads.

mod gemm_support;

use gemm_support::{Guarded, Random, at, check, cpus, reach};
use std::sync::atomic::{AtomicU32, Ordering};
use tenon_cpu::gemm::{DOT_ROWS, Float, GemmSpec, Layout, gemm, gemm_scratch_bytes};
use tenon_cpu::isa::Isa;

const F32: Float = Float::F32;
const BF16: Float = Float::Bf16;

/// Row-major operands; `trans` transposes A, B.
fn plain(dtypes: [Float; 2], [m, n, k]: [usize; 3], trans: [bool; 2]) -> GemmSpec {
    let operand = |rows: usize, cols: usize, trans: bool| {
        if trans { Layout::row_major(dtypes[0], rows).transposed() } else { Layout::row_major(dtypes[0], cols) }
    };
    GemmSpec::new(m, n, k, operand(m, k, trans[0]), operand(k, n, trans[1]), Layout::row_major(dtypes[1], n))
}

/// A layout with random strides: row-major or transposed, tight or in a wider matrix, or neither contiguous.
fn random_layout(random: &mut Random, dtype: Float, rows: usize, cols: usize, output: bool) -> Layout {
    let gap = random.pick(&[0, 0, 1, 5, 300]);
    let step = if output { 1 } else { random.pick(&[1, 1, 1, 2, 3]) };
    let layout = if random.below(2) == 0 {
        Layout { dtype, row_stride: cols.max(1) * step + gap, col_stride: step, batch_strides: [0, 0] }
    } else {
        Layout { dtype, row_stride: step, col_stride: rows.max(1) * step + gap, batch_strides: [0, 0] }
    };
    let entry = reach(&layout, rows, cols, [1, 1]) + random.below(3);
    layout.batched(if !output && random.below(4) == 0 { [0, entry] } else { [entry * 3 + random.below(5), entry] })
}

#[test]
fn random_products_equal_their_definition() {
    let cpus = cpus();
    let random = &mut Random(42);
    let sizes =
        [0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 15, 16, 17, 23, 31, 32, 33, 47, 48, 49, 63, 64, 65, 66, 97, 129];
    for _ in 0..350 {
        let [m, n, k] = [random.pick(&sizes), random.pick(&sizes), random.pick(&sizes)];
        let [a_dtype, b_dtype] = random.pick(&[[F32, F32], [BF16, BF16], [BF16, F32], [F32, BF16]]);
        let c_dtype = random.pick(&[F32, BF16]);
        let a = random_layout(random, a_dtype, m, k, false);
        let b = random_layout(random, b_dtype, k, n, false);
        let c = random_layout(random, c_dtype, m, n, true);
        let mut spec = GemmSpec::new(m, n, k, a, b, c);
        spec.batch = random.pick(&[[1, 1], [1, 1], [2, 1], [1, 3], [2, 3], [0, 1]]);
        spec.accumulate = random.below(3) == 0;
        spec.packed_b = random.below(4) == 0 && (c.col_stride == 1 || n == 1) && a_dtype == b_dtype;
        check(&cpus, &spec, || random.unit());
    }
}

#[test]
fn many_blocks_of_k_many_chunks_of_rows_and_columns() {
    let cpus = cpus();
    let random = &mut Random(7);
    let shapes = [
        [13, 70, 1025],
        [13, 70, 2051],
        [20, 9, 4099],
        [14, 66, 6147],
        [601, 65, 33],
        [199, 801, 18],
        [400, 780, 11],
        [9, 1600, 40],
    ];
    for (i, shape) in shapes.into_iter().enumerate() {
        for dtype in [F32, BF16] {
            for trans in [[false, true], [true, false], [false, false]] {
                let mut spec = plain([dtype, [F32, BF16][i % 2]], shape, trans);
                spec.accumulate = trans[0];
                spec.packed_b = i % 3 == 1;
                check(&cpus, &spec, || random.unit());
                if dtype == BF16 && !spec.packed_b {
                    spec.b.dtype = F32;
                    check(&cpus, &spec, || random.unit());
                }
            }
        }
    }
}

/// More of a transposed A than is packed for all workers at once: in several rounds, or, with a very long k, by each
/// worker. (The portable instruction set would take seconds.)
#[test]
fn more_rows_of_a_than_the_shared_scratch_holds() {
    let best = Isa::supported().pop();
    let cpus: Vec<_> = cpus().into_iter().filter(|cpu| Some(cpu.isa()) == best).collect();
    let random = &mut Random(17);
    for shape in [[410, 65, 5300], [45, 65, 50_000]] {
        check(&cpus, &plain([F32, F32], shape, [true, false]), || random.unit());
    }
}

#[test]
fn dot_products_equal_their_definition() {
    let cpus = cpus();
    let random = &mut Random(3);
    for m in 1..=DOT_ROWS {
        for (n, k) in
            [(1, 1), (3, 31), (5, 32), (40, 33), (7, 63), (2, 64), (11, 65), (700, 129), (3, 1000), (2, 40_001)]
        {
            for dtype in [F32, BF16] {
                let mut spec = plain([dtype, random.pick(&[F32, BF16])], [m, n, k], [false, true]);
                assert!(spec.is_dot());
                spec.accumulate = random.below(2) == 0;
                if random.below(2) == 0 {
                    // The weights on the left.
                    let c = Layout::row_major(spec.c.dtype, m);
                    spec = GemmSpec { m: n, n: m, a: spec.b.transposed(), b: spec.a.transposed(), c, ..spec };
                }
                check(&cpus, &spec, || random.unit());
            }
        }
    }
}

#[test]
fn denormals_zeros_infinities_and_sums_at_the_edge_of_the_range() {
    let cpus = cpus();
    let random = &mut Random(11);
    for case in 0..60 {
        let dtypes = [random.pick(&[F32, BF16]), random.pick(&[F32, BF16])];
        let shape = [random.pick(&[1, 3, 6, 14]), random.pick(&[2, 5, 33, 70]), random.pick(&[2, 7, 40, 67])];
        let mut spec = plain(dtypes, shape, [random.below(2) == 0, random.below(2) == 0]);
        spec.accumulate = random.below(2) == 0;
        let special = [0.0, -0.0, f32::MIN_POSITIVE, -f32::MIN_POSITIVE, f32::INFINITY, f32::MAX, 1.0, -1.0];
        check(&cpus, &spec, || {
            let scale = match case % 4 {
                0 => 2f32.powi(-63),
                1 => 2f32.powi(-(random.below(127) as i32)),
                2 => 2f32.powi(-68 + random.below(12) as i32),
                _ => 1.0,
            };
            let denormal = f32::from_bits(random.next() as u32 & 0x807f_ffff);
            match random.below(40) {
                0 => random.pick(&special[..if case % 4 == 3 { 8 } else { 4 }]),
                1 | 2 => denormal,
                3 => 0.0,
                _ => random.unit() * scale,
            }
        });
    }
}

#[test]
fn bf16_sums_that_start_from_a_denormal_or_round_up_to_the_least_normal_number() {
    let cpus = cpus();
    let random = &mut Random(13);
    for case in 0..40 {
        // Operands whose own products are normal (and often zero), or some 2^-150 that pull at C.
        let [a_scale, b_scale] = if case % 2 == 0 { [2f32.powi(-40), 2f32.powi(-60)] } else { [2f32.powi(-74); 2] };
        let mut spec = plain([BF16, F32], [7, 19, 2 + case % 5], [false, false]);
        spec.accumulate = true;
        let (mut taken, a_len, b_len) = (0, spec.m * spec.k, spec.k * spec.n);
        check(&cpus, &spec, || {
            taken += 1;
            let zero = if random.below(3) == 0 { 0.0 } else { 1.0 };
            if taken <= a_len {
                random.unit() * a_scale * zero
            } else if taken <= a_len + b_len {
                random.unit() * b_scale * zero
            } else {
                let near = f32::from_bits(0x0080_0000 + random.below(3) as u32);
                let unit = random.unit();
                let tiny = f32::from_bits(random.next() as u32 & 0x80ff_ffff);
                random.pick(&[near, -near, tiny, 0.0, unit])
            }
        });
    }
}

#[test]
fn huge_strides_are_followed() {
    let cpus = cpus();
    let random = &mut Random(5);
    for dtype in [F32, BF16] {
        let a = Layout { dtype, row_stride: 90_001, col_stride: 7, batch_strides: [0, 0] };
        let b = Layout { dtype, row_stride: 1, col_stride: 70_001, batch_strides: [0, 0] };
        check(&cpus, &GemmSpec::new(9, 19, 21, a, b, Layout::row_major(F32, 50_000)), || random.unit());
    }
}

#[test]
fn every_strip_is_handed_on_once_and_is_final() {
    let random = &mut Random(9);
    for cpu in &cpus() {
        for [m, n, k] in [[1, 1, 1], [5, 300, 40], [700, 130, 20], [30, 70, 2100], [4, 3, 0], [300, 3, 50]] {
            for trans in [[false, false], [true, true], [false, true]] {
                let mut spec = plain([BF16, BF16], [m, n, k], trans);
                spec.batch = [2, 2];
                spec.a = spec.a.batched([0, m * k]);
                spec.b = spec.b.batched([n * k, 0]);
                spec.c = Layout::row_major(BF16, n).batched([2 * m * n, m * n]);
                if random.below(2) == 0 {
                    spec.c = Layout::row_major(BF16, m).transposed().batched([2 * m * n, m * n]);
                }
                let fill = |random: &mut Random, n: usize| {
                    Guarded::of(BF16, &(0..n).map(|_| random.unit()).collect::<Vec<_>>())
                };
                let (a, b) = (fill(random, 2 * m * k), fill(random, 2 * k * n));
                let c = Guarded::of(BF16, &vec![f32::NAN; 4 * m * n]);
                let threads = cpu.pool.threads();
                let scratch = Guarded::new(gemm_scratch_bytes(&spec, cpu.isa(), threads).next_multiple_of(64));
                let seen: Vec<AtomicU32> = (0..4 * m * n).map(|_| AtomicU32::new(u32::MAX)).collect();
                let (c_start, c_layout) = (c.ptr() as usize, spec.c);
                let epilogue = |strip: &tenon_cpu::gemm::Strip, worker: usize| {
                    assert!(worker < threads);
                    for i in strip.rows.clone() {
                        for j in strip.cols.clone() {
                            let at = at(&c_layout, strip.batch, i, j);
                            // SAFETY: inside C, and finished.
                            let value = unsafe { *(c_start as *const u16).add(at) };
                            let before = seen[at].swap(u32::from(value), Ordering::Relaxed);
                            assert_eq!(before, u32::MAX, "element {at} was handed on twice");
                        }
                    }
                };
                // SAFETY: every buffer holds all that its layout reaches.
                unsafe { gemm(cpu, &spec, a.ptr(), b.ptr(), c.ptr(), scratch.ptr(), Some(&epilogue)) };
                for (i, seen) in seen.iter().enumerate() {
                    let value = half::bf16::from_f32(c.get(BF16, i)).to_bits();
                    assert_eq!(seen.load(Ordering::Relaxed), u32::from(value), "element {i} of {spec:?}");
                }
            }
        }
    }
}

#[test]
fn mixed_element_types_with_a_packed_b_and_scattered_outputs_are_refused() {
    let cpu = &cpus()[0];
    let mut mixed = plain([F32, F32], [9, 9, 9], [false, false]);
    mixed.b.dtype = BF16;
    mixed.packed_b = true;
    let mut scattered = plain([F32, F32], [9, 9, 9], [false, false]);
    scattered.c.col_stride = 2;
    for (spec, message) in [(mixed, "pack it as"), (scattered, "one of them must be 1")] {
        let refused = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let none = std::ptr::dangling_mut::<u8>();
            // SAFETY: the spec is refused before anything is read.
            unsafe { gemm(cpu, &spec, none, none, none, none, None) }
        }));
        let payload = refused.expect_err("must be refused");
        let text = payload.downcast_ref::<String>().map_or("", |s| s);
        assert!(text.contains(message), "{text}");
    }
}
