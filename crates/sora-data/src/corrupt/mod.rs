//! Corruptions: changes of samples as they happen outside of a laboratory, at five severities, that a network is measured under. They act on 8-bit
//! pictures as the network sees them (converted, resized and cropped, but not normalized), on waves, and on texts before they are tokens.
//!
//! Every corruption of a sample follows from the seed, its name and the sample's number. All severities use the same random numbers, so they
//! differ in strength alone.

mod blur;
mod digital;
mod field;
mod noise;
mod sound;
mod text;
mod weather;

use crate::picture::Picture;
use crate::random::Random;
use crate::{DataError, Dataset, ErrorKind, SampleKind};

/// Severities of each corruption, from 1.
pub const SEVERITIES: usize = 5;

/// The numbers of a corruption at each severity.
type Levels = [&'static [f64]; SEVERITIES];

/// A kind of corruption.
#[derive(Debug)]
pub struct CorruptionRow {
    /// Name.
    pub name: &'static str,
    /// The paper that it is from.
    pub source: &'static str,
    apply: Apply,
}

/// What a corruption acts on, and its numbers.
#[derive(Debug)]
enum Apply {
    /// A picture of levels from 0 to 1. The numbers are those for pictures of 32 and of 224 pixels.
    Picture(fn(&mut Picture<f32>, &[f64], &mut Random), Levels, Levels),
    /// A wave of so many samples a second, which keeps its length.
    Wave(fn(&mut [f32], usize, f64, &mut Random), [f64; SEVERITIES]),
    /// A text.
    Text(fn(&str, f64, &mut Random) -> String, [f64; SEVERITIES]),
}

/// The shorter sides of the pictures that [`Apply::Picture`]'s numbers are for.
const SIDES: [f64; 2] = [32.0, 224.0];

const COMMON: &str = "Hendrycks and Dietterich, \"Benchmarking neural network robustness to common corruptions and perturbations\", 2019";
const POLACK: &str = "Polack, \"La transmission de l'énergie sonore dans les salles\", 1988";
const SNR: &str = "Hirsch and Pearce, \"The Aurora experimental framework\", 2000";
const TYPOS: &str =
    "Belinkov and Bisk, \"Synthetic and natural noise both break neural machine translation\", 2018";
const CASE: &str = "Pruthi et al., \"Combating adversarial misspellings with robust word recognition\", 2019";

/// Decibels of a sound above the noise.
const DECIBELS: [f64; SEVERITIES] = [20.0, 15.0, 10.0, 5.0, 0.0];
/// Letters of which a typo makes something else, as a share.
const LETTERS: [f64; SEVERITIES] = [0.02, 0.05, 0.1, 0.15, 0.2];

/// All corruptions.
///
/// Those of pictures have the numbers that their paper's authors publish for CIFAR-10-C (32 pixels) and ImageNet-C (224 pixels); between these
/// sizes of the shorter side numbers are interpolated by its logarithm, beyond them they stay. Two differ from the paper: frost is a procedural
/// texture instead of photographs, and JPEG is written without sub-sampled colours.
pub const CORRUPTIONS: &[CorruptionRow] = &[
    // The standard deviation of what is added to each level.
    picture(
        "gaussian_noise",
        noise::gaussian,
        [&[0.04], &[0.06], &[0.08], &[0.09], &[0.10]],
        [&[0.08], &[0.12], &[0.18], &[0.26], &[0.38]],
    ),
    // Photons that make a level of 1.
    picture(
        "shot_noise",
        noise::shot,
        [&[500.0], &[250.0], &[100.0], &[75.0], &[50.0]],
        [&[60.0], &[25.0], &[12.0], &[5.0], &[3.0]],
    ),
    // The share of levels that become 0 or 1.
    picture(
        "impulse_noise",
        noise::impulse,
        [&[0.01], &[0.02], &[0.03], &[0.05], &[0.07]],
        [&[0.03], &[0.06], &[0.09], &[0.17], &[0.27]],
    ),
    // The radius of a disk, and the standard deviation of what smooths its edge, in pixels.
    picture(
        "defocus_blur",
        blur::defocus,
        [&[0.3, 0.4], &[0.4, 0.5], &[0.5, 0.6], &[1.0, 0.2], &[1.5, 0.1]],
        [&[3.0, 0.1], &[4.0, 0.5], &[6.0, 0.5], &[8.0, 0.5], &[10.0, 0.5]],
    ),
    // The standard deviation of a blur before and after, how far pixels change places, and how often.
    picture(
        "glass_blur",
        blur::glass,
        [&[0.05, 1.0, 1.0], &[0.25, 1.0, 1.0], &[0.4, 1.0, 1.0], &[0.25, 1.0, 2.0], &[0.4, 1.0, 2.0]],
        [&[0.7, 1.0, 2.0], &[0.9, 2.0, 1.0], &[1.0, 2.0, 3.0], &[1.1, 3.0, 2.0], &[1.5, 4.0, 2.0]],
    ),
    // Half of the greatest way, and the standard deviation of the light on it, in pixels.
    picture(
        "motion_blur",
        blur::motion,
        [&[6.0, 1.0], &[6.0, 1.5], &[6.0, 2.0], &[8.0, 2.0], &[9.0, 2.5]],
        [&[10.0, 3.0], &[15.0, 5.0], &[15.0, 8.0], &[15.0, 12.0], &[20.0, 15.0]],
    ),
    // The greatest factor and the step between two.
    picture(
        "zoom_blur",
        blur::zoom,
        [&[1.05, 0.01], &[1.10, 0.01], &[1.15, 0.01], &[1.20, 0.01], &[1.25, 0.01]],
        [&[1.10, 0.01], &[1.15, 0.01], &[1.20, 0.02], &[1.24, 0.02], &[1.30, 0.03]],
    ),
    // Mean and deviation of the flakes, how large they are, from which value on they are seen, half of their way and its deviation, and how
    // much of the picture is left.
    picture(
        "snow",
        weather::snow,
        [
            &[0.1, 0.2, 1.0, 0.6, 8.0, 3.0, 0.95],
            &[0.1, 0.2, 1.0, 0.5, 10.0, 4.0, 0.9],
            &[0.15, 0.3, 1.75, 0.55, 10.0, 4.0, 0.9],
            &[0.25, 0.3, 2.25, 0.6, 12.0, 6.0, 0.85],
            &[0.3, 0.3, 1.25, 0.65, 14.0, 12.0, 0.8],
        ],
        [
            &[0.1, 0.3, 3.0, 0.5, 10.0, 4.0, 0.8],
            &[0.2, 0.3, 2.0, 0.5, 12.0, 4.0, 0.7],
            &[0.55, 0.3, 4.0, 0.9, 12.0, 8.0, 0.7],
            &[0.55, 0.3, 4.5, 0.85, 12.0, 8.0, 0.65],
            &[0.55, 0.3, 2.5, 0.85, 12.0, 12.0, 0.55],
        ],
    ),
    // How much of the picture, and how much frost.
    picture(
        "frost",
        weather::frost,
        [&[1.0, 0.2], &[1.0, 0.3], &[0.9, 0.4], &[0.85, 0.4], &[0.75, 0.45]],
        [&[1.0, 0.4], &[0.8, 0.6], &[0.7, 0.7], &[0.65, 0.7], &[0.6, 0.75]],
    ),
    // How much fog, and by what its structure gets smaller from one size to half of it.
    picture(
        "fog",
        weather::fog,
        [&[0.2, 3.0], &[0.5, 3.0], &[0.75, 2.5], &[1.0, 2.0], &[1.5, 1.75]],
        [&[1.5, 2.0], &[2.0, 2.0], &[2.5, 1.7], &[2.5, 1.5], &[3.0, 1.4]],
    ),
    // What is added to the value of each colour.
    picture(
        "brightness",
        digital::brightness,
        [&[0.05], &[0.1], &[0.15], &[0.2], &[0.3]],
        [&[0.1], &[0.2], &[0.3], &[0.4], &[0.5]],
    ),
    // The factor on what a level differs from the mean.
    picture(
        "contrast",
        digital::contrast,
        [&[0.75], &[0.5], &[0.4], &[0.3], &[0.15]],
        [&[0.4], &[0.3], &[0.2], &[0.1], &[0.05]],
    ),
    // As shares of the shorter side: how strong and how smooth displacements are, and how far three corners move.
    picture(
        "elastic_transform",
        digital::elastic,
        [&[0.0, 0.0, 0.08], &[0.05, 0.2, 0.07], &[0.08, 0.06, 0.06], &[0.1, 0.04, 0.05], &[0.1, 0.03, 0.03]],
        [&[2.0, 0.7, 0.1], &[2.0, 0.08, 0.2], &[0.05, 0.01, 0.02], &[0.07, 0.01, 0.02], &[0.12, 0.01, 0.02]],
    ),
    // The share of pixels along a side.
    picture(
        "pixelate",
        digital::pixelate,
        [&[0.95], &[0.9], &[0.85], &[0.75], &[0.65]],
        [&[0.6], &[0.5], &[0.4], &[0.3], &[0.25]],
    ),
    // The quality.
    picture(
        "jpeg_compression",
        digital::jpeg,
        [&[80.0], &[65.0], &[58.0], &[50.0], &[40.0]],
        [&[25.0], &[18.0], &[15.0], &[10.0], &[7.0]],
    ),
    CorruptionRow { name: "white_noise", source: SNR, apply: Apply::Wave(sound::white, DECIBELS) },
    // As much in every octave. Generator: Voss and Clarke, 1978.
    CorruptionRow { name: "pink_noise", source: SNR, apply: Apply::Wave(sound::pink, DECIBELS) },
    // Noise with the spectrum and the rhythm of several who speak; no recorded speech.
    CorruptionRow { name: "babble", source: SNR, apply: Apply::Wave(sound::babble, DECIBELS) },
    // Seconds in which the sound of a room falls by 60 dB.
    CorruptionRow {
        name: "reverberation",
        source: POLACK,
        apply: Apply::Wave(sound::reverberation, [0.2, 0.4, 0.7, 1.0, 1.5]),
    },
    CorruptionRow { name: "typo_swap", source: TYPOS, apply: Apply::Text(text::swap, LETTERS) },
    CorruptionRow { name: "typo_drop", source: CASE, apply: Apply::Text(text::drop, LETTERS) },
    CorruptionRow { name: "typo_repeat", source: CASE, apply: Apply::Text(text::repeat, LETTERS) },
    CorruptionRow { name: "typo_neighbour", source: TYPOS, apply: Apply::Text(text::neighbour, LETTERS) },
    // Seen only by tokenizers that tell capitals.
    CorruptionRow { name: "typo_case", source: CASE, apply: Apply::Text(text::case, LETTERS) },
];

const fn picture(
    name: &'static str,
    apply: fn(&mut Picture<f32>, &[f64], &mut Random),
    small: Levels,
    large: Levels,
) -> CorruptionRow {
    CorruptionRow { name, source: COMMON, apply: Apply::Picture(apply, small, large) }
}

/// A row of [`CORRUPTIONS`] at a severity.
#[derive(Clone, Copy, Debug)]
pub struct Corruption {
    row: &'static CorruptionRow,
    /// From 0.
    level: usize,
    seed: u64,
}

impl Corruption {
    /// The corruption of this row at a severity from 1 to [`SEVERITIES`], beyond which it stays. The same seed gives the same samples.
    pub fn new(row: &'static CorruptionRow, severity: usize, seed: u64) -> Self {
        Corruption { row, level: severity.clamp(1, SEVERITIES) - 1, seed }
    }

    /// The random numbers of a sample.
    fn random(&self, sample: usize) -> Random {
        let name = self.row.name.bytes().map(u64::from);
        let words: Vec<u64> = [self.seed, sample as u64].into_iter().chain(name).collect();
        Random::of(&words)
    }

    /// Changes a picture, unless it is for something else.
    pub(crate) fn picture(&self, picture: &mut Picture<u8>, sample: usize) {
        let Apply::Picture(apply, small, large) = &self.row.apply else { return };
        let side = picture.size.height.min(picture.size.width) as f64;
        let [low, high] = SIDES;
        let at = ((side / low).ln() / (high / low).ln()).clamp(0.0, 1.0);
        let between = |(a, b): (&f64, &f64)| a + (b - a) * at;
        let numbers: Vec<f64> = small[self.level].iter().zip(large[self.level]).map(between).collect();
        let levels = picture.data.iter().map(|&v| f32::from(v) / 255.0).collect();
        let mut real = Picture { size: picture.size, channels: picture.channels, data: levels };
        apply(&mut real, &numbers, &mut self.random(sample));
        picture.data = field::levels(&real);
    }

    /// Changes a wave of so many samples a second, unless it is for something else.
    pub(crate) fn wave(&self, wave: &mut [f32], rate: usize, sample: usize) {
        if let Apply::Wave(apply, numbers) = &self.row.apply {
            apply(wave, rate, numbers[self.level], &mut self.random(sample));
        }
    }

    /// The text, changed unless it is for something else.
    pub(crate) fn text(&self, text: &str, sample: usize) -> String {
        match &self.row.apply {
            Apply::Text(apply, numbers) => apply(text, numbers[self.level], &mut self.random(sample)),
            _ => text.to_owned(),
        }
    }
}

impl Dataset {
    /// The corruptions of samples of this kind; none of arrays that are no 8-bit pictures.
    pub fn corruptions(&self) -> Vec<&'static CorruptionRow> {
        let fits = |apply: &Apply| match (self.sample_kind(), apply) {
            (SampleKind::Files, Apply::Picture(..)) => true,
            (SampleKind::Array { dtype, .. }, Apply::Picture(..)) => dtype == sora_tensor::DType::U8,
            (SampleKind::Sounds, Apply::Wave(..)) | (SampleKind::Tokens, Apply::Text(..)) => true,
            _ => false,
        };
        CORRUPTIONS.iter().filter(|row| fits(&row.apply)).collect()
    }

    /// The same samples, corrupted as they are read.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] when the corruption is not for samples of this kind.
    pub fn corrupted(&self, corruption: Corruption) -> Result<Self, DataError> {
        if self.corruptions().iter().any(|row| row.name == corruption.row.name) {
            return Ok(self.with_corruption(corruption));
        }
        let what = format!("{} is not for samples that are {}", corruption.row.name, self.sample_kind());
        let hint = "corruptions are for pictures of 8 bits, sounds and texts";
        Err(DataError::new(ErrorKind::Usage, what, self.place(), hint))
    }
}

#[cfg(test)]
mod tests {
    use sora_tensor::Tensor;

    use super::*;
    use crate::{Preprocess, Size};

    /// A picture of shapes: a gradient with a bright rectangle and a dark disk, as in photographs neither flat nor noise.
    fn scene(side: usize, channels: usize, turn: usize) -> Picture<u8> {
        let size = Size { height: side, width: side + 3 };
        let at = |i: usize| {
            let (pixel, channel) = (i / channels, i % channels);
            let (y, x) =
                ((pixel / size.width) as f64 / side as f64, (pixel % size.width) as f64 / side as f64);
            let inside = (y - 0.3).abs() < 0.15 && (x - 0.6).abs() < 0.2;
            let disk = (y - 0.65).hypot(x - 0.3) < 0.2;
            let stripes = 30.0 * ((x + y) * 25.0 + turn as f64).sin();
            let base = 90.0 + 60.0 * x + 20.0 * channel as f64 + stripes;
            (if inside {
                230.0
            } else if disk {
                25.0
            } else {
                base
            })
            .clamp(0.0, 255.0) as u8
        };
        Picture { size, channels, data: (0..size.height * size.width * channels).map(at).collect() }
    }

    fn distance(a: &[u8], b: &[u8]) -> f64 {
        assert_eq!(a.len(), b.len());
        a.iter().zip(b).map(|(&a, &b)| f64::from(a.abs_diff(b))).sum::<f64>() / a.len() as f64
    }

    #[test]
    fn corruptions_of_pictures_grow_with_severity_keep_the_shape_and_repeat() {
        for row in CORRUPTIONS {
            let Apply::Picture(..) = row.apply else { continue };
            for (side, channels) in [(28, 1), (32, 3), (96, 3)] {
                let far: Vec<f64> = (1..=SEVERITIES)
                    .map(|severity| {
                        let corruption = Corruption::new(row, severity, 7);
                        let one = |sample: usize| {
                            let before = scene(side, channels, sample);
                            let [a, b] = [0, 0].map(|_| {
                                let mut after = before.clone();
                                corruption.picture(&mut after, sample);
                                after
                            });
                            assert!(
                                a == b && a.size == before.size && a.channels == channels,
                                "{}",
                                row.name
                            );
                            distance(&a.data, &before.data)
                        };
                        (0..6).map(one).sum::<f64>() / 6.0
                    })
                    .collect();
                let name = row.name;
                assert!(far[0] > 0.05, "{name} {side}: {far:?}");
                // These two change in kind, too: smooth and strong displacements become rough ones, and the picture fades below the ice.
                let grows = far[3] + far[4] > 1.15 * (far[0] + far[1]);
                assert!(grows || ["elastic_transform", "frost"].contains(&name), "{name} {side}: {far:?}");
                assert!(far[4] < 140.0, "{name}: {far:?}");
            }
        }
    }

    #[test]
    fn samples_and_seeds_differ() {
        let row = &CORRUPTIONS[0];
        let after = |seed: u64, sample: usize| {
            let mut picture = scene(28, 1, 0);
            Corruption::new(row, 3, seed).picture(&mut picture, sample);
            picture.data
        };
        assert_ne!(after(0, 0), after(0, 1));
        assert_ne!(after(0, 0), after(1, 0));
        assert_eq!(after(3, 5), after(3, 5));
    }

    #[test]
    fn tiny_and_flat_pictures_stay_pictures() {
        for row in CORRUPTIONS {
            for (height, width, channels) in [(1, 1, 1), (1, 5, 3), (2, 2, 1), (3, 40, 3)] {
                for level in [0u8, 255] {
                    let size = Size { height, width };
                    let mut picture =
                        Picture { size, channels, data: vec![level; height * width * channels] };
                    Corruption::new(row, 5, 1).picture(&mut picture, 0);
                    assert_eq!((picture.size, picture.data.len()), (size, height * width * channels));
                }
            }
        }
    }

    #[test]
    fn datasets_are_corrupted_as_they_are_read() {
        let pixels: Vec<u8> = (0..3).flat_map(|i| scene(28, 1, i).data).collect();
        let x = Tensor::from_slice(&[3, 28, 31], &pixels).unwrap();
        let data = Dataset::from_arrays(vec![(None, x)], Some(vec![0, 1, 2])).unwrap();
        assert_eq!(data.corruptions().len(), 15);
        let pre: Preprocess = "layout=nchw".parse().unwrap();
        let plain = data.batch(&[2, 1], &pre).unwrap();
        let corrupted = data.corrupted(Corruption::new(data.corruptions()[2], 5, 0)).unwrap();
        let batch = corrupted.batch(&[2, 1], &pre).unwrap();
        assert_eq!((batch.inputs[0].1.shape(), &batch.labels), (&[2, 1, 28, 31][..], &vec![2, 1]));
        let (a, b) = (plain.inputs[0].1.to_f32s(), batch.inputs[0].1.to_f32s());
        let changed = a.iter().zip(&b).filter(|(a, b)| a != b).count() as f64 / a.len() as f64;
        assert!((0.04..0.1).contains(&changed), "{changed}");
        // The same sample alone, and in another order.
        assert_eq!(corrupted.batch(&[1], &pre).unwrap().inputs[0].1.to_f32s(), b[868..]);

        let real = Tensor::from_slice(&[1, 2], &[0f32, 1.0]).unwrap();
        let real = Dataset::from_arrays(vec![(None, real)], None).unwrap();
        assert!(real.corruptions().is_empty());
        let error = real.corrupted(Corruption::new(&CORRUPTIONS[0], 1, 0)).unwrap_err();
        assert!(error.to_string().contains("gaussian_noise"), "{error}");
    }

    #[test]
    fn sounds_and_texts_are_corrupted_before_they_are_features_and_tokens() {
        let dir = tempfile::tempdir().unwrap();
        let spec = hound::WavSpec {
            channels: 1,
            sample_rate: 8000,
            bits_per_sample: 16,
            sample_format: hound::SampleFormat::Int,
        };
        for class in ["a", "b"] {
            std::fs::create_dir(dir.path().join(class)).unwrap();
            let mut writer = hound::WavWriter::create(dir.path().join(class).join("1.wav"), spec).unwrap();
            (0..8000).for_each(|i| {
                writer.write_sample((f64::from(i) * 0.1).sin().mul_add(9000.0, 0.0) as i16).unwrap()
            });
            writer.finalize().unwrap();
        }
        let sounds = Dataset::open(dir.path(), &crate::OpenOptions::default()).unwrap();
        let file = dir.path().join("t.jsonl");
        std::fs::write(
            &file,
            "{\"text\": \"one two three four\", \"label\": 0}\n{\"text\": \"two\", \"label\": 1}\n",
        )
        .unwrap();
        let texts = crate::Texts::open(&file, &crate::TextOptions::default()).unwrap();
        let words = crate::Tokenizer::words(texts.texts().iter().map(String::as_str), 100);
        let texts = texts.tokenize(&words, 10).unwrap();
        let pre: Preprocess = "sound=wave:rate=8000".parse().unwrap();
        for (data, pre, count) in [(sounds, pre, 4), (texts, Preprocess::default(), 5)] {
            assert_eq!(data.corruptions().len(), count);
            let plain = data.batch(&[0, 1], &pre).unwrap().inputs.remove(0).1.to_f32s();
            for row in data.corruptions().into_iter().filter(|row| row.name != "typo_case") {
                let batch = |severity| {
                    let corrupted = data.corrupted(Corruption::new(row, severity, 2)).unwrap();
                    corrupted.batch(&[0, 1], &pre).unwrap().inputs.remove(0).1.to_f32s()
                };
                assert_eq!(batch(5), batch(5));
                assert_eq!(batch(5).len(), plain.len());
                assert_ne!(batch(5), plain, "{}", row.name);
            }
        }
    }
}
