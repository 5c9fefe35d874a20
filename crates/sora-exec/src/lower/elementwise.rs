//! Functions of one or two operands, element by element, in whatever layout the operands exist.

use sora_ir::ops::{ActivationKind, BinaryKind, UnaryKind};
use sora_ir::{Node, NodeId, Op, ValueId};
use sora_kernels::elementwise::{Binary as BinaryOp, Unary as UnaryOp};
use sora_tensor::{Bool, DType, Tensor};

use super::Lowering;
use super::build::Buf;
use super::chain::{Chain, activation};
use super::layout::{Encoding, Form, Layout};
use crate::steps::compare::Compare;
use crate::steps::convert::{Cast, Choose};
use crate::steps::elementwise::{Binary, BinaryBytes, Broadcast, Pattern, Unary};
use crate::steps::movement::{CopyView, View};

impl Lowering<'_> {
    pub(crate) fn unary(&mut self, node: &Node, chain: &Chain) -> Option<()> {
        let x = (*node.inputs.first()?)?;
        if let Some(quantized) = chain.quantize {
            let nodes: Vec<_> = chain.nodes.iter().filter_map(|&id| self.graph.node(id)).collect();
            let functions = nodes[..nodes.len() - 1].iter().map(|n| &n.op);
            let functions: Vec<&Op> = functions.filter(|op| !matches!(op, Op::Reshape(_))).collect();
            return self.table(&functions, x, &chain.nodes, quantized, chain.result);
        }
        if let Op::Unary(op) = &node.op
            && op.kind == UnaryKind::Identity
        {
            for form in self.forms(x) {
                self.define(chain.result, form);
            }
            return Some(());
        }
        if let Op::Unary(op) = &node.op
            && op.kind == UnaryKind::Not
            && self.dtype(x) == DType::Bool
        {
            return self.negate(x, chain);
        }
        let op = unary_kernel(&node.op)?;
        if self.dtype(x) != DType::F32 {
            return None;
        }
        let layout = self.some_layout(x);
        let (from, to) = (self.exact(x, layout)?, self.fresh(chain.result, DType::F32));
        let info = self.info("unary.f32", &chain.nodes, Some(chain.result), DType::F32);
        self.build.step_in_place(info, Unary { op }, &[from], &[to]);
        self.define_exact(chain.result, to, layout);
        Some(())
    }

    pub(crate) fn binary(&mut self, kind: BinaryKind, node: &Node, chain: &Chain) -> Option<()> {
        let (a, b, y) = ((*node.inputs.first()?)?, (*node.inputs.get(1)?)?, *node.outputs.first()?);
        if self.dtype(a) != DType::F32 || binary_kernel(kind).is_none() {
            return self.compare(kind, [a, b], y, chain);
        }
        let (op, reversed) = binary_kernel(kind)?;
        if self.gate_bf16(node, chain).is_some() {
            return Some(());
        }
        let shape = self.shape(y);
        let (full, other, op) = match (self.shape(a) == shape, self.shape(b) == shape) {
            // A constant adapts to the layout of the other operand.
            (true, true) if self.is_constant(a) => (b, a, reversed),
            (true, _) => (a, b, op),
            (false, true) => (b, a, reversed),
            (false, false) => return self.binary_stretched(a, b, y, op, chain),
        };
        match (chain.quantize, self.affine(full), self.affine(other)) {
            (Some(quantized), Some(fa), Some(oa)) => {
                let (layout, broadcast) = self.operands(full, other)?;
                let (x, _) = self.quantized(full, layout)?;
                let encoding = Encoding::Affine(oa);
                let z = self.operand(other, layout, encoding, &broadcast, y)?;
                let work = BinaryBytes {
                    op,
                    broadcast: broadcast.unwrap_or_else(|| Broadcast::same(self.len(y))),
                    operands: [fa, oa],
                    activation: chain.activation,
                    result: quantized.affine,
                };
                let same = self.shape(other) == shape;
                if same && self.binary_table(&work, [x, z], layout, quantized, chain).is_some() {
                    return Some(());
                }
                let buf = self.fresh(chain.result, DType::U8);
                let info = self.info("binary.u8", &chain.nodes, Some(chain.result), DType::U8);
                self.build.step(info, work, &[x, z], &[buf]);
                self.define(chain.result, Form { buf, layout, encoding: quantized.encoding });
                Some(())
            }
            _ if chain.nodes.len() > 1 => None,
            _ => {
                let (layout, broadcast) = self.operands(full, other)?;
                let x = self.exact(full, layout)?;
                let z = self.operand(other, layout, Encoding::Exact, &broadcast, y)?;
                let broadcast = broadcast.unwrap_or_else(|| Broadcast::same(self.len(y)));
                self.emit_binary(op, broadcast, [x, z], layout, chain)
            }
        }
    }

    /// A comparison, logic, or arithmetic of integers.
    fn compare(&mut self, kind: BinaryKind, [a, b]: [ValueId; 2], y: ValueId, chain: &Chain) -> Option<()> {
        if chain.nodes.len() > 1 {
            return None;
        }
        let (shape, dtype) = (self.shape(y), self.dtype(a));
        Compare::new(kind, dtype, Broadcast::same(0))?;
        let (full, other, kind) = match (self.shape(a) == shape, Compare::mirrored(kind)) {
            (false, Some(mirrored)) if self.shape(b) == shape => (b, a, mirrored),
            _ => (a, b, kind),
        };
        let left = match self.shape(full) == shape {
            true => self.plain(full)?,
            false => self.stretched(full, Encoding::Exact, y, Layout::Plain)?,
        };
        let (right, broadcast) = match pattern(&View::of(&self.shape(other)).broadcast(&shape)) {
            Some(broadcast) => (self.plain(other)?, broadcast),
            None => (self.stretched(other, Encoding::Exact, y, Layout::Plain)?, Broadcast::same(self.len(y))),
        };
        let work = Compare::new(kind, dtype, broadcast)?;
        let to = self.dtype(y);
        let buf = self.fresh(y, to);
        let info = self.info(&format!("binary.{dtype}"), &chain.nodes, Some(y), to);
        self.build.step(info, work, &[left, right], &[buf]);
        self.define_exact(y, buf, Layout::Plain);
        Some(())
    }

    /// The other truth values.
    fn negate(&mut self, x: ValueId, chain: &Chain) -> Option<()> {
        let broadcast = pattern(&View::of(&[]).broadcast(&self.shape(x)))?;
        let work = Compare::new(BinaryKind::Xor, DType::Bool, broadcast)?;
        let truth = self.build.constant(Tensor::scalar(Bool::from(true)));
        let (from, to) = (self.plain(x)?, self.fresh(chain.result, DType::Bool));
        let info = self.info("unary.bool", &chain.nodes, Some(chain.result), DType::Bool);
        self.build.step(info, work, &[from, truth], &[to]);
        self.define_exact(chain.result, to, Layout::Plain);
        Some(())
    }

    fn emit_binary(
        &mut self,
        op: BinaryOp,
        broadcast: Broadcast,
        operands: [Buf; 2],
        layout: Layout,
        chain: &Chain,
    ) -> Option<()> {
        let buf = self.fresh(chain.result, DType::F32);
        let info = self.info("binary.f32", &chain.nodes, Some(chain.result), DType::F32);
        self.build.step_in_place(info, Binary { op, broadcast }, &operands, &[buf]);
        self.define_exact(chain.result, buf, layout);
        Some(())
    }

    /// Both operands are stretched: the left one is copied out first.
    fn binary_stretched(
        &mut self,
        a: ValueId,
        b: ValueId,
        y: ValueId,
        op: BinaryOp,
        chain: &Chain,
    ) -> Option<()> {
        if chain.nodes.len() > 1 {
            return None;
        }
        let left = self.stretched(a, Encoding::Exact, y, Layout::Plain)?;
        let view = View::of(&self.shape(b)).broadcast(&self.shape(y));
        let (right, broadcast) = match pattern(&view) {
            Some(broadcast) => (self.plain(b)?, broadcast),
            None => (self.stretched(b, Encoding::Exact, y, Layout::Plain)?, Broadcast::same(self.len(y))),
        };
        self.emit_binary(op, broadcast, [left, right], Layout::Plain, chain)
    }

    /// `Where`: a choice between two operands, each stretched to the result's shape.
    pub(crate) fn choose(&mut self, id: NodeId, node: &Node) -> Option<()> {
        let y = *node.outputs.first()?;
        let mut bufs = Vec::new();
        for input in node.inputs.get(..3)? {
            let v = (*input)?;
            bufs.push(match self.shape(v) == self.shape(y) {
                true => self.plain(v)?,
                false => self.stretched(v, Encoding::Exact, y, Layout::Plain)?,
            });
        }
        let dtype = self.dtype(y);
        let buf = self.fresh(y, dtype);
        let info = self.info("where", &[id], Some(y), dtype);
        self.build.step(info, Choose { size: dtype.size() }, &bufs, &[buf]);
        self.define_exact(y, buf, Layout::Plain);
        Some(())
    }

    pub(crate) fn cast(&mut self, id: NodeId, node: &Node) -> Option<()> {
        let (x, y) = ((*node.inputs.first()?)?, *node.outputs.first()?);
        let (from, to) = (self.dtype(x), self.dtype(y));
        let layout = self.some_layout(x);
        let (source, buf) = (self.exact(x, layout)?, self.fresh(y, to));
        let info = self.info(&format!("cast.{to}"), &[id], Some(y), to);
        self.build.step(info, Cast { from, to }, &[source], &[buf]);
        self.define_exact(y, buf, layout);
        Some(())
    }

    /// The layout to combine two operands in, the first of the result's shape, and how the second repeats in
    /// it; no broadcast means that it has to be stretched first.
    fn operands(&mut self, full: ValueId, other: ValueId) -> Option<(Layout, Option<Broadcast>)> {
        let shape = self.shape(full);
        let mut layout = self.some_layout(full);
        if self.shape(other) == shape {
            return Some((layout, Some(Broadcast::same(self.len(full)))));
        }
        let scalar = self.len(other) == 1;
        if !scalar && layout != Layout::Plain && layout != self.last(full) {
            // Flattened since: the channels cannot be told any more.
            layout = Layout::Plain;
        }
        let view = View::of(&self.shape(other)).broadcast(&shape);
        let order = axes(shape.len(), layout);
        let view = if scalar { view } else { view.permuted(&order) };
        Some((layout, pattern(&view)))
    }

    /// The second operand's bytes, stretched when there is no broadcast for it.
    fn operand(
        &mut self,
        other: ValueId,
        layout: Layout,
        encoding: Encoding,
        broadcast: &Option<Broadcast>,
        y: ValueId,
    ) -> Option<Buf> {
        let same = self.shape(other) == self.shape(y);
        let read = if same { layout } else { Layout::Plain };
        match (broadcast, encoding) {
            (None, _) => self.stretched(other, encoding, y, layout),
            (Some(_), Encoding::Exact) => self.exact(other, read),
            (Some(_), _) => self.encoded(other, read, encoding),
        }
    }

    /// A copy of `v` broadcast to the shape of `y`.
    fn stretched(&mut self, v: ValueId, encoding: Encoding, y: ValueId, layout: Layout) -> Option<Buf> {
        let from = match encoding {
            Encoding::Exact => self.plain(v)?,
            _ => self.encoded(v, Layout::Plain, encoding)?,
        };
        let dtype = self.stored(v, encoding);
        let shape = self.shape(y);
        let view =
            View::of(&self.shape(v)).broadcast(&shape).permuted(&axes(shape.len(), layout)).collapsed();
        let to = self.fresh(y, dtype);
        let info = self.conversion(v, "expand", dtype);
        self.build.step(info, CopyView { view, size: dtype.size() }, &[from], &[to]);
        Some(to)
    }
}

/// The graph's axes in the order of memory.
pub(crate) fn axes(rank: usize, layout: Layout) -> Vec<usize> {
    match layout {
        Layout::Last(_) if rank > 2 => [0].into_iter().chain(2..rank).chain([1]).collect(),
        _ => (0..rank).collect(),
    }
}

/// How a broadcast view repeats along the row-major result; `None` when no kernel reads it so.
pub(crate) fn pattern(view: &View) -> Option<Broadcast> {
    let View { shape, strides, .. } = view.collapsed();
    let rank = shape.len();
    let (pattern, inner) = match (&shape[..], &strides[..]) {
        ([], _) => (Pattern::Scalar, 0),
        ([.., len], [.., 0, 1]) => (Pattern::Row(*len), 2),
        (_, [.., 1]) => (Pattern::Same, 1),
        ([.., period], [.., 1, 0]) => (Pattern::Column(*period), 2),
        (_, [.., 0]) => (Pattern::Scalar, 1),
        _ => return None,
    };
    let block = shape[rank - inner..].iter().product();
    let outer =
        View { start: 0, shape: shape[..rank - inner].to_vec(), strides: strides[..rank - inner].to_vec() };
    Some(Broadcast { block, starts: outer.offsets(), pattern })
}

/// The kernel of a function of one operand.
fn unary_kernel(op: &Op) -> Option<UnaryOp> {
    if let Some(activation) = activation(op) {
        return Some(UnaryOp::Activation(activation));
    }
    Some(match op {
        Op::Unary(op) => match op.kind {
            UnaryKind::Abs => UnaryOp::Abs,
            UnaryKind::Ceil => UnaryOp::Ceil,
            UnaryKind::Cos => UnaryOp::Cos,
            UnaryKind::Erf => UnaryOp::Erf,
            UnaryKind::Exp => UnaryOp::Exp,
            UnaryKind::Floor => UnaryOp::Floor,
            UnaryKind::GeluTanh => UnaryOp::GeluTanh,
            UnaryKind::Log => UnaryOp::Log,
            UnaryKind::Neg => UnaryOp::Neg,
            UnaryKind::Reciprocal => UnaryOp::Reciprocal,
            UnaryKind::Round => UnaryOp::Round,
            UnaryKind::Sign => UnaryOp::Sign,
            UnaryKind::Sin => UnaryOp::Sin,
            UnaryKind::Softplus => UnaryOp::Softplus,
            UnaryKind::Softsign => UnaryOp::Softsign,
            UnaryKind::Sqrt => UnaryOp::Sqrt,
            _ => return None,
        },
        Op::Activation(op) => match op.kind {
            ActivationKind::Elu => UnaryOp::Elu { alpha: op.alpha.0 },
            _ => return None,
        },
        _ => return None,
    })
}

/// The kernel of a function of two operands, and that of the operands exchanged.
fn binary_kernel(kind: BinaryKind) -> Option<(BinaryOp, BinaryOp)> {
    Some(match kind {
        BinaryKind::Add => (BinaryOp::Add, BinaryOp::Add),
        BinaryKind::Sub => (BinaryOp::Sub, BinaryOp::RSub),
        BinaryKind::Mul => (BinaryOp::Mul, BinaryOp::Mul),
        BinaryKind::Div => (BinaryOp::Div, BinaryOp::RDiv),
        BinaryKind::Min => (BinaryOp::Min, BinaryOp::Min),
        BinaryKind::Max => (BinaryOp::Max, BinaryOp::Max),
        BinaryKind::Pow => (BinaryOp::Pow, BinaryOp::RPow),
        _ => return None,
    })
}
