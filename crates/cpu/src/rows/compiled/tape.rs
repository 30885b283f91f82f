//! What a block does with one lane of each operand: a list of simple instructions, recorded by running the formulas on
//! numbers that are not there yet.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::{Add, Div, Mul, Neg, Sub};

use tenon_graph::elementwise::{Binary, Unary};
use tenon_graph::types::DType;

use crate::math::{self, Bits, Is, Real};
use crate::rows::elementwise::Formula;

/// A lane: known now, the same for all elements, or made by an instruction.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Term {
    /// These bits.
    Constant(u32),
    /// The only lane of an operand.
    Splat(u8),
    /// By the instruction at this place.
    Made(u16),
}

/// How an operand's elements lie in memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Width {
    /// A whole lane.
    Four,
    /// The upper half of a lane: bf16.
    Two,
    /// The lowest byte of a lane.
    One,
}

/// An operation on two lanes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Two {
    /// Of floats.
    Add,
    /// Of floats.
    Sub,
    /// Of floats.
    Mul,
    /// Of floats.
    Div,
    /// Of whole numbers.
    AddWhole,
    /// Of whole numbers.
    SubWhole,
    /// Of whole numbers.
    MulWhole,
    /// The first if it is smaller, else the second.
    Smaller,
    /// The first if it is larger, else the second.
    Larger,
    /// The first times two to the second, a whole number.
    Scale,
    /// Of bits.
    And,
    /// Of bits.
    Or,
    /// Of bits.
    Xor,
}

/// An operation on one lane.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum One {
    /// The square root.
    Sqrt,
    /// The next whole number below.
    Floor,
    /// The nearest whole number, halves to even.
    Round,
    /// The float nearest to a signed number.
    FromI32,
    /// The float nearest to an unsigned number.
    FromU32,
    /// Bits to the left.
    Shl(u8),
    /// Bits to the right.
    Shr(u8),
    /// Bits to the right, the sign following.
    Sar(u8),
}

/// What two lanes are compared as.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Kind {
    /// Floats.
    F32,
    /// Signed whole numbers.
    I32,
    /// Whole numbers.
    U32,
}

/// One instruction.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Inst {
    /// The element of an operand; `far` if it comes from where the caches may not have it yet.
    Load { operand: u8, width: Width, far: bool },
    /// Of two lanes.
    Two(Two, Term, Term),
    /// Of one lane.
    One(One, Term),
    /// The first times the second plus the third, rounded once.
    MulAdd(Term, Term, Term),
    /// `then` where `a` is that of `b`, else `otherwise`.
    Choose { kind: Kind, is: Is, of: [Term; 2], then: Term, otherwise: Term },
    /// Writes the element of a result.
    Store { operand: u8, width: Width, from: Term },
}

impl Inst {
    /// What it reads.
    pub fn terms(&self) -> impl Iterator<Item = Term> + use<> {
        let terms = match *self {
            Inst::Load { .. } => [None; 4],
            Inst::One(_, a) | Inst::Store { from: a, .. } => [Some(a), None, None, None],
            Inst::Two(_, a, b) => [Some(a), Some(b), None, None],
            Inst::MulAdd(a, b, c) => [Some(a), Some(b), Some(c), None],
            Inst::Choose { of: [a, b], then, otherwise, .. } => [Some(a), Some(b), Some(then), Some(otherwise)],
        };
        terms.into_iter().flatten()
    }
}

/// Instructions being recorded; equal ones once.
#[derive(Default)]
pub struct Tape {
    insts: RefCell<Vec<Inst>>,
    known: RefCell<HashMap<Inst, u16>>,
}

impl Tape {
    /// What `inst` makes.
    pub fn push(&self, inst: Inst) -> Term {
        let mut insts = self.insts.borrow_mut();
        let at = *self.known.borrow_mut().entry(inst).or_insert_with(|| {
            insts.push(inst);
            u16::try_from(insts.len() - 1).unwrap_or(u16::MAX)
        });
        Term::Made(at)
    }

    /// The instructions; `None` if there are more than can be told apart.
    pub fn finish(self) -> Option<Vec<Inst>> {
        let insts = self.insts.into_inner();
        (insts.len() < usize::from(u16::MAX)).then_some(insts)
    }

    /// The lane as a number.
    pub fn lane(&self, term: Term) -> Lane<'_> {
        Lane { tape: Some(self), term }
    }
}

/// A lane as a number that can be computed with. Constants need no tape.
#[derive(Clone, Copy)]
pub struct Lane<'t> {
    tape: Option<&'t Tape>,
    /// Where it comes from.
    pub term: Term,
}

impl<'t> Lane<'t> {
    fn constant(bits: u32) -> Lane<'t> {
        Lane { tape: None, term: Term::Constant(bits) }
    }

    /// The instruction over these lanes.
    fn push(lanes: &[Lane<'t>], inst: Inst) -> Lane<'t> {
        let tape = lanes.iter().find_map(|lane| lane.tape).expect("no formula is about constants alone");
        tape.lane(tape.push(inst))
    }

    fn two(self, op: Two, b: Lane<'t>) -> Lane<'t> {
        Lane::push(&[self, b], Inst::Two(op, self.term, b.term))
    }

    fn one(self, op: One) -> Lane<'t> {
        Lane::push(&[self], Inst::One(op, self.term))
    }

    fn choose_as(self, kind: Kind, is: Is, than: Self, then: Self, otherwise: Self) -> Self {
        let (a, b, then_, otherwise_) = (self.term, than.term, then.term, otherwise.term);
        let inst = match (kind, is) {
            (Kind::F32, Is::Less) if (then_, otherwise_) == (a, b) => Inst::Two(Two::Smaller, a, b),
            (Kind::F32, Is::Less) if (then_, otherwise_) == (b, a) => Inst::Two(Two::Larger, b, a),
            _ => Inst::Choose { kind, is, of: [a, b], then: then_, otherwise: otherwise_ },
        };
        Lane::push(&[self, than, then, otherwise], inst)
    }

    /// 1 if `self` is that of `than`, else 0.
    fn truth(self, kind: Kind, is: Is, than: Self) -> Self {
        self.choose_as(kind, is, than, Lane::constant(1), Lane::constant(0))
    }

    /// `then` where `self` is true, else `otherwise`.
    fn select(self, then: Self, otherwise: Self) -> Self {
        let made = match (self.tape, self.term) {
            (Some(tape), Term::Made(at)) => Some(tape.insts.borrow()[usize::from(at)]),
            _ => None,
        };
        match made {
            Some(Inst::Choose { kind, is, of, then: Term::Constant(1), otherwise: Term::Constant(0) }) => {
                let [a, b] = of.map(|term| Lane { tape: self.tape, term });
                a.choose_as(kind, is, b, then, otherwise)
            }
            _ => self.choose_as(Kind::U32, Is::Equal, Lane::constant(0), otherwise, then),
        }
    }
}

macro_rules! operators {
    ($($operator:ident $method:ident;)*) => {$(
        impl $operator for Lane<'_> {
            type Output = Self;
            fn $method(self, b: Self) -> Self {
                self.two(Two::$operator, b)
            }
        }
    )*};
}

operators! {
    Add add;
    Sub sub;
    Mul mul;
    Div div;
}

impl Neg for Lane<'_> {
    type Output = Self;
    fn neg(self) -> Self {
        self.two(Two::Xor, Lane::constant(0x8000_0000))
    }
}

impl Real for Lane<'_> {
    type Bits = Self;
    fn of(x: f32) -> Self {
        Lane::constant(x.to_bits())
    }
    fn from_bits(bits: Self) -> Self {
        bits
    }
    fn to_bits(self) -> Self {
        self
    }
    fn from_whole(whole: Self) -> Self {
        whole.one(One::FromI32)
    }
    fn mul_add(self, b: Self, c: Self) -> Self {
        Lane::push(&[self, b, c], Inst::MulAdd(self.term, b.term, c.term))
    }
    fn sqrt(self) -> Self {
        self.one(One::Sqrt)
    }
    fn choose(self, is: Is, than: Self, then: Self, otherwise: Self) -> Self {
        self.choose_as(Kind::F32, is, than, then, otherwise)
    }
    fn times_power(self, shifted: Self) -> Self {
        self.two(Two::Scale, shifted - Real::of(math::ROUND))
    }
}

impl Bits for Lane<'_> {
    fn of(bits: u32) -> Self {
        Lane::constant(bits)
    }
    fn add(self, b: Self) -> Self {
        self.two(Two::AddWhole, b)
    }
    fn sub(self, b: Self) -> Self {
        self.two(Two::SubWhole, b)
    }
    fn and(self, b: Self) -> Self {
        self.two(Two::And, b)
    }
    fn or(self, b: Self) -> Self {
        self.two(Two::Or, b)
    }
    fn shl<const BY: u32>(self) -> Self {
        self.one(One::Shl(BY as u8))
    }
    fn shr<const BY: u32>(self) -> Self {
        self.one(One::Shr(BY as u8))
    }
    fn sar<const BY: u32>(self) -> Self {
        self.one(One::Sar(BY as u8))
    }
}

/// Whether [`record`] knows the formula.
pub fn is_known(formula: Formula) -> bool {
    let tape = Tape::default();
    let operand = |at| tape.lane(Term::Splat(at));
    record(formula, &[operand(0), operand(1), operand(2)]).is_some()
}

/// What the formula makes of the operands; `None` if that takes more than these instructions.
pub fn record<'t>(formula: Formula, operands: &[Lane<'t>]) -> Option<Lane<'t>> {
    let (a, constant) = (operands[0], Lane::constant);
    let zero = constant(0);
    Some(match formula {
        Formula::Copy => a,
        Formula::Round => math::round_to_bf16(a),
        Formula::Select => a.select(operands[1], operands[2]),
        Formula::Unary(op, dtype) => return unary(op, dtype, a),
        Formula::Binary(op, dtype) => return binary(op, dtype, a, operands[1]),
        Formula::Cast(from, to) => match (from, to) {
            (DType::I32, DType::F32 | DType::BF16) => a.one(One::FromI32),
            (_, DType::F32 | DType::BF16) => a.one(One::FromU32),
            (from, DType::Bool) if from.is_float() => a.choose(Is::Equal, zero, zero, constant(1)),
            (_, DType::Bool) => a.choose_as(Kind::U32, Is::Equal, zero, zero, constant(1)),
            (from, DType::U8) if !from.is_float() => a.and(constant(0xFF)),
            _ => return None,
        },
        Formula::Pair(..) => return None,
    })
}

fn unary<'t>(op: Unary, dtype: DType, a: Lane<'t>) -> Option<Lane<'t>> {
    let (float, zero) = (dtype.is_float(), Lane::constant(0));
    Some(match op {
        Unary::Neg if float => -a,
        Unary::Neg if dtype == DType::U8 => Bits::sub(zero, a).and(Lane::constant(0xFF)),
        Unary::Neg => Bits::sub(zero, a),
        Unary::Abs if float => a.abs(),
        Unary::Abs if dtype != DType::I32 => a,
        Unary::Exp => math::exp(a),
        Unary::Expm1 => math::expm1(a),
        Unary::Log => math::log(a),
        Unary::Log1p => math::log1p(a),
        Unary::Sqrt => math::sqrt(a),
        Unary::Rsqrt => math::rsqrt(a),
        Unary::Tanh => math::tanh(a),
        Unary::Erf => math::erf(a),
        Unary::Sigmoid => math::sigmoid(a),
        Unary::Floor => a.one(One::Floor),
        Unary::Round => a.one(One::Round),
        Unary::Not => a.truth(Kind::U32, Is::Equal, zero),
        Unary::IsFinite => a.abs().truth(Kind::F32, Is::Less, Real::of(f32::INFINITY)),
        Unary::Abs | Unary::Sign | Unary::Sin | Unary::Cos => return None,
    })
}

fn binary<'t>(op: Binary, dtype: DType, a: Lane<'t>, b: Lane<'t>) -> Option<Lane<'t>> {
    let kind = match dtype {
        DType::F32 | DType::BF16 => Kind::F32,
        DType::I32 => Kind::I32,
        DType::U32 | DType::U8 | DType::Bool => Kind::U32,
    };
    let whole = |op| {
        let result = a.two(op, b);
        if dtype == DType::U8 { result.and(Lane::constant(0xFF)) } else { result }
    };
    Some(match (op, kind) {
        (Binary::Add, Kind::F32) => a + b,
        (Binary::Sub, Kind::F32) => a - b,
        (Binary::Mul, Kind::F32) => a * b,
        (Binary::Div, Kind::F32) => a / b,
        // NaN if either is.
        (Binary::Max, Kind::F32) => a.choose(Is::Unordered, a, a, b.choose(Is::LessEqual, a, a, b)),
        (Binary::Min, Kind::F32) => a.choose(Is::Unordered, a, a, a.choose(Is::LessEqual, b, a, b)),
        (Binary::Add, _) => whole(Two::AddWhole),
        (Binary::Sub, _) => whole(Two::SubWhole),
        (Binary::Mul, _) => whole(Two::MulWhole),
        (Binary::Max, _) => b.choose_as(kind, Is::Less, a, a, b),
        (Binary::Min, _) => a.choose_as(kind, Is::Less, b, a, b),
        (Binary::Equal, _) => a.truth(kind, Is::Equal, b),
        (Binary::Less, _) => a.truth(kind, Is::Less, b),
        (Binary::LessEqual, _) => a.truth(kind, Is::LessEqual, b),
        (Binary::And, _) => a.and(b),
        (Binary::Or, _) => a.or(b),
        (Binary::Div | Binary::Pow, _) => return None,
    })
}
