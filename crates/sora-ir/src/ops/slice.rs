//! Slicing.

use sora_tensor::Tensor;

use super::movement::{
    any_var, distinct_axes, either_end, leading, list, list_extent, numbers, remap, signed,
};
use super::{Reduction, ScatterElements, attrs};
use crate::case::{Arg, Case, Gen};
use crate::op::infer_concrete;
use crate::{Dim, EvalCx, GradCx, Gradients, InferCx, Mismatch, OpDef, QuantRule, TensorType, TieCx, ensure};

attrs! {
    /// From each of `axes` (default: the first ones) the elements `start`, `start + step`, … before `end`.
    /// Inputs: data, starts, ends, axes?, steps? (default 1), lists of one length. Negative bounds count from
    /// the end, bounds outside the axis are moved to its ends, a negative step walks backwards.
    /// Source: ONNX Slice.
    pub struct Slice {}
}

/// Bounds at least this far out mean the end of the axis, whatever its extent; exporters write the greatest
/// `i32` or `i64`.
const FAR: i64 = i32::MAX as i64;

/// What is cut from one axis, as far as it is known.
struct Cut {
    axis: usize,
    start: Option<Dim>,
    end: Option<Dim>,
    step: Option<i64>,
}

impl Cut {
    /// The number of elements. In a symbolic axis, computed bounds and single elements are taken to lie
    /// within the axis; `None` where its extent decides.
    fn extent(&self, dim: &Dim) -> Option<Dim> {
        let (start, end, step) = (self.start.as_ref()?, self.end.as_ref()?, self.step?);
        if let (Some(d), Some(s), Some(e)) = (dim.constant(), start.constant(), end.constant()) {
            return Some(Dim::from(window(d, s, e, step).1));
        }
        if step < 0 {
            let from_last = start.constant().is_some_and(|s| s == -1 || s >= FAR);
            let whole = from_last && end.constant().is_some_and(|e| e <= -FAR);
            return whole.then(|| dim.ceil_div(step.saturating_neg()));
        }
        let resolve = |bound: &Dim| match bound.constant() {
            Some(b) if b >= FAR => dim.clone(),
            Some(b) if b <= -FAR => Dim::from(0usize),
            Some(b) if b < 0 => dim.clone() + bound.clone(),
            _ => bound.clone(),
        };
        let span = resolve(end) - resolve(start);
        match span.constant() {
            Some(v) if v <= 0 => Some(Dim::from(0usize)),
            Some(v) if v > 1 && start.constant().is_some() && end.constant().is_some() => None,
            _ => Some(span.ceil_div(step)),
        }
    }
}

/// The first position and the number of positions of `start..end` by `step` in an axis of `extent`.
fn window(extent: i64, start: i64, end: i64, step: i64) -> (i64, i64) {
    if extent <= 0 || step == 0 {
        return (0, 0);
    }
    let resolve = |bound: i64| if bound < 0 { bound.saturating_add(extent) } else { bound };
    let (start, span) = if step > 0 {
        let start = resolve(start).clamp(0, extent);
        (start, resolve(end).clamp(0, extent) - start)
    } else {
        let start = resolve(start).clamp(0, extent - 1);
        (start, start - resolve(end).clamp(-1, extent - 1))
    };
    let count = span.max(0).unsigned_abs().div_ceil(step.unsigned_abs());
    (start, i64::try_from(count).unwrap_or(i64::MAX))
}

impl Slice {
    /// What is cut from which axes; `None` when the axes are not known.
    fn cuts(&self, cx: &InferCx) -> Result<Option<Vec<Cut>>, Mismatch> {
        cx.arity(3..=5)?;
        let x = cx.ty(0)?;
        let mut extent = list_extent(cx, 1)?.clone();
        for index in (2..5).filter(|&index| index == 2 || cx.opt(index).is_some()) {
            let other = list_extent(cx, index)?;
            extent = extent.unify(other).ok_or_else(|| {
                Mismatch::new(format!("bounds, axes and steps differ in length: {extent} and {other}"))
            })?;
        }
        let axes = match (cx.opt(3), numbers(cx, 3), extent.known()) {
            (Some(_), Some(axes), _) => axes,
            (None, _, Some(n)) if n <= x.rank() => (0..signed(n)).collect(),
            (None, _, Some(n)) => return Err(Mismatch::new(format!("{n} bounds do not fit {x}"))),
            _ => return Ok(None),
        };
        let axes = distinct_axes(&axes, x.rank())?;
        let at = |index: usize, i: usize| -> Option<Dim> { cx.content(index)?.get(i).cloned() };
        let cut = |(i, axis): (usize, usize)| {
            let step = if cx.opt(4).is_some() { at(4, i).and_then(|s| s.constant()) } else { Some(1) };
            ensure!(step != Some(0), "the step of axis {axis} is 0");
            Ok(Cut { axis, start: at(1, i), end: at(2, i), step })
        };
        axes.into_iter().enumerate().map(cut).collect::<Result<_, _>>().map(Some)
    }

    /// For each axis of `shape`: first position and step; `None` while a bound is not a number.
    fn steps(&self, cx: &InferCx, shape: &[usize]) -> Result<Option<Vec<(i64, i64)>>, Mismatch> {
        let mut steps = vec![(0, 1); shape.len()];
        for cut in self.cuts(cx)?.unwrap_or_default() {
            let (start, end) = (cut.start.and_then(|s| s.constant()), cut.end.and_then(|e| e.constant()));
            let (Some(start), Some(end), Some(step)) = (start, end, cut.step) else { return Ok(None) };
            steps[cut.axis] = (window(signed(shape[cut.axis]), start, end, step).0, step);
        }
        Ok(Some(steps))
    }
}

/// Position `i` of a walk.
fn position((start, step): (i64, i64), i: usize) -> usize {
    usize::try_from(start.saturating_add(signed(i).saturating_mul(step))).unwrap_or(0)
}

impl OpDef for Slice {
    fn infer(&self, cx: &InferCx) -> Result<Vec<TensorType>, Mismatch> {
        let cuts = self.cuts(cx)?;
        let mut ty = cx.ty(0)?.clone();
        match cuts {
            Some(cuts) => cuts.iter().for_each(|cut| {
                let extent = cut.extent(&ty.shape[cut.axis]);
                ty.shape[cut.axis] = extent.unwrap_or_else(|| cx.unknown(cut.axis));
            }),
            None => ty.shape = (0..ty.rank()).map(|axis| cx.unknown(axis)).collect(),
        }
        Ok(vec![ty])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, Mismatch> {
        let (_, shape) = cx.output(self)?;
        let x = cx.get(0)?;
        let steps = infer_concrete(cx.inputs, |cx| self.steps(cx, x.shape()))?;
        let steps = steps.ok_or_else(|| Mismatch::new("the bounds are not known"))?;
        let visited = leading(shape.len(), |axis| steps[axis] != (0, 1) || shape[axis] != x.shape()[axis]);
        Ok(vec![remap(x, &shape, visited, |axis, i| position(steps[axis], i))?])
    }

    fn grad(&self, cx: &mut GradCx) -> Gradients {
        let (shape, dy) = (cx.shape(cx.input(0)?)?, cx.grad()?);
        let taken = cx.shape(dy)?;
        let list = |index| cx.opt(index).map(|list| cx.numbers(list)).transpose();
        let (starts, ends) = (list(1)?.unwrap_or_default(), list(2)?.unwrap_or_default());
        let axes = list(3)?.unwrap_or_else(|| (0..signed(starts.len())).collect());
        let steps = list(4)?.unwrap_or_else(|| vec![1; starts.len()]);
        let (mut before, mut after) = (vec![0; shape.len()], vec![0; shape.len()]);
        let mut grad = dy;
        for (i, axis) in distinct_axes(&axes, shape.len())?.into_iter().enumerate() {
            let (first, count) = window(signed(shape[axis]), starts[i], ends[i], steps[i]);
            if steps[i] == 1 || count <= 1 {
                before[axis] = first;
                after[axis] = signed(shape[axis]) - first - count;
                continue;
            }
            // Elements apart from each other, or backwards, return one by one.
            let places: Vec<i64> = (0..taken[axis]).map(|k| signed(position((first, steps[i]), k))).collect();
            let mut partial = cx.shape(grad)?;
            partial[axis] = shape[axis];
            let mut line = vec![1; partial.len()];
            line[axis] = taken[axis];
            let places = cx.list(&places);
            let places = cx.reshape(places, &line)?;
            let grad_shape = cx.shape(grad)?;
            let places = cx.expand(places, &grad_shape)?;
            let dtype = cx.dtype(grad);
            let zeros = cx.zeros(dtype, &partial)?;
            let add = ScatterElements { axis: signed(axis), reduction: Reduction::Add };
            grad = cx.op(add, [zeros, places, grad])?;
        }
        let mut grads = vec![None; 5];
        grads[0] = Some(cx.pad(grad, &before, &after)?);
        Ok(grads)
    }

    fn quant(&self) -> QuantRule {
        QuantRule::Passthrough
    }

    fn content(&self, cx: &InferCx) -> Option<Vec<Dim>> {
        let content = cx.content(0)?;
        let count = self.infer(cx).ok()?.first()?.shape.first()?.known()?;
        let &walk = self.steps(cx, &[content.len()]).ok()??.first()?;
        (0..count).map(|i| content.get(position(walk, i)).cloned()).collect()
    }

    fn ties(&self, cx: &mut TieCx) -> Result<(), Mismatch> {
        let cuts = self.cuts(cx)?.ok_or_else(|| Mismatch::new("cuts axes that are not known"))?;
        cx.same_axes(|axis| cuts.iter().any(|cut| cut.axis == axis))
    }

    fn cases(g: &mut Gen) -> Vec<Case> {
        let mut cases = Vec::new();
        for rank in [1, 2, 3, 4, 4, 4] {
            for form in 0..5 {
                let (shape, n) = (g.shape(rank), g.size(1, rank));
                let first = g.size(0, rank - n);
                let mut lists: [Vec<i64>; 4] = Default::default();
                for (axis, &extent) in shape.iter().enumerate().skip(first).take(n) {
                    let around = |g: &mut Gen| signed(g.size(0, 18)) - 9;
                    // Mostly within the axis, at times outside, at times the exporters' "to the end".
                    let bounds = match form {
                        0 => (around(g), around(g), signed(g.size(1, 3))),
                        1 => (-1, i64::MIN, -1),
                        2 => (around(g), around(g), -signed(g.size(1, 3))),
                        _ => (signed(g.size(0, extent - 1)), i64::MAX, 1),
                    };
                    lists[0].push(bounds.0);
                    lists[1].push(bounds.1);
                    lists[2].push(either_end(g, axis, rank));
                    lists[3].push(bounds.2);
                }
                let [starts, ends, axes, steps] = lists.map(list);
                let mut inputs = vec![any_var(g, &shape), starts, ends];
                match form {
                    0..=2 => inputs.extend([axes, steps]),
                    3 if first == 0 => {}
                    4 if first == 0 => inputs.extend([Arg::Absent, steps]),
                    _ => inputs.push(axes),
                }
                cases.push(Case::new(Slice {}, inputs));
            }
        }
        cases
    }
}

#[cfg(test)]
mod tests {
    use super::super::movement::{iota, run};
    use super::*;

    fn slice(extent: usize, start: i64, end: i64, step: i64) -> Vec<i64> {
        let list = |v: i64| Tensor::vector(&[v]);
        let inputs = [&iota(&[extent]), &list(start), &list(end), &list(0), &list(step)];
        run(Slice {}, &inputs).unwrap().to_i64s()
    }

    #[test]
    fn bounds_are_clamped() {
        assert_eq!(slice(5, 1, 4, 1), [1, 2, 3]);
        assert_eq!(slice(5, -2, i64::MAX, 1), [3, 4]);
        assert_eq!(slice(5, i64::MIN, i64::MAX, 2), [0, 2, 4]);
        assert!(slice(5, 3, 1, 1).is_empty());
        assert_eq!(slice(5, -1, i64::MIN, -2), [4, 2, 0]);
        assert_eq!(slice(5, i64::MAX, 0, -1), [4, 3, 2, 1]);
        assert_eq!(slice(5, i64::MIN, i64::MIN, -1), [0]);
        assert_eq!(slice(5, 4, i64::MIN, i64::MIN), [4]);
        assert!(slice(0, -1, i64::MIN, -1).is_empty());
    }

    #[test]
    fn hostile_lists_are_refused() {
        let (x, one, two) = (iota(&[3]), Tensor::vector(&[1i64]), Tensor::vector(&[0i64, 1]));
        assert!(run(Slice {}, &[&x, &two, &two]).is_err());
        assert!(run(Slice {}, &[&x, &one, &two]).is_err());
        assert!(run(Slice {}, &[&x, &one, &one, &one]).is_err());
        assert!(
            run(Slice {}, &[&x, &one, &one, &Tensor::vector(&[0i64]), &Tensor::vector(&[0i64])]).is_err()
        );
        assert!(run(Slice {}, &[&x, &one.cast(sora_tensor::DType::F32), &one]).is_err());
    }

    #[test]
    fn symbolic_extents_follow_the_bounds() {
        let extent = |dim: &str, start: &str, end: &str, step: i64| {
            let bound = |text: &str| Dim::parse(text).unwrap();
            let (start, end) = (Some(bound(start)), Some(bound(end)));
            let cut = Cut { axis: 0, start, end, step: Some(step) };
            cut.extent(&bound(dim)).map(|d| d.to_string())
        };
        assert_eq!(extent("T", "0", "9223372036854775807", 1).unwrap(), "T");
        assert_eq!(extent("T", "1", "2147483647", 1).unwrap(), "T-1");
        assert_eq!(extent("T", "0", "-1", 1).unwrap(), "T-1");
        assert_eq!(extent("T", "-1", "9223372036854775807", 1).unwrap(), "1");
        assert_eq!(extent("T", "0", "1", 1).unwrap(), "1");
        assert_eq!(extent("512", "0", "T", 1).unwrap(), "T");
        assert_eq!(extent("T", "-1", "-9223372036854775807", -1).unwrap(), "T");
        assert_eq!(extent("2*T", "1", "2147483647", 2).unwrap(), "T");
        assert_eq!(extent("T", "0", "5", 1), None);
    }
}
