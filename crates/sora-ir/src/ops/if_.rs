//! One of two branches.

use sora_tensor::{Bool, DType, Tensor};

use super::{Binary, BinaryKind, MatMul, Unary, UnaryKind, attrs};
use crate::case::{Arg, Case, Gen};
use crate::subgraph::{Subgraph, arguments, join, outside, symbols};
use crate::{EvalCx, InferCx, Mismatch, OpDef, TensorType, ensure};

attrs! {
    /// The outputs of one branch or of the other. Inputs: the condition, one truth value; then what both branches take.
    /// The branches agree in the number, the dtypes and the ranks of their outputs. A branch that refuses inputs of the
    /// given shapes is an error only when it is taken. Source: ONNX If, with captured values as inputs.
    pub struct If {
        /// What is computed when the condition is true.
        then_branch: Subgraph,
        /// What is computed otherwise.
        else_branch: Subgraph,
    }
}

impl OpDef for If {
    fn infer(&self, cx: &InferCx) -> Result<Vec<TensorType>, Mismatch> {
        truth(cx.ty(0)?, "condition")?;
        let (given, known) = (arguments(cx, 1)?, symbols(cx));
        let (a, b) = match (self.then_branch.infer(&given), self.else_branch.infer(&given)) {
            (Ok(a), Ok(b)) => (a, b),
            (Ok(only), Err(_)) | (Err(_), Ok(only)) => (only.clone(), only),
            (Err(e), Err(_)) => return Err(e),
        };
        ensure!(a.len() == b.len(), "its branches have {} and {} outputs", a.len(), b.len());
        let outputs = a.into_iter().zip(b).enumerate().map(|(slot, (a, b))| {
            let unknown = |axis| cx.unknown_at(slot, axis);
            let joined = join(&outside(a, &known, unknown), &outside(b, &known, unknown), unknown);
            joined.map_err(|e| Mismatch::new(format!("output {slot} of its branches: {}", e.0)))
        });
        outputs.collect()
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, Mismatch> {
        let branch = if is_true(cx.get(0)?)? { &self.then_branch } else { &self.else_branch };
        let inputs = (1..cx.inputs.len()).map(|i| cx.get(i).cloned());
        branch.eval(&inputs.collect::<Result<Vec<_>, _>>()?)
    }

    fn bodies(&self) -> Vec<&Subgraph> {
        vec![&self.then_branch, &self.else_branch]
    }

    fn cases(g: &mut Gen) -> Vec<Case> {
        let mut cases = Vec::new();
        for condition in [true, false, true, false] {
            let (shape, wide) = (g.shape(2), g.size(1, 20));
            let types = [shape.clone(), vec![shape[1], wide]].map(|s| TensorType::new(DType::F32, s));
            let branch = |unary, binary| {
                Subgraph::build("branch", &types, |graph, inputs| {
                    let a = graph.op("a", Unary { kind: unary }, [inputs[0]])?;
                    let b = graph.op("b", MatMul {}, [a, inputs[1]])?;
                    let c = graph.op("c", Binary { kind: binary }, [b, b])?;
                    Ok(vec![a, c])
                })
            };
            let then_branch = branch(UnaryKind::Relu, BinaryKind::Add);
            let else_branch = branch(UnaryKind::Neg, BinaryKind::Mul);
            let inputs = [
                Arg::Var(Tensor::scalar(Bool::from(condition))),
                g.var(&shape),
                g.weights(&[shape[1], wide]),
            ];
            cases.push(Case::new(If { then_branch, else_branch }, inputs));
        }
        cases
    }
}

/// Refuses what is not one truth value.
pub(crate) fn truth(ty: &TensorType, what: &str) -> Result<(), Mismatch> {
    let one = ty.shape.iter().all(|d| d.constant().is_none_or(|n| n == 1));
    ensure!(ty.dtype == DType::Bool && one, "the {what} must be one truth value, found {ty}");
    Ok(())
}

/// The one truth value of a tensor.
pub(crate) fn is_true(tensor: &Tensor) -> Result<bool, Mismatch> {
    match tensor.to_i64s()[..] {
        [value] => Ok(value != 0),
        ref other => Err(Mismatch::new(format!("takes one truth value, found {}", other.len()))),
    }
}
