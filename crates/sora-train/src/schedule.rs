//! How the learning rate changes from step to step.

use std::collections::BTreeMap;
use std::f64::consts::PI;

use serde::{Deserialize, Serialize};
use sora_data::{Setting, Settings, setting};

use crate::TrainError;
use crate::table::find;

/// A schedule: a row of [`SCHEDULES`].
#[derive(Debug)]
pub struct ScheduleRow {
    /// Name.
    pub name: &'static str,
    /// Numbers it takes.
    pub settings: &'static [Setting],
    /// The share of the learning rate at a share of all steps.
    share: fn(f64, &Settings) -> f64,
}

const WARMUP: Setting = setting("warmup", 0.0, 0.0, 1.0);

/// All schedules. `warmup` is the share of all steps over which the rate first rises linearly from 0; what follows counts
/// from there. In `one_cycle` it is the rise, which follows a cosine.
pub const SCHEDULES: &[ScheduleRow] = &[
    ScheduleRow { name: "constant", settings: &[WARMUP], share: |_, _| 1.0 },
    ScheduleRow {
        // The rate times `factor`, `drops` times at equal distances.
        name: "step",
        settings: &[WARMUP, setting("factor", 0.1, 0.0, 1.0), setting("drops", 2.0, 1.0, 1e6)],
        share: |at, s| s.get("factor").powf((at * (s.get("drops") + 1.0)).floor().min(s.get("drops"))),
    },
    ScheduleRow {
        // Source: Loshchilov & Hutter 2017, without restarts.
        name: "cosine",
        settings: &[WARMUP, setting("final", 0.0, 0.0, 1.0)],
        share: |at, s| s.get("final") + (1.0 - s.get("final")) * 0.5 * (1.0 + (PI * at).cos()),
    },
    ScheduleRow {
        // From `initial` of the rate up to it and down to `final`, both along a cosine. Source: Smith & Topin 2018.
        name: "one_cycle",
        settings: &[
            setting("warmup", 0.3, 0.0, 1.0),
            setting("initial", 0.04, 0.0, 1.0),
            setting("final", 0.000_004, 0.0, 1.0),
        ],
        share: |at, s| s.get("final") + (1.0 - s.get("final")) * 0.5 * (1.0 + (PI * at).cos()),
    },
    ScheduleRow {
        // The rate times `factor` whenever the validation loss has not become less by [`LESS`] in `patience` epochs, but not
        // below `min_rate`.
        name: PLATEAU,
        settings: &[
            WARMUP,
            setting("factor", 0.1, 0.0, 1.0),
            setting("patience", 10.0, 1.0, 1e6),
            setting("min_rate", 0.0, 0.0, 1e12),
        ],
        share: |_, _| 1.0,
    },
];

const PLATEAU: &str = "plateau";

/// What a loss must be less by to be better.
const LESS: f64 = 1e-4;

/// What the schedule `plateau` has seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Plateau {
    /// The least validation loss, as bits of `f64`, since text may round.
    best: Option<u64>,
    /// Epochs since then, or since the rate was lowered.
    waited: u32,
    /// How often the rate was lowered.
    lowered: u32,
}

/// A schedule with its numbers.
#[derive(Clone, Debug)]
pub struct Schedule {
    row: &'static ScheduleRow,
    settings: Settings,
}

impl Schedule {
    /// The schedule of this name.
    ///
    /// # Errors
    /// [`TrainError::Unknown`], or [`TrainError::Data`] for a setting that it does not take, with what is near.
    pub fn new(name: &str, given: &BTreeMap<String, f64>) -> Result<Self, TrainError> {
        let row = find("schedule", SCHEDULES, |row| row.name, name)?;
        Ok(Schedule { row, settings: Settings::new(name, row.settings, given)? })
    }

    /// Whether the rate follows from validation.
    pub fn needs_validation(&self) -> bool {
        self.row.name == PLATEAU
    }

    /// The learning rate of step `step` of `steps`, from 0, where `rate` is the highest.
    pub(crate) fn rate(&self, rate: f64, step: u64, steps: u64, seen: &Plateau) -> f64 {
        let rate = rate * self.share(step, steps);
        match seen.lowered {
            0 => rate,
            n => rate.min(
                (rate * self.settings.get("factor").powf(f64::from(n))).max(self.settings.get("min_rate")),
            ),
        }
    }

    /// Looks at the validation loss behind an epoch.
    pub(crate) fn watch(&self, loss: f64, seen: &mut Plateau) {
        if !self.needs_validation() {
            return;
        }
        if !loss.is_nan() && seen.best.is_none_or(|best| loss < f64::from_bits(best) - LESS) {
            *seen = Plateau { best: Some(loss.to_bits()), waited: 0, ..seen.clone() };
            return;
        }
        seen.waited += 1;
        if f64::from(seen.waited) >= self.settings.get("patience") {
            (seen.waited, seen.lowered) = (0, seen.lowered + 1);
        }
    }

    /// The share of the learning rate that step `step` of `steps`, from 0, takes.
    pub fn share(&self, step: u64, steps: u64) -> f64 {
        let warmup = self.settings.get("warmup") * steps as f64;
        let done = step as f64;
        if done < warmup {
            let rise = (done + 1.0) / warmup.max(1.0);
            let initial = self.settings.get("initial");
            return match self.row.name {
                "one_cycle" => initial + (1.0 - initial) * 0.5 * (1.0 - (PI * done / warmup).cos()),
                _ => rise.min(1.0),
            };
        }
        (self.row.share)((done - warmup) / (steps as f64 - warmup).max(1.0), &self.settings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(name: &str, settings: &[(&str, f64)], steps: u64) -> Vec<f64> {
        let given = settings.iter().map(|&(n, v)| (n.to_owned(), v)).collect();
        let schedule = Schedule::new(name, &given).unwrap();
        (0..steps).map(|step| schedule.share(step, steps)).collect()
    }

    fn near(found: &[f64], expected: &[f64]) {
        let close = found.iter().zip(expected).all(|(f, e)| (f - e).abs() < 1e-9);
        assert!(close && found.len() == expected.len(), "{found:?} instead of {expected:?}");
    }

    #[test]
    fn rates_follow_their_curves() {
        near(&shares("constant", &[], 3), &[1.0; 3]);
        near(&shares("constant", &[("warmup", 0.5)], 4), &[0.5, 1.0, 1.0, 1.0]);
        near(&shares("step", &[], 6), &[1.0, 1.0, 0.1, 0.1, 0.01, 0.01]);
        let half = std::f64::consts::FRAC_1_SQRT_2 / 2.0;
        near(&shares("cosine", &[], 4), &[1.0, 0.5 + half, 0.5, 0.5 - half]);
        near(&shares("cosine", &[("final", 0.5)], 4), &[1.0, 0.75 + half / 2.0, 0.75, 0.75 - half / 2.0]);
        let cycle = shares("one_cycle", &[("warmup", 0.5), ("initial", 0.2), ("final", 0.0)], 8);
        near(&cycle[..5], &[0.2, 0.2 + 0.8 * (0.5 - half), 0.6, 0.2 + 0.8 * (0.5 + half), 1.0]);
        near(&cycle[4..], &[1.0, 0.5 + half, 0.5, 0.5 - half]);
    }

    /// Losses 5 4 | 4 4 | 3 | 3 3 | 3 3 with patience 2: lowered behind the epochs that `|` ends after a wait.
    #[test]
    fn a_plateau_lowers_the_rate() {
        let given = [("factor", 0.5), ("patience", 2.0), ("min_rate", 0.2)];
        let given = given.iter().map(|&(n, v)| (n.to_owned(), v)).collect();
        let schedule = Schedule::new("plateau", &given).unwrap();
        let mut seen = Plateau::default();
        let mut rates = Vec::new();
        for loss in [f64::NAN, 5.0, 4.0, 4.0, 4.0 - 0.5 * LESS, 3.0, f64::NAN, 3.0, 3.0, 3.0, 3.0, 3.0] {
            schedule.watch(loss, &mut seen);
            rates.push(schedule.rate(1.0, 7, 10, &seen));
        }
        near(&rates, &[1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.25, 0.25, 0.2, 0.2, 0.2]);
        let constant = Schedule::new("constant", &BTreeMap::new()).unwrap();
        let mut seen = Plateau::default();
        [1.0; 30].into_iter().for_each(|loss| constant.watch(loss, &mut seen));
        assert_eq!(seen, Plateau::default());
    }
}
