//! How much the loss depends on each unit, by its gradient.
//!
//! Source: P. Molchanov et al., "Importance estimation for neural network pruning", CVPR 2019: to first order the loss moves by `Σ g w` when
//! the weights `w` of a unit, of gradient `g`, become zero; the mean of its square over batches is the unit's importance. Taken over the
//! weights that carry a unit on, that is the gradient at a gate behind it.

use std::collections::BTreeMap;

use sora_data::{Dataset, Preprocess};
use sora_exec::{Options, Session};
use sora_ir::{Graph, ValueId};
use sora_tensor::Tensor;
use sora_train::{Head, Loss, TrainError, differentiate, evaluation};

use super::{Group, Groups};
use crate::feed::Feed;
use crate::{CompressError, Progress};

/// Samples of a batch.
const BATCH: usize = 16;

/// The loss, and what classes it is compared with, as [`evaluation`] names them.
const TARGET: &str = "train/target/0";

/// The importance of every unit, by group, on labelled samples of `data`, whose first output tells classes; as a share of all units'
/// together. `None` where there are no labels, no classes, or a node on the way to a unit has no gradient.
///
/// # Errors
/// A [`CompressError`] when the data does not fit the network, or the caller cancels.
pub fn taylor(
    graph: &Graph,
    groups: &Groups,
    (data, preprocess): (&Dataset, &Preprocess),
    samples: &[usize],
    options: &Options,
    progress: &dyn Progress,
) -> Result<Option<Vec<Vec<f64>>>, CompressError> {
    let Some(labels) = data.labels() else { return Ok(None) };
    let feed = Feed::new(graph, data, preprocess)?;
    let batch = feed.batch_size(BATCH);
    let weights: Vec<ValueId> = weights(graph, groups);
    let (session, classes) = match gradients(graph, &weights, batch) {
        Ok(Some((step, classes))) => (Session::new(step, options.clone())?, classes),
        Ok(None) | Err(TrainError::NotDifferentiable { .. } | TrainError::OpenShape { .. }) => {
            return Ok(None);
        }
        Err(error) => return Err(error.into()),
    };
    let mut scores: Vec<Vec<f64>> = groups.groups.iter().map(|group| vec![0.0; group.units.len()]).collect();
    let whole = &samples[..samples.len() / batch * batch];
    progress.stage("Differentiating", Some(whole.len() as u64));
    for (fed, samples) in feed.batches(whole, batch).zip(whole.chunks(batch)) {
        if progress.cancelled() {
            return Err(CompressError::Cancelled);
        }
        let mut rows = vec![0f32; batch * classes];
        for (row, &sample) in rows.chunks_exact_mut(classes).zip(samples) {
            row.iter_mut().skip(labels[sample]).take(1).for_each(|x| *x = 1.0);
        }
        let (fed, target) = (fed?, Tensor::from_slice(&[batch, classes], &rows)?);
        let mut inputs = fed.refs();
        inputs.push((TARGET, &target));
        let found = session.run(&inputs)?;
        let moved: BTreeMap<ValueId, Vec<f64>> = (weights.iter().zip(&found))
            .filter_map(|(&weight, (_, gradient))| {
                let exact = graph.const_value(weight)?.to_f64s();
                Some((weight, exact.iter().zip(gradient.to_f64s()).map(|(w, g)| w * g).collect()))
            })
            .collect();
        for (group, scores) in groups.groups.iter().zip(&mut scores) {
            let by_unit = by_unit(graph, group, &moved);
            scores.iter_mut().zip(by_unit).for_each(|(score, moved)| *score += moved * moved);
        }
        progress.advance(batch as u64);
    }
    let all: f64 = scores.iter().flatten().sum();
    Ok((all > 0.0).then(|| {
        scores.iter_mut().flatten().for_each(|score| *score /= all);
        scores
    }))
}

/// The weights that units are carried on by, each once.
fn weights(graph: &Graph, groups: &Groups) -> Vec<ValueId> {
    let sinks = groups.groups.iter().flat_map(|group| &group.sinks);
    let known = |weight: &ValueId| graph.const_value(*weight).is_some();
    let mut weights: Vec<ValueId> = sinks.map(|sink| sink.weight.0).filter(known).collect();
    weights.sort_unstable();
    weights.dedup();
    weights
}

/// The graph that gives the gradients of the loss for these weights, and the number of classes.
fn gradients(graph: &Graph, weights: &[ValueId], batch: usize) -> Result<Option<(Graph, usize)>, TrainError> {
    let loss = Loss::new("categorical_crossentropy", &BTreeMap::new())?;
    let mut step = evaluation(graph, batch, &[Head::new(loss)])?;
    let target = step.find(TARGET).map(|target| step.ty(target).clone());
    let Some([_, classes]) =
        target.and_then(|ty| ty.known_shape()).map(|shape| <[usize; 2]>::try_from(shape).unwrap_or_default())
    else {
        return Ok(None);
    };
    let wanted: Option<Vec<ValueId>> =
        weights.iter().map(|&weight| step.find(&graph.value(weight).name)).collect();
    let (Some(loss), Some(wanted), true) = (step.outputs().first().map(|o| o.value), wanted, classes > 1)
    else {
        return Ok(None);
    };
    let gradients = differentiate(&mut step, loss, &wanted)?;
    step.set_outputs(Vec::new());
    for (at, gradient) in gradients.into_iter().enumerate() {
        step.output(&format!("gradient/{at}"), gradient);
    }
    Ok(Some((step, classes)))
}

/// What each unit of a group has of these products of weights and gradients.
fn by_unit(graph: &Graph, group: &Group, moved: &BTreeMap<ValueId, Vec<f64>>) -> Vec<f64> {
    let mut sums = vec![0.0; group.units.len()];
    let mut done = Vec::new();
    for sink in &group.sinks {
        let (Some(moved), Some(exact)) = (moved.get(&sink.weight.0), graph.const_value(sink.weight.0)) else {
            continue;
        };
        if done.contains(&sink.weight) {
            continue;
        }
        done.push(sink.weight);
        let axis = sink.weight.1;
        let (extent, inner) = (exact.shape()[axis], exact.shape()[axis + 1..].iter().product::<usize>());
        let mut along = vec![0.0; extent];
        for (run, values) in moved.chunks_exact(inner.max(1)).enumerate() {
            along[run % extent] += values.iter().sum::<f64>();
        }
        for (unit, sum) in sums.iter_mut().enumerate() {
            *sum += group.positions(unit, sink.weight).iter().map(|&at| along[at]).sum::<f64>();
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use sora_ir::evaluate;

    use super::*;
    use crate::prune::groups;
    use crate::testing::{Net, Random, Silent};
    use crate::tests::{CLASSES, SHAPE, cnn, dataset};

    /// The graph with the weights that carry a unit on scaled.
    fn scaled(graph: &Graph, group: &Group, unit: usize, factor: f64) -> Graph {
        let mut scaled = graph.clone();
        for sink in &group.sinks {
            let (value, axis) = sink.weight;
            let weights = graph.const_value(value).unwrap();
            let (extent, inner) =
                (weights.shape()[axis], weights.shape()[axis + 1..].iter().product::<usize>());
            let own = group.positions(unit, sink.weight);
            let mut values = weights.to_f64s();
            let of_unit = |at: usize| own.contains(&(at / inner % extent));
            values.iter_mut().enumerate().filter(|(at, _)| of_unit(*at)).for_each(|(_, w)| *w *= factor);
            let weights = Tensor::from_f64s(weights.dtype(), weights.shape(), &values).unwrap();
            scaled.set_const(value, weights).unwrap();
        }
        scaled
    }

    /// The cross-entropy of a batch, the plain way.
    fn loss(graph: &Graph, x: &Tensor, labels: &[usize]) -> f64 {
        let logits = evaluate(graph, &[("x", x)]).unwrap()[0].to_f64s();
        let own = |(row, &label): (&[f64], &usize)| {
            let most = row.iter().fold(f64::MIN, |a, b| a.max(*b));
            most + row.iter().map(|x| (x - most).exp()).sum::<f64>().ln() - row[label]
        };
        logits.chunks(CLASSES).zip(labels).map(own).sum()
    }

    #[test]
    fn importance_is_the_square_of_what_the_loss_moves_by() {
        let mut graph = cnn();
        // Scores in the hundreds would leave no gradient.
        for name in ["head.w", "head.b"] {
            let value = graph.find(name).unwrap();
            let tensor = graph.const_value(value).unwrap();
            let small: Vec<f64> = tensor.to_f64s().iter().map(|w| w / 30.0).collect();
            let small = Tensor::from_f64s(tensor.dtype(), tensor.shape(), &small).unwrap();
            graph.set_const(value, small).unwrap();
        }
        let groups = groups(&graph).unwrap();
        let samples: Vec<usize> = (0..2 * BATCH).collect();
        let data = dataset(2 * BATCH, 2.0, true);
        let preprocess = Preprocess::default();
        let given = (&data, &preprocess);
        let found = taylor(&graph, &groups, given, &samples, &Options::default(), &Silent).unwrap().unwrap();
        let mut expected: Vec<Vec<f64>> = Vec::new();
        for group in &groups.groups {
            let of = |unit: usize| {
                let moved = samples.chunks(BATCH).map(|batch| {
                    let x = data.batch(batch, &preprocess).unwrap().inputs.remove(0).1;
                    let labels: Vec<usize> = batch.iter().map(|&i| data.labels().unwrap()[i]).collect();
                    let at = |factor| loss(&scaled(&graph, group, unit, factor), &x, &labels);
                    (at(1.01) - at(0.99)) / 0.02
                });
                moved.map(|moved| moved * moved).sum()
            };
            expected.push((0..group.units.len()).map(of).collect());
        }
        let all: f64 = expected.iter().flatten().sum();
        for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
            assert!(
                (found - expected / all).abs() < 0.02 * (expected / all) + 1e-4,
                "{found} {}",
                expected / all
            );
        }
    }

    #[test]
    fn without_labels_or_gradients_there_is_none() {
        let (graph, samples) = (cnn(), [0, 1]);
        let found = groups(&graph).unwrap();
        let (preprocess, options) = (Preprocess::default(), Options::default());
        let data = dataset(60, 1.0, false);
        let none = taylor(&graph, &found, (&data, &preprocess), &samples, &options, &Silent).unwrap();
        assert_eq!(none, None);
        // Pictures are no classes.
        let (mut net, x) = Net::new(71, &SHAPE);
        let y = net.conv("a", x, 16);
        let y = net.conv("b", y, 4);
        let graph = net.done(y);
        let found = groups(&graph).unwrap();
        let x = Random::new(1).tensor(&[40, 3, 8, 8], 1.0);
        let data = Dataset::from_arrays(vec![(None, x)], Some(vec![0; 40])).unwrap();
        let none = taylor(&graph, &found, (&data, &preprocess), &samples, &options, &Silent).unwrap();
        assert_eq!(none, None);
    }
}
