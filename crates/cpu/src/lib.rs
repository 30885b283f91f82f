//! Runs planned graphs on the CPU.
//!
//! Start reading at [`isa::Cpu`], the context of every kernel.

pub mod isa;
pub mod math;
pub mod pool;
pub mod rows;
