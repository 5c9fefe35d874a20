//! Deciding which layers compute in 8 bits and which values between them are quantized, with what range.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Mutex;

use sora_ir::ValueId;

use crate::explain::Reason;
use crate::histogram::Histogram;
use crate::layers::{Network, Role};
use crate::range::{self, Choice};
use crate::recipe::Format;
use crate::weights::BITS;

/// Which layers are kept from 8 bits, by index, and why.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Layers given back to single precision.
    pub kept: BTreeMap<usize, Reason>,
    /// Products whose activations are quantized by rows as they come, because a fixed range cost too much accuracy.
    pub dynamic: BTreeSet<usize>,
    /// Layers of which only the weights are quantized, and why; tables are so anyway.
    pub weights_only: BTreeMap<usize, Reason>,
    /// Bits of the levels of a layer's weights, where they are fewer than 8: the file is smaller, the kernels are the same.
    pub bits: BTreeMap<usize, u32>,
    /// Rungs of the [ladder](crate::ladder::RUNGS) that are used, by index.
    pub rungs: BTreeSet<usize>,
    /// Percent of the weights of a layer that are made zero before they are quantized.
    pub zeros: BTreeMap<usize, u32>,
}

impl Plan {
    /// The same plan with one more layer in single precision.
    pub fn keeping(&self, layer: usize, reason: Reason) -> Self {
        let mut plan = self.clone();
        plan.kept.insert(layer, reason);
        plan
    }

    /// The same plan with a layer that computes in single precision. Its weights stay integers, which costs no time, unless that is
    /// all that it has.
    pub fn without_kernel(mut self, network: &Network, layer: usize, reason: Reason) -> Self {
        let known = &network.layers[layer];
        self.dynamic.remove(&layer);
        match known.has_weights() && !known.is_table() {
            true => self.weights_only.insert(layer, reason),
            false => self.kept.insert(layer, reason),
        };
        self
    }

    /// Gives a layer that is in 8 bits so far a format, and its weights, if they are quantized, so many bits; `reason` says why it
    /// computes in single precision, if that is so.
    pub fn set(&mut self, layer: usize, format: Format, bits: u32, reason: Reason) {
        match format {
            Format::F32 => drop(self.kept.insert(layer, reason)),
            Format::Int8ByRows => drop(self.dynamic.insert(layer)),
            Format::Int8Weights => drop(self.weights_only.insert(layer, reason)),
            Format::Int8 => {}
        }
        if bits < BITS {
            self.bits.insert(layer, bits);
        }
    }

    /// Makes so many percent of a layer's weights zero.
    pub fn set_zeros(&mut self, layer: usize, percent: u32) {
        if percent > 0 {
            self.zeros.insert(layer, percent);
        }
    }

    /// What the plan wants a layer with weights to be.
    pub fn format(&self, network: &Network, layer: usize) -> Format {
        match () {
            () if self.kept.contains_key(&layer) => Format::F32,
            () if self.weights_only.contains_key(&layer) || network.layers[layer].is_table() => {
                Format::Int8Weights
            }
            () if self.dynamic.contains(&layer) => Format::Int8ByRows,
            () => Format::Int8,
        }
    }

    /// The same plan with a layer one step more exact: activations of a product are quantized by rows, then only weights are
    /// quantized, before the layer is given back.
    pub fn relieving(&self, network: &Network, layer: usize, reason: Reason) -> Self {
        match self.format(network, layer) {
            Format::Int8 if network.layers[layer].by_rows() => {
                let mut plan = self.clone();
                plan.dynamic.insert(layer);
                plan
            }
            Format::Int8 | Format::Int8ByRows => self.clone().without_kernel(network, layer, reason),
            Format::Int8Weights | Format::F32 => self.keeping(layer, reason),
        }
    }
}

/// Where a graph is quantized.
#[derive(Clone, Debug)]
pub struct Placement {
    /// For each layer: whether it computes in 8 bits on values of fixed ranges.
    pub int8: Vec<bool>,
    /// For each layer: whether it computes in 8 bits on values quantized by rows as they come.
    pub dynamic: Vec<bool>,
    /// The values that are quantized, with the range that each one shares with its class.
    pub choices: BTreeMap<ValueId, Choice>,
    /// The quantized values, each with the values that its range was chosen from.
    pub sources: BTreeMap<ValueId, BTreeSet<ValueId>>,
    /// For each layer: whether it computes in single precision on weights that are stored as integers.
    pub weights_only: Vec<bool>,
    /// For each layer: bits of the levels of its weights, if they are quantized.
    pub bits: Vec<u32>,
}

impl Placement {
    /// Places quantization by the rules of the operators:
    ///
    /// - a linear layer takes 8 bits unless the plan keeps it, and its input is quantized;
    /// - of tables, and of layers that the plan says so of, only the weights are quantized;
    /// - layers that move values take 8 bits where another 8-bit layer reads them, and keep the scale; those that leave some out,
    ///   such as pools, only where what they read is in 8 bits already: behind them there is less to quantize;
    /// - layers that compute on activations take 8 bits between 8-bit layers on all sides;
    /// - a residual is quantized where an 8-bit layer computes it.
    ///
    /// A value that no 8-bit layer reads stays in floating point, so a network's results and whatever leads to
    /// them through floating-point layers are rounded no more than needed. Ranges are left empty.
    pub fn without_ranges(network: &Network, plan: &Plan) -> Self {
        let layers = &network.layers;
        let allowed = |i: &usize| !matches!(layers[*i].role, Role::Float(_)) && !plan.kept.contains_key(i);
        let recurrent = |i: usize| matches!(layers[i].role, Role::Recurrent(_));
        let stored = |i: usize| layers[i].has_weights() && plan.format(network, i) == Format::Int8Weights;
        let weights_only: Vec<bool> = (0..layers.len()).map(|i| allowed(&i) && stored(i)).collect();
        let computes = |i: usize| allowed(&i) && !weights_only[i];
        let dynamic: Vec<bool> =
            (0..layers.len()).map(|i| computes(i) && (recurrent(i) || plan.dynamic.contains(&i))).collect();
        let mut int8: Vec<bool> = (0..layers.len()).map(|i| computes(i) && !dynamic[i]).collect();
        let readers = readers(network);
        // Starts from everything and gives up what has no neighbour, until nothing changes.
        loop {
            let needed = |v: &ValueId| {
                readers.get(v).is_some_and(|r| r.iter().any(|&i| reads_int8(network, &int8, i, *v)))
            };
            let unfit = |i: &usize| {
                let layer = &layers[*i];
                let produced = |v: &ValueId| network.producer(*v).is_some_and(|p| int8[p]);
                match layer.role {
                    Role::Linear(_) | Role::Recurrent(_) | Role::Table(_) | Role::Float(_) => false,
                    Role::Passthrough | Role::Unify => {
                        let alone = |v: &ValueId| {
                            readers[v].iter().all(|r| r == i || !reads_int8(network, &int8, *r, *v))
                        };
                        let early = layer.reads.iter().all(|v| !produced(v) && alone(v));
                        !layer.outputs.iter().any(needed) || early && shrinks(network, *i)
                    }
                    Role::Arithmetic | Role::Lut => {
                        !layer.outputs.iter().any(needed) || !layer.reads.iter().all(produced)
                    }
                }
            };
            let gone: Vec<usize> = (0..layers.len()).filter(|i| int8[*i]).filter(unfit).collect();
            if gone.is_empty() {
                break;
            }
            gone.into_iter().for_each(|i| int8[i] = false);
        }

        let mut classes = Classes::default();
        for (i, layer) in layers.iter().enumerate() {
            for &value in layer.reads.iter().filter(|&&v| reads_int8(network, &int8, i, v)) {
                classes.of(value);
            }
            if int8[i] && matches!(layer.role, Role::Passthrough | Role::Unify) {
                let members = layer.reads.iter().chain(&layer.outputs);
                let members: Vec<_> = members.filter(|&&v| is_f32(network, v)).copied().collect();
                members.windows(2).for_each(|pair| classes.join(pair[0], pair[1]));
            } else if int8[i] && layer.linear().is_none() {
                for &value in &layer.outputs {
                    classes.of(value);
                }
            }
        }
        let moved = |v: &ValueId| {
            let role = network.producer(*v).filter(|&i| int8[i]).map(|i| &layers[i].role);
            matches!(role, Some(Role::Passthrough | Role::Unify))
        };
        let sources = classes.members().into_iter().flat_map(|members| {
            let mut sources: BTreeSet<_> = members.iter().copied().filter(|v| !moved(v)).collect();
            if sources.is_empty() {
                sources = members.clone();
            }
            members.into_iter().map(move |v| (v, sources.clone()))
        });
        Placement {
            sources: sources.collect(),
            choices: BTreeMap::new(),
            bits: (0..layers.len()).map(|i| plan.bits.get(&i).copied().unwrap_or(BITS)).collect(),
            int8,
            dynamic,
            weights_only,
        }
    }

    /// As [`Placement::without_ranges`], with the ranges that `ranges` chooses.
    pub fn new(network: &Network, plan: &Plan, ranges: &Ranges) -> Self {
        let mut placement = Self::without_ranges(network, plan);
        let choose = |(&value, sources): (&ValueId, &BTreeSet<ValueId>)| (value, ranges.choose(sources));
        placement.choices = placement.sources.iter().map(choose).collect();
        placement
    }

    /// The layer that quantizing a value is a cost of: the one that computes the value in 8 bits, else the first
    /// that computes on it in 8 bits, perhaps after others have moved it.
    pub fn owner(&self, network: &Network, value: ValueId) -> Option<usize> {
        if let Some(producer) = network.producer(value).filter(|&i| self.int8[i]) {
            return Some(producer);
        }
        let (mut value, mut owner) = (value, None);
        // Readers follow what they read, so this ends.
        while let Some(reader) = (0..network.layers.len()).find(|&i| self.reads_int8(network, i, value)) {
            owner = Some(reader);
            let layer = &network.layers[reader];
            match (&layer.role, layer.outputs.first()) {
                (Role::Passthrough | Role::Unify, Some(&moved)) => value = moved,
                _ => break,
            }
        }
        owner
    }

    /// Whether anything is quantized.
    pub fn is_empty(&self) -> bool {
        ![&self.int8, &self.dynamic, &self.weights_only].into_iter().any(|layers| layers.contains(&true))
    }

    /// Whether a layer computes in 8 bits.
    pub fn in_bytes(&self, index: usize) -> bool {
        self.int8[index] || self.dynamic[index]
    }

    /// Whether a layer's weights, if it has any, are stored in bytes.
    pub fn stores_bytes(&self, index: usize) -> bool {
        self.in_bytes(index) || self.weights_only[index]
    }

    /// Whether a layer runs otherwise than in single precision: what is only stored in bytes takes the same time, but for tables.
    pub fn runs_bytes(&self, network: &Network, index: usize) -> bool {
        self.in_bytes(index) || self.weights_only[index] && network.layers[index].is_table()
    }

    /// Whether layer `index` reads `value` in 8 bits.
    pub fn reads_int8(&self, network: &Network, index: usize, value: ValueId) -> bool {
        reads_int8(network, &self.int8, index, value)
    }
}

fn is_f32(network: &Network, value: ValueId) -> bool {
    network.graph.ty(value).dtype == sora_tensor::DType::F32
}

/// Whether a layer gives fewer elements than it reads, open extents being equal.
fn shrinks(network: &Network, index: usize) -> bool {
    let elements = |values: &[ValueId]| -> usize {
        let shapes = values.iter().map(|&v| &network.graph.ty(v).shape);
        shapes.map(|shape| shape.iter().filter_map(sora_ir::Dim::known).product::<usize>()).sum()
    };
    let layer = &network.layers[index];
    elements(&layer.outputs) < elements(&layer.reads)
}

fn reads_int8(network: &Network, int8: &[bool], index: usize, value: ValueId) -> bool {
    let layer = &network.layers[index];
    if !int8[index] || !layer.reads.contains(&value) {
        return false;
    }
    let residual_only = layer.linear().is_some() && layer.reads.first() != Some(&value);
    !residual_only || network.producer(value).is_some_and(|p| int8[p])
}

/// For each activation, the layers that read it.
fn readers(network: &Network) -> HashMap<ValueId, Vec<usize>> {
    let mut readers: HashMap<ValueId, Vec<usize>> = HashMap::new();
    for (i, layer) in network.layers.iter().enumerate() {
        layer.reads.iter().for_each(|&v| readers.entry(v).or_default().push(i));
    }
    readers
}

/// Sets of values that share a range, by union and find.
#[derive(Default)]
struct Classes(BTreeMap<ValueId, ValueId>);

impl Classes {
    fn of(&mut self, value: ValueId) -> ValueId {
        let parent = *self.0.entry(value).or_insert(value);
        if parent == value {
            return value;
        }
        let root = self.of(parent);
        self.0.insert(value, root);
        root
    }

    fn join(&mut self, a: ValueId, b: ValueId) {
        let (a, b) = (self.of(a), self.of(b));
        self.0.insert(a.max(b), a.min(b));
    }

    fn members(&mut self) -> Vec<BTreeSet<ValueId>> {
        let values: Vec<_> = self.0.keys().copied().collect();
        let mut members: BTreeMap<ValueId, BTreeSet<ValueId>> = BTreeMap::new();
        for value in values {
            members.entry(self.of(value)).or_default().insert(value);
        }
        members.into_values().collect()
    }
}

/// Chooses ranges from histograms; each set of values once.
pub struct Ranges {
    histograms: HashMap<ValueId, Histogram>,
    chosen: Mutex<HashMap<BTreeSet<ValueId>, Choice>>,
}

impl Ranges {
    /// Ranges of the values that were observed.
    pub fn new(histograms: HashMap<ValueId, Histogram>) -> Self {
        Ranges { histograms, chosen: Mutex::default() }
    }

    /// One range for all of `values`.
    pub fn choose(&self, values: &BTreeSet<ValueId>) -> Choice {
        let mut chosen = self.chosen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *chosen.entry(values.clone()).or_insert_with(|| {
            let mut all = Histogram::new();
            values.iter().filter_map(|v| self.histograms.get(v)).for_each(|h| all.merge(h));
            range::choose(&all)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Net;

    fn int8(network: &Network, placement: &Placement) -> Vec<String> {
        let layers = network.layers.iter().zip(&placement.int8);
        layers.filter(|(_, int8)| **int8).map(|(l, _)| l.name.clone()).collect()
    }

    fn quantized(network: &Network, placement: &Placement) -> Vec<String> {
        placement.sources.keys().map(|v| network.graph.value(*v).name.clone()).collect()
    }

    fn plan(network: &Network, kept: &[&str]) -> Plan {
        let index = |name: &&str| network.layers.iter().position(|l| l.name == **name).unwrap();
        let kept = kept.iter().map(|n| (index(n), Reason::NotFaster { ratio: 1.0 })).collect();
        Plan { kept, ..Plan::default() }
    }

    #[test]
    fn results_stay_float_and_pools_follow() {
        let (mut net, x) = Net::new(1, &[3, 8, 8]);
        let a = net.conv("a", x, 4);
        let a = net.relu("relu", a);
        let a = net.pool("pool", a);
        let a = net.flatten("flat", a, 64);
        let y = net.dense("y", a, 5);
        let y = net.softmax("softmax", y);
        let network = Network::new(net.done(y)).unwrap();
        let all = Placement::without_ranges(&network, &Plan::default());
        assert_eq!(int8(&network, &all), ["a", "pool", "flat", "y"]);
        assert_eq!(quantized(&network, &all), ["x", "relu", "pool", "flat"]);
        // The pool's range is that of what it reads.
        let of = |name: &str| network.graph.find(name).unwrap();
        assert_eq!(all.sources[&of("flat")], BTreeSet::from([of("relu")]));
        assert_eq!(all.owner(&network, of("relu")), Some(0));
        let half = Placement::without_ranges(&network, &plan(&network, &["y"]));
        assert_eq!(int8(&network, &half), ["a"]);
        assert_eq!(quantized(&network, &half), ["x"]);
        let half = Placement::without_ranges(&network, &plan(&network, &["pool"]));
        assert_eq!(int8(&network, &half), ["a", "flat", "y"]);
        assert_eq!(quantized(&network, &half), ["x", "pool", "flat"]);
        assert_eq!(half.sources[&of("flat")], BTreeSet::from([of("pool")]));
        // Behind the pool of a float layer there is less to quantize than in front of it.
        let half = Placement::without_ranges(&network, &plan(&network, &["a"]));
        assert_eq!(int8(&network, &half), ["flat", "y"]);
        assert_eq!(quantized(&network, &half), ["pool", "flat"]);
        // Nobody but the dense layer needs the pool's result in 8 bits; that it is flattened first costs nothing.
        assert_eq!(half.owner(&network, of("pool")), Some(3));
    }

    #[test]
    fn residuals_are_quantized_where_they_are_made_in_8_bits() {
        let (mut net, x) = Net::new(2, &[4, 8, 8]);
        let a = net.conv("a", x, 4);
        let b = net.conv("b", a, 4);
        let c = net.conv("c", b, 4);
        let sum = net.add("sum", c, a);
        let d = net.conv("d", sum, 4);
        let network = Network::new(net.done(d)).unwrap();
        let all = Placement::without_ranges(&network, &Plan::default());
        assert_eq!(quantized(&network, &all), ["x", "a", "b", "sum"]);
        // The residual of a float layer stays float: only `b` reads `a` in 8 bits.
        let half = Placement::without_ranges(&network, &plan(&network, &["a", "b"]));
        assert_eq!(quantized(&network, &half), ["b", "sum"]);
    }

    #[test]
    fn arithmetic_needs_8_bits_on_all_sides() {
        let (mut net, x) = Net::new(3, &[4, 8, 8]);
        let a = net.conv("a", x, 4);
        let r = net.relu("r", x);
        let twice = net.add("twice", a, a);
        let b = net.conv("b", twice, 4);
        let mixed = net.add("mixed", r, r);
        let c = net.conv("c", mixed, 4);
        let y = net.add("y", b, c);
        let network = Network::new(net.done(y)).unwrap();
        let all = Placement::without_ranges(&network, &Plan::default());
        // `mixed` computes on a float input; `y` is a residual of the later convolution.
        assert_eq!(int8(&network, &all), ["a", "twice", "b", "c"]);
        assert!(quantized(&network, &all).contains(&"twice".to_owned()));
        assert!(!quantized(&network, &all).contains(&"y".to_owned()));
    }
}
