//! How sure a share or a difference is, from a number of samples.

use serde::{Deserialize, Serialize};

use crate::{DataError, ErrorKind};

/// The 0.975 quantile of the standard normal distribution.
const Z: f64 = 1.959_963_984_540_054;

/// A 95 % confidence interval: lower and upper end.
pub type Interval = [f64; 2];

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

impl Drop {
    /// The drop and its standard error together: five of six times it is no more on samples that were not looked at.
    pub fn likely(&self) -> f64 {
        self.drop + (self.ci95[1] - self.ci95[0]) / (2.0 * Z)
    }
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
