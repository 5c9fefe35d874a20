//! Control flow: a step whose body has programs of its own.

use sora_ir::{Node, NodeId};

use super::{Layout, Lowering};
use crate::control::Control;
use crate::steps::control::Branching;

impl Lowering<'_> {
    /// Emits an `If`, `Loop` or `Scan`.
    pub(crate) fn control(&mut self, id: NodeId, node: &Node) -> Option<()> {
        let (arguments, reads) = self.arguments(node).ok()?;
        let types: Vec<_> = node.outputs.iter().map(|&v| self.graph.ty(v).clone()).collect();
        let control = Control::new(&node.name, &node.op, &arguments, &types, &self.setting.inside())?;
        let writes: Vec<_> = node.outputs.iter().map(|&v| self.fresh(v, self.dtype(v))).collect();
        let result = *node.outputs.first()?;
        let info = self.info(control.kernel(), &[id], Some(result), self.dtype(result));
        self.build.step(info, Branching { control, arguments }, &reads, &writes);
        for (&v, buf) in node.outputs.iter().zip(writes) {
            self.define_exact(v, buf, Layout::Plain);
        }
        Some(())
    }
}
