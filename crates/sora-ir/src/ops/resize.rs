//! Resizing of images and other grids.

use serde::{Deserialize, Serialize};
use sora_tensor::{DType, Tensor};

use super::movement::{distinct_axes, leading, list_extent, remap, signed};
use super::resample::{Axis, Coordinates, Interpolation, Rounding, Taps, Weights};
use super::{attrs, room};
use crate::case::{Arg, Case, Gen};
use crate::{
    Dim, EvalCx, GradCx, Gradients, InferCx, Mismatch, OpDef, Operand, QuantRule, Real, TensorType, TieCx,
    ensure,
};

/// What extents that are asked for mean where they would distort the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Aspect {
    /// Every axis gets its extent.
    Stretch,
    /// All resized axes get the scale of the one that grows least.
    NotLarger,
    /// All resized axes get the scale of the one that grows most.
    NotSmaller,
}

attrs! {
    /// A tensor resized along some axes by interpolation. Inputs: x, region? (begins, then ends, one each per resized
    /// axis, between 0 and 1; for `CropAndResize` only), and either scales (floats) or sizes (integers), one per
    /// resized axis. An extent is `floor(extent · scale)`. Integers are cut, not rounded. Source: ONNX Resize.
    pub struct Resize {
        /// How positions between elements get their value.
        interpolation: Interpolation,
        /// Which positions of the input the elements of the output stand for.
        coordinates: Coordinates,
        /// The element that `Nearest` takes.
        rounding: Rounding,
        /// The resized axes; empty for all.
        axes: Vec<i64>,
        /// Whether the window of interpolation widens where the output is smaller than the input.
        antialias: bool,
        /// The free coefficient of cubic interpolation.
        coefficient: Real,
        /// Whether elements outside of the input weigh nothing, rather than repeat the border.
        exclude_outside: bool,
        /// The value of positions outside of the input, for `CropAndResize`.
        extrapolation: Real,
        /// What sizes mean where they would distort the image.
        aspect: Aspect,
    }
}

/// The extent that a scale gives, in single precision as in other runtimes; `None` when it cannot be expressed.
fn scaled(dim: &Dim, scale: f32) -> Option<Dim> {
    if let Some(extent) = dim.known() {
        return Some(Dim::from((extent as f32 * scale).floor() as i64));
    }
    let parts =
        [1i64, 2, 4, 8, 16, 32, 64].into_iter().find(|&parts| (scale * parts as f32).fract() == 0.0)?;
    let times = (scale * parts as f32) as i64;
    (times < 1 << 20).then(|| (dim.clone() * Dim::from(times)).floor_div(parts))
}

impl Resize {
    /// A resize of all axes: what ONNX does when it is told nothing but the mode.
    pub fn new(interpolation: Interpolation, coordinates: Coordinates) -> Self {
        Resize {
            interpolation,
            coordinates,
            rounding: Rounding::PreferFloor,
            axes: Vec::new(),
            antialias: false,
            coefficient: Real(-0.75),
            exclude_outside: false,
            extrapolation: Real(0.0),
            aspect: Aspect::Stretch,
        }
    }

    /// The resized axes of a tensor of `rank`.
    fn resized(&self, rank: usize) -> Result<Vec<usize>, Mismatch> {
        match self.axes.is_empty() {
            true => Ok((0..rank).collect()),
            false => distinct_axes(&self.axes, rank),
        }
    }

    /// The one scale of all resized axes under [`Aspect::NotLarger`] and [`Aspect::NotSmaller`].
    fn common_scale(&self, extents: &[usize], sizes: &[usize]) -> f64 {
        let scales = sizes.iter().zip(extents).map(|(&size, &extent)| size as f64 / extent as f64);
        match self.aspect {
            Aspect::NotLarger => scales.fold(f64::INFINITY, f64::min),
            _ => scales.fold(0.0, f64::max),
        }
    }

    /// The shape after resizing to sizes.
    fn sized(&self, cx: &InferCx, axes: &[usize]) -> Result<Vec<Dim>, Mismatch> {
        let x = cx.ty(0)?;
        let mut shape = x.shape.clone();
        let wanted = cx.content(3);
        for (i, &axis) in axes.iter().enumerate() {
            shape[axis] = wanted.and_then(|w| w.get(i).cloned()).unwrap_or_else(|| cx.unknown(axis));
            ensure!(
                shape[axis].constant().is_none_or(|n| n >= 0),
                "axis {axis} cannot get size {}",
                shape[axis]
            );
        }
        if self.aspect != Aspect::Stretch {
            let known = |dims: &[Dim]| axes.iter().map(|&a| dims[a].known()).collect::<Option<Vec<_>>>();
            let scale = match (known(&x.shape), known(&shape)) {
                (Some(extents), Some(sizes)) => Some((self.common_scale(&extents, &sizes), extents)),
                _ => None,
            };
            for (i, &axis) in axes.iter().enumerate() {
                shape[axis] = match &scale {
                    Some((scale, extents)) => Dim::from((scale * extents[i] as f64 + 0.5).floor() as i64),
                    None => cx.unknown(axis),
                };
            }
        }
        Ok(shape)
    }

    /// What each element along each axis is made of when shape `before` becomes `after`; `None` for an axis that stays
    /// as it is. `given` are the region, scales and sizes that the operator gets.
    ///
    /// # Errors
    /// [`Mismatch`] when memory does not suffice.
    pub fn taps(
        &self,
        before: &[usize],
        after: &[usize],
        given: [Option<&Tensor>; 3],
    ) -> Result<Vec<Option<Vec<Taps>>>, Mismatch> {
        let axes = self.resized(before.len())?;
        let [regions, scales, sizes] = given;
        let (regions, scales) = (regions.map(Tensor::to_f64s), scales.map(Tensor::to_f64s));
        let common = sizes.filter(|_| self.aspect != Aspect::Stretch).map(|sizes| {
            let sizes: Vec<usize> =
                sizes.to_i64s().into_iter().map(|v| usize::try_from(v).unwrap_or(0)).collect();
            let extents: Vec<usize> = axes.iter().map(|&axis| before[axis]).collect();
            self.common_scale(&extents, &sizes)
        });
        let weights = Weights {
            interpolation: self.interpolation,
            rounding: self.rounding,
            antialias: self.antialias,
            coefficient: f64::from(self.coefficient.0),
            exclude_outside: self.exclude_outside,
        };
        let mut all = vec![None; before.len()];
        for (i, &index) in axes.iter().enumerate() {
            let (input, output) = (before[index], after[index]);
            let ratio = output as f64 / input as f64;
            let axis = Axis {
                input,
                output,
                scale: common.or_else(|| Some(*scales.as_ref()?.get(i)?)).unwrap_or(ratio),
                region: match &regions {
                    Some(r) if r.len() == 2 * axes.len() => (r[i], r[axes.len() + i]),
                    _ => (0.0, 1.0),
                },
            };
            let mut taps: Vec<Taps> = Vec::new();
            ensure!(taps.try_reserve_exact(output).is_ok(), "an extent of {output} does not fit in memory");
            taps.extend((0..output).map(|at| match axis.position(self.coordinates, at) {
                Some(x) => weights.taps(x, input, axis.scale),
                None => Taps::new(),
            }));
            let same = input == output && taps.iter().enumerate().all(|(at, taps)| taps[..] == [(at, 1.0)]);
            all[index] = if same { None } else { Some(taps) };
        }
        Ok(all)
    }
}

/// Replaces one axis by weighted sums of its elements; `fill` stands where there are none.
fn interpolate(
    values: &[f64],
    shape: &mut [usize],
    axis: usize,
    taps: &[Taps],
    fill: f64,
) -> Result<Vec<f64>, Mismatch> {
    let inner: usize = shape[axis + 1..].iter().product();
    let extent = std::mem::replace(&mut shape[axis], taps.len());
    let mut out = room(shape)?;
    for block in values.chunks_exact(extent * inner) {
        for taps in taps {
            let row = |i: usize| taps.iter().map(|&(at, weight)| weight * block[at * inner + i]).sum::<f64>();
            out.extend((0..inner).map(|i| if taps.is_empty() { fill } else { row(i) }));
        }
    }
    Ok(out)
}

impl OpDef for Resize {
    fn infer(&self, cx: &InferCx) -> Result<Vec<TensorType>, Mismatch> {
        cx.arity(3..=4)?;
        let x = cx.ty(0)?;
        let axes = self.resized(x.rank())?;
        let nearest = self.interpolation == Interpolation::Nearest;
        ensure!(nearest || x.dtype != DType::Bool, "interpolates numbers, found {x}");
        ensure!(!(nearest && self.antialias), "the nearest element is never antialiased");
        let fits = |ty: &TensorType, count: usize| {
            ty.dtype.is_float() && ty.rank() == 1 && ty.shape[0].compatible(&Dim::from(count))
        };
        let crop = self.coordinates == Coordinates::CropAndResize;
        match cx.opt(1) {
            Some(region) => ensure!(
                !crop || fits(region, 2 * axes.len()),
                "region {region} does not give begin and end of {} axes",
                axes.len()
            ),
            None => ensure!(!crop, "the region to crop is missing"),
        }
        let shape = match (cx.opt(2), cx.opt(3)) {
            (Some(scales), None) => {
                ensure!(fits(scales, axes.len()), "scales {scales} do not fit {} axes of {x}", axes.len());
                let known = cx.constant(2).map(Tensor::to_f32s);
                let mut shape = x.shape.clone();
                for (i, &axis) in axes.iter().enumerate() {
                    let scale = known.as_ref().and_then(|k| k.get(i).copied());
                    ensure!(
                        scale.is_none_or(|s| s > 0.0 && s.is_finite()),
                        "axis {axis} cannot be scaled by {scale:?}"
                    );
                    let extent = scale.and_then(|scale| scaled(&x.shape[axis], scale));
                    shape[axis] = extent.unwrap_or_else(|| cx.unknown(axis));
                }
                shape
            }
            (None, Some(_)) => {
                let count = list_extent(cx, 3)?;
                ensure!(
                    count.compatible(&Dim::from(axes.len())),
                    "{count} sizes do not fit {} axes of {x}",
                    axes.len()
                );
                self.sized(cx, &axes)?
            }
            _ => return Err(Mismatch::new("takes either scales or sizes")),
        };
        for (axis, (before, after)) in x.shape.iter().zip(&shape).enumerate() {
            let grows = before.constant() == Some(0) && after.constant().is_some_and(|n| n > 0);
            ensure!(!grows, "axis {axis} of {x} is empty and cannot get the extent {after}");
        }
        Ok(vec![TensorType { dtype: x.dtype, shape }])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, Mismatch> {
        let (x, (dtype, shape)) = (cx.get(0)?, cx.output(self)?);
        if shape.contains(&0) {
            return Ok(vec![Tensor::zeros(dtype, &shape)?]);
        }
        let taps = self.taps(x.shape(), &shape, [cx.opt(1), cx.opt(2), cx.opt(3)])?;
        let outside = taps.iter().flatten().flatten().any(Vec::is_empty);
        if self.interpolation == Interpolation::Nearest && !outside {
            // Elements only move: no dtype loses precision.
            let visited = leading(x.rank(), |axis| taps[axis].is_some());
            let source = |axis: usize, at: usize| taps[axis].as_ref().map_or(at, |taps| taps[at][0].0);
            return Ok(vec![remap(x, &shape, visited, source)?]);
        }
        let (mut values, mut extents) = (x.to_f64s(), x.shape().to_vec());
        for (axis, taps) in taps.iter().enumerate() {
            if let Some(taps) = taps {
                let fill = f64::from(self.extrapolation.0);
                values = interpolate(&values, &mut extents, axis, taps, fill)?;
            }
        }
        Ok(vec![Tensor::from_f64s(dtype, &shape, &values)?])
    }

    /// What flows back along an axis is the product with the matrix of its weights, the other way round. Where positions lie, by region
    /// and scales, has no gradient.
    fn grad(&self, cx: &mut GradCx) -> Gradients {
        cx.refuse(1, "the region")?;
        cx.refuse(2, "the scales")?;
        let mut grad = cx.grad()?;
        let (before, mut shape) = (cx.shape(cx.input(0)?)?, cx.shape(grad)?);
        let given = [1, 2].map(|slot| cx.opt(slot).map(|v| cx.graph.const_value(v).cloned()));
        ensure!(given.iter().all(|g| *g != Some(None)), "has no gradient where scales are computed");
        let [region, scales] = &given.map(Option::flatten);
        let sizes =
            &cx.opt(3).map(|sizes| cx.numbers(sizes)).transpose()?.map(|sizes| Tensor::vector(&sizes));
        let taps = self.taps(&before, &shape, [region.as_ref(), scales.as_ref(), sizes.as_ref()])?;
        for (axis, taps) in taps.iter().enumerate() {
            let Some(taps) = taps else { continue };
            let mut weights = vec![0f64; taps.len() * before[axis]];
            for (row, taps) in weights.chunks_exact_mut(before[axis].max(1)).zip(taps) {
                taps.iter().for_each(|&(at, weight)| row[at] += weight);
            }
            let weights = Tensor::from_f64s(cx.dtype(grad), &[taps.len(), before[axis]], &weights)?;
            let weights = cx.constant(weights);
            let mut perm: Vec<usize> = (0..shape.len()).collect();
            perm.swap(axis, shape.len() - 1);
            let last = cx.transpose(grad, &perm)?;
            let product = cx.mat_mul(last, weights)?;
            grad = cx.transpose(product, &perm)?;
            shape[axis] = before[axis];
        }
        Ok(vec![Some(grad), None, None, None])
    }

    fn quant(&self) -> QuantRule {
        match (self.interpolation, self.coordinates) {
            (_, Coordinates::CropAndResize) => QuantRule::Float,
            (Interpolation::Nearest, _) => QuantRule::Passthrough,
            _ => QuantRule::Float,
        }
    }

    fn ties(&self, cx: &mut TieCx) -> Result<(), Mismatch> {
        let resized = self.resized(cx.ty(0)?.rank())?;
        let scales: Vec<f32> = cx.constant(2).map(Tensor::to_f32s).unwrap_or_default();
        // A list of all sizes can be written anew for another number of channels.
        let sized = cx.opt(3).is_some() && self.axes.is_empty() && self.aspect == Aspect::Stretch;
        let stays: Vec<bool> = (resized.iter().enumerate())
            .map(|(at, &axis)| {
                let extents = [Operand::Input(0), Operand::Output(0)].map(|of| cx.extent(of, axis));
                scales.get(at) == Some(&1.0) || sized && cx.content(3).is_some() && extents[0] == extents[1]
            })
            .collect();
        let crops = self.coordinates == Coordinates::CropAndResize;
        cx.same_axes(|axis| match resized.iter().position(|&a| a == axis) {
            Some(at) => crops || !stays[at],
            None => false,
        })
    }

    fn cases(g: &mut Gen) -> Vec<Case> {
        use Coordinates::*;
        let mut cases = Vec::new();
        for interpolation in [Interpolation::Nearest, Interpolation::Linear, Interpolation::Cubic] {
            for coordinates in
                [HalfPixel, HalfPixelSymmetric, PytorchHalfPixel, AlignCorners, Asymmetric, CropAndResize]
            {
                let nearest = interpolation == Interpolation::Nearest;
                let rounding = [Rounding::PreferFloor, Rounding::PreferCeil, Rounding::Floor, Rounding::Ceil];
                let mut op = Resize {
                    rounding: g.pick(&rounding),
                    antialias: !nearest && g.flag(),
                    coefficient: Real(g.pick(&[-0.75, -0.5])),
                    exclude_outside: !nearest && g.flag(),
                    extrapolation: Real(g.pick(&[0.0, 10.0])),
                    aspect: g.pick(&[
                        Aspect::Stretch,
                        Aspect::Stretch,
                        Aspect::NotLarger,
                        Aspect::NotSmaller,
                    ]),
                    ..Resize::new(interpolation, coordinates)
                };
                // Images most often, also lines and volumes, with and without batch and channels.
                let spatial = g.pick(&[2, 2, 2, 1, 3]);
                let mut shape: Vec<usize> = (0..spatial).map(|_| g.size(1, 9)).collect();
                shape.splice(0..0, [g.size(1, 2), g.pick(&[1, 3, 8, 19, 32])]);
                let listed = g.flag();
                if listed {
                    let rank = signed(shape.len());
                    op.axes = (2..rank).map(|axis| if g.flag() { axis } else { axis - rank }).collect();
                }
                let count = if listed { spatial } else { shape.len() };
                let region = match coordinates {
                    CropAndResize => {
                        let begins = (0..count).map(|_| g.real(-0.2, 0.4));
                        let begins: Vec<f64> = begins.collect();
                        let ends = (0..count).map(|_| g.real(0.6, 1.2)).collect();
                        let region = [begins, ends].concat();
                        Arg::Const(
                            Tensor::from_f64s(DType::F32, &[2 * count], &region).expect("a short list"),
                        )
                    }
                    _ => Arg::Absent,
                };
                let fixed = shape.len() - spatial;
                let inputs = if g.flag() {
                    op.aspect = Aspect::Stretch;
                    let mut scales: Vec<f32> =
                        (0..spatial).map(|_| g.pick(&[2.0, 2.0, 3.0, 0.5, 0.6, 1.7, 1.0])).collect();
                    for (scale, &extent) in scales.iter_mut().zip(&shape[fixed..]) {
                        *scale = if extent == 1 { scale.max(1.0) } else { *scale };
                    }
                    if !listed {
                        scales.splice(0..0, [1.0, 1.0]);
                    }
                    vec![region, Arg::Const(Tensor::vector(&scales))]
                } else {
                    let mut sizes: Vec<i64> = (0..spatial).map(|_| signed(g.size(1, 12))).collect();
                    if !listed {
                        op.aspect = Aspect::Stretch;
                        sizes.splice(0..0, [signed(shape[0]), signed(shape[1])]);
                    }
                    vec![region, Arg::Absent, Arg::Const(Tensor::vector(&sizes))]
                };
                let dtype = g.pick(&[DType::F32, DType::F32, DType::F32, DType::F16, DType::U8]);
                let dtype = if dtype == DType::U8 && !nearest { DType::F32 } else { dtype };
                let x = Arg::Var(g.tensor(dtype, &shape));
                cases.push(Case::new(op, [vec![x], inputs].concat()));
            }
        }
        cases
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resize(op: &Resize, x: &[f32], inputs: [Option<Tensor>; 3]) -> Result<Vec<f32>, Mismatch> {
        let x = Tensor::vector(x);
        let [region, scales, sizes] = &inputs;
        let inputs = [Some(&x), region.as_ref(), scales.as_ref(), sizes.as_ref()];
        let op = crate::Op::from(op.clone());
        Ok(op.eval(&EvalCx { inputs: &inputs })?.remove(0).to_f32s())
    }

    #[test]
    fn coordinates_and_weights_follow_their_formulas() {
        let scale = |s: f32| [None, Some(Tensor::vector(&[s])), None];
        let size = |n: i64| [None, None, Some(Tensor::vector(&[n]))];
        let linear = |coordinates| Resize::new(Interpolation::Linear, coordinates);
        let run = |op: &Resize, inputs| resize(op, &[0.0, 10.0, 20.0, 30.0], inputs).unwrap();
        assert_eq!(
            run(&linear(Coordinates::HalfPixel), scale(2.0)),
            [0.0, 2.5, 7.5, 12.5, 17.5, 22.5, 27.5, 30.0]
        );
        assert_eq!(
            run(&linear(Coordinates::AlignCorners), size(7)),
            [0.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0]
        );
        assert_eq!(
            run(&linear(Coordinates::Asymmetric), scale(2.0)),
            [0.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 30.0]
        );
        assert_eq!(run(&linear(Coordinates::PytorchHalfPixel), size(1)), [0.0]);
        assert_eq!(run(&linear(Coordinates::HalfPixel), size(1)), [15.0]);
        let antialias = Resize { antialias: true, ..linear(Coordinates::HalfPixel) };
        assert_eq!(run(&antialias, scale(0.5)), [6.25, 23.75]);
        let crop = Resize { extrapolation: Real(-1.0), ..linear(Coordinates::CropAndResize) };
        let region = Some(Tensor::vector(&[0.5f32, 1.5]));
        assert_eq!(run(&crop, [region, None, Some(Tensor::vector(&[3i64]))]), [15.0, 30.0, -1.0]);
        let nearest =
            |rounding| Resize { rounding, ..Resize::new(Interpolation::Nearest, Coordinates::HalfPixel) };
        assert_eq!(run(&nearest(Rounding::PreferFloor), size(2)), [0.0, 20.0]);
        assert_eq!(run(&nearest(Rounding::PreferCeil), size(2)), [10.0, 30.0]);
    }

    #[test]
    fn symbolic_extents_follow_scales() {
        let (n, half) = (Dim::symbol("N"), |d: &Dim| d.floor_div(2));
        assert_eq!(scaled(&n, 2.0), Some(n.clone() * Dim::from(2usize)));
        assert_eq!(scaled(&n, 1.0), Some(n.clone()));
        assert_eq!(scaled(&n, 0.5), Some(half(&n)));
        assert_eq!(scaled(&n, 0.6), None);
        assert_eq!(scaled(&Dim::from(10usize), 0.7), Some(Dim::from(7usize)));
    }

    #[test]
    fn hostile_scales_and_sizes_are_refused() {
        let op = Resize::new(Interpolation::Linear, Coordinates::HalfPixel);
        for scale in [0.0, -1.0, f32::NAN, f32::INFINITY, 1e30] {
            assert!(resize(&op, &[1.0], [None, Some(Tensor::vector(&[scale])), None]).is_err(), "{scale}");
        }
        for size in [-1, i64::MAX, i64::MIN] {
            assert!(resize(&op, &[1.0], [None, None, Some(Tensor::vector(&[size]))]).is_err(), "{size}");
        }
        assert!(resize(&op, &[], [None, None, Some(Tensor::vector(&[2i64]))]).is_err());
        assert!(resize(&op, &[1.0], [None, None, None]).is_err());
        let region = |v: f32| Some(Tensor::vector(&[v, v]));
        let crop = Resize::new(Interpolation::Cubic, Coordinates::CropAndResize);
        for value in [f32::NAN, f32::INFINITY, 1e30] {
            let sizes = Some(Tensor::vector(&[2i64]));
            assert_eq!(resize(&crop, &[1.0, 2.0], [region(value), None, sizes]).unwrap(), [0.0, 0.0]);
        }
    }
}
