//! The composites' results have the documented types, and operands that do not fit are errors, never panics.

use tenon_graph::composite::{Attr, Attrs, COMPOSITES, Composite, CompositeDef, composite};
use tenon_graph::dim::{Dim, Symbol};
use tenon_graph::op::{Op, Role};
use tenon_graph::tensor::Builder;
use tenon_graph::types::{DType, Shape, Type};

fn symbol(name: &str) -> Dim {
    Dim::symbol(Symbol::new(name).unwrap())
}

fn types(name: &str, attrs: Attrs, operands: &[Type]) -> Result<Vec<String>, String> {
    let def = composite(name).unwrap();
    let attrs = def.complete(&attrs).map_err(|e| e.message)?;
    let results = Composite { def, attrs }.infer(operands).map_err(|e| e.message)?;
    Ok(results.iter().map(|t| t.to_string()).collect())
}

#[test]
fn result_types_with_named_sizes() {
    use DType::{BF16, Bool, F32, I32, U32};
    let (b, t, v) = (symbol("b"), symbol("t"), Dim::constant(10));
    let none = Attrs::default;
    let rows = |dtype, last: usize| Type::new(dtype, [b, t, last.into()]);
    let vector = |n: usize| Type::new(F32, [n]);
    let heads = |h: usize| Type::new(BF16, [b, t, h.into(), 8.into()]);
    let cases: Vec<(&str, Attrs, Vec<Type>, &[&str])> = vec![
        ("gelu", none(), vec![rows(BF16, 3)], &["bf16[b, t, 3]"]),
        ("softmax", none().with("axis", 1i64), vec![rows(F32, 3)], &["f32[b, t, 3]"]),
        ("layer_norm", none(), vec![rows(BF16, 3), vector(3), vector(3)], &["bf16[b, t, 3]"]),
        ("group_norm", none().with("groups", 2i64), vec![rows(F32, 6), vector(6), vector(6)], &["f32[b, t, 6]"]),
        (
            "batch_norm",
            none(),
            vec![rows(BF16, 3), vector(3), vector(3), vector(3), vector(3)],
            &["bf16[b, t, 3]", "f32[3]", "f32[3]", "f32[3]", "f32[3]"],
        ),
        ("dropout", none(), vec![rows(BF16, 3), Type::new(U32, [2])], &["bf16[b, t, 3]"]),
        ("rope", none(), vec![heads(4), Type::new(I32, [t])], &["bf16[b, t, 4, 8]"]),
        ("rope", none(), vec![heads(4), Type::new(I32, [b, t])], &["bf16[b, t, 4, 8]"]),
        (
            "attention",
            none().with("causal", true).with("has_mask", true),
            vec![heads(4), heads(2), heads(2), Type::new(Bool, [b, t])],
            &["bf16[b, t, 4, 8]", "f32[b, 4, t]"],
        ),
        (
            "attention_gradient",
            none().with("causal", true),
            vec![heads(4), heads(2), heads(2), heads(4), Type::new(F32, [b, 4.into(), t]), heads(4)],
            &["bf16[b, t, 4, 8]", "bf16[b, t, 2, 8]", "bf16[b, t, 2, 8]"],
        ),
        (
            "cross_entropy",
            none(),
            vec![Type::new(BF16, [b, t, v]), Type::new(I32, [b, t])],
            &["f32[b, t]", "f32[b, t]"],
        ),
        ("mse", none(), vec![rows(BF16, 3), rows(F32, 3)], &["f32[b, t, 3]"]),
    ];
    let wrong: Vec<String> = cases
        .into_iter()
        .filter_map(|(name, attrs, operands, expected)| {
            let found = types(name, attrs, &operands);
            (found != Ok(expected.iter().map(|s| s.to_string()).collect())).then(|| format!("{name}: {found:?}"))
        })
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn errors_say_what_does_not_fit() {
    use DType::{F32, I32};
    let x = || Type::new(F32, [2, 4]);
    let none = Attrs::default;
    let qkv = |t: usize, s: usize, h: usize, g: usize| {
        [Type::new(F32, [1, t, h, 4]), Type::new(F32, [1, s, g, 4]), Type::new(F32, [1, s, g, 4])]
    };
    let cases: Vec<(&str, Attrs, Vec<Type>, &str)> = vec![
        ("relu", none(), vec![], "relu: takes x, not 0 operands"),
        ("relu", none(), vec![Type::new(I32, [2])], "relu: x takes floats, not i32[2]"),
        ("relu", none().with("slope", 0.1), vec![x()], "relu: has no setting `slope`"),
        ("softmax", none().with("axis", 2i64), vec![x()], "softmax: axis 2 of a value with 2 axes"),
        ("softmax", none().with("axis", 2.0), vec![x()], "softmax: `axis` is a whole number, not a number"),
        (
            "layer_norm",
            none(),
            vec![x(), Type::new(F32, [3]), Type::new(F32, [4])],
            "layer_norm: weight is [3], not [4]",
        ),
        (
            "group_norm",
            none().with("groups", 3i64),
            vec![x(), Type::new(F32, [4]), Type::new(F32, [4])],
            "group_norm: 4 channels do not form 3 equal groups",
        ),
        (
            "dropout",
            none().with("rate", 1.0),
            vec![x(), Type::new(DType::U32, [2])],
            "dropout: rate is 1, not from 0 to below 1",
        ),
        (
            "attention",
            none().with("causal", true),
            qkv(2, 3, 2, 2).into(),
            "attention: 2 causal queries over 3 keys have no place among them",
        ),
        ("attention", none(), qkv(2, 3, 3, 2).into(), "attention: 3 query heads are not a multiple of 2 key heads"),
        (
            "cross_entropy",
            none(),
            vec![x(), Type::new(I32, [4])],
            "cross_entropy: logits [2, 4] and labels [4] do not fit",
        ),
        ("mse", none(), vec![x(), Type::new(F32, [4])], "mse: shapes differ: [2, 4] and [4]"),
    ];
    let wrong: Vec<String> = cases
        .into_iter()
        .filter_map(|(name, attrs, operands, expected)| {
            let found = types(name, attrs, &operands);
            (found != Err(expected.to_string())).then(|| format!("{name}: {found:?}"))
        })
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Settings as a parser may bring them: every value replaced by an unlikely one of its kind.
fn hostile(def: &CompositeDef) -> Vec<Attrs> {
    let mut all = vec![def.complete(&Attrs::default()).unwrap()];
    for setting in def.attrs {
        let values: Vec<Attr> = match setting.default {
            Attr::Int(_) => [0, 1, -1, 7, i64::MIN, i64::MAX].map(Attr::Int).into(),
            Attr::Float(_) => [0.0, -1.0, 1.0, f64::NAN, f64::INFINITY].map(Attr::Float).into(),
            Attr::Bool(_) => [false, true].map(Attr::Bool).into(),
            Attr::Size(_) | Attr::DType(_) => vec![],
        };
        let more: Vec<Attrs> =
            values.into_iter().flat_map(|v| all.iter().map(move |a| a.clone().with(setting.name, v.clone()))).collect();
        all.extend(more);
        all.truncate(200);
    }
    all
}

#[test]
fn no_operands_make_a_panic() {
    let dims = [Dim::constant(0), Dim::ONE, Dim::constant(2), Dim::constant(6), symbol("b"), symbol("t")];
    let mut state = 1u64;
    let mut pick = |n: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % n
    };
    for def in COMPOSITES {
        let settings = hostile(def);
        for _ in 0..400 {
            let attrs = settings[pick(settings.len())].clone();
            let shared: Shape = (0..pick(5)).map(|_| dims[pick(dims.len())]).collect();
            let operands: Vec<Type> = def
                .operands_with(&attrs)
                .map(|o| {
                    let dtype = o.dtype.unwrap_or(DType::ALL[pick(2)]);
                    let keep = pick(3) > 0;
                    let fresh: Shape = (0..pick(5)).map(|_| dims[pick(dims.len())]).collect();
                    Type { dtype, shape: if keep { shared.clone() } else { fresh } }
                })
                .collect();
            if let Ok(results) = (Composite { def, attrs }).infer(&operands) {
                assert_eq!(results.len(), def.results, "{}", def.name);
            }
        }
    }
}

#[test]
fn a_builder_goes_on_after_a_bad_composite() {
    let b = Builder::new();
    let x = b.input("x", Role::Data, Type::new(DType::F32, [2, 4]));
    let weight = b.input("weight", Role::Parameter, Type::new(DType::F32, [3]));
    let y = b.composite(composite("rms_norm").unwrap(), &[x, weight], Attrs::default())[0];
    let _ = y.exp().sum_all();
    let errors = b.take_errors();
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert_eq!(errors[0].notes, ["f32[2, 4] data x", "f32[3] parameter weight"]);
}

#[test]
fn streams_in_composites_are_taken() {
    let b = Builder::new();
    let x = b.input("x", Role::Data, Type::new(DType::F32, [2]));
    let key = b.input("key", Role::Control, Type::new(DType::U32, [2]));
    b.composite(composite("dropout").unwrap(), &[x, key], Attrs::default().with("stream", 4i64));
    let more = Builder::extend(b.finish().unwrap());
    assert_eq!(more.fresh_stream(), 5);
    let key = more.tensor(more.graph().input("key").unwrap());
    let bits = more.random_bits(key, [3]);
    assert!(matches!(more.graph().op_of(bits.value()), Op::Random(random) if random.stream == 6));
}
