//! Selection of boxes that do not overlap.

use sora_tensor::{DType, Tensor};

use super::attrs;
use super::movement::{is_single, signed};
use crate::case::{Arg, Case, Gen};
use crate::{Dim, EvalCx, InferCx, Mismatch, OpDef, TensorType, ensure};

attrs! {
    /// The best boxes of each class that do not overlap a better one. Inputs: boxes `[N, B, 4]`, scores `[N, C, B]`,
    /// both `f32`, then, each absent or one element: the most boxes of a class (integer, default 0), the overlap that
    /// suppresses a box (intersection over union above this, default 0), and the score that a box must exceed. The
    /// result is `i64`, rows of image, class and box, as many as were selected. Source: ONNX NonMaxSuppression.
    pub struct NonMaxSuppression {
        /// Whether boxes are (x, y, width, height) around their centre, rather than two opposite corners (y, x, y, x).
        center: bool,
    }
}

/// A box by its lower and upper corner.
#[derive(Clone, Copy)]
struct Corners {
    low: [f32; 2],
    high: [f32; 2],
}

impl Corners {
    fn of(b: [f32; 4], center: bool) -> Self {
        match center {
            true => Corners {
                low: [b[0] - b[2] / 2.0, b[1] - b[3] / 2.0],
                high: [b[0] + b[2] / 2.0, b[1] + b[3] / 2.0],
            },
            false => {
                Corners { low: [b[1].min(b[3]), b[0].min(b[2])], high: [b[1].max(b[3]), b[0].max(b[2])] }
            }
        }
    }

    fn area(&self) -> f32 {
        (self.high[0] - self.low[0]) * (self.high[1] - self.low[1])
    }

    /// Whether intersection over union exceeds `threshold`, in single precision: decisions must not depend on more.
    fn overlaps(&self, other: &Corners, threshold: f32) -> bool {
        let low = [0, 1].map(|i| self.low[i].max(other.low[i]));
        let high = [0, 1].map(|i| self.high[i].min(other.high[i]));
        let (width, height) = (high[0] - low[0], high[1] - low[1]);
        if width <= 0.0 || height <= 0.0 {
            return false;
        }
        let shared = width * height;
        let (a, b) = (self.area(), other.area());
        let union = a + b - shared;
        a > 0.0 && b > 0.0 && union > 0.0 && shared / union > threshold
    }
}

impl OpDef for NonMaxSuppression {
    fn infer(&self, cx: &InferCx) -> Result<Vec<TensorType>, Mismatch> {
        cx.arity(2..=5)?;
        let (boxes, scores) = (cx.ty(0)?, cx.ty(1)?);
        let fits = |ty: &TensorType| ty.dtype == DType::F32 && ty.rank() == 3;
        ensure!(
            fits(boxes) && fits(scores) && boxes.shape[2].compatible(&Dim::from(4usize)),
            "takes f32 boxes [N, B, 4] and scores [N, C, B], found {boxes} and {scores}"
        );
        ensure!(
            boxes.shape[0].compatible(&scores.shape[0]) && boxes.shape[1].compatible(&scores.shape[2]),
            "scores {scores} do not fit boxes {boxes}"
        );
        for index in 2..5 {
            let Some(ty) = cx.opt(index) else { continue };
            let fits = if index == 2 { ty.dtype.is_int() } else { ty.dtype == DType::F32 };
            ensure!(fits && is_single(ty), "input {index} must be one number, found {ty}");
        }
        Ok(vec![TensorType { dtype: DType::I64, shape: vec![cx.unknown(0), Dim::from(3usize)] }])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, Mismatch> {
        let (boxes, scores) = (cx.get(0)?, cx.get(1)?);
        let &[_, classes, count] = scores.shape() else {
            return Err(Mismatch::new("takes scores [N, C, B]"));
        };
        let most = cx.opt(2).and_then(|t| t.to_i64s().first().copied()).unwrap_or(0);
        let most = usize::try_from(most).unwrap_or(0);
        let number = |index: usize| cx.opt(index).and_then(|t| t.to_f32s().first().copied());
        let (overlap, least) = (number(3).unwrap_or(0.0), number(4));
        let (boxes, scores) = (boxes.to_f32s(), scores.to_f32s());
        let corners: Vec<Corners> =
            boxes.chunks_exact(4).map(|b| Corners::of([b[0], b[1], b[2], b[3]], self.center)).collect();
        let mut rows: Vec<i64> = Vec::new();
        for (lane, scores) in scores.chunks_exact(count.max(1)).enumerate() {
            let (image, class) = (lane / classes, lane % classes);
            let corners = &corners[image * count..][..count];
            let above = |&i: &usize| least.is_none_or(|least| scores[i] > least);
            let mut order: Vec<usize> = (0..count).filter(above).collect();
            // Best first; of equal ones the first, which a stable sort keeps first. NaN is worst.
            let rank = |i: usize| if scores[i].is_nan() { f32::NEG_INFINITY } else { scores[i] };
            order.sort_by(|&a, &b| rank(b).total_cmp(&rank(a)));
            let mut selected: Vec<usize> = Vec::new();
            for candidate in order {
                if selected.len() >= most {
                    break;
                }
                if !selected.iter().any(|&s| corners[candidate].overlaps(&corners[s], overlap)) {
                    selected.push(candidate);
                    rows.extend([image, class, candidate].map(signed));
                }
            }
        }
        Ok(vec![Tensor::from_slice(&[rows.len() / 3, 3], &rows)?])
    }

    fn cases(g: &mut Gen) -> Vec<Case> {
        let mut cases = Vec::new();
        for center in [false, true] {
            for _ in 0..3 {
                let (images, classes, boxes) = (g.size(1, 2), g.size(1, 3), g.size(1, 30));
                let scalar = |g: &mut Gen| if g.flag() { vec![] } else { vec![1] };
                let shape = scalar(g);
                let most = Tensor::vector(&[signed(g.size(0, 8))]).reshape(&shape).expect("one element");
                let mut inputs = vec![
                    Arg::Var(g.uniform(DType::F32, &[images, boxes, 4], 0.0, 1.0)),
                    Arg::Var(g.uniform(DType::F32, &[images, classes, boxes], 0.0, 1.0)),
                    Arg::Const(most),
                ];
                for _ in 0..g.size(0, 2) {
                    let shape = scalar(g);
                    inputs.push(Arg::Const(g.uniform(DType::F32, &shape, 0.2, 0.6)));
                }
                cases.push(Case::new(NonMaxSuppression { center }, inputs));
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
    fn better_boxes_suppress_those_that_overlap() {
        let boxes = [[0f32, 0., 1., 1.], [1., 1., 0., 0.1], [0., 2., 1., 3.], [0., 0., 1., 1.]].concat();
        let boxes = Tensor::from_slice(&[1, 4, 4], &boxes).unwrap();
        let select = |scores: [f32; 4], most: i64, overlap: f32, least: f32| {
            let scores = Tensor::from_slice(&[1, 1, 4], &scores).unwrap();
            let inputs =
                [&boxes, &scores, &Tensor::scalar(most), &Tensor::scalar(overlap), &Tensor::scalar(least)];
            let rows = run(NonMaxSuppression { center: false }, &inputs).unwrap().to_i64s();
            rows.chunks_exact(3).map(|row| row[2]).collect::<Vec<_>>()
        };
        assert_eq!(select([0.5, 0.9, 0.7, 0.5], 9, 0.5, 0.0), [1, 2]);
        assert_eq!(select([0.5, 0.9, 0.7, 0.5], 9, 0.95, 0.0), [1, 2, 0]);
        assert_eq!(select([0.5, 0.9, 0.7, 0.5], 1, 0.5, 0.0), [1]);
        assert_eq!(select([0.5, 0.9, 0.7, 0.5], 9, 0.5, 0.8), [1]);
        assert_eq!(select([0.5, 0.1, 0.2, f32::NAN], 9, 0.5, 0.0), [0, 2]);
        assert!(select([0.5, 0.9, 0.7, 0.5], -3, 0.5, 0.0).is_empty());
    }
}
