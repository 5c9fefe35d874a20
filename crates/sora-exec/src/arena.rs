//! The memory of one run, and how a step borrows several parts of it at once.

use std::ops::Range;

use smallvec::SmallVec;
use sora_tensor::Buffer;

use crate::ExecError;

/// Memory for the intermediate tensors of one run at a time; made by [`crate::Program::arena`].
pub struct Arena {
    bytes: Buffer,
}

impl Arena {
    pub(crate) fn new(bytes: usize) -> Result<Self, ExecError> {
        let bytes = Buffer::try_zeroed(bytes).ok_or(ExecError::Memory { bytes })?;
        Ok(Arena { bytes })
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        self.bytes.bytes_mut()
    }
}

/// The arena cut at the outputs of a step: what lies between may be read while they are written.
pub(crate) struct Cut<'a> {
    /// The outputs, in the order asked for.
    pub(crate) outputs: SmallVec<[&'a mut [u8]; 2]>,
    /// The rest, with the position of each piece, ascending.
    rest: SmallVec<[(usize, &'a [u8]); 3]>,
}

impl<'a> Cut<'a> {
    /// Cuts `outputs` out of `bytes`. They must lie in bounds and be disjoint, as the plan makes them.
    pub(crate) fn new(bytes: &'a mut [u8], outputs: &[Range<usize>]) -> Self {
        let mut cut = Cut { outputs: SmallVec::new(), rest: SmallVec::new() };
        if let [only] = outputs {
            let (before, tail) = bytes.split_at_mut(only.start);
            let (output, after) = tail.split_at_mut(only.len());
            cut.outputs.push(output);
            cut.rest.push((0, before));
            cut.rest.push((only.end, after));
            return cut;
        }
        let mut order: SmallVec<[usize; 4]> = (0..outputs.len()).collect();
        order.sort_by_key(|&i| (outputs[i].start, outputs[i].end));
        let mut pieces: SmallVec<[(usize, &'a mut [u8]); 4]> = SmallVec::new();
        let (mut position, mut tail) = (0, bytes);
        for i in order {
            let (before, rest) = std::mem::take(&mut tail).split_at_mut(outputs[i].start - position);
            let (output, after) = rest.split_at_mut(outputs[i].len());
            cut.rest.push((position, before));
            pieces.push((i, output));
            (position, tail) = (outputs[i].end, after);
        }
        cut.rest.push((position, tail));
        pieces.sort_by_key(|&(i, _)| i);
        cut.outputs.extend(pieces.into_iter().map(|(_, output)| output));
        cut
    }

    /// A part of the arena that no output overlaps.
    pub(crate) fn input(&self, range: &Range<usize>) -> &'a [u8] {
        let piece = self.rest.iter().rev().find(|(start, _)| *start <= range.start);
        piece.map_or(&[], |(start, bytes)| &bytes[range.start - start..range.end - start])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_find_every_part() {
        let mut bytes: Vec<u8> = (0..100).collect();
        let outputs = [60..70, 10..20, 20..20, 20..25];
        let cut = Cut::new(&mut bytes, &outputs);
        for (output, range) in cut.outputs.iter().zip(&outputs) {
            assert_eq!(output.len(), range.len());
            assert!(output.iter().zip(range.clone()).all(|(&b, i)| usize::from(b) == i));
        }
        for range in [0..10, 3..7, 25..60, 70..100, 80..90] {
            let input = cut.input(&range);
            assert!(input.iter().zip(range.clone()).all(|(&b, i)| usize::from(b) == i));
            assert_eq!(input.len(), range.len());
        }
    }
}
