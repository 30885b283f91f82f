//! Programs from one model: training, evaluation, decoding.

use super::model::{C, CONTEXT, D, H, V, gpt, symbol, values};
use proptest::prelude::*;
use tenon_graph::composite::attention::ATTENTION;
use tenon_graph::composite::batch_norm::BATCH_NORM;
use tenon_graph::composite::norm::LAYER_NORM;
use tenon_graph::composite::rope::ROPE;
use tenon_graph::composite::softmax::SOFTMAX;
use tenon_graph::composite::{Attrs, composite};
use tenon_graph::diagnostic::Site;
use tenon_graph::dim::{Bindings, Dim};
use tenon_graph::elementwise::Binary;
use tenon_graph::graph::Graph;
use tenon_graph::op::{Op, Role};
use tenon_graph::passes::bind::bind;
use tenon_graph::passes::mode::{POSITION, POSITION_OFFSET, for_decoding, for_evaluation, for_training};
use tenon_graph::reference::{Array, Inputs, Precision, evaluate};
use tenon_graph::tensor::{Builder, Tensor};
use tenon_graph::text::print;
use tenon_graph::types::{DType, Shape, Type};
use tenon_graph::verify::verify;

fn sizes(b: usize, t: usize) -> Bindings {
    [(symbol("b"), b), (symbol("t"), t)].into()
}

fn has(graph: &Graph, composite_name: &str) -> bool {
    let def = composite(composite_name).unwrap();
    graph.nodes().any(|n| matches!(&graph.node(n).op, Op::Composite(c) if c.def.name == def.name))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// However a text is cut into pieces, decoding them one after the other gives what one evaluation gives.
    #[test]
    fn decoding_in_pieces_is_evaluation(seed: u64, pieces in prop::collection::vec(1usize..5, 1..4), extra in 0usize..3) {
        let total: usize = pieces.iter().sum();
        let model = gpt(2, true, false);
        let evaluation = for_evaluation(&model).unwrap();
        let bound = bind(&evaluation, &sizes(2, total)).unwrap();
        let inputs = values(&bound, seed);
        let whole = evaluate(&evaluation, &sizes(2, total), &inputs, Precision::F32).unwrap().outputs["logits"].clone();

        let capacity = (total + extra).min(CONTEXT);
        prop_assert_eq!(decoded(&model, &inputs, &pieces, capacity), whole.data);
    }

    /// Operations in a row: if one of them mixes tokens the model is refused, else it decodes as it evaluates.
    #[test]
    fn a_model_decodes_as_it_evaluates_or_is_refused(
        seed: u64,
        fine in prop::collection::vec(0..FINE.len(), 0..5),
        mixing in prop::option::weighted(0.4, (0..MIXING.len(), 0usize..5)),
        pieces in prop::collection::vec(1usize..4, 2..4),
    ) {
        let total: usize = pieces.iter().sum();
        let mut chosen: Vec<(&str, Layer)> = fine.iter().map(|i| FINE[*i]).collect();
        if let Some((which, at)) = mixing {
            chosen.insert(at.min(chosen.len()), MIXING[which]);
        }
        let names: Vec<&str> = chosen.iter().map(|(name, _)| *name).collect();
        let g = Builder::new();
        let (b, t) = (Dim::symbol(symbol("b")), Dim::symbol(symbol("t")));
        let tokens = g.input("input_ids", Role::Data, Type::new(DType::I32, [b, t]));
        let offset = g.input(POSITION_OFFSET, Role::Control, Type::new(DType::I32, Shape::scalar()));
        let table = g.input("table", Role::Parameter, Type::new(DType::F32, [V, C]));
        let mut x = table.gather_rows(tokens);
        for (line, (_, layer)) in chosen.iter().enumerate() {
            g.set_site(&Site { file: "own.star".into(), line: line as u32 + 1, column: 5, length: 9, path: "h".into() });
            x = layer(x, offset);
        }
        g.output("logits", x);
        let model = g.finish().unwrap();
        if mixing.is_some() {
            let error = for_decoding(&model, total).map(|_| names.clone()).unwrap_err();
            prop_assert_eq!(names[error.site.line as usize - 1], MIXING[mixing.unwrap().0].0, "{}", error);
            return Ok(());
        }
        let evaluation = for_evaluation(&model).unwrap();
        let inputs = values(&bind(&evaluation, &sizes(2, total)).unwrap(), seed);
        let whole = evaluate(&evaluation, &sizes(2, total), &inputs, Precision::F32).unwrap().outputs["logits"].clone();
        if let Err(error) = for_decoding(&model, total) {
            prop_assert!(false, "{names:?}: {error}");
        }
        prop_assert_eq!(decoded(&model, &inputs, &pieces, total), whole.data, "{:?}", names);
    }
}

/// The logits of a text of `inputs` that is decoded in pieces.
fn decoded(model: &Graph, inputs: &Inputs, pieces: &[usize], capacity: usize) -> Vec<f64> {
    let total: usize = pieces.iter().sum();
    let decoding = for_decoding(model, capacity).unwrap();
    verify(&decoding).unwrap();
    let mut state = values(&bind(&decoding, &sizes(2, 1)).unwrap(), 0);
    state.extend(inputs.iter().filter(|(name, _)| *name != "input_ids").map(|(n, a)| (n.clone(), a.clone())));
    let tokens = &inputs["input_ids"].data;
    let mut rows: Vec<Vec<f64>> = vec![Vec::new(); 2];
    let mut done = 0;
    for piece in pieces {
        let part: Vec<f64> = [0, 1].iter().flat_map(|b| tokens[b * total + done..][..*piece].to_vec()).collect();
        state.insert("input_ids".into(), Array::new(DType::I32, [2, *piece], part));
        state.insert(POSITION.into(), Array::scalar(DType::I32, done as f64));
        let step = evaluate(&decoding, &sizes(2, *piece), &state, Precision::F32).unwrap();
        let logits = &step.outputs["logits"].data;
        for (row, new) in rows.iter_mut().zip(logits.chunks(logits.len() / 2)) {
            row.extend(new);
        }
        state.extend(step.updates.into_iter().map(|(name, array)| (name.to_string(), array)));
        done += piece;
    }
    rows.concat()
}

/// A layer from `[b, t, C]` to the same, given the position of the first token.
type Layer = for<'g> fn(Tensor<'g>, Tensor<'g>) -> Tensor<'g>;

fn weight<'g>(x: Tensor<'g>, shape: &[usize]) -> Tensor<'g> {
    let g = x.builder();
    let name = format!("w{}", g.graph().node_count());
    g.input(&name, Role::Parameter, Type::new(DType::F32, shape))
}

fn heads(x: Tensor<'_>) -> Tensor<'_> {
    let shape = x.shape();
    x.reshape([shape[0], shape[1], H.into(), D.into()])
}

fn attention<'g>(q: Tensor<'g>, k: Tensor<'g>, like: Tensor<'g>) -> Tensor<'g> {
    let attrs = Attrs::default().with("causal", true);
    like.builder().composite(&ATTENTION, &[heads(q), heads(k), heads(like)], attrs)[0].reshape(like.shape())
}

/// The places of the tokens as `[t, 1]`.
fn places<'g>(x: Tensor<'g>, offset: Tensor<'g>) -> Tensor<'g> {
    let t = x.shape()[1];
    (x.builder().iota(0, Type::new(DType::I32, [t])) + offset).cast(DType::F32).reshape([t, Dim::ONE])
}

const FINE: &[(&str, Layer)] = &[
    ("elementwise", |x, _| x.tanh() * 2.0 + x),
    ("linear", |x, _| {
        let b = x.shape()[0];
        x.matmul(weight(x, &[C, C]).reshape([1, C, C]).broadcast([b, C.into(), C.into()]), false, false)
    }),
    ("linear of rows", |x, _| {
        let rows = x.shape()[0].times(x.shape()[1]).unwrap();
        x.reshape([rows, C.into()]).matmul(weight(x, &[C, C]), false, false).reshape(x.shape())
    }),
    ("weights from the left", |x, _| {
        let rows = x.shape()[0].times(x.shape()[1]).unwrap();
        let y = weight(x, &[C, C]).matmul(x.reshape([rows, C.into()]), false, true);
        y.transpose(&[1, 0]).reshape(x.shape())
    }),
    ("norm", |x, _| x.builder().composite(&LAYER_NORM, &[x, weight(x, &[C]), weight(x, &[C])], Attrs::default())[0]),
    ("softmax of features", |x, _| x.builder().composite(&SOFTMAX, &[x], Attrs::default())[0]),
    ("mean of features", |x, _| x - x.mean(&[-1])),
    ("features first", |x, _| x.transpose(&[2, 0, 1]).sin().transpose(&[1, 2, 0])),
    ("features turned", |x, _| {
        let parts = x.split(2, -1);
        x.builder().concat(&[parts[1], parts[0]], -1)
    }),
    ("features sorted", |x, _| x.gather_along(-1, x.argsort(-1, false))),
    ("heads against heads", |x, _| {
        let y = heads(x);
        y.matmul(y, false, true).matmul(y, false, false).reshape(x.shape())
    }),
    ("attention", |x, _| attention(x, x.cos(), x)),
    ("rotated attention", |x, offset| {
        let at = places(x, offset).cast(DType::I32).reshape([x.shape()[1]]);
        let turned = x.builder().composite(&ROPE, &[heads(x), at], Attrs::default())[0].reshape(x.shape());
        attention(turned, turned, x)
    }),
    ("positions", |x, offset| x + places(x, offset) * 0.01),
    ("a table of positions", |x, offset| {
        let at = x.builder().iota(0, Type::new(DType::I32, [x.shape()[1]])) + offset;
        x + weight(x, &[CONTEXT, C]).gather_rows(at)
    }),
];

const MIXING: &[(&str, Layer)] = &[
    ("mean", |x, _| x + x.mean(&[1])),
    ("maximum", |x, _| x + x.max_over(&[1])),
    ("sum of rows", |x, _| {
        let rows = x.shape()[0].times(x.shape()[1]).unwrap();
        x + x.reshape([rows, C.into()]).sum(&[0]).reshape([1, 1, C])
    }),
    ("softmax", |x, _| x.builder().composite(&SOFTMAX, &[x], Attrs::default().with("axis", 1i64))[0]),
    ("scores", |x, _| x + x.matmul(x, false, true).tanh().sum(&[-1])),
    ("contraction", |x, _| x.matmul(x.matmul(x, true, false), false, false)),
    ("raw reshape", |x, _| x.reshape([x.shape()[0], C.into(), x.shape()[1]]).transpose(&[0, 2, 1])),
    ("every token with every token", |x, _| {
        let (s, wide) = (x.shape(), [x.shape()[0], x.shape()[1], x.shape()[1], C.into()]);
        let rows = x.reshape([s[0], s[1], Dim::ONE, C.into()]).broadcast(wide);
        let columns = x.reshape([s[0], Dim::ONE, s[1], C.into()]).broadcast(wide);
        x + (rows * columns).max_over(&[2]).reshape(s)
    }),
    ("sorting", |x, _| x + x.argsort(1, true).cast(DType::F32)),
    ("gathering", |x, _| {
        x.gather_along(1, x.argsort(-1, false).binary(Binary::Mul, x.argsort(-1, false).zeros_like()))
    }),
    ("concatenation", |x, _| {
        let both = x.builder().concat(&[x, x.sin()], 1);
        both.slice(1, 0, x.shape()[1])
    }),
    ("flip", |x, _| {
        let two = x.shape()[1].times(2usize.into()).unwrap();
        x.pad(1, 0, two, 2).slice(1, x.shape()[1], x.shape()[1])
    }),
    ("counting from the first of a piece", |x, _| {
        let t = x.shape()[1];
        x + x.builder().iota(0, Type::new(DType::F32, [t])).reshape([t, Dim::ONE])
    }),
    ("a table from the first of a piece", |x, _| {
        x + weight(x, &[CONTEXT, C]).gather_rows(x.builder().iota(0, Type::new(DType::I32, [x.shape()[1]])))
    }),
    ("the number of tokens", |x, _| x / x.builder().size(x.shape()[1])),
];

#[test]
fn caches_are_named_after_their_scope_and_updated() {
    let decoding = for_decoding(&gpt(2, true, false), 16).unwrap();
    let caches: Vec<String> = decoding
        .inputs()
        .filter(|(_, _, role, _)| *role == Role::Cache)
        .map(|(_, name, _, ty)| format!("{name} {ty}"))
        .collect();
    let cache = |name: &str| format!("cache.{name} f32[b, 16, {H}, {D}]");
    let expected = ["h.0.attn.key", "h.0.attn.value", "h.1.attn.key", "h.1.attn.value"].map(cache);
    assert_eq!(caches, expected);
    assert_eq!(decoding.updates.len(), 4);
    assert!(decoding.input(POSITION_OFFSET).is_none());
    assert!(!has(&decoding, "dropout"));
    assert!(decoding.input("key").is_none(), "nothing is random");
}

#[test]
fn two_attentions_in_one_scope_have_their_own_caches() {
    let text = print(&gpt(2, true, false)).replace("h.1.attn\n", "h.0.attn\n");
    let decoding = for_decoding(&tenon_graph::text::parse(&text).unwrap(), 16).unwrap();
    verify(&decoding).unwrap();
    assert!(decoding.input("cache.h.0.attn.key").is_some() && decoding.input("cache.h.0.attn.2.value").is_some());
}

#[test]
fn training_keeps_the_model_and_starts_at_the_first_place() {
    let model = gpt(1, true, true);
    let training = for_training(&model).unwrap();
    verify(&training).unwrap();
    assert!(training.input(POSITION_OFFSET).is_none());
    assert!(has(&training, "dropout"));
    assert_eq!(training.updates.len(), model.updates.len());
    let position = |line: &str| line.contains("input control position_offset") || line.contains("= constant 0\n");
    let body = |graph: &Graph| print(graph).lines().filter(|l| !position(l)).count();
    assert_eq!(body(&training), body(&model) + 1, "only the input became a constant");
}

#[test]
fn evaluation_uses_running_statistics() {
    let g = Builder::new();
    let x = g.input("x", Role::Data, Type::new(DType::F32, [3, C]));
    let vector = |name: &str, role| g.input(name, role, Type::new(DType::F32, [C]));
    let (weight, bias) = (vector("weight", Role::Parameter), vector("bias", Role::Parameter));
    let (mean, var) = (vector("mean", Role::State), vector("var", Role::State));
    let attrs = Attrs::default().with("eps", 0.25);
    let results = g.composite(&BATCH_NORM, &[x, weight, bias, mean, var], attrs);
    let [y, new_mean, new_var] = [results[0], results[1], results[2]];
    drop(results);
    g.output("y", y);
    g.output("new_mean", new_mean);
    g.update(mean, new_mean);
    g.update(var, new_var);
    let model = g.finish().unwrap();
    let evaluation = for_evaluation(&model).unwrap();
    verify(&evaluation).unwrap();
    assert!(evaluation.updates.is_empty());
    assert!(has(&evaluation, "batch_norm_inference") && !has(&evaluation, "batch_norm"));
    assert_eq!(evaluation.output("new_mean"), evaluation.input("mean"), "the statistics stay as they are");
    assert!(print(&evaluation).contains("{eps: 0.25}"));
    assert_eq!(for_training(&model).unwrap().updates.len(), 2);
}

#[test]
fn a_model_that_cannot_decode_says_why() {
    let error = for_decoding(&gpt(1, false, false), 16).unwrap_err().to_string();
    let expected = "this model cannot decode: an attention cannot keep its keys and values, because it is not causal
  --> gpt.star:10:5, in h.0.attn
  f32[b, t, 2, 4] from reshape (gpt.star:10:5)
  f32[b, t, 2, 4] from reshape (gpt.star:10:5)
  f32[b, t, 2, 4] from reshape (gpt.star:10:5)
  try: decode only with models whose every attention is causal";
    assert_eq!(error, expected);
}
