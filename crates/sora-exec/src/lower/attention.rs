//! Finds attention: two products of run-time operands with a softmax between them.

use std::sync::Mutex;

use sora_ir::ops::BinaryKind;
use sora_ir::{Node, NodeId, Op, ValueId, resolve_axis};
use sora_tensor::DType;

use super::Lowering;
use super::chain::{Chain, Quantized};
use super::layout::{Encoding, Layout};
use super::matmul::{joint, right_operand, row_step, starts};
use crate::steps::attention::{Attention, Head};
use crate::steps::gemm::Store;
use crate::steps::movement::View;

/// Nodes that compute `softmax(factor · Q·Kᵀ + mask) · V`.
struct Pattern {
    queries: ValueId,
    keys: ValueId,
    values: ValueId,
    factor: f32,
    mask: Option<ValueId>,
    /// The first product's result.
    scores: ValueId,
    /// Whether the result's heads are moved behind its queries.
    side_by_side: bool,
    chain: Chain,
}

impl Lowering<'_> {
    /// The chain of an attention whose first product is node `head`.
    pub(crate) fn attention_chain(&self, head: NodeId) -> Option<Chain> {
        let chain = self.attention_pattern(head)?.chain;
        chain.nodes.iter().all(|id| !self.claimed.contains(id)).then_some(chain)
    }

    fn attention_pattern(&self, head: NodeId) -> Option<Pattern> {
        let product = self.graph.node(head)?;
        let (queries, keys) = self.run_time_operands(product)?;
        let mut chain = Chain::alone(head, product)?;
        let scores = chain.result;
        let (mut factor, mut mask) = (1.0, None);
        loop {
            let next = self.follow(&mut chain)?;
            let other = next.inputs.iter().copied().flatten().find(|v| !self.is_defined_by(*v, &chain));
            match (&next.op, other) {
                (Op::Binary(op), Some(other)) if self.graph.ty(chain.result) == self.graph.ty(scores) => {
                    let scalar = || self.constant_f32(other).filter(|c| c.len() == 1).map(|c| c[0]);
                    let first = next.inputs.get(1).copied().flatten() == Some(other);
                    match op.kind {
                        BinaryKind::Add if mask.is_none() => mask = Some(other),
                        BinaryKind::Mul if mask.is_none() => factor *= scalar()?,
                        BinaryKind::Div if mask.is_none() && first => factor /= scalar()?,
                        _ => return None,
                    }
                }
                (Op::Softmax(op), None) => {
                    let rank = self.shape(scores).len();
                    (!op.log && resolve_axis(op.axis, rank).ok()? + 1 == rank).then_some(())?;
                    break;
                }
                _ => return None,
            }
        }
        let weights = chain.result;
        let product = self.follow(&mut chain)?;
        let (left, values) = self.run_time_operands(product)?;
        // The weights may be broadcast to more heads of values; that would be another attention.
        let rank = self.shape(scores).len();
        let same_heads = self.shape(chain.result).get(..rank - 2)? == self.shape(scores).get(..rank - 2)?;
        if left != weights || values == weights || !same_heads || self.shape(chain.result).len() != rank {
            return None;
        }
        let mut pattern = Pattern { queries, keys, values, factor, mask, scores, side_by_side: false, chain };
        self.attention_step(&pattern)?;
        self.extend(&mut pattern);
        Some(pattern)
    }

    /// What follows the second product and only moves or quantizes its result.
    fn extend(&self, pattern: &mut Pattern) {
        let mut chain = pattern.chain.clone();
        let mut reshaped = false;
        while let Some(next) = self.follow(&mut chain) {
            match &next.op {
                Op::Transpose(op) if !pattern.side_by_side && !reshaped => {
                    let mut swapped: Vec<usize> = (0..op.perm.len()).collect();
                    let Some([.., heads, queries, _]) = swapped.get_mut(..) else { return };
                    std::mem::swap(heads, queries);
                    if op.perm != swapped {
                        return;
                    }
                    pattern.side_by_side = true;
                }
                Op::Reshape(_) => reshaped = true,
                Op::QuantizeLinear(_) if chain.quantize.is_none() => match self.quantize_node(next) {
                    Some(quantized) => chain.quantize = Some(quantized),
                    None => return,
                },
                // The numbers of a dequantization are those bytes.
                Op::DequantizeLinear(_) => {
                    let from = next.inputs.first().copied().flatten().map(|v| self.dtype(v));
                    let affine = from.and_then(|from| self.byte_parameters(next, from));
                    match (chain.quantize, affine) {
                        (Some(quantized), Some(affine)) if quantized.affine == affine => {
                            chain.quantize = Some(Quantized { affine, encoding: Encoding::Affine(affine) });
                        }
                        _ => return,
                    }
                }
                _ => return,
            }
            pattern.chain = chain.clone();
        }
    }

    /// Appends the only reader of the chain's result.
    fn follow(&self, chain: &mut Chain) -> Option<&Node> {
        let id = self.only_use(chain.result)?;
        let node = self.graph.node(id)?;
        let [output] = node.outputs[..] else { return None };
        chain.nodes.push(id);
        chain.result = output;
        Some(node)
    }

    fn is_defined_by(&self, v: ValueId, chain: &Chain) -> bool {
        chain.nodes.iter().filter_map(|&id| self.graph.node(id)).any(|n| n.outputs.contains(&v))
    }

    /// The operands of a product of two `f32` values that are no constants.
    fn run_time_operands(&self, node: &Node) -> Option<(ValueId, ValueId)> {
        let (a, b) = ((*node.inputs.first()?)?, (*node.inputs.get(1)?)?);
        let real = [a, b].iter().all(|&v| self.dtype(v) == DType::F32 && !self.is_constant(v));
        let matrices = self.shape(a).len() >= 2 && self.shape(b).len() >= 2;
        (matches!(node.op, Op::MatMul(_)) && real && matrices).then_some((a, b))
    }

    /// The step of a pattern, except for what follows its second product, and the values it reads.
    fn attention_step(&self, p: &Pattern) -> Option<(Attention, [ValueId; 3])> {
        let (q, query) = self.matrices(p.queries, false);
        let (k, key) = self.matrices(p.keys, true);
        let (v, value) = self.matrices(p.values, true);
        let (a_batch, &[queries, depth]) = query.shape.split_last_chunk::<2>()?;
        let (b_batch, &[_, keys]) = key.shape.split_last_chunk::<2>()?;
        let &[.., width] = &value.shape[..] else { return None };
        let batch = joint(a_batch, b_batch);
        let mask = match p.mask {
            None => None,
            Some(v) => {
                let view = View::of(&self.shape(v)).broadcast(&self.shape(p.scores));
                let contiguous = keys == 1 || view.strides.last() == Some(&1);
                (contiguous && self.dtype(v) == DType::F32).then_some(())?;
                Some(view)
            }
        };
        let masks = mask.as_ref().map_or_else(|| vec![0; batch.iter().product()], |m| starts(m, &batch));
        let heads = starts(&query, &batch)
            .into_iter()
            .zip(starts(&key, &batch))
            .zip(starts(&value, &batch))
            .zip(masks)
            .map(|(((queries, keys), values), mask)| Head { queries, keys, values, mask })
            .collect();
        let side = if p.side_by_side { *batch.last()? } else { 1 };
        let mask_step = match &mask {
            None => None,
            Some(view) => Some(usize::try_from(view.strides[view.strides.len() - 2]).ok()?),
        };
        let work = Attention {
            extents: [queries, depth, keys, width],
            query_step: row_step(&query)?,
            keys: right_operand(&key)?,
            values: right_operand(&value)?,
            mask_step,
            factor: p.factor,
            heads,
            side,
            store: Store::Real,
            idle: Mutex::default(),
        };
        Some((work, [q, k, v]))
    }

    /// Emits an attention as one step.
    pub(crate) fn attention(&mut self, chain: &Chain) -> Option<()> {
        let pattern =
            self.attention_pattern(*chain.nodes.first()?).filter(|p| p.chain.nodes == chain.nodes)?;
        let (mut work, sources) = self.attention_step(&pattern)?;
        let mut reads = Vec::new();
        for v in sources.into_iter().chain(pattern.mask) {
            reads.push(self.plain(v)?);
        }
        let (out, store, dtype) = self.store_rounded(chain, Layout::Plain);
        work.store = store;
        let info = self.info("attention.f32", &chain.nodes, Some(chain.result), dtype);
        self.build.step(info, work, &reads, &[out]);
        Some(())
    }
}
