//! Recurrent layers.

use sora_ir::ValueId;
use sora_ir::ops::{self, Direction, Squeeze, Transpose};

use super::{Initializer, Layer, LayerError, Network};

/// Stacked long short-term memory over sequences `[N, T, C]`; the result is `[N, T, hidden]`. Parameters of each level
/// l: `weight_ih_l` `[1, 4·hidden, C]`, `weight_hh_l` `[1, 4·hidden, hidden]` and `bias_l` `[1, 8·hidden]`, with the
/// gates in the order of [`ops::Lstm`]. Source: Hochreiter & Schmidhuber 1997.
#[derive(Clone, Copy, Debug)]
pub struct Lstm {
    hidden: usize,
    levels: usize,
}

impl Lstm {
    /// One level of `hidden` units.
    pub fn new(hidden: usize) -> Self {
        Lstm { hidden, levels: 1 }
    }

    /// How many are stacked.
    #[must_use]
    pub fn levels(self, levels: usize) -> Self {
        Lstm { levels, ..self }
    }
}

impl Layer for Lstm {
    fn name(&self) -> &'static str {
        "lstm"
    }

    fn build(&self, net: &mut Network, x: ValueId) -> Result<ValueId, LayerError> {
        let hidden = self.hidden;
        if net.ty(x).rank() != 3 {
            return Err(net.refuse(format!("expected sequences [N, T, C], found {}", net.ty(x))));
        }
        let swap = || Transpose { perm: vec![1, 0, 2] };
        let mut x = net.op("time_first", swap(), [x])?;
        for level in 0..self.levels {
            let inputs = net.extent(x, 2)?;
            let ih = Initializer::GlorotUniform.distribution(inputs, 4 * hidden);
            let hh = Initializer::LecunNormal.distribution(hidden, 4 * hidden);
            let weight_ih = net.parameter(&format!("weight_ih_{level}"), &[1, 4 * hidden, inputs], ih);
            let weight_hh = net.parameter(&format!("weight_hh_{level}"), &[1, 4 * hidden, hidden], hh);
            let bias = bias(net, &format!("bias_{level}"), hidden);
            let op = ops::Lstm { hidden, direction: Direction::Forward, quantize_state: false };
            let y = net.nodes(&format!("level{level}"), op, [x, weight_ih, weight_hh, bias])?[0];
            x = net.op("squeeze", Squeeze { axes: vec![1] }, [y])?;
        }
        net.op("", swap(), [x])
    }
}

/// Biases as of any layer, plus 1 for the forget gate: a gate that begins open lets gradients through.
/// Source: Jozefowicz, Zaremba & Sutskever 2015.
fn bias(net: &mut Network, name: &str, hidden: usize) -> ValueId {
    let mut bias = net.draw(name, &[1, 8 * hidden], net.bias_distribution());
    // Gates of W come first, in the order input, output, forget, cell.
    let values = bias.as_mut_slice::<f32>().expect("parameters are f32");
    values[2 * hidden..3 * hidden].iter_mut().for_each(|v| *v += 1.0);
    net.keep(name, bias, true)
}
