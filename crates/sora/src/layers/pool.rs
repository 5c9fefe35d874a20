//! Pooling of images.

use sora_ir::ValueId;
use sora_ir::ops::{AveragePool, MaxPool, Reduce, ReduceKind};

use super::{Layer, LayerError, Network, Padding, Pair};

macro_rules! pool {
    ($(#[$doc:meta])* $layer:ident, $name:literal, $build:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub struct $layer {
            kernel: Pair,
            strides: Pair,
            padding: Padding,
        }

        impl $layer {
            /// A window that moves by its own extent, without padding.
            pub fn new(kernel: impl Into<Pair>) -> Self {
                let kernel = kernel.into();
                $layer { kernel, strides: kernel, padding: Padding::Valid }
            }

            /// Step of the window.
            #[must_use]
            pub fn strides(self, strides: impl Into<Pair>) -> Self {
                $layer { strides: strides.into(), ..self }
            }

            /// What surrounds the image; it is left out of the result.
            #[must_use]
            pub fn padding(self, padding: Padding) -> Self {
                $layer { padding, ..self }
            }
        }

        impl Layer for $layer {
            fn name(&self) -> &'static str {
                $name
            }

            fn build(&self, net: &mut Network, x: ValueId) -> Result<ValueId, LayerError> {
                net.channels(x)?;
                let pads = self.padding.pads(net, x, self.kernel, self.strides)?;
                let (kernel, strides) = (self.kernel.list(), self.strides.list());
                let (dilations, ceil_mode) = (vec![1, 1], false);
                let build: fn(_, _, _, _, _) -> sora_ir::Op = $build;
                net.op("", build(kernel, strides, pads, dilations, ceil_mode), [x])
            }
        }
    };
}

pool! {
    /// The greatest value of each window of images `[N, C, H, W]`.
    MaxPool2d, "max_pool2d",
    |kernel, strides, pads, dilations, ceil_mode| {
        MaxPool { kernel, strides, pads, dilations, ceil_mode }.into()
    }
}

pool! {
    /// The mean of each window of images `[N, C, H, W]`.
    AvgPool2d, "avg_pool2d",
    |kernel, strides, pads, dilations, ceil_mode| {
        AveragePool { kernel, strides, pads, dilations, ceil_mode, count_include_pad: false }.into()
    }
}

/// The mean of each channel of images `[N, C, H, W]`, as `[N, C, 1, 1]`.
#[derive(Clone, Copy, Debug)]
pub struct GlobalAvgPool2d;

impl Layer for GlobalAvgPool2d {
    fn name(&self) -> &'static str {
        "global_avg_pool2d"
    }

    fn build(&self, net: &mut Network, x: ValueId) -> Result<ValueId, LayerError> {
        net.channels(x)?;
        net.op("", Reduce { kind: ReduceKind::Mean, axes: vec![2, 3], keep_dims: true }, [x])
    }
}
