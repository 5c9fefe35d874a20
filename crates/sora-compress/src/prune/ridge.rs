//! Linear least squares with a penalty.

/// Solves `(M + λ I) X = B` for a symmetric, positive semidefinite `M` of `n` rows and `B` of `n` rows, in place of `B`; λ is
/// `ridge` times the mean of the diagonal. By Cholesky's decomposition. `false`, with `B` destroyed, where the matrix is
/// singular nevertheless.
pub(crate) fn solve(mut m: Vec<f64>, n: usize, ridge: f64, b: &mut [f64]) -> bool {
    let columns = b.len() / n.max(1);
    let mean = (0..n).map(|i| m[i * n + i]).sum::<f64>() / n.max(1) as f64;
    (0..n).for_each(|i| m[i * n + i] += ridge * mean);
    // M = L Lᵀ, row by row of L, and L Y = B along with it.
    for i in 0..n {
        for j in 0..=i {
            let (before, row) = m.split_at_mut(i * n);
            let other = if j < i { &before[j * n..j * n + j] } else { &[][..] };
            let dot: f64 = match j < i {
                true => row[..j].iter().zip(other).map(|(a, b)| a * b).sum(),
                false => row[..j].iter().map(|a| a * a).sum(),
            };
            let rest = row[j] - dot;
            row[j] = match j < i {
                true => rest / before[j * n + j],
                false if rest > 0.0 => rest.sqrt(),
                false => return false,
            };
        }
        let (done, line) = b.split_at_mut(i * columns);
        for (j, done) in done.chunks_exact(columns).enumerate() {
            let factor = m[i * n + j];
            line[..columns].iter_mut().zip(done).for_each(|(y, x)| *y -= factor * x);
        }
        let factor = m[i * n + i];
        line[..columns].iter_mut().for_each(|y| *y /= factor);
    }
    // Lᵀ X = Y, from the last row.
    for i in (0..n).rev() {
        let (line, done) = b[i * columns..].split_at_mut(columns);
        for (below, done) in done.chunks_exact(columns).enumerate() {
            let factor = m[(i + 1 + below) * n + i];
            line.iter_mut().zip(done).for_each(|(x, y)| *x -= factor * y);
        }
        let factor = m[i * n + i];
        line.iter_mut().for_each(|x| *x /= factor);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    #[test]
    fn the_solution_solves() {
        let mut random = Random::new(4);
        for _ in 0..40 {
            let (n, columns, rows) = (1 + random.below(12), 1 + random.below(5), 20);
            let x: Vec<f64> = (0..rows * n).map(|_| random.normal()).collect();
            let product = |i: usize, j: usize| (0..rows).map(|r| x[r * n + i] * x[r * n + j]).sum::<f64>();
            let m: Vec<f64> = (0..n * n).map(|at| product(at / n, at % n)).collect();
            let b: Vec<f64> = (0..n * columns).map(|_| random.normal()).collect();
            let mut found = b.clone();
            assert!(solve(m.clone(), n, 0.1, &mut found));
            let lambda = 0.1 * (0..n).map(|i| m[i * n + i]).sum::<f64>() / n as f64;
            for i in 0..n {
                for c in 0..columns {
                    let sum: f64 = (0..n).map(|j| m[i * n + j] * found[j * columns + c]).sum();
                    assert!((sum + lambda * found[i * columns + c] - b[i * columns + c]).abs() < 1e-8);
                }
            }
        }
        assert!(!solve(vec![0.0; 4], 2, 0.1, &mut [1.0, 1.0]));
    }
}
