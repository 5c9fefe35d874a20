//! Functions that a layer applies before it stores, and what they become for bytes.

use crate::{math, operands::Quant};

/// A function that a layer applies before it stores.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Activation {
    /// x
    #[default]
    None,
    /// max(x, 0)
    Relu,
    /// min(max(x, min), max)
    Clip {
        /// Lower bound.
        min: f32,
        /// Upper bound.
        max: f32,
    },
    /// x, or alpha·x below zero
    LeakyRelu {
        /// Slope below zero.
        alpha: f32,
    },
    /// x·min(max(x/6 + 1/2, 0), 1)
    HardSwish,
    /// min(max(alpha·x + beta, 0), 1)
    HardSigmoid {
        /// Slope.
        alpha: f32,
        /// Value at zero.
        beta: f32,
    },
    /// 1/(1 + e⁻ˣ)
    Sigmoid,
    /// tanh x
    Tanh,
    /// x·sigmoid(x)
    Silu,
    /// x·Φ(x), by the error function
    Gelu,
}

impl Activation {
    /// The bounds of an activation that only clamps; `None` for the others.
    #[inline(always)]
    pub(crate) fn bounds(self) -> Option<(f32, f32)> {
        match self {
            Self::None => Some((f32::NEG_INFINITY, f32::INFINITY)),
            Self::Relu => Some((0.0, f32::INFINITY)),
            Self::Clip { min, max } => Some((min, max)),
            _ => None,
        }
    }

    /// Whether the function does no more than keep values within bounds.
    pub fn only_clamps(self) -> bool {
        self.bounds().is_some()
    }

    /// Applies the function to every element in place.
    #[inline(always)]
    pub(crate) fn apply(self, x: &mut [f32]) {
        #[inline(always)]
        fn each(x: &mut [f32], f: impl Fn(f32) -> f32) {
            for x in x {
                *x = f(*x);
            }
        }
        match self {
            Self::None => {}
            Self::Relu => each(x, |x| math::at_least(x, 0.0)),
            Self::Clip { min, max } => each(x, |x| math::clamp(x, min, max)),
            Self::LeakyRelu { alpha } => each(x, |x| if x < 0.0 { alpha * x } else { x }),
            Self::HardSwish => each(x, |x| x * unit(x * (1.0 / 6.0) + 0.5)),
            Self::HardSigmoid { alpha, beta } => each(x, |x| unit(alpha * x + beta)),
            Self::Sigmoid => each(x, math::sigmoid),
            Self::Tanh => each(x, math::tanh),
            Self::Silu => each(x, math::silu),
            Self::Gelu => each(x, math::gelu),
        }
    }
}

/// Clamps to [0, 1].
#[inline(always)]
fn unit(x: f32) -> f32 {
    math::clamp(x, 0.0, 1.0)
}

/// The bounds of an activation that clamps and those of the bytes from `low` on as one pair, in
/// steps from the zero point.
#[inline(always)]
pub(crate) fn byte_bounds((min, max): (f32, f32), quant: Quant, low: i32) -> (f32, f32) {
    let (inv_scale, zp) = (quant.inv_scale, quant.zero_point);
    let bottom = math::at_least(min * inv_scale, (low - zp) as f32);
    let top = math::at_most(max * inv_scale, (low + 255 - zp) as f32);
    (bottom, top)
}

/// Applies `activation` to `y` and quantizes it into 0..=255 (or −128..=127 shifted by `low`).
/// NaN becomes the low end of what the activation leaves.
///
/// Bounds commute with scaling by a positive number and with rounding, both being monotone, so
/// those of the activation and of the integers become one pair; clamping first also keeps values
/// in the range where rounding by addition is exact.
#[inline(always)]
pub(crate) fn activate_and_quantize(
    y: &mut [f32],
    activation: Activation,
    quant: Quant,
    low: i32,
    out: &mut [u8],
) {
    // No closure here: it would be compiled for the baseline, and the activation with it.
    let bounds = match activation.bounds() {
        Some(bounds) => bounds,
        None => {
            activation.apply(y);
            (f32::NEG_INFINITY, f32::INFINITY)
        }
    };
    let (inv_scale, zp) = (quant.inv_scale, quant.zero_point);
    let (bottom, top) = byte_bounds(bounds, quant, low);
    for (out, &y) in out.iter_mut().zip(&*y) {
        let v = y * inv_scale;
        let v = if v > bottom { v } else { bottom };
        let v = if v < top { v } else { top };
        *out = math::round_to_i32(v).wrapping_add(zp) as u8;
    }
}
