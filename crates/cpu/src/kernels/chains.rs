//! Sums that consist of several chains, where one chain for each would make too few tasks. How many there are follows
//! from the sizes alone, so every sum has one order.

use crate::simd::{LANES, Lanes, Task};
use std::ops::Range;

/// Tasks worth having.
const TASKS: usize = 8;

/// How many chains over `terms` there are where each makes `tasks` tasks: with `least` terms in each but the last, which
/// is not empty either.
pub(super) fn chains(tasks: usize, terms: usize, least: usize) -> usize {
    let chains = TASKS.div_ceil(tasks.max(1)).min(terms / least).max(1);
    terms.div_ceil(terms.div_ceil(chains).max(1)).max(1)
}

/// The terms of one of `chains` chains.
pub(super) fn chain(index: usize, chains: usize, terms: usize) -> Range<usize> {
    let each = terms.div_ceil(chains);
    index * each..terms.min((index + 1) * each)
}

/// Adds the sums of all chains to the first chain's, in ascending order: `len` of each, `step` apart.
///
/// # Safety
/// They are this thread's, and whole vectors.
#[inline(always)]
pub(super) unsafe fn add_up<V: Lanes>(sums: *mut f32, len: usize, step: usize, chains: usize) {
    for at in (0..len).step_by(LANES) {
        // SAFETY: the caller's.
        unsafe {
            let place = sums.add(at);
            let total = (1..chains).fold(V::load(place), |sum, chain| sum.add(V::load(place.add(chain * step))));
            total.store(place);
        }
    }
}

/// [`add_up`] for code that is not compiled for an instruction set.
pub(super) struct AddUp {
    sums: *mut f32,
    len: usize,
    step: usize,
    chains: usize,
}

impl AddUp {
    /// # Safety
    /// As [`add_up`].
    pub(super) unsafe fn new(sums: *mut f32, len: usize, step: usize, chains: usize) -> AddUp {
        AddUp { sums, len, step, chains }
    }
}

impl Task for AddUp {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes>(self) {
        // SAFETY: that of `new`.
        unsafe { add_up::<V>(self.sums, self.len, self.step, self.chains) };
    }
}
