//! In which batches the samples of an epoch come.

use crate::preprocess::keywords;
use crate::random::Random;

keywords! {
    /// The order of the samples in an epoch of training.
    Order {
        /// Each sample once, in an order of the epoch's own.
        #[default]
        Shuffled = "shuffled",
        /// As many samples, every class equally often: a rare class repeats its samples, a frequent one shows a part
        /// of them that changes from epoch to epoch. Source: class-balanced sampling in Kang et al., "Decoupling
        /// representation and classifier for long-tailed recognition", 2020.
        Balanced = "balanced",
        /// As given.
        Sequential = "sequential",
    }
}

/// `indices` in random order.
pub(crate) fn shuffled(indices: &[usize], random: &mut Random) -> Vec<usize> {
    let mut order = indices.to_vec();
    random.shuffle(&mut order);
    order
}

/// As many samples as `indices`, of which every class has equally many, to one; no sample of a class comes once more
/// than another one of it, but by one.
pub(crate) fn balanced(indices: &[usize], class: impl Fn(usize) -> usize, random: &mut Random) -> Vec<usize> {
    let mut by_class = indices.to_vec();
    by_class.sort_by_key(|&index| class(index));
    let mut groups: Vec<&[usize]> = by_class.chunk_by(|&a, &b| class(a) == class(b)).collect();
    // The first of them get one more where the classes do not divide the samples.
    random.shuffle(&mut groups);
    let (share, more) =
        (indices.len() / groups.len().max(1), indices.len().checked_rem(groups.len()).unwrap_or(0));
    let mut order = Vec::with_capacity(indices.len());
    for (at, group) in groups.iter().enumerate() {
        let mut left = share + usize::from(at < more);
        while left > 0 {
            let round = shuffled(group, random);
            let taken = left.min(round.len());
            order.extend_from_slice(&round[..taken]);
            left -= taken;
        }
    }
    random.shuffle(&mut order);
    order
}

/// Divides `order` into batches of `size` samples of similar length, so that little is padded: every `window` batches
/// are sorted by length before they are divided, and then the batches put in random order. A smaller batch is the last
/// one.
pub(crate) fn bucketed(
    order: &[usize],
    size: usize,
    window: usize,
    length: impl Fn(usize) -> usize,
    random: &mut Random,
) -> Vec<Vec<usize>> {
    let mut batches = Vec::with_capacity(order.len().div_ceil(size));
    for part in order.chunks(size.saturating_mul(window)) {
        let mut part = part.to_vec();
        part.sort_by_key(|&index| length(index));
        batches.extend(part.chunks(size).map(<[usize]>::to_vec));
    }
    let whole = order.len() / size;
    random.shuffle(&mut batches[..whole]);
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(seed: u64) -> Random {
        Random::of(&[seed])
    }

    #[test]
    fn a_shuffle_holds_every_sample_once() {
        let indices: Vec<usize> = (10..30).collect();
        let first = shuffled(&indices, &mut random(1));
        assert_eq!(first, shuffled(&indices, &mut random(1)));
        assert_ne!(first, shuffled(&indices, &mut random(2)));
        let mut sorted = first;
        sorted.sort_unstable();
        assert_eq!(sorted, indices);
    }

    #[test]
    fn balanced_epochs_show_classes_and_their_samples_evenly() {
        // Of 100 samples, 70 are of class 0, 25 of class 1, 5 of class 2.
        let class = |index: usize| usize::from(index >= 70) + usize::from(index >= 95);
        let indices: Vec<usize> = (0..100).collect();
        let mut seen = vec![0; 100];
        for seed in 0..100 {
            let order = balanced(&indices, class, &mut random(seed));
            let mut counts = vec![0; 100];
            order.iter().for_each(|&index| counts[index] += 1);
            for (classes, each) in [(0..70, 0..=1), (70..95, 1..=2), (95..100, 6..=7)] {
                assert!(classes.clone().all(|index| each.contains(&counts[index])));
                let total: usize = classes.map(|index| counts[index]).sum();
                assert!((33..=34).contains(&total));
            }
            order.iter().for_each(|&index| seen[index] += 1);
        }
        // Of the frequent class, too, each sample is seen: 33.3 / 70 of 100 epochs, with a deviation of 5.
        assert!(seen[..70].iter().all(|&n| (25..=70).contains(&n)), "{seen:?}");
        assert!(balanced(&[], class, &mut random(0)).is_empty());
    }

    #[test]
    fn buckets_hold_similar_lengths_and_every_sample_once() {
        let lengths: Vec<usize> = (0..103).map(|i| (i * 37) % 101).collect();
        let order = shuffled(&(0..103).collect::<Vec<_>>(), &mut random(1));
        let batches = bucketed(&order, 5, 10, |i| lengths[i], &mut random(2));
        assert_eq!(batches.iter().map(Vec::len).collect::<Vec<_>>(), [vec![5; 20], vec![3]].concat());
        let mut all = batches.concat();
        all.sort_unstable();
        assert_eq!(all, (0..103).collect::<Vec<_>>());
        let padded = |batches: &[Vec<usize>]| -> usize {
            let longest = |batch: &Vec<usize>| batch.iter().map(|&i| lengths[i]).max().unwrap_or(0);
            batches.iter().map(|batch| longest(batch) * batch.len()).sum()
        };
        let plain: Vec<Vec<usize>> = order.chunks(5).map(<[usize]>::to_vec).collect();
        let content: usize = lengths.iter().sum();
        assert!(padded(&batches) - content < (padded(&plain) - content) / 4);
        // Not from short to long: the batches are shuffled, too.
        let firsts: Vec<usize> = batches.iter().map(|batch| lengths[batch[0]]).collect();
        assert!(!firsts.is_sorted() && !firsts[..10].is_sorted());
    }
}
