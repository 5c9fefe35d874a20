//! Noise of cameras.

use crate::narrow;
use crate::picture::Picture;
use crate::random::Random;

pub(super) fn gaussian(picture: &mut Picture<f32>, numbers: &[f64], random: &mut Random) {
    picture.data.iter_mut().for_each(|level| *level += narrow(numbers[0] * random.normal()));
}

pub(super) fn shot(picture: &mut Picture<f32>, numbers: &[f64], random: &mut Random) {
    let photons = numbers[0];
    let seen = |level: f32, random: &mut Random| poisson(f64::from(level) * photons, random) / photons;
    picture.data.iter_mut().for_each(|level| *level = narrow(seen(*level, random)));
}

pub(super) fn impulse(picture: &mut Picture<f32>, numbers: &[f64], random: &mut Random) {
    for level in &mut picture.data {
        let (hit, white) = (random.chance(numbers[0]), random.chance(0.5));
        if hit {
            *level = f32::from(u8::from(white));
        }
    }
}

/// A number of the Poisson distribution of this mean: counted up to 30, beyond by the normal distribution, rounded. Source: Knuth, "The art of
/// computer programming", volume 2, 1969.
fn poisson(mean: f64, random: &mut Random) -> f64 {
    if mean > 30.0 {
        return (mean + mean.sqrt() * random.normal()).round().max(0.0);
    }
    let (end, mut product, mut count) = ((-mean).exp(), random.unit(), 0.0);
    while product > end {
        product *= random.unit();
        count += 1.0;
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_have_mean_and_variance_of_poisson() {
        let mut random = Random::of(&[5]);
        for mean in [0.0, 0.5, 7.0, 29.0, 31.0, 400.0] {
            let drawn: Vec<f64> = (0..20_000).map(|_| poisson(mean, &mut random)).collect();
            let found = drawn.iter().sum::<f64>() / 2e4;
            let variance = drawn.iter().map(|x| (x - found) * (x - found)).sum::<f64>() / 2e4;
            let deviation = (mean / 2e4).sqrt();
            assert!((found - mean).abs() <= 5.0 * deviation, "{mean}: {found}");
            assert!((variance - mean).abs() <= 0.05 * mean + 0.01, "{mean}: {variance}");
        }
    }
}
