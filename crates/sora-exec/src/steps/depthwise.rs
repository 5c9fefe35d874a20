//! Depthwise convolutions that slide along the rows of images.

use std::ops::Range;

use bytemuck::Pod;
use sora_kernels::{
    Activation, Kernels, Quant, SlidingBf16, SlidingF32, SlidingI8, slide_bf16, slide_f32, slide_u8i8,
};

use super::region::{Lines, Strip};
use super::{Cx, Io, Work};

/// Weights and what follows the sums.
pub(crate) trait Slider: Send + Sync {
    /// Element of input and output.
    type Element: Pod + Send + Sync;

    /// Computes rows `rows` of the result of one image, whose row `y` is row `y % slots` of `x`.
    fn slide(
        &self,
        kernels: Kernels,
        x: &[Self::Element],
        slots: usize,
        rows: Range<usize>,
        out: &mut [Self::Element],
    );

    /// Memory of the weights.
    fn bytes(&self) -> usize;
}

/// In `f32`.
pub(crate) struct RealSlider {
    pub(crate) packed: SlidingF32,
    pub(crate) activation: Activation,
}

/// In bf16, by `f32` weights.
pub(crate) struct HalfSlider {
    pub(crate) packed: SlidingBf16,
    pub(crate) activation: Activation,
}

/// In bytes.
pub(crate) struct ByteSlider {
    pub(crate) packed: SlidingI8,
    /// One that only clamps.
    pub(crate) activation: Activation,
    pub(crate) quant: Quant,
}

impl Slider for RealSlider {
    type Element = f32;

    fn slide(&self, kernels: Kernels, x: &[f32], slots: usize, rows: Range<usize>, out: &mut [f32]) {
        slide_f32(kernels, x, slots, &self.packed, rows, self.activation, out);
    }

    fn bytes(&self) -> usize {
        self.packed.bytes()
    }
}

impl Slider for HalfSlider {
    type Element = u16;

    fn slide(&self, kernels: Kernels, x: &[u16], slots: usize, rows: Range<usize>, out: &mut [u16]) {
        slide_bf16(kernels, x, slots, &self.packed, rows, self.activation, out);
    }

    fn bytes(&self) -> usize {
        self.packed.bytes()
    }
}

impl Slider for ByteSlider {
    type Element = u8;

    fn slide(&self, _: Kernels, x: &[u8], slots: usize, rows: Range<usize>, out: &mut [u8]) {
        slide_u8i8(x, slots, &self.packed, rows, self.activation, self.quant, out);
    }

    fn bytes(&self) -> usize {
        self.packed.bytes()
    }
}

/// Cuts rows `first..first + count` of a batch into pieces of one image: the image, its rows, and where they
/// begin within the whole range.
pub(crate) fn by_image(
    first: usize,
    count: usize,
    height: usize,
) -> impl Iterator<Item = (usize, Range<usize>, usize)> {
    let mut next = first;
    std::iter::from_fn(move || {
        let (image, row) = (next / height.max(1), next % height.max(1));
        let end = height.min(row + first + count - next);
        let piece = (image, row..end, next - first);
        next += end - row;
        (end > row).then_some(piece)
    })
}

/// A depthwise convolution of a batch of images.
pub(crate) struct Depthwise<S> {
    pub(crate) slider: S,
    pub(crate) lines: Lines,
    /// Multiply-adds in all, for the decision to split.
    pub(crate) macs: usize,
}

impl<S: Slider> Work for Depthwise<S> {
    fn run(&self, cx: &Cx, mut io: Io) -> Result<(), String> {
        let (x, out) = (io.input::<S::Element>(0), io.output::<S::Element>());
        let elements = |[height, bytes]: [usize; 2]| [height, bytes / size_of::<S::Element>()];
        let ([slots, line_len], [height, row_len]) =
            (elements(self.lines.input), elements(self.lines.output));
        let image_len = slots * line_len;
        cx.threads.chunks(self.macs, row_len, out, |start, out| {
            for (image, rows, at) in by_image(start / row_len, out.len() / row_len, height) {
                let x = &x[image * image_len..][..image_len];
                let out = &mut out[at * row_len..][..rows.len() * row_len];
                self.slider.slide(cx.kernels, x, slots, rows, out);
            }
        });
        Ok(())
    }

    fn weight_bytes(&self) -> usize {
        self.slider.bytes()
    }

    fn lines(&self) -> Option<Lines> {
        Some(self.lines)
    }

    fn run_lines(&self, kernels: Kernels, strip: Strip<'_>, out: &mut [u8]) {
        let (x, out) = (bytemuck::cast_slice(strip.x), bytemuck::cast_slice_mut(out));
        self.slider.slide(kernels, x, strip.slots, strip.lines, out);
    }
}

#[cfg(test)]
mod tests {
    use super::by_image;

    #[test]
    fn rows_of_a_batch_are_cut_at_images() {
        let pieces: Vec<_> = by_image(5, 9, 4).collect();
        assert_eq!(pieces, [(1, 1..4, 0), (2, 0..4, 3), (3, 0..2, 7)]);
        assert_eq!(by_image(0, 0, 4).count(), 0);
    }
}
