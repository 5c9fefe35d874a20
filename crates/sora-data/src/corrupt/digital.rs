//! What cameras, screens and files do.

use std::io::Cursor;

use image::codecs::jpeg::JpegEncoder;
use image::{ExtendedColorType, ImageFormat};

use super::field::{levels, plane, smoothed, warped};
use crate::picture::Picture;
use crate::preprocess::Filter;
use crate::random::Random;
use crate::resample::resize;
use crate::{Size, narrow};

/// Where the Gaussian of displacements ends, in standard deviations.
const END: f64 = 3.0;

/// The value of each colour grows, its hue and saturation stay.
pub(super) fn brightness(picture: &mut Picture<f32>, numbers: &[f64], _: &mut Random) {
    let added = narrow(numbers[0]);
    for pixel in picture.data.chunks_exact_mut(picture.channels) {
        let value = pixel.iter().copied().fold(0.0, f32::max);
        let brighter = (value + added).min(1.0);
        let of = |v: f32| if value > 0.0 { v * (brighter / value) } else { brighter };
        pixel.iter_mut().for_each(|v| *v = of(*v));
    }
}

pub(super) fn contrast(picture: &mut Picture<f32>, numbers: &[f64], _: &mut Random) {
    let (channels, factor) = (picture.channels, narrow(numbers[0]));
    for channel in 0..channels {
        let own = || picture.data.iter().skip(channel).step_by(channels);
        let mean = own().sum::<f32>() / own().count().max(1) as f32;
        let values = picture.data.iter_mut().skip(channel).step_by(channels);
        values.for_each(|v| *v = mean + (*v - mean) * factor);
    }
}

/// An affine map that moves three points, then smooth displacements. Source of the latter: Simard, Steinkraus and Platt, "Best practices for
/// convolutional neural networks applied to visual document analysis", 2003.
pub(super) fn elastic(picture: &mut Picture<f32>, numbers: &[f64], random: &mut Random) {
    let Size { height, width } = picture.size;
    let side = height.min(width) as f64;
    let [strength, deviation, corner] = [numbers[0], numbers[1], numbers[2]].map(|share| share * side);
    let (middle, far) = ([height as f64 / 2.0, width as f64 / 2.0], (side / 3.0).max(1.0));
    // Three corners of a square around the middle, in (down, right) from it, and where each comes from.
    let corners = [[far, far], [far, -far], [-far, -far]];
    let moved = corners.map(|corner_at| corner_at.map(|at| at + random.between(-corner, corner)));
    // The map is linear in down and right: differences of corners along each give its columns.
    let down = [0, 1].map(|axis| (moved[1][axis] - moved[2][axis]) / (2.0 * far));
    let right = [0, 1].map(|axis| (moved[0][axis] - moved[1][axis]) / (2.0 * far));
    let base = [0, 1].map(|axis| moved[0][axis] - far * (down[axis] + right[axis]));
    *picture = warped(picture, |y, x| {
        let (b, a) = (y as f64 - middle[0], x as f64 - middle[1]);
        let at = |axis: usize| middle[axis] + base[axis] + b * down[axis] + a * right[axis];
        (at(0), at(1))
    });
    let [falls, shifts] = [0, 1].map(|_| {
        let noise = plane(picture.size, || random.between(-1.0, 1.0));
        if deviation > 0.0 { smoothed(&noise, deviation, END) } else { noise }
    });
    *picture = warped(picture, |y, x| {
        let at = |field: &Picture<f32>| strength * f64::from(field.data[y * width + x]);
        (y as f64 + at(&falls), x as f64 + at(&shifts))
    });
}

pub(super) fn pixelate(picture: &mut Picture<f32>, numbers: &[f64], _: &mut Random) {
    let size = picture.size;
    let fewer = |extent: usize| ((extent as f64 * numbers[0]) as usize).max(1);
    let coarse = Size { height: fewer(size.height), width: fewer(size.width) };
    let own = std::mem::replace(picture, Picture { size, channels: 1, data: Vec::new() });
    *picture = resize(resize(own, coarse, Filter::Area), size, Filter::Area);
}

/// Written as JPEG and read again; a picture that is too large for a JPEG file stays.
pub(super) fn jpeg(picture: &mut Picture<f32>, numbers: &[f64], _: &mut Random) {
    let mut bytes = Vec::new();
    let quality = numbers[0].round().clamp(1.0, 100.0) as u8;
    let kind = if picture.channels == 3 { ExtendedColorType::Rgb8 } else { ExtendedColorType::L8 };
    let extent = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let (width, height) = (extent(picture.size.width), extent(picture.size.height));
    let mut encoder = JpegEncoder::new_with_quality(Cursor::new(&mut bytes), quality);
    if encoder.encode(&levels(picture), width, height, kind).is_err() {
        return;
    }
    let Ok(read) = image::load_from_memory_with_format(&bytes, ImageFormat::Jpeg) else { return };
    let read = if picture.channels == 3 { read.to_rgb8().into_raw() } else { read.to_luma8().into_raw() };
    picture.data.iter_mut().zip(read).for_each(|(to, v)| *to = f32::from(v) / 255.0);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp() -> Picture<f32> {
        let data = (0..12 * 15 * 3).map(|i| (i / 3 % 15) as f32 / 20.0 + 0.1 * (i % 3) as f32).collect();
        Picture { size: Size { height: 12, width: 15 }, channels: 3, data }
    }

    #[test]
    fn without_strength_nothing_changes() {
        let random = || Random::of(&[1]);
        for (name, apply, numbers) in [
            ("brightness", brightness as fn(&mut Picture<f32>, &[f64], &mut Random), &[0.0][..]),
            ("contrast", contrast, &[1.0]),
            ("elastic", elastic, &[0.0, 0.1, 0.0]),
            ("pixelate", pixelate, &[1.0]),
        ] {
            let mut after = ramp();
            apply(&mut after, numbers, &mut random());
            let far = after.data.iter().zip(&ramp().data).fold(0f32, |far, (a, b)| far.max((a - b).abs()));
            assert!(far < 1e-5, "{name}: {far}");
        }
        // The best JPEG is off by little more than rounding.
        let mut after = ramp();
        jpeg(&mut after, &[100.0], &mut random());
        let far = after.data.iter().zip(&ramp().data).fold(0f32, |far, (a, b)| far.max((a - b).abs()));
        assert!(far > 0.0 && far < 0.02, "{far}");
    }

    #[test]
    fn brighter_colours_keep_their_hue_and_saturation() {
        let mut pixel =
            Picture { size: Size { height: 1, width: 1 }, channels: 3, data: vec![0.4, 0.2, 0.1] };
        brightness(&mut pixel, &[0.4], &mut Random::of(&[]));
        for (found, expected) in pixel.data.iter().zip([0.8, 0.4, 0.2]) {
            assert!((found - expected).abs() < 1e-6, "{found}");
        }
    }

    #[test]
    fn elastic_corners_move_as_far_as_they_are_told() {
        // A ramp along the columns shows by its level where a pixel comes from.
        let size = Size { height: 30, width: 30 };
        let before = Picture { size, channels: 1, data: (0..900).map(|i| (i % 30) as f32).collect() };
        let mut most = 0f32;
        for seed in 0..50 {
            let mut after = before.clone();
            elastic(&mut after, &[0.0, 0.0, 0.1], &mut Random::of(&[seed]));
            // The corner at 10 pixels down and right of the middle.
            most = most.max((after.data[25 * 30 + 25] - 25.0).abs());
        }
        assert!((2.0..=3.001).contains(&most), "{most}");
    }
}
