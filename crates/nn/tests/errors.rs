//! What users read when an architecture is wrong. The texts are snapshots: a change of one is a change of the product.

use tenon_nn::{Architecture, ArchitectureSource, HyperValue, Model};

fn build(program: &str) -> Result<Model, String> {
    let source = ArchitectureSource::Text { name: "my_model.star".to_string(), text: program.to_string() };
    Model::load(&source, &[]).map_err(|e| e.to_string())
}

fn error(program: &str) -> String {
    match build(program) {
        Ok(model) => panic!("built {model}"),
        Err(error) => error,
    }
}

/// The error of a model whose body is these lines.
fn error_in(body: &str) -> String {
    let lines: Vec<String> = body.lines().map(|line| format!("    {line}")).collect();
    error(&format!("inputs = dict(x = features(\"b\", \"t\", 768))\n\ndef model(x):\n{}\n", lines.join("\n")))
}

#[test]
fn wrong_shapes_say_both_sides_and_their_places() {
    let program = r#"
inputs = dict(x = features("b", "t", 768))

def mlp(h):
    h = gelu(h)
    w = parameter("w", [512, 768], init = normal(0.02))
    return matmul(h, w)

def block(x):
    return x + scope("mlp", mlp, x)

def model(x):
    for i in range(4):
        x = scope("h.%d" % i, block, x)
    return x
"#;
    insta::assert_snapshot!("matmul", error(program));
    insta::assert_snapshot!("operator", error_in("y = linear(x, 512, name = \"a\")\nreturn x + y"));
    insta::assert_snapshot!("augmented", error_in("y = x\ny += linear(x, 512, name = \"a\")\nreturn y"));
    insta::assert_snapshot!("heads", error_in("return attention(x, x, x, heads = 7)"));
    insta::assert_snapshot!("reshape", error_in("return reshape(x, [x.shape[0], x.shape[1], 5, -1])"));
    insta::assert_snapshot!("concat", error_in("return concat([x, linear(x, 3, name = \"a\")], axis = 1)"));
    insta::assert_snapshot!("three_operands", error_in("return where(less(x, 0), x, linear(x, 3, name = \"a\"))"));
    insta::assert_snapshot!("dtype", error_in("return embedding(x, 10, 4, name = \"e\")"));
    insta::assert_snapshot!("index", error_in("return select(x, 768, axis = -1)"));
    insta::assert_snapshot!("symbolic_size", error_in("return linear(transpose(x, [0, 2, 1]), 4, name = \"a\")"));
    insta::assert_snapshot!("symbolic_arithmetic", error_in("n = x.shape[1] // 2\nreturn x"));
}

#[test]
fn names_and_arguments() {
    insta::assert_snapshot!("twice", error_in("y = linear(x, 768, name = \"a\")\nreturn linear(y, 768, name = \"a\")"));
    insta::assert_snapshot!("unknown_name", error_in("return layer_nrm(x, name = \"ln\")"));
    insta::assert_snapshot!("unknown_argument", error_in("return linear(x, 4, name = \"a\", biass = False)"));
    insta::assert_snapshot!("missing_argument", error_in("return linear(x, 4)"));
    insta::assert_snapshot!("argument_type", error_in("return linear(x, \"4\", name = \"a\")"));
    insta::assert_snapshot!("too_many", error_in("return relu(x, 1, 2)"));
    insta::assert_snapshot!(
        "user_function",
        error(
            "inputs = dict(x = features(\"b\", 8))\ndef f(a, b):\n    return a\ndef model(x):\n    return f(x, c = 1)\n"
        )
    );
    insta::assert_snapshot!("scope", error_in("return scope(relu, x)"));
    insta::assert_snapshot!("tensor_attribute", error_in("return x.size"));
    insta::assert_snapshot!("initialiser", error_in("return x * parameter(\"s\", [768], init = kaiming_normal())"));
    insta::assert_snapshot!("own_failure", error_in("fail(\"width must be even\")\nreturn x"));
}

#[test]
fn syntax_of_python_that_starlark_lacks() {
    insta::assert_snapshot!("at", error_in("return x @ x"));
    insta::assert_snapshot!("power", error_in("return x ** 2"));
    insta::assert_snapshot!("slices", error_in("return x[:, 0]"));
    insta::assert_snapshot!("two_indices", error_in("return x[0, 1]"));
    insta::assert_snapshot!("while", error_in("while True:\n    pass\nreturn x"));
    insta::assert_snapshot!("import", error("import torch\n"));
    insta::assert_snapshot!("class", error("class Model:\n    pass\n"));
    insta::assert_snapshot!("comparison", error_in("if x < 0:\n    return x\nreturn -x"));
    insta::assert_snapshot!("parenthesis", error_in("return relu(x"));
}

#[test]
fn files_without_their_parts() {
    insta::assert_snapshot!("empty", error(""));
    insta::assert_snapshot!("no_inputs", error("def model(x):\n    return x\n"));
    insta::assert_snapshot!("wrong_inputs", error("inputs = dict(x = 3)\ndef model(x):\n    return x\n"));
    insta::assert_snapshot!(
        "other_inputs",
        error("inputs = dict(y = features(\"b\", 8))\ndef model(x):\n    return x\n")
    );
    insta::assert_snapshot!("no_tensor", error_in("return 3"));
    let surplus = "inputs = dict(x = features(\"b\", 8), y = tokens(\"b\"))\ndef model(x):\n    return x\n";
    insta::assert_snapshot!("surplus_input", error(surplus));
    insta::assert_snapshot!(
        "input_function",
        error("def inputs(n):\n    return dict(x = features(\"b\", n))\ndef model(x, m = 3):\n    return x\n")
    );
    insta::assert_snapshot!(
        "preset",
        error(
            "inputs = dict(x = features(\"b\", 8))\npresets = dict(small = dict(widht = 3))\ndef model(x, width = 3):\n    return x\n"
        )
    );
    insta::assert_snapshot!(
        "checkpoint",
        error(
            "inputs = dict(x = features(\"b\", 8))\ncheckpoint = dict(prefixx = \"a\")\ndef model(x, width = 3):\n    return x\n"
        )
    );
}

#[test]
fn hyperparameters_and_names() {
    let set = |name: &str, value: HyperValue| vec![(name.to_string(), value)];
    let load = |source: &str, set: &[(String, HyperValue)]| match Model::load(&ArchitectureSource::parse(source), set) {
        Ok(model) => panic!("built {model}"),
        Err(error) => error.to_string(),
    };
    insta::assert_snapshot!("architecture", load("gpt-2", &[]));
    insta::assert_snapshot!("file", load("no/such.star", &[]));
    insta::assert_snapshot!("hyperparameter", load("gpt2", &set("layer", HyperValue::Int(3))));
    insta::assert_snapshot!("hyperparameter_type", load("gpt2", &set("layers", HyperValue::from("12"))));
    insta::assert_snapshot!("preset_name", load("gpt2", &set("preset", HyperValue::from("gpt2-big"))));
    insta::assert_snapshot!("width", load("gpt2", &set("width", HyperValue::Int(770))));
}

#[test]
fn programs_that_do_not_end_are_stopped() {
    let nested = "n = 0\nfor i in range(1000000):\n    for j in range(1000000):\n        n = n + 1\nreturn x";
    insta::assert_snapshot!("steps", error_in(nested));
    insta::assert_snapshot!("range", error_in("y = [0 for i in range(1000000000000)]\nreturn x"));
    insta::assert_snapshot!("symbolic_range", error_in("for i in range(x.shape[1]):\n    x = x + 1\nreturn x"));
    insta::assert_snapshot!("list", error_in("y = list(range(1000000000000))\nreturn x"));
    insta::assert_snapshot!("text", error_in("y = \"a\" * 1000000000000\nreturn x"));
    insta::assert_snapshot!(
        "nodes",
        error_in("for i in range(2000):\n    for j in range(1000):\n        x = x + 1\nreturn x")
    );
    insta::assert_snapshot!(
        "recursion",
        error("inputs = dict(x = features(\"b\", 8))\ndef f(x):\n    return f(x)\ndef model(x):\n    return f(x)\n")
    );
    insta::assert_snapshot!("scoped_recursion", error("inputs = dict(x = features(\"b\", 8))\ndef f(x):\n    return scope(\"a\", f, x)\ndef model(x):\n    return f(x)\n").lines().next().unwrap());
    insta::assert_snapshot!(
        "parameters",
        error_in("for i in range(1000000):\n    y = parameter(\"p%d\" % i, [1], init = zeros())\nreturn x")
    );
    insta::assert_snapshot!(
        "elements",
        error_in("return x * parameter(\"p\", [1000000, 1000000, 1000000], init = zeros())")
    );
}

#[test]
fn a_sequence_longer_than_the_context_is_refused() {
    let model = Model::load(&ArchitectureSource::parse("gpt2"), &[("layers".to_string(), HyperValue::Int(1))]).unwrap();
    let symbol = |name| tenon_graph::dim::Symbol::new(name).unwrap();
    let sizes = |t| [(symbol("b"), 2), (symbol("t"), t)].into();
    assert!(model.check(&sizes(1024)).is_ok());
    insta::assert_snapshot!("context", model.check(&sizes(1025)).unwrap_err().to_string());
    let fixed = "inputs = dict(ids = tokens(\"b\", 9))\ndef model(ids):\n    return embedding(positions(ids), 8, 4, name = \"wpe\")\n";
    insta::assert_snapshot!("fixed_context", error(fixed));
}

#[test]
fn an_architecture_says_what_it_takes() {
    let gpt2 = Architecture::load(&ArchitectureSource::parse("gpt2")).unwrap();
    let text: Vec<String> = gpt2.hyperparameters.iter().map(|h| format!("{} = {}", h.name, h.default)).collect();
    assert_eq!(
        text.join(", "),
        "vocab = 50257, context = 1024, layers = 12, width = 768, heads = 12, inner = None, activation = \"gelu_new\", eps = 1e-5, \
         rate = 0.1, words_rate = None, scaled = True, scaled_by_layer = False, tied = True"
    );
    assert!(gpt2.takes("vocab") && !gpt2.takes("input_ids"));
    let mlp = Architecture::load(&ArchitectureSource::parse("mlp")).unwrap();
    let text: Vec<String> = mlp.hyperparameters.iter().map(|h| format!("{} = {}", h.name, h.default)).collect();
    insta::assert_snapshot!("mlp_takes", text.join(", "));
}
