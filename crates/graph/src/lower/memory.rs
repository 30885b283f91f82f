//! Where every stored value lives: in the buffer of an input or at an offset of the one arena.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};

use crate::graph::{Graph, Value};
use crate::lower::access::{Strided, resolve};
use crate::lower::fuse::Partition;
use crate::lower::schedule::{Schedule, reuses, writes};

/// Every buffer of the arena starts at a multiple of this many bytes, a cache line.
pub const ALIGNMENT: usize = 64;

/// The place of a stored value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// The buffer of this input.
    Input(Value),
    /// This offset of the arena, in bytes.
    Arena(usize),
}

/// A buffer of the arena: the values that share it, one after the other.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Buffer {
    /// The values, in the order in which they are made.
    pub values: Vec<Value>,
    /// Bytes, not rounded.
    pub bytes: usize,
    /// Its offset in the arena, in bytes.
    pub offset: usize,
    /// The step that first writes it.
    pub from: usize,
    /// The last step that uses it; the number of steps if it is a result.
    pub to: usize,
}

/// The arena of a program.
#[derive(Clone, Debug)]
pub struct Memory {
    /// By value index; `None` for values without a buffer.
    pub places: Vec<Option<Place>>,
    /// Every buffer of the arena.
    pub buffers: Vec<Buffer>,
    /// Bytes of the arena.
    pub arena_bytes: usize,
}

/// The bytes in use during each of `steps` steps.
pub fn profile(buffers: &[Buffer], steps: usize) -> Vec<usize> {
    let mut change = vec![0isize; steps + 2];
    for buffer in buffers {
        change[buffer.from] += rounded(buffer.bytes) as isize;
        change[buffer.to + 1] -= rounded(buffer.bytes) as isize;
    }
    let running = change[..steps].iter().scan(0, |sum, c| {
        *sum += c;
        Some(*sum as usize)
    });
    running.collect()
}

fn rounded(bytes: usize) -> usize {
    bytes.next_multiple_of(ALIGNMENT)
}

/// Buffers with their lifetimes, not yet placed, and the places of values that live in inputs.
pub fn lifetimes(graph: &Graph, partition: &Partition, schedule: &Schedule) -> (Vec<Buffer>, HashMap<Value, Place>) {
    let steps = schedule.order.len();
    let read: Vec<&[Strided]> = schedule.order.iter().map(|u| schedule.read[*u].as_slice()).collect();
    let mut last_use: HashMap<Value, usize> = HashMap::new();
    for (step, windows) in read.iter().enumerate() {
        last_use.extend(windows.iter().map(|w| (w.root, step)));
    }
    // What has run once is read again when the program runs again.
    let made_once: HashSet<Value> =
        schedule.order[..schedule.once].iter().flat_map(|unit| writes(graph, partition, *unit)).collect();
    for (value, last) in &mut last_use {
        if *last >= schedule.once && made_once.contains(value) {
            *last = steps;
        }
    }
    let stored = |v: Value| partition.stored[v.index()];
    let results = graph.outputs.iter().map(|(_, v)| *v).chain(schedule.copied.iter().map(|(_, v)| *v));
    for value in results {
        let root = resolve(graph, value, &stored).expect("results are whole buffers").root;
        // After the last step: nothing may take a result's place.
        last_use.insert(root, steps);
    }
    let mut places = HashMap::new();
    let inputs = graph.inputs().map(|(v, ..)| v);
    places.extend(inputs.filter(|v| stored(*v)).map(|v| (v, Place::Input(v))));
    places.extend(schedule.in_place.iter().map(|(value, input)| (*value, Place::Input(*input))));
    let mut buffers: Vec<Buffer> = Vec::new();
    let mut buffer_of: HashMap<Value, usize> = HashMap::new();
    for (step, unit) in schedule.order.iter().enumerate() {
        for value in writes(graph, partition, *unit) {
            if places.contains_key(&value) {
                continue;
            }
            let to = last_use.get(&value).copied().unwrap_or(step);
            let dying = read[step].iter().map(|w| w.root).find(|operand| {
                buffer_of.get(operand).is_some_and(|b| {
                    buffers[*b].to == step
                        && buffers[*b].values.last() == Some(operand)
                        && reuses(graph, partition, *unit, read[step], value, *operand)
                })
            });
            let bytes = graph.ty(value).bytes();
            let index = match dying {
                Some(operand) => {
                    let index = buffer_of[&operand];
                    buffers[index].values.push(value);
                    buffers[index].to = to;
                    index
                }
                None => {
                    buffers.push(Buffer { values: vec![value], bytes, offset: 0, from: step, to });
                    buffers.len() - 1
                }
            };
            buffer_of.insert(value, index);
        }
    }
    (buffers, places)
}

/// The greatest number of bytes in use at once: what no placement can go below.
pub fn peak(graph: &Graph, partition: &Partition, schedule: &Schedule) -> usize {
    let (buffers, _) = lifetimes(graph, partition, schedule);
    profile(&buffers, schedule.order.len()).into_iter().max().unwrap_or(0)
}

/// How early a buffer is placed, the greatest first: from the buffer, the steps of its life and the most bytes that are in use
/// during it.
type Rank = fn(&Buffer, usize, usize) -> (usize, usize);

/// Which works best differs from graph to graph.
const RANKS: [Rank; 4] = [
    |b, _, _| (b.bytes, 0),
    |b, life, _| (b.bytes.saturating_pow(2).saturating_mul(life), 0),
    |b, _, most| (most, b.bytes),
    |_, life, most| (most, life),
];

/// Places every buffer, one after the other, each at the lowest offset that is free during its whole life. Of some orders the
/// one with the smallest arena is taken.
pub fn place(graph: &Graph, partition: &Partition, schedule: &Schedule) -> Memory {
    let (buffers, fixed) = lifetimes(graph, partition, schedule);
    // After the last step only results are left.
    let mut used = profile(&buffers, schedule.order.len());
    used.push(0);
    let most: Vec<usize> = buffers.iter().map(|b| used[b.from..=b.to].iter().copied().max().unwrap_or(0)).collect();
    let arranged = RANKS.iter().map(|rank| {
        let mut order: Vec<usize> = (0..buffers.len()).collect();
        order.sort_by_cached_key(|i| {
            let b = &buffers[*i];
            (Reverse(rank(b, b.to - b.from + 1, most[*i])), Reverse(b.bytes), b.from)
        });
        arrange(buffers.clone(), &order)
    });
    let (arena_bytes, buffers) = arranged.min_by_key(|(bytes, _)| *bytes).expect("there are orders");
    let mut places = vec![None; graph.value_count()];
    for (value, place) in fixed {
        places[value.index()] = Some(place);
    }
    for buffer in &buffers {
        for value in &buffer.values {
            places[value.index()] = Some(Place::Arena(buffer.offset));
        }
    }
    Memory { places, buffers, arena_bytes }
}

/// The bytes of the arena, and the buffers with their offsets, when they are placed in this order.
fn arrange(mut buffers: Vec<Buffer>, order: &[usize]) -> (usize, Vec<Buffer>) {
    let mut placed: Vec<usize> = Vec::with_capacity(order.len());
    let mut arena_bytes = 0;
    for &index in order {
        let (from, to, size) = (buffers[index].from, buffers[index].to, rounded(buffers[index].bytes));
        let mut offset = 0;
        // `placed` is sorted by offset, so the first gap that is wide enough is the lowest.
        for other in &placed {
            let other = &buffers[*other];
            if other.to < from || to < other.from {
                continue;
            }
            if other.offset >= offset + size {
                break;
            }
            offset = offset.max(other.offset + rounded(other.bytes));
        }
        buffers[index].offset = offset;
        arena_bytes = arena_bytes.max(offset + size);
        let at = placed.partition_point(|p| buffers[*p].offset <= offset);
        placed.insert(at, index);
    }
    (arena_bytes, buffers)
}
