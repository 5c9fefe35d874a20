//! How well a classifier does, with intervals.

use serde::{Deserialize, Serialize};
use sora_tensor::Tensor;

use crate::{DataError, ErrorKind};

/// The 0.975 quantile of the standard normal distribution.
const Z: f64 = 1.959_963_984_540_054;
const TOP: usize = 5;

/// A 95 % confidence interval: lower and upper end.
pub type Interval = [f64; 2];

/// Counts right and wrong predictions of classes, batch by batch.
#[derive(Clone, Debug)]
pub struct Classification {
    correct: Vec<bool>,
    top5: usize,
    per_class: Vec<PerClass>,
}

/// The samples of one class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PerClass {
    /// Samples of this class that were predicted right.
    pub correct: usize,
    /// Samples of this class.
    pub total: usize,
}

/// What a [`Classification`] found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClassificationSummary {
    /// Number of samples.
    pub samples: usize,
    /// Part of the samples whose highest score is the label's.
    pub accuracy: f64,
    /// Wilson interval of `accuracy`.
    pub accuracy_ci95: Interval,
    /// Part of the samples whose label is among the five highest scores; only beyond five classes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top5: Option<f64>,
    /// Wilson interval of `top5`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top5_ci95: Option<Interval>,
    /// Counts by class.
    pub per_class: Vec<PerClass>,
}

impl Classification {
    /// A count over `classes` classes.
    pub fn new(classes: usize) -> Self {
        Classification { correct: Vec::new(), top5: 0, per_class: vec![PerClass::default(); classes] }
    }

    /// Adds a batch: scores (logits or probabilities) `[samples, classes]`, trailing axes of extent 1 allowed.
    /// Of equal scores the first class wins; a NaN among a sample's scores counts as wrong.
    ///
    /// # Errors
    /// [`ErrorKind::Mismatch`] when the scores are of another shape, [`ErrorKind::Label`] when a label is out of
    /// range. Nothing is added then.
    pub fn add(&mut self, scores: &Tensor, labels: &[usize]) -> Result<(), DataError> {
        let classes = self.per_class.len();
        let shape = scores.shape();
        let fits = shape.first() == Some(&labels.len())
            && shape.get(1..).map(|s| s.iter().product()) == Some(classes);
        if !fits || classes < 2 {
            let (n, hint) = (labels.len(), "classification needs one score for each class, at least two");
            let what =
                format!("the model's output has shape {shape:?}, for {n} samples of {classes} classes");
            return Err(DataError::new(ErrorKind::Mismatch, what, "the model's output", hint));
        }
        if let Some(label) = labels.iter().find(|&&l| l >= classes) {
            let what = format!("the label {label} is out of range: there are {classes} classes");
            let hint = "labels count from 0; give the data that the model was trained for";
            return Err(DataError::new(ErrorKind::Label, what, "the labels", hint));
        }
        let values = scores.to_f32s();
        for (row, &label) in values.chunks_exact(classes).zip(labels) {
            let rank = rank(row, label);
            let correct = rank == 0;
            self.top5 += usize::from(rank < TOP);
            self.per_class[label].total += 1;
            self.per_class[label].correct += usize::from(correct);
            self.correct.push(correct);
        }
        Ok(())
    }

    /// Whether each sample was predicted right, in the order added: for [`paired_drop`].
    pub fn correct(&self) -> &[bool] {
        &self.correct
    }

    /// The number of samples added.
    pub fn samples(&self) -> usize {
        self.correct.len()
    }

    /// Part of the samples predicted right; zero without samples.
    pub fn accuracy(&self) -> f64 {
        let correct: usize = self.per_class.iter().map(|c| c.correct).sum();
        correct as f64 / self.samples().max(1) as f64
    }

    /// Everything found so far.
    pub fn summary(&self) -> ClassificationSummary {
        let samples = self.samples();
        let correct = self.per_class.iter().map(|c| c.correct).sum();
        let many = self.per_class.len() > TOP;
        ClassificationSummary {
            samples,
            accuracy: self.accuracy(),
            accuracy_ci95: wilson(correct, samples),
            top5: many.then(|| self.top5 as f64 / samples.max(1) as f64),
            top5_ci95: many.then(|| wilson(self.top5, samples)),
            per_class: self.per_class.clone(),
        }
    }
}

/// The number of classes that come before `label`; the last place when a score is NaN.
fn rank(scores: &[f32], label: usize) -> usize {
    if scores.iter().any(|s| s.is_nan()) {
        return usize::MAX;
    }
    let own = scores[label];
    scores.iter().enumerate().filter(|&(i, &s)| s > own || (s == own && i < label)).count()
}

/// The 95 % score interval of a proportion of `hits` among `samples`; `[0, 1]` without samples.
///
/// Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22, 1927.
pub fn wilson(hits: usize, samples: usize) -> Interval {
    if samples == 0 {
        return [0.0, 1.0];
    }
    let n = samples as f64;
    let p = hits as f64 / n;
    let center = p + Z * Z / (2.0 * n);
    let margin = Z * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
    let whole = 1.0 + Z * Z / n;
    let low = if hits == 0 { 0.0 } else { (center - margin) / whole };
    let high = if hits == samples { 1.0 } else { (center + margin) / whole };
    [low, high]
}

/// How much accuracy one model loses against another on the same samples.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Drop {
    /// Accuracy before less accuracy after; negative when it rose.
    pub drop: f64,
    /// 95 % interval of the drop.
    pub ci95: Interval,
    /// Exact two-sided McNemar test: how likely a difference at least this large is when both are equally good.
    pub p_value: f64,
    /// Samples that were right before and are wrong after.
    pub broken: usize,
    /// Samples that were wrong before and are right after.
    pub fixed: usize,
}

/// The drop from `before` to `after`, which say for the same samples whether they were predicted right.
///
/// Interval: adjusted Wald for paired proportions (D. G. Bonett and R. M. Price, "Adjusted Wald confidence
/// interval for a difference of binomial proportions based on paired data", J. Educ. Behav. Stat. 37, 2012);
/// it has a width even when no prediction changed. Test: Q. McNemar, Psychometrika 12, 1947, in its exact form.
///
/// # Errors
/// [`ErrorKind::Mismatch`] when the numbers of samples differ, [`ErrorKind::Empty`] without samples.
pub fn paired_drop(before: &[bool], after: &[bool]) -> Result<Drop, DataError> {
    let error = |kind, what: &str| {
        Err(DataError::new(kind, what, "the comparison of two models", "measure both on the same samples"))
    };
    if before.len() != after.len() {
        return error(ErrorKind::Mismatch, "the models were measured on different samples");
    }
    if before.is_empty() {
        return error(ErrorKind::Empty, "there are no samples to compare");
    }
    let count =
        |was: bool, is: bool| before.iter().zip(after).filter(|&(&b, &a)| b == was && a == is).count();
    let (broken, fixed) = (count(true, false), count(false, true));
    let n = before.len() as f64;
    let adjusted = |changed: usize| (changed as f64 + 1.0) / (n + 2.0);
    let (lost, won) = (adjusted(broken), adjusted(fixed));
    let center = lost - won;
    let margin = Z * ((lost + won - center * center) / (n + 2.0)).sqrt();
    Ok(Drop {
        drop: (broken as f64 - fixed as f64) / n,
        ci95: [(center - margin).max(-1.0), (center + margin).min(1.0)],
        p_value: mcnemar(broken, fixed),
        broken,
        fixed,
    })
}

/// Two-sided binomial test of `a` against `b` with equal chances.
fn mcnemar(a: usize, b: usize) -> f64 {
    let n = a + b;
    // The logarithm of the number of subsets of size k over 2^n, from k = 0 up.
    let mut log_term = -(n as f64) * std::f64::consts::LN_2;
    let mut tail = 0.0;
    for k in 0..=a.min(b) {
        tail += log_term.exp();
        log_term += ((n - k) as f64 / (k + 1) as f64).ln();
    }
    (2.0 * tail).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: f64, expected: f64, within: f64) {
        assert!((found - expected).abs() <= within, "{found} is not {expected}");
    }

    #[test]
    fn wilson_intervals_are_the_published_ones() {
        // R. G. Newcombe, "Two-sided confidence intervals for the single proportion", Stat. Med. 17, 1998, table I.
        for (hits, samples, low, high) in [
            (81, 263, 0.2553, 0.3662),
            (15, 148, 0.0624, 0.1605),
            (0, 20, 0.0, 0.1611),
            (1, 29, 0.0061, 0.1718),
        ] {
            let [a, b] = wilson(hits, samples);
            close(a, low, 5e-5);
            close(b, high, 5e-5);
            let [c, d] = wilson(samples - hits, samples);
            close(c, 1.0 - b, 1e-12);
            close(d, 1.0 - a, 1e-12);
        }
        assert_eq!(wilson(0, 0), [0.0, 1.0]);
    }

    #[test]
    fn accuracy_and_top5_count_ranks() {
        let mut rng = fastrand::Rng::with_seed(5);
        let (n, classes) = (200, 8);
        let scores: Vec<f32> = (0..n * classes).map(|_| rng.u32(0..6) as f32).collect();
        let labels: Vec<usize> = (0..n).map(|_| rng.usize(0..classes)).collect();
        let (mut top1, mut top5) = (0, 0);
        for (row, &label) in scores.chunks(classes).zip(&labels) {
            let mut order: Vec<usize> = (0..classes).collect();
            order.sort_by(|&a, &b| row[b].partial_cmp(&row[a]).unwrap());
            top1 += usize::from(order[0] == label);
            top5 += usize::from(order[..5].contains(&label));
        }
        let mut count = Classification::new(classes);
        let half = n / 2;
        let part = |rows: std::ops::Range<usize>| {
            let shape = [rows.len(), classes, 1, 1];
            Tensor::from_slice(&shape, &scores[rows.start * classes..rows.end * classes]).unwrap()
        };
        count.add(&part(0..half), &labels[..half]).unwrap();
        count.add(&part(half..n), &labels[half..]).unwrap();
        let summary = count.summary();
        assert_eq!((summary.samples, summary.accuracy), (n, top1 as f64 / n as f64));
        assert_eq!(summary.top5, Some(top5 as f64 / n as f64));
        assert_eq!(summary.per_class.iter().map(|c| c.total).sum::<usize>(), n);
        assert_eq!(count.correct().iter().filter(|&&c| c).count(), top1);
    }

    #[test]
    fn wrong_shapes_and_labels_are_errors_and_nan_is_wrong() {
        let mut count = Classification::new(3);
        let scores = Tensor::from_slice(&[1, 3], &[f32::NAN, 1.0, 0.0]).unwrap();
        assert_eq!(count.add(&scores, &[3]).unwrap_err().kind, ErrorKind::Label);
        assert_eq!(count.add(&scores, &[0, 1]).unwrap_err().kind, ErrorKind::Mismatch);
        count.add(&scores, &[1]).unwrap();
        assert_eq!((count.samples(), count.accuracy(), count.summary().top5), (1, 0.0, None));
    }

    #[test]
    fn paired_differences_are_signed_and_tested() {
        let bits = |broken: usize, fixed: usize, same: usize| {
            let before = [vec![true; broken], vec![false; fixed], vec![true; same]].concat();
            let after = [vec![false; broken], vec![true; fixed], vec![true; same]].concat();
            paired_drop(&before, &after).unwrap()
        };
        let none = bits(0, 0, 1000);
        assert_eq!((none.drop, none.p_value), (0.0, 1.0));
        assert!(none.ci95[0] < 0.0 && none.ci95[1] > 0.0 && none.ci95[1] < 0.01);
        let worse = bits(30, 10, 960);
        close(worse.drop, 0.02, 1e-12);
        // Twice the sum of C(40, k) for k up to 10, over 2^40, in exact arithmetic.
        close(worse.p_value, 0.0022214337732293643, 1e-12);
        // Adjusted proportions 31/1002 and 11/1002.
        let (lost, won) = (31.0 / 1002.0, 11.0 / 1002.0);
        let se = ((lost + won - (lost - won) * (lost - won)) / 1002.0_f64).sqrt();
        close(worse.ci95[0], lost - won - 1.959_964 * se, 1e-7);
        assert_eq!(bits(10, 30, 960).drop, -worse.drop);
        close(bits(5000, 5000, 10).p_value, 1.0, 1e-6);
        assert!(paired_drop(&[true], &[]).is_err() && paired_drop(&[], &[]).is_err());
    }
}
