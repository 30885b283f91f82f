//! The gradient of attention in one pass over recomputed tiles, five products each. A task is a key head of a batch
//! entry with all query heads that use it, or, where that makes too few tasks, one of several parts of their queries:
//! it sums the gradients of keys and values, and the parts' sums are added at the end. How many parts there are follows
//! from the sizes alone, so every sum has one order.

use super::forward::hide;
use super::products::{Panels, Product, Products, RowsOfA, Seen, Weights};
use super::tiles::{KEYS, QUERIES, Rows, clear};
use super::{Attention, Band, Operands, Sizes, rows_view};
use crate::gemm::bf16::Lowest;
use crate::isa::{Cpu, Isa};
use crate::kernels::chains::add_up;
use crate::kernels::exp::exp_from;
use crate::kernels::view::{DType, Scratch, View, ViewMut, piece, scratch_bytes};
use crate::simd::{Float, LANES, Lanes, Task};
use std::ops::Range;

/// Tasks worth having, if there are queries enough.
const TASKS: usize = 16;
/// Tiles of queries in a part at least.
const PART_TILES: usize = 4;

/// The bytes of scratch that [`attention_gradient`] needs on a pool of `threads` with instruction set `isa`.
pub fn attention_gradient_scratch_bytes(sizes: &Sizes, isa: Isa, threads: usize) -> usize {
    let layout = Layout::new(sizes, isa);
    scratch_bytes(layout.shared(), layout.each(), threads)
}

/// How the work is cut, and what scratch it needs.
#[derive(Clone, Copy)]
struct Layout {
    sizes: Sizes,
    products: Products,
    /// The size of a head in whole vectors.
    padded: usize,
    /// Tiles of queries of all query heads that use a key head.
    tiles: usize,
    /// The parts that these are cut into.
    parts: usize,
}

impl Layout {
    fn new(sizes: &Sizes, isa: Isa) -> Layout {
        let tiles = sizes.h.checked_div(sizes.g).unwrap_or(0) * sizes.t.div_ceil(QUERIES);
        let parts = TASKS.div_ceil((sizes.b * sizes.g).max(1)).min(tiles / PART_TILES).max(1);
        Layout { sizes: *sizes, products: sizes.products(isa), padded: sizes.d.next_multiple_of(LANES), tiles, parts }
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

    /// Lanes of all keys of a key head as rows, and as panels of each tile of keys.
    fn key_lanes(&self) -> [usize; 2] {
        let Sizes { s, d, .. } = self.sizes;
        [s * self.products.lanes(d), s.div_ceil(KEYS) * self.products.panel_lanes(KEYS, d)]
    }

    /// Lanes of a tile of queries as columns, and as rows, of a B.
    fn query_lanes(&self) -> [usize; 2] {
        let d = self.sizes.d;
        [self.products.panel_lanes(d, QUERIES), self.products.panel_lanes(QUERIES, d)]
    }

    /// Lanes of a tile of rounded weights, turned or not.
    fn turned_lanes(&self) -> usize {
        QUERIES.max(KEYS) * self.products.lanes(QUERIES.max(KEYS))
    }

    /// Bytes of one worker.
    fn each(&self) -> usize {
        let ([key, keys], [column, row]) = (self.key_lanes(), self.query_lanes());
        let rounded = if self.products.rounds() {
            2 * piece::<u16>(QUERIES * KEYS) + 2 * piece::<u32>(self.turned_lanes())
        } else {
            0
        };
        2 * piece::<u32>(key)
            + piece::<u32>(keys)
            + 2 * piece::<f32>(self.keys())
            + 2 * piece::<u32>(column)
            + 2 * piece::<u32>(row)
            + piece::<f32>(QUERIES * self.padded)
            + 2 * piece::<f32>(QUERIES * KEYS)
            + rounded
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

/// The gradients of query, key and value of [`super::attention`] with these settings. Products are those of
/// [`crate::gemm`]; with bf16 operands weights and their gradients are rounded to bf16 for them, weights below about 2^-40 to 0. Sums over keys are chains in
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
    let Sizes { b, t, h, s, g, d, .. } = sizes;
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
    let layout = Layout::new(&sizes, cpu.isa());
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
        let Layout { sizes: Sizes { t, h, s, g, d, .. }, products, padded, parts, .. } = *layout;
        let (batch, key_head) = (self.batch, self.key_head);
        let query_tiles = t.div_ceil(QUERIES);
        let mut pieces = scratch.worker(self.worker);
        let ([key_lanes, key_panels], [column_lanes, row_lanes]) = (layout.key_lanes(), layout.query_lanes());
        let [keys, values] = [(); 2].map(|()| pieces.take::<u32>(key_lanes));
        let panels = pieces.take::<u32>(key_panels);
        let [dkeys, dvalues] = [(); 2].map(|()| pieces.take::<f32>(layout.keys()));
        let [query_columns, dout_columns] = [(); 2].map(|()| pieces.take::<u32>(column_lanes));
        let [query_panels, dout_panels] = [(); 2].map(|()| pieces.take::<u32>(row_lanes));
        let dquery = pieces.take::<f32>(QUERIES * padded);
        let [weights, dweights] = [(); 2].map(|()| pieces.take::<f32>(QUERIES * KEYS));
        let ([rounded, drounded], [packed, turned]) = if products.rounds() {
            (
                [(); 2].map(|()| pieces.take::<u16>(QUERIES * KEYS).cast::<u8>()),
                [(); 2].map(|()| pieces.take::<u32>(layout.turned_lanes())),
            )
        } else {
            ([weights.cast(), dweights.cast()], [std::ptr::null_mut(); 2])
        };
        let [log_sum, product] = [(); 2].map(|()| pieces.take::<f32>(QUERIES));
        let [dkeys, dvalues] =
            if parts == 1 { [dkeys, dvalues] } else { self.context.sums(batch, key_head, self.part) };
        let key_panel = |from: usize| panels.wrapping_add(from / KEYS * products.panel_lanes(KEYS, d));
        // SAFETY: the pieces belong to this worker, the sums to this part; they have these sizes and do not overlap. Keys
        // below `s` and queries below `t` exist; this task alone writes the gradients of its queries, and of its keys
        // where it is the only part.
        unsafe {
            let key_rows = |from| Rows::of(&operands.key, batch, from, key_head);
            let keys = products.rows(&key_rows(0).columns(s), keys);
            let values = products.rows(&Rows::of(&operands.value, batch, 0, key_head).columns(s), values);
            let mut low = Lowest::NONE;
            for from in (0..s).step_by(KEYS) {
                let tile = products.panels(&key_rows(from).rows((s - from).min(KEYS)), key_panel(from));
                low = low.and(tile.low);
            }
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
                let query = products.panels(&query_rows.rows(queries), query_panels);
                let dout = products.panels(&dout_rows.rows(queries), dout_panels);
                let query_columns = products.panels(&query_rows.columns(queries), query_columns);
                let dout_columns = products.panels(&dout_rows.columns(queries), dout_columns);
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
                if queries < width {
                    clear(weights, KEYS * width);
                    clear(dweights, KEYS * width);
                }
                for from in (start..end).step_by(KEYS) {
                    let (count, band) = ((end - from).min(KEYS), spec.band(first, from));
                    let scores = |a: RowsOfA, b: Panels, c: *mut f32| {
                        products.run(Product {
                            a: a.skip(from),
                            b,
                            c,
                            c_row: width,
                            m: count,
                            n: queries,
                            k: d,
                            accumulate: false,
                            seen: Seen::Scores(band),
                        })
                    };
                    scores(keys, query_columns, weights);
                    scores(values, dout_columns, dweights);
                    let mask = operands.mask.as_ref().map(|mask| (mask, batch));
                    hide(spec, mask, weights, width, from, count, band);
                    let tiles = [weights, dweights].map(|tile| tile.cast_const());
                    let terms = Terms { scale: spec.scale, least: products.least(), log_sum, product };
                    if products.rounds() {
                        terms.weigh::<V, u16>(tiles, [rounded.cast(), drounded.cast()], count, width, band);
                    } else {
                        terms.weigh::<V, f32>(tiles, [weights, dweights], count, width, band);
                    }
                    let tile = |ptr: *mut u8| Weights { ptr, keys: count, queries, width };
                    let gradient = |a: RowsOfA, b: Panels, c: *mut f32, m: usize, k: usize, seen: Seen| {
                        products.run(Product { a, b, c, c_row: padded, m, n: d, k, accumulate: true, seen })
                    };
                    let (dkey, dvalue) = (dkeys.add(from * padded), dvalues.add(from * padded));
                    let seen = Seen::Queries(band);
                    gradient(products.weights(tile(rounded), packed), dout, dvalue, count, queries, seen);
                    gradient(products.weights(tile(drounded), packed), query, dkey, count, queries, seen);
                    let key = Panels { ptr: key_panel(from), lanes: products.lanes((s - from).min(KEYS)), low };
                    gradient(products.turned(tile(drounded), turned), key, dquery, queries, count, Seen::Keys(band));
                }
                Rows::to(&gradients.query, batch, first, head).write::<V>(queries, dquery, |_| spec.scale);
            }
            if parts == 1 {
                self.context.write::<V>(batch, key_head, [dkeys, dvalues]);
            }
        }
    }
}

/// What turns scores into weights and the gradients of weights into those of scores.
struct Terms {
    scale: f32,
    least: f32,
    /// Of each query.
    log_sum: *const f32,
    /// Of each query: its output times the output's gradient.
    product: *const f32,
}

impl Terms {
    /// From scores and gradients of weights, `[keys][width]` each, to weights and gradients of scores, which may take
    /// their places: 0 outside the band.
    ///
    /// # Safety
    /// All exist, and the results are this thread's.
    #[inline(always)]
    unsafe fn weigh<V: Lanes, T: Float>(
        &self,
        from: [*const f32; 2],
        to: [*mut T; 2],
        keys: usize,
        width: usize,
        band: Band,
    ) {
        let (scale, least) = (V::splat(self.scale), V::splat(self.least));
        for at in (0..width).step_by(LANES) {
            // SAFETY: as the caller says.
            unsafe {
                let (log_sum, product) = (V::load(self.log_sum.add(at)), V::load(self.product.add(at)));
                let seen = band.keys(at..at + LANES, keys);
                for place in (0..seen.start).chain(seen.end..keys).map(|key| key * width + at) {
                    T::store(V::splat(0.0), to[0].add(place));
                    T::store(V::splat(0.0), to[1].add(place));
                }
                for place in seen.map(|key| key * width + at) {
                    let weight = exp_from(V::load(from[0].add(place)).mul(scale).sub(log_sum), least);
                    let dweight = V::load(from[1].add(place)).sub(product);
                    T::store(weight, to[0].add(place));
                    T::store(weight.mul(dweight), to[1].add(place));
                }
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
            // The sums of the keys and those of the values follow each other.
            let len = 2 * layout.keys();
            add_up::<V>(sums(0)[0], len, len, layout.parts);
            self.context.write::<V>(self.batch, self.key_head, sums(0));
        }
    }
}
