//! Fused units of a program on [`crate::rows`].

use smallvec::SmallVec;
use tenon_graph::backend::BackendError;
use tenon_graph::graph::Graph;
use tenon_graph::lower::fused::Fused;

use super::Kernel;
use crate::isa::Cpu;
use crate::rows::RowProgram;
use crate::session::Table;

/// A fused unit.
pub struct Rows {
    program: RowProgram,
    scratch: usize,
}

impl Rows {
    /// The kernel of a fused unit.
    pub fn new(cpu: &Cpu, fused: &Fused, graph: &Graph) -> Rows {
        let program = RowProgram::new(cpu, fused, graph);
        Rows { scratch: program.scratch_bytes(cpu.pool.threads()), program }
    }
}

impl Kernel for Rows {
    fn scratch_bytes(&self) -> usize {
        self.scratch
    }

    unsafe fn run(&self, cpu: &Cpu, table: &Table, scratch: *mut u8) -> Result<(), BackendError> {
        let buffers: SmallVec<[*mut u8; 16]> = self.program.buffers().iter().map(|v| table.get(*v)).collect();
        // SAFETY: buffers hold their values whole and aligned to cache lines; the plan lets two share memory only where
        // `reuses` does; the scratch is as large as was asked for.
        unsafe { self.program.run(cpu, &buffers, std::slice::from_raw_parts_mut(scratch, self.scratch)) };
        Ok(())
    }
}
