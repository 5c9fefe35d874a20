//! How much the network needs each unit, and which units to keep.

use sora_ir::Graph;

use super::{Activations, Group, Groups, Sink};

/// The importance of every unit, by group: the share of the energy that arrives in the products which the unit ends in
/// and is its own, summed over them. Energy is the mean square of what a unit's elements contribute by their weights:
/// `|W_u|² · mean(x_u²)`; without observations, every `mean(x²)` counts as 1.
///
/// Sources: H. Li et al., "Pruning filters for efficient ConvNets", ICLR 2017 (norms of weights); J.-H. Luo et al.,
/// "ThiNet", ICCV 2017 (what the next layer receives).
pub fn importance(graph: &Graph, groups: &Groups, seen: Option<&Activations>) -> Vec<Vec<f64>> {
    let of = |group: &Group| {
        let mut scores = vec![0.0; group.units.len()];
        for sink in &group.sinks {
            let (energies, total) = energies(graph, group, sink, seen);
            if total > 0.0 {
                scores.iter_mut().zip(energies).for_each(|(score, energy)| *score += energy / total);
            }
        }
        scores
    };
    groups.groups.iter().map(of).collect()
}

/// What each unit contributes to a product, and what all its inputs do.
fn energies(graph: &Graph, group: &Group, sink: &Sink, seen: Option<&Activations>) -> (Vec<f64>, f64) {
    let Some(weights) = graph.const_value(sink.weight.0) else { return (Vec::new(), 0.0) };
    let norms = squared_norms(&weights.to_f32s(), weights.shape(), sink.weight.1);
    let moments = seen.and_then(|seen| seen.get(&sink.input));
    let square = |at: usize| moments.map_or(1.0, |m| m.mean_square(at));
    // Weights that several groups of channels share meet the mean of what those hold.
    let extent = moments.map_or(norms.len(), |m| m.sums.len());
    let copies = (extent / norms.len().max(1)).max(1);
    let met = |at: usize| {
        let copy = |c: usize| c * norms.len() + at;
        (0..copies).map(copy).filter(|&at| at < extent).map(square).sum::<f64>() / copies as f64
    };
    let energies: Vec<f64> = norms.iter().enumerate().map(|(at, norm)| norm * met(at)).collect();
    let unit = |unit| group.positions(unit, sink.weight).iter().map(|&at| energies[at]).sum();
    ((0..group.units.len()).map(unit).collect(), energies.iter().sum())
}

/// The squared norm of the weights at each position along an axis.
fn squared_norms(weights: &[f32], shape: &[usize], axis: usize) -> Vec<f64> {
    let inner: usize = shape[axis + 1..].iter().product::<usize>().max(1);
    let mut norms = vec![0.0; shape[axis]];
    for (run, values) in weights.chunks_exact(inner).enumerate() {
        norms[run % shape[axis]] += values.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>();
    }
    norms
}

/// Keeps the same share of the units of every group, `1 - fraction`, the most important ones: so many that their elements
/// are a multiple of `lanes`, rounded up.
pub fn uniform(groups: &Groups, scores: &[Vec<f64>], fraction: f64, lanes: usize) -> Vec<Vec<bool>> {
    let keep = |(group, scores): (&Group, &Vec<f64>)| {
        let units = group.units.len();
        let left = (units as f64 * (1.0 - fraction)).ceil() as usize;
        best(scores, rounded(group, left, lanes))
    };
    groups.groups.iter().zip(scores).map(keep).collect()
}

/// Removes the units that save most for their importance, until `fraction` of the multiply-adds that `groups` could save
/// are saved; each group keeps at least `least` of its units, in multiples of `lanes` elements.
///
/// Source: P. Molchanov et al., "Pruning convolutional neural networks for resource efficient inference", ICLR 2017
/// (importance against operations).
pub fn by_saving(
    groups: &Groups,
    scores: &[Vec<f64>],
    fraction: f64,
    least: f64,
    lanes: usize,
) -> Vec<Vec<bool>> {
    let mut ranked: Vec<(f64, usize)> = Vec::new();
    for (at, (group, scores)) in groups.groups.iter().zip(scores).enumerate() {
        ranked.extend(scores.iter().map(|score| (score / group.macs.max(1.0), at)));
    }
    ranked.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut left: Vec<usize> = groups.groups.iter().map(|group| group.units.len()).collect();
    let all: f64 = groups.groups.iter().map(|group| group.macs * group.units.len() as f64).sum();
    let mut saved = 0.0;
    for (_, at) in ranked {
        let (group, least) = (&groups.groups[at], groups.groups[at].units.len() as f64 * least);
        if saved < fraction * all && left[at] as f64 - 1.0 >= least.max(1.0) {
            left[at] -= 1;
            saved += group.macs;
        }
    }
    let keep =
        |((group, scores), left): ((&Group, &Vec<f64>), usize)| best(scores, rounded(group, left, lanes));
    groups.groups.iter().zip(scores).zip(left).map(keep).collect()
}

/// The least number of units, from `left` on, whose elements are a multiple of `lanes`, or all.
fn rounded(group: &Group, left: usize, lanes: usize) -> usize {
    let units = group.units.len();
    let full = |n: &usize| (n * group.width).is_multiple_of(lanes.max(1));
    (left.max(1)..units).find(full).unwrap_or(units)
}

/// The `count` units of the greatest scores; of equal ones, the first.
fn best(scores: &[f64], count: usize) -> Vec<bool> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    let mut keep = vec![false; scores.len()];
    order.into_iter().take(count).for_each(|unit| keep[unit] = true);
    keep
}
