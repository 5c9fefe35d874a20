//! The rung that rounds the weights of a product one input after the other, and lets those that are left make up for the errors of
//! those before.
//!
//! With errors `e = w - q` of a line of weights and second moments `H` of what it multiplies, the squared error of its output is
//! `e H eᵀ`. Where `H = (U + I) D (U + I)ᵀ`, `U` strictly upper triangular, level `k` is the nearest one to
//! `w_k + Σ_{j<k} e_j U_jk`. Inputs of much energy come first, since the last ones have the fewest to make up for them.
//!
//! Sources: E. Frantar et al., "GPTQ: accurate post-training quantization for generative pre-trained transformers", ICLR 2023, after
//! OBQ, NeurIPS 2022; in the form of J. Chee et al., "QuIP", NeurIPS 2023, theorem 6, which gives the same levels without an inverse.

use super::rounding::{Lines, dot};
use super::{Change, Rung};

/// The row of this rung.
pub(crate) const GPTQ: Rung = Rung {
    name: "GPTQ",
    about: "rounds weights one input after the other, each making up for the errors of those before",
    source: "Frantar et al. 2022",
    change: Change::Rounding(round),
};

/// What is added to the diagonal of the moments, as a share of its mean.
const DAMPING: f64 = 0.01;

fn round(lines: &mut Lines) {
    let depth = lines.depth;
    let order = by_energy(lines.gram, depth);
    let Some(feedback) = feedback(lines.gram, &order) else { return };
    let mut errors = vec![0.0; depth];
    for line in 0..lines.levels.len() / depth.max(1) {
        for (k, &input) in order.iter().enumerate() {
            let row = &feedback[k * depth..k * depth + k];
            let owed = dot(row, &errors[..k]);
            let at = line * depth + input;
            let level = lines.nearest(at, lines.exact[at] + owed);
            lines.levels[at] = level;
            errors[k] = lines.exact[at] - level;
        }
    }
}

/// Inputs of most energy first.
pub(crate) fn by_energy(gram: &[f64], depth: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..depth).collect();
    let energy = |&i: &usize| gram[i * depth + i];
    order.sort_by(|a, b| energy(b).total_cmp(&energy(a)));
    order
}

/// `Uᵀ`, row by row, of the damped moments in this order of inputs, with `D` on its diagonal; `None` where nothing was ever multiplied.
pub(crate) fn feedback(gram: &[f64], order: &[usize]) -> Option<Vec<f64>> {
    let depth = order.len();
    let mean = order.iter().map(|&i| gram[i * depth + i]).sum::<f64>() / depth.max(1) as f64;
    if mean <= 0.0 || !mean.is_finite() {
        return None;
    }
    let mut m: Vec<f64> =
        order.iter().flat_map(|&i| order.iter().map(move |&j| gram[i * depth + j])).collect();
    (0..depth).for_each(|i| m[i * depth + i] += DAMPING * mean);
    // From the last row: with the pivot p and the rest r of row k, what is left of the rows above is M - rᵀ r / p, and r / p is
    // column k of U.
    for k in (0..depth).rev() {
        let (above, rest) = m.split_at_mut(k * depth);
        let (row, pivot) = rest[..=k].split_at_mut(k);
        let pivot = pivot[0];
        if pivot <= 0.0 {
            return None;
        }
        for (i, line) in above.chunks_exact_mut(depth.max(1)).enumerate() {
            let factor = row[i] / pivot;
            line[..=i].iter_mut().zip(&*row).for_each(|(x, y)| *x -= factor * y);
        }
        row.iter_mut().for_each(|x| *x /= pivot);
    }
    Some(m)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::ladder::rounding::squared_error;
    use crate::testing::Random;

    /// Second moments of inputs that depend on each other, and lines of weights in units of their scale.
    pub(crate) fn problem(
        random: &mut Random,
        depth: usize,
        count: usize,
        greatest: f64,
    ) -> (Vec<f64>, Vec<f64>) {
        let mixing: Vec<f64> = (0..depth * depth).map(|_| random.normal()).collect();
        let common: Vec<f64> = (0..depth).map(|_| random.uniform(0.5, 2.0)).collect();
        let entry = |i: usize, j: usize| {
            let own: f64 = (0..depth).map(|k| mixing[i * depth + k] * mixing[j * depth + k]).sum();
            own / depth as f64 + 4.0 * common[i] * common[j]
        };
        let gram = (0..depth * depth).map(|at| entry(at / depth, at % depth)).collect();
        let exact = (0..depth * count).map(|_| (random.normal() * greatest / 3.0).clamp(-greatest, greatest));
        (gram, exact.collect())
    }

    /// The squared error of the outputs of lines, the plain way.
    pub(crate) fn loss(gram: &[f64], depth: usize, exact: &[f64], levels: &[f64]) -> f64 {
        let lines = exact.chunks(depth).zip(levels.chunks(depth));
        let line = |(w, q): (&[f64], &[f64])| -> f64 {
            let e: Vec<f64> = w.iter().zip(q).map(|(w, q)| w - q).collect();
            (0..depth).map(|i| (0..depth).map(|j| e[i] * gram[i * depth + j] * e[j]).sum::<f64>()).sum()
        };
        lines.map(line).sum()
    }

    /// The levels that a rung chooses, given the nearest ones.
    pub(crate) fn chosen(
        round: fn(&mut Lines),
        gram: &[f64],
        depth: usize,
        exact: &[f64],
        greatest: f64,
    ) -> Vec<f64> {
        let mut levels: Vec<f64> =
            exact.iter().map(|w| w.round_ties_even().clamp(-greatest, greatest)).collect();
        round(&mut Lines { gram, depth, exact, levels: &mut levels, greatest });
        assert!(levels.iter().all(|q| q.fract() == 0.0 && q.abs() <= greatest));
        levels
    }

    /// As the paper has it: after each level, the weights that are left move by what least squares says.
    fn by_inverses(gram: &[f64], depth: usize, exact: &[f64], greatest: f64) -> Vec<f64> {
        let mean = (0..depth).map(|i| gram[i * depth + i]).sum::<f64>() / depth as f64;
        let mut order: Vec<usize> = (0..depth).collect();
        order.sort_by(|&a, &b| gram[b * depth + b].total_cmp(&gram[a * depth + a]));
        let damped = |i: usize, j: usize| gram[i * depth + j] + if i == j { DAMPING * mean } else { 0.0 };
        let mut levels = vec![0.0; exact.len()];
        for (exact, levels) in exact.chunks(depth).zip(levels.chunks_mut(depth)) {
            let mut w = exact.to_vec();
            for (k, &i) in order.iter().enumerate() {
                levels[i] = w[i].round_ties_even().clamp(-greatest, greatest);
                let left = &order[k + 1..];
                let matrix = left.iter().flat_map(|&a| left.iter().map(move |&b| damped(a, b))).collect();
                // The weights that are left take H_ll⁻¹ H_li of the error.
                let mut moves: Vec<f64> = left.iter().map(|&a| damped(a, i)).collect();
                assert!(crate::prune::solve(matrix, left.len(), 0.0, &mut moves));
                let error = w[i] - levels[i];
                left.iter().zip(moves).for_each(|(&a, by)| w[a] += error * by);
            }
        }
        levels
    }

    #[test]
    fn levels_are_those_of_the_paper() {
        let mut random = Random::new(41);
        for depth in [1, 2, 5, 12] {
            let (gram, exact) = problem(&mut random, depth, 6, 7.0);
            let fast = chosen(round, &gram, depth, &exact, 7.0);
            assert_eq!(fast, by_inverses(&gram, depth, &exact, 7.0));
        }
    }

    #[test]
    fn outputs_err_less_than_with_the_nearest_levels() {
        let mut random = Random::new(42);
        for greatest in [3.0, 7.0, 127.0] {
            let (gram, exact) = problem(&mut random, 48, 16, greatest);
            let nearest = chosen(|_| (), &gram, 48, &exact, greatest);
            let better = chosen(round, &gram, 48, &exact, greatest);
            let [before, after] = [nearest, better].map(|levels| loss(&gram, 48, &exact, &levels));
            assert!(after < 0.5 * before, "{greatest}: {before} {after}");
        }
    }

    #[test]
    fn zeros_stay() {
        let mut random = Random::new(49);
        let (gram, mut exact) = problem(&mut random, 24, 8, 7.0);
        exact.iter_mut().step_by(3).for_each(|w| *w = 0.0);
        for rung in [GPTQ, crate::ladder::adaround::ADAROUND] {
            let Change::Rounding(round) = rung.change else { panic!("{} rounds", rung.name) };
            let levels = chosen(round, &gram, 24, &exact, 7.0);
            assert!(levels.iter().step_by(3).all(|level| *level == 0.0), "{}", rung.name);
            let nearest = chosen(|_| (), &gram, 24, &exact, 7.0);
            assert!(loss(&gram, 24, &exact, &levels) < 0.7 * loss(&gram, 24, &exact, &nearest));
        }
    }

    #[test]
    fn errors_are_those_of_the_outputs() {
        let mut random = Random::new(50);
        let (gram, exact) = problem(&mut random, 13, 5, 7.0);
        let levels = chosen(|_| (), &gram, 13, &exact, 7.0);
        let (plain, fast) = (loss(&gram, 13, &exact, &levels), squared_error(&gram, &exact, &levels));
        assert!((plain - fast).abs() < 1e-9 * plain);
    }

    #[test]
    fn inputs_that_are_never_seen_are_harmless() {
        assert_eq!(chosen(round, &[0.0; 4], 2, &[0.4, 1.6], 7.0), [0.0, 2.0]);
        let gram = [0.0, 0.0, 0.0, 2.0];
        assert_eq!(chosen(round, &gram, 2, &[0.4, 1.6], 7.0), [0.0, 2.0]);
    }
}
