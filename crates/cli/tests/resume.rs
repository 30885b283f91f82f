//! Killed, interrupted or damaged: a run goes on and ends with the very same bytes.

mod common;

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{GPT, Lab, Numbers, backend, trainer};

/// The steps of the runs that are killed.
const STEPS: u64 = 84;

/// The experiment of these tests.
fn lab(name: &str, checkpoint_every: u64) -> Lab {
    let lab = Lab::new(name);
    let steps = format!("steps = {STEPS}\ncheckpoint_every = {checkpoint_every}\nkeep_last = 3");
    lab.write("gpt.toml", GPT.replace("steps = 50", &steps));
    lab
}

fn start(lab: &Lab, arguments: &str) -> Child {
    lab.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn killed_at_twenty_moments_it_ends_as_if_never_killed() {
    let lab = lab("killed", 1);
    lab.tenon("train gpt.toml --out whole").expect(0);
    let mut random = Numbers(2026);
    let (mut kills, mut inside_a_write) = (0, 0);
    while kills < 20 {
        let mut child = start(&lab, "train gpt.toml --out killed");
        // Some kills come before the first step, the others a random time after some progress.
        if kills % 5 != 0 {
            lab.wait_for(&mut child, "killed", kills * (STEPS - 4) / 20);
        }
        std::thread::sleep(Duration::from_micros(random.below(30_000)));
        child.kill().unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(!output.status.success(), "it ended after {kills} kills");
        kills += 1;
        let names = std::fs::read_dir(lab.path("killed").join("checkpoints")).into_iter().flatten().flatten();
        let unfinished = |name: String| name.strip_prefix("step-").is_none_or(|n| n.parse::<u64>().is_err());
        inside_a_write += usize::from(names.map(|n| n.file_name().to_string_lossy().into_owned()).any(unfinished));
    }
    println!("{inside_a_write} of {kills} kills inside a checkpoint write");
    let last = lab.tenon("train gpt.toml --out killed").expect(0);
    assert!(last.stdout.contains("from the checkpoint of step"), "{}", last.stdout);
    assert!(lab.final_bytes("killed") == lab.final_bytes("whole"), "other bytes");
    assert_eq!(lab.metrics("killed"), lab.metrics("whole"));
}

/// The files of the checkpoint of a step.
fn checkpoint(lab: &Lab, run: &str, step: u64) -> PathBuf {
    lab.path(run).join(format!("checkpoints/step-{step:08}"))
}

#[test]
fn damaged_checkpoints_are_named_and_the_one_before_is_used() {
    let lab = lab("damaged", 4);
    lab.tenon("train gpt.toml --out run").expect(0);
    let whole = lab.final_bytes("run");
    let newest = checkpoint(&lab, "run", STEPS);
    for file in ["weights.safetensors", "optimizer.safetensors", "control.safetensors", "state.json", "manifest.json"] {
        for damage in ["truncated", "flipped", "missing"] {
            let path = newest.join(file);
            let mut bytes = std::fs::read(&path).unwrap();
            let middle = bytes.len() / 2;
            match damage {
                "truncated" => std::fs::write(&path, &bytes[..middle]).unwrap(),
                "flipped" => {
                    bytes[middle] ^= 4;
                    std::fs::write(&path, &bytes).unwrap();
                }
                _ => std::fs::remove_file(&path).unwrap(),
            }
            let out = lab.tenon("train gpt.toml --out run").expect(0).stdout;
            let what = format!("{file} {damage}:\n{out}");
            assert!(
                out.contains("passed over") && out.contains(file) && out.contains(&format!("{STEPS:08}")),
                "{what}"
            );
            assert!(out.contains(&format!("from the checkpoint of step {}", STEPS - 4)), "{what}");
            assert!(lab.final_bytes("run") == whole, "{what}");
        }
    }
    for step in [STEPS, STEPS - 4, STEPS - 8] {
        let path = checkpoint(&lab, "run", step).join("weights.safetensors");
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    }
    for command in ["train gpt.toml --out run", "run gpt.toml --out run", "eval run", "export run --out exported"] {
        let refused = lab.tenon(command).expect(2).stderr;
        for step in [STEPS, STEPS - 4, STEPS - 8] {
            assert!(refused.contains(&format!("{step:08}")), "{command}: {refused}");
        }
    }
    assert!(checkpoint(&lab, "run", STEPS).exists(), "what is damaged is left for the user to look at");
}

#[test]
fn an_interrupted_run_saves_says_how_to_go_on_and_does() {
    let lab = lab("interrupted", 1000);
    lab.tenon("train gpt.toml --out whole --set train.log_every=1").expect(0);
    let mut child = start(&lab, "train gpt.toml --out run --set train.log_every=1");
    // No checkpoint is due: the one that is there afterwards is of the interruption.
    let metrics = lab.path("run").join("metrics.jsonl");
    while std::fs::read_to_string(&metrics).unwrap_or_default().lines().count() < 5 {
        assert!(child.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(1));
    }
    let sent = Command::new("sh").args(["-c", &format!("kill -INT {}", child.id())]).status().unwrap();
    assert!(sent.success());
    let output = child.wait_with_output().unwrap();
    let out = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(130), "{out}");
    assert!(out.contains("saved; the same command goes on from here: run"), "{out}");
    let step = lab.newest_step("run");
    assert!((5..STEPS).contains(&step), "interrupted at step {step}");
    let out = lab.tenon("train gpt.toml --out run --set train.log_every=1").expect(0).stdout;
    assert!(out.contains(&format!("from the checkpoint of step {step}")), "{out}");
    assert!(lab.final_bytes("run") == lab.final_bytes("whole"), "other bytes");
    assert_eq!(lab.metrics("run"), lab.metrics("whole"));
}

#[test]
fn evaluations_may_change_in_a_run_and_its_best_checkpoint_stays_the_best() {
    let lab = Lab::new("evaluations");
    lab.write("gpt.toml", GPT.replace("steps = 50", "steps = 42\ncheckpoint_every = 5\nkeep_last = 50"));
    lab.tenon("train gpt.toml --out whole --set train.keep_best=val_loss").expect(0);
    let run = "train gpt.toml --out run --set train.keep_best=val_loss";
    lab.tenon(run).expect(0);
    for step in [25, 30, 35, 40, 42] {
        std::fs::remove_dir_all(checkpoint(&lab, "run", step)).unwrap();
    }
    let refused = lab.tenon(&format!("{run} --set train.evaluate_batches=1")).expect(2).stderr;
    assert!(refused.contains("train.evaluate_batches: absent there, 1 now"), "{refused}");
    let changed = "--set train.log_every=2 --set train.evaluate_every=6";
    let out = lab.tenon(&format!("{run} {changed}")).expect(0).stdout;
    assert!(out.contains("from the checkpoint of step 20"), "{out}");
    // Evaluated at 20 before, and at 24, 30, 36, 42 now: checkpoints have the metrics of their own weights, or none.
    let metrics = lab.metrics("run");
    for step in (5..=40).step_by(5).chain([42]) {
        let manifest = std::fs::read_to_string(checkpoint(&lab, "run", step).join("manifest.json")).unwrap();
        let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
        let evaluated =
            |record: &&serde_json::Value| record["step"] == step && record["values"]["val_loss"].is_number();
        let own = metrics.iter().find(evaluated);
        assert_eq!(own.is_some(), [20, 30, 42].contains(&step), "step {step}");
        assert_eq!(manifest["metrics"].get("val_loss"), own.map(|record| &record["values"]["val_loss"]), "step {step}");
        let weights = |run: &str| std::fs::read(checkpoint(&lab, run, step).join("weights.safetensors")).unwrap();
        assert!(weights("run") == weights("whole"), "other weights at step {step}");
    }
}

#[test]
fn accumulated_batches_equal_the_large_batch() {
    let lab = Lab::new("accumulate");
    let gpt = lab.write("gpt.toml", GPT);
    let no_dropout = "model.rate=0.0";
    let large = lab.setup(&gpt, &[no_dropout, "train.batch=12"]);
    let parts = lab.setup(&gpt, &[no_dropout, "train.batch=3", "train.accumulate=4"]);
    let backend = backend();
    let (mut large, mut parts) = (trainer(&large, &backend), trainer(&parts, &backend));
    for _ in 0..20 {
        let (a, b) = (large.step().unwrap(), parts.step().unwrap());
        for (what, a, b) in [("loss", a.loss, b.loss), ("gradient norm", a.grad_norm, b.grad_norm)] {
            let bound = if what == "loss" { 1e-5 } else { 1e-3 };
            assert!((a - b).abs() <= bound * a.abs(), "step {}: {what} {a} and {b}", large.steps_done());
        }
    }
}

#[test]
fn an_infinite_step_changes_nothing() {
    let lab = lab("infinite", 1);
    let huge = "--set train.optimizer={kind=\"sgd\",lr=1e30} --set train.schedule={kind=\"constant\"}";
    let command = format!("train gpt.toml --out run {huge}");
    let failed = lab.tenon(&command).expect(2).stderr;
    assert!(
        failed.contains("step 2 is not finite") && failed.contains("the weights were left as they were"),
        "{failed}"
    );
    assert!(failed.contains("gpt2.star:") && failed.contains("first in the forward pass: "), "{failed}");
    let bytes = lab.final_bytes("run");
    assert_eq!(lab.newest_step("run"), 1);
    let again = lab.tenon(&command).expect(2);
    assert!(again.stdout.contains("from the checkpoint of step 1"), "{}", again.stdout);
    assert_eq!(again.stderr, failed);
    assert!(lab.final_bytes("run") == bytes, "the checkpoint before it is intact");
}
