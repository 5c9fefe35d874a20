//! Log-mel spectrograms and MFCC.

use std::f64::consts::{PI, TAU};

use super::Sound;
use super::fft::Spectrum;
use crate::narrow;
use crate::picture::Picture;

/// Makes the features of sounds.
pub(crate) struct Features {
    sound: Sound,
    spectral: Option<Spectral>,
}

/// What log-mel and MFCC take.
struct Spectral {
    hop: usize,
    window: Vec<f32>,
    spectrum: Spectrum,
    /// For each band, its first bin and the weights from there on.
    bands: Vec<(usize, Vec<f32>)>,
    /// Rows of the cosine transform, for MFCC.
    cosines: Option<Vec<Vec<f32>>>,
}

impl Features {
    pub(crate) fn new(sound: &Sound) -> Self {
        let spectral = (sound.row.name != "wave").then(|| {
            let frame = sound.integer("frame");
            let points = frame.next_power_of_two();
            let hann = |n: usize| narrow(0.5 - 0.5 * (TAU * n as f64 / frame as f64).cos());
            let mels = sound.integer("mels");
            Spectral {
                hop: sound.integer("hop"),
                window: (0..frame).map(hann).collect(),
                spectrum: Spectrum::new(points),
                bands: bands(mels, points / 2 + 1, sound.rate() as f64, sound.range()),
                cosines: (sound.row.name == "mfcc").then(|| cosines(sound.integer("coefficients"), mels)),
            }
        });
        Features { sound: sound.clone(), spectral }
    }

    /// The features of a wave of the described length, as a picture of one channel: rows are frames.
    pub(crate) fn of(&self, wave: Vec<f32>) -> Picture<f32> {
        let data = match &self.spectral {
            Some(spectral) => spectral.of(&wave),
            None => wave,
        };
        Picture { size: self.sound.size(), channels: 1, data }
    }
}

impl Spectral {
    fn of(&self, wave: &[f32]) -> Vec<f32> {
        let mut features = Vec::new();
        let mut spectrum = self.spectrum.clone();
        let (mut frame, mut magnitudes) = (vec![0f32; self.window.len()], Vec::new());
        let mut levels = Vec::with_capacity(self.bands.len());
        for part in wave.windows(self.window.len()).step_by(self.hop) {
            frame.iter_mut().zip(part).zip(&self.window).for_each(|((to, from), weight)| *to = from * weight);
            spectrum.magnitudes(&frame, &mut magnitudes);
            levels.clear();
            levels.extend(self.bands.iter().map(|(first, weights)| {
                let sum: f32 = magnitudes[*first..].iter().zip(weights).map(|(m, w)| m * w).sum();
                (sum + 1e-6).ln()
            }));
            match &self.cosines {
                None => features.extend_from_slice(&levels),
                Some(rows) => {
                    let product = |row: &Vec<f32>| row.iter().zip(&levels).map(|(c, l)| c * l).sum::<f32>();
                    features.extend(rows.iter().map(product));
                }
            }
        }
        features
    }
}

/// Triangles of equal width on the mel scale of HTK, 1127 ln(1 + f / 700), over the bins of a spectrum; the first bin has
/// no part in them.
fn bands(count: usize, bins: usize, rate: f64, [low, high]: [f64; 2]) -> Vec<(usize, Vec<f32>)> {
    let mel = |hertz: f64| 1127.0 * (hertz / 700.0).ln_1p();
    let (start, step) = (mel(low), (mel(high) - mel(low)) / (count + 1) as f64);
    let bin_mel = |bin: usize| mel(bin as f64 * rate / 2.0 / (bins - 1) as f64);
    let band = |band: usize| {
        let center = start + step * (band + 1) as f64;
        let weight = |bin: usize| 1.0 - (bin_mel(bin) - center).abs() / step;
        let first = (1..bins).find(|&bin| weight(bin) > 0.0).unwrap_or(bins);
        (first, (first..bins).map(weight).take_while(|&weight| weight > 0.0).map(narrow).collect())
    };
    (0..count).map(band).collect()
}

/// The first rows of the cosine transform of type II, times √(2 / columns).
fn cosines(rows: usize, columns: usize) -> Vec<Vec<f32>> {
    let n = columns as f64;
    let value = |row: usize, column: usize| (PI * row as f64 * (2 * column + 1) as f64 / (2.0 * n)).cos();
    (0..rows)
        .map(|row| (0..columns).map(|column| narrow(value(row, column) * (2.0 / n).sqrt())).collect())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The signal of the fixtures: two tones, one of which rises, and noise.
    fn signal(rate: f64, count: usize) -> Vec<f32> {
        let value = |i: usize| {
            let n = i as f64;
            let noise = ((i * i * 7 + i * 13) % 251) as f64 / 251.0 - 0.5;
            let tones =
                0.4 * (TAU * 440.0 * n / rate).sin() + 0.3 * (TAU * 1800.0 * n / rate + n / 900.0).sin();
            narrow(tones + 0.1 * noise)
        };
        (0..count).map(value).collect()
    }

    /// `tests/data/features.txt` holds what `tf.signal` of TensorFlow 2.19.1 makes of [`signal`].
    #[test]
    fn features_equal_tensorflow() {
        let mut checked = 0;
        for line in include_str!("../../tests/data/features.txt").lines().filter(|l| !l.starts_with('#')) {
            let mut words = line.split(' ');
            let sound: Sound = words.next().unwrap().parse().unwrap();
            let expected: Vec<f32> = words.map(|v| v.parse().unwrap()).collect();
            let features = Features::new(&sound).of(signal(sound.rate() as f64, sound.length()));
            assert_eq!(features.data.len(), features.size.height * features.size.width);
            assert_eq!(features.data.len(), expected.len());
            let worst = features.data.iter().zip(&expected).fold(0f32, |w, (a, b)| w.max((a - b).abs()));
            assert!(worst < 1e-4, "{sound}: {worst}");
            checked += 1;
        }
        assert_eq!(checked, 4);
    }

    #[test]
    fn waves_are_features_too() {
        let sound: Sound = "wave:length=5".parse().unwrap();
        let picture = Features::new(&sound).of(vec![0.5; 5]);
        assert_eq!((picture.size.height, picture.size.width, picture.data), (1, 5, vec![0.5; 5]));
    }
}
