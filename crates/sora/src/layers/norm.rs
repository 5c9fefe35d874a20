//! Normalization.

use sora_ir::ops::{Binary, BinaryKind};
use sora_ir::{Real, ValueId, ops};
use sora_tensor::Tensor;

use super::{Layer, LayerError, Network};

/// Batch normalization of images `[N, C, H, W]` by running statistics. Parameters of C elements: `weight`, `bias`,
/// and, not trainable, `running_mean` and `running_var`. Source: Ioffe & Szegedy 2015.
#[derive(Clone, Copy, Debug)]
pub struct BatchNorm2d {
    epsilon: f32,
}

impl BatchNorm2d {
    /// With `epsilon` added to the variance.
    pub fn new(epsilon: f32) -> Self {
        BatchNorm2d { epsilon }
    }
}

impl Layer for BatchNorm2d {
    fn name(&self) -> &'static str {
        "batch_norm2d"
    }

    fn build(&self, net: &mut Network, x: ValueId) -> Result<ValueId, LayerError> {
        net.channels(x)?;
        normalize(net, x, self.epsilon)
    }
}

/// Batch normalization over the last axis of `[N, C]`, or of sequences `[N, T, C]`, whose steps all count here. Parameters
/// as of [`BatchNorm2d`].
#[derive(Clone, Copy, Debug)]
pub struct BatchNorm {
    epsilon: f32,
}

impl BatchNorm {
    /// With `epsilon` added to the variance.
    pub fn new(epsilon: f32) -> Self {
        BatchNorm { epsilon }
    }
}

impl Layer for BatchNorm {
    fn name(&self) -> &'static str {
        "batch_norm"
    }

    fn build(&self, net: &mut Network, x: ValueId) -> Result<ValueId, LayerError> {
        match net.ty(x).rank() {
            2 => normalize(net, x, self.epsilon),
            3 => net.channels_first(x, |net, x| normalize(net, x, self.epsilon)),
            _ => Err(net.refuse(format!("expected [N, C] or [N, T, C], found {}", net.ty(x)))),
        }
    }

    fn keeps_steps(&self) -> bool {
        true
    }
}

/// Normalizes over axis 1.
fn normalize(net: &mut Network, x: ValueId, epsilon: f32) -> Result<ValueId, LayerError> {
    let channels = net.extent(x, 1)?;
    let (mean, variance) = match net.is_as_trained() {
        true => channel_moments(&net.observe(x)?),
        false => (vec![0.0; channels], vec![1.0; channels]),
    };
    let weight = net.scale("weight", channels);
    let bias = net.bias("bias", channels);
    let mean = net.buffer("running_mean", Tensor::vector(&mean));
    let variance = net.buffer("running_var", Tensor::vector(&variance));
    net.op("", ops::BatchNorm { epsilon: Real(epsilon) }, [x, weight, bias, mean, variance])
}

/// Mean and variance of each channel of `[N, C, …]`, over everything else.
fn channel_moments(x: &Tensor) -> (Vec<f32>, Vec<f32>) {
    let channels = x.shape()[1];
    let plane: usize = x.shape()[2..].iter().product();
    let values = x.to_f32s();
    let count = (x.shape()[0] * plane).max(1) as f64;
    let moments = (0..channels).map(|channel| {
        let planes = values.chunks(plane.max(1)).skip(channel).step_by(channels);
        let (sum, squares) = planes.flatten().fold((0.0, 0.0), |(sum, squares), &v| {
            let v = f64::from(v);
            (sum + v, squares + v * v)
        });
        let mean = sum / count;
        (mean as f32, (squares / count - mean * mean).max(0.0) as f32)
    });
    moments.unzip()
}

/// Layer normalization over the last axis, of extent C. Parameters of C elements: `weight` and `bias`.
/// Source: Ba, Kiros & Hinton 2016.
#[derive(Clone, Copy, Debug)]
pub struct LayerNorm {
    epsilon: f32,
}

impl LayerNorm {
    /// With `epsilon` added to the variance.
    pub fn new(epsilon: f32) -> Self {
        LayerNorm { epsilon }
    }
}

impl Layer for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn build(&self, net: &mut Network, x: ValueId) -> Result<ValueId, LayerError> {
        let count = net.extent(x, net.ty(x).rank().wrapping_sub(1))?;
        let (weight, bias) = (net.scale("weight", count), net.bias("bias", count));
        net.op("", ops::LayerNorm { axis: -1, epsilon: Real(self.epsilon) }, [x, weight, bias])
    }

    fn keeps_steps(&self) -> bool {
        true
    }
}

/// `(x · scale - mean) / std` by channel of images `[N, C, H, W]`: preprocessing that travels inside the network.
/// Not trainable, of C elements each: `mean` and `std`.
#[derive(Clone, Debug)]
pub struct Normalization {
    /// Factor before the rest, such as 1/255.
    pub scale: f32,
    /// Mean of each channel after scaling.
    pub mean: Vec<f32>,
    /// Standard deviation of each channel after scaling.
    pub std: Vec<f32>,
}

impl Layer for Normalization {
    fn name(&self) -> &'static str {
        "normalization"
    }

    fn build(&self, net: &mut Network, x: ValueId) -> Result<ValueId, LayerError> {
        let channels = net.channels(x)?;
        let by_channel = |values: &[f32]| Tensor::from_slice(&[1, channels, 1, 1], values);
        let (Ok(mean), Ok(std)) = (by_channel(&self.mean), by_channel(&self.std)) else {
            return Err(net.refuse(format!("mean and std must have {channels} elements each")));
        };
        let scale = net.constant("scale", Tensor::scalar(self.scale));
        let (mean, std) = (net.buffer("mean", mean), net.buffer("std", std));
        let x = net.op("mul", Binary { kind: BinaryKind::Mul }, [x, scale])?;
        let x = net.op("sub", Binary { kind: BinaryKind::Sub }, [x, mean])?;
        net.op("", Binary { kind: BinaryKind::Div }, [x, std])
    }
}
