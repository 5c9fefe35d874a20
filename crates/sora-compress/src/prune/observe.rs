//! What the products that units end in multiply, on samples: means and second moments.

use std::collections::HashMap;

use sora_data::{Dataset, Preprocess};
use sora_exec::{Options, Session};
use sora_ir::{Graph, ValueId};
use sora_tensor::Tensor;

use super::{Axis, Groups};
use crate::feed::{Feed, head};
use crate::{CompressError, Progress};

/// The widest axis whose elements are observed in pairs: beyond, the moments would not fit the memory.
const WIDEST: usize = 4096;

/// Positions of one value that a batch contributes at most; neighbours in a picture say nearly the same.
const ROWS: usize = 512;

/// Sums over samples and positions of the elements along one axis.
#[derive(Clone, Debug)]
pub struct Moments {
    /// Positions.
    pub count: usize,
    /// The sum of each element.
    pub sums: Vec<f64>,
    /// The sum of each element's square.
    pub squares: Vec<f64>,
    /// The sums of products of element `i` with elements `j <= i`, at `i (i + 1) / 2 + j`; empty for very wide axes.
    pub products: Vec<f64>,
}

impl Moments {
    /// Of an axis of this extent, before the first position.
    pub fn new(extent: usize) -> Self {
        let pairs = if extent <= WIDEST { extent * (extent + 1) / 2 } else { 0 };
        Moments { count: 0, sums: vec![0.0; extent], squares: vec![0.0; extent], products: vec![0.0; pairs] }
    }

    /// Adds one position, the elements along the axis.
    pub fn add(&mut self, row: &[f64]) {
        self.count += 1;
        for ((sum, square), x) in self.sums.iter_mut().zip(&mut self.squares).zip(row) {
            *sum += x;
            *square += x * x;
        }
        let mut rest = self.products.as_mut_slice();
        for (i, x) in row.iter().enumerate() {
            let Some((line, after)) = rest.split_at_mut_checked(i + 1) else { return };
            if *x != 0.0 {
                line.iter_mut().zip(row).for_each(|(sum, y)| *sum += x * y);
            }
            rest = after;
        }
    }

    /// The mean of an element.
    pub fn mean(&self, i: usize) -> f64 {
        self.sums[i] / self.count.max(1) as f64
    }

    /// The mean square of an element.
    pub fn mean_square(&self, i: usize) -> f64 {
        self.squares[i] / self.count.max(1) as f64
    }

    /// The mean product of two elements.
    pub fn mean_product(&self, i: usize, j: usize) -> f64 {
        let (i, j) = (i.max(j), i.min(j));
        self.products[i * (i + 1) / 2 + j] / self.count.max(1) as f64
    }

    fn add_tensor(&mut self, tensor: &Tensor, axis: usize) {
        let (values, extent) = (tensor.to_f32s(), self.sums.len());
        let inner: usize = tensor.shape()[axis + 1..].iter().product();
        let positions = values.len() / extent.max(1);
        // An odd step meets all columns of a picture.
        let step = (positions / ROWS).max(1) | 1;
        let mut row = vec![0.0; extent];
        for position in (0..positions).step_by(step) {
            let first = position / inner * extent * inner + position % inner;
            let along = values[first..].iter().step_by(inner);
            row.iter_mut().zip(along).for_each(|(to, &x)| *to = f64::from(x));
            self.add(&row);
        }
    }
}

/// The moments of what the sinks of groups multiply, by value and axis.
pub type Activations = HashMap<Axis, Moments>;

/// Runs `graph` on `samples` of `data` and observes what the sinks of `groups` multiply.
///
/// # Errors
/// A [`CompressError`] when the data does not fit the network, or the caller cancels.
pub fn observe(
    graph: &Graph,
    groups: &Groups,
    (data, preprocess): (&Dataset, &Preprocess),
    samples: &[usize],
    options: &Options,
    progress: &dyn Progress,
) -> Result<Activations, CompressError> {
    let sinks = groups.groups.iter().flat_map(|group| &group.sinks);
    let inputs = sinks.map(|sink| sink.input).filter(|(value, _)| graph.const_value(*value).is_none());
    let mut watched: HashMap<ValueId, Vec<usize>> = HashMap::new();
    for (value, axis) in inputs {
        let axes = watched.entry(value).or_default();
        if !axes.contains(&axis) {
            axes.push(axis);
        }
    }
    let feed = Feed::new(graph, data, preprocess)?;
    let session = Session::watching(graph.clone(), watched.keys().copied().collect(), options.clone())?;
    let mut seen = Activations::new();
    progress.stage("Observing", Some(samples.len() as u64));
    feed.observe(&session, samples, BATCH, progress, |value, tensor, len| {
        for &axis in watched.get(&value).map_or(&[][..], Vec::as_slice) {
            // The batch need not be the first axis, but if it is, what only fills it does not count.
            let cut = axis > 0 && tensor.shape()[0] >= len;
            let tensor = if cut { head(tensor, len)? } else { tensor.clone() };
            let extent = tensor.shape()[axis];
            seen.entry((value, axis)).or_insert_with(|| Moments::new(extent)).add_tensor(&tensor, axis);
        }
        Ok(())
    })?;
    Ok(seen)
}

/// Samples that run at once where the network leaves its batch open.
pub(super) const BATCH: usize = 32;
