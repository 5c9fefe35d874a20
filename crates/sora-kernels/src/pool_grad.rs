//! The gradient of maximum pooling, channels last.

use crate::{
    isa::per_isa,
    lanes::greater,
    operands::{Indirect, PAD},
};

/// Channels looked at together.
const LANES: usize = 16;

per_isa! {
    /// Adds to `dx` each element of `dy` `[rows][kc]` where the greatest element of its window lies, the first of equal
    /// ones; NaN is greater than all. `dx` has the layout of the input, `x.base`.
    ///
    /// # Panics
    /// When the operands differ in shape.
    pub fn max_grad_f32(x: &Indirect<'_, f32>, dy: &[f32], dx: &mut [f32]) {
        x.validate();
        assert!(dy.len() == x.rows() * x.kc && dx.len() == x.base.len(), "operands differ in shape");
        for (offsets, dy) in x.offsets.chunks_exact(x.taps).zip(dy.chunks_exact(x.kc)) {
            let mut first = 0;
            while first + LANES <= x.kc {
                row::<LANES>(x.base, offsets, first, dy, dx);
                first += LANES;
            }
            while first < x.kc {
                row::<1>(x.base, offsets, first, dy, dx);
                first += 1;
            }
        }
    }
}

/// `N` channels of one window.
#[inline(always)]
fn row<const N: usize>(base: &[f32], offsets: &[u32], first: usize, dy: &[f32], dx: &mut [f32]) {
    let inside = |&&offset: &&u32| offset != PAD;
    let at = |offset: &u32| *offset as usize + first;
    let mut most = [f32::NEG_INFINITY; N];
    for offset in offsets.iter().filter(inside) {
        let x: &[f32; N] = base[at(offset)..].first_chunk().expect("an offset runs past the input");
        most = core::array::from_fn(|j| greater(most[j], x[j]));
    }
    let mut left: [f32; N] = *dy[first..].first_chunk().expect("dy has all channels");
    for offset in offsets.iter().filter(inside) {
        let x: &[f32; N] = base[at(offset)..].first_chunk().expect("checked above");
        let dx: &mut [f32; N] = dx[at(offset)..].first_chunk_mut().expect("as long as the input");
        // Bits instead of branches, which would keep the loop from vectors.
        let mut sum = *dx;
        for j in 0..N {
            let found = 0u32.wrapping_sub(u32::from((x[j] == most[j]) | x[j].is_nan()));
            sum[j] += f32::from_bits(left[j].to_bits() & found);
            left[j] = f32::from_bits(left[j].to_bits() & !found);
        }
        *dx = sum;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kernels;
    use alloc::{vec, vec::Vec};

    #[test]
    fn every_isa_sends_each_element_to_the_first_maximum() {
        let mut rng = fastrand::Rng::with_seed(4);
        for kc in [1, 3, 16, 17, 40] {
            let (taps, pixels) = (rng.usize(1..6), 12);
            // Few values, so that many are equal.
            let values = [0.0, -0.0, 1.0, 2.0, f32::NAN, f32::NEG_INFINITY];
            let base: Vec<f32> = (0..pixels * kc).map(|_| values[rng.usize(0..values.len())]).collect();
            let mut offset = || if rng.u8(0..4) == 0 { PAD } else { (rng.usize(0..pixels) * kc) as u32 };
            let offsets: Vec<u32> = (0..7 * taps).map(|_| offset()).collect();
            let dy: Vec<f32> = (0..7 * kc).map(|i| i as f32 + 1.0).collect();
            let mut expected = vec![0.0f32; base.len()];
            for (at, &dy) in dy.iter().enumerate() {
                let (row, channel) = (at / kc, at % kc);
                let mut best: Option<usize> = None;
                for &offset in offsets[row * taps..][..taps].iter().filter(|&&offset| offset != PAD) {
                    let place = offset as usize + channel;
                    let beats = |best: usize| {
                        base[place] > base[best] || base[place].is_nan() && !base[best].is_nan()
                    };
                    if best.is_none_or(beats) {
                        best = Some(place);
                    }
                }
                best.into_iter().for_each(|place| expected[place] += dy);
            }
            for kernels in Kernels::all_available() {
                let mut dx = vec![0.0; base.len()];
                let x = Indirect { base: &base, offsets: &offsets, taps, kc, pad: &[] };
                max_grad_f32(kernels, &x, &dy, &mut dx);
                assert_eq!(dx, expected);
            }
        }
    }
}
