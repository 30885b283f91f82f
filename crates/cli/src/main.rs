//! The binary `tenon`: arguments in, text and an exit code out.

// These macros panic where the reader of a pipe has gone away: `watch::line`, `watch::note` and `commands::page` do not.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod args;
mod commands;
mod machine;
mod picture;
mod profile;
mod show;
mod watch;

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Parser;

/// Set by Ctrl-C: what runs ends after the step that is under way.
static STOP: AtomicBool = AtomicBool::new(false);

fn main() -> ExitCode {
    let cli = args::Cli::parse();
    // A second Ctrl-C ends the process at once; checkpoints are whole at any moment.
    let handler = || {
        if STOP.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        watch::note("\nfinishing this step; once more to stop at once");
    };
    if let Err(error) = ctrlc::set_handler(handler) {
        watch::note(&format!("warning: Ctrl-C will not save: {error}"));
    }
    let outcome = match &cli.command {
        args::Command::Plan(args) => commands::plan(args),
        args::Command::Bench => commands::bench(),
        args::Command::Run(args) => commands::run(args, true, &STOP),
        args::Command::Train(args) => commands::run(args, false, &STOP),
        args::Command::Profile(args) => commands::profile(args),
        args::Command::Eval(args) => commands::eval(args, &STOP),
        args::Command::Generate(args) => commands::generate(args, &STOP),
        args::Command::Predict(args) => commands::predict(args),
        args::Command::Forward(args) => commands::forward_pass(args),
        args::Command::Inspect(args) => commands::inspect(args),
        args::Command::Schema => commands::schema(),
        args::Command::Import(args) => commands::import(args),
        args::Command::Export(args) => commands::export(args, &STOP),
        args::Command::Doc(args) => commands::doc(args),
    };
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(commands::Failure(message)) => {
            watch::note(&format!("error: {message}"));
            ExitCode::from(2)
        }
    }
}
