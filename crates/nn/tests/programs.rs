//! Programs that users write: values, sizes, scopes, tying, every function's example.

use proptest::prelude::*;
use tenon_graph::op::Role;
use tenon_nn::{ArchitectureSource, Model, function};

fn build(program: &str) -> Model {
    let source = ArchitectureSource::Text { name: "my_model.star".to_string(), text: program.to_string() };
    Model::load(&source, &[]).unwrap_or_else(|e| panic!("{e}"))
}

const INPUTS: &str = "inputs = dict(x = features(\"b\", 16), sequence = features(\"b\", \"t\", 16), \
image = images(\"b\", 16, 8, 8), ids = tokens(\"b\", \"t\"))\n";

/// The type of the result of an expression over the inputs of the examples.
fn type_of(expression: &str) -> String {
    let model = build(&format!("{INPUTS}def model(x, sequence, image, ids):\n    return {expression}\n"));
    model.graph.ty(model.outputs[0].1).to_string()
}

#[test]
fn the_example_of_every_function_works() {
    let mut failed = Vec::new();
    for f in function::functions() {
        let example = f.example.replace("NAME", f.name);
        // Input types and initialisers are no tensors.
        let body = format!("value = {example}\n    return value if type(value) == \"tensor\" else x");
        let program = format!("{INPUTS}def model(x, sequence, image, ids):\n    {body}\n");
        let source = ArchitectureSource::Text { name: f.name.to_string(), text: program };
        if let Err(error) = Model::load(&source, &[]) {
            failed.push(format!("{}: {error}", f.name));
        }
        let known = example.contains(&format!("{}(", f.name));
        if !known || f.doc.is_empty() {
            failed.push(format!("{}: its example or doc does not show it", f.name));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
}

#[test]
fn shapes() {
    let cases = [
        ("x + 1", "f32[b, 16]"),
        ("1 - x / 2 * -x", "f32[b, 16]"),
        ("x[0]", "f32[16]"),
        ("x[1:3]", "f32[2, 16]"),
        ("slice(x, -4)", "f32[b, 4]"),
        ("slice(x, 0, 10, step = 3)", "f32[b, 4]"),
        ("slice(sequence, 0, sequence.shape[1], axis = 1)", "f32[b, t, 16]"),
        ("select(sequence, -1, axis = -1)", "f32[b, t]"),
        ("image", "f32[b, 8, 8, 16]"),
        ("flatten(image)", "f32[b, 1024]"),
        ("flatten(sequence, first = 2)", "f32[b, t, 16]"),
        ("reshape(sequence, [-1, 16])", "f32[b*t, 16]"),
        ("reshape(sequence, [sequence.shape[0] * sequence.shape[1], 4, -1])", "f32[b*t, 4, 4]"),
        ("split(sequence, [4, 12])[1]", "f32[b, t, 12]"),
        ("stack([x, x], axis = -1)", "f32[b, 16, 2]"),
        ("concat([x, x, x])", "f32[b, 48]"),
        ("pad(sequence, 1, 2)", "f32[b, t, 19]"),
        ("sum(sequence)", "f32[]"),
        ("mean(sequence, [0, -1])", "f32[t]"),
        ("mean(sequence, -1, keep = True)", "f32[b, t, 1]"),
        ("argmax(x)", "i32[b]"),
        ("top_k(x, 3)[1]", "i32[b, 3]"),
        ("less(x, 0)", "bool[b, 16]"),
        ("positions(ids)", "i32[t]"),
        ("embedding(ids, 10, 4, name = \"e\")", "f32[b, t, 4]"),
        ("linear(sequence, 5, name = \"a\")", "f32[b, t, 5]"),
        ("matmul(sequence, transpose(sequence, [0, 2, 1]))", "f32[b, t, t]"),
        ("matmul(sequence, sequence, transpose_b = True)", "f32[b, t, t]"),
        ("matmul(parameter(\"w\", [3, 16], init = zeros()), sequence, transpose_b = True)", "f32[b, 3, t]"),
        ("matmul(select(sequence, 0, axis = 1), parameter(\"w\", [16, 3], init = zeros()))", "f32[b, 3]"),
        ("conv(image, 8, 3, name = \"c\")", "f32[b, 6, 6, 8]"),
        ("conv(image, 8, 3, name = \"c\", stride = 2, padding = \"same\")", "f32[b, 4, 4, 8]"),
        ("conv(image, 8, [3, 1], name = \"c\", stride = 3, padding = \"same-tf\")", "f32[b, 3, 3, 8]"),
        ("conv(image, 32, 2, name = \"c\", groups = 16, padding = [[1, 0], [0, 0]])", "f32[b, 8, 7, 32]"),
        ("max_pool(image, 3, stride = 2, padding = 1)", "f32[b, 4, 4, 16]"),
        ("global_mean_pool(image)", "f32[b, 16]"),
        ("attention(sequence, sequence, sequence, heads = 4, mask = ids, window = 3)", "f32[b, t, 16]"),
        (
            "attention(sequence, linear(sequence, 8, name = \"k\"), linear(sequence, 8, name = \"v\"), heads = 4, kv_heads = 2)",
            "f32[b, t, 16]",
        ),
        ("cast(x, \"bf16\") * 2", "bf16[b, 16]"),
        ("x * sqrt(16) + pow(2, 3)", "f32[b, 16]"),
        ("x / x.shape[0]", "f32[b, 16]"),
        ("broadcast(x[0], [4, 16])", "f32[4, 16]"),
        ("full(1.5, [2, 3])", "f32[2, 3]"),
        ("x if x.shape == sequence.shape[:1] + (16,) else sum(x)", "f32[b, 16]"),
        ("x if x.shape[0] == ids.shape[0] and x.shape[0] != 4 else sum(x)", "f32[b, 16]"),
        ("x if \"%s\" % x.shape[0] == \"b\" and x.rank == 2 and x.dtype == \"f32\" else sum(x)", "f32[b, 16]"),
    ];
    let mut failed = Vec::new();
    for (expression, expected) in cases {
        let found = type_of(expression);
        if found != expected {
            failed.push(format!("{expression}: {found}, not {expected}"));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn scopes_name_parameters_and_places() {
    let model = build(
        r#"
inputs = dict(x = features("b", 8))

def block(x, width, bias = True):
    return x + linear(x, width, name = "fc", bias = bias)

def model(x):
    for i in range(2):
        x = scope("h.%d" % i, block, x, 8, bias = i == 0)
    return scope("outer", lambda y: scope("inner", block, y, width = 8), x)
"#,
    );
    let names: Vec<&str> = model.parameters.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(
        names,
        ["h.0.fc.weight", "h.0.fc.bias", "h.1.fc.weight", "outer.inner.fc.weight", "outer.inner.fc.bias"]
    );
    let last = &model.parameters[4];
    assert_eq!((&*last.site.path, last.site.line, &*last.site.file), ("model/outer/inner", 5, "my_model.star"));
    assert_eq!(model.outputs[0].0, "logits");
}

#[test]
fn a_tensor_used_twice_is_one_parameter() {
    let model = build(
        r#"
inputs = dict(ids = tokens("b", "t"))

def model(ids):
    words = parameter("words", [100, 8], init = normal(1))
    return matmul(embedding(ids, words), words, transpose_b = True)
"#,
    );
    assert_eq!(model.parameters.len(), 1);
    assert_eq!(model.parameter_count(), 800);
}

#[test]
fn states_and_frozen_parameters_are_not_trained() {
    let model = build(
        r#"
inputs = dict(pixel_values = images("b", 3, 8, 8))

def model(pixel_values):
    x = batch_norm(conv(pixel_values, 4, 3, name = "conv", bias = False), name = "bn")
    return x * parameter("scale", [4], init = ones(), trainable = False)
"#,
    );
    let states: Vec<&str> = model.states.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(states, ["bn.running_mean", "bn.running_var"]);
    assert_eq!(model.graph.updates.len(), 2);
    assert_eq!(model.parameter_count() - model.trainable_count(), 4);
    assert_eq!(model.parameters[0].shape, [4, 3, 3, 3]);
    assert_eq!(model.inputs[0].shape.to_string(), "[b, 3, 8, 8]");
    let roles: Vec<Role> = model.graph.inputs().map(|(_, _, role, _)| role).collect();
    assert_eq!(roles.iter().filter(|r| **r == Role::State).count(), 2);
}

#[test]
fn every_node_knows_its_line() {
    let program = "inputs = dict(x = features(\"b\", 8))\n\n\ndef model(x):\n    y = relu(x)\n    return y * 2 + \\\n        linear(x, 8, name = \"a\")\n";
    let model = build(program);
    let line = |name: &str| {
        let node = model.graph.nodes().find(|n| model.graph.node(*n).op.name() == name).unwrap();
        model.graph.site(node).line
    };
    assert_eq!([line("relu"), line("mul"), line("matmul")], [5, 6, 7]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Slices are those of Python.
    #[test]
    fn slices_are_pythons(start in -20i64..20, stop in proptest::option::of(-20i64..20), step in 1usize..5) {
        let clamp = |n: i64| if n < 0 { (n + 16).max(0) } else { n.min(16) };
        let expected = (clamp(start)..stop.map_or(16, clamp)).step_by(step).count();
        let stop = stop.map_or("None".to_string(), |n| n.to_string());
        prop_assert_eq!(type_of(&format!("slice(x, {start}, {stop}, step = {step})")), format!("f32[b, {expected}]"));
    }

    /// No program, however broken, panics.
    #[test]
    fn damaged_programs_are_refused_or_built(place in 0usize..2000, text in "[a-z0-9 ()\\[\\],.:=*+\"\n-]{0,8}") {
        let program = tenon_nn::architecture::BUILT_IN[0].1;
        let mut damaged = program.to_string();
        let at = place.min(program.len());
        if program.is_char_boundary(at) {
            damaged.insert_str(at, &text);
        }
        let source = ArchitectureSource::Text { name: "damaged.star".to_string(), text: damaged };
        let _ = Model::load(&source, &[]).map_err(|e| e.to_string());
    }
}

#[test]
fn blocks_of_built_in_architectures_are_loaded() {
    let program = |file: &str| {
        format!(
            "load(\"{file}\", \"dense\")\n{INPUTS}def model(x, sequence, image, ids):\n    return dense(x, 4, \"fc\")\n"
        )
    };
    let model = build(&program("llama.star"));
    assert_eq!(model.parameters.iter().map(|p| &*p.name).collect::<Vec<_>>(), ["fc.weight"]);
    let source = ArchitectureSource::Text { name: "my_model.star".to_string(), text: program("other.star") };
    let error = Model::load(&source, &[]).unwrap_err().to_string();
    assert!(error.contains("my_model.star:1") && error.contains("no built-in architecture \"other.star\""), "{error}");
    assert!(error.contains("llama.star"), "{error}");
}
