//! Augmentations that hide a part of the picture.

use std::ops::Range;

use crate::picture::Picture;
use crate::random::Random;
use crate::settings::Settings;

pub(super) fn cutout(picture: &mut Picture<u8>, settings: &Settings, random: &mut Random) {
    if !random.chance(settings.get("probability")) {
        return;
    }
    let size = settings.get("size") as usize;
    // Around any pixel: squares at the edge are partly outside, which the authors found to matter.
    let mut around = |extent: usize| {
        let middle = random.below(extent);
        middle.saturating_sub(size / 2)..(middle + size.div_ceil(2)).min(extent)
    };
    let (rows, columns) = (around(picture.size.height), around(picture.size.width));
    let fill = settings.get("fill") as u8;
    parts(picture, rows, columns).for_each(|part| part.fill(fill));
}

pub(super) fn random_erasing(picture: &mut Picture<u8>, settings: &Settings, random: &mut Random) {
    if !random.chance(settings.get("probability")) {
        return;
    }
    let (height, width) = (picture.size.height, picture.size.width);
    let widest = settings.get("aspect").ln();
    // A rectangle that does not fit is drawn again, as by the authors; theirs has no end.
    for _ in 0..10 {
        let part =
            random.between(settings.get("smallest"), settings.get("largest").max(settings.get("smallest")));
        let area = (height * width) as f64 * part;
        let aspect = random.between(widest, -widest).exp();
        let (rows, columns) =
            ((area * aspect).sqrt().round() as usize, (area / aspect).sqrt().round() as usize);
        if rows <= height && columns <= width {
            let (top, left) = (random.below(height - rows + 1), random.below(width - columns + 1));
            for part in parts(picture, top..top + rows, left..left + columns) {
                part.iter_mut().for_each(|level| *level = (random.bits() >> 56) as u8);
            }
            return;
        }
    }
}

/// The rows of a rectangle.
pub(super) fn parts<T>(
    picture: &mut Picture<T>,
    rows: Range<usize>,
    columns: Range<usize>,
) -> impl Iterator<Item = &mut [T]> {
    let channels = picture.channels;
    let lines = picture.data.chunks_exact_mut(picture.size.width * channels);
    let inside = columns.start * channels..columns.end * channels;
    lines.skip(rows.start).take(rows.len()).map(move |line| &mut line[inside.clone()])
}

#[cfg(test)]
mod tests {
    use super::super::tests::{augmentation, noise};
    use super::*;

    /// Rows and columns where a picture of zeros has changed.
    fn hidden(picture: &Picture<u8>) -> (Vec<usize>, Vec<usize>) {
        let (height, width, channels) = (picture.size.height, picture.size.width, picture.channels);
        let changed = |y: usize, x: usize| {
            picture.data[(y * width + x) * channels..][..channels].iter().any(|&v| v != 0)
        };
        let rows = (0..height).filter(|&y| (0..width).any(|x| changed(y, x))).collect();
        let columns = (0..width).filter(|&x| (0..height).any(|y| changed(y, x))).collect();
        (rows, columns)
    }

    #[test]
    fn cutout_hides_a_square_that_may_stick_out() {
        let blank = Picture { data: vec![0; 20 * 16 * 3], ..noise(20, 16, 3, 0) };
        let cutout = augmentation("cutout", &[("size", 6.0), ("fill", 7.0)]);
        let (mut whole, mut cornered) = (0, 0);
        for seed in 0..2000 {
            let mut after = blank.clone();
            cutout.change(&mut after, &mut Random::of(&[seed]));
            let (rows, columns) = hidden(&after);
            assert!((3..=6).contains(&rows.len()) && (3..=6).contains(&columns.len()));
            assert_eq!(after.data.iter().filter(|&&v| v == 7).count(), rows.len() * columns.len() * 3);
            whole += usize::from(rows.len() == 6 && columns.len() == 6);
            cornered += usize::from(rows.len() < 6 && columns.len() < 6);
        }
        // 15 of 20 middles and 11 of 16 lie far enough inside: 51.6 %; a corner in 5/20 · 5/16 = 7.8 %.
        assert!((950..1110).contains(&whole) && (110..205).contains(&cornered), "{whole} {cornered}");
    }

    #[test]
    fn random_erasing_hides_rectangles_in_its_bounds() {
        let blank = Picture { data: vec![0; 40 * 40], ..noise(40, 40, 1, 0) };
        let erasing = augmentation("random_erasing", &[]);
        let (mut changed, mut area) = (0, 0.0);
        for seed in 0..2000 {
            let mut after = blank.clone();
            erasing.change(&mut after, &mut Random::of(&[seed]));
            let (rows, columns) = hidden(&after);
            if rows.is_empty() {
                continue;
            }
            changed += 1;
            let (height, width) = (rows.len() as f64, columns.len() as f64);
            assert!((0.015..0.36).contains(&(height * width / 1600.0)), "{height} {width}");
            assert!((0.25..4.0).contains(&(height / width)), "{height} {width}");
            area += height * width / 1600.0;
        }
        assert!((920..1080).contains(&changed), "{changed}");
        let mean = area / f64::from(changed);
        assert!((0.16..0.19).contains(&mean), "{mean}");
    }
}
