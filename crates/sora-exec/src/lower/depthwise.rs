//! Depthwise convolutions over images, where a kernel slides along rows.

use sora_ir::ValueId;
use sora_kernels::{Quant, SlidingBf16, SlidingF32, SlidingI8, Window};
use sora_tensor::DType;

use super::Lowering;
use super::build::Buf;
use super::chain::Chain;
use super::conv::Convolution;
use super::layout::{Affine, Layout};
use super::weights::ByteWeights;
use crate::steps::depthwise::{ByteSlider, Depthwise, HalfSlider, RealSlider, Slider};
use crate::steps::gemm::Columns;
use crate::steps::region::{Lines, Reach};

impl Lowering<'_> {
    /// `None` when no kernel slides this convolution or stores its result.
    pub(super) fn slide_reals(
        &mut self,
        c: &Convolution,
        x: Buf,
        weights: &[[u8; 4]],
        bias: Option<&[f32]>,
        chain: &Chain,
    ) -> Option<()> {
        let value = |tap, channel| f32::from_ne_bytes(weights[(c.index)(channel, 0, 0, tap)]);
        let window = c.window().filter(|_| chain.residual.is_none() && chain.quantize.is_none())?;
        let packed = SlidingF32::pack(self.kernels, &window, value, bias)?;
        let slider = RealSlider { packed, activation: chain.activation };
        let (out, _, dtype) = self.store(chain, Layout::Last(c.groups));
        self.slide((c.images, &window), "depthwise.f32", x, slider, chain, (out, dtype))
    }

    /// From bf16 to bf16. `None` when no kernel slides this convolution, or either end is not so stored.
    pub(super) fn slide_bf16(
        &mut self,
        c: &Convolution,
        x: ValueId,
        weights: &[[u8; 4]],
        bias: Option<&[f32]>,
        chain: &Chain,
    ) -> Option<()> {
        let value = |tap, channel| f32::from_ne_bytes(weights[(c.index)(channel, 0, 0, tap)]);
        let stored = self.is_rounded(x) && self.stores_bf16(chain.result);
        let alone = chain.residual.is_none() && chain.quantize.is_none();
        let window = c.window().filter(|_| stored && alone)?;
        let packed = SlidingBf16::pack(self.kernels, &window, value, bias)?;
        let slider = HalfSlider { packed, activation: chain.activation };
        let layout = Layout::Last(c.groups);
        let x = self.rounded(x, layout)?;
        let (out, _, dtype) = self.store_rounded(chain, layout);
        self.slide((c.images, &window), "depthwise.bf16", x, slider, chain, (out, dtype))
    }

    /// `None` when no kernel slides this convolution or stores its result.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn slide_bytes(
        &mut self,
        c: &Convolution,
        x: Buf,
        zero_point: u8,
        weights: &ByteWeights,
        columns: &Columns,
        chain: &Chain,
    ) -> Option<()> {
        let values = weights.values();
        let value = |tap, channel| values[(c.index)(channel, 0, 0, tap)];
        let Columns { scale, bias, offset } = columns;
        let offset = offset.as_deref();
        let window = c.window().filter(|_| chain.residual.is_none() && chain.activation.only_clamps())?;
        let Affine { scale: step, zero_point: to } = chain.quantize?.affine;
        let packed = SlidingI8::pack(self.kernels, &window, zero_point, value, bias, scale, offset)?;
        let slider = ByteSlider { packed, activation: chain.activation, quant: Quant::new(step, to) };
        let (out, _, dtype) = self.store(chain, Layout::Last(c.groups));
        self.slide((c.images, &window), "depthwise.u8i8", x, slider, chain, (out, dtype))
    }

    fn slide<S: Slider + 'static>(
        &mut self,
        (images, w): (usize, &Window),
        kernel: &str,
        x: Buf,
        slider: S,
        chain: &Chain,
        (out, dtype): (Buf, DType),
    ) -> Option<()> {
        let info = self.info(kernel, &chain.nodes, Some(chain.result), dtype);
        let image = |[height, width]: [usize; 2]| [height, width * w.pixel_stride * size_of::<S::Element>()];
        let reach = Some(Reach { kernel: w.kernel[0], stride: w.stride[0], pad: w.pad[0] });
        let lines = Lines { images, input: image(w.input), output: image(w.output), reach };
        let macs = usize::try_from(info.macs).unwrap_or(usize::MAX);
        let work = Depthwise { slider, lines, macs };
        self.build.step(info, work, &[x], &[out]);
        Some(())
    }
}

impl Convolution<'_> {
    /// The window of a convolution over two-dimensional images.
    fn window(&self) -> Option<Window> {
        let pair = |v: &[usize]| <[usize; 2]>::try_from(v).ok();
        let g = &self.geometry;
        let window = Window {
            input: pair(&g.input)?,
            pixel_stride: self.groups,
            kernel: pair(&g.kernel)?,
            stride: pair(&g.strides)?,
            dilation: pair(&g.dilations)?,
            pad: pair(&g.pads)?,
            output: pair(&g.output)?,
        };
        self.forward.then_some(window)
    }
}
