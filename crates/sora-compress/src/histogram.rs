//! The distribution of a value's elements, gathered batch by batch in constant memory.

/// Bins of a [`Histogram`].
pub const BINS: usize = 2048;

/// A streaming histogram of [`BINS`] bins with exact extremes.
///
/// Bins lie on a grid anchored at zero whose width is a power of two, the smallest that spans the extremes seen
/// so far. When a value falls outside, the width doubles and neighbours merge. Doubling an anchored grid
/// loses nothing that a coarser grid would have kept, so the result depends on the values alone, not on
/// their order or on how they were split into batches.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    /// Bin width is `2^exponent`.
    exponent: i32,
    /// Index on the grid of the first bin: bin `i` holds `[first + i, first + i + 1) · width`.
    first: i64,
    counts: Vec<u64>,
    min: f32,
    max: f32,
    zeros: u64,
    total: u64,
    nonfinite: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new()
    }
}

impl Histogram {
    /// An empty histogram.
    pub fn new() -> Self {
        Histogram {
            exponent: i32::MIN,
            first: 0,
            counts: Vec::new(),
            min: f32::INFINITY,
            max: f32::NEG_INFINITY,
            zeros: 0,
            total: 0,
            nonfinite: 0,
        }
    }

    /// Takes in a batch of values.
    pub fn add(&mut self, values: &[f32]) {
        let (mut min, mut max) = (self.min, self.max);
        for &v in values.iter().filter(|v| v.is_finite()) {
            (min, max) = (min.min(v), max.max(v));
        }
        if min > max {
            self.nonfinite += values.len() as u64;
            return;
        }
        self.widen(min, max);
        let (per_width, first) = (1.0 / self.width(), self.first);
        for &v in values {
            if v == 0.0 {
                self.zeros += 1;
                self.total += 1;
            } else if v.is_finite() {
                let bin = (f64::from(v) * per_width).floor() as i64 - first;
                self.counts[bin as usize] += 1;
                self.total += 1;
            } else {
                self.nonfinite += 1;
            }
        }
    }

    /// Takes in everything that `other` has seen.
    pub fn merge(&mut self, other: &Histogram) {
        self.nonfinite += other.nonfinite;
        if other.total == 0 {
            return;
        }
        self.widen(self.min.min(other.min), self.max.max(other.max));
        let shift = self.exponent - other.exponent;
        for (i, &count) in other.counts.iter().enumerate().filter(|(_, c)| **c > 0) {
            let bin = halve(other.first + i as i64, shift) - self.first;
            self.counts[bin as usize] += count;
        }
        self.zeros += other.zeros;
        self.total += other.total;
    }

    /// The smallest and the largest finite value; `None` before the first.
    pub fn extremes(&self) -> Option<(f32, f32)> {
        (self.total > 0).then_some((self.min, self.max))
    }

    /// Finite values seen.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// NaN and infinite values seen; they are in no bin.
    pub fn nonfinite(&self) -> u64 {
        self.nonfinite
    }

    /// Values that were exactly zero; they are in no bin, because every quantization keeps them exact.
    pub fn zeros(&self) -> u64 {
        self.zeros
    }

    /// Width of a bin.
    pub fn width(&self) -> f64 {
        f64::exp2(f64::from(self.exponent.max(-1000)))
    }

    /// The occupied bins in ascending order: lower edge and count. An edge is cut at the extremes only by
    /// [`Histogram::extremes`], not here.
    pub fn bins(&self) -> impl Iterator<Item = (f64, u64)> + '_ {
        let width = self.width();
        let occupied = self.counts.iter().enumerate().filter(|(_, c)| **c > 0);
        occupied.map(move |(i, &count)| ((self.first + i as i64) as f64 * width, count))
    }

    /// The value below which `fraction` of all values lie, zeros included, to a bin's width.
    pub fn quantile(&self, fraction: f64) -> f64 {
        let Some((min, max)) = self.extremes() else { return 0.0 };
        let wanted = fraction.clamp(0.0, 1.0) * self.total as f64;
        let (mut below, mut zeros) = (0.0, self.zeros as f64);
        let (low, high) = (f64::from(min), f64::from(max));
        for (edge, count) in self.bins() {
            if edge >= 0.0 && zeros > 0.0 {
                below += zeros;
                zeros = 0.0;
                if below >= wanted {
                    return 0f64.clamp(low, high);
                }
            }
            let count = count as f64;
            if below + count >= wanted {
                return (edge + self.width() * (wanted - below) / count).clamp(low, high);
            }
            below += count;
        }
        high
    }

    /// Moves to the grid that spans `min..=max`, which hold the former extremes.
    fn widen(&mut self, min: f32, max: f32) {
        let exponent = exponent_for(min, max);
        let first = on_grid(min, exponent);
        if (exponent, first) != (self.exponent, self.first) || self.counts.is_empty() {
            let mut counts = vec![0; BINS];
            if self.total > 0 {
                let shift = exponent - self.exponent;
                for (i, &count) in self.counts.iter().enumerate().filter(|(_, c)| **c > 0) {
                    counts[(halve(self.first + i as i64, shift) - first) as usize] += count;
                }
            }
            (self.exponent, self.first, self.counts) = (exponent, first, counts);
        }
        (self.min, self.max) = (min, max);
    }
}

/// `floor(v / 2^exponent)`.
fn on_grid(v: f32, exponent: i32) -> i64 {
    (f64::from(v) * f64::exp2(-f64::from(exponent))).floor() as i64
}

/// A grid index after the width has doubled `times` times.
fn halve(index: i64, times: i32) -> i64 {
    index >> times.clamp(0, 63)
}

/// The smallest exponent whose grid spans `min..=max` in [`BINS`] bins, and whose indices are exact: a function
/// of the extremes that never falls when they move apart.
fn exponent_for(min: f32, max: f32) -> i32 {
    let magnitude = f64::from(min).abs().max(f64::from(max).abs());
    if magnitude == 0.0 {
        return -149;
    }
    // Indices stay below 2^24, far within what f64 holds.
    let mut exponent = magnitude.log2().floor() as i32 - 23;
    while on_grid(max, exponent) - on_grid(min, exponent) >= BINS as i64 {
        exponent += 1;
    }
    exponent
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    fn of(values: &[f32]) -> Histogram {
        let mut histogram = Histogram::new();
        histogram.add(values);
        histogram
    }

    #[test]
    fn batches_and_their_order_do_not_matter() {
        let mut random = Random::new(3);
        for round in 0..50 {
            // Ranges of very different scale and offset follow each other.
            let mut values = Vec::new();
            for _ in 0..random.below(6) + 1 {
                let scale = f64::exp2(random.uniform(-30.0, 30.0)) as f32;
                let offset = scale * random.uniform(-3.0, 3.0) as f32;
                values.extend((0..200).map(|_| offset + scale * random.normal() as f32));
            }
            values.extend([0.0; 7]);
            let whole = of(&values);
            let mut parts = Histogram::new();
            for chunk in values.chunks(random.below(90) + 1) {
                parts.add(chunk);
            }
            assert_eq!(whole, parts, "round {round}");
            values.reverse();
            assert_eq!(whole, of(&values));
            let (left, right) = values.split_at(values.len() / 3);
            let mut merged = of(left);
            merged.merge(&of(right));
            assert_eq!(whole, merged);
            let counted: u64 = whole.bins().map(|(_, c)| c).sum();
            assert_eq!(counted + whole.zeros(), values.len() as u64);
            assert_eq!(whole.counts.len(), BINS);
        }
    }

    #[test]
    fn quantiles_are_within_a_bin_of_the_sorted_values() {
        let mut random = Random::new(4);
        for relu in [false, true] {
            let mut values: Vec<f32> = (0..20_000).map(|_| random.normal() as f32).collect();
            if relu {
                values.iter_mut().for_each(|v| *v = v.max(0.0));
            }
            let histogram = of(&values);
            values.sort_by(f32::total_cmp);
            for fraction in [0.0, 0.001, 0.1, 0.5, 0.9, 0.999, 1.0] {
                let at = (fraction * 20_000f64) as usize;
                let near = &values[at.saturating_sub(1)..(at + 2).min(20_000)];
                let (low, high) = (f64::from(near[0]), f64::from(near[near.len() - 1]));
                let q = histogram.quantile(fraction);
                let slack = histogram.width();
                assert!(q >= low - slack && q <= high + slack, "{fraction}: {q} not in {low}..{high}");
            }
        }
    }

    #[test]
    fn extreme_values_neither_panic_nor_vanish() {
        let all = [0.0, -0.0, f32::MAX, f32::MIN, f32::MIN_POSITIVE, 1e-45, f32::NAN, f32::INFINITY];
        let histogram = of(&all);
        assert_eq!((histogram.total(), histogram.nonfinite(), histogram.zeros()), (6, 2, 2));
        assert_eq!(histogram.extremes(), Some((f32::MIN, f32::MAX)));
        assert_eq!(of(&[f32::NAN]).extremes(), None);
        assert_eq!(of(&[1e-45]).extremes(), Some((1e-45, 1e-45)));
        assert_eq!(of(&[]).total(), 0);
        assert_eq!(of(&[0.0]).quantile(0.5), 0.0);
        let mut merged = of(&[]);
        merged.merge(&of(&[]));
        assert_eq!(merged.extremes(), None);
    }
}
