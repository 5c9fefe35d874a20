//! Blur: what is out of focus, behind glass, or moves.

use super::field::{filtered, smeared, smoothed, zoomed};
use crate::picture::Picture;
use crate::random::Random;
use crate::{Size, narrow};

/// Where the Gaussian in front of and behind the glass ends, in standard deviations.
const END: f64 = 4.0;

pub(super) fn defocus(picture: &mut Picture<f32>, numbers: &[f64], _: &mut Random) {
    let [radius, deviation] = [numbers[0], numbers[1]];
    let edge: isize = if radius <= 8.0 { 1 } else { 2 };
    let reach = radius as isize;
    let inside = |y: isize, x: isize| ((y * y + x * x) as f64) <= radius * radius;
    let smooth = |y: isize, x: isize| (-0.5 * ((y * y + x * x) as f64) / (deviation * deviation)).exp();
    let around = |far: isize| (-far..=far).flat_map(move |y| (-far..=far).map(move |x| (y, x)));
    // The disk, each pixel of which is spread over its neighbours.
    let weight = |(y, x): (isize, isize)| {
        let value: f64 = around(edge).filter(|&(b, a)| inside(y - b, x - a)).map(|(b, a)| smooth(b, a)).sum();
        (y, x, value)
    };
    let taps: Vec<(isize, isize, f64)> =
        around(reach + edge).map(weight).filter(|tap| tap.2 > 1e-6).collect();
    let sum: f64 = taps.iter().map(|tap| tap.2).sum();
    let taps: Vec<_> = taps.into_iter().map(|(y, x, value)| (y, x, narrow(value / sum))).collect();
    *picture = filtered(picture, &taps);
}

pub(super) fn glass(picture: &mut Picture<f32>, numbers: &[f64], random: &mut Random) {
    let (deviation, far, times) = (numbers[0], numbers[1].round() as usize, numbers[2].round() as usize);
    let mut shuffled = smoothed(picture, deviation, END);
    let (Size { height, width }, channels) = (picture.size, picture.channels);
    for _ in 0..times {
        for y in (far..height.saturating_sub(far)).rev() {
            for x in (far..width.saturating_sub(far)).rev() {
                // As many pixels up and left as far, one fewer down and right.
                let (up, left) = (random.below(2 * far), random.below(2 * far));
                let (a, b) = (y * width + x, (y + up - far) * width + x + left - far);
                for channel in 0..channels {
                    shuffled.data.swap(a * channels + channel, b * channels + channel);
                }
            }
        }
    }
    *picture = smoothed(&shuffled, deviation, END);
}

pub(super) fn motion(picture: &mut Picture<f32>, numbers: &[f64], random: &mut Random) {
    *picture = smeared(picture, numbers[0], numbers[1], random.between(-45.0, 45.0));
}

pub(super) fn zoom(picture: &mut Picture<f32>, numbers: &[f64], _: &mut Random) {
    let [most, step] = [numbers[0], numbers[1]];
    let steps = ((most - 1.0) / step).round() as usize + 1;
    // The picture itself counts twice.
    let mut sum = picture.clone();
    for at in 0..steps {
        let nearer = zoomed(picture, 1.0 + at as f64 * step);
        sum.data.iter_mut().zip(&nearer.data).for_each(|(sum, v)| *sum += v);
    }
    let share = 1.0 / (steps as f32 + 1.0);
    sum.data.iter_mut().for_each(|v| *v *= share);
    *picture = sum;
}
