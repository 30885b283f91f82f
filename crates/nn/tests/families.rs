//! The architectures that ship with Tenon: presets, counts, names, shapes.

use tenon_nn::{ArchitectureSource, HyperValue, Model};

fn named(name: &str) -> ArchitectureSource {
    ArchitectureSource::Named(name.to_string())
}

fn load(name: &str, set: &[(&str, HyperValue)]) -> Model {
    let set: Vec<(String, HyperValue)> = set.iter().map(|(k, v)| (k.to_string(), v.clone())).collect();
    Model::load(&named(name), &set).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn presets_have_the_published_parameter_counts() {
    let expected = [
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
        ("simple-nn", 101_770),
        ("vit-b/16", 86_567_656),
        ("resnet-50", 25_557_032),
        ("efficientnet_b0", 5_288_548),
        ("efficientnet-b7", 66_347_960),
        ("bert-base", 109_482_240),
        ("bert-large", 335_141_888),
        ("minilm-l6-h384", 22_713_216),
        ("llama-3.2-1b", 1_235_814_400),
        ("llama-3-8b", 8_030_261_248),
        ("mistral-7b", 7_241_732_096),
        ("qwen2.5-0.5b", 494_032_768),
        ("qwen3-0.6b", 596_049_920),
        ("smollm-135m", 134_515_008),
        ("mixtral-8x7b", 46_702_792_704),
    ];
    for (name, count) in expected {
        let model = load(name, &[]);
        assert_eq!(model.parameter_count(), count, "{name}");
        assert_eq!(model.preset.as_deref(), Some(name));
    }
}

#[test]
fn gpt2_has_its_inputs_outputs_and_controls() {
    let set = [("layers", HyperValue::Int(2)), ("vocab", HyperValue::Int(100))];
    let model = load("gpt2-medium", &set);
    let outputs: Vec<String> = model.outputs.iter().map(|(n, v)| format!("{n} {}", model.graph.ty(*v))).collect();
    assert_eq!(outputs, ["logits f32[b, t, 100]", "last_hidden_state f32[b, t, 1024]"]);
    assert_eq!(model.inputs[0].name, "input_ids");
    assert_eq!(model.hyperparameter("heads"), Some(&HyperValue::Int(16)));
    assert_eq!(model.set, ["layers", "vocab"]);
    let count = |op: &str| model.graph.nodes().filter(|n| model.graph.node(*n).op.name() == op).count();
    assert_eq!((count("dropout"), count("attention")), (5, 2));
    assert!(model.graph.input("random_key").is_some() && model.graph.input("position_offset").is_some());
    let still = load("gpt2", &[("layers", HyperValue::Int(1)), ("rate", HyperValue::Int(0))]);
    assert!(still.graph.input("random_key").is_none());
}

#[test]
fn mlp_takes_images_or_features() {
    let images =
        load("mlp", &[("channels", HyperValue::Int(3)), ("height", HyperValue::Int(4)), ("width", HyperValue::Int(5))]);
    assert_eq!(images.inputs[0].name, "pixel_values");
    assert_eq!(images.inputs[0].shape.to_string(), "[b, 3, 4, 5]");
    assert_eq!(images.parameters[0].shape, [128, 60]);
    let hidden = HyperValue::List(vec![HyperValue::Int(7), HyperValue::Int(6)]);
    let features = load("mlp", &[("features", HyperValue::Int(20)), ("hidden", hidden), ("activation", "silu".into())]);
    assert_eq!(features.inputs[0].name, "input_features");
    let shapes: Vec<_> = features.parameters.iter().map(|p| (p.name.as_str(), p.shape.clone())).collect();
    assert_eq!(shapes[4], ("fc3.weight", vec![10, 6]));
    assert_eq!(features.parameter_count(), 20 * 7 + 7 + 7 * 6 + 6 + 6 * 10 + 10);
}
