//! From the steps of a program to kernels: which one runs a step, on which windows, with how much scratch.

mod attention;
mod conv;
mod dot;
mod experts;
mod interpreted;
mod moves;
mod rows;

use smallvec::SmallVec;
use tenon_graph::backend::BackendError;
use tenon_graph::graph::{Graph, Value};
use tenon_graph::lower::access::Strided;
use tenon_graph::lower::{Program, Step, Work};
use tenon_graph::op::Op;
use tenon_graph::types::DType;

use crate::isa::Cpu;
use crate::kernels::{View, ViewMut};
use crate::session::Table;

/// A step, ready to run.
pub trait Kernel: Send {
    /// Bytes of scratch that it needs.
    fn scratch_bytes(&self) -> usize {
        0
    }

    /// Bytes that it keeps from one run to the next, made of operands that are fixed.
    fn kept_bytes(&self) -> usize {
        0
    }

    /// Makes what it keeps, before it runs for the first time and whenever fixed operands have changed.
    ///
    /// # Safety
    /// As for [`Kernel::run`]; `kept` is aligned to a cache line, valid for [`Kernel::kept_bytes`] until this is called
    /// again, and written by nobody else until then or the last run.
    unsafe fn keep(&mut self, _cpu: &Cpu, _table: &Table, _kept: *mut u8) {}

    /// Runs it.
    ///
    /// # Errors
    /// Mistakes in the data that only show now, such as an index outside a table.
    ///
    /// # Safety
    /// The table leads to the buffers that the program of this step was planned with, which nobody else uses meanwhile;
    /// `scratch` is aligned to a cache line and valid for [`Kernel::scratch_bytes`].
    unsafe fn run(&self, cpu: &Cpu, table: &Table, scratch: *mut u8) -> Result<(), BackendError>;
}

/// What a kernel reads.
#[derive(Clone)]
pub struct Operand {
    window: Strided,
    dtype: DType,
}

/// The row-major buffer of a value that a kernel writes.
#[derive(Clone)]
pub struct Target {
    value: Value,
    dtype: DType,
    sizes: SmallVec<[usize; 4]>,
    strides: SmallVec<[usize; 4]>,
}

impl Operand {
    fn new(graph: &Graph, window: &Strided) -> Operand {
        Operand { window: window.clone(), dtype: graph.ty(window.root).dtype }
    }

    /// # Safety
    /// The table leads to the buffers that the window was made for, which nobody writes for `'a`.
    unsafe fn view<'a>(&self, table: &'a Table) -> View<'a> {
        // SAFETY: the window stays inside its buffer, as the caller vouches.
        unsafe {
            let first = table.get(self.window.root).add(self.window.offset * self.dtype.size());
            View::new(first, self.dtype, &self.window.sizes, &self.window.strides)
        }
    }
}

impl Target {
    fn new(graph: &Graph, value: Value) -> Target {
        let whole = Strided::whole(graph, value);
        Target { value, dtype: graph.ty(value).dtype, sizes: whole.sizes, strides: whole.strides }
    }

    /// # Safety
    /// The table leads to the buffer of the value, which nobody else uses for `'a`.
    unsafe fn view<'a>(&self, table: &'a Table) -> ViewMut<'a> {
        // SAFETY: the whole buffer, as the caller vouches.
        unsafe { ViewMut::new(table.get(self.value), self.dtype, &self.sizes, &self.strides) }
    }
}

/// The kernel of a step.
pub fn prepare(cpu: &Cpu, program: &Program, step: &Step) -> Box<dyn Kernel> {
    let graph = &program.graph;
    match &step.work {
        Work::Fused(fused) => Box::new(rows::Rows::new(cpu, fused, graph)),
        Work::Copy { source, target } => {
            Box::new(moves::Moving::copy(Operand::new(graph, source), Target::new(graph, *target)))
        }
        Work::Kernel { node, operands } => {
            let data = graph.node(*node);
            let targets: Vec<Target> = data.outputs().map(|v| Target::new(graph, v)).collect();
            let windows: Vec<Operand> = operands.iter().map(|w| Operand::new(graph, w)).collect();
            match &data.op {
                Op::Dot(dot) => Box::new(dot::Product::new(cpu, dot, &windows, targets[0].clone())),
                Op::Conv(conv) => {
                    let keep = program.is_fixed(windows[1].window.root);
                    Box::new(conv::Convolving::new(cpu, conv, &windows, &targets[0], keep))
                }
                Op::Composite(composite) => match composite.def.name {
                    "attention" => Box::new(attention::Forward::new(cpu, &composite.attrs, &windows, &targets)),
                    "attention_gradient" => {
                        Box::new(attention::Backward::new(cpu, &composite.attrs, &windows, &targets))
                    }
                    "expert_matmul" | "expert_outer" => {
                        let site = graph.site(*node);
                        Box::new(experts::Mixture::new(cpu, composite, windows, targets[0].clone(), site))
                    }
                    name => unreachable!("{name} is lowered by its expansion"),
                },
                op => match moves::Moving::new(cpu, op, windows, targets[0].clone(), graph.site(*node)) {
                    Some(kernel) => Box::new(kernel),
                    None => Box::new(interpreted::Interpreted::new(program, step)),
                },
            }
        }
    }
}
