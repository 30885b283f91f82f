//! A folder with a small text, experiments in it, and the binary run beside them.

#![allow(dead_code, reason = "every test file is a program of its own and uses a part of this")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use tenon::cpu::CpuBackend;
use tenon::train::checkpoint::Checkpoints;
use tenon::train::experiment::Experiment;
use tenon::train::fit::{Event, Observer};
use tenon::train::run::{self, Job, Outcome};
use tenon::train::setup::{Setup, SetupError};
use tenon::train::trainer::Trainer;

/// The longest that any command here may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// A GPT that takes a millisecond or two a step, with dropout.
pub const GPT: &str = r#"
[data]
text = "text.txt"
tokenizer = { kind = "char" }
validation = { last = 0.1 }

[model]
architecture = "gpt2"
layers = 2
width = 32
heads = 2
context = 32
rate = 0.1

[train]
steps = 50
batch = 4
threads = 1
optimizer = { kind = "adamw", lr = 1e-3, weight_decay = 0.1 }
schedule = { kind = "cosine", warmup = 5 }
clip = 1.0
log_every = 3
evaluate_every = 20
"#;

/// A model of the user's own without attention.
pub const OWN: &str = r#"
inputs = dict(input_ids = tokens("b", "t"))

def block(x):
    h = rms_norm(x, name = "norm")
    h = silu(linear(h, 64, name = "gate")) * linear(h, 64, name = "up")
    return x + linear(h, x.shape[-1], name = "down")

def model(input_ids, vocab = 100, context = 16, width = 24, layers = 2):
    x = embedding(input_ids, vocab, width, name = "words")
    for i in range(layers):
        x = scope("h.%d" % i, block, x)
    return dict(logits = linear(x, vocab, name = "head"), hidden = x)
"#;

/// The place of the recipes.
pub fn recipe(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes").join(name).canonicalize().unwrap()
}

/// The processor with all its threads, as the binary takes it.
pub fn backend() -> CpuBackend {
    CpuBackend::new(std::thread::available_parallelism().unwrap().get()).unwrap()
}

/// Numbers that are the same on every run.
pub struct Numbers(pub u64);

impl Numbers {
    /// One below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % n
    }
}

/// Sentences of few words: about `bytes` bytes.
pub fn sentences(bytes: usize) -> String {
    let words = ["the", "whale", "sea", "ship", "swims", "sails", "deep", "over", "white", "captain", "sees", "a"];
    let mut numbers = Numbers(7);
    let mut text = String::new();
    while text.len() < bytes {
        let length = 3 + numbers.below(6);
        let sentence: Vec<&str> = (0..length).map(|_| words[numbers.below(words.len() as u64) as usize]).collect();
        text += &format!("{}.\n", sentence.join(" "));
    }
    text
}

/// A folder that is removed at the end.
pub struct Lab(PathBuf);

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// How a command ended.
#[derive(Debug)]
pub struct Ran {
    /// The exit code; absent for a signal.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// Panics unless the exit code is `code`.
    #[track_caller]
    pub fn expect(self, code: i32) -> Ran {
        assert_eq!(self.code, Some(code), "{}\n{}", self.stdout, self.stderr);
        self
    }
}

impl Lab {
    /// A new folder with `text.txt`.
    pub fn new(name: &str) -> Lab {
        let path = std::env::temp_dir().join(format!("tenon-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        let lab = Lab(path.canonicalize().unwrap());
        lab.write("text.txt", sentences(20_000));
        lab
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes a file and returns its path.
    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// Writes a model of the user's own and an experiment for it, [`GPT`] in all else; returns the experiment.
    pub fn own(&self, program: &str) -> PathBuf {
        self.write("my_model.star", program);
        let family = "\"gpt2\"\nlayers = 2\nwidth = 32\nheads = 2\ncontext = 32\nrate = 0.1";
        self.write("own.toml", GPT.replace(family, "\"my_model.star\""))
    }

    /// Opens an experiment with changes; token shards are kept in the folder.
    pub fn setup(&self, experiment: &Path, set: &[&str]) -> Setup {
        self.try_setup(experiment, set).unwrap_or_else(|e| panic!("{e}"))
    }

    /// As [`Lab::setup`], for experiments that may not be right.
    pub fn try_setup(&self, experiment: &Path, set: &[&str]) -> Result<Setup, SetupError> {
        let set: Vec<String> = set.iter().map(|s| s.to_string()).collect();
        let loaded = Experiment::load(experiment, &set).unwrap_or_else(|e| panic!("{e}"));
        Setup::open(loaded, experiment, &self.path("runs/cache"), &mut |_| {})
    }

    /// Runs an experiment to its verdict in a folder of that name.
    pub fn run(&self, setup: &Setup, name: &str) -> Outcome {
        struct Silent;
        impl Observer for Silent {
            fn event(&mut self, _: Event<'_>) {}
        }
        let (backend, folder, cache) = (backend(), self.path(name), self.path("runs/cache"));
        let job = Job { backend: &backend, folder: &folder, cache: &cache, stop: &AtomicBool::new(false) };
        run::run(setup, &job, true, &mut Silent).unwrap_or_else(|e| panic!("{e}"))
    }

    /// A command of the binary with arguments that are separated by spaces, in the folder.
    pub fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tenon"));
        command.args(arguments.split_whitespace()).current_dir(&self.0).stdin(Stdio::null());
        command
    }

    /// Runs the binary.
    #[track_caller]
    pub fn tenon(&self, arguments: &str) -> Ran {
        self.finish(self.command(arguments))
    }

    /// Runs a command to its end.
    #[track_caller]
    pub fn finish(&self, mut command: Command) -> Ran {
        let output = command.output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Ran { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// Every byte of the newest sound checkpoint of a run: weights, optimizer and counters.
    pub fn final_bytes(&self, run: &str) -> Vec<u8> {
        let checkpoints = Checkpoints::open(&self.path(run).join("checkpoints")).unwrap();
        let newest = checkpoints.latest().unwrap().checkpoint.expect("a sound checkpoint");
        let mut bytes = newest.step().to_le_bytes().to_vec();
        for set in ["weights", "optimizer", "control"] {
            bytes.extend(std::fs::read(newest.folder().join(format!("{set}.safetensors"))).unwrap());
        }
        bytes
    }

    /// The records of a run without what depends on the clock.
    pub fn metrics(&self, run: &str) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(self.path(run).join("metrics.jsonl")).unwrap();
        let record = |line: &str| {
            let mut record: serde_json::Value = serde_json::from_str(line).unwrap();
            record.as_object_mut().unwrap().remove("wall");
            record
        };
        text.lines().map(record).collect()
    }

    /// The step of the newest checkpoint of a run, sound or not; 0 without one.
    pub fn newest_step(&self, run: &str) -> u64 {
        let Ok(entries) = std::fs::read_dir(self.path(run).join("checkpoints")) else { return 0 };
        let names = entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned());
        names.filter_map(|n| n.strip_prefix("step-")?.parse().ok()).max().unwrap_or(0)
    }

    /// Waits until a run that goes on has a checkpoint of `step` or has ended.
    pub fn wait_for(&self, child: &mut Child, run: &str, step: u64) {
        let began = Instant::now();
        while self.newest_step(run) < step && child.try_wait().unwrap().is_none() {
            assert!(began.elapsed() < PATIENCE, "no checkpoint of step {step}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Compares with `tests/snapshots/<name>.txt`, or writes it where `BLESS=1`. The folder's path becomes `DIR`.
    #[track_caller]
    pub fn snapshot(&self, name: &str, text: &str) {
        let text = text.replace(&*self.0.to_string_lossy(), "DIR");
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/snapshots/{name}.txt"));
        if std::env::var_os("BLESS").is_some_and(|v| v == "1") {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &text).unwrap();
        }
        let stored = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(stored == text, "{name} differs; BLESS=1 accepts the change.\nstored:\n{stored}\nnow:\n{text}");
    }
}

/// A trainer of an experiment on a backend.
pub fn trainer<'a>(setup: &'a Setup, backend: &CpuBackend) -> Trainer<'a> {
    let plan = setup.plan(backend).unwrap_or_else(|e| panic!("{e}"));
    Trainer::new(plan, &setup.trained, &setup.experiment.train, &*setup.data, backend).unwrap_or_else(|e| panic!("{e}"))
}

/// The checksum of all state after some steps.
pub fn checksum_after(setup: &Setup, steps: u64, backend: &CpuBackend) -> String {
    let mut trainer = trainer(setup, backend);
    for _ in 0..steps {
        trainer.step().unwrap_or_else(|e| panic!("{e}"));
    }
    trainer.checksum()
}
