use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::{Board, Pool, in_step};

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

/// Every part adds its number to the sum of the row before it: what it is without threads.
fn sum_in_step(pool: Option<&Pool>, parts: usize, rows: usize, share: usize, width: usize, rounds: usize) {
    let len = rows * width;
    let start: Vec<u64> = (0..len as u64).collect();
    let (mut even, mut odd) = (start.clone(), vec![0; len]);
    let mut numbers: Vec<(usize, usize)> = (0..parts).map(|part| (part, 0)).collect();
    let board = Board { even: &mut even, odd: &mut odd, rows, share };
    in_step(pool, &mut numbers, board, rounds, |(part, seen), round, from, mut to| {
        assert_eq!(*seen, round);
        *seen += 1;
        for row in 0..rows {
            let sum = from[row * width..][..width].iter().fold(0u64, |sum, &x| sum.wrapping_add(x));
            for (i, to) in to.row(row).iter_mut().enumerate() {
                *to = sum.wrapping_mul(3) ^ (*part * share + i) as u64;
            }
        }
    });
    let mut want = start;
    for _ in 0..rounds {
        for row in want.chunks_mut(width) {
            let sum = row.iter().fold(0u64, |sum, &x| sum.wrapping_add(x)).wrapping_mul(3);
            row.iter_mut().enumerate().for_each(|(i, x)| *x = sum ^ i as u64);
        }
    }
    assert_eq!([even, odd][rounds % 2], want);
    assert!(numbers.iter().all(|&(_, seen)| seen == rounds));
}

#[test]
fn parts_in_step_read_what_all_wrote() {
    for threads in 0..5 {
        let pool = Pool::new(threads).unwrap();
        for round in 0..300 {
            let pool = (round % 7 > 0).then_some(&pool);
            sum_in_step(pool, 1 + round % 5, 1 + round % 3, 4, 1 + (round % 5) * 4, round % 20);
            if round % 100 == 0 {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }
}

#[test]
fn callers_in_step_share_a_pool() {
    let pool = Pool::new(3).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                for round in 0..200 {
                    sum_in_step(Some(&pool), 3, 1, 2, 6, 10);
                    count(&pool, round % 7);
                }
            });
        }
    });
}

#[test]
fn a_panic_in_step_reaches_the_caller_and_leaves_the_pool_whole() {
    let pool = Pool::new(3).unwrap();
    for bad in 0..9 {
        let (mut even, mut odd) = ([0u8; 3], [0u8; 3]);
        let board = Board { even: &mut even, odd: &mut odd, rows: 1, share: 1 };
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            in_step(Some(&pool), &mut [0usize, 1, 2], board, 4, |part, round, _, _| {
                if (*part, round) == (bad % 3, bad / 3) {
                    std::panic::panic_any(bad);
                }
            });
        }));
        assert_eq!(caught.unwrap_err().downcast_ref(), Some(&bad));
        sum_in_step(Some(&pool), 3, 2, 2, 6, 5);
    }
}

#[test]
#[should_panic(expected = "leave some")]
fn parts_in_step_cover_the_board() {
    let (mut even, mut odd) = ([0u8; 5], [0u8; 5]);
    let board = Board { even: &mut even, odd: &mut odd, rows: 1, share: 2 };
    in_step(None, &mut [(), ()], board, 1, |(), _, _, _| {});
}
