//! Changing the rate of a wave.

use std::f64::consts::PI;

use crate::narrow;

/// Zero crossings of the filter on either side, and points of its table between two.
const CROSSINGS: usize = 12;
const POINTS: usize = 256;
/// The part of the lower rate's half that passes.
const PASS: f64 = 0.95;

/// The wave with `ratio` as many samples a second: band-limited interpolation by a sinc under a Hann window, whose values
/// come from a table. Source: Smith, "Digital audio resampling", 2002.
pub(crate) fn resampled(wave: &[f32], ratio: f64) -> Vec<f32> {
    if ratio == 1.0 {
        return wave.to_vec();
    }
    // Crossings a sample of the source.
    let cutoff = PASS * ratio.min(1.0);
    let kernel = |at: f64| {
        let window = 0.5 + 0.5 * (PI * at / CROSSINGS as f64).cos();
        let sinc = if at == 0.0 { 1.0 } else { (PI * at).sin() / (PI * at) };
        narrow(cutoff * window * sinc)
    };
    let table: Vec<f32> =
        (0..=CROSSINGS * POINTS).map(|i| kernel(i as f64 / POINTS as f64)).chain([0.0]).collect();
    let reach = CROSSINGS as f64 / cutoff;
    let value = |i: usize| {
        let at = i as f64 / ratio;
        let first = (at - reach).ceil().max(0.0) as usize;
        let end = ((at + reach).floor() as usize + 1).min(wave.len());
        let weight = |source: usize| {
            let place = (source as f64 - at).abs() * cutoff * POINTS as f64;
            let (low, part) = (place as usize, narrow(place.fract()));
            table[low] + (table[low + 1] - table[low]) * part
        };
        (first..end.max(first)).map(|source| wave[source] * weight(source)).sum()
    };
    (0..(wave.len() as f64 * ratio).round() as usize).map(value).collect()
}

#[cfg(test)]
mod tests {
    use std::f64::consts::TAU;

    use super::*;

    fn tone(cycles: f64, count: usize) -> Vec<f32> {
        (0..count).map(|i| narrow((TAU * cycles * i as f64).sin())).collect()
    }

    #[test]
    fn tones_stay_tones_and_what_the_new_rate_cannot_hold_goes() {
        for ratio in [0.5, 0.7256, 1.1, 2.0, 16.0 / 22.05] {
            let changed = resampled(&tone(0.1, 2000), ratio);
            assert_eq!(changed.len(), (2000.0 * ratio).round() as usize);
            let expected = tone(0.1 / ratio, changed.len());
            let inside = 60..changed.len() - 60;
            let worst = inside.clone().fold(0f32, |w, i| w.max((changed[i] - expected[i]).abs()));
            assert!(worst < 0.004, "{ratio}: {worst}");
        }
        // 0.4 cycles a sample are beyond half of half the rate.
        let gone = resampled(&tone(0.4, 2000), 0.5);
        assert!(gone[60..940].iter().all(|v| v.abs() < 0.01));
        assert_eq!(resampled(&[0.25, -0.5], 1.0), [0.25, -0.5]);
        assert!(resampled(&[], 2.0).is_empty());
    }
}
