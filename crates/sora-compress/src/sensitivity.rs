//! What every layer with weights costs in each of its formats, alone: all other layers stay in single precision. Choices start from
//! this, and reports show it as what else was tried.

use std::collections::BTreeMap;

use serde::Serialize;
use sora_data::{Classification, paired_drop};
use sora_exec::Session;
use sora_ir::Graph;
use sora_ir::ops::Op;
use sora_tensor::Tensor;

use crate::CompressError;
use crate::choose::Cost;
use crate::explain::Reason;
use crate::measure::{self, LayerProfile};
use crate::placement::Plan;
use crate::range::decibels;
use crate::recipe::Format;
use crate::search::{Candidate, LEAST_BITS, Search};
use crate::weights::{self, BITS, QuantizedWeights};

/// A format that a layer might have, and what came of trying it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Alternative {
    /// The format.
    pub format: Format,
    /// Bits of the levels of its weights, where they are quantized.
    pub weight_bits: Option<u32>,
    /// Signal to noise at the network's output with this layer alone in the format, in dB; `None` where nothing differs. Of a final
    /// softmax, the logarithms are compared.
    pub output_sqnr_db: Option<f64>,
    /// How far the metric drops with this layer alone in the format, as a fraction of some of the samples for decisions.
    pub drop: f64,
    /// Time of the layer in one run, in ms, where a kernel was attributed to it.
    pub ms: Option<f64>,
    /// Bytes of its weights in the file, as estimated from their distribution where files are coded.
    pub bytes: u64,
}

/// What was tried with the layers, by index.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sensitivity {
    /// Samples that drops were measured on.
    pub(crate) samples: usize,
    tried: BTreeMap<usize, Vec<Tried>>,
}

/// A format of a layer, measured alone.
#[derive(Clone, Debug)]
struct Tried {
    format: Format,
    bits: u32,
    noise: f64,
    drop: f64,
    ms: Option<f64>,
    bytes: f64,
}

/// A format with what it costs, for a choice.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Offer {
    pub(crate) format: Format,
    pub(crate) bits: u32,
    /// Percent of the weights that are made zero.
    pub(crate) zeros: u32,
    pub(crate) cost: Cost,
}

/// Most and fewest samples that a layer is tried on.
const SAMPLES: (usize, usize) = (512, 32);

/// Multiply-adds of all trials together, from which on they take fewer samples: about a minute of one core.
const WORK: f64 = 2e12;

/// The bits that are measured beside 8 where fewer are allowed; what the others do is between and beyond in proportion to the error
/// of the weights.
pub(crate) const FEW: u32 = 4;

impl Sensitivity {
    /// The alternatives of a layer; none for one that has no weights or was not tried.
    pub(crate) fn alternatives(&self, layer: usize) -> Vec<Alternative> {
        let alternative = |tried: &Tried| Alternative {
            format: tried.format,
            weight_bits: (tried.format != Format::F32).then_some(tried.bits),
            output_sqnr_db: (tried.noise > 0.0).then(|| decibels(1.0, tried.noise)),
            drop: tried.drop,
            ms: tried.ms,
            bytes: tried.bytes.round() as u64,
        };
        self.tried.get(&layer).into_iter().flatten().map(alternative).collect()
    }

    /// Noise over signal at the output with a layer alone in a format.
    pub(crate) fn noise(&self, layer: usize, format: Format, bits: u32) -> Option<f64> {
        let mut tried = self.tried.get(&layer)?.iter();
        tried.find(|tried| tried.format == format && tried.bits == bits).map(|tried| tried.noise)
    }

    /// Signal to noise at the output in dB with a layer alone in 8 bits.
    pub(crate) fn output_sqnr_db(&self, layer: usize) -> Option<f64> {
        let int8 = self.tried.get(&layer)?.iter().find(|tried| tried.format != Format::F32)?;
        (int8.noise > 0.0).then(|| decibels(1.0, int8.noise))
    }
}

impl Search<'_> {
    /// As [`Search::sensitivity`], by the times of the network with everything in 8 bits.
    pub(crate) fn tried(&self, everything: &Candidate) -> Result<Sensitivity, CompressError> {
        let session = Session::new(everything.graph.clone(), self.exec.clone())?;
        self.sensitivity(&self.deciding_profile(&everything.placement, &everything.graph, &session)?)
    }

    /// Tries every format of every layer with weights. `times` are those with everything in 8 bits.
    fn sensitivity(&self, times: &LayerProfile) -> Result<Sensitivity, CompressError> {
        let layers: Vec<usize> = self.quantizable().collect();
        if layers.is_empty() {
            return Ok(Sensitivity::default());
        }
        let trials: Vec<(usize, Format, u32)> = layers.iter().flat_map(|&layer| self.trials(layer)).collect();
        let (samples, before) = self.some(self.tried_samples(trials.len()));
        let all = samples.len() * (trials.len() + 1);
        self.progress.stage("Trying each layer alone", Some(all as u64));
        let exact = self.scores(self.reference, &samples)?;
        let rows = self.times_by_rows(&trials)?;
        let mut found = Sensitivity { samples: samples.len(), tried: BTreeMap::new() };
        for layer in layers {
            let own = times.times[layer];
            let bytes = self.bytes(layer, None)?;
            let real =
                Tried { format: Format::F32, bits: BITS, noise: 0.0, drop: 0.0, ms: own.before, bytes };
            found.tried.insert(layer, vec![real]);
        }
        for (layer, format, bits) in trials {
            let (_, graph) = self.quantized(&self.alone(layer, format, bits))?;
            let scores = self.scores(&Session::new(graph, self.exec.clone())?, &samples)?;
            let ms = match format {
                Format::Int8Weights if !self.network.layers[layer].is_table() => times.times[layer].before,
                Format::Int8ByRows => rows.as_ref().and_then(|rows| rows.times[layer].after),
                _ => times.times[layer].after,
            };
            let tried = Tried {
                format,
                bits,
                noise: scores.noise(&exact),
                drop: paired_drop(&before, &scores.correct)?.drop,
                ms,
                bytes: self.bytes(layer, Some(bits))?,
            };
            found.tried.entry(layer).or_default().push(tried);
        }
        Ok(found)
    }

    /// The formats of each layer that was tried, with what they cost; where weights may have fewer bits, also those not measured.
    pub(crate) fn offers(
        &self,
        sensitivity: &Sensitivity,
    ) -> Result<BTreeMap<usize, Vec<Offer>>, CompressError> {
        let mut offers: BTreeMap<usize, Vec<Offer>> = BTreeMap::new();
        for (&layer, tried) in &sensitivity.tried {
            let own = offers.entry(layer).or_default();
            let offer = |t: &Tried, bits, noise, bytes| Offer {
                format: t.format,
                bits,
                zeros: 0,
                cost: Cost { noise, ms: t.ms.unwrap_or(0.0), bytes },
            };
            let full = tried.iter().filter(|t| t.bits == BITS);
            own.extend(full.clone().map(|t| offer(t, BITS, t.noise, t.bytes)));
            let Some(few) = tried.iter().find(|t| t.bits == FEW) else { continue };
            let Some(whole) = full.clone().find(|t| t.format == few.format) else { continue };
            let error = |bits| self.weight_error(layer, bits);
            let (least, most) = (error(BITS)?, error(FEW)?);
            let slope = (few.noise - whole.noise).max(0.0) / (most - least).max(f64::MIN_POSITIVE);
            for bits in LEAST_BITS..BITS {
                let (more, bytes) = (slope * (error(bits)? - least).max(0.0), self.bytes(layer, Some(bits))?);
                let quantized = full.clone().filter(|t| t.format != Format::F32);
                own.extend(quantized.map(|t| offer(t, bits, t.noise + more, bytes)));
            }
        }
        Ok(offers)
    }

    /// The formats that are measured.
    fn trials(&self, layer: usize) -> Vec<(usize, Format, u32)> {
        let known = &self.network.layers[layer];
        let formats: &[Format] = match () {
            () if known.is_table() => &[Format::Int8Weights],
            () if known.by_rows() => &[Format::Int8, Format::Int8ByRows, Format::Int8Weights],
            () => &[Format::Int8, Format::Int8Weights],
        };
        let mut trials: Vec<_> = formats.iter().map(|&format| (layer, format, BITS)).collect();
        if self.options.fewer_bits {
            trials.push((layer, formats[0], FEW));
        }
        trials
    }

    /// The plan with only this layer quantized.
    fn alone(&self, layer: usize, format: Format, bits: u32) -> Plan {
        let others = self.quantizable().filter(|&other| other != layer);
        let mut plan =
            Plan { kept: others.map(|other| (other, Reason::Prescribed)).collect(), ..Plan::default() };
        plan.set(layer, format, bits, Reason::Prescribed);
        plan
    }

    /// Times with every product quantized by rows, where there is one.
    fn times_by_rows(&self, trials: &[(usize, Format, u32)]) -> Result<Option<LayerProfile>, CompressError> {
        let products = trials.iter().filter(|(_, format, _)| *format == Format::Int8ByRows);
        let plan = Plan { dynamic: products.map(|(layer, ..)| *layer).collect(), ..Plan::default() };
        if plan.dynamic.is_empty() {
            return Ok(None);
        }
        let (placement, graph) = self.quantized(&plan)?;
        let session = Session::new(graph.clone(), self.exec.clone())?;
        self.deciding_profile(&placement, &graph, &session).map(Some)
    }

    /// On how many samples so many trials are measured.
    fn tried_samples(&self, trials: usize) -> usize {
        let shapes: Vec<(&str, &[usize])> =
            self.sample.inputs.iter().map(|(name, tensor)| (name.as_str(), tensor.shape())).collect();
        let macs = |graph: Graph| -> f64 {
            let macs = graph.nodes().map(|(_, node)| {
                let types: Vec<_> = node.inputs.iter().map(|v| v.map(|v| graph.ty(v))).collect();
                let outputs: Vec<_> = node.outputs.iter().map(|&v| graph.ty(v)).collect();
                node.op.macs(&types, &outputs).known().unwrap_or(0) as f64
            });
            macs.sum()
        };
        let batch = self.feed.batch_size(1) as f64;
        let macs = self.network.graph.specialize(&shapes).map_or(0.0, macs) / batch;
        let samples = WORK / (macs * trials as f64).max(1.0);
        (samples as usize).clamp(SAMPLES.1, SAMPLES.0)
    }

    /// Bytes of a layer's weights in the file, in real numbers or in levels of so many bits: of a coded file, what the entropy of
    /// single weights says.
    fn bytes(&self, layer: usize, bits: Option<u32>) -> Result<f64, CompressError> {
        let mut bytes = 0.0;
        for (exact, axis) in self.weights(layer) {
            let channels = exact.shape().get(axis).copied().unwrap_or(0);
            bytes += match bits {
                Some(bits) if self.options.fewer_bits => {
                    coded_bytes(&weights::quantize(exact, axis, &[], bits)?)
                }
                Some(_) => exact.len() as f64 + 5.0 * channels as f64,
                None if self.options.fewer_bits => {
                    let some = exact.to_f32s().iter().filter(|w| **w != 0.0).count() as f64;
                    (4.0 * some + exact.len() as f64 / 8.0).min(exact.byte_len() as f64)
                }
                None => exact.byte_len() as f64,
            };
        }
        Ok(bytes)
    }

    /// Squared error of a layer's weights over their squares at so many bits.
    fn weight_error(&self, layer: usize, bits: u32) -> Result<f64, CompressError> {
        let (mut signal, mut error) = (0.0, 0.0);
        for (exact, axis) in self.weights(layer) {
            let quantized = weights::quantize(exact, axis, &[], bits)?;
            for (exact, rounded) in exact.to_f32s().into_iter().zip(real(&quantized, axis)) {
                signal += f64::from(exact).powi(2);
                error += f64::from(exact - rounded).powi(2);
            }
        }
        Ok(error / f64::max(signal, f64::MIN_POSITIVE))
    }

    /// The weights of a layer, each with the axis of its channels.
    fn weights(&self, layer: usize) -> impl Iterator<Item = (&Tensor, usize)> {
        let weights = self.network.layers[layer].weights().into_iter();
        weights.filter_map(|(weight, axis)| Some((self.network.graph.const_value(weight)?, axis)))
    }

    /// What a network says of samples.
    fn scores(&self, session: &Session, samples: &[usize]) -> Result<Scores, CompressError> {
        let mut values = Vec::new();
        let mut count: Option<Classification> = None;
        let visit = |_: usize, scores: &Tensor, samples: &[usize]| {
            let classes = scores.shape().iter().skip(1).product();
            let wanted: Vec<usize> = samples.iter().filter_map(|&i| self.labels.get(i).copied()).collect();
            values.extend(scores.to_f32s());
            Ok(count.get_or_insert_with(|| Classification::new(classes)).add(scores, &wanted)?)
        };
        measure::predict([session], self.feed, samples, self.options.batch, self.progress, visit)?;
        if self.ends_in_softmax() {
            // Its inputs, but for what all classes of a sample share.
            values.iter_mut().for_each(|p| *p = p.max(f32::MIN_POSITIVE).ln());
        }
        let correct = count.map_or_else(Vec::new, |count| count.correct().to_vec());
        Ok(Scores { values, correct })
    }

    fn ends_in_softmax(&self) -> bool {
        let output = self.network.graph.outputs().first().and_then(|o| self.network.graph.producer(o.value));
        matches!(output, Some((_, node, _)) if matches!(&node.op, Op::Softmax(softmax) if !softmax.log))
    }
}

/// Outputs for some samples.
struct Scores {
    values: Vec<f32>,
    correct: Vec<bool>,
}

impl Scores {
    /// Noise over signal against exact outputs.
    fn noise(&self, exact: &Scores) -> f64 {
        let (mut signal, mut noise) = (0.0, 0.0);
        for (&exact, &found) in exact.values.iter().zip(&self.values) {
            let (exact, found) = (f64::from(exact), f64::from(found));
            signal += exact * exact;
            noise += (exact - found) * (exact - found);
        }
        noise / signal.max(f64::MIN_POSITIVE)
    }
}

/// Bytes of quantized weights in a coded file.
pub(crate) fn coded_bytes(quantized: &QuantizedWeights) -> f64 {
    let levels = quantized.values.to_i64s();
    entropy(&levels) * levels.len() as f64 / 8.0 + 4.0 * quantized.scales.len() as f64
}

/// Bits for each of these numbers, one by one.
fn entropy(levels: &[i64]) -> f64 {
    let mut counts: BTreeMap<i64, f64> = BTreeMap::new();
    levels.iter().for_each(|level| *counts.entry(*level).or_default() += 1.0);
    let of = |count: &f64| {
        let share = count / levels.len() as f64;
        -share * share.log2()
    };
    counts.values().map(of).sum()
}

/// Quantized weights as real numbers.
pub(crate) fn real(quantized: &QuantizedWeights, axis: usize) -> Vec<f32> {
    let mut real = quantized.values.to_f32s();
    weights::for_each_channel(quantized.values.shape(), axis, |channel, i| {
        real[i] *= quantized.scales[channel]
    });
    real
}
