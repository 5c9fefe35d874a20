//! The one run over the calibration samples that all methods share.

use std::collections::HashMap;

use sora_data::{Dataset, Preprocess};
use sora_exec::{Options, Session};
use sora_ir::{Graph, ValueId};
use sora_tensor::Tensor;

use crate::feed::{Feed, head};
use crate::histogram::Histogram;
use crate::layers::Network;
use crate::method::{Channels, Observations, Request, Statistic};
use crate::{CompressError, Progress};

/// Bytes that the watched values of one batch may take together.
const BATCH_BYTES: usize = 256 << 20;

/// Runs the floating-point network over `samples` and gathers what `requests` ask for, in memory that does not
/// grow with their number.
///
/// # Errors
/// [`CompressError::NonFiniteActivations`] naming the first value that is NaN or infinite,
/// [`CompressError::Cancelled`], and whatever running the network gives.
pub(crate) fn calibrate(
    network: &Network,
    feed: &Feed,
    samples: &[usize],
    requests: &[Request],
    batch: usize,
    exec: &Options,
    progress: &dyn Progress,
) -> Result<Observations, CompressError> {
    let mut watched: Vec<ValueId> = requests.iter().map(|r| r.value).collect();
    watched.sort_unstable();
    watched.dedup();
    let mut wanted: HashMap<ValueId, Vec<Statistic>> = HashMap::new();
    requests.iter().for_each(|r| wanted.entry(r.value).or_default().push(r.statistic));

    let batch = batch.min(batch_within(network, feed, samples, &watched)?);
    let session = Session::watching(network.graph.clone(), watched, exec.clone())?;
    let mut gathered = Gathered::default();
    feed.observe(&session, samples, batch, progress, |value, tensor, len| {
        let statistics = wanted.get(&value).map_or(&[][..], Vec::as_slice);
        gathered.add(value, tensor, len, statistics)
    })?;
    gathered.samples = samples.len();
    let broken = gathered.histograms.iter().filter(|(_, h)| h.nonfinite() > 0).min_by_key(|(id, _)| **id);
    if let Some((&id, histogram)) = broken {
        let value = network.graph.value(id).name.clone();
        return Err(CompressError::NonFiniteActivations { value, count: histogram.nonfinite() });
    }
    Ok(gathered.finish())
}

/// The distributions of the elements of `values` over the first `samples` of the data, in their order.
///
/// # Errors
/// A [`CompressError`] when the data does not fit the network, when it cannot run, or when the caller cancels.
pub fn distributions(
    graph: &Graph,
    values: &[ValueId],
    data: &Dataset,
    preprocess: &Preprocess,
    samples: usize,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Vec<Histogram>, CompressError> {
    let feed = Feed::new(graph, data, preprocess)?;
    let session = Session::watching(graph.clone(), values.to_vec(), options.clone())?;
    let mut found: HashMap<ValueId, Histogram> = HashMap::new();
    let indices: Vec<usize> = (0..samples.min(data.len())).collect();
    progress.stage("Observing", Some(indices.len() as u64));
    feed.observe(&session, &indices, 16, progress, |value, tensor, len| {
        found.entry(value).or_default().add(&head(tensor, len)?.to_f32s());
        Ok(())
    })?;
    Ok(values.iter().map(|value| found.remove(value).unwrap_or_default()).collect())
}

/// The largest batch whose watched values stay within [`BATCH_BYTES`].
fn batch_within(
    network: &Network,
    feed: &Feed,
    samples: &[usize],
    watched: &[ValueId],
) -> Result<usize, CompressError> {
    let Some(fed) = feed.batches(samples.get(..1).unwrap_or_default(), 1).next().transpose()? else {
        return Ok(1);
    };
    let shapes: Vec<(&str, &[usize])> = fed.inputs.iter().map(|(n, t)| (n.as_str(), t.shape())).collect();
    let one = network.graph.specialize(&shapes)?;
    let elements: usize = watched.iter().filter_map(|&v| one.ty(v).known_len()).sum();
    Ok((BATCH_BYTES / elements.saturating_mul(4).max(1)).max(1))
}

#[derive(Default)]
struct Gathered {
    histograms: HashMap<ValueId, Histogram>,
    /// Sums of elements and squares so far, and how many elements of each channel were seen.
    channels: HashMap<(ValueId, usize), (Channels, u64)>,
    samples: usize,
}

impl Gathered {
    fn add(
        &mut self,
        value: ValueId,
        tensor: &Tensor,
        len: usize,
        statistics: &[Statistic],
    ) -> Result<(), CompressError> {
        let tensor = head(tensor, len)?;
        let elements = tensor.as_slice::<f32>()?;
        for statistic in statistics {
            match *statistic {
                Statistic::Histogram => self.histograms.entry(value).or_default().add(elements),
                Statistic::Channels { axis } => {
                    let extent = tensor.shape().get(axis).copied().unwrap_or(1).max(1);
                    let inner: usize = tensor.shape().iter().skip(axis + 1).product::<usize>().max(1);
                    let (channels, count) =
                        self.channels.entry((value, axis)).or_insert_with(|| (Channels::new(extent), 0));
                    if channels.means.len() == extent {
                        for (run, values) in elements.chunks_exact(inner).enumerate() {
                            channels.add(run % extent, values);
                        }
                        *count += (elements.len() / extent) as u64;
                    }
                }
            }
        }
        Ok(())
    }

    fn finish(self) -> Observations {
        let mean = |(value, (mut channels, count)): ((ValueId, usize), (Channels, u64))| {
            let sums = channels.means.iter_mut().chain(&mut channels.squares);
            sums.for_each(|sum| *sum /= count.max(1) as f64);
            (value, channels)
        };
        let channels = self.channels.into_iter().map(mean).collect();
        Observations { histograms: self.histograms, channels, samples: self.samples }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::histogram::BINS;
    use crate::method::requests;
    use crate::testing::{Net, Silent};
    use sora_data::{Dataset, Preprocess};

    fn observe(samples: usize, batch: usize) -> (Network, Observations) {
        let (mut net, x) = Net::new(5, &[2, 6, 6]);
        let a = net.conv("a", x, 3);
        let a = net.relu("relu", a);
        let a = net.flatten("flat", a, 108);
        let y = net.dense("y", a, 4);
        let x = net.random.tensor(&[samples, 2, 6, 6], 1.0);
        let network = Network::new(net.done(y)).unwrap();
        let data = Dataset::from_arrays(vec![(None, x)], None).unwrap();
        let feed = Feed::new(&network.graph, &data, &Preprocess::default()).unwrap();
        let indices: Vec<usize> = (0..samples).collect();
        let exec = Options::default();
        let wanted = requests(&network);
        let seen = calibrate(&network, &feed, &indices, &wanted, batch, &exec, &Silent).unwrap();
        (network, seen)
    }

    #[test]
    fn batches_do_not_matter_and_memory_is_constant() {
        let (network, whole) = observe(60, 60);
        let (_, parts) = observe(60, 7);
        assert_eq!(whole.histograms.len(), 3);
        let relu = network.graph.find("relu").unwrap();
        // Histograms are exact; kernels may sum in another order in another batch.
        let (a, b) = (&whole.histograms[&relu], &parts.histograms[&relu]);
        assert_eq!((a.total(), a.zeros(), whole.samples), (b.total(), b.zeros(), parts.samples));
        let x = network.graph.find("x").unwrap();
        assert_eq!(whole.histograms[&x], parts.histograms[&x]);
        for (value, channels) in &whole.channels {
            let other = &parts.channels[value];
            assert!(channels.means.iter().zip(&other.means).all(|(a, b)| (a - b).abs() < 1e-5));
            assert!(channels.squares.iter().zip(&other.squares).all(|(a, b)| (a - b).abs() < 1e-4));
            let ends = |c: &Channels| c.least.iter().chain(&c.greatest).copied().collect::<Vec<f32>>();
            assert!(ends(channels).iter().zip(ends(other)).all(|(a, b)| (a - b).abs() < 1e-4));
        }
        let (_, many) = observe(600, 60);
        assert!(many.histograms.values().all(|h| h.bins().count() <= BINS));
        let channels = |seen: &Observations| seen.channels.values().map(|c| c.means.len()).sum::<usize>();
        assert_eq!((many.histograms.len(), channels(&many)), (whole.histograms.len(), channels(&whole)));
        assert_eq!(many.samples, 600);
    }
}
