//! A step that is not finite names the operation that made it so, inside whatever it was fused with.

mod common;

use std::sync::Arc;

use common::{Lab, backend, trainer};
use tenon::graph::backend::Backend;
use tenon::graph::lower::lower;
use tenon::graph::op::Role;
use tenon::graph::tensor::Builder;
use tenon::graph::types::{DType, Type};

/// A model whose hidden features go through `body`, the lines that make `h` of `x`.
fn model(body: &str) -> String {
    format!(
        r#"inputs = dict(input_ids = tokens("b", "t"))

def inner(x):
{body}
    return h * 0.5 + x

def model(input_ids, vocab = 100, context = 16):
    x = embedding(input_ids, vocab, 8, name = "words")
    x = scope("h.0", inner, x) - x * 0.25
    return linear(x, vocab, name = "head")
"#
    )
}

/// (what, lines of `inner`, the expression to blame, what is said of it).
const FAULTS: &[(&str, &str, &str, &str)] = &[
    (
        "log(0)",
        "    h = x * 2.0 + relu(x)\n    h = tanh(x) + log(relu(h) * 0.0)",
        "log(relu",
        "forward pass: log gives -inf",
    ),
    ("log(-1)", "    h = log(relu(x) - 1.0) + exp(x)", "log(relu", "forward pass: log gives NaN"),
    (
        "0/0",
        "    zero = relu(x) * 0.0\n    h = exp(x) + zero / (zero * 2.0)",
        "zero / (",
        "forward pass: div gives NaN",
    ),
    ("1/0", "    zero = relu(x) * 0.0\n    h = exp(x) / zero + x", "exp(x) / zero", "forward pass: div gives inf"),
    ("overflow", "    h = exp(x * 0.01 + 100.0)\n    h = h / (h + 1.0)", "exp(", "forward pass: exp gives inf"),
    (
        "overflow of a product",
        "    h = x * 1e30\n    h = sin(x) + (h * h) * 1e-30",
        "h * h",
        "forward pass: mul gives inf",
    ),
    (
        "behind a mask",
        "    h = where(less(x, 0.0), float(\"-inf\"), x)\n    h = softmax(h) + log(x * 0.0)",
        "log(",
        "forward pass: log gives -inf",
    ),
    ("sqrt backward", "    h = sin(x) + sqrt(relu(x) * 0.0)", "sqrt(relu", "backward pass: div gives inf"),
    (
        "behind a computed mask",
        "    h = softmax(x + log(where(less(x, -1.0), x * 0.0, x * 0.0 + 1.0))) + log(x * 0.0)",
        "log(x * 0.0)",
        "forward pass: log gives -inf",
    ),
    (
        "0 * inf",
        "    h = relu(x) * 0.0\n    h = exp(x) + minimum(log(h), 0.0) * 0.0 + x",
        "log(h)",
        "forward pass: log gives -inf",
    ),
];

#[test]
fn the_operation_that_made_it_is_named() {
    let lab = Lab::new("non-finite");
    let backend = backend();
    let mut wrong = Vec::new();
    for (what, body, blamed, said) in FAULTS {
        let text = model(body);
        let experiment = lab.own(&text);
        let (line, column) = text
            .lines()
            .enumerate()
            .find_map(|(i, line)| Some((i + 1, line.find(blamed)? + 1)))
            .unwrap_or_else(|| panic!("{what}: no {blamed}"));
        for set in [&[][..], &["train.accumulate=2"], &["train.precision=\"bf16\""], &["train.memory=\"200KiB\""]] {
            let setup = lab.setup(&experiment, set);
            let mut trainer = trainer(&setup, &backend);
            let before = trainer.checksum();
            let error = trainer.step().expect_err(what).to_string();
            let place = format!("my_model.star:{line}:{column}, in model/h.0\n");
            if !error.contains(said) || !error.contains(&place) {
                wrong.push(format!("{what} {set:?}: not {said} at {place}{error}"));
            }
            assert!(set.iter().any(|s| s.contains("accumulate")) || trainer.checksum() == before, "{what}");
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    // The command says the same.
    let failed = lab.tenon("train own.toml --out run").expect(2).stderr;
    assert!(failed.contains("log gives -inf"), "{failed}");
}

#[test]
fn a_step_that_writes_over_its_operand_is_looked_into_and_an_input_is_blamed_for_itself() {
    let b = Builder::new();
    let x = b.input("x", Role::Parameter, Type::new(DType::F32, [64usize]));
    b.update(x, x.log() * 0.5 + x);
    let mut session = backend().session(vec![Arc::new(lower(b.finish().unwrap(), true))]).unwrap();
    for (value, blamed) in [(1f32, None), (0.0, Some("log")), (f32::NAN, Some("parameter x"))] {
        let bytes: Vec<u8> = [value; 64].iter().flat_map(|x| x.to_le_bytes()).collect();
        session.input_mut("x").unwrap().copy_from_slice(&bytes);
        let found = session.run_checked(0).unwrap();
        assert_eq!(found.map(|f| f.op).as_deref(), blamed, "{value}");
    }
}
