//! Convolutions of a program on [`crate::kernels`].

use tenon_graph::backend::BackendError;
use tenon_graph::op::{Conv, Direction};

use super::{Kernel, Operand, Target};
use crate::isa::{Cpu, Isa};
use crate::kernels::{Convolution, Weights, convolve, convolve_with};
use crate::session::Table;

/// A convolution or one of its gradients.
pub struct Convolving {
    spec: Convolution,
    isa: Isa,
    a: Operand,
    b: Operand,
    target: Target,
    scratch: usize,
    kept: Kept,
}

/// The weights in the form in which the convolution reads them.
enum Kept {
    /// Made anew in every run.
    No,
    /// Made once: where they are, once they are made.
    Yes(Option<Weights>),
}

impl Convolving {
    /// The kernel of a `conv` node, which keeps its weights if they are fixed.
    pub fn new(cpu: &Cpu, conv: &Conv, operands: &[Operand], target: &Target, fixed: bool) -> Convolving {
        let [a, b] = operands else { unreachable!("a convolution has two operands") };
        let (input, weight) = match conv.direction {
            Direction::Forward => (&a.window.sizes, &b.window.sizes),
            Direction::InputGradient => (&target.sizes, &b.window.sizes),
            Direction::WeightGradient => (&b.window.sizes, &target.sizes),
        };
        let fixed = fixed && conv.direction == Direction::Forward;
        let mut spec =
            Convolution::new(conv.direction, input, &conv.windows, weight[0], conv.groups, a.dtype, target.dtype);
        if fixed {
            spec = spec.with_weights();
        }
        let scratch = spec.scratch_bytes(cpu.isa(), cpu.pool.threads());
        let kept = if fixed { Kept::Yes(None) } else { Kept::No };
        Convolving { spec, isa: cpu.isa(), a: a.clone(), b: b.clone(), target: target.clone(), scratch, kept }
    }
}

impl Kernel for Convolving {
    fn scratch_bytes(&self) -> usize {
        self.scratch
    }

    fn kept_bytes(&self) -> usize {
        match self.kept {
            Kept::No => 0,
            Kept::Yes(_) => self.spec.weights_bytes(self.isa),
        }
    }

    unsafe fn keep(&mut self, cpu: &Cpu, table: &Table, kept: *mut u8) {
        if let Kept::Yes(weights) = &mut self.kept {
            // SAFETY: the window was made for this buffer, and there is room for the weights.
            *weights = Some(unsafe { Weights::make(cpu, &self.spec, &self.b.view(table), kept) });
        }
    }

    unsafe fn run(&self, cpu: &Cpu, table: &Table, scratch: *mut u8) -> Result<(), BackendError> {
        // SAFETY: windows and target were made for these buffers, the plan keeps them apart, and the scratch is as large
        // as was asked for.
        unsafe {
            let scratch = std::slice::from_raw_parts_mut(scratch, self.scratch);
            let (a, b, mut target) = (self.a.view(table), self.b.view(table), self.target.view(table));
            match &self.kept {
                Kept::No => convolve(cpu, &self.spec, &a, &b, &mut target, scratch),
                Kept::Yes(weights) => {
                    let weights = weights.as_ref().expect("what a kernel keeps is made before it runs");
                    convolve_with(cpu, &self.spec, &a, weights, &mut target, scratch);
                }
            }
        }
        Ok(())
    }
}
