//! Quantization and dequantization, and functions of bytes as tables.

use sora_ir::{EvalCx, Node, NodeId, Op};
use sora_kernels::{Rhs, quantize};
use sora_tensor::{DType, Tensor};

use super::Lowering;
use super::build::Buf;
use super::chain::{Chain, Quantized};
use super::layout::{Affine, Encoding, Form, Layout};
use crate::steps::elementwise::BinaryBytes;
use crate::steps::quantize::{Flip, Quantize, Table, dequant};

/// Bytes that a table makes from other bytes, element by element.
#[derive(Clone)]
pub(super) struct ByteFunction {
    source: Buf,
    table: Box<[u8; 256]>,
    /// The nodes that it computes.
    nodes: Vec<NodeId>,
}

impl Lowering<'_> {
    /// A `QuantizeLinear`: nothing where the value already exists in this encoding.
    pub(crate) fn quantize(&mut self, id: NodeId, node: &Node) -> Option<()> {
        let (x, y) = ((*node.inputs.first()?)?, *node.outputs.first()?);
        let quantized = self.quantize_node(node)?;
        if self.dtype(x) != DType::F32 {
            return None;
        }
        let same = |form: &Form| form.encoding == Encoding::Affine(quantized.affine);
        let forms: Vec<Form> = self.forms(x).into_iter().filter(same).collect();
        if !forms.is_empty() {
            for form in forms {
                self.define(y, Form { encoding: quantized.encoding, ..form });
            }
            return Some(());
        }
        if self.affine(x).is_some() {
            return self.table(&[], x, &[id], quantized, y);
        }
        let layout = self.some_layout(x);
        let (from, buf) = (self.exact(x, layout)?, self.fresh(y, DType::U8));
        let info = self.info("quantize.u8", &[id], Some(y), DType::U8);
        self.build.step(info, Quantize { affine: quantized.affine }, &[from], &[buf]);
        self.define(y, Form { buf, layout, encoding: quantized.encoding });
        Some(())
    }

    /// A `DequantizeLinear` costs nothing here: its result exists as bytes until someone asks for numbers.
    pub(crate) fn dequantize(&mut self, node: &Node) -> Option<()> {
        let (x, y) = ((*node.inputs.first()?)?, *node.outputs.first()?);
        if self.is_constant(y) {
            return Some(());
        }
        let affine = self.byte_parameters(node, self.dtype(x))?;
        let signed = self.dtype(x) == DType::I8;
        let forms = self.forms(x);
        if signed && forms.iter().all(|f| f.encoding == Encoding::Exact) {
            let layout = self.some_layout(x);
            let (from, buf) = (self.exact(x, layout)?, self.fresh(x, DType::U8));
            let info = self.conversion(x, "flip.i8", DType::U8);
            self.build.step(info, Flip, &[from], &[buf]);
            self.define(x, Form { buf, layout, encoding: Encoding::Shifted });
        }
        let bytes = if signed { Encoding::Shifted } else { Encoding::Exact };
        for form in self.forms(x).into_iter().filter(|f| f.encoding == bytes) {
            self.define(y, Form { encoding: Encoding::Affine(affine), ..form });
        }
        Some(())
    }

    /// The functions of one operand that begin at a node, up to a quantization, when the operand exists in
    /// bytes; else the node alone.
    pub(crate) fn table_chain(&self, head: NodeId) -> Option<Chain> {
        let node = self.graph.node(head)?;
        let mut chain = Chain::alone(head, node)?;
        let alone = chain.clone();
        if self.affine((*node.inputs.first()?)?).is_none() {
            return Some(alone);
        }
        while let Some(id) = self.only_use(chain.result) {
            let Some(next) = self.graph.node(id) else { break };
            let [output] = next.outputs[..] else { break };
            match &next.op {
                Op::Unary(_) | Op::Activation(_) | Op::Reshape(_) => {}
                Op::QuantizeLinear(_) if next.inputs.first() == Some(&Some(chain.result)) => {
                    chain.quantize = self.quantize_node(next);
                }
                _ => break,
            }
            chain.nodes.push(id);
            chain.result = output;
            if let Op::QuantizeLinear(_) = next.op {
                return Some(if chain.quantize.is_some() { chain } else { alone });
            }
        }
        Some(alone)
    }

    /// Emits functions of `x`, which exists in bytes, as a table from bytes to bytes.
    pub(crate) fn table(
        &mut self,
        functions: &[&Op],
        x: sora_ir::ValueId,
        nodes: &[NodeId],
        quantized: Quantized,
        y: sora_ir::ValueId,
    ) -> Option<()> {
        let affine = self.affine(x)?;
        let table = self.byte_table(functions, affine, quantized.affine)?;
        let form = self.forms(x).into_iter().find(|f| f.encoding == Encoding::Affine(affine))?;
        // Another shape may have no channels where the layout has them.
        let layout = if self.shape(x) == self.shape(y) { form.layout } else { Layout::Plain };
        let source = self.encoded(x, layout, form.encoding)?;
        self.emit_table(ByteFunction { source, table, nodes: nodes.to_vec() }, layout, quantized, y);
        Some(())
    }

    fn emit_table(
        &mut self,
        function: ByteFunction,
        layout: Layout,
        quantized: Quantized,
        y: sora_ir::ValueId,
    ) {
        let buf = self.fresh(y, DType::U8);
        let info = self.info("table.u8", &function.nodes, Some(y), DType::U8);
        let table = function.table.clone();
        self.build.step_in_place(info, Table { table }, &[function.source], &[buf]);
        self.define(y, Form { buf, layout, encoding: quantized.encoding });
        self.byte_functions.insert(buf, function);
    }

    /// A buffer of bytes as a function of the bytes it was made from.
    fn byte_function(&self, buf: Buf) -> ByteFunction {
        let itself = || {
            let table = Box::new(std::array::from_fn(|q| q as u8));
            ByteFunction { source: buf, table, nodes: Vec::new() }
        };
        self.byte_functions.get(&buf).cloned().unwrap_or_else(itself)
    }

    /// Emits a function of two operands that both come from the same bytes, in the same order, as a table;
    /// `None` when they do not. The step that made an operand is dropped if nobody else reads it.
    pub(crate) fn binary_table(
        &mut self,
        work: &BinaryBytes,
        operands: [Buf; 2],
        layout: Layout,
        quantized: Quantized,
        chain: &Chain,
    ) -> Option<()> {
        let [a, b] = operands.map(|buf| self.byte_function(buf));
        if a.source != b.source {
            return None;
        }
        let mut table = Box::new([0; 256]);
        work.apply(self.kernels, &a.table[..], Rhs::Same(&b.table[..]), &mut table[..]);
        let nodes = [a.nodes, b.nodes, chain.nodes.clone()].concat();
        self.emit_table(ByteFunction { source: a.source, table, nodes }, layout, quantized, chain.result);
        Some(())
    }

    fn byte_table(&self, functions: &[&Op], from: Affine, to: Affine) -> Option<Box<[u8; 256]>> {
        let bytes: Vec<u8> = (0..=u8::MAX).collect();
        let mut reals = vec![0.0f32; 256];
        quantize::dequantize_u8(self.kernels, &bytes, dequant(from), &mut reals);
        let mut values = Tensor::vector(&reals);
        for op in functions {
            values = op.eval(&EvalCx { inputs: &[Some(&values)] }).ok()?.pop()?;
        }
        let mut table = Box::new([0; 256]);
        quantize::quantize_u8(
            self.kernels,
            values.as_slice::<f32>().ok()?,
            to.scale,
            to.zero_point,
            &mut table[..],
        );
        Some(table)
    }
}
