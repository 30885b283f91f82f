//! Reductions in forms that fused units know: over leading, trailing or one run of middle axes.

use crate::diagnostic::Diagnostic;
use crate::graph::Graph;
use crate::lower::fuse::fusible_reduction;
use crate::op::{Op, ReduceOp};
use crate::passes::rewrite::{one, rewrite};

/// Splits every other reduction into such ones.
///
/// # Errors
/// Those of [`rewrite`].
pub fn split_reductions(graph: &Graph) -> Result<Graph, Diagnostic> {
    rewrite(graph, |visit| {
        let Op::Reduce(reduce) = visit.op() else { return None };
        if fusible_reduction(visit.graph, visit.data().inputs[0], reduce) {
            return None;
        }
        let x = visit.operands[0];
        if reduce.op == ReduceOp::ArgMax {
            let (axis, last) = (reduce.axes[0], x.rank() - 1);
            let mut swap: Vec<usize> = (0..x.rank()).collect();
            swap.swap(axis, last);
            return Some(one(x.transpose(&swap).argmax(-1).transpose(&swap)));
        }
        // One axis after the other from the last on: the order is part of the result's bits and does not depend on sizes.
        let reduced = reduce.axes.iter().rev().fold(x, |x, axis| match reduce.op {
            ReduceOp::Sum => x.sum(&[*axis as isize]),
            ReduceOp::Max | ReduceOp::ArgMax => x.max_over(&[*axis as isize]),
        });
        Some(one(reduced))
    })
}
