//! Places tensors in the arena: two may share bytes when no step needs both.

use std::ops::Range;

use sora_tensor::ALIGNMENT;

/// A tensor to place.
#[derive(Clone, Debug)]
pub(crate) struct Lifetime {
    /// Size.
    pub(crate) bytes: usize,
    /// The step that writes it.
    pub(crate) first: usize,
    /// The last step that reads or writes it.
    pub(crate) last: usize,
}

/// An offset for every tensor, and the bytes needed in total.
///
/// Greedy by size: the largest tensor first, each into the smallest gap among those placed that live at the
/// same time. Source: Pisarchyk & Lee, "Efficient Memory Management for Deep Neural Net Inference" (2020).
pub(crate) fn place(tensors: &[Lifetime]) -> (Vec<usize>, usize) {
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(tensors[i].bytes), tensors[i].first));
    let mut offsets = vec![0; tensors.len()];
    let mut placed: Vec<usize> = Vec::new();
    let mut total = 0;
    for i in order {
        let size = tensors[i].bytes.next_multiple_of(ALIGNMENT);
        let lives = |j: &usize| tensors[*j].first <= tensors[i].last && tensors[i].first <= tensors[*j].last;
        let mut taken: Vec<Range<usize>> = placed
            .iter()
            .copied()
            .filter(lives)
            .map(|j| offsets[j]..offsets[j] + tensors[j].bytes.next_multiple_of(ALIGNMENT))
            .collect();
        taken.sort_by_key(|r| r.start);
        let (mut best, mut end) = (None::<(usize, usize)>, 0);
        for range in &taken {
            if range.start >= end + size && best.is_none_or(|(gap, _)| range.start - end < gap) {
                best = Some((range.start - end, end));
            }
            end = end.max(range.end);
        }
        offsets[i] = best.map_or(end, |(_, start)| start);
        total = total.max(offsets[i] + size);
        placed.push(i);
    }
    (offsets, total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_alive_together_are_disjoint_and_others_share() {
        let mut rng = fastrand::Rng::with_seed(5);
        for _ in 0..200 {
            let tensors: Vec<Lifetime> = (0..rng.usize(1..30))
                .map(|_| {
                    let first = rng.usize(0..20);
                    Lifetime { bytes: rng.usize(0..5000), first, last: first + rng.usize(0..6) }
                })
                .collect();
            let (offsets, total) = place(&tensors);
            for (i, a) in tensors.iter().enumerate() {
                assert!(offsets[i].is_multiple_of(ALIGNMENT) && offsets[i] + a.bytes <= total);
                for (j, b) in tensors.iter().enumerate().skip(i + 1) {
                    let together = a.first <= b.last && b.first <= a.last;
                    let apart = offsets[i] + a.bytes <= offsets[j] || offsets[j] + b.bytes <= offsets[i];
                    assert!(!together || apart || a.bytes == 0 || b.bytes == 0);
                }
            }
        }
        let chain: Vec<_> = (0..10).map(|i| Lifetime { bytes: 640, first: i, last: i + 1 }).collect();
        assert_eq!(place(&chain).1, 2 * 640);
    }
}
