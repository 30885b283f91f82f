//! Machine code in memory that may be run.

use memmap2::{Mmap, MmapMut};

use super::emit::{Emitted, emit};
use super::tape::Inst;

/// A tape as a function that can be called.
#[derive(Debug)]
pub struct Code {
    memory: Mmap,
    constants: Vec<u32>,
}

impl Code {
    /// The function of a tape; `None` if it needs too many registers, or if the system lets no memory that was written be
    /// run.
    pub fn new(tape: &[Inst]) -> Option<Code> {
        let Emitted { code, constants } = emit(tape)?;
        let mut memory = MmapMut::map_anon(code.len()).ok()?;
        memory.copy_from_slice(&code);
        Some(Code { memory: memory.make_exec().ok()?, constants })
    }

    /// Runs it on `lanes` lanes of these operands.
    ///
    /// # Safety
    /// The processor has AVX-512 F, BW, DQ and VL and BMI2. There is an address for each operand of the tape; at those that
    /// are loaded or stored are as many elements, at the others is one lane. Nothing else uses what is stored meanwhile; an
    /// operand that is loaded too is loaded element by element before it is stored.
    #[inline]
    pub unsafe fn run(&self, operands: &[*mut u8], lanes: usize) {
        #[cfg(target_arch = "x86_64")]
        {
            // SAFETY: the memory holds a function of this type, which `emit` has written.
            let function: unsafe extern "sysv64" fn(*const *mut u8, usize, *const u32) =
                unsafe { std::mem::transmute(self.memory.as_ptr()) };
            // SAFETY: as the caller says; the constants are those that the code reads.
            unsafe { function(operands.as_ptr(), lanes, self.constants.as_ptr()) };
        }
        #[cfg(not(target_arch = "x86_64"))]
        unreachable!("{:?} with {:?}, for {lanes} lanes of {operands:?}", self.memory, self.constants);
    }
}
