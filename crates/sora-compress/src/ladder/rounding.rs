//! Choosing the levels of weights by what they multiply: the loop that hands the lines of a product to the rungs of the ladder.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use sora_tensor::Tensor;

use super::grams::Grams;
use super::{Change, RUNGS};
use crate::CompressError;
use crate::weights::QuantizedWeights;

/// Lines of weights, each of which makes one output of the same inputs.
pub struct Lines<'a> {
    /// The second moments of the inputs, symmetric, row by row.
    pub gram: &'a [f64],
    /// Number of inputs.
    pub depth: usize,
    /// The exact weights in units of their scale, line by line.
    pub exact: &'a [f64],
    /// The levels, whole numbers in `-greatest..=greatest`.
    pub levels: &'a mut [f64],
    /// The greatest level.
    pub greatest: f64,
}

impl Lines<'_> {
    /// The level nearest to what weight `at` is to be. A weight that is 0 was pruned and stays so.
    pub fn nearest(&self, at: usize, weight: f64) -> f64 {
        nearest(self.exact[at], weight, self.greatest)
    }
}

/// The level nearest to what a weight is to be that is `exact` before; see [`Lines::nearest`].
pub(super) fn nearest(exact: f64, weight: f64, greatest: f64) -> f64 {
    if exact == 0.0 { 0.0 } else { weight.round_ties_even().clamp(-greatest, greatest) }
}

/// Most passes over all inputs; after few, hardly a weight moves.
const PASSES: usize = 20;

/// Moves the weights `found`, lines over inputs of moments `gram`, one at a time to where the squared error of their outputs
/// against those of `exact` is least while all others stand, as near to that as `allowed` has it for the weight at a place; until none
/// moves. The error never grows.
pub(crate) fn descend(gram: &[f64], exact: &[f64], found: &mut [f64], allowed: impl Fn(usize, f64) -> f64) {
    let depth = gram.len().isqrt();
    let mut slopes = vec![0.0; depth];
    for first in (0..found.len()).step_by(depth.max(1)) {
        slopes.fill(0.0);
        for (i, row) in gram.chunks_exact(depth).enumerate() {
            let error = exact[first + i] - found[first + i];
            if error != 0.0 {
                slopes.iter_mut().zip(row).for_each(|(slope, h)| *slope += h * error);
            }
        }
        for _ in 0..PASSES {
            let mut moved = false;
            for (i, row) in gram.chunks_exact(depth).enumerate().filter(|(i, row)| row[*i] > 0.0) {
                let before = found[first + i];
                let next = allowed(first + i, before + slopes[i] / row[i]);
                let by = next - before;
                // What the error loses: 2 · by · slope - by² · H_ii.
                if by != 0.0 && by * (2.0 * slopes[i] - by * row[i]) > 1e-12 * row[i] {
                    found[first + i] = next;
                    slopes.iter_mut().zip(row).for_each(|(slope, h)| *slope -= h * by);
                    moved = true;
                }
            }
            if !moved {
                break;
            }
        }
    }
}

/// The squared error of the outputs of lines `found` against those of `exact`, over inputs of moments `gram`.
pub(crate) fn squared_error(gram: &[f64], exact: &[f64], found: &[f64]) -> f64 {
    let depth = gram.len().isqrt().max(1);
    let line = |(exact, found): (&[f64], &[f64])| -> f64 {
        let error: Vec<f64> = exact.iter().zip(found).map(|(a, b)| a - b).collect();
        let rows = gram.chunks_exact(depth).zip(&error).filter(|(_, error)| **error != 0.0);
        rows.map(|(row, own)| own * dot(row, &error)).sum()
    };
    exact.chunks_exact(depth).zip(found.chunks_exact(depth)).map(line).sum()
}

/// The sum of products, in eight parts that need not wait for each other.
pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut parts = [0.0; 8];
    let (whole, rest) = (a.chunks_exact(8), a.chunks_exact(8).remainder().iter());
    let other = b[a.len() - rest.len()..].iter();
    for (a, b) in whole.zip(b.chunks_exact(8)) {
        parts.iter_mut().zip(a.iter().zip(b)).for_each(|(part, (a, b))| *part += a * b);
    }
    parts.iter().sum::<f64>() + rest.zip(other).map(|(a, b)| a * b).sum::<f64>()
}

/// A layer, bits and rungs.
type Choosing = (usize, u32, Vec<usize>);

/// Levels that were chosen before for a network, with the scales that they were chosen for.
pub(crate) type Chosen = RefCell<HashMap<Choosing, QuantizedWeights>>;

/// The rungs that choose levels, and what they look at.
pub struct Rounding<'a> {
    grams: Rc<Grams>,
    /// Indices of rungs in the ladder.
    rungs: &'a [usize],
    chosen: Option<&'a Chosen>,
}

impl<'a> Rounding<'a> {
    /// What is chosen again for the same weights is taken from `chosen`.
    pub(crate) fn new(grams: Rc<Grams>, rungs: &'a [usize], chosen: Option<&'a Chosen>) -> Self {
        Rounding { grams, rungs, chosen }
    }

    /// The levels of the weights of layer `index`, given the nearest ones, at the same scales.
    ///
    /// # Errors
    /// [`CompressError::Tensor`] when the tensors do not hold `f32` and `i8`.
    pub(crate) fn choose(
        &self,
        index: usize,
        exact: &Tensor,
        nearest: QuantizedWeights,
        bits: u32,
    ) -> Result<QuantizedWeights, CompressError> {
        let key = (index, bits, self.rungs.to_vec());
        let known = self.chosen.and_then(|chosen| chosen.borrow().get(&key).cloned());
        if let Some(known) = known.filter(|known| known.scales == nearest.scales) {
            return Ok(known);
        }
        let greatest = f64::from((1i32 << (bits - 1)) - 1);
        let values = exact.as_slice::<f32>()?;
        let mut levels = nearest.values.as_slice::<i8>()?.to_vec();
        for part in self.grams.parts(index) {
            let gram = part.gram();
            let weight = |at| f64::from(values[part.place(at)]) / f64::from(nearest.scales[part.output(at)]);
            let exact: Vec<f64> = (0..part.len()).map(weight).collect();
            let mut chosen: Vec<f64> = (0..part.len()).map(|at| f64::from(levels[part.place(at)])).collect();
            let depth = part.depth;
            let mut lines = Lines { gram: &gram, depth, exact: &exact, levels: &mut chosen, greatest };
            for rung in self.rungs {
                if let Change::Rounding(round) = RUNGS[*rung].change {
                    round(&mut lines);
                }
            }
            chosen.iter().enumerate().for_each(|(at, &level)| levels[part.place(at)] = level as i8);
        }
        let values = Tensor::from_slice(exact.shape(), &levels)?;
        let found = QuantizedWeights { values, scales: nearest.scales };
        if let Some(chosen) = self.chosen {
            chosen.borrow_mut().insert(key, found.clone());
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    #[test]
    fn sums_of_products_are_whole() {
        let mut random = Random::new(48);
        for length in 0..40 {
            let [a, b] = [0, 1].map(|_| (0..length).map(|_| random.normal()).collect::<Vec<f64>>());
            let exact: f64 = a.iter().zip(&b).map(|(a, b)| a * b).sum();
            assert!((dot(&a, &b) - exact).abs() < 1e-12);
        }
    }
}
