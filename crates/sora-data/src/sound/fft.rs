//! The spectrum of a frame.
//!
//! Crates for this are generic: their planners would be compiled into this crate, which takes longer than all of the rest.

use std::f64::consts::TAU;

use crate::narrow;

type Complex = [f32; 2];

/// The discrete Fourier transform of as many real numbers as a power of two, at least 2. Source: Cooley and Tukey, "An
/// algorithm for the machine calculation of complex Fourier series", 1965.
#[derive(Clone, Debug)]
pub(crate) struct Spectrum {
    /// The turn by -k / points of the circle, for k up to half of the points.
    turns: Vec<Complex>,
    /// Where each of half as many complex numbers comes from: its place with the bits in reverse.
    sources: Vec<usize>,
    work: Vec<Complex>,
}

impl Spectrum {
    pub(crate) fn new(points: usize) -> Self {
        let half = points / 2;
        let turn = |k: usize| {
            let (sin, cos) = (-TAU * k as f64 / points as f64).sin_cos();
            [narrow(cos), narrow(sin)]
        };
        let bits = half.trailing_zeros();
        let source = |place: usize| if bits == 0 { 0 } else { place.reverse_bits() >> (usize::BITS - bits) };
        Spectrum {
            turns: (0..=half).map(turn).collect(),
            sources: (0..half).map(source).collect(),
            work: vec![[0.0; 2]; half],
        }
    }

    /// The magnitudes of the bins from 0 to half of the points, of `frame`, which zeros follow.
    pub(crate) fn magnitudes(&mut self, frame: &[f32], magnitudes: &mut Vec<f32>) {
        // Pairs of real numbers are transformed as complex ones, then taken apart.
        let half = self.work.len();
        let at = |i: usize| frame.get(i).copied().unwrap_or(0.0);
        for (to, &source) in self.work.iter_mut().zip(&self.sources) {
            *to = [at(2 * source), at(2 * source + 1)];
        }
        let mut size = 1;
        while size < half {
            for block in self.work.chunks_exact_mut(2 * size) {
                let (low, high) = block.split_at_mut(size);
                let turns = self.turns.iter().step_by(half / size);
                for ((a, b), turn) in low.iter_mut().zip(high).zip(turns) {
                    let turned = product(*b, *turn);
                    *b = [a[0] - turned[0], a[1] - turned[1]];
                    *a = [a[0] + turned[0], a[1] + turned[1]];
                }
            }
            size *= 2;
        }
        magnitudes.clear();
        magnitudes.extend(self.turns.iter().enumerate().map(|(k, turn)| {
            let (z, mirror) = (self.work[k % half], self.work[(half - k) % half]);
            let even = [0.5 * (z[0] + mirror[0]), 0.5 * (z[1] - mirror[1])];
            let odd = product([0.5 * (z[1] + mirror[1]), 0.5 * (mirror[0] - z[0])], *turn);
            let [re, im] = [even[0] + odd[0], even[1] + odd[1]];
            (re * re + im * im).sqrt()
        }));
    }
}

fn product([a, b]: Complex, [c, d]: Complex) -> Complex {
    [a * c - b * d, a * d + b * c]
}

#[cfg(test)]
mod tests {
    use super::*;
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
