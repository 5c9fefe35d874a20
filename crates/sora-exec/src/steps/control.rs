//! Control flow inside of a program.

use super::reference::Argument;
use super::{Cx, Io, Work};
use crate::ExecError;
use crate::control::Control;
use crate::given::Given;

/// Runs the bodies of an `If`, `Loop` or `Scan` whose results have known shapes.
pub(crate) struct Branching {
    pub(crate) control: Control,
    pub(crate) arguments: Vec<Argument>,
}

impl Work for Branching {
    fn run(&self, _: &Cx, io: Io) -> Result<(), String> {
        let mut given = io.ins.iter();
        let inputs = self.arguments.iter().map(|argument| match argument {
            Argument::Given(dtype, shape) => {
                Some(Given::Bytes { dtype: *dtype, shape, bytes: given.next().copied().unwrap_or_default() })
            }
            Argument::Constant(tensor) => Some(Given::Tensor(tensor)),
            Argument::Absent => None,
        });
        let inputs: Vec<Option<Given>> = inputs.collect();
        let mut outs = io.outs;
        let done = self.control.run(&inputs, &mut |i, value| {
            let why = match outs.get_mut(i) {
                Some(out) if out.len() == value.bytes().len() => {
                    out.copy_from_slice(value.bytes());
                    return Ok(());
                }
                Some(out) => format!("gave {:?} where {} bytes are planned", value.shape(), out.len()),
                None => format!("gave output {i}, which it has not"),
            };
            Err(ExecError::Step { step: String::new(), why })
        });
        done.map_err(|error| match error {
            ExecError::Step { step, why } if step.is_empty() => why,
            inner => format!("its body: {inner}"),
        })
    }
}
