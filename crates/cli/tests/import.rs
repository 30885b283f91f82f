//! `tenon import` and `tenon forward` on a folder as transformers writes it.

mod common;

use std::path::{Path, PathBuf};

use common::Lab;
use tenon::nn::{ArchitectureSource, HyperValue, Model, export, initialise, load_weights, open};

fn gpt2() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gpt2-tiny")
}

#[test]
fn a_folder_of_transformers_is_imported_with_the_same_weights() {
    let lab = Lab::new("import");
    lab.tenon(&format!("import {} --out gpt", gpt2().display())).expect(0);
    let (before, after) = (gpt2().join("model.safetensors"), lab.path("gpt/model.safetensors"));
    let list = |path: &Path| lab.tenon(&format!("inspect {}", path.display())).expect(0).stdout;
    let sorted = |text: String| {
        let mut lines: Vec<String> = text.lines().map(str::to_string).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(list(&before)), sorted(list(&after)));
    assert!(
        std::fs::read_dir(lab.path("")).unwrap().all(|f| !f.unwrap().file_name().to_string_lossy().contains("part"))
    );
    // Again over the same model, but never over something else.
    lab.tenon(&format!("import {} --out gpt", gpt2().display())).expect(0);
    std::fs::create_dir(lab.path("other")).unwrap();
    lab.write("other/notes.txt", "mine");
    let refused = lab.tenon(&format!("import {} --out other", gpt2().display())).expect(2);
    assert!(refused.stderr.contains("exists and is no model of Tenon's"), "{}", refused.stderr);
}

#[test]
fn what_cannot_be_imported_is_explained() {
    let lab = Lab::new("import-errors");
    let absent = lab.tenon("import some/folder/of/mine --out gpt").expect(2);
    lab.snapshot("import_absent", &absent.stderr);
    let weights = gpt2().join("model.safetensors");
    let unnamed = lab.tenon(&format!("import {} --out gpt", weights.display())).expect(2);
    assert!(unnamed.stderr.contains("--architecture"), "{}", unnamed.stderr);
    let wrong = lab.tenon(&format!("import {} --out gpt --architecture bert-base", weights.display())).expect(2);
    for part in ["missing: embeddings.word_embeddings.weight", "superfluous: ", "more"] {
        assert!(wrong.stderr.contains(part), "{part}: {}", wrong.stderr);
    }
    assert!(!lab.path("gpt").exists());
}

/// A model with initial weights, as a folder without what only Tenon reads.
fn made(lab: &Lab, name: &str, folder: &str, set: &[(&str, HyperValue)]) -> (Model, Vec<Vec<f32>>) {
    let set: Vec<(String, HyperValue)> = set.iter().map(|(key, value)| (key.to_string(), value.clone())).collect();
    let model = Model::load(&ArchitectureSource::Named(name.into()), &set).unwrap_or_else(|e| panic!("{e}"));
    let values: Vec<Vec<f32>> = model.variables().map(|v| initialise(v, 5)).collect();
    export(&model, &values, &lab.path(folder), &[]).unwrap();
    std::fs::remove_file(lab.path(folder).join("tenon.json")).unwrap();
    (model, values)
}

/// Asserts that the folder has the values under these names, but for those that were made anew.
fn same(lab: &Lab, folder: &str, before: &(Model, Vec<Vec<f32>>), anew: &[&str]) -> Model {
    let after = open(&lab.path(folder)).unwrap();
    let values = load_weights(&lab.path(folder), &after).unwrap();
    let bare = |name: &str| name.strip_prefix("bert.").unwrap_or(name).to_owned();
    for (variable, value) in after.variables().zip(&values).filter(|(v, _)| !anew.contains(&&*v.name)) {
        let at = before.0.variables().position(|v| bare(&v.name) == bare(&variable.name)).unwrap();
        assert!(before.1[at] == *value, "{}", variable.name);
    }
    after
}

#[test]
fn a_file_of_another_library_is_told_by_its_names_and_may_get_another_head() {
    let lab = Lab::new("import-heads");
    let int = HyperValue::Int;
    let sizes = [("dim", int(12)), ("hidden", int(20)), ("layers", int(2)), ("heads", int(3)), ("patch", int(8))];
    let more = [("height", int(24)), ("width", int(24)), ("classes", int(7)), ("names", "torchvision".into())];
    let before = made(&lab, "vit", "made", &[&sizes[..], &more].concat());
    let set = "--set dim=12 --set hidden=20 --set layers=2 --set heads=3 --set patch=8 --set height=24 --set width=24";
    let import = |out: &str, classes: usize| {
        lab.tenon(&format!(
            "import made/model.safetensors --architecture vit {set} --set classes={classes} --out {out}"
        ))
    };
    let whole = import("whole", 7).expect(0).stdout;
    assert!(!whole.contains("anew"), "{whole}");
    let after = same(&lab, "whole", &before, &[]);
    assert_eq!(after.hyperparameter("names"), Some(&"torchvision".into()));
    let other = import("other", 3).expect(0).stdout;
    assert!(other.contains("not from the source, but anew: head.weight, head.bias"), "{other}");
    same(&lab, "other", &before, &["head.weight", "head.bias"]);
    // All else has to fit.
    let wider = lab.tenon(&format!("import made/model.safetensors --architecture vit {set} --set hidden=24 --out c"));
    assert!(wider.expect(2).stderr.contains("encoder.layers.encoder_layer_0.mlp.0.weight is [20, 12] in the file"));
    let unknown = lab.tenon("import made/model.safetensors --architecture vit --set names=tv --out c").expect(2);
    lab.snapshot("unknown_names", &unknown.stderr);

    // As timm describes it.
    let before =
        made(&lab, "vit_tiny_patch16_224", "timm", &[("height", int(32)), ("width", int(48)), ("classes", int(7))]);
    let config = |more: &str| {
        let args = format!(r#"{{"img_size": [32, 48]{more}}}"#);
        format!(r#"{{"architecture": "vit_tiny_patch16_224", "num_classes": 7, "model_args": {args}}}"#)
    };
    lab.write("timm/config.json", config(""));
    lab.tenon("import timm --out of-timm").expect(0);
    assert_eq!(same(&lab, "of-timm", &before, &[]).preset.as_deref(), Some("vit_tiny_patch16_224"));
    lab.tenon("import timm --out of-timm --set classes=3").expect(0);
    let written = std::fs::read_to_string(lab.path("of-timm/config.json")).unwrap();
    assert!(written.contains("\"num_classes\": 3"), "{written}");
    lab.write("timm/config.json", config(r#", "qkv_bias": false"#));
    lab.snapshot("timm_variant", &lab.tenon("import timm --out of-timm").expect(2).stderr);

    let sizes = [("width", int(12)), ("inner", int(20)), ("layers", int(1)), ("heads", int(3)), ("vocab", int(30))];
    let before = made(&lab, "bert", "bert", &sizes);
    let tuned = lab.tenon("import bert --set head=classification --set classes=4 --out tuned").expect(0).stdout;
    assert!(tuned.contains("not from the source, but anew: classifier.weight, classifier.bias"), "{tuned}");
    same(&lab, "tuned", &before, &["classifier.weight", "classifier.bias"]);
    let config = std::fs::read_to_string(lab.path("tuned/config.json")).unwrap();
    assert!(config.contains("\"BertForSequenceClassification\"") && config.contains("\"num_labels\": 4"), "{config}");
}

#[test]
fn a_vocabulary_becomes_a_tokenizer() {
    let lab = Lab::new("import-vocabulary");
    let int = HyperValue::Int;
    made(&lab, "bert", "bert", &[("width", int(12)), ("layers", int(1)), ("heads", int(3)), ("vocab", int(12))]);
    lab.write("bert/vocab.txt", "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nwhale\n##s\nswim\n,\nthe\n##ming\n!\n");
    let out = lab.tenon("import bert --out out").expect(0).stdout;
    assert!(out.contains("with its tokenizer"), "{out}");
    let tokenizer = tenon::data::load_tokenizer(&lab.path("out/tokenizer.json")).unwrap();
    let ids = tokenizer.encode("The Whales, swim\u{e9} [MASK]!", true).unwrap().get_ids().to_vec();
    assert_eq!(ids, [2, 9, 5, 6, 8, 1, 4, 11, 3]);
    lab.write("bert/vocab.txt", "a\nb\n");
    let wrong = lab.tenon("import bert --out again").expect(2);
    lab.snapshot("unfit_vocabulary", &wrong.stderr);
}
