//! The GRU layer.

use sora_tensor::Tensor;

use super::attrs;
use super::recurrent::{Recurrent, rounding, sigmoid};
use super::recurrent_grad::{self, Cell};
use super::rnn::Direction;
use crate::case::{Case, Gen};
use crate::{Dim, EvalCx, GradCx, Gradients, InferCx, Mismatch, OpDef, QuantRule, TensorType, TieCx, ensure};

attrs! {
    /// Gated recurrent unit over D directions, with the gates update z, reset r, candidate n in this order along the
    /// rows of the weights:
    ///
    /// `z, r = σ(W x + R h + biases)`, `n = tanh(W x + R (r · h) + biases)`, `h ← (1 - z) · n + z · h`.
    ///
    /// Inputs: X `[T, B, I]`, W `[D, 3H, I]`, R `[D, 3H, H]`; optional: bias `[D, 6H]` (of W, then of R), sequence
    /// lengths i32 `[B]`, initial h `[D, B, H]`. Outputs: Y `[T, D, B, H]`, zero past a sequence's length, and the
    /// final h `[D, B, H]`. Source: Cho et al. 2014; ONNX GRU with `layout` 0.
    pub struct Gru {
        /// Elements of the state, H.
        hidden: usize,
        /// The order of the steps.
        direction: Direction,
        /// Whether the reset gate multiplies `R h + bias` instead of h: what cuDNN and PyTorch compute.
        linear_before_reset: bool,
        /// Whether what meets R at a step is rounded first, each sequence by itself, as by one row of
        /// [`DynamicQuantizeLinear`](struct@super::DynamicQuantizeLinear) and back: the state's part is then a
        /// product of bytes where R is quantized too. X has its own operators for that in front of the layer.
        #[serde(default)]
        quantize_state: bool,
    }
}

impl Gru {
    fn layout(&self) -> Recurrent {
        Recurrent {
            hidden: self.hidden,
            direction: self.direction,
            gates: 3,
            states: 1,
            peepholes: 0,
            quantize_state: self.quantize_state,
        }
    }
}

impl OpDef for Gru {
    fn infer(&self, cx: &InferCx) -> Result<Vec<TensorType>, Mismatch> {
        self.layout().infer(cx)
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, Mismatch> {
        let times = |a: &[f64], b: &[f64]| -> Vec<f64> { a.iter().zip(b).map(|(a, b)| a * b).collect() };
        self.layout().eval(cx, |weights, x, states| {
            let h = &mut states[0];
            let [z, r] = [0, 1].map(|gate| {
                let sums = weights.both(gate, x, h);
                sums.into_iter().map(sigmoid).collect::<Vec<_>>()
            });
            let recurrent = match self.linear_before_reset {
                true => times(&r, &weights.state(2, h)),
                false => weights.state(2, &times(&r, h)),
            };
            for (k, (input, recurrent)) in weights.input(2, x).into_iter().zip(recurrent).enumerate() {
                h[k] = (1.0 - z[k]) * (input + recurrent).tanh() + z[k] * h[k];
            }
        })
    }

    fn quant(&self) -> QuantRule {
        if self.quantize_state { QuantRule::Float } else { QuantRule::Recurrent }
    }

    fn grad(&self, cx: &mut GradCx) -> Gradients {
        ensure!(self.linear_before_reset, "has no gradient where the reset comes before the product");
        ensure!(!self.quantize_state, "has no gradient with a rounded state");
        recurrent_grad::rule(cx, Cell::Gru, self.direction)
    }

    fn macs(&self, inputs: &[Option<&TensorType>], _: &[&TensorType]) -> Dim {
        self.layout().macs(inputs)
    }

    fn ties(&self, cx: &mut TieCx) -> Result<(), Mismatch> {
        self.layout().ties(cx)
    }

    fn narrowed(&self, _: &[Option<&TensorType>], outputs: &[&TensorType]) -> Self {
        Gru { hidden: Recurrent::narrowed(self.hidden, outputs), ..self.clone() }
    }

    fn cases(g: &mut Gen) -> Vec<Case> {
        let mut cases = Vec::new();
        for direction in Direction::ALL {
            for linear_before_reset in [false, true] {
                for quantize_state in [false, true] {
                    let op = Gru { hidden: g.size(1, 20), direction, linear_before_reset, quantize_state };
                    let inputs = op.layout().inputs(g);
                    cases.push(Case::new(op, inputs).with_tolerance(rounding(quantize_state)));
                }
            }
        }
        cases
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_step_by_hand_either_way_to_reset() {
        let tensor = |shape: &[usize], values: &[f64]| Tensor::from_slice(shape, values).unwrap();
        let x = tensor(&[1, 1, 1], &[2.0]);
        let w = tensor(&[1, 3, 1], &[0.1, 0.2, 0.3]);
        let r = tensor(&[1, 3, 1], &[0.5, 0.6, 0.7]);
        let b = tensor(&[1, 6], &[0.01, 0.02, 0.03, 0.1, 0.2, 0.3]);
        let h0 = tensor(&[1, 1, 1], &[-1.0]);
        let z = sigmoid(0.2 - 0.5 + 0.11);
        let reset = sigmoid(0.4 - 0.6 + 0.22);
        for (linear_before_reset, n) in [
            (false, (0.6 + 0.03 - 0.7 * reset + 0.3).tanh()),
            (true, (0.6 + 0.03 + reset * (-0.7 + 0.3)).tanh()),
        ] {
            let op =
                Gru { hidden: 1, direction: Direction::Reverse, linear_before_reset, quantize_state: false };
            let inputs = [Some(&x), Some(&w), Some(&r), Some(&b), None, Some(&h0)];
            let out = op.eval(&EvalCx { inputs: &inputs }).unwrap();
            for found in out {
                assert!((found.to_f64s()[0] - ((1.0 - z) * n - z)).abs() < 1e-12);
            }
        }
    }
}
