//! Reading sequences of labels out of what a network trained with [`ctc`](crate::LOSSES) gives.

use sora_data::ErrorRate;
use sora_exec::{Options, Program};
use sora_ir::Graph;
use sora_tensor::Tensor;

use crate::compiled::Compiled;
use crate::head::Head;
use crate::operands::{borrowed, inputs, targets};
use crate::step::of_batch;
use crate::{Samples, TrainError};

/// The labels that logits or probabilities `[N, T, C]` give, for each sample: the greatest of each step, without repetitions and
/// blanks, of which the last class is one. Source: Graves et al. 2006, best path decoding.
pub fn best_path(y: &Tensor) -> Vec<Vec<i64>> {
    let &[_, steps, classes] = y.shape() else { return Vec::new() };
    let read = |sample: &[f32]| {
        let greatest = |row: &[f32]| {
            let greater = |best: usize, at: usize| if row[at] > row[best] { at } else { best };
            (1..classes).fold(0, greater)
        };
        let mut path: Vec<usize> = sample.chunks_exact(classes).map(greatest).collect();
        path.dedup();
        path.into_iter().filter(|&class| class + 1 != classes).map(|class| class as i64).collect()
    };
    y.to_f32s().chunks_exact((steps * classes).max(1)).map(read).collect()
}

/// The edits that turn what is read into what is right, as a share of the labels that are right: the character error rate where
/// labels are characters.
///
/// # Errors
/// As [`crate::assess`].
pub fn label_error_rate(
    graph: &Graph,
    head: &Head,
    samples: &Samples,
    options: &Options,
) -> Result<f64, TrainError> {
    const BATCH: usize = 64;
    let name = head.output(graph)?.0;
    let mut rate = ErrorRate::default();
    let mut compiled = Compiled::default();
    for batch in samples.data.batches(&samples.indices, BATCH, samples.preprocess) {
        let batch = batch?;
        let (program, arena) =
            compiled.of(batch.len, || Ok(Program::compile(&of_batch(graph, batch.len)?, &[], options)?))?;
        let given = inputs(graph, &batch);
        let outputs = program.run(arena, &borrowed(&given))?;
        let Some((_, y)) = outputs.iter().find(|(found, _)| found == name) else { continue };
        let expected = &targets(graph, &batch, std::slice::from_ref(head))?[0];
        for (read, row) in best_path(y).iter().zip(expected.to_i64s().chunks(head.labels.max(1))) {
            let row: Vec<i64> = row.iter().copied().filter(|&label| label >= 0).collect();
            rate.add(&row, read);
        }
    }
    Ok(rate.value())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repetitions_and_blanks_are_no_labels() {
        // Classes of the steps: 0 0 blank 0 1 | blank 1 1 blank blank.
        let classes = [0usize, 0, 2, 0, 1, 2, 1, 1, 2, 2];
        let values: Vec<f32> =
            classes.iter().flat_map(|&class| (0..3).map(move |c| f32::from(u8::from(c == class)))).collect();
        let y = Tensor::from_slice(&[2, 5, 3], &values).unwrap();
        assert_eq!(best_path(&y), [vec![0, 0, 1], vec![1]]);
    }
}
