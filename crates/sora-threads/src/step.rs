//! Parts that work in step: each finishes a round before any begins the next, and then reads what all have written.
//!
//! Threads that wait for each other must all be running. So a job begins with a *team*: those threads that have come
//! when the first of them loses patience. Later ones go away, and the team divides the parts by its size, which is one
//! where nobody came or the pool has another job. A member that panics breaks the team, and the others leave.

use std::marker::PhantomData;

use crate::sync::{AtomicBool, AtomicUsize, Ordering, Patience, Pause};
use crate::{Apart, Parts, Pool};

/// What parts tell each other: two matrices of one shape, of which each round reads one and writes the other.
pub struct Board<'a, T> {
    /// Read by even rounds, the first among them, and written by odd ones.
    pub even: &'a mut [T],
    /// Written by even rounds, and read by odd ones.
    pub odd: &'a mut [T],
    /// Rows of each.
    pub rows: usize,
    /// Columns that a part writes; fewer are left to the last one.
    pub share: usize,
}

/// The columns of a matrix that one part writes in one round.
pub struct Columns<'a, T> {
    start: *mut T,
    rows: usize,
    cols: usize,
    ld: usize,
    lifetime: PhantomData<&'a mut [T]>,
}

impl<T> Columns<'_, T> {
    /// The columns' elements in one row.
    ///
    /// # Panics
    /// When there is no such row.
    pub fn row(&mut self, row: usize) -> &mut [T] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        // SAFETY: the columns' owner made them within the matrix and refers to them by this alone.
        unsafe { std::slice::from_raw_parts_mut(self.start.wrapping_add(row * self.ld), self.cols) }
    }
}

/// In each of `rounds`, calls `run` once for every part: with the part, the round, the board that the round reads and
/// the part's columns of the other. What a round writes, the next one reads.
///
/// The threads of the pool take some parts each, always the same ones, and meet after every round. A thread walks its
/// parts the other way in every other round, and so finds the last one's data in the nearer caches.
///
/// # Panics
/// With what a part panicked with, or when the shape of the board is not one.
pub fn in_step<P: Send, T: Send + Sync>(
    pool: Option<&Pool>,
    parts: &mut [P],
    board: Board<'_, T>,
    rounds: usize,
    run: impl Fn(&mut P, usize, &[T], Columns<'_, T>) + Sync,
) {
    let Board { even, odd, rows, share } = board;
    let (len, count) = (even.len(), parts.len());
    let width = len / rows.max(1);
    assert!(rows * width == len && odd.len() == len, "boards of {len} and {} in {rows} rows", odd.len());
    assert!(share.saturating_mul(count) >= width, "{count} parts of {share} columns leave some of {width}");
    let parts = Parts(parts.as_mut_ptr());
    let boards = [Parts(even.as_mut_ptr()), Parts(odd.as_mut_ptr())];
    let one = |part: usize, round: usize| {
        let first = width.min(part * share);
        let (from, to) = (&boards[round % 2], &boards[(round + 1) % 2]);
        let cols = share.min(width - first);
        let own = Columns { start: to.at(first), rows, cols, ld: width, lifetime: PhantomData };
        // SAFETY: in a round, one member of the team refers to this part and to its columns, which differ from those
        // of the other parts. Nobody writes the board that is read before all members have met, after the round.
        let (part, from) = unsafe { (&mut *parts.at(part), std::slice::from_raw_parts(from.at(0), len)) };
        run(part, round, from, own);
    };
    let team = Team::new();
    let member = |rank: usize, size: usize| {
        let own = (count - rank).div_ceil(size);
        for round in 0..rounds {
            for i in 0..own {
                let i = if round % 2 == 0 { i } else { own - 1 - i };
                one(rank + i * size, round);
            }
            if !team.meet(size, round) {
                return;
            }
        }
    };
    let wanted = pool.map_or(1, Pool::threads).min(count);
    match pool.filter(|_| wanted > 1) {
        Some(pool) if pool.take() => pool.shared.share(&pool.helpers, wanted, &|_| {
            if let Some((rank, size)) = team.join(wanted) {
                let broken = Break(&team.broken);
                member(rank, size);
                std::mem::forget(broken);
            }
        }),
        _ if count > 0 => member(0, 1),
        _ => {}
    }
}

/// Threads that wait for each other.
struct Team {
    /// [`CLOSED`], and how many have come.
    members: Apart<AtomicUsize>,
    /// How often a member has finished a round.
    finished: Apart<AtomicUsize>,
    /// Whether a member has panicked.
    broken: AtomicBool,
}

/// Nobody can join any more.
const CLOSED: usize = 1 << (usize::BITS - 1);

impl Team {
    fn new() -> Self {
        Team {
            members: Apart(AtomicUsize::new(0)),
            finished: Apart(AtomicUsize::new(0)),
            broken: AtomicBool::new(false),
        }
    }

    /// Joins a team of at most `wanted`: the number of this member and how many there are. `None` for who comes late.
    fn join(&self, wanted: usize) -> Option<(usize, usize)> {
        let members = &self.members.0;
        let come = |now: usize| (now & CLOSED == 0).then_some(now + 1);
        let rank = members.fetch_update(Ordering::Relaxed, Ordering::Relaxed, come).ok()?;
        let size = if rank == 0 {
            let mut patience = Patience::new();
            while members.load(Ordering::Relaxed) < wanted && patience.wait(|| false) {}
            members.fetch_or(CLOSED, Ordering::Relaxed)
        } else {
            let mut pause = Pause::default();
            loop {
                let now = members.load(Ordering::Relaxed);
                if now & CLOSED > 0 {
                    break now & !CLOSED;
                }
                pause.wait();
            }
        };
        Some((rank, size))
    }

    /// Waits until all `size` members have finished the round; false when one of them never will.
    fn meet(&self, size: usize, round: usize) -> bool {
        let (finished, all) = (&self.finished.0, size * (round + 1));
        let mut now = finished.fetch_add(1, Ordering::AcqRel) + 1;
        let mut pause = Pause::default();
        while now < all {
            if self.broken.load(Ordering::Relaxed) {
                return false;
            }
            pause.wait();
            now = finished.load(Ordering::Acquire);
        }
        true
    }
}

/// Breaks a team when dropped.
struct Break<'a>(&'a AtomicBool);

impl Drop for Break<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
