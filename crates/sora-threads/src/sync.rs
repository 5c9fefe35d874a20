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

/// Passes the time of a thread that waits for running ones.
#[derive(Default)]
pub(crate) struct Pause {
    turns: u32,
}

impl Pause {
    /// Lets a moment pass.
    pub(crate) fn wait(&mut self) {
        self.turns = self.turns.saturating_add(1);
        // The other one may not run because its core is taken: then it needs this one.
        if self.turns < 1 << 14 && cfg!(not(loom)) { spin_loop() } else { thread::yield_now() }
    }
}

/// How long a helper goes on watching for a job.
pub(crate) struct Patience {
    #[cfg(not(loom))]
    begun: std::time::Instant,
    #[cfg(not(loom))]
    until: std::time::Instant,
    #[cfg(not(loom))]
    turns: u32,
}

/// How long a helper watches for the next job before it sleeps: longer than the pauses between the runs of a
/// busy network, too short to matter when nothing follows.
#[cfg(not(loom))]
const WATCH: std::time::Duration = std::time::Duration::from_micros(50);

/// How long it watches at most while a caller says that more is to come.
#[cfg(not(loom))]
const ATTENTION: std::time::Duration = std::time::Duration::from_millis(1);

impl Patience {
    pub(crate) fn new() -> Self {
        #[cfg(not(loom))]
        {
            let begun = std::time::Instant::now();
            Patience { begun, until: begun + WATCH, turns: 0 }
        }
        #[cfg(loom)]
        Patience {}
    }

    /// Lets a moment pass; false when the time is over, which comes later while `attentive` holds. Under loom it is
    /// over at once, so that sleeping and waking are what it explores.
    pub(crate) fn wait(&mut self, attentive: impl Fn() -> bool) -> bool {
        #[cfg(not(loom))]
        {
            spin_loop();
            self.turns += 1;
            // Reading the clock takes longer than looking for a job.
            if !self.turns.is_multiple_of(32) {
                return true;
            }
            let now = std::time::Instant::now();
            if attentive() && now < self.begun + ATTENTION {
                self.until = now + WATCH;
            }
            now < self.until
        }
        #[cfg(loom)]
        {
            let _ = attentive;
            false
        }
    }
}
