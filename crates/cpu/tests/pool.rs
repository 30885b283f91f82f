//! The worker pool: every task once, panics, nesting, callers from several threads, sleep and wake.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tenon_cpu::pool::Pool;

#[test]
fn every_task_runs_once_and_no_two_at_once_share_a_worker() {
    for threads in [0, 1, 2, 3, 8] {
        let pool = Pool::new(threads);
        assert_eq!(pool.threads(), threads.max(1));
        for tasks in [0, 1, 2, 3, 7, 64, 1000] {
            let counts: Vec<AtomicU32> = (0..tasks).map(|_| AtomicU32::new(0)).collect();
            let busy: Vec<AtomicBool> = (0..pool.threads()).map(|_| AtomicBool::new(false)).collect();
            pool.run(tasks, |task, worker| {
                assert!(!busy[worker].swap(true, Ordering::SeqCst), "worker {worker} runs two tasks at once");
                counts[task].fetch_add(1, Ordering::Relaxed);
                busy[worker].store(false, Ordering::SeqCst);
            });
            assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1), "{threads} threads, {tasks} tasks");
        }
    }
}

#[test]
fn many_short_regions_each_see_the_writes_of_the_one_before() {
    let pool = Pool::new(3);
    let cells: Vec<AtomicUsize> = (0..16).map(|_| AtomicUsize::new(0)).collect();
    for round in 0..20_000 {
        pool.run(cells.len(), |task, _| {
            let neighbour = cells[(task + 5) % 16].load(Ordering::Relaxed);
            assert!(neighbour == round || neighbour == round + 1, "{neighbour} in round {round}");
            assert_eq!(cells[task].fetch_add(1, Ordering::Relaxed), round);
        });
    }
}

#[test]
fn workers_that_went_to_sleep_wake_up_and_help() {
    let pool = Pool::new(2);
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(2));
        // Each of the two tasks waits for the other, so both threads must take part.
        let arrived = AtomicUsize::new(0);
        pool.run(2, |_, _| {
            arrived.fetch_add(1, Ordering::SeqCst);
            let start = Instant::now();
            while arrived.load(Ordering::SeqCst) < 2 {
                assert!(start.elapsed() < Duration::from_secs(20), "the sleeping worker never came");
                std::thread::yield_now();
            }
        });
    }
}

#[test]
fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
    for threads in [1, 2, 4] {
        let pool = Pool::new(threads);
        for bad in [0, 13, 63] {
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                pool.run(64, |task, _| assert!(task != bad, "task {task} fails"));
            }));
            let payload = outcome.expect_err("the panic must reach the caller");
            assert_eq!(payload.downcast_ref::<String>(), Some(&format!("task {bad} fails")));
            let sum = AtomicUsize::new(0);
            pool.run(10, |task, _| {
                sum.fetch_add(task, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 45);
        }
    }
}

#[test]
fn a_region_inside_a_task_runs_inline_as_worker_0() {
    let pool = Pool::new(2);
    for outer_tasks in [1, 8] {
        let total = AtomicUsize::new(0);
        pool.run(outer_tasks, |_, _| {
            let outer = std::thread::current().id();
            pool.run(5, |task, worker| {
                assert_eq!((std::thread::current().id(), worker), (outer, 0));
                total.fetch_add(task, Ordering::Relaxed);
            });
        });
        assert_eq!(total.into_inner(), 10 * outer_tasks);
    }
}

#[test]
fn callers_on_several_threads_take_turns() {
    let pool = Pool::new(3);
    let (inside, total) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|s| {
        for _ in 0..4 {
            s.spawn(|| {
                for _ in 0..200 {
                    pool.run(6, |task, _| {
                        if task == 0 {
                            assert!(!inside.swap(true, Ordering::SeqCst));
                            inside.store(false, Ordering::SeqCst);
                        }
                        total.fetch_add(1, Ordering::Relaxed);
                    });
                }
            });
        }
    });
    assert_eq!(total.into_inner(), 4 * 200 * 6);
}
