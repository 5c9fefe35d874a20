//! What large weights add to the loss.

use sora_ir::ops::{Reduce, ReduceKind};
use sora_ir::{Mismatch, ValueId, Writer};
use sora_tensor::Tensor;

use crate::Parameter;

/// Adds `l1 · Σ|w| + l2 · Σw²` to the loss. Sources: Tibshirani 1996; Hoerl & Kennard 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Penalty {
    /// Factor of the sum of sizes.
    pub l1: f64,
    /// Factor of the sum of squares.
    pub l2: f64,
}

/// Adds the penalties of parameters, whose values are `values`, to a loss.
pub(crate) fn penalized(
    w: &mut Writer,
    mut loss: ValueId,
    parameters: &[Parameter],
    values: &[ValueId],
) -> Result<ValueId, Mismatch> {
    for (Parameter { penalty, .. }, &value) in parameters.iter().zip(values) {
        for (kind, factor) in [(ReduceKind::L1, penalty.l1), (ReduceKind::SumSquare, penalty.l2)] {
            if factor > 0.0 {
                let size = w.op(Reduce { kind, axes: Vec::new(), keep_dims: false }, [value])?;
                let cost = w.times(size, factor)?;
                loss = w.add(loss, cost)?;
            }
        }
    }
    Ok(loss)
}

/// The penalties of the parameters of a state.
pub(crate) fn total<'a>(parameters: &[Parameter], of: impl Fn(&str) -> Option<&'a Tensor>) -> f64 {
    let cost = |Parameter { name, penalty, .. }: &Parameter| {
        if *penalty == Penalty::default() {
            return 0.0;
        }
        let values = of(name).map(Tensor::to_f64s).unwrap_or_default();
        values.iter().map(|w| penalty.l1 * w.abs() + penalty.l2 * w * w).sum::<f64>()
    };
    parameters.iter().map(cost).sum()
}

#[cfg(test)]
mod tests {
    use sora_ir::{Graph, TensorType, evaluate};
    use sora_tensor::DType;

    use super::*;

    /// Weights 3, −1 and biases that cost nothing: 0.1 (3 + 1) + 0.5 (9 + 1), and 0.1 sign(w) + 2 · 0.5 w.
    #[test]
    fn large_weights_cost_what_the_formula_says() {
        let mut graph = Graph::new("g");
        let number = TensorType::new(DType::F32, [2usize]);
        let values = ["w", "b"].map(|name| graph.input(name, number.clone()));
        let penalties = [Penalty { l1: 0.1, l2: 0.5 }, Penalty::default()];
        let parameters = [0, 1].map(|i| Parameter {
            name: ["w", "b"][i].to_owned(),
            value: values[i],
            trainable: true,
            rate: 1.0,
            gradient: 1.0,
            penalty: penalties[i],
        });
        let mut w = Writer::new(&mut graph, "loss");
        let loss = w.constant(Tensor::scalar(2f32));
        let loss = penalized(&mut w, loss, &parameters, &values).unwrap();
        let gradients = crate::differentiate(&mut graph, loss, &values).unwrap();
        graph.output("loss", loss);
        gradients.iter().for_each(|&gradient| graph.output("gradient", gradient));
        let tensor = Tensor::vector(&[3f32, -1.0]);
        let found = evaluate(&graph, &[("w", &tensor), ("b", &tensor)]).unwrap();
        let near = |found: &Tensor, expected: &[f64]| {
            let found = found.to_f64s();
            assert!(found.iter().zip(expected).all(|(f, e)| (f - e).abs() < 1e-6), "{found:?}");
        };
        near(&found[0], &[7.4]);
        near(&found[1], &[3.1, -1.1]);
        near(&found[2], &[0.0, 0.0]);
        assert!((total(&parameters, |_| Some(&tensor)) - 5.4).abs() < 1e-12);
    }
}
