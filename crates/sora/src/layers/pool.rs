//! Pooling of images and sequences.

use sora_ir::ValueId;
use sora_ir::ops::{AveragePool, Binary, BinaryKind, Cast, MaxPool, Reduce, ReduceKind, Unsqueeze, Where};
use sora_tensor::{DType, Tensor};

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

macro_rules! pool1d {
    ($(#[$doc:meta])* $layer:ident, $name:literal, $build:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $layer(usize);

        impl $layer {
            /// A window of so many steps that moves by its own extent; steps left over at the end are left out.
            pub fn new(size: usize) -> Self {
                $layer(size)
            }
        }

        impl Layer for $layer {
            fn name(&self) -> &'static str {
                $name
            }

            fn build(&self, net: &mut Network, x: ValueId) -> Result<ValueId, LayerError> {
                let [steps, _] = net.steps(x)?;
                if self.0 == 0 || self.0 > steps {
                    return Err(net.refuse(format!("a window of {} over {steps} steps", self.0)));
                }
                let build: fn(Vec<usize>) -> sora_ir::Op = $build;
                net.channels_first(x, |net, x| net.op("", build(vec![self.0]), [x]))
            }
        }
    };
}

pool1d! {
    /// The greatest value of each window of sequences `[N, T, C]`.
    MaxPool1d, "max_pool1d",
    |size| {
        let (pads, dilations, ceil_mode) = (vec![0, 0], vec![1], false);
        MaxPool { strides: size.clone(), kernel: size, pads, dilations, ceil_mode }.into()
    }
}

pool1d! {
    /// The mean of each window of sequences `[N, T, C]`.
    AvgPool1d, "avg_pool1d",
    |size| {
        let (strides, pads, dilations) = (size.clone(), vec![0, 0], vec![1]);
        AveragePool { kernel: size, strides, pads, dilations, ceil_mode: false, count_include_pad: false }.into()
    }
}

/// The mean of each channel of sequences `[N, T, C]` over the steps that count ([`Network::lengths`]), as `[N, C]`.
#[derive(Clone, Copy, Debug)]
pub struct GlobalAvgPool1d;

impl Layer for GlobalAvgPool1d {
    fn name(&self) -> &'static str {
        "global_avg_pool1d"
    }

    fn build(&self, net: &mut Network, x: ValueId) -> Result<ValueId, LayerError> {
        let [steps, _] = net.steps(x)?;
        let over_steps = |kind| Reduce { kind, axes: vec![1], keep_dims: false };
        let Some(lengths) = net.lengths(x) else {
            return net.op("", over_steps(ReduceKind::Mean), [x]);
        };
        let counted = net.counted(lengths, steps)?;
        let counted = net.op("cast", Cast { to: DType::F32 }, [counted])?;
        let counted = net.op("unsqueeze", Unsqueeze { axes: vec![2] }, [counted])?;
        let kept = net.op("mul", Binary { kind: BinaryKind::Mul }, [x, counted])?;
        let sum = net.op("sum", over_steps(ReduceKind::Sum), [kept])?;
        let lengths = net.op("lengths", Cast { to: DType::F32 }, [lengths])?;
        let lengths = net.op("unsqueeze", Unsqueeze { axes: vec![1] }, [lengths])?;
        net.op("", Binary { kind: BinaryKind::Div }, [sum, lengths])
    }
}

/// The greatest value of each channel of sequences `[N, T, C]` over the steps that count ([`Network::lengths`]), as
/// `[N, C]`.
#[derive(Clone, Copy, Debug)]
pub struct GlobalMaxPool1d;

impl Layer for GlobalMaxPool1d {
    fn name(&self) -> &'static str {
        "global_max_pool1d"
    }

    fn build(&self, net: &mut Network, x: ValueId) -> Result<ValueId, LayerError> {
        let [steps, _] = net.steps(x)?;
        let mut kept = x;
        if let Some(lengths) = net.lengths(x) {
            let counted = net.counted(lengths, steps)?;
            let counted = net.op("unsqueeze", Unsqueeze { axes: vec![2] }, [counted])?;
            let least = net.constant("least", Tensor::scalar(f32::MIN));
            kept = net.op("kept", Where {}, [counted, x, least])?;
        }
        net.op("", Reduce { kind: ReduceKind::Max, axes: vec![1], keep_dims: false }, [kept])
    }
}
