//! The LSTM layer.

use sora_tensor::Tensor;

use super::attrs;
use super::recurrent::{Recurrent, rounding, sigmoid};
use super::recurrent_grad::{self, Cell};
use super::rnn::Direction;
use crate::case::{Case, Gen};
use crate::{Dim, EvalCx, GradCx, Gradients, InferCx, Mismatch, OpDef, QuantRule, TensorType, TieCx, ensure};

attrs! {
    /// Long short-term memory over D directions, with the gates input, output, forget, cell in this order along the
    /// rows of the weights:
    ///
    /// `i, f = σ(W x + R h + p · c + biases)`, `g = tanh(W x + R h + biases)`, `c ← f · c + i · g`,
    /// `o = σ(W x + R h + p · c + biases)` with the new c, `h ← o · tanh(c)`.
    ///
    /// Inputs: X `[T, B, I]`, W `[D, 4H, I]`, R `[D, 4H, H]`; optional: bias `[D, 8H]` (of W, then of R), sequence
    /// lengths i32 `[B]`, initial h and c `[D, B, H]`, peepholes p `[D, 3H]` of input, output, forget.
    /// Outputs: Y `[T, D, B, H]`, zero past a sequence's length, and the final h and c `[D, B, H]`.
    /// Source: Hochreiter & Schmidhuber 1997, peepholes Gers & Schmidhuber 2000; ONNX LSTM with `layout` 0.
    pub struct Lstm {
        /// Elements of the state, H.
        hidden: usize,
        /// The order of the steps.
        direction: Direction,
        /// Whether what meets R at a step is rounded first, each sequence by itself, as by one row of
        /// [`DynamicQuantizeLinear`](struct@super::DynamicQuantizeLinear) and back: the state's part is then a
        /// product of bytes where R is quantized too. X has its own operators for that in front of the layer.
        #[serde(default)]
        quantize_state: bool,
    }
}

impl Lstm {
    fn layout(&self) -> Recurrent {
        Recurrent {
            hidden: self.hidden,
            direction: self.direction,
            gates: 4,
            states: 2,
            peepholes: 3,
            quantize_state: self.quantize_state,
        }
    }
}

impl OpDef for Lstm {
    fn infer(&self, cx: &InferCx) -> Result<Vec<TensorType>, Mismatch> {
        self.layout().infer(cx)
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, Mismatch> {
        self.layout().eval(cx, |weights, x, states| {
            let [input, output, forget, cell] = [0, 1, 2, 3].map(|gate| weights.both(gate, x, &states[0]));
            let [h, c] = states else { return };
            for k in 0..c.len() {
                let i = sigmoid(input[k] + weights.peephole(0, k) * c[k]);
                let f = sigmoid(forget[k] + weights.peephole(2, k) * c[k]);
                c[k] = f * c[k] + i * cell[k].tanh();
                h[k] = sigmoid(output[k] + weights.peephole(1, k) * c[k]) * c[k].tanh();
            }
        })
    }

    fn quant(&self) -> QuantRule {
        if self.quantize_state { QuantRule::Float } else { QuantRule::Recurrent }
    }

    fn grad(&self, cx: &mut GradCx) -> Gradients {
        ensure!(cx.opt(7).is_none(), "has no gradient with peepholes");
        ensure!(!self.quantize_state, "has no gradient with a rounded state");
        recurrent_grad::rule(cx, Cell::Lstm, self.direction)
    }

    fn macs(&self, inputs: &[Option<&TensorType>], _: &[&TensorType]) -> Dim {
        self.layout().macs(inputs)
    }

    fn ties(&self, cx: &mut TieCx) -> Result<(), Mismatch> {
        self.layout().ties(cx)
    }

    fn narrowed(&self, _: &[Option<&TensorType>], outputs: &[&TensorType]) -> Self {
        Lstm { hidden: Recurrent::narrowed(self.hidden, outputs), ..self.clone() }
    }

    fn cases(g: &mut Gen) -> Vec<Case> {
        let mut cases = Vec::new();
        for direction in Direction::ALL.repeat(2) {
            for quantize_state in [false, true] {
                let op = Lstm { hidden: g.size(1, 20), direction, quantize_state };
                let inputs = op.layout().inputs(g);
                cases.push(Case::new(op, inputs).with_tolerance(rounding(quantize_state)));
            }
        }
        cases
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_step_by_hand() {
        let tensor = |shape: &[usize], values: &[f64]| Tensor::from_slice(shape, values).unwrap();
        let x = tensor(&[1, 1, 1], &[2.0]);
        let w = tensor(&[1, 4, 1], &[0.1, 0.2, 0.3, 0.4]);
        let r = tensor(&[1, 4, 1], &[0.5, 0.6, 0.7, 0.8]);
        let b = tensor(&[1, 8], &[0.01, 0.02, 0.03, 0.04, 0.1, 0.2, 0.3, 0.4]);
        let (h0, c0) = (tensor(&[1, 1, 1], &[-1.0]), tensor(&[1, 1, 1], &[0.5]));
        let p = tensor(&[1, 3], &[0.9, 1.1, 1.3]);
        let op = Lstm { hidden: 1, direction: Direction::Forward, quantize_state: false };
        let inputs = [Some(&x), Some(&w), Some(&r), Some(&b), None, Some(&h0), Some(&c0), Some(&p)];
        let out = op.eval(&EvalCx { inputs: &inputs }).unwrap();
        let i = sigmoid(0.2 - 0.5 + 0.11 + 0.45);
        let f = sigmoid(0.6 - 0.7 + 0.33 + 0.65);
        let c = f * 0.5 + i * (0.8f64 - 0.8 + 0.44).tanh();
        let h = sigmoid(0.4 - 0.6 + 0.22 + 1.1 * c) * c.tanh();
        for (found, expected) in out.iter().zip([h, h, c]) {
            assert!((found.to_f64s()[0] - expected).abs() < 1e-12);
        }
    }
}
