use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::Pool;

/// Adds one to every element, and checks it.
fn count(pool: &Pool, len: usize) {
    let mut parts = vec![0u64; len];
    pool.each(&mut parts, |part| *part += 1);
    assert!(parts.iter().all(|&part| part == 1));
}

#[test]
fn every_part_runs_once() {
    for threads in 0..5 {
        let pool = Pool::new(threads).unwrap();
        assert_eq!(pool.threads(), threads.max(1));
        for round in 0..2000 {
            count(&pool, round % 9);
            if round % 500 == 0 {
                // Long enough for the helpers to fall asleep.
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }
}

#[test]
fn callers_share_a_pool() {
    let pool = Pool::new(3).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..3000).for_each(|round| count(&pool, round % 7)));
        }
    });
}

#[test]
fn parts_may_start_jobs() {
    let pool = Pool::new(2).unwrap();
    let done = AtomicUsize::new(0);
    for _ in 0..200 {
        pool.each(&mut [(); 4], |()| {
            pool.each(&mut [(); 3], |()| {
                done.fetch_add(1, Ordering::Relaxed);
            });
        });
    }
    assert_eq!(done.into_inner(), 200 * 12);
}

#[test]
fn panics_reach_the_caller_and_leave_the_pool_whole() {
    let pool = Pool::new(3).unwrap();
    for bad in 0..6 {
        let mut parts: Vec<usize> = (0..6).collect();
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            pool.each(&mut parts, |part| {
                if *part == bad {
                    std::panic::panic_any(bad);
                }
                std::thread::sleep(Duration::from_micros(100));
            });
        }));
        assert_eq!(caught.unwrap_err().downcast_ref(), Some(&bad));
        count(&pool, 10);
    }
}

/// With `threads` parts that wait for each other, every thread has to take one.
#[test]
fn all_threads_take_part() {
    let pool = Pool::new(3).unwrap();
    for _ in 0..50 {
        let here = AtomicUsize::new(0);
        pool.each(&mut [(); 3], |()| {
            here.fetch_add(1, Ordering::SeqCst);
            while here.load(Ordering::SeqCst) < 3 {
                std::thread::yield_now();
            }
        });
    }
}
