//! Which core a thread runs on.
//!
//! A woken thread tends to start on its waker's core, and stays there when the others are busy with anything
//! at all: then caller and helper take turns on one core, which is slower than no helper. So a helper that
//! finds itself on the caller's core moves to another one.

/// The cores that a helper may run on.
pub(crate) struct Place(imp::Cores);

#[cfg(all(target_os = "linux", not(loom)))]
mod imp {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};

    pub(super) type Cores = Option<CpuSet>;

    pub(crate) fn core() -> usize {
        sched_getcpu()
    }

    pub(super) fn cores() -> Cores {
        sched_getaffinity(None).ok().filter(|cores| cores.count() > 1)
    }

    pub(super) fn leave(cores: &Cores, core: usize) {
        if let Some(mut others) = cores.filter(|cores| core < CpuSet::MAX_CPU && cores.is_set(core)) {
            others.unset(core);
            // Where that is forbidden, the helper stays where it is.
            let _ = sched_setaffinity(None, &others);
        }
    }
}

#[cfg(not(all(target_os = "linux", not(loom))))]
mod imp {
    pub(super) type Cores = ();

    pub(crate) fn core() -> usize {
        0
    }

    pub(super) fn cores() -> Cores {}

    pub(super) fn leave((): &Cores, _: usize) {}
}

pub(crate) use imp::core;

impl Place {
    /// Of the calling thread.
    pub(crate) fn new() -> Self {
        Place(imp::cores())
    }

    /// Moves the calling thread away from the core of `caller`, if it runs there.
    pub(crate) fn avoid(&self, caller: usize) {
        if core() == caller {
            imp::leave(&self.0, caller);
        }
    }
}
