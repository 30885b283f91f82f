//! The reference page in the repository is that of the registry.

use tenon_nn::reference_markdown;

#[test]
fn docs_layers_md_is_up_to_date() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/layers.md");
    let page = reference_markdown();
    if std::env::var_os("BLESS").is_some() {
        std::fs::create_dir_all(std::path::Path::new(path).parent().unwrap()).unwrap();
        std::fs::write(path, &page).unwrap();
    }
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    assert!(committed == page, "docs/layers.md is out of date: run this test with BLESS=1");
}
