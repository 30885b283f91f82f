//! Registers for the values of a program: few, so that a tile stays in the first-level cache.

use super::lower::{Computed, Id, Steps};
use super::step::{Extent, Slot, Step};

/// How many registers of each extent there are.
#[derive(Clone, Copy, Default, Debug)]
pub struct Counts {
    /// With one lane.
    pub uniform: usize,
    /// With a lane per row.
    pub row: usize,
    /// With a lane per element.
    pub full: usize,
}

impl Counts {
    fn of(&mut self, extent: Extent) -> &mut usize {
        match extent {
            Extent::Uniform => &mut self.uniform,
            Extent::Row => &mut self.row,
            Extent::Full => &mut self.full,
        }
    }
}

/// Gives out registers.
pub struct Registers<'a> {
    values: &'a [Computed],
    slots: Vec<Option<Slot>>,
    /// How many are in use at most.
    pub counts: Counts,
    /// Full registers that stay.
    kept: usize,
}

impl<'a> Registers<'a> {
    /// None given out yet.
    pub fn new(values: &'a [Computed]) -> Registers<'a> {
        Registers { values, slots: vec![None; values.len()], counts: Counts::default(), kept: 0 }
    }

    fn fresh(&mut self, extent: Extent) -> Slot {
        let count = self.counts.of(extent);
        *count += 1;
        Slot { extent, index: *count - 1 }
    }

    fn slot(&self, id: Id) -> Slot {
        self.slots[id].expect("what a step reads comes before it")
    }

    /// Steps whose results stay: each has a register of its own.
    pub fn keep(&mut self, steps: &Steps) -> Vec<Step<Slot>> {
        let place = |step: &Step<Id>| {
            for to in step.writes() {
                let slot = self.fresh(self.values[to].extent);
                self.kept += usize::from(slot.extent == Extent::Full);
                self.slots[to] = Some(slot);
            }
            step.place(|id| self.slot(id), |id| self.slot(id))
        };
        steps.iter().map(place).collect()
    }

    /// Steps whose results nobody needs afterwards: registers are used again after the last step that reads them, never
    /// for a result of that step, since a kernel's result must not overlap its operands.
    pub fn reuse(&mut self, steps: &Steps) -> Vec<Step<Slot>> {
        let mut last: Vec<usize> = vec![0; self.values.len()];
        let mut made_here = vec![false; self.values.len()];
        for (at, step) in steps.iter().enumerate() {
            for id in step.reads() {
                last[id] = at;
            }
            for to in step.writes() {
                last[to] = at;
                made_here[to] = true;
            }
        }
        let mut used = Counts { full: self.kept, ..Counts::default() };
        let mut free: Vec<Slot> = Vec::new();
        let mut placed = Vec::with_capacity(steps.len());
        for (at, step) in steps.iter().enumerate() {
            for to in step.writes() {
                let extent = self.values[to].extent;
                let slot = match free.iter().rposition(|slot| slot.extent == extent) {
                    Some(position) => free.remove(position),
                    None => {
                        let count = used.of(extent);
                        *count += 1;
                        Slot { extent, index: *count - 1 }
                    }
                };
                self.slots[to] = Some(slot);
            }
            placed.push(step.place(|id| self.slot(id), |id| self.slot(id)));
            let mut ended = step.reads();
            ended.extend(step.writes());
            for (i, id) in ended.iter().enumerate() {
                if made_here[*id] && last[*id] == at && !ended[..i].contains(id) {
                    free.push(self.slot(*id));
                }
            }
        }
        self.counts.full = self.counts.full.max(used.full);
        self.counts.row = self.counts.row.max(used.row);
        placed
    }
}
