//! The plan of a run: its programs and every byte that they take, before anything runs.

use std::fmt;
use std::sync::Arc;

use tenon_data::{Dataset, ElementType};
use tenon_graph::backend::{Allocation, Backend};
use tenon_graph::cost;
use tenon_graph::diagnostic::Diagnostic;
use tenon_graph::dim::Bindings;
use tenon_graph::graph::Graph;
use tenon_graph::lower::Program;
use tenon_graph::op::Role;
use tenon_graph::passes::pipeline::{Options, compile};
use tenon_graph::passes::recompute::{Fitted, TooLarge};
use tenon_graph::types::DType;
use tenon_nn::Model;

use crate::experiment::{ByteSize, Objective, Precision};
use crate::objective::LABELS;
use crate::programs::{DENOMINATOR, Recipe, Training};

/// Why a run cannot be planned.
#[derive(Debug)]
pub enum PlanError {
    /// The graph cannot be built.
    Graph(Vec<Diagnostic>),
    /// Model and data do not fit each other.
    Data(String),
    /// The plan does not fit the budget.
    Memory(Box<OverBudget>),
}

/// How far a plan is from its budget, and what would help.
#[derive(Clone, PartialEq, Debug)]
pub struct OverBudget {
    /// The budget in bytes.
    pub budget: usize,
    /// What the run needs without recomputation.
    pub plain: usize,
    /// The least that it needs with recomputation.
    pub smallest: usize,
    /// The batch of the plan.
    pub batch: usize,
    /// The largest batch that fits with recomputation, if one does.
    pub fitting_batch: Option<usize>,
    /// What the run needs at least in bf16, if that is less.
    pub in_bf16: Option<usize>,
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PlanError::Graph(diagnostics) => {
                for (i, diagnostic) in diagnostics.iter().enumerate() {
                    write!(f, "{}{diagnostic}", if i > 0 { "\n" } else { "" })?;
                }
                Ok(())
            }
            PlanError::Data(message) => f.write_str(message),
            PlanError::Memory(over) => {
                // Rounded up, so that what is suggested is enough.
                let size = |bytes: usize| ByteSize((bytes as u64).next_multiple_of(1 << 20));
                write!(
                    f,
                    "the run does not fit in memory = \"{}\": it needs {}, and {} with everything recomputed that can be",
                    ByteSize(over.budget as u64),
                    size(over.plain),
                    size(over.smallest)
                )?;
                write!(f, "\n  try: memory = \"{}\" or more", size(over.smallest))?;
                if let Some(batch) = over.fitting_batch {
                    write!(
                        f,
                        "\n  try: batch = {batch} instead of {} (accumulate keeps the step the same)",
                        over.batch
                    )?;
                }
                if let Some(bytes) = over.in_bf16 {
                    write!(f, "\n  try: precision = \"bf16\", which needs {}", size(bytes))?;
                }
                Ok(())
            }
        }
    }
}

impl std::error::Error for PlanError {}

/// A run before it runs.
pub struct RunPlan {
    /// `step`, or `accumulate` and `update`.
    pub training: Vec<Arc<Program>>,
    /// The program of an evaluation batch.
    pub evaluate: Arc<Program>,
    /// The programs of batches that are padded to less than the longest sample.
    pub shorter: Vec<Shorter>,
    /// What is learnt.
    pub objective: Objective,
    /// All memory of the run.
    pub allocation: Allocation,
    /// Elements of the model's parameters.
    pub parameters: u64,
    /// Floating-point operations of one optimizer step.
    pub flops: f64,
    /// Of these, the ones that are done a second time to fit the budget.
    pub again_flops: f64,
    /// The sizes that the symbols stand for.
    pub bindings: Bindings,
    /// About how many seconds an optimizer step takes on this machine.
    pub step_seconds: f64,
}

/// The programs of batches of one length.
pub struct Shorter {
    /// The length, one of [`Dataset::lengths`].
    pub length: usize,
    /// As the first of [`RunPlan::training`].
    pub batch: Arc<Program>,
    /// As [`RunPlan::evaluate`].
    pub evaluate: Arc<Program>,
}

impl RunPlan {
    /// The programs in the order in which a session takes them: training, evaluation, then those of shorter batches.
    pub fn programs(&self) -> Vec<Arc<Program>> {
        let shorter = self.shorter.iter().flat_map(|s| [s.batch.clone(), s.evaluate.clone()]);
        self.training.iter().cloned().chain([self.evaluate.clone()]).chain(shorter).collect()
    }

    /// The number of the program that trains on a batch of this length.
    pub fn batch_program(&self, length: Option<usize>) -> usize {
        self.shorter_at(length).map_or(0, |at| self.training.len() + 1 + 2 * at)
    }

    /// The number of the evaluation program of this length.
    pub fn evaluation(&self, length: Option<usize>) -> usize {
        self.shorter_at(length).map_or(self.training.len(), |at| self.training.len() + 2 + 2 * at)
    }

    fn shorter_at(&self, length: Option<usize>) -> Option<usize> {
        self.shorter.iter().position(|s| Some(s.length) == length)
    }
}

/// Plans a run on `data` with batches of `batch` samples within `budget` bytes.
///
/// # Errors
/// See [`PlanError`].
pub fn plan(
    recipe: &Recipe<'_>,
    data: &dyn Dataset,
    backend: &dyn Backend,
    budget: Option<usize>,
) -> Result<RunPlan, PlanError> {
    let batch = recipe.train.batch as usize;
    let bf16 = recipe.train.precision == Precision::Bf16;
    match attempt(recipe, data, backend, budget, batch, bf16)? {
        Ok(plan) => Ok(plan),
        Err(TooLarge { plain, smallest }) => {
            let fits = |batch| Ok(attempt(recipe, data, backend, budget, batch, bf16)?.is_ok());
            let mut fitting_batch = None;
            let mut half = batch / 2;
            while half > 0 && fitting_batch.is_none() {
                if fits(half)? {
                    fitting_batch = Some(half);
                }
                half /= 2;
            }
            let in_bf16 = match bf16 {
                true => None,
                false => match attempt(recipe, data, backend, budget, batch, true)? {
                    Ok(plan) => Some(plan.allocation.total()),
                    Err(over) => (over.smallest < smallest).then_some(over.smallest),
                },
            };
            let budget = budget.unwrap_or(usize::MAX);
            Err(PlanError::Memory(Box::new(OverBudget { budget, plain, smallest, batch, fitting_batch, in_bf16 })))
        }
    }
}

/// One try; the inner error is in bytes of the whole run.
fn attempt(
    recipe: &Recipe<'_>,
    data: &dyn Dataset,
    backend: &dyn Backend,
    budget: Option<usize>,
    batch: usize,
    bf16: bool,
) -> Result<Result<RunPlan, TooLarge>, PlanError> {
    let training = recipe.training().map_err(PlanError::Graph)?;
    let evaluation = recipe.evaluation().map_err(PlanError::Graph)?;
    let graphs = match training {
        Training::Step(step) => vec![step],
        Training::Accumulated { accumulate, update } => vec![accumulate, update],
    };
    let longest = data.lengths().last().map(|l| l.length);
    let bindings = bind_to_data(recipe.model, &graphs[0], data, batch, longest)?;
    check_limits(recipe.model, &bindings)?;
    let one = |(graph, bindings): &(&Graph, Bindings), budget: Option<usize>| {
        let options = Options { bindings: bindings.clone(), bf16, budget };
        compile(graph, &options).map_err(|e| PlanError::Graph(vec![e]))
    };
    let mut all: Vec<(&Graph, Bindings)> = Vec::new();
    for length in data.lengths().split_last().map_or(&[][..], |(_, shorter)| shorter) {
        let bindings = bind_to_data(recipe.model, &graphs[0], data, batch, Some(length.length))?;
        all.extend([(&graphs[0], bindings.clone()), (&evaluation, bindings)]);
    }
    let of_shorter = all.len();
    all.extend(graphs.iter().chain([&evaluation]).map(|graph| (graph, bindings.clone())));
    let fit_all = |budget: Option<usize>| -> Result<Result<Vec<Fitted>, TooLarge>, PlanError> {
        let mut fitted = Vec::with_capacity(all.len());
        let mut over: Option<TooLarge> = None;
        for graph in &all {
            match one(graph, budget)? {
                Ok(program) => fitted.push(program),
                Err(new) => {
                    let worst = over.map_or(new, |o| TooLarge {
                        plain: o.plain.max(new.plain),
                        smallest: o.smallest.max(new.smallest),
                    });
                    over = Some(worst);
                }
            }
        }
        Ok(over.map_or(Ok(fitted), Err))
    };
    let plain = match fit_all(None)? {
        Ok(plain) => plain,
        Err(_) => unreachable!("everything fits without a budget"),
    };
    let allocation = |fitted: &[Fitted]| {
        let scratch = fitted.iter().map(|f| backend.scratch_bytes(&f.program)).max().unwrap_or(0);
        let programs: Vec<Arc<Program>> = fitted.iter().map(|f| Arc::new(f.program.clone())).collect();
        (Allocation::of(&programs, scratch), programs)
    };
    let (mut sizes, mut programs) = allocation(&plain);
    let mut again = vec![0.0; all.len()];
    if let Some(budget) = budget.filter(|b| sizes.total() > *b) {
        let fixed = sizes.total() - sizes.arena;
        let whole = |over: TooLarge| TooLarge { plain: over.plain + fixed, smallest: over.smallest + fixed };
        let fitted = match fit_all(Some(budget.saturating_sub(fixed)))? {
            Ok(fitted) => fitted,
            Err(over) => return Ok(Err(whole(over))),
        };
        again = fitted.iter().map(|f| f.again_flops).collect();
        (sizes, programs) = allocation(&fitted);
    }
    let evaluate = programs.pop().expect("evaluation is the last program");
    let training = programs.split_off(of_shorter);
    let shorter: Vec<Shorter> = data
        .lengths()
        .iter()
        .zip(programs.chunks_exact(2))
        .map(|(l, pair)| Shorter { length: l.length, batch: pair[0].clone(), evaluate: pair[1].clone() })
        .collect();
    // What a step costs on average: batches of every length as often as the data has samples of it, then the update.
    let shares: Vec<f64> = data.lengths().iter().map(|l| l.share).collect();
    let share_of_longest = shares.last().copied().unwrap_or(1.0);
    let batches =
        shorter.iter().map(|s| &s.batch).zip(shares.iter().copied()).chain([(&training[0], share_of_longest)]);
    let times = recipe.train.accumulate as f64;
    let runs: Vec<(&Arc<Program>, f64)> =
        batches.map(|(p, share)| (p, share * times)).chain(training[1..].iter().map(|p| (p, 1.0))).collect();
    let flops = runs.iter().map(|(p, times)| cost::costs(&p.graph).total().flops * times).sum();
    let step_seconds = runs.iter().map(|(p, times)| backend.estimate_seconds(p) * times).sum();
    let of_batches = again[..of_shorter].iter().step_by(2).zip(&shares).map(|(again, share)| again * share);
    let again_flops = of_batches.sum::<f64>() + again[of_shorter] * share_of_longest;
    let model = &recipe.model.graph;
    let elements = |(_, _, role, ty): (_, _, Role, &tenon_graph::types::Type)| {
        (role == Role::Parameter).then(|| ty.elements() as u64)
    };
    Ok(Ok(RunPlan {
        training,
        evaluate,
        shorter,
        objective: recipe.objective,
        allocation: sizes,
        parameters: model.inputs().filter_map(elements).sum(),
        flops,
        again_flops: again_flops * times,
        bindings,
        step_seconds,
    }))
}

/// The sizes of the model's symbols that the data's samples and the batch give.
fn bind_to_data(
    model: &Model,
    graph: &Graph,
    data: &dyn Dataset,
    batch: usize,
    length: Option<usize>,
) -> Result<Bindings, PlanError> {
    let mut bindings = Bindings::new();
    let inputs = graph.inputs().filter(|(_, name, role, _)| *role == Role::Data && &***name != DENOMINATOR);
    for (_, name, _, ty) in inputs {
        let Some(field) = data.fields().iter().find(|f| f.name == **name).map(|f| f.at(length)) else {
            let given: Vec<&str> = data.fields().iter().map(|f| f.name.as_str()).collect();
            let message = format!(
                "the model takes `{name}`, which the data does not give\n  the data gives: {}",
                given.join(", ")
            );
            return Err(PlanError::Data(message));
        };
        let element = match field.element {
            ElementType::F32 => DType::F32,
            ElementType::I32 => DType::I32,
        };
        let sizes: Vec<usize> = std::iter::once(batch).chain(field.shape.iter().copied()).collect();
        let mismatch = || {
            let whole: Vec<String> = sizes.iter().map(usize::to_string).collect();
            let what = if **name == *LABELS { "its predictions take" } else { "it declares" };
            PlanError::Data(format!(
                "`{name}` does not fit: {what} {ty}, the data gives {element}[{}] with a batch of {batch}\n  try: set the hyperparameters of {} that size it",
                whole.join(", "),
                model
            ))
        };
        if element != ty.dtype || sizes.len() != ty.shape.rank() {
            return Err(mismatch());
        }
        for (dim, size) in ty.shape.iter().zip(&sizes) {
            let symbols: Vec<_> = dim.symbols().collect();
            match (dim.as_const(), symbols.as_slice()) {
                (Some(n), _) if n == *size => {}
                (None, [symbol]) if bindings.get(symbol).is_none_or(|n| n == size) => {
                    bindings.insert(*symbol, *size);
                }
                _ => return Err(mismatch()),
            }
        }
    }
    Ok(bindings)
}

/// The model's own limits on its symbols, such as a sequence no longer than its table of positions.
fn check_limits(model: &Model, bindings: &Bindings) -> Result<(), PlanError> {
    model.check(bindings).map_err(|e| PlanError::Data(e.to_string()))
}
