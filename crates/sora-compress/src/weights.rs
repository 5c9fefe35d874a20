//! Quantizing constants: weights per output channel to i8, biases to i32.

use sora_tensor::{Tensor, TensorError};

/// Bits of a quantized weight unless it is to be coarser.
pub const BITS: u32 = 8;

/// Scales that are tried for coarse weights, as shares of the one that reaches the greatest weight.
const CLIPPED: [f32; 5] = [1.0, 0.9, 0.8, 0.7, 0.6];

/// Greatest magnitude of a quantized bias: room is left in 32 bits for the products it is added to.
const GREATEST_BIAS: f64 = (1 << 30) as f64;

/// Weights as integers with one scale for each output channel.
#[derive(Clone, Debug)]
pub struct QuantizedWeights {
    /// `i8`, of the weights' shape, in `-127..=127`, or less far where fewer bits were asked for.
    pub values: Tensor,
    /// One scale per channel along the axis; positive and finite.
    pub scales: Vec<f32>,
}

/// Calls `visit(channel, element)` for the elements of a tensor of `shape`, with the channel along `axis`.
pub(crate) fn for_each_channel(shape: &[usize], axis: usize, mut visit: impl FnMut(usize, usize)) {
    let extent = shape.get(axis).copied().unwrap_or(1).max(1);
    let inner: usize = shape.iter().skip(axis + 1).product::<usize>().max(1);
    for element in 0..shape.iter().product() {
        visit(element / inner % extent, element);
    }
}

/// The greatest magnitude of each channel along `axis`.
pub fn channel_magnitudes(weights: &[f32], shape: &[usize], axis: usize) -> Vec<f32> {
    let mut greatest = vec![0f32; shape.get(axis).copied().unwrap_or(1)];
    for_each_channel(shape, axis, |channel, i| greatest[channel] = greatest[channel].max(weights[i].abs()));
    greatest
}

/// Symmetric quantization per channel along `axis`, each channel's scale no less than `least` has it (one for
/// all channels in turn; none when empty). A channel of zeros gets scale 1.
///
/// Levels are those of `bits` bits, from 2 to 8, in bytes; the least one is left out, so that negation is exact. Below 8 bits, the scale
/// of a channel is the one of least squared error among a few, where greater weights are clipped.
///
/// # Errors
/// [`TensorError`] when `weights` do not hold `f32`.
pub fn quantize(
    weights: &Tensor,
    axis: usize,
    least: &[f32],
    bits: u32,
) -> Result<QuantizedWeights, TensorError> {
    let (values, shape) = (weights.as_slice::<f32>()?, weights.shape());
    let greatest = ((1i32 << (bits.clamp(2, BITS) - 1)) - 1) as f32;
    let magnitudes = channel_magnitudes(values, shape, axis);
    // With all bits, every scale reaches the greatest weight.
    let tried = if bits < BITS { &CLIPPED[..] } else { &[] };
    let scales = |share: f32| -> Vec<f32> {
        let scale = |(channel, magnitude): (usize, &f32)| {
            let least = least.get(channel).copied().unwrap_or(0.0);
            let scale = (share * magnitude / greatest).max(least);
            if scale < f32::MIN_POSITIVE { 1.0 } else { scale }
        };
        magnitudes.iter().enumerate().map(scale).collect()
    };
    let level = |value: f32, scale: f32| (value / scale).round_ties_even().clamp(-greatest, greatest);
    let mut best = scales(1.0);
    let mut errors = vec![f64::INFINITY; best.len()];
    for candidates in tried.iter().map(|&share| scales(share)) {
        let mut own = vec![0.0; best.len()];
        for_each_channel(shape, axis, |channel, i| {
            let error = level(values[i], candidates[channel]) * candidates[channel] - values[i];
            own[channel] += f64::from(error).powi(2);
        });
        for ((best, error), (candidate, own)) in
            best.iter_mut().zip(&mut errors).zip(candidates.into_iter().zip(own))
        {
            if own < *error {
                (*best, *error) = (candidate, own);
            }
        }
    }
    let mut quantized = vec![0i8; values.len()];
    for_each_channel(shape, axis, |channel, i| quantized[i] = level(values[i], best[channel]) as i8);
    Ok(QuantizedWeights { values: Tensor::from_slice(shape, &quantized)?, scales: best })
}

/// The least weight scale at which each bias still fits 32 bits, given the scale of the input.
pub fn least_scales(bias: &[f32], input_scale: f32) -> Vec<f32> {
    bias.iter().map(|b| (f64::from(b.abs()) / (f64::from(input_scale) * GREATEST_BIAS)) as f32).collect()
}

/// A bias in units of `input_scale · weight_scale`, with those units; channels beyond the weight scales reuse
/// them in turn, as the groups of a transposed convolution do.
pub fn quantize_bias(bias: &[f32], input_scale: f32, weight_scales: &[f32]) -> (Vec<i32>, Vec<f32>) {
    let unit = |channel: usize| input_scale * weight_scales[channel % weight_scales.len()];
    let units: Vec<f32> = (0..bias.len()).map(unit).collect();
    let quantized =
        bias.iter().zip(&units).map(|(b, unit)| (f64::from(*b) / f64::from(*unit)).round() as i32);
    (quantized.collect(), units)
}

/// The sum over each output channel of `(quantized - exact) · mean` of the input that the weight multiplies:
/// how far quantization moves the channel's mean output.
///
/// `mean(element)` is the mean input that the weight at this position of the tensor meets.
///
/// # Errors
/// [`TensorError`] when the tensors do not hold `f32` and `i8`.
pub fn mean_shift(
    exact: &Tensor,
    quantized: &QuantizedWeights,
    axis: usize,
    mean: impl Fn(usize) -> f64,
) -> Result<Vec<f64>, TensorError> {
    let (exact_values, values) = (exact.as_slice::<f32>()?, quantized.values.as_slice::<i8>()?);
    let mut shift = vec![0.0; quantized.scales.len()];
    for_each_channel(exact.shape(), axis, |channel, i| {
        let rounded = f64::from(values[i]) * f64::from(quantized.scales[channel]);
        shift[channel] += (rounded - f64::from(exact_values[i])) * mean(i);
    });
    Ok(shift)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    #[test]
    fn errors_stay_within_half_a_step_per_channel() {
        let mut random = Random::new(1);
        for _ in 0..50 {
            let shape: Vec<usize> = (0..random.below(4) + 1).map(|_| random.below(6) + 1).collect();
            let axis = random.below(shape.len());
            let count: usize = shape.iter().product();
            let scale = f64::exp2(random.uniform(-20.0, 20.0));
            let values: Vec<f32> = (0..count).map(|_| (random.normal() * scale) as f32).collect();
            let weights = Tensor::from_slice(&shape, &values).unwrap();
            let quantized = quantize(&weights, axis, &[], BITS).unwrap();
            let greatest = channel_magnitudes(&values, &shape, axis);
            let q = quantized.values.as_slice::<i8>().unwrap();
            for_each_channel(&shape, axis, |c, i| {
                let step = quantized.scales[c];
                assert!((f32::from(q[i]) * step - values[i]).abs() <= step * 0.5001);
                assert!(step <= greatest[c] / 126.9);
                assert!(q[i] != i8::MIN);
            });
        }
    }

    #[test]
    fn fewer_bits_use_fewer_levels_and_clip_where_that_is_nearer() {
        let mut random = Random::new(3);
        let mut values: Vec<f32> = (0..2 * 400).map(|_| random.normal() as f32).collect();
        // One weight far from all others: reaching it would cost the others their levels.
        values[0] = 12.0;
        let exact = Tensor::from_slice(&[2, 400], &values).unwrap();
        let mut last = 0.0;
        for bits in (3..=8).rev() {
            let quantized = quantize(&exact, 0, &[], bits).unwrap();
            let greatest = (1 << (bits - 1)) - 1;
            let levels = quantized.values.to_i64s();
            assert!(levels.iter().all(|level| level.abs() <= greatest));
            let error = |(i, (level, value)): (usize, (&i64, &f32))| {
                (*level as f64 * f64::from(quantized.scales[i / 400]) - f64::from(*value)).powi(2)
            };
            let sum: f64 = levels.iter().zip(&values).enumerate().map(error).sum();
            assert!(sum >= last, "{bits}");
            last = sum;
            let reaching = 12.0 / greatest as f32;
            assert!(quantized.scales[0] < 0.99 * reaching || bits > 5, "{bits}");
            assert!(quantized.scales[0] > 0.99 * reaching || bits < 8, "{bits}");
        }
    }

    #[test]
    fn channels_of_zeros_and_subnormals_are_harmless() {
        let weights = Tensor::from_slice(&[3, 2], &[0.0, 0.0, 1e-44, -1e-44, 1.0, -2.0f32]).unwrap();
        let quantized = quantize(&weights, 0, &[], BITS).unwrap();
        assert_eq!(quantized.values.to_i64s(), [0, 0, 0, 0, 64, -127]);
        assert_eq!(quantized.scales[..2], [1.0, 1.0]);
    }

    #[test]
    fn a_large_bias_widens_its_channel() {
        let weights = Tensor::from_slice(&[2, 1], &[1e-6, 1.0f32]).unwrap();
        let (bias, input_scale) = ([1e6f32, -1.0], 1e-3);
        let quantized = quantize(&weights, 0, &least_scales(&bias, input_scale), BITS).unwrap();
        let (q, units) = quantize_bias(&bias, input_scale, &quantized.scales);
        for ((q, unit), b) in q.iter().zip(&units).zip(&bias) {
            assert!((f64::from(*q) * f64::from(*unit) - f64::from(*b)).abs() <= f64::from(b.abs()) * 1e-4);
        }
        assert!((quantized.scales[1] - 1.0 / 127.0).abs() < 1e-6);
    }

    #[test]
    fn mean_shift_is_what_the_means_say() {
        let mut random = Random::new(2);
        let values: Vec<f32> = (0..3 * 5).map(|_| random.normal() as f32).collect();
        let exact = Tensor::from_slice(&[5, 3], &values).unwrap();
        let quantized = quantize(&exact, 1, &[], BITS).unwrap();
        let means = [0.5, -1.0, 2.0, 3.0, 0.0];
        let shift = mean_shift(&exact, &quantized, 1, |i| means[i / 3]).unwrap();
        let q = quantized.values.to_f64s();
        for c in 0..3 {
            let expected: f64 = (0..5)
                .map(|k| {
                    (q[k * 3 + c] * f64::from(quantized.scales[c]) - f64::from(values[k * 3 + c])) * means[k]
                })
                .sum();
            assert!((shift[c] - expected).abs() < 1e-12);
        }
    }
}
