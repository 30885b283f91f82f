//! Samples of the composites.

use super::{Operand, Sample};
use crate::composite::{
    Attrs, CompositeDef, activation, attention, batch_norm, dropout, experts, loss, norm, rope, softmax,
};
use crate::dim::Dim;
use crate::types::DType;

pub(super) fn samples() -> Vec<Sample> {
    let mut all = activations();
    all.extend(softmaxes());
    all.extend(norms());
    all.extend(positions());
    all.extend(attentions());
    all.extend(attention_gradients());
    all.extend(mixtures());
    all.extend(losses());
    all
}

fn none() -> Attrs {
    Attrs::default()
}

fn sample(def: &'static CompositeDef, name: &str, operands: Vec<Operand>, attrs: Attrs) -> Sample {
    Sample::new(format!("{}/{name}", def.name), operands, move |b, x| b.composite(def, x, attrs.clone()).to_vec())
}

fn bf16(operands: Vec<Operand>) -> Vec<Operand> {
    let narrow = |o: Operand| if o.ty.dtype == DType::F32 { o.of(DType::BF16) } else { o };
    operands.into_iter().map(narrow).collect()
}

fn activations() -> Vec<Sample> {
    let x = || vec![Operand::float([3, 5]).within(-4.0, 4.0)];
    let tanh = || none().with("tanh", true);
    let whole = vec![Operand::float([3, 5]).whole()];
    let mut all = vec![
        sample(&activation::GELU, "tanh", x(), tanh()),
        sample(&activation::GELU, "tanh/bf16", bf16(x()), tanh()),
        sample(&activation::RELU, "zero", whole, none()).kink(),
    ];
    for def in [&activation::RELU, &activation::GELU, &activation::SILU, &activation::SOFTPLUS] {
        all.push(sample(def, "f32", x(), none()));
        all.push(sample(def, "bf16", bf16(x()), none()));
    }
    all
}

fn softmaxes() -> Vec<Sample> {
    let mut all = Vec::new();
    for def in [&softmax::SOFTMAX, &softmax::LOG_SOFTMAX] {
        let x = || vec![Operand::float([2, 4, 3]).within(-3.0, 3.0)];
        all.push(sample(def, "last", x(), none()));
        all.push(sample(def, "middle", x(), none().with("axis", 1i64)));
        all.push(sample(def, "bf16", bf16(x()), none()));
    }
    all
}

fn norms() -> Vec<Sample> {
    let c = |n: usize| Operand::float([n]).within(0.5, 1.5);
    let layer = || vec![Operand::float([2, 3, 7]), c(7), c(7)];
    let rms = || vec![Operand::float([2, 3, 7]), c(7)];
    let group = || vec![Operand::float([2, 3, 2, 6]), c(6), c(6)];
    let batch = || vec![Operand::float([3, 2, 2, 4]), c(4), c(4), c(4), c(4)];
    let groups = |n: i64| none().with("groups", n);
    let mixed = vec![Operand::float([2, 3, 7]).of(DType::BF16), c(7), c(7)];
    vec![
        sample(&norm::LAYER_NORM, "f32", layer(), none()),
        sample(&norm::LAYER_NORM, "bf16", bf16(layer()), none()),
        sample(&norm::LAYER_NORM, "bf16/weights", mixed, none()),
        sample(&norm::LAYER_NORM, "eps", vec![Operand::float([5]), c(5), c(5)], none().with("eps", 0.1)),
        sample(&norm::RMS_NORM, "f32", rms(), none()),
        sample(&norm::RMS_NORM, "bf16", bf16(rms()), none()),
        sample(&norm::RMS_NORM, "eps", rms(), none().with("eps", 0.1)),
        sample(&norm::GROUP_NORM, "groups", group(), groups(3)),
        sample(&norm::GROUP_NORM, "instance", group(), groups(6)),
        sample(&norm::GROUP_NORM, "bf16", bf16(group()), groups(2)),
        sample(&norm::GROUP_NORM, "vectors", vec![Operand::float([3, 6]), c(6), c(6)], groups(2)),
        sample(&batch_norm::BATCH_NORM, "images", batch(), none()).differentiable(1),
        sample(&batch_norm::BATCH_NORM, "momentum", batch(), none().with("momentum", 0.3).with("eps", 0.01))
            .differentiable(1),
        sample(&batch_norm::BATCH_NORM, "rows", vec![Operand::float([5, 3]), c(3), c(3), c(3), c(3)], none())
            .differentiable(1),
        sample(&batch_norm::BATCH_NORM, "bf16", bf16(batch()), none()).differentiable(1),
        sample(&batch_norm::BATCH_NORM_INFERENCE, "images", batch(), none()),
        sample(&batch_norm::BATCH_NORM_INFERENCE, "bf16", bf16(batch()), none()),
    ]
}

fn positions() -> Vec<Sample> {
    let heads = |d: usize| Operand::float([2, 3, 2, d]);
    let shared = || Operand::int([3], 0, 50);
    let own = || Operand::int([2, 3], 0, 50);
    let dropped = || vec![Operand::float([4, 5]), Operand::key()];
    let interleaved = || none().with("interleaved", true);
    vec![
        sample(&rope::ROPE, "half", vec![heads(6), shared()], none()),
        sample(&rope::ROPE, "half/batch", vec![heads(4), own()], none().with("base", 500.0)),
        sample(
            &rope::ROPE,
            "frequencies",
            vec![heads(6), shared(), Operand::float([3]).within(0.01, 1.0)],
            none().with("has_frequencies", true),
        ),
        sample(&rope::ROPE, "interleaved", vec![heads(6), shared()], interleaved()),
        sample(&rope::ROPE, "interleaved/batch", vec![heads(4), own()], interleaved()),
        sample(&rope::ROPE, "bf16", vec![heads(4).of(DType::BF16), shared()], none()),
        sample(&dropout::DROPOUT, "rate", dropped(), none().with("rate", 0.4).with("stream", 7i64)),
        sample(&dropout::DROPOUT, "none", dropped(), none().with("rate", 0.0)),
        sample(&dropout::DROPOUT, "bf16", bf16(dropped()), none().with("rate", 0.5)),
    ]
}

/// Query, key and value of 2 examples with heads of size 4.
fn qkv(t: usize, s: usize, heads: usize, key_heads: usize) -> Vec<Operand> {
    vec![Operand::float([2, t, heads, 4]), Operand::float([2, s, key_heads, 4]), Operand::float([2, s, key_heads, 4])]
}

/// The settings and operands of attention that its samples and those of its gradient share.
fn attention_cases() -> Vec<(&'static str, Vec<Operand>, Attrs)> {
    let mask = || Operand::bool([2, 5]);
    let hidden = || mask().within(0.0, 0.4);
    let place = |at: i32| Operand::int([], at, at + 1);
    let and = |mut operands: Vec<Operand>, more: Vec<Operand>| {
        operands.extend(more);
        operands
    };
    let causal = || none().with("causal", true);
    let masked = |attrs: Attrs| attrs.with("has_mask", true);
    let placed = |attrs: Attrs| attrs.with("has_position", true);
    vec![
        ("plain", qkv(3, 5, 2, 2), none()),
        ("scale", qkv(3, 5, 1, 1), none().with("scale", 0.25)),
        ("causal", qkv(5, 5, 2, 2), causal()),
        ("grouped", qkv(4, 4, 4, 2), causal()),
        ("one_key_head", qkv(3, 4, 3, 1), none()),
        ("mask", and(qkv(4, 5, 2, 1), vec![mask()]), masked(none())),
        ("mask/causal", and(qkv(5, 5, 2, 2), vec![mask()]), masked(causal())),
        ("mask/none_visible", and(qkv(2, 5, 2, 1), vec![hidden()]), masked(none())),
        ("window", qkv(6, 6, 2, 2), causal().with("window", 3i64)),
        ("window/both", qkv(6, 6, 1, 1), none().with("window", 2i64)),
        ("position", and(qkv(2, 6, 2, 1), vec![place(3)]), placed(causal())),
        ("position/window", and(qkv(2, 6, 1, 1), vec![place(3)]), placed(causal()).with("window", 2i64)),
        ("position/mask", and(qkv(2, 5, 2, 1), vec![mask(), place(2)]), placed(masked(causal()))),
        ("bf16", bf16(qkv(4, 4, 4, 2)), causal()),
    ]
}

fn attentions() -> Vec<Sample> {
    let one = |(name, operands, attrs): (&str, Vec<Operand>, Attrs)| {
        // Where a query may see no key, log_sum_exp is minus infinity and has no finite differences.
        let results = if name.contains("mask") { 1 } else { 2 };
        sample(&attention::ATTENTION, name, operands, attrs).differentiable(results)
    };
    attention_cases().into_iter().map(one).collect()
}

fn attention_gradients() -> Vec<Sample> {
    let one = |(name, mut operands, attrs): (&str, Vec<Operand>, Attrs)| {
        let query = operands[0].clone();
        let [b, t, h] = [0, 1, 2].map(|i: usize| query.ty.shape[i].as_const().expect("samples have numbers for sizes"));
        let log_sum = Operand::float([b, h, t]).within(1.0, 3.0);
        operands.splice(3..3, [query.clone(), log_sum, query]);
        sample(&attention::ATTENTION_GRADIENT, name, operands, attrs)
    };
    attention_cases().into_iter().map(one).collect()
}

fn mixtures() -> Vec<Sample> {
    let rows = |k: usize| Operand::float([3, 2, k]);
    let matrices = |e: usize, k: usize, m: usize| Operand::float([e, k, m]);
    let experts = |most: i32| Operand::int([3, 2], 0, most);
    let matmul = || vec![rows(5), matrices(4, 5, 3), experts(4)];
    let outer = || vec![rows(5), rows(3), experts(3)];
    let transposed = none().with("transpose", true);
    let count = |n: usize| none().with("count", Dim::constant(n));
    vec![
        sample(&experts::EXPERT_MATMUL, "plain", matmul(), none()),
        sample(&experts::EXPERT_MATMUL, "transposed", vec![rows(5), matrices(4, 3, 5), experts(4)], transposed),
        sample(&experts::EXPERT_MATMUL, "one", vec![rows(5), matrices(4, 5, 3), experts(1)], none()),
        sample(&experts::EXPERT_MATMUL, "bf16", bf16(matmul()), none().with("dtype", DType::BF16)),
        sample(&experts::EXPERT_OUTER, "plain", outer(), count(3)),
        sample(&experts::EXPERT_OUTER, "unused", outer(), count(5)),
        sample(&experts::EXPERT_OUTER, "bf16", bf16(outer()), count(3)),
    ]
}

fn losses() -> Vec<Sample> {
    let rows = || vec![Operand::float([6, 5]).within(-3.0, 3.0), Operand::int([6], 0, 5)];
    let sequence = || vec![Operand::float([2, 3, 5]).within(-3.0, 3.0), Operand::int([2, 3], -1, 5)];
    let smooth = || none().with("label_smoothing", 0.2);
    let ignore = || none().with("ignore_index", -1i64);
    let pair = || vec![Operand::float([3, 5]), Operand::float([3, 5])];
    let target = || vec![Operand::float([3, 5]).within(-4.0, 4.0), Operand::float([3, 5]).within(0.0, 1.0)];
    vec![
        sample(&loss::CROSS_ENTROPY, "rows", rows(), none()),
        sample(&loss::CROSS_ENTROPY, "ignore", sequence(), ignore()),
        sample(&loss::CROSS_ENTROPY, "smoothing", rows(), smooth()),
        sample(&loss::CROSS_ENTROPY, "smoothing/ignore", sequence(), smooth().with("ignore_index", -1i64)),
        sample(&loss::CROSS_ENTROPY, "bf16", bf16(rows()), none()),
        sample(&loss::BCE_WITH_LOGITS, "f32", target(), none()),
        sample(&loss::BCE_WITH_LOGITS, "bf16", bf16(target()), none()),
        sample(&loss::MSE, "f32", pair(), none()),
        sample(&loss::MSE, "bf16", bf16(pair()), none()),
    ]
}
