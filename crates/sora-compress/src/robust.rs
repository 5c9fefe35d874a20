//! How networks do on corrupted samples, and a budget for what a compression loses there.

use serde::Serialize;
use sora_data::{Corruption, CorruptionRow, Dataset, Drop, Interval, Preprocess, SEVERITIES};
use sora_exec::{Options as ExecOptions, Session};
use sora_ir::Graph;

use crate::feed::Feed;
use crate::{CompressError, Progress, measure};

/// The most corrupted samples that a candidate is judged on, all corruptions and severities together.
const JUDGED: usize = 6000;

/// The 0.975 quantile of the standard normal distribution.
const Z: f64 = 1.959_963_984_540_054;

/// What to measure on corrupted samples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Robust {
    /// Samples for each corruption and severity.
    pub samples: usize,
    /// How far the mean accuracy over all corruptions and severities may fall, as a fraction. Candidates are judged on corrupted samples for
    /// decisions: at most 6000 of them, as many for each corruption and severity.
    pub max_drop: Option<f64>,
}

impl Default for Robust {
    /// 500 samples, no budget.
    fn default() -> Self {
        Robust { samples: 500, max_drop: None }
    }
}

/// The accuracy of a network, or of a compressed one beside its original, on corrupted samples.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Robustness {
    /// Samples of each corruption and severity.
    pub samples: usize,
    /// By corruption.
    pub corruptions: Vec<Corrupted>,
    /// The mean over all corruptions and severities.
    pub accuracy: f64,
    /// The same of the original.
    pub original: Option<f64>,
    /// How much less it is than the original's.
    pub drop: Option<f64>,
    /// 95 % interval of the drop, from how it differs between samples: what one sample gives under all corruptions counts as one number.
    pub drop_ci95: Option<Interval>,
    /// The budget of the drop.
    pub max_drop: Option<f64>,
}

impl Robustness {
    /// Whether the drop is within its budget, where there is one.
    pub fn met(&self) -> bool {
        let both = self.drop.zip(self.max_drop);
        both.is_none_or(|(drop, most)| drop <= most)
    }
}

/// The accuracy under one corruption, by severity from 1 to 5. Where the data has no labels, what the original says of the sample before it is
/// corrupted stands in for them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Corrupted {
    /// The corruption, a row of [`sora_data::CORRUPTIONS`].
    pub name: &'static str,
    /// The network's accuracy.
    pub accuracy: Vec<f64>,
    /// The original's.
    pub original: Option<Vec<f64>>,
}

/// Measures `graph` on corrupted samples, `samples` of them for each corruption and severity.
///
/// # Errors
/// As [`evaluate`](crate::evaluate), and [`CompressError::Option`] when there are no corruptions for the data.
pub fn robustness(
    graph: &Graph,
    data: &Dataset,
    preprocess: &Preprocess,
    robust: &Robust,
    options: &ExecOptions,
    progress: &dyn Progress,
) -> Result<Robustness, CompressError> {
    let Some(labels) = data.labels() else {
        return Err(CompressError::Unlabelled { place: data.place().to_owned() });
    };
    let session = Session::new(graph.clone(), options.clone())?;
    let every: Vec<usize> = (0..data.len()).collect();
    let grid = Grid::new(graph, data, preprocess, &every, robust.samples, 0)?;
    let batch = measure::EVALUATION_BATCH;
    grid.stage(progress, 1);
    let [of] = grid.correct([&session], labels, batch, progress)?;
    Ok(grid.describe(&of, None, robust))
}

/// Samples under every corruption and severity.
pub(crate) struct Grid {
    rows: Vec<&'static CorruptionRow>,
    /// By corruption, then by severity.
    feeds: Vec<Feed>,
    samples: Vec<usize>,
}

/// Whether each sample is right, by corruption and severity.
type Correct = Vec<Vec<bool>>;

impl Grid {
    /// Up to `most` of `samples` of the data, evenly taken.
    pub(crate) fn new(
        graph: &Graph,
        data: &Dataset,
        preprocess: &Preprocess,
        samples: &[usize],
        most: usize,
        seed: u64,
    ) -> Result<Self, CompressError> {
        let rows = data.corruptions();
        if rows.is_empty() || most == 0 || samples.is_empty() {
            let what = format!(
                "nothing can be measured on corrupted samples, which are {}: pictures of 8 bits, sounds and texts can be corrupted",
                data.sample_kind()
            );
            return Err(CompressError::Option { what });
        }
        let cells =
            rows.iter().flat_map(|row| (1..=SEVERITIES).map(|level| Corruption::new(row, level, seed)));
        let feed = |corruption| Feed::new(graph, &data.corrupted(corruption)?, preprocess);
        let feeds = cells.map(feed).collect::<Result<_, _>>()?;
        let count = samples.len().min(most);
        let samples = (0..count).map(|i| samples[i * samples.len() / count]).collect();
        Ok(Grid { rows, feeds, samples })
    }

    fn stage(&self, progress: &dyn Progress, sessions: usize) {
        let all = self.feeds.len() * self.samples.len() * sessions;
        progress.stage("Measuring on corrupted samples", Some(all as u64));
    }

    /// What each of the sessions, which take the same inputs, does with the samples.
    fn correct<const N: usize>(
        &self,
        sessions: [&Session; N],
        labels: &[usize],
        batch: usize,
        progress: &dyn Progress,
    ) -> Result<[Correct; N], CompressError> {
        let mut all = [const { Correct::new() }; N];
        for feed in &self.feeds {
            let found = measure::correct(sessions, feed, &self.samples, labels, batch, progress)?;
            all.iter_mut().zip(found).for_each(|(all, found)| all.push(found));
        }
        Ok(all)
    }

    /// The accuracy of a compressed network beside that of its original.
    pub(crate) fn compare(
        &self,
        [original, after]: [&Session; 2],
        labels: &[usize],
        robust: &Robust,
        batch: usize,
        progress: &dyn Progress,
    ) -> Result<Robustness, CompressError> {
        self.stage(progress, 2);
        let [before, after] = self.correct([original, after], labels, batch, progress)?;
        Ok(self.describe(&after, Some(&before), robust))
    }

    fn describe(&self, of: &Correct, before: Option<&Correct>, robust: &Robust) -> Robustness {
        let shares = |cells: &Correct| -> Vec<f64> {
            let share =
                |cell: &Vec<bool>| cell.iter().filter(|&&right| right).count() as f64 / cell.len() as f64;
            cells.iter().map(share).collect()
        };
        let mean = |shares: &[f64]| shares.iter().sum::<f64>() / shares.len() as f64;
        let (own, original) = (shares(of), before.map(shares));
        let drop = before.map(|before| mean_drop(before, of));
        let row = |(at, row): (usize, &&'static CorruptionRow)| {
            let levels = |shares: &[f64]| shares[at * SEVERITIES..][..SEVERITIES].to_vec();
            Corrupted { name: row.name, accuracy: levels(&own), original: original.as_deref().map(levels) }
        };
        Robustness {
            samples: self.samples.len(),
            corruptions: self.rows.iter().enumerate().map(row).collect(),
            accuracy: mean(&own),
            original: original.as_deref().map(mean),
            drop: drop.map(|(drop, _)| drop),
            drop_ci95: drop.map(|(drop, error)| [drop - Z * error, drop + Z * error]),
            max_drop: robust.max_drop,
        }
    }
}

/// The mean drop over all corruptions and severities, and its standard error over samples.
fn mean_drop(before: &Correct, after: &Correct) -> (f64, f64) {
    let (cells, samples) = (before.len() as f64, before.first().map_or(0, Vec::len));
    let right = |cells: &Correct, sample: usize| cells.iter().filter(|cell| cell[sample]).count() as f64;
    let of = |sample: usize| (right(before, sample) - right(after, sample)) / cells;
    let drops: Vec<f64> = (0..samples).map(of).collect();
    let n = samples as f64;
    let mean = drops.iter().sum::<f64>() / n;
    let squares: f64 = drops.iter().map(|drop| (drop - mean) * (drop - mean)).sum();
    (mean, if samples > 1 { (squares / (n - 1.0) / n).sqrt() } else { 0.0 })
}

/// Judges candidates on corrupted samples for decisions.
pub(crate) struct Judge<'a> {
    grid: Grid,
    labels: &'a [usize],
    before: Correct,
    batch: usize,
    max_drop: f64,
}

impl<'a> Judge<'a> {
    /// `graph` gives the inputs of `original`, as of all candidates. `None` where robustness has no budget.
    pub(crate) fn new(
        robust: Option<&Robust>,
        graph: &Graph,
        original: &Session,
        (data, preprocess): (&Dataset, &Preprocess),
        (decision, labels): (&[usize], &'a [usize]),
        (seed, batch): (u64, usize),
        progress: &dyn Progress,
    ) -> Result<Option<Self>, CompressError> {
        let Some((max_drop, robust)) = robust.and_then(|robust| Some((robust.max_drop?, robust))) else {
            return Ok(None);
        };
        let cells = (data.corruptions().len() * SEVERITIES).max(1);
        let most = robust.samples.min((JUDGED / cells).max(1));
        let grid = Grid::new(graph, data, preprocess, decision, most, seed)?;
        grid.stage(progress, 1);
        let [before] = grid.correct([original], labels, batch, progress)?;
        Ok(Some(Judge { grid, labels, before, batch, max_drop }))
    }

    /// The drop that counts, alone and with its standard error: `drop`, or as much beyond `budget` as the drop on corrupted samples is beyond its
    /// own, where that is more.
    fn worst(
        &self,
        drop: &Drop,
        budget: f64,
        session: &Session,
        progress: &dyn Progress,
    ) -> Result<[f64; 2], CompressError> {
        let [after] = self.grid.correct([session], self.labels, self.batch, progress)?;
        let (corrupted, error) = mean_drop(&self.before, &after);
        let beyond = corrupted - self.max_drop + budget;
        Ok([drop.drop.max(beyond), drop.likely().max(beyond + error)])
    }
}

/// The drop that counts and, beside it, with its standard error: that of the samples as they are, or what [`Judge::worst`] says.
pub(crate) fn counting(
    judge: Option<&Judge>,
    drop: &Drop,
    budget: f64,
    session: &Session,
    progress: &dyn Progress,
) -> Result<[f64; 2], CompressError> {
    match judge {
        Some(judge) => judge.worst(drop, budget, session, progress),
        None => Ok([drop.drop, drop.likely()]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mean_drops_have_the_error_of_their_samples() {
        // Four samples under two corruptions; the first loses both, the second gains one.
        let before = vec![vec![true, false, true, false], vec![true, true, true, false]];
        let after = vec![vec![false, true, true, false], vec![false, true, true, false]];
        let (drop, error) = mean_drop(&before, &after);
        assert!((drop - 0.125).abs() < 1e-12);
        // Drops of 1, -1/2, 0 and 0.
        let squares = 0.875f64.powi(2) + 0.625f64.powi(2) + 2.0 * 0.125f64.powi(2);
        assert!((error - (squares / 12.0).sqrt()).abs() < 1e-12);
        assert_eq!(mean_drop(&before, &before), (0.0, 0.0));
    }
}
