//! What the products of a network multiply: the second moments of their inputs, by which weights are rounded and pruned.

use std::collections::HashMap;

use sora_exec::Session;
use sora_ir::ValueId;
use sora_ir::ops::{Conv, Op};
use sora_tensor::Tensor;

use super::base::Calibration;
use crate::CompressError;
use crate::feed::head;
use crate::layers::Network;
use crate::prune::Moments;

/// Most inputs of a product whose errors make up for each other; wider products are treated in parts of this many.
const WIDEST: usize = 1024;

/// Calibration samples that are observed, and positions of each layer among all of them.
const SAMPLES: usize = 512;
const POSITIONS: usize = 4096;

/// Samples that run at once.
const BATCH: usize = 32;

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

/// What each linear layer multiplies.
pub(crate) struct Grams {
    /// By layer: for each group, for each part of its inputs.
    layers: HashMap<usize, (Shape, Vec<Moments>)>,
}

/// Inputs of a product whose errors make up for each other, and the lines of weights that they meet, one for each output of a group.
pub(crate) struct Part<'a> {
    shape: &'a Shape,
    moments: &'a Moments,
    group: usize,
    first: usize,
    /// Number of inputs.
    pub(crate) depth: usize,
}

impl Part<'_> {
    /// The second moments of the inputs, row by row.
    pub(crate) fn gram(&self) -> Vec<f64> {
        let depth = self.depth;
        (0..depth * depth).map(|at| self.moments.mean_product(at / depth, at % depth)).collect()
    }

    /// Number of weights.
    pub(crate) fn len(&self) -> usize {
        self.shape.outputs * self.depth
    }

    /// Where the weight `at`, counted line by line, lies in the tensor.
    pub(crate) fn place(&self, at: usize) -> usize {
        self.shape.at(self.group, at / self.depth, self.first + at % self.depth)
    }

    /// The output channel of the weight `at`.
    pub(crate) fn output(&self, at: usize) -> usize {
        self.group * self.shape.outputs + at / self.depth
    }
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
        Ok(Grams { layers })
    }

    /// Of one product of these moments, layer 0, with its weights as those of a convolution over one pixel.
    #[cfg(test)]
    pub(crate) fn given(gram: &[f64], weights: &[f64]) -> (Self, Tensor) {
        let depth = gram.len().isqrt();
        let (outputs, mut moments) = (weights.len() / depth, Moments::new(depth));
        moments.count = 1;
        let pairs = (0..depth).flat_map(|i| (0..=i).map(move |j| gram[i * depth + j]));
        moments.products = pairs.collect();
        let shape = Shape { groups: 1, outputs, depth, transposed: false };
        let weights: Vec<f32> = weights.iter().map(|w| *w as f32).collect();
        let weights = Tensor::from_slice(&[outputs, depth, 1, 1], &weights);
        (Grams { layers: HashMap::from([(0, (shape, vec![moments]))]) }, weights.unwrap())
    }

    /// The parts of a layer, group by group; none where it is no product, or a recurrent one.
    pub(crate) fn parts(&self, layer: usize) -> impl Iterator<Item = Part<'_>> {
        let layer = self.layers.get(&layer).into_iter();
        layer.flat_map(|(shape, moments)| {
            let parts = (0..shape.groups).flat_map(|group| shape.parts().map(move |part| (group, part)));
            parts.zip(moments).map(move |((group, (first, depth)), moments)| Part {
                shape,
                moments,
                group,
                first,
                depth,
            })
        })
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
}
