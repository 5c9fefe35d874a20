//! The threads that share the work of a step.

use std::sync::Arc;

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::ExecError;

/// Multiply-adds, or elements moved times [`MOVE_COST`], below which a step is not worth splitting: waking
/// a worker costs some microseconds.
const WORTH_SPLITTING: usize = 200_000;

/// What moving or mapping one element costs, in multiply-adds.
pub(crate) const MOVE_COST: usize = 8;

/// A caller and its helpers. With one thread no pool exists and nothing of it is touched.
#[derive(Clone)]
pub(crate) struct Threads {
    /// Helpers beside the calling thread.
    pool: Option<Arc<ThreadPool>>,
    count: usize,
}

impl Threads {
    /// `count` threads including the caller; 0 means one per core.
    ///
    /// # Errors
    /// [`ExecError::Threads`] when the operating system refuses them.
    pub(crate) fn new(count: usize) -> Result<Self, ExecError> {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let count = if count == 0 { cores() } else { count };
        if count == 1 {
            return Ok(Threads { pool: None, count });
        }
        let built = ThreadPoolBuilder::new()
            .num_threads(count - 1)
            .thread_name(|i| format!("sora-{}", i + 1))
            .build()
            .map_err(|e| ExecError::Threads { threads: count, why: e.to_string() })?;
        Ok(Threads { pool: Some(Arc::new(built)), count })
    }

    /// Threads that share the work, the caller included.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// How many parts a step of this much work is split into; 1 means run it here.
    pub(crate) fn parts(&self, work: usize) -> usize {
        if self.pool.is_none() || work < WORTH_SPLITTING { 1 } else { self.count }
    }

    /// Calls `run` on every part, the first one on the calling thread.
    pub(crate) fn each<P: Send>(&self, parts: Vec<P>, run: impl Fn(P) + Sync) {
        let mut parts = parts.into_iter();
        match (&self.pool, parts.len()) {
            (Some(pool), 2..) => pool.in_place_scope(|scope| {
                let first = parts.next();
                for part in parts {
                    let run = &run;
                    scope.spawn(move |_| run(part));
                }
                first.into_iter().for_each(&run);
            }),
            _ => parts.for_each(run),
        }
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
        let chunks = out.chunks_mut(each).enumerate().map(|(i, chunk)| (i * each, chunk)).collect();
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
