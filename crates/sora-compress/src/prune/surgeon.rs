//! Zeros among the weights of a product, without training: the weights that are left make up for those that go.
//!
//! With second moments `H` of the inputs, a weight that goes costs `w² / [H⁻¹]ᵢᵢ` of the outputs' squared error when the others move
//! as least squares has it: the optimal brain surgeon. Its blockwise form goes through the inputs once, and only the weights behind make
//! up for what goes; so all outputs share one decomposition of `H`, the one that GPTQ rounds by. Here it decides weight by weight (blocks of
//! one input), against one threshold for the whole layer, which is the one that leaves the wanted share of zeros: outputs and inputs that
//! matter less get more of them. Then all weights that are left are brought to the least squares of their inputs by coordinate descent.
//! For convolutions the inputs are channels times taps, as in a matrix of windows; their moments are exact but for what is sampled.
//!
//! Sources: B. Hassibi, D. Stork, "Optimal brain surgeon", 1992; E. Frantar et al., "Optimal brain compression", NeurIPS 2022;
//! E. Frantar, D. Alistarh, "SparseGPT", ICML 2023, in its form without an inverse (see GPTQ of the ladder).

use sora_tensor::Tensor;

use crate::CompressError;
use crate::ladder::{Grams, by_energy, descend, dot, feedback};

/// Lines of each part by which the threshold is found.
const LINES: usize = 64;

/// Halvings of the range of the threshold, a factor of 2 to the power of 40 in the beginning.
const HALVINGS: usize = 14;

/// The weights of layer `layer` with about the share `zeros` of them at zero, and the others changed to make up for it. Weights that are
/// zero already count and stay. What was never seen to multiply anything stays as it is.
///
/// # Errors
/// [`CompressError::Tensor`] when `exact` does not hold `f32`.
pub(crate) fn sparsified(
    grams: &Grams,
    layer: usize,
    exact: &Tensor,
    zeros: f64,
) -> Result<Tensor, CompressError> {
    let mut values = exact.as_slice::<f32>()?.to_vec();
    let parts = grams.parts(layer).map(|part| {
        let gram = part.gram();
        let weights: Vec<f64> = (0..part.len()).map(|at| f64::from(values[part.place(at)])).collect();
        Surgeon::new(&gram, &weights).map(|surgeon| (part, gram, weights, surgeon))
    });
    let parts: Vec<_> = parts.flatten().collect();
    let threshold = threshold(parts.iter().map(|(.., surgeon)| surgeon), zeros);
    for (part, gram, weights, surgeon) in &parts {
        let mut found = surgeon.without(threshold, 1);
        let free: Vec<bool> = found.iter().map(|w| *w != 0.0).collect();
        descend(gram, weights, &mut found, |at, weight| if free[at] { weight } else { 0.0 });
        found.iter().enumerate().for_each(|(at, &w)| values[part.place(at)] = w as f32);
    }
    Ok(Tensor::from_slice(exact.shape(), &values)?)
}

/// The cost below which weights go, so that the share `zeros` of them does.
fn threshold<'s>(surgeons: impl Iterator<Item = &'s Surgeon>, zeros: f64) -> f64 {
    let surgeons: Vec<&Surgeon> = surgeons.collect();
    let greatest = surgeons.iter().map(|surgeon| surgeon.greatest()).fold(0.0, f64::max);
    let share = |threshold: f64| {
        let (mut gone, mut all) = (0, 0);
        for surgeon in &surgeons {
            let stride = (surgeon.lines() / LINES).max(1);
            let found = surgeon.without(threshold, stride);
            gone += stride * found.iter().filter(|w| **w == 0.0).count();
            all += stride * found.len();
        }
        gone as f64 / all.max(1) as f64
    };
    let (mut low, mut high) = (-36.0, 4.0);
    for _ in 0..HALVINGS {
        let middle = (low + high) / 2.0;
        let below = share(greatest * f64::exp2(middle)) < zeros;
        *(if below { &mut low } else { &mut high }) = middle;
    }
    greatest * f64::exp2((low + high) / 2.0)
}

/// Lines of weights over the same inputs, with the decomposition of their moments.
struct Surgeon {
    /// The inputs in the order in which it goes through them.
    order: Vec<usize>,
    feedback: Vec<f64>,
    /// Line by line, inputs in order.
    weights: Vec<f64>,
}

impl Surgeon {
    /// `None` where the inputs were never seen, or there are no weights.
    fn new(gram: &[f64], weights: &[f64]) -> Option<Self> {
        let depth = gram.len().isqrt();
        let order = by_energy(gram, depth);
        let feedback = feedback(gram, &order)?;
        let lines = weights.chunks_exact(depth);
        let weights: Vec<f64> = lines.flat_map(|line| order.iter().map(|&input| line[input])).collect();
        (!weights.is_empty()).then_some(Surgeon { order, feedback, weights })
    }

    fn lines(&self) -> usize {
        self.weights.len() / self.order.len()
    }

    /// The greatest cost of a weight that nothing is owed to.
    fn greatest(&self) -> f64 {
        let depth = self.order.len();
        let cost = |(at, w): (usize, &f64)| w * w * self.feedback[at % depth * (depth + 1)];
        self.weights.iter().enumerate().map(cost).fold(0.0, f64::max)
    }

    /// Each `stride`-th line, in the inputs' own order, without the weights that cost less than `threshold`.
    fn without(&self, threshold: f64, stride: usize) -> Vec<f64> {
        let depth = self.order.len();
        let mut found = Vec::with_capacity(self.weights.len().div_ceil(stride));
        let mut errors = vec![0.0; depth];
        for line in self.weights.chunks_exact(depth).step_by(stride) {
            let first = found.len();
            found.resize(first + depth, 0.0);
            for (k, (&weight, row)) in line.iter().zip(self.feedback.chunks_exact(depth)).enumerate() {
                // What it takes to make up for the errors of those before.
                let wanted = weight + dot(&row[..k], &errors[..k]);
                let goes = weight == 0.0 || wanted * wanted * row[k] < threshold;
                let left = if goes { 0.0 } else { wanted };
                errors[k] = weight - left;
                found[first + self.order[k]] = left;
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ladder::problem;
    use crate::ladder::squared_error;
    use crate::prune::solve;
    use crate::testing::Random;

    const DAMPING: f64 = 0.01;

    /// As the papers have it: what a weight costs follows from the inverse of the moments of what is left, and when it goes those that are
    /// left move by what least squares says.
    fn by_inverses(gram: &[f64], depth: usize, exact: &[f64], threshold: f64) -> Vec<f64> {
        let mean = (0..depth).map(|i| gram[i * depth + i]).sum::<f64>() / depth as f64;
        let order = by_energy(gram, depth);
        let damped = |i: usize, j: usize| gram[i * depth + j] + if i == j { DAMPING * mean } else { 0.0 };
        let mut found = exact.to_vec();
        for w in found.chunks_mut(depth) {
            for k in 0..depth {
                let left = &order[k..];
                let matrix = || left.iter().flat_map(|&a| left.iter().map(move |&b| damped(a, b))).collect();
                let mut unit = vec![0.0; left.len()];
                unit[0] = 1.0;
                // The first column of the inverse.
                assert!(solve(matrix(), left.len(), 0.0, &mut unit));
                let goes = w[order[k]];
                if goes * goes / unit[0] < threshold {
                    left.iter().zip(&unit).for_each(|(&i, column)| w[i] -= goes * column / unit[0]);
                    w[order[k]] = 0.0;
                }
            }
        }
        found
    }

    #[test]
    fn weights_go_as_in_the_papers() {
        let mut random = Random::new(51);
        for depth in [1, 2, 5, 12] {
            let (gram, exact) = problem(&mut random, depth, 6, 7.0);
            let surgeon = Surgeon::new(&gram, &exact).unwrap();
            for share in [0.01, 0.1, 0.3] {
                let threshold = share * surgeon.greatest();
                let (fast, plain) =
                    (surgeon.without(threshold, 1), by_inverses(&gram, depth, &exact, threshold));
                for (a, b) in fast.iter().zip(&plain) {
                    assert!((a - b).abs() < 1e-7 && (*a == 0.0) == (*b == 0.0), "{depth} {share}: {a} {b}");
                }
            }
        }
    }

    /// The weights of greatest magnitude, as they are.
    fn by_magnitude(exact: &[f64], zeros: usize) -> Vec<f64> {
        let mut order: Vec<usize> = (0..exact.len()).collect();
        order.sort_by(|&a, &b| exact[a].abs().total_cmp(&exact[b].abs()));
        let mut found = exact.to_vec();
        order[..zeros].iter().for_each(|&at| found[at] = 0.0);
        found
    }

    #[test]
    fn as_many_zeros_cost_less_than_by_magnitude() {
        let mut random = Random::new(52);
        let (depth, lines) = (48, 16);
        for zeros in [0.3, 0.5, 0.7] {
            let (gram, exact) = problem(&mut random, depth, lines, 7.0);
            let (grams, tensor) = Grams::given(&gram, &exact);
            let found = sparsified(&grams, 0, &tensor, zeros).unwrap().to_f64s();
            let gone = found.iter().filter(|w| **w == 0.0).count();
            assert!((gone as f64 / exact.len() as f64 - zeros).abs() < 0.02, "{gone}");
            let plain = squared_error(&gram, &exact, &by_magnitude(&exact, gone));
            let better = squared_error(&gram, &exact, &found);
            assert!(better < 0.1 * plain, "{zeros}: {better} {plain}");
            // Not far from the least squares of each line with zeros at the same places.
            let mut least = vec![0.0; exact.len()];
            for (line, (found, exact)) in found.chunks(depth).zip(exact.chunks(depth)).enumerate() {
                let stay: Vec<usize> = (0..depth).filter(|&i| found[i] != 0.0).collect();
                let entries = stay.iter().flat_map(|&i| stay.iter().map(move |&j| i * depth + j));
                let matrix = entries.map(|at| gram[at]).collect();
                let mut best: Vec<f64> =
                    stay.iter().map(|&i| dot(&gram[i * depth..][..depth], exact)).collect();
                assert!(solve(matrix, stay.len(), 0.0, &mut best));
                stay.iter().zip(&best).for_each(|(&i, &w)| least[line * depth + i] = w);
            }
            let least = squared_error(&gram, &exact, &least);
            assert!(least <= better && better < 1.5 * least, "{zeros}: {better} {least}");
        }
    }

    #[test]
    fn zeros_stay_and_what_nothing_meets_is_left_alone() {
        let mut random = Random::new(53);
        let (gram, mut exact) = problem(&mut random, 20, 8, 7.0);
        exact.iter_mut().step_by(4).for_each(|w| *w = 0.0);
        let (grams, tensor) = Grams::given(&gram, &exact);
        let found = sparsified(&grams, 0, &tensor, 0.5).unwrap().to_f64s();
        assert!(found.iter().step_by(4).all(|w| *w == 0.0));
        assert!(found.iter().filter(|w| **w == 0.0).count() > 70);
        let (grams, tensor) = Grams::given(&[0.0; 400], &exact);
        assert_eq!(sparsified(&grams, 0, &tensor, 0.5).unwrap(), tensor);
    }
}
