//! What is wrong with an experiment: every problem with its place, collected and shown together.

use std::fmt;

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A line of the experiment file, from 1.
    Line(usize),
    /// A `--set key=value` option, as typed.
    Option(String),
    /// Made by a program (a trial's assignment, a struct filled in Rust).
    Program,
}

/// One thing that is wrong, in one or a few lines of text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where it was written.
    pub place: Place,
    /// What is wrong, both sides, and what to try.
    pub message: String,
}

/// All the problems of one experiment, sorted by place. `Display` writes one line each: `moby.toml:14: unknown key ...`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems {
    /// The experiment's name for messages, as the user typed its path.
    pub file: String,
    /// At least one.
    pub problems: Vec<Problem>,
}

impl Problems {
    pub(crate) fn new(file: &str, mut problems: Vec<Problem>) -> Self {
        problems.sort_by(|a, b| a.place.cmp(&b.place));
        problems.dedup();
        Problems { file: file.to_owned(), problems }
    }

    pub(crate) fn one(file: &str, place: Place, message: impl Into<String>) -> Self {
        Problems::new(file, vec![Problem { place, message: message.into() }])
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            match &problem.place {
                Place::Line(line) => write!(f, "{}:{line}: {}", self.file, problem.message)?,
                Place::Option(option) => write!(f, "--set {option}: {}", problem.message)?,
                Place::Program => write!(f, "{}: {}", self.file, problem.message)?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// The candidate nearest to `word`, if it is near enough to have been meant.
pub(crate) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let allowed = (word.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&word.to_lowercase(), &candidate.to_lowercase()), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}
