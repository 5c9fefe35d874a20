//! A compression method is two functions: what to observe, and how to apply it. All methods share one
//! calibration run.

use std::collections::HashMap;

use sora_ir::{Graph, NodeId, ValueId};
use sora_tensor::Tensor;

use crate::CompressError;
use crate::bias_correct::BIAS_CORRECTION;
use crate::dynamic::DYNAMIC_QUANTIZATION;
use crate::histogram::Histogram;
use crate::ladder::{self, Rounding};
use crate::layers::Network;
use crate::placement::Placement;
use crate::quantize::QUANTIZATION;
use crate::weights::{self, QuantizedWeights};
use crate::weights_only::WEIGHTS_ONLY;

/// What to gather about a value over the calibration samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Statistic {
    /// The distribution of all elements.
    Histogram,
    /// The elements at each index of an axis: see [`Channels`].
    Channels {
        /// The axis.
        axis: usize,
    },
}

/// A wish to observe a value of the floating-point network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Request {
    /// The value.
    pub value: ValueId,
    /// What to gather.
    pub statistic: Statistic,
}

/// What the elements at each index of an axis are like.
#[derive(Clone, Debug, PartialEq)]
pub struct Channels {
    /// Means.
    pub means: Vec<f64>,
    /// Means of squares.
    pub squares: Vec<f64>,
    /// Least elements, at most 0.
    pub least: Vec<f32>,
    /// Greatest elements, at least 0.
    pub greatest: Vec<f32>,
}

impl Channels {
    /// Of this many channels, before anything is seen.
    pub(crate) fn new(extent: usize) -> Self {
        let (sums, ends) = (vec![0.0; extent], vec![0.0; extent]);
        Channels { means: sums.clone(), squares: sums, least: ends.clone(), greatest: ends }
    }

    /// Adds elements of one channel; means are sums until they are divided.
    pub(crate) fn add(&mut self, channel: usize, values: &[f32]) {
        let (mut sum, mut square) = (0.0, 0.0);
        let (mut least, mut greatest) = (self.least[channel], self.greatest[channel]);
        for &value in values {
            sum += f64::from(value);
            square += f64::from(value) * f64::from(value);
            least = least.min(value);
            greatest = greatest.max(value);
        }
        self.means[channel] += sum;
        self.squares[channel] += square;
        (self.least[channel], self.greatest[channel]) = (least, greatest);
    }
}

/// What a calibration run saw.
#[derive(Clone, Debug, Default)]
pub struct Observations {
    /// Distributions by value.
    pub histograms: HashMap<ValueId, Histogram>,
    /// Channels by value and axis.
    pub channels: HashMap<(ValueId, usize), Channels>,
    /// Samples seen.
    pub samples: usize,
}

/// What a method works with.
#[derive(Clone, Copy)]
pub struct Cx<'a> {
    /// The floating-point network.
    pub network: &'a Network,
    /// Where it is quantized.
    pub placement: &'a Placement,
    /// What calibration saw.
    pub observations: &'a Observations,
    /// What chooses the levels of weights; each becomes the nearest one where there is none.
    pub rounding: Option<&'a Rounding<'a>>,
}

impl Cx<'_> {
    /// The node of `graph`, as methods left it so far, that computes what node `id` does in the network.
    pub(crate) fn counterpart(&self, graph: &Graph, id: NodeId) -> Option<NodeId> {
        let output = *self.network.graph.node(id)?.outputs.first()?;
        let value = graph.find(&self.network.graph.value(output).name)?;
        graph.producer(value).map(|(id, ..)| id)
    }

    /// The weights of linear layer `index` as integers, one scale for each channel along `axis`, no less than `least` has it.
    ///
    /// # Errors
    /// [`CompressError::Tensor`] when `exact` does not hold `f32`.
    pub(crate) fn weights(
        &self,
        index: usize,
        exact: &Tensor,
        axis: usize,
        least: &[f32],
    ) -> Result<QuantizedWeights, CompressError> {
        let nearest = weights::quantize(exact, axis, least, self.placement.bits[index])?;
        match self.rounding {
            Some(rounding) => rounding.choose(index, exact, nearest, self.placement.bits[index]),
            None => Ok(nearest),
        }
    }
}

/// One compression method.
pub struct Method {
    /// Name in reports.
    pub name: &'static str,
    /// What it does, in one sentence.
    pub about: &'static str,
    /// What it wants to know about the network.
    pub observe: fn(&Network) -> Vec<Request>,
    /// Changes the graph, which starts as that of the network and goes through the methods in order. Values keep
    /// their names.
    pub apply: fn(&Cx, Graph) -> Result<Graph, CompressError>,
}

/// All methods, in the order in which they are applied.
pub static METHODS: &[Method] = &[QUANTIZATION, BIAS_CORRECTION, DYNAMIC_QUANTIZATION, WEIGHTS_ONLY];

/// Everything that any method or rung wants observed, once.
pub fn requests(network: &Network) -> Vec<Request> {
    let methods = METHODS.iter().flat_map(|method| (method.observe)(network));
    let mut requests: Vec<Request> = methods.chain(ladder::observe(network)).collect();
    requests.sort_unstable();
    requests.dedup();
    requests
}

/// Applies all methods in turn.
///
/// # Errors
/// Whatever a method refuses.
pub fn apply(cx: &Cx) -> Result<Graph, CompressError> {
    METHODS.iter().try_fold(cx.network.graph.clone(), |graph, method| (method.apply)(cx, graph))
}
