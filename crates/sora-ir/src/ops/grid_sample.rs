//! Sampling of images at given positions.

use serde::{Deserialize, Serialize};
use sora_tensor::{DType, Tensor};

use super::resample::{Interpolation, cubic};
use super::{attrs, for_each_index, room};
use crate::case::{Arg, Case, Gen};
use crate::{Dim, EvalCx, InferCx, Mismatch, OpDef, TensorType, ensure};

/// What lies outside of a sampled image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Outside {
    /// Zeros.
    Zeros,
    /// The nearest element.
    Border,
    /// The image mirrored at its border, again and again.
    Reflection,
}

attrs! {
    /// An image `[N, C, D1…Dn]` sampled at the positions of a grid `[N, E1…En, n]`: `[N, C, E1…En]`. A position lists
    /// the last axis first; -1 and 1 are the borders. Source: ONNX GridSample.
    pub struct GridSample {
        /// How positions between elements get their value.
        interpolation: Interpolation,
        /// What positions outside of the image see.
        outside: Outside,
        /// Whether the borders are the centres of the outermost elements rather than their edges.
        align_corners: bool,
    }
}

/// `x` mirrored at `low` and `high` until it lies between them.
fn reflect(x: f64, low: f64, high: f64) -> f64 {
    let width = high - low;
    if (low..=high).contains(&x) || width <= 0.0 {
        return x.clamp(low, high);
    }
    let past = (x - low).rem_euclid(2.0 * width);
    low + if past <= width { past } else { 2.0 * width - past }
}

impl GridSample {
    /// The position in an axis of `extent` that a coordinate stands for, computed in the grid's precision, since the
    /// nearest element of a position halfway depends on it.
    fn position(&self, coordinate: f64, extent: usize, dtype: DType) -> f64 {
        let x = match (dtype, self.align_corners) {
            (DType::F64, true) => (coordinate + 1.0) / 2.0 * (extent as f64 - 1.0),
            (DType::F64, false) => ((coordinate + 1.0) * extent as f64 - 1.0) / 2.0,
            (_, true) => f64::from((coordinate as f32 + 1.0) / 2.0 * (extent as f32 - 1.0)),
            (_, false) => f64::from(((coordinate as f32 + 1.0) * extent as f32 - 1.0) / 2.0),
        };
        let x = if self.interpolation == Interpolation::Nearest { x.round_ties_even() } else { x };
        let (low, high) = self.border(extent);
        match self.outside {
            _ if (low..=high).contains(&x) => x,
            Outside::Zeros => x,
            Outside::Border => x.clamp(0.0, (extent as f64 - 1.0).max(0.0)),
            Outside::Reflection => reflect(x, low, high),
        }
    }

    fn border(&self, extent: usize) -> (f64, f64) {
        let last = extent as f64 - 1.0;
        if self.align_corners { (0.0, last) } else { (-0.5, last + 0.5) }
    }

    /// The element of an axis of `extent` that position `at` shows; `None` for zero.
    fn element(&self, at: i64, extent: usize) -> Option<usize> {
        let last = i64::try_from(extent).unwrap_or(i64::MAX) - 1;
        let at = match self.outside {
            Outside::Zeros => at,
            Outside::Border => at.clamp(0, last.max(0)),
            Outside::Reflection => {
                let (low, high) = self.border(extent);
                (reflect(at as f64, low, high) as i64).clamp(0, last.max(0))
            }
        };
        usize::try_from(at).ok().filter(|&at| at < extent)
    }

    /// The elements along one axis that the value at `x` is made of, with their weights.
    fn taps(&self, x: f64, extent: usize) -> Vec<(usize, f64)> {
        let first = x.floor();
        let (low, high) = match self.interpolation {
            Interpolation::Nearest => (0, 0),
            Interpolation::Linear => (0, 1),
            Interpolation::Cubic => (-1, 2),
        };
        let tap = |step: i64| {
            let distance = x - first - step as f64;
            let weight = match self.interpolation {
                Interpolation::Nearest => 1.0,
                Interpolation::Linear => 1.0 - distance.abs(),
                Interpolation::Cubic => cubic(distance, -0.75),
            };
            let at = self.element((first as i64).saturating_add(step), extent)?;
            Some((at, if weight.is_nan() { 0.0 } else { weight }))
        };
        (low..=high).filter_map(tap).collect()
    }
}

impl OpDef for GridSample {
    fn infer(&self, cx: &InferCx) -> Result<Vec<TensorType>, Mismatch> {
        cx.arity(2..=2)?;
        let (x, grid) = (cx.ty(0)?, cx.ty(1)?);
        ensure!(x.dtype.is_float() && grid.dtype.is_float(), "takes floats, found {x} and {grid}");
        let spatial = x.rank().saturating_sub(2);
        ensure!(
            spatial > 0 && grid.rank() == x.rank(),
            "image {x} and grid {grid} must have the same rank of at least 3"
        );
        ensure!(
            grid.shape[0].compatible(&x.shape[0]) && grid.shape[spatial + 1].compatible(&Dim::from(spatial)),
            "grid {grid} must have the batch of image {x} and positions of {spatial} coordinates"
        );
        let batch = x.shape[0].unify(&grid.shape[0]).unwrap_or_else(|| x.shape[0].clone());
        let mut shape = vec![batch, x.shape[1].clone()];
        shape.extend_from_slice(&grid.shape[1..=spatial]);
        Ok(vec![TensorType { dtype: x.dtype, shape }])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, Mismatch> {
        let (dtype, shape) = cx.output(self)?;
        let (x, grid) = (cx.get(0)?, cx.get(1)?);
        let (values, positions) = (x.to_f64s(), grid.to_f64s());
        let (extents, spatial) = (&x.shape()[2..], x.rank() - 2);
        let plane: usize = extents.iter().product();
        let points: usize = shape[2..].iter().product();
        let mut out: Vec<f64> = room(&shape)?;
        out.resize(shape.iter().product(), 0.0);
        for point in 0..shape[0] * points {
            let (n, at) = (point / points, point % points);
            let position = &positions[point * spatial..][..spatial];
            let taps: Vec<_> = (0..spatial)
                .map(|axis| {
                    let position = self.position(position[spatial - 1 - axis], extents[axis], grid.dtype());
                    self.taps(position, extents[axis])
                })
                .collect();
            let counts: Vec<usize> = taps.iter().map(Vec::len).collect();
            for_each_index(&counts, |index| {
                let (mut offset, mut weight) = (0, 1.0);
                for (axis, &i) in index.iter().enumerate() {
                    offset = offset * extents[axis] + taps[axis][i].0;
                    weight *= taps[axis][i].1;
                }
                for c in 0..shape[1] {
                    let channel = n * shape[1] + c;
                    out[channel * points + at] += weight * values[channel * plane + offset];
                }
            });
        }
        Ok(vec![Tensor::from_f64s(dtype, &shape, &out)?])
    }

    fn cases(g: &mut Gen) -> Vec<Case> {
        let mut cases = Vec::new();
        for interpolation in [Interpolation::Nearest, Interpolation::Linear, Interpolation::Cubic] {
            for outside in [Outside::Zeros, Outside::Border, Outside::Reflection] {
                let spatial = g.pick(&[2, 2, 1, 3]);
                let list = |g: &mut Gen| (0..spatial).map(|_| g.size(1, 6)).collect::<Vec<_>>();
                let (batch, dtype) = (g.size(1, 2), g.pick(&[DType::F32, DType::F32, DType::F64]));
                let x = [vec![batch, g.size(1, 4)], list(g)].concat();
                let grid = [vec![batch], list(g), vec![spatial]].concat();
                let op = GridSample { interpolation, outside, align_corners: g.flag() };
                let grid = Arg::Var(g.uniform(DType::F32, &grid, -1.5, 1.5));
                cases.push(Case::new(op, [Arg::Var(g.tensor(dtype, &x)), grid]));
            }
        }
        cases
    }
}

#[cfg(test)]
mod tests {
    use super::super::movement::run;
    use super::*;

    fn sample(op: GridSample, grid: &[f32]) -> Vec<f32> {
        let x = Tensor::from_slice(&[1, 1, 3], &[10f32, 20., 30.]).unwrap();
        let grid = Tensor::from_slice(&[1, grid.len(), 1], grid).unwrap();
        run(op, &[&x, &grid]).unwrap().to_f32s()
    }

    #[test]
    fn positions_follow_the_borders() {
        let op = |outside, align_corners| GridSample {
            interpolation: Interpolation::Linear,
            outside,
            align_corners,
        };
        let grid = [-1.0, -0.5, 0.0, 1.0, 2.0];
        assert_eq!(sample(op(Outside::Zeros, true), &grid), [10.0, 15.0, 20.0, 30.0, 0.0]);
        assert_eq!(sample(op(Outside::Zeros, false), &grid), [5.0, 12.5, 20.0, 15.0, 0.0]);
        assert_eq!(sample(op(Outside::Border, false), &grid), [10.0, 12.5, 20.0, 30.0, 30.0]);
        assert_eq!(sample(op(Outside::Reflection, true), &grid), [10.0, 15.0, 20.0, 30.0, 20.0]);
    }

    #[test]
    fn positions_that_are_no_numbers_do_not_panic() {
        for interpolation in [Interpolation::Nearest, Interpolation::Linear, Interpolation::Cubic] {
            for outside in [Outside::Zeros, Outside::Border, Outside::Reflection] {
                for align_corners in [false, true] {
                    let op = GridSample { interpolation, outside, align_corners };
                    sample(op, &[f32::NAN, f32::INFINITY, -f32::INFINITY, 1e30, -1e30]);
                }
            }
        }
        let op =
            GridSample { interpolation: Interpolation::Cubic, outside: Outside::Border, align_corners: true };
        let empty = Tensor::zeros(DType::F32, &[1, 1, 0]).unwrap();
        let grid = Tensor::from_slice(&[1, 1, 1], &[0f32]).unwrap();
        assert_eq!(run(op, &[&empty, &grid]).unwrap().to_f32s(), [0.0]);
    }
}
