//! The program of a graph that is written for each size of a batch.

use sora_exec::{Arena, Program};

use crate::TrainError;

/// The program for the size of batch that was last asked for: all batches but the last one have the same.
#[derive(Default)]
pub(crate) struct Compiled(Option<(usize, Program, Arena)>);

impl Compiled {
    /// The program for batches of this size, made if the last one was for another.
    pub(crate) fn of(
        &mut self,
        batch: usize,
        make: impl FnOnce() -> Result<Program, TrainError>,
    ) -> Result<(&Program, &mut Arena), TrainError> {
        if self.0.as_ref().is_none_or(|(size, ..)| *size != batch) {
            let program = make()?;
            let arena = program.arena()?;
            self.0 = Some((batch, program, arena));
        }
        match &mut self.0 {
            Some((_, program, arena)) => Ok((program, arena)),
            None => Err(TrainError::Network("no program".to_owned())),
        }
    }
}
