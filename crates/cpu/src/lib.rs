//! Runs planned graphs on the CPU.
//!
//! It knows programs, not models or training. Start reading at [`CpuBackend`] for how a program becomes kernels and
//! memory, at [`isa::Cpu`] for the context of every kernel, then at [`gemm`], [`rows`] and [`kernels`].

mod dispatch;
pub mod gemm;
pub mod isa;
pub mod kernels;
pub mod math;
mod memory;
pub mod pool;
pub mod rows;
mod session;
pub mod simd;
pub mod speed;

pub use session::CpuBackend;
