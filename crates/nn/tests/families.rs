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
    ];
    for (name, count) in expected {
        let model = load(name, &[]);
        assert_eq!(model.parameter_count(), count, "{name}");
        assert_eq!(model.preset.as_deref(), Some(name));
    }
}
