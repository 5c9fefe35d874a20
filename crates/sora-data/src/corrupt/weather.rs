//! Weather.

use super::field::{plane, smeared, zoomed};
use crate::Size;
use crate::narrow;
use crate::picture::Picture;
use crate::random::Random;

pub(super) fn snow(picture: &mut Picture<f32>, numbers: &[f64], random: &mut Random) {
    let &[mean, deviation, large, seen, half, spread, left] = numbers else { return };
    let flakes = plane(picture.size, || mean + deviation * random.normal());
    let mut flakes = zoomed(&flakes, large.max(1.0));
    let seen = narrow(seen);
    flakes.data.iter_mut().for_each(|v| *v = if *v < seen { 0.0 } else { v.min(1.0) });
    let flakes = smeared(&flakes, half, spread, random.between(45.0, 135.0));
    let (channels, left) = (picture.channels, narrow(left));
    // Flakes fall a second time turned about, and the ground between them is whiter.
    let both = flakes.data.iter().zip(flakes.data.iter().rev());
    for (pixel, (a, b)) in picture.data.chunks_exact_mut(channels).zip(both) {
        let gray = pixel.iter().sum::<f32>() / channels as f32 * 1.5 + 0.5;
        pixel.iter_mut().for_each(|v| *v = left * *v + (1.0 - left) * v.max(gray) + a + b);
    }
}

/// Ice flowers: ridges of a rough and of a smoother height map, and glitter between them. Their mean is that of photographs, about a half.
pub(super) fn frost(picture: &mut Picture<f32>, numbers: &[f64], random: &mut Random) {
    let [own, ice] = [narrow(numbers[0]), narrow(numbers[1])];
    let [flowers, ferns] = [1.6, 1.25].map(|decay| heights(picture.size, decay, random));
    let ridge = |height: f32| (1.0 - (2.0 * height - 1.0).abs()).powi(3);
    let channels = picture.channels;
    for (pixel, (&a, &b)) in picture.data.chunks_exact_mut(channels).zip(flowers.iter().zip(&ferns)) {
        let glitter = narrow(random.unit());
        let frost = (0.05 + 0.45 * ridge(a) + 0.45 * ridge(b) + 0.2 * glitter).min(1.0);
        pixel.iter_mut().for_each(|v| *v = own * *v + ice * frost);
    }
}

pub(super) fn fog(picture: &mut Picture<f32>, numbers: &[f64], random: &mut Random) {
    let (thick, decay) = (narrow(numbers[0]), numbers[1]);
    let most = picture.data.iter().copied().fold(0.0, f32::max);
    let clouds = heights(picture.size, decay, random);
    for (pixel, cloud) in picture.data.chunks_exact_mut(picture.channels).zip(clouds) {
        pixel.iter_mut().for_each(|v| *v = (*v + thick * cloud) * most / (most + thick));
    }
}

/// A fractal height map from 0 to 1: from each distance of points to half of it, what is added at random gets smaller by the square of `decay`.
/// Source: Fournier, Fussell and Carpenter, "Computer rendering of stochastic models", 1982 (diamond-square), on a torus.
fn heights(size: Size, decay: f64, random: &mut Random) -> Vec<f32> {
    let side = size.height.max(size.width).next_power_of_two();
    let mut map = vec![0f64; side * side];
    let (mut step, mut rough) = (side, 1.0);
    while step >= 2 {
        let half = step / 2;
        // First the middles of squares, then those of their edges, from four points each.
        for (offsets, corners) in [
            (
                &[(half, half)][..],
                [(half, half), (half, side - half), (side - half, half), (side - half, side - half)],
            ),
            (&[(0, half), (half, 0)][..], [(0, half), (0, side - half), (half, 0), (side - half, 0)]),
        ] {
            for &(down, right) in offsets {
                for y in (down..side).step_by(step) {
                    for x in (right..side).step_by(step) {
                        let near = |(b, a): &(usize, usize)| map[(y + b) % side * side + (x + a) % side];
                        let mean = corners.iter().map(near).sum::<f64>() / 4.0;
                        map[y * side + x] = mean + rough * random.between(-1.0, 1.0);
                    }
                }
            }
        }
        (step, rough) = (half, rough / (decay * decay));
    }
    let (low, high) = map.iter().fold((f64::MAX, f64::MIN), |(low, high), &v| (low.min(v), high.max(v)));
    let range = (high - low).max(1e-12);
    let rows = map.chunks_exact(side).take(size.height);
    rows.flat_map(|row| row[..size.width].iter().map(|v| narrow((v - low) / range))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn height_maps_fill_their_range_and_get_smoother() {
        let mut differences = Vec::new();
        for decay in [1.2, 2.0] {
            let map = heights(Size { height: 64, width: 64 }, decay, &mut Random::of(&[2]));
            let (low, high) = map.iter().fold((1f32, 0f32), |(a, b), &v| (a.min(v), b.max(v)));
            assert_eq!((map.len(), low, high), (4096, 0.0, 1.0));
            differences.push(map.windows(2).map(|w| (w[0] - w[1]).abs()).sum::<f32>());
        }
        assert!(differences[0] > 2.0 * differences[1], "{differences:?}");
    }

    #[test]
    fn frost_is_half_bright_and_no_fog_changes_nothing() {
        let black = plane(Size { height: 64, width: 60 }, || 0.0);
        let mut mean = 0.0;
        for seed in 0..10 {
            let mut iced = black.clone();
            frost(&mut iced, &[1.0, 1.0], &mut Random::of(&[seed]));
            mean += iced.data.iter().sum::<f32>() / 38400.0;
        }
        assert!((0.4..0.6).contains(&mean), "{mean}");
        let mut clear = plane(Size { height: 5, width: 9 }, || 0.3);
        fog(&mut clear, &[0.0, 2.0], &mut Random::of(&[1]));
        assert!(clear.data.iter().all(|v| (v - 0.3).abs() < 1e-6));
    }
}
