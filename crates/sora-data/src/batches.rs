//! Batches made ahead of their use, in order.

use std::any::Any;
use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};

use rayon::ThreadPool;
use sora_tensor::Tensor;

use crate::DataError;

/// Prepared samples, ready for a model.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Tensors whose first axis is the sample. A single unnamed one is for the model's only input.
    pub inputs: Vec<(Option<String>, Tensor)>,
    /// The class of each sample; empty when the dataset has no labels.
    pub labels: Vec<usize>,
    /// The probability of each class for each sample, `[samples, classes]`, where augmentations mix samples.
    pub mixed: Option<Tensor>,
    /// What [`OpenOptions::targets`](crate::OpenOptions::targets) names, the first axis being the sample.
    pub targets: Vec<(String, Tensor)>,
    /// The length of each sample before it was padded, where samples differ in length.
    pub lengths: Option<Vec<usize>>,
    /// Number of samples.
    pub len: usize,
    /// Why samples could not be read that were left out of the batch, each with its place.
    pub skipped: Vec<DataError>,
}

/// What makes the batch of a number.
type Make = dyn Fn(usize) -> Result<Batch, DataError> + Send + Sync;
/// A batch, or the panic of what made it.
type Made = Result<Result<Batch, DataError>, Box<dyn Any + Send>>;

/// An iterator of batches; ends after the first error. While the caller uses one, the next ones are made in threads.
pub struct Batches {
    make: Arc<Make>,
    pool: Option<Arc<ThreadPool>>,
    /// Batches that are made or being made.
    ahead: VecDeque<Receiver<Made>>,
    left: Range<usize>,
}

impl Batches {
    /// The batches of `numbers`, up to `ahead` of them made before they are asked for, in `pool` or else in the global
    /// pool of rayon.
    pub(crate) fn start(
        numbers: Range<usize>,
        ahead: usize,
        pool: Option<Arc<ThreadPool>>,
        make: impl Fn(usize) -> Result<Batch, DataError> + Send + Sync + 'static,
    ) -> Self {
        let mut batches = Batches { make: Arc::new(make), pool, ahead: VecDeque::new(), left: numbers };
        (0..ahead.max(1)).for_each(|_| batches.begin_one());
        batches
    }

    /// Has a thread make one more batch.
    fn begin_one(&mut self) {
        let Some(number) = self.left.next() else { return };
        let make = Arc::clone(&self.make);
        let (send, made) = sync_channel(1);
        self.ahead.push_back(made);
        let job = move || {
            // Nobody receives what an ended iterator had begun.
            let _ = send.send(catch_unwind(AssertUnwindSafe(|| make(number))));
        };
        match &self.pool {
            Some(pool) => pool.spawn(job),
            None => rayon::spawn(job),
        }
    }
}

impl Iterator for Batches {
    type Item = Result<Batch, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.ahead.pop_front()?;
        self.begin_one();
        let batch = match next.recv() {
            Ok(Ok(batch)) => batch,
            Ok(Err(panic)) => resume_unwind(panic),
            Err(_) => return None,
        };
        if batch.is_err() {
            (self.left, self.ahead) = (0..0, VecDeque::new());
        }
        Some(batch)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, Some(self.ahead.len() + self.left.len()))
    }
}

impl fmt::Debug for Batches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batches").field("left", &(self.ahead.len() + self.left.len())).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;
    use crate::ErrorKind;

    fn pool(threads: usize) -> Option<Arc<ThreadPool>> {
        Some(Arc::new(rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap()))
    }

    fn batch(len: usize) -> Batch {
        Batch { len, ..Batch::default() }
    }

    #[test]
    fn batches_come_in_order_and_few_are_ahead() {
        let begun = Arc::new(AtomicUsize::new(0));
        for threads in [1, 4] {
            begun.store(0, Ordering::SeqCst);
            let count = Arc::clone(&begun);
            let batches = Batches::start(3..40, 5, pool(threads), move |number| {
                count.fetch_add(1, Ordering::SeqCst);
                // Later ones are done sooner.
                std::thread::sleep(Duration::from_micros(500 * (3 - number as u64 % 4)));
                Ok(batch(number))
            });
            assert_eq!(batches.size_hint(), (0, Some(37)));
            let mut taken = 0;
            for (expected, made) in (3..40).zip(batches) {
                taken += 1;
                assert_eq!(made.unwrap().len, expected);
                assert!(begun.load(Ordering::SeqCst) <= taken + 5);
            }
            assert_eq!(taken, 37);
        }
    }

    #[test]
    fn an_error_ends_them_and_a_panic_is_passed_on() {
        let failing = |number| match number {
            2 => Err(DataError::new(ErrorKind::Io, "no", "2", "none")),
            _ => Ok(batch(number)),
        };
        let made: Vec<bool> =
            Batches::start(0..9, 4, pool(2), failing).map(|batch: Result<_, _>| batch.is_ok()).collect();
        assert_eq!(made, [true, true, false]);
        let mut panicking = Batches::start(0..3, 1, pool(1), |number| match number {
            1 => panic!("a bug"),
            _ => Ok(batch(number)),
        });
        assert!(panicking.next().is_some_and(|batch| batch.is_ok()));
        assert!(catch_unwind(AssertUnwindSafe(|| panicking.next())).is_err());
    }
}
