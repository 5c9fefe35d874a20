//! The loss of sequences of labels whose places in time are unknown.
//!
//! Source: Graves et al. 2006, "Connectionist temporal classification". The recursion over time is written out step by step
//! in the logarithm, so that its gradient is that of ordinary operators.

use sora_ir::ops::{BinaryKind, Concat, Reduce, ReduceKind, Softmax, UnaryKind};
use sora_ir::{Mismatch, ValueId, Writer};
use sora_tensor::{DType, Tensor};

/// The logarithm of a probability of 0: far below all others, and finite.
const NEVER: f64 = -1e30;

/// The mean over the samples of −ln p(labels): logits `y` `[N, T, C]`, the last of the C classes being the blank, and labels
/// i64 `[N, L]`, a row of fewer than L being filled up with -1. A row that does not fit into T steps has a loss of about 1e30.
pub(crate) fn ctc(w: &mut Writer, y: ValueId, labels: ValueId) -> Result<ValueId, Mismatch> {
    let (shape, most) = (w.shape(y)?, w.shape(labels)?[1]);
    let &[samples, steps, classes] = shape.as_slice() else {
        return Err(Mismatch::new(format!("ctc takes logits of steps [N, T, C], found {shape:?}")));
    };
    let states = 2 * most + 1;
    let blank = i64::try_from(classes).unwrap_or(i64::MAX) - 1;

    // States between, before and behind the labels are blanks: [N, S].
    let counted = w.compare(labels, BinaryKind::GreaterOrEqual, 0.0)?;
    let blanks = w.constant(Tensor::from_slice(&[1, 1], &[blank])?);
    let own = w.select(counted, labels, blanks)?;
    let blanks = w.expand(blanks, &[samples, most])?;
    let [blanks, own] = [blanks, own].map(|part| w.reshape(part, &[samples, most, 1]));
    let pairs = w.op(Concat { axis: 2 }, [blanks?, own?])?;
    let pairs = w.reshape(pairs, &[samples, 2 * most])?;
    let last = w.constant(Tensor::from_slice(&[samples, 1], &vec![blank; samples])?);
    let classes_of = w.op(Concat { axis: 1 }, [pairs, last])?;

    // What every state gives at every step, as a product with the states' classes: [N, T, S].
    let log = w.op(Softmax { axis: 2, log: true }, [y])?;
    let every: Vec<i64> = (0..=blank).collect();
    let every = w.constant(Tensor::from_slice(&[1, classes, 1], &every)?);
    let of_state = w.reshape(classes_of, &[samples, 1, states])?;
    let is = w.binary(BinaryKind::Equal, every, of_state)?;
    let is = w.cast(is, DType::F32)?;
    let given = w.mat_mul(log, is)?;

    // A label may follow the one before it without a blank if the two differ: 0, else NEVER.
    let two_before = match states > 2 {
        true => {
            let first = w.constant(Tensor::from_slice(&[samples, 2], &vec![blank; 2 * samples])?);
            let front = w.part(classes_of, 1, 0, states - 2)?;
            w.op(Concat { axis: 1 }, [first, front])?
        }
        false => classes_of,
    };
    let same = w.binary(BinaryKind::Equal, classes_of, two_before)?;
    let is_blank = w.compare(classes_of, BinaryKind::Equal, blank as f64)?;
    let barred = w.binary(BinaryKind::Or, same, is_blank)?;
    let barred = w.cast(barred, DType::F32)?;
    let skip = w.times(barred, NEVER)?;

    let edge = w.constant(Tensor::from_f64s(DType::F32, &[samples, 2], &vec![NEVER; 2 * samples])?);
    let at = |w: &mut Writer, step: usize| -> Result<ValueId, Mismatch> {
        let now = w.part(given, 1, step, 1)?;
        w.reshape(now, &[samples, states])
    };
    // The first step is in the first blank or the first label.
    let begin: Vec<f64> = (0..states).map(|state| if state < 2 { 0.0 } else { NEVER }).collect();
    let begin = w.constant(Tensor::from_f64s(DType::F32, &[1, states], &begin)?);
    let first = at(w, 0)?;
    let mut alpha = w.add(first, begin)?;
    for step in 1..steps {
        let wide = w.op(Concat { axis: 1 }, [edge, alpha])?;
        let one_before = w.part(wide, 1, 1, states)?;
        let two_before = w.part(wide, 1, 0, states)?;
        let two_before = w.add(two_before, skip)?;
        let reached = log_sum(w, &[alpha, one_before, two_before])?;
        let now = at(w, step)?;
        alpha = w.add(reached, now)?;
    }

    // The last step is in the last label or the blank behind it.
    let counted = w.cast(counted, DType::I64)?;
    let count = w.reduce(ReduceKind::Sum, counted, &[1])?;
    let end = w.times(count, 2.0)?;
    let places: Vec<i64> = (0..).take(states).collect();
    let places = w.constant(Tensor::from_slice(&[1, states], &places)?);
    let behind = w.binary(BinaryKind::Sub, end, places)?;
    let zero = w.compare(behind, BinaryKind::Equal, 0.0)?;
    let one = w.compare(behind, BinaryKind::Equal, 1.0)?;
    let ends = w.binary(BinaryKind::Or, zero, one)?;
    let barred = w.constant(Tensor::from_f64s(DType::F32, &[], &[NEVER])?);
    let ended = w.select(ends, alpha, barred)?;
    let most_likely = w.reduce(ReduceKind::Max, ended, &[1])?;
    let below = w.sub(ended, most_likely)?;
    let shares = w.unary(UnaryKind::Exp, below)?;
    let sum = w.reduce(ReduceKind::Sum, shares, &[1])?;
    let sum = w.unary(UnaryKind::Log, sum)?;
    let total = w.add(sum, most_likely)?;
    let mean = w.op(Reduce { kind: ReduceKind::Mean, axes: Vec::new(), keep_dims: false }, [total])?;
    w.times(mean, -1.0)
}

/// The logarithm of the sum of what these are logarithms of.
fn log_sum(w: &mut Writer, terms: &[ValueId; 3]) -> Result<ValueId, Mismatch> {
    let [a, b, c] = *terms;
    let most = w.binary(BinaryKind::Max, a, b)?;
    let most = w.binary(BinaryKind::Max, most, c)?;
    let mut sum = None;
    for &term in terms {
        let below = w.sub(term, most)?;
        let share = w.unary(UnaryKind::Exp, below)?;
        sum = Some(match sum {
            Some(sum) => w.add(sum, share)?,
            None => share,
        });
    }
    let log = w.unary(UnaryKind::Log, sum.unwrap_or(most))?;
    w.add(log, most)
}

#[cfg(test)]
mod tests {
    use sora_ir::{Graph, TensorType, evaluate};

    use super::*;

    /// −ln of the summed probability of all ways that give the labels, found by trying all.
    fn by_hand(logits: &[f64], steps: usize, classes: usize, labels: &[usize]) -> f64 {
        let log: Vec<f64> = logits
            .chunks(classes)
            .flat_map(|row| {
                let sum = row.iter().map(|x| x.exp()).sum::<f64>().ln();
                row.iter().map(move |x| x - sum).collect::<Vec<_>>()
            })
            .collect();
        let mut total = 0.0;
        for way in 0..classes.pow(steps as u32) {
            let path: Vec<usize> = (0..steps).map(|t| way / classes.pow(t as u32) % classes).collect();
            let mut read: Vec<usize> = path.clone();
            read.dedup();
            read.retain(|&class| class != classes - 1);
            if read == labels {
                total += (0..steps).map(|t| log[t * classes + path[t]]).sum::<f64>().exp();
            }
        }
        -total.ln()
    }

    #[test]
    fn the_loss_is_that_of_all_alignments_and_its_gradient_that_of_differences() {
        let (samples, steps, classes, most) = (4, 5, 4, 3);
        let mut rng = fastrand::Rng::with_seed(3);
        let logits: Vec<f64> = (0..samples * steps * classes).map(|_| rng.f64() * 4.0 - 2.0).collect();
        let rows = [vec![0usize, 0, 1], vec![2], vec![], vec![1, 2]];
        let labels: Vec<i64> = rows
            .iter()
            .flat_map(|row| (0..most).map(|i| row.get(i).map_or(-1, |&label| label as i64)))
            .collect();
        let mut graph = Graph::new("ctc");
        let y = graph.input("y", TensorType::new(DType::F32, [samples, steps, classes]));
        let t = graph.input("t", TensorType::new(DType::I64, [samples, most]));
        let loss = ctc(&mut Writer::new(&mut graph, "loss"), y, t).unwrap();
        let gradient = crate::differentiate(&mut graph, loss, &[y]).unwrap()[0];
        graph.output("loss", loss);
        graph.output("gradient", gradient);
        let targets = Tensor::from_slice(&[samples, most], &labels).unwrap();
        let run = |logits: &[f64]| {
            let y = Tensor::from_f64s(DType::F32, &[samples, steps, classes], logits).unwrap();
            let found = evaluate(&graph, &[("y", &y), ("t", &targets)]).unwrap();
            (found[0].to_f64s()[0], found[1].to_f64s())
        };
        let reference = |logits: &[f64]| {
            let each = logits.chunks(steps * classes).zip(&rows);
            each.map(|(logits, row)| by_hand(logits, steps, classes, row)).sum::<f64>() / samples as f64
        };
        let (found, gradient) = run(&logits);
        let expected = reference(&logits);
        assert!((found - expected).abs() < 1e-5 * expected, "{found} instead of {expected}");
        for i in 0..logits.len() {
            let moved = |by: f64| {
                let mut logits = logits.clone();
                logits[i] += by;
                reference(&logits)
            };
            let slope = (moved(1e-4) - moved(-1e-4)) / 2e-4;
            assert!((gradient[i] - slope).abs() < 1e-5, "{i}: {} instead of {slope}", gradient[i]);
        }
    }
}
