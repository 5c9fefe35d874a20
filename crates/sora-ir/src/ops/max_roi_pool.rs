//! Maximum pooling of regions of an image.

use sora_tensor::{DType, Tensor};

use super::roi_align::regions;
use super::{attrs, room};
use crate::case::{Arg, Case, Gen};
use crate::{Dim, EvalCx, InferCx, Mismatch, OpDef, Real, TensorType, ensure};

attrs! {
    /// Regions of images brought to one size: `[N, C, H, W]` and `R` regions `[R, 5]` (image, x1, y1, x2, y2, both ends
    /// included) give `[R, C, height, width]`. Regions are rounded to elements and cut into cells that may overlap; each
    /// gives its maximum, an empty one 0. Source: ONNX MaxRoiPool.
    pub struct MaxRoiPool {
        /// Rows of the result.
        height: usize,
        /// Columns of the result.
        width: usize,
        /// From the coordinates of regions to those of the image.
        scale: Real,
    }
}

/// Begin and end of each of `cells` cells between the rounded ends of a region, inside of an axis.
fn cells(begin: f64, end: f64, cells: usize, extent: usize) -> Vec<(usize, usize)> {
    let (begin, end) = (begin.round(), end.round());
    let cell = (end - begin + 1.0).max(1.0) / cells as f64;
    let inside = |at: f64| ((at + begin).max(0.0) as usize).min(extent);
    (0..cells).map(|i| (inside((i as f64 * cell).floor()), inside(((i + 1) as f64 * cell).ceil()))).collect()
}

impl OpDef for MaxRoiPool {
    fn infer(&self, cx: &InferCx) -> Result<Vec<TensorType>, Mismatch> {
        cx.arity(2..=2)?;
        let (x, count) = regions(cx, 5)?;
        ensure!(self.height > 0 && self.width > 0, "the result has no elements: {self:?}");
        let shape = vec![count, x.shape[1].clone(), Dim::from(self.height), Dim::from(self.width)];
        Ok(vec![TensorType { dtype: x.dtype, shape }])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, Mismatch> {
        let (dtype, shape) = cx.output(self)?;
        let x = cx.get(0)?;
        let [batch, channels, height, width] = x.shape() else { return Err(Mismatch::new("takes images")) };
        let (batch, channels, height, width) = (*batch, *channels, *height, *width);
        let (values, scale) = (x.to_f64s(), f64::from(self.scale.0));
        let mut out = room(&shape)?;
        for roi in cx.get(1)?.to_f64s().chunks_exact(5) {
            let image = (roi[0] >= 0.0 && roi[0] < batch as f64).then_some(roi[0] as usize);
            let image =
                image.ok_or_else(|| Mismatch::new(format!("a region is in none of {batch} images")))?;
            let rows = cells(roi[2] * scale, roi[4] * scale, self.height, height);
            let columns = cells(roi[1] * scale, roi[3] * scale, self.width, width);
            for c in 0..channels {
                let plane = &values[(image * channels + c) * height * width..][..height * width];
                for (&(top, bottom), &(left, right)) in
                    rows.iter().flat_map(|row| columns.iter().map(move |column| (row, column)))
                {
                    let lines = (top..bottom).map(|y| &plane[y * width + left.min(right)..y * width + right]);
                    let greatest = lines.flatten().copied().reduce(f64::max);
                    out.push(greatest.unwrap_or(0.0));
                }
            }
        }
        Ok(vec![Tensor::from_f64s(dtype, &shape, &out)?])
    }

    fn cases(g: &mut Gen) -> Vec<Case> {
        let mut cases = Vec::new();
        for _ in 0..4 {
            let op =
                MaxRoiPool { height: g.size(1, 4), width: g.size(1, 4), scale: Real(g.pick(&[1.0, 0.5])) };
            let (batch, regions) = (g.size(1, 3), g.size(1, 4));
            let shape = [batch, g.size(1, 4), g.size(2, 9), g.size(2, 9)];
            let x = g.var(&shape);
            let mut rois = g.uniform(DType::F32, &[regions, 5], -1.0, 12.0).to_f32s();
            rois.iter_mut().step_by(5).for_each(|image| *image = g.size(0, batch - 1) as f32);
            let rois = Tensor::from_slice(&[regions, 5], &rois).expect("a small shape");
            cases.push(Case::new(op, [x, Arg::Var(rois)]));
        }
        cases
    }
}

#[cfg(test)]
mod tests {
    use super::super::movement::run;
    use super::*;

    #[test]
    fn cells_cover_the_region_and_stay_inside() {
        let x: Vec<f32> = (0..16).map(|v| v as f32).collect();
        let x = Tensor::from_slice(&[1, 1, 4, 4], &x).unwrap();
        let op = MaxRoiPool { height: 2, width: 2, scale: Real(1.0) };
        let pool = |roi: [f32; 5]| {
            let roi = Tensor::from_slice(&[1, 5], &roi).unwrap();
            run(op.clone(), &[&x, &roi]).map(|y| y.to_f32s())
        };
        assert_eq!(pool([0., 0., 0., 3., 3.]).unwrap(), [5., 7., 13., 15.]);
        assert_eq!(pool([0., 2., 2., 9., 9.]).unwrap(), [15., 0., 0., 0.]);
        assert_eq!(pool([0., 0., 0., 2., 2.]).unwrap(), [5., 6., 9., 10.]);
        for hostile in [f32::NAN, f32::INFINITY, -1e30, 1e30] {
            assert!(pool([hostile, 0., 0., 1., 1.]).is_err());
            assert!(pool([0., hostile, 0., hostile, 1.]).is_ok());
        }
    }
}
