//! RandAugment: some of a table of operations, all equally strong.

use super::color;
use super::geometry::{affine, rotated};
use crate::picture::Picture;
use crate::random::Random;
use crate::settings::Settings;

/// What an operation gets: its strength from 0 to 1, with a random sign where it has two directions, and the level of what
/// lies outside.
struct Strength {
    at: f64,
    signed: f64,
    fill: u8,
}

/// An operation, with how strong it is at most.
type Operation = fn(&mut Picture<u8>, &Strength);

/// The operations of the paper, as strong as torchvision's `RandAugment` makes them.
const OPERATIONS: &[(&str, Operation)] = &[
    ("identity", |_, _| ()),
    ("shear_x", |p, s| *p = affine(p, [[1.0, 0.3 * s.signed], [0.0, 1.0]], [0.0, 0.0], s.fill)),
    ("shear_y", |p, s| *p = affine(p, [[1.0, 0.0], [0.3 * s.signed, 1.0]], [0.0, 0.0], s.fill)),
    ("translate_x", |p, s| *p = moved(p, [0.45 * s.signed, 0.0], s.fill)),
    ("translate_y", |p, s| *p = moved(p, [0.0, 0.45 * s.signed], s.fill)),
    ("rotate", |p, s| *p = rotated(p, 30.0 * s.signed, s.fill)),
    ("brightness", |p, s| color::brightness(p, 1.0 + 0.9 * s.signed)),
    ("color", |p, s| color::saturation(p, 1.0 + 0.9 * s.signed)),
    ("contrast", |p, s| color::contrast(p, 1.0 + 0.9 * s.signed)),
    ("sharpness", |p, s| color::sharpness(p, 1.0 + 0.9 * s.signed)),
    ("posterize", |p, s| color::posterize(p, 8 - (4.0 * s.at).round() as u32)),
    ("solarize", |p, s| color::solarize(p, 256.0 * (1.0 - s.at))),
    ("autocontrast", |p, _| color::autocontrast(p)),
    ("equalize", |p, _| color::equalize(p)),
];

pub(super) fn rand_augment(picture: &mut Picture<u8>, settings: &Settings, random: &mut Random) {
    let at = settings.get("magnitude") / 30.0;
    for _ in 0..settings.get("operations") as usize {
        let operation = OPERATIONS[random.below(OPERATIONS.len())].1;
        let signed = if random.chance(0.5) { at } else { -at };
        operation(picture, &Strength { at, signed, fill: settings.get("fill") as u8 });
    }
}

/// The picture moved by whole pixels, given as parts of its width and height.
fn moved(picture: &Picture<u8>, [right, down]: [f64; 2], fill: u8) -> Picture<u8> {
    let pixels = |part: f64, extent: usize| (part * extent as f64).round();
    let offset = [-pixels(right, picture.size.width), -pixels(down, picture.size.height)];
    affine(picture, [[1.0, 0.0], [0.0, 1.0]], offset, fill)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::tests::{augmentation, noise};
    use super::*;

    fn apply(name: &str, before: &Picture<u8>, at: f64, signed: f64) -> Picture<u8> {
        let mut after = before.clone();
        let operation = OPERATIONS.iter().find(|row| row.0 == name).unwrap().1;
        operation(&mut after, &Strength { at, signed, fill: 128 });
        after
    }

    #[test]
    fn operations_grow_from_nothing_to_their_bounds() {
        let before = noise(20, 10, 3, 5);
        for (name, _) in OPERATIONS.iter().filter(|row| !["autocontrast", "equalize"].contains(&row.0)) {
            assert_eq!(apply(name, &before, 0.0, 0.0), before, "{name}");
            let [some, all] = [0.5, 1.0].map(|at| apply(name, &before, at, at) != before);
            assert!(*name == "identity" || (some && all), "{name}");
        }
        // A width of 10 moves by at most 4.5 pixels, rounded up.
        let moved = apply("translate_x", &before, 1.0, 1.0);
        assert_eq!((&moved.data[..15], &moved.data[15..30]), (&[128; 15][..], &before.data[..15]));
        let back = apply("translate_x", &before, 1.0, -1.0);
        assert_eq!((&back.data[..15], &back.data[15..30]), (&before.data[15..30], &[128; 15][..]));
        // A shear leaves the middle row and moves the outer ones in opposite directions.
        let column = Picture {
            data: (0..27).map(|i| if i % 9 == 4 { 255 } else { 0 }).collect(),
            ..noise(3, 9, 1, 0)
        };
        let sheared = affine(&column, [[1.0, 2.0], [0.0, 1.0]], [0.0, 0.0], 0);
        let places: Vec<usize> =
            sheared.data.chunks(9).filter_map(|row| row.iter().position(|&v| v == 255)).collect();
        assert_eq!(places, [6, 4, 2]);
        assert_eq!(apply("posterize", &before, 1.0, 1.0).data[0], before.data[0] & 0xf0);
    }

    #[test]
    fn every_operation_is_as_likely() {
        // A picture that every operation but one changes in a way of its own.
        let before = noise(9, 8, 3, 3);
        let mut results = BTreeMap::new();
        for (name, _) in OPERATIONS {
            for signed in [0.3, -0.3] {
                results.insert(apply(name, &before, 0.3, signed).data, *name);
            }
        }
        let mut counts = BTreeMap::new();
        let one = augmentation("rand_augment", &[("operations", 1.0)]);
        for seed in 0..7000 {
            let mut after = before.clone();
            one.change(&mut after, &mut Random::of(&[seed]));
            *counts.entry(results[&after.data]).or_insert(0) += 1;
        }
        // 500 each, with a deviation of 22; noise has all levels already, so what stretches them may change nothing.
        let alike = |name: &&str| !["identity", "autocontrast", "equalize"].contains(name);
        assert!(
            counts.iter().filter(|(name, _)| alike(name)).all(|(_, n)| (410..590).contains(n)),
            "{counts:?}"
        );
        assert!(counts.len() >= 12);
    }
}
