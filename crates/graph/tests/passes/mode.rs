//! Programs from one model: training, evaluation, decoding.

use super::model::{C, CONTEXT, D, H, V, gpt, symbol, values};
use proptest::prelude::*;
use tenon_graph::composite::batch_norm::BATCH_NORM;
use tenon_graph::composite::{Attrs, composite};
use tenon_graph::dim::Bindings;
use tenon_graph::graph::Graph;
use tenon_graph::op::{Op, Role};
use tenon_graph::passes::bind::bind;
use tenon_graph::passes::mode::{POSITION, POSITION_OFFSET, for_decoding, for_evaluation, for_training};
use tenon_graph::reference::{Array, Precision, evaluate};
use tenon_graph::tensor::Builder;
use tenon_graph::text::print;
use tenon_graph::types::{DType, Type};
use tenon_graph::verify::verify;

fn sizes(b: usize, t: usize) -> Bindings {
    [(symbol("b"), b), (symbol("t"), t)].into()
}

fn has(graph: &Graph, composite_name: &str) -> bool {
    let def = composite(composite_name).unwrap();
    graph.nodes().any(|n| matches!(&graph.node(n).op, Op::Composite(c) if c.def.name == def.name))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// However a text is cut into pieces, decoding them one after the other gives what one evaluation gives.
    #[test]
    fn decoding_in_pieces_is_evaluation(seed: u64, pieces in prop::collection::vec(1usize..5, 1..4), extra in 0usize..3) {
        let total: usize = pieces.iter().sum();
        let model = gpt(2, true, false);
        let evaluation = for_evaluation(&model).unwrap();
        let bound = bind(&evaluation, &sizes(2, total)).unwrap();
        let inputs = values(&bound, seed);
        let whole = evaluate(&evaluation, &sizes(2, total), &inputs, Precision::F32).unwrap().outputs["logits"].clone();

        let decoding = for_decoding(&model, (total + extra).min(CONTEXT)).unwrap();
        verify(&decoding).unwrap();
        let mut state = values(&bind(&decoding, &sizes(2, 1)).unwrap(), seed);
        state.extend(inputs.iter().filter(|(name, _)| *name != "input_ids").map(|(n, a)| (n.clone(), a.clone())));
        let tokens = &inputs["input_ids"].data;
        let mut done = 0;
        for piece in pieces {
            let part: Vec<f64> = [0, 1].iter().flat_map(|b| tokens[b * total + done..][..piece].to_vec()).collect();
            state.insert("input_ids".into(), Array::new(DType::I32, [2, piece], part));
            state.insert(POSITION.into(), Array::scalar(DType::I32, done as f64));
            let step = evaluate(&decoding, &sizes(2, piece), &state, Precision::F32).unwrap();
            for b in 0..2 {
                let found = &step.outputs["logits"].data[b * piece * V..][..piece * V];
                let expected = &whole.data[(b * total + done) * V..][..piece * V];
                prop_assert_eq!(found, expected);
            }
            state.extend(step.updates.into_iter().map(|(name, array)| (name.to_string(), array)));
            done += piece;
        }
    }
}

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
