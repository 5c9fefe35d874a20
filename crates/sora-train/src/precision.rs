//! Mixed precision: products of rounded operands.

use std::collections::HashMap;

use serde::Deserialize;
use sora_ir::ops::{Cast, Op};
use sora_ir::{Graph, Mismatch, ValueId};
use sora_tensor::DType;

/// The precision of the operands of products and convolutions in a step, forward and backward. They are summed up as f32, and
/// weights, moments and everything between products stay f32. Source: Micikevicius et al. 2018.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MixedPrecision {
    /// All is f32.
    #[default]
    F32,
    /// bf16: the range of f32 with 8 bits of mantissa.
    Bf16,
    /// f16, with a scale of the loss that follows the range of the gradients: from 2¹⁵ it is doubled after 2000 steps whose
    /// gradients were finite, and halved by one whose were not, which changes no weight.
    F16,
}

/// Rounds the operands of all products in the graph, each value once.
pub(crate) fn round_operands(graph: &mut Graph, precision: MixedPrecision) -> Result<(), Mismatch> {
    let to = match precision {
        MixedPrecision::F32 => return Ok(()),
        MixedPrecision::Bf16 => DType::BF16,
        MixedPrecision::F16 => DType::F16,
    };
    let mut rounded: HashMap<ValueId, ValueId> = HashMap::new();
    let nodes: Vec<_> = graph.nodes().map(|(id, node)| (id, node.clone())).collect();
    for (id, node) in nodes {
        let operands = match node.op {
            Op::MatMul(_) | Op::Conv(_) | Op::ConvTranspose(_) => 2,
            Op::Lstm(_) | Op::Gru(_) | Op::Rnn(_) => 3,
            _ => continue,
        };
        for (slot, input) in node.inputs.iter().enumerate().take(operands) {
            let Some(value) = input.filter(|&v| graph.ty(v).dtype == DType::F32) else { continue };
            let operand = match rounded.get(&value) {
                Some(&operand) => operand,
                None => {
                    let name = format!("{}/{to}", graph.value(value).name);
                    let failed = |e: sora_ir::IrError| Mismatch::new(e.to_string());
                    let short = graph.op(&name, Cast { to }, [value]).map_err(failed)?;
                    let back = graph.op(&name, Cast { to: DType::F32 }, [short]).map_err(failed)?;
                    rounded.insert(value, back);
                    back
                }
            };
            graph.set_input(id, slot, operand);
        }
    }
    Ok(())
}
