//! The names of operations in text form and in messages.

use crate::graph::Phase;
use crate::op::{Direction, Gather, Op, Scatter, Source, View};

impl Op {
    /// The name of the operation.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Source(Source::Input { .. }) => "input",
            Op::Source(Source::Constant { .. }) => "constant",
            Op::Source(Source::Iota { .. }) => "iota",
            Op::Source(Source::Size(_)) => "size",
            Op::Unary(op) => op.def().name,
            Op::Binary(op) => op.def().name,
            Op::Select => "select",
            Op::Cast(_) => "cast",
            Op::Reduce(reduce) => reduce.op.name(),
            Op::View(View::Reshape(_)) => "reshape",
            Op::View(View::Transpose(_)) => "transpose",
            Op::View(View::Broadcast(_)) => "broadcast",
            Op::View(View::Slice { .. }) => "slice",
            Op::View(View::Pad { .. }) => "pad",
            Op::View(View::Concat(_)) => "concat",
            Op::Dot(_) => "matmul",
            Op::Conv(conv) => match conv.direction {
                Direction::Forward => "conv",
                Direction::InputGradient => "conv_input_gradient",
                Direction::WeightGradient => "conv_weight_gradient",
            },
            Op::Pool(pool) => match pool.direction {
                Direction::Forward => "pool",
                Direction::InputGradient | Direction::WeightGradient => "pool_gradient",
            },
            Op::Gather(Gather::Rows) => "gather_rows",
            Op::Gather(Gather::Along(_)) => "gather_along",
            Op::Scatter(Scatter::AddRows(_)) => "scatter_add_rows",
            Op::Scatter(Scatter::AddAlong { .. }) => "scatter_add_along",
            Op::Scatter(Scatter::Write(_)) => "write",
            Op::Sort(_) => "argsort",
            Op::Random(_) => "random_bits",
            Op::Composite(composite) => composite.def.name,
        }
    }
}

impl Phase {
    /// Every phase, in the order of a step.
    pub const ALL: [Phase; 3] = [Phase::Forward, Phase::Backward, Phase::Update];

    /// The name in text form.
    pub const fn name(self) -> &'static str {
        match self {
            Phase::Forward => "forward",
            Phase::Backward => "backward",
            Phase::Update => "update",
        }
    }
}
