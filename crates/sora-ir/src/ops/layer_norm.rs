//! Layer normalization.

use sora_tensor::Tensor;

use super::{ReduceKind, UnaryKind, attrs, broadcast_offset, for_each_index};
use crate::case::{Arg, Case, Gen};
use crate::op::resolve_axis;
use crate::{
    Along, EvalCx, GradCx, Gradients, InferCx, Mismatch, OpDef, Operand, Real, TensorType, TieCx, ensure,
};

attrs! {
    /// `(x - mean) / sqrt(var + epsilon) · scale + bias`, with mean and variance over `axis` and all later axes.
    /// Inputs: x, optional scale, optional bias; both broadcast to the shape of x. All are one float type.
    /// Source: Ba et al. 2016; ONNX LayerNormalization.
    pub struct LayerNorm {
        /// The first normalized axis; negative counts from the end.
        axis: i64,
        /// Added to the variance.
        epsilon: Real,
    }
}

impl OpDef for LayerNorm {
    fn infer(&self, cx: &InferCx) -> Result<Vec<TensorType>, Mismatch> {
        cx.arity(1..=3)?;
        let x = cx.ty(0)?;
        ensure!(x.dtype.is_float(), "takes floats, found {x}");
        resolve_axis(self.axis, x.rank())?;
        for p in [cx.opt(1), cx.opt(2)].into_iter().flatten() {
            let mut pairs = p.shape.iter().rev().zip(x.shape.iter().rev());
            ensure!(
                p.dtype == x.dtype
                    && p.rank() <= x.rank()
                    && pairs.all(|(p, x)| p.constant() == Some(1) || p.compatible(x)),
                "scale or bias {p} does not broadcast to {x}"
            );
        }
        Ok(vec![x.clone()])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, Mismatch> {
        let x = cx.get(0)?;
        if x.is_empty() {
            return Ok(vec![x.clone()]);
        }
        let axis = resolve_axis(self.axis, x.rank())?;
        let inner: usize = x.shape()[axis..].iter().product();
        let mut values = x.to_f64s();
        for row in values.chunks_exact_mut(inner) {
            let n = row.len() as f64;
            let mean = row.iter().sum::<f64>() / n;
            let var = row.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n;
            let factor = (var + f64::from(self.epsilon.0)).sqrt().recip();
            row.iter_mut().for_each(|v| *v = (*v - mean) * factor);
        }
        let mut transform = |p: Option<&Tensor>, apply: fn(f64, f64) -> f64| {
            let Some(p) = p else { return };
            let parameters = p.to_f64s();
            let mut values = values.iter_mut();
            for_each_index(x.shape(), |index| {
                if let Some(v) = values.next() {
                    *v = apply(*v, parameters[broadcast_offset(index, p.shape())]);
                }
            });
        };
        transform(cx.opt(1), |v, scale| v * scale);
        transform(cx.opt(2), |v, bias| v + bias);
        Ok(vec![Tensor::from_f64s(x.dtype(), x.shape(), &values)?])
    }

    fn grad(&self, cx: &mut GradCx) -> Gradients {
        let (x, dy) = (cx.input(0)?, cx.grad()?);
        let rank = cx.shape(x)?.len();
        let axes: Vec<usize> = (resolve_axis(self.axis, rank)?..rank).collect();
        let mean = cx.reduce(ReduceKind::Mean, x, &axes)?;
        let centred = cx.sub(x, mean)?;
        let squares = cx.mul(centred, centred)?;
        let variance = cx.reduce(ReduceKind::Mean, squares, &axes)?;
        let deviation = cx.plus(variance, f64::from(self.epsilon.0))?;
        let deviation = cx.unary(UnaryKind::Sqrt, deviation)?;
        let normal = cx.div(centred, deviation)?;
        // With n the normalized x and g = dy · scale: dx = (g - mean(g) - n · mean(g · n)) / deviation.
        let g = match cx.opt(1) {
            Some(scale) => cx.mul(dy, scale)?,
            None => dy,
        };
        let level = cx.reduce(ReduceKind::Mean, g, &axes)?;
        let product = cx.mul(g, normal)?;
        let slope = cx.reduce(ReduceKind::Mean, product, &axes)?;
        let along = cx.mul(normal, slope)?;
        let rest = cx.sub(g, level)?;
        let rest = cx.sub(rest, along)?;
        let mut grads = vec![Some(cx.div(rest, deviation)?), None, None];
        if cx.wants(1) {
            let product = cx.mul(dy, normal)?;
            grads[1] = Some(cx.sum_to_input(product, 1)?);
        }
        if cx.wants(2) {
            grads[2] = Some(cx.sum_to_input(dy, 2)?);
        }
        Ok(grads)
    }

    fn ties(&self, cx: &mut TieCx) -> Result<(), Mismatch> {
        let x = cx.ty(0)?.rank();
        for axis in 0..resolve_axis(self.axis, x)? {
            let aligned = |index: usize| Some((index, (axis + cx.opt(index)?.rank()).checked_sub(x)?));
            let extent = cx.extent(Operand::Input(0), axis);
            let repeated = |&(index, own): &(usize, usize)| cx.extent(Operand::Input(index), own) == extent;
            let parameters: Vec<_> = [1, 2].into_iter().filter_map(aligned).filter(repeated).collect();
            let parameters = parameters.into_iter().map(|(index, own)| Along::input(index, own));
            cx.tie([Along::input(0, axis), Along::output(axis)].into_iter().chain(parameters));
        }
        Ok(())
    }

    fn cases(g: &mut Gen) -> Vec<Case> {
        let mut cases = Vec::new();
        for (scale, bias) in [(true, true), (true, true), (true, false), (false, true), (false, false)] {
            let rank = g.size(2, 4);
            let axis = if g.flag() { rank - 1 } else { g.size(0, rank - 1) };
            let mut shape = g.shape(rank);
            shape[rank - 1] = g.size(3, 70);
            let from_end = i64::try_from(axis).unwrap_or(0) - i64::try_from(rank).unwrap_or(0);
            let op = LayerNorm { axis: from_end, epsilon: Real(1e-5) };
            let parameter =
                |g: &mut Gen, given: bool| if given { g.weights(&shape[axis..]) } else { Arg::Absent };
            cases.push(Case::new(op, [g.var(&shape), parameter(g, scale), parameter(g, bias)]));
        }
        // Parameters that broadcast, as group normalization needs them.
        let op = LayerNorm { axis: 2, epsilon: Real(1e-3) };
        cases.push(Case::new(op, [g.var(&[2, 3, 4, 5]), g.weights(&[3, 1, 1]), g.weights(&[1, 3, 4, 1])]));
        cases
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normalizes_then_scales_and_shifts() {
        let x = Tensor::from_slice(&[2, 2], &[1f32, 5., 7., 7.]).unwrap();
        let (scale, bias) = (Tensor::vector(&[3f32, 6.]), Tensor::vector(&[10f32, 20.]));
        let op = LayerNorm { axis: -1, epsilon: Real(5.0) };
        let y = op.eval(&EvalCx { inputs: &[Some(&x), Some(&scale), Some(&bias)] }).unwrap().remove(0);
        assert_eq!(y.to_f32s(), [8., 24., 10., 20.]);
    }
}
