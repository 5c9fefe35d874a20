//! Stochastic weight averaging. Source: Izmailov et al. 2018.

use sora_data::Loader;
use sora_ir::Mismatch;
use sora_tensor::{DType, Tensor};

use crate::compiled::Compiled;
use crate::operands::{borrowed, inputs};
use crate::{TrainError, Trainer};

type State = Vec<(String, Tensor)>;

/// Takes the weights of a state into the mean of those of `count` states before.
pub(crate) fn average(
    mean: &mut State,
    trainer: &Trainer,
    state: &State,
    count: u32,
) -> Result<(), TrainError> {
    let share = 1.0 / (f64::from(count) + 1.0);
    let mut next = Vec::new();
    for (name, tensor) in state.iter().filter(|(name, _)| trainer.trains(name)) {
        let mut values = tensor.to_f64s();
        if let Some((_, before)) = mean.iter().find(|(known, _)| known == name).filter(|_| count > 0) {
            let before = before.to_f64s();
            values.iter_mut().zip(before).for_each(|(new, mean)| *new = mean + share * (*new - mean));
        }
        let moved = Tensor::from_f64s(tensor.dtype(), tensor.shape(), &values).map_err(Mismatch::from)?;
        next.push((name.clone(), moved));
    }
    *mean = next;
    Ok(())
}

/// A state with the mean weights, and with the statistics of batch normalization that they have over `epoch`: the mean of those of
/// its batches.
pub(crate) fn averaged(
    trainer: &Trainer,
    train: &Loader,
    mut state: State,
    mean: &State,
    epoch: u32,
) -> Result<State, TrainError> {
    let take = |state: &mut State, name: &str, tensor: Tensor| {
        state.iter_mut().filter(|(known, _)| known == name).for_each(|(_, kept)| *kept = tensor.clone());
    };
    mean.iter().for_each(|(name, tensor)| take(&mut state, name, tensor.clone()));
    let mut sums: Vec<(String, Vec<usize>, Vec<f64>)> = Vec::new();
    let mut samples = 0.0;
    let mut compiled = Compiled::default();
    for batch in train.epoch(epoch, 0) {
        let batch = batch?;
        if batch.len == 0 {
            continue;
        }
        let (program, arena) = compiled.of(batch.len, || trainer.moments(&state, batch.len))?;
        if program.outputs().is_empty() {
            return Ok(state);
        }
        let given = inputs(trainer.graph(), &batch);
        for (name, moment) in program.run(arena, &borrowed(&given))? {
            let at = sums.iter().position(|(known, ..)| *known == name).unwrap_or_else(|| {
                sums.push((name.clone(), moment.shape().to_vec(), vec![0.0; moment.len()]));
                sums.len() - 1
            });
            let values = moment.to_f64s();
            sums[at].2.iter_mut().zip(values).for_each(|(sum, value)| *sum += value * batch.len as f64);
        }
        samples += batch.len as f64;
    }
    for (name, shape, sum) in sums {
        let values: Vec<f64> = sum.iter().map(|sum| sum / samples).collect();
        let tensor = Tensor::from_f64s(DType::F32, &shape, &values).map_err(Mismatch::from)?;
        take(&mut state, &name, tensor);
    }
    Ok(state)
}
