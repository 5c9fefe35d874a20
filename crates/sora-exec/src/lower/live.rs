//! Convolutions of two run-time operands, as training has them.

use std::sync::Mutex;

use sora_ir::{Node, ValueId};
use sora_tensor::DType;

use super::Lowering;
use super::build::Buf;
use super::chain::Chain;
use super::conv::{Convolution, Gathered};
use super::layout::Layout;
use crate::StepInfo;
use crate::steps::gemm::{Product, Weights};
use crate::steps::live::{Arrangement, Live, LiveDepthwise};

impl Lowering<'_> {
    /// A convolution with weights that are packed in every run; `None` for what only constants can do.
    pub(super) fn convolve_live(
        &mut self,
        c: &Convolution,
        x: ValueId,
        w: ValueId,
        node: &Node,
        chain: &Chain,
    ) -> Option<()> {
        let plain = chain.bias.is_none() && chain.residual.is_none() && chain.quantize.is_none();
        if !plain || self.dtype(w) != DType::F32 {
            return None;
        }
        let layout = Layout::Last(c.groups * c.channels[0]);
        let (x, weights) = (self.exact(x, layout)?, self.plain(w)?);
        let mut reads = vec![x, weights];
        let bias = node.inputs.get(2).copied().flatten();
        if let Some(bias) = bias {
            reads.push(self.plain(bias)?);
        }
        if c.is_depthwise() {
            let gathered = self.windows(c, x, c.groups)?;
            reads[0] = gathered.buf;
            let kernel = if c.forward { "live_depthwise.f32" } else { "live_depthwise_transpose.f32" };
            let taps = gathered.taps;
            let (product, info, out) = self.without_weights(kernel, c, gathered, c.groups, chain);
            self.build.step(info, LiveDepthwise { product, taps, bias: bias.is_some() }, &reads, &[out]);
            return Some(());
        }
        let gathered = self.gathered(c, x, 1, DType::F32, &[0; 4])?;
        reads[0] = gathered.buf;
        let [_, n] = c.channels;
        let (taps, kc) = (gathered.taps, gathered.kc);
        let arrange = |g: usize| match gathered.merged {
            1 => {
                let (origin, strides) = c.strides(g);
                Some(Arrangement::Strided(origin, strides))
            }
            merged => {
                let at =
                    |i: usize| c.weight(g, i % n, i / n, kc, merged).and_then(|at| u32::try_from(at).ok());
                Some(Arrangement::Listed((0..taps * kc * n).map(at).collect::<Option<_>>()?))
            }
        };
        let groups = (0..c.groups).map(arrange).collect::<Option<Vec<_>>>()?;
        let kernel = format!("live_{}.f32", c.kernel);
        let (product, info, out) = self.without_weights(&kernel, c, gathered, n, chain);
        let (extents, idle) = ((taps, kc, n), Mutex::default());
        let work = Live { product, groups, extents, bias: bias.is_some(), idle };
        self.build.step(info, work, &reads, &[out]);
        Some(())
    }

    /// The product of a convolution, its description, and where its result goes.
    fn without_weights<W: Weights<Input = f32>>(
        &mut self,
        kernel: &str,
        c: &Convolution,
        gathered: Gathered,
        group_cols: usize,
        chain: &Chain,
    ) -> (Product<W>, StepInfo, Buf) {
        let cols = c.groups * c.channels[1];
        let (out, store, dtype) = self.store(chain, Layout::Last(cols));
        let info = self.info(kernel, &chain.nodes, Some(chain.result), dtype);
        let product = Product {
            rows: gathered.rows,
            groups: Vec::new(),
            group_cols,
            cols,
            pad: vec![0.0; gathered.kc],
            residual: None,
            activation: chain.activation,
            store,
            lines: None,
            macs: usize::try_from(info.macs).unwrap_or(usize::MAX),
        };
        (product, info, out)
    }
}
