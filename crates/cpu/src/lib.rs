//! Runs planned graphs on the CPU.
//!
//! Start reading at [`isa::Cpu`], the context of every kernel, then [`gemm`].

mod dispatch;
pub mod gemm;
pub mod isa;
pub mod kernels;
mod memory;
pub mod pool;
mod session;
pub mod simd;

pub use session::CpuBackend;
