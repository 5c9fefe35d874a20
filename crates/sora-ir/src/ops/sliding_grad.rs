//! The gradients of what slides: convolutions of convolutions.

use super::{Conv, ConvTranspose};
use crate::{GradCx, Mismatch, ValueId};

/// How a window slides, one element per spatial axis, and the groups of channels.
pub(crate) struct Sliding<'a> {
    pub(crate) strides: &'a [usize],
    pub(crate) pads: &'a [usize],
    pub(crate) dilations: &'a [usize],
    pub(crate) group: usize,
}

impl Sliding<'_> {
    /// Spreads `dy` `[N, M, E1…En]` back through weights `[M, C/group, K1…Kn]` over an input of these extents:
    /// `[N, C, D1…Dn]`.
    pub(crate) fn spread(
        &self,
        cx: &mut GradCx,
        dy: ValueId,
        weights: ValueId,
        extents: &[usize],
    ) -> Result<ValueId, Mismatch> {
        let (steps, kernel) = (cx.shape(dy)?, cx.shape(weights)?);
        let rank = self.strides.len();
        let (mut pads, mut output_padding) = (self.pads.to_vec(), vec![0; rank]);
        for axis in 0..rank {
            // Where the windows end, counted from the first element of the input.
            let span = (kernel[2 + axis] - 1) * self.dilations[axis] + 1;
            let end = (steps[2 + axis].max(1) - 1) * self.strides[axis] + span;
            let wanted = extents[axis] + self.pads[axis];
            pads[rank + axis] = end.saturating_sub(wanted);
            output_padding[axis] = wanted.saturating_sub(end);
        }
        let (strides, dilations) = (self.strides.to_vec(), self.dilations.to_vec());
        let op = ConvTranspose { strides, pads, dilations, output_padding, group: self.group };
        cx.op(op, [dy, weights])
    }

    /// For each tap of the window, the sum over samples and steps of the input's channels `[N, C, D1…Dn]` times those
    /// of `dy` `[N, M, E1…En]`: `[M, C/group, K1…Kn]`. It is a convolution whose batch is the channels, whose
    /// channels are the samples, and whose window is `dy`; strides and dilations change places.
    pub(crate) fn correlate(
        &self,
        cx: &mut GradCx,
        x: ValueId,
        dy: ValueId,
        kernel: &[usize],
    ) -> Result<ValueId, Mismatch> {
        let (input, steps) = (cx.shape(x)?, cx.shape(dy)?);
        let (rank, group) = (kernel.len(), self.group);
        let (samples, channels) = (input[0], input[1] / group);
        let extents = &input[2..];
        let (mut pads, mut read_to) = (self.pads.to_vec(), extents.to_vec());
        for axis in 0..rank {
            let read =
                (kernel[axis] - 1) * self.dilations[axis] + (steps[2 + axis] - 1) * self.strides[axis] + 1;
            let given = extents[axis] + self.pads[axis];
            pads[rank + axis] = read.saturating_sub(given);
            // What no window reaches would make further taps.
            read_to[axis] -= given.saturating_sub(read);
        }
        let exchange: Vec<usize> = [1, 0].into_iter().chain(2..2 + rank).collect();
        let mut x = cx.take(x, 2, &read_to)?;
        if group == 1 || channels == 1 {
            x = cx.transpose(x, &exchange)?;
            x = cx.reshape(x, &[&[channels, group * samples], &read_to[..]].concat())?;
        } else {
            // [N, G·C, …] → [C, G·N, …]: each group convolves its own samples.
            x = cx.reshape(x, &[&[samples, group, channels], &read_to[..]].concat())?;
            x = cx.transpose(x, &[2, 1, 0].into_iter().chain(3..3 + rank).collect::<Vec<_>>())?;
            x = cx.reshape(x, &[&[channels, group * samples], &read_to[..]].concat())?;
        }
        let dy = cx.transpose(dy, &exchange)?;
        let (strides, dilations) = (self.dilations.to_vec(), self.strides.to_vec());
        let dw = cx.op(Conv { strides, pads, dilations, group }, [x, dy])?;
        cx.transpose(dw, &exchange)
    }
}

/// The sum over all axes but that of the channels: the gradient of a bias.
pub(crate) fn channel_sums(cx: &mut GradCx, dy: ValueId) -> Result<ValueId, Mismatch> {
    let shape = cx.shape(dy)?;
    let mut line = vec![1; shape.len()];
    line[1] = shape[1];
    let sum = cx.sum_to(dy, &line)?;
    cx.reshape(sum, &shape[1..2])
}
