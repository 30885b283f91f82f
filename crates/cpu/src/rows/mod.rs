//! Fused row programs: elementwise operations, broadcasts and reductions of one domain in a single pass.
//!
//! A [`RowProgram`] is made once from a [`Fused`] unit and run often. It works on tiles that stay in the first-level
//! cache: each step (a load, an operation, a reduction, a store) runs over a tile's lanes before the next one does, so the
//! cost of choosing the kernel is shared by hundreds of elements, and values between steps never reach memory.
//!
//! **Bits.** Results depend on the unit alone. Each operation rounds by itself; a row is reduced in the fixed shape of
//! `reduce`; reductions over rows or everything are cut into chunks by the sizes of the domain alone, and combined in
//! order. Neither the size of tiles, nor the number of threads, nor the instruction set, nor whether a value passed
//! through memory can be seen in a result (NaN is NaN; its sign and payload are not promised).
//!
//! Read `lower` for how a unit becomes steps, `step` for what they are, `compiled` for how several become one, and `run` for
//! how tiles go through them.

mod compiled;
mod elementwise;
mod kernel;
mod lower;
mod pairs;
mod reduce;
mod registers;
mod run;
mod step;
mod window;

use std::collections::HashMap;

use tenon_graph::graph::{Graph, Value};
use tenon_graph::lower::fused::Fused;

use crate::isa::{Cpu, Isa};
pub(crate) use compiled::Codes;

use lower::{Column, Id, LoadFrom, Lowered, Nothing, Staged, Steps, StoreTo, Total};
use reduce::Accumulator;
use registers::{Counts, Registers};
use step::{Slot, Step};
use window::Positions;

/// Elements of a chunk, the unit of work of a thread: a few tens of microseconds.
const CHUNK: usize = 16 * 1024;
/// Chunks of long rows come in multiples of this, so that few threads share them evenly.
const EVEN: usize = 8;
/// The most partial results of a column reduction, all chunks together; more only if each chunk has groups of its own.
const MOST_PARTIALS: usize = 64;
/// Bytes of the first-level cache for the registers of a tile.
const REGISTERS: usize = 24 * 1024;
/// Bounds of a tile's elements, where rows do not ask for more.
const TILE: std::ops::RangeInclusive<usize> = 512..=2048;
/// The longest row that is one tile, so that nothing is computed twice.
const WHOLE_ROW: usize = 8192;
/// Columns of one task when partial results of column reductions are combined.
const COMBINED: usize = 4096;
/// Every part of the scratch starts at a multiple of this, a cache line.
const ALIGNMENT: usize = 64;

/// A fused unit made ready to run.
pub struct RowProgram {
    /// What it may run on.
    isa: Isa,
    rows: usize,
    cols: usize,
    /// Rows that a column reduction combines into one.
    group: usize,
    chunks: Chunks,
    /// Elements of a row in a tile.
    tile_cols: usize,
    /// Rows of a tile; more than one only if `tile_cols` is the whole row.
    tile_rows: usize,
    /// Cache lines of the next tile that each operation asks for.
    fetches: usize,
    buffers: Vec<Value>,
    loads: Vec<LoadFrom>,
    positions: Vec<Positions>,
    stores: Vec<StoreTo>,
    columns: Vec<Column>,
    totals: Vec<Total>,
    nothing: Vec<Nothing>,
    accumulators: usize,
    registers: Counts,
    uniform: Vec<Step<Slot>>,
    /// Loads that read the same for every tile of a chunk.
    periodic: Vec<Step<Slot>>,
    stages: Vec<Stage>,
    after: Vec<Step<Slot>>,
}

/// After how many elements of a single row some loads start again, if tiles may be cut there: nothing adds up along the row,
/// whose sums know the places of elements, and the loads agree.
fn period(fused: &Fused, lowered: &Lowered) -> Option<usize> {
    let mut periods = lowered.loads.iter().filter_map(|load| load.window.period());
    let period = periods.next().filter(|period| *period <= *TILE.end())?;
    (fused.flat && lowered.totals.is_empty() && periods.all(|other| other == period)).then_some(period)
}

/// Takes the loads that start again every `period` elements out of the stage's steps.
fn take_periodic(staged: &mut Staged, lowered: &Lowered, period: usize) -> Steps {
    let [(_, body)] = staged.stages.as_mut_slice() else { return Vec::new() };
    let again = |step: &Step<Id>| match step {
        Step::Load { load, to } => {
            lowered.values[*to].extent == step::Extent::Full && lowered.loads[*load].window.period() == Some(period)
        }
        _ => false,
    };
    let (periodic, rest) = std::mem::take(body).into_iter().partition(again);
    *body = rest;
    periodic
}

/// What is done with each row, or block of rows, between two row reductions.
struct Stage {
    before: Vec<Step<Slot>>,
    body: Vec<Step<Slot>>,
}

/// How the domain is cut into tasks; a function of its sizes alone.
#[derive(Clone, Copy)]
enum Chunks {
    /// A single row in pieces of this many elements.
    Elements(usize),
    /// This many rows each.
    Rows(usize),
    /// Each group of rows of a column reduction in this many pieces of as many rows.
    Pieces {
        /// Chunks of a group.
        pieces: usize,
        /// Rows of a chunk; the last one of a group may have fewer.
        rows: usize,
    },
}

impl Chunks {
    fn new(fused: &Fused, column_reductions: bool) -> Chunks {
        if fused.flat {
            let count = if fused.cols <= CHUNK { 1 } else { fused.cols.div_ceil(CHUNK).next_multiple_of(EVEN) };
            return Chunks::Elements(fused.cols.div_ceil(count).next_multiple_of(2 * reduce::LANES).max(1));
        }
        let rows = (CHUNK / fused.cols.max(1)).max(1);
        if !column_reductions {
            return Chunks::Rows(rows);
        }
        let group = (fused.rows / fused.outer).max(1);
        let most = (MOST_PARTIALS / fused.outer).max(1);
        let pieces = group.div_ceil(rows).min(most);
        if pieces <= 1 {
            return Chunks::Rows((rows / group).max(1) * group);
        }
        let rows = group.div_ceil(pieces);
        Chunks::Pieces { pieces: group.div_ceil(rows), rows }
    }
}

impl RowProgram {
    /// Makes a fused unit of `graph` ready to run on processors like `cpu`.
    pub fn new(cpu: &Cpu, fused: &Fused, graph: &Graph) -> RowProgram {
        let isa = cpu.isa();
        let mut lowered = lower::lower(fused, graph);
        let compiles = cpu.codes.are_possible(isa);
        if !compiles {
            pairs::merge(&mut lowered);
        }
        let single_stage = lower::stage_count(&lowered) == 1;
        let whole = !fused.flat && (fused.cols <= *TILE.end() || (!single_stage && fused.cols <= WHOLE_ROW));
        let mut staged = if whole { lower::whole_rows(&lowered) } else { lower::parts_of_rows(&mut lowered) };
        let period = if whole { Some(fused.cols) } else { period(fused, &lowered) };
        let periodic = period.map_or_else(Vec::new, |period| take_periodic(&mut staged, &lowered, period));
        if compiles {
            let constant = |step: &Step<Id>| match step {
                Step::Constant { bits, to } => Some((*to, *bits)),
                _ => None,
            };
            let constants: HashMap<Id, u32> = staged.uniform.iter().filter_map(constant).collect();
            for (_, body) in &mut staged.stages {
                *body = compiled::compile(&cpu.codes, &lowered, &constants, std::mem::take(body));
            }
        }
        let Lowered { buffers, loads, positions, stores, columns, totals, accumulators, values, nothing, .. } = lowered;
        let mut registers = Registers::new(&values);
        let uniform = registers.keep(&staged.uniform);
        let periodic = registers.keep(&periodic);
        let mut stages: Vec<Stage> = Vec::new();
        for (before, body) in &staged.stages {
            stages.push(Stage { before: registers.keep(before), body: registers.reuse(body) });
        }
        let after = registers.keep(&staged.after);
        let registers = registers.counts;
        let tile = REGISTERS / size_of::<u32>() / registers.full.max(1);
        let tile = tile.clamp(*TILE.start(), *TILE.end()) / (2 * reduce::LANES) * (2 * reduce::LANES);
        let mut chunks = Chunks::new(fused, !columns.is_empty());
        let (tile_rows, tile_cols) = match period {
            Some(cols) if whole => ((tile / cols.max(1)).max(1), cols),
            Some(period) => (1, (tile / period).max(1) * period),
            None => (1, tile.min(fused.cols.max(1))),
        };
        if let (Chunks::Elements(elements), Some(period)) = (&mut chunks, period) {
            *elements = elements.next_multiple_of(period);
        }
        let bodies = stages.iter().flat_map(|stage| &stage.body);
        let count = |wanted: fn(&Step<Slot>) -> bool| bodies.clone().filter(|step| wanted(step)).count();
        let maps = count(|step| matches!(step, Step::Map { .. }));
        // Blocks ask for themselves.
        let blocks = count(|step| matches!(step, Step::Block { .. }));
        let read = count(|step| matches!(step, Step::Load { .. })) * tile_rows * tile_cols * size_of::<u32>();
        let fetches = if blocks > 0 { 0 } else { read.div_ceil(ALIGNMENT * maps.max(1)) };
        RowProgram {
            isa,
            rows: fused.rows,
            cols: fused.cols,
            group: (fused.rows / fused.outer.max(1)).max(1),
            chunks,
            tile_cols,
            tile_rows,
            fetches,
            buffers,
            loads,
            positions,
            stores,
            columns,
            totals,
            nothing,
            accumulators,
            registers,
            uniform,
            periodic,
            stages,
            after,
        }
    }

    /// The values whose buffers [`RowProgram::run`] takes, in its order.
    pub fn buffers(&self) -> &[Value] {
        &self.buffers
    }

    /// Bytes of working memory on `threads` threads.
    pub fn scratch_bytes(&self, threads: usize) -> usize {
        let layout = self.layout();
        layout.workers + threads * layout.worker
    }

    /// The number of chunks, each a task.
    fn chunk_count(&self) -> usize {
        match self.chunks {
            Chunks::Elements(elements) => self.cols.div_ceil(elements),
            Chunks::Rows(rows) => self.rows.div_ceil(rows),
            Chunks::Pieces { pieces, .. } => self.rows / self.group * pieces,
        }
    }

    /// Whether column reductions have partial results of chunks to combine.
    fn has_partials(&self) -> bool {
        matches!(self.chunks, Chunks::Pieces { .. })
    }

    fn layout(&self) -> Layout {
        let mut shared = Sizes(0);
        let uniform = shared.add(self.registers.uniform * size_of::<u32>());
        let direct = shared.add(self.stores.len());
        let totals = shared.add(self.totals.len() * self.chunk_count() * size_of::<u32>());
        let column = (self.cols * size_of::<u32>()).next_multiple_of(ALIGNMENT);
        let partials = if self.has_partials() { self.chunk_count() } else { 0 };
        let columns = shared.add(self.columns.len() * partials * column);
        let mut worker = Sizes(0);
        let pointers = worker.add((self.registers.full + self.registers.row) * size_of::<*mut u32>());
        let accumulators = worker.add(self.accumulators * size_of::<Accumulator>());
        let own_columns = worker.add(if self.has_partials() { 0 } else { self.columns.len() * column });
        // An odd number of cache lines keeps equal places of two registers out of the same cache set.
        let odd = |lanes: usize| ((lanes * size_of::<u32>()).div_ceil(ALIGNMENT) | 1) * ALIGNMENT;
        let (full_register, row_register) = (odd(self.tile_rows * self.tile_cols), odd(self.tile_rows));
        let full = worker.add(self.registers.full * full_register);
        let row = worker.add(self.registers.row * row_register);
        Layout {
            uniform,
            direct,
            totals,
            columns,
            column,
            workers: shared.0,
            worker: worker.0,
            pointers,
            accumulators,
            own_columns,
            full,
            full_register,
            row,
            row_register,
        }
    }
}

/// Where everything is in the scratch, in bytes: first what all workers share, then a part for each worker.
#[derive(Clone, Copy)]
struct Layout {
    /// Uniform registers.
    uniform: usize,
    /// For each store, a byte: whether results may be computed right into its buffer.
    direct: usize,
    /// Partial results of total reductions, by reduction and chunk.
    totals: usize,
    /// Partial results of column reductions, by reduction and chunk.
    columns: usize,
    /// Bytes of one row of column results.
    column: usize,
    /// The first worker's part.
    workers: usize,
    /// Bytes of a worker's part. The rest is relative to it.
    worker: usize,
    /// Where each full, then each row register is at the moment.
    pointers: usize,
    /// Accumulators.
    accumulators: usize,
    /// Column results under way, where chunks have whole groups.
    own_columns: usize,
    /// Full registers.
    full: usize,
    /// Bytes of one.
    full_register: usize,
    /// Row registers.
    row: usize,
    /// Bytes of one.
    row_register: usize,
}

/// Adds up aligned parts.
struct Sizes(usize);

impl Sizes {
    /// The offset of a part of this many bytes.
    fn add(&mut self, bytes: usize) -> usize {
        let offset = self.0;
        self.0 += bytes.next_multiple_of(ALIGNMENT);
        offset
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tenon_graph::elementwise::Unary;
    use tenon_graph::lower::{Work, lower};
    use tenon_graph::op::Role;
    use tenon_graph::tensor::Builder;
    use tenon_graph::types::{DType, Type};

    use super::*;

    /// Momentum with a mask in place, a layer's activation in bf16, its column sums, and an operation without code.
    fn graph() -> Graph {
        let b = Builder::new();
        let input = |name: &str, dtype, shape: [usize; 2]| b.input(name, Role::Data, Type::new(dtype, shape));
        let [p, g, m] = ["p", "g", "m"].map(|name| input(name, DType::F32, [7, 150]));
        let half = input("half", DType::BF16, [7, 150]).cast(DType::F32);
        let new = m * 0.9 + g * 0.1;
        b.update(m, new);
        b.update(p, g.less(new).select(p - new.sigmoid() * 0.5, p));
        let h = (half + input("bias", DType::F32, [1, 150])).unary(Unary::Erf);
        b.output("h", (h * half).cast(DType::BF16));
        b.output("columns", h.sum(&[0]));
        b.output("rows", (h.sum(&[1]) * h).sin());
        b.finish().expect("well formed")
    }

    /// Bytes of every buffer afterwards, and how many blocks and single operations there are.
    fn run(cpu: &Cpu) -> (BTreeMap<Value, Vec<u8>>, [usize; 2]) {
        let program = lower(graph(), true);
        let mut buffers: BTreeMap<Value, Vec<u64>> = BTreeMap::new();
        let mut counts = [0, 0];
        for step in &program.steps {
            let Work::Fused(fused) = &step.work else { panic!("all is fused") };
            let rows = RowProgram::new(cpu, fused, &program.graph);
            let bodies = || rows.stages.iter().flat_map(|stage| &stage.body);
            counts[0] += bodies().filter(|step| matches!(step, Step::Block { .. })).count();
            counts[1] += bodies().filter(|step| matches!(step, Step::Map { .. })).count();
            // Updates are in place of their inputs, which nothing reads afterwards.
            let place = |v: &Value| program.graph.updates.iter().find(|(_, new)| new == v).map_or(*v, |(old, _)| *old);
            for value in rows.buffers().iter().map(place) {
                let ty = program.graph.ty(value);
                let fill = |i: usize| match ty.dtype {
                    DType::BF16 => half::bf16::from_f32((i % 37) as f32 * 0.21 - 3.0).to_le_bytes().to_vec(),
                    _ => ((i % 41) as f32 * 0.17 - 3.0).to_le_bytes().to_vec(),
                };
                let bytes: Vec<u8> = (0..ty.elements()).flat_map(fill).collect();
                let words = |bytes: &[u8]| {
                    let mut word = [0; 8];
                    word[..bytes.len()].copy_from_slice(bytes);
                    u64::from_le_bytes(word)
                };
                buffers.entry(value).or_insert_with(|| bytes.chunks(8).map(words).collect());
            }
            let pointers: Vec<*mut u8> =
                rows.buffers().iter().map(|v| buffers.get_mut(&place(v)).expect("made").as_mut_ptr().cast()).collect();
            let mut scratch = vec![0u8; rows.scratch_bytes(cpu.pool.threads()) + ALIGNMENT];
            let aligned = scratch.as_ptr().align_offset(ALIGNMENT);
            // SAFETY: every value has a buffer of its own, or that of the input which it updates.
            unsafe { rows.run(cpu, &pointers, &mut scratch[aligned..]) };
        }
        let bytes = buffers.into_iter().map(|(v, words)| (v, words.iter().flat_map(|w| w.to_le_bytes()).collect()));
        (bytes.collect(), counts)
    }

    #[test]
    fn what_is_between_reductions_is_one_block_and_without_code_the_bits_are_the_same() {
        let portable = run(&Cpu::with_isa(1, Isa::Portable).expect("supported"));
        assert_eq!(portable.1[0], 0);
        for isa in Isa::supported() {
            let mut cpu = Cpu::with_isa(2, isa).expect("supported");
            if !cpu.codes.are_possible(isa) {
                continue;
            }
            let compiled = run(&cpu);
            // The update, the activation, and the product with the sum of its row; the sine has no code.
            assert_eq!(compiled.1, [3, 1], "blocks and single operations");
            assert_eq!(compiled.0, portable.0);
            cpu.codes = Codes::refused();
            assert_eq!(run(&cpu), portable, "the same kernels as anywhere else");
            cpu.codes = Codes::exhausted();
            let exhausted = run(&cpu);
            assert_eq!(exhausted.1[0], 0);
            assert_eq!(exhausted.0, portable.0);
        }
    }
}
