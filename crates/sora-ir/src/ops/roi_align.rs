//! Pooling of regions of an image at exact positions.

use sora_tensor::{DType, Tensor};

use super::{attrs, room};
use crate::case::{Arg, Case, Gen};
use crate::{Dim, EvalCx, InferCx, Mismatch, OpDef, Real, TensorType, ensure};

attrs! {
    /// Regions of images brought to one size: `[N, C, H, W]`, `R` regions `[R, 4]` (x1, y1, x2, y2) and the image of
    /// each (`[R]`, integers) give `[R, C, height, width]`. A region is cut into cells; each is the mean or the maximum
    /// of bilinear samples. Source: ONNX RoiAlign, whose maximum is that of the weighted neighbours of the samples.
    pub struct RoiAlign {
        /// Rows of the result.
        height: usize,
        /// Columns of the result.
        width: usize,
        /// Samples per cell along each axis; 0 for as many as a cell has elements.
        samples: usize,
        /// From the coordinates of regions to those of the image.
        scale: Real,
        /// Whether the maximum rather than the mean is taken.
        max: bool,
        /// Whether elements have centres: shifts regions by half an element. Without it regions have at least one.
        half_pixel: bool,
    }
}

/// The most samples along one axis of a cell: what a region far larger than any image would take without end.
const MOST_SAMPLES: f64 = 4096.0;

/// The elements before and after position `at` of an axis, with the weight of the latter; `None` outside.
fn beside(at: f64, extent: usize) -> Option<(usize, usize, f64)> {
    if !(-1.0..=extent as f64).contains(&at) {
        return None;
    }
    let at = at.max(0.0);
    let (low, last) = (at as usize, extent.checked_sub(1)?);
    Some(if low >= last { (last, last, 0.0) } else { (low, low + 1, at - low as f64) })
}

/// Checks images, regions and the image of each region; gives the number of regions.
pub(super) fn regions<'a>(cx: &InferCx<'a>, columns: usize) -> Result<(&'a TensorType, Dim), Mismatch> {
    let (x, rois) = (cx.ty(0)?, cx.ty(1)?);
    ensure!(x.dtype.is_float() && x.rank() == 4, "pools images of floats [N, C, H, W], found {x}");
    ensure!(
        rois.dtype == x.dtype && rois.rank() == 2 && rois.shape[1].compatible(&Dim::from(columns)),
        "regions {rois} must be {} of {columns} columns",
        x.dtype
    );
    Ok((x, rois.shape[0].clone()))
}

impl OpDef for RoiAlign {
    fn infer(&self, cx: &InferCx) -> Result<Vec<TensorType>, Mismatch> {
        cx.arity(3..=3)?;
        let (x, mut count) = regions(cx, 4)?;
        let images = cx.ty(2)?;
        ensure!(
            images.dtype.is_int() && images.rank() == 1 && images.shape[0].compatible(&count),
            "images {images} must be one integer for each of {count} regions"
        );
        ensure!(self.height > 0 && self.width > 0, "the result has no elements: {self:?}");
        count = count.unify(&images.shape[0]).unwrap_or(count);
        let shape = vec![count, x.shape[1].clone(), Dim::from(self.height), Dim::from(self.width)];
        Ok(vec![TensorType { dtype: x.dtype, shape }])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, Mismatch> {
        let (dtype, shape) = cx.output(self)?;
        let x = cx.get(0)?;
        let (values, rois, images) = (x.to_f64s(), cx.get(1)?.to_f64s(), cx.get(2)?.to_i64s());
        let [batch, channels, height, width] = x.shape() else { return Err(Mismatch::new("takes images")) };
        let (batch, channels, height, width) = (*batch, *channels, *height, *width);
        let (scale, shift) = (f64::from(self.scale.0), if self.half_pixel { 0.5 } else { 0.0 });
        let mut out = room(&shape)?;
        for (roi, &image) in rois.chunks_exact(4).zip(&images) {
            let image = usize::try_from(image).ok().filter(|&i| i < batch);
            let image =
                image.ok_or_else(|| Mismatch::new(format!("a region is in none of {batch} images")))?;
            // Begin, cell and samples of the rows, then of the columns.
            let along = |axis: usize, cells: usize| {
                let (begin, end) = (roi[1 - axis] * scale - shift, roi[3 - axis] * scale - shift);
                let extent = if self.half_pixel { end - begin } else { (end - begin).max(1.0) };
                let cell = extent / cells as f64;
                let samples = if self.samples > 0 { self.samples as f64 } else { cell.ceil().max(0.0) };
                let few = samples <= MOST_SAMPLES;
                ensure!(few, "a region takes {samples} samples a cell along one axis");
                let samples = samples as usize;
                let positions = (0..cells * samples).map(|i| {
                    let (at, sample) = ((i / samples) as f64, (i % samples) as f64);
                    begin + at * cell + (sample + 0.5) * cell / samples as f64
                });
                Ok((positions.collect::<Vec<f64>>(), samples))
            };
            let ((ys, rows), (xs, columns)) = (along(0, self.height)?, along(1, self.width)?);
            let ys: Vec<_> = ys.into_iter().map(|y| beside(y, height)).collect();
            let xs: Vec<_> = xs.into_iter().map(|x| beside(x, width)).collect();
            for c in 0..channels {
                let plane = &values[(image * channels + c) * height * width..][..height * width];
                for cell in 0..self.height * self.width {
                    let ys = &ys[cell / self.width * rows..][..rows];
                    let xs = &xs[cell % self.width * columns..][..columns];
                    let mut seen = Vec::with_capacity(rows * columns);
                    for (y, x) in ys.iter().flat_map(|y| xs.iter().map(move |x| (y, x))) {
                        let (Some((y0, y1, dy)), Some((x0, x1, dx))) = (*y, *x) else {
                            seen.push(0.0);
                            continue;
                        };
                        let corners = [
                            (1.0 - dy) * (1.0 - dx) * plane[y0 * width + x0],
                            (1.0 - dy) * dx * plane[y0 * width + x1],
                            dy * (1.0 - dx) * plane[y1 * width + x0],
                            dy * dx * plane[y1 * width + x1],
                        ];
                        seen.push(match self.max {
                            true => corners.into_iter().fold(f64::NEG_INFINITY, f64::max),
                            false => corners.into_iter().sum(),
                        });
                    }
                    out.push(match (self.max, seen.is_empty()) {
                        (_, true) => 0.0,
                        (true, _) => seen.into_iter().fold(f64::NEG_INFINITY, f64::max),
                        (false, _) => seen.iter().sum::<f64>() / seen.len() as f64,
                    });
                }
            }
        }
        Ok(vec![Tensor::from_f64s(dtype, &shape, &out)?])
    }

    fn cases(g: &mut Gen) -> Vec<Case> {
        let mut cases = Vec::new();
        for max in [false, true] {
            for half_pixel in [false, true] {
                let op = RoiAlign {
                    height: g.size(1, 4),
                    width: g.size(1, 4),
                    samples: g.size(0, 3),
                    scale: Real(g.pick(&[1.0, 0.5])),
                    max,
                    half_pixel,
                };
                let (batch, regions) = (g.size(1, 3), g.size(1, 4));
                let shape = [batch, g.size(1, 4), g.size(2, 9), g.size(2, 9)];
                let x = g.var(&shape);
                let rois = Arg::Var(g.uniform(DType::F32, &[regions, 4], -1.0, 12.0));
                let images: Vec<i64> =
                    (0..regions).map(|_| super::movement::signed(g.size(0, batch - 1))).collect();
                cases.push(Case::new(op, [x, rois, Arg::Const(Tensor::vector(&images))]));
            }
        }
        cases
    }
}

#[cfg(test)]
mod tests {
    use super::super::movement::run;
    use super::*;

    #[test]
    fn a_cell_of_one_sample_is_the_bilinear_value_of_its_centre() {
        let x = Tensor::from_slice(&[1, 1, 2, 2], &[0f32, 1., 2., 3.]).unwrap();
        let rois = Tensor::from_slice(&[1, 4], &[0f32, 0., 2., 2.]).unwrap();
        let images = Tensor::vector(&[0i64]);
        let mut op =
            RoiAlign { height: 1, width: 1, samples: 1, scale: Real(1.0), max: false, half_pixel: true };
        assert_eq!(run(op.clone(), &[&x, &rois, &images]).unwrap().to_f32s(), [1.5]);
        op.half_pixel = false;
        assert_eq!(run(op.clone(), &[&x, &rois, &images]).unwrap().to_f32s(), [3.0]);
        op.samples = 0;
        for hostile in [f32::NAN, 1e30, f32::INFINITY, -1e30] {
            let rois = Tensor::from_slice(&[1, 4], &[0f32, 0., hostile, hostile]).unwrap();
            let _ = run(op.clone(), &[&x, &rois, &images]);
        }
        assert!(run(op, &[&x, &rois, &Tensor::vector(&[1i64])]).is_err());
    }
}
