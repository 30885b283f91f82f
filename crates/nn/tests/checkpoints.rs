//! Reading and writing weights in the ecosystem's names and layouts.

use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use tenon_nn::{ArchitectureSource, HyperValue, Model, ModelError, export, initialise, load_weights, open};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn small_gpt2() -> Model {
    let set = [("vocab", 31), ("context", 16), ("layers", 2), ("width", 8), ("heads", 2)];
    let set: Vec<_> = set.iter().map(|(k, v)| (k.to_string(), HyperValue::Int(*v))).collect();
    Model::load(&ArchitectureSource::parse("gpt2"), &set).unwrap()
}

fn values(model: &Model) -> Vec<Vec<f32>> {
    model.variables().map(|v| initialise(v, 3)).collect()
}

/// What a message says, without the folder of the test.
fn text(error: ModelError, dir: &Path) -> String {
    error.to_string().replace(&dir.display().to_string(), "DIR")
}

#[test]
fn gpt2_has_the_names_and_shapes_of_transformers() {
    let model = Model::load(&ArchitectureSource::parse("gpt2"), &[]).unwrap();
    let table = &model.architecture.checkpoint;
    let mut ours: Vec<String> = model
        .parameters
        .iter()
        .map(|p| {
            let mut shape = p.shape.clone();
            if table.is_transposed(&p.name) {
                shape.reverse();
            }
            format!("{}{} {shape:?}", table.prefix, p.name)
        })
        .collect();
    let theirs = std::fs::read_to_string(fixture("gpt2_names.txt")).unwrap();
    let mut theirs: Vec<&str> = theirs.lines().collect();
    ours.sort();
    theirs.sort();
    assert_eq!(ours, theirs);
}

#[test]
fn a_checkpoint_of_transformers_is_read() {
    let model = open(&fixture("gpt2_tiny")).unwrap();
    let values = load_weights(&fixture("gpt2_tiny"), &model).unwrap();
    assert_eq!(model.hyperparameter("width"), Some(&HyperValue::Int(4)));
    // The script fills tensors by a formula of their number, in the order of transformers, and the place.
    let order = std::fs::read_to_string(fixture("gpt2_names.txt")).unwrap();
    let order: Vec<&str> = order.lines().filter_map(|l| l.split(' ').next()).collect();
    let tiny: Vec<&str> = order.iter().filter(|n| !n.contains(".h.") || n.contains(".h.0.")).copied().collect();
    for (parameter, values) in model.parameters.iter().zip(&values) {
        let number = tiny.iter().position(|n| *n == format!("transformer.{}", parameter.name)).unwrap();
        let transposed = model.architecture.checkpoint.is_transposed(&parameter.name);
        for (i, value) in values.iter().enumerate() {
            let place = match parameter.shape[..] {
                [out, input] if transposed => (i % input) * out + i / input,
                _ => i,
            };
            let expected = ((number * 37 + place * 11) % 101) as f32 - 50.0;
            assert_eq!(*value, expected / 64.0, "{} {i}", parameter.name);
        }
    }
}

#[test]
fn what_is_exported_is_what_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let model = small_gpt2();
    let values = values(&model);
    export(&model, &values, dir.path(), &[("bos_token_id", 5.into())]).unwrap();
    let again = open(dir.path()).unwrap();
    assert_eq!(again.hyperparameters, model.hyperparameters);
    assert_eq!(load_weights(dir.path(), &again).unwrap(), values);
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(dir.path().join("config.json")).unwrap()).unwrap();
    let expected =
        [("n_layer", 2), ("n_head", 2), ("n_embd", 8), ("vocab_size", 31), ("n_positions", 16), ("bos_token_id", 5)];
    for (key, value) in expected {
        assert_eq!(config[key], value, "{key}");
    }
    assert_eq!(config["architectures"][0], "GPT2LMHeadModel");
    // As transformers would see it, without our own description.
    std::fs::remove_file(dir.path().join("tenon.json")).unwrap();
    assert_eq!(open(dir.path()).unwrap().hyperparameters, model.hyperparameters);
    assert!(std::fs::read_dir(dir.path()).unwrap().all(|f| !f.unwrap().path().ends_with(".part")));
}

#[test]
fn a_users_own_architecture_travels_with_its_weights() {
    let dir = tempfile::tempdir().unwrap();
    let program = "inputs = dict(x = features(\"b\", 8))\n\ndef model(x, width = 4):\n    \
                   return batch_norm(linear(x, width, name = \"fc\"), name = \"bn\")\n";
    let path = dir.path().join("mine.star");
    std::fs::write(&path, program).unwrap();
    let model = Model::load(&ArchitectureSource::File(path), &[("width".into(), HyperValue::Int(6))]).unwrap();
    let values = values(&model);
    let exported = dir.path().join("export");
    export(&model, &values, &exported, &[]).unwrap();
    let again = open(&exported).unwrap();
    assert_eq!(again.hyperparameter("width"), Some(&HyperValue::Int(6)));
    assert_eq!(load_weights(&exported, &again).unwrap(), values);
    assert_eq!(std::fs::read_to_string(exported.join("mine.star")).unwrap(), program);
}

#[test]
fn checkpoints_that_do_not_fit_are_listed() {
    let dir = tempfile::tempdir().unwrap();
    let model = small_gpt2();
    export(&model, &values(&model), dir.path(), &[]).unwrap();
    let set = [("vocab", 32), ("context", 16), ("layers", 1), ("width", 8), ("heads", 2)];
    let set: Vec<_> = set.iter().map(|(k, v)| (k.to_string(), HyperValue::Int(*v))).collect();
    let smaller = Model::load(&ArchitectureSource::parse("gpt2"), &set).unwrap();
    insta::assert_snapshot!("does_not_fit", text(load_weights(dir.path(), &smaller).unwrap_err(), dir.path()));
    let mlp = Model::load(&ArchitectureSource::parse("simple-nn"), &[]).unwrap();
    insta::assert_snapshot!("other_family", text(load_weights(dir.path(), &mlp).unwrap_err(), dir.path()));
}

/// Writes these tensors to a safetensors file.
fn write(path: &Path, tensors: &[(&str, Dtype, &[usize], Vec<u8>)]) {
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| (*name, TensorView::new(*dtype, shape.to_vec(), bytes).unwrap()));
    safetensors::serialize_to_file(views, None, path).unwrap();
}

#[test]
fn half_precision_and_several_files_are_read() {
    let program = "inputs = dict(x = features(\"b\", 2))\ndef model(x):\n    return linear(x, 1, name = \"fc\")\n";
    let source = ArchitectureSource::Text { name: "one.star".to_string(), text: program.to_string() };
    let model = Model::load(&source, &[]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    // 1.5 and -2 in bf16; 0.25 in f16.
    write(&dir.path().join("a.safetensors"), &[("fc.weight", Dtype::BF16, &[1, 2], vec![0xc0, 0x3f, 0x00, 0xc0])]);
    write(&dir.path().join("b.safetensors"), &[("fc.bias", Dtype::F16, &[1], vec![0x00, 0x34])]);
    let index = dir.path().join("model.safetensors.index.json");
    std::fs::write(&index, r#"{"weight_map": {"fc.weight": "a.safetensors", "fc.bias": "b.safetensors"}}"#).unwrap();
    assert_eq!(load_weights(dir.path(), &model).unwrap(), [vec![1.5, -2.0], vec![0.25]]);
    std::fs::write(&index, r#"{"weight_map": {"fc.weight": "../a.safetensors"}}"#).unwrap();
    insta::assert_snapshot!("index_outside", text(load_weights(dir.path(), &model).unwrap_err(), dir.path()));
}

#[test]
fn a_repeated_tied_tensor_must_be_equal() {
    let program = "inputs = dict(ids = tokens(\"b\"))\ncheckpoint = dict(tied = {\"head\": \"words\"})\n\
                   def model(ids):\n    words = parameter(\"words\", [2, 1], init = zeros())\n    \
                   return matmul(embedding(ids, words), words, transpose_b = True)\n";
    let source = ArchitectureSource::Text { name: "tied.star".to_string(), text: program.to_string() };
    let model = Model::load(&source, &[]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let words: Vec<u8> = [1f32, 2.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    for (head, fits) in [([1f32, 2.0], true), ([1.0, 3.0], false)] {
        let head: Vec<u8> = head.iter().flat_map(|x| x.to_le_bytes()).collect();
        write(&path, &[("words", Dtype::F32, &[2, 1], words.clone()), ("head", Dtype::F32, &[2, 1], head)]);
        let found = load_weights(&path, &model);
        assert_eq!(found.is_ok(), fits);
        if let Err(error) = found {
            insta::assert_snapshot!("untied", text(error, dir.path()));
        }
    }
}

#[test]
fn damaged_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let model = small_gpt2();
    export(&model, &values(&model), dir.path(), &[]).unwrap();
    let path = dir.path().join("model.safetensors");
    let whole = std::fs::read(&path).unwrap();
    let header = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let mut longer = whole.clone();
    longer[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let mut garbled = whole.clone();
    garbled[8..40].fill(b'x');
    let half = whole[..whole.len() / 2].to_vec();
    for (name, bytes) in [
        ("empty", vec![]),
        ("half", half),
        ("header", whole[..header].to_vec()),
        ("longer", longer),
        ("garbled", garbled),
    ] {
        std::fs::write(&path, bytes).unwrap();
        insta::assert_snapshot!(name, text(load_weights(dir.path(), &model).unwrap_err(), dir.path()));
    }
    std::fs::remove_file(&path).unwrap();
    insta::assert_snapshot!("absent", text(load_weights(dir.path(), &model).unwrap_err(), dir.path()));
    std::fs::write(dir.path().join("tenon.json"), "{\"architecture\": \"../x.star\"}").unwrap();
    insta::assert_snapshot!("description", text(open(dir.path()).unwrap_err(), dir.path()));
    std::fs::remove_file(dir.path().join("tenon.json")).unwrap();
    std::fs::write(dir.path().join("config.json"), "{\"model_type\": \"t5\"}").unwrap();
    insta::assert_snapshot!("model_type", text(open(dir.path()).unwrap_err(), dir.path()));
    std::fs::write(dir.path().join("config.json"), "{\"model_type\": \"bert\", \"is_decoder\": true}").unwrap();
    insta::assert_snapshot!("variant", text(open(dir.path()).unwrap_err(), dir.path()));
}

#[test]
fn wrappers_before_all_names_are_taken_off() {
    let dir = tempfile::tempdir().unwrap();
    let model = small_gpt2();
    let values = values(&model);
    export(&model, &values, dir.path(), &[]).unwrap();
    let path = dir.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let wrapped = SafeTensors::deserialize(&bytes).unwrap();
    let wrapped = wrapped.tensors().into_iter().map(|(name, view)| (format!("module._orig_mod.{name}"), view));
    safetensors::serialize_to_file(wrapped, None, &path).unwrap();
    assert_eq!(load_weights(dir.path(), &model).unwrap(), values);
}

#[test]
fn a_header_whose_length_begins_like_a_pickle_is_no_pickle() {
    let dir = tempfile::tempdir().unwrap();
    let program = "inputs = dict(x = features(\"b\", 2))\n\ndef model(x):\n    return linear(x, 1, name = \"fc\", bias = False)\n";
    let source = ArchitectureSource::Text { name: "mine".into(), text: program.into() };
    let model = Model::load(&source, &[]).unwrap();
    let tensors = r#"{"fc.weight":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}}"#;
    let path = dir.path().join("model.safetensors");
    // Both begin archives of PyTorch: an old one, and a zip.
    for length in [0x0280usize, 0x4b50] {
        let mut bytes = (length as u64).to_le_bytes().to_vec();
        bytes.extend(format!("{tensors:<length$}").bytes());
        bytes.extend([1.5f32, -2.0].iter().flat_map(|x| x.to_le_bytes()));
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(load_weights(&path, &model).unwrap(), [[1.5, -2.0]]);
    }
}

#[test]
fn a_full_disk_leaves_the_old_files() {
    let dir = tempfile::tempdir().unwrap();
    let model = small_gpt2();
    let first = values(&model);
    export(&model, &first, dir.path(), &[]).unwrap();
    // A folder in the way of the temporary file stands for any failure to write.
    std::fs::create_dir(dir.path().join("model.safetensors.part")).unwrap();
    let other: Vec<Vec<f32>> = first.iter().map(|v| v.iter().map(|x| x + 1.0).collect()).collect();
    assert!(export(&model, &other, dir.path(), &[]).is_err());
    assert_eq!(load_weights(dir.path(), &model).unwrap(), first);
}
