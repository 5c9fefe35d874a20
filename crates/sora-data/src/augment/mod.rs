//! Random changes of samples, which a network shall not mind: they act on 8-bit pictures after resizing, on waves and on
//! features of them, all before scaling and normalization; and on the tokens of texts.

mod color;
mod erase;
mod geometry;
mod mix;
mod rand_augment;
mod sound;
mod text;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sora_tensor::DType;

use crate::picture::Picture;
use crate::random::Random;
use crate::settings::{Setting, Settings, setting, suggestion};
use crate::{DataError, ErrorKind, SampleKind};

pub(crate) use mix::Mixture;

/// A kind of augmentation.
#[derive(Debug)]
pub struct AugmentationRow {
    /// Name.
    pub name: &'static str,
    /// Numbers it takes.
    pub settings: &'static [Setting],
    /// What it does.
    apply: Apply,
}

/// What an augmentation acts on.
#[derive(Clone, Copy, Debug)]
enum Apply {
    /// One picture, which keeps its size.
    Picture(fn(&mut Picture<u8>, &Settings, &mut Random)),
    /// A wave of so many samples a second, which keeps its length.
    Wave(fn(&mut [f32], usize, &Settings, &mut Random)),
    /// Features of a wave, rows of frames.
    Spectrogram(fn(&mut Picture<f32>, &Settings, &mut Random)),
    /// The tokens of a text, of which at least one is left.
    Tokens(fn(&mut Vec<u32>, &Settings, &mut Random)),
    /// All samples of a batch, which have one shape; their labels mix as they do.
    Batch(Mix<u8>, Mix<f32>),
}

type Mix<T> = fn(&mut [Picture<T>], &Settings, &mut Random) -> Mixture;

const HALF: Setting = setting("probability", 0.5, 0.0, 1.0);
const ALWAYS: Setting = setting("probability", 1.0, 0.0, 1.0);
/// The level of what lies outside of the picture.
const FILL: Setting = setting("fill", 0.0, 0.0, 255.0);

/// All augmentations.
pub const AUGMENTATIONS: &[AugmentationRow] = &[
    AugmentationRow {
        // Left and right change places.
        name: "horizontal_flip",
        settings: &[HALF],
        apply: Apply::Picture(geometry::horizontal_flip),
    },
    AugmentationRow {
        // Top and bottom change places.
        name: "vertical_flip",
        settings: &[HALF],
        apply: Apply::Picture(geometry::vertical_flip),
    },
    AugmentationRow {
        // `padding` pixels of `fill` on every side, then a part of the former size at any place. Source: Lee et al.,
        // "Deeply-supervised nets", 2015.
        name: "random_crop",
        settings: &[setting("padding", 4.0, 0.0, 1024.0), FILL],
        apply: Apply::Picture(geometry::random_crop),
    },
    AugmentationRow {
        // About the middle, by up to `degrees` in either direction; bilinear.
        name: "rotation",
        settings: &[setting("degrees", 15.0, 0.0, 180.0), FILL],
        apply: Apply::Picture(geometry::rotation),
    },
    AugmentationRow {
        // Brightness, contrast and saturation times 1 - x to 1 + x; hue turned by up to that part of the circle. Source:
        // Krizhevsky et al., "ImageNet classification with deep convolutional neural networks", 2012, in the form of
        // torchvision's ColorJitter, in this order.
        name: "color_jitter",
        settings: &[
            setting("brightness", 0.2, 0.0, 1.0),
            setting("contrast", 0.2, 0.0, 1.0),
            setting("saturation", 0.2, 0.0, 1.0),
            setting("hue", 0.0, 0.0, 0.5),
        ],
        apply: Apply::Picture(color::jitter),
    },
    AugmentationRow {
        // A square of `size` pixels around any pixel becomes `fill`. Source: DeVries and Taylor, "Improved
        // regularization of convolutional neural networks with cutout", 2017.
        name: "cutout",
        settings: &[setting("size", 8.0, 1.0, 1024.0), FILL, ALWAYS],
        apply: Apply::Picture(erase::cutout),
    },
    AugmentationRow {
        // A rectangle of part `smallest` to `largest` of the area, with sides in proportion `aspect` to 1 / `aspect`,
        // becomes noise. Source: Zhong et al., "Random erasing data augmentation", 2020.
        name: "random_erasing",
        settings: &[
            HALF,
            setting("smallest", 0.02, 0.0, 1.0),
            setting("largest", 0.33, 0.0, 1.0),
            setting("aspect", 0.3, 0.01, 1.0),
        ],
        apply: Apply::Picture(erase::random_erasing),
    },
    AugmentationRow {
        // `operations` of 14, each as strong as `magnitude`. Source: Cubuk et al., "RandAugment: practical automated
        // data augmentation with a reduced search space", 2020.
        name: "rand_augment",
        settings: &[
            setting("operations", 2.0, 1.0, 14.0),
            setting("magnitude", 9.0, 0.0, 30.0),
            setting("fill", 128.0, 0.0, 255.0),
        ],
        apply: Apply::Picture(rand_augment::rand_augment),
    },
    AugmentationRow {
        // By up to `seconds` earlier or later; silence follows.
        name: "time_shift",
        settings: &[setting("seconds", 0.1, 0.0, 60.0)],
        apply: Apply::Wave(sound::time_shift),
    },
    AugmentationRow {
        // White noise, as many decibels below the sound as a number between `loudest` and `quietest`.
        name: "noise",
        settings: &[ALWAYS, setting("loudest", 5.0, -40.0, 100.0), setting("quietest", 30.0, -40.0, 100.0)],
        apply: Apply::Wave(sound::noise),
    },
    AugmentationRow {
        // Played 1 - `spread` to 1 + `spread` times as fast, which changes the pitch, too. Source: Ko et al., "Audio
        // augmentation for speech recognition", 2015.
        name: "speed",
        settings: &[setting("spread", 0.1, 0.0, 0.5)],
        apply: Apply::Wave(sound::speed),
    },
    AugmentationRow {
        // Stretches of frames and of bands, of up to these parts of all, become the mean. Source: Park et al.,
        // "SpecAugment: a simple data augmentation method for automatic speech recognition", 2019.
        name: "spec_augment",
        settings: &[
            setting("time_masks", 2.0, 0.0, 100.0),
            setting("time", 0.2, 0.0, 1.0),
            setting("frequency_masks", 2.0, 0.0, 100.0),
            setting("frequency", 0.2, 0.0, 1.0),
        ],
        apply: Apply::Spectrogram(sound::spec_augment),
    },
    AugmentationRow {
        // Each token goes with this probability. Source, also of the next one: Wei and Zou, "EDA: easy data augmentation
        // techniques for boosting performance on text classification tasks", 2019.
        name: "random_deletion",
        settings: &[setting("probability", 0.1, 0.0, 1.0)],
        apply: Apply::Tokens(text::random_deletion),
    },
    AugmentationRow {
        // Two tokens change places, `part` times as often as there are tokens.
        name: "random_swap",
        settings: &[setting("part", 0.1, 0.0, 1.0)],
        apply: Apply::Tokens(|tokens, settings, random| text::random_swap(tokens, settings, random)),
    },
    AugmentationRow {
        // The weighted mean with another sample of the batch, and of the labels. Source: Zhang et al., "mixup: beyond
        // empirical risk minimization", 2018.
        name: "mixup",
        settings: &[setting("alpha", 0.2, 1e-3, 1e3), ALWAYS],
        apply: Apply::Batch(mix::mixup, mix::mixup),
    },
    AugmentationRow {
        // A rectangle from another picture of the batch; the labels mix by area. Source: Yun et al., "CutMix:
        // regularization strategy to train strong classifiers with localizable features", 2019.
        name: "cutmix",
        settings: &[setting("alpha", 1.0, 1e-3, 1e3), ALWAYS],
        apply: Apply::Batch(mix::cutmix, mix::cutmix),
    },
];

/// A row of [`AUGMENTATIONS`] with its numbers. In files: `{ name = "random_crop", padding = 4 }`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(try_from = "Named", into = "Named")]
pub struct Augmentation {
    row: &'static AugmentationRow,
    settings: Settings,
}

/// The form in files.
#[derive(Serialize, Deserialize)]
struct Named {
    name: String,
    #[serde(flatten)]
    settings: BTreeMap<String, f64>,
}

impl Augmentation {
    /// The augmentation of this name.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for an unknown name or setting, with the nearest one, or a number out of range.
    pub fn new(name: &str, settings: &BTreeMap<String, f64>) -> Result<Self, DataError> {
        let row = AUGMENTATIONS.iter().find(|row| row.name == name).ok_or_else(|| {
            let names: Vec<&str> = AUGMENTATIONS.iter().map(|row| row.name).collect();
            let what = format!("there is no augmentation `{name}`");
            DataError::new(ErrorKind::Usage, what, "the augmentations", suggestion(name, &names))
        })?;
        Ok(Augmentation { row, settings: Settings::new(name, row.settings, settings)? })
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.row.name
    }

    /// Whether it mixes the samples of a batch, which gives labels that are class probabilities.
    pub fn mixes(&self) -> bool {
        matches!(self.row.apply, Apply::Batch(..))
    }

    /// Changes a picture, unless it is for something else.
    pub(crate) fn change(&self, picture: &mut Picture<u8>, random: &mut Random) {
        if let Apply::Picture(apply) = self.row.apply {
            apply(picture, &self.settings, random);
        }
    }

    /// Changes a wave of so many samples a second, unless it is for something else.
    pub(crate) fn change_wave(&self, wave: &mut [f32], rate: usize, random: &mut Random) {
        if let Apply::Wave(apply) = self.row.apply {
            apply(wave, rate, &self.settings, random);
        }
    }

    /// Changes features of a wave, unless it is for something else.
    pub(crate) fn change_spectrogram(&self, features: &mut Picture<f32>, random: &mut Random) {
        if let Apply::Spectrogram(apply) = self.row.apply {
            apply(features, &self.settings, random);
        }
    }

    /// Changes the tokens of a text, unless it is for something else.
    pub(crate) fn change_tokens(&self, tokens: &mut Vec<u32>, random: &mut Random) {
        if let Apply::Tokens(apply) = self.row.apply {
            apply(tokens, &self.settings, random);
        }
    }

    /// Mixes the samples of a batch, unless it is for single ones.
    pub(crate) fn mix<T: Mixable>(&self, samples: &mut [Picture<T>], random: &mut Random) -> Option<Mixture> {
        let Apply::Batch(levels, reals) = self.row.apply else { return None };
        let mix = T::choose(levels, reals);
        random.chance(self.settings.get("probability")).then(|| mix(samples, &self.settings, random))
    }

    /// Confirms that it acts on samples of this kind.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] when it does not.
    pub(crate) fn check(&self, kind: &SampleKind) -> Result<(), DataError> {
        let fits = match (self.row.apply, kind) {
            (Apply::Picture(_), SampleKind::Files) => true,
            (Apply::Picture(_) | Apply::Batch(..), SampleKind::Array { dtype, .. }) => *dtype == DType::U8,
            (Apply::Wave(_) | Apply::Spectrogram(_), SampleKind::Sounds) => true,
            (Apply::Tokens(_), SampleKind::Tokens) => true,
            (Apply::Batch(..), SampleKind::Files | SampleKind::Sounds) => true,
            _ => false,
        };
        if fits {
            return Ok(());
        }
        let what = format!("the augmentation `{}` is not for samples that are {kind}", self.row.name);
        let hint = "pictures must be files or arrays of u8, sounds WAV files, texts tokens; or leave it out";
        Err(DataError::new(ErrorKind::Usage, what, "the augmentations", hint))
    }
}

/// Values that augmentations mix.
pub(crate) trait Mixable: Copy {
    /// The function for these values.
    fn choose(levels: Mix<u8>, reals: Mix<f32>) -> Mix<Self>;
}

impl Mixable for u8 {
    fn choose(levels: Mix<u8>, _: Mix<f32>) -> Mix<u8> {
        levels
    }
}

impl Mixable for f32 {
    fn choose(_: Mix<u8>, reals: Mix<f32>) -> Mix<f32> {
        reals
    }
}

impl PartialEq for Augmentation {
    fn eq(&self, other: &Self) -> bool {
        self.row.name == other.row.name && self.settings == other.settings
    }
}

impl TryFrom<Named> for Augmentation {
    type Error = DataError;

    fn try_from(named: Named) -> Result<Self, DataError> {
        Augmentation::new(&named.name, &named.settings)
    }
}

impl From<Augmentation> for Named {
    fn from(augmentation: Augmentation) -> Self {
        let own = |(name, value): (&str, f64)| (name.to_owned(), value);
        Named {
            name: augmentation.row.name.to_owned(),
            settings: augmentation.settings.iter().map(own).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Size;

    /// A picture of random levels.
    pub(super) fn noise(height: usize, width: usize, channels: usize, seed: u64) -> Picture<u8> {
        let mut random = Random::of(&[seed]);
        let data = (0..height * width * channels).map(|_| random.below(256) as u8).collect();
        Picture { size: Size { height, width }, channels, data }
    }

    pub(super) fn augmentation(name: &str, settings: &[(&str, f64)]) -> Augmentation {
        Augmentation::new(name, &settings.iter().map(|&(n, v)| (n.to_owned(), v)).collect()).unwrap()
    }

    #[test]
    fn every_one_keeps_any_shape_and_follows_from_the_random_numbers() {
        for row in
            AUGMENTATIONS.iter().filter(|row| matches!(row.apply, Apply::Picture(_) | Apply::Batch(..)))
        {
            let one = augmentation(row.name, &[]);
            let mut changed = false;
            for seed in 0..30 {
                let (height, width, channels) =
                    (1 + seed as usize % 7, 1 + seed as usize % 5, [1, 3][seed as usize % 2]);
                let make = |seed: u64| {
                    let mut batch: Vec<Picture<u8>> =
                        (0..3).map(|i| noise(height, width, channels, i)).collect();
                    let mut random = Random::of(&[seed]);
                    batch.iter_mut().for_each(|picture| one.change(picture, &mut random));
                    one.mix(&mut batch, &mut random);
                    batch
                };
                let batch = make(seed);
                for (i, picture) in batch.iter().enumerate() {
                    let before = noise(height, width, channels, i as u64);
                    assert_eq!((picture.size, picture.channels), (before.size, before.channels));
                    assert_eq!(picture.data.len(), before.data.len());
                    changed |= picture.data != before.data;
                }
                assert_eq!(batch, make(seed), "{}", row.name);
            }
            assert!(changed, "{}", row.name);
        }
    }

    #[test]
    fn files_name_augmentations_and_errors_what_is_near() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        struct File {
            augment: Vec<Augmentation>,
        }
        let text = "augment = [{ name = \"random_crop\", padding = 2 }, { name = \"horizontal_flip\" }]";
        let read: File = toml::from_str(text).unwrap();
        let expected =
            [augmentation("random_crop", &[("padding", 2.0)]), augmentation("horizontal_flip", &[])];
        assert_eq!(read.augment, expected);
        assert_eq!(toml::from_str::<File>(&toml::to_string(&read).unwrap()).unwrap(), read);
        for (good, bad, hint) in
            [("random_crop", "randomcrop", "`random_crop`"), ("padding", "pading", "`padding`")]
        {
            let error = toml::from_str::<File>(&text.replace(good, bad)).unwrap_err().to_string();
            assert!(error.contains(&format!("did you mean {hint}?")), "{error}");
        }
    }
}
