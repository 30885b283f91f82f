//! Matrix products and tables.

use tenon_graph::composite::Attrs;
use tenon_graph::composite::experts::EXPERT_MATMUL;
use tenon_graph::dim::Dim;
use tenon_graph::op::{Op, Role, Source};
use tenon_graph::tensor::Tensor;
use tenon_graph::types::Shape;

use super::{Outcome, function};
use crate::error::ModelError;
use crate::function::{Argument, Call, Function};
use crate::init::Initialiser;
use crate::session::Declaration;

pub(super) const INTRODUCTION: &str = "Weights have PyTorch's layout. Where `init` or `bias_init` is None they start as \
PyTorch's do: uniform within 1 / sqrt(inputs).";

pub(super) fn functions() -> Vec<Function> {
    vec![
        function(
            "linear",
            "x, out, name, bias = True, init = None, bias_init = None",
            "`x` `[.., in]` times the transposed weight `name.weight` `[out, in]`, plus `name.bias` `[out]`: `[.., out]`.",
            "linear(x, 32, name = \"fc\")",
            linear,
        ),
        function(
            "matmul",
            "left, right, transpose_a = False, transpose_b = False",
            "The matrix product over the last two axes, `[.., m, k]` by `[.., k, n]`; an operand is swapped first if its flag \
             is set. Leading axes are equal, or one operand is a plain matrix that serves all of them.",
            "matmul(sequence, parameter(\"w\", [16, 4], init = normal(0.02)))",
            matmul,
        ),
        function(
            "expert_matmul",
            "x, weights, experts, transpose = False",
            "Each row of `x` times the matrices that it names: `x` `[.., k]`, or `[.., r, k]` with a row for each of them, \
             `weights` `[e, k, m]` (or `[e, m, k]` and `transpose`), `experts` `[.., r]` (`i32`, below `e`): `[.., r, m]`. \
             Only these products are computed, as a sparse mixture of experts wants it (Shazeer et al. 2017).",
            "expert_matmul(sequence, parameter(\"up\", [4, 16, 8], init = normal(0.02)), \
             top_k(linear(sequence, 4, name = \"gate\"), 2)[1])",
            expert_matmul,
        ),
        function(
            "embedding",
            "ids, table, width = None, name = None, init = None",
            "The rows of a table at `ids` (`i32`): `[ids.., width]`. `table` is a tensor `[rows, width]`, or the number of \
             rows of the new parameter `name.weight`, which starts as `init`, by default normal(1.0). Where `ids` are \
             `positions`, sequences longer than the table are refused.",
            "embedding(ids, 1000, 32, name = \"words\")",
            embedding,
        ),
    ]
}

/// The size of the last axis of `x`, which a weight needs as a number.
pub(super) fn features(call: &Call<'_>, x: Tensor<'_>) -> Result<usize, ModelError> {
    match x.shape().last().map(Dim::as_const) {
        Some(Some(n)) => Ok(n),
        Some(None) => Err(call.error(format!("the last size of {} must be a number", x.shape())).note(x.describe())),
        None => Err(call.error("takes a tensor with at least one axis").note(x.describe())),
    }
}

/// The weight `name.suffix` of the layer that this call makes.
pub(super) fn weight<'c>(
    call: &Call<'c>,
    suffix: &str,
    shape: &[usize],
    init: Initialiser,
) -> Result<Tensor<'c>, ModelError> {
    let name = format!("{}.{suffix}", call.text("name")?);
    call.session.declare(&name, Declaration { role: Role::Parameter, shape: shape.to_vec(), init, trainable: true })
}

fn linear(call: &Call<'_>) -> Outcome {
    let (x, out) = (call.tensor("x")?, call.count("out")?);
    let shape = [out, features(call, x)?];
    let init = call.optional_init("init")?.unwrap_or(Initialiser::TORCH_WEIGHT);
    let weight_tensor = weight(call, "weight", &shape, init)?;
    let mut y = product(x, weight_tensor, false, true);
    if call.flag("bias")? {
        let init = call.optional_init("bias_init")?.unwrap_or(Initialiser::torch_bias(&shape));
        y = y + weight(call, "bias", &[out], init)?;
    }
    Ok(y.into())
}

/// `left` by `right`, where one of them may be a plain matrix.
fn product<'g>(left: Tensor<'g>, right: Tensor<'g>, transpose_a: bool, transpose_b: bool) -> Tensor<'g> {
    let (a, b) = (left.shape(), right.shape());
    let stack = |matrix: Tensor<'g>, leading: &[Dim]| {
        let own = matrix.shape();
        matrix.broadcast(leading.iter().chain(&own[..]).copied().collect::<Shape>())
    };
    if a.rank() == 2 && b.rank() > 2 {
        return stack(left, &b[..b.rank() - 2]).matmul(right, transpose_a, transpose_b);
    }
    if b.rank() == 2 && a.rank() > 2 && transpose_a {
        return left.matmul(stack(right, &a[..a.rank() - 2]), transpose_a, transpose_b);
    }
    if b.rank() == 2 && a.rank() != 2 && a.rank() >= 1 {
        // Rows of all leading axes make one tall matrix.
        let (leading, last) = a.split_at(a.rank() - 1);
        let Some(rows) = leading.iter().try_fold(Dim::ONE, |product, d| product.times(*d)) else {
            return left.builder().fail(format!("matmul: {a} has too many symbols"), &[left, right], None);
        };
        let flat = left.reshape([rows, last[0]]).matmul(right, false, transpose_b);
        if flat.is_poisoned() {
            return flat;
        }
        return flat.reshape(leading.iter().copied().chain([flat.shape()[1]]).collect::<Shape>());
    }
    left.matmul(right, transpose_a, transpose_b)
}

fn expert_matmul(call: &Call<'_>) -> Outcome {
    let (x, weights, experts) = (call.tensor("x")?, call.tensor("weights")?, call.tensor("experts")?);
    let (rows, chosen) = (x.shape(), experts.shape());
    let own_rows = rows.rank() == chosen.rank() + 1;
    let lead = chosen.rank().saturating_sub(1);
    let fits = !chosen.is_empty() && rows.rank() >= chosen.rank() && rows[..lead] == chosen[..lead];
    if !(fits && (own_rows && rows[lead] == chosen[lead] || rows.rank() == chosen.rank())) {
        let message = format!("`x` is {rows}, neither [.., k] nor [.., r, k] for experts [.., r] of {chosen}");
        return Err(call.error(message).note(x.describe()).note(experts.describe()));
    }
    let Some(n) = chosen[..lead].iter().try_fold(Dim::ONE, |product, d| product.times(*d)) else {
        return Err(call.error(format!("{chosen} has too many symbols")).note(experts.describe()));
    };
    let (r, k) = (chosen[lead], rows[rows.rank() - 1]);
    let x = x.reshape([n, if own_rows { r } else { Dim::ONE }, k]).broadcast([n, r, k]);
    let attrs = Attrs::default().with("transpose", call.flag("transpose")?).with("dtype", x.dtype());
    let y = call.session.builder.composite(&EXPERT_MATMUL, &[x, weights, experts.reshape([n, r])], attrs)[0];
    if y.is_poisoned() {
        return Ok(y.into());
    }
    Ok(y.reshape(chosen.iter().copied().chain([y.shape()[2]]).collect::<Shape>()).into())
}

fn matmul(call: &Call<'_>) -> Outcome {
    let (left, right) = (call.tensor("left")?, call.tensor("right")?);
    let (swap_a, swap_b) = (call.flag("transpose_a")?, call.flag("transpose_b")?);
    let inner = |shape: &Shape, from_end: usize| shape.rank().checked_sub(from_end).map(|i| shape[i]);
    let ka = inner(&left.shape(), if swap_a { 2 } else { 1 });
    let kb = inner(&right.shape(), if swap_b { 1 } else { 2 });
    match (ka, kb) {
        (Some(ka), Some(kb)) if ka != kb => {
            let error = call.error(format!("inner sizes differ: {ka} and {kb}"));
            let error = error.note(format!("left {}", left.describe())).note(format!("right {}", right.describe()));
            Err(error.help(explain(left, ka, right, kb, swap_b)))
        }
        _ => Ok(product(left, right, swap_a, swap_b).into()),
    }
}

/// What to try where the inner sizes of a product differ.
fn explain(left: Tensor<'_>, ka: Dim, right: Tensor<'_>, kb: Dim, swap_b: bool) -> String {
    let graph = left.builder().graph();
    let node = graph.producer(right.value());
    let swapped = right.rank() == 2 && right.shape()[if swap_b { 0 } else { 1 }] == ka;
    let other = if swap_b { "without transpose_b" } else { "with transpose_b" };
    match &graph.node(node).op {
        Op::Source(Source::Input { name, role: Role::Parameter, .. }) => {
            let rows = if swap_b { "columns" } else { "rows" };
            let mut help =
                format!("{name} was declared with {kb} {rows} at {}; the left operand has {ka}", graph.site(node));
            if swapped {
                help += &format!(", which would fit {other}");
            }
            help
        }
        _ if swapped => format!("the product {other}"),
        _ => "the last size of the left operand must be the first of the right (or its last, with transpose_b)"
            .to_string(),
    }
}

fn embedding(call: &Call<'_>) -> Outcome {
    let ids = call.tensor("ids")?;
    let table = match call.argument("table") {
        Argument::Tensor(_) => call.tensor("table")?,
        _ => {
            let shape = [call.count("table")?, call.count("width")?];
            weight(call, "weight", &shape, call.optional_init("init")?.unwrap_or(Initialiser::Normal { std: 1.0 }))?
        }
    };
    call.session.limit_positions(ids, table)?;
    Ok(table.gather_rows(ids).into())
}
