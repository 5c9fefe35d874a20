//! Convolutions whose weights are known at run time only.

use std::sync::{Arc, Mutex, PoisonError};

use sora_kernels::{Kernels, PackedDwF32, PackedF32};

use super::gemm::{Product, Real, RealDepthwise};
use super::{Cx, Io, Work};

/// Where the element of a packed column lies in the weights of a group.
pub(crate) enum Arrangement {
    /// From an origin on, at these distances of columns, channels and taps.
    Strided(usize, [usize; 3]),
    /// Listed, depth by depth.
    Listed(Vec<u32>),
}

/// Packs weights, then multiplies. Inputs: the rows' source, the weights, and perhaps a bias.
pub(crate) struct Live {
    /// Without weights.
    pub(crate) product: Product<Real>,
    /// By group.
    pub(crate) groups: Vec<Arrangement>,
    /// Taps, elements of a piece, and columns of a group.
    pub(crate) extents: (usize, usize, usize),
    pub(crate) bias: bool,
    /// Memory for packed weights, one for each run that needed it at the same time.
    pub(crate) idle: Mutex<Vec<Vec<Real>>>,
}

impl Live {
    fn pack(&self, kernels: Kernels, weights: &[f32], bias: Option<&[f32]>) -> Vec<Real> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let (taps, kc, n) = self.extents;
        let mut packed: Vec<PackedF32> = match idle {
            Some(groups) => groups.into_iter().filter_map(|group| Arc::into_inner(group.packed)).collect(),
            None => Vec::new(),
        };
        packed.resize_with(self.groups.len(), || PackedF32::pack(kernels, 1, 1, 1, |_, _| 0.0));
        let fill = |(g, (mut packed, arrangement)): (usize, (PackedF32, &Arrangement))| {
            match arrangement {
                Arrangement::Strided(origin, strides) => {
                    packed.repack_strided(self.extents, weights, *origin, *strides);
                }
                Arrangement::Listed(at) => {
                    packed.repack(taps, kc, n, |k, column| weights[at[k * n + column] as usize]);
                }
            }
            let bias = bias.map(|bias| bias[g * n..(g + 1) * n].to_vec());
            Real { packed: Arc::new(packed), bias }
        };
        packed.into_iter().zip(&self.groups).enumerate().map(fill).collect()
    }
}

impl Work for Live {
    fn run(&self, cx: &Cx, mut io: Io) -> Result<(), String> {
        let bias = self.bias.then(|| io.input::<f32>(2));
        let groups = self.pack(cx.kernels, io.input(1), bias);
        let out = io.output();
        self.product.multiply(&groups, cx, io.input(0), &[], out);
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(groups);
        Ok(())
    }
}

/// [`Live`] of a depthwise convolution, whose weights `[channels][taps]` are few.
pub(crate) struct LiveDepthwise {
    /// Without weights.
    pub(crate) product: Product<RealDepthwise>,
    pub(crate) taps: usize,
    pub(crate) bias: bool,
}

impl Work for LiveDepthwise {
    fn run(&self, cx: &Cx, mut io: Io) -> Result<(), String> {
        let weights = io.input::<f32>(1);
        let bias = self.bias.then(|| io.input::<f32>(2).to_vec());
        let (taps, channels) = (self.taps, self.product.cols);
        let packed =
            PackedDwF32::pack(cx.kernels, taps, channels, |tap, channel| weights[channel * taps + tap]);
        let out = io.output();
        self.product.multiply(&[RealDepthwise { packed, bias }], cx, io.input(0), &[], out);
        Ok(())
    }
}
