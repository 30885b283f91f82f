//! What users read when something is wrong: exit code 2, and texts that are snapshots.

mod common;

use common::{GPT, Lab, sentences};

/// The text on standard error of a command that must end in an error; the binary's texts are stored.
#[track_caller]
fn refused(lab: &Lab, name: &str, command: &str) -> String {
    let ran = lab.tenon(command).expect(2);
    lab.snapshot(name, &ran.stderr);
    ran.stderr
}

fn lab(name: &str) -> Lab {
    let lab = Lab::new(name);
    lab.write(
        "gpt.toml",
        GPT.replace("steps = 50", "steps = 4\ncheckpoint_every = 2").replace("warmup = 5", "warmup = 1"),
    );
    lab
}

/// The experiment with a model of this body.
fn own(lab: &Lab, body: &str) {
    lab.own(&format!(
        "inputs = dict(input_ids = tokens(\"b\", \"t\"))\n\ndef model(input_ids, vocab = 30, context = 16):\n{body}"
    ));
}

#[test]
fn experiments() {
    let lab = lab("errors-experiment");
    refused(&lab, "unknown_key", "plan gpt.toml --set train.stepz=4");
    refused(&lab, "wrong_type", "plan gpt.toml --set train.batch=\"many\"");
    refused(&lab, "missing_experiment", "plan gpt2.toml");
    lab.write("typo.toml", GPT.replace("clip = 1.0", "clip = 1.0\nbacth = 4"));
    refused(&lab, "unknown_key_in_file", "plan typo.toml");
    refused(&lab, "unknown_hyperparameter", "plan gpt.toml --set model.widht=32");
    refused(&lab, "wrong_hyperparameter_type", "plan gpt.toml --set model.width=\"wide\"");
    refused(&lab, "absurd_batch", "plan gpt.toml --set train.batch=100000000000");
    lab.write("large.toml", GPT.replace("batch = 4", "batch = 16777216\naccumulate = 20000000"));
    refused(&lab, "absurd_accumulation_in_file", "plan large.toml");
    refused(&lab, "too_large_batch", "plan large.toml --set train.accumulate=1 --set model.width=16384");
    lab.write("numbers.csv", "0.5,a\n0.1,b\n0.2,a\n");
    lab.write(
        "mlp.toml",
        "[data]\ntable = { csv = \"numbers.csv\", label = \"last\" }\n[model]\narchitecture = \"mlp\"\n[train]\nsteps = 1\n",
    );
    refused(&lab, "unknown_activation", "plan mlp.toml --set model.activation=\"swish\"");
    refused(&lab, "unknown_architecture", "plan gpt.toml --set model.architecture=\"gtp2\"");
    refused(&lab, "unknown_metric", "plan gpt.toml --set goal.bits_per_bite.at_most=2.0");
}

#[test]
fn data() {
    let lab = lab("errors-data");
    refused(&lab, "missing_data", "plan gpt.toml --set data.text=\"txet.txt\"");
    lab.write("empty.txt", "");
    refused(&lab, "empty_data", "plan gpt.toml --set data.text=\"empty.txt\"");
    lab.write("short.txt", sentences(20));
    refused(&lab, "too_little_data", "plan gpt.toml --set data.text=\"short.txt\"");
    refused(&lab, "vocabulary", "plan gpt.toml --set model.vocab=9");
    lab.write("bytes.txt", [sentences(500).as_bytes(), &[0xff, 0xfe], sentences(500).as_bytes()].concat());
    refused(&lab, "not_utf8", "plan gpt.toml --set data.text=\"bytes.txt\"");
}

#[test]
fn architectures() {
    let lab = lab("errors-architecture");
    refused(&lab, "missing_architecture", "plan gpt.toml --set model.architecture=\"my_model.star\"");
    refused(&lab, "missing_start", "plan gpt.toml --set model={from=\"minilm\"}");
    own(
        &lab,
        "    x = embedding(input_ids, vocab, 32, name = \"words\")\n    y = linear(x, 24, name = \"a\")\n    return linear(x + y, vocab, name = \"head\")\n",
    );
    refused(&lab, "wrong_shape", "plan own.toml");
    // Its table of positions has 16 rows, its samples 24 tokens.
    own(
        &lab,
        "    places = embedding(positions(input_ids), 16, 32, name = \"places\")\n    x = embedding(input_ids, vocab, 32, name = \"words\") + places\n    return linear(x, vocab, name = \"head\")\n",
    );
    refused(&lab, "longer_than_context", "plan own.toml --set model.context=24");
    own(&lab, "    n = 0\n    for i in range(2000000000):\n        n += i\n    return input_ids\n");
    refused(&lab, "endless_loop", "plan own.toml");
    own(
        &lab,
        "    x = embedding(input_ids, vocab, 32, name = \"words\")\n    for i in range(2000000000):\n        x = x + 1.0\n    return x\n",
    );
    refused(&lab, "endless_graph", "plan own.toml");
    own(&lab, "    return model(input_ids)\n");
    refused(&lab, "endless_recursion", "plan own.toml");
}

#[test]
fn generation() {
    let lab = lab("errors-generation");
    own(
        &lab,
        "    x = embedding(input_ids, vocab, 32, name = \"words\")\n    x = x + mean(x, axes = [1], keep = True)\n    return linear(x, vocab, name = \"head\")\n",
    );
    // Without a sample there is nothing wrong with it.
    lab.tenon("run own.toml --set train.steps=6").expect(0);
    refused(&lab, "mixes_tokens", "generate runs/own the");
    refused(&lab, "mixes_tokens_sample", "run own.toml --set train.sample={prompt=\"the\"} --out again");
    assert!(!lab.path("again").exists(), "it has not begun");
}

#[test]
fn run_folders() {
    let lab = lab("errors-folder");
    refused(&lab, "no_run", "eval runs/gpt");
    lab.tenon("train gpt.toml").expect(0);
    let before = lab.final_bytes("runs/gpt");
    refused(&lab, "another_experiment", "train gpt.toml --set model.layers=1 --set train.clip=2.0");
    std::fs::create_dir(lab.path("foreign")).unwrap();
    lab.write("foreign/letter.txt", "dear reader");
    refused(&lab, "foreign_folder", "train gpt.toml --out foreign");
    lab.write("text.txt", sentences(21_000));
    refused(&lab, "changed_data", "train gpt.toml");
    lab.write("text.txt", sentences(20_000));
    assert!(lab.final_bytes("runs/gpt") == before, "nothing is lost");
    lab.tenon("eval runs/gpt").expect(0);

    for step in ["00000002", "00000004"] {
        lab.write(&format!("runs/gpt/checkpoints/step-{step}/weights.safetensors"), "no tensors");
    }
    refused(&lab, "unreadable_checkpoints", "train gpt.toml");
    refused(&lab, "unreadable_checkpoints_eval", "eval runs/gpt");
}

#[test]
fn models() {
    let lab = lab("errors-model");
    lab.tenon("run gpt.toml --set train.steps=1").expect(0);
    lab.write("no.safetensors", "no tensors");
    refused(&lab, "unreadable_tensors", "inspect no.safetensors");
    refused(&lab, "missing_inputs", "forward runs/gpt/export --inputs in.safetensors --outputs out.safetensors");
    refused(&lab, "prompt_longer_than_context", &format!("generate runs/gpt {}", "a".repeat(40)));
    // The tokenizer of a model with more tokens.
    let mut other = sentences(20_000);
    other.extend((0..200).filter_map(|i| char::from_u32(0x4e00 + i)));
    lab.write("text.txt", other);
    lab.tenon("run gpt.toml --set train.steps=1 --set data.validation={last=0.01} --out wide").expect(0);
    std::fs::copy(lab.path("wide/export/tokenizer.json"), lab.path("runs/gpt/export/tokenizer.json")).unwrap();
    refused(&lab, "foreign_tokenizer", "generate runs/gpt/export \u{4e05}");
}

/// A file may have no more than so many bytes: what a full disk does to a run, at its first checkpoint that is too large.
#[test]
fn a_full_disk_costs_nothing_that_was_saved() {
    let lab = lab("errors-disk");
    lab.tenon("train gpt.toml --out run").expect(0);
    let before = lab.final_bytes("run");
    let mut command = std::process::Command::new("sh");
    let limited = "trap '' XFSZ; ulimit -f 64; exec \"$0\" train gpt.toml --out full";
    command.args(["-c", limited, env!("CARGO_BIN_EXE_tenon")]).current_dir(lab.path(""));
    let ran = lab.finish(command).expect(2);
    lab.snapshot("disk_full", &ran.stderr);
    assert_eq!(lab.newest_step("full"), 0, "no part of a checkpoint stays");
    lab.tenon("train gpt.toml --out full").expect(0);
    assert!(lab.final_bytes("run") == before);
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let lab = Lab::new("pipes");
    lab.write("gpt.toml", GPT);
    lab.tenon("train gpt.toml --out run --set train.steps=6").expect(0);
    lab.tenon("export run --out model").expect(0);
    let commands = [
        "plan gpt.toml",
        "profile gpt.toml",
        "schema",
        "doc layers",
        "inspect run",
        "inspect model",
        "inspect model/model.safetensors",
        "generate model the --tokens 8",
        "eval run",
        "--help",
        "nonsense",
    ];
    for arguments in commands {
        let code = lab.tenon(arguments).code;
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = lab.command(arguments);
        command.stdout(writer);
        let ran = command.stderr(std::process::Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
        assert_eq!(ran.status.code(), code, "{arguments}");
        if code == Some(0) {
            assert_eq!(String::from_utf8_lossy(&ran.stderr), "", "{arguments}");
        }
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = lab.command(arguments);
        command.stdout(writer.try_clone().unwrap()).stderr(writer);
        assert_eq!(command.status().unwrap().code(), code, "{arguments}, both closed");
    }
    if let Ok(full) = std::fs::File::options().write(true).open("/dev/full") {
        let mut command = lab.command("schema");
        command.stdout(full);
        let failed = lab.finish(command).expect(2).stderr;
        assert!(failed.contains("cannot write to standard output: No space left"), "{failed}");
    }
}
