//! Streaming scaled dot-product attention and its gradient, with grouped heads; the score matrix is never stored.
//!
//! The method is that of Dao 2023 (FlashAttention-2). Scores are worked on transposed, `[key][query]`: queries are the
//! lanes, and maximum and sum over the keys are plain vector operations in ascending key order.

mod backward;
mod decode;
mod forward;
mod products;
mod tiles;

pub use backward::{Gradients, Results, attention_gradient, attention_gradient_scratch_bytes};
pub use forward::{attention, attention_scratch_bytes};

use super::view::{DType, View};
use crate::gemm::Float;
use crate::isa::Isa;
use products::Products;
use std::ops::Range;

/// Which keys a query sees, and the factor of the scores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// Whether query `i` sees no key after its own place: `j <= position + i`.
    pub causal: bool,
    /// How many places a query looks back, its own included, and forward unless causal; 0 means all.
    pub window: usize,
    /// The place of query 0 among the keys.
    pub position: i32,
    /// The factor of the scores; not 0.
    pub scale: f32,
}

impl Attention {
    /// What becomes minus infinity times the factor: the score of a key that is not seen.
    fn hidden(&self) -> f32 {
        f32::NEG_INFINITY * self.scale.signum()
    }

    /// The keys below `s` that query `i` sees, if the mask allows them, as a range. Both ends ascend with `i`.
    fn visible(&self, i: usize, s: usize) -> (usize, usize) {
        let clip = |j: i128| j.clamp(0, s as i128) as usize;
        let (place, window) = (i128::from(self.position) + i as i128, self.window as i128);
        let low = if self.window > 0 { clip(place - window + 1) } else { 0 };
        let high = match (self.causal, self.window) {
            (true, _) => clip(place + 1),
            (false, 0) => s,
            (false, _) => clip(place + window),
        };
        (low.min(high), high)
    }

    /// The keys that the queries of a tile see, the first of which are query `first` and key `from`.
    fn band(&self, first: usize, from: usize) -> Band {
        // Far from every tile, and no sum of places overflows.
        let clip = |j: i128| j.clamp(-(1 << 40), 1 << 40) as isize;
        let (place, window) = (i128::from(self.position) + first as i128 - from as i128, self.window as i128);
        Band {
            low: clip(if self.window > 0 { place - window + 1 } else { i128::MIN }),
            high: clip(match (self.causal, self.window) {
                (true, _) => place + 1,
                (false, 0) => i128::MAX,
                (false, _) => place + window,
            }),
        }
    }
}

/// What is seen in a tile: query `i` sees no key outside of `i + low..i + high`.
#[derive(Clone, Copy)]
struct Band {
    low: isize,
    high: isize,
}

impl Band {
    /// The keys, of this many, that some of these queries see.
    #[inline(always)]
    fn keys(self, queries: Range<usize>, keys: usize) -> Range<usize> {
        let clip = |j: isize| j.clamp(0, keys as isize) as usize;
        let low = clip(queries.start as isize + self.low);
        low..clip(queries.end as isize - 1 + self.high).max(low)
    }

    /// The queries, of this many, that see some of these keys.
    #[inline(always)]
    fn queries(self, keys: Range<usize>, queries: usize) -> Range<usize> {
        let clip = |i: isize| i.clamp(0, queries as isize) as usize;
        let low = clip(keys.start as isize - self.high + 1);
        low..clip(keys.end as isize - self.low).max(low)
    }
}

/// What attention reads.
#[derive(Clone, Copy, Debug)]
pub struct Operands<'a> {
    /// `[b, t, h, d]`, `f32` or `bf16`; here and in the others `d` is contiguous.
    pub query: View<'a>,
    /// `[b, s, g, d]`, `h` a multiple of `g`: query head `i` uses head `i / (h / g)`.
    pub key: View<'a>,
    /// `[b, s, g, d]`.
    pub value: View<'a>,
    /// `bool[b, s]`, true where a key may be seen.
    pub mask: Option<View<'a>>,
}

/// The sizes of an attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Batch entries.
    pub b: usize,
    /// Queries.
    pub t: usize,
    /// Query heads.
    pub h: usize,
    /// Keys.
    pub s: usize,
    /// Key heads.
    pub g: usize,
    /// The size of a head.
    pub d: usize,
    /// The element type of queries, keys and values: the arithmetic of the products.
    pub dtype: DType,
}

impl Sizes {
    fn products(&self, isa: Isa) -> Products {
        Products::new(isa, if self.dtype == DType::F32 { Float::F32 } else { Float::Bf16 })
    }
}

impl Operands<'_> {
    /// The sizes.
    ///
    /// # Panics
    /// If the operands do not fit each other.
    pub fn sizes(&self) -> Sizes {
        let (&[b, t, h, d], &[_, s, g, _]) = (self.query.shape(), self.key.shape()) else {
            panic!("attention of query {:?} and key {:?}", self.query.shape(), self.key.shape());
        };
        let dtype = self.query.dtype();
        for other in [&self.key, &self.value] {
            assert!(other.dtype() == dtype, "attention of {dtype} and {}", other.dtype());
        }
        let sizes = Sizes { b, t, h, s, g, d, dtype };
        rows_view("query", &self.query, [b, t, h, d]);
        rows_view("key", &self.key, [b, s, g, d]);
        rows_view("value", &self.value, [b, s, g, d]);
        assert!(h == 0 || (g > 0 && h.is_multiple_of(g)), "{h} query heads over {g} key heads");
        if let Some(mask) = &self.mask {
            assert!(mask.dtype() == DType::Bool && mask.shape() == [b, s], "mask {:?}, not [{b}, {s}]", mask.shape());
        }
        sizes
    }
}

/// Checks a `[b, t, h, d]` operand.
fn rows_view(name: &str, view: &View<'_>, shape: [usize; 4]) {
    assert!(matches!(view.dtype(), DType::F32 | DType::BF16), "attention: {name} is {}", view.dtype());
    assert!(view.shape() == shape, "attention: {name} is {:?}, not {shape:?}", view.shape());
    assert!(shape[3] <= 1 || view.strides()[3] == 1, "attention: {name}'s heads are not contiguous");
}
