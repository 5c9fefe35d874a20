//! An order in which nodes can be imported. Files should be sorted already, but not all are.

use std::collections::{BTreeSet, HashMap};

use super::body;
use crate::proto::NodeProto;

/// Positions of nodes in a list.
pub(crate) struct Order {
    /// Each node follows the producers of its inputs; file order among those ready.
    pub(crate) sorted: Vec<usize>,
    /// The nodes that cannot be ordered: on a cycle, or behind one.
    pub(crate) stuck: Vec<usize>,
    /// One node of each cycle.
    pub(crate) cyclic: Vec<usize>,
}

/// Orders nodes by what they need.
pub(crate) fn order(nodes: &[NodeProto]) -> Order {
    let mut producer: HashMap<&str, usize> = HashMap::new();
    for (index, node) in nodes.iter().enumerate() {
        for output in node.output.iter().filter(|o| !o.is_empty()) {
            producer.entry(output).or_insert(index);
        }
    }
    let needs: Vec<Vec<usize>> = nodes
        .iter()
        .map(|node| {
            let inner = body::captured(node);
            let names = node.input.iter().chain(&inner);
            let unique: BTreeSet<usize> =
                names.filter_map(|name| producer.get(name.as_str()).copied()).collect();
            unique.into_iter().collect()
        })
        .collect();
    let mut readers: Vec<Vec<usize>> = vec![Vec::new(); nodes.len()];
    for (index, needs) in needs.iter().enumerate() {
        for &need in needs {
            if let Some(readers) = readers.get_mut(need) {
                readers.push(index);
            }
        }
    }
    let mut missing: Vec<usize> = needs.iter().map(Vec::len).collect();
    let mut ready: BTreeSet<usize> = (0..nodes.len()).filter(|&i| missing.get(i) == Some(&0)).collect();
    let mut sorted = Vec::with_capacity(nodes.len());
    while let Some(index) = ready.pop_first() {
        sorted.push(index);
        for &reader in readers.get(index).into_iter().flatten() {
            if let Some(count) = missing.get_mut(reader) {
                *count -= 1;
                if *count == 0 {
                    ready.insert(reader);
                }
            }
        }
    }
    let stuck: Vec<usize> = (0..nodes.len()).filter(|&i| missing.get(i).is_some_and(|&m| m > 0)).collect();
    let cyclic = cycles(&stuck, &needs, &missing);
    Order { sorted, stuck, cyclic }
}

/// Walks from each stuck node to a stuck producer until a node comes again: that one is on a cycle.
fn cycles(stuck: &[usize], needs: &[Vec<usize>], missing: &[usize]) -> Vec<usize> {
    let mut walk_of: HashMap<usize, usize> = HashMap::new();
    let mut found = Vec::new();
    for (walk, &start) in stuck.iter().enumerate() {
        let mut at = start;
        loop {
            match walk_of.get(&at) {
                Some(&seen) if seen == walk => {
                    found.push(at);
                    break;
                }
                Some(_) => break,
                None => walk_of.insert(at, walk),
            };
            let is_stuck = |&&need: &&usize| missing.get(need).is_some_and(|&m| m > 0);
            match needs.get(at).and_then(|needs| needs.iter().find(is_stuck)) {
                Some(&next) => at = next,
                None => break,
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(inputs: &[&str], outputs: &[&str]) -> NodeProto {
        let own = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect();
        NodeProto { input: own(inputs), output: own(outputs), ..NodeProto::default() }
    }

    #[test]
    fn unsorted_nodes_are_sorted_and_cycles_are_found_once() {
        let unsorted = order(&[node(&["b"], &["c"]), node(&["a"], &["b"])]);
        assert_eq!((unsorted.sorted, unsorted.stuck), (vec![1, 0], vec![]));
        let cyclic = order(&[
            node(&["x"], &["y"]),
            node(&["y", "a"], &["x"]),
            node(&["x"], &["after"]),
            node(&["a"], &["free"]),
            node(&["self"], &["self"]),
        ]);
        assert_eq!((cyclic.sorted, cyclic.stuck, cyclic.cyclic), (vec![3], vec![0, 1, 2, 4], vec![0, 4]));
    }
}
