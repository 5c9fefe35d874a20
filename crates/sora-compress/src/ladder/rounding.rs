//! Choosing the levels of weights by what they multiply: the second moments of the inputs of each product, and the loop that hands
//! its lines to the rungs of the ladder.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use sora_exec::Session;
use sora_ir::ValueId;
use sora_ir::ops::{Conv, Op};
use sora_tensor::Tensor;

use super::base::Calibration;
use super::{Change, RUNGS};
use crate::CompressError;
use crate::feed::head;
use crate::layers::Network;
use crate::prune::Moments;
use crate::weights::QuantizedWeights;

/// Most inputs of a product whose errors make up for each other; wider products are treated in parts of this many.
const WIDEST: usize = 1024;

/// Calibration samples that are observed, and positions of each layer among all of them.
const SAMPLES: usize = 512;
const POSITIONS: usize = 4096;

/// Samples that run at once.
const BATCH: usize = 32;

/// Lines of weights, each of which makes one output of the same inputs.
pub struct Lines<'a> {
    /// The second moments of the inputs, symmetric, row by row.
    pub gram: &'a [f64],
    /// Number of inputs.
    pub depth: usize,
    /// The exact weights in units of their scale, line by line.
    pub exact: &'a [f64],
    /// The levels, whole numbers in `-greatest..=greatest`.
    pub levels: &'a mut [f64],
    /// The greatest level.
    pub greatest: f64,
}

impl Lines<'_> {
    /// The level nearest to a weight.
    pub fn nearest(&self, weight: f64) -> f64 {
        weight.round_ties_even().clamp(-self.greatest, self.greatest)
    }
}

/// The sum of products, in eight parts that need not wait for each other.
pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut parts = [0.0; 8];
    let (whole, rest) = (a.chunks_exact(8), a.chunks_exact(8).remainder().iter());
    let other = b[a.len() - rest.len()..].iter();
    for (a, b) in whole.zip(b.chunks_exact(8)) {
        parts.iter_mut().zip(a.iter().zip(b)).for_each(|(part, (a, b))| *part += a * b);
    }
    parts.iter().sum::<f64>() + rest.zip(other).map(|(a, b)| a * b).sum::<f64>()
}

/// How the weights of a product lie and what they meet.
#[derive(Clone, Copy, Debug)]
struct Shape {
    groups: usize,
    /// Outputs of a group.
    outputs: usize,
    /// Inputs of a group: channels times taps.
    depth: usize,
    /// Whether inputs come first, as in a matrix `[depth, outputs]`.
    transposed: bool,
}

impl Shape {
    fn of(op: &Op, shape: &[usize], axis: usize) -> Option<Self> {
        match (op, shape) {
            (Op::Conv(conv), [outputs, rest @ ..]) if conv.group > 0 && outputs % conv.group == 0 => {
                let outputs = outputs / conv.group;
                Some(Shape { groups: conv.group, outputs, depth: rest.iter().product(), transposed: false })
            }
            (Op::MatMul(_), &[depth, outputs]) if axis == 1 => {
                Some(Shape { groups: 1, outputs, depth, transposed: true })
            }
            _ => None,
        }
    }

    /// Where the weight of an input lies that goes into an output of a group.
    fn at(&self, group: usize, output: usize, input: usize) -> usize {
        match self.transposed {
            true => input * self.outputs + output,
            false => (group * self.outputs + output) * self.depth + input,
        }
    }

    /// Parts of the inputs of a group: the first input and the number of each.
    fn parts(&self) -> impl Iterator<Item = (usize, usize)> {
        let depth = self.depth;
        (0..depth).step_by(WIDEST).map(move |first| (first, WIDEST.min(depth - first)))
    }
}

/// A layer, bits and rungs.
type Choosing = (usize, u32, Vec<usize>);

/// What each linear layer multiplies.
pub(crate) struct Grams {
    /// By layer: for each group, for each part of its inputs.
    layers: HashMap<usize, (Shape, Vec<Moments>)>,
    /// Levels that were chosen before, with the scales that they were chosen for.
    chosen: RefCell<HashMap<Choosing, QuantizedWeights>>,
}

impl Grams {
    /// Observes what the linear layers of a network multiply.
    pub(crate) fn observe(network: &Network, calibration: &Calibration) -> Result<Self, CompressError> {
        let Calibration { feed, samples, exec, progress, .. } = *calibration;
        let stride = samples.len().div_ceil(SAMPLES).max(1);
        let samples: Vec<usize> = samples.iter().copied().step_by(stride).collect();
        let mut readers: HashMap<ValueId, Vec<usize>> = HashMap::new();
        let mut layers: HashMap<usize, (Shape, Vec<Moments>)> = HashMap::new();
        for (index, layer) in network.layers.iter().enumerate() {
            let found = || {
                let weight = network.graph.const_value(layer.linear()?.weight)?;
                let op = &network.graph.node(*layer.nodes.first()?)?.op;
                Some((*layer.reads.first()?, Shape::of(op, weight.shape(), layer.linear()?.axis)?))
            };
            let Some((value, shape)) = found() else { continue };
            let parts = (0..shape.groups).flat_map(|_| shape.parts().map(|(_, len)| Moments::new(len)));
            layers.insert(index, (shape, parts.collect()));
            readers.entry(value).or_default().push(index);
        }
        let mut watched: Vec<ValueId> = readers.keys().copied().collect();
        watched.sort_unstable();
        let session = Session::watching(network.graph.clone(), watched, exec.clone())?;
        progress.stage("Observing what weights multiply", Some(samples.len() as u64));
        let each = POSITIONS.div_ceil(samples.len().max(1));
        feed.observe(&session, &samples, BATCH, progress, |value, tensor, len| {
            let tensor = head(tensor, len)?;
            for index in readers.get(&value).into_iter().flatten() {
                let op = network.layers[*index]
                    .nodes
                    .first()
                    .and_then(|&id| network.graph.node(id))
                    .map(|n| &n.op);
                if let (Some(op), Some((shape, moments))) = (op, layers.get_mut(index)) {
                    let weight =
                        network.layers[*index].linear().and_then(|l| network.graph.const_value(l.weight));
                    let kernel = weight.map_or(&[][..], |w| w.shape().get(2..).unwrap_or_default());
                    gather(op, kernel, *shape, &tensor, each * len, moments)?;
                }
            }
            Ok(())
        })?;
        Ok(Grams { layers, chosen: RefCell::default() })
    }
}

/// Adds about `wanted` positions of what a product multiplies.
fn gather(
    op: &Op,
    kernel: &[usize],
    shape: Shape,
    tensor: &Tensor,
    wanted: usize,
    moments: &mut [Moments],
) -> Result<(), CompressError> {
    let values = tensor.as_slice::<f32>()?;
    let window = match op {
        Op::Conv(conv) => Window::new(conv, kernel, tensor.shape()),
        _ => None,
    };
    // What all groups meet at a position.
    let mut line = vec![0.0; shape.groups * shape.depth];
    let positions = match (&window, op) {
        (Some(window), _) => window.positions(),
        (None, Op::Conv(_)) => 0,
        (None, _) => values.len() / line.len().max(1),
    };
    let taken = wanted.min(positions);
    for number in 0..taken {
        let position = spread(number, taken, positions);
        match &window {
            Some(window) => window.read(values, position, &mut line),
            None => {
                let row = &values[position * line.len()..];
                line.iter_mut().zip(row).for_each(|(to, &from)| *to = f64::from(from));
            }
        }
        let groups = line.chunks_exact(shape.depth.max(1));
        let parts =
            groups.flat_map(|group| shape.parts().map(move |(first, len)| &group[first..first + len]));
        parts.zip(&mut *moments).for_each(|(part, moments)| moments.add(part));
    }
    Ok(())
}

/// The position of a number among those that are taken: one of each stretch of equal length, in turn at other places of it.
fn spread(number: usize, taken: usize, positions: usize) -> usize {
    let (from, to) = (number * positions / taken, (number + 1) * positions / taken);
    // Steps of the golden section visit a stretch evenly.
    let within = (number as f64 * 0.618_033_988_749_895).fract();
    (from + ((to - from) as f64 * within) as usize).min(positions - 1)
}

/// The windows of a convolution over a tensor `[N, C, D1…Dn]`.
struct Window<'a> {
    conv: &'a Conv,
    kernel: &'a [usize],
    /// Channels of the tensor.
    channels: usize,
    extents: &'a [usize],
    outputs: Vec<usize>,
    samples: usize,
}

impl<'a> Window<'a> {
    /// `None` where the window does not fit.
    fn new(conv: &'a Conv, kernel: &'a [usize], shape: &'a [usize]) -> Option<Self> {
        let [samples, channels, extents @ ..] = shape else { return None };
        let rank = extents.len();
        let output = |i: usize| {
            let span = (kernel.get(i)?.checked_sub(1)?) * conv.dilations.get(i)? + 1;
            let padded = extents[i] + conv.pads.get(i)? + conv.pads.get(rank + i)?;
            Some(padded.checked_sub(span)? / conv.strides.get(i)? + 1)
        };
        let outputs = (0..rank).map(output).collect::<Option<Vec<usize>>>()?;
        Some(Window { conv, kernel, channels: *channels, extents, outputs, samples: *samples })
    }

    fn positions(&self) -> usize {
        self.samples * self.outputs.iter().product::<usize>()
    }

    /// What weights meet at a position, channel by channel and tap by tap; padding is 0.
    fn read(&self, values: &[f32], position: usize, line: &mut [f64]) {
        let places: usize = self.outputs.iter().product();
        let (sample, mut place) = (position / places, position % places);
        let mut corner = vec![0isize; self.outputs.len()];
        for (i, extent) in self.outputs.iter().enumerate().rev() {
            let at = place % extent * self.conv.strides[i];
            corner[i] = at.cast_signed() - self.conv.pads[i].cast_signed();
            place /= extent;
        }
        let taps: usize = self.kernel.iter().product();
        let plane: usize = self.extents.iter().product();
        let offset = |mut tap: usize| -> Option<usize> {
            let (mut offset, mut stride) = (0, 1);
            for (i, extent) in self.extents.iter().enumerate().rev() {
                let step = tap % self.kernel[i] * self.conv.dilations[i];
                tap /= self.kernel[i];
                let at = corner[i].checked_add_unsigned(step)?;
                offset += usize::try_from(at).ok().filter(|at| at < extent)? * stride;
                stride *= extent;
            }
            Some(offset)
        };
        let offsets: Vec<Option<usize>> = (0..taps).map(offset).collect();
        for (channel, line) in line.chunks_exact_mut(taps.max(1)).enumerate() {
            let first = (sample * self.channels + channel) * plane;
            for (to, offset) in line.iter_mut().zip(&offsets) {
                *to = offset.map_or(0.0, |offset| f64::from(values[first + offset]));
            }
        }
    }
}

/// The rungs that choose levels, and what they look at.
pub struct Rounding<'a> {
    grams: Rc<Grams>,
    /// Indices of rungs in the ladder.
    rungs: &'a [usize],
}

impl<'a> Rounding<'a> {
    pub(crate) fn new(grams: Rc<Grams>, rungs: &'a [usize]) -> Self {
        Rounding { grams, rungs }
    }

    /// The levels of the weights of layer `index`, given the nearest ones, at the same scales.
    ///
    /// # Errors
    /// [`CompressError::Tensor`] when the tensors do not hold `f32` and `i8`.
    pub(crate) fn choose(
        &self,
        index: usize,
        exact: &Tensor,
        nearest: QuantizedWeights,
        bits: u32,
    ) -> Result<QuantizedWeights, CompressError> {
        let Some((shape, moments)) = self.grams.layers.get(&index) else { return Ok(nearest) };
        let key = (index, bits, self.rungs.to_vec());
        if let Some(known) =
            self.grams.chosen.borrow().get(&key).filter(|known| known.scales == nearest.scales)
        {
            return Ok(known.clone());
        }
        let greatest = f64::from((1i32 << (bits - 1)) - 1);
        let values = exact.as_slice::<f32>()?;
        let mut levels = nearest.values.as_slice::<i8>()?.to_vec();
        let parts: Vec<(usize, usize)> = shape.parts().collect();
        for (at, moments) in moments.iter().enumerate() {
            let (group, (first, depth)) = (at / parts.len(), parts[at % parts.len()]);
            let gram: Vec<f64> =
                (0..depth * depth).map(|at| moments.mean_product(at / depth, at % depth)).collect();
            let place = |at: usize| shape.at(group, at / depth, first + at % depth);
            let scale = |at: usize| f64::from(nearest.scales[group * shape.outputs + at / depth]);
            let count = shape.outputs * depth;
            let exact: Vec<f64> = (0..count).map(|at| f64::from(values[place(at)]) / scale(at)).collect();
            let mut chosen: Vec<f64> = (0..count).map(|at| f64::from(levels[place(at)])).collect();
            let mut lines = Lines { gram: &gram, depth, exact: &exact, levels: &mut chosen, greatest };
            for rung in self.rungs {
                if let Change::Rounding(round) = RUNGS[*rung].change {
                    round(&mut lines);
                }
            }
            chosen.iter().enumerate().for_each(|(at, &level)| levels[place(at)] = level as i8);
        }
        let chosen =
            QuantizedWeights { values: Tensor::from_slice(exact.shape(), &levels)?, scales: nearest.scales };
        self.grams.chosen.borrow_mut().insert(key, chosen.clone());
        Ok(chosen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;
    use sora_ir::EvalCx;
    use sora_tensor::DType;

    /// A window times the weights is what the convolution computes, at every position.
    #[test]
    fn windows_are_those_of_the_convolution() {
        let mut random = Random::new(46);
        for _ in 0..30 {
            let (group, own, outputs) = (1 + random.below(3), 1 + random.below(2), 1 + random.below(2));
            let (h, w) = (5 + random.below(4), 5 + random.below(4));
            let (kernel, channels) = (vec![1 + random.below(3), 1 + random.below(3)], group * own);
            let conv = Conv {
                strides: vec![1 + random.below(2), 1 + random.below(2)],
                pads: (0..4).map(|_| random.below(2)).collect(),
                dilations: vec![1 + random.below(2), 1],
                group,
            };
            let x = random.tensor(&[2, channels, h, w], 1.0);
            let weights = random.tensor(&[group * outputs, own, kernel[0], kernel[1]], 1.0);
            let op = Op::from(conv.clone());
            let y = op.eval(&EvalCx { inputs: &[Some(&x), Some(&weights)] }).unwrap().remove(0);
            let shape = Shape::of(&op, weights.shape(), 0).unwrap();
            let window = Window::new(&conv, &kernel, x.shape()).unwrap();
            let places: usize = y.shape()[2..].iter().product();
            assert_eq!(window.positions(), 2 * places);
            let (x, weights, y) = (x.to_f32s(), weights.to_f64s(), y.to_f64s());
            let mut line = vec![0.0; group * shape.depth];
            for position in 0..window.positions() {
                window.read(&x, position, &mut line);
                for output in 0..group * outputs {
                    let of = output / outputs;
                    let met = &line[of * shape.depth..(of + 1) * shape.depth];
                    let weight = |input: usize| weights[shape.at(of, output % outputs, input)];
                    let sum: f64 = met.iter().enumerate().map(|(i, x)| x * weight(i)).sum();
                    let (sample, place) = (position / places, position % places);
                    let exact = y[(sample * group * outputs + output) * places + place];
                    assert!((sum - exact).abs() < 1e-4, "{sum} {exact}");
                }
            }
        }
    }

    #[test]
    fn moments_are_those_of_all_positions() {
        let mut random = Random::new(47);
        let x = random.tensor(&[7, 4, 5], 1.0);
        let op = Op::from(sora_ir::ops::MatMul {});
        let shape = Shape::of(&op, &[5, 3], 1).unwrap();
        let mut moments = vec![Moments::new(5)];
        gather(&op, &[], shape, &x, 1000, &mut moments).unwrap();
        let values = x.to_f64s();
        assert_eq!((moments[0].count, x.dtype()), (28, DType::F32));
        for (i, j) in [(0, 0), (1, 4), (3, 2)] {
            let mean = values.chunks(5).map(|row| row[i] * row[j]).sum::<f64>() / 28.0;
            assert!((moments[0].mean_product(i, j) - mean).abs() < 1e-9);
        }
        let seen: std::collections::BTreeSet<usize> = (0..9).map(|number| spread(number, 9, 100)).collect();
        assert!(seen.len() == 9 && seen.iter().all(|&position| position < 100));
    }

    #[test]
    fn sums_of_products_are_whole() {
        let mut random = Random::new(48);
        for length in 0..40 {
            let [a, b] = [0, 1].map(|_| (0..length).map(|_| random.normal()).collect::<Vec<f64>>());
            let exact: f64 = a.iter().zip(&b).map(|(a, b)| a * b).sum();
            assert!((dot(&a, &b) - exact).abs() < 1e-12);
        }
    }
}
