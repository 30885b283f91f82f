//! Running a row program: tiles through steps.

use std::ops::Range;

use smallvec::SmallVec;
use tenon_graph::random::node_key;

use super::compiled::Code;
use super::kernel::{Accumulate, Elementwise, Finish, FoldRows, Operand, RandomBits, ReduceRows};
use super::lower::StoreTo;
use super::reduce::Accumulator;
use super::step::{Extent, Place, Slot, Step};
use super::window::random_kernel;
use super::{ALIGNMENT, COMBINED, Chunks, Layout, RowProgram};
use crate::isa::{Cpu, Isa};
use crate::simd::fetch;

/// A run under way: what all its tasks share. The tables have been checked by [`RowProgram::run`].
#[derive(Clone, Copy)]
struct Run<'a> {
    program: &'a RowProgram,
    isa: Isa,
    buffers: &'a [*mut u8],
    scratch: *mut u8,
    layout: Layout,
}

// SAFETY: tasks write disjoint parts of the buffers (their chunks) and of the scratch (their worker's part and their
// chunk's partial results); what they share they only read.
unsafe impl Sync for Run<'_> {}

/// The elements a step works on: `rows x width` of the domain, with their place in the chunk.
#[derive(Clone, Copy)]
struct Tile {
    row: usize,
    rows: usize,
    col: usize,
    width: usize,
    /// The chunk's first column.
    from_col: usize,
    /// The chunk.
    chunk: usize,
    /// The chunk's first row.
    from_row: usize,
}

/// A worker's view of a run.
struct Worker<'a> {
    run: &'a Run<'a>,
    /// The worker's part of the scratch.
    own: *mut u8,
    ahead: Ahead,
}

/// What the next tile reads, still to be asked for while this one is worked on: a unit reads several buffers, each in
/// pieces too short for the hardware to run ahead. Each operation asks for a few lines: asked for at once, they would
/// have to be waited for.
#[derive(Default)]
struct Ahead {
    /// Addresses from .. to, the first `count` of them.
    parts: [(usize, usize); 8],
    count: usize,
}

impl Ahead {
    /// Takes note of `bytes` bytes at `from`, or does without where there are too many parts.
    #[inline]
    fn add(&mut self, from: *const u8, bytes: usize) {
        if let Some(part) = self.parts.get_mut(self.count) {
            *part = (from.addr(), from.addr() + bytes);
            self.count += 1;
        }
    }

    /// Asks for this many lines.
    #[inline]
    fn fetch(&mut self, lines: usize) {
        for _ in 0..lines {
            let Some(last) = self.count.checked_sub(1) else { return };
            let (at, end) = &mut self.parts[last];
            fetch(std::ptr::without_provenance::<u8>(*at));
            *at += ALIGNMENT;
            if *at >= *end {
                self.count = last;
            }
        }
    }
}

impl RowProgram {
    /// Runs the program.
    ///
    /// `buffers` are the buffers of [`RowProgram::buffers`], in that order; `scratch` has
    /// [`RowProgram::scratch_bytes`]`(cpu.pool.threads())` bytes or more and starts at a multiple of 64.
    ///
    /// # Panics
    /// If there are fewer buffers or bytes than that, or `cpu` has another instruction set than the program was made for.
    ///
    /// # Safety
    /// Each buffer holds its value whole, row-major and aligned to its element type, and nothing else uses it during the
    /// call; results may be written before other operands are read. Two buffers are either apart or the same; they may be
    /// the same only where `tenon_graph::lower::schedule::reuses` allows it. Truth values are 0 or 1.
    pub unsafe fn run(&self, cpu: &Cpu, buffers: &[*mut u8], scratch: &mut [u8]) {
        assert_eq!(cpu.isa(), self.isa, "the program was made for another instruction set");
        assert_eq!(buffers.len(), self.buffers.len(), "a buffer for each value of the program");
        let needed = self.scratch_bytes(cpu.pool.threads());
        assert!(scratch.len() >= needed, "{} bytes of scratch, not {needed}", scratch.len());
        assert!(scratch.as_ptr().addr().is_multiple_of(ALIGNMENT), "scratch starts at a multiple of {ALIGNMENT}");
        let run = Run { program: self, isa: cpu.isa(), buffers, scratch: scratch.as_mut_ptr(), layout: self.layout() };
        // SAFETY: the tables fit the program, as checked above or promised by the caller; the processor has `isa`, as a
        // `Cpu` proves; offsets come from the layout that the scratch has been checked against.
        unsafe {
            if self.rows * self.cols == 0 {
                return run.results_of_nothing();
            }
            run.choose_direct_stores();
            Worker { run: &run, own: run.scratch, ahead: Ahead::default() }.uniform();
            cpu.pool.run(self.chunk_count(), |chunk, worker| {
                let run = &run;
                let own = run.scratch.add(run.layout.workers + worker * run.layout.worker);
                Worker { run, own, ahead: Ahead::default() }.chunk(chunk);
            });
            for total in 0..self.totals.len() {
                run.finish_total(total);
            }
            if self.has_partials() && !self.columns.is_empty() {
                let across = self.cols.div_ceil(COMBINED);
                let groups = self.rows / self.group;
                cpu.pool.run(self.columns.len() * groups * across, |task, _| {
                    let (task, part) = (task / across, task % across);
                    let cols = part * COMBINED..((part + 1) * COMBINED).min(self.cols);
                    let run = &run;
                    run.combine_partials(task / groups, task % groups, cols);
                });
            }
        }
    }
}

impl Run<'_> {
    unsafe fn results_of_nothing(&self) {
        for nothing in &self.program.nothing {
            for element in 0..nothing.elements {
                // SAFETY: the buffer has these elements.
                unsafe { self.store(&nothing.store, &raw const nothing.bits, element, 1) };
            }
        }
    }

    /// Writes lanes to a buffer, from element `first` on.
    unsafe fn store(&self, store: &StoreTo, lanes: *const u32, first: usize, n: usize) {
        // SAFETY: the caller knows that the elements and lanes are there.
        unsafe { store.format.store(self.isa, lanes, self.buffers[store.buffer], first, n) }
    }

    /// Results may be computed right into a buffer unless something is still to be read from it.
    unsafe fn choose_direct_stores(&self) {
        for (i, store) in self.program.stores.iter().enumerate() {
            let place = self.buffers[store.buffer];
            let direct = self.program.loads.iter().all(|load| self.buffers[load.buffer] != place);
            // SAFETY: the layout has a byte for each store.
            unsafe { *self.scratch.add(self.layout.direct + i) = u8::from(direct) };
        }
    }

    unsafe fn total(&self, total: usize, chunk: usize) -> *mut u32 {
        // SAFETY: the layout has room for each total and chunk.
        unsafe {
            let all: *mut u32 = self.scratch.add(self.layout.totals).cast();
            all.add(total * self.program.chunk_count() + chunk)
        }
    }

    /// Combines the partial results of the chunks and writes the result.
    unsafe fn finish_total(&self, index: usize) {
        let total = &self.program.totals[index];
        let mut result = 0u32;
        // SAFETY: every chunk has written its partial result.
        unsafe {
            let (from, width) = (self.total(index, 0).cast_const(), self.program.chunk_count());
            total.reduction.rows.get(self.isa)(&ReduceRows { to: &raw mut result, from, rows: 1, width });
            self.store(&total.store, &raw const result, 0, 1);
        }
    }

    unsafe fn partial(&self, column: usize, chunk: usize) -> *mut u32 {
        let row = column * self.program.chunk_count() + chunk;
        // SAFETY: the layout has room for each column reduction and chunk.
        unsafe { self.scratch.add(self.layout.columns + row * self.layout.column).cast() }
    }

    /// Combines the partial results of one group's chunks over some columns and writes the result.
    unsafe fn combine_partials(&self, index: usize, group: usize, cols: Range<usize>) {
        let Chunks::Pieces { pieces, .. } = self.program.chunks else { return };
        let column = &self.program.columns[index];
        let width = cols.len();
        // SAFETY: every chunk has written its row of partial results; tasks have columns of their own.
        unsafe {
            let into = self.partial(index, group * pieces).add(cols.start);
            for piece in 1..pieces {
                let from = self.partial(index, group * pieces + piece).add(cols.start).cast_const();
                column.columns.fold.get(self.isa)(&FoldRows { into, from, rows: 1, width });
            }
            self.store(&column.store, into, group * self.program.cols + cols.start, width);
        }
    }
}

impl Worker<'_> {
    /// The steps that run once.
    unsafe fn uniform(mut self) {
        let tile = Tile { row: 0, rows: 1, col: 0, width: 1, from_col: 0, chunk: 0, from_row: 0 };
        // SAFETY: as the caller says; steps over uniform values use no worker's registers.
        unsafe { self.steps(&self.run.program.uniform, tile) };
    }

    /// A task.
    unsafe fn chunk(mut self, chunk: usize) {
        let program = self.run.program;
        let (rows, cols) = match program.chunks {
            Chunks::Elements(n) => (0..program.rows, chunk * n..((chunk + 1) * n).min(program.cols)),
            Chunks::Rows(n) => (chunk * n..((chunk + 1) * n).min(program.rows), 0..program.cols),
            Chunks::Pieces { pieces, rows } => {
                let (group, piece) = (chunk / pieces, chunk % pieces);
                let first = group * program.group;
                (first + piece * rows..first + ((piece + 1) * rows).min(program.group), 0..program.cols)
            }
        };
        let place = Tile { row: 0, rows: 1, col: 0, width: 0, from_col: cols.start, chunk, from_row: rows.start };
        let (first_rows, width) = (program.tile_rows.min(rows.len()), program.tile_cols.min(cols.len()));
        // SAFETY: the first tile of the chunk; no later one has more elements.
        unsafe {
            self.steps(&program.periodic, Tile { row: rows.start, rows: first_rows, col: cols.start, width, ..place });
        }
        for row in rows.clone().step_by(program.tile_rows) {
            let block = Tile { row, rows: program.tile_rows.min(rows.end - row), ..place };
            // SAFETY: tiles stay within the chunk.
            unsafe {
                for stage in &program.stages {
                    self.steps(&stage.before, block);
                    for col in cols.clone().step_by(program.tile_cols) {
                        let width = program.tile_cols.min(cols.end - col);
                        self.steps(&stage.body, Tile { col, width, ..block });
                    }
                }
                self.steps(&program.after, block);
            }
        }
        for (index, total) in program.totals.iter().enumerate() {
            // SAFETY: each chunk has a partial result of its own, and the accumulator has taken the chunk.
            unsafe {
                let (to, from) = (self.run.total(index, chunk), self.accumulator(total.accumulator).cast_const());
                total.reduction.finish.get(self.run.isa)(&Finish { to, from });
            }
        }
    }

    unsafe fn accumulator(&self, index: usize) -> *mut Accumulator {
        // SAFETY: the layout has room for each.
        unsafe { self.own.add(self.run.layout.accumulators).cast::<Accumulator>().add(index) }
    }

    /// The place of the pointer to a full or row register.
    unsafe fn pointer(&self, slot: Slot) -> *mut *mut u32 {
        let index = if slot.extent == Extent::Full { 0 } else { self.run.program.registers.full } + slot.index;
        // SAFETY: the layout has room for each.
        unsafe { self.own.add(self.run.layout.pointers).cast::<*mut u32>().add(index) }
    }

    /// The register's own memory, which becomes the place of its content.
    unsafe fn own_memory(&self, slot: Slot) -> *mut u32 {
        let layout = &self.run.layout;
        // SAFETY: the layout has room for each.
        unsafe {
            let memory = match slot.extent {
                Extent::Uniform => return self.lanes(slot),
                Extent::Row => self.own.add(layout.row + slot.index * layout.row_register),
                Extent::Full => self.own.add(layout.full + slot.index * layout.full_register),
            };
            *self.pointer(slot) = memory.cast();
            memory.cast()
        }
    }

    /// Where the register's content is.
    unsafe fn lanes(&self, slot: Slot) -> *mut u32 {
        // SAFETY: a step before has written the register.
        unsafe {
            match slot.extent {
                Extent::Uniform => self.run.scratch.add(self.run.layout.uniform).cast::<u32>().add(slot.index),
                Extent::Row | Extent::Full => *self.pointer(slot),
            }
        }
    }

    unsafe fn steps(&mut self, steps: &[Step<Slot>], tile: Tile) {
        for step in steps {
            // SAFETY: steps come in an order in which each finds what it reads.
            unsafe { self.step(step, tile) };
        }
    }

    /// Lanes of a register and the position of the first one among all of its extent.
    fn span(&self, extent: Extent, tile: Tile) -> (usize, usize) {
        match extent {
            Extent::Uniform => (0, 1),
            Extent::Row => (tile.row, tile.rows),
            Extent::Full => (tile.row * self.run.program.cols + tile.col, tile.rows * tile.width),
        }
    }

    unsafe fn step(&mut self, step: &Step<Slot>, tile: Tile) {
        let (run, program, isa) = (self.run, self.run.program, self.run.isa);
        // SAFETY: registers have room for a tile; buffers have the elements of the domain; a register's content is never
        // overwritten by a step that reads it.
        unsafe {
            match step {
                Step::Constant { bits, to } => *self.own_memory(*to) = *bits,
                Step::Load { load, to } => {
                    let load = &program.loads[*load];
                    let (first, n) = self.span(to.extent, tile);
                    let buffer = run.buffers[load.buffer];
                    let in_memory = load.format.size == size_of::<u32>() && to.extent != Extent::Uniform;
                    let piece = load.window.contiguous_piece(first, n);
                    if let Some(at) = piece
                        && to.extent == Extent::Full
                    {
                        self.ahead.add(buffer.wrapping_add((at + n) * load.format.size), n * load.format.size);
                    }
                    match piece {
                        Some(at) if in_memory => *self.pointer(*to) = buffer.cast::<u32>().add(at),
                        _ => load.format.load(isa, &load.window, buffer, first, n, self.own_memory(*to)),
                    }
                }
                Step::Index { positions, to } => {
                    let (first, n) = self.span(to.extent, tile);
                    program.positions[*positions].write(isa, first, n, self.own_memory(*to));
                }
                Step::Key { buffer, stream, to } => {
                    let key: *const u32 = run.buffers[*buffer].cast();
                    *self.own_memory(*to) = node_key([*key, *key.add(1)], *stream);
                }
                Step::Random { key, to } => {
                    let (first, n) = self.span(to.extent, tile);
                    let (to, key) = (self.own_memory(*to), *self.lanes(*key));
                    random_kernel().get(isa)(&RandomBits { to, first: first as u64, key, n });
                }
                Step::Block { code, operands } => self.block(code, operands, tile),
                Step::Map { kernel, from, to, direct, .. } => {
                    self.ahead.fetch(program.fetches);
                    let (first, n) = self.span(to.extent, tile);
                    let result = match direct {
                        Some(store) if *run.scratch.add(run.layout.direct + store) != 0 => {
                            let result = run.buffers[program.stores[*store].buffer].cast::<u32>().add(first);
                            *self.pointer(*to) = result;
                            result
                        }
                        _ => self.own_memory(*to),
                    };
                    self.map(kernel.get(isa), from, to.extent, result, n, tile);
                }
                Step::Reduce { reduction, from, to } => {
                    let (to, from) = (self.own_memory(*to), self.lanes(*from));
                    reduction.rows.get(isa)(&ReduceRows { to, from, rows: tile.rows, width: tile.width });
                }
                Step::Accumulate { reduction, from, accumulator } => {
                    let (into, from) = (self.accumulator(*accumulator), self.lanes(*from));
                    let first = tile.col - tile.from_col;
                    reduction.accumulate.get(isa)(&Accumulate { into, from, first, n: tile.width });
                }
                Step::Finish { reduction, accumulator, to } => {
                    let (to, from) = (self.own_memory(*to), self.accumulator(*accumulator));
                    reduction.finish.get(isa)(&Finish { to, from });
                }
                Step::Column { column, from } => self.column(*column, self.lanes(*from), tile),
                Step::Store { store, from } => {
                    let (first, n) = self.span(from.extent, tile);
                    run.store(&program.stores[*store], self.lanes(*from), first, n);
                }
            }
        }
    }

    /// Several steps in one; each row by itself where an operand has one lane per row.
    unsafe fn block(&self, code: &Code, operands: &[Place<Slot>], tile: Tile) {
        let (run, program) = (self.run, self.run.program);
        let (first, n) = self.span(Extent::Full, tile);
        let mut by_row = false;
        // Where each operand is, and how far from one row to the next, in bytes.
        let mut places: SmallVec<[*mut u8; 16]> = SmallVec::new();
        let mut steps: SmallVec<[usize; 16]> = SmallVec::new();
        for operand in operands {
            // SAFETY: registers have room for a tile, and what is read has been computed; buffers have the elements.
            let (place, step) = unsafe {
                match operand {
                    Place::Lanes(slot) => {
                        by_row |= slot.extent == Extent::Row;
                        let lanes = match slot.extent {
                            Extent::Full => tile.width,
                            Extent::Row => 1,
                            Extent::Uniform => 0,
                        };
                        (self.lanes(*slot).cast(), lanes * size_of::<u32>())
                    }
                    Place::Made(slot) => (self.own_memory(*slot).cast(), tile.width * size_of::<u32>()),
                    Place::Elements { load } => {
                        let load = &program.loads[*load];
                        let at = load.window.place(first);
                        (run.buffers[load.buffer].add(at * load.format.size), tile.width * load.format.size)
                    }
                    Place::Stored { store } => {
                        let store = &program.stores[*store];
                        (run.buffers[store.buffer].add(first * store.format.size), tile.width * store.format.size)
                    }
                }
            };
            places.push(place);
            steps.push(step);
        }
        if !by_row {
            // SAFETY: the program was compiled for the instruction set of the Cpu, and `compile` says what operands are.
            return unsafe { code.run(&places, n) };
        }
        for _ in 0..tile.rows {
            // SAFETY: as above; rows lie one after the other, and row values have a lane for each.
            unsafe { code.run(&places, tile.width) };
            for (place, step) in places.iter_mut().zip(&steps) {
                *place = place.wrapping_add(*step);
            }
        }
    }

    /// An elementwise operation; each row by itself where an operand has one lane per row of a full result.
    unsafe fn map(
        &self,
        kernel: unsafe fn(&Elementwise),
        from: &[Slot],
        extent: Extent,
        to: *mut u32,
        n: usize,
        tile: Tile,
    ) {
        let mut operands = [Operand::NONE; 3];
        let mut by_row = false;
        for (operand, slot) in operands.iter_mut().zip(from) {
            // SAFETY: the operands have been computed.
            *operand = Operand { lanes: unsafe { self.lanes(*slot) }, splat: slot.extent != extent };
            by_row |= slot.extent == Extent::Row && extent == Extent::Full;
        }
        if !by_row {
            // SAFETY: as the caller says.
            return unsafe { kernel(&Elementwise { to, from: operands, n }) };
        }
        let steps: [usize; 3] = std::array::from_fn(|i| match from.get(i).map(|slot| slot.extent) {
            Some(Extent::Full) => tile.width,
            Some(Extent::Row) => 1,
            Some(Extent::Uniform) | None => 0,
        });
        for row in 0..tile.rows {
            // SAFETY: rows lie one after the other in full values, and row values have a lane for each.
            unsafe {
                kernel(&Elementwise { to: to.add(row * tile.width), from: operands, n: tile.width });
                for (operand, step) in operands.iter_mut().zip(steps) {
                    operand.lanes = operand.lanes.wrapping_add(step);
                }
            }
        }
    }

    /// Takes the rows of a tile into a column reduction; writes the result of each group that ends.
    unsafe fn column(&self, index: usize, lanes: *const u32, tile: Tile) {
        let (run, program) = (self.run, self.run.program);
        let column = &program.columns[index];
        let partials = program.has_partials();
        let (mut row, end) = (tile.row, tile.row + tile.rows);
        // SAFETY: the layout has a row of results for each column reduction and chunk, or worker; the lanes of the tile
        // have been computed.
        unsafe {
            let into = if partials {
                run.partial(index, tile.chunk)
            } else {
                self.own.add(run.layout.own_columns + index * run.layout.column).cast()
            };
            let into = into.add(tile.col);
            let mut from = lanes;
            while row < end {
                let group = row / program.group;
                let stop = end.min((group + 1) * program.group);
                if row == if partials { tile.from_row } else { group * program.group } {
                    std::slice::from_raw_parts_mut(into, tile.width).fill(column.columns.start);
                }
                let rows = stop - row;
                column.columns.fold.get(run.isa)(&FoldRows { into, from, rows, width: tile.width });
                if !partials && stop == (group + 1) * program.group {
                    run.store(&column.store, into, group * program.cols + tile.col, tile.width);
                }
                from = from.add(rows * tile.width);
                row = stop;
            }
        }
    }
}
