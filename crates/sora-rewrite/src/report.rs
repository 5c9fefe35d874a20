//! What fired, and how it is told.

use std::collections::BTreeMap;
use std::fmt;

/// One change of a graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fired {
    /// The rule or pass.
    pub rule: &'static str,
    /// Name of the node that it changed or removed.
    pub node: String,
    /// What became of it, such as `Conv, Mul → Conv`.
    pub detail: String,
}

/// All changes in order. Prints as a table of counts followed by the list of changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The changes.
    pub fired: Vec<Fired>,
}

impl Report {
    /// How often each rule or pass fired, by name.
    pub fn counts(&self) -> BTreeMap<&'static str, usize> {
        let mut counts = BTreeMap::new();
        for fired in &self.fired {
            *counts.entry(fired.rule).or_insert(0) += 1;
        }
        counts
    }

    pub(crate) fn push(&mut self, rule: &'static str, node: &str, detail: impl Into<String>) {
        self.fired.push(Fired { rule, node: node.to_owned(), detail: detail.into() });
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.fired.is_empty() {
            return writeln!(f, "nothing to simplify");
        }
        let mut counts: Vec<_> = self.counts().into_iter().collect();
        counts.sort_by_key(|&(rule, count)| (std::cmp::Reverse(count), rule));
        for (rule, count) in counts {
            writeln!(f, "{count:6} × {rule}")?;
        }
        writeln!(f)?;
        for Fired { rule, node, detail } in &self.fired {
            writeln!(f, "{rule} at `{node}`: {detail}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequent_rules_come_first_and_every_change_is_listed() {
        let mut report = Report::default();
        report.push("merge_transposes", "a", "Transpose, Transpose → Transpose");
        report.push("fold_constants", "b", "4 bytes");
        report.push("fold_constants", "c", "8 bytes");
        insta::assert_snapshot!(report, @"
             2 × fold_constants
             1 × merge_transposes

        merge_transposes at `a`: Transpose, Transpose → Transpose
        fold_constants at `b`: 4 bytes
        fold_constants at `c`: 8 bytes
        ");
    }
}
