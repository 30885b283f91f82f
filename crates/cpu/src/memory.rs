//! The memory of a session: one mapping for the inputs of all programs, one arena, one scratch.

use std::collections::BTreeMap;
use std::sync::Arc;

use memmap2::{MmapMut, MmapRaw};
use tenon_graph::backend::{Allocation, BackendError, input_buffers};
use tenon_graph::graph::Value;
use tenon_graph::lower::Program;
use tenon_graph::lower::memory::{ALIGNMENT, Place};

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
pub struct Slot {
    /// Where it starts in the mapping of inputs.
    pub offset: usize,
    /// Its bytes.
    pub bytes: usize,
}

/// All memory of a session. Pages are zero until written, and cost nothing until touched.
pub struct Memory {
    inputs: Mapping,
    arena: Mapping,
    scratch: Mapping,
    /// Input buffers by name.
    pub by_name: BTreeMap<Arc<str>, Slot>,
    /// The sizes by purpose.
    pub allocation: Allocation,
}

/// A large page of the common processors.
const LARGE_PAGE: usize = 2 << 20;

/// Memory that starts at a large page. Translating addresses of small pages costs a matrix product that jumps between
/// them up to a third of its speed.
struct Mapping {
    whole: MmapRaw,
    start: usize,
    bytes: usize,
}

impl Mapping {
    fn new(what: &str, bytes: usize) -> Result<Mapping, BackendError> {
        // What is left of the first and the last page is never touched.
        let mapping = MmapMut::map_anon(bytes.saturating_add(LARGE_PAGE)).map_err(|e| BackendError {
            message: format!("cannot allocate {bytes} bytes for {what}: {e}; a smaller `memory` or batch needs less"),
            site: None,
        })?;
        // A system without large pages works as well.
        #[cfg(target_os = "linux")]
        let _ = mapping.advise(memmap2::Advice::HugePage);
        let start = mapping.as_ptr().align_offset(LARGE_PAGE);
        Ok(Mapping { whole: mapping.into(), start, bytes })
    }

    fn as_mut_ptr(&self) -> *mut u8 {
        self.whole.as_mut_ptr().wrapping_add(self.start)
    }
}

impl Memory {
    /// Maps what `programs` need together.
    ///
    /// # Errors
    /// The operating system has no such memory.
    pub fn new(programs: &[Arc<Program>], scratch: usize) -> Result<Memory, BackendError> {
        let allocation = Allocation::of(programs, scratch);
        let mut by_name = BTreeMap::new();
        let mut offset = 0;
        for buffer in input_buffers(programs) {
            by_name.insert(buffer.name, Slot { offset, bytes: buffer.bytes });
            offset += buffer.bytes.next_multiple_of(ALIGNMENT);
        }
        Ok(Memory {
            inputs: Mapping::new("weights, optimizer state and batches", offset)?,
            arena: Mapping::new("activations", allocation.arena)?,
            scratch: Mapping::new("working memory", allocation.scratch)?,
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

    fn region(&self, region: Region) -> &Mapping {
        match region {
            Region::Inputs => &self.inputs,
            Region::Arena => &self.arena,
        }
    }

    /// The first byte at an address. The pointer is good as long as this memory is, for its whole mapping.
    pub fn pointer(&self, address: Address) -> *mut u8 {
        self.region(address.region).as_mut_ptr().wrapping_add(address.offset)
    }

    /// The working memory.
    pub fn scratch(&self) -> *mut u8 {
        self.scratch.as_mut_ptr()
    }

    /// Bytes at an address, while nothing runs.
    ///
    /// # Panics
    /// If they are not all there.
    pub fn bytes(&self, address: Address, count: usize) -> &[u8] {
        let region = self.region(address.region);
        assert!(address.offset + count <= region.bytes, "{count} bytes at {address:?} of {}", region.bytes);
        // SAFETY: inside the mapping, as just checked; who runs kernels on it holds the session, and with it this
        // memory, exclusively.
        unsafe { std::slice::from_raw_parts(self.pointer(address), count) }
    }

    fn slot(&self, name: &str) -> Option<(Address, usize)> {
        let slot = self.by_name.get(name)?;
        Some((Address { region: Region::Inputs, offset: slot.offset }, slot.bytes))
    }

    /// The buffer of an input.
    pub fn input(&self, name: &str) -> Option<&[u8]> {
        let (address, bytes) = self.slot(name)?;
        Some(self.bytes(address, bytes))
    }

    /// The buffer of an input, to be written.
    pub fn input_mut(&mut self, name: &str) -> Option<&mut [u8]> {
        let (address, bytes) = self.slot(name)?;
        // SAFETY: the slot is inside the mapping, which is as long as all slots together, and `self` is borrowed
        // exclusively.
        Some(unsafe { std::slice::from_raw_parts_mut(self.pointer(address), bytes) })
    }
}
