//! The kinds of work that steps do: each file holds one kind, with its parameters fixed at compile time.

pub(crate) mod attention;
pub(crate) mod compare;
pub(crate) mod control;
pub(crate) mod convert;
pub(crate) mod depthwise;
pub(crate) mod dynamic;
pub(crate) mod elementwise;
pub(crate) mod gemm;
pub(crate) mod gradient;
pub(crate) mod live;
pub(crate) mod matmul;
pub(crate) mod movement;
pub(crate) mod pool;
pub(crate) mod quantize;
pub(crate) mod recurrent;
pub(crate) mod recurrent_grad;
pub(crate) mod reference;
pub(crate) mod region;
pub(crate) mod resize;
pub(crate) mod rows;
pub(crate) mod select;
pub(crate) mod tape;
pub(crate) mod window;
pub(crate) mod winograd;
pub(crate) mod winograd_bytes;

use bytemuck::Pod;
use smallvec::SmallVec;
use sora_kernels::Kernels;

use crate::threads::Threads;
use region::{Lines, Strip};
use tape::Function;

/// What every step may use.
pub(crate) struct Cx<'a> {
    pub(crate) kernels: Kernels,
    pub(crate) threads: &'a Threads,
}

/// The operands of one step: bytes, aligned for any element type.
pub(crate) struct Io<'a> {
    pub(crate) ins: SmallVec<[&'a [u8]; 4]>,
    pub(crate) outs: SmallVec<[&'a mut [u8]; 2]>,
}

impl<'a> Io<'a> {
    /// The n-th input as elements; empty when it lies in the first output (in place).
    pub(crate) fn input<T: Pod>(&self, n: usize) -> &'a [T] {
        // An empty slice need not be aligned.
        if self.ins[n].is_empty() { &[] } else { bytemuck::cast_slice(self.ins[n]) }
    }

    /// The first output as elements. Call once: the second time it is empty.
    pub(crate) fn output<T: Pod>(&mut self) -> &'a mut [T] {
        self.output_at(0)
    }

    /// The n-th output as elements. Call once per output.
    pub(crate) fn output_at<T: Pod>(&mut self, n: usize) -> &'a mut [T] {
        let bytes = std::mem::take(&mut self.outs[n]);
        if bytes.is_empty() { &mut [] } else { bytemuck::cast_slice_mut(bytes) }
    }
}

/// The work of a step.
pub(crate) trait Work: Send + Sync {
    /// Computes the outputs from the inputs.
    ///
    /// # Errors
    /// A sentence that says what is wrong with the values of the inputs.
    fn run(&self, cx: &Cx, io: Io) -> Result<(), String>;

    /// The function, if the step computes elements of one tensor one by one.
    fn function(&self) -> Option<Function> {
        None
    }

    /// Bytes of packed weights that the step holds.
    fn weight_bytes(&self) -> usize {
        0
    }

    /// The share of zeros that the step skips, in percent, if it skips them.
    fn zeros(&self) -> Option<u8> {
        None
    }

    /// How the lines of images follow from each other, if [`Work::run_lines`] computes the only output by lines.
    fn lines(&self) -> Option<Lines> {
        None
    }

    /// Computes lines of one image, the same bits as [`Work::run`] does. Does nothing where there are no lines.
    fn run_lines(&self, _: Kernels, _: Strip<'_>, _out: &mut [u8]) {}
}
