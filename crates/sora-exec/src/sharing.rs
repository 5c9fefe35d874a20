//! Which steps of a program the threads share: those for which both ways were timed and sharing was faster.
//!
//! The first runs of a program on several threads are its trial. They compute what all runs compute (results do
//! not depend on how a step is split), and each step keeps its least time alone and shared. Steps that take
//! [`LARGE`] alone are shared from then on, so that the trial costs a large network one run at most. What the
//! steps chose one by one is then timed as a whole against sharing only the large ones: a step may gain by
//! itself and still lose by leaving its result in another core's cache.

use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::Instant;

/// Time of a step, in nanoseconds, that any hand-off is small against.
const LARGE: u64 = 100_000;

/// Runs of each kind at least, of which the fastest counts.
const ROUNDS: usize = 6;

/// Time that each part of the trial takes at least, in nanoseconds: a helper may be kept from running that long.
const TRIAL: u64 = 100_000_000;

/// Share of a time by which the other way must be faster: less is noise.
const MARGIN: f64 = 0.03;

/// The decision of a program, or how far it is.
pub(crate) struct Sharing {
    decided: OnceLock<Box<[bool]>>,
    trial: Mutex<Trial>,
}

/// What the trial's runs have measured, in nanoseconds.
#[derive(Default)]
pub(crate) struct Trial {
    /// Runs so far, the cold one included, and their time since the present part of the trial began.
    runs: usize,
    spent: u64,
    /// The run that ended the first part.
    half: Option<usize>,
    /// By step: the least time alone and shared.
    steps: Vec<[u64; 2]>,
    /// Sharing only the large steps, and sharing what gained; in the second part of the trial.
    plans: [Box<[bool]>; 2],
    /// The least time of a run with each of the two.
    totals: [u64; 2],
}

/// What one run does.
pub(crate) enum Course<'a> {
    /// By step: share it or not.
    Decided(&'a [bool]),
    /// The same for a trial run; times are to be given to [`Attempt::end`].
    Trial(Attempt<'a>),
    /// Shares nothing: another run is trying things out at this moment.
    Alone,
}

/// A run of the trial.
pub(crate) struct Attempt<'a> {
    sharing: &'a Sharing,
    trial: MutexGuard<'a, Trial>,
    /// Which of the two ways this run goes.
    way: usize,
    begun: Instant,
}

impl Sharing {
    /// Nothing decided yet, for a program of `steps` steps.
    pub(crate) fn undecided(steps: usize) -> Self {
        let trial = Trial { steps: vec![[u64::MAX; 2]; steps], totals: [u64::MAX; 2], ..Trial::default() };
        Sharing { decided: OnceLock::new(), trial: Mutex::new(trial) }
    }

    /// A decision from elsewhere; by step.
    pub(crate) fn decided(plan: Box<[bool]>) -> Self {
        Sharing { decided: OnceLock::from(plan), trial: Mutex::default() }
    }

    /// Whether any step is known to be shared.
    pub(crate) fn any(&self) -> bool {
        self.decided.get().is_some_and(|plan| plan.contains(&true))
    }

    /// Ends the trial. Only its holder does, once.
    fn decide(&self, plan: &[bool]) {
        let _ = self.decided.set(plan.into());
    }

    /// What the run that begins now shares.
    pub(crate) fn course(&self) -> Course<'_> {
        if let Some(plan) = self.decided.get() {
            return Course::Decided(plan);
        }
        let Ok(trial) = self.trial.try_lock() else { return Course::Alone };
        // The one before may just have ended the trial.
        if let Some(plan) = self.decided.get() {
            return Course::Decided(plan);
        }
        Course::Trial(Attempt { sharing: self, way: trial.runs % 2, trial, begun: Instant::now() })
    }
}

impl Course<'_> {
    /// Whether step `i` is shared.
    pub(crate) fn shares(&self, i: usize) -> bool {
        match self {
            Course::Decided(plan) => plan[i],
            Course::Alone => false,
            Course::Trial(attempt) => attempt.shares(i),
        }
    }
}

impl Attempt<'_> {
    fn shares(&self, i: usize) -> bool {
        let trial = &self.trial;
        match trial.half {
            None => self.way == 0 || large(&trial.steps[i]),
            Some(_) => trial.plans[self.way][i],
        }
    }

    /// Takes the times of the steps of this run.
    pub(crate) fn end(mut self, times: &[u64]) {
        let total = u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let way = self.way;
        let trial = &mut *self.trial;
        trial.runs += 1;
        if trial.runs == 1 {
            // The first run finds caches cold: it counts for nothing.
            return;
        }
        trial.spent = trial.spent.saturating_add(total);
        match trial.half {
            None => {
                for (step, &time) in trial.steps.iter_mut().zip(times) {
                    let shared = way == 0 || large(step);
                    let slot = &mut step[usize::from(shared)];
                    *slot = time.min(*slot);
                }
                if trial.runs > 2 * ROUNDS && trial.spent >= TRIAL {
                    let plan = |choose: fn(&[u64; 2]) -> bool| trial.steps.iter().map(choose).collect();
                    trial.plans = [plan(large), plan(gains)];
                    (trial.half, trial.spent) = (Some(trial.runs), 0);
                    if trial.plans[0] == trial.plans[1] {
                        self.sharing.decide(&trial.plans[0]);
                    }
                }
            }
            Some(half) => {
                trial.totals[way] = trial.totals[way].min(total);
                if trial.runs >= half + 2 * ROUNDS && trial.spent >= TRIAL {
                    let better = faster(trial.totals[1], trial.totals[0]);
                    self.sharing.decide(&trial.plans[usize::from(better)]);
                }
            }
        }
    }
}

/// Whether a step takes so long alone that sharing it needs no trial.
fn large(step: &[u64; 2]) -> bool {
    step[0] != u64::MAX && step[0] >= LARGE
}

/// Whether a step is faster shared.
fn gains(step: &[u64; 2]) -> bool {
    large(step) || faster(step[1], step[0])
}

/// Whether a time is below another one by more than noise.
fn faster(time: u64, other: u64) -> bool {
    (time as f64) < other as f64 * (1.0 - MARGIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lets a machine that takes these times, alone and shared, run until the decision.
    fn decide(times: &[[u64; 2]]) -> Vec<bool> {
        let sharing = Sharing::undecided(times.len());
        for _ in 0..100_000 {
            let course = sharing.course();
            let spent: Vec<u64> =
                times.iter().enumerate().map(|(i, t)| t[usize::from(course.shares(i))]).collect();
            match course {
                Course::Trial(mut attempt) => {
                    attempt.begun -= std::time::Duration::from_millis(2);
                    attempt.end(&spent);
                }
                Course::Decided(plan) => return plan.to_vec(),
                Course::Alone => panic!("nobody else runs"),
            }
        }
        panic!("no decision")
    }

    #[test]
    fn large_steps_are_shared_and_small_ones_that_lose_are_not() {
        let plan = decide(&[[900_000, 500_000], [3_000, 5_000], [2 * LARGE, 4 * LARGE]]);
        assert_eq!(plan, [true, false, true]);
        assert_eq!(decide(&[[3_000, 5_000]]), [false]);
        assert!(decide(&[]).is_empty());
    }

    #[test]
    fn a_run_beside_a_trial_shares_nothing() {
        let sharing = Sharing::undecided(1);
        let first = sharing.course();
        assert!(first.shares(0));
        assert!(matches!(sharing.course(), Course::Alone));
    }

    #[test]
    fn gains_below_the_noise_do_not_count() {
        assert!(faster(96, 100) && !faster(98, 100) && !faster(u64::MAX, u64::MAX));
        assert!(gains(&[100, 50]) && !gains(&[100, 99]) && !gains(&[100, u64::MAX]));
    }
}
