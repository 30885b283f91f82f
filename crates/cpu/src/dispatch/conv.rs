//! Convolutions of a program on [`crate::kernels`].

use tenon_graph::backend::BackendError;
use tenon_graph::op::{Conv, Direction};

use super::{Kernel, Operand, Target};
use crate::isa::Cpu;
use crate::kernels::{Convolution, convolve};
use crate::session::Table;

/// A convolution or one of its gradients.
pub struct Convolving {
    spec: Convolution,
    a: Operand,
    b: Operand,
    target: Target,
    scratch: usize,
}

impl Convolving {
    /// The kernel of a `conv` node.
    pub fn new(cpu: &Cpu, conv: &Conv, operands: &[Operand], target: &Target) -> Convolving {
        let [a, b] = operands else { unreachable!("a convolution has two operands") };
        let (input, weight) = match conv.direction {
            Direction::Forward => (&a.window.sizes, &b.window.sizes),
            Direction::InputGradient => (&target.sizes, &b.window.sizes),
            Direction::WeightGradient => (&b.window.sizes, &target.sizes),
        };
        let spec =
            Convolution::new(conv.direction, input, &conv.windows, weight[0], conv.groups, a.dtype, target.dtype);
        let scratch = spec.scratch_bytes(cpu.isa(), cpu.pool.threads());
        Convolving { spec, a: a.clone(), b: b.clone(), target: target.clone(), scratch }
    }
}

impl Kernel for Convolving {
    fn scratch_bytes(&self) -> usize {
        self.scratch
    }

    unsafe fn run(&self, cpu: &Cpu, table: &Table, scratch: *mut u8) -> Result<(), BackendError> {
        // SAFETY: windows and target were made for these buffers, the plan keeps them apart, and the scratch is as large
        // as was asked for.
        unsafe {
            let scratch = std::slice::from_raw_parts_mut(scratch, self.scratch);
            convolve(cpu, &self.spec, &self.a.view(table), &self.b.view(table), &mut self.target.view(table), scratch);
        }
        Ok(())
    }
}
