//! The gradient of attention in two passes over recomputed tiles: query gradients by tiles of queries, then key and
//! value gradients by tiles of keys. Seven tile products instead of one pass's five, and in exchange every sum has one
//! owner and one order, with a task per tile however few heads there are.

use super::forward::hide_tile;
use super::tiles::{KEYS, QUERIES, Rows, clear, hide};
use super::{Attention, Operands, Sizes, rows_view};
use crate::isa::Cpu;
use crate::kernels::exp::exp;
use crate::kernels::product::Product;
use crate::kernels::view::{DType, Scratch, View, ViewMut, piece, scratch_bytes};
use crate::simd::{LANES, Lanes, Task};

/// The bytes of scratch that [`attention_gradient`] needs on a pool of `threads`.
pub fn attention_gradient_scratch_bytes(sizes: &Sizes, threads: usize) -> usize {
    let (shared, each) = scratch(sizes);
    scratch_bytes(shared, each, threads)
}

/// The rows of a tile, of queries or of keys.
const ROWS: usize = if QUERIES > KEYS { QUERIES } else { KEYS };

fn scratch(sizes: &Sizes) -> (usize, usize) {
    let padded = sizes.d.next_multiple_of(LANES);
    let each = 2 * piece::<f32>(sizes.d * ROWS)
        + 4 * piece::<f32>(ROWS * padded)
        + 2 * piece::<f32>(QUERIES * KEYS)
        + 2 * piece::<f32>(QUERIES);
    (piece::<f32>(sizes.b * sizes.h * sizes.t), each)
}

/// What [`attention_gradient`] reads besides the operands of attention.
#[derive(Clone, Copy, Debug)]
pub struct Results<'a> {
    /// `[b, t, h, d]`, the output of attention.
    pub out: View<'a>,
    /// `f32[b, h, t]`, the logarithms of the softmax's sums.
    pub log_sum_exp: View<'a>,
    /// `[b, t, h, d]`, the gradient of the output.
    pub out_gradient: View<'a>,
}

/// What [`attention_gradient`] writes: `f32` or `bf16`, `d` contiguous, otherwise any strides.
#[derive(Debug)]
pub struct Gradients<'a> {
    /// `[b, t, h, d]`.
    pub query: ViewMut<'a>,
    /// `[b, s, g, d]`, summed over the query heads of each key head in ascending order.
    pub key: ViewMut<'a>,
    /// `[b, s, g, d]`, likewise.
    pub value: ViewMut<'a>,
}

/// The gradients of query, key and value of [`super::attention`] with these settings. Sums over keys and over queries
/// are chains in ascending order, heads of a group one after the other.
///
/// # Panics
/// If the operands do not fit each other or the scratch is too small.
pub fn attention_gradient(
    cpu: &Cpu,
    spec: &Attention,
    operands: &Operands<'_>,
    results: &Results<'_>,
    gradients: &mut Gradients<'_>,
    scratch_memory: &mut [u8],
) {
    let sizes = operands.sizes();
    let Sizes { b, t, h, s, g, d } = sizes;
    for (name, view, shape) in [
        ("out", &results.out, [b, t, h, d]),
        ("out_gradient", &results.out_gradient, [b, t, h, d]),
        ("query gradient", &gradients.query, [b, t, h, d]),
        ("key gradient", &gradients.key, [b, s, g, d]),
        ("value gradient", &gradients.value, [b, s, g, d]),
    ] {
        rows_view(name, view, shape);
    }
    let log_sum_exp = &results.log_sum_exp;
    assert!(
        log_sum_exp.dtype() == DType::F32 && log_sum_exp.shape() == [b, h, t],
        "attention gradient: log_sum_exp is {:?}, not f32[{b}, {h}, {t}]",
        log_sum_exp.shape()
    );
    let (shared, each) = scratch(&sizes);
    let scratch = Scratch::new(scratch_memory, shared, each, cpu.pool.threads());
    let context = Context { spec, operands, results, gradients, sizes, scratch };
    let (query_tiles, key_tiles) = (t.div_ceil(QUERIES), s.div_ceil(KEYS));
    cpu.pool.run(b * h * query_tiles, |task, worker| {
        let (entry, tile) = (task / query_tiles, query_tiles - 1 - task % query_tiles);
        let (batch, head) = (entry / h, entry % h);
        cpu.vectorise(QueryTile { context: &context, batch, head, tile, worker });
    });
    cpu.pool.run(b * g * key_tiles, |task, worker| {
        let (entry, tile) = (task / key_tiles, task % key_tiles);
        let (batch, key_head) = (entry / g, entry % g);
        cpu.vectorise(KeyTile { context: &context, batch, key_head, tile, worker });
    });
}

struct Context<'a> {
    spec: &'a Attention,
    operands: &'a Operands<'a>,
    results: &'a Results<'a>,
    gradients: &'a Gradients<'a>,
    sizes: Sizes,
    scratch: Scratch<'a>,
}

impl Context<'_> {
    /// The products of output and output gradient, `[b, h, t]`: the first pass writes, the second reads.
    fn products(&self, batch: usize, head: usize) -> *mut f32 {
        let Sizes { b, t, h, .. } = self.sizes;
        self.scratch.shared().take::<f32>(b * h * t).wrapping_add((batch * h + head) * t)
    }

    /// The log-sum-exp of a query. Infinity instead of minus infinity: then `e^(score - it)` is 0.
    ///
    /// # Safety
    /// The query exists.
    #[inline(always)]
    unsafe fn log_sum_exp(&self, batch: usize, head: usize, query: usize) -> f32 {
        let view = &self.results.log_sum_exp;
        let strides = view.strides();
        // SAFETY: as the caller says.
        let value = unsafe { *view.ptr::<f32>().add(batch * strides[0] + head * strides[1] + query * strides[2]) };
        if value == f32::NEG_INFINITY { f32::INFINITY } else { value }
    }
}

/// Query gradients of one tile of queries.
struct QueryTile<'a> {
    context: &'a Context<'a>,
    batch: usize,
    head: usize,
    tile: usize,
    worker: usize,
}

impl Task for QueryTile<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes>(self) {
        let Context { spec, operands, results, gradients, sizes, scratch } = self.context;
        let Sizes { t, h, s, g, d, .. } = *sizes;
        let (batch, head, key_head) = (self.batch, self.head, self.head / (h / g));
        let padded = d.next_multiple_of(LANES);
        let first = self.tile * QUERIES;
        let queries = (t - first).min(QUERIES);
        let width = queries.next_multiple_of(LANES);
        let mut pieces = scratch.worker(self.worker);
        let [query, dout] = [(); 2].map(|()| pieces.take::<f32>(d * ROWS));
        let [key, value, dquery] = [(); 3].map(|()| pieces.take::<f32>(ROWS * padded));
        let [weights, dweights] = [(); 2].map(|()| pieces.take::<f32>(QUERIES * KEYS));
        let [log_sum, product] = [(); 2].map(|()| pieces.take::<f32>(QUERIES));
        let start = spec.visible(first, s).0 / KEYS * KEYS;
        let end = spec.visible(first + queries - 1, s).1;
        // SAFETY: the pieces belong to this worker, have these sizes and do not overlap; rows `first..first + queries`
        // and keys below `s` exist; this task alone writes the products and gradients of its queries of its head.
        unsafe {
            let dout_rows = Rows::of(&results.out_gradient, batch, first, head);
            let out_rows = Rows::of(&results.out, batch, first, head);
            Rows::of(&operands.query, batch, first, head).copy_transposed::<V>(queries, width, spec.scale, query);
            dout_rows.copy_transposed::<V>(queries, width, 1.0, dout);
            let products = self.context.products(batch, head);
            for i in 0..width {
                *product.add(i) = if i < queries { dout_rows.dot::<V>(&out_rows, i) } else { 0.0 };
                *log_sum.add(i) = f32::INFINITY;
                if i < queries {
                    *products.add(first + i) = *product.add(i);
                    *log_sum.add(i) = self.context.log_sum_exp(batch, head, first + i);
                }
            }
            clear(dquery, queries * padded);
            for from in (start..end).step_by(KEYS) {
                let keys = (end - from).min(KEYS);
                let key = Rows::of(&operands.key, batch, from, key_head).in_place_or_copy::<V>(keys, key);
                let value = Rows::of(&operands.value, batch, from, key_head).in_place_or_copy::<V>(keys, value);
                let scores = Product {
                    a: key.0,
                    a_row: key.1,
                    a_column: 1,
                    b: query,
                    b_row: width,
                    c: weights,
                    c_row: width,
                    m: keys,
                    n: width,
                    k: d,
                    accumulate: false,
                };
                scores.run::<V>();
                Product { a: value.0, a_row: value.1, b: dout, c: dweights, ..scores }.run::<V>();
                hide_tile(spec, &operands.mask, batch, s, weights, first, queries, width, from, keys);
                for at in (0..width).step_by(LANES) {
                    let (log_sum, product) = (V::load(log_sum.add(at)), V::load(product.add(at)));
                    for place in (0..keys).map(|key| key * width + at) {
                        let weight = exp(V::load(weights.add(place)).sub(log_sum));
                        let dweight = V::load(dweights.add(place)).sub(product);
                        weight.mul(dweight).store(dweights.add(place));
                    }
                }
                Product {
                    a: dweights,
                    a_row: 1,
                    a_column: width,
                    b: key.0,
                    b_row: key.1,
                    c: dquery,
                    c_row: padded,
                    m: queries,
                    n: padded,
                    k: keys,
                    accumulate: true,
                }
                .run::<V>();
            }
            Rows::to(&gradients.query, batch, first, head).write::<V>(queries, dquery, |_| spec.scale);
        }
    }
}

/// Key and value gradients of one tile of keys, over all query heads that use this key head.
struct KeyTile<'a> {
    context: &'a Context<'a>,
    batch: usize,
    key_head: usize,
    tile: usize,
    worker: usize,
}

impl Task for KeyTile<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes>(self) {
        let Context { spec, operands, results, gradients, sizes, scratch } = self.context;
        let Sizes { t, h, s, g, d, .. } = *sizes;
        let (batch, key_head) = (self.batch, self.key_head);
        let padded = d.next_multiple_of(LANES);
        let from = self.tile * KEYS;
        let keys = (s - from).min(KEYS);
        let width = keys.next_multiple_of(LANES);
        let mut pieces = scratch.worker(self.worker);
        let [key, value] = [(); 2].map(|()| pieces.take::<f32>(d * ROWS));
        let [query, dout, dkey, dvalue] = [(); 4].map(|()| pieces.take::<f32>(ROWS * padded));
        let [weights, dweights] = [(); 2].map(|()| pieces.take::<f32>(QUERIES * KEYS));
        // SAFETY: the pieces belong to this worker, have these sizes and do not overlap; keys `from..from + keys` and
        // queries below `t` exist; the first pass is over; this task alone writes the gradients of its keys of its head.
        unsafe {
            Rows::of(&operands.key, batch, from, key_head).copy_transposed::<V>(keys, width, spec.scale, key);
            Rows::of(&operands.value, batch, from, key_head).copy_transposed::<V>(keys, width, 1.0, value);
            clear(dkey, keys * padded);
            clear(dvalue, keys * padded);
            for head in key_head * (h / g)..(key_head + 1) * (h / g) {
                let products = self.context.products(batch, head);
                for first in (0..t).step_by(QUERIES) {
                    let queries = (t - first).min(QUERIES);
                    let (low, high) = (spec.visible(first, s).0, spec.visible(first + queries - 1, s).1);
                    if high <= from || low >= from + keys {
                        continue;
                    }
                    let query = Rows::of(&operands.query, batch, first, head).in_place_or_copy::<V>(queries, query);
                    let dout_rows = Rows::of(&results.out_gradient, batch, first, head);
                    let dout = dout_rows.in_place_or_copy::<V>(queries, dout);
                    let scores = Product {
                        a: query.0,
                        a_row: query.1,
                        a_column: 1,
                        b: key,
                        b_row: width,
                        c: weights,
                        c_row: width,
                        m: queries,
                        n: width,
                        k: d,
                        accumulate: false,
                    };
                    scores.run::<V>();
                    Product { a: dout.0, a_row: dout.1, b: value, c: dweights, ..scores }.run::<V>();
                    for i in 0..queries {
                        hide(weights.add(i * width), 1, from, keys, spec.visible(first + i, s));
                    }
                    if let Some(mask) = &operands.mask {
                        let strides = mask.strides();
                        let seen = mask.ptr::<u8>().add(batch * strides[0] + from * strides[1]);
                        for key in (0..keys).filter(|key| *seen.add(key * strides[1]) == 0) {
                            for i in 0..queries {
                                *weights.add(i * width + key) = f32::NEG_INFINITY;
                            }
                        }
                    }
                    for i in 0..queries {
                        let log_sum = V::splat(self.context.log_sum_exp(batch, head, first + i));
                        let product = V::splat(*products.add(first + i));
                        for place in (0..width).step_by(LANES).map(|at| i * width + at) {
                            let weight = exp(V::load(weights.add(place)).sub(log_sum));
                            let dweight = V::load(dweights.add(place)).sub(product);
                            weight.store(weights.add(place));
                            weight.mul(dweight).store(dweights.add(place));
                        }
                    }
                    let values = Product {
                        a: weights,
                        a_row: 1,
                        a_column: width,
                        b: dout.0,
                        b_row: dout.1,
                        c: dvalue,
                        c_row: padded,
                        m: keys,
                        n: padded,
                        k: queries,
                        accumulate: true,
                    };
                    values.run::<V>();
                    Product { a: dweights, b: query.0, b_row: query.1, c: dkey, ..values }.run::<V>();
                }
            }
            Rows::to(&gradients.key, batch, from, key_head).write::<V>(keys, dkey, |_| spec.scale);
            Rows::to(&gradients.value, batch, from, key_head).write::<V>(keys, dvalue, |_| 1.0);
        }
    }
}
