//! The memory of a session: one mapping for the inputs of all programs, one arena, one scratch.

use std::collections::BTreeMap;
use std::sync::Arc;

use memmap2::MmapMut;
use tenon_graph::backend::{Allocation, BackendError};
use tenon_graph::graph::Value;
use tenon_graph::lower::Program;
use tenon_graph::lower::memory::{ALIGNMENT, Place};
use tenon_graph::op::Role;

/// Which mapping an address is in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Region {
    /// Buffers of inputs.
    Inputs,
    /// The arena.
    Arena,
}

/// The place of a buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Address {
    /// The mapping.
    pub region: Region,
    /// Bytes from its start.
    pub offset: usize,
}

/// A named input buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InputBuffer {
    /// Where it starts in the mapping of inputs.
    pub offset: usize,
    /// Its bytes.
    pub bytes: usize,
}

/// All memory of a session. Pages are zero until written, and cost nothing until touched.
pub struct Memory {
    inputs: MmapMut,
    arena: MmapMut,
    scratch: MmapMut,
    /// Input buffers by name.
    pub by_name: BTreeMap<Arc<str>, InputBuffer>,
    /// The sizes by purpose.
    pub allocation: Allocation,
}

fn map(what: &str, bytes: usize) -> Result<MmapMut, BackendError> {
    // An empty mapping is refused by the operating system.
    let mapping = MmapMut::map_anon(bytes.max(1)).map_err(|e| BackendError {
        message: format!("cannot allocate {bytes} bytes for {what}: {e}; a smaller `memory` or batch needs less"),
        site: None,
    })?;
    // Large pages spare the first touch of each small one; a system without them works as well.
    #[cfg(target_os = "linux")]
    let _ = mapping.advise(memmap2::Advice::HugePage);
    Ok(mapping)
}

impl Memory {
    /// Maps what `programs` need together.
    ///
    /// # Errors
    /// The operating system has no such memory.
    pub fn new(programs: &[Arc<Program>], scratch: usize) -> Result<Memory, BackendError> {
        let allocation = Allocation::of(programs, scratch);
        let mut sizes: BTreeMap<(Role, Arc<str>), usize> = BTreeMap::new();
        for (_, name, role, ty) in programs.iter().flat_map(|p| p.graph.inputs()) {
            let bytes = sizes.entry((role, name.clone())).or_insert(0);
            *bytes = ty.bytes().max(*bytes);
        }
        let mut by_name = BTreeMap::new();
        let mut offset = 0;
        for ((_, name), bytes) in sizes {
            by_name.insert(name, InputBuffer { offset, bytes });
            offset += bytes.next_multiple_of(ALIGNMENT);
        }
        Ok(Memory {
            inputs: map("weights, optimizer state and batches", offset)?,
            arena: map("activations", allocation.arena)?,
            scratch: map("working memory", allocation.scratch)?,
            by_name,
            allocation,
        })
    }

    /// The address of a stored value, or of a view of a whole one, of one of the programs.
    pub fn address(&self, program: &Program, value: Value) -> Option<Address> {
        Some(match program.place(value)? {
            Place::Arena(offset) => Address { region: Region::Arena, offset },
            Place::Input(input) => {
                let name = program.graph.inputs().find(|(v, ..)| *v == input)?.1;
                Address { region: Region::Inputs, offset: self.by_name.get(name)?.offset }
            }
        })
    }

    /// The first byte at an address.
    pub fn pointer(&mut self, address: Address) -> *mut u8 {
        let region = match address.region {
            Region::Inputs => &mut self.inputs,
            Region::Arena => &mut self.arena,
        };
        region[address.offset..].as_mut_ptr()
    }

    /// The working memory.
    pub fn scratch(&mut self) -> *mut u8 {
        self.scratch.as_mut_ptr()
    }

    /// Bytes at an address.
    pub fn bytes(&self, address: Address, count: usize) -> &[u8] {
        let region = match address.region {
            Region::Inputs => &self.inputs,
            Region::Arena => &self.arena,
        };
        &region[address.offset..address.offset + count]
    }

    /// The buffer of an input.
    pub fn input(&self, name: &str) -> Option<&[u8]> {
        let buffer = self.by_name.get(name)?;
        Some(&self.inputs[buffer.offset..buffer.offset + buffer.bytes])
    }

    /// The buffer of an input, to be written.
    pub fn input_mut(&mut self, name: &str) -> Option<&mut [u8]> {
        let buffer = self.by_name.get(name)?;
        Some(&mut self.inputs[buffer.offset..buffer.offset + buffer.bytes])
    }
}
