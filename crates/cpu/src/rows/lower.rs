//! From a fused unit to steps over values: what each value needs, and which steps make and use it.

use smallvec::{SmallVec, smallvec};
use tenon_graph::graph::{Graph, Value};
use tenon_graph::lower::access::Strided;
use tenon_graph::lower::fused::{Code, Fused, Instruction, Reg, Spread};
use tenon_graph::op::ReduceOp;
use tenon_graph::types::DType;

use super::elementwise::{Formula, binary_is_exact, cast_keeps_lanes, constant_bits, unary_is_exact};
use super::reduce::{Columns, Reduction, over_nothing, reduction};
use super::step::{Extent, Step};
use super::window::{Format, Positions, Window};

/// A value of the program, by its position in [`Lowered::values`].
pub type Id = usize;

/// What a value is.
#[derive(Clone, Copy)]
pub struct Computed {
    /// How many lanes it has.
    pub extent: Extent,
    /// How many row reductions, one after the other, come before it.
    pub level: usize,
}

/// Elements read from a buffer.
pub struct LoadFrom {
    /// The buffer's position in [`Lowered::buffers`].
    pub buffer: usize,
    /// Which elements.
    pub window: Window,
    /// How they are read.
    pub format: Format,
    /// Whether each element of the domain is at its own position, so that a store may be in place.
    pub whole: bool,
}

/// Elements written to a buffer.
pub struct StoreTo {
    /// The buffer's position in [`Lowered::buffers`].
    pub buffer: usize,
    /// How they are written.
    pub format: Format,
}

/// A reduction over rows.
pub struct Column {
    /// The kernel.
    pub columns: Columns,
    /// Where it goes.
    pub store: StoreTo,
}

/// A reduction over everything.
pub struct Total {
    /// The kernels.
    pub reduction: Reduction,
    /// Where it goes.
    pub store: StoreTo,
    /// Its accumulator.
    pub accumulator: usize,
}

/// A result of a domain without elements.
pub struct Nothing {
    /// The lane of every element.
    pub bits: u32,
    /// How many elements.
    pub elements: usize,
    /// Where they go.
    pub store: StoreTo,
}

/// A fused unit as steps.
#[derive(Default)]
pub struct Lowered {
    /// The values of the buffers that are used.
    pub buffers: Vec<Value>,
    /// What is read.
    pub loads: Vec<LoadFrom>,
    /// What counts.
    pub positions: Vec<Positions>,
    /// What is written.
    pub stores: Vec<StoreTo>,
    /// Reductions over rows.
    pub columns: Vec<Column>,
    /// Reductions over everything.
    pub totals: Vec<Total>,
    /// Accumulators.
    pub accumulators: usize,
    /// Every value.
    pub values: Vec<Computed>,
    /// Every step; what a step reads comes before it.
    pub steps: Vec<Step<Id>>,
    /// The results if the domain has no elements.
    pub nothing: Vec<Nothing>,
}

struct Lowering<'a> {
    fused: &'a Fused,
    graph: &'a Graph,
    lowered: Lowered,
    /// The value of each instruction; of no meaning for column and total reductions.
    of: Vec<Id>,
    /// Values rounded to bf16: (rounded, before).
    rounded: Vec<(Id, Id)>,
}

/// The steps of a fused unit.
pub fn lower(fused: &Fused, graph: &Graph) -> Lowered {
    let mut lowering = Lowering { fused, graph, lowered: Lowered::default(), of: Vec::new(), rounded: Vec::new() };
    if fused.rows * fused.cols == 0 {
        lowering.results_of_nothing();
        return lowering.lowered;
    }
    for (reg, instruction) in fused.instructions.iter().enumerate() {
        let id = lowering.instruction(reg, instruction);
        lowering.of.push(id);
        if !matches!(instruction.spread, Spread::Column | Spread::Total) {
            for (_, value) in fused.stores.iter().filter(|(r, _)| *r == reg) {
                lowering.store(id, instruction.spread, *value);
            }
        }
    }
    let mut lowered = lowering.lowered;
    drop_unused(&mut lowered);
    lowered
}

/// Drops the steps whose results nothing reads.
fn drop_unused(lowered: &mut Lowered) {
    let mut read = vec![false; lowered.values.len()];
    let mut kept: Vec<Step<Id>> = Vec::with_capacity(lowered.steps.len());
    for step in lowered.steps.drain(..).rev() {
        if step.writes().iter().all(|to| read[*to]) {
            step.reads().into_iter().for_each(|id| read[id] = true);
            kept.push(step);
        }
    }
    kept.reverse();
    lowered.steps = kept;
}

impl Lowering<'_> {
    fn buffer(&mut self, value: Value) -> usize {
        let buffers = &mut self.lowered.buffers;
        buffers.iter().position(|v| *v == value).unwrap_or_else(|| {
            buffers.push(value);
            buffers.len() - 1
        })
    }

    fn store_to(&mut self, value: Value) -> StoreTo {
        StoreTo { buffer: self.buffer(value), format: Format::new(self.graph.ty(value).dtype) }
    }

    /// A new value. Where rows have one element, values per row are values per element.
    fn value(&mut self, extent: Extent, level: usize) -> Id {
        let extent = if extent == Extent::Row && self.fused.cols == 1 { Extent::Full } else { extent };
        self.lowered.values.push(Computed { extent, level });
        self.lowered.values.len() - 1
    }

    fn map(&mut self, formula: Formula, from: &[Id]) -> Id {
        let values = &self.lowered.values;
        let extent = from.iter().map(|id| values[*id].extent).max().unwrap_or(Extent::Uniform);
        let level = from.iter().map(|id| values[*id].level).max().unwrap_or(0);
        let to = self.value(extent, level);
        self.lowered.steps.push(Step::Map { formula, kernel: formula.kernel(), from: from.into(), to, direct: None });
        to
    }

    fn rounded(&mut self, id: Id, dtype: DType, exact: bool) -> Id {
        if dtype != DType::BF16 || exact {
            return id;
        }
        let rounded = self.map(Formula::Round, &[id]);
        self.rounded.push((rounded, id));
        rounded
    }

    /// `id` with as many lanes as `extent` says.
    fn widened(&mut self, id: Id, extent: Extent) -> Id {
        let Computed { extent: found, level } = self.lowered.values[id];
        let to = self.value(extent, level);
        if self.lowered.values[to].extent == found {
            self.lowered.values.pop();
            return id;
        }
        let (formula, kernel) = (Formula::Copy, Formula::Copy.kernel());
        self.lowered.steps.push(Step::Map { formula, kernel, from: smallvec![id], to, direct: None });
        to
    }

    /// The window that has to be read, and what a value read through it holds.
    fn reach(&self, strided: &Strided, spread: Spread) -> (Window, Extent) {
        let window = Window::new(strided);
        if window.is_uniform() {
            return (window, Extent::Uniform);
        }
        match spread {
            Spread::Full => match window.per_row(self.fused.cols) {
                Some(rows) if self.fused.cols > 1 => (rows, Extent::Row),
                _ => (window, Extent::Full),
            },
            _ => (window, Extent::Row),
        }
    }

    fn instruction(&mut self, reg: Reg, instruction: &Instruction) -> Id {
        let dtype = instruction.dtype;
        let operand_type = |reg: Reg| self.fused.instructions[reg].dtype;
        match &instruction.code {
            Code::Constant(value) => {
                let to = self.value(Extent::Uniform, 0);
                self.lowered.steps.push(Step::Constant { bits: constant_bits(*value, dtype), to });
                to
            }
            Code::Load(strided) => {
                let (window, extent) = self.reach(strided, instruction.spread);
                let elements = self.graph.ty(strided.root).elements();
                let domain = self.fused.rows * self.fused.cols;
                let whole = window.is_contiguous() && elements == domain;
                let buffer = self.buffer(strided.root);
                self.lowered.loads.push(LoadFrom { buffer, window, format: Format::new(dtype), whole });
                let to = self.value(extent, 0);
                self.lowered.steps.push(Step::Load { load: self.lowered.loads.len() - 1, to });
                to
            }
            Code::Index { window, divide, modulo } => {
                let (mut window, mut extent) = self.reach(window, instruction.spread);
                let cols = self.fused.cols;
                if window == Window::spaced(self.fused.rows * cols, 1) && divide.is_multiple_of(cols) {
                    // An axis outside the rows counts: the index of a row's first element is that of all.
                    (window, extent) = (Window::spaced(self.fused.rows, cols), Extent::Row);
                }
                self.lowered.positions.push(Positions { window, divide: *divide, modulo: *modulo });
                let to = self.value(extent, 0);
                self.lowered.steps.push(Step::Index { positions: self.lowered.positions.len() - 1, to });
                let index = self.cast(to, DType::U32, dtype);
                self.rounded(index, dtype, false)
            }
            Code::Random { key, stream } => {
                let buffer = self.buffer(*key);
                let key = self.value(Extent::Uniform, 0);
                self.lowered.steps.push(Step::Key { buffer, stream: *stream, to: key });
                let extent = if instruction.spread == Spread::Row { Extent::Row } else { Extent::Full };
                let to = self.value(extent, 0);
                self.lowered.steps.push(Step::Random { key, to });
                to
            }
            Code::Unary(op, x) => {
                let result = self.map(Formula::Unary(*op, operand_type(*x)), &[self.of[*x]]);
                self.rounded(result, dtype, unary_is_exact(*op))
            }
            Code::Binary(op, a, b) => {
                let result = self.map(Formula::Binary(*op, operand_type(*a)), &[self.of[*a], self.of[*b]]);
                self.rounded(result, dtype, binary_is_exact(*op))
            }
            Code::Select(condition, a, b) => {
                self.map(Formula::Select, &[self.of[*condition], self.of[*a], self.of[*b]])
            }
            Code::Cast(x) => {
                let from = operand_type(*x);
                let result = self.cast(self.of[*x], from, dtype);
                self.rounded(result, dtype, from == DType::BF16)
            }
            Code::Repeat(x) => self.of[*x],
            Code::Reduce(op, x) => self.reduce(reg, instruction, *op, *x),
        }
    }

    fn cast(&mut self, id: Id, from: DType, to: DType) -> Id {
        if cast_keeps_lanes(from, to) { id } else { self.map(Formula::Cast(from, to), &[id]) }
    }

    fn reduce(&mut self, reg: Reg, instruction: &Instruction, op: ReduceOp, operand: Reg) -> Id {
        let from = self.widened(self.of[operand], Extent::Full);
        let reduction = reduction(op, self.fused.instructions[operand].dtype);
        if instruction.spread == Spread::Row {
            let to = self.value(Extent::Row, self.lowered.values[from].level + 1);
            self.lowered.steps.push(Step::Reduce { reduction, from, to });
            return self.rounded(to, instruction.dtype, op != ReduceOp::Sum);
        }
        let stored = self.fused.stores.iter().find(|(r, _)| *r == reg).map(|(_, value)| *value);
        if let Some(value) = stored {
            let store = self.store_to(value);
            if instruction.spread == Spread::Column {
                let columns = reduction.columns.expect("argmax is only taken along rows");
                self.lowered.columns.push(Column { columns, store });
                self.lowered.steps.push(Step::Column { column: self.lowered.columns.len() - 1, from });
            } else {
                let accumulator = self.lowered.accumulators;
                self.lowered.accumulators += 1;
                self.lowered.totals.push(Total { reduction, store, accumulator });
                self.lowered.steps.push(Step::Accumulate { reduction, from, accumulator });
            }
        }
        from
    }

    fn store(&mut self, id: Id, spread: Spread, value: Value) {
        let extent = match spread {
            Spread::Row => Extent::Row,
            Spread::Uniform if self.graph.ty(value).elements() == 1 => Extent::Uniform,
            _ => Extent::Full,
        };
        // A store of bf16 rounds by itself.
        let before = self.rounded.iter().find(|(rounded, _)| *rounded == id).map(|(_, before)| *before);
        let unrounded = before.filter(|_| self.graph.ty(value).dtype == DType::BF16).unwrap_or(id);
        let from = self.widened(unrounded, extent);
        let store = self.store_to(value);
        self.lowered.stores.push(store);
        self.lowered.steps.push(Step::Store { store: self.lowered.stores.len() - 1, from });
    }

    /// Without elements, only reductions have results, and nothing else reads those in the same unit.
    fn results_of_nothing(&mut self) {
        for (reg, value) in &self.fused.stores {
            if let Code::Reduce(op, operand) = self.fused.instructions[*reg].code {
                let bits = over_nothing(op, self.fused.instructions[operand].dtype);
                let (elements, store) = (self.graph.ty(*value).elements(), self.store_to(*value));
                self.lowered.nothing.push(Nothing { bits, elements, store });
            }
        }
    }
}

/// Steps that follow each other over one tile.
pub type Steps = Vec<Step<Id>>;

/// The steps of a program split by when they run.
pub struct Staged {
    /// Once.
    pub uniform: Steps,
    /// For each row: what comes before its elements, and what is done with each tile of them.
    pub stages: Vec<(Steps, Steps)>,
    /// For each row, after the last stage.
    pub after: Steps,
}

/// Whether a step runs once.
fn is_uniform(lowered: &Lowered, step: &Step<Id>) -> bool {
    match (step.writes().as_slice(), step) {
        ([], Step::Store { from, .. }) => lowered.values[*from].extent == Extent::Uniform,
        ([], _) => false,
        (made, _) => made.iter().all(|to| lowered.values[*to].extent == Extent::Uniform),
    }
}

/// The number of stages that tiles smaller than a row need.
pub fn stage_count(lowered: &Lowered) -> usize {
    let levels = lowered.steps.iter().filter(|s| uses_elements(lowered, s)).map(|s| lowered.values[s.reads()[0]].level);
    levels.max().unwrap_or(0) + 1
}

/// Whether a step does something with elements other than making elements.
fn uses_elements(lowered: &Lowered, step: &Step<Id>) -> bool {
    match step {
        Step::Reduce { .. } | Step::Accumulate { .. } | Step::Column { .. } => true,
        Step::Store { from, .. } => lowered.values[*from].extent == Extent::Full,
        _ => false,
    }
}

/// Splits the steps for tiles of whole rows: everything in one stage.
pub fn whole_rows(lowered: &Lowered) -> Staged {
    let (uniform, body): (Steps, Steps) = lowered.steps.iter().cloned().partition(|s| is_uniform(lowered, s));
    Staged { uniform, stages: vec![(Vec::new(), with_late_stores(lowered, body))], after: Vec::new() }
}

/// Splits the steps for tiles that are parts of rows: a stage ends where a row has been reduced, and the next one
/// computes the elements that it needs again. All elements are stored in the last stage, as a store may overwrite what
/// the stages before read.
pub fn parts_of_rows(lowered: &mut Lowered) -> Staged {
    let count = stage_count(lowered);
    let mut staged = Staged { uniform: Vec::new(), stages: vec![Default::default(); count], after: Vec::new() };
    let mut sinks: Vec<Vec<usize>> = vec![Vec::new(); count];
    for (at, step) in lowered.steps.iter().enumerate() {
        let level = |id: Id| lowered.values[id].level;
        if is_uniform(lowered, step) {
            staged.uniform.push(step.clone());
            continue;
        }
        let of_row = match step {
            Step::Reduce { reduction, from, to } => {
                let accumulator = lowered.accumulators;
                lowered.accumulators += 1;
                sinks[level(*from)].push(at);
                Some((level(*to), Step::Finish { reduction: *reduction, accumulator, to: *to }))
            }
            Step::Accumulate { .. } | Step::Column { .. } => {
                sinks[count - 1].push(at);
                None
            }
            Step::Store { from, .. } if lowered.values[*from].extent == Extent::Full => {
                sinks[count - 1].push(at);
                None
            }
            step => {
                let value = step.writes().first().copied().unwrap_or_else(|| step.reads()[0]);
                (lowered.values[value].extent == Extent::Row).then(|| (level(value), step.clone()))
            }
        };
        if let Some((level, step)) = of_row {
            let list = staged.stages.get_mut(level).map_or(&mut staged.after, |(before, _)| before);
            list.push(step);
        }
    }
    for (level, sinks) in sinks.into_iter().enumerate() {
        let body = elements_for(lowered, &sinks, &staged);
        staged.stages[level].1 = if level + 1 == count { with_late_stores(lowered, body) } else { body };
    }
    staged
}

/// The steps that make the elements that `sinks` use, with these.
fn elements_for(lowered: &Lowered, sinks: &[usize], staged: &Staged) -> Steps {
    let mut needed = vec![false; lowered.values.len()];
    let mut steps: Vec<Step<Id>> = Vec::new();
    for (at, step) in lowered.steps.iter().enumerate().rev() {
        let wanted = step.writes().iter().any(|to| lowered.values[*to].extent == Extent::Full && needed[*to]);
        if !wanted && !sinks.contains(&at) {
            continue;
        }
        for id in step.reads() {
            needed[id] = true;
        }
        steps.push(match step {
            Step::Reduce { reduction, from, to } => {
                Step::Accumulate { reduction: *reduction, from: *from, accumulator: accumulator_of(staged, *to) }
            }
            step => step.clone(),
        });
    }
    steps.reverse();
    steps
}

/// The accumulator that ends in `value`.
fn accumulator_of(staged: &Staged, value: Id) -> usize {
    let lists = staged.stages.iter().map(|(before, _)| before).chain([&staged.after]);
    let found = lists.flatten().find_map(|step| match step {
        Step::Finish { accumulator, to, .. } if *to == value => Some(*accumulator),
        _ => None,
    });
    found.expect("every row reduction is finished after its stage")
}

/// `steps` with each store of elements after the last use of every load that it might be in place of (a load may leave its
/// elements where they are), and computed right into its buffer where the buffers turn out to differ.
fn with_late_stores(lowered: &Lowered, steps: Steps) -> Steps {
    let last_use = |id: Id| steps.iter().rposition(|s| s.reads().contains(&id));
    let last_of_aliases = |size: usize| {
        let aliases = steps.iter().filter_map(|step| match step {
            Step::Load { load, to } if lowered.loads[*load].whole && lowered.loads[*load].format.size == size => {
                last_use(*to)
            }
            _ => None,
        });
        aliases.max().unwrap_or(0)
    };
    let mut late: Vec<(usize, Step<Id>)> = Vec::new();
    let mut result: Steps = Vec::with_capacity(steps.len());
    let mut direct: SmallVec<[(Id, usize); 4]> = smallvec![];
    for (at, step) in steps.iter().enumerate() {
        match step {
            Step::Store { store, from } => {
                let size = lowered.stores[*store].format.size;
                late.push((last_of_aliases(size), step.clone()));
                if size == 4 && direct.iter().all(|(id, _)| id != from) {
                    direct.push((*from, *store));
                }
            }
            step => result.push(step.clone()),
        }
        late.retain(|(after, store)| {
            let ready = *after <= at;
            if ready {
                result.push(store.clone());
            }
            !ready
        });
    }
    for step in &mut result {
        if let Step::Map { to, direct: into, .. } = step {
            *into = direct.iter().find(|(id, _)| id == to).map(|(_, store)| *store);
        }
    }
    result
}
