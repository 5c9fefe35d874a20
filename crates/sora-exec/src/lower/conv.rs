//! Convolutions: dense, grouped, depthwise, transposed; of any rank; in `f32` and in bytes.

use sora_ir::ops::{Conv, ConvTranspose};
use sora_ir::{Node, ValueId};
use sora_kernels::{PackedBf16, PackedDwF32, PackedDwI8, PackedF32, PackedI8, bf16};
use sora_tensor::{DType, Tensor};

use super::Lowering;
use super::build::Buf;
use super::chain::Chain;
use super::layout::{Affine, Layout, numbers};
use super::sparse::Way;
use super::weights::ByteWeights;
use super::winograd::Dense;
use crate::steps::gemm::{
    Bytes, BytesDepthwise, Columns, Half, Product, Real, RealDepthwise, Rows, SparseBytes, Weights,
};
use crate::steps::movement::Frame;
use crate::steps::region::{Lines, Reach};
use crate::steps::window::{Geometry, Windows};

/// What the two kinds of convolution have in common.
pub(super) struct Convolution<'a> {
    pub(super) geometry: Geometry,
    /// Whether windows run over the input, as opposed to the transposed convolution.
    pub(super) forward: bool,
    pub(super) images: usize,
    pub(super) groups: usize,
    /// Input and output channels per group.
    pub(super) channels: [usize; 2],
    /// Position of a weight, by group, output channel, input channel and tap.
    pub(super) index: &'a dyn Fn(usize, usize, usize, usize) -> usize,
    pub(super) kernel: &'static str,
}

/// The left operand as kernels read it.
pub(super) struct Gathered {
    pub(super) buf: Buf,
    pub(super) rows: Rows,
    pub(super) taps: usize,
    pub(super) kc: usize,
    /// Taps of the graph's window that one piece spans, side by side.
    pub(super) merged: usize,
}

/// Channels below which the taps along the last axis are merged to longer pieces, even if the image must be padded
/// for that.
const NARROW: usize = 16;

impl Lowering<'_> {
    pub(crate) fn conv(&mut self, op: &Conv, node: &Node, chain: &Chain) -> Option<()> {
        let [x, w] = [node.inputs.first()?.as_ref()?, node.inputs.get(1)?.as_ref()?];
        let w_shape = self.shape(*w);
        let channels = [w_shape[1], w_shape[0] / op.group];
        let taps: usize = w_shape[2..].iter().product();
        let convolution = Convolution {
            geometry: self.geometry_of(op, node)?,
            forward: true,
            images: self.shape(*x)[0],
            groups: op.group,
            channels,
            index: &|g, o, i, tap| ((g * channels[1] + o) * channels[0] + i) * taps + tap,
            kernel: "conv",
        };
        self.convolve(&convolution, *x, *w, 0, node, chain)
    }

    pub(crate) fn conv_transpose(&mut self, op: &ConvTranspose, node: &Node, chain: &Chain) -> Option<()> {
        let [x, w, y] =
            [node.inputs.first()?.as_ref()?, node.inputs.get(1)?.as_ref()?, node.outputs.first()?];
        let w_shape = self.shape(*w);
        let channels = [w_shape[0] / op.group, w_shape[1]];
        let taps: usize = w_shape[2..].iter().product();
        let convolution = Convolution {
            geometry: self.geometry([*x, *w, *y], &op.strides, &op.dilations, &op.pads),
            forward: false,
            images: self.shape(*x)[0],
            groups: op.group,
            channels,
            index: &|g, o, i, tap| ((g * channels[0] + i) * channels[1] + o) * taps + tap,
            kernel: "conv_transpose",
        };
        // Scales per output channel are the scales along axis 1, the same in every group.
        self.convolve(&convolution, *x, *w, 1, node, chain)
    }

    fn geometry_of(&self, op: &Conv, node: &Node) -> Option<Geometry> {
        let values = [(*node.inputs.first()?)?, (*node.inputs.get(1)?)?, *node.outputs.first()?];
        Some(self.geometry(values, &op.strides, &op.dilations, &op.pads))
    }

    /// Whether a convolution of reals will read them as `f32` whatever the precision.
    pub(super) fn convolves_f32(&self, op: &Conv, node: &Node) -> bool {
        let (Some(geometry), Some(Some(w))) = (self.geometry_of(op, node), node.inputs.get(1)) else {
            return false;
        };
        let (&[n, channels, ..], Some(Some(x))) = (&self.shape(*w)[..], node.inputs.first()) else {
            return false;
        };
        let dense = Dense { geometry: &geometry, images: self.shape(*x)[0], channels, n };
        op.group == 1 && self.promises_winograd(&dense)
    }

    /// The windows of weights over an input that give a result, by their spatial axes.
    fn geometry(
        &self,
        [x, w, y]: [ValueId; 3],
        strides: &[usize],
        dilations: &[usize],
        pads: &[usize],
    ) -> Geometry {
        let spatial = |v| self.shape(v)[2..].to_vec();
        Geometry {
            input: spatial(x),
            kernel: spatial(w),
            strides: strides.to_vec(),
            dilations: dilations.to_vec(),
            pads: pads[..strides.len()].to_vec(),
            output: spatial(y),
        }
    }

    fn convolve(
        &mut self,
        c: &Convolution,
        x: ValueId,
        w: ValueId,
        weight_axis: usize,
        node: &Node,
        chain: &Chain,
    ) -> Option<()> {
        if self.dtype(x) != DType::F32 {
            return None;
        }
        if !self.is_constant(w) {
            return self.convolve_live(c, x, w, node, chain);
        }
        let bias = node.inputs.get(2).copied().flatten().or(chain.bias);
        let layout = Layout::Last(c.groups * c.channels[0]);
        if let (Some(affine), Some(weights)) = (self.affine(x), self.byte_weights(w, weight_axis)) {
            let n = c.groups * c.channels[1];
            let scale_of = |n: usize| if c.forward { n } else { n % c.channels[1] };
            let steps: Vec<f32> = (0..n).map(|n| weights.step(affine, scale_of(n))).collect();
            if let Some(columns) = self.byte_columns(bias, steps) {
                let (x, _) = self.quantized(x, layout)?;
                return self.convolve_bytes(c, x, affine, &weights, &columns, chain);
            }
        }
        let weights = self.constant(w).filter(|w| w.dtype() == DType::F32)?;
        let bias = match bias {
            Some(bias) => Some(self.per_channel(bias, c.groups * c.channels[1])?),
            None => None,
        };
        let way = self.way(c, &weights, chain);
        if let (Way::Winograd(edge), Some(dense)) = (way, c.dense()) {
            let x = self.exact(x, layout)?;
            if let Some(done) = self.winograd(&dense, edge, x, &weights, bias.as_deref(), chain) {
                weights.release();
                return Some(done);
            }
            self.choose_first(chain);
        }
        if self.multiplies_bf16() && !c.is_depthwise() {
            let x = self.rounded(x, layout)?;
            let done = self.convolve_bf16(c, x, &weights, bias.as_deref(), chain);
            weights.release();
            return done;
        }
        if self.multiplies_bf16()
            && self.slide_bf16(c, x, numbers(&weights), bias.as_deref(), chain).is_some()
        {
            weights.release();
            return Some(());
        }
        let x = self.exact(x, layout)?;
        let done = match way {
            Way::Sparse => self.convolve_sparse(c, x, &weights, bias, chain),
            _ => self.convolve_reals(c, x, &weights, bias.as_deref(), chain),
        };
        weights.release();
        done
    }

    fn convolve_reals(
        &mut self,
        c: &Convolution,
        x: Buf,
        constant: &Tensor,
        bias: Option<&[f32]>,
        chain: &Chain,
    ) -> Option<()> {
        let [cin, cout] = c.channels;
        let kernels = self.kernels;
        let pad = |kc: usize| vec![0.0f32; kc];
        if c.is_depthwise() {
            let weights = numbers(constant);
            if self.slide_reals(c, x, weights, bias, chain).is_some() {
                return Some(());
            }
            let gathered = self.windows(c, x, c.groups)?;
            let value = |tap, channel| f32::from_ne_bytes(weights[(c.index)(channel, 0, 0, tap)]);
            let packed = PackedDwF32::pack(kernels, gathered.taps, c.groups, value);
            let group = RealDepthwise { packed, bias: bias.map(<[f32]>::to_vec) };
            return self.product(c, "depthwise.f32", gathered, vec![group], c.groups, pad(c.groups), chain);
        }
        let gathered = self.gathered(c, x, 1, DType::F32, &[0; 4])?;
        let Gathered { taps, kc, merged, .. } = gathered;
        let groups = (0..c.groups).map(|g| {
            let (extents, (origin, strides)) = ((taps, kc, cout), c.strides(g));
            let order = format!("{origin}+{strides:?}x{merged}");
            let packed = self.weights.get(constant, &order, extents, || {
                let (weights, number) = (numbers(constant), f32::from_ne_bytes);
                match merged {
                    1 => PackedF32::from_strided(kernels, extents, weights, origin, strides, number),
                    _ => PackedF32::pack(kernels, taps, kc, cout, |k, n| {
                        c.weight(g, n, k, kc, merged).map_or(0.0, |at| number(weights[at]))
                    }),
                }
            });
            Real { packed, bias: bias.map(|b| b[g * cout..(g + 1) * cout].to_vec()) }
        });
        let groups = groups.collect();
        debug_assert!(c.groups == 1 || kc == cin);
        self.product(c, &format!("{}.f32", c.kernel), gathered, groups, cout, pad(kc), chain)
    }

    /// One group, without the zeros of its weights.
    fn convolve_sparse(
        &mut self,
        c: &Convolution,
        x: Buf,
        constant: &Tensor,
        bias: Option<Vec<f32>>,
        chain: &Chain,
    ) -> Option<()> {
        let cout = c.channels[1];
        let gathered = self.gathered(c, x, 1, DType::F32, &[0; 4])?;
        let Gathered { taps, kc, merged, .. } = gathered;
        let (origin, strides) = c.strides(0);
        let order = format!("{origin}+{strides:?}x{merged}");
        let value = |k, n| {
            let at = c.weight(0, n, k, kc, merged);
            at.map_or(0.0, |at| f32::from_ne_bytes(numbers(constant)[at]))
        };
        let group = self.sparse(constant, &order, (taps, kc, cout), bias, value);
        let kernel = format!("{}.sparse.f32", c.kernel);
        self.product(c, &kernel, gathered, vec![group], cout, vec![0.0; kc], chain)
    }

    fn convolve_bf16(
        &mut self,
        c: &Convolution,
        x: Buf,
        constant: &Tensor,
        bias: Option<&[f32]>,
        chain: &Chain,
    ) -> Option<()> {
        let cout = c.channels[1];
        let kernels = self.kernels;
        let gathered = self.gathered(c, x, 2, DType::BF16, &[0; 2])?;
        let Gathered { taps, kc, merged, .. } = gathered;
        let groups = (0..c.groups).map(|g| {
            let round = |w| bf16::round(f32::from_ne_bytes(w));
            let (extents, (origin, strides)) = ((taps, kc, cout), c.strides(g));
            let order = format!("{origin}+{strides:?}x{merged}");
            let packed = self.weights.get(constant, &order, extents, || {
                let weights = numbers(constant);
                match merged {
                    1 => PackedBf16::from_strided(kernels, extents, weights, origin, strides, round),
                    _ => PackedBf16::pack(kernels, taps, kc, cout, |k, n| {
                        c.weight(g, n, k, kc, merged).map_or(0, |at| round(weights[at]))
                    }),
                }
            });
            Half { packed, bias: bias.map(|b| b[g * cout..(g + 1) * cout].to_vec()) }
        });
        let groups = groups.collect();
        self.product(c, &format!("{}.bf16", c.kernel), gathered, groups, cout, vec![0; kc], chain)
    }

    fn convolve_bytes(
        &mut self,
        c: &Convolution,
        x: Buf,
        input: Affine,
        weights: &ByteWeights,
        columns: &Columns,
        chain: &Chain,
    ) -> Option<()> {
        let cout = c.channels[1];
        let kernels = self.kernels;
        let zero = u8::try_from(input.zero_point).ok()?;
        if c.is_depthwise() {
            if self.slide_bytes(c, x, zero, weights, columns, chain).is_some() {
                return Some(());
            }
            let gathered = self.windows(c, x, c.groups)?;
            let values = weights.values();
            let value = |tap, channel| values[(c.index)(channel, 0, 0, tap)];
            let packed = PackedDwI8::pack(kernels, gathered.taps, c.groups, value);
            let columns = columns.clone().with_zeros(packed.col_sums(), input.zero_point);
            let group = BytesDepthwise { packed, columns };
            let pad = vec![zero; c.groups];
            return self.product(c, "depthwise.u8i8", gathered, vec![group], c.groups, pad, chain);
        }
        let plain = (c.geometry.taps(), c.channels[0], cout);
        let (origin, strides) = c.strides(0);
        let order = weights.order(&format!("{origin}+{strides:?}x1"));
        let sparse = match c.groups {
            1 => self.sparse_bytes(weights, &order, || {
                PackedI8::from_strided(kernels, plain, weights.values(), origin, strides, |w| w)
            }),
            _ => None,
        };
        let way = self.byte_way(c, weights.source(), sparse.as_deref(), chain);
        if let (Way::Sparse, Some(packed)) = (way, sparse) {
            let gathered = match c.forward && c.geometry.is_pointwise() {
                true => self.gathered(c, x, 4, DType::U8, &[zero])?,
                false => self.windows(c, x, c.channels[0])?,
            };
            let columns = columns.clone().with_zeros(packed.col_sums(), input.zero_point);
            let (kernel, pad) = (format!("{}.sparse.u8i8", c.kernel), vec![zero; c.channels[0]]);
            return self.product(
                c,
                &kernel,
                gathered,
                vec![SparseBytes { packed, columns }],
                cout,
                pad,
                chain,
            );
        }
        if let (Way::Winograd(_), Some(dense)) = (way, c.dense()) {
            let weights = (weights, |n, channel, tap| (c.index)(0, n, channel, tap));
            if let Some(done) = self.winograd_bytes(&dense, x, input, weights, columns, chain) {
                return Some(done);
            }
            self.choose_first(chain);
        }
        let gathered = self.gathered(c, x, 4, DType::U8, &[zero])?;
        let Gathered { taps, kc, merged, .. } = gathered;
        let groups = (0..c.groups).map(|g| {
            let (extents, (origin, strides)) = ((taps, kc, cout), c.strides(g));
            let order = weights.order(&format!("{origin}+{strides:?}x{merged}"));
            let packed = self.weights.get(weights.source(), &order, extents, || {
                let values = weights.values();
                match merged {
                    1 => PackedI8::from_strided(kernels, extents, values, origin, strides, |w| w),
                    _ => PackedI8::pack(kernels, taps, kc, cout, |k, n| {
                        c.weight(g, n, k, kc, merged).map_or(0, |at| values[at])
                    }),
                }
            });
            let columns = columns.part(g * cout..(g + 1) * cout);
            Bytes { columns: columns.with_zeros(packed.col_sums(), input.zero_point), packed }
        });
        let groups = groups.collect();
        self.product(c, &format!("{}.u8i8", c.kernel), gathered, groups, cout, vec![zero; kc], chain)
    }

    /// Plain windows over all channels of a group.
    pub(super) fn windows(&mut self, c: &Convolution, x: Buf, kc: usize) -> Option<Gathered> {
        let stride = c.groups * c.channels[0];
        let windows = Windows::new(&c.geometry, c.images, stride, kc, c.forward)?;
        Some(Gathered { buf: x, taps: windows.taps, rows: Rows::Windows(windows), kc, merged: 1 })
    }

    /// The left operand in the way that suits its number of channels. `granule`: multiple that kernels like
    /// pieces to have; `zero`: bytes of the padding element.
    pub(super) fn gathered(
        &mut self,
        c: &Convolution,
        x: Buf,
        granule: usize,
        dtype: DType,
        zero: &[u8],
    ) -> Option<Gathered> {
        let (g, cin) = (&c.geometry, c.channels[0]);
        if c.groups == 1 && g.is_pointwise() && c.forward {
            let rows = Rows::Dense { rows: c.images * g.pixels(), k: cin };
            return Some(Gathered { buf: x, rows, taps: 1, kc: cin, merged: 1 });
        }
        let (&width, &dilation) = (g.kernel.last()?, g.dilations.last()?);
        let behind = g.pads_behind();
        let padded = g.pads.iter().chain(&behind).any(|&p| p > 0);
        // A piece spans the window's whole width, rounded up: what it reads beyond meets zero weights.
        let kc = (width * cin).next_multiple_of(granule);
        let whole = !padded && kc == width * cin;
        let merges = c.groups == 1 && c.forward && width > 1 && dilation == 1 && (cin < NARROW || whole);
        if !merges {
            return self.windows(c, x, cin);
        }
        let mut geometry = g.clone();
        let mut buf = x;
        if padded || kc > width * cin {
            let edge = |pads: &[usize]| [&[0], pads, &[0]].concat();
            let shape = [&[c.images], &g.input[..], &[cin]].concat();
            let (before, behind) = (edge(&g.pads), edge(&behind));
            let whole: Vec<usize> = (0..shape.len()).map(|i| before[i] + shape[i] + behind[i]).collect();
            geometry.input = whole[1..whole.len() - 1].to_vec();
            geometry.pads.fill(0);
            buf = self.build.arena((whole.iter().product::<usize>() + kc) * dtype.size());
            let info = self.info("pad", &[], None, dtype);
            self.build.step(
                crate::StepInfo { name: "padding".to_owned(), shape: whole, ..info },
                Frame::new(&shape, &before, &behind, zero.to_vec()),
                &[x],
                &[buf],
            );
        }
        *geometry.kernel.last_mut()? = 1;
        let windows = Windows::new(&geometry, c.images, cin, kc, true)?.stepped();
        Some(Gathered { buf, taps: windows.taps, rows: Rows::Windows(windows), kc, merged: width })
    }

    #[allow(clippy::too_many_arguments)]
    fn product<W: Weights + 'static>(
        &mut self,
        c: &Convolution,
        kernel: &str,
        gathered: Gathered,
        groups: Vec<W>,
        group_cols: usize,
        pad: Vec<W::Input>,
        chain: &Chain,
    ) -> Option<()> {
        let layout = Layout::Last(c.groups * c.channels[1]);
        let residual = self.residual(chain, layout)?;
        let (out, store, dtype) = self.store_rounded(chain, layout);
        let info = self.info(kernel, &chain.nodes, Some(chain.result), dtype);
        let reads: Vec<Buf> = [gathered.buf].into_iter().chain(residual.map(|r| r.0)).collect();
        // Whether an image is read as it is, or as windows over it.
        let (reach, source) = match &gathered.rows {
            Rows::Dense { .. } => (Some(Reach::SAME), None),
            Rows::Windows(windows) => (None, Some(windows.image_len)),
        };
        let lines = match (&c.geometry.input[..], &c.geometry.output[..]) {
            (&[height, width], &[rows, cols]) => {
                let width = width * c.groups * c.channels[0];
                let input = source.map_or([height, width], |len| [1, len]);
                let [from, to] =
                    [input[1] * size_of::<W::Input>(), cols * c.groups * c.channels[1] * dtype.size()];
                Some(Lines { images: c.images, input: [input[0], from], output: [rows, to], reach })
            }
            _ => None,
        };
        let work = Product {
            rows: gathered.rows,
            groups,
            group_cols,
            cols: c.groups * c.channels[1],
            pad,
            residual: residual.map(|r| r.1),
            activation: chain.activation,
            store,
            lines,
            macs: usize::try_from(info.macs).unwrap_or(usize::MAX),
        };
        self.build.step(info, work, &reads, &[out]);
        Some(())
    }
}

impl Convolution<'_> {
    pub(super) fn is_depthwise(&self) -> bool {
        self.groups > 1 && self.channels == [1, 1]
    }

    /// The convolution of all channels with all, if it is one.
    pub(super) fn dense(&self) -> Option<Dense<'_>> {
        let [channels, n] = self.channels;
        let dense = Dense { geometry: &self.geometry, images: self.images, channels, n };
        (self.groups == 1 && self.forward).then_some(dense)
    }

    /// Where the weights of a group begin, and how far apart those of neighbouring output channels, input
    /// channels and taps lie.
    pub(super) fn strides(&self, group: usize) -> (usize, [usize; 3]) {
        let at = |n: usize, channel: usize, tap: usize| (self.index)(group, n, channel, tap);
        let origin = at(0, 0, 0);
        (origin, [at(1, 0, 0) - origin, at(0, 1, 0) - origin, at(0, 0, 1) - origin])
    }

    /// The weight that element `k` of a packed column meets; `None` beyond the window's width.
    pub(super) fn weight(&self, group: usize, n: usize, k: usize, kc: usize, merged: usize) -> Option<usize> {
        let cin = self.channels[0];
        let (piece, within) = (k / kc, k % kc);
        let (tap, channel) = (piece * merged + within / cin, within % cin);
        (within < merged * cin).then(|| (self.index)(group, n, channel, tap))
    }
}
