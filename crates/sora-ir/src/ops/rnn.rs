//! The plain recurrent layer.

use serde::{Deserialize, Serialize};
use sora_tensor::Tensor;

use super::attrs;
use super::recurrent::{Recurrent, sigmoid};
use super::recurrent_grad::{self, Cell};
use crate::case::{Case, Gen};
use crate::{Dim, EvalCx, GradCx, Gradients, InferCx, Mismatch, OpDef, TensorType, TieCx};

/// The order in which a recurrent layer reads a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Direction {
    /// From the first step to the last.
    Forward,
    /// From the last step, that at the sequence's own length, to the first.
    Reverse,
    /// Both, with weights of their own: direction 0 forward, 1 reverse.
    Bidirectional,
}

impl Direction {
    /// All of them.
    pub const ALL: [Direction; 3] = [Direction::Forward, Direction::Reverse, Direction::Bidirectional];

    /// The number of directions: 1 or 2.
    pub fn count(self) -> usize {
        if self == Direction::Bidirectional { 2 } else { 1 }
    }

    /// Whether direction `index` starts at the end.
    pub fn reverses(self, index: usize) -> bool {
        self == Direction::Reverse || index == 1
    }
}

/// The nonlinearity of [`Rnn`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum RnnActivation {
    /// Hyperbolic tangent.
    Tanh,
    /// `max(0, x)`.
    Relu,
    /// Logistic function.
    Sigmoid,
}

attrs! {
    /// Recurrent layer `h ← f(W x + R h + biases)` over D directions. Inputs: X `[T, B, I]`, W `[D, H, I]`,
    /// R `[D, H, H]`; optional: bias `[D, 2H]` (of W, then of R), sequence lengths i32 `[B]`, initial h `[D, B, H]`.
    /// Outputs: Y `[T, D, B, H]`, zero past a sequence's length, and the final h `[D, B, H]`.
    /// Source: Elman 1990; ONNX RNN with `layout` 0.
    pub struct Rnn {
        /// Elements of the state, H.
        hidden: usize,
        /// The order of the steps.
        direction: Direction,
        /// The nonlinearity f.
        activation: RnnActivation,
    }
}

impl Rnn {
    fn layout(&self) -> Recurrent {
        Recurrent {
            hidden: self.hidden,
            direction: self.direction,
            gates: 1,
            states: 1,
            peepholes: 0,
            quantize_state: false,
        }
    }
}

impl OpDef for Rnn {
    fn infer(&self, cx: &InferCx) -> Result<Vec<TensorType>, Mismatch> {
        self.layout().infer(cx)
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, Mismatch> {
        let f = match self.activation {
            RnnActivation::Tanh => f64::tanh,
            RnnActivation::Relu => |x: f64| if x < 0.0 { 0.0 } else { x },
            RnnActivation::Sigmoid => sigmoid,
        };
        self.layout().eval(cx, |weights, x, states| {
            states[0] = weights.both(0, x, &states[0]).into_iter().map(f).collect();
        })
    }

    fn grad(&self, cx: &mut GradCx) -> Gradients {
        recurrent_grad::rule(cx, Cell::Rnn(self.activation), self.direction)
    }

    fn macs(&self, inputs: &[Option<&TensorType>], _: &[&TensorType]) -> Dim {
        self.layout().macs(inputs)
    }

    fn ties(&self, cx: &mut TieCx) -> Result<(), Mismatch> {
        self.layout().ties(cx)
    }

    fn narrowed(&self, _: &[Option<&TensorType>], outputs: &[&TensorType]) -> Self {
        Rnn { hidden: Recurrent::narrowed(self.hidden, outputs), ..self.clone() }
    }

    fn cases(g: &mut Gen) -> Vec<Case> {
        let mut cases = Vec::new();
        for direction in Direction::ALL {
            for activation in [RnnActivation::Tanh, RnnActivation::Relu, RnnActivation::Sigmoid] {
                let op = Rnn { hidden: g.size(1, 20), direction, activation };
                let inputs = op.layout().inputs(g);
                cases.push(Case::new(op, inputs));
            }
        }
        cases
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With W = R = 1 and Relu the state is the running sum, so each output shows which steps it has seen.
    #[test]
    fn directions_and_lengths_choose_the_steps() {
        let x = Tensor::from_slice(&[3, 2, 1], &[1f32, 10., 2., 20., 4., 40.]).unwrap();
        let ones = Tensor::from_slice(&[2, 1, 1], &[1f32, 1.]).unwrap();
        let lengths = Tensor::vector(&[3i32, 2]);
        let h0 = Tensor::from_slice(&[2, 2, 1], &[100f32, 0., 0., 500.]).unwrap();
        let op = Rnn { hidden: 1, direction: Direction::Bidirectional, activation: RnnActivation::Relu };
        let inputs = [Some(&x), Some(&ones), Some(&ones), None, Some(&lengths), Some(&h0)];
        let out = op.eval(&EvalCx { inputs: &inputs }).unwrap();
        let y = [
            101., 10., 7., 530., // step 0: forward of both sequences, reverse of both
            103., 30., 6., 520., // step 1
            107., 0., 4., 0., // step 2 is past the second sequence
        ];
        assert_eq!(out[0].to_f32s(), y);
        assert_eq!(out[1].to_f32s(), [107., 30., 7., 530.]);

        for wrong in [[3, 4], [-1, 2]] {
            let lengths = Tensor::vector::<i32>(&wrong);
            let inputs = [Some(&x), Some(&ones), Some(&ones), None, Some(&lengths)];
            assert!(op.eval(&EvalCx { inputs: &inputs }).is_err());
        }
        let huge = Rnn { hidden: usize::MAX, ..op };
        let cx = EvalCx { inputs: &inputs };
        assert!(cx.infer(&huge).is_err());
    }
}
