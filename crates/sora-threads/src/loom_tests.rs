//! The protocol in every order of events that loom finds: run by `cargo xtask threads`.

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};

use super::{Board, Pool, in_step};

/// Explores `test`, with at most so many preemptions of one thread by another.
fn explore(preemptions: usize, test: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(test);
}

fn count(pool: &Pool, len: usize) {
    let mut parts = vec![0u8; len];
    pool.each(&mut parts, |part| *part += 1);
    assert!(parts.iter().all(|&part| part == 1));
}

#[test]
fn one_helper_two_jobs() {
    explore(3, || {
        let pool = Pool::new(2).unwrap();
        count(&pool, 2);
        count(&pool, 2);
    });
}

#[test]
fn two_helpers_one_job() {
    explore(2, || count(&Pool::new(3).unwrap(), 2));
}

#[test]
fn two_callers() {
    explore(2, || {
        let pool = Arc::new(Pool::new(2).unwrap());
        let other = {
            let pool = Arc::clone(&pool);
            loom::thread::spawn(move || count(&pool, 2))
        };
        count(&pool, 2);
        other.join().unwrap();
    });
}

#[test]
fn what_parts_write_is_seen_by_the_caller() {
    explore(3, || {
        let pool = Pool::new(2).unwrap();
        let sum = AtomicUsize::new(0);
        pool.each(&mut [1usize, 2], |part| {
            sum.fetch_add(*part, Ordering::Relaxed);
        });
        assert_eq!(sum.load(Ordering::Relaxed), 3);
    });
}

/// A cell that parts of different threads reach; loom tells when two do at once.
struct Shared(UnsafeCell<usize>);

// SAFETY: loom checks every access.
unsafe impl Sync for Shared {}

/// Adds up all elements of the board and the part's number, round by round; loom checks each access of the cells.
fn sum_in_step(pool: &Pool, parts: usize, rounds: usize) {
    let cells = || (0..parts).map(|_| Shared(UnsafeCell::new(1))).collect::<Vec<_>>();
    let [mut even, mut odd] = [cells(), cells()];
    let mut numbers: Vec<usize> = (0..parts).collect();
    let board = Board { even: &mut even, odd: &mut odd, rows: 1, share: 1 };
    in_step(Some(pool), &mut numbers, board, rounds, |number, _, from, mut to| {
        // SAFETY: loom checks that nobody writes meanwhile.
        let sum: usize = from.iter().map(|cell| cell.0.with(|value| unsafe { *value })).sum();
        // SAFETY: as above.
        to.row(0)[0].0.with_mut(|value| unsafe { *value = sum + *number });
    });
    let mut want = vec![1; parts];
    for _ in 0..rounds {
        let sum: usize = want.iter().sum();
        want = (0..parts).map(|number| sum + number).collect();
    }
    let last = [&even, &odd][rounds % 2];
    // SAFETY: the job is over.
    assert!(last.iter().zip(want).all(|(cell, want)| cell.0.with(|value| unsafe { *value }) == want));
}

#[test]
fn parts_in_step_read_what_all_wrote() {
    explore(2, || sum_in_step(&Pool::new(2).unwrap(), 2, 2));
}

#[test]
fn a_job_in_step_leaves_the_pool_as_it_was() {
    explore(2, || {
        let pool = Pool::new(2).unwrap();
        sum_in_step(&pool, 3, 1);
        count(&pool, 2);
    });
}
