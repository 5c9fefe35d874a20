//! The pass manager: runs the passes to a fixed point and checks what they do.

use sora_ir::{Graph, IrError, verify};

use crate::passes::{
    FoldBudget, apply_rules, eliminate_common_subexpressions, eliminate_dead_code, fold_constants,
    simplify_control_flow,
};
use crate::{RULES, Report, Rule};

/// How far [`optimize`] goes.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bytes by which folding may grow the constants over the whole run. Folding that does not grow them is free.
    pub fold_budget_bytes: usize,
    /// Runs the verifier after every change; a change that breaks the graph is an error that names its rule.
    pub check: bool,
    /// Leaves out rules that round differently than the graph as written; see [`Rule::exact`].
    pub exact_only: bool,
    /// What is left out besides, by the names that reports have: to measure what it is worth.
    pub without: Vec<String>,
    /// Nodes that the iterations of a loop may come to.
    pub unrolled_nodes: usize,
    /// Whether both branches of an `If` are computed, and one chosen, where it is not known which is taken.
    pub both_branches: bool,
}

impl Options {
    /// Whether a rule, a pass or a part of a pass is applied.
    pub(crate) fn allows(&self, name: &str) -> bool {
        !self.without.iter().any(|other| other == name)
    }
}

impl Default for Options {
    /// 16 MiB of growth, all rules, loops of up to 512 nodes, checked in debug builds.
    fn default() -> Self {
        Options {
            fold_budget_bytes: 16 << 20,
            check: cfg!(debug_assertions),
            exact_only: false,
            without: Vec::new(),
            unrolled_nodes: 512,
            both_branches: false,
        }
    }
}

/// Why a graph could not be optimized.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RewriteError {
    /// The graph does not verify.
    #[error(transparent)]
    Graph(#[from] IrError),
    /// A change left a graph that does not verify: a fault of the rule or pass, not of the model.
    #[error("{rule} at node `{node}` broke the graph: {source}")]
    Broken {
        /// Rule or pass.
        rule: &'static str,
        /// Node that it changed.
        node: String,
        /// What the verifier found.
        source: Box<IrError>,
    },
}

/// Rounds after which the manager stops though something may still fire. Each round runs every pass to its own
/// fixed point, so real networks settle in two or three.
const MAX_ROUNDS: usize = 16;

/// Simplifies `graph` in place to a fixed point of all passes and rules, and tells what fired.
///
/// The result computes the same outputs under the same names, up to rounding; see [`Options::exact_only`].
///
/// # Errors
/// [`RewriteError::Graph`] for a graph that is inconsistent from the start, [`RewriteError::Broken`] under
/// [`Options::check`].
pub fn optimize(graph: &mut Graph, options: &Options) -> Result<Report, RewriteError> {
    if options.check {
        verify(graph)?;
    }
    let applied = |rule: &&Rule| (rule.exact || !options.exact_only) && options.allows(rule.name);
    let rules: Vec<&Rule> = RULES.iter().filter(applied).collect();
    optimize_with(graph, &rules, options)
}

/// Writes out control flow for who cannot go through it, such as gradients: loops become recurrent layers or their iterations, of
/// an `If` one branch stays, or both with a choice between their results. What is constant is computed; all else stays as it is.
/// A loop whose iterations are not known, or are more than about a hundred thousand nodes, stays as well.
///
/// # Errors
/// As [`optimize`].
pub fn write_out_control_flow(graph: &mut Graph) -> Result<Report, RewriteError> {
    let options = Options { unrolled_nodes: 100_000, both_branches: true, ..Options::default() };
    let rules: Vec<&Rule> = RULES.iter().filter(|rule| rule.name == "fuse_cells").collect();
    optimize_with(graph, &rules, &options)
}

/// As [`optimize`] with these rules only.
pub(crate) fn optimize_with(
    graph: &mut Graph,
    rules: &[&Rule],
    options: &Options,
) -> Result<Report, RewriteError> {
    let mut report = Report::default();
    let mut budget = FoldBudget::new(options.fold_budget_bytes, graph);
    run(graph, rules, options, &mut budget, &mut report)?;
    Ok(report)
}

/// All passes on a graph and on the bodies in it, until none fires.
fn run(
    graph: &mut Graph,
    rules: &[&Rule],
    options: &Options,
    budget: &mut FoldBudget,
    report: &mut Report,
) -> Result<(), RewriteError> {
    for _ in 0..MAX_ROUNDS {
        let before = report.fired.len();
        eliminate_dead_code(graph, report)?;
        fold_constants(graph, budget, options.check, report)?;
        eliminate_common_subexpressions(graph, options.check, report)?;
        apply_rules(graph, rules, options.check, report)?;
        let mut simplify = |body: &mut Graph, report: &mut Report| run(body, rules, options, budget, report);
        simplify_control_flow(graph, &mut simplify, options, report)?;
        if report.fired.len() == before {
            break;
        }
    }
    Ok(())
}

/// Runs the verifier after a change, if asked to.
pub(crate) fn check_change(
    graph: &Graph,
    check: bool,
    rule: &'static str,
    node: &str,
) -> Result<(), RewriteError> {
    let broken = |source| RewriteError::Broken { rule, node: node.to_owned(), source: Box::new(source) };
    if check { verify(graph).map_err(broken) } else { Ok(()) }
}
