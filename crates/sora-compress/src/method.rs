//! A compression method is two functions: what to observe, and how to apply it. All methods share one
//! calibration run.

use std::collections::HashMap;

use sora_ir::{Graph, ValueId};

use crate::CompressError;
use crate::bias_correct::BIAS_CORRECTION;
use crate::dynamic::DYNAMIC_QUANTIZATION;
use crate::histogram::Histogram;
use crate::layers::Network;
use crate::placement::Placement;
use crate::quantize::QUANTIZATION;

/// What to gather about a value over the calibration samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Statistic {
    /// The distribution of all elements.
    Histogram,
    /// The mean of the elements at each index of an axis.
    ChannelMean {
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

/// What a calibration run saw.
#[derive(Clone, Debug, Default)]
pub struct Observations {
    /// Distributions by value.
    pub histograms: HashMap<ValueId, Histogram>,
    /// Means by value, one for each channel.
    pub means: HashMap<ValueId, Vec<f64>>,
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
pub static METHODS: &[Method] = &[QUANTIZATION, BIAS_CORRECTION, DYNAMIC_QUANTIZATION];

/// Everything that any method wants observed, once.
pub fn requests(network: &Network) -> Vec<Request> {
    let mut requests: Vec<Request> = METHODS.iter().flat_map(|method| (method.observe)(network)).collect();
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
