//! Choosing a format for every layer at once, by dynamic programming over what each of them would cost.
//!
//! The noise that layers leave at the network's output adds up while it is small, as do their times and bytes. So what another choice
//! for the first layers beats in all three stays beaten whatever the others take, and need not be looked at again.
//! Source of noise at the output as an additive measure: Y. Zhou et al., "Adaptive quantization for deep neural network", AAAI 2018.

use std::collections::{BTreeMap, HashMap};

/// What a layer in one format, or a network, costs. Nothing is negative.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Noise over signal at the network's output.
    pub noise: f64,
    /// Time of one run in ms.
    pub ms: f64,
    /// Bytes of the file.
    pub bytes: f64,
}

impl std::ops::Add for Cost {
    type Output = Cost;

    fn add(self, other: Cost) -> Cost {
        Cost { noise: self.noise + other.noise, ms: self.ms + other.ms, bytes: self.bytes + other.bytes }
    }
}

/// One format for each layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// The sum over the layers.
    pub cost: Cost,
    /// For each layer, which of its formats.
    pub picks: Vec<usize>,
}

/// Cells of time and of bytes together, in each of which only the choice of least noise goes on.
const CELLS: f64 = 4096.0;

/// Choices on the way up to which nothing is left out but what is beaten.
const EXACT: usize = 4096;

/// The choices that no other one beats in noise, time and bytes together, by noise, least first; `layers` holds what the formats
/// of each layer cost. Exact while there are few of them; beyond that, choices that differ by less than a 64th of the range of times
/// and of bytes, or by a 4096th of that which differs alone, count as equals, of which that of least noise is kept.
pub fn front(layers: &[Vec<Cost>]) -> Vec<Point> {
    // Back from each choice: the one for the layers before, and the format.
    let mut trail: Vec<Vec<(usize, usize)>> = Vec::with_capacity(layers.len());
    let mut found = vec![Cost::default()];
    for formats in layers {
        let mut next = Vec::with_capacity(found.len() * formats.len());
        for (before, &sum) in found.iter().enumerate() {
            next.extend(formats.iter().enumerate().map(|(pick, &cost)| (sum + cost, (before, pick))));
        }
        let next = unbeaten(next);
        let kept = if next.len() > EXACT { unbeaten(thinned(next)) } else { next };
        let (costs, steps) = kept.into_iter().unzip();
        found = costs;
        trail.push(steps);
    }
    let picks = |mut at: usize| {
        let mut picks: Vec<usize> = Vec::with_capacity(trail.len());
        for steps in trail.iter().rev() {
            let (before, pick) = steps[at];
            picks.push(pick);
            at = before;
        }
        picks.reverse();
        picks
    };
    let mut points: Vec<Point> =
        found.iter().enumerate().map(|(at, &cost)| Point { cost, picks: picks(at) }).collect();
    points.sort_by(|a, b| a.cost.noise.total_cmp(&b.cost.noise));
    points
}

/// Those that no other one beats; of equals the first.
fn unbeaten<T>(mut choices: Vec<(Cost, T)>) -> Vec<(Cost, T)> {
    choices.sort_by(|(a, _), (b, _)| {
        let then = a.bytes.total_cmp(&b.bytes).then(a.noise.total_cmp(&b.noise));
        a.ms.total_cmp(&b.ms).then(then)
    });
    // Of all that are as fast: by bytes, the least noise. Bits of floats that are not negative are in their order.
    let mut least: BTreeMap<u64, f64> = BTreeMap::new();
    choices.retain(|(cost, _)| {
        let at = cost.bytes.to_bits();
        if least.range(..=at).next_back().is_some_and(|(_, noise)| *noise <= cost.noise) {
            return false;
        }
        while let Some((&worse, _)) = least.range(at..).next().filter(|(_, noise)| **noise >= cost.noise) {
            least.remove(&worse);
        }
        least.insert(at, cost.noise);
        true
    });
    choices
}

/// The choice of least noise in each cell, and those of least time and of least bytes.
fn thinned<T>(choices: Vec<(Cost, T)>) -> Vec<(Cost, T)> {
    let range = |of: fn(&Cost) -> f64| {
        let values = choices.iter().map(|(cost, _)| of(cost));
        values.fold((f64::MAX, 0f64), |(low, high), value| (low.min(value), high.max(value)))
    };
    let (ms, bytes) = (range(|c| c.ms), range(|c| c.bytes));
    let both = ms.1 > ms.0 && bytes.1 > bytes.0;
    let cells = if both { CELLS.sqrt() } else { CELLS };
    let cell = |value: f64, (low, high): (f64, f64)| {
        (cells * (value - low) / (high - low).max(f64::MIN_POSITIVE)) as u32
    };
    let mut best: HashMap<(u32, u32), usize> = HashMap::new();
    for (at, (cost, _)) in choices.iter().enumerate() {
        let own = best.entry((cell(cost.ms, ms), cell(cost.bytes, bytes))).or_insert(at);
        if cost.noise < choices[*own].0.noise {
            *own = at;
        }
    }
    let mut kept = vec![false; choices.len()];
    best.values().for_each(|&at| kept[at] = true);
    for of in [|c: &Cost| c.ms, |c: &Cost| c.bytes] {
        let least = (0..choices.len()).min_by(|&a, &b| of(&choices[a].0).total_cmp(&of(&choices[b].0)));
        least.into_iter().for_each(|at| kept[at] = true);
    }
    choices.into_iter().zip(kept).filter_map(|(choice, kept)| kept.then_some(choice)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    fn formats(random: &mut Random, layers: usize, most: usize, whole: bool) -> Vec<Vec<Cost>> {
        let mut number = || {
            let value = random.uniform(0.0, 6.0);
            // Few different numbers, so that there are equals.
            if whole { value.floor() } else { value }
        };
        let mut cost = || Cost { noise: number(), ms: number(), bytes: number() };
        (0..layers).map(|layer| (0..1 + layer % most).map(|_| cost()).collect()).collect()
    }

    fn sum(layers: &[Vec<Cost>], picks: &[usize]) -> Cost {
        layers.iter().zip(picks).fold(Cost::default(), |sum, (formats, &pick)| sum + formats[pick])
    }

    /// Every choice there is.
    fn all(layers: &[Vec<Cost>]) -> Vec<Vec<usize>> {
        layers.iter().fold(vec![Vec::new()], |choices, formats| {
            let with = |picks: &Vec<usize>| {
                (0..formats.len()).map(|pick| [&picks[..], &[pick]].concat()).collect::<Vec<_>>()
            };
            choices.iter().flat_map(with).collect()
        })
    }

    fn beats(a: Cost, b: Cost) -> bool {
        a != b && a.noise <= b.noise && a.ms <= b.ms && a.bytes <= b.bytes
    }

    fn sorted(mut costs: Vec<Cost>) -> Vec<[f64; 3]> {
        costs.sort_by(|a, b| {
            a.noise.total_cmp(&b.noise).then(a.ms.total_cmp(&b.ms)).then(a.bytes.total_cmp(&b.bytes))
        });
        costs.dedup();
        costs.iter().map(|c| [c.noise, c.ms, c.bytes]).collect()
    }

    #[test]
    fn the_front_is_what_trying_everything_finds() {
        let mut random = Random::new(41);
        for case in 0..60 {
            let layers = formats(&mut random, case % 7, 4, case % 2 == 0);
            let every: Vec<Cost> = all(&layers).iter().map(|picks| sum(&layers, picks)).collect();
            let unbeaten =
                every.iter().copied().filter(|&cost| !every.iter().any(|&other| beats(other, cost)));
            let found = front(&layers);
            assert!(found.windows(2).all(|pair| pair[0].cost.noise <= pair[1].cost.noise));
            assert!(found.iter().all(|point| point.cost == sum(&layers, &point.picks)));
            assert_eq!(sorted(found.iter().map(|p| p.cost).collect()), sorted(unbeaten.collect()), "{case}");
        }
    }

    /// With more choices than are kept, one within a bound on time has at most a little more noise than the best one, which the
    /// same search finds exactly where nothing else counts.
    #[test]
    fn long_networks_are_nearly_exact() {
        let mut random = Random::new(42);
        let layers = formats(&mut random, 40, 6, false);
        let free = layers.iter().map(|formats| formats.iter().map(|c| Cost { bytes: 0.0, ..*c }).collect());
        let (found, exact) = (front(&layers), front(&free.collect::<Vec<_>>()));
        let times = |points: &[Point]| points.iter().map(|p| p.cost.ms).fold(f64::MAX, f64::min);
        assert!((times(&found) - times(&exact)).abs() < 1e-9);
        for share in [1.2, 1.5, 2.0] {
            let least = |points: &[Point]| {
                let within = points.iter().filter(|p| p.cost.ms <= share * times(&exact));
                within.map(|p| p.cost.noise).fold(f64::MAX, f64::min)
            };
            assert!(least(&found) <= 1.05 * least(&exact), "{share}: {} {}", least(&found), least(&exact));
        }
    }
}
