//! What `--robust` adds: a table of accuracy by corruption and severity.

use sora::compress::{Corrupted, Robust, Robustness};
use sora::data::SEVERITIES;
use sora::table;

use super::args;

/// What to measure, where it is asked for.
pub(super) fn wanted(args: &args::Robust, max_drop: Option<f64>) -> Option<Robust> {
    let samples = usize::try_from(args.robust_samples).unwrap_or(usize::MAX);
    args.robust.then_some(Robust { samples, max_drop })
}

/// The table, and below it the mean. Two figures are the original's and the compressed network's.
pub(super) fn text(robustness: &Robustness) -> String {
    let percent = |share: f64| format!("{:.1}", 100.0 * share);
    let both = |own: f64, original: Option<f64>| match original {
        Some(original) => format!("{} → {}", percent(original), percent(own)),
        None => percent(own),
    };
    let mean = |shares: &[f64]| shares.iter().sum::<f64>() / shares.len().max(1) as f64;
    let row = |corrupted: &Corrupted| {
        let original = corrupted.original.as_deref();
        let cell = |level: usize| both(corrupted.accuracy[level], original.map(|shares| shares[level]));
        let mut cells = vec![corrupted.name.replace('_', " ")];
        cells.extend((0..corrupted.accuracy.len()).map(cell));
        cells.push(both(mean(&corrupted.accuracy), original.map(mean)));
        cells
    };
    let rows: Vec<Vec<String>> = robustness.corruptions.iter().map(row).collect();
    let levels: Vec<String> = (1..=SEVERITIES).map(|level| level.to_string()).collect();
    let headings: Vec<&str> = ["% right at severity"]
        .into_iter()
        .chain(levels.iter().map(String::as_str))
        .chain(["mean"])
        .collect();
    let mut text = table(&headings, &rows);
    text += &format!(
        "mean {} % on {} samples of each corruption and severity",
        both(robustness.accuracy, robustness.original),
        robustness.samples
    );
    if let (Some(drop), Some([low, high])) = (robustness.drop, robustness.drop_ci95) {
        let [change, low, high] = [drop, high, low].map(|drop| 0.0 - 100.0 * drop);
        text += &format!(", {change:+.2} points (95 % interval {low:+.2} to {high:+.2})");
    }
    if let Some(most) = robustness.max_drop {
        let verdict = if robustness.met() { "met" } else { "NOT met" };
        text += &format!("\nbudget of {:.2} points on corrupted samples: {verdict}", 100.0 * most);
    }
    text + "\n"
}
