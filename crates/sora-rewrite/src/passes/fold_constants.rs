//! Evaluates what is known before the network runs.

use sora_ir::{Def, Dim, EvalCx, Graph, NodeId, Op, Subgraph, TensorType, Value, ValueId};
use sora_tensor::Tensor;

use crate::Report;
use crate::manager::{RewriteError, check_change};
use crate::view::Uses;

const NAME: &str = "fold_constants";

/// The bytes by which folding may still grow a graph, and what it may still compute.
pub(crate) struct FoldBudget {
    bytes: usize,
    work: usize,
}

impl FoldBudget {
    /// For a graph, as much work as some steps for each constant; of a small graph, that of less than a minute.
    pub(crate) fn new(bytes: usize, graph: &Graph) -> Self {
        let constant = |value: &Value| if let Def::Const(tensor) = &value.def { tensor.len() } else { 0 };
        let constants: usize = graph.values().map(|(_, value)| constant(value)).sum();
        FoldBudget { bytes, work: constants.saturating_mul(64).saturating_add(1 << 28) }
    }

    /// Whether `growth` and `work`, elements and multiply-adds, are within the budget, which they then lower. Shrinking
    /// gives nothing back.
    fn spend(&mut self, growth: usize, work: usize) -> bool {
        let left = self.bytes.checked_sub(growth).zip(self.work.checked_sub(work));
        if let Some((bytes, work)) = left {
            *self = FoldBudget { bytes, work };
        }
        left.is_some()
    }
}

/// Replaces nodes of constant inputs, and values that shapes determine, by constants.
///
/// DequantizeLinear is never folded: its constant is what the graph stores.
pub(crate) fn fold_constants(
    graph: &mut Graph,
    budget: &mut FoldBudget,
    check: bool,
    report: &mut Report,
) -> Result<(), RewriteError> {
    let mut uses = Uses::of(graph);
    let before = report.fired.len();
    for id in graph.order()? {
        let Some(folded) = fold(graph, id, &uses, budget) else { continue };
        let Some(node) = graph.node(id) else { continue };
        let (name, label, outputs) = (node.name.clone(), node.op.label(), node.outputs.clone());
        let bytes: usize = folded.iter().map(|t| t.byte_len()).sum();
        report.push(NAME, &name, format!("{label} → constant of {bytes} bytes"));
        for (old, tensor) in outputs.into_iter().zip(folded) {
            let name = graph.value(old).name.clone();
            let new = graph.constant(&name, tensor);
            uses.replace(graph, old, new);
        }
        graph.remove(id);
        if check {
            graph.infer_all()?;
            check_change(graph, check, NAME, &name)?;
        }
    }
    // Readers whose shapes depend on elements, such as Tile, now have definite types.
    if report.fired.len() > before {
        graph.infer_all()?;
    }
    Ok(())
}

/// The outputs of a node if they are known and affordable.
fn fold(graph: &Graph, id: NodeId, uses: &Uses, budget: &mut FoldBudget) -> Option<Vec<Tensor>> {
    let node = graph.node(id)?;
    if let [output] = node.outputs[..]
        && let Some(tensor) = from_content(graph, output)
    {
        return Some(vec![tensor]);
    }
    if matches!(node.op, Op::DequantizeLinear(_)) || node.inputs.is_empty() || may_not_end(&node.op) {
        return None;
    }
    let constant = |id: &Option<ValueId>| match id {
        Some(id) => graph.const_value(*id).map(Some),
        None => Some(None),
    };
    let inputs: Vec<Option<&Tensor>> = node.inputs.iter().map(constant).collect::<Option<_>>()?;
    let size = |ty: &TensorType| ty.known_len()?.checked_mul(ty.dtype.size());
    // Inferred anew: inputs that just became constants may decide the shape.
    let (types, _) = graph.infer(&node.name, &node.op, &node.inputs).ok()?;
    let grown = types.iter().map(size).sum::<Option<usize>>()?;
    // What nothing else reads goes with the node. A constant made during this pass, which `uses` does not follow, was
    // paid for then.
    let only_here = |value: &&ValueId| {
        let read_elsewhere = |readers: &Vec<NodeId>| readers.iter().any(|&reader| reader != id);
        let is_result = |positions: &Vec<usize>| !positions.is_empty();
        !uses.readers.get(value.index()).is_some_and(read_elsewhere)
            && !uses.results.get(value.index()).is_some_and(is_result)
    };
    let inputs_here = node.inputs.iter().flatten().filter(only_here);
    let freed: usize = inputs_here.filter_map(|&value| size(graph.ty(value))).sum();
    let elements = |ty: &TensorType| ty.known_len().unwrap_or(usize::MAX);
    let read = node.inputs.iter().flatten().map(|&id| elements(graph.ty(id)));
    let given: Vec<_> = node.inputs.iter().map(|id| id.map(|id| graph.ty(id))).collect();
    let macs = node.op.macs(&given, &types.iter().collect::<Vec<_>>()).known().unwrap_or(usize::MAX);
    let work = read.chain(types.iter().map(elements)).fold(macs, usize::saturating_add);
    if !budget.spend(grown.saturating_sub(freed), work) {
        return None;
    }
    node.op.eval(&EvalCx { inputs: &inputs }).ok().filter(|folded| folded.len() == node.outputs.len())
}

/// Whether an operator runs for as long as its body says.
fn may_not_end(op: &Op) -> bool {
    let inner = |body: &&Subgraph| body.graph().nodes().any(|(_, node)| may_not_end(&node.op));
    matches!(op, Op::Loop(_)) || op.bodies().iter().any(inner)
}

/// A value that shapes determine, as a tensor.
fn from_content(graph: &Graph, value: ValueId) -> Option<Tensor> {
    let value = graph.value(value);
    let elements: Vec<i64> = value.content.as_ref()?.iter().map(Dim::constant).collect::<Option<_>>()?;
    let shape = if value.ty.rank() == 0 { vec![] } else { vec![elements.len()] };
    let fits = value.ty.dtype.is_int() && value.ty.rank() <= 1;
    let wide: Vec<i128> = elements.into_iter().map(i128::from).collect();
    fits.then(|| Tensor::from_i128s(value.ty.dtype, &shape, &wide).ok())?
}

#[cfg(test)]
mod tests {
    use sora_ir::ops::{Binary, BinaryKind, Cast, Expand, QuantizeLinear, Reshape, Shape, Tile};
    use sora_ir::{TensorType, verify};
    use sora_tensor::DType;

    use super::*;

    fn fold_all(graph: &mut Graph, bytes: usize) -> usize {
        let mut report = Report::default();
        fold_constants(graph, &mut FoldBudget::new(bytes, graph), true, &mut report).unwrap();
        graph.compact().unwrap();
        verify(graph).unwrap();
        report.fired.len()
    }

    #[test]
    fn chains_of_constants_become_one() {
        let mut g = Graph::new("g");
        let (a, b) = (g.constant("a", Tensor::vector(&[1f32, 2.0])), g.constant("b", Tensor::scalar(3f32)));
        let sum = g.op("sum", Binary { kind: BinaryKind::Add }, [a, b]).unwrap();
        let twice = g.op("twice", Binary { kind: BinaryKind::Mul }, [sum, sum]).unwrap();
        g.output("y", twice);
        assert_eq!(fold_all(&mut g, 0), 2);
        let result = g.outputs()[0].value;
        assert_eq!(g.const_value(result).unwrap().to_f64s(), [16.0, 25.0]);
        assert_eq!(g.value(result).name, "twice");
    }

    #[test]
    fn growth_stays_within_the_budget() {
        for (budget, folded) in [(0, 0), (399, 0), (400, 1)] {
            let mut g = Graph::new("g");
            let (x, shape) =
                (g.constant("x", Tensor::scalar(1f32)), g.constant("shape", Tensor::vector(&[100i64])));
            let wide = g.op("wide", Expand {}, [x, shape]).unwrap();
            g.output("y", wide);
            // The scalar and the shape are kept by another result, so that all 400 bytes are growth.
            g.output("x", x);
            g.output("shape", shape);
            assert_eq!(fold_all(&mut g, budget), folded, "budget {budget}");
        }
    }

    #[test]
    fn shapes_of_known_extents_are_constants_and_symbolic_ones_stay() {
        let mut g = Graph::new("g");
        let known = g.input("known", TensorType::new(DType::F32, [2usize, 3]));
        let shape = g.op("shape", Shape { start: 0, end: None }, [known]).unwrap();
        g.output("shape", shape);
        let symbolic = [Dim::symbol("N"), Dim::from(3usize)];
        let open = g.input("open", TensorType { dtype: DType::F32, shape: symbolic.to_vec() });
        let target = g.op("target", Shape { start: 0, end: None }, [open]).unwrap();
        let y = g.op("y", Reshape { allow_zero: false }, [open, target]).unwrap();
        g.output("y", y);
        assert_eq!(fold_all(&mut g, 0), 1);
        assert_eq!(g.const_value(g.outputs()[0].value).unwrap().to_i64s(), [2, 3]);
        assert_eq!(g.nodes().count(), 2);
    }

    #[test]
    fn quantized_constants_stay_quantized() {
        let mut g = Graph::new("g");
        let (w, scale) =
            (g.constant("w", Tensor::vector(&[0.5f32, -1.0])), g.constant("s", Tensor::scalar(0.5f32)));
        let q = g.op("q", QuantizeLinear { axis: 0, to: DType::I8 }, [w, scale]).unwrap();
        let d = g.op("d", sora_ir::ops::DequantizeLinear { axis: 0 }, [q, scale]).unwrap();
        g.output("y", d);
        assert_eq!(fold_all(&mut g, 0), 1);
        let (_, node) = g.nodes().next().unwrap();
        assert_eq!(node.name, "d");
        assert_eq!(g.const_value(node.inputs[0].unwrap()).unwrap().to_i64s(), [1, -2]);
    }

    #[test]
    fn readers_of_folded_elements_get_definite_types() {
        let mut g = Graph::new("g");
        let x = g.input("x", TensorType::new(DType::F32, [2usize]));
        // Floats are not followed through shape arithmetic, so that Tile's result is unknown until they fold.
        let three = g.constant("three", Tensor::vector(&[3f32]));
        let repeats = g.op("repeats", Cast { to: DType::I64 }, [three]).unwrap();
        let y = g.op("tiled", Tile {}, [x, repeats]).unwrap();
        g.output("y", y);
        assert!(g.ty(y).known_shape().is_none());
        assert_eq!(fold_all(&mut g, 64), 1);
        assert_eq!(g.ty(g.outputs()[0].value).known_shape(), Some(vec![6]));
    }
}
