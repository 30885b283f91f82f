//! Archives of `torch.save`: what PyTorch wrote is what is read, and no bytes make the reader panic or allocate much. The
//! archives are made by tools/fixtures/torch_archives.py.

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use tenon_nn::{ArchitectureSource, Model, load_weights};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/torch").join(name)
}

/// A model with the tensors of the fixtures.
fn model() -> Model {
    let program = r#"
inputs = dict(x = features("b", 1))
checkpoint = dict(ignored = ["steps"])
shapes = dict(
    plain = [2, 3], first = [3, 4], second = [4, 3], transposed = [6, 4], strided = [2, 3], half = [3], brain = [2, 1],
    double = [2], scalar = [1],
)

def model(x):
    for name, shape in shapes.items():
        x = x + sum(parameter(name, shape, init = zeros()))
    return x
"#;
    let source = ArchitectureSource::Text { name: "torch.star".into(), text: program.into() };
    Model::load(&source, &[]).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn both_forms_hold_what_pytorch_saved() {
    let model = model();
    let expected = load_weights(&fixture("values.safetensors"), &model).unwrap();
    for name in ["zip.pt", "legacy.pt", "wrapped.pt"] {
        let found = load_weights(&fixture(name), &model).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(found, expected, "{name}");
    }
}

#[test]
fn nothing_is_executed() {
    let error = load_weights(&fixture("evil.pt"), &model()).unwrap_err().to_string();
    assert!(error.contains("`posix.system`") && error.contains("nothing was executed"), "{error}");
}

#[test]
fn a_tensor_outside_its_storage_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut bytes = std::fs::read(fixture("legacy.pt")).unwrap();
    // The shape (2, 3) of the first tensor: two small numbers, then the end of the tuple.
    let at = bytes.windows(4).position(|w| w == [b'K', 2, b'K', 3]).unwrap();
    bytes[at + 3] = 200;
    let path = dir.path().join("bad.pt");
    std::fs::write(&path, bytes).unwrap();
    let error = load_weights(&path, &model()).unwrap_err().to_string();
    assert!(error.contains("plain: [2, 200]") && error.contains("storage of 6 elements"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Cut anywhere, with any bytes changed anywhere, preferably in the pickle.
    #[test]
    fn damaged_archives_are_refused_or_read(
        legacy: bool,
        cut in prop::option::of(0.0..1.0f64),
        changes in prop::collection::vec((0.0..1.0f64, any::<u8>()), 0..6),
    ) {
        let (name, span) = if legacy { ("legacy.pt", 0.9) } else { ("zip.pt", 1.0) };
        let mut bytes = std::fs::read(fixture(name)).unwrap();
        for (at, value) in changes {
            let length = bytes.len() as f64 * span;
            bytes[(at * length) as usize] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate((bytes.len() as f64 * cut) as usize);
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("damaged.pt");
        std::fs::write(&path, bytes).unwrap();
        let _ = load_weights(&path, &model());
    }
}
