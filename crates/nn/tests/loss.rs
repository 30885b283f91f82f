//! The loss that `tenon forward` gives, against numbers worked out by hand.

use serde_json::{Value as Json, json};
use tenon_nn::forward::{NamedTensor, Values};
use tenon_nn::loss::loss;
use tenon_nn::{ArchitectureSource, Model};

fn tensor(name: &str, shape: &[usize], values: Values) -> NamedTensor {
    NamedTensor { name: name.into(), shape: shape.into(), values }
}

/// The loss of logits with two samples, or the message.
fn of(scores: &[f32], labels: (&[usize], Values), config: &[(&str, Json)]) -> Result<f64, String> {
    let program = "inputs = dict(x = features(\"b\", 2))\n\ndef model(x):\n    return dict(logits = x)\n";
    let source = ArchitectureSource::Text { name: "mine".into(), text: program.into() };
    let model = Model::load(&source, &[]).unwrap();
    let outputs = [
        tensor("logits", &[2, scores.len() / 2], Values::Float(scores.into())),
        tensor("aux_loss", &[], Values::Float(vec![0.25])),
    ];
    let config: Vec<(String, Json)> = config.iter().map(|(key, value)| (key.to_string(), value.clone())).collect();
    loss(&model, &outputs, &tensor("labels", labels.0, labels.1), &config).map_err(|error| error.to_string())
}

#[test]
fn the_labels_and_the_problem_type_choose_the_loss() {
    let scores = [0.0, 2.0, 1.0, 1.0];
    let real = || Values::Float(vec![1.0, 0.0, 0.0, 1.0]);
    let whole = || Values::Int(vec![1, 0, 0, 1]);
    let classes = (((-2.0f64).exp().ln_1p()) + 2.0f64.ln()) / 2.0;
    let squares = (1.0 + 4.0 + 1.0 + 0.0) / 4.0;
    let several = (2.0f64.ln() + 2.0f64.exp().ln_1p() + 1.0f64.exp().ln_1p() + (-1.0f64).exp().ln_1p()) / 4.0;
    let problem = |name: &str| [("problem_type", json!(name))];
    let (regression, multi) = (problem("regression"), problem("multi_label_classification"));
    let null = [("problem_type", Json::Null)];
    let balanced = [("output_router_logits", json!(true))];
    for (found, wanted) in [
        (of(&scores, (&[2], Values::Int(vec![1, 0])), &[]), classes),
        (of(&scores, (&[2], Values::Int(vec![1, 0])), &problem("single_label_classification")), classes),
        (of(&scores, (&[2], Values::Int(vec![1, 0])), &balanced), classes + 0.25),
        (of(&scores, (&[2, 2], real()), &null), several),
        (of(&scores, (&[2, 2], whole()), &multi), several),
        (of(&scores, (&[2, 2], real()), &regression), squares),
        (of(&scores[..2], (&[2], Values::Int(vec![1, 1])), &[]), 1.0),
        (of(&scores[..2], (&[2, 1], Values::Float(vec![1.0, 1.0])), &[]), 1.0),
        (
            of(&scores[..2], (&[2, 1], Values::Float(vec![1.0, 0.0])), &multi),
            (2.0f64.ln() + 2.0f64.exp().ln_1p()) / 2.0,
        ),
    ] {
        assert!((found.clone().unwrap() - wanted).abs() < 1e-6, "{found:?}, expected {wanted}");
    }
    for unfit in [
        of(&scores, (&[2], Values::Int(vec![1, 2])), &[]),
        of(&scores, (&[2], Values::Int(vec![1, 0])), &regression),
        of(&scores, (&[2, 2], whole()), &null),
        of(&scores, (&[3], Values::Int(vec![1, 0, 0])), &[]),
    ] {
        assert!(unfit.as_ref().is_err_and(|e| e.contains("do not fit the model's logits")), "{unfit:?}");
    }
}
