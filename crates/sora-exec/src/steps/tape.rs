//! Functions of elements, one after the other on blocks that stay in the nearest cache.

use smallvec::SmallVec;
use sora_kernels::Kernels;
use sora_kernels::elementwise::{Binary, Rhs, Unary, binary_inplace, unary_inplace};

use super::{Cx, Io, Work};
use crate::threads::MOVE_COST;

/// Elements of a block.
const BLOCK: usize = 512;

/// A function of elements that a [`Tape`] may hold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Function {
    /// Of one tensor.
    Unary(Unary),
    /// Of two tensors of one shape.
    Binary(Binary),
    /// Of a tensor and one number.
    Scaled(Binary),
}

/// Where an operand is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// What an earlier function wrote.
    Slot(usize),
    /// An input of the step, a tensor or one number.
    Input(usize),
}

/// A function with its operands and the slot of its result, which may be that of its first operand.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Instruction {
    pub(crate) function: Function,
    pub(crate) operands: [Source; 2],
    pub(crate) to: usize,
}

/// Functions of tensors of one length.
pub(crate) struct Tape {
    pub(crate) code: Vec<Instruction>,
    /// Slots in all.
    pub(crate) slots: usize,
    /// The slot of each output, which nothing writes afterwards.
    pub(crate) results: Vec<usize>,
    /// Outputs that may lie where an input does.
    pub(crate) in_place: Vec<(usize, usize)>,
}

impl Tape {
    fn block(
        &self,
        kernels: Kernels,
        ins: &[&[f32]],
        outs: &mut [&mut [f32]],
        slots: &mut [Vec<f32>],
        at: usize,
        len: usize,
    ) {
        for &Instruction { function, operands: [a, b], to } in &self.code {
            let mut slot = std::mem::take(&mut slots[to]);
            let out = &mut slot[..len];
            let read = |source: Source| match source {
                Source::Slot(slot) => &slots[slot][..len],
                Source::Input(input) => match self.in_place.iter().find(|pair| pair.1 == input) {
                    Some(&(output, _)) if ins[input].is_empty() => &outs[output][at..at + len],
                    _ => &ins[input][at..at + len],
                },
            };
            if a != Source::Slot(to) {
                out.copy_from_slice(read(a));
            }
            match (function, b) {
                (Function::Unary(op), _) => unary_inplace(kernels, op, out),
                (Function::Binary(op), b) => binary_inplace(kernels, op, out, Rhs::Same(read(b))),
                (Function::Scaled(op), Source::Input(number)) => {
                    let number = ins[number].first().copied().unwrap_or_default();
                    binary_inplace(kernels, op, out, Rhs::Scalar(number));
                }
                (Function::Scaled(_), Source::Slot(_)) => {}
            }
            slots[to] = slot;
        }
        for (out, &slot) in outs.iter_mut().zip(&self.results) {
            out[at..at + len].copy_from_slice(&slots[slot][..len]);
        }
    }

    fn is_number(&self, input: usize) -> bool {
        let reads = |i: &Instruction| {
            matches!(i.function, Function::Scaled(_)) && i.operands[1] == Source::Input(input)
        };
        self.code.iter().any(reads)
    }
}

impl Work for Tape {
    fn run(&self, cx: &Cx, mut io: Io) -> Result<(), String> {
        let ins: SmallVec<[&[f32]; 8]> = (0..io.ins.len()).map(|n| io.input::<f32>(n)).collect();
        let mut outs: SmallVec<[&mut [f32]; 4]> =
            (0..self.results.len()).map(|n| io.output_at::<f32>(n)).collect();
        let len = outs.first().map_or(0, |out| out.len());
        let parts = cx.threads.parts(len * MOVE_COST * self.code.len());
        let each = len.div_ceil(64).div_ceil(parts).max(1) * 64;
        let mut pieces = Vec::new();
        for start in (0..len).step_by(each) {
            let count = each.min(len - start);
            let mut cut: SmallVec<[&mut [f32]; 4]> = SmallVec::new();
            for out in &mut outs {
                let (piece, rest) = std::mem::take(out).split_at_mut(count);
                *out = rest;
                cut.push(piece);
            }
            pieces.push((start, count, cut));
        }
        cx.threads.each(pieces, |(start, count, mut outs)| {
            let mut ins = ins.clone();
            for (n, x) in ins.iter_mut().enumerate() {
                if !x.is_empty() && !self.is_number(n) {
                    *x = &x[start..start + count];
                }
            }
            let mut slots = vec![vec![0.0; BLOCK]; self.slots];
            for at in (0..count).step_by(BLOCK) {
                self.block(cx.kernels, &ins, &mut outs, &mut slots, at, BLOCK.min(count - at));
            }
        });
        Ok(())
    }
}
