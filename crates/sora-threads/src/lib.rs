//! Threads that share the work of one caller, at a fraction of a microsecond per job.
//!
//! A [`Pool`] is a caller and its helpers. [`Pool::each`] lets all of them work through a list of parts. The
//! helpers watch for the next job for some tens of microseconds after the last one (longer where one is
//! announced, see [`Pool::attend`]), then sleep; a job that
//! finds them asleep, or late for another reason, does not wait for them: parts are claimed one by one, and
//! the caller claims what nobody else does. So a job never takes much longer than on one thread, even on a
//! machine with too much to do. Nothing is allocated per job.
//!
//! Parts that need each other's results time and again work [`in_step`].
//!
//! Any number of threads may share a pool. While one of them has a job in it, the others (and parts that start
//! jobs of their own) do theirs alone.
//!
//! # Safety argument
//!
//! A job borrows from the caller's stack, and helpers run it, so its lifetime has to be erased. Two facts make
//! this sound, and `Shared` keeps them:
//!
//! - *A helper touches a job only while it is counted in.* It counts itself in by one compare-and-swap on
//!   `Shared::state`, which succeeds only while that word says that the job is open.
//! - *The caller leaves a job only after closing it and seeing the count at zero*, also when a part panics.
//!
//! The tests under `--cfg loom` (`cargo xtask threads`) run the protocol in every order of events.

mod place;
mod step;
mod sync;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use place::Place;
pub use step::{Board, Columns, in_step};
use sync::{
    Arc, AtomicBool, AtomicU64, AtomicUsize, JoinHandle, Mutex, Ordering, Patience, Pause, UnsafeCell, fence,
    thread,
};

/// A function of the number of a part.
type Run<'a> = dyn Fn(usize) + Sync + 'a;

/// A job whose lifetime is erased.
#[derive(Clone, Copy)]
struct Job {
    /// The core that the caller runs on.
    core: usize,
    parts: usize,
    run: *const Run<'static>,
}

/// Keeps what different threads write on different cache lines (of pairs, as prefetchers fetch them).
#[repr(align(128))]
struct Apart<T>(T);

/// What caller and helpers share.
struct Shared {
    /// Number of the last job (upper half), [`STOP`], [`OPEN`], and how many helpers are counted in.
    state: Apart<AtomicU64>,
    /// The next part that nobody has claimed.
    next: Apart<AtomicUsize>,
    /// The last job. Written only while no job is open, nobody is counted in and `busy` is ours.
    job: UnsafeCell<Job>,
    /// Whether some caller has a job here.
    busy: AtomicBool,
    /// Callers that have more jobs to come ([`Pool::attend`]).
    attended: Apart<AtomicUsize>,
    /// What a helper's part panicked with.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// By helper: whether it sleeps until this is false again.
    asleep: Vec<Apart<AtomicBool>>,
}

const OPEN: u64 = 1 << 31;
const STOP: u64 = 1 << 30;
const COUNT: u64 = STOP - 1;
const NUMBER: u64 = !(OPEN | STOP | COUNT);
const ONE_JOB: u64 = OPEN << 1;

// SAFETY: `job` is the only field that is not `Sync`, and its pointer the only one not `Send`. The pointer is of
// a `Sync` function. The cell is written by the caller that holds `busy` while no helper is counted in, and read
// by helpers that are; both follow from each other through `state` (see the crate's documentation).
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

impl Shared {
    /// Claims and runs parts until none is left.
    fn work(&self, parts: usize, run: &Run<'_>) {
        loop {
            let part = self.next.0.fetch_add(1, Ordering::Relaxed);
            if part >= parts {
                return;
            }
            run(part);
        }
    }

    /// As [`Shared::work`]; a panic ends the job for everyone and is returned.
    fn try_work(&self, parts: usize, run: &Run<'_>) -> Result<(), Box<dyn Any + Send>> {
        catch_unwind(AssertUnwindSafe(|| self.work(parts, run)))
            .inspect_err(|_| self.next.0.store(parts, Ordering::Relaxed))
    }

    /// The caller's side of a job. The caller holds `busy`.
    fn share(&self, helpers: &[JoinHandle<()>], parts: usize, run: &Run<'_>) {
        // SAFETY: the two types differ in lifetime only, and nobody calls the function after `close` below,
        // before which this neither returns nor unwinds.
        let erased: *const Run<'static> = unsafe { std::mem::transmute(std::ptr::from_ref(run)) };
        self.job.with_mut(|job| {
            // SAFETY: no job is open, nobody is counted in, and `busy` keeps other callers away.
            unsafe { *job = Job { core: place::core(), parts, run: erased } };
        });
        self.next.0.store(0, Ordering::Relaxed);
        let last = self.state.0.load(Ordering::Relaxed);
        self.state.0.store((last & NUMBER).wrapping_add(ONE_JOB) | OPEN, Ordering::Release);
        self.wake(helpers, parts - 1);
        let outcome = self.try_work(parts, run);
        self.close();
        let theirs = self.panic.lock().map_or_else(|e| e.into_inner().take(), |mut p| p.take());
        self.busy.store(false, Ordering::Release);
        match (outcome, theirs) {
            (Err(panic), _) | (Ok(()), Some(panic)) => resume_unwind(panic),
            (Ok(()), None) => {}
        }
    }

    /// Keeps helpers from coming, and waits for those that came.
    fn close(&self) {
        let mut inside = self.state.0.fetch_and(!OPEN, Ordering::Acquire) & COUNT;
        let mut pause = Pause::default();
        while inside > 0 {
            pause.wait();
            inside = self.state.0.load(Ordering::Acquire) & COUNT;
        }
    }

    /// Wakes those of the first `count` helpers that sleep, after a change of `state`.
    fn wake(&self, helpers: &[JoinHandle<()>], count: usize) {
        // With the one in `sleep`: either this sees that a helper is about to sleep, or that one sees the change.
        fence(Ordering::SeqCst);
        for (asleep, helper) in self.asleep.iter().zip(helpers).take(count) {
            if asleep.0.load(Ordering::Relaxed) && asleep.0.swap(false, Ordering::Release) {
                helper.thread().unpark();
            }
        }
    }

    /// A helper's life.
    fn help(&self, helper: usize) {
        let place = Place::new();
        let mut done = 0;
        loop {
            let mut state = self.watch(helper, done);
            // Count in, unless the job was closed meanwhile or is another one.
            loop {
                if state & STOP > 0 {
                    return;
                }
                if state & OPEN == 0 {
                    break;
                }
                match self.state.0.compare_exchange_weak(
                    state,
                    state + 1,
                    Ordering::Acquire,
                    Ordering::Relaxed,
                ) {
                    Ok(_) => {
                        self.take_part(&place);
                        break;
                    }
                    Err(now) => state = now,
                }
            }
            done = state & NUMBER;
        }
    }

    /// Works for the open job; the helper is counted in.
    fn take_part(&self, place: &Place) {
        // SAFETY: the job was open when this helper counted itself in, so it was written before, and it is not
        // written again, nor does its caller leave it, before the helper counts itself out below.
        let Job { core, parts, run } = self.job.with(|job| unsafe { *job });
        place.avoid(core);
        // SAFETY: as above: the function lives until the caller leaves.
        if let Err(panic) = self.try_work(parts, unsafe { &*run }) {
            let mut slot = self.panic.lock().unwrap_or_else(|e| e.into_inner());
            slot.get_or_insert(panic);
        }
        self.state.0.fetch_sub(1, Ordering::Release);
    }

    /// Waits for a job with another number than `done`, or for the end; awake at first, then asleep.
    fn watch(&self, helper: usize, mut done: u64) -> u64 {
        let mut patience = Patience::new();
        loop {
            let state = self.state.0.load(Ordering::Acquire);
            if state & STOP > 0 || (state & OPEN > 0 && state & NUMBER != done) {
                return state;
            }
            if state & NUMBER != done {
                // A job came and went: there may be more.
                done = state & NUMBER;
                patience = Patience::new();
            }
            if !patience.wait(|| self.attended.0.load(Ordering::Relaxed) > 0) {
                self.sleep(helper, done);
                patience = Patience::new();
            }
        }
    }

    /// Sleeps until woken, unless there is a reason not to.
    fn sleep(&self, helper: usize, done: u64) {
        let asleep = &self.asleep[helper].0;
        asleep.swap(true, Ordering::AcqRel);
        fence(Ordering::SeqCst);
        let state = self.state.0.load(Ordering::Relaxed);
        if state & STOP > 0 || state & NUMBER != done {
            asleep.swap(false, Ordering::AcqRel);
            return;
        }
        while asleep.load(Ordering::Acquire) {
            thread::park();
        }
    }
}

/// A caller and its helpers.
///
/// Dropping the pool ends its threads.
pub struct Pool {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
}

impl Pool {
    /// `threads` threads in all: the caller and `threads - 1` helpers.
    ///
    /// # Errors
    /// When the operating system refuses a thread.
    pub fn new(threads: usize) -> std::io::Result<Pool> {
        let count = threads.saturating_sub(1);
        fn nothing(_: usize) {}
        let run: *const Run<'static> = &nothing;
        let shared = Arc::new(Shared {
            state: Apart(AtomicU64::new(0)),
            next: Apart(AtomicUsize::new(0)),
            job: UnsafeCell::new(Job { core: 0, parts: 0, run }),
            busy: AtomicBool::new(false),
            attended: Apart(AtomicUsize::new(0)),
            panic: Mutex::new(None),
            asleep: (0..count).map(|_| Apart(AtomicBool::new(false))).collect(),
        });
        // On an error, dropping the pool ends the helpers that were started.
        let mut pool = Pool { shared, helpers: Vec::with_capacity(count) };
        for helper in 0..count {
            let shared = Arc::clone(&pool.shared);
            let builder = thread::Builder::new().name(format!("sora-{}", helper + 1));
            pool.helpers.push(builder.spawn(move || shared.help(helper))?);
        }
        Ok(pool)
    }

    /// Threads in all, the caller included.
    pub fn threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Announces jobs: wakes helpers, which then stay awake as long as the result lives, but for a millisecond after a
    /// job at most. Waking takes longer than many a job.
    pub fn attend(&self) -> Attention<'_> {
        self.shared.attended.0.fetch_add(1, Ordering::Relaxed);
        self.shared.wake(&self.helpers, self.helpers.len());
        Attention(&self.shared)
    }

    /// Calls `run` once for every one of `parts`, in any order, on any of the threads, and returns when all is
    /// done. Parts far more numerous than threads even out threads of unequal speed.
    ///
    /// # Panics
    /// With what a part panicked with. Parts that nobody had begun are left out then.
    pub fn each<P: Send>(&self, parts: &mut [P], run: impl Fn(&mut P) + Sync) {
        if parts.len() < 2 || self.helpers.is_empty() || !self.take() {
            return parts.iter_mut().for_each(run);
        }
        let count = parts.len();
        let parts = Parts(parts.as_mut_ptr());
        let one = |part: usize| {
            // SAFETY: `part < count` lies in the slice, which outlives the job; the counter in `work` gives each
            // number to one thread only, so nothing else refers to this element.
            run(unsafe { &mut *parts.at(part) });
        };
        self.shared.share(&self.helpers, count, &one);
    }

    /// Takes the pool for a job, unless it has one.
    fn take(&self) -> bool {
        !self.shared.busy.swap(true, Ordering::Acquire)
    }
}

/// See [`Pool::attend`].
#[must_use = "helpers fall asleep when it is dropped"]
pub struct Attention<'a>(&'a Shared);

impl Drop for Attention<'_> {
    fn drop(&mut self) {
        self.0.attended.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.state.0.fetch_or(STOP, Ordering::Release);
        self.shared.wake(&self.helpers, self.helpers.len());
        for helper in self.helpers.drain(..) {
            // A helper catches the panics of parts and has none of its own.
            let _ = helper.join();
        }
    }
}

/// The start of a slice whose elements different threads take.
struct Parts<P>(*mut P);

// SAFETY: threads take different elements only, and `P` may move between threads; where several read one element, as
// those of a board, `P` is `Sync`.
unsafe impl<P: Send> Sync for Parts<P> {}

impl<P> Parts<P> {
    fn at(&self, i: usize) -> *mut P {
        self.0.wrapping_add(i)
    }
}

#[cfg(all(test, not(loom)))]
mod tests;

#[cfg(all(test, loom))]
mod loom_tests;
