//! What the pool is built from: the standard library's, or loom's, which tries every order of events.

#[cfg(loom)]
pub(crate) use loom::{
    cell::UnsafeCell,
    hint::spin_loop,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence},
    },
    thread::{self, JoinHandle},
};

#[cfg(not(loom))]
pub(crate) use std::{
    hint::spin_loop,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence},
    },
    thread::{self, JoinHandle},
};

/// [`std::cell::UnsafeCell`] with loom's way to reach the inside.
#[cfg(not(loom))]
pub(crate) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

#[cfg(not(loom))]
impl<T> UnsafeCell<T> {
    pub(crate) fn new(value: T) -> Self {
        UnsafeCell(std::cell::UnsafeCell::new(value))
    }

    pub(crate) fn with<R>(&self, read: impl FnOnce(*const T) -> R) -> R {
        read(self.0.get())
    }

    pub(crate) fn with_mut<R>(&self, write: impl FnOnce(*mut T) -> R) -> R {
        write(self.0.get())
    }
}

/// A time to watch, in turns of a loop.
pub(crate) struct Patience {
    #[cfg(not(loom))]
    until: std::time::Instant,
    #[cfg(not(loom))]
    turns: u32,
}

/// How long a thread watches for the next job before it sleeps: longer than the pauses between the steps of
/// a network, too short to matter when nothing follows.
#[cfg(not(loom))]
const WATCH: std::time::Duration = std::time::Duration::from_micros(50);

impl Patience {
    pub(crate) fn new() -> Self {
        Patience {
            #[cfg(not(loom))]
            until: std::time::Instant::now() + WATCH,
            #[cfg(not(loom))]
            turns: 0,
        }
    }

    /// Lets a moment pass; false when the time is over. Under loom it is over at once, so that sleeping and
    /// waking are what it explores.
    pub(crate) fn wait(&mut self) -> bool {
        #[cfg(not(loom))]
        {
            spin_loop();
            self.turns += 1;
            // Reading the clock takes longer than looking for a job.
            !self.turns.is_multiple_of(32) || std::time::Instant::now() < self.until
        }
        #[cfg(loom)]
        false
    }
}
