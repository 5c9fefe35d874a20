//! The spectrum of a frame.

use std::fmt;
use std::sync::Arc;

use realfft::num_complex::Complex;
use realfft::{RealFftPlanner, RealToComplex};

/// The discrete Fourier transform of real numbers, with its memory.
#[derive(Clone)]
pub(crate) struct Spectrum {
    transform: Arc<dyn RealToComplex<f32>>,
    input: Vec<f32>,
    bins: Vec<Complex<f32>>,
    scratch: Vec<Complex<f32>>,
}

impl Spectrum {
    pub(crate) fn new(points: usize) -> Self {
        let transform = RealFftPlanner::new().plan_fft_forward(points);
        let (input, bins) = (transform.make_input_vec(), transform.make_output_vec());
        let scratch = transform.make_scratch_vec();
        Spectrum { transform, input, bins, scratch }
    }

    /// The magnitudes of the bins from 0 to half of the points, of `frame`, which zeros follow.
    pub(crate) fn magnitudes(&mut self, frame: &[f32], magnitudes: &mut Vec<f32>) {
        let all = frame.iter().copied().chain(std::iter::repeat(0.0));
        self.input.iter_mut().zip(all).for_each(|(to, x)| *to = x);
        let done = self.transform.process_with_scratch(&mut self.input, &mut self.bins, &mut self.scratch);
        debug_assert!(done.is_ok(), "the transform made these vectors itself");
        magnitudes.clear();
        magnitudes.extend(self.bins.iter().map(|bin| bin.norm()));
    }
}

impl fmt::Debug for Spectrum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spectrum").field("points", &self.input.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::f64::consts::TAU;

    use super::*;
    use crate::narrow;
    use crate::random::Random;

    #[test]
    fn magnitudes_equal_their_definition() {
        let mut random = Random::of(&[1]);
        for (points, length) in [(2, 2), (4, 3), (8, 8), (64, 50), (512, 400)] {
            let frame: Vec<f32> = (0..length).map(|_| narrow(random.between(-1.0, 1.0))).collect();
            let mut found = Vec::new();
            Spectrum::new(points).magnitudes(&frame, &mut found);
            assert_eq!(found.len(), points / 2 + 1);
            for (k, &magnitude) in found.iter().enumerate() {
                let sum = |f: fn(f64) -> f64| -> f64 {
                    let part =
                        |(i, &x): (usize, &f32)| f64::from(x) * f(TAU * (k * i) as f64 / points as f64);
                    frame.iter().enumerate().map(part).sum()
                };
                assert!(
                    (f64::from(magnitude) - sum(f64::cos).hypot(sum(f64::sin))).abs() < 2e-5,
                    "{points} {k}"
                );
            }
        }
    }
}
