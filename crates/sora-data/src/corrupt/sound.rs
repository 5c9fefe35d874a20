//! Noise and rooms. Noise is as loud as so many decibels below the sound; silence stays.

use realfft::RealFftPlanner;

use crate::narrow;
use crate::random::Random;

pub(super) fn white(wave: &mut [f32], _: usize, decibels: f64, random: &mut Random) {
    let noise = wave.iter().map(|_| random.normal()).collect();
    add(wave, noise, decibels);
}

/// Rows of random numbers, of which each lasts twice as long as the one before.
pub(super) fn pink(wave: &mut [f32], _: usize, decibels: f64, random: &mut Random) {
    const ROWS: usize = 16;
    let mut rows: [f64; ROWS] = std::array::from_fn(|_| random.normal());
    let noise = (0..wave.len()).map(|at| {
        let lasts = |row: usize| at.is_multiple_of(1 << row);
        (0..ROWS).filter(|&row| lasts(row)).for_each(|row| rows[row] = random.normal());
        rows.iter().sum()
    });
    add(wave, noise.collect(), decibels);
}

/// The sum of voices: noise between 100 and 500 Hz, beyond which it falls by 12 dB an octave, in syllables of two to six a second.
pub(super) fn babble(wave: &mut [f32], rate: usize, decibels: f64, random: &mut Random) {
    const VOICES: usize = 6;
    let rate = rate as f64;
    // What a filter of the first order keeps of its last value.
    let keeps = |hertz: f64| (-std::f64::consts::TAU * hertz / rate).exp();
    let [low, high] = [keeps(100.0), keeps(500.0)];
    let mut noise = vec![0f64; wave.len()];
    for _ in 0..VOICES {
        let (pace, phase, loud) = (random.between(2.0, 6.0), random.unit(), random.between(0.5, 1.5));
        let (mut first, mut second, mut slow) = (0.0, 0.0, 0.0);
        for (at, sum) in noise.iter_mut().enumerate() {
            first = high * first + (1.0 - high) * random.normal();
            second = high * second + (1.0 - high) * first;
            slow = low * slow + (1.0 - low) * second;
            let beat = 0.5 + 0.5 * (std::f64::consts::TAU * (at as f64 * pace / rate + phase)).cos();
            *sum += loud * beat * beat * (second - slow);
        }
    }
    add(wave, noise, decibels);
}

/// The direct sound, and behind it noise that falls by 60 dB in `seconds`, as strong as the direct one where that is half a second: the further
/// sound lasts, the more of it there is. As loud as before.
pub(super) fn reverberation(wave: &mut [f32], rate: usize, seconds: f64, random: &mut Random) {
    let before = power(wave);
    if before == 0.0 {
        return;
    }
    let tail = ((seconds * rate as f64) as usize).clamp(1, wave.len());
    let falls = |at: usize| 10f64.powf(-3.0 * at as f64 / (seconds * rate as f64));
    let mut response: Vec<f64> = (0..tail).map(|at| random.normal() * falls(at)).collect();
    let energy: f64 = response.iter().map(|v| v * v).sum();
    let loud = (seconds / 0.5 / energy.max(1e-12)).sqrt();
    response.iter_mut().for_each(|v| *v *= loud);
    response[0] = 1.0;
    let after = convolved(wave, &response);
    let scale = (before / power(&after).max(1e-30)).sqrt();
    wave.iter_mut().zip(after).for_each(|(to, v)| *to = narrow(f64::from(v) * scale));
}

/// The first part of the convolution, as long as `wave`.
fn convolved(wave: &[f32], response: &[f64]) -> Vec<f32> {
    let points = (wave.len() + response.len()).next_power_of_two();
    let mut planner = RealFftPlanner::<f64>::new();
    let (forward, back) = (planner.plan_fft_forward(points), planner.plan_fft_inverse(points));
    let padded = |values: &mut dyn Iterator<Item = f64>| -> Vec<f64> {
        values.chain(std::iter::repeat(0.0)).take(points).collect()
    };
    let [mut a, mut b] =
        [padded(&mut wave.iter().map(|&v| f64::from(v))), padded(&mut response.iter().copied())];
    let [mut x, mut y] = [forward.make_output_vec(), forward.make_output_vec()];
    let done = forward.process(&mut a, &mut x).and_then(|()| forward.process(&mut b, &mut y));
    x.iter_mut().zip(&y).for_each(|(x, y)| *x *= y);
    let done = done.and_then(|()| back.process(&mut x, &mut a));
    debug_assert!(done.is_ok(), "the transforms made these vectors themselves");
    a.iter().take(wave.len()).map(|v| narrow(v / points as f64)).collect()
}

/// Adds noise so many decibels below the wave.
fn add(wave: &mut [f32], noise: Vec<f64>, decibels: f64) {
    let own = noise.iter().map(|v| v * v).sum::<f64>() / noise.len().max(1) as f64;
    let loud = (power(wave) / own.max(1e-30) * 10f64.powf(-decibels / 10.0)).sqrt();
    wave.iter_mut().zip(noise).for_each(|(to, v)| *to += narrow(loud * v));
}

fn power(wave: &[f32]) -> f64 {
    wave.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>() / wave.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::super::{Apply, CORRUPTIONS, Corruption};
    use super::*;

    fn tone() -> Vec<f32> {
        (0..8000).map(|i| (i as f32 * 0.3).sin() * 0.2 * (i as f32 / 900.0).sin()).collect()
    }

    /// Noise that swells and fades, as speech does.
    fn burst() -> Vec<f32> {
        let mut random = Random::of(&[6]);
        tone().iter().map(|v| v.abs() * narrow(random.normal())).collect()
    }

    #[test]
    fn noise_is_as_loud_as_it_should_be_and_repeats() {
        for row in CORRUPTIONS.iter().filter(|row| matches!(row.apply, Apply::Wave(..))) {
            let mut last = 0.0;
            for severity in 1..=5 {
                let [a, b] = [0, 0].map(|_| {
                    let mut wave = burst();
                    Corruption::new(row, severity, 3).wave(&mut wave, 8000, 1);
                    wave
                });
                assert!(a == b && a.iter().all(|v| v.is_finite()), "{}", row.name);
                let added: Vec<f32> = a.iter().zip(burst()).map(|(a, b)| a - b).collect();
                let ratio = 10.0 * (power(&burst()) / power(&added)).log10();
                if row.name != "reverberation" {
                    assert!((ratio - (25.0 - 5.0 * severity as f64)).abs() < 0.01, "{}: {ratio}", row.name);
                }
                assert!(power(&added) > last, "{} {severity}", row.name);
                last = power(&added);
            }
            let mut silence = vec![0f32; 50];
            Corruption::new(row, 5, 3).wave(&mut silence, 8000, 1);
            assert_eq!(silence, [0f32; 50]);
        }
    }

    #[test]
    fn convolution_equals_its_definition() {
        let wave = &tone()[..70];
        let response: Vec<f64> = (0..40).map(|i| 0.9f64.powi(i) * f64::from(1 - i % 3)).collect();
        for (at, found) in convolved(wave, &response).into_iter().enumerate() {
            let term = |i: usize| Some(response[i] * f64::from(*wave.get(at.checked_sub(i)?)?));
            let sum: f64 = (0..40).filter_map(term).sum();
            assert!((f64::from(found) - sum).abs() < 1e-6, "{at}");
        }
    }

    #[test]
    fn pink_noise_falls_and_babble_lies_low() {
        // The power of differences between neighbours is small where low frequencies are strong.
        let rough = |apply: fn(&mut [f32], usize, f64, &mut Random)| {
            let mut wave = tone();
            apply(&mut wave, 16_000, 0.0, &mut Random::of(&[9]));
            let noise: Vec<f32> = wave.iter().zip(tone()).map(|(a, b)| a - b).collect();
            let steps: Vec<f32> = noise.windows(2).map(|w| w[1] - w[0]).collect();
            power(&steps) / power(&noise)
        };
        let [white, pink, babble] = [white, pink, babble].map(rough);
        assert!((white - 2.0).abs() < 0.1 && pink < 0.5 && babble < 0.2, "{white} {pink} {babble}");
    }
}
