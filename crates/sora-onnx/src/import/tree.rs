//! Ensembles of decision trees: all trees take one step for all samples at a time, by looking up where they stand.

use std::collections::HashMap;

use sora_ir::ValueId;
use sora_ir::ops::{
    BinaryKind, Concat, Expand, Gather, GatherElements, Reduce, ReduceKind, Softmax, UnaryKind, Where,
};
use sora_tensor::{DType, Tensor};

use super::node::{Built, NodeCx, size};
use crate::error::Refusal;
use crate::tensor::signed;

/// The comparison of a feature with a node's threshold.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Test {
    Leq,
    Lt,
    Gte,
    Gt,
    Eq,
    Neq,
}

const TESTS: [(Test, &str, BinaryKind); 6] = [
    (Test::Leq, "BRANCH_LEQ", BinaryKind::LessOrEqual),
    (Test::Lt, "BRANCH_LT", BinaryKind::Less),
    (Test::Gte, "BRANCH_GTE", BinaryKind::GreaterOrEqual),
    (Test::Gt, "BRANCH_GT", BinaryKind::Greater),
    (Test::Eq, "BRANCH_EQ", BinaryKind::Equal),
    (Test::Neq, "BRANCH_NEQ", BinaryKind::Equal),
];

/// A place in a tree. A leaf follows itself.
#[derive(Clone)]
struct Place {
    test: Test,
    feature: i64,
    threshold: f64,
    /// Whether a missing feature, NaN, passes the test.
    missing: bool,
    yes: usize,
    no: usize,
    /// What a leaf gives to which target.
    votes: Vec<(usize, f64)>,
}

impl Place {
    fn leaf(at: usize, votes: Vec<(usize, f64)>) -> Self {
        Place { test: Test::Leq, feature: 0, threshold: 0.0, missing: false, yes: at, no: at, votes }
    }
}

/// All trees, in one list of places.
struct Forest {
    places: Vec<Place>,
    roots: Vec<usize>,
    targets: usize,
    aggregate: ReduceKind,
    /// Added to each target at the end.
    base: Vec<f64>,
}

/// The most steps from a root to a leaf.
const DEEPEST: usize = 256;
/// The most weights of all leaves for all targets.
const MOST_WEIGHTS: usize = 1 << 26;

impl Forest {
    /// The most steps from a root to a leaf.
    fn depth(&self) -> Result<usize, Refusal> {
        let mut level: Vec<usize> = self.roots.clone();
        for depth in 0..=DEEPEST {
            let mut next = Vec::new();
            for &at in &level {
                let place =
                    self.places.get(at).ok_or_else(|| Refusal::new(format!("it has no node {at}")))?;
                if place.yes != at || place.no != at {
                    next.extend([place.yes, place.no]);
                }
            }
            if next.is_empty() {
                return Ok(depth);
            }
            next.sort_unstable();
            next.dedup();
            level = next;
        }
        Err(Refusal::new(format!("its trees are deeper than {DEEPEST} or have a cycle")))
    }

    /// One element for each place.
    fn list<T>(&self, of: impl Fn(&Place) -> T) -> Vec<T> {
        self.places.iter().map(of).collect()
    }

    /// A constant truth value for each place.
    fn mask(&self, cx: &mut NodeCx, of: impl Fn(&Place) -> bool) -> ValueId {
        let mask = self.list(|place| u8::from(of(place)));
        cx.make("mask", Tensor::vector(&mask).cast(DType::Bool))
    }

    /// Where each sample stands in each tree after all steps.
    fn walk(&self, cx: &mut NodeCx, x: ValueId) -> Result<ValueId, Refusal> {
        let depth = self.depth()?;
        let dtype = cx.dtype(x);
        let feature = cx.make_ints("features", &self.list(|place| place.feature));
        let threshold =
            cx.make("thresholds", Tensor::vector(&self.list(|place| place.threshold)).cast(dtype));
        let yes = cx.make_ints("yes", &self.list(|place| signed(place.yes)));
        let no = cx.make_ints("no", &self.list(|place| signed(place.no)));
        let inner = || self.places.iter().enumerate().filter(|(at, p)| p.yes != *at || p.no != *at);
        let used: Vec<_> =
            TESTS.iter().filter(|(test, ..)| inner().any(|(_, p)| p.test == *test)).copied().collect();
        let missing = self.places.iter().any(|p| p.missing).then(|| self.mask(cx, |place| place.missing));
        let mut kinds = Vec::new();
        for &(test, _, kind) in &used {
            kinds.push((test, kind, self.mask(cx, |place| place.test == test)));
        }
        let roots: Vec<i64> = self.roots.iter().copied().map(signed).collect();
        let roots = cx.make_ints("roots", &roots);
        let (samples, trees) = (cx.extent(x, 0)?, cx.make_ints("trees", &[signed(self.roots.len())]));
        let shape = cx.step("shape", Concat { axis: 0 }, [samples, trees])?;
        let mut at = cx.step("start", Expand {}, [roots, shape])?;
        for _ in 0..depth {
            let look = |cx: &mut NodeCx, table: ValueId| cx.step("look", Gather { axis: 0 }, [table, at]);
            let which = look(cx, feature)?;
            let value = cx.step("feature", GatherElements { axis: 1 }, [x, which])?;
            let limit = look(cx, threshold)?;
            let mut passes = None;
            for &(test, kind, mask) in &kinds {
                let mut holds = cx.binary(kind, value, limit)?;
                if test == Test::Neq {
                    holds = cx.unary(UnaryKind::Not, holds)?;
                }
                if kinds.len() > 1 {
                    let here = look(cx, mask)?;
                    holds = cx.binary(BinaryKind::And, holds, here)?;
                }
                passes = Some(match passes {
                    Some(so_far) => cx.binary(BinaryKind::Or, so_far, holds)?,
                    None => holds,
                });
            }
            let Some(mut passes) = passes else { break };
            if let Some(missing) = missing {
                let number = cx.binary(BinaryKind::Equal, value, value)?;
                let absent = cx.unary(UnaryKind::Not, number)?;
                let tracks = look(cx, missing)?;
                let absent = cx.binary(BinaryKind::And, absent, tracks)?;
                passes = cx.binary(BinaryKind::Or, passes, absent)?;
            }
            let (yes, no) = (look(cx, yes)?, look(cx, no)?);
            at = cx.step("step", Where {}, [passes, yes, no])?;
        }
        Ok(at)
    }

    /// The sums, means or extremes of what the leaves give to each target.
    fn scores(&self, cx: &mut NodeCx, x: ValueId) -> Result<ValueId, Refusal> {
        let dtype = cx.dtype(x);
        if cx.rank(x) != 2 || !dtype.is_float() {
            return Err(Refusal::new(format!("its input {} is not a matrix of floats", cx.ty(x))));
        }
        let count = self.places.len().checked_mul(self.targets).filter(|&n| n <= MOST_WEIGHTS && n > 0);
        let count = count.ok_or_else(|| Refusal::new(format!("{} targets are too many", self.targets)))?;
        // What a target that a leaf gives nothing to counts as.
        let nothing = match self.aggregate {
            ReduceKind::Min => f64::from(f32::MAX),
            ReduceKind::Max => f64::from(f32::MIN),
            _ => 0.0,
        };
        let mut weights = vec![nothing; count];
        for (place, row) in self.places.iter().zip(weights.chunks_exact_mut(self.targets)) {
            for &(target, weight) in &place.votes {
                let cell = row.get_mut(target);
                let cell = cell.ok_or_else(|| Refusal::new(format!("it has no target {target}")))?;
                *cell = match self.aggregate {
                    ReduceKind::Min => cell.min(weight),
                    ReduceKind::Max => cell.max(weight),
                    _ => *cell + weight,
                };
            }
        }
        let weights = Tensor::from_f64s(dtype, &[self.places.len(), self.targets], &weights);
        let weights = cx.make("weights", weights.map_err(|e| Refusal::new(e.to_string()))?);
        let leaves = self.walk(cx, x)?;
        let votes = cx.step("votes", Gather { axis: 0 }, [weights, leaves])?;
        let op = Reduce { kind: self.aggregate, axes: vec![1], keep_dims: false };
        let scores = cx.step("scores", op, [votes])?;
        if self.base.is_empty() {
            return Ok(scores);
        }
        let base = Tensor::vector(&self.base).cast(dtype);
        if base.len() != 1 && base.len() != self.targets {
            return Err(Refusal::new(format!(
                "{} base values do not fit {} targets",
                base.len(),
                self.targets
            )));
        }
        let base = cx.make("base", base);
        cx.binary(BinaryKind::Add, scores, base)
    }
}

/// The scores after the transform of this number among those of ONNX.
fn transformed(cx: &mut NodeCx, scores: ValueId, transform: &str) -> Built {
    match transform {
        "NONE" => Ok(vec![scores]),
        "SOFTMAX" => cx.add(Softmax { axis: -1, log: false }, [scores]),
        "LOGISTIC" => Ok(vec![cx.unary(UnaryKind::Sigmoid, scores)?]),
        other => Err(Refusal::new(format!("post_transform={other} is not supported"))
            .hint("apply it to the scores in your program")),
    }
}

/// A list of integers that the node must have.
fn integers<'a>(cx: &NodeCx<'a>, name: &str) -> Result<&'a [i64], Refusal> {
    cx.ints(name).ok_or_else(|| Refusal::new(format!("its {name} are missing")))
}

/// A list of numbers, as a tensor or as floats.
fn numbers(cx: &mut NodeCx, name: &str) -> Result<Option<Vec<f64>>, Refusal> {
    for name in [name.to_owned(), format!("{name}_as_tensor")] {
        let Some(attribute) = cx.attribute(&name) else { continue };
        return Ok(Some(match attribute.t.as_deref() {
            Some(tensor) => cx.tensor(tensor)?.to_f64s(),
            None => attribute.floats.iter().copied().map(f64::from).collect(),
        }));
    }
    Ok(None)
}

fn required(cx: &mut NodeCx, name: &str) -> Result<Vec<f64>, Refusal> {
    numbers(cx, name)?.ok_or_else(|| Refusal::new(format!("its {name} are missing")))
}

/// An element of a parallel list.
fn at<T: Copy>(list: &[T], index: usize, name: &str) -> Result<T, Refusal> {
    let element = list.get(index).copied();
    element.ok_or_else(|| Refusal::new(format!("its {name} are fewer than its nodes")))
}

/// The form of version 5: nodes and leaves in lists of their own.
pub(super) fn ensemble(cx: &mut NodeCx) -> Built {
    let x = cx.input(0)?;
    let (features, roots) = (integers(cx, "nodes_featureids")?, integers(cx, "tree_roots")?);
    let (yes, no) = (integers(cx, "nodes_truenodeids")?, integers(cx, "nodes_falsenodeids")?);
    let (yes_leaf, no_leaf) = (integers(cx, "nodes_trueleafs")?, integers(cx, "nodes_falseleafs")?);
    let (splits, modes) = (required(cx, "nodes_splits")?, required(cx, "nodes_modes")?);
    let (targets, weights) = (integers(cx, "leaf_targetids")?, required(cx, "leaf_weights")?);
    let missing = cx.ints("nodes_missing_value_tracks_true");
    let members = numbers(cx, "membership_values")?.unwrap_or_default();
    let mut members = members.split(|member| member.is_nan());
    let (nodes, leaves) = (features.len(), weights.len());
    // Leaves come after the nodes, and what members of sets add after those.
    let target = |id: i64, leaf: i64| {
        let id = size(id, "node")?;
        let (offset, count) = if leaf != 0 { (nodes, leaves) } else { (0, nodes) };
        (id < count).then_some(offset + id).ok_or_else(|| Refusal::new(format!("it has no node {id}")))
    };
    let (mut places, mut added) = (Vec::new(), Vec::new());
    for node in 0..nodes {
        let mode = at(&modes, node, "nodes_modes")?;
        let test = TESTS.iter().zip([0.0, 1.0, 2.0, 3.0, 4.0, 5.0]).find(|(_, code)| *code == mode);
        let test = test.map(|(row, _)| row.0);
        let mut place = Place {
            test: test.unwrap_or(Test::Eq),
            feature: at(features, node, "nodes_featureids")?,
            threshold: at(&splits, node, "nodes_splits")?,
            missing: missing.and_then(|m| m.get(node)).is_some_and(|&m| m != 0),
            yes: target(at(yes, node, "nodes_truenodeids")?, at(yes_leaf, node, "nodes_trueleafs")?)?,
            no: target(at(no, node, "nodes_falsenodeids")?, at(no_leaf, node, "nodes_falseleafs")?)?,
            votes: Vec::new(),
        };
        if test.is_none() {
            // One test for each member, the next if this one fails.
            let set = (mode == 6.0).then(|| members.next()).flatten().filter(|set| !set.is_empty());
            let set = set.ok_or_else(|| Refusal::new("its membership_values do not fit its nodes_modes"))?;
            let otherwise = place.no;
            let mut rest = set.iter().copied().enumerate().peekable();
            let mut chain = Vec::new();
            while let Some((_, member)) = rest.next() {
                let after = nodes + leaves + added.len() + chain.len();
                let no = if rest.peek().is_some() { after } else { otherwise };
                chain.push(Place { threshold: member, no, ..place.clone() });
            }
            let mut chain = chain.into_iter();
            place = chain.next().unwrap_or(place);
            added.extend(chain);
        }
        places.push(place);
    }
    for (leaf, &weight) in weights.iter().enumerate() {
        let target = size(at(targets, leaf, "leaf_targetids")?, "leaf_targetids")?;
        places.push(Place::leaf(nodes + leaf, vec![(target, weight)]));
    }
    places.extend(added);
    let roots = roots.iter().map(|&root| target(root, 0)).collect::<Result<Vec<_>, _>>()?;
    let aggregate = match cx.int("aggregate_function", 1) {
        0 => ReduceKind::Mean,
        1 => ReduceKind::Sum,
        2 => ReduceKind::Min,
        3 => ReduceKind::Max,
        other => return Err(Refusal::new(format!("aggregate_function={other} is not known"))),
    };
    let targets = size(cx.int("n_targets", 1), "n_targets")?;
    let scores = Forest { places, roots, targets, aggregate, base: Vec::new() }.scores(cx, x)?;
    let names = ["NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT"];
    let transform = size(cx.int("post_transform", 0), "post_transform")?;
    transformed(cx, scores, names.get(transform).copied().unwrap_or("of this number"))
}

/// The form before version 5: nodes and votes named by the number of their tree and their own.
pub(super) fn regressor(cx: &mut NodeCx) -> Built {
    let x = cx.input(0)?;
    let (trees, ids) = (integers(cx, "nodes_treeids")?, integers(cx, "nodes_nodeids")?);
    let features = integers(cx, "nodes_featureids")?;
    let (yes, no) = (integers(cx, "nodes_truenodeids")?, integers(cx, "nodes_falsenodeids")?);
    let (splits, modes) = (required(cx, "nodes_values")?, cx.texts("nodes_modes"));
    let missing = cx.ints("nodes_missing_value_tracks_true");
    let numbered: HashMap<(i64, i64), usize> =
        trees.iter().copied().zip(ids.iter().copied()).enumerate().map(|(at, key)| (key, at)).collect();
    let find = |tree: i64, id: i64| {
        let found = numbered.get(&(tree, id)).copied();
        found.ok_or_else(|| Refusal::new(format!("its tree {tree} has no node {id}")))
    };
    let (mut places, mut roots, mut last) = (Vec::new(), Vec::new(), None);
    for (node, (&tree, mode)) in trees.iter().zip(&modes).enumerate() {
        if last != Some(tree) {
            roots.push(node);
            last = Some(tree);
        }
        if mode == "LEAF" {
            places.push(Place::leaf(node, Vec::new()));
            continue;
        }
        let test = TESTS.iter().find(|(_, name, _)| mode == name).map(|row| row.0);
        places.push(Place {
            test: test.ok_or_else(|| Refusal::new(format!("the mode `{mode}` of a node is not known")))?,
            feature: at(features, node, "nodes_featureids")?,
            threshold: at(&splits, node, "nodes_values")?,
            missing: missing.and_then(|m| m.get(node)).is_some_and(|&m| m != 0),
            yes: find(tree, at(yes, node, "nodes_truenodeids")?)?,
            no: find(tree, at(no, node, "nodes_falsenodeids")?)?,
            votes: Vec::new(),
        });
    }
    let (vote_trees, vote_nodes) = (integers(cx, "target_treeids")?, integers(cx, "target_nodeids")?);
    let (targets, weights) = (integers(cx, "target_ids")?, required(cx, "target_weights")?);
    for (vote, (&tree, &id)) in vote_trees.iter().zip(vote_nodes).enumerate() {
        let target = size(at(targets, vote, "target_ids")?, "target_ids")?;
        let weight = at(&weights, vote, "target_weights")?;
        if let Some(place) = places.get_mut(find(tree, id)?) {
            place.votes.push((target, weight));
        }
    }
    let aggregate = match cx.text("aggregate_function", "SUM").as_ref() {
        "AVERAGE" => ReduceKind::Mean,
        "SUM" => ReduceKind::Sum,
        "MIN" => ReduceKind::Min,
        "MAX" => ReduceKind::Max,
        other => return Err(Refusal::new(format!("aggregate_function=`{other}` is not known"))),
    };
    let targets = size(cx.int("n_targets", 1), "n_targets")?;
    let base = numbers(cx, "base_values")?.unwrap_or_default();
    let scores = Forest { places, roots, targets, aggregate, base }.scores(cx, x)?;
    let transform = cx.text("post_transform", "NONE");
    transformed(cx, scores, &transform)
}
