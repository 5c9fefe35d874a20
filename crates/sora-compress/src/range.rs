//! Choosing the range that 8 bits of an activation stand for.

use serde::Serialize;

use crate::histogram::Histogram;

/// Greatest u8 level.
const LEVELS: f64 = 255.0;

/// Asymmetric u8 quantization: `real = (q - zero_point) · scale`. Zero is exact.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Affine {
    /// Real distance of two levels; positive and finite.
    pub scale: f32,
    /// The level of zero.
    pub zero_point: u8,
}

impl Affine {
    /// The quantization whose levels span `low..=high`, widened to hold zero.
    pub fn spanning(low: f64, high: f64) -> Self {
        let (low, high) = (low.min(0.0), high.max(0.0));
        let scale = ((high - low) / LEVELS) as f32;
        if scale < f32::MIN_POSITIVE || !scale.is_finite() {
            // Nothing but zeros, or values so small that f32 arithmetic on their scale loses its digits.
            return Affine { scale: if scale.is_finite() { 1.0 } else { f32::MAX / 256.0 }, zero_point: 0 };
        }
        let zero_point = (-low / f64::from(scale)).round().clamp(0.0, LEVELS);
        Affine { scale, zero_point: zero_point as u8 }
    }

    /// The nearest value that 8 bits can stand for.
    pub fn round_trip(self, value: f64) -> f64 {
        let (scale, zero) = (f64::from(self.scale), f64::from(self.zero_point));
        ((value / scale).round_ties_even().clamp(-zero, LEVELS - zero)) * scale
    }

    /// The least and greatest value that a level stands for.
    pub fn span(self) -> (f64, f64) {
        let (scale, zero) = (f64::from(self.scale), f64::from(self.zero_point));
        (-zero * scale, (LEVELS - zero) * scale)
    }
}

/// A range with the reason why it was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Choice {
    /// The quantization.
    pub affine: Affine,
    /// Name of the row of [`CANDIDATES`] that proposed it.
    pub method: &'static str,
    /// Signal to quantization noise on the histogram, in dB; infinite when nothing is lost.
    pub sqnr_db: f64,
}

/// A way to propose a range.
pub struct Candidate {
    /// Name in reports.
    pub name: &'static str,
    /// Low and high end from what was observed.
    pub range: fn(&Histogram) -> (f64, f64),
}

/// Every way to propose a range, in order of preference at equal error.
pub static CANDIDATES: &[Candidate] = &[
    Candidate { name: "min-max", range: min_max },
    Candidate { name: "percentile 99.999", range: |h| percentile(h, 0.99999) },
    Candidate { name: "percentile 99.99", range: |h| percentile(h, 0.9999) },
    Candidate { name: "percentile 99.9", range: |h| percentile(h, 0.999) },
    Candidate { name: "kl", range: least_divergence },
    Candidate { name: "mse", range: least_error },
];

/// The candidate of least squared error, clipping and rounding together, on the histogram.
pub fn choose(histogram: &Histogram) -> Choice {
    let signal = power(histogram);
    let mut best: Option<(f64, Choice)> = None;
    for candidate in CANDIDATES {
        let (low, high) = (candidate.range)(histogram);
        let affine = Affine::spanning(low, high);
        let error = squared_error(histogram, affine);
        if best.is_none_or(|(least, _)| error < least) {
            let sqnr_db = decibels(signal, error);
            best = Some((error, Choice { affine, method: candidate.name, sqnr_db }));
        }
    }
    let nothing = Choice { affine: Affine::spanning(0.0, 0.0), method: "min-max", sqnr_db: f64::INFINITY };
    best.map_or(nothing, |(_, choice)| choice)
}

/// `10 log10(signal / noise)`; infinite without noise, 0 when there is neither.
pub fn decibels(signal: f64, noise: f64) -> f64 {
    match (signal > 0.0, noise > 0.0) {
        (_, false) => f64::INFINITY,
        (false, true) => f64::NEG_INFINITY,
        (true, true) => 10.0 * (signal / noise).log10(),
    }
}

/// Points per bin at which errors are sampled: a level may be narrower than a bin when the range is clipped hard.
const POINTS: usize = 4;

/// Representative values with their weights.
fn points(histogram: &Histogram) -> impl Iterator<Item = (f64, f64)> + '_ {
    let (min, max) = histogram.extremes().map_or((0.0, 0.0), |(a, b)| (f64::from(a), f64::from(b)));
    let width = histogram.width();
    histogram.bins().flat_map(move |(edge, count)| {
        let (from, to) = (edge.max(min), (edge + width).min(max));
        let step = (to - from) / POINTS as f64;
        (0..POINTS).map(move |i| (from + step * (i as f64 + 0.5), count as f64 / POINTS as f64))
    })
}

/// Sum of squared quantization errors over everything the histogram has seen.
pub fn squared_error(histogram: &Histogram, affine: Affine) -> f64 {
    points(histogram).map(|(v, weight)| (v - affine.round_trip(v)).powi(2) * weight).sum()
}

/// Sum of squares of everything the histogram has seen.
fn power(histogram: &Histogram) -> f64 {
    points(histogram).map(|(v, weight)| v * v * weight).sum()
}

fn min_max(histogram: &Histogram) -> (f64, f64) {
    histogram.extremes().map_or((0.0, 0.0), |(min, max)| (f64::from(min), f64::from(max)))
}

/// Cuts `1 - keep` of the values off each end.
fn percentile(histogram: &Histogram, keep: f64) -> (f64, f64) {
    (histogram.quantile(1.0 - keep), histogram.quantile(keep))
}

/// The range of least [`squared_error`] among shrunken ranges: each end by coordinate descent.
fn least_error(histogram: &Histogram) -> (f64, f64) {
    const STEPS: usize = 64;
    let (min, max) = min_max(histogram);
    let (min, max) = (min.min(0.0), max.max(0.0));
    let error = |low: f64, high: f64| squared_error(histogram, Affine::spanning(low, high));
    let (mut low, mut high) = (min, max);
    let mut least = error(low, high);
    for _round in 0..3 {
        let before = least;
        for end in [1, 0] {
            // A coarse sweep of one end, then a fine one around its best.
            for (from, to) in [(0.0, 1.0), (-1.0 / STEPS as f64, 1.0 / STEPS as f64)] {
                let (center_low, center_high) = (low, high);
                for step in 0..=STEPS {
                    let at = from + (to - from) * step as f64 / STEPS as f64;
                    let (l, h) = match (end, from < 0.0) {
                        (1, false) => (low, max * at),
                        (1, true) => (low, (center_high + max * at).clamp(0.0, max)),
                        (_, false) => (min * at, high),
                        (_, true) => ((center_low + min * at).clamp(min, 0.0), high),
                    };
                    let found = error(l, h);
                    if found < least {
                        (least, low, high) = (found, l, h);
                    }
                }
            }
        }
        if least >= before {
            break;
        }
    }
    (low, high)
}

/// The range whose quantized distribution diverges least from the observed one.
/// Source: S. Migacz, 8-bit inference with TensorRT, GTC 2017, here over both ends at once.
fn least_divergence(histogram: &Histogram) -> (f64, f64) {
    const STEPS: usize = 48;
    const SMALLEST: f64 = 0.1;
    let (min, max) = min_max(histogram);
    let mut best = (f64::INFINITY, (min, max));
    for step in 0..=STEPS {
        let keep = 1.0 - (1.0 - SMALLEST) * step as f64 / STEPS as f64;
        let range = (min * keep, max * keep);
        let divergence = divergence(histogram, range);
        if divergence < best.0 {
            best = (divergence, range);
        }
    }
    best.1
}

/// Kullback-Leibler divergence of the distribution after clipping to `range` and quantizing, where each level
/// spreads its mass over the occupied bins that it stands for, from the distribution after clipping.
fn divergence(histogram: &Histogram, (low, high): (f64, f64)) -> f64 {
    let affine = Affine::spanning(low, high);
    let (low, high) = affine.span();
    let (scale, half) = (f64::from(affine.scale), histogram.width() / 2.0);
    // Per level: mass within the range, and the number of occupied bins. Per bin: its level.
    let mut levels = vec![(0.0, 0.0); 256];
    let mut bins: Vec<(usize, f64, f64)> = Vec::new();
    for (edge, count) in histogram.bins() {
        let value = edge + half;
        let level = ((value.clamp(low, high) - low) / scale).round().clamp(0.0, LEVELS) as usize;
        let count = count as f64;
        if value < low || value > high {
            // Outliers pile up on the outermost bin in the reference, but not in what is quantized.
            match bins.last_mut() {
                Some((last, reference, _)) if *last == level => *reference += count,
                _ => bins.push((level, count, 0.0)),
            }
        } else {
            levels[level].0 += count;
            levels[level].1 += 1.0;
            bins.push((level, count, 1.0));
        }
    }
    let reference: f64 = bins.iter().map(|b| b.1).sum();
    let kept: f64 = levels.iter().map(|l| l.0).sum();
    if reference == 0.0 || kept == 0.0 {
        return f64::INFINITY;
    }
    let floor = 1e-9;
    let term = |&(level, count, inside): &(usize, f64, f64)| {
        let (mass, occupied) = levels[level];
        let p = count / reference;
        let q = if inside > 0.0 && occupied > 0.0 { mass / occupied / kept } else { 0.0 };
        p * (p / q.max(floor)).ln()
    };
    bins.iter().map(term).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    fn sample(random: &mut Random, kind: usize) -> Vec<f32> {
        let scale = f64::exp2(random.uniform(-12.0, 12.0));
        let mut draw = |_| -> f32 {
            let v = match kind {
                0 => random.normal(),
                1 => random.normal().max(0.0),
                2 => random.uniform(-0.2, 1.0),
                // Heavy tails.
                3 => random.normal() * (1.5 * random.normal()).exp(),
                // One value in a thousand is an outlier.
                _ => random.normal() * if random.below(1000) == 0 { 60.0 } else { 1.0 },
            };
            (v * scale) as f32
        };
        (0..8000).map(&mut draw).collect()
    }

    fn histogram(values: &[f32]) -> Histogram {
        let mut histogram = Histogram::new();
        histogram.add(values);
        histogram
    }

    #[test]
    fn zero_is_exact_and_ends_are_near() {
        let mut random = Random::new(7);
        for _ in 0..2000 {
            let scale = f64::exp2(random.uniform(-100.0, 100.0));
            let (a, b) = (random.uniform(-1.0, 1.0) * scale, random.uniform(-1.0, 1.0) * scale);
            let affine = Affine::spanning(a.min(b), a.max(b));
            assert_eq!(affine.round_trip(0.0), 0.0);
            let step = f64::from(affine.scale);
            for v in [a, b] {
                assert!((affine.round_trip(v) - v).abs() <= step * 1.01, "{v} → {}", affine.round_trip(v));
            }
        }
        for (low, high) in [(0.0, 0.0), (0.0, 1e-45), (f64::MIN, f64::MAX), (5.0, 5.0), (-5.0, -5.0)] {
            let affine = Affine::spanning(low, high);
            assert!(affine.scale > 0.0 && affine.scale.is_finite());
            assert_eq!(affine.round_trip(0.0), 0.0);
        }
    }

    /// The error that the histogram predicts is the error that the values have.
    #[test]
    fn predicted_error_is_the_real_one() {
        let mut random = Random::new(8);
        for kind in 0..5 {
            let values = sample(&mut random, kind);
            let choice = choose(&histogram(&values));
            let real = |v: &f32| (f64::from(*v) - choice.affine.round_trip(f64::from(*v))).powi(2);
            let noise: f64 = values.iter().map(real).sum();
            let signal: f64 = values.iter().map(|v| f64::from(*v).powi(2)).sum();
            let real = decibels(signal, noise);
            assert!(
                (real - choice.sqnr_db).abs() < 1.0,
                "kind {kind}: {real} dB, expected {}",
                choice.sqnr_db
            );
        }
    }

    /// No range on a fine two-dimensional grid is clearly better than the chosen one.
    #[test]
    fn the_choice_rivals_brute_force() {
        let mut random = Random::new(9);
        for kind in 0..5 {
            let histogram = histogram(&sample(&mut random, kind));
            let choice = choose(&histogram);
            let chosen = squared_error(&histogram, choice.affine);
            let (min, max) = min_max(&histogram);
            let (min, max) = (min.min(0.0), max.max(0.0));
            let mut least = f64::INFINITY;
            for i in 0..=100 {
                for j in 0..=100 {
                    let (low, high) = (min * f64::from(i) / 100.0, max * f64::from(j) / 100.0);
                    least = least.min(squared_error(&histogram, Affine::spanning(low, high)));
                }
            }
            assert!(chosen <= least * 1.05, "kind {kind} by {}: {chosen} against {least}", choice.method);
            for candidate in CANDIDATES {
                let (low, high) = (candidate.range)(&histogram);
                let error = squared_error(&histogram, Affine::spanning(low, high));
                assert!(chosen <= error, "{} is better than {}", candidate.name, choice.method);
            }
        }
    }

    #[test]
    fn outliers_are_clipped_only_when_it_pays() {
        let mut random = Random::new(10);
        // One lone outlier among many values: the levels it would take are worth more than the value.
        let mut values: Vec<f32> = (0..2_000_000).map(|_| random.normal() as f32).collect();
        values.push(40.0);
        let clipped = choose(&histogram(&values));
        assert!(clipped.affine.span().1 < 12.0, "{clipped:?}");
        // A uniform distribution has nothing to clip.
        let values: Vec<f32> = (0..20_000).map(|_| random.uniform(-1.0, 1.0) as f32).collect();
        let whole = choose(&histogram(&values));
        assert!(whole.affine.span().1 > 0.97 && whole.sqnr_db > 45.0, "{whole:?}");
    }

    #[test]
    fn empty_and_constant_values_have_a_range() {
        assert_eq!(choose(&Histogram::new()).affine, Affine { scale: 1.0, zero_point: 0 });
        assert_eq!(choose(&histogram(&[0.0; 9])).sqnr_db, f64::INFINITY);
        let constant = choose(&histogram(&[-3.25; 9]));
        assert!((constant.affine.round_trip(-3.25) + 3.25).abs() < 0.02);
    }
}
