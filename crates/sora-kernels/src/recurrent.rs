//! One time step of recurrent cells, after the matrix products. Slices cover the
//! hidden units of one batch row.
//!
//! Gates are cut by `gate`: where a compiler cannot tell that a slice is as long as the loop, it leaves the last vector
//! to a loop over single units, which takes longer than all others of a small layer.

use crate::{isa::per_isa, math};

/// The `i`-th of the gates of `n` units that lie one behind the other.
#[inline(always)]
fn gate(gates: &[f32], i: usize, n: usize) -> &[f32] {
    &gates[i * n..][..n]
}

per_isa! {
    /// One step of an LSTM cell with the default activations (ONNX LSTM).
    ///
    /// `x_gates` is `W·x` with both biases and `h_gates` is `R·h`, both `[i, o, f, c]` of `4h` units; `peephole`
    /// the diagonal weights `[i, o, f]`; `c` and `h` the state, updated in place. With `g = x_gates + h_gates`:
    ///
    /// ```text
    /// i = σ(gi + Pi·c)   f = σ(gf + Pf·c)   c' = f·c + i·tanh(gc)
    /// o = σ(go + Po·c')  h' = o·tanh(c')
    /// ```
    ///
    /// # Panics
    /// When the lengths are not `4h`, `4h`, `3h`, `h` and `h`.
    pub fn lstm_step(x_gates: &[f32], h_gates: &[f32], peephole: Option<&[f32]>, c: &mut [f32], h: &mut [f32]) {
        let n = h.len();
        assert_eq!(x_gates.len(), 4 * n, "four input gates of {n} units");
        assert_eq!(h_gates.len(), 4 * n, "four recurrent gates of {n} units");
        assert_eq!(c.len(), n, "a cell state of {n} units");
        let (xi, xo, xf, xc) = (gate(x_gates, 0, n), gate(x_gates, 1, n), gate(x_gates, 2, n), gate(x_gates, 3, n));
        let (hi, ho, hf, hc) = (gate(h_gates, 0, n), gate(h_gates, 1, n), gate(h_gates, 2, n), gate(h_gates, 3, n));
        let c = &mut c[..n];
        match peephole {
            None => {
                for j in 0..n {
                    let i = math::sigmoid(xi[j] + hi[j]);
                    let f = math::sigmoid(xf[j] + hf[j]);
                    c[j] = f * c[j] + i * math::tanh(xc[j] + hc[j]);
                    h[j] = math::sigmoid(xo[j] + ho[j]) * math::tanh(c[j]);
                }
            }
            Some(p) => {
                assert_eq!(p.len(), 3 * n, "three peephole vectors of {n} units");
                let (pi, po, pf) = (gate(p, 0, n), gate(p, 1, n), gate(p, 2, n));
                for j in 0..n {
                    let i = math::sigmoid(xi[j] + hi[j] + pi[j] * c[j]);
                    let f = math::sigmoid(xf[j] + hf[j] + pf[j] * c[j]);
                    c[j] = f * c[j] + i * math::tanh(xc[j] + hc[j]);
                    h[j] = math::sigmoid(xo[j] + ho[j] + po[j] * c[j]) * math::tanh(c[j]);
                }
            }
        }
    }
}

per_isa! {
    /// One step of a GRU cell that resets after the product (ONNX GRU, `linear_before_reset = 1`).
    ///
    /// `x_gates` is `W·x` with all biases but that of the candidate's recurrent part, which is `bias`, and `h_gates`
    /// is `R·h`, both `[z, r, h]` of `3h` units:
    ///
    /// ```text
    /// z = σ(xz + hz)   r = σ(xr + hr)   n = tanh(xh + r·(hh + bias))   h' = (1 − z)·n + z·h
    /// ```
    ///
    /// # Panics
    /// When the lengths are not `3h`, `3h`, `h` and `h`.
    pub fn gru_step(x_gates: &[f32], h_gates: &[f32], bias: &[f32], h: &mut [f32]) {
        let n = h.len();
        assert_eq!(bias.len(), n, "a bias of {n} units");
        assert_eq!(x_gates.len(), 3 * n, "three input gates of {n} units");
        assert_eq!(h_gates.len(), 3 * n, "three recurrent gates of {n} units");
        let (xz, xr, xh) = (gate(x_gates, 0, n), gate(x_gates, 1, n), gate(x_gates, 2, n));
        let (hz, hr, hh) = (gate(h_gates, 0, n), gate(h_gates, 1, n), gate(h_gates, 2, n));
        let bias = &bias[..n];
        for j in 0..n {
            let z = math::sigmoid(xz[j] + hz[j]);
            let r = math::sigmoid(xr[j] + hr[j]);
            let candidate = math::tanh(xh[j] + r * (hh[j] + bias[j]));
            h[j] = (1.0 - z) * candidate + z * h[j];
        }
    }
}

per_isa! {
    /// First half of a GRU step that resets before the product (`linear_before_reset = 0`):
    /// `z = σ(xz + hz)`, `rh = σ(xr + hr)·h`.
    ///
    /// `x_gates` starts with `[z, r]` (a third gate may follow), `h_gates` is `[z, r]`.
    ///
    /// # Panics
    /// When `x_gates` or `h_gates` is shorter than `2h`, or another length is not `h`.
    pub fn gru_reset(x_gates: &[f32], h_gates: &[f32], h: &[f32], rh: &mut [f32], z: &mut [f32]) {
        let n = h.len();
        assert!(x_gates.len() >= 2 * n && h_gates.len() >= 2 * n, "two gates of {n} units");
        assert!(rh.len() == n && z.len() == n, "outputs of {n} units");
        let (xz, xr) = (gate(x_gates, 0, n), gate(x_gates, 1, n));
        let (hz, hr) = (gate(h_gates, 0, n), gate(h_gates, 1, n));
        let (rh, z) = (&mut rh[..n], &mut z[..n]);
        for j in 0..n {
            z[j] = math::sigmoid(xz[j] + hz[j]);
            rh[j] = math::sigmoid(xr[j] + hr[j]) * h[j];
        }
    }
}

per_isa! {
    /// Second half of a GRU step that resets before the product:
    /// `h' = (1 − z)·tanh(x_h + rh_h) + z·h`, where `rh_h` is the product with the output of [`gru_reset`].
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn gru_finish(x_h: &[f32], rh_h: &[f32], z: &[f32], h: &mut [f32]) {
        let n = h.len();
        assert!(x_h.len() == n && rh_h.len() == n && z.len() == n, "vectors of {n} units");
        let (x_h, rh_h, z) = (&x_h[..n], &rh_h[..n], &z[..n]);
        for j in 0..n {
            h[j] = (1.0 - z[j]) * math::tanh(x_h[j] + rh_h[j]) + z[j] * h[j];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kernels;
    use alloc::vec::Vec;
    use fastrand::Rng;

    fn sigmoid(x: f64) -> f64 {
        1.0 / (1.0 + (-x).exp())
    }

    fn close(got: &[f32], want: impl Fn(usize) -> f64) {
        for (i, &got) in got.iter().enumerate() {
            assert!((f64::from(got) - want(i)).abs() < 2e-6, "[{i}] {got} {}", want(i));
        }
    }

    #[test]
    fn cells_match_double_precision_and_each_other() {
        let mut rng = Rng::with_seed(13);
        for n in [1, 7, 16, 50] {
            let mut reals = |len: usize| -> Vec<f32> { (0..len).map(|_| rng.f32() * 6.0 - 3.0).collect() };
            let (x4, h4, p, c0, h0) = (reals(4 * n), reals(4 * n), reals(3 * n), reals(n), reals(n));
            let g: Vec<f32> = x4.iter().zip(&h4).map(|(x, h)| x + h).collect();
            let bias = reals(n);
            let (x3, h3) = (reals(3 * n), reals(3 * n));
            let f = |v: &[f32], gate: usize, j: usize| f64::from(v[gate * n + j]);
            let mut seen: Option<Vec<f32>> = None;
            for k in Kernels::all_available() {
                let mut all = Vec::new();
                for peephole in [None, Some(&p[..])] {
                    let peep = |gate, j| peephole.map_or(0.0, |p| f(p, gate, j));
                    let cell = |j| {
                        let c = f64::from(c0[j]);
                        sigmoid(f(&g, 2, j) + peep(2, j) * c) * c
                            + sigmoid(f(&g, 0, j) + peep(0, j) * c) * f(&g, 3, j).tanh()
                    };
                    let (mut c, mut h) = (c0.clone(), h0.clone());
                    lstm_step(k, &x4, &h4, peephole, &mut c, &mut h);
                    close(&c, cell);
                    close(&h, |j| sigmoid(f(&g, 1, j) + peep(1, j) * cell(j)) * cell(j).tanh());
                    all.extend(c);
                    all.extend(h);
                }
                let z = |j| sigmoid(f(&x3, 0, j) + f(&h3, 0, j));
                let r = |j| sigmoid(f(&x3, 1, j) + f(&h3, 1, j));
                let mix = |j, cand: f64| (1.0 - z(j)) * cand + z(j) * f64::from(h0[j]);
                let mut h = h0.clone();
                gru_step(k, &x3, &h3, &bias, &mut h);
                close(&h, |j| mix(j, (f(&x3, 2, j) + r(j) * (f(&h3, 2, j) + f(&bias, 0, j))).tanh()));
                all.extend(&h);
                let (mut rh, mut zs) = (h0.clone(), h0.clone());
                gru_reset(k, &x3, &h3, &h0, &mut rh, &mut zs);
                close(&rh, |j| r(j) * f64::from(h0[j]));
                close(&zs, z);
                let mut h = h0.clone();
                gru_finish(k, &x3[2 * n..], &h3[2 * n..], &zs, &mut h);
                close(&h, |j| mix(j, (f(&x3, 2, j) + f(&h3, 2, j)).tanh()));
                all.extend(&h);
                assert_eq!(*seen.get_or_insert_with(|| all.clone()), all);
            }
        }
    }
}
