//! What can be typed.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Design, train, tune, evaluate and deploy deep-learning models from one experiment file.
#[derive(Parser, Debug)]
#[command(name = "tenon", version, max_term_width = 110)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Tell parameters, operations and exact memory of an experiment before anything runs
    #[command(after_help = "Example:\n  tenon plan recipes/moby-dick.toml --set train.memory=256MiB")]
    Plan(Experiment),
    /// Run an experiment to its verdict: train, evaluate, tune if the goal is not met, export, report
    #[command(
        after_help = "Examples:\n  tenon run recipes/moby-dick.toml\n  tenon run recipes/digits.toml --out runs/wide --set model.hidden='[512]'\n\nRun again to go on after an interruption. Exit code: 0 goal met, 3 not met, 2 error, 130 interrupted."
    )]
    Run(RunArgs),
    /// Only train and evaluate an experiment: no tuning, no export
    #[command(after_help = "Example:\n  tenon train recipes/digits.toml --out runs/quick --set train.epochs=2")]
    Train(RunArgs),
    /// Time every part of a training step and tell what bounds it
    #[command(
        after_help = "Examples:\n  tenon profile recipes/moby-dick.toml --set train.precision=f32\n  tenon profile recipes/moby-dick.toml --picture memory.svg\n\nlimit% is the part of the time that the work would take at the speed that `tenon bench` measures."
    )]
    Profile(Profile),
    /// Measure this machine, for the times that `tenon plan` and `tenon profile` tell
    #[command(after_help = "Example:\n  tenon bench")]
    Bench,
    /// Measure the newest checkpoint of a run on its held-out data
    #[command(after_help = "Example:\n  tenon eval runs/moby-dick")]
    Eval(RunDir),
    /// Continue a text with a trained model
    #[command(after_help = "Example:\n  tenon generate runs/moby-dick \"Call me\" --tokens 200 --temperature 0.7")]
    Generate(Generate),
    /// Tell the classes of texts or pictures with a trained model
    #[command(
        after_help = "Examples:\n  tenon predict runs/spam mail.txt\n  tenon predict runs/lite0-stamps cat.png dog.jpg\n\nA file is one text (UTF-8) or one picture (PNG, JPEG, WebP), and is read as the run's own data was."
    )]
    Predict(Predict),
    /// Run a model on raw tensors and write every named output
    #[command(
        after_help = "Example:\n  tenon forward runs/digits/export --inputs in.safetensors --outputs out.safetensors\n\nInputs carry the ecosystem's names: input_ids, pixel_values (NCHW), ...; `labels` adds `loss`."
    )]
    Forward(Forward),
    /// List what is in a model folder, a run folder or a safetensors file
    #[command(after_help = "Example:\n  tenon inspect runs/moby-dick/export/model.safetensors")]
    Inspect(Inspect),
    /// Print the JSON Schema of experiment files
    #[command(after_help = "Example:\n  tenon schema > experiment.schema.json")]
    Schema,
    /// Export the newest checkpoint of a run with Hugging Face names
    #[command(after_help = "Example:\n  tenon export runs/moby-dick --out my-model")]
    Export(Export),
    /// Bring in a model of Hugging Face, timm or torchvision
    #[command(
        after_help = "Examples:\n  tenon import sentence-transformers/all-MiniLM-L6-v2 --out minilm\n  tenon import resnet50.pth --architecture resnet50 --out resnet50\n\nThe folder that it writes is one that forward, generate and inspect take, with Hugging Face names inside."
    )]
    Import(Import),
    /// Print reference pages
    #[command(after_help = "Example:\n  tenon doc layers")]
    Doc(Doc),
}

/// An experiment and changes to it.
#[derive(Args, Debug)]
pub struct Experiment {
    /// The experiment file
    pub experiment: PathBuf,
    /// Set a key of the experiment
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// A profile of a training step.
#[derive(Args, Debug)]
pub struct Profile {
    /// What is profiled.
    #[command(flatten)]
    pub experiment: Experiment,
    /// Draw the memory over the steps into this file
    #[arg(long, value_name = "FILE.svg")]
    pub picture: Option<PathBuf>,
}

/// A run of an experiment.
#[derive(Args, Debug)]
pub struct RunArgs {
    /// What to run.
    #[command(flatten)]
    pub experiment: Experiment,
    /// The run folder [default: runs/NAME after the experiment file]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

/// A run folder.
#[derive(Args, Debug)]
pub struct RunDir {
    /// The run folder
    pub run: PathBuf,
}

/// Text generation.
#[derive(Args, Debug)]
pub struct Generate {
    /// A run folder or an exported model
    pub model: PathBuf,
    /// The text to continue
    pub prompt: String,
    /// How many tokens to add
    #[arg(long, default_value_t = 100)]
    pub tokens: usize,
    /// How weights are stored and multiplied; bf16 takes half the memory and, for each token, half the reading
    #[arg(long, value_enum, default_value_t = Precision::F32)]
    pub precision: Precision,
    /// Logits are divided by it; 0 always takes the likeliest token
    #[arg(long, default_value_t = 0.8)]
    pub temperature: f64,
    /// Draw from this many of the likeliest tokens only
    #[arg(long)]
    pub top_k: Option<usize>,
    /// Draw from the likeliest tokens that together have this probability only
    #[arg(long)]
    pub top_p: Option<f64>,
    /// The seed of the draws
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

/// A precision of numbers.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Precision {
    /// 32 bits
    F32,
    /// 16 bits, sums in 32
    Bf16,
}

/// A prediction.
#[derive(Args, Debug)]
pub struct Predict {
    /// The run folder of a classifier
    pub run: PathBuf,
    /// Files with a text or a picture each
    #[arg(required = true)]
    pub files: Vec<PathBuf>,
}

/// A forward pass.
#[derive(Args, Debug)]
pub struct Forward {
    /// A run folder or a model folder
    pub model: PathBuf,
    /// The safetensors file to read
    #[arg(long)]
    pub inputs: PathBuf,
    /// The safetensors file to write
    #[arg(long)]
    pub outputs: PathBuf,
}

/// What to look into.
#[derive(Args, Debug)]
pub struct Inspect {
    /// A safetensors file, a model folder or a run folder
    pub path: PathBuf,
}

/// An export.
#[derive(Args, Debug)]
pub struct Export {
    /// The run folder
    pub run: PathBuf,
    /// The folder to write
    #[arg(long)]
    pub out: PathBuf,
}

/// An import.
#[derive(Args, Debug)]
pub struct Import {
    /// A folder with config.json and weights, a file of weights (.safetensors, .bin, .pth), or a name on the Hugging Face hub
    pub source: PathBuf,
    /// The folder to write
    #[arg(long)]
    pub out: PathBuf,
    /// The architecture: a name, a preset, or a .star file [default: what config.json says]
    #[arg(long, value_name = "NAME|FILE.star")]
    pub architecture: Option<String>,
    /// Set a hyperparameter of the architecture
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// A reference page.
#[derive(Args, Debug)]
pub struct Doc {
    /// The page
    #[arg(value_enum)]
    pub page: Page,
}

/// The reference pages.
#[derive(clap::ValueEnum, Clone, Copy, Debug)]
pub enum Page {
    /// Every function that architectures can call
    Layers,
}
