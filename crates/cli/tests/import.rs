//! `tenon import` and `tenon forward` on a folder as transformers writes it.

mod common;

use std::path::{Path, PathBuf};

use common::Lab;

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
    let absent = lab.tenon("import gpt2 --out gpt").expect(2);
    assert!(
        absent.stderr.contains("Tenon downloads nothing") && absent.stderr.contains("config.json"),
        "{}",
        absent.stderr
    );
    let weights = gpt2().join("model.safetensors");
    let unnamed = lab.tenon(&format!("import {} --out gpt", weights.display())).expect(2);
    assert!(unnamed.stderr.contains("--architecture"), "{}", unnamed.stderr);
    let wrong = lab.tenon(&format!("import {} --out gpt --architecture bert-base", weights.display())).expect(2);
    for part in ["missing: embeddings.word_embeddings.weight", "superfluous: ", "more"] {
        assert!(wrong.stderr.contains(part), "{part}: {}", wrong.stderr);
    }
    assert!(!lab.path("gpt").exists());
}
