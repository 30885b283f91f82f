//! Two operations in one step: where only the second reads what the first makes, it never leaves the vector registers.
//!
//! Both round as they do alone, so no bit changes; what is saved is a pass over the tile.

use std::marker::PhantomData;
use std::slice::{from_raw_parts, from_raw_parts_mut};

use tenon_graph::elementwise::Binary;

use super::elementwise::{AddF32, Formula, MulF32, SubF32, Zip};
use super::kernel::{Body, Elementwise, Kernel, Operand};
use super::lower::{Id, Lowered};
use super::step::{Extent, Step};

/// An operation on floats that may be one of two.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Arithmetic {
    /// a + b
    Add,
    /// a - b
    Sub,
    /// a * b
    Mul,
}

impl Arithmetic {
    fn of(formula: Formula) -> Option<Arithmetic> {
        match formula {
            Formula::Binary(op, dtype) if dtype.is_float() => match op {
                Binary::Add => Some(Arithmetic::Add),
                Binary::Sub => Some(Arithmetic::Sub),
                Binary::Mul => Some(Arithmetic::Mul),
                _ => None,
            },
            _ => None,
        }
    }
}

/// Merges steps of `lowered` in pairs.
pub fn merge(lowered: &mut Lowered) {
    let mut uses = vec![0; lowered.values.len()];
    lowered.steps.iter().flat_map(Step::reads).for_each(|id| uses[id] += 1);
    let mut merged: Vec<Option<Step<Id>>> = Vec::with_capacity(lowered.steps.len());
    for step in lowered.steps.drain(..) {
        let full = |id: Id| lowered.values[id].extent == Extent::Full;
        // The step before, where it is, and which operand it makes.
        let before = |from: &[Id]| {
            from.iter().enumerate().filter(|(_, id)| uses[**id] == 1 && full(**id)).find_map(|(operand, id)| {
                let makes = |s: &Option<Step<Id>>| s.as_ref().is_some_and(|s| s.writes().contains(id));
                let at = merged.iter().rposition(makes)?;
                let Some(Step::Map { formula, from, .. }) = &merged[at] else { return None };
                let first = Arithmetic::of(*formula)?;
                // The first operand of a pair has a lane for every element.
                let swapped = !full(from[0]) && first != Arithmetic::Sub;
                let (a, b) = if swapped { (from[1], from[0]) } else { (from[0], *from.get(1)?) };
                (from.len() == 2 && full(a)).then_some((operand, at, first, [a, b]))
            })
        };
        let pair = match &step {
            Step::Map { formula, from, to, direct, .. } if full(*to) => Arithmetic::of(*formula).and_then(|second| {
                let (operand, at, first, [a, b]) = before(from)?;
                let formula = Formula::Pair(first, second, operand == 0);
                let from = [a, b, from[1 - operand]].into_iter().collect();
                Some((at, Step::Map { formula, kernel: formula.kernel(), from, to: *to, direct: *direct }))
            }),
            _ => None,
        };
        match pair {
            Some((at, step)) => {
                merged[at] = None;
                merged.push(Some(step));
            }
            None => merged.push(Some(step)),
        }
    }
    lowered.steps = merged.into_iter().flatten().collect();
}

/// `second(first(a, b), c)` if `left`, else `second(c, first(a, b))`, whose first operand is no splat.
pub fn kernel(first: Arithmetic, second: Arithmetic, left: bool) -> Kernel<Elementwise> {
    match first {
        Arithmetic::Add => after::<AddF32>(second, left),
        Arithmetic::Sub => after::<SubF32>(second, left),
        Arithmetic::Mul => after::<MulF32>(second, left),
    }
}

fn after<A: Zip<In = f32, Out = f32>>(second: Arithmetic, left: bool) -> Kernel<Elementwise> {
    match (second, left) {
        (Arithmetic::Add, _) => Kernel::new::<Pair<A, AddF32, true>>(),
        (Arithmetic::Sub, true) => Kernel::new::<Pair<A, SubF32, true>>(),
        (Arithmetic::Sub, false) => Kernel::new::<Pair<A, SubF32, false>>(),
        (Arithmetic::Mul, _) => Kernel::new::<Pair<A, MulF32, true>>(),
    }
}

struct Pair<A, B, const LEFT: bool>(PhantomData<(A, B)>);

impl<A: Zip<In = f32, Out = f32>, B: Zip<In = f32, Out = f32>, const LEFT: bool> Body for Pair<A, B, LEFT> {
    type Args = Elementwise;

    #[inline(always)]
    unsafe fn run(args: &Elementwise) {
        let [a, b, c] = args.from;
        debug_assert!(!a.splat);
        // SAFETY: the arguments say what is there and that nothing written overlaps it.
        unsafe {
            let to: &mut [f32] = from_raw_parts_mut(args.to.cast(), args.n);
            let lanes = |operand: Operand| -> &[f32] { from_raw_parts(operand.lanes.cast(), args.n) };
            let first = |operand: Operand| *operand.lanes.cast::<f32>();
            match (b.splat, c.splat) {
                (false, false) => pair::<A, B, LEFT>(to, lanes(a), each(lanes(b)), each(lanes(c))),
                (false, true) => pair::<A, B, LEFT>(to, lanes(a), each(lanes(b)), all(first(c))),
                (true, false) => pair::<A, B, LEFT>(to, lanes(a), all(first(b)), each(lanes(c))),
                (true, true) => pair::<A, B, LEFT>(to, lanes(a), all(first(b)), all(first(c))),
            }
        }
    }
}

#[inline(always)]
fn each(lanes: &[f32]) -> impl Iterator<Item = f32> {
    lanes.iter().copied()
}

#[inline(always)]
fn all(lane: f32) -> impl Iterator<Item = f32> {
    std::iter::repeat(lane)
}

#[inline(always)]
fn pair<A: Zip<In = f32, Out = f32>, B: Zip<In = f32, Out = f32>, const LEFT: bool>(
    to: &mut [f32],
    a: &[f32],
    b: impl Iterator<Item = f32>,
    c: impl Iterator<Item = f32>,
) {
    for (((y, a), b), c) in to.iter_mut().zip(a).zip(b).zip(c) {
        let made = A::apply(*a, b);
        *y = if LEFT { B::apply(made, c) } else { B::apply(c, made) };
    }
}
