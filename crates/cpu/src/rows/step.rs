//! What a row program does with a tile, one step after the other.

use std::sync::Arc;

use smallvec::{SmallVec, smallvec};

use super::compiled::Code;
use super::elementwise::Formula;
use super::kernel::{Elementwise, Kernel};
use super::reduce::Reduction;

/// How many lanes a register has.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Extent {
    /// One.
    Uniform,
    /// One for each row of the tile.
    Row,
    /// One for each element of the tile.
    Full,
}

/// A register of a tile.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slot {
    /// How many lanes it has.
    pub extent: Extent,
    /// Its number among those of its extent.
    pub index: usize,
}

/// One step; `R` is a value before registers are given out, then a [`Slot`]. Numbers are positions in the tables of the
/// program.
#[derive(Clone)]
pub enum Step<R> {
    /// The same bits everywhere.
    Constant {
        /// The lane.
        bits: u32,
        /// The result.
        to: R,
    },
    /// Elements of a buffer.
    Load {
        /// Which load.
        load: usize,
        /// The result.
        to: R,
    },
    /// Indices of positions, as `u32`.
    Index {
        /// Which positions.
        positions: usize,
        /// The result.
        to: R,
    },
    /// The key of a random node.
    Key {
        /// The buffer of the step's key.
        buffer: usize,
        /// The node's stream.
        stream: u32,
        /// The result.
        to: R,
    },
    /// Random bits.
    Random {
        /// The node's key.
        key: R,
        /// The result.
        to: R,
    },
    /// An elementwise operation.
    Map {
        /// What is computed.
        formula: Formula,
        /// By what.
        kernel: Kernel<Elementwise>,
        /// The operands.
        from: SmallVec<[R; 3]>,
        /// The result.
        to: R,
        /// The store that takes the result, where it may be computed right into the buffer.
        direct: Option<usize>,
    },
    /// Several steps over elements in one.
    Block {
        /// What they do.
        code: Arc<Code>,
        /// On what.
        operands: SmallVec<[Place<R>; 8]>,
    },
    /// Each row of a full value reduced.
    Reduce {
        /// The kernels.
        reduction: Reduction,
        /// The operand.
        from: R,
        /// The result.
        to: R,
    },
    /// A part of a row, or of everything, taken into an accumulator.
    Accumulate {
        /// The kernels.
        reduction: Reduction,
        /// The operand.
        from: R,
        /// The accumulator.
        accumulator: usize,
    },
    /// The result of an accumulator.
    Finish {
        /// The kernels.
        reduction: Reduction,
        /// The accumulator.
        accumulator: usize,
        /// The result.
        to: R,
    },
    /// Rows taken into a column reduction.
    Column {
        /// Which one.
        column: usize,
        /// The operand.
        from: R,
    },
    /// Elements written to a buffer.
    Store {
        /// Which store.
        store: usize,
        /// The operand.
        from: R,
    },
}

/// An operand of a block.
#[derive(Clone, Copy)]
pub enum Place<R> {
    /// Lanes that it reads.
    Lanes(R),
    /// Elements that it reads.
    Elements {
        /// Which load.
        load: usize,
    },
    /// Lanes that it writes.
    Made(R),
    /// Elements that it writes.
    Stored {
        /// Which store.
        store: usize,
    },
}

impl<R: Copy> Step<R> {
    /// What the step reads.
    pub fn reads(&self) -> SmallVec<[R; 3]> {
        match self {
            Step::Constant { .. } | Step::Load { .. } | Step::Index { .. } | Step::Key { .. } | Step::Finish { .. } => {
                smallvec![]
            }
            Step::Random { key, .. } => smallvec![*key],
            Step::Map { from, .. } => from.clone(),
            Step::Block { operands, .. } => operands
                .iter()
                .filter_map(|operand| match operand {
                    Place::Lanes(r) => Some(*r),
                    _ => None,
                })
                .collect(),
            Step::Reduce { from, .. }
            | Step::Accumulate { from, .. }
            | Step::Column { from, .. }
            | Step::Store { from, .. } => smallvec![*from],
        }
    }

    /// What the step writes.
    pub fn writes(&self) -> SmallVec<[R; 1]> {
        match self {
            Step::Constant { to, .. }
            | Step::Load { to, .. }
            | Step::Index { to, .. }
            | Step::Key { to, .. }
            | Step::Random { to, .. }
            | Step::Map { to, .. }
            | Step::Reduce { to, .. }
            | Step::Finish { to, .. } => smallvec![*to],
            Step::Block { operands, .. } => operands
                .iter()
                .filter_map(|operand| match operand {
                    Place::Made(r) => Some(*r),
                    _ => None,
                })
                .collect(),
            Step::Accumulate { .. } | Step::Column { .. } | Step::Store { .. } => smallvec![],
        }
    }

    /// The step with `result` for what it writes and `operand` of what it reads.
    pub fn place<S>(&self, result: impl Fn(R) -> S, operand: impl Fn(R) -> S) -> Step<S> {
        match self {
            Step::Constant { bits, to } => Step::Constant { bits: *bits, to: result(*to) },
            Step::Load { load, to } => Step::Load { load: *load, to: result(*to) },
            Step::Index { positions, to } => Step::Index { positions: *positions, to: result(*to) },
            Step::Key { buffer, stream, to } => Step::Key { buffer: *buffer, stream: *stream, to: result(*to) },
            Step::Random { key, to } => Step::Random { key: operand(*key), to: result(*to) },
            Step::Map { formula, kernel, from, to, direct } => Step::Map {
                formula: *formula,
                kernel: *kernel,
                from: from.iter().map(|r| operand(*r)).collect(),
                to: result(*to),
                direct: *direct,
            },
            Step::Block { code, operands } => Step::Block {
                code: Arc::clone(code),
                operands: operands
                    .iter()
                    .map(|place| match place {
                        Place::Lanes(r) => Place::Lanes(operand(*r)),
                        Place::Elements { load } => Place::Elements { load: *load },
                        Place::Made(r) => Place::Made(result(*r)),
                        Place::Stored { store } => Place::Stored { store: *store },
                    })
                    .collect(),
            },
            Step::Reduce { reduction, from, to } => {
                Step::Reduce { reduction: *reduction, from: operand(*from), to: result(*to) }
            }
            Step::Accumulate { reduction, from, accumulator } => {
                Step::Accumulate { reduction: *reduction, from: operand(*from), accumulator: *accumulator }
            }
            Step::Finish { reduction, accumulator, to } => {
                Step::Finish { reduction: *reduction, accumulator: *accumulator, to: result(*to) }
            }
            Step::Column { column, from } => Step::Column { column: *column, from: operand(*from) },
            Step::Store { store, from } => Step::Store { store: *store, from: operand(*from) },
        }
    }
}
