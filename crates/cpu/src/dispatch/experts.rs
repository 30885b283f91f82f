//! Products of rows with the matrices of their experts on [`crate::kernels`].

use tenon_graph::backend::BackendError;
use tenon_graph::composite::Composite;
use tenon_graph::composite::experts::EXPERT_MATMUL;
use tenon_graph::diagnostic::Site;

use super::{Kernel, Operand, Target};
use crate::isa::Cpu;
use crate::kernels::{Experts, expert_matmul, expert_outer};
use crate::session::Table;

/// A node of `expert_matmul` or `expert_outer`.
pub struct Mixture {
    outer: bool,
    sizes: Experts,
    operands: Vec<Operand>,
    target: Target,
    scratch: usize,
    site: Site,
}

impl Mixture {
    /// The kernel of the node.
    pub fn new(cpu: &Cpu, composite: &Composite, operands: Vec<Operand>, target: Target, site: &Site) -> Mixture {
        let outer = composite.def.name != EXPERT_MATMUL.name;
        let (left, right) = (&operands[0].window.sizes, &operands[1].window.sizes);
        let transpose = !outer && composite.attrs.flag("transpose");
        let sizes = Experts {
            rows: left[0] * left[1],
            count: if outer { target.sizes[0] } else { right[0] },
            k: left[2],
            m: right[if transpose { 1 } else { 2 }],
            transpose,
            operands: operands[0].dtype,
            result: target.dtype,
        };
        let scratch = if outer { sizes.outer_scratch_bytes(cpu) } else { sizes.matmul_scratch_bytes(cpu) };
        Mixture { outer, sizes, operands, target, scratch, site: site.clone() }
    }
}

impl Kernel for Mixture {
    fn scratch_bytes(&self) -> usize {
        self.scratch
    }

    unsafe fn run(&self, cpu: &Cpu, table: &Table, scratch: *mut u8) -> Result<(), BackendError> {
        // SAFETY: windows and target were made for these buffers, the plan keeps the target apart from the operands, and
        // the scratch is as large as was asked for.
        let done = unsafe {
            let [first, second, experts] = [0, 1, 2].map(|i: usize| self.operands[i].view(table));
            let (mut to, scratch) = (self.target.view(table), std::slice::from_raw_parts_mut(scratch, self.scratch));
            let run = if self.outer { expert_outer } else { expert_matmul };
            run(cpu, &self.sizes, [&first, &second, &experts], &mut to, scratch)
        };
        done.map_err(|error| BackendError { message: error.to_string(), site: Some(self.site.clone()) })
    }
}
