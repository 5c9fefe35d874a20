//! Batches prepared one ahead of their use.

use std::panic;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{self, JoinHandle};

use crate::{Batch, DataError, Dataset, Preprocess};

/// An iterator of batches; ends after the first error.
#[derive(Debug)]
pub struct Batches {
    ready: Option<Receiver<Result<Batch, DataError>>>,
    worker: Option<JoinHandle<()>>,
    left: usize,
}

impl Batches {
    pub(crate) fn start(dataset: Dataset, indices: Vec<usize>, size: usize, preprocess: Preprocess) -> Self {
        let size = size.max(1);
        let left = indices.len().div_ceil(size);
        // One batch waits in preparation; the channel itself holds none.
        let (send, ready) = sync_channel(0);
        let worker = thread::spawn(move || {
            for part in indices.chunks(size) {
                let batch = dataset.batch(part, &preprocess);
                let failed = batch.is_err();
                if send.send(batch).is_err() || failed {
                    return;
                }
            }
        });
        Batches { ready: Some(ready), worker: Some(worker), left }
    }

    /// Waits for the worker, and passes its panic on.
    fn finish(&mut self) {
        self.ready = None;
        self.left = 0;
        if let Some(Err(cause)) = self.worker.take().map(JoinHandle::join)
            && !thread::panicking()
        {
            panic::resume_unwind(cause);
        }
    }
}

impl Iterator for Batches {
    type Item = Result<Batch, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        let received = self.ready.as_ref()?.recv().ok();
        self.left = self.left.saturating_sub(1);
        if !matches!(received, Some(Ok(_))) {
            self.finish();
        }
        received
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, Some(self.left))
    }
}

impl Drop for Batches {
    fn drop(&mut self) {
        self.finish();
    }
}
