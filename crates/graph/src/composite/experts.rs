//! Products of rows with one of several matrices each, as a sparse mixture of experts has them (Shazeer et al. 2017;
//! Gale et al. 2022). Backends compute for each row only the product with its own matrix; the expansions here, which
//! compute all, say what that means.

use super::{AttrDef, Backprop, CompositeDef, CompositeGradient, Gradients, Lowering, OperandDef};
use super::{require, require_shape, results, wide};
use crate::composite::{Attr, Attrs};
use crate::dim::Dim;
use crate::op::Dot;
use crate::tensor::Tensor;
use crate::types::{DType, Type};

const EXPERTS: OperandDef = OperandDef::of(DType::I32, "experts", "[n, r], which matrix a row takes");
const DTYPE: AttrDef = AttrDef {
    name: "dtype",
    doc: "the element type of the result; accumulation is always f32",
    default: Attr::DType(DType::F32),
};

/// See [`CompositeDef::doc`].
pub static EXPERT_MATMUL: CompositeDef = CompositeDef {
    name: "expert_matmul",
    doc: "x[i, j] W[experts[i, j]] as [n, r, m]: each row times the matrix that it names. Running it with an index that is
outside the matrices is an error.",
    operands: &[
        OperandDef::float("x", "[n, r, k]"),
        OperandDef::float("weights", "[e, k, m], transposed [e, m, k]"),
        EXPERTS,
    ],
    attrs: &[
        AttrDef { name: "transpose", doc: "whether the matrices are transposed", default: Attr::Bool(false) },
        DTYPE,
    ],
    results: 1,
    expand: |_, inputs, attrs| results(&EXPERT_MATMUL, matmul(inputs, attrs).map(|y| vec![y])),
    gradient: CompositeGradient::Rule(|p| {
        let transposed = p.attrs.flag("transpose");
        rule(p, |dy| {
            let [x, weights, experts] = [p.inputs[0], p.inputs[1], p.inputs[2]];
            let sides = if transposed { [dy, x] } else { [x, dy] };
            let dx = product(dy, weights, experts, !transposed).cast(x.dtype());
            Some([dx, outer(sides, experts, weights.shape()[0]).cast(weights.dtype())])
        })
    }),
    lowering: Lowering::Kernel,
};

/// See [`CompositeDef::doc`].
pub static EXPERT_OUTER: CompositeDef = CompositeDef {
    name: "expert_outer",
    doc:
        "The sum of left[i, j]^T right[i, j] over the rows of each expert, as [e, k, m]: the gradient of the matrices of
`expert_matmul`. An expert without rows gets 0.",
    operands: &[OperandDef::float("left", "[n, r, k]"), OperandDef::float("right", "[n, r, m]"), EXPERTS],
    attrs: &[AttrDef { name: "count", doc: "how many matrices there are", default: Attr::Size(Dim::ONE) }, DTYPE],
    results: 1,
    expand: |_, inputs, attrs| results(&EXPERT_OUTER, sums(inputs, attrs).map(|y| vec![y])),
    gradient: CompositeGradient::Rule(|p| {
        rule(p, |dy| {
            let [left, right, experts] = [p.inputs[0], p.inputs[1], p.inputs[2]];
            let dleft = product(right, dy, experts, true).cast(left.dtype());
            Some([dleft, product(left, dy, experts, false).cast(right.dtype())])
        })
    }),
    lowering: Lowering::Kernel,
};

/// The gradients of the two floats from that of the only result.
fn rule<'g>(p: &Backprop<'_, 'g>, of: impl Fn(Tensor<'g>) -> Option<[Tensor<'g>; 2]>) -> Gradients<'g> {
    match p.gradients[0].and_then(of) {
        Some([first, second]) => vec![Some(first), Some(second), None],
        None => vec![None; 3],
    }
}

fn product<'g>(x: Tensor<'g>, weights: Tensor<'g>, experts: Tensor<'g>, transpose: bool) -> Tensor<'g> {
    let attrs = Attrs::default().with("transpose", transpose);
    x.builder().composite(&EXPERT_MATMUL, &[x, weights.cast(x.dtype()), experts], attrs)[0]
}

fn outer<'g>([left, right]: [Tensor<'g>; 2], experts: Tensor<'g>, count: Dim) -> Tensor<'g> {
    let attrs = Attrs::default().with("count", count);
    left.builder().composite(&EXPERT_OUTER, &[left, right.cast(left.dtype()), experts], attrs)[0]
}

/// The rows of `x` as `f32[e, n * r, k]`, those of other experts zero; `count` is `e`.
fn masked<'g>(x: Tensor<'g>, experts: Tensor<'g>, count: Dim) -> Result<Tensor<'g>, Tensor<'g>> {
    let shape = x.shape();
    require(shape.rank() == 3, &[x], || format!("the rows are {shape}, not [n, r, k]"), None)?;
    require_shape("experts", experts, &shape[..2])?;
    let Some(rows) = shape[0].times(shape[1]) else {
        return Err(x.builder().fail(format!("{shape} has too many rows"), &[x], None));
    };
    let own = experts.reshape([Dim::ONE, rows, Dim::ONE]);
    let chosen = x.builder().iota(0, Type::new(DType::I32, [count, Dim::ONE, Dim::ONE])).equal(own);
    let x = wide(x).reshape([Dim::ONE, rows, shape[2]]);
    Ok(chosen.select(x, x.constant_like(0.0)))
}

fn require_one_type<'g>(a: Tensor<'g>, b: Tensor<'g>) -> Result<(), Tensor<'g>> {
    let (left, right) = (a.dtype(), b.dtype());
    require(left == right, &[a, b], || format!("element types differ: {left} and {right}"), Some("cast one side"))
}

fn matmul<'g>(inputs: &[Tensor<'g>], attrs: &Attrs) -> Result<Tensor<'g>, Tensor<'g>> {
    let [x, weights, experts] = [inputs[0], inputs[1], inputs[2]];
    let (shape, matrices, transpose_b) = (x.shape(), weights.shape(), attrs.flag("transpose"));
    require_one_type(x, weights)?;
    let inner = if transpose_b { 2 } else { 1 };
    require(
        matrices.rank() == 3 && shape.rank() == 3 && matrices[inner] == shape[2],
        &[x, weights],
        || format!("the matrices are {matrices}, axis {inner} not the {shape}'s last"),
        None,
    )?;
    let dot = Dot { transpose_a: false, transpose_b, dtype: DType::F32 };
    let all = masked(x, experts, matrices[0])?.dot(wide(weights), dot);
    Ok(all.sum(&[0]).reshape([shape[0], shape[1], matrices[3 - inner]]).cast(attrs.dtype("dtype")))
}

fn sums<'g>(inputs: &[Tensor<'g>], attrs: &Attrs) -> Result<Tensor<'g>, Tensor<'g>> {
    let [left, right, experts] = [inputs[0], inputs[1], inputs[2]];
    require_one_type(left, right)?;
    let (rows, count) = (right.shape(), attrs.size("count"));
    require(
        rows.rank() == 3 && left.shape().rank() == 3 && left.shape()[..2] == rows[..2],
        &[left, right],
        || format!("rows of {} and {rows} do not pair", left.shape()),
        None,
    )?;
    let left = masked(left, experts, count)?;
    let flat = wide(right).reshape([Dim::ONE, left.shape()[1], rows[2]]);
    let right = flat.broadcast([count, left.shape()[1], rows[2]]);
    let dot = Dot { transpose_a: true, transpose_b: false, dtype: DType::F32 };
    Ok(left.dot(right, dot).cast(attrs.dtype("dtype")))
}
