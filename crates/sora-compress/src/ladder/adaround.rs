//! The rung that decides for all weights of a product together whether they are rounded up or down.
//!
//! It lowers the squared error of the outputs, `e H eᵀ` with the second moments `H` of the inputs, one weight at a time. What it starts
//! from never gets worse.
//!
//! Sources: M. Nagel et al., "Up or down? Adaptive rounding for post-training quantization", ICML 2020, for the objective (equation
//! 13); K. Behdin et al., "QuantEase", 2023, for coordinate descent in place of gradients of a relaxation.

use super::rounding::{Lines, descend, nearest};
use super::{Change, Rung};

/// The row of this rung.
pub(crate) const ADAROUND: Rung = Rung {
    name: "AdaRound",
    about: "rounds each weight of a product up or down as its outputs err least",
    source: "Nagel et al. 2020",
    change: Change::Rounding(round),
};

fn round(lines: &mut Lines) {
    let Lines { gram, exact, greatest, .. } = *lines;
    descend(gram, exact, lines.levels, |at, weight| nearest(exact[at], weight, greatest));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ladder::gptq::GPTQ;
    use crate::ladder::gptq::tests::{chosen, loss, problem};
    use crate::testing::Random;

    #[test]
    fn no_single_level_can_be_improved() {
        let mut random = Random::new(43);
        let (gram, exact) = problem(&mut random, 24, 10, 3.0);
        let nearest = chosen(|_| (), &gram, 24, &exact, 3.0);
        let found = chosen(round, &gram, 24, &exact, 3.0);
        let least = loss(&gram, 24, &exact, &found);
        let before = loss(&gram, 24, &exact, &nearest);
        assert!(least < 0.8 * before, "{least} {before}");
        for at in 0..found.len() {
            for by in [-1.0, 1.0] {
                let mut other = found.clone();
                other[at] = (other[at] + by).clamp(-3.0, 3.0);
                assert!(loss(&gram, 24, &exact, &other) >= least - 1e-9, "{at} {by}");
            }
        }
    }

    #[test]
    fn what_gptq_found_gets_better() {
        let mut random = Random::new(44);
        let Change::Rounding(gptq) = GPTQ.change else { panic!("GPTQ rounds") };
        let mut sums = [0.0; 2];
        for _ in 0..5 {
            let (gram, exact) = problem(&mut random, 40, 12, 7.0);
            let first = chosen(gptq, &gram, 40, &exact, 7.0);
            let mut levels = first.clone();
            round(&mut Lines { gram: &gram, depth: 40, exact: &exact, levels: &mut levels, greatest: 7.0 });
            let [before, after] = [first, levels].map(|levels| loss(&gram, 40, &exact, &levels));
            assert!(after <= before);
            sums = [sums[0] + before, sums[1] + after];
        }
        assert!(sums[1] < 0.999 * sums[0], "{sums:?}");
    }
}
