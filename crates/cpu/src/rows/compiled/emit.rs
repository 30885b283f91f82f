//! Machine code for a tape: a loop over vectors of 16 lanes, every value in a register of AVX-512.
//!
//! The code is `fn(operands: *const *mut u8, lanes: usize, constants: *const u32)` of the System V convention: an address
//! for each operand of the tape, then how many lanes. The last lanes, fewer than a vector, go through a second copy of the
//! loop's body that reads and writes under a mask. Constants and single lanes are operands in memory that the processor
//! repeats for all lanes, so they take no registers.

use iced_x86::{
    BlockEncoder, BlockEncoderOptions, Code, IcedError, Instruction, InstructionBlock, MemoryOperand, Register,
};

use super::tape::{Inst, Kind, One, Term, Two, Width};
use crate::math::Is;

/// Lanes of a vector.
const LANES: i32 = 16;
/// How far ahead of a load its operand is asked for, in bytes: some 20 turns of the loop.
const AHEAD: i64 = 4096;
/// Registers that hold constants for one instruction.
const SPARE: [Register; 2] = [Register::ZMM30, Register::ZMM31];
/// Registers for what instructions make.
const MADE: usize = 30;
/// The addresses of the operands, the number of lanes, and the constants.
const OPERANDS: Register = Register::RDI;
const COUNT: Register = Register::RSI;
const CONSTANTS: Register = Register::RDX;
/// The first lane of this turn, the last one of whole vectors, and a register for addresses.
const AT: Register = Register::RCX;
const WHOLE: Register = Register::R8;
const ADDRESS: Register = Register::RAX;
/// What a comparison finds, and the lanes that there are at the end.
const FOUND: Register = Register::K1;
const PRESENT: Register = Register::K2;

/// Machine code and the constants that it reads.
#[derive(Debug)]
pub struct Emitted {
    /// Runs wherever it lies.
    pub code: Vec<u8>,
    /// Four bytes each.
    pub constants: Vec<u32>,
}

/// The code of a tape; `None` if it needs more registers than there are.
pub fn emit(tape: &[Inst]) -> Option<Emitted> {
    let mut emitter = Emitter::new(tape);
    emitter.function().ok()?;
    let block = InstructionBlock::new(&emitter.code, 0);
    let code = BlockEncoder::encode(64, block, BlockEncoderOptions::NONE).ok()?.code_buffer;
    Some(Emitted { code, constants: emitter.constants })
}

/// There is no code: more values at once than registers.
struct Refused;

impl From<IcedError> for Refused {
    fn from(_: IcedError) -> Refused {
        Refused
    }
}

struct Emitter<'a> {
    tape: &'a [Inst],
    /// The last instruction that reads what each one makes; `None` if none does.
    last: Vec<Option<usize>>,
    /// Where it is at the moment.
    places: Vec<Option<Register>>,
    free: Vec<Register>,
    constants: Vec<u32>,
    code: Vec<Instruction>,
    /// Whether lanes are missing.
    masked: bool,
}

impl<'a> Emitter<'a> {
    fn new(tape: &'a [Inst]) -> Emitter<'a> {
        let mut last: Vec<Option<usize>> = vec![None; tape.len()];
        for (at, inst) in tape.iter().enumerate().rev() {
            if matches!(inst, Inst::Store { .. }) || last[at].is_some() {
                for term in inst.terms() {
                    if let Term::Made(made) = term {
                        last[usize::from(made)].get_or_insert(at);
                    }
                }
            }
        }
        let (places, constants, code) = (vec![None; tape.len()], Vec::new(), Vec::new());
        Emitter { tape, last, places, free: Vec::new(), constants, code, masked: false }
    }

    /// Adds an instruction; its address, by which branches know it, is its place among them.
    fn push(&mut self, mut instruction: Instruction) -> u64 {
        let at = self.code.len() as u64;
        instruction.set_ip(at);
        self.code.push(instruction);
        at
    }

    fn function(&mut self) -> Result<(), Refused> {
        self.push(Instruction::with2(Code::Xor_r32_rm32, Register::ECX, Register::ECX)?);
        self.push(Instruction::with2(Code::Mov_r64_rm64, WHOLE, COUNT)?);
        self.push(Instruction::with2(Code::And_rm64_imm8, WHOLE, -LANES)?);
        let start = self.push(Instruction::with2(Code::Cmp_r64_rm64, AT, WHOLE)?);
        let to_rest = self.push(Instruction::with_branch(Code::Jae_rel32_64, 0)?);
        self.body()?;
        self.push(Instruction::with2(Code::Add_rm64_imm8, AT, LANES)?);
        self.push(Instruction::with_branch(Code::Jmp_rel32_64, start)?);
        let rest = self.push(Instruction::with2(Code::Sub_r64_rm64, COUNT, AT)?);
        let to_end = self.push(Instruction::with_branch(Code::Je_rel32_64, 0)?);
        self.push(Instruction::with2(Code::Mov_r32_imm32, Register::EAX, -1)?);
        self.push(Instruction::with3(Code::VEX_Bzhi_r32_rm32_r32, Register::EAX, Register::EAX, Register::ESI)?);
        self.push(Instruction::with2(Code::VEX_Kmovw_kr_r32, PRESENT, Register::EAX)?);
        self.masked = true;
        self.body()?;
        let end = self.push(Instruction::with(Code::VEX_Vzeroupper));
        self.push(Instruction::with(Code::Retnq));
        for (branch, target) in [(to_rest, rest), (to_end, end)] {
            self.code[branch as usize].set_near_branch64(target);
        }
        Ok(())
    }

    /// One turn of the loop.
    fn body(&mut self) -> Result<(), Refused> {
        self.places.fill(None);
        self.free = (0..MADE).rev().map(|n| Register::ZMM0 + n as u32).collect();
        for (at, inst) in self.tape.iter().enumerate() {
            if matches!(inst, Inst::Store { .. }) || self.last[at].is_some() {
                self.make(at, *inst)?;
            }
        }
        Ok(())
    }

    /// Gives back the registers of what is read for the last time at `at`.
    fn release(&mut self, at: usize) {
        for term in self.tape[at].terms() {
            if let Term::Made(made) = term
                && self.last[usize::from(made)] == Some(at)
                && let Some(register) = self.places[usize::from(made)].take()
            {
                self.free.push(register);
            }
        }
    }

    /// The register of a value; that of an operand which is read for the last time may be it.
    fn take(&mut self, at: usize) -> Result<Register, Refused> {
        self.release(at);
        let register = self.free.pop().ok_or(Refused)?;
        self.places[at] = Some(register);
        Ok(register)
    }

    /// The elements from lane [`AT`] on of the operand whose address has been loaded, `ahead` bytes further.
    fn elements(width: Width, ahead: i64) -> MemoryOperand {
        let scale = match width {
            Width::Four => 4,
            Width::Two => 2,
            Width::One => 1,
        };
        MemoryOperand::new(ADDRESS, AT, scale, ahead, u32::from(ahead != 0), false, Register::None)
    }

    /// Loads the address of an operand.
    fn address(&mut self, operand: u8) -> Result<(), Refused> {
        let place = MemoryOperand::with_base_displ(OPERANDS, 8 * i64::from(operand));
        self.push(Instruction::with2(Code::Mov_r64_rm64, ADDRESS, place)?);
        Ok(())
    }

    /// A constant or a single lane, repeated.
    fn repeated(&mut self, term: Term) -> Result<MemoryOperand, Refused> {
        let (base, offset) = match term {
            Term::Splat(operand) => {
                self.address(operand)?;
                (ADDRESS, 0)
            }
            Term::Constant(bits) => {
                let known = self.constants.iter().position(|constant| *constant == bits);
                let at = known.unwrap_or_else(|| {
                    self.constants.push(bits);
                    self.constants.len() - 1
                });
                (CONSTANTS, 4 * at as i64)
            }
            Term::Made(_) => return Err(Refused),
        };
        Ok(MemoryOperand::new(base, Register::None, 1, offset, u32::from(offset != 0), true, Register::None))
    }

    /// A register that holds the lane for the next instruction.
    fn register(&mut self, term: Term, spare: usize) -> Result<Register, Refused> {
        if let Term::Made(made) = term {
            return self.places[usize::from(made)].ok_or(Refused);
        }
        self.repeat(term, SPARE[spare])?;
        Ok(SPARE[spare])
    }

    /// Fills a register with a constant or a single lane.
    fn repeat(&mut self, term: Term, to: Register) -> Result<(), Refused> {
        let mut place = self.repeated(term)?;
        place.is_broadcast = false;
        self.push(Instruction::with2(Code::EVEX_Vbroadcastss_zmm_k1z_xmmm32, to, place)?);
        Ok(())
    }

    /// A register of its own with the same content.
    fn copy(&mut self, term: Term) -> Result<Register, Refused> {
        let to = self.free.pop().ok_or(Refused)?;
        if is_made(term) {
            let from = self.register(term, 0)?;
            self.push(Instruction::with2(Code::EVEX_Vmovaps_zmm_k1z_zmmm512, to, from)?);
        } else {
            self.repeat(term, to)?;
        }
        Ok(to)
    }

    /// Whether instruction `at` is the last one that reads the lane.
    fn ends(&self, term: Term, at: usize) -> bool {
        matches!(term, Term::Made(made) if self.last[usize::from(made)] == Some(at))
    }

    /// `code to, lane`.
    fn one(&mut self, code: Code, to: Register, a: Term) -> Result<Instruction, Refused> {
        Ok(match a {
            Term::Made(_) => Instruction::with2(code, to, self.register(a, 0)?)?,
            _ => Instruction::with2(code, to, self.repeated(a)?)?,
        })
    }

    /// `code to, register, lane`.
    fn two(&mut self, code: Code, to: Register, a: Register, b: Term) -> Result<Instruction, Refused> {
        Ok(match b {
            Term::Made(_) => Instruction::with3(code, to, a, self.register(b, 1)?)?,
            _ => Instruction::with3(code, to, a, self.repeated(b)?)?,
        })
    }

    fn make(&mut self, at: usize, inst: Inst) -> Result<(), Refused> {
        match inst {
            Inst::Load { operand, width, far } => {
                let to = self.take(at)?;
                self.load(operand, width, far, to)
            }
            Inst::One(op, a) => self.one_lane(at, op, a),
            Inst::Two(op, a, b) => {
                let commutes =
                    matches!(op, Two::Add | Two::Mul | Two::AddWhole | Two::MulWhole | Two::And | Two::Or | Two::Xor);
                let (a, b) = if commutes && !is_made(a) { (b, a) } else { (a, b) };
                let a = self.register(a, 0)?;
                let mut instruction = self.two(two(op), Register::ZMM0, a, b)?;
                instruction.set_op0_register(self.take(at)?);
                self.push(instruction);
                Ok(())
            }
            Inst::MulAdd(a, b, c) => self.mul_add(at, a, b, c),
            Inst::Choose { kind, is, of, then, otherwise } => {
                // The second operand must be in a register.
                let negated = !is_made(otherwise) && is_made(then);
                let (then, otherwise) = if negated { (otherwise, then) } else { (then, otherwise) };
                self.compare(kind, is, of, negated)?;
                let otherwise = self.register(otherwise, 0)?;
                let mut instruction =
                    self.two(Code::EVEX_Vblendmps_zmm_k1z_zmm_zmmm512b32, Register::ZMM0, otherwise, then)?;
                instruction.set_op_mask(FOUND);
                instruction.set_op0_register(self.take(at)?);
                self.push(instruction);
                Ok(())
            }
            Inst::Store { operand, width, from } => {
                self.store(operand, width, from)?;
                self.release(at);
                Ok(())
            }
        }
    }

    fn load(&mut self, operand: u8, width: Width, far: bool, to: Register) -> Result<(), Refused> {
        self.address(operand)?;
        let code = match width {
            Width::Four => Code::EVEX_Vmovups_zmm_k1z_zmmm512,
            Width::Two => Code::EVEX_Vpmovzxwd_zmm_k1z_ymmm256,
            Width::One => Code::EVEX_Vpmovzxbd_zmm_k1z_xmmm128,
        };
        let mut instruction = Instruction::with2(code, to, Self::elements(width, 0))?;
        if self.masked {
            instruction.set_op_mask(PRESENT);
            instruction.set_zeroing_masking(true);
        }
        self.push(instruction);
        if far && !self.masked {
            self.push(Instruction::with1(Code::Prefetcht1_m8, Self::elements(width, AHEAD))?);
        }
        if width == Width::Two {
            self.push(Instruction::with3(Code::EVEX_Vpslld_zmm_k1z_zmmm512b32_imm8, to, to, 16)?);
        }
        Ok(())
    }

    fn store(&mut self, operand: u8, width: Width, from: Term) -> Result<(), Refused> {
        let mut from = self.register(from, 0)?;
        let code = match width {
            Width::Four => Code::EVEX_Vmovups_zmmm512_k1z_zmm,
            Width::Two => Code::EVEX_Vpmovdw_ymmm256_k1z_zmm,
            Width::One => Code::EVEX_Vpmovdb_xmmm128_k1z_zmm,
        };
        if width == Width::Two {
            self.push(Instruction::with3(Code::EVEX_Vpsrld_zmm_k1z_zmmm512b32_imm8, SPARE[0], from, 16)?);
            from = SPARE[0];
        }
        self.address(operand)?;
        let mut instruction = Instruction::with2(code, Self::elements(width, 0), from)?;
        if self.masked {
            instruction.set_op_mask(PRESENT);
        }
        self.push(instruction);
        Ok(())
    }

    fn one_lane(&mut self, at: usize, op: One, a: Term) -> Result<(), Refused> {
        let with_number = |code, number: u8| (code, Some(u32::from(number)));
        let (code, number) = match op {
            One::Sqrt => (Code::EVEX_Vsqrtps_zmm_k1z_zmmm512b32_er, None),
            One::FromI32 => (Code::EVEX_Vcvtdq2ps_zmm_k1z_zmmm512b32_er, None),
            One::FromU32 => (Code::EVEX_Vcvtudq2ps_zmm_k1z_zmmm512b32_er, None),
            One::Floor => with_number(Code::EVEX_Vrndscaleps_zmm_k1z_zmmm512b32_imm8_sae, 1),
            One::Round => with_number(Code::EVEX_Vrndscaleps_zmm_k1z_zmmm512b32_imm8_sae, 0),
            One::Shl(by) => with_number(Code::EVEX_Vpslld_zmm_k1z_zmmm512b32_imm8, by),
            One::Shr(by) => with_number(Code::EVEX_Vpsrld_zmm_k1z_zmmm512b32_imm8, by),
            One::Sar(by) => with_number(Code::EVEX_Vpsrad_zmm_k1z_zmmm512b32_imm8, by),
        };
        let mut instruction = match number {
            None => self.one(code, Register::ZMM0, a)?,
            Some(number) => {
                let a = self.register(a, 0)?;
                Instruction::with3(code, Register::ZMM0, a, number)?
            }
        };
        instruction.set_op0_register(self.take(at)?);
        self.push(instruction);
        Ok(())
    }

    /// Finds where the comparison holds, or where it does not.
    fn compare(&mut self, kind: Kind, is: Is, [a, b]: [Term; 2], negated: bool) -> Result<(), Refused> {
        let exchanged = !is_made(a) && is_made(b);
        let (a, b) = if exchanged { (b, a) } else { (a, b) };
        let code = match kind {
            Kind::F32 => Code::EVEX_Vcmpps_kr_k1_zmm_zmmm512b32_imm8_sae,
            Kind::I32 => Code::EVEX_Vpcmpd_kr_k1_zmm_zmmm512b32_imm8,
            Kind::U32 => Code::EVEX_Vpcmpud_kr_k1_zmm_zmmm512b32_imm8,
        };
        let number = match (is, exchanged, kind == Kind::F32) {
            (Is::Equal, _, _) => 0x00,
            (Is::Unordered, _, _) => 0x03,
            (Is::Less, false, true) => 0x11,
            (Is::LessEqual, false, true) => 0x12,
            (Is::Less, true, true) => 0x1E,
            (Is::LessEqual, true, true) => 0x1D,
            (Is::Less, false, false) => 1,
            (Is::LessEqual, false, false) => 2,
            (Is::Less, true, false) => 6,
            (Is::LessEqual, true, false) => 5,
        };
        // Every predicate has its opposite, NaN included, four further or before.
        let number: u32 = if negated { number ^ 4 } else { number };
        let a = self.register(a, 0)?;
        let instruction = match b {
            Term::Made(_) => Instruction::with4(code, FOUND, a, self.register(b, 1)?, number)?,
            _ => Instruction::with4(code, FOUND, a, self.repeated(b)?, number)?,
        };
        self.push(instruction);
        Ok(())
    }

    /// Each form overwrites its first operand, and its last one may be in memory.
    fn mul_add(&mut self, at: usize, a: Term, b: Term, c: Term) -> Result<(), Refused> {
        let forms = [
            (Code::EVEX_Vfmadd213ps_zmm_k1z_zmm_zmmm512b32_er, a, b, c),
            (Code::EVEX_Vfmadd213ps_zmm_k1z_zmm_zmmm512b32_er, b, a, c),
            (Code::EVEX_Vfmadd132ps_zmm_k1z_zmm_zmmm512b32_er, a, c, b),
            (Code::EVEX_Vfmadd132ps_zmm_k1z_zmm_zmmm512b32_er, b, c, a),
            (Code::EVEX_Vfmadd231ps_zmm_k1z_zmm_zmmm512b32_er, c, a, b),
            (Code::EVEX_Vfmadd231ps_zmm_k1z_zmm_zmmm512b32_er, c, b, a),
        ];
        let cost = |(_, over, second, _): &(Code, Term, Term, Term)| {
            usize::from(!self.ends(*over, at)) + usize::from(!is_made(*second))
        };
        let (code, over, second, third) = *forms.iter().min_by_key(|form| cost(form)).ok_or(Refused)?;
        let second = self.register(second, 1)?;
        let in_place = self.ends(over, at);
        let to = if in_place { self.register(over, 0)? } else { self.copy(over)? };
        let instruction = self.two(code, to, second, third)?;
        self.push(instruction);
        if let (Term::Made(made), true) = (over, in_place) {
            self.places[usize::from(made)] = None;
        }
        self.places[at] = Some(to);
        self.release(at);
        Ok(())
    }
}

fn is_made(term: Term) -> bool {
    matches!(term, Term::Made(_))
}

fn two(op: Two) -> Code {
    match op {
        Two::Add => Code::EVEX_Vaddps_zmm_k1z_zmm_zmmm512b32_er,
        Two::Sub => Code::EVEX_Vsubps_zmm_k1z_zmm_zmmm512b32_er,
        Two::Mul => Code::EVEX_Vmulps_zmm_k1z_zmm_zmmm512b32_er,
        Two::Div => Code::EVEX_Vdivps_zmm_k1z_zmm_zmmm512b32_er,
        Two::AddWhole => Code::EVEX_Vpaddd_zmm_k1z_zmm_zmmm512b32,
        Two::SubWhole => Code::EVEX_Vpsubd_zmm_k1z_zmm_zmmm512b32,
        Two::MulWhole => Code::EVEX_Vpmulld_zmm_k1z_zmm_zmmm512b32,
        Two::Smaller => Code::EVEX_Vminps_zmm_k1z_zmm_zmmm512b32_sae,
        Two::Larger => Code::EVEX_Vmaxps_zmm_k1z_zmm_zmmm512b32_sae,
        Two::Scale => Code::EVEX_Vscalefps_zmm_k1z_zmm_zmmm512b32_er,
        Two::And => Code::EVEX_Vpandd_zmm_k1z_zmm_zmmm512b32,
        Two::Or => Code::EVEX_Vpord_zmm_k1z_zmm_zmmm512b32,
        Two::Xor => Code::EVEX_Vpxord_zmm_k1z_zmm_zmmm512b32,
    }
}
