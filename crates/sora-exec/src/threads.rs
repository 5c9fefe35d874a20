//! The threads that share the work of a step.

use std::sync::Arc;

use smallvec::SmallVec;
use sora_threads::{Attention, Board, Columns, Pool};

use crate::ExecError;

/// Multiply-adds, or elements moved times [`MOVE_COST`], below which nobody tries to split a step: a fraction of a
/// microsecond, which no hand-off can halve. Whether larger steps gain is measured (see [`crate::sharing`]).
const TRIFLE: usize = 8_000;

/// What moving or mapping one element costs, in multiply-adds.
pub(crate) const MOVE_COST: usize = 8;

/// Parts that a step is split into without touching the heap.
pub(crate) const INLINE: usize = 16;

/// A caller and its helpers. With one thread no pool exists and nothing of it is touched.
#[derive(Clone, Default)]
pub(crate) struct Threads {
    /// Helpers beside the calling thread.
    pool: Option<Arc<Pool>>,
}

impl Threads {
    /// `count` threads including the caller, but at most one per core; 0 means one per core.
    ///
    /// # Errors
    /// [`ExecError::Threads`] when the operating system refuses them.
    pub(crate) fn new(count: usize) -> Result<Self, ExecError> {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let count = match count {
            1 => 1,
            0 => cores(),
            // More would only take turns.
            _ => count.min(cores()),
        };
        if count == 1 {
            return Ok(Threads::default());
        }
        let pool = Pool::new(count).map_err(|e| ExecError::Threads { threads: count, why: e.to_string() })?;
        Ok(Threads { pool: Some(Arc::new(pool)) })
    }

    /// Threads that share the work, the caller included.
    pub(crate) fn count(&self) -> usize {
        self.pool.as_ref().map_or(1, |pool| pool.threads())
    }

    /// Keeps helpers awake as long as the result lives, where steps are `shared`.
    pub(crate) fn attend(&self, shared: bool) -> Option<Attention<'_>> {
        self.pool.as_ref().filter(|_| shared).map(|pool| pool.attend())
    }

    /// How many parts a step of this much work is split into; 1 means run it here.
    pub(crate) fn parts(&self, work: usize) -> usize {
        if work < TRIFLE { 1 } else { self.count() }
    }

    /// Calls `run` on every part, on any thread.
    pub(crate) fn each<P: Send>(&self, parts: impl IntoIterator<Item = P>, run: impl Fn(P) + Sync) {
        let Some(pool) = &self.pool else { return parts.into_iter().for_each(run) };
        let mut parts: SmallVec<[Option<P>; INLINE]> = parts.into_iter().map(Some).collect();
        pool.each(&mut parts, |part| part.take().into_iter().for_each(&run));
    }

    /// See [`sora_threads::in_step`].
    pub(crate) fn in_step<P: Send, T: Send + Sync>(
        &self,
        parts: &mut [P],
        board: Board<'_, T>,
        rounds: usize,
        run: impl Fn(&mut P, usize, &[T], Columns<'_, T>) + Sync,
    ) {
        sora_threads::in_step(self.pool.as_deref(), parts, board, rounds, run);
    }

    /// Splits `out` into at most [`Threads::parts`] chunks that begin at multiples of `granule` elements and
    /// calls `run` with each chunk's first element.
    pub(crate) fn chunks<T: Send>(
        &self,
        work: usize,
        granule: usize,
        out: &mut [T],
        run: impl Fn(usize, &mut [T]) + Sync,
    ) {
        let parts = self.parts(work);
        if parts == 1 || out.is_empty() {
            return run(0, out);
        }
        let granule = granule.max(1);
        let each = out.len().div_ceil(granule).div_ceil(parts) * granule;
        let chunks = out.chunks_mut(each).enumerate().map(|(i, chunk)| (i * each, chunk));
        self.each(chunks, |(start, chunk)| run(start, chunk));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_everything_once() {
        for count in [1, 2, 3] {
            let threads = Threads::new(count).unwrap();
            for len in [0usize, 1, 7, 24, 1000] {
                let mut data = vec![0usize; len];
                threads.chunks(usize::MAX, 8, &mut data, |start, chunk| {
                    assert!(start.is_multiple_of(8));
                    chunk.iter_mut().enumerate().for_each(|(i, v)| *v += start + i + 1);
                });
                assert!(data.iter().enumerate().all(|(i, &v)| v == i + 1));
            }
        }
    }
}
