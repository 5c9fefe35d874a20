//! Applies the rules until none fires.

use std::collections::VecDeque;

use sora_ir::{Graph, NodeId};

use crate::editor::Editor;
use crate::manager::{RewriteError, check_change};
use crate::{Report, Rule};

/// Changes per node after which a sweep stops: far above what rules that make progress need.
const MAX_CHANGES_PER_NODE: usize = 32;

/// Visits every node in order of execution, and after a change the nodes that it added and their readers.
pub(crate) fn apply_rules(
    graph: &mut Graph,
    rules: &[&Rule],
    check: bool,
    report: &mut Report,
) -> Result<(), RewriteError> {
    let mut queue: VecDeque<NodeId> = graph.order()?.into();
    let mut changes_left = MAX_CHANGES_PER_NODE * (queue.len() + 1);
    let mut editor = Editor::new(graph);
    while let Some(id) = queue.pop_front() {
        for rule in rules {
            let view = editor.view();
            let Some(node) = view.graph.node(id) else { break };
            let Some(patch) = (rule.apply)(&view, node) else { continue };
            let name = node.name.clone();
            let replaced: Vec<_> = patch.replacements.iter().map(|&(old, _)| old).collect();
            let readers: Vec<_> = replaced.iter().flat_map(|&old| editor.readers(old).to_vec()).collect();
            let Some(applied) = editor.apply(&patch)? else { continue };
            report.push(rule.name, &name, applied.detail);
            check_change(editor.view().graph, check, rule.name, &name)?;
            changes_left -= 1;
            if changes_left == 0 {
                return Ok(());
            }
            // What changed comes next, so that a chain is rewritten from its start to its end.
            for id in applied.added.into_iter().chain(readers).rev() {
                queue.push_front(id);
            }
            break;
        }
    }
    Ok(())
}
