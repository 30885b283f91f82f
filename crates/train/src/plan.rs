//! The plan of a run: its programs and every byte that they take, before anything runs.

use std::fmt;
use std::sync::Arc;

use tenon_data::{Dataset, ElementType, PaddedLength};
use tenon_graph::backend::{Allocation, Backend};
use tenon_graph::cost;
use tenon_graph::diagnostic::Diagnostic;
use tenon_graph::dim::Bindings;
use tenon_graph::graph::Graph;
use tenon_graph::lower::Program;
use tenon_graph::op::Role;
use tenon_graph::passes::pipeline::{Options, compile, prepare};
use tenon_graph::passes::recompute::{Fitted, TooLarge, fit};
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
    /// The least that it needs with recomputation: this budget can be kept, and one byte less cannot.
    pub smallest: usize,
    /// The batch of the plan.
    pub batch: usize,
    /// The largest half, quarter, ... of the batch that fits with recomputation, or one sample if none does; and what the run
    /// then needs.
    pub smaller_batch: Option<(usize, usize)>,
    /// What the run needs in bf16, if that fits or is less.
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
                write!(
                    f,
                    "the run does not fit in memory = \"{}\": it needs {}, and {} with everything recomputed that can be",
                    ByteSize(over.budget as u64),
                    enough(over.plain),
                    enough(over.smallest)
                )?;
                write!(f, "\n  try: memory = \"{}\" or more", enough(over.smallest))?;
                if let Some((batch, bytes)) = over.smaller_batch {
                    write!(
                        f,
                        "\n  try: batch = {batch} instead of {}, which needs {} (accumulate keeps the step the same)",
                        over.batch,
                        enough(bytes)
                    )?;
                }
                if let Some(bytes) = over.in_bf16 {
                    write!(f, "\n  try: precision = \"bf16\", which needs {}", enough(bytes))?;
                }
                Ok(())
            }
        }
    }
}

impl std::error::Error for PlanError {}

/// A short size that is enough for so many bytes: in the largest unit of which they take at least a hundred, rounded up.
fn enough(bytes: usize) -> ByteSize {
    let unit = [1 << 20, 1 << 10].into_iter().find(|unit| bytes / unit >= 100).unwrap_or(1);
    ByteSize((bytes as u64).next_multiple_of(unit as u64))
}

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
    /// Of these, the ones that are trained.
    pub trained: u64,
    /// Floating-point operations of one optimizer step.
    pub flops: f64,
    /// Of these, the ones that are done a second time to fit the budget.
    pub again_flops: f64,
    /// The sizes that the symbols stand for.
    pub bindings: Bindings,
    /// What an optimizer step runs, and how often on average.
    runs: Vec<(Arc<Program>, f64)>,
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

    /// About how many seconds an optimizer step takes on a backend, which may have to measure its speed first.
    pub fn step_seconds(&self, backend: &dyn Backend) -> f64 {
        self.runs.iter().map(|(program, times)| backend.estimate_seconds(program) * times).sum()
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
    let training = match recipe.training().map_err(PlanError::Graph)? {
        Training::Step(step) => vec![step],
        Training::Accumulated { accumulate, update } => vec![accumulate, update],
    };
    let evaluation = recipe.evaluation().map_err(PlanError::Graph)?;
    let planner = Planner { recipe, data, backend, budget: budget.unwrap_or(usize::MAX), training, evaluation };
    let batch = recipe.train.batch as usize;
    let bf16 = recipe.train.precision == Precision::Bf16;
    match planner.attempt(batch, bf16)? {
        Ok(plan) => Ok(plan),
        Err(TooLarge { plain, smallest }) => {
            let (smaller_batch, in_bf16) = std::thread::scope(|scope| {
                let in_bf16 = (!bf16).then(|| scope.spawn(|| Ok(needs(&planner.attempt(batch, true)?))));
                let smaller_batch = planner.smaller_batch(batch, bf16);
                (smaller_batch, in_bf16.map(|thread| thread.join().expect("planning does not panic")).transpose())
            });
            let (smaller_batch, in_bf16) = (smaller_batch?, in_bf16?);
            Err(PlanError::Memory(Box::new(OverBudget {
                budget: planner.budget,
                plain,
                smallest,
                batch,
                smaller_batch,
                in_bf16: in_bf16.filter(|bytes| *bytes < smallest),
            })))
        }
    }
}

fn programs_of(fitted: &[Fitted]) -> Vec<Arc<Program>> {
    fitted.iter().map(|f| Arc::new(f.program.clone())).collect()
}

/// The bytes of the run that was planned, or the least that it needs.
fn needs(attempt: &Result<RunPlan, TooLarge>) -> usize {
    match attempt {
        Ok(plan) => plan.allocation.total(),
        Err(over) => over.smallest,
    }
}

struct Planner<'a> {
    recipe: &'a Recipe<'a>,
    data: &'a dyn Dataset,
    backend: &'a dyn Backend,
    budget: usize,
    /// `step`, or `accumulate` and `update`.
    training: Vec<Graph>,
    evaluation: Graph,
}

impl Planner<'_> {
    /// The largest half, quarter, ... of `batch` that fits, or one sample if none does; and what the run then needs.
    fn smaller_batch(&self, batch: usize, bf16: bool) -> Result<Option<(usize, usize)>, PlanError> {
        let halves = std::iter::successors(Some(batch / 2), |b| Some(b / 2)).take_while(|b| *b > 0);
        let halves: Vec<usize> = halves.collect();
        let Some(least) = halves.last() else { return Ok(None) };
        let attempt = self.attempt(*least, bf16)?;
        let mut best = (*least, needs(&attempt));
        // A smaller batch needs less, so what fits is between those that do not and those that do.
        let (mut from, mut to) = (0, halves.len() - 1);
        while attempt.is_ok() && from < to {
            let middle = (from + to) / 2;
            match self.attempt(halves[middle], bf16)? {
                Ok(plan) => (best, to) = ((halves[middle], plan.allocation.total()), middle),
                Err(_) => from = middle + 1,
            }
        }
        Ok(Some(best))
    }

    /// The memory of these programs together.
    fn allocation(&self, others: &[&Arc<Program>], batches: &[Arc<Program>]) -> Allocation {
        let all: Vec<&Program> = others.iter().map(|p| &***p).chain(batches.iter().map(|p| &**p)).collect();
        Allocation::of(&all, all.iter().map(|p| self.backend.scratch_bytes(p)).max().unwrap_or(0))
    }

    /// The programs of batches of all lengths, each with those before it in the budget; without one each at its smallest.
    fn fit_all(
        &self,
        prepared: &[Graph],
        others: &[&Arc<Program>],
        budget: Option<usize>,
    ) -> Result<Vec<Fitted>, TooLarge> {
        let mut fitted: Vec<Fitted> = Vec::new();
        for graph in prepared {
            let before = programs_of(&fitted);
            let fixed: Vec<&Arc<Program>> = others.iter().copied().chain(&before).collect();
            let scratch = fixed.iter().map(|p| self.backend.scratch_bytes(p)).max().unwrap_or(0);
            let size = |program: &Program| {
                let programs: Vec<&Program> = [program].into_iter().chain(fixed.iter().map(|p| &***p)).collect();
                Allocation::of(&programs, scratch.max(self.backend.scratch_bytes(program))).total()
            };
            fitted.push(match budget {
                Some(budget) => fit(graph, budget, &size)?,
                None => fit(graph, 0, &size).or_else(|over| fit(graph, over.smallest, &size))?,
            });
        }
        Ok(fitted)
    }

    /// One try; the inner error is in bytes of the whole run.
    fn attempt(&self, batch: usize, bf16: bool) -> Result<Result<RunPlan, TooLarge>, PlanError> {
        let Planner { recipe, data, .. } = self;
        let broken = |e| PlanError::Graph(vec![e]);
        let lengths = data.lengths();
        let options = |length: Option<usize>| -> Result<Options, PlanError> {
            let bindings = bind_to_data(recipe.model, &self.training[0], *data, batch, length)?;
            Ok(Options { bindings, bf16 })
        };
        let longest = options(lengths.last().map(|l| l.length))?;
        check_limits(recipe.model, &longest.bindings)?;
        let shorter = lengths.split_last().map_or(&[][..], |(_, shorter)| shorter);
        let shorter = shorter.iter().map(|l| options(Some(l.length))).collect::<Result<Vec<_>, _>>()?;

        // A batch's program has a backward pass, and so something to recompute; of the others there is one version.
        let plain = |graph: &Graph, options: &Options| compile(graph, options).map(Arc::new).map_err(broken);
        let updates = self.training[1..].iter().map(|g| plain(g, &longest)).collect::<Result<Vec<_>, _>>()?;
        let evaluate = plain(&self.evaluation, &longest)?;
        let evaluations = shorter.iter().map(|o| plain(&self.evaluation, o)).collect::<Result<Vec<_>, _>>()?;
        let others: Vec<&Arc<Program>> = updates.iter().chain([&evaluate]).chain(&evaluations).collect();

        let prepared = [&longest].into_iter().chain(&shorter).map(|o| prepare(&self.training[0], o).map_err(broken));
        let prepared = prepared.collect::<Result<Vec<Graph>, _>>()?;
        let batches = match self.fit_all(&prepared, &others, Some(self.budget)) {
            Err(over) if prepared.len() > 1 => {
                // What one length leaves may be too little for another; all at their smallest may still fit.
                let lowest = self.fit_all(&prepared, &others, None);
                let smallest = lowest
                    .as_ref()
                    .map_or(usize::MAX, |batches| self.allocation(&others, &programs_of(batches)).total());
                match lowest {
                    Ok(batches) if smallest <= self.budget => batches,
                    _ => return Ok(Err(TooLarge { smallest, ..over })),
                }
            }
            Err(over) => return Ok(Err(over)),
            Ok(batches) => batches,
        };
        let allocation = self.allocation(&others, &programs_of(&batches));

        // What a step costs on average: batches of every length as often as the data has samples of it, then the update.
        let mut shares: Vec<f64> = lengths.iter().map(|l| l.share).collect();
        let longest_share = shares.pop().unwrap_or(1.0);
        shares.insert(0, longest_share);
        let times = recipe.train.accumulate as f64;
        let again_flops = batches.iter().zip(&shares).map(|(f, share)| f.again_flops * share * times).sum();
        let mut batches = batches.into_iter().map(|f| Arc::new(f.program));
        let training: Vec<Arc<Program>> = batches.next().into_iter().chain(updates).collect();
        let batch_of = |((length, batch), evaluate): ((&PaddedLength, Arc<Program>), Arc<Program>)| Shorter {
            length: length.length,
            batch,
            evaluate,
        };
        let shorter: Vec<Shorter> = lengths.iter().zip(batches).zip(evaluations).map(batch_of).collect();
        let of_batches = [&training[0]].into_iter().chain(shorter.iter().map(|s| &s.batch)).zip(&shares);
        let of_batches = of_batches.map(|(p, share)| (p.clone(), share * times));
        let runs: Vec<_> = of_batches.chain(training[1..].iter().map(|p| (p.clone(), 1.0))).collect();
        let flops = runs.iter().map(|(p, times)| cost::costs(&p.graph).total().flops * times).sum();
        Ok(Ok(RunPlan {
            training,
            evaluate,
            shorter,
            objective: recipe.objective,
            allocation,
            parameters: recipe.model.parameter_count() as u64,
            trained: recipe.model.trainable_count() as u64,
            flops,
            again_flops,
            bindings: longest.bindings,
            runs,
        }))
    }
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
