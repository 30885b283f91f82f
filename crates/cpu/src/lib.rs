//! Runs planned graphs on the CPU.
//!
//! Start reading at [`isa::Cpu`], the context of every kernel, then [`gemm`].

pub mod gemm;
pub mod isa;
pub mod kernels;
pub mod math;
pub mod pool;
pub mod simd;
