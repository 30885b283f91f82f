//! Nodes of a program that move elements: views with a buffer, gather, scatter, sort, pooling.

use tenon_graph::backend::BackendError;
use tenon_graph::diagnostic::Site;
use tenon_graph::op::{Direction, Gather, Op, Pool, Scatter, View as GraphView};

use super::{Kernel, Operand, Target};
use crate::isa::Cpu;
use crate::kernels::{
    OutOfRange, argsort, argsort_scratch_bytes, concat, copy, gather_along, gather_rows, pad, pool, pool_gradient,
    pool_gradient_scratch_bytes, scatter_add_along, scatter_add_along_scratch_bytes, scatter_add_rows,
    scatter_add_rows_scratch_bytes, write,
};
use crate::session::Table;

enum Move {
    Copy,
    Concat(usize),
    Pad { axis: usize, start: usize, step: usize },
    GatherRows,
    GatherAlong(usize),
    AddRows,
    AddAlong(usize),
    Write(usize),
    Sort { axis: usize, descending: bool },
    Pool(Pool),
}

/// A node that moves elements.
pub struct Moving {
    what: Move,
    operands: Vec<Operand>,
    target: Target,
    scratch: usize,
    site: Site,
}

impl Moving {
    /// The elements of a window, in row-major order.
    pub fn copy(source: Operand, mut target: Target) -> Moving {
        // The target may have another shape, with as many elements in the same order.
        target.strides = crate::kernels::Axes::new(&source.window.sizes).row_major_strides().to_vec().into();
        target.sizes = source.window.sizes.clone();
        Moving { what: Move::Copy, operands: vec![source], target, scratch: 0, site: Site::default() }
    }

    /// The kernel of a node, if it is one of these.
    pub fn new(cpu: &Cpu, op: &Op, operands: Vec<Operand>, target: Target, site: &Site) -> Option<Moving> {
        let threads = cpu.pool.threads();
        let sizes = |i: usize| -> &[usize] { &operands[i].window.sizes };
        let float = target.dtype.is_float();
        let (what, scratch) = match op {
            Op::View(GraphView::Concat(axis)) => (Move::Concat(*axis), 0),
            Op::View(GraphView::Pad { axis, start, step, .. }) => {
                (Move::Pad { axis: *axis, start: start.as_const()?, step: *step }, 0)
            }
            Op::Gather(Gather::Rows) => (Move::GatherRows, 0),
            Op::Gather(Gather::Along(axis)) => (Move::GatherAlong(*axis), 0),
            Op::Scatter(Scatter::AddRows(_)) if float => {
                (Move::AddRows, scatter_add_rows_scratch_bytes(sizes(0).iter().product(), threads))
            }
            Op::Scatter(Scatter::AddAlong { axis, size }) if float => {
                (Move::AddAlong(*axis), scatter_add_along_scratch_bytes(size.as_const()?, threads))
            }
            Op::Scatter(Scatter::Write(axis)) => (Move::Write(*axis), 0),
            Op::Sort(sort) if operands[0].dtype.is_float() => {
                let (axis, descending) = (sort.axis, sort.descending);
                (Move::Sort { axis, descending }, argsort_scratch_bytes(sizes(0)[axis], threads))
            }
            Op::Pool(pool) if (1..=2).contains(&pool.windows.len()) => {
                let bytes = pool_gradient_scratch_bytes(pool.op, &pool.windows, sizes(0), threads);
                let scratch = if pool.direction == Direction::Forward { 0 } else { bytes };
                (Move::Pool(pool.clone()), scratch)
            }
            _ => return None,
        };
        Some(Moving { what, operands, target, scratch, site: site.clone() })
    }
}

impl Kernel for Moving {
    fn scratch_bytes(&self) -> usize {
        self.scratch
    }

    unsafe fn run(&self, cpu: &Cpu, table: &Table, scratch: *mut u8) -> Result<(), BackendError> {
        // SAFETY: windows and targets were made for these buffers; the plan keeps a target apart from the operands, but
        // for one that `Op::replaced_operand` names, which is not read where it is the target; the scratch is as large as was asked for.
        let (mut to, scratch) =
            unsafe { (self.target.view(table), std::slice::from_raw_parts_mut(scratch, self.scratch)) };
        // SAFETY: as above.
        let from = |i: usize| unsafe { self.operands[i].view(table) };
        let done: Result<(), OutOfRange> = match &self.what {
            Move::Copy => {
                copy(cpu, &from(0), &mut to);
                Ok(())
            }
            Move::Concat(axis) => {
                let parts: Vec<_> = (0..self.operands.len()).map(from).collect();
                concat(cpu, &parts, *axis, &mut to);
                Ok(())
            }
            Move::Pad { axis, start, step } => {
                pad(cpu, &from(0), *axis, *start, *step, &mut to);
                Ok(())
            }
            Move::GatherRows => gather_rows(cpu, &from(0), &from(1), &mut to),
            Move::GatherAlong(axis) => gather_along(cpu, &from(0), &from(1), *axis, &mut to),
            Move::AddRows => {
                let onto = self.operands.len() == 3;
                if onto && table.get(self.operands[2].window.root) != table.get(self.target.value) {
                    copy(cpu, &from(2), &mut to);
                }
                scatter_add_rows(cpu, &from(0), &from(1), onto, &mut to, scratch)
            }
            Move::AddAlong(axis) => scatter_add_along(cpu, &from(0), &from(1), *axis, &mut to, scratch),
            Move::Write(axis) => {
                if table.get(self.operands[0].window.root) != table.get(self.target.value) {
                    copy(cpu, &from(0), &mut to);
                }
                // SAFETY: a position is one i32 in a buffer of its own.
                let position = unsafe { table.get(self.operands[2].window.root).cast::<i32>().read() };
                write(cpu, &from(1), position, *axis, &mut to)
            }
            Move::Sort { axis, descending } => {
                argsort(cpu, &from(0), *axis, *descending, &mut to, scratch);
                Ok(())
            }
            Move::Pool(spec) => {
                match spec.direction {
                    Direction::Forward => pool(cpu, spec.op, &spec.windows, &from(0), &mut to),
                    Direction::InputGradient | Direction::WeightGradient => {
                        pool_gradient(cpu, spec.op, &spec.windows, &from(0), &from(1), &mut to, scratch);
                    }
                }
                Ok(())
            }
        };
        done.map_err(|error| BackendError { message: error.to_string(), site: Some(self.site.clone()) })
    }
}
