//! The passes, one verb and one file each.

mod apply_rules;
mod control_flow;
mod eliminate_common_subexpressions;
mod eliminate_dead_code;
mod fold_constants;

pub(crate) use apply_rules::apply_rules;
pub(crate) use control_flow::simplify_control_flow;
pub(crate) use eliminate_common_subexpressions::eliminate_common_subexpressions;
pub(crate) use eliminate_dead_code::eliminate_dead_code;
pub(crate) use fold_constants::{FoldBudget, fold_constants};
