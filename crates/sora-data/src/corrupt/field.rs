//! What corruptions of pictures share: levels from 0 to 1 as real numbers, seen through mirrors at the edges.

use crate::picture::Picture;
use crate::{Size, narrow};

/// The picture in 8 bits: clamped and rounded.
pub(super) fn levels(picture: &Picture<f32>) -> Vec<u8> {
    picture.data.iter().map(|&v| (v.clamp(0.0, 1.0) * 255.0).round() as u8).collect()
}

/// The place among `extent` that a mirror at either end shows at `at`; the first and the last are seen once.
pub(super) fn mirrored(at: isize, extent: usize) -> usize {
    let period = 2 * extent.saturating_sub(1);
    if period == 0 {
        return 0;
    }
    let at = at.rem_euclid(period as isize) as usize;
    at.min(period - at)
}

/// One channel as a picture of its own, filled by `value`.
pub(super) fn plane(size: Size, mut value: impl FnMut() -> f64) -> Picture<f32> {
    let data = (0..size.height * size.width).map(|_| narrow(value())).collect();
    Picture { size, channels: 1, data }
}

/// The picture whose pixel at row and column is what `place` says, bilinear between pixels and mirrored at the edges.
pub(super) fn warped(picture: &Picture<f32>, place: impl Fn(usize, usize) -> (f64, f64)) -> Picture<f32> {
    let (Size { height, width }, channels) = (picture.size, picture.channels);
    let mut data = Vec::with_capacity(picture.data.len());
    for y in 0..height {
        for x in 0..width {
            let (row, column) = place(y, x);
            let (top, left) = (row.floor(), column.floor());
            let (down, right) = (narrow(row - top), narrow(column - left));
            let pixel = |by: isize, beside: isize| {
                let line = mirrored(top as isize + by, height);
                (line * width + mirrored(left as isize + beside, width)) * channels
            };
            let corners = [pixel(0, 0), pixel(0, 1), pixel(1, 0), pixel(1, 1)];
            for channel in 0..channels {
                let [a, b, c, d] = corners.map(|at| picture.data[at + channel]);
                let (above, below) = (a + (b - a) * right, c + (d - c) * right);
                data.push(above + (below - above) * down);
            }
        }
    }
    Picture { size: picture.size, channels, data }
}

/// The weighted sum of what lies at offsets (down, right) of each pixel.
pub(super) fn filtered(picture: &Picture<f32>, taps: &[(isize, isize, f32)]) -> Picture<f32> {
    let (Size { height, width }, channels) = (picture.size, picture.channels);
    let row = width * channels;
    let mut data = vec![0f32; picture.data.len()];
    for (y, to) in data.chunks_exact_mut(row).enumerate() {
        for &(down, right, weight) in taps {
            let line = mirrored(y as isize + down, height) * row;
            let from = &picture.data[line..line + row];
            // The part of the row whose source is inside, then what mirrors show.
            let first = right.min(0).unsigned_abs().min(width);
            let end = width.saturating_sub(right.max(0) as usize).max(first);
            let start = (first as isize + right).max(0) as usize * channels;
            let inside = &mut to[first * channels..end * channels];
            inside.iter_mut().zip(&from[start.min(row)..]).for_each(|(to, v)| *to += weight * v);
            for x in (0..first).chain(end..width) {
                let source = mirrored(x as isize + right, width) * channels;
                for channel in 0..channels {
                    to[x * channels + channel] += weight * from[source + channel];
                }
            }
        }
    }
    Picture { size: picture.size, channels, data }
}

/// Smoothed by a Gaussian that ends at so many standard deviations, or the picture's longer side.
pub(super) fn smoothed(picture: &Picture<f32>, deviation: f64, end: f64) -> Picture<f32> {
    let most = picture.size.height.max(picture.size.width);
    let reach = ((deviation * end + 0.5) as usize).min(most) as isize;
    if reach == 0 {
        return picture.clone();
    }
    let weight = |at: isize| (-0.5 * (at as f64 / deviation).powi(2)).exp();
    let sum: f64 = (-reach..=reach).map(weight).sum();
    let taps = |down: isize, right: isize| {
        let tap = |at: isize| (at * down, at * right, narrow(weight(at) / sum));
        (-reach..=reach).map(tap).collect::<Vec<_>>()
    };
    filtered(&filtered(picture, &taps(0, 1)), &taps(1, 0))
}

/// The middle of the picture, `factor` times as large.
pub(super) fn zoomed(picture: &Picture<f32>, factor: f64) -> Picture<f32> {
    let middle = |extent: usize| (extent as f64 - 1.0) / 2.0;
    let (down, right) = (middle(picture.size.height), middle(picture.size.width));
    warped(picture, |y, x| (down + (y as f64 - down) / factor, right + (x as f64 - right) / factor))
}

/// Light smeared along a way of 2 `half` pixels in direction `angle` (degrees, 0 to the right, clockwise), the less the further, as a Gaussian says.
pub(super) fn smeared(picture: &Picture<f32>, half: f64, deviation: f64, angle: f64) -> Picture<f32> {
    let (down, right) = angle.to_radians().sin_cos();
    let weight = |at: f64| (-0.5 * (at / deviation).powi(2)).exp();
    let steps = 2 * half.round().max(0.0) as usize + 1;
    let sum: f64 = (0..steps).map(|at| weight(at as f64)).sum();
    let tap = |at: usize| {
        let far = at as f64;
        ((far * down).round() as isize, (far * right).round() as isize, narrow(weight(far) / sum))
    };
    filtered(picture, &(0..steps).map(tap).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    fn random(height: usize, width: usize, channels: usize) -> Picture<f32> {
        let mut random = Random::of(&[3]);
        let data = (0..height * width * channels).map(|_| narrow(random.unit())).collect();
        Picture { size: Size { height, width }, channels, data }
    }

    #[test]
    fn filters_equal_their_definition() {
        for (height, width, channels) in [(7, 9, 3), (2, 3, 1), (1, 6, 3)] {
            let before = random(height, width, channels);
            let taps = [(0, 0, 0.5), (-3, 2, 0.25), (1, -4, 0.125), (0, 12, 0.125)];
            let after = filtered(&before, &taps);
            for y in 0..height {
                for x in 0..width {
                    for c in 0..channels {
                        let value = |&(down, right, weight): &(isize, isize, f32)| {
                            let row = mirrored(y as isize + down, height);
                            let column = mirrored(x as isize + right, width);
                            weight * before.data[(row * width + column) * channels + c]
                        };
                        let sum: f32 = taps.iter().map(value).sum();
                        assert!((after.data[(y * width + x) * channels + c] - sum).abs() < 1e-6);
                    }
                }
            }
        }
        assert_eq!((-4..6).map(|at| mirrored(at, 3)).collect::<Vec<_>>(), [0, 1, 2, 1, 0, 1, 2, 1, 0, 1]);
    }

    #[test]
    fn what_changes_nothing_is_exact_and_smoothing_keeps_the_mean() {
        let before = random(6, 5, 3);
        assert_eq!(warped(&before, |y, x| (y as f64, x as f64)), before);
        assert_eq!(zoomed(&before, 1.0), before);
        assert_eq!(smeared(&before, 0.0, 1.0, 20.0), before);
        assert_eq!(smoothed(&before, 0.05, 4.0), before);
        let flat = Picture { data: vec![0.25; 90], ..before.clone() };
        for after in [smoothed(&flat, 2.0, 3.0), smeared(&flat, 6.0, 2.0, 30.0), zoomed(&flat, 1.3)] {
            assert!(after.data.iter().all(|v| (v - 0.25).abs() < 1e-6));
        }
        // Twice as large: the pixels in the middle move apart.
        let line =
            Picture { size: Size { height: 1, width: 5 }, channels: 1, data: vec![0.0, 1.0, 2.0, 3.0, 4.0] };
        assert_eq!(zoomed(&line, 2.0).data, [1.0, 1.5, 2.0, 2.5, 3.0]);
    }
}
