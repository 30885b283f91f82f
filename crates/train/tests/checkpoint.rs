//! Checkpoints under every fault: killed between any two file operations, failing operations, a full disk, damaged files.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use serde::{Deserialize, Serialize};
use support::{Fault, Faulty};
use tenon_train::checkpoint::{
    Checkpoint, CheckpointError, Checkpoints, Contents, Dtype, Latest, Tensor, TensorFile, TensorSpec, write_tensors,
};
use tenon_train::goal::Better;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct State {
    position: u64,
    average: f64,
}

fn spec(name: &str, dtype: Dtype, shape: &[usize]) -> TensorSpec {
    TensorSpec { name: name.into(), dtype, shape: shape.into() }
}

fn state(version: u8) -> State {
    State { position: u64::from(version), average: 1.0 / f64::from(version) + 1e-17 }
}

fn loss(version: u8) -> f64 {
    (f64::from(version) - 5.0).abs()
}

/// Writes a checkpoint whose every byte follows from `version`.
fn write(checkpoints: &Checkpoints, step: u64, version: u8) -> Result<(), CheckpointError> {
    let weights: Vec<u8> = (0..48u8).map(|at| at ^ version).collect();
    let moments = vec![version; 20];
    let contents = Contents {
        step,
        metrics: BTreeMap::from([("val_loss".into(), loss(version)), ("odd".into(), f64::NAN)]),
        state: &state(version),
        tensors: &[
            (
                "weights",
                vec![
                    Tensor { spec: spec("b", Dtype::F32, &[3, 2]), data: &weights[..24] },
                    Tensor { spec: spec("a", Dtype::BF16, &[12]), data: &weights[24..] },
                ],
            ),
            ("optimizer", vec![Tensor { spec: spec("m", Dtype::U8, &[20]), data: &moments }]),
        ],
    };
    checkpoints.write(&contents).map(drop)
}

/// The version that the newest sound checkpoint was written with; panics if its parts are of different ones.
fn read(latest: &Latest) -> (u64, u8) {
    let checkpoint = latest.checkpoint.as_ref().expect("a sound checkpoint");
    let found: State = checkpoint.state().unwrap();
    let version = found.position as u8;
    assert_eq!(found, state(version));
    assert_eq!(checkpoint.metrics()["val_loss"], loss(version));
    assert!(checkpoint.metrics()["odd"].is_nan());
    let mut weights = BTreeMap::new();
    for set in ["weights", "optimizer"] {
        let mut file = checkpoint.tensors(set).unwrap();
        file.read(|spec, bytes| {
            let mut data = vec![0; spec.bytes().unwrap()];
            bytes.read_exact(&mut data)?;
            weights.insert(spec.name.clone(), data);
            Ok(())
        })
        .unwrap();
    }
    let expected: Vec<u8> = (0..48u8).map(|at| at ^ version).collect();
    assert_eq!(weights["b"], expected[..24]);
    assert_eq!(weights["a"], expected[24..]);
    assert_eq!(weights["m"], vec![version; 20]);
    (checkpoint.step(), version)
}

/// Opens without real syncs, which would take most of the time of these tests.
fn open(folder: &Path) -> Checkpoints {
    Checkpoints::open_on(folder, Arc::new(Faulty::never())).unwrap()
}

/// A folder with checkpoints of the versions 1, 2, ... at the steps 10, 20, ...
fn folder(count: u8) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = open(folder.path());
    for version in 1..=count {
        write(&checkpoints, u64::from(version) * 10, version).unwrap();
    }
    folder
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Runs `act` with a fault at each of its operations in turn and hands over what is left on the disk.
fn at_every_operation(
    fault: Fault,
    count: u8,
    act: impl Fn(&Checkpoints) -> Result<(), CheckpointError>,
    check: impl Fn(Result<(), CheckpointError>, &Path),
) {
    for operation in 0.. {
        let folder = folder(count);
        let faulty = Faulty::at(operation, fault);
        let result = Checkpoints::open_on(folder.path(), Arc::new(faulty.clone())).and_then(|found| act(&found));
        if !faulty.struck() {
            assert!(result.is_ok() && operation > 5);
            return;
        }
        check(result, folder.path());
    }
}

#[test]
fn killed_anywhere_in_a_write_the_old_or_the_new_checkpoint_is_there() {
    at_every_operation(
        Fault::Crash,
        2,
        |checkpoints| write(checkpoints, 30, 3),
        |result, folder| {
            assert!(result.is_err());
            let reopened = open(folder);
            let latest = reopened.latest().unwrap();
            assert!(latest.damaged.is_empty(), "{:?}", latest.damaged);
            assert!(matches!(read(&latest), (20, 2) | (30, 3)));
            assert!(names(folder).iter().all(|name| name.starts_with("step-")), "{:?}", names(folder));
            write(&reopened, 30, 4).unwrap();
            assert_eq!(read(&reopened.latest().unwrap()), (30, 4));
        },
    );
}

#[test]
fn killed_anywhere_in_a_replacement_the_old_or_the_new_version_is_there() {
    at_every_operation(
        Fault::Crash,
        1,
        |checkpoints| write(checkpoints, 10, 7),
        |_, folder| {
            let latest = open(folder).latest().unwrap();
            assert!(latest.damaged.is_empty());
            assert!(matches!(read(&latest), (10, 1 | 7)));
            assert_eq!(names(folder), ["step-00000010"]);
        },
    );
}

#[test]
fn killed_anywhere_in_a_pruning_the_kept_ones_are_sound() {
    at_every_operation(
        Fault::Crash,
        6,
        |checkpoints| checkpoints.prune(1, Some(("val_loss", Better::Lower))).map(drop),
        |_, folder| {
            let reopened = open(folder);
            let latest = reopened.latest().unwrap();
            assert!(latest.damaged.is_empty());
            assert_eq!(read(&latest), (60, 6));
            assert!(reopened.get(50).is_ok(), "the best");
            assert!(reopened.steps().unwrap().iter().all(|step| reopened.get(*step).is_ok()));
        },
    );
}

#[test]
fn an_operation_that_fails_is_told_and_costs_nothing() {
    at_every_operation(
        Fault::Error,
        2,
        |checkpoints| write(checkpoints, 30, 3),
        |result, folder| {
            let message = result.unwrap_err().to_string();
            assert!(message.starts_with("cannot ") && message.ends_with(": an injected fault"), "{message}");
            let reopened = open(folder);
            let latest = reopened.latest().unwrap();
            assert!(latest.damaged.is_empty() && matches!(read(&latest), (20, 2) | (30, 3)));
            write(&reopened, 30, 4).unwrap();
            assert_eq!(read(&reopened.latest().unwrap()), (30, 4));
        },
    );
    at_every_operation(
        Fault::Error,
        2,
        |checkpoints| write(checkpoints, 20, 3),
        |_, folder| {
            assert!(matches!(read(&open(folder).latest().unwrap()), (20, 2 | 3)));
        },
    );
}

#[test]
fn a_full_disk_is_told_and_what_was_written_is_removed() {
    let total: u64 = {
        let folder = folder(1);
        let step = folder.path().join("step-00000010");
        names(&step).iter().map(|name| step.join(name).metadata().unwrap().len()).sum()
    };
    for space in (0..total as usize).step_by(3) {
        let folder = folder(2);
        let checkpoints = Checkpoints::open_on(folder.path(), Arc::new(Faulty::full_after(space))).unwrap();
        let message = write(&checkpoints, 30, 3).unwrap_err().to_string();
        assert!(message.starts_with("cannot write ") && message.contains("free some space"), "{message}");
        assert_eq!(read(&checkpoints.latest().unwrap()), (20, 2));
        assert_eq!(names(folder.path()), ["step-00000010", "step-00000020"]);
    }
}

#[test]
fn every_damage_is_named_and_the_one_before_is_used() {
    let folder = folder(2);
    let newest = folder.path().join("step-00000020");
    let checkpoints = open(folder.path());
    let files = names(&newest);
    assert_eq!(files, ["manifest.json", "optimizer.safetensors", "state.json", "weights.safetensors"]);
    for file in &files {
        let path = newest.join(file);
        let sound = fs::read(&path).unwrap();
        let mut damaged: Vec<Option<Vec<u8>>> = vec![None];
        damaged.extend((0..sound.len()).map(|length| Some(sound[..length].to_vec())));
        damaged.push(Some([sound.as_slice(), b"\n"].concat()));
        for at in 0..sound.len() {
            let mut flipped = sound.clone();
            flipped[at] ^= 1 << (at % 8);
            damaged.push(Some(flipped));
        }
        for bytes in damaged {
            match &bytes {
                None => fs::remove_file(&path).unwrap(),
                Some(bytes) => fs::write(&path, bytes).unwrap(),
            }
            let latest = checkpoints.latest().unwrap();
            assert_eq!(read(&latest), (10, 1));
            assert_eq!(latest.damaged.len(), 1, "{:?}", latest.damaged);
            assert_eq!((latest.damaged[0].step, &latest.damaged[0].path), (20, &path));
        }
        fs::write(&path, &sound).unwrap();
        assert_eq!(read(&checkpoints.latest().unwrap()), (20, 2));
    }
    fs::remove_file(newest.join("state.json")).unwrap();
    fs::write(newest.join("weights.safetensors"), "").unwrap();
    let messages: Vec<String> =
        checkpoints.latest().unwrap().damaged.iter().map(|damage| damage.what.clone()).collect();
    assert_eq!(messages, ["missing", "damaged: it has 0 bytes, 176 were written"]);
    fs::remove_dir_all(&newest).unwrap();
    fs::create_dir(&newest).unwrap();
    assert_eq!(
        checkpoints.latest().unwrap().damaged[0].to_string(),
        format!("{}: missing", newest.join("manifest.json").display())
    );
    write(&checkpoints, 20, 9).unwrap();
    assert_eq!(read(&checkpoints.latest().unwrap()), (20, 9));
}

#[test]
fn when_all_are_damaged_it_is_said() {
    let folder = folder(2);
    for step in ["step-00000010", "step-00000020"] {
        fs::remove_file(folder.path().join(step).join("state.json")).unwrap();
    }
    let checkpoints = open(folder.path());
    let latest = checkpoints.latest().unwrap();
    assert!(latest.checkpoint.is_none());
    assert_eq!(latest.damaged.len(), 2);
    assert!(checkpoints.prune(1, None).unwrap().is_empty(), "nothing is removed when nothing is sound");
}

#[test]
fn the_real_file_operations_do_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::open(&folder.path().join("checkpoints")).unwrap();
    for version in [1, 2, 3] {
        write(&checkpoints, u64::from(version) * 10, version).unwrap();
    }
    write(&checkpoints, 30, 4).unwrap();
    assert_eq!(checkpoints.prune(1, None).unwrap(), [10, 20]);
    assert_eq!(read(&checkpoints.latest().unwrap()), (30, 4));
    assert_eq!(names(&folder.path().join("checkpoints")), ["step-00000030"]);
}

#[test]
fn names_that_are_no_checkpoints_are_left_alone() {
    let folder = folder(1);
    for name in ["step-1", "step-0000002", "step-x", "notes", "step-99999999999999999999999"] {
        fs::create_dir(folder.path().join(name)).unwrap();
    }
    let checkpoints = open(folder.path());
    assert_eq!(checkpoints.steps().unwrap(), [10]);
    write(&checkpoints, 123_456_789_012, 3).unwrap();
    assert_eq!(read(&checkpoints.latest().unwrap()), (123_456_789_012, 3));
    assert!(folder.path().join("notes").is_dir());
}

#[test]
fn tensors_that_do_not_fit_are_all_listed() {
    let folder = folder(1);
    let checkpoint = open(folder.path()).get(10).unwrap();
    let mut file = checkpoint.tensors("weights").unwrap();
    assert_eq!(file.compare(&[spec("a", Dtype::BF16, &[12]), spec("b", Dtype::F32, &[3, 2])]), Ok(()));
    let expected = [spec("b", Dtype::F32, &[2, 3]), spec("c", Dtype::F32, &[]), spec("d", Dtype::I64, &[1])];
    let message = file.compare(&expected).unwrap_err().to_string();
    let path = checkpoint.folder().join("weights.safetensors");
    assert_eq!(
        message,
        format!(
            "{}: the tensors are not those of the model\n  missing in the file (2):\n    c F32[]\n    d I64[1]\n  \
             not in the model (1):\n    a BF16[12]\n  different (1):\n    b: model F32[2, 3], file F32[3, 2]",
            path.display()
        )
    );
    let message = checkpoint.tensors("ema").unwrap_err().to_string();
    assert!(
        message
            .ends_with("has no ema.safetensors: its files are optimizer.safetensors, state.json, weights.safetensors")
    );
    let half = file.read(|_, bytes| bytes.read_exact(&mut [0; 4])).unwrap_err().to_string();
    assert!(half.ends_with("(tensor b): 20 of 24 bytes were not taken"), "{half}");
    assert!(checkpoint.state::<Vec<u8>>().unwrap_err().to_string().contains("state.json: invalid type"));
}

#[test]
fn wrong_tensors_are_refused_before_anything_is_kept() {
    let folder = folder(1);
    let checkpoints = open(folder.path());
    let attempt = |name: &str, tensors: Vec<Tensor<'_>>| {
        let contents = Contents { step: 20, metrics: BTreeMap::new(), state: &0, tensors: &[(name, tensors)] };
        checkpoints.write(&contents).unwrap_err().to_string()
    };
    let short = Tensor { spec: spec("a", Dtype::F32, &[3]), data: &[0; 8] };
    let message = attempt("weights", vec![short]);
    assert!(message.ends_with("weights.safetensors: tensor a F32[3] has 8 bytes of data"), "{message}");
    let twin = Tensor { spec: spec("a", Dtype::U8, &[1]), data: &[0] };
    assert!(attempt("weights", vec![twin.clone(), twin]).ends_with("two tensors have the name a"));
    assert_eq!(attempt("../x", vec![]), "\"../x.safetensors\" cannot name a file of a checkpoint");
    assert_eq!(names(folder.path()), ["step-00000010"]);
}

fn tensors() -> impl Strategy<Value = Vec<(TensorSpec, Vec<u8>)>> {
    let dtype = prop::sample::select(vec![Dtype::F32, Dtype::BF16, Dtype::F64, Dtype::U8, Dtype::BOOL, Dtype::I64]);
    let tensor = ("[a-z\\.\"é]{1,6}", dtype, prop::collection::vec(0..4usize, 0..4), any::<u8>());
    prop::collection::vec(tensor, 0..6).prop_map(|tensors| {
        let unique: BTreeMap<String, _> =
            tensors.into_iter().map(|(name, dtype, shape, seed)| (name, (dtype, shape, seed))).collect();
        let fill = |(name, (dtype, shape, seed)): (String, (Dtype, Vec<usize>, u8))| {
            let spec = TensorSpec { name, dtype, shape };
            let data = (0..spec.bytes().unwrap()).map(|at| (at as u8).wrapping_mul(31) ^ seed).collect();
            (spec, data)
        };
        unique.into_iter().map(fill).collect()
    })
}

fn encode(tensors: &[(TensorSpec, Vec<u8>)]) -> Vec<u8> {
    let tensors: Vec<Tensor<'_>> = tensors.iter().map(|(spec, data)| Tensor { spec: spec.clone(), data }).collect();
    let mut bytes = Vec::new();
    write_tensors(&mut bytes, &tensors, &[("format", "pt")]).unwrap();
    bytes
}

fn decode(bytes: &[u8]) -> Result<Vec<(TensorSpec, Vec<u8>)>, CheckpointError> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes).unwrap();
    let mut tensors = Vec::new();
    TensorFile::open(file.path())?.read(|spec, bytes| {
        let mut data = Vec::new();
        bytes.read_to_end(&mut data)?;
        tensors.push((spec.clone(), data));
        Ok(())
    })?;
    tensors.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
    Ok(tensors)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn what_is_written_is_read_here_and_by_the_reference(tensors in tensors()) {
        let bytes = encode(&tensors);
        let reference = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        prop_assert_eq!(reference.len(), tensors.len());
        for (spec, data) in &tensors {
            let view = reference.tensor(&spec.name).unwrap();
            prop_assert_eq!((view.dtype(), view.shape(), view.data()), (spec.dtype, &spec.shape[..], &data[..]));
        }
        prop_assert_eq!(decode(&bytes).unwrap(), tensors);
    }

    #[test]
    fn foreign_bytes_never_panic(tensors in tensors(), edits in prop::collection::vec((any::<usize>(), any::<u8>()), 1..4), cut in any::<usize>()) {
        let mut bytes = encode(&tensors);
        for (at, byte) in edits {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        bytes.truncate(cut % (bytes.len() + 1));
        let _ = decode(&bytes);
    }

    #[test]
    fn pruning_keeps_the_newest_the_best_and_always_a_sound_one(
        versions in prop::collection::vec(1..10u8, 1..6),
        damaged in prop::collection::vec(any::<bool>(), 6),
        keep in 0..4usize,
        best in any::<bool>(),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = open(folder.path());
        for (step, version) in versions.iter().enumerate() {
            write(&checkpoints, step as u64, *version).unwrap();
            if damaged[step] {
                fs::remove_file(folder.path().join(format!("step-{step:08}/state.json"))).unwrap();
            }
        }
        let before = checkpoints.latest().unwrap();
        let metric = best.then_some(("val_loss", Better::Lower));
        let removed = checkpoints.prune(keep, metric).unwrap();
        let after = checkpoints.latest().unwrap();
        let step = |latest: &Latest| latest.checkpoint.as_ref().map(Checkpoint::step);
        prop_assert_eq!(step(&before), step(&after), "the newest sound one stays");
        let steps = checkpoints.steps().unwrap();
        prop_assert_eq!(removed.len() + steps.len(), versions.len());
        let newest = versions.len().saturating_sub(keep.max(1)) as u64..versions.len() as u64;
        prop_assert!(newest.clone().all(|step| steps.contains(&step)));
        if best {
            let least = versions.iter().map(|version| loss(*version)).fold(f64::INFINITY, f64::min);
            let first = versions.iter().position(|version| loss(*version) == least).unwrap() as u64;
            prop_assert!(steps.contains(&first));
        }
        if before.checkpoint.is_some() {
            prop_assert!(steps.len() <= keep.max(1) + usize::from(best) + 1);
        } else {
            prop_assert!(removed.is_empty());
        }
    }
}
