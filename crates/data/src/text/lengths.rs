//! Padding: which few lengths samples are padded to, and an order in which batches have samples of one length.

use crate::dataset::PaddedLength;
use crate::order::{Stream, random, shuffled};

/// Lengths are multiples of this, or the longest allowed.
const STEP: usize = 16;
/// Each length has programs of its own, which take time to plan.
const MOST_LENGTHS: usize = 6;
/// The padding that is accepted rather than another length: this factor over what [`STEP`] makes unavoidable.
const ACCEPTED: f64 = 1.08;

/// The smallest set of lengths, ascending, that wastes little on samples of `tokens` tokens; none is above `most`, to which
/// samples are cut.
pub(crate) fn choose(tokens: &[usize], most: usize) -> Vec<usize> {
    let longest = tokens.iter().copied().max().unwrap_or(1).clamp(1, most);
    let candidates: Vec<usize> = (1..=longest.div_ceil(STEP)).map(|i| (i * STEP).min(most)).collect();
    let last = candidates.len() - 1;
    // Samples up to each candidate.
    let mut up_to = vec![0usize; candidates.len()];
    for &n in tokens {
        up_to[n.clamp(1, longest).div_ceil(STEP) - 1] += 1;
    }
    for i in 1..up_to.len() {
        up_to[i] += up_to[i - 1];
    }
    let below = |i: usize| if i == 0 { 0 } else { up_to[i - 1] };
    let unavoidable: usize = (0..=last).map(|i| candidates[i] * (up_to[i] - below(i))).sum();
    // best[j]: the least padded tokens of samples up to candidate j, with j as the last of so many lengths, and the way there.
    let mut best: Vec<(usize, Vec<usize>)> = (0..=last).map(|j| (candidates[j] * up_to[j], vec![j])).collect();
    for _ in 1..MOST_LENGTHS.min(candidates.len()) {
        if best[last].0 as f64 <= ACCEPTED * unavoidable as f64 {
            break;
        }
        let with_one_more = |j: usize| {
            let before = (0..j).map(|i| (best[i].0 + candidates[j] * (up_to[j] - up_to[i]), i));
            match before.min() {
                Some((cost, i)) if cost < best[j].0 => (cost, [&best[i].1[..], &[j]].concat()),
                _ => best[j].clone(),
            }
        };
        best = (0..=last).map(with_one_more).collect();
    }
    best[last].1.iter().map(|&i| candidates[i]).collect()
}

/// The samples of one split by the length that each is padded to.
pub(crate) struct Grouped {
    /// The lengths, ascending; some may have no sample here.
    lengths: Vec<usize>,
    /// Where the samples of each length start in `members`; one more, their number.
    starts: Vec<usize>,
    /// Samples by length, those of one length in their own order.
    members: Vec<u32>,
}

impl Grouped {
    /// Groups samples 0.. of these numbers of tokens; the last length holds every sample.
    pub fn new(lengths: &[usize], tokens: &[usize]) -> Grouped {
        let of = |n: usize| lengths.partition_point(|&length| length < n).min(lengths.len() - 1);
        let mut members: Vec<u32> = (0..tokens.len() as u32).collect();
        members.sort_by_key(|&sample| of(tokens[sample as usize]));
        let start = |group: usize| members.partition_point(|&sample| of(tokens[sample as usize]) < group);
        Grouped { lengths: lengths.to_vec(), starts: (0..=lengths.len()).map(start).collect(), members }
    }

    /// The share of samples of each length.
    pub fn shares(&self) -> Vec<PaddedLength> {
        let share = |group: usize| (self.starts[group + 1] - self.starts[group]) as f64 / self.members.len() as f64;
        self.lengths.iter().enumerate().map(|(i, &length)| PaddedLength { length, share: share(i) }).collect()
    }

    fn group_of(&self, place: usize) -> usize {
        self.starts.partition_point(|&start| start <= place) - 1
    }

    /// The sample at a place of the order by length, and its length.
    pub fn in_order(&self, place: u64) -> (u32, usize) {
        let place = place as usize;
        (self.members[place], self.lengths[self.group_of(place)])
    }

    /// The sample that stands at `index` of `epoch`, and its length: for fixed (seed, epoch) a bijection in which batches of
    /// `batch` samples, counted over all epochs, have one length, except where one length ends and another begins.
    pub fn shuffled(&self, seed: u64, epoch: u64, index: u64, batch: u64) -> (u32, usize) {
        let samples = self.members.len() as u64;
        // The batch that goes on from the epoch before, whole batches, and what is left for the next.
        let into_last = (u128::from(epoch) * u128::from(samples) % u128::from(batch)) as u64;
        let head = ((batch - into_last) % batch).min(samples);
        let whole = (samples - head) / batch;
        let mut place = index;
        if (head..head + whole * batch).contains(&index) {
            let (number, inside) = ((index - head) / batch, (index - head) % batch);
            place = head + shuffled(random(seed, Stream::Batches, 0), epoch, number, whole) * batch + inside;
        }
        let group = self.group_of(place as usize);
        let (start, end) = (self.starts[group], self.starts[group + 1]);
        let order = random(seed, Stream::Lengths, group as u64);
        let member = shuffled(order, epoch, place - start as u64, (end - start) as u64);
        (self.members[start + member as usize], self.lengths[group])
    }
}

#[cfg(test)]
mod tests;
