//! Programs with their memory, ready to run.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tenon_graph::backend::{Allocation, Backend, BackendError, NonFinite, Session};
use tenon_graph::graph::Value;
use tenon_graph::lower::Program;
use tenon_graph::types::{DType, Type};

use crate::dispatch::{Kernel, prepare};
use crate::isa::{Cpu, IsaError};
use crate::memory::Memory;
use crate::speed::Speed;

/// For how long each rate is measured where nobody measured before: enough for a few hundred of the shortest programs.
const QUICK: Duration = Duration::from_millis(4);

/// This machine's processor as a backend.
pub struct CpuBackend {
    cpu: Arc<Cpu>,
    speed: OnceLock<Speed>,
}

impl CpuBackend {
    /// The processor with `threads` worker threads.
    ///
    /// # Errors
    /// `TENON_ISA` asks for an instruction set that the processor lacks.
    pub fn new(threads: usize) -> Result<CpuBackend, IsaError> {
        Ok(CpuBackend::with(Cpu::new(threads)?))
    }

    /// The processor as given.
    pub fn with(cpu: Cpu) -> CpuBackend {
        CpuBackend { cpu: Arc::new(cpu), speed: OnceLock::new() }
    }

    /// This machine's speed: what [`CpuBackend::set_speed`] gave, or else measured once, in some tenths of a second.
    pub fn speed(&self) -> &Speed {
        self.speed.get_or_init(|| Speed::measure(self, QUICK))
    }

    /// Gives a speed that was measured earlier; one that is known already stays.
    pub fn set_speed(&self, speed: Speed) {
        let _ = self.speed.set(speed);
    }
}

impl Backend for CpuBackend {
    fn describe(&self) -> String {
        let threads = self.cpu.pool.threads();
        let plural = if threads == 1 { "" } else { "s" };
        format!("{}, {}, {threads} thread{plural}", processor_name(), self.cpu.isa().name())
    }

    fn scratch_bytes(&self, program: &Program) -> usize {
        let kernels = program.steps.iter().map(|step| prepare(&self.cpu, program, step));
        kernels.map(|k| k.scratch_bytes()).max().unwrap_or(0)
    }

    fn estimate_seconds(&self, program: &Program) -> f64 {
        self.speed().estimate(program)
    }

    fn session(&self, programs: Vec<Arc<Program>>) -> Result<Box<dyn Session>, BackendError> {
        let prepared: Vec<Vec<Box<dyn Kernel>>> =
            programs.iter().map(|p| p.steps.iter().map(|step| prepare(&self.cpu, p, step)).collect()).collect();
        let scratch = prepared.iter().flatten().map(|k| k.scratch_bytes()).max().unwrap_or(0);
        let memory = Memory::new(&programs, scratch)?;
        let programs = programs
            .into_iter()
            .zip(prepared)
            .map(|(program, kernels)| {
                let pointers = (0..program.graph.value_count()).map(Value::new);
                let pointers = pointers
                    .map(|v| program.places[v.index()].and_then(|_| memory.address(&program, v)))
                    .map(|address| address.map_or(std::ptr::null_mut(), |a| memory.pointer(a)))
                    .collect();
                Prepared { program, kernels, table: Table(pointers) }
            })
            .collect();
        Ok(Box::new(CpuSession { cpu: self.cpu.clone(), memory, programs }))
    }
}

/// The address of every stored value, by value index; null for values without a buffer.
pub struct Table(Vec<*mut u8>);

impl Table {
    /// The first byte of the buffer of a stored value.
    pub fn get(&self, value: Value) -> *mut u8 {
        self.0[value.index()]
    }
}

// SAFETY: the pointers lead into the mappings of the session that owns the table; only its `&mut` methods follow them.
unsafe impl Send for Table {}
// SAFETY: as above; sharing the table gives addresses only.
unsafe impl Sync for Table {}

struct Prepared {
    program: Arc<Program>,
    kernels: Vec<Box<dyn Kernel>>,
    table: Table,
}

struct CpuSession {
    cpu: Arc<Cpu>,
    memory: Memory,
    programs: Vec<Prepared>,
}

impl CpuSession {
    fn run_step(&mut self, program: usize, step: usize) -> Result<(), BackendError> {
        let scratch = self.memory.scratch();
        let prepared = &self.programs[program];
        // SAFETY: the table leads to buffers of the sizes that the program was planned with, which no other step uses
        // at this time; the scratch is as large as the largest kernel of the session asks for.
        unsafe { prepared.kernels[step].run(&self.cpu, &prepared.table, scratch) }
    }

    /// The first element of a stored value that is not finite.
    fn non_finite(&self, program: &Program, value: Value) -> Option<(usize, f32)> {
        let ty = program.graph.ty(value);
        let bytes = self.memory.bytes(self.memory.address(program, value)?, ty.bytes());
        let float = |i: usize| match ty.dtype {
            DType::F32 => f32::from_le_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]]),
            _ => f32::from_bits(u32::from(u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]])) << 16),
        };
        let mut elements = (0..if ty.dtype.is_float() { ty.elements() } else { 0 }).map(|i| (i, float(i)));
        elements.find(|(_, x)| !x.is_finite())
    }
}

impl Session for CpuSession {
    fn run(&mut self, program: usize) -> Result<(), BackendError> {
        for step in 0..self.programs[program].kernels.len() {
            self.run_step(program, step)?;
        }
        Ok(())
    }

    fn run_checked(&mut self, program: usize) -> Result<Option<NonFinite>, BackendError> {
        let steps = self.programs[program].program.clone();
        for (index, step) in steps.steps.iter().enumerate() {
            self.run_step(program, index)?;
            for value in &step.writes {
                if let Some((index, element)) = self.non_finite(&steps, *value) {
                    let node = steps.graph.producer(*value);
                    return Ok(Some(NonFinite {
                        op: steps.graph.node(node).op.name(),
                        site: steps.graph.site(node).clone(),
                        phase: steps.graph.node(node).phase,
                        ty: steps.graph.ty(*value).clone(),
                        index,
                        value: element,
                    }));
                }
            }
        }
        Ok(None)
    }

    fn run_timed(&mut self, program: usize) -> Result<Vec<f64>, BackendError> {
        let steps = 0..self.programs[program].kernels.len();
        let mut seconds = Vec::with_capacity(steps.len());
        for step in steps {
            let began = Instant::now();
            self.run_step(program, step)?;
            seconds.push(began.elapsed().as_secs_f64());
        }
        Ok(seconds)
    }

    fn input(&self, name: &str) -> Option<&[u8]> {
        self.memory.input(name)
    }

    fn input_mut(&mut self, name: &str) -> Option<&mut [u8]> {
        self.memory.input_mut(name)
    }

    fn output(&self, program: usize, name: &str) -> Option<(&Type, &[u8])> {
        let program = &self.programs[program].program;
        let value = program.graph.output(name)?;
        let ty = program.graph.ty(value);
        Some((ty, self.memory.bytes(self.memory.address(program, value)?, ty.bytes())))
    }

    fn allocation(&self) -> &Allocation {
        &self.memory.allocation
    }
}

/// The processor's own name, where the system tells it.
fn processor_name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or_else(|| std::env::consts::ARCH.into(), |(_, name)| name.trim().into())
}
