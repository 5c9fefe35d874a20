//! Reverse-mode differentiation as a transform of the graph.

use std::collections::HashMap;

use sora_ir::ops::{Binary, BinaryKind, Expand};
use sora_ir::{GradCx, Graph, IrError, Node, Op, ValueId};
use sora_tensor::Tensor;

use crate::TrainError;

/// Adds to `graph` the gradients of the sum of all elements of `of` with respect to each of `wrt`, of whose type they are,
/// and returns them in that order. What `of` does not depend on has a gradient of zeros.
///
/// Every operator on the way has its rule in its own file ([`sora_ir::OpDef::grad`]). Shapes must be concrete
/// ([`Graph::specialize`]). The method is reverse accumulation (Linnainmaa 1970): nodes are visited from `of` backwards,
/// each once, after all its readers.
///
/// # Errors
/// [`TrainError::NotDifferentiable`] naming a node on the way that has no gradient, [`TrainError::NoFloats`] for values of
/// integers, [`TrainError::Ir`] when the graph has no order.
pub fn differentiate(graph: &mut Graph, of: ValueId, wrt: &[ValueId]) -> Result<Vec<ValueId>, TrainError> {
    if let Some(&value) = wrt.iter().chain([&of]).find(|&&v| !graph.ty(v).dtype.is_float()) {
        let (value, ty) = (graph.value(value).name.clone(), graph.ty(value).to_string());
        return Err(TrainError::NoFloats { value, ty });
    }
    let order = graph.order()?;
    let mut depends = vec![false; graph.values().count()];
    wrt.iter().for_each(|v| depends[v.index()] = true);
    for &id in &order {
        let Some(node) = graph.node(id) else { continue };
        if node.inputs.iter().flatten().any(|v| depends[v.index()]) {
            // Quantized levels carry gradients as if they were floats.
            let levels = matches!(node.op, Op::QuantizeLinear(_) | Op::DynamicQuantizeLinear(_));
            for &output in &node.outputs {
                depends[output.index()] |= levels || graph.ty(output).dtype.is_float();
            }
        }
    }
    let mut grads = Gradients::default();
    let seed = filled(graph, of, 1.0)?;
    grads.add(graph, of, seed)?;
    for id in order.into_iter().rev() {
        let Some(node) = graph.node(id) else { continue };
        let wanted: Vec<bool> =
            node.inputs.iter().map(|input| input.is_some_and(|v| depends[v.index()])).collect();
        let given: Vec<_> = node.outputs.iter().map(|&output| grads.of(output)).collect();
        if !wanted.contains(&true) || given.iter().all(Option::is_none) {
            continue;
        }
        let node = node.clone();
        let found = node
            .op
            .grad(&mut GradCx::new(graph, &node, &given, &wanted))
            .map_err(|why| refused(&node, why.0))?;
        for ((input, wanted), grad) in node.inputs.iter().zip(wanted).zip(found) {
            if let (Some(input), true, Some(grad)) = (input, wanted, grad) {
                grads.add(graph, *input, grad)?;
            }
        }
    }
    wrt.iter().map(|&value| grads.of(value).map_or_else(|| filled(graph, value, 0.0), Ok)).collect()
}

fn refused(node: &Node, why: String) -> TrainError {
    TrainError::NotDifferentiable { node: node.name.clone(), op: node.op.label().into_owned(), why }
}

/// The gradients found so far.
#[derive(Default)]
struct Gradients(HashMap<ValueId, ValueId>);

impl Gradients {
    fn of(&self, value: ValueId) -> Option<ValueId> {
        self.0.get(&value).copied()
    }

    /// Adds what another reader of `value` sends back.
    fn add(&mut self, graph: &mut Graph, value: ValueId, grad: ValueId) -> Result<(), IrError> {
        let sum = match self.of(value) {
            None => grad,
            Some(before) => {
                let name = format!("{}/grad", graph.value(value).name);
                graph.op(&name, Binary { kind: BinaryKind::Add }, [before, grad])?
            }
        };
        self.0.insert(value, sum);
        Ok(())
    }
}

/// A tensor of the type of `like` with one number everywhere.
fn filled(graph: &mut Graph, like: ValueId, number: f64) -> Result<ValueId, TrainError> {
    let (ty, name) = (graph.ty(like).clone(), format!("{}/grad", graph.value(like).name));
    let shape: Option<Vec<i64>> = ty.shape.iter().map(sora_ir::Dim::constant).collect();
    let open = || TrainError::OpenShape { value: graph.value(like).name.clone(), ty: ty.to_string() };
    let shape = shape.ok_or_else(open)?;
    let one = Tensor::from_f64s(ty.dtype, &[], &[number]).map_err(|e| IrError::Unknown(e.to_string()))?;
    let one = graph.constant(&name, one);
    let shape = graph.constant(&format!("{name}/shape"), Tensor::vector(&shape));
    Ok(graph.op(&name, Expand {}, [one, shape])?)
}

#[cfg(test)]
mod tests {
    use sora_ir::ops::{Cast, NonZero, Reduce, ReduceKind, Unary, UnaryKind};
    use sora_ir::{TensorType, evaluate};
    use sora_tensor::DType;

    use super::*;

    fn run(graph: &mut Graph, results: &[ValueId], inputs: &[(&str, &Tensor)]) -> Vec<Vec<f64>> {
        results.iter().enumerate().for_each(|(i, &v)| graph.output(&format!("y{i}"), v));
        evaluate(graph, inputs).unwrap().iter().map(Tensor::to_f64s).collect()
    }

    /// `x · w` read twice, once through a square: the gradients of both readers add up.
    #[test]
    fn readers_add_up_and_strangers_get_zeros() {
        let mut graph = Graph::new("g");
        let x = graph.input("x", TensorType::new(DType::F64, [2usize]));
        let w = graph.constant("w", Tensor::vector(&[3f64, -1.0]));
        let stranger = graph.constant("s", Tensor::vector(&[1f64; 3]));
        let y = graph.op("y", Binary { kind: BinaryKind::Mul }, [x, w]).unwrap();
        let squared = graph.op("q", Binary { kind: BinaryKind::Mul }, [y, y]).unwrap();
        let sum = graph.op("z", Binary { kind: BinaryKind::Add }, [squared, y]).unwrap();
        let grads = differentiate(&mut graph, sum, &[x, w, stranger]).unwrap();
        let found = run(&mut graph, &grads, &[("x", &Tensor::vector(&[2f64, 5.0]))]);
        // y = [6, -5], d(y² + y)/dy = 2y + 1 = [13, -9].
        assert_eq!(found, [vec![39.0, 9.0], vec![26.0, -45.0], vec![0.0; 3]]);
    }

    #[test]
    fn what_lies_behind_integers_gets_no_gradient() {
        let mut graph = Graph::new("g");
        let x = graph.input("x", TensorType::new(DType::F32, [2usize]));
        let steps = graph.op("i", Cast { to: DType::I32 }, [x]).unwrap();
        let back = graph.op("f", Cast { to: DType::F32 }, [steps]).unwrap();
        let grads = differentiate(&mut graph, back, &[x]).unwrap();
        let found = run(&mut graph, &grads, &[("x", &Tensor::vector(&[2f32, 5.0]))]);
        assert_eq!(found, [[0.0, 0.0]]);
    }

    #[test]
    fn errors_name_the_node() {
        let mut graph = Graph::new("g");
        let x = graph.input("x", TensorType::new(DType::F32, [2usize, 2]));
        let y =
            graph.op("far", Reduce { kind: ReduceKind::Prod, axes: vec![], keep_dims: false }, [x]).unwrap();
        let error = differentiate(&mut graph, y, &[x]).unwrap_err();
        let expected = TrainError::NotDifferentiable {
            node: "far".into(),
            op: "ReduceProd".into(),
            why: "has no gradient".into(),
        };
        assert_eq!(error, expected);
        let places = graph.op("places", NonZero {}, [x]).unwrap();
        assert!(matches!(differentiate(&mut graph, places, &[x]), Err(TrainError::NoFloats { .. })));
    }

    #[test]
    fn open_shapes_are_refused() {
        let mut graph = Graph::new("g");
        let x = graph.input("x", TensorType { dtype: DType::F32, shape: vec![sora_ir::Dim::symbol("n")] });
        let y = graph.op("y", Unary { kind: UnaryKind::Exp }, [x]).unwrap();
        assert!(matches!(differentiate(&mut graph, y, &[x]), Err(TrainError::OpenShape { .. })));
    }
}
