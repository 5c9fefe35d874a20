//! A network under construction.

use std::collections::{HashMap, HashSet};

use sora_ir::ops::{Binary, BinaryKind, Op};
use sora_ir::{Dim, Graph, TensorType, ValueId};
use sora_tensor::{DType, Tensor};
use sora_train::{Dropout, Parameter, Penalty, Trainable};

use super::init::{Distribution, Rng};
use super::summary::Added;
use super::{Layer, LayerError};

/// What typical values of an input are; the element type follows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Samples {
    /// `f32`, normal.
    Normal {
        /// Mean.
        mean: f64,
        /// Standard deviation.
        std: f64,
    },
    /// `i64`, uniform from 0 to `below - 1`: rows of a table, such as words of a vocabulary.
    Index {
        /// First value that does not occur.
        below: i64,
    },
}

impl Samples {
    /// Mean 0 and standard deviation 1.
    pub const UNIT: Samples = Samples::Normal { mean: 0.0, std: 1.0 };

    fn dtype(self) -> DType {
        match self {
            Samples::Normal { .. } => DType::F32,
            Samples::Index { .. } => DType::I64,
        }
    }

    fn tensor(self, shape: &[usize], rng: &mut Rng) -> Tensor {
        match self {
            Samples::Normal { mean, std } => Distribution::Normal { mean, std }.tensor(shape, rng),
            Samples::Index { below } => {
                let values: Vec<i64> = (0..shape.iter().product()).map(|_| rng.below(below)).collect();
                Tensor::from_slice(shape, &values).expect("as many values as the shape has elements")
            }
        }
    }
}

/// A network under construction: a [`Graph`], its parameters, and the names given so far.
#[derive(Debug)]
pub struct Network {
    pub(super) graph: Graph,
    seed: u64,
    as_trained: bool,
    /// Full name of the scope that is being built, empty outside of all.
    path: String,
    taken: HashSet<String>,
    inputs: Vec<(String, Samples)>,
    pub(super) parameters: Vec<Parameter>,
    dropouts: Vec<Dropout>,
    /// Layers that are in no other one.
    pub(super) layers: Vec<Added>,
    /// Whether a layer is being built.
    inside: bool,
    /// How many steps of the sequences of a value count, where not all do.
    pub(super) lengths: HashMap<ValueId, ValueId>,
    /// Values of samples that were pushed through the network, where they are known.
    pub(super) observed: HashMap<ValueId, Tensor>,
}

/// The symbol that stands for the first extent of every input.
const BATCH: &str = "batch";

impl Network {
    /// An empty network whose parameters are as training begins: zero biases, unit scales.
    pub fn new(name: &str, seed: u64) -> Self {
        Network {
            graph: Graph::new(name),
            seed,
            as_trained: false,
            path: String::new(),
            taken: HashSet::new(),
            inputs: Vec::new(),
            parameters: Vec::new(),
            dropouts: Vec::new(),
            layers: Vec::new(),
            inside: false,
            lengths: HashMap::new(),
            observed: HashMap::new(),
        }
    }

    /// An empty network whose parameters look as training leaves them: biases and scales vary, and the statistics of
    /// batch normalization are those of random samples, so that values stay in range at every depth. For measuring
    /// speed, size and numeric error without training anything.
    pub fn as_trained(name: &str, seed: u64) -> Self {
        Network { as_trained: true, ..Self::new(name, seed) }
    }

    /// Samples that [`Network::as_trained`] pushes through the network.
    const SAMPLES: usize = 4;

    /// Adds an input; `shape` leaves out the batch, which comes first and is symbolic.
    pub fn input(&mut self, name: &str, shape: &[usize], samples: Samples) -> ValueId {
        let name = self.unique(name);
        let extents = std::iter::once(Dim::symbol(BATCH)).chain(shape.iter().map(|&d| Dim::from(d)));
        let value = self.graph.input(&name, TensorType::new(samples.dtype(), extents));
        if self.as_trained {
            let shape = [&[Self::SAMPLES], shape].concat();
            let tensor = samples.tensor(&shape, &mut Rng::new(self.seed, &name));
            self.observed.insert(value, tensor);
        }
        self.inputs.push((name, samples));
        value
    }

    /// Declares a result.
    pub fn output(&mut self, name: &str, value: ValueId) {
        self.graph.output(name, value);
    }

    /// Adds a layer that reads `x` and returns its result.
    ///
    /// # Errors
    /// As [`Layer::build`].
    pub fn layer(&mut self, x: ValueId, layer: &dyn Layer) -> Result<ValueId, LayerError> {
        let (outermost, before) = (!std::mem::replace(&mut self.inside, true), self.parameters.len());
        let built = self.scope(layer.name(), |net| (net.path.clone(), layer.build(net, x)));
        self.inside = !outermost;
        let (name, y) = (built.0, built.1?);
        if outermost {
            let (kind, parameters) = (layer.name(), before..self.parameters.len());
            self.layers.push(Added { name, kind, reads: x, gives: y, parameters });
        }
        if let (true, Some(lengths)) = (layer.keeps_steps(), self.lengths(x)) {
            self.set_lengths(y, lengths);
        }
        Ok(y)
    }

    /// Adds layers one after the other and returns the result of the last.
    ///
    /// # Errors
    /// As [`Layer::build`].
    pub fn sequence(&mut self, x: ValueId, layers: &[&dyn Layer]) -> Result<ValueId, LayerError> {
        layers.iter().try_fold(x, |x, layer| self.layer(x, *layer))
    }

    /// Runs `build` with every name below `name`, numbered if it is taken: `layer1.conv2d`, `layer1.conv2d_1`.
    pub fn scope<T>(&mut self, name: &str, build: impl FnOnce(&mut Network) -> T) -> T {
        let inner = self.unique(name);
        let outer = std::mem::replace(&mut self.path, inner);
        let result = build(self);
        self.path = outer;
        result
    }

    /// Adds one node of one output, named within the scope; an empty name is that of the scope itself.
    ///
    /// # Errors
    /// [`LayerError::Ir`] when the operator refuses the inputs.
    pub fn op(
        &mut self,
        name: &str,
        op: impl Into<Op>,
        inputs: impl IntoIterator<Item = impl Into<Option<ValueId>>>,
    ) -> Result<ValueId, LayerError> {
        Ok(self.nodes(name, op, inputs)?[0])
    }

    /// As [`Network::op`], for operators of several outputs.
    pub(super) fn nodes(
        &mut self,
        name: &str,
        op: impl Into<Op>,
        inputs: impl IntoIterator<Item = impl Into<Option<ValueId>>>,
    ) -> Result<Vec<ValueId>, LayerError> {
        let name = if name.is_empty() { self.path.clone() } else { self.unique(name) };
        Ok(self.graph.add(&name, op, inputs)?)
    }

    /// The elementwise sum of two values, as at the end of a residual block. Steps count as in the first of them that says
    /// so.
    ///
    /// # Errors
    /// [`LayerError::Ir`] when the shapes do not broadcast.
    pub fn add(&mut self, a: ValueId, b: ValueId) -> Result<ValueId, LayerError> {
        let sum = self.op("add", Binary { kind: BinaryKind::Add }, [a, b])?;
        if let Some(lengths) = self.lengths(a).or(self.lengths(b)) {
            self.set_lengths(sum, lengths);
        }
        Ok(sum)
    }

    /// Adds a trainable parameter, named within the scope.
    pub fn parameter(&mut self, name: &str, shape: &[usize], values: Distribution) -> ValueId {
        let tensor = self.draw(name, shape, values);
        self.keep(name, tensor, true)
    }

    /// Adds trainable biases of `count` channels: zeros, or small values in a network as trained.
    pub fn bias(&mut self, name: &str, count: usize) -> ValueId {
        self.parameter(name, &[count], self.bias_distribution())
    }

    /// Adds trainable scales of `count` channels: ones, or values around them in a network as trained.
    pub fn scale(&mut self, name: &str, count: usize) -> ValueId {
        let spread = if self.as_trained { 0.3 } else { 0.0 };
        self.parameter(name, &[count], Distribution::Uniform { low: 1.0 - spread, high: 1.0 + spread })
    }

    /// Adds a parameter that training does not move along a gradient, such as a statistic.
    pub fn buffer(&mut self, name: &str, tensor: Tensor) -> ValueId {
        self.keep(name, tensor, false)
    }

    /// Records that training drops elements of `value`, the result of an `Identity` node.
    pub(super) fn drop_out(&mut self, value: ValueId, rate: f64) {
        self.dropouts.push(Dropout { value, rate });
    }

    /// Adds a constant that is part of the structure and no parameter.
    pub fn constant(&mut self, name: &str, tensor: Tensor) -> ValueId {
        let name = self.unique(name);
        self.graph.constant(&name, tensor)
    }

    /// The type of a value.
    pub fn ty(&self, value: ValueId) -> &TensorType {
        self.graph.ty(value)
    }

    /// The extent of an axis that must be a number.
    ///
    /// # Errors
    /// [`LayerError::Layer`] when there is no such axis or its extent is symbolic.
    pub fn extent(&self, value: ValueId, axis: usize) -> Result<usize, LayerError> {
        let ty = self.ty(value);
        let extent = ty.shape.get(axis).and_then(Dim::known);
        extent.ok_or_else(|| self.refuse(format!("axis {axis} of {ty} must have a known extent")))
    }

    /// The number of channels of images `[N, C, H, W]`, which `x` must be.
    ///
    /// # Errors
    /// [`LayerError::Layer`] for values of another rank or with a symbolic number of channels.
    pub fn channels(&self, x: ValueId) -> Result<usize, LayerError> {
        match self.ty(x).rank() {
            4 => self.extent(x, 1),
            _ => Err(self.refuse(format!("expected images [N, C, H, W], found {}", self.ty(x)))),
        }
    }

    /// The inputs by name, with what typical values of them are.
    pub fn inputs(&self) -> &[(String, Samples)] {
        &self.inputs
    }

    /// All parameters in the order they were added.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// The number of elements of all parameters, or of the trainable ones.
    pub fn count(&self, only_trainable: bool) -> usize {
        let counted = self.parameters.iter().filter(|p| p.trainable || !only_trainable);
        counted.filter_map(|p| self.graph.const_value(p.value)).map(Tensor::len).sum()
    }

    /// The graph so far.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The network as training takes it.
    pub fn into_trainable(self) -> Trainable {
        Trainable { graph: self.graph, parameters: self.parameters, dropouts: self.dropouts }
    }

    /// The finished graph, for any batch.
    pub fn into_graph(self) -> Graph {
        self.graph
    }

    /// The finished graph for batches of this size only.
    ///
    /// # Errors
    /// [`LayerError::Ir`] naming a node that does not take it.
    pub fn into_graph_of_batch(self, batch: usize) -> Result<Graph, LayerError> {
        let inputs = self.graph.inputs().iter().map(|&id| {
            let value = self.graph.value(id);
            let shape = value.ty.shape.iter().map(|dim| dim.known().unwrap_or(batch));
            (value.name.as_str(), shape.collect::<Vec<usize>>())
        });
        let inputs: Vec<_> = inputs.collect();
        let shapes: Vec<(&str, &[usize])> = inputs.iter().map(|(name, shape)| (*name, &shape[..])).collect();
        Ok(self.graph.specialize(&shapes)?)
    }

    /// Whether statistics and other values are to look as training leaves them.
    pub(super) fn is_as_trained(&self) -> bool {
        self.as_trained
    }

    /// An error of the layer that is being built.
    pub(super) fn refuse(&self, why: impl Into<String>) -> LayerError {
        LayerError::Layer { layer: self.path.clone(), why: why.into() }
    }

    pub(super) fn path(&self) -> &str {
        &self.path
    }

    pub(super) fn bias_distribution(&self) -> Distribution {
        Distribution::Normal { mean: 0.0, std: if self.as_trained { 0.05 } else { 0.0 } }
    }

    /// The values that a parameter of this name begins with.
    pub(super) fn draw(&self, name: &str, shape: &[usize], values: Distribution) -> Tensor {
        values.tensor(shape, &mut Rng::new(self.seed, &self.full(name)))
    }

    /// Adds a parameter with these values.
    pub(super) fn keep(&mut self, name: &str, tensor: Tensor, trainable: bool) -> ValueId {
        let name = self.unique(name);
        let value = self.graph.constant(&name, tensor);
        self.parameters.push(Parameter {
            name,
            value,
            trainable,
            rate: 1.0,
            gradient: 1.0,
            penalty: Penalty::default(),
        });
        value
    }

    fn full(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// The full name, with a number if it is taken.
    fn unique(&mut self, name: &str) -> String {
        let full = self.full(name);
        let numbered = (1usize..).map(|i| format!("{full}_{i}"));
        let free = std::iter::once(full.clone()).chain(numbered).find(|name| !self.taken.contains(name));
        let free = free.unwrap_or(full);
        self.taken.insert(free.clone());
        free
    }
}
