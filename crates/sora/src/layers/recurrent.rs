//! Recurrent layers.

use sora_ir::ops::{self, Direction, Op, RnnActivation, Squeeze, Transpose};
use sora_ir::{ValueId, ops::Rnn};

use super::{Flatten, Initializer, Layer, LayerError, Network, Reshape};

/// What the recurrent layers share.
#[derive(Clone, Copy, Debug)]
struct Stack {
    hidden: usize,
    levels: usize,
    direction: Direction,
    last: bool,
    lengths: Option<ValueId>,
}

macro_rules! recurrent {
    ($(#[$doc:meta])* $layer:ident, $name:literal, $gates:literal, |$hidden:ident, $direction:ident| $op:expr) => {
        $(#[$doc])*
        ///
        /// Over sequences `[N, T, C]` it gives `[N, T, hidden]`, twice as much with [`Self::bidirectional`], and only the state
        /// behind the last step `[N, hidden]` with [`Self::last`]. Parameters of each level l: `weight_ih_l`, `weight_hh_l`
        /// and `bias_l`, with shapes and gates as in the operator.
        #[derive(Clone, Copy, Debug)]
        pub struct $layer(Stack);

        impl $layer {
            /// One level of `hidden` units that reads sequences from the first step to the last.
            pub fn new(hidden: usize) -> Self {
                let direction = Direction::Forward;
                $layer(Stack { hidden, levels: 1, direction, last: false, lengths: None })
            }

            /// How many are stacked.
            #[must_use]
            pub fn levels(self, levels: usize) -> Self {
                $layer(Stack { levels, ..self.0 })
            }

            /// A second set of units reads each sequence from its last step to the first; their results lie behind those of
            /// the first set. Source: Schuster & Paliwal 1997.
            #[must_use]
            pub fn bidirectional(self) -> Self {
                $layer(Stack { direction: Direction::Bidirectional, ..self.0 })
            }

            /// Gives the state behind the last step that was read instead of that of each.
            #[must_use]
            pub fn last(self) -> Self {
                $layer(Stack { last: true, ..self.0 })
            }

            /// How many steps of each sequence count, i32 `[N]`; what comes behind them is not read, and gives zeros. Default:
            /// what is known of the sequences ([`Network::lengths`]).
            #[must_use]
            pub fn lengths(self, lengths: ValueId) -> Self {
                $layer(Stack { lengths: Some(lengths), ..self.0 })
            }
        }

        impl Layer for $layer {
            fn name(&self) -> &'static str {
                $name
            }

            fn build(&self, net: &mut Network, x: ValueId) -> Result<ValueId, LayerError> {
                let ($hidden, $direction) = (self.0.hidden, self.0.direction);
                self.0.build(net, x, $gates, || $op.into())
            }

            fn keeps_steps(&self) -> bool {
                !self.0.last
            }
        }
    };
}

recurrent! {
    /// Long short-term memory, [`ops::Lstm`]. Source: Hochreiter & Schmidhuber 1997.
    Lstm, "lstm", 4, |hidden, direction| ops::Lstm { hidden, direction, quantize_state: false }
}

recurrent! {
    /// Gated recurrent units that reset behind the product with the state, [`ops::Gru`]. Source: Cho et al. 2014.
    Gru, "gru", 3, |hidden, direction| {
        ops::Gru { hidden, direction, linear_before_reset: true, quantize_state: false }
    }
}

recurrent! {
    /// Units whose state is a hyperbolic tangent, [`Rnn`]. Source: Elman 1990.
    SimpleRnn, "simple_rnn", 1, |hidden, direction| Rnn { hidden, direction, activation: RnnActivation::Tanh }
}

impl Stack {
    fn build(
        &self,
        net: &mut Network,
        x: ValueId,
        gates: usize,
        op: impl Fn() -> Op,
    ) -> Result<ValueId, LayerError> {
        let (hidden, directions) = (self.hidden, self.direction.count());
        if net.ty(x).rank() != 3 {
            return Err(net.refuse(format!("expected sequences [N, T, C], found {}", net.ty(x))));
        }
        if self.levels == 0 {
            return Err(net.refuse("there must be at least one level"));
        }
        let both = self.direction == Direction::Bidirectional;
        let lengths = self.lengths.or(net.lengths(x));
        let mut x = net.op("time_first", Transpose { perm: vec![1, 0, 2] }, [x])?;
        for level in 0..self.levels {
            let (inputs, rows) = (net.extent(x, 2)?, gates * hidden);
            let ih = Initializer::GlorotUniform.distribution(inputs, rows);
            let hh = Initializer::LecunNormal.distribution(hidden, rows);
            let weight_ih = net.parameter(&format!("weight_ih_{level}"), &[directions, rows, inputs], ih);
            let weight_hh = net.parameter(&format!("weight_hh_{level}"), &[directions, rows, hidden], hh);
            let bias = self.bias(net, &format!("bias_{level}"), rows);
            let given = [Some(x), Some(weight_ih), Some(weight_hh), Some(bias), lengths];
            let given = given.into_iter().take(if lengths.is_some() { 5 } else { 4 });
            let outputs = net.nodes(&format!("level{level}"), op(), given)?;
            if self.last && level + 1 == self.levels {
                // [D, N, H].
                let state = net.op("batch_first", Transpose { perm: vec![1, 0, 2] }, [outputs[1]])?;
                return net.layer(state, &Flatten);
            }
            // [T, D, N, H].
            x = match both {
                false => net.op("squeeze", Squeeze { axes: vec![1] }, [outputs[0]])?,
                true => {
                    let beside = Transpose { perm: vec![0, 2, 1, 3] };
                    let y = net.op("beside", beside, [outputs[0]])?;
                    let width = i64::try_from(directions * hidden).unwrap_or(-1);
                    net.layer(y, &Reshape(vec![0, width]))?
                }
            };
        }
        net.op("", Transpose { perm: vec![1, 0, 2] }, [x])
    }

    /// Biases as of any layer, plus 1 for the forget gate of an LSTM: a gate that begins open lets gradients through.
    /// Source: Jozefowicz, Zaremba & Sutskever 2015.
    fn bias(&self, net: &mut Network, name: &str, rows: usize) -> ValueId {
        let hidden = self.hidden;
        let mut bias = net.draw(name, &[self.direction.count(), 2 * rows], net.bias_distribution());
        if rows == 4 * hidden {
            // Gates of W come first, in the order input, output, forget, cell.
            let values = bias.as_mut_slice::<f32>().expect("parameters are f32");
            for values in values.chunks_exact_mut(2 * rows) {
                values[2 * hidden..3 * hidden].iter_mut().for_each(|v| *v += 1.0);
            }
        }
        net.keep(name, bias, true)
    }
}
