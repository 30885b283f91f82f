//! Attention forward, one task for each tile of queries of each head.

use super::decode;
use super::products::{Product, Products, Seen, Weights};
use super::tiles::{KEYS, QUERIES, Rows, Running, Weighing, clear, softmax_step};
use super::{Attention, Band, Operands, Sizes, rows_view};
use crate::isa::{Cpu, Isa};
use crate::kernels::view::{DType, Scratch, View, ViewMut, piece, scratch_bytes};
use crate::simd::{LANES, Lanes, Task};

/// The bytes of scratch that [`attention`] needs on a pool of `threads` with instruction set `isa`.
pub fn attention_scratch_bytes(sizes: &Sizes, isa: Isa, threads: usize) -> usize {
    let (shared, each) = if decode::applies(sizes) { decode::scratch(sizes) } else { (0, scratch(sizes, isa)) };
    scratch_bytes(shared, each, threads)
}

fn scratch(sizes: &Sizes, isa: Isa) -> usize {
    let (d, products) = (sizes.d, sizes.products(isa));
    piece::<u32>(products.panel_lanes(d, QUERIES))
        + piece::<u32>(KEYS * products.lanes(d))
        + piece::<u32>(products.panel_lanes(KEYS, d))
        + piece::<f32>(KEYS * QUERIES)
        + if products.rounds() {
            piece::<u16>(KEYS * QUERIES) + piece::<u32>(products.lanes(KEYS) * QUERIES)
        } else {
            0
        }
        + piece::<f32>(QUERIES * d.next_multiple_of(LANES))
        + 3 * piece::<f32>(QUERIES)
}

/// `softmax(scale * query key^T) value` into `out` (`[b, t, h, d]`, `f32` or `bf16`), and the logarithms of the
/// softmax's sums into `log_sum_exp` (`f32[b, h, t]`, any strides). A query that sees no key gives 0 and minus infinity.
///
/// Products are those of [`crate::gemm`]: scores over ascending `d`, sums of values over ascending keys, in tiles of 64
/// counted from key 0. With bf16 operands the weights are rounded to bf16 for this, those below about 2^-40 of the largest so far to 0.
/// With `t = 1` scores are sixteen chains over `d` and their sum, and keys are taken in blocks of 128,
/// which are combined in ascending order.
///
/// # Panics
/// If the operands do not fit each other or the scratch is too small.
pub fn attention(
    cpu: &Cpu,
    spec: &Attention,
    operands: &Operands<'_>,
    mut out: ViewMut<'_>,
    mut log_sum_exp: ViewMut<'_>,
    scratch_memory: &mut [u8],
) {
    let sizes = operands.sizes();
    let Sizes { b, t, h, d, .. } = sizes;
    rows_view("out", &out, [b, t, h, d]);
    assert!(
        log_sum_exp.dtype() == DType::F32 && log_sum_exp.shape() == [b, h, t],
        "attention: log_sum_exp is {:?}, not f32[{b}, {h}, {t}]",
        log_sum_exp.shape()
    );
    if decode::applies(&sizes) {
        return decode::run(cpu, spec, operands, &sizes, &mut out, &mut log_sum_exp, scratch_memory);
    }
    let threads = cpu.pool.threads();
    let scratch = Scratch::new(scratch_memory, 0, scratch(&sizes, cpu.isa()), threads);
    let tiles = t.div_ceil(QUERIES);
    let (out, log_sum_exp, products) = (&out, &log_sum_exp, sizes.products(cpu.isa()));
    cpu.pool.run(b * h * tiles, |task, worker| {
        let (entry, tile) = (task / tiles, tiles - 1 - task % tiles);
        let (batch, head) = (entry / h, entry % h);
        cpu.vectorise(Tile { spec, operands, sizes, products, out, log_sum_exp, batch, head, tile, scratch, worker });
    });
}

/// The outputs of one tile of queries.
struct Tile<'a> {
    spec: &'a Attention,
    operands: &'a Operands<'a>,
    sizes: Sizes,
    products: Products,
    out: &'a ViewMut<'a>,
    log_sum_exp: &'a ViewMut<'a>,
    batch: usize,
    head: usize,
    tile: usize,
    scratch: Scratch<'a>,
    worker: usize,
}

impl Task for Tile<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes>(self) {
        let Tile { spec, operands, products, .. } = self;
        let Sizes { t, h, s, g, d, .. } = self.sizes;
        let padded = d.next_multiple_of(LANES);
        let (batch, head, key_head) = (self.batch, self.head, self.head / (h / g));
        let first = self.tile * QUERIES;
        let queries = (t - first).min(QUERIES);
        let width = queries.next_multiple_of(LANES);
        let mut pieces = self.scratch.worker(self.worker);
        let query = pieces.take::<u32>(products.panel_lanes(d, QUERIES));
        let key = pieces.take::<u32>(KEYS * products.lanes(d));
        let value = pieces.take::<u32>(products.panel_lanes(KEYS, d));
        let scores = pieces.take::<f32>(KEYS * QUERIES);
        let [rounded, turned] = if products.rounds() {
            [pieces.take::<u16>(KEYS * QUERIES).cast(), pieces.take::<u32>(products.lanes(KEYS) * QUERIES)]
        } else {
            [scores.cast(), std::ptr::null_mut()]
        };
        let sums = pieces.take::<f32>(QUERIES * padded);
        let [max, sum, correction] = [(); 3].map(|()| pieces.take::<f32>(QUERIES));
        let running = Running { max, sum, correction };

        let mask = operands.mask.as_ref().map(|mask| (mask, batch));
        let start = spec.visible(first, s).0 / KEYS * KEYS;
        let end = spec.visible(first + queries - 1, s).1;
        // SAFETY: the pieces belong to this worker, have these sizes and do not overlap; rows `first..first + queries`
        // and keys below `s` exist, and this task alone writes the outputs of its queries of its head.
        unsafe {
            let query = products.panels(&Rows::of(&operands.query, batch, first, head).columns(queries), query);
            if queries < width {
                clear(scores, KEYS * width);
            }
            clear(sums, queries * padded);
            clear(sum, QUERIES);
            for at in (0..QUERIES).step_by(LANES) {
                V::splat(f32::NEG_INFINITY).store(max.add(at));
            }
            for from in (start..end).step_by(KEYS) {
                let keys = (end - from).min(KEYS);
                let key = products.rows_in_place(&Rows::of(&operands.key, batch, from, key_head).columns(keys), key);
                let value = products.panels(&Rows::of(&operands.value, batch, from, key_head).rows(keys), value);
                let (a, b, c, band) = (key, query, scores, spec.band(first, from));
                let seen = Seen::Scores(band);
                products.run(Product { a, b, c, c_row: width, m: keys, n: queries, k: d, accumulate: false, seen });
                hide(spec, mask, scores, width, from, keys, band);
                let weighing = Weighing { scale: spec.scale, least: products.least(), band };
                if products.rounds() {
                    softmax_step::<V, u16>(scores, rounded.cast(), keys, width, weighing, running);
                } else {
                    softmax_step::<V, f32>(scores, rounded.cast(), keys, width, weighing, running);
                }
                for query in 0..queries {
                    let correction = *correction.add(query);
                    if correction != 1.0 {
                        for at in (0..padded).step_by(LANES) {
                            let place = sums.add(query * padded + at);
                            V::load(place).mul(V::splat(correction)).store(place);
                        }
                    }
                }
                let (a, b, c) =
                    (products.turned(Weights { ptr: rounded.cast(), keys, queries, width }, turned), value, sums);
                let seen = Seen::Keys(band);
                products.run(Product { a, b, c, c_row: padded, m: queries, n: d, k: keys, accumulate: true, seen });
            }
            Rows::to(self.out, batch, first, head).write::<V>(queries, sums, |query| {
                let sum = *sum.add(query);
                if sum == 0.0 { 0.0 } else { 1.0 / sum }
            });
            let strides = self.log_sum_exp.strides();
            let place = self.log_sum_exp.ptr::<f32>().add(batch * strides[0] + head * strides[1]);
            for query in 0..queries {
                let log_sum = *max.add(query) + libm::logf(*sum.add(query));
                *place.add((first + query) * strides[2]) = log_sum;
            }
        }
    }
}

/// Makes scores `[keys][width]` that the settings or the mask hide [`Attention::hidden`], those that are [read](Band::keys).
///
/// # Safety
/// The scores are writable; the mask, if any, has the keys `from..from + keys`.
#[inline(always)]
pub(super) unsafe fn hide(
    spec: &Attention,
    mask: Option<(&View<'_>, usize)>,
    scores: *mut f32,
    width: usize,
    from: usize,
    keys: usize,
    band: Band,
) {
    // SAFETY: as the caller says; `width` is whole vectors.
    unsafe {
        let row = |key: usize| std::slice::from_raw_parts_mut(scores.add(key * width), width);
        let whole = band.low + width as isize <= 1 && band.high >= keys as isize;
        for key in 0..if whole { 0 } else { keys } {
            let seen = band.queries(key..key + 1, width);
            if !seen.is_empty() {
                row(key)[seen.start / LANES * LANES..seen.start].fill(spec.hidden());
                row(key)[seen.end..seen.end.next_multiple_of(LANES)].fill(spec.hidden());
            }
        }
        if let Some((mask, batch)) = mask {
            let strides = mask.strides();
            let seen = mask.ptr::<u8>().add(batch * strides[0] + from * strides[1]);
            for key in (0..keys).filter(|key| *seen.add(key * strides[1]) == 0) {
                row(key).fill(spec.hidden());
            }
        }
    }
}
