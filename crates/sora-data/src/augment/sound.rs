//! Augmentations of waves, which keep their length, and of spectrograms.

use crate::narrow;
use crate::picture::Picture;
use crate::random::Random;
use crate::settings::Settings;
use crate::sound::resample::resampled;

pub(super) fn time_shift(wave: &mut [f32], rate: usize, settings: &Settings, random: &mut Random) {
    let most = settings.get("seconds") * rate as f64;
    let by = random.between(-most, most).round();
    let silent = (by.abs() as usize).min(wave.len());
    if by > 0.0 {
        wave.rotate_right(silent);
        wave[..silent].fill(0.0);
    } else {
        let kept = wave.len() - silent;
        wave.rotate_left(silent);
        wave[kept..].fill(0.0);
    }
}

pub(super) fn noise(wave: &mut [f32], _: usize, settings: &Settings, random: &mut Random) {
    if wave.is_empty() || !random.chance(settings.get("probability")) {
        return;
    }
    let (quiet, loud) = (settings.get("quietest"), settings.get("loudest"));
    let decibels = random.between(loud.min(quiet), quiet.max(loud));
    let power = wave.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>() / wave.len() as f64;
    // Numbers from -1 to 1 have a power of a third.
    let scale = narrow((3.0 * power / 10f64.powf(decibels / 10.0)).sqrt());
    wave.iter_mut().for_each(|v| *v += scale * narrow(random.between(-1.0, 1.0)));
}

pub(super) fn speed(wave: &mut [f32], _: usize, settings: &Settings, random: &mut Random) {
    let spread = settings.get("spread");
    let changed = resampled(wave, 1.0 / random.between(1.0 - spread, 1.0 + spread));
    let behind = changed.into_iter().chain(std::iter::repeat(0.0));
    wave.iter_mut().zip(behind).for_each(|(to, from)| *to = from);
}

pub(super) fn spec_augment(picture: &mut Picture<f32>, settings: &Settings, random: &mut Random) {
    let (rows, columns) = (picture.size.height, picture.size.width);
    let mean = picture.data.iter().map(|&v| f64::from(v)).sum::<f64>() / picture.data.len().max(1) as f64;
    let mut part = |extent: usize, widest: &str| {
        let width = random.below((settings.get(widest) * extent as f64) as usize + 1);
        let start = random.below(extent - width + 1);
        start..start + width
    };
    for _ in 0..settings.get("time_masks") as usize {
        let frames = part(rows, "time");
        picture.data[frames.start * columns..frames.end * columns].fill(narrow(mean));
    }
    for _ in 0..settings.get("frequency_masks") as usize {
        let bands = part(columns, "frequency");
        picture.data.chunks_exact_mut(columns).for_each(|frame| frame[bands.clone()].fill(narrow(mean)));
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::augmentation;
    use super::*;
    use crate::Size;

    fn changed(name: &str, settings: &[(&str, f64)], wave: &[f32], seed: u64) -> Vec<f32> {
        let mut wave = wave.to_vec();
        augmentation(name, settings).change_wave(&mut wave, 100, &mut Random::of(&[seed]));
        wave
    }

    #[test]
    fn shifts_go_both_ways_and_leave_silence() {
        let wave: Vec<f32> = (1..=50).map(|i| i as f32).collect();
        let mut places = [0; 21];
        for seed in 0..2000 {
            let shifted = changed("time_shift", &[], &wave, seed);
            assert_eq!(shifted.len(), 50);
            let by = (-10..=10i32).find(|by| {
                let source = |i: usize| wave.get((i as i32 - by) as usize).copied().unwrap_or(0.0);
                (0..50).all(|i| shifted[i] == source(i))
            });
            places[(by.unwrap() + 10) as usize] += 1;
        }
        // 100 each, half of it at both ends.
        assert!(places[1..20].iter().all(|n| (60..150).contains(n)), "{places:?}");
        assert!(changed("time_shift", &[("seconds", 9.0)], &[1.0, 2.0], 3).len() == 2);
    }

    #[test]
    fn noise_has_the_power_asked_for() {
        let wave: Vec<f32> = (0..4000).map(|i| (i as f32 * 0.3).sin() * 0.2).collect();
        let settings = [("quietest", 10.0), ("loudest", 10.0), ("probability", 1.0)];
        let power = |wave: &[f32]| wave.iter().map(|v| v * v).sum::<f32>() / wave.len() as f32;
        let noisy = changed("noise", &settings, &wave, 1);
        let added: Vec<f32> = noisy.iter().zip(&wave).map(|(a, b)| a - b).collect();
        let decibels = 10.0 * (power(&wave) / power(&added)).log10();
        assert!((decibels - 10.0).abs() < 0.3, "{decibels}");
        assert_eq!(changed("noise", &[("probability", 0.0)], &wave, 1), wave);
        assert_eq!(changed("noise", &settings, &[0.0; 9], 1), [0.0; 9]);
    }

    #[test]
    fn speed_changes_the_number_of_cycles() {
        let wave: Vec<f32> = (0..4000).map(|i| (i as f32 * 0.1).sin()).collect();
        let crossings = |wave: &[f32]| wave.windows(2).filter(|w| w[0] < 0.0 && w[1] >= 0.0).count() as f64;
        // The first half is sound at any speed.
        let before = crossings(&wave[..2000]);
        let rates: Vec<f64> = (0..100)
            .map(|seed| {
                let after = changed("speed", &[("spread", 0.2)], &wave, seed);
                assert_eq!(after.len(), 4000);
                crossings(&after[..2000]) / before
            })
            .collect();
        let mean = rates.iter().sum::<f64>() / 100.0;
        assert!((mean - 1.0).abs() < 0.05 && rates.iter().all(|r| (0.75..1.25).contains(r)), "{mean}");
        assert!(rates.iter().any(|&r| r > 1.12) && rates.iter().any(|&r| r < 0.88));
    }

    #[test]
    fn masks_hide_whole_frames_and_bands() {
        let data: Vec<f32> = (0..600).map(|i| i as f32).collect();
        let before = Picture { size: Size { height: 30, width: 20 }, channels: 1, data };
        let masks = augmentation("spec_augment", &[("time_masks", 1.0), ("frequency_masks", 1.0)]);
        let (mut most_frames, mut most_bands) = (0, 0);
        for seed in 0..500 {
            let mut after = before.clone();
            masks.change_spectrogram(&mut after, &mut Random::of(&[seed]));
            let hidden = |y: usize, x: usize| after.data[y * 20 + x] == 299.5;
            let frames: Vec<usize> = (0..30).filter(|&y| (0..20).all(|x| hidden(y, x))).collect();
            let bands: Vec<usize> = (0..20).filter(|&x| (0..30).all(|y| hidden(y, x))).collect();
            let total = after.data.iter().filter(|&&v| v == 299.5).count();
            assert_eq!(total, frames.len() * 20 + bands.len() * 30 - frames.len() * bands.len());
            let consecutive = |places: &[usize]| places.windows(2).all(|w| w[1] == w[0] + 1);
            assert!(consecutive(&frames) && consecutive(&bands));
            (most_frames, most_bands) = (most_frames.max(frames.len()), most_bands.max(bands.len()));
        }
        // A fifth of 30 and of 20.
        assert_eq!((most_frames, most_bands), (6, 4));
    }
}
