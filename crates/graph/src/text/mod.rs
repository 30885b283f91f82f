//! The text form of a graph: one node a line, for people, golden files and storage.
//!
//! ```text
//! %0: f32[b, 768] = input data x
//! %1: f32[768, 768] = input parameter h.0.mlp.w
//! %2: f32[b, 768] = matmul %0, %1  // gpt2.star:31:12+6 h.0.mlp
//! %3: f32[b, 1] = reduce_sum %2 {axes: [1]}  @backward  // gpt2.star:33:5+3 h.0.mlp
//! output logits = %3
//! update %1 = %1
//! ```
//!
//! A line has the results with their types, the operation, its operands, its settings in braces, the phase unless it is
//! forward, and the site: file, line, column and length, then the scope path; `-` where there is no file. Names of other
//! characters than letters, digits, `_`, `.`, `/` and `-` are quoted. Sizes that the result's type tells are not
//! repeated as settings. Lines that start with `//` and empty lines are skipped.

mod parse;
mod print;
mod scan;
mod settings;

pub use parse::{ParseError, parse};
pub(crate) use print::computation;
pub use print::print;
