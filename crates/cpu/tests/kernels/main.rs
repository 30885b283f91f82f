//! Kernels against naive loops in f64, and against themselves on every instruction set with 1, 2 and 3 threads.

mod attention;
mod conv;
mod copy;
mod index;
mod pool;
mod support;
