//! The gradient of attention in one pass over recomputed tiles, five products each. A task is a key head of a batch
//! entry with all query heads that use it, or, where that makes too few tasks, one of several parts of their queries:
//! it sums the gradients of keys and values, and the parts' sums are added at the end. How many parts there are follows
//! from the sizes alone, so every sum has one order.

use super::forward::hide_tile;
use super::tiles::{KEYS, QUERIES, Rows, clear};
use super::{Attention, Operands, Sizes, rows_view};
use crate::isa::Cpu;
use crate::kernels::exp::exp;
use crate::kernels::product::Product;
use crate::kernels::view::{DType, Scratch, View, ViewMut, piece, scratch_bytes};
use crate::simd::{LANES, Lanes, Task};
use std::ops::Range;

/// Tasks worth having, if there are queries enough.
const TASKS: usize = 16;
/// Tiles of queries in a part at least.
const PART_TILES: usize = 4;

/// The bytes of scratch that [`attention_gradient`] needs on a pool of `threads`.
pub fn attention_gradient_scratch_bytes(sizes: &Sizes, threads: usize) -> usize {
    let layout = Layout::new(sizes);
    scratch_bytes(layout.shared(), layout.each(), threads)
}

/// How the work is cut, and what scratch it needs.
#[derive(Clone, Copy)]
struct Layout {
    sizes: Sizes,
    /// The size of a head in whole vectors.
    padded: usize,
    /// Tiles of queries of all query heads that use a key head.
    tiles: usize,
    /// The parts that these are cut into.
    parts: usize,
}

impl Layout {
    fn new(sizes: &Sizes) -> Layout {
        let tiles = sizes.h.checked_div(sizes.g).unwrap_or(0) * sizes.t.div_ceil(QUERIES);
        let parts = TASKS.div_ceil((sizes.b * sizes.g).max(1)).min(tiles / PART_TILES).max(1);
        Layout { sizes: *sizes, padded: sizes.d.next_multiple_of(LANES), tiles, parts }
    }

    /// The tiles of a part.
    fn part(&self, part: usize) -> Range<usize> {
        part * self.tiles / self.parts..(part + 1) * self.tiles / self.parts
    }

    /// Floats of the keys of a key head, and as many of its values.
    fn keys(&self) -> usize {
        self.sizes.s * self.padded
    }

    /// Floats of the sums of all parts, if there are several.
    fn sums(&self) -> usize {
        if self.parts > 1 { self.sizes.b * self.sizes.g * self.parts * 2 * self.keys() } else { 0 }
    }

    /// Bytes that the workers share.
    fn shared(&self) -> usize {
        piece::<f32>(self.sums())
    }

    /// Bytes of one worker.
    fn each(&self) -> usize {
        4 * piece::<f32>(self.keys())
            + 2 * piece::<f32>(self.sizes.d * QUERIES)
            + 3 * piece::<f32>(QUERIES * self.padded)
            + 2 * piece::<f32>(QUERIES * KEYS)
            + 2 * piece::<f32>(QUERIES)
    }
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

/// The gradients of query, key and value of [`super::attention`] with these settings. Sums over keys are chains in
/// ascending order, and so are sums over the queries of a part, heads of a group one after the other; the sums of the
/// parts are added in ascending order.
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
    let layout = Layout::new(&sizes);
    let scratch = Scratch::new(scratch_memory, layout.shared(), layout.each(), cpu.pool.threads());
    let context = &Context { spec, operands, results, gradients, layout, scratch };
    cpu.pool.run(b * g * layout.parts, |task, worker| {
        let (entry, part) = (task / layout.parts, task % layout.parts);
        cpu.vectorise(Part { context, batch: entry / g, key_head: entry % g, part, worker });
    });
    if layout.parts > 1 {
        cpu.pool.run(b * g, |entry, _| cpu.vectorise(Total { context, batch: entry / g, key_head: entry % g }));
    }
}

struct Context<'a> {
    spec: &'a Attention,
    operands: &'a Operands<'a>,
    results: &'a Results<'a>,
    gradients: &'a Gradients<'a>,
    layout: Layout,
    scratch: Scratch<'a>,
}

impl Context<'_> {
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

    /// The sums of a part among several: `[s, padded]` for the keys, then for the values.
    fn sums(&self, batch: usize, key_head: usize, part: usize) -> [*mut f32; 2] {
        let Layout { sizes, parts, .. } = self.layout;
        let all = self.scratch.shared().take::<f32>(self.layout.sums());
        let keys = all.wrapping_add(((batch * sizes.g + key_head) * parts + part) * 2 * self.layout.keys());
        [keys, keys.wrapping_add(self.layout.keys())]
    }

    /// Writes the gradients of keys and values from their sums.
    ///
    /// # Safety
    /// The sums are there, and this thread alone writes these gradients.
    #[inline(always)]
    unsafe fn write<V: Lanes>(&self, batch: usize, key_head: usize, [dkey, dvalue]: [*mut f32; 2]) {
        let (keys, scale) = (self.layout.sizes.s, self.spec.scale);
        // SAFETY: as the caller says.
        unsafe {
            Rows::to(&self.gradients.key, batch, 0, key_head).write::<V>(keys, dkey, |_| scale);
            Rows::to(&self.gradients.value, batch, 0, key_head).write::<V>(keys, dvalue, |_| 1.0);
        }
    }
}

/// A part of the queries of one key head.
struct Part<'a> {
    context: &'a Context<'a>,
    batch: usize,
    key_head: usize,
    part: usize,
    worker: usize,
}

impl Task for Part<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes>(self) {
        let Context { spec, operands, results, gradients, layout, scratch } = self.context;
        let Layout { sizes: Sizes { t, h, s, g, d, .. }, padded, parts, .. } = *layout;
        let (batch, key_head) = (self.batch, self.key_head);
        let query_tiles = t.div_ceil(QUERIES);
        let mut pieces = scratch.worker(self.worker);
        let [keys, values, dkeys, dvalues] = [(); 4].map(|()| pieces.take::<f32>(layout.keys()));
        let [query_columns, dout_columns] = [(); 2].map(|()| pieces.take::<f32>(d * QUERIES));
        let [query, dout, dquery] = [(); 3].map(|()| pieces.take::<f32>(QUERIES * padded));
        let [weights, dweights] = [(); 2].map(|()| pieces.take::<f32>(QUERIES * KEYS));
        let [log_sum, product] = [(); 2].map(|()| pieces.take::<f32>(QUERIES));
        let [dkeys, dvalues] =
            if parts == 1 { [dkeys, dvalues] } else { self.context.sums(batch, key_head, self.part) };
        // SAFETY: the pieces belong to this worker, the sums to this part; they have these sizes and do not overlap. Keys
        // below `s` and queries below `t` exist; this task alone writes the gradients of its queries, and of its keys
        // where it is the only part.
        unsafe {
            Rows::of(&operands.key, batch, 0, key_head).copy::<V>(s, 1.0, keys);
            Rows::of(&operands.value, batch, 0, key_head).copy::<V>(s, 1.0, values);
            clear(dkeys, layout.keys());
            clear(dvalues, layout.keys());
            for tile in layout.part(self.part) {
                let head = key_head * (h / g) + tile / query_tiles;
                let first = tile % query_tiles * QUERIES;
                let queries = (t - first).min(QUERIES);
                let width = queries.next_multiple_of(LANES);
                let start = spec.visible(first, s).0 / KEYS * KEYS;
                let end = spec.visible(first + queries - 1, s).1;

                let query_rows = Rows::of(&operands.query, batch, first, head);
                let dout_rows = Rows::of(&results.out_gradient, batch, first, head);
                let out_rows = Rows::of(&results.out, batch, first, head);
                query_rows.copy::<V>(queries, 1.0, query);
                dout_rows.copy::<V>(queries, 1.0, dout);
                query_rows.copy_transposed::<V>(queries, width, spec.scale, query_columns);
                dout_rows.copy_transposed::<V>(queries, width, 1.0, dout_columns);
                for i in 0..width {
                    let (dot, sum) = if i < queries {
                        (dout_rows.dot::<V>(&out_rows, i), self.context.log_sum_exp(batch, head, first + i))
                    } else {
                        (0.0, f32::INFINITY)
                    };
                    *product.add(i) = dot;
                    *log_sum.add(i) = sum;
                }
                clear(dquery, queries * padded);
                for from in (start..end).step_by(KEYS) {
                    let count = (end - from).min(KEYS);
                    let (key, value) = (keys.add(from * padded), values.add(from * padded));
                    let scores = Product {
                        a: key,
                        a_row: padded,
                        a_column: 1,
                        b: query_columns,
                        b_row: width,
                        c: weights,
                        c_row: width,
                        m: count,
                        n: width,
                        k: d,
                        accumulate: false,
                    };
                    scores.run::<V>();
                    Product { a: value, b: dout_columns, c: dweights, ..scores }.run::<V>();
                    hide_tile(spec, &operands.mask, batch, s, weights, first, queries, width, from, count);
                    for at in (0..width).step_by(LANES) {
                        let (log_sum, product) = (V::load(log_sum.add(at)), V::load(product.add(at)));
                        for place in (0..count).map(|key| key * width + at) {
                            let weight = exp(V::load(weights.add(place)).sub(log_sum));
                            let dweight = V::load(dweights.add(place)).sub(product);
                            weight.store(weights.add(place));
                            weight.mul(dweight).store(dweights.add(place));
                        }
                    }
                    let dvalue = Product {
                        a: weights,
                        a_row: width,
                        a_column: 1,
                        b: dout,
                        b_row: padded,
                        c: dvalues.add(from * padded),
                        c_row: padded,
                        m: count,
                        n: padded,
                        k: queries,
                        accumulate: true,
                    };
                    dvalue.run::<V>();
                    Product { a: dweights, b: query, c: dkeys.add(from * padded), ..dvalue }.run::<V>();
                    Product {
                        a: dweights,
                        a_row: 1,
                        a_column: width,
                        b: key,
                        b_row: padded,
                        c: dquery,
                        c_row: padded,
                        m: queries,
                        n: padded,
                        k: count,
                        accumulate: true,
                    }
                    .run::<V>();
                }
                Rows::to(&gradients.query, batch, first, head).write::<V>(queries, dquery, |_| spec.scale);
            }
            if parts == 1 {
                self.context.write::<V>(batch, key_head, [dkeys, dvalues]);
            }
        }
    }
}

/// The gradients of one key head's keys and values from the sums of its parts.
struct Total<'a> {
    context: &'a Context<'a>,
    batch: usize,
    key_head: usize,
}

impl Task for Total<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes>(self) {
        let layout = self.context.layout;
        let sums = |part: usize| self.context.sums(self.batch, self.key_head, part);
        // SAFETY: all parts are done; the sums of this key head, of keys and values next to each other, are this task's.
        unsafe {
            for part in 1..layout.parts {
                let (total, [next, _]) = (sums(0)[0], sums(part));
                for at in (0..2 * layout.keys()).step_by(LANES) {
                    V::load(total.add(at)).add(V::load(next.add(at))).store(total.add(at));
                }
            }
            self.context.write::<V>(self.batch, self.key_head, sums(0));
        }
    }
}
