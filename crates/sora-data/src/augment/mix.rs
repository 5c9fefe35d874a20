//! Augmentations that mix the samples of a batch.

use super::erase::parts;
use crate::picture::{Channel, Picture};
use crate::random::Random;
use crate::settings::Settings;

/// How the samples of a batch were mixed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Mixture {
    /// The sample that each was mixed with.
    pub(crate) partners: Vec<usize>,
    /// The share of each that is its own.
    pub(crate) share: f64,
}

impl Mixture {
    fn draw(samples: usize, settings: &Settings, random: &mut Random) -> Self {
        let share = random.beta(settings.get("alpha"));
        let mut partners: Vec<usize> = (0..samples).collect();
        random.shuffle(&mut partners);
        Mixture { partners, share }
    }

    /// Mixes rows of class probabilities, `classes` each, as the samples were.
    pub(crate) fn mix_labels(&self, rows: &mut [f32], classes: usize) {
        let own = rows.to_vec();
        let share = crate::narrow(self.share);
        for (row, &partner) in rows.chunks_exact_mut(classes).zip(&self.partners) {
            let other = &own[partner * classes..][..classes];
            row.iter_mut().zip(other).for_each(|(to, from)| *to = share * *to + (1.0 - share) * from);
        }
    }
}

pub(super) fn mixup<T: Channel>(
    pictures: &mut [Picture<T>],
    settings: &Settings,
    random: &mut Random,
) -> Mixture {
    let mixture = Mixture::draw(pictures.len(), settings, random);
    let own = pictures.to_vec();
    let parts = [T::weight(mixture.share), T::weight(1.0 - mixture.share)];
    for (picture, &partner) in pictures.iter_mut().zip(&mixture.partners) {
        for (to, from) in picture.data.iter_mut().zip(&own[partner].data) {
            *to = T::blend([(*to, parts[0]), (*from, parts[1])].into_iter());
        }
    }
    mixture
}

pub(super) fn cutmix<T: Channel>(
    pictures: &mut [Picture<T>],
    settings: &Settings,
    random: &mut Random,
) -> Mixture {
    let mut mixture = Mixture::draw(pictures.len(), settings, random);
    let Some(size) = pictures.first().map(|picture| picture.size) else { return mixture };
    // Sides in proportion to the picture's, around any pixel, and cut off at its edge.
    let side = (1.0 - mixture.share).sqrt();
    let mut around = |extent: usize| {
        let (middle, half) = (random.below(extent), (side * extent as f64) as usize / 2);
        middle.saturating_sub(half)..(middle + half).min(extent)
    };
    let (rows, columns) = (around(size.height), around(size.width));
    mixture.share = 1.0 - (rows.len() * columns.len()) as f64 / (size.height * size.width) as f64;
    let mut own = pictures.to_vec();
    for (picture, &partner) in pictures.iter_mut().zip(&mixture.partners) {
        let from = parts(&mut own[partner], rows.clone(), columns.clone());
        parts(picture, rows.clone(), columns.clone())
            .zip(from)
            .for_each(|(to, from)| to.copy_from_slice(from));
    }
    mixture
}

#[cfg(test)]
mod tests {
    use super::super::tests::{augmentation, noise};
    use super::*;

    /// Pictures of one level each: 10, 20, 30 ….
    fn plain(count: usize) -> Vec<Picture<u8>> {
        let level = |i: usize| vec![10 * (i as u8 + 1); 12 * 10 * 3];
        (0..count).map(|i| Picture { data: level(i), ..noise(12, 10, 3, 0) }).collect()
    }

    #[test]
    fn mixup_takes_means_of_pictures_and_labels() {
        let mixup = augmentation("mixup", &[("alpha", 1.0)]);
        let mut shares = 0.0;
        for seed in 0..400 {
            let mut pictures = plain(5);
            let Mixture { partners, share } = mixup.mix(&mut pictures, &mut Random::of(&[seed])).unwrap();
            for (i, picture) in pictures.iter().enumerate() {
                let [own, other] = [i, partners[i]].map(|i| 10.0 * (i as f64 + 1.0));
                let expected = share * own + (1.0 - share) * other;
                assert!(picture.data.iter().all(|&v| (f64::from(v) - expected).abs() <= 0.51), "{expected}");
            }
            let mut sorted = partners;
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 1, 2, 3, 4]);
            shares += share;
        }
        // Evenly from 0 to 1: a deviation of 0.29 / 20.
        assert!((shares / 400.0 - 0.5).abs() < 0.06, "{shares}");
    }

    #[test]
    fn cutmix_pastes_a_rectangle_and_labels_tell_its_area() {
        let cutmix = augmentation("cutmix", &[]);
        let mut cut = 0;
        for seed in 0..400 {
            let mut pictures = plain(4);
            let Mixture { partners, share } = cutmix.mix(&mut pictures, &mut Random::of(&[seed])).unwrap();
            for (i, picture) in pictures.iter().enumerate() {
                let count = |level: usize| {
                    picture.data.iter().filter(|&&v| usize::from(v) == 10 * (level + 1)).count()
                };
                match partners[i] == i {
                    true => assert_eq!(count(i), 360),
                    false => {
                        assert_eq!(count(i) + count(partners[i]), 360);
                        assert!((count(i) as f64 / 360.0 - share).abs() < 1e-12);
                        cut += usize::from(count(partners[i]) > 0);
                    }
                }
            }
        }
        assert!(cut > 600, "{cut}");
    }

    #[test]
    fn labels_mix_as_the_samples_and_remain_probabilities() {
        let mixture = Mixture { partners: vec![1, 2, 0], share: 0.75 };
        let mut rows = [1., 0., 0., 0., 1., 0., 0., 0., 1.];
        mixture.mix_labels(&mut rows, 3);
        assert_eq!(rows, [0.75, 0.25, 0., 0., 0.75, 0.25, 0.25, 0., 0.75]);
    }

    #[test]
    fn a_probability_of_less_than_one_leaves_batches_alone() {
        let mixup = augmentation("mixup", &[("probability", 0.25)]);
        let mixed =
            (0..1000).filter(|&seed| mixup.mix(&mut plain(2), &mut Random::of(&[seed])).is_some()).count();
        assert!((200..300).contains(&mixed), "{mixed}");
    }
}
