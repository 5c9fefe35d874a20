//! The protocol in every order of events that loom finds: run by `cargo xtask threads`.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};

use super::Pool;

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
