//! Augmentations that move pixels.

use crate::picture::Picture;
use crate::random::Random;
use crate::settings::Settings;

pub(super) fn horizontal_flip(picture: &mut Picture<u8>, settings: &Settings, random: &mut Random) {
    if random.chance(settings.get("probability")) {
        for row in picture.data.chunks_exact_mut(picture.size.width * picture.channels) {
            // Whole pixels from both ends.
            match picture.channels {
                1 => row.reverse(),
                3 => row.as_chunks_mut::<3>().0.reverse(),
                channels => {
                    row.reverse();
                    row.chunks_exact_mut(channels).for_each(<[u8]>::reverse);
                }
            }
        }
    }
}

pub(super) fn vertical_flip(picture: &mut Picture<u8>, settings: &Settings, random: &mut Random) {
    if random.chance(settings.get("probability")) {
        let row = picture.size.width * picture.channels;
        let rows = picture.size.height;
        let (top, bottom) = picture.data.split_at_mut(rows / 2 * row);
        let upwards = bottom.chunks_exact_mut(row).rev();
        top.chunks_exact_mut(row).zip(upwards).for_each(|(a, b)| a.swap_with_slice(b));
    }
}

pub(super) fn random_crop(picture: &mut Picture<u8>, settings: &Settings, random: &mut Random) {
    let padding = settings.get("padding") as usize;
    let mut offset = || random.below(2 * padding + 1) as isize - padding as isize;
    let (down, right) = (offset(), offset());
    *picture = shifted(picture, down, right, settings.get("fill") as u8);
}

/// The picture seen from `down` and `right` pixels further.
fn shifted(picture: &Picture<u8>, down: isize, right: isize, fill: u8) -> Picture<u8> {
    let (height, width, channels) = (picture.size.height, picture.size.width, picture.channels);
    // The part of a side that is inside: where it starts in the result, where in the source, and its length.
    let inside = |extent: usize, by: isize| {
        let (to, from) = if by < 0 { (by.unsigned_abs(), 0) } else { (0, by.unsigned_abs()) };
        (to.min(extent), from.min(extent), extent.saturating_sub(by.unsigned_abs()))
    };
    let (top, from_top, rows) = inside(height, down);
    let (left, from_left, columns) = inside(width, right);
    let mut data = vec![fill; picture.data.len()];
    let row = width * channels;
    let to = data.chunks_exact_mut(row).skip(top).take(rows);
    for (to, from) in to.zip(picture.data.chunks_exact(row).skip(from_top)) {
        let (to, from) = (&mut to[left * channels..], &from[from_left * channels..]);
        to[..columns * channels].copy_from_slice(&from[..columns * channels]);
    }
    Picture { data, ..*picture }
}

pub(super) fn rotation(picture: &mut Picture<u8>, settings: &Settings, random: &mut Random) {
    let degrees = settings.get("degrees");
    *picture = rotated(picture, random.between(-degrees, degrees), settings.get("fill") as u8);
}

/// The picture turned about its middle by `degrees` counter-clockwise; its size stays.
pub(super) fn rotated(picture: &Picture<u8>, degrees: f64, fill: u8) -> Picture<u8> {
    let (sin, cos) = degrees.to_radians().sin_cos();
    affine(picture, [[cos, -sin], [sin, cos]], [0.0, 0.0], fill)
}

/// The picture whose pixel at `p` is that of the source at `matrix · p + offset`, both columns and rows from the middle;
/// bilinear, with coordinates of 16 fractional bits, and `fill` outside.
pub(super) fn affine(
    picture: &Picture<u8>,
    matrix: [[f64; 2]; 2],
    offset: [f64; 2],
    fill: u8,
) -> Picture<u8> {
    const ONE: i64 = 1 << 16;
    let fixed = |value: f64| (value * ONE as f64).round() as i64;
    let (height, width, channels) = (picture.size.height as i64, picture.size.width as i64, picture.channels);
    let middle = [(width - 1) as f64 / 2.0, (height - 1) as f64 / 2.0];
    let row = picture.size.width * channels;
    let mut data = Vec::with_capacity(picture.data.len());
    for y in 0..height {
        for x in 0..width {
            let [right, down] = [x as f64 - middle[0], y as f64 - middle[1]];
            let at = |axis: usize| {
                fixed(matrix[axis][0] * right + matrix[axis][1] * down + offset[axis] + middle[axis])
            };
            let (column, line) = (at(0), at(1));
            // The pixel above and to the left, and how far beyond it.
            let (left, above) = (column >> 16, line >> 16);
            let (beside, below) = (column & (ONE - 1), line & (ONE - 1));
            let corners = [
                (above, left, (ONE - below) * (ONE - beside)),
                (above, left + 1, (ONE - below) * beside),
                (above + 1, left, below * (ONE - beside)),
                (above + 1, left + 1, below * beside),
            ];
            let start = |(line, column, _): &(i64, i64, i64)| {
                let inside = (0..height).contains(line) && (0..width).contains(column);
                inside.then(|| *line as usize * row + *column as usize * channels)
            };
            let starts = corners.each_ref().map(start);
            for channel in 0..channels {
                let level = |at: Option<usize>| i64::from(at.map_or(fill, |at| picture.data[at + channel]));
                let sum: i64 = corners.iter().zip(starts).map(|(corner, at)| level(at) * corner.2).sum();
                data.push(((sum + (1 << 31)) >> 32) as u8);
            }
        }
    }
    Picture { data, ..*picture }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{augmentation, noise};
    use super::*;

    fn pixel(picture: &Picture<u8>, y: usize, x: usize) -> &[u8] {
        &picture.data[(y * picture.size.width + x) * picture.channels..][..picture.channels]
    }

    #[test]
    fn flips_mirror_whole_pixels_half_of_the_time() {
        for (name, channels) in
            [("horizontal_flip", 3), ("horizontal_flip", 1), ("vertical_flip", 3), ("vertical_flip", 2)]
        {
            let before = noise(5, 4, channels, 1);
            let flip = augmentation(name, &[]);
            let mut flipped = 0;
            for seed in 0..1000 {
                let mut after = before.clone();
                flip.change(&mut after, &mut Random::of(&[seed]));
                if after != before {
                    flipped += 1;
                    for (y, x) in (0..5).flat_map(|y| (0..4).map(move |x| (y, x))) {
                        let source = if name == "horizontal_flip" { (y, 3 - x) } else { (4 - y, x) };
                        assert_eq!(pixel(&after, y, x), pixel(&before, source.0, source.1));
                    }
                }
            }
            assert!((440..560).contains(&flipped), "{name} {flipped}");
        }
    }

    #[test]
    fn crops_with_padding_come_from_every_place_alike() {
        let before = noise(6, 5, 3, 1);
        let crop = augmentation("random_crop", &[("padding", 2.0), ("fill", 9.0)]);
        let mut counts = [[0; 5]; 5];
        for seed in 0..5000 {
            let mut after = before.clone();
            crop.change(&mut after, &mut Random::of(&[seed]));
            let shows = |down: i64, right: i64| {
                (0..6i64).flat_map(|y| (0..5i64).map(move |x| (y, x))).all(|(y, x)| {
                    let (from_y, from_x) = (y + down, x + right);
                    let inside = (0..6).contains(&from_y) && (0..5).contains(&from_x);
                    let found = pixel(&after, y as usize, x as usize);
                    if inside {
                        found == pixel(&before, from_y as usize, from_x as usize)
                    } else {
                        found == [9; 3]
                    }
                })
            };
            let places = (-2..=2).flat_map(|down| (-2..=2).map(move |right| (down, right)));
            let found: Vec<(i64, i64)> = places.filter(|&(down, right)| shows(down, right)).collect();
            assert_eq!(found.len(), 1);
            counts[(found[0].0 + 2) as usize][(found[0].1 + 2) as usize] += 1;
        }
        // 200 each, with a deviation of 14.
        assert!(counts.iter().flatten().all(|n| (140..260).contains(n)), "{counts:?}");
        // Padding larger than the picture.
        assert_eq!(shifted(&before, 6, 0, 9).data, [9; 90]);
        assert_eq!(shifted(&before, 0, -70, 9).data, [9; 90]);
    }

    #[test]
    fn rotations_by_quarters_are_exact_and_others_are_between() {
        for (size, channels) in [(4, 3), (5, 1)] {
            let before = noise(size, size, channels, 2);
            assert_eq!(rotated(&before, 0.0, 0), before);
            let quarter = rotated(&before, 90.0, 0);
            for (y, x) in (0..size).flat_map(|y| (0..size).map(move |x| (y, x))) {
                // Counter-clockwise: the right edge becomes the top.
                assert_eq!(pixel(&quarter, y, x), pixel(&before, x, size - 1 - y));
            }
            assert_eq!(rotated(&quarter, -90.0, 0), before);
            assert_eq!(rotated(&quarter, 90.0, 0), rotated(&before, 180.0, 0));
        }
        let plain = Picture { data: vec![200; 81], ..noise(9, 9, 1, 0) };
        let turned = rotated(&plain, 45.0, 0);
        assert!(turned.data[0] == 0 && turned.data[40] == 200 && pixel(&turned, 2, 4) == [200]);
        // An average of angles that are as often to the left as to the right.
        let rotation = augmentation("rotation", &[("degrees", 20.0)]);
        let mut ramp = plain.clone();
        ramp.data.iter_mut().enumerate().for_each(|(i, v)| *v = 50 + (i / 9 * 10) as u8);
        let slope = |seed| {
            let mut after = ramp.clone();
            rotation.change(&mut after, &mut Random::of(&[seed]));
            (f64::from(pixel(&after, 4, 6)[0]) - f64::from(pixel(&after, 4, 2)[0])) / 40.0
        };
        let slopes: Vec<f64> = (0..500).map(slope).collect();
        let mean = slopes.iter().sum::<f64>() / 500.0;
        let steepest = slopes.iter().fold(0f64, |most, s| most.max(s.abs()));
        assert!(mean.abs() < 0.03 && (0.3..0.37).contains(&steepest), "{mean} {steepest}");
    }

    #[test]
    fn half_a_pixel_is_the_mean_of_two() {
        let before = Picture { data: vec![10, 20, 40, 80], ..noise(1, 4, 1, 0) };
        let moved = affine(&before, [[1.0, 0.0], [0.0, 1.0]], [0.5, 0.0], 0);
        assert_eq!(moved.data, [15, 30, 60, 40]);
    }
}
