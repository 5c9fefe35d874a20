//! Samples kept in memory after they were first prepared.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::picture::Picture;

/// Prepared samples by index, as many as fit; those are kept that come first. Which ones changes no result: a sample is
/// kept as it is before anything random happens to it.
#[derive(Debug)]
pub(crate) struct Cache<T> {
    slots: Vec<OnceLock<T>>,
    /// Bytes that may still be taken.
    left: AtomicUsize,
}

/// What a sample takes in memory.
pub(crate) trait Bytes {
    /// Bytes of its values.
    fn bytes(&self) -> usize;
}

impl<T> Bytes for Vec<T> {
    fn bytes(&self) -> usize {
        size_of_val(self.as_slice())
    }
}

impl Bytes for Picture<u8> {
    fn bytes(&self) -> usize {
        self.data.bytes()
    }
}

impl<T: Bytes + Clone> Cache<T> {
    /// A cache of up to `bytes` for `samples`.
    pub(crate) fn new(samples: usize, bytes: usize) -> Self {
        let slots = if bytes > 0 { samples } else { 0 };
        Cache { slots: (0..slots).map(|_| OnceLock::new()).collect(), left: AtomicUsize::new(bytes) }
    }

    /// The sample at `index`, if it is kept.
    pub(crate) fn get(&self, index: usize) -> Option<T> {
        self.slots.get(index)?.get().cloned()
    }

    /// Keeps a sample, if there is room.
    pub(crate) fn keep(&self, index: usize, sample: &T) {
        let Some(slot) = self.slots.get(index) else { return };
        let size = sample.bytes();
        let take = |left: usize| left.checked_sub(size);
        if self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
            && slot.set(sample.clone()).is_err()
        {
            // Another thread was first.
            self.left.fetch_add(size, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_are_kept_as_fit() {
        let cache = Cache::new(4, 10);
        for index in 0..4 {
            cache.keep(index, &vec![index as u16; 2]);
        }
        assert_eq!((0..4).map(|i| cache.get(i).is_some()).collect::<Vec<_>>(), [true, true, false, false]);
        // Keeping one twice takes no more room.
        cache.keep(0, &vec![9; 1]);
        cache.keep(3, &vec![7; 1]);
        assert_eq!((cache.get(0), cache.get(3)), (Some(vec![0; 2]), Some(vec![7])));
        let none = Cache::new(4, 0);
        none.keep(0, &vec![1u8]);
        assert_eq!(none.get(0), None);
    }
}
