//! `tenon import` and `tenon forward` on a folder as transformers writes it.

mod common;

use std::path::{Path, PathBuf};

use common::Lab;
use serde_json::{Value as Json, json};
use tenon::nn::forward::{NamedTensor, Values};
use tenon::nn::{ArchitectureSource, HyperValue, Model, export, initialise, load_weights, open};
use tenon::tensors;

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

#[test]
fn what_a_folder_lacks_or_its_config_says_wrong_is_said() {
    let lab = Lab::new("import-config");
    let int = HyperValue::Int;
    let sizes = [("width", int(12)), ("layers", int(1)), ("heads", int(3)), ("vocab", int(12)), ("context", int(8))];
    made(&lab, "llama", "llama", &sizes);
    let mut config: Json = serde_json::from_slice(&std::fs::read(lab.path("llama/config.json")).unwrap()).unwrap();
    // The older spelling of rotary positions, which is written too.
    config.as_object_mut().unwrap().remove("rope_scaling");
    let refused = |file: &str, text: &str, parts: &[&str]| {
        let before = std::fs::read(lab.path(file)).ok();
        lab.write(file, text);
        let said = lab.tenon("import llama --out out").expect(2).stderr;
        for part in parts {
            assert!(said.contains(part), "{part}: {said}");
        }
        match before {
            Some(bytes) => std::fs::write(lab.path(file), bytes).unwrap(),
            None => std::fs::remove_file(lab.path(file)).unwrap(),
        }
    };
    let with = |key: &str, value: Json| {
        let mut config = config.clone();
        config[key] = value;
        config.to_string()
    };
    let scaled = |kind: &str| json!({"rope_type": kind, "rope_theta": 1e4, "factor": 2.0});
    for (key, value, parts) in [
        ("rope_parameters", scaled("llama3"), &["llama3", "low_freq_factor, high_freq_factor", "config.json says"][..]),
        ("rope_parameters", scaled("longrope"), &["longrope", "default, linear, llama3, yarn, dynamic"]),
        ("layer_types", json!(["full_attention", "full_attention"]), &["layer_types has 2 entries for 1 layers"]),
        ("hidden_act", json!("xielu"), &["xielu", "quick_gelu, relu"]),
        (
            "num_hidden_layers",
            json!("1"),
            &["`layers` is a whole number, but is set to \"1\"", "llama/config.json says"],
        ),
        ("architectures", json!(["LlamaForQuestionAnswering"]), &["builds no LlamaForQuestionAnswering"]),
    ] {
        refused("llama/config.json", &with(key, value), parts);
    }
    refused("llama/tokenizer.json", "{bad", &["not JSON", "llama/tokenizer.json"]);
    std::fs::rename(lab.path("llama/model.safetensors"), lab.path("llama/tf_model.h5")).unwrap();
    let absent = lab.tenon("import llama --out out").expect(2).stderr;
    assert!(absent.contains("no weights in it: none of model.safetensors, "), "{absent}");
    std::fs::remove_file(lab.path("llama/config.json")).unwrap();
    let absent = lab.tenon("import llama --out out").expect(2).stderr;
    assert!(absent.contains("llama/config.json: there is no such file"), "{absent}");
    assert!(absent.contains("--architecture"), "{absent}");
    assert!(!lab.path("out").exists());
}

#[test]
fn inputs_that_do_not_fit_are_explained_and_the_problem_of_config_json_chooses_the_loss() {
    let lab = Lab::new("import-forward");
    let int = HyperValue::Int;
    let sizes = [("width", int(12)), ("layers", int(1)), ("heads", int(3)), ("vocab", int(12)), ("classes", int(2))];
    made(&lab, "bert", "bert", &[&sizes[..], &[("head", "classification".into())]].concat());
    let bert = std::fs::read_to_string(lab.path("bert/config.json")).unwrap();
    made(
        &lab,
        "resnet",
        "resnet",
        &[
            ("height", int(32)),
            ("width", int(32)),
            ("names", "transformers".into()),
            ("widths", HyperValue::List([8; 4].map(int).to_vec())),
        ],
    );
    let ints = |name: &str, shape: &[usize]| {
        let values = Values::Int(vec![1; shape.iter().product()]);
        NamedTensor { name: name.into(), shape: shape.into(), values }
    };
    let reals = |name: &str, shape: &[usize]| {
        let values = Values::Float(vec![0.5; shape.iter().product()]);
        NamedTensor { name: name.into(), shape: shape.into(), values }
    };
    let forward = |model: &str, inputs: &[NamedTensor]| {
        tensors::write(&lab.path("in.safetensors"), inputs).unwrap();
        lab.tenon(&format!("forward {model} --inputs in.safetensors --outputs out.safetensors"))
    };
    let uneven = forward("bert", &[ints("attention_mask", &[1, 3]), ints("input_ids", &[1, 4])]).expect(2).stderr;
    assert!(uneven.contains("the tensor is [1, 4]\n  b is 1 in an input before it\n  t is 3 in"), "{uneven}");
    let mut foreign = ints("input_ids", &[2, 3]);
    foreign.values = Values::Int(vec![0, 1, 2, 3, 12, 4]);
    let outside = forward("bert", &[foreign]).expect(2).stderr;
    let expected = "input `input_ids` has 12 at [1, 1], but bert.embeddings.word_embeddings.weight of bert has 12 rows\n  \
                    try: numbers from 0 to 11\n";
    assert!(outside.ends_with(expected), "{outside}");
    let larger = forward("resnet", &[reals("pixel_values", &[1, 3, 40, 48])]).expect(2).stderr;
    assert!(larger.contains("`--set height=40 --set width=48`"), "{larger}");

    let loss = |problem: &str| {
        let mut config: Json = serde_json::from_str(&bert).unwrap();
        config["problem_type"] = json!(problem);
        lab.write("bert/config.json", config.to_string());
        lab.tenon("import bert --out out").expect(0);
        forward("out", &[ints("input_ids", &[1, 4]), reals("labels", &[1, 2])]).expect(0);
        let outputs = tensors::read(&lab.path("out.safetensors")).unwrap();
        let values = |name: &str| match &outputs.iter().find(|t| t.name == name).unwrap().values {
            Values::Float(values) => values.clone(),
            other => panic!("{other:?}"),
        };
        (values("loss")[0], values("logits"))
    };
    let (squares, logits) = loss("regression");
    assert!((squares - logits.iter().map(|x| (x - 0.5) * (x - 0.5)).sum::<f32>() / 2.0).abs() < 1e-5, "{squares}");
    let (several, logits) = loss("multi_label_classification");
    let each = logits.iter().map(|x| x.max(0.0) - x * 0.5 + (-x.abs()).exp().ln_1p());
    assert!((several - each.sum::<f32>() / 2.0).abs() < 1e-5, "{several}");
}

#[test]
fn words_may_be_guessed_with_a_table_of_their_own() {
    let lab = Lab::new("import-untied");
    let int = HyperValue::Int;
    let no = HyperValue::Bool(false);
    let sizes = [("width", int(12)), ("layers", int(1)), ("heads", int(3)), ("vocab", int(12))];
    for (name, own, more) in [
        ("bert", "cls.predictions.decoder.weight", &[("head", "masked_lm".into())][..]),
        ("gpt2", "lm_head.weight", &[]),
    ] {
        let before = made(&lab, name, name, &[&sizes[..], &[("tied", no.clone())], more].concat());
        lab.tenon(&format!("import {name} --out {name}-out")).expect(0);
        let after = same(&lab, &format!("{name}-out"), &before, &[]);
        assert_eq!(after.hyperparameter("tied"), Some(&no));
        let names = tensors::read_header(&lab.path(&format!("{name}-out/model.safetensors"))).unwrap();
        assert!(names.iter().any(|entry| entry.name == own), "{name}");
    }
}

/// A change of the keys of a folder's `config.json`.
fn with_config(lab: &Lab, folder: &str, change: &dyn Fn(&mut serde_json::Map<String, Json>)) {
    let file = format!("{folder}/config.json");
    let mut config: Json = serde_json::from_str(&std::fs::read_to_string(lab.path(&file)).unwrap()).unwrap();
    change(config.as_object_mut().unwrap());
    lab.write(&file, config.to_string());
}

#[test]
fn qwen_3_has_heads_of_128_features_where_its_config_does_not_say() {
    let lab = Lab::new("import-qwen3");
    let int = HyperValue::Int;
    let sizes = [("width", int(16)), ("heads", int(2)), ("layers", int(1)), ("hidden", int(8)), ("vocab", int(12))];
    let before = made(&lab, "llama", "qwen", &[&sizes[..], &[("qk_norm", true.into()), ("head", int(128))]].concat());
    with_config(&lab, "qwen", &|config| assert_eq!(config.remove("head_dim"), Some(json!(128))));
    lab.tenon("import qwen --out out").expect(0);
    same(&lab, "out", &before, &[]);
    // Without a size of its own in the model there is none to write, and transformers would take 128.
    made(&lab, "llama", "own", &[&sizes[..], &[("qk_norm", true.into())]].concat());
    with_config(&lab, "own", &|config| assert_eq!(config.get("architectures"), None));
}

#[test]
fn windows_are_those_of_the_class_where_its_config_does_not_say() {
    let lab = Lab::new("import-windows");
    let int = HyperValue::Int;
    let sizes = [("width", int(16)), ("heads", int(2)), ("layers", int(2)), ("hidden", int(8)), ("vocab", int(12))];
    for (name, class, own) in [
        ("mistral", "MistralForCausalLM", vec![]),
        ("qwen2", "Qwen2ForCausalLM", vec![("qkv_bias", true.into())]),
        ("qwen3", "Qwen3ForCausalLM", vec![("qk_norm", true.into()), ("head", int(8))]),
    ] {
        let qwen = !own.is_empty();
        made(&lab, "llama", name, &[&sizes[..], &own, &[("window", int(5))]].concat());
        let keys = ["sliding_window", "use_sliding_window", "max_window_layers"];
        with_config(&lab, name, &|config| {
            assert_eq!(config["architectures"], json!([class]));
            assert_eq!(keys.map(|key| config[key].clone()), [json!(5), json!(true), json!(0)]);
        });
        let read = |left_out: &[&str]| {
            with_config(&lab, name, &|config| config.retain(|key, _| !left_out.contains(&key.as_str())));
            lab.tenon(&format!("import {name} --out out")).expect(0);
            let model = open(&lab.path("out")).unwrap();
            ["window", "windowed", "window_from"].map(|name| model.hyperparameter(name).unwrap().to_json())
        };
        assert_eq!(read(&[]), [json!(5), json!(true), json!(0)], "{name}");
        let expected = if qwen { [json!(4096), json!(false), json!(28)] } else { [json!(4096), json!(true), json!(0)] };
        assert_eq!(read(&keys), expected, "{name}");
    }
}

#[test]
fn what_changes_numbers_only_is_that_of_the_class_where_its_config_does_not_say() {
    let lab = Lab::new("import-unsaid");
    let int = HyperValue::Int;
    let sizes = [("width", int(64)), ("heads", int(4)), ("layers", int(1)), ("vocab", int(12))];
    let experts = [("hidden", int(8)), ("experts", int(8)), ("plain_hidden", int(8)), ("head", int(4))];
    let of_qwen_2 =
        [("qk_norm", false.into()), ("qkv_bias", true.into()), ("alternate", true.into()), ("shared", int(8))];
    let heads = [("head", int(16)), ("hidden", int(8))];
    for (architecture, set, left_out, name, expected) in [
        ("qwen_moe", &experts[..], "num_experts_per_tok", "chosen", json!(8)),
        ("qwen_moe", &[&experts[..], &of_qwen_2].concat(), "num_experts_per_tok", "chosen", json!(4)),
        ("qwen_moe", &experts, "rope_theta", "base", json!(1e4)),
        ("moe", &heads, "num_attention_heads", "heads", json!(32)),
        ("llama", &heads, "num_attention_heads", "heads", json!(32)),
        ("roberta", &[("inner", int(8))], "layer_norm_eps", "eps", json!(1e-12)),
    ] {
        made(&lab, architecture, "in", &[&sizes[..], set].concat());
        with_config(&lab, "in", &|config| {
            assert!(config.remove(left_out).is_some(), "{architecture}: {left_out}");
            // Where newer versions have `rope_theta`.
            config.remove("rope_parameters");
        });
        // Another number of heads does not fit these weights: here only what is read counts.
        let model = open(&lab.path("in")).unwrap_or_else(|error| panic!("{architecture}: {error}"));
        assert_eq!(model.hyperparameter(name).unwrap().to_json(), expected, "{architecture}: {left_out}");
    }
}

#[test]
fn qwen_2_with_experts_has_its_window_in_every_second_layer() {
    let lab = Lab::new("import-qwen2-moe");
    let int = HyperValue::Int;
    let sizes = [("width", int(16)), ("heads", int(2)), ("layers", int(4)), ("hidden", int(8)), ("vocab", int(12))];
    let more = [("plain_hidden", int(8)), ("experts", int(2)), ("chosen", int(1)), ("window", int(2))];
    let of_qwen_2 = [("qk_norm", false), ("qkv_bias", true), ("alternate", true), ("windowed", true)];
    let of_qwen_2 = of_qwen_2.map(|(name, value)| (name, value.into()));
    made(&lab, "qwen_moe", "moe", &[&sizes[..], &more, &of_qwen_2, &[("window_until", int(2))]].concat());
    let ids = NamedTensor { name: "input_ids".into(), shape: vec![1, 6], values: Values::Int((0..6).collect()) };
    tensors::write(&lab.path("in.safetensors"), &[ids]).unwrap();
    let logits = |windows: Option<[bool; 4]>| {
        with_config(&lab, "moe", &|config| {
            assert_eq!(config["architectures"], json!(["Qwen2MoeForCausalLM"]));
            let kind = |windowed| if windowed { "sliding_attention" } else { "full_attention" };
            config.remove("layer_types");
            config.extend(windows.map(|windows| ("layer_types".to_string(), json!(windows.map(kind)))));
        });
        lab.tenon("forward moe --inputs in.safetensors --outputs out.safetensors").expect(0);
        let outputs = tensors::read(&lab.path("out.safetensors")).unwrap();
        outputs.into_iter().find(|t| t.name == "logits").unwrap()
    };
    assert_eq!(logits(None), logits(Some([true, false, false, false])));
    assert_ne!(logits(None), logits(Some([true, false, true, false])));

    let name = "model.layers.0.mlp.experts.gate_up_proj".into();
    let together = NamedTensor { name, shape: vec![2, 16, 16], values: Values::Float(vec![0.0; 512]) };
    tensors::write(&lab.path("moe/model.safetensors"), &[together]).unwrap();
    let refused = lab.tenon("import moe --out out").expect(2).stderr;
    assert!(refused.contains("try: the experts' matrices are in one tensor"), "{refused}");
}
