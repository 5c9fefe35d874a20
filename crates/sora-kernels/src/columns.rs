//! Sums over the rows of a matrix.

use crate::isa::per_isa;

/// Rows summed by themselves first, so that the error does not grow with their number.
const BLOCK: usize = 64;

/// Columns summed together, so that the sums stay in registers.
const WIDTH: usize = 64;

per_isa! {
    /// Writes to `out` the sum of each column from `first` on of the rows `x`, of `cols` elements; of the squares if
    /// `squared`.
    ///
    /// # Panics
    /// When `x` is not whole rows, or they have fewer columns.
    pub fn column_sums(x: &[f32], cols: usize, first: usize, squared: bool, out: &mut [f32]) {
        assert!(x.len().is_multiple_of(cols) && first + out.len() <= cols, "columns outside of the rows");
        out.fill(0.0);
        for block in x.chunks(BLOCK * cols) {
            for (part, out) in out.chunks_mut(WIDTH).enumerate() {
                let mut sums = [0.0f32; WIDTH];
                let sums = &mut sums[..out.len()];
                let skip = first + part * WIDTH;
                for row in block.chunks_exact(cols) {
                    let row = &row[skip..][..sums.len()];
                    match squared {
                        true => sums.iter_mut().zip(row).for_each(|(sum, &x)| *sum += x * x),
                        false => sums.iter_mut().zip(row).for_each(|(sum, &x)| *sum += x),
                    }
                }
                out.iter_mut().zip(sums).for_each(|(total, sum)| *total += *sum);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kernels;
    use alloc::{vec, vec::Vec};

    #[test]
    fn every_isa_gives_the_sums_and_the_same_bits_for_every_part() {
        let mut rng = fastrand::Rng::with_seed(3);
        for cols in [1, 2, 7, 63, 64, 65, 130] {
            let rows = rng.usize(0..200);
            let x: Vec<f32> = (0..rows * cols).map(|_| rng.f32() - 0.5).collect();
            for squared in [false, true] {
                let term = |v: f32| if squared { f64::from(v) * f64::from(v) } else { f64::from(v) };
                let column = |c: usize| x.iter().skip(c).step_by(cols).map(|&v| term(v)).sum::<f64>();
                let mut seen: Option<Vec<f32>> = None;
                for kernels in Kernels::all_available() {
                    let mut out = vec![f32::NAN; cols];
                    let cut = rng.usize(0..=cols);
                    column_sums(kernels, &x, cols, 0, squared, &mut out[..cut]);
                    column_sums(kernels, &x, cols, cut, squared, &mut out[cut..]);
                    assert!(
                        out.iter().enumerate().all(|(c, &sum)| (f64::from(sum) - column(c)).abs() < 1e-4)
                    );
                    assert_eq!(*seen.get_or_insert_with(|| out.clone()), out);
                }
            }
        }
    }
}
