//! Augmentations that change levels where they are. A factor of 1 changes nothing, 0 takes the property away; levels are
//! rounded and clamped.

use crate::picture::{Channel, Picture};
use crate::random::Random;
use crate::settings::Settings;

pub(super) fn jitter(picture: &mut Picture<u8>, settings: &Settings, random: &mut Random) {
    let mut factor = |name: &str| {
        let spread = settings.get(name);
        1.0 + random.between(-spread, spread)
    };
    let factors = ["brightness", "contrast", "saturation"].map(&mut factor);
    let hue = factor("hue") - 1.0;
    // What cannot change anything takes no time.
    if settings.get("brightness") > 0.0 {
        brightness(picture, factors[0]);
    }
    if settings.get("contrast") > 0.0 {
        contrast(picture, factors[1]);
    }
    if settings.get("saturation") > 0.0 {
        saturation(picture, factors[2]);
    }
    if settings.get("hue") > 0.0 {
        turn_hue(picture, hue);
    }
}

/// Levels times `factor`.
pub(super) fn brightness(picture: &mut Picture<u8>, factor: f64) {
    map(picture, |level| f64::from(level) * factor);
}

/// Levels moved from the picture's mean luma, or towards it.
pub(super) fn contrast(picture: &mut Picture<u8>, factor: f64) {
    let mean = mean_luma(picture);
    map(picture, |level| mean + (f64::from(level) - mean) * factor);
}

/// Levels moved from the pixel's luma, or towards it.
pub(super) fn saturation(picture: &mut Picture<u8>, factor: f64) {
    if picture.channels != 3 {
        return;
    }
    // 16 fractional bits; factors are at most a few.
    let part = (factor * 65536.0).round() as i32;
    for pixel in picture.data.as_chunks_mut::<3>().0 {
        let luma = i32::from(u8::luma(*pixel));
        let moved = |level: u8| luma + (((i32::from(level) - luma) * part + (1 << 15)) >> 16);
        *pixel = pixel.map(|level| moved(level).clamp(0, 255) as u8);
    }
}

/// The hue of every pixel turned by `turn` of the circle, from red to green to blue; saturation and value of its
/// hexagonal model stay. Source: Smith, "Color gamut transform pairs", 1978.
pub(super) fn turn_hue(picture: &mut Picture<u8>, turn: f64) {
    if picture.channels != 3 {
        return;
    }
    let turn = (turn * 6.0).rem_euclid(6.0) as f32;
    for pixel in picture.data.as_chunks_mut::<3>().0 {
        let [r, g, b] = pixel.map(f32::from);
        let (high, low) = (r.max(g).max(b), r.min(g).min(b));
        let range = high - low;
        if range == 0.0 {
            continue;
        }
        // In sixths of the circle.
        let hue = match high {
            _ if high == r => (g - b) / range + 6.0,
            _ if high == g => (b - r) / range + 2.0,
            _ => (r - g) / range + 4.0,
        };
        let hue = hue + turn;
        let hue = if hue >= 6.0 { hue - 6.0 } else { hue };
        let hue = if hue >= 6.0 { hue - 6.0 } else { hue };
        let shares = [(hue - 3.0).abs() - 1.0, 2.0 - (hue - 2.0).abs(), 2.0 - (hue - 4.0).abs()];
        *pixel = shares.map(|share| (low + range * share.clamp(0.0, 1.0) + 0.5) as u8);
    }
}

/// Every level from `level` on turned over.
pub(super) fn solarize(picture: &mut Picture<u8>, level: f64) {
    map(picture, |v| f64::from(if f64::from(v) >= level { 255 - v } else { v }));
}

/// Levels with only their first `bits` bits.
pub(super) fn posterize(picture: &mut Picture<u8>, bits: u32) {
    let mask = !(0xffu32 >> bits.min(8)) as u8;
    picture.data.iter_mut().for_each(|level| *level &= mask);
}

/// Each channel stretched so that its levels reach from 0 to 255.
pub(super) fn autocontrast(picture: &mut Picture<u8>) {
    by_channel(picture, |counts| {
        let low = counts.iter().position(|&n| n > 0).unwrap_or(0);
        let high = counts.iter().rposition(|&n| n > 0).unwrap_or(0);
        let scale = if high > low { 255.0 / (high - low) as f64 } else { return None };
        Some(std::array::from_fn(|level| level_of((level as f64 - low as f64) * scale)))
    });
}

/// Each channel with its levels as even as the histogram allows. Source: Pillow's `ImageOps.equalize`.
pub(super) fn equalize(picture: &mut Picture<u8>) {
    by_channel(picture, |counts| {
        let last = counts.iter().rfind(|&&n| n > 0)?;
        let step = (counts.iter().sum::<usize>() - last) / 255;
        let mut sum = step / 2;
        (step > 0).then(|| {
            std::array::from_fn(|level| {
                let equal = sum / step;
                sum += counts[level];
                equal.min(255) as u8
            })
        })
    });
}

/// The picture moved from its smooth form, or towards it: the mean of a pixel, counted five times, and its neighbours.
/// Its edge stays. Source: Pillow's `ImageEnhance.Sharpness`.
pub(super) fn sharpness(picture: &mut Picture<u8>, factor: f64) {
    let (height, width, channels) = (picture.size.height, picture.size.width, picture.channels);
    let source = picture.data.clone();
    let row = width * channels;
    for y in 1..height.saturating_sub(1) {
        for at in y * row + channels..(y + 1) * row - channels.min(row) {
            let lines = [at - row, at, at + row];
            let around: u32 = lines
                .iter()
                .flat_map(|line| [line - channels, *line, line + channels])
                .map(|i| u32::from(source[i]))
                .sum();
            let level = f64::from(source[at]);
            let smooth = (f64::from(around) + 4.0 * level) / 13.0;
            picture.data[at] = level_of(smooth + (level - smooth) * factor);
        }
    }
}

/// Mean luma, by ITU-R BT.601.
fn mean_luma(picture: &Picture<u8>) -> f64 {
    let sum: u64 = match picture.channels {
        3 => picture.data.as_chunks::<3>().0.iter().map(|&pixel| u64::from(u8::luma(pixel))).sum(),
        _ => picture.data.iter().map(|&level| u64::from(level)).sum(),
    };
    sum as f64
        / (picture.size.height
            * picture.size.width
            * if picture.channels == 3 { 1 } else { picture.channels }) as f64
}

fn level_of(value: f64) -> u8 {
    // `as u8` clamps and rounds down.
    (value + 0.5) as u8
}

/// Every level replaced by what `value` gives for it.
fn map(picture: &mut Picture<u8>, value: impl Fn(u8) -> f64) {
    let table: [u8; 256] = std::array::from_fn(|level| level_of(value(level as u8)));
    picture.data.iter_mut().for_each(|level| *level = table[usize::from(*level)]);
}

/// The levels of each channel replaced by a table made from how often each occurs.
fn by_channel(picture: &mut Picture<u8>, table: impl Fn(&[usize; 256]) -> Option<[u8; 256]>) {
    for channel in 0..picture.channels {
        let mut counts = [0; 256];
        let levels = || (channel..picture.data.len()).step_by(picture.channels);
        levels().for_each(|at| counts[usize::from(picture.data[at])] += 1);
        if let Some(table) = table(&counts) {
            levels().for_each(|at| picture.data[at] = table[usize::from(picture.data[at])]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{augmentation, noise};
    use super::*;
    use crate::Size;

    fn colors(pixels: &[[u8; 3]]) -> Picture<u8> {
        Picture { size: Size { height: 1, width: pixels.len() }, channels: 3, data: pixels.concat() }
    }

    #[test]
    fn factors_move_levels_from_black_the_mean_and_grey() {
        let before = colors(&[[10, 100, 200], [200, 200, 200]]);
        let apply = |change: &dyn Fn(&mut Picture<u8>)| {
            let mut after = before.clone();
            change(&mut after);
            after.data
        };
        assert_eq!(apply(&|p| brightness(p, 1.5)), [15, 150, 255, 255, 255, 255]);
        // Luma 84 and 200, with a mean of 142.
        assert_eq!(apply(&|p| contrast(p, 0.5)), [76, 121, 171, 171, 171, 171]);
        assert_eq!(apply(&|p| contrast(p, 0.0)), [142; 6]);
        assert_eq!(apply(&|p| saturation(p, 0.0)), [84, 84, 84, 200, 200, 200]);
        assert_eq!(apply(&|p| saturation(p, 0.5)), [47, 92, 142, 200, 200, 200]);
        assert_eq!(apply(&|p| saturation(p, 1.0)), before.data);
        assert_eq!(apply(&|p| solarize(p, 128.0)), [10, 100, 55, 55, 55, 55]);
        assert_eq!(apply(&|p| posterize(p, 2)), [0, 64, 192, 192, 192, 192]);
        assert_eq!(apply(&|p| posterize(p, 8)), before.data);
        assert_eq!(apply(&autocontrast), [0, 0, 200, 255, 255, 200]);
    }

    #[test]
    fn hues_turn_around_the_circle() {
        let third = |turn: f64| {
            let mut picture = colors(&[[250, 20, 20], [20, 250, 20], [7, 7, 7], [200, 150, 100]]);
            turn_hue(&mut picture, turn);
            picture.data
        };
        assert_eq!(third(0.0), [250, 20, 20, 20, 250, 20, 7, 7, 7, 200, 150, 100]);
        assert_eq!(third(1.0 / 3.0), [20, 250, 20, 20, 20, 250, 7, 7, 7, 100, 200, 150]);
        assert_eq!(third(-1.0 / 3.0), [20, 20, 250, 250, 20, 20, 7, 7, 7, 150, 100, 200]);
        assert_eq!(third(1.0 / 6.0)[..3], [250, 250, 20]);
        // There and back, for any colour and turn.
        for seed in 0..50 {
            let before = noise(3, 3, 3, seed);
            let mut after = before.clone();
            let turn = seed as f64 / 50.0 - 0.5;
            turn_hue(&mut after, turn);
            turn_hue(&mut after, -turn);
            assert!(after.data.iter().zip(&before.data).all(|(a, b)| a.abs_diff(*b) <= 2), "{turn}");
        }
    }

    #[test]
    fn jitter_is_even_around_no_change() {
        let before = Picture { data: vec![100; 48], ..noise(4, 4, 3, 0) };
        let only = |name: &str| {
            let mut settings =
                vec![("brightness", 0.0), ("contrast", 0.0), ("saturation", 0.0), ("hue", 0.0)];
            settings.iter_mut().filter(|s| s.0 == name).for_each(|s| s.1 = 0.4);
            augmentation("color_jitter", &settings)
        };
        let levels: Vec<f64> = (0..2000)
            .map(|seed| {
                let mut after = before.clone();
                only("brightness").change(&mut after, &mut Random::of(&[seed]));
                f64::from(after.data[0])
            })
            .collect();
        // Evenly from 60 to 140: the mean has a deviation of 23 / √2000 = 0.5.
        let mean = levels.iter().sum::<f64>() / 2000.0;
        assert!((mean - 100.0).abs() < 2.0, "{mean}");
        let [low, high] = [f64::min, f64::max].map(|f| levels.iter().copied().fold(100.0, f));
        assert!((60.0..62.0).contains(&low) && (138.0..=140.0).contains(&high), "{low} {high}");
        // A grey picture has no contrast, saturation or hue to change.
        for name in ["contrast", "saturation", "hue"] {
            let mut after = before.clone();
            only(name).change(&mut after, &mut Random::of(&[1]));
            assert_eq!(after, before);
        }
    }

    #[test]
    fn equal_levels_are_as_frequent() {
        // Four levels close together, 256 pixels each.
        let data: Vec<u8> = (0..1024).map(|i| 100 + (i % 4) as u8).collect();
        let mut picture = Picture { size: Size { height: 32, width: 32 }, channels: 1, data };
        equalize(&mut picture);
        assert_eq!(picture.data[..4], [0, 85, 171, 255]);
    }

    #[test]
    fn sharpness_moves_from_the_smooth_picture() {
        let mut data = vec![0; 25];
        data[12] = 130;
        let before = Picture { size: Size { height: 5, width: 5 }, channels: 1, data };
        let with = |factor: f64| {
            let mut after = before.clone();
            sharpness(&mut after, factor);
            after.data
        };
        assert_eq!(with(1.0), before.data);
        assert_eq!((with(0.0)[12], with(0.0)[11], with(0.0)[10]), (50, 10, 0));
        assert_eq!((with(1.5)[12], with(1.5)[11]), (170, 0));
    }
}
