//! Dividing a dataset into parts that see different samples.

use crate::random::mix;
use crate::{DataError, ErrorKind};

/// The fewest samples that can be divided.
const MIN_SAMPLES: usize = 10;

/// How a dataset is divided.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SplitOptions {
    /// Chooses one of many divisions.
    pub seed: u64,
    /// Part of the samples for calibration, 0.1 by default.
    pub calibration: f64,
    /// The most samples for calibration, 1024 by default: more do not change the ranges.
    pub max_calibration: usize,
    /// Part of the samples for decisions, 0.4 by default. The rest is for the report.
    pub decision: f64,
}

impl Default for SplitOptions {
    fn default() -> Self {
        SplitOptions { seed: 0, calibration: 0.1, max_calibration: 1024, decision: 0.4 }
    }
}

/// Disjoint parts that together hold every index once, each in ascending order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// Samples that value ranges are observed on.
    pub calibration: Vec<usize>,
    /// Samples that decisions are measured on.
    pub decision: Vec<usize>,
    /// Samples that no decision saw: reported figures come from these.
    pub report: Vec<usize>,
}

/// Divides `len` samples. The parts depend only on the arguments, on no machine or library version.
///
/// With labels, every part holds each class in proportion: samples of a class are put in random order, spread
/// evenly over the unit interval, and the parts are consecutive stretches of it (systematic stratified
/// sampling), so that a class deviates by about one sample. The order is by SplitMix64 (Steele, Lea and Flood,
/// "Fast splittable pseudorandom number generators", 2014) of seed and index.
///
/// # Errors
/// [`ErrorKind::Empty`] below 10 samples or when a part would be empty; [`ErrorKind::Usage`] when the
/// fractions do not leave room for three parts; [`ErrorKind::Label`] unless there are `len` labels.
pub fn split(len: usize, labels: Option<&[usize]>, options: &SplitOptions) -> Result<Split, DataError> {
    let SplitOptions { seed, calibration, max_calibration, decision } = *options;
    let error =
        |kind, what: String, hint: &str| Err(DataError::new(kind, what, "the division of the data", hint));
    let positive = calibration > 0.0 && decision > 0.0 && max_calibration > 0;
    if !positive || calibration + decision >= 1.0 {
        let what = format!("the parts {calibration} and {decision} leave no room for a third");
        return error(ErrorKind::Usage, what, "give positive fractions that sum to less than 1");
    }
    if len < MIN_SAMPLES {
        let what = format!("{len} samples are too few to calibrate, decide and report on different ones");
        return error(ErrorKind::Empty, what, "give at least 10 samples, better 1000 or more");
    }
    if let Some(found) = labels.map(<[usize]>::len).filter(|&found| found != len) {
        return error(
            ErrorKind::Label,
            format!("{len} samples have {found} labels"),
            "give one label a sample",
        );
    }

    let part = |fraction: f64| ((len as f64 * fraction).round() as usize).max(1);
    let calibrate = part(calibration).min(max_calibration);
    let decide = part(decision);
    if calibrate + decide >= len {
        return error(
            ErrorKind::Empty,
            format!("of {len} samples none is left to report on"),
            "give more samples",
        );
    }
    let order = spread(len, labels, seed);
    let sorted = |part: &[usize]| {
        let mut part = part.to_vec();
        part.sort_unstable();
        part
    };
    let (first, rest) = order.split_at(calibrate);
    let (second, third) = rest.split_at(decide);
    Ok(Split { calibration: sorted(first), decision: sorted(second), report: sorted(third) })
}

/// All indices in an order of which every stretch holds each class in proportion.
fn spread(len: usize, labels: Option<&[usize]>, seed: u64) -> Vec<usize> {
    let class = |index: usize| labels.map_or(0, |l| l[index]);
    let random = |index: usize| mix(mix(seed) ^ index as u64);
    let mut by_class: Vec<usize> = (0..len).collect();
    by_class.sort_unstable_by_key(|&i| (class(i), random(i), i));

    // Sample `rank` of a class of `count` lies at (2 rank + 1) / (2 count); fractions are compared exactly.
    let mut placed = Vec::with_capacity(len);
    for group in by_class.chunk_by(|&a, &b| class(a) == class(b)) {
        let count = group.len() as u128;
        placed.extend(group.iter().enumerate().map(|(rank, &i)| (2 * rank as u128 + 1, count, random(i), i)));
    }
    placed.sort_unstable_by(|a, b| (a.0 * b.1).cmp(&(b.0 * a.1)).then((a.2, a.3).cmp(&(b.2, b.3))));
    placed.into_iter().map(|p| p.3).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_disjoint_complete_and_stratified() {
        let mut rng = fastrand::Rng::with_seed(3);
        for len in [10, 11, 37, 1000, 5000] {
            let labels: Vec<usize> = (0..len).map(|_| rng.usize(0..5) * rng.usize(0..2)).collect();
            let parts = split(len, Some(&labels), &SplitOptions::default()).unwrap();
            let mut all = [parts.calibration.clone(), parts.decision.clone(), parts.report.clone()].concat();
            all.sort_unstable();
            assert_eq!(all, (0..len).collect::<Vec<_>>());
            assert_eq!(parts.calibration.len(), (len as f64 * 0.1).round() as usize);
            for part in [&parts.calibration, &parts.decision, &parts.report] {
                assert!(!part.is_empty());
                for class in 0..5 {
                    let of =
                        |indices: &[usize]| indices.iter().filter(|&&i| labels[i] == class).count() as f64;
                    let expected = of(&all) * part.len() as f64 / len as f64;
                    assert!((of(part) - expected).abs() <= 2.0, "{len} {class}");
                }
            }
        }
    }

    #[test]
    fn the_division_never_changes() {
        let labels: Vec<usize> = (0..20).map(|i| i % 2).collect();
        // From an independent implementation with unbounded integers.
        let parts = split(20, Some(&labels), &SplitOptions::default()).unwrap();
        assert_eq!(parts.calibration, [1, 18]);
        assert_eq!(parts.decision, [4, 5, 6, 7, 11, 12, 13, 16]);
        let other = split(20, Some(&labels), &SplitOptions { seed: 1, ..SplitOptions::default() }).unwrap();
        assert_ne!(parts, other);
        assert_eq!(split(20_000, None, &SplitOptions::default()).unwrap().calibration.len(), 1024);
    }

    #[test]
    fn too_few_samples_and_bad_fractions_are_errors() {
        let kind = |len, options: SplitOptions| split(len, None, &options).unwrap_err().kind;
        assert_eq!(kind(9, SplitOptions::default()), ErrorKind::Empty);
        assert_eq!(kind(0, SplitOptions::default()), ErrorKind::Empty);
        assert_eq!(kind(100, SplitOptions { decision: 0.9, ..SplitOptions::default() }), ErrorKind::Usage);
        assert_eq!(
            kind(100, SplitOptions { decision: f64::NAN, ..SplitOptions::default() }),
            ErrorKind::Usage
        );
        assert_eq!(split(10, Some(&[0; 9]), &SplitOptions::default()).unwrap_err().kind, ErrorKind::Label);
    }
}
