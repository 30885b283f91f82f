//! What `tenon bench` measured, kept in the user's cache folder for the next plan.

use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value as Json, json};
use tenon::cpu::speed::{Rate, Speed};
use tenon::train::files::{Disk, replace_file};

/// The file: `tenon/speed.json` in `XDG_CACHE_HOME`, or in `.cache` of the home folder; `None` where there is neither.
pub fn file() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let cache = folder("XDG_CACHE_HOME").or_else(|| Some(folder("HOME")?.join(".cache")))?;
    Some(cache.join("tenon").join("speed.json"))
}

/// The speed of `machine` (processor, instruction set, threads) as this version of Tenon measured it. A file that is
/// damaged is as good as none.
pub fn load(file: &Path, machine: &str) -> Option<Speed> {
    let machines = read(file)?;
    let entry = machines.get(machine).filter(|e| e["version"] == env!("CARGO_PKG_VERSION"))?;
    Speed::from_rates(|name| entry["rates"][name].as_f64())
}

/// Adds machines to the file, which is whole at any moment.
///
/// # Errors
/// The folder or the file cannot be written.
pub fn store(file: &Path, measured: &[(String, Speed)]) -> io::Result<()> {
    let mut machines = read(file).unwrap_or_default();
    for (machine, speed) in measured {
        let rates: Map<String, Json> = Rate::ALL.map(|r| (r.name().into(), json!(speed.get(r)))).into_iter().collect();
        machines.insert(machine.clone(), json!({ "version": env!("CARGO_PKG_VERSION"), "rates": rates }));
    }
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)?;
    }
    replace_file(&Disk, file, format!("{:#}\n", Json::Object(machines)).as_bytes())
}

fn read(file: &Path) -> Option<Map<String, Json>> {
    match serde_json::from_slice(&std::fs::read(file).ok()?) {
        Ok(Json::Object(machines)) => Some(machines),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_is_found_again_and_damage_is_passed_over() {
        let folder = std::env::temp_dir().join(format!("tenon-speed-{}", std::process::id()));
        let file = folder.join("deep").join("speed.json");
        let speed = |base: f64| Speed::from_rates(|name| Some(base + name.len() as f64)).unwrap();
        assert_eq!(load(&file, "one"), None);
        store(&file, &[("one".into(), speed(1.0)), ("two".into(), speed(2.0))]).unwrap();
        store(&file, &[("two".into(), speed(3.5))]).unwrap();
        assert_eq!(load(&file, "one"), Some(speed(1.0)));
        assert_eq!(load(&file, "two"), Some(speed(3.5)));
        assert_eq!(load(&file, "three"), None);
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, text.replace(env!("CARGO_PKG_VERSION"), "0.0.0")).unwrap();
        assert_eq!(load(&file, "one"), None, "of another version");
        for damage in ["", "[]", "{\"one\": 3}", &text[..text.len() / 2]] {
            std::fs::write(&file, damage).unwrap();
            assert_eq!(load(&file, "one"), None, "{damage}");
            store(&file, &[("one".into(), speed(4.0))]).unwrap();
            assert_eq!(load(&file, "one"), Some(speed(4.0)));
        }
        std::fs::remove_dir_all(folder).unwrap();
    }
}
