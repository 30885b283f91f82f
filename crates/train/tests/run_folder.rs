//! Run folders: begin, go on, refuse what does not belong together, one process at a time.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tenon_train::experiment::Experiment;
use tenon_train::run_folder::{Opened, Origin, RunError, RunFolder, read_experiment, read_origin, result_of};

fn experiment(set: &[&str]) -> Experiment {
    let set: Vec<String> = set.iter().map(|option| option.to_string()).collect();
    let text = "[data]\ntext = \"a.txt\"\n[model]\narchitecture = \"gpt2\"\n[train]\nsteps = 10\nmemory = \"1GiB\"\n";
    Experiment::parse(text, "a.toml", &set).unwrap()
}

fn origin() -> Origin {
    Origin {
        experiment: "/recipes/a.toml".into(),
        cache: "/runs/cache".into(),
        version: "0.1.0".into(),
        machine: "a processor, portable, 2 threads".into(),
        data: "5e1f".into(),
        seed: 3,
        classes: vec!["ham".into(), "spam".into()],
    }
}

fn open(path: &Path, set: &[&str]) -> Result<(RunFolder, Opened), RunError> {
    RunFolder::open(path, &experiment(set), &origin(), None)
}

fn snapshot(path: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .map(|path| (path.clone(), fs::read(&path).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn a_run_begins_and_goes_on() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("runs/a");
    let (folder, opened) = open(&path, &[]).unwrap();
    assert_eq!(opened, Opened::New);
    assert_eq!(read_experiment(&path).unwrap(), Some(experiment(&[])));
    assert_eq!(read_origin(&path).unwrap(), origin());
    fs::create_dir(folder.checkpoints()).unwrap();
    drop(folder);
    assert_eq!(open(&path, &[]).unwrap().1, Opened::Resumed);
    let (folder, opened) = open(&path, &["train.memory=2GiB", "train.threads=1", "goal.val_loss={at_most=1}"]).unwrap();
    assert_eq!(opened, Opened::Resumed);
    assert!(fs::read_to_string(folder.experiment()).unwrap().contains("memory = \"2GiB\""));
    assert_eq!(RunFolder::open(&folder.trial(3), &experiment(&[]), &origin(), None).unwrap().1, Opened::New);
}

#[test]
fn the_result_is_the_run_or_the_trial_that_was_chosen_last() {
    let parent = tempfile::tempdir().unwrap();
    let (folder, _) = open(parent.path(), &[]).unwrap();
    let run = || result_of(parent.path()).unwrap();
    assert_eq!(run(), (parent.path().to_owned(), None));
    for trial in [3, 12] {
        folder.choose(Some(trial)).unwrap();
        assert_eq!(run(), (folder.trial(trial), Some(trial)));
    }
    drop(folder);
    let (folder, opened) = open(parent.path(), &[]).unwrap();
    assert_eq!((opened, run().1), (Opened::Resumed, Some(12)));
    fs::write(parent.path().join("result.json"), "{\"trial\": ").unwrap();
    assert!(result_of(parent.path()).unwrap_err().to_string().contains("result.json"));
    folder.choose(None).unwrap();
    assert_eq!(run(), (parent.path().to_owned(), None));
}

#[test]
fn another_experiment_is_refused_with_what_differs() {
    let parent = tempfile::tempdir().unwrap();
    drop(open(parent.path(), &[]).unwrap());
    let before = snapshot(parent.path());
    let set = ["train.optimizer.lr=0.5", "train.clip=1.0", "model.layers=4", "train.threads=7"];
    let message = open(parent.path(), &set).unwrap_err().to_string();
    let path = parent.path().display();
    assert_eq!(
        message,
        format!(
            "{path}: the run in this folder has another experiment:\n  model.layers: absent there, 4 now\n  \
             train.clip: absent there, 1.0 now\n  train.optimizer.lr: 0.001 there, 0.5 now\n  \
             try: another name for this run, or remove {path} to begin anew; only train.memory, train.threads, \
             train.log_every, train.evaluate_every, train.evaluate_batches, train.checkpoint_every, train.keep_last, train.sample, goal, tune, deploy may change in a run"
        )
    );
    assert_eq!(snapshot(parent.path()), before, "nothing has changed");
}

#[test]
fn another_text_of_the_architecture_is_refused() {
    let parent = tempfile::tempdir().unwrap();
    let open = |text| RunFolder::open(parent.path(), &experiment(&[]), &origin(), Some((Path::new("m.star"), text)));
    let (folder, _) = open("one").unwrap();
    assert_eq!(fs::read_to_string(folder.model()).unwrap(), "one");
    drop(folder);
    drop(open("one").unwrap());
    assert!(open("two").unwrap_err().to_string().contains("has another m.star"));
    // A run that was killed before its experiment was stored has not begun.
    fs::remove_file(parent.path().join("experiment.toml")).unwrap();
    let (folder, opened) = open("two").unwrap();
    assert_eq!((opened, fs::read_to_string(folder.model()).unwrap().as_str()), (Opened::New, "two"));
}

#[test]
fn foreign_and_damaged_folders_are_left_alone() {
    let parent = tempfile::tempdir().unwrap();
    fs::write(parent.path().join("thesis.txt"), "years of work").unwrap();
    assert!(matches!(open(parent.path(), &[]), Err(RunError::Foreign { .. })));
    let path = parent.path().join("run");
    drop(open(&path, &[]).unwrap());
    fs::write(path.join("experiment.toml"), "[train]\nstep = 1").unwrap();
    let message = open(&path, &[]).unwrap_err().to_string();
    assert!(message.contains("experiment.toml:2: unknown key `train.step`: did you mean `steps`?"), "{message}");
    let file = parent.path().join("thesis.txt");
    assert!(open(&file, &[]).unwrap_err().to_string().starts_with("cannot create "));
}

#[test]
fn a_folder_is_held_by_one_run() {
    let parent = tempfile::tempdir().unwrap();
    let (folder, _) = open(parent.path(), &[]).unwrap();
    let message = open(parent.path(), &[]).unwrap_err().to_string();
    let expected = format!("{}: process {} is running here", parent.path().display(), std::process::id());
    assert!(message.starts_with(&expected), "{message}");
    drop(folder);
    open(parent.path(), &[]).unwrap();
}

/// This test starts itself as a second process, which takes the lock and is killed.
#[test]
fn the_lock_of_a_killed_process_is_taken_over() {
    const VARIABLE: &str = "TENON_TEST_HOLD_LOCK";
    if let Some(path) = std::env::var_os(VARIABLE) {
        let _held = open(Path::new(&path), &[]).unwrap();
        fs::write(Path::new(&path).join("metrics.jsonl"), "").unwrap();
        std::thread::sleep(std::time::Duration::from_secs(60));
        return;
    }
    let parent = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_lock_of_a_killed_process_is_taken_over"])
        .env(VARIABLE, parent.path())
        .spawn()
        .unwrap();
    let begun = parent.path().join("metrics.jsonl");
    for _ in 0..2000 {
        if begun.exists() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert!(begun.exists());
    assert!(matches!(open(parent.path(), &[]), Err(RunError::Locked { .. })));
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(open(parent.path(), &[]).unwrap().1, Opened::Resumed);
}
