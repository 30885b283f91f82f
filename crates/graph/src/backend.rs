//! What runs programs: the seam between the graph and a machine.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::diagnostic::Site;
use crate::lower::Program;
use crate::lower::memory::ALIGNMENT;
use crate::op::Role;
use crate::types::Type;

/// A machine that runs programs.
pub trait Backend: Send + Sync {
    /// What it is, for reports: processor, instruction set, threads.
    fn describe(&self) -> String;

    /// Bytes of working memory that `program` needs beside its arena.
    fn scratch_bytes(&self, program: &Program) -> usize;

    /// About how long one run of `program` takes on this machine, in seconds, from a short measurement of its speed.
    fn estimate_seconds(&self, program: &Program) -> f64;

    /// Allocates what `programs` need and gets ready to run them. Inputs of the same name share a buffer; all programs
    /// share one arena and one scratch. Buffers start as zeros.
    fn session(&self, programs: Vec<Arc<Program>>) -> Result<Box<dyn Session>, BackendError>;
}

/// Programs with their memory.
pub trait Session: Send {
    /// Runs a program.
    fn run(&mut self, program: usize) -> Result<(), BackendError>;

    /// Runs a program step by step and reports the first operation that makes infinity or NaN of operands that are free
    /// of it. Where there is none, an input is to blame.
    fn run_checked(&mut self, program: usize) -> Result<Option<NonFinite>, BackendError>;

    /// Runs a program and returns the seconds that each of its steps took.
    fn run_timed(&mut self, program: usize) -> Result<Vec<f64>, BackendError>;

    /// The buffer of an input; it is as large as the largest program's.
    fn input(&self, name: &str) -> Option<&[u8]>;

    /// The buffer of an input, to be written.
    fn input_mut(&mut self, name: &str) -> Option<&mut [u8]>;

    /// A result of a program, valid until the next run of any program.
    fn output(&self, program: usize, name: &str) -> Option<(&Type, &[u8])>;

    /// What was allocated.
    fn allocation(&self) -> &Allocation;
}

/// The memory of a session, in bytes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Allocation {
    /// Input buffers by role.
    pub inputs: Vec<(Role, usize)>,
    /// The arena.
    pub arena: usize,
    /// Working memory of kernels.
    pub scratch: usize,
}

impl Allocation {
    /// What `programs` need together on a machine that needs `scratch` bytes beside.
    pub fn of<P: Borrow<Program>>(programs: &[P], scratch: usize) -> Allocation {
        let buffers = input_buffers(programs);
        let inputs = Role::ALL.into_iter().map(|role| {
            let of_role = buffers.iter().filter(|b| b.role == role);
            (role, of_role.map(|b| b.bytes.next_multiple_of(ALIGNMENT)).sum())
        });
        Allocation {
            inputs: inputs.collect(),
            arena: programs.iter().map(|p| p.borrow().arena_bytes).max().unwrap_or(0),
            scratch,
        }
    }

    /// The bytes of the inputs of one role.
    pub fn of_role(&self, role: Role) -> usize {
        self.inputs.iter().filter(|(r, _)| *r == role).map(|(_, bytes)| bytes).sum()
    }

    /// All bytes.
    pub fn total(&self) -> usize {
        self.inputs.iter().map(|(_, bytes)| bytes).sum::<usize>() + self.arena + self.scratch
    }
}

/// A buffer that several programs may share.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InputBuffer {
    /// The name of the inputs that it holds.
    pub name: Arc<str>,
    /// What it is for: the role that the first program with such an input gives it.
    pub role: Role,
    /// The bytes of the largest of the inputs.
    pub bytes: usize,
}

/// The input buffers of `programs`, by role and name.
pub fn input_buffers<P: Borrow<Program>>(programs: &[P]) -> Vec<InputBuffer> {
    let mut by_name: BTreeMap<Arc<str>, (Role, usize)> = BTreeMap::new();
    for (_, name, role, ty) in programs.iter().flat_map(|p| p.borrow().graph.inputs()) {
        let (_, bytes) = by_name.entry(name.clone()).or_insert((role, 0));
        *bytes = ty.bytes().max(*bytes);
    }
    let buffers = by_name.into_iter().map(|(name, (role, bytes))| InputBuffer { name, role, bytes });
    let mut buffers: Vec<InputBuffer> = buffers.collect();
    buffers.sort_by_key(|b| b.role);
    buffers
}

/// Where a value stopped being finite.
#[derive(Clone, PartialEq, Debug)]
pub struct NonFinite {
    /// The operation, or the input with its role.
    pub op: String,
    /// Where it was built.
    pub site: Site,
    /// Forward, backward or update.
    pub phase: crate::graph::Phase,
    /// The type of the value.
    pub ty: Type,
    /// The position of the first such element, in row-major order.
    pub index: usize,
    /// The element.
    pub value: f32,
}

/// Why a backend cannot go on.
#[derive(Clone, PartialEq, Debug)]
pub struct BackendError {
    /// What is wrong.
    pub message: String,
    /// Where the operation was built, if one is to blame.
    pub site: Option<Site>,
}

impl fmt::Display for BackendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.site {
            Some(site) if site.line > 0 => write!(f, "\n  --> {site}, in {}", site.path),
            _ => Ok(()),
        }
    }
}

impl std::error::Error for BackendError {}
