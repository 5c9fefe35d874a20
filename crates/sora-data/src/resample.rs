//! Changing a picture's size.
//!
//! The convention is Pillow's `Image.resize` (so torchvision's on pictures): pixel centres lie at half
//! integers, and shrinking widens the filter by the scale, which averages over all source pixels (antialias).
//! Rows are resampled before columns; 8-bit pictures are rounded to 8 bits after each, with 22-bit weights.
//! Every level equals Pillow 11.3's; Pillow 13 picks the order of the two by shape, which moves single values
//! by one level.
//! TensorFlow's `tf.image.resize` and OpenCV differ when shrinking: they do not antialias by default.

use crate::picture::{Channel, Picture};
use crate::preprocess::{Filter, Size};

/// The source pixels of one target pixel: the first one and the weight of each.
struct Taps<W> {
    first: usize,
    weights: Vec<W>,
}

/// `picture` at `target` size.
pub(crate) fn resize<T: Channel>(picture: Picture<T>, target: Size, filter: Filter) -> Picture<T> {
    let wide = match picture.size.width == target.width {
        true => picture,
        false => rows(&picture, &taps::<T>(picture.size.width, target.width, filter)),
    };
    match wide.size.height == target.height {
        true => wide,
        false => columns(&wide, &taps::<T>(wide.size.height, target.height, filter)),
    }
}

fn rows<T: Channel>(picture: &Picture<T>, taps: &[Taps<T::Weight>]) -> Picture<T> {
    let channels = picture.channels;
    let mut data = Vec::with_capacity(picture.size.height * taps.len() * channels);
    for row in picture.data.chunks_exact(picture.size.width * channels) {
        for tap in taps {
            let start = tap.first * channels;
            for channel in start..start + channels {
                let values = row[channel..].iter().step_by(channels).copied();
                data.push(T::blend(values.zip(tap.weights.iter().copied())));
            }
        }
    }
    Picture { size: Size { width: taps.len(), ..picture.size }, channels, data }
}

fn columns<T: Channel>(picture: &Picture<T>, taps: &[Taps<T::Weight>]) -> Picture<T> {
    let row = picture.size.width * picture.channels;
    let mut data = Vec::with_capacity(taps.len() * row);
    for tap in taps {
        let source = &picture.data[tap.first * row..];
        for at in 0..row {
            let values = source[at..].iter().step_by(row).copied();
            data.push(T::blend(values.zip(tap.weights.iter().copied())));
        }
    }
    Picture { size: Size { height: taps.len(), ..picture.size }, channels: picture.channels, data }
}

fn taps<T: Channel>(source: usize, target: usize, filter: Filter) -> Vec<Taps<T::Weight>> {
    let scale = source as f64 / target as f64;
    let taps = (0..target).map(|i| tap((i as f64 + 0.5) * scale, scale, source, filter));
    let narrow =
        |t: Taps<f64>| Taps { first: t.first, weights: t.weights.into_iter().map(T::weight).collect() };
    taps.map(narrow).collect()
}

/// The taps around `center`, in source pixels.
fn tap(center: f64, scale: f64, source: usize, filter: Filter) -> Taps<f64> {
    let (radius, kernel): (f64, fn(f64) -> f64) = match filter {
        Filter::Nearest => {
            return Taps { first: (center as usize).min(source - 1), weights: vec![1.0] };
        }
        Filter::Area => (0.5, boxcar),
        Filter::Bilinear => (1.0, triangle),
        Filter::Bicubic => (2.0, cubic),
    };
    let widened = scale.max(1.0);
    let support = radius * widened;
    // `as usize` takes negative positions to zero.
    let first = (center - support + 0.5) as usize;
    let end = ((center + support + 0.5) as usize).min(source);
    let at = |i: usize| kernel((i as f64 - center + 0.5) * (1.0 / widened));
    let mut weights: Vec<f64> = (first..end).map(at).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter_mut().for_each(|w| *w /= sum);
    Taps { first, weights }
}

fn boxcar(x: f64) -> f64 {
    if x > -0.5 && x <= 0.5 { 1.0 } else { 0.0 }
}

fn triangle(x: f64) -> f64 {
    (1.0 - x.abs()).max(0.0)
}

/// Keys' cubic with a = -0.5. Source: R. Keys, "Cubic convolution interpolation", 1981.
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    match x {
        _ if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
        _ if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILTERS: [Filter; 4] = [Filter::Nearest, Filter::Area, Filter::Bilinear, Filter::Bicubic];

    /// The picture of the fixtures: pixel `i` holds `i * i * 7 + i * 13` modulo 251.
    fn pattern(height: usize, width: usize, channels: usize) -> Picture<u8> {
        let data = (0..height * width * channels).map(|i| ((i * i * 7 + i * 13) % 251) as u8).collect();
        Picture { size: Size { height, width }, channels, data }
    }

    /// `tests/data/resize.txt` holds what Pillow 11.3 makes of [`pattern`]: every level must be the same.
    #[test]
    fn levels_equal_pillow() {
        let mut checked = 0;
        for line in include_str!("../tests/data/resize.txt").lines().filter(|l| !l.starts_with('#')) {
            let mut words = line.split(' ');
            let filter: Filter = words.next().unwrap().parse().unwrap();
            let mut number = || words.next().unwrap().parse::<usize>().unwrap();
            let [h, w, channels, height, width] = std::array::from_fn(|_| number());
            let expected: Vec<u8> = words.map(|v| v.parse().unwrap()).collect();
            let resized = resize(pattern(h, w, channels), Size { height, width }, filter);
            assert_eq!(resized.data, expected, "{line:.60}");
            checked += 1;
        }
        assert!(checked >= 40);
    }

    #[test]
    fn real_numbers_agree_with_levels() {
        for filter in FILTERS {
            for (height, width) in [(3, 4), (20, 31), (9, 11)] {
                // Far enough from both ends that no overshoot is clamped.
                let mut levels = pattern(9, 11, 3);
                levels.data.iter_mut().for_each(|v| *v = 64 + *v / 2);
                let data = levels.data.iter().map(|&v| f32::from(v)).collect();
                let real = Picture { size: levels.size, channels: 3, data };
                let target = Size { height, width };
                let (a, b) = (resize(levels, target, filter), resize(real, target, filter));
                for (&x, &y) in a.data.iter().zip(&b.data) {
                    assert!((f32::from(x) - y.clamp(0.0, 255.0)).abs() <= 1.5, "{filter}: {x} {y}");
                }
            }
        }
    }
}
