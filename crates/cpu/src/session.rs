//! Programs with their memory, ready to run.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tenon_graph::backend::{Allocation, Backend, BackendError, NonFinite, Session};
use tenon_graph::graph::{Graph, Value};
use tenon_graph::lower::isolate::{Isolated, isolate, name};
use tenon_graph::lower::memory::ALIGNMENT;
use tenon_graph::lower::{Program, lower};
use tenon_graph::op::{Op, Role, Source};
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
        let kernels: Vec<_> = program.steps.iter().map(|step| prepare(&self.cpu, program, step)).collect();
        working(&kernels) + kept(&kernels)
    }

    fn estimate_seconds(&self, program: &Program) -> f64 {
        self.speed().estimate(program)
    }

    fn session(&self, programs: Vec<Arc<Program>>) -> Result<Box<dyn Session>, BackendError> {
        Ok(Box::new(CpuSession::new(self.cpu.clone(), programs)?))
    }
}

/// Bytes of scratch that the kernels of a program take turns with; behind it is what they keep.
fn working(kernels: &[Box<dyn Kernel>]) -> usize {
    kernels.iter().map(|k| k.scratch_bytes()).max().unwrap_or(0).next_multiple_of(ALIGNMENT)
}

/// Bytes that the kernels of a program keep from one run to the next.
fn kept(kernels: &[Box<dyn Kernel>]) -> usize {
    kernels.iter().map(|k| k.kept_bytes().next_multiple_of(ALIGNMENT)).sum()
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
    /// The program that ran last, if nobody has written the weights since: what it computes once is still there.
    fresh: Option<usize>,
}

impl CpuSession {
    fn new(cpu: Arc<Cpu>, programs: Vec<Arc<Program>>) -> Result<CpuSession, BackendError> {
        let prepared: Vec<Vec<Box<dyn Kernel>>> =
            programs.iter().map(|p| p.steps.iter().map(|step| prepare(&cpu, p, step)).collect()).collect();
        let scratch = prepared.iter().map(|kernels| working(kernels) + kept(kernels)).max().unwrap_or(0);
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
        Ok(CpuSession { cpu, memory, programs, fresh: None })
    }

    /// The first step that has to run. Where that is not the first of all, what is computed once is there; else it is now
    /// being made, and what kernels keep with it.
    fn begin(&mut self, program: usize) -> Result<usize, BackendError> {
        if self.fresh != Some(program) {
            self.fresh = None;
            for step in 0..self.programs[program].program.once {
                self.run_step(program, step)?;
            }
            let prepared = &mut self.programs[program];
            let mut at = working(&prepared.kernels);
            for kernel in &mut prepared.kernels {
                // SAFETY: the table leads to the buffers that the program was planned with, and the steps that make what
                // kernels may keep have run; the scratch has room for what all of them keep behind where they work.
                unsafe { kernel.keep(&self.cpu, &prepared.table, self.memory.scratch().add(at)) };
                at += kernel.kept_bytes().next_multiple_of(ALIGNMENT);
            }
            self.fresh = Some(program);
        }
        Ok(self.programs[program].program.once)
    }

    fn run_step(&mut self, program: usize, step: usize) -> Result<(), BackendError> {
        let scratch = self.memory.scratch();
        let prepared = &self.programs[program];
        // SAFETY: the table leads to buffers of the sizes that the program was planned with, which no other step uses
        // at this time; the scratch is as large as the largest kernel of the session asks for.
        unsafe { prepared.kernels[step].run(&self.cpu, &prepared.table, scratch) }
    }

    /// The bytes of a stored value.
    fn stored(&self, program: &Program, value: Value) -> &[u8] {
        let address = self.memory.address(program, value).expect("a stored value");
        self.memory.bytes(address, program.graph.ty(value).bytes())
    }
}

impl Session for CpuSession {
    fn run(&mut self, program: usize) -> Result<(), BackendError> {
        for step in self.begin(program)?..self.programs[program].kernels.len() {
            self.run_step(program, step)?;
        }
        Ok(())
    }

    fn run_checked(&mut self, program: usize) -> Result<Option<NonFinite>, BackendError> {
        let steps = self.programs[program].program.clone();
        let graph = &steps.graph;
        let mut blamed = Blamed::new();
        let mut worst: Option<(Class, NonFinite)> = None;
        self.begin(program)?;
        for (index, step) in steps.steps.iter().enumerate() {
            let isolated = isolate(&steps, step);
            // The step may write over what it reads.
            let read: Vec<Vec<u8>> = isolated.reads.iter().map(|v| self.stored(&steps, *v).to_vec()).collect();
            self.run_step(program, index)?;
            let made = step.writes.iter().filter_map(|v| Some((*v, harmed(graph, *v, self.stored(&steps, *v))?)));
            let made: Vec<(Value, NonFinite)> = made.collect();
            if made.is_empty() {
                continue;
            }
            for (value, bytes) in isolated.reads.iter().zip(&read) {
                let is_input = matches!(graph.op_of(*value), Op::Source(_));
                if let Some(found) = harmed(graph, *value, bytes).filter(|_| is_input) {
                    blamed.entry(*value).or_insert(found);
                }
            }
            // Where there is no memory to look inside the step, what it stored is named.
            let inside = trace(&self.cpu, isolated, &read, &blamed);
            for (value, found) in made {
                let class = worst_of(self.stored(&steps, value), graph.ty(value));
                if worst.as_ref().is_none_or(|(worst, _)| class > *worst) {
                    worst = Some((class, found.clone()));
                }
                match &inside {
                    Ok(inside) => blamed.extend(inside.get(&name(value)).map(|origin| (value, origin.clone()))),
                    Err(_) => drop(blamed.insert(value, found)),
                }
            }
        }
        let results = graph.outputs.iter().map(|(_, v)| v).chain(graph.updates.iter().map(|(_, v)| v));
        // An infinity that no result comes from was meant: a mask. Where all were meant, the worst value is named.
        let origin = results.filter_map(|v| blamed.remove(&root(graph, *v))).next();
        Ok(origin.or(worst.map(|(_, found)| found)))
    }

    fn run_timed(&mut self, program: usize) -> Result<Vec<f64>, BackendError> {
        let steps = self.begin(program)?..self.programs[program].kernels.len();
        let mut seconds = vec![0.0; steps.start];
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
        let is_batch = |program: &Prepared| {
            let role = program.program.graph.inputs().find(|(_, n, ..)| &***n == name).map(|(_, _, role, _)| role);
            role.is_none_or(|role| !matches!(role, Role::Parameter | Role::State))
        };
        if !self.programs.iter().all(is_batch) {
            self.fresh = None;
        }
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

/// What a float is, in ascending order of harm.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    Finite,
    Infinite,
    NaN,
}

impl Class {
    fn of(x: f32) -> Class {
        match x {
            x if x.is_nan() => Class::NaN,
            x if x.is_infinite() => Class::Infinite,
            _ => Class::Finite,
        }
    }
}

/// The floats of a buffer; none for other types.
fn floats<'a>(bytes: &'a [u8], ty: &Type) -> Box<dyn Iterator<Item = f32> + 'a> {
    match ty.dtype {
        DType::F32 => Box::new(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))),
        DType::BF16 => Box::new(bytes.chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32())),
        DType::I32 | DType::U32 | DType::U8 | DType::Bool => Box::new(std::iter::empty()),
    }
}

/// The worst element of a buffer.
fn worst_of(bytes: &[u8], ty: &Type) -> Class {
    floats(bytes, ty).map(Class::of).max().unwrap_or(Class::Finite)
}

/// For values that are not finite and were not meant to be: the first element that made them or their operands so.
type Blamed = HashMap<Value, NonFinite>;

/// The first element of a value that is not finite, with where the value was made.
fn harmed(graph: &Graph, value: Value, bytes: &[u8]) -> Option<NonFinite> {
    worse(graph, value, bytes, Class::Finite)
}

/// The first element of a value that is worse than `operands`, with where the value was made.
fn worse(graph: &Graph, value: Value, bytes: &[u8], operands: Class) -> Option<NonFinite> {
    let (node, ty) = (graph.producer(value), graph.ty(value));
    let (index, element) = floats(bytes, ty).enumerate().find(|(_, x)| Class::of(*x) > operands)?;
    let op = match &graph.node(node).op {
        Op::Source(Source::Input { name, role, .. }) => format!("{} {name}", role.name()),
        op => op.name().to_owned(),
    };
    let (site, phase) = (graph.site(node).clone(), graph.node(node).phase);
    Some(NonFinite { op, site, phase, ty: ty.clone(), index, value: element })
}

/// Runs a step one node after the other, from what it read: for each result that is not finite, by its name, where that began.
/// Fusing changes no bit, so it meets what the step met.
fn trace(
    cpu: &Arc<Cpu>,
    isolated: Isolated,
    read: &[Vec<u8>],
    before: &Blamed,
) -> Result<HashMap<String, NonFinite>, BackendError> {
    let program = Arc::new(lower(isolated.graph, false));
    let graph = &program.graph;
    let mut session = CpuSession::new(cpu.clone(), vec![program.clone()])?;
    let mut classes = vec![Class::Finite; graph.value_count()];
    let mut blamed = Blamed::new();
    for (value, bytes) in isolated.reads.iter().zip(read) {
        let name = name(*value);
        session.input_mut(&name).expect("an input of the graph").copy_from_slice(bytes);
        let input = graph.input(&name).expect("as above");
        classes[input.index()] = worst_of(bytes, graph.ty(input));
        blamed.extend(before.get(value).map(|origin| (input, origin.clone())));
    }
    session.begin(0)?;
    for (index, step) in program.steps.iter().enumerate() {
        session.run_step(0, index)?;
        for node in &step.nodes {
            let operands = || graph.node(*node).inputs.iter().map(|v| (class(graph, &classes, *v), root(graph, *v)));
            let class = operands().map(|(class, _)| class).max().unwrap_or(Class::Finite);
            // What is not finite comes from the worst operand, unless that was meant to be what it is.
            let inherited = operands().filter(|(class, v)| *class > Class::Finite && blamed.contains_key(v));
            let inherited = inherited.reduce(|a, b| if b.0 > a.0 { b } else { a }).map(|(_, v)| blamed[&v].clone());
            for value in graph.node(*node).outputs() {
                let bytes = session.stored(&program, value);
                classes[value.index()] = worst_of(bytes, graph.ty(value));
                if classes[value.index()] > Class::Finite {
                    let origin = inherited.clone().or_else(|| worse(graph, value, bytes, class));
                    blamed.extend(origin.map(|origin| (value, origin)));
                }
            }
        }
    }
    let results = graph.outputs.iter();
    Ok(results.filter_map(|(name, v)| Some((name.to_string(), blamed.remove(&root(graph, *v))?))).collect())
}

/// The value that this one is a view of, or itself.
fn root(graph: &Graph, value: Value) -> Value {
    let node = graph.node(graph.producer(value));
    match &node.op {
        Op::View(_) => root(graph, node.inputs[0]),
        _ => value,
    }
}

/// The class of an operand: that of the stored value that it is a view of.
fn class(graph: &Graph, stored: &[Class], value: Value) -> Class {
    let node = graph.node(graph.producer(value));
    match &node.op {
        Op::Source(Source::Constant { value, .. }) => Class::of(*value as f32),
        Op::View(_) => node.inputs.iter().map(|v| class(graph, stored, *v)).max().unwrap_or(Class::Finite),
        _ => stored[value.index()],
    }
}

/// The processor's own name, where the system tells it.
fn processor_name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or_else(|| std::env::consts::ARCH.into(), |(_, name)| name.trim().into())
}
