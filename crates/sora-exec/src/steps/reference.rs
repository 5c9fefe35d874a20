//! Any operator, on the reference evaluator.

use sora_ir::{EvalCx, Op};
use sora_tensor::{Buffer, DType, Tensor};

use super::{Cx, Io, Work};

/// Where an argument of the operator comes from.
pub(crate) enum Argument {
    /// The next input of the step, of this dtype and shape.
    Given(DType, Vec<usize>),
    /// A constant.
    Constant(Tensor),
    /// An absent optional argument.
    Absent,
}

/// Evaluates one operator as [`Op::eval`] does.
pub(crate) struct Reference {
    pub(crate) op: Op,
    pub(crate) arguments: Vec<Argument>,
}

impl Work for Reference {
    fn run(&self, _: &Cx, io: Io) -> Result<(), String> {
        let mut given = io.ins.iter();
        let mut tensors = Vec::with_capacity(self.arguments.len());
        for argument in &self.arguments {
            tensors.push(match argument {
                Argument::Given(dtype, shape) => {
                    let bytes = given.next().copied().unwrap_or_default();
                    Some(Tensor::new(*dtype, shape, Buffer::copy_of(bytes)).map_err(|e| e.to_string())?)
                }
                Argument::Constant(tensor) => Some(tensor.clone()),
                Argument::Absent => None,
            });
        }
        let inputs: Vec<_> = tensors.iter().map(Option::as_ref).collect();
        let results = self.op.eval(&EvalCx { inputs: &inputs }).map_err(|why| why.0)?;
        for (output, result) in io.outs.into_iter().zip(&results) {
            if output.len() != result.byte_len() {
                return Err(format!("gave {:?} where {} bytes are planned", result.shape(), output.len()));
            }
            output.copy_from_slice(result.bytes());
        }
        Ok(())
    }
}
