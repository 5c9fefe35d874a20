//! Computes everything once.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use sora_ir::{Def, Graph, Op, ValueId};
use sora_tensor::{DType, Tensor};

use crate::Report;
use crate::manager::{RewriteError, check_change};
use crate::view::Uses;

const NAME: &str = "eliminate_common_subexpressions";

/// Merges constants of equal bytes, and nodes of equal operator and inputs. Operators have no effects and no
/// randomness, so equal inputs mean equal outputs.
pub(crate) fn eliminate_common_subexpressions(
    graph: &mut Graph,
    check: bool,
    report: &mut Report,
) -> Result<(), RewriteError> {
    merge_constants(graph);
    check_change(graph, check, NAME, "constants")?;
    let mut uses = Uses::of(graph);
    let mut seen: HashMap<(Op, Vec<Option<ValueId>>), Vec<ValueId>> = HashMap::new();
    for id in graph.order()? {
        let Some(node) = graph.node(id) else { continue };
        let (name, outputs) = (node.name.clone(), node.outputs.clone());
        match seen.entry((node.op.clone(), node.inputs.clone())) {
            Entry::Vacant(entry) => {
                entry.insert(outputs);
            }
            Entry::Occupied(first) => {
                let firsts = first.get();
                // Dimensions that inference could not know carry the node's name and so keep types apart.
                if firsts.iter().zip(&outputs).any(|(&a, &b)| graph.ty(a) != graph.ty(b)) {
                    continue;
                }
                let kept = firsts.first().map_or("", |&v| graph.value(v).name.as_str());
                report.push(NAME, &name, format!("{} computes `{kept}` again", node.op.label()));
                for (&first, &again) in firsts.iter().zip(&outputs) {
                    uses.replace(graph, again, first);
                }
                graph.remove(id);
                check_change(graph, check, NAME, &name)?;
            }
        }
    }
    Ok(())
}

/// Makes readers of equal constants share the first. It saves memory but no work, so it is not reported.
fn merge_constants(graph: &mut Graph) {
    let mut groups: HashMap<(DType, Vec<usize>, Vec<u8>), Vec<ValueId>> = HashMap::new();
    for (id, value) in graph.values() {
        // Elements that nobody has computed yet are not worth computing for this.
        if let Def::Const(tensor) = &value.def
            && !tensor.is_computed()
        {
            groups.entry(fingerprint(tensor)).or_default().push(id);
        }
    }
    let mut equal = Vec::new();
    for group in groups.into_values() {
        let mut distinct: Vec<ValueId> = Vec::new();
        for id in group {
            let same = distinct.iter().find(|&&other| graph.const_value(other) == graph.const_value(id));
            match same {
                Some(&first) => equal.push((id, first)),
                None => distinct.push(id),
            }
        }
    }
    let equal: HashMap<ValueId, ValueId> = equal.into_iter().collect();
    let slots: Vec<_> = graph
        .nodes()
        .flat_map(|(id, node)| node.inputs.iter().enumerate().map(move |(slot, input)| (id, slot, *input)))
        .filter_map(|(id, slot, input)| Some((id, slot, *equal.get(&input?)?)))
        .collect();
    for (id, slot, first) in slots {
        graph.set_input(id, slot, first);
    }
}

/// What equal constants have in common and different ones rarely do: cheap, whatever their size, and without
/// touching more of a mapped file than where a constant begins.
fn fingerprint(tensor: &Tensor) -> (DType, Vec<usize>, Vec<u8>) {
    const LEADING: usize = 64;
    let raw = tensor.raw();
    (tensor.dtype(), tensor.shape().to_vec(), raw[..raw.len().min(LEADING)].to_vec())
}

#[cfg(test)]
mod tests {
    use sora_ir::TensorType;
    use sora_ir::ops::{Binary, BinaryKind, Unary, UnaryKind};
    use sora_ir::verify;

    use super::*;

    #[test]
    fn chains_over_equal_constants_merge_and_different_ones_stay() {
        let mut g = Graph::new("g");
        let x = g.input("x", TensorType::new(DType::F32, [3usize]));
        let add = Binary { kind: BinaryKind::Add };
        let mut ends = Vec::new();
        for (i, offset) in [1f32, 1.0, 2.0, 1.0].into_iter().enumerate() {
            let c = g.constant(&format!("c{i}"), Tensor::vector(&[offset; 3]));
            let sum = g.op(&format!("sum{i}"), add.clone(), [x, c]).unwrap();
            ends.push(g.op(&format!("abs{i}"), Unary { kind: UnaryKind::Abs }, [sum]).unwrap());
            g.output(&format!("y{i}"), ends[i]);
        }
        let mut report = Report::default();
        eliminate_common_subexpressions(&mut g, true, &mut report).unwrap();
        g.compact().unwrap();
        verify(&g).unwrap();
        assert_eq!(g.nodes().count(), 4);
        assert_eq!(g.values().filter(|(_, v)| matches!(v.def, Def::Const(_))).count(), 2);
        let results: Vec<_> = g.outputs().iter().map(|o| (o.name.as_str(), o.value)).collect();
        assert_eq!(results[0].1, results[1].1);
        assert_eq!(results[0].1, results[3].1);
        assert_ne!(results[0].1, results[2].1);
        assert_eq!(results[3].0, "y3");
        assert_eq!(report.fired.len(), 4);
    }
}
