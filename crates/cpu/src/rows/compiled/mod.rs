//! Steps over the elements of a tile as machine code: what is made by one step and read by the next stays in the vector
//! registers, and elements come from the buffers and go there without a pass of their own.
//!
//! [`compile`] gathers the steps of a stage in blocks, as large as reductions between them allow. `tape` says what a block
//! does with one lane of each operand, by running the same formulas and the same functions of `math` that the kernels are
//! made of, and `emit` writes the code, which rounds as they do: no bit depends on whether a step was compiled.
//! Instruction sets other than AVX-512, and systems that let no program write code, run the steps one by one.

mod code;
mod emit;
mod tape;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use smallvec::SmallVec;

pub use code::Code;
use tape::{Inst, Tape, Term, Width, is_known, record};

use super::elementwise::Formula;
use super::lower::{Id, Lowered, Steps};
use super::step::{Extent, Place, Step};
use crate::isa::Isa;
use crate::math::bf16_above;

/// The code of all tapes so far; equal ones share it.
pub struct Codes {
    make: fn(&[Inst]) -> Option<Code>,
    known: Mutex<HashMap<Vec<Inst>, Option<Arc<Code>>>>,
}

impl Default for Codes {
    fn default() -> Codes {
        Codes::made_by(Code::new)
    }
}

impl Codes {
    fn made_by(make: fn(&[Inst]) -> Option<Code>) -> Codes {
        Codes { make, known: Mutex::default() }
    }

    /// As on a system that lets no program write code.
    #[cfg(test)]
    pub fn refused() -> Codes {
        Codes::made_by(|_| None)
    }

    /// As on a system that has no memory left for code.
    #[cfg(test)]
    pub fn exhausted() -> Codes {
        Codes::made_by(|tape| Code::new(tape).filter(|_| tape.is_empty()))
    }

    /// Whether there is code for an instruction set: it is made for, and the system lets it be run.
    pub fn are_possible(&self, isa: Isa) -> bool {
        cfg!(not(miri)) && isa >= Isa::Avx512 && self.get(Vec::new()).is_some()
    }

    /// The code of a tape; see [`Code::new`].
    fn get(&self, tape: Vec<Inst>) -> Option<Arc<Code>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.entry(tape).or_insert_with_key(|tape| (self.make)(tape).map(Arc::new)).clone()
    }
}

/// The steps of a stage with those over elements in blocks. `constants` are values that are the same everywhere.
pub fn compile(codes: &Codes, lowered: &Lowered, constants: &HashMap<Id, u32>, steps: Steps) -> Steps {
    Stage::new(codes, lowered, constants, &steps).blocks()
}

/// How a step gets into the result.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// As part of a block.
    Block,
    /// Not at all: blocks read the elements.
    Elements,
    /// As it is.
    Alone,
}

struct Stage<'a> {
    codes: &'a Codes,
    lowered: &'a Lowered,
    constants: &'a HashMap<Id, u32>,
    steps: &'a Steps,
    ways: Vec<Way>,
    /// What must come before each step.
    before: Vec<SmallVec<[usize; 4]>>,
    done: Vec<bool>,
}

impl<'a> Stage<'a> {
    fn new(codes: &'a Codes, lowered: &'a Lowered, constants: &'a HashMap<Id, u32>, steps: &'a Steps) -> Stage<'a> {
        let mut made_by: HashMap<Id, usize> = HashMap::new();
        for (at, step) in steps.iter().enumerate() {
            made_by.extend(step.writes().into_iter().map(|id| (id, at)));
        }
        let is_full = |id: &Id| lowered.values[*id].extent == Extent::Full;
        let is_block = |step: &Step<Id>| match step {
            Step::Map { formula, to, .. } => is_full(to) && is_known(*formula),
            _ => false,
        };
        let way = |step: &Step<Id>| match step {
            Step::Map { .. } if is_block(step) => Way::Block,
            Step::Store { from, .. } if made_by.get(from).is_some_and(|at| is_block(&steps[*at])) => Way::Block,
            Step::Load { load, to } if is_full(to) => {
                let load = &lowered.loads[*load];
                let narrow = load.window.is_contiguous() && load.format.size < size_of::<u32>();
                if narrow { Way::Elements } else { Way::Alone }
            }
            _ => Way::Alone,
        };
        let mut ways: Vec<Way> = steps.iter().map(way).collect();
        for at in 0..steps.len() {
            if ways[at] == Way::Alone {
                for id in steps[at].reads() {
                    if let Some(load) = made_by.get(&id).filter(|load| ways[**load] == Way::Elements) {
                        ways[*load] = Way::Alone;
                    }
                }
            }
        }
        let before = |at: usize| {
            let mut before: SmallVec<[usize; 4]> =
                steps[at].reads().iter().filter_map(|id| made_by.get(id).copied()).collect();
            if let Step::Store { store, .. } = &steps[at] {
                let size = lowered.stores[*store].format.size;
                // A store may be in place of what these read.
                before.extend((0..steps.len()).filter(|other| {
                    let reads_alias =
                        steps[*other].reads().iter().any(|id| match made_by.get(id).map(|at| &steps[*at]) {
                            Some(Step::Load { load, .. }) => {
                                lowered.loads[*load].whole && lowered.loads[*load].format.size == size
                            }
                            _ => false,
                        });
                    reads_alias && (*other < at || !matches!(steps[*other], Step::Store { .. }) && *other != at)
                }));
            }
            before
        };
        let before = (0..steps.len()).map(before).collect();
        let done = ways.iter().map(|way| *way == Way::Elements).collect();
        Stage { codes, lowered, constants, steps, ways, before, done }
    }

    fn blocks(mut self) -> Steps {
        let mut result = Steps::new();
        loop {
            while let Some(at) = self.next_alone() {
                self.done[at] = true;
                result.push(self.steps[at].clone());
            }
            let members = self.members();
            let mut count = members.len();
            while count > 0 {
                if let Some(block) = self.block(&members[..count]) {
                    result.push(block);
                    break;
                }
                if count == 1 {
                    self.alone(members[0], &mut result);
                    break;
                }
                count /= 2;
            }
            if members.is_empty() {
                debug_assert!(self.done.iter().all(|done| *done), "every step has its turn");
                return result;
            }
            members[..count].iter().for_each(|at| self.done[*at] = true);
        }
    }

    /// A step that is no part of a block, and whose turn it is.
    fn next_alone(&self) -> Option<usize> {
        let ready = |at: &usize| self.before[*at].iter().all(|before| self.done[*before]);
        (0..self.steps.len()).find(|at| self.ways[*at] == Way::Alone && !self.done[*at] && ready(at))
    }

    /// All steps that can be in the next block, each after what it reads.
    fn members(&self) -> Vec<usize> {
        let mut done = self.done.clone();
        let mut members: Vec<usize> = Vec::new();
        loop {
            let known = members.len();
            for at in 0..self.steps.len() {
                if self.ways[at] == Way::Block && !done[at] && self.before[at].iter().all(|before| done[*before]) {
                    done[at] = true;
                    members.push(at);
                }
            }
            if members.len() == known {
                return members;
            }
        }
    }

    /// A step that no code could be made for, after the loads that were left to blocks.
    fn alone(&mut self, at: usize, result: &mut Steps) {
        for id in self.steps[at].reads() {
            let load = (0..self.steps.len()).find(|load| self.steps[*load].writes().contains(&id));
            if let Some(load) = load.filter(|load| self.ways[*load] == Way::Elements) {
                self.ways[load] = Way::Alone;
                result.push(self.steps[load].clone());
            }
        }
        result.push(self.steps[at].clone());
    }

    /// These steps in one; `None` if there is no code for them.
    fn block(&self, members: &[usize]) -> Option<Step<Id>> {
        let mut block = Block { stage: self, tape: Tape::default(), operands: SmallVec::new(), terms: HashMap::new() };
        for at in members {
            if let Step::Map { formula, from, to, .. } = &self.steps[*at] {
                block.map(*formula, from, *to)?;
                let others = (0..self.steps.len()).filter(|at| !members.contains(at));
                if others.into_iter().any(|at| self.steps[at].reads().contains(to)) {
                    let operand = block.operand(Place::Made(*to))?;
                    block.tape.push(Inst::Store { operand, width: Width::Four, from: block.terms[to] });
                }
            }
        }
        // Last, because they may be in place of what is loaded.
        for at in members {
            if let Step::Store { store, from } = &self.steps[*at] {
                block.store(*store, *from)?;
            }
        }
        let Block { tape, operands, .. } = block;
        Some(Step::Block { code: self.codes.get(tape.finish()?)?, operands })
    }
}

/// A block under way.
struct Block<'a> {
    stage: &'a Stage<'a>,
    tape: Tape,
    operands: SmallVec<[Place<Id>; 8]>,
    /// What stands for each value.
    terms: HashMap<Id, Term>,
}

impl Block<'_> {
    /// The number of an operand; `None` if there are too many.
    fn operand(&mut self, operand: Place<Id>) -> Option<u8> {
        self.operands.push(operand);
        u8::try_from(self.operands.len() - 1).ok()
    }

    fn term(&mut self, id: Id) -> Option<Term> {
        if let Some(term) = self.terms.get(&id) {
            return Some(*term);
        }
        let Stage { lowered, steps, ways, constants, .. } = self.stage;
        let made_by = steps.iter().position(|step| step.writes().contains(&id));
        let term = match (lowered.values[id].extent, made_by.map(|at| (&steps[at], ways[at]))) {
            (Extent::Full, Some((Step::Load { load, .. }, Way::Elements))) => {
                let width = width(lowered.loads[*load].format.size);
                let operand = self.operand(Place::Elements { load: *load })?;
                self.tape.push(Inst::Load { operand, width, far: true })
            }
            (Extent::Full, made_by) => {
                let far = match made_by {
                    Some((Step::Load { load, .. }, _)) => lowered.loads[*load].window.is_contiguous(),
                    _ => false,
                };
                let operand = self.operand(Place::Lanes(id))?;
                self.tape.push(Inst::Load { operand, width: Width::Four, far })
            }
            _ => match constants.get(&id) {
                Some(bits) => Term::Constant(*bits),
                None => Term::Splat(self.operand(Place::Lanes(id))?),
            },
        };
        self.terms.insert(id, term);
        Some(term)
    }

    fn map(&mut self, formula: Formula, from: &[Id], to: Id) -> Option<()> {
        let mut terms: SmallVec<[Term; 3]> = SmallVec::new();
        for id in from {
            terms.push(self.term(*id)?);
        }
        let lanes: SmallVec<[_; 3]> = terms.iter().map(|term| self.tape.lane(*term)).collect();
        let made = record(formula, &lanes)?.term;
        self.terms.insert(to, made);
        Some(())
    }

    fn store(&mut self, store: usize, from: Id) -> Option<()> {
        let width = width(self.stage.lowered.stores[store].format.size);
        let mut from = self.term(from)?;
        if width == Width::Two {
            from = bf16_above(self.tape.lane(from)).term;
        }
        let operand = self.operand(Place::Stored { store })?;
        self.tape.push(Inst::Store { operand, width, from });
        Some(())
    }
}

fn width(bytes: usize) -> Width {
    match bytes {
        1 => Width::One,
        2 => Width::Two,
        _ => Width::Four,
    }
}
