//! What flows back through one time step of a recurrent cell, beside the products with the weights. Slices cover the
//! hidden units of one batch row.

use crate::{isa::per_isa, math};

/// `N` consecutive vectors of equal length.
fn split<const N: usize>(x: &[f32], n: usize) -> [&[f32]; N] {
    core::array::from_fn(|gate| &x[gate * n..][..n])
}

/// [`split`] of what is written.
fn split_mut<const N: usize>(x: &mut [f32], n: usize) -> [&mut [f32]; N] {
    let mut rest = x;
    core::array::from_fn(|_| {
        let (first, behind) = core::mem::take(&mut rest).split_at_mut(n);
        rest = behind;
        first
    })
}

per_isa! {
    /// Gates and c of an LSTM step: writes `[i, o, f, g]` of the sums `p + s` to `gates` and `f·c + i·g` to `next`.
    ///
    /// # Panics
    /// When the lengths are not `4h`, `4h`, `h`, `4h` and `h`.
    pub fn lstm_gates(p: &[f32], s: &[f32], c: &[f32], gates: &mut [f32], next: &mut [f32]) {
        let n = c.len();
        assert!(p.len() == 4 * n && s.len() == 4 * n && gates.len() == 4 * n && next.len() == n, "{n} units");
        let ([pi, po, pf, pg], [si, so, sf, sg]) = (split::<4>(p, n), split::<4>(s, n));
        let [i, o, f, g] = split_mut::<4>(gates, n);
        for j in 0..n {
            i[j] = math::sigmoid(pi[j] + si[j]);
            o[j] = math::sigmoid(po[j] + so[j]);
            f[j] = math::sigmoid(pf[j] + sf[j]);
            g[j] = math::tanh(pg[j] + sg[j]);
            next[j] = f[j] * c[j] + i[j] * g[j];
        }
    }
}

per_isa! {
    /// Replaces the gates of [`lstm_gates`] by the gradients of their sums, and `dc`, the gradient of `next`, by that of `c`.
    /// `dh` is the gradient of `o · tanh(next)`.
    ///
    /// # Panics
    /// When the lengths are not `h`, `h`, `h`, `4h` and `h`.
    pub fn lstm_back(c: &[f32], next: &[f32], dh: &[f32], gates: &mut [f32], dc: &mut [f32]) {
        let n = c.len();
        assert!(next.len() == n && dh.len() == n && gates.len() == 4 * n && dc.len() == n, "{n} units");
        let [i, o, f, g] = split_mut::<4>(gates, n);
        for j in 0..n {
            let t = math::tanh(next[j]);
            let of_c = dc[j] + dh[j] * o[j] * (1.0 - t * t);
            let (of_i, of_g) = (of_c * g[j], of_c * i[j]);
            o[j] = dh[j] * t * (o[j] * (1.0 - o[j]));
            dc[j] = of_c * f[j];
            f[j] = of_c * c[j] * (f[j] * (1.0 - f[j]));
            g[j] = of_g * (1.0 - g[j] * g[j]);
            i[j] = of_i * (i[j] * (1.0 - i[j]));
        }
    }
}

per_isa! {
    /// The gradients `ds` and `dp` of the parts `s` and `p` of a GRU step that resets behind the product. Replaces `dh`,
    /// the gradient of h behind the step, by the share of it that goes to `h` before the step without any weights.
    ///
    /// # Panics
    /// When the lengths are not `3h`, `3h`, `h`, `h`, `3h` and `3h`.
    pub fn gru_back(p: &[f32], s: &[f32], h: &[f32], dh: &mut [f32], ds: &mut [f32], dp: &mut [f32]) {
        let n = h.len();
        assert!(p.len() == 3 * n && s.len() == 3 * n && dh.len() == n, "three gates of {n} units");
        assert!(ds.len() == 3 * n && dp.len() == 3 * n, "three gates of {n} units");
        let ([pz, pr, pn], [sz, sr, sn]) = (split::<3>(p, n), split::<3>(s, n));
        let ([dsz, dsr, dsn], [dpz, dpr, dpn]) = (split_mut::<3>(ds, n), split_mut::<3>(dp, n));
        for j in 0..n {
            let z = math::sigmoid(pz[j] + sz[j]);
            let r = math::sigmoid(pr[j] + sr[j]);
            let candidate = math::tanh(pn[j] + r * sn[j]);
            let of_n = dh[j] * (1.0 - z) * (1.0 - candidate * candidate);
            dsz[j] = dh[j] * (h[j] - candidate) * (z * (1.0 - z));
            dsr[j] = of_n * sn[j] * (r * (1.0 - r));
            dsn[j] = of_n * r;
            (dpz[j], dpr[j], dpn[j]) = (dsz[j], dsr[j], of_n);
            dh[j] *= z;
        }
    }
}

/// The nonlinearity of a plain cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slope {
    /// Of tanh.
    Tanh,
    /// Of ReLU.
    Relu,
    /// Of the logistic function.
    Sigmoid,
}

per_isa! {
    /// The gradient of the sums `p + s` of a plain cell, where `dh` is that of their function.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn rnn_back(slope: Slope, p: &[f32], s: &[f32], dh: &[f32], ds: &mut [f32]) {
        let n = dh.len();
        assert!(p.len() == n && s.len() == n && ds.len() == n, "vectors of {n} units");
        match slope {
            Slope::Tanh => {
                for j in 0..n {
                    let y = math::tanh(p[j] + s[j]);
                    ds[j] = dh[j] * (1.0 - y * y);
                }
            }
            Slope::Relu => {
                for j in 0..n {
                    ds[j] = if p[j] + s[j] > 0.0 { dh[j] } else { 0.0 };
                }
            }
            Slope::Sigmoid => {
                for j in 0..n {
                    let y = math::sigmoid(p[j] + s[j]);
                    ds[j] = dh[j] * (y * (1.0 - y));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Kernels, recurrent};
    use alloc::{vec, vec::Vec};

    /// Differences of what the forward kernels give, summed with weights, are the gradients; and all ISAs give the same bits.
    #[test]
    fn steps_give_what_differences_of_the_cells_give() {
        let mut rng = fastrand::Rng::with_seed(21);
        for n in [1, 7, 16, 33] {
            let mut reals = |len: usize| -> Vec<f32> { (0..len).map(|_| rng.f32() * 2.0 - 1.0).collect() };
            let (p4, s4, p3, s3) = (reals(4 * n), reals(4 * n), reals(3 * n), reals(3 * n));
            let (c, h, dh, dc) = (reals(n), reals(n), reals(n), reals(n));
            let mut seen: Option<Vec<f32>> = None;
            for k in Kernels::all_available() {
                let (mut gates, mut next, mut of_c) = (vec![0.0; 4 * n], vec![0.0; n], dc.clone());
                lstm_gates(k, &p4, &s4, &c, &mut gates, &mut next);
                lstm_back(k, &c, &next, &dh, &mut gates, &mut of_c);
                let lstm = |s: &[f32], c: &[f32]| {
                    let (mut c, mut h) = (c.to_vec(), vec![0.0; n]);
                    recurrent::lstm_step(k, &p4, s, None, &mut c, &mut h);
                    let sum =
                        |x: &[f32], d: &[f32]| x.iter().zip(d).map(|(x, d)| f64::from(x * d)).sum::<f64>();
                    sum(&h, &dh) + sum(&c, &dc)
                };
                slopes(&s4, &gates, |s| lstm(s, &c));
                slopes(&c, &of_c, |c| lstm(&s4, c));

                let (mut of_h, mut ds, mut dp) = (dh.clone(), vec![0.0; 3 * n], vec![0.0; 3 * n]);
                gru_back(k, &p3, &s3, &h, &mut of_h, &mut ds, &mut dp);
                let gru = |p: &[f32], s: &[f32], h: &[f32]| {
                    let mut h = h.to_vec();
                    recurrent::gru_step(k, p, s, &vec![0.0; n], &mut h);
                    h.iter().zip(&dh).map(|(x, d)| f64::from(x * d)).sum::<f64>()
                };
                slopes(&s3, &ds, |s| gru(&p3, s, &h));
                slopes(&p3, &dp, |p| gru(p, &s3, &h));
                slopes(&h, &of_h, |h| gru(&p3, &s3, h));

                let mut all = [gates, next, of_c, ds, dp, of_h].concat();
                for (slope, f) in [
                    (Slope::Tanh, f64::tanh as fn(f64) -> f64),
                    (Slope::Relu, |x| x.max(0.0)),
                    (Slope::Sigmoid, |x| 1.0 / (1.0 + (-x).exp())),
                ] {
                    let mut ds = vec![0.0; n];
                    rnn_back(k, slope, &p4[..n], &s4[..n], &dh, &mut ds);
                    for j in 0..n {
                        let x = f64::from(p4[j]) + f64::from(s4[j]);
                        let difference = (f(x + 1e-4) - f(x - 1e-4)) / 2e-4 * f64::from(dh[j]);
                        assert!((difference - f64::from(ds[j])).abs() < 1e-4 || x.abs() < 1e-3);
                    }
                    all.extend(ds);
                }
                assert_eq!(*seen.get_or_insert_with(|| all.clone()), all);
            }
        }
    }

    fn slopes(x: &[f32], found: &[f32], f: impl Fn(&[f32]) -> f64) {
        for j in 0..x.len() {
            let moved = |by: f32| {
                let mut x = x.to_vec();
                x[j] += by;
                f(&x)
            };
            let difference = (moved(1.0 / 64.0) - moved(-1.0 / 64.0)) * 32.0;
            assert!((difference - f64::from(found[j])).abs() < 2e-3, "{j}: {} {difference}", found[j]);
        }
    }
}
