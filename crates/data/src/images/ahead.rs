//! Samples made ahead of their use: a window of the next ones in order, filled by threads, of bounded size.
//!
//! What a sample is does not depend on who makes it or when; the window changes speed only.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;

use tokenizers::Tokenizer;

use crate::dataset::{Dataset, Facts, Field, Split};
use crate::error::DataError;

/// The most bytes of samples that wait.
const MAX_BYTES: usize = 64 << 20;
/// The most samples that wait.
const MAX_SAMPLES: usize = 1024;

/// A dataset whose samples take time to make.
pub(crate) trait Slow: Dataset + 'static {
    /// As [`Dataset::write_sample`].
    fn make(&self, split: Split, epoch: u64, index: u64, out: &mut [&mut [u8]]) -> Result<(), DataError>;
}

/// How many samples of `bytes` bytes wait at most.
pub(crate) fn depth(bytes: usize) -> usize {
    (MAX_BYTES / bytes.max(1)).clamp(2, MAX_SAMPLES)
}

enum Slot {
    /// Nobody makes it yet.
    Open,
    Started,
    Ready(Vec<Vec<u8>>),
}

/// The window.
struct Window {
    split: Split,
    /// The position (epoch times length plus index) of the first slot.
    first: u64,
    slots: VecDeque<Slot>,
    /// Counts moves to another place, so that a worker knows whether its sample is still wanted.
    moves: u64,
    closed: bool,
}

impl Window {
    /// Starts behind `position`, where it starts and nobody has moved it.
    fn pass(&mut self, moves: u64, position: u64) {
        if self.moves == moves && self.first == position && self.slots.pop_front().is_some() {
            self.first += 1;
        }
    }
}

struct Shared<D> {
    data: D,
    window: Mutex<Window>,
    /// Something is open, or all is over.
    work: Condvar,
    /// A sample is ready.
    done: Condvar,
}

/// A dataset with threads that make its next samples.
pub(crate) struct Ahead<D: Slow> {
    shared: Arc<Shared<D>>,
    workers: Vec<JoinHandle<()>>,
}

impl<D: Slow> Ahead<D> {
    /// Starts one thread for each processor.
    pub fn new(data: D) -> Ahead<D> {
        let window = Window { split: Split::Train, first: 0, slots: VecDeque::new(), moves: 0, closed: false };
        let shared = Arc::new(Shared { data, window: Mutex::new(window), work: Condvar::new(), done: Condvar::new() });
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let workers = (0..threads).map(|_| {
            let shared = shared.clone();
            std::thread::spawn(move || shared.serve())
        });
        Ahead { workers: workers.collect(), shared }
    }
}

impl<D: Slow> Drop for Ahead<D> {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.work.notify_all();
        for worker in self.workers.drain(..) {
            // A worker that panicked has said so; its sample is made by whoever needs it.
            let _ = worker.join();
        }
    }
}

impl<D: Slow> Shared<D> {
    /// Nothing is done under the lock that could leave the window half changed.
    fn lock(&self) -> MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The sample at a position of a split.
    fn make(&self, split: Split, position: u64) -> Result<Vec<Vec<u8>>, DataError> {
        let mut buffers: Vec<Vec<u8>> = self.data.fields().iter().map(|f| vec![0; f.bytes()]).collect();
        let mut parts: Vec<&mut [u8]> = buffers.iter_mut().map(Vec::as_mut_slice).collect();
        let len = self.data.len(split);
        self.data.make(split, position / len, position % len, &mut parts)?;
        Ok(buffers)
    }

    /// What a worker does until the end.
    fn serve(&self) {
        let mut window = self.lock();
        while !window.closed {
            let Some(at) = window.slots.iter().position(|slot| matches!(slot, Slot::Open)) else {
                window = self.work.wait(window).unwrap_or_else(|poisoned| poisoned.into_inner());
                continue;
            };
            window.slots[at] = Slot::Started;
            let (split, position, moves) = (window.split, window.first + at as u64, window.moves);
            drop(window);
            let made = self.make(split, position);
            window = self.lock();
            if window.moves == moves
                && let Some(at) = position.checked_sub(window.first)
                && let Some(slot) = window.slots.get_mut(at as usize)
            {
                // What failed is empty: whoever needs it tries again, and tells the error.
                *slot = Slot::Ready(made.unwrap_or_default());
                self.done.notify_all();
            }
        }
    }

    /// The sample at a position, from the window or made here; the window then starts behind it.
    fn take(&self, split: Split, position: u64) -> Result<Vec<Vec<u8>>, DataError> {
        let mut window = self.lock();
        let ahead = position.checked_sub(window.first).filter(|at| *at < window.slots.len() as u64);
        match ahead.filter(|_| window.split == split) {
            Some(at) => {
                window.slots.drain(..at as usize);
            }
            None => {
                window.slots.clear();
                window.slots.push_back(Slot::Open);
                window.split = split;
                window.moves += 1;
            }
        }
        window.first = position;
        let end = match split {
            Split::Train => u64::MAX,
            Split::Validation => self.data.len(split),
        };
        let bytes = self.data.fields().iter().map(Field::bytes).sum();
        let wanted = (depth(bytes) as u64).min(end - position) as usize;
        while window.slots.len() < wanted {
            window.slots.push_back(Slot::Open);
        }
        let moves = window.moves;
        self.work.notify_all();
        if let Slot::Open = window.slots[0] {
            window.slots[0] = Slot::Started;
            drop(window);
            let made = self.make(split, position)?;
            self.lock().pass(moves, position);
            return Ok(made);
        }
        // Another reader may move the window away meanwhile.
        while window.moves == moves && window.first == position {
            if let Slot::Ready(made) = &mut window.slots[0] {
                let made = std::mem::take(made);
                window.pass(moves, position);
                drop(window);
                return if made.is_empty() { self.make(split, position) } else { Ok(made) };
            }
            window = self.done.wait(window).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        drop(window);
        self.make(split, position)
    }
}

impl<D: Slow> Dataset for Ahead<D> {
    fn fields(&self) -> &[Field] {
        self.shared.data.fields()
    }

    fn len(&self, split: Split) -> u64 {
        self.shared.data.len(split)
    }

    fn write_sample(&self, split: Split, epoch: u64, index: u64, out: &mut [&mut [u8]]) {
        let len = self.len(split);
        assert!(index < len, "sample {index} of {len}");
        let position = match split {
            Split::Train => epoch * len + index,
            Split::Validation => index,
        };
        let made = self.shared.take(split, position).unwrap_or_else(|error| panic!("{error}"));
        for (to, from) in out.iter_mut().zip(made) {
            to.copy_from_slice(&from);
        }
    }

    fn facts(&self) -> &Facts {
        self.shared.data.facts()
    }

    fn checksum(&self) -> &str {
        self.shared.data.checksum()
    }

    fn tokenizer(&self) -> Option<&Tokenizer> {
        self.shared.data.tokenizer()
    }
}
