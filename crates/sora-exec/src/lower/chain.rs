//! Finds what can be fused behind a node: bias, residual, activation, quantization.

use sora_ir::ops::{ActivationKind, Binary, BinaryKind, UnaryKind};
use sora_ir::{Node, NodeId, Op, ValueId};
use sora_kernels::Activation;
use sora_tensor::DType;

use super::Lowering;
use super::layout::{Affine, Encoding};

/// A node and the nodes behind it that its step computes too.
#[derive(Clone, Debug)]
pub(crate) struct Chain {
    /// The first node, then those fused behind it in order.
    pub(crate) nodes: Vec<NodeId>,
    /// A constant, one value per channel, added first.
    pub(crate) bias: Option<ValueId>,
    /// A value of the result's shape, added next.
    pub(crate) residual: Option<ValueId>,
    /// Before the residual is added, the sum so far is rounded to these bytes.
    pub(crate) rounded: Option<Affine>,
    /// Applied next.
    pub(crate) activation: Activation,
    /// The result is stored quantized.
    pub(crate) quantize: Option<Quantized>,
    /// The value that the last node defines.
    pub(crate) result: ValueId,
}

impl Chain {
    /// A node with nothing behind it; `None` if it has no output.
    pub(crate) fn alone(id: NodeId, node: &Node) -> Option<Self> {
        Some(Chain {
            nodes: vec![id],
            bias: None,
            residual: None,
            rounded: None,
            activation: Activation::None,
            quantize: None,
            result: *node.outputs.first()?,
        })
    }
}

/// How a `QuantizeLinear` stores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Quantized {
    /// In unsigned bytes.
    pub(crate) affine: Affine,
    /// [`Encoding::Exact`] for `u8`, [`Encoding::Shifted`] for `i8`.
    pub(crate) encoding: Encoding,
}

/// Which fusions a kernel offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fusion {
    /// Everything: matrix products and convolutions, with channels on this axis.
    Product {
        /// Axis of the channels in the result.
        axis: usize,
    },
    /// An activation if quantization follows, and the quantization.
    Quantization,
}

impl Lowering<'_> {
    /// The longest chain behind node `head`, whose first output has no reader outside the chain.
    pub(crate) fn chain(&self, head: NodeId, mut fusion: Fusion) -> Option<Chain> {
        let node = self.graph.node(head)?;
        let mut chain = Chain::alone(head, node)?;
        if self.dtype(chain.result) != DType::F32 {
            return Some(chain);
        }
        // Whether the bias slot is taken by the operator itself.
        let own_bias = matches!(node.op, Op::Conv(_) | Op::ConvTranspose(_))
            && node.inputs.get(2).is_some_and(Option::is_some);
        let mut unquantized = chain.clone();
        while let Some(id) = self.only_use(chain.result).filter(|id| !self.claimed.contains(id)) {
            let Some(next) = self.graph.node(id) else { break };
            let active = chain.activation != Activation::None;
            let other = next.inputs.iter().copied().flatten().find(|&i| i != chain.result);
            match (&next.op, fusion) {
                (Op::QuantizeLinear(_), _) if next.inputs.first() == Some(&Some(chain.result)) => {
                    let Some(quantized) = self.quantize_node(next) else { break };
                    chain.quantize = Some(quantized);
                }
                (Op::Binary(op), Fusion::Product { axis }) if op.kind == BinaryKind::Add && !active => {
                    let Some(other) = other else { break };
                    let plain = chain.bias.is_none() && chain.residual.is_none() && !own_bias;
                    if plain && self.is_bias(other, chain.result, axis) {
                        chain.bias = Some(other);
                    } else if chain.residual.is_none()
                        && !self.is_constant(other)
                        && self.graph.ty(other) == self.graph.ty(chain.result)
                    {
                        chain.residual = Some(other);
                    } else {
                        break;
                    }
                }
                // The rows of a product may be counted along more axes or fewer.
                (Op::Reshape(_), Fusion::Product { axis })
                    if matches!(node.op, Op::MatMul(_)) && self.keeps_columns(next, axis) => {}
                (op, _) if !active => match activation(op) {
                    Some(activation) => chain.activation = activation,
                    None => break,
                },
                _ => break,
            }
            let [output] = next.outputs[..] else { break };
            chain.nodes.push(id);
            chain.result = output;
            if let (Op::Reshape(_), Fusion::Product { axis }) = (&next.op, &mut fusion) {
                *axis = self.shape(output).len() - 1;
            }
            if fusion != Fusion::Quantization || chain.quantize.is_some() {
                unquantized = chain.clone();
            }
            if chain.quantize.is_some() {
                break;
            }
        }
        Some(match fusion {
            Fusion::Product { .. } => self.quantized_sum(&unquantized).unwrap_or(unquantized),
            Fusion::Quantization => unquantized,
        })
    }

    /// A chain that ends in bytes, with the quantized addition behind it: to other bytes, perhaps an
    /// activation, and quantized again.
    fn quantized_sum(&self, chain: &Chain) -> Option<Chain> {
        let quantized = chain.quantize?;
        if chain.residual.is_some() || chain.activation != Activation::None {
            return None;
        }
        let mut sum = chain.clone();
        let follow = |sum: &mut Chain| {
            let id = self.only_use(sum.result).filter(|id| !self.claimed.contains(id))?;
            let node = self.graph.node(id)?;
            sum.nodes.push(id);
            sum.result = *node.outputs.first()?;
            Some(node)
        };
        let bytes = sum.result;
        let dequantize = follow(&mut sum)?;
        let same = self.bytes_of(dequantize) == Some(quantized.affine);
        if !same || dequantize.inputs.first() != Some(&Some(bytes)) {
            return None;
        }
        let product = sum.result;
        let add = follow(&mut sum)?;
        let Op::Binary(Binary { kind: BinaryKind::Add, .. }) = &add.op else { return None };
        let other = add.inputs.iter().copied().flatten().find(|&i| i != product)?;
        let (_, producer, _) = self.graph.producer(other)?;
        if self.is_constant(other)
            || self.bytes_of(producer).is_none()
            || self.graph.ty(other) != self.graph.ty(product)
        {
            return None;
        }
        let mut last = sum.result;
        let mut node = follow(&mut sum)?;
        if let Some(activation) = activation(&node.op) {
            sum.activation = activation;
            last = sum.result;
            node = follow(&mut sum)?;
        }
        if node.inputs.first() != Some(&Some(last)) {
            return None;
        }
        sum.quantize = Some(self.quantize_node(node)?);
        sum.residual = Some(other);
        sum.rounded = Some(quantized.affine);
        Some(sum)
    }

    /// What the bytes mean that a `DequantizeLinear` reads.
    fn bytes_of(&self, node: &Node) -> Option<Affine> {
        let Op::DequantizeLinear(_) = &node.op else { return None };
        self.byte_parameters(node, self.dtype((*node.inputs.first()?)?))
    }

    /// Whether a node changes the shape of its input but not the extent of its last axis, `axis`.
    fn keeps_columns(&self, node: &Node, axis: usize) -> bool {
        let shape = |v: Option<&ValueId>| v.map(|&v| self.shape(v)).unwrap_or_default();
        let (from, to) = (shape(node.inputs.first().and_then(Option::as_ref)), shape(node.outputs.first()));
        !to.is_empty() && from.len() == axis + 1 && from.last() == to.last()
    }

    /// Whether a constant adds one number per channel, or one in all, to a value.
    fn is_bias(&self, bias: ValueId, to: ValueId, axis: usize) -> bool {
        let (bias_shape, shape) = (self.shape(bias), self.shape(to));
        if bias_shape.len() > shape.len() || !self.is_constant(bias) {
            return false;
        }
        let skip = shape.len() - bias_shape.len();
        bias_shape
            .iter()
            .enumerate()
            .all(|(i, &extent)| extent == 1 || i + skip == axis && extent == shape[axis])
    }

    /// The parameters of a `QuantizeLinear` that kernels can do: one scale for all, to bytes.
    pub(crate) fn quantize_node(&self, node: &Node) -> Option<Quantized> {
        let Op::QuantizeLinear(_) = &node.op else { return None };
        let result = *node.outputs.first()?;
        let affine = self.byte_parameters(node, self.dtype(result))?;
        let encoding = if self.dtype(result) == DType::U8 { Encoding::Exact } else { Encoding::Shifted };
        Some(Quantized { affine, encoding })
    }

    /// Scale and zero point of a quantize or dequantize node between `f32` and bytes of `dtype`, the zero
    /// point as of unsigned bytes.
    pub(crate) fn byte_parameters(&self, node: &Node, dtype: DType) -> Option<Affine> {
        let shift = match dtype {
            DType::U8 => 0,
            DType::I8 => 128,
            _ => return None,
        };
        let scale = self.graph.const_value((*node.inputs.get(1)?)?)?;
        let &[scale] = scale.as_slice::<f32>().ok()? else { return None };
        let zero_point = match node.inputs.get(2).copied().flatten() {
            None => 0,
            Some(zero_point) => {
                let &[zero_point] = self.graph.const_value(zero_point)?.to_i64s().as_slice() else {
                    return None;
                };
                i32::try_from(zero_point).ok()?
            }
        };
        let usable = scale.is_finite() && scale > 0.0 && (1.0 / scale).is_finite();
        usable.then_some(Affine { scale, zero_point: zero_point + shift })
    }
}

/// The kernel's activation for an operator.
pub(crate) fn activation(op: &Op) -> Option<Activation> {
    Some(match op {
        Op::Unary(op) => match op.kind {
            UnaryKind::Relu => Activation::Relu,
            UnaryKind::HardSwish => Activation::HardSwish,
            UnaryKind::Sigmoid => Activation::Sigmoid,
            UnaryKind::Tanh => Activation::Tanh,
            UnaryKind::Silu => Activation::Silu,
            UnaryKind::Gelu => Activation::Gelu,
            _ => return None,
        },
        Op::Activation(op) => {
            let (alpha, beta) = (op.alpha.0, op.beta.0);
            match op.kind {
                ActivationKind::Clip => Activation::Clip { min: alpha, max: beta },
                ActivationKind::LeakyRelu => Activation::LeakyRelu { alpha },
                ActivationKind::HardSigmoid => Activation::HardSigmoid { alpha, beta },
                _ => return None,
            }
        }
        _ => return None,
    })
}
