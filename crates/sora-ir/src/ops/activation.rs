//! Elementwise functions with constants: one table row per function.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use sora_tensor::{DType, Tensor};

use super::attrs;
use super::elementwise::map;
use crate::case::{Arg, Case, Gen};
use crate::{
    EvalCx, GradCx, Gradients, InferCx, Mismatch, OpDef, QuantRule, Real, TensorType, TieCx, ensure,
};

macro_rules! activation {
    ($($(#[$doc:meta])* $name:ident($alpha:expr, $beta:expr, $function:expr);)*) => {
        /// A function of one element `x` and the constants `alpha` and `beta`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum ActivationKind { $($(#[$doc])* $name),* }

        impl ActivationKind {
            /// Every function, in table order.
            pub const ALL: &[ActivationKind] = &[$(ActivationKind::$name),*];

            /// The function's name, that of the ONNX operator.
            pub fn name(self) -> &'static str {
                match self { $(ActivationKind::$name => stringify!($name)),* }
            }

            /// `alpha` and `beta` where the file gives none.
            pub fn defaults(self) -> (f32, f32) {
                match self { $(ActivationKind::$name => ($alpha, $beta)),* }
            }

            fn function(self) -> fn(f64, f64, f64) -> f64 {
                match self { $(ActivationKind::$name => $function),* }
            }
        }
    };
}

activation! {
    /// `max(0, x) + min(0, alpha · (exp(x / alpha) - 1))`. Source: Barron 2017.
    Celu(1.0, 0.0, |x, alpha, _| if x < 0.0 { alpha * (x / alpha).exp_m1() } else { x });
    /// `min(max(x, alpha), beta)`; integers take the integers between the bounds.
    Clip(f32::NEG_INFINITY, f32::INFINITY, |x, low, high| {
        let x = if x < low { low } else { x };
        if x > high { high } else { x }
    });
    /// `x` where positive, else `alpha · (exp(x) - 1)`. Source: Clevert et al. 2015.
    Elu(1.0, 0.0, |x, alpha, _| if x < 0.0 { alpha * x.exp_m1() } else { x });
    /// `max(0, min(1, alpha · x + beta))`.
    HardSigmoid(0.2, 0.5, |x, alpha, beta| (alpha * x + beta).clamp(0.0, 1.0));
    /// `x` where positive, else `alpha · x`.
    LeakyRelu(0.01, 0.0, |x, alpha, _| if x < 0.0 { alpha * x } else { x });
    /// `beta · x` where positive, else `beta · alpha · (exp(x) - 1)`. Source: Klambauer et al. 2017.
    Selu(1.673_263_2, 1.050_701, |x, alpha, beta| beta * if x > 0.0 { x } else { alpha * x.exp_m1() });
    /// `x` where greater than `alpha`, else 0.
    ThresholdedRelu(1.0, 0.0, |x, alpha, _| if x > alpha { x } else { 0.0 });
}

attrs! {
    /// A function with constants, applied to every element; shape and dtype stay. All take floats, `Clip` takes
    /// integers too. Source: the ONNX operator of that name.
    pub struct Activation {
        /// Which function.
        kind: ActivationKind,
        /// Its first constant.
        alpha: Real,
        /// Its second constant; unused where the function names none.
        beta: Real,
    }
}

impl OpDef for Activation {
    fn infer(&self, cx: &InferCx) -> Result<Vec<TensorType>, Mismatch> {
        cx.arity(1..=1)?;
        let x = cx.ty(0)?;
        ensure!(
            x.dtype.is_float() || self.kind == ActivationKind::Clip && x.dtype.is_int(),
            "{} does not take {x}",
            self.kind.name()
        );
        Ok(vec![x.clone()])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, Mismatch> {
        let x = cx.get(0)?;
        let (function, alpha, beta) = (self.kind.function(), f64::from(self.alpha.0), f64::from(self.beta.0));
        // Only Clip reaches the integers. The bounds saturate, so that infinities do not bind.
        let (low, high) = (alpha.ceil() as i128, beta.floor() as i128);
        Ok(vec![map(x, |x| function(x, alpha, beta), |x| x.max(low).min(high))?])
    }

    fn grad(&self, cx: &mut GradCx) -> Gradients {
        self.gradient(cx)
    }

    fn quant(&self) -> QuantRule {
        QuantRule::Lut
    }

    fn label(&self) -> Option<Cow<'static, str>> {
        Some(Cow::Borrowed(self.kind.name()))
    }

    fn ties(&self, cx: &mut TieCx) -> Result<(), Mismatch> {
        cx.same_axes(|_| false)
    }

    fn cases(g: &mut Gen) -> Vec<Case> {
        let mut cases = Vec::new();
        let mut add = |g: &mut Gen, kind: ActivationKind, (alpha, beta): (f32, f32), dtype: DType| {
            let rank = g.size(0, 4);
            let shape = g.shape(rank);
            let (low, high) =
                if dtype.int_range().is_some_and(|(low, _)| low == 0) { (0.0, 9.0) } else { (-6.0, 9.0) };
            let x = Arg::Var(g.uniform(dtype, &shape, low, high));
            cases.push(Case::new(Activation { kind, alpha: Real(alpha), beta: Real(beta) }, [x]));
        };
        for &kind in ActivationKind::ALL {
            add(g, kind, kind.defaults(), DType::F32);
            for dtype in [DType::F32, DType::F32, DType::F64] {
                let constants = (g.real(0.05, 1.5) as f32, g.real(0.4, 1.5) as f32);
                add(g, kind, constants, dtype);
            }
        }
        add(g, ActivationKind::Clip, (0.0, 6.0), DType::F32);
        add(g, ActivationKind::Clip, (-1.5, f32::INFINITY), DType::I32);
        add(g, ActivationKind::Clip, (1.0, 6.0), DType::U8);
        cases
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn eval(kind: ActivationKind, alpha: f32, beta: f32, x: &Tensor) -> Vec<f64> {
        let op = Activation { kind, alpha: Real(alpha), beta: Real(beta) };
        op.eval(&EvalCx { inputs: &[Some(x)] }).unwrap().remove(0).to_f64s()
    }

    #[test]
    fn every_function_below_and_above_zero() {
        let x = Tensor::vector(&[-2f64, 0.5, 3.0]);
        let e = (-2f64).exp() - 1.0;
        let expected = [
            (ActivationKind::Celu, 2.0, 0.0, [2.0 * ((-1f64).exp() - 1.0), 0.5, 3.0]),
            (ActivationKind::Clip, -1.0, 2.0, [-1.0, 0.5, 2.0]),
            (ActivationKind::Elu, 0.5, 0.0, [0.5 * e, 0.5, 3.0]),
            (ActivationKind::HardSigmoid, 0.5, 0.25, [0.0, 0.5, 1.0]),
            (ActivationKind::LeakyRelu, 0.25, 0.0, [-0.5, 0.5, 3.0]),
            (ActivationKind::Selu, 2.0, 4.0, [8.0 * e, 2.0, 12.0]),
            (ActivationKind::ThresholdedRelu, 0.5, 0.0, [0.0, 0.0, 3.0]),
        ];
        assert_eq!(expected.map(|row| row.0), ActivationKind::ALL);
        for (kind, alpha, beta, values) in expected {
            for (found, value) in eval(kind, alpha, beta, &x).into_iter().zip(values) {
                assert!((found - value).abs() < 1e-12, "{kind:?}: {found}, expected {value}");
            }
        }
    }

    #[test]
    fn integer_bounds_are_integers() {
        let x = Tensor::vector(&[i64::MIN, -1, 2, i64::MAX]);
        let clip = |low, high| {
            let op = Activation { kind: ActivationKind::Clip, alpha: Real(low), beta: Real(high) };
            op.eval(&EvalCx { inputs: &[Some(&x)] }).unwrap().remove(0)
        };
        assert_eq!(clip(-1.5, 1.5), Tensor::vector(&[-1i64, -1, 1, 1]));
        assert_eq!(clip(f32::NEG_INFINITY, f32::INFINITY), x);
    }
}
