//! The worker pool: numbered tasks run by a fixed set of threads that spin briefly, then sleep.
//!
//! A step of training is some thousand parallel regions of 10 to 1000 microseconds. Waking a sleeping thread costs
//! tens of microseconds, so a worker that has run out of tasks looks for the next region for a while before it
//! parks. A region never waits for a worker that has not taken part in it: late sleepers and descheduled threads
//! cost nothing but their help.
//!
//! Each worker starts with a range of the tasks of its own, the same in every region of as many tasks, so that what it has
//! in its caches from the step before is what it works on again; then it helps the others.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How long an idle worker looks for the next region before it parks.
const SPIN: Duration = Duration::from_micros(60);
/// The part of [`SPIN`] that burns the core; after it the worker offers the core to others between looks.
const PAUSES: u32 = 400;

/// Low half of the state word: workers inside the region. Then one bit: the region accepts workers. Above: its number.
const INSIDE: u64 = (1 << 32) - 1;
const OPEN: u64 = 1 << 32;
const REGION: u64 = 1 << 33;

thread_local! {
    /// Set while this thread runs a task of any pool.
    static IN_TASK: Cell<bool> = const { Cell::new(false) };
}

/// A fixed set of threads that run numbered tasks. Dropping the pool joins them.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// One region at a time; the second caller waits.
    caller: Mutex<()>,
}

struct Shared {
    state: AtomicU64,
    /// The next task of each worker's range.
    next: Vec<Next>,
    job: UnsafeCell<Option<Job>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    sleepers: Vec<Sleeper>,
    stop: AtomicBool,
}

/// The region's function with its lifetime erased.
#[derive(Clone, Copy)]
struct Job {
    run: *const (dyn Fn(usize, usize) + Sync),
    tasks: usize,
}

/// A number in cache lines of its own.
#[derive(Default)]
#[repr(align(128))]
struct Next(AtomicUsize);

#[derive(Default)]
struct Sleeper {
    asleep: AtomicBool,
    thread: Mutex<Option<Thread>>,
}

// SAFETY: `job` is the only field that is not already Send and Sync. It is written only while no region is open and
// no worker is inside one, and read only by workers inside an open region (see `Pool::run` and `Shared::work`); the
// state word orders the two.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer in `job` is never followed outside the region that set it.
unsafe impl Send for Shared {}

impl Pool {
    /// A pool of `threads` threads in all, the caller of [`Pool::run`] among them (so `threads - 1` are started;
    /// 0 counts as 1). More threads than cores are allowed.
    ///
    /// # Panics
    /// If the operating system refuses to start a thread.
    pub fn new(threads: usize) -> Pool {
        let others = threads.max(1) - 1;
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            next: (0..=others).map(|_| Next::default()).collect(),
            job: UnsafeCell::new(None),
            panic: Mutex::new(None),
            sleepers: (0..others).map(|_| Sleeper::default()).collect(),
            stop: AtomicBool::new(false),
        });
        let workers = (0..others)
            .map(|i| {
                let shared = Arc::clone(&shared);
                let thread = std::thread::Builder::new().name(format!("tenon-{}", i + 1));
                thread
                    .spawn(move || shared.work(i))
                    .unwrap_or_else(|e| panic!("cannot start worker thread {} of {others}: {e}", i + 1))
            })
            .collect();
        Pool { shared, workers, caller: Mutex::new(()) }
    }

    /// The number of threads, the caller included: worker numbers are below it.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// The threads that [`Pool::run`] would use here: one inside a task.
    pub fn available(&self) -> usize {
        if IN_TASK.get() { 1 } else { self.threads() }
    }

    /// Calls `f(task, worker)` once for every task in `0..tasks`, on any threads in any order, and returns when all
    /// are done. Two calls that run at the same time have different `worker` numbers, all below
    /// [`Pool::threads`]; the calling thread is worker 0.
    ///
    /// A single task, and a region opened inside a task of any pool, run on the calling thread as worker 0.
    ///
    /// # Panics
    /// A panic in a task is raised again here, after every task already started has ended; tasks not yet started
    /// are skipped.
    pub fn run(&self, tasks: usize, f: impl Fn(usize, usize) + Sync) {
        if tasks <= 1 || self.available() == 1 {
            let _inside = InTask::enter();
            for task in 0..tasks {
                f(task, 0);
            }
            return;
        }
        let turn = lock(&self.caller);
        let shared = &*self.shared;
        let run: &(dyn Fn(usize, usize) + Sync) = &f;
        // SAFETY: only the lifetime changes. The pointer is followed only by workers counted in the state word, and
        // this function does not return or unwind before that count is 0 and the region closed.
        let run = unsafe {
            std::mem::transmute::<*const (dyn Fn(usize, usize) + Sync), *const (dyn Fn(usize, usize) + Sync + 'static)>(
                run,
            )
        };
        let job = Job { run, tasks };
        // SAFETY: the last region is closed with nobody inside, and `turn` keeps other callers out.
        unsafe { *shared.job.get() = Some(job) };
        for (worker, next) in shared.next.iter().enumerate() {
            next.0.store(shared.range(worker, tasks).start, Ordering::Relaxed);
        }
        let region = (shared.state.load(Ordering::Relaxed) & !(OPEN | INSIDE)).wrapping_add(REGION);
        shared.state.store(region | OPEN, Ordering::Release);
        // A worker marks itself asleep before it looks at the state a last time; with the two fences either it sees
        // this region or we see the mark.
        fence(Ordering::SeqCst);
        for sleeper in shared.sleepers.iter().take(tasks - 1) {
            if sleeper.asleep.load(Ordering::Relaxed)
                && let Some(thread) = &*lock(&sleeper.thread)
            {
                thread.unpark();
            }
        }
        shared.take_tasks(job, 0);
        shared.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut wait = Wait::default();
        while shared.state.load(Ordering::Acquire) & INSIDE != 0 {
            wait.once();
        }
        let panic = lock(&shared.panic).take();
        drop(turn);
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches the panics of its tasks, so joining fails only if the runtime itself did.
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// The life of worker `index + 1`.
    fn work(&self, index: usize) {
        let sleeper = &self.sleepers[index];
        *lock(&sleeper.thread) = Some(std::thread::current());
        let mut seen = 0;
        let mut wait = Wait::default();
        loop {
            if self.stop.load(Ordering::Acquire) {
                return;
            }
            let state = self.state.load(Ordering::Acquire);
            if state & OPEN != 0 && state & !(OPEN | INSIDE) != seen {
                if self.state.compare_exchange_weak(state, state + 1, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                    seen = state & !(OPEN | INSIDE);
                    // SAFETY: counted inside an open region: the caller set the job before it opened the region and
                    // leaves it alone until we are out.
                    if let Some(job) = unsafe { *self.job.get() } {
                        self.take_tasks(job, index + 1);
                    }
                    self.state.fetch_sub(1, Ordering::Release);
                    wait = Wait::default();
                }
            } else if wait.elapsed() < SPIN {
                wait.once();
            } else {
                sleeper.asleep.store(true, Ordering::Relaxed);
                fence(Ordering::SeqCst);
                let state = self.state.load(Ordering::Relaxed);
                let news = state & OPEN != 0 && state & !(OPEN | INSIDE) != seen;
                if !news && !self.stop.load(Ordering::SeqCst) {
                    std::thread::park();
                }
                sleeper.asleep.store(false, Ordering::Relaxed);
                wait = Wait::default();
            }
        }
    }

    /// The tasks that a worker begins with.
    fn range(&self, worker: usize, tasks: usize) -> Range<usize> {
        let (each, rest) = (tasks / self.next.len(), tasks % self.next.len());
        let start = |worker: usize| each * worker + worker.min(rest);
        start(worker)..start(worker + 1)
    }

    /// Runs tasks of the region until none is left; a panic is kept for the caller and ends the region.
    fn take_tasks(&self, job: Job, worker: usize) {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let _inside = InTask::enter();
            for whose in (worker..self.next.len()).chain(0..worker) {
                let end = self.range(whose, job.tasks).end;
                loop {
                    let task = self.next[whose].0.fetch_add(1, Ordering::Relaxed);
                    if task >= end {
                        break;
                    }
                    // SAFETY: the caller of `run` keeps the function alive until every worker is out of the region.
                    unsafe { (*job.run)(task, worker) };
                }
            }
        }));
        if let Err(payload) = outcome {
            // Far above any task number, and far enough below the top for every worker's last increment.
            self.next.iter().for_each(|next| next.0.store(usize::MAX / 2, Ordering::Relaxed));
            lock(&self.panic).get_or_insert(payload);
        }
    }
}

/// Marks the thread as running a task, until dropped.
struct InTask {
    before: bool,
}

impl InTask {
    fn enter() -> InTask {
        InTask { before: IN_TASK.replace(true) }
    }
}

impl Drop for InTask {
    fn drop(&mut self) {
        IN_TASK.set(self.before);
    }
}

/// A thread that looks again and again: first pauses, then offers its core.
#[derive(Default)]
struct Wait {
    looks: u32,
    since: Option<Instant>,
}

impl Wait {
    fn once(&mut self) {
        if self.looks < PAUSES {
            self.looks += 1;
            std::hint::spin_loop();
        } else {
            self.since.get_or_insert_with(Instant::now);
            std::thread::yield_now();
        }
    }

    /// Time since the pauses ended; 0 before.
    fn elapsed(&self) -> Duration {
        self.since.map_or(Duration::ZERO, |t| t.elapsed())
    }
}

/// No lock here guards data that a panic could leave half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
