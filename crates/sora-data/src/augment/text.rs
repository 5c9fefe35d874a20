//! Augmentations of the tokens of texts.

use crate::random::Random;
use crate::settings::Settings;

pub(super) fn random_deletion(tokens: &mut Vec<u32>, settings: &Settings, random: &mut Random) {
    let probability = settings.get("probability");
    let last = tokens.last().copied();
    tokens.retain(|_| !random.chance(probability));
    if tokens.is_empty() {
        tokens.extend(last);
    }
}

pub(super) fn random_swap(tokens: &mut [u32], settings: &Settings, random: &mut Random) {
    for _ in 0..(settings.get("part") * tokens.len() as f64).round() as usize {
        let (a, b) = (random.below(tokens.len()), random.below(tokens.len()));
        tokens.swap(a, b);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::augmentation;
    use super::*;

    fn changed(name: &str, settings: &[(&str, f64)], tokens: &[u32], seed: u64) -> Vec<u32> {
        let mut tokens = tokens.to_vec();
        augmentation(name, settings).change_tokens(&mut tokens, &mut Random::of(&[seed]));
        tokens
    }

    #[test]
    fn deletion_keeps_the_order_and_something() {
        let before: Vec<u32> = (0..50).collect();
        let left: usize = (0..200)
            .map(|seed| {
                let after = changed("random_deletion", &[("probability", 0.2)], &before, seed);
                assert!(after.is_sorted() && after.len() <= 50);
                after.len()
            })
            .sum();
        // 8000, with a deviation of 40.
        assert!((7800..8200).contains(&left), "{left}");
        assert_eq!(changed("random_deletion", &[("probability", 1.0)], &before, 1), [49]);
    }

    #[test]
    fn swaps_move_few_tokens_and_lose_none() {
        let before: Vec<u32> = (0..40).collect();
        for seed in 0..100 {
            let mut after = changed("random_swap", &[], &before, seed);
            let moved = after.iter().zip(&before).filter(|(a, b)| a != b).count();
            // Four swaps, some of a token with itself.
            assert!(moved <= 8, "{moved}");
            after.sort_unstable();
            assert_eq!(after, before);
        }
        assert_ne!(changed("random_swap", &[], &before, 1), before);
        assert!(changed("random_swap", &[], &[], 1).is_empty());
    }
}
