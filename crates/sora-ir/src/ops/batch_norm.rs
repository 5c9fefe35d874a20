//! Batch normalization with fixed statistics.

use sora_tensor::{DType, Tensor};

use super::{UnaryKind, attrs};
use crate::case::{Arg, Case, Gen};
use crate::{Along, EvalCx, GradCx, Gradients, InferCx, Mismatch, OpDef, Real, TensorType, TieCx, ensure};

attrs! {
    /// `(x - mean) / sqrt(var + epsilon) · scale + bias` for each channel of an input `[N, C, …]`. Inputs: x, then
    /// scale, bias, mean and variance, each `[C]` and of any float type; the result has the type of x.
    /// Source: ONNX BatchNormalization, inference form.
    pub struct BatchNorm {
        /// Added to the variance.
        epsilon: Real,
    }
}

impl OpDef for BatchNorm {
    fn infer(&self, cx: &InferCx) -> Result<Vec<TensorType>, Mismatch> {
        cx.arity(5..=5)?;
        let x = cx.ty(0)?;
        ensure!(x.dtype.is_float() && x.rank() >= 2, "takes floats of rank 2 or more, found {x}");
        for i in 1..5 {
            let p = cx.ty(i)?;
            ensure!(
                p.dtype.is_float() && p.rank() == 1 && p.shape[0].compatible(&x.shape[1]),
                "input {i} {p} does not fit the {} channels of {x}",
                x.shape[1]
            );
        }
        Ok(vec![x.clone()])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, Mismatch> {
        let x = cx.get(0)?;
        if x.is_empty() {
            return Ok(vec![x.clone()]);
        }
        let [scale, bias, mean, var] = [cx.get(1)?, cx.get(2)?, cx.get(3)?, cx.get(4)?].map(Tensor::to_f64s);
        let epsilon = f64::from(self.epsilon.0);
        let plane: usize = x.shape()[2..].iter().product();
        let mut values = x.to_f64s();
        for (i, channel) in values.chunks_exact_mut(plane).enumerate() {
            let c = i % scale.len();
            let factor = scale[c] / (var[c] + epsilon).sqrt();
            channel.iter_mut().for_each(|v| *v = (*v - mean[c]) * factor + bias[c]);
        }
        Ok(vec![Tensor::from_f64s(x.dtype(), x.shape(), &values)?])
    }

    fn grad(&self, cx: &mut GradCx) -> Gradients {
        let (x, dy) = (cx.input(0)?, cx.grad()?);
        let (dtype, shape) = (cx.dtype(x), cx.shape(x)?);
        let mut line = vec![1; shape.len()];
        line[1] = shape[1];
        let mut channels = |index: usize| {
            let value = cx.input(index)?;
            let value = cx.cast(value, dtype)?;
            cx.reshape(value, &line)
        };
        let (scale, mean, variance) = (channels(1)?, channels(3)?, channels(4)?);
        let variance = cx.plus(variance, f64::from(self.epsilon.0))?;
        let deviation = cx.unary(UnaryKind::Sqrt, variance)?;
        let slope = cx.div(scale, deviation)?;
        let dx = cx.mul(dy, slope)?;
        let mut grads = vec![Some(dx), None, None, None, None];
        let mut to_input = |cx: &mut GradCx, index: usize, value| {
            let sum = cx.sum_to(value, &line)?;
            let sum = cx.reshape(sum, &line[1..2])?;
            let to = cx.dtype(cx.input(index)?);
            grads[index] = Some(cx.cast(sum, to)?);
            Ok::<_, Mismatch>(())
        };
        let centred = cx.sub(x, mean)?;
        if cx.wants(1) {
            let normal = cx.div(centred, deviation)?;
            let product = cx.mul(dy, normal)?;
            to_input(cx, 1, product)?;
        }
        if cx.wants(2) {
            to_input(cx, 2, dy)?;
        }
        if cx.wants(3) {
            let down = cx.unary(UnaryKind::Neg, dx)?;
            to_input(cx, 3, down)?;
        }
        if cx.wants(4) {
            let product = cx.mul(dx, centred)?;
            let product = cx.div(product, variance)?;
            let half = cx.times(product, -0.5)?;
            to_input(cx, 4, half)?;
        }
        Ok(grads)
    }

    fn ties(&self, cx: &mut TieCx) -> Result<(), Mismatch> {
        let parameters = (1..5).map(|index| Along::input(index, 0));
        cx.tie([Along::input(0, 1), Along::output(1)].into_iter().chain(parameters));
        Ok(())
    }

    fn cases(g: &mut Gen) -> Vec<Case> {
        (2..=5)
            .map(|rank| {
                let mut shape = g.shape(rank);
                shape[1] = g.size(1, 40);
                let channels = [shape[1]];
                let var = Arg::Const(g.uniform(DType::F32, &channels, 0.1, 2.0));
                let op = BatchNorm { epsilon: Real(g.pick(&[1e-5, 1e-3])) };
                let x = g.var(&shape);
                Case::new(op, [x, g.weights(&channels), g.weights(&channels), g.weights(&channels), var])
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_channel_has_its_own_statistics() {
        let x = Tensor::from_slice(&[2, 2, 1], &[3f32, 10., 5., 30.]).unwrap();
        let vectors = [[1f32, 2.], [0., 7.], [1., 20.], [3., 99.]].map(|v| Tensor::vector(&v));
        let [scale, bias, mean, var] = vectors.each_ref().map(Some);
        let op = BatchNorm { epsilon: Real(1.0) };
        let y = op.eval(&EvalCx { inputs: &[Some(&x), scale, bias, mean, var] }).unwrap().remove(0);
        assert_eq!(y.to_f32s(), [1., 5., 2., 9.]);
    }
}
