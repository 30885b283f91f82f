//! Kernels for what is neither a matrix product nor a row program.
//!
//! Each takes a [`Cpu`](crate::isa::Cpu), strided [`View`]s and scratch memory of the size that its `*_scratch_bytes`
//! says, and allocates nothing. Results depend neither on the number of threads nor on the instruction set: work is
//! divided by the problem's shape, sums have one order, accumulation is in `f32`.
//!
//! Sizes that do not fit each other are mistakes of the caller and panic; only indices found in data are errors.

pub mod attention;
mod chains;
mod conv;
mod copy;
mod exp;
mod experts;
#[cfg(test)]
pub(crate) use exp::exp;
mod index;
mod pool;
mod sort;
mod view;
mod window;

pub use conv::{Convolution, Filtering, Weights, convolve, convolve_with};
pub use copy::{clear, concat, copy, pad};
pub use experts::{Experts, expert_matmul, expert_outer};
pub use index::{
    OutOfRange, gather_along, gather_rows, scatter_add_along, scatter_add_along_scratch_bytes, scatter_add_rows,
    scatter_add_rows_scratch_bytes, write,
};
pub use pool::{pool, pool_gradient, pool_gradient_scratch_bytes};
pub use sort::{argsort, argsort_scratch_bytes};
pub use view::{Axes, Element, View, ViewMut};
