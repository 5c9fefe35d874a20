//! Random numbers.

use serde::{Deserialize, Serialize};
use sora_tensor::{DType, Tensor};

use super::movement::{MAX_RANK, described_rank, is_single, list, signed};
use super::{attrs, room};
use crate::case::{Case, Gen};
use crate::{EvalCx, InferCx, Mismatch, OpDef, Real, TensorType, ensure};

/// What random numbers are drawn from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Distribution {
    /// From 0 up to but without 1, evenly.
    Uniform,
    /// The normal distribution of mean 0 and deviation 1.
    Normal,
}

attrs! {
    /// Random numbers in the shape that input 0 lists. Networks are functions: the numbers follow from the seed and from
    /// the optional input 1, an integer such as the number of a training step; without it, every run draws the same. Number `i` of a stream is SplitMix64 (Steele et al. 2014) of the seed's bits plus `i`
    /// steps; a uniform number is its leading bits, as many as the dtype has, and a normal one takes two by the method of
    /// Box and Muller. Source: ONNX RandomUniform and RandomNormal.
    pub struct Random {
        /// What numbers are drawn from.
        from: Distribution,
        /// Dtype of the result.
        dtype: DType,
        /// What the numbers follow from.
        seed: Real,
    }
}

/// A stream of random numbers.
#[derive(Clone, Copy, Debug)]
struct Stream(u64);

impl Stream {
    /// The stream of a seed; of an integer beside it, where one is given.
    fn new(seed: f32, run: Option<i64>) -> Self {
        let start = u64::from(seed.to_bits()).wrapping_mul(0xd134_2543_de82_ef95);
        // Streams of neighbouring integers must not overlap, so each begins at a random place.
        Stream(run.map_or(start, |run| Stream(start.wrapping_add(!0 << 32)).bits(run as u64)))
    }

    fn bits(self, i: u64) -> u64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.0.wrapping_add(i.wrapping_add(1).wrapping_mul(STEP));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The leading `digits` bits of a number as a fraction, exact in a float of that many digits.
    fn fraction(self, i: u64, digits: u32) -> f64 {
        (self.bits(i) >> (64 - digits)) as f64 / 2f64.powi(digits as i32)
    }

    fn normal(self, i: u64) -> f64 {
        let (a, b) = (self.fraction(2 * i, 53), self.fraction(2 * i + 1, 53));
        (-2.0 * (1.0 - a).ln()).sqrt() * (std::f64::consts::TAU * b).cos()
    }
}

impl Random {
    /// Writes the uniform numbers of `f32` that the operator gives for `run`.
    pub fn fill_uniform(&self, run: Option<i64>, out: &mut [f32]) {
        let stream = Stream::new(self.seed.0, run);
        for (i, x) in out.iter_mut().enumerate() {
            *x = (stream.bits(i as u64) >> 40) as f32 / (1u32 << 24) as f32;
        }
    }
}

/// The digits of a float's fraction.
fn digits(dtype: DType) -> Option<u32> {
    match dtype {
        DType::F64 => Some(53),
        DType::F32 => Some(24),
        DType::F16 => Some(11),
        DType::BF16 => Some(8),
        _ => None,
    }
}

impl OpDef for Random {
    fn infer(&self, cx: &InferCx) -> Result<Vec<TensorType>, Mismatch> {
        cx.arity(1..=2)?;
        if let Some(run) = cx.opt(1) {
            ensure!(run.dtype == DType::I64 && is_single(run), "input 1 must be one i64, found {run}");
        }
        ensure!(digits(self.dtype).is_some(), "there are no random numbers of {}", self.dtype);
        let rank = described_rank(cx, 0)?;
        ensure!(rank <= MAX_RANK, "a rank of {rank} is above the limit of {MAX_RANK}");
        let shape = match cx.content(0) {
            Some(extents) => extents.to_vec(),
            None => (0..rank).map(|axis| cx.unknown(axis)).collect(),
        };
        let negative = shape.iter().find(|d| d.constant().is_some_and(|d| d < 0));
        ensure!(negative.is_none(), "the shape {shape:?} has a negative extent");
        Ok(vec![TensorType { dtype: self.dtype, shape }])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, Mismatch> {
        let (dtype, shape) = cx.output(self)?;
        let run = cx.opt(1).and_then(|run| run.to_i64s().first().copied());
        let (stream, digits) = (Stream::new(self.seed.0, run), digits(dtype).unwrap_or(24));
        let mut values: Vec<f64> = room(&shape)?;
        let numbers = 0..shape.iter().product::<usize>() as u64;
        values.extend(numbers.map(|i| match self.from {
            Distribution::Uniform => stream.fraction(i, digits),
            Distribution::Normal => stream.normal(i),
        }));
        Ok(vec![Tensor::from_f64s(dtype, &shape, &values)?])
    }

    fn cases(g: &mut Gen) -> Vec<Case> {
        let mut cases = Vec::new();
        for from in [Distribution::Uniform, Distribution::Normal] {
            for dtype in [DType::F32, DType::F64, DType::F16] {
                let rank = g.size(0, 3);
                let shape = list(g.shape(rank).into_iter().map(signed));
                let seed = Real(g.size(0, 9) as f32);
                cases.push(Case::new(Random { from, dtype, seed }, [shape]));
            }
        }
        cases
    }
}

#[cfg(test)]
mod tests {
    use super::super::movement::run;
    use super::*;

    fn draw(from: Distribution, dtype: DType, seed: f32, n: i64) -> Vec<f64> {
        run(Random { from, dtype, seed: Real(seed) }, &[&Tensor::vector(&[n])]).unwrap().to_f64s()
    }

    /// Mean, deviation, and correlation of neighbours, of many numbers.
    fn moments(v: &[f64]) -> [f64; 3] {
        let n = v.len() as f64;
        let mean = v.iter().sum::<f64>() / n;
        let variance = v.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
        let neighbours = v.windows(2).map(|w| (w[0] - mean) * (w[1] - mean)).sum::<f64>() / n;
        [mean, variance.sqrt(), neighbours / variance]
    }

    #[test]
    fn an_integer_beside_the_seed_gives_other_numbers() {
        let op = Random { from: Distribution::Uniform, dtype: DType::F32, seed: Real(1.0) };
        let shape = Tensor::vector(&[20_000i64]);
        let draw =
            |run: i64| super::super::movement::run(op.clone(), &[&shape, &Tensor::scalar(run)]).unwrap();
        let (a, b) = (draw(0).to_f64s(), draw(1).to_f64s());
        let mixed: Vec<f64> = a.iter().zip(&b).map(|(a, b)| (a - 0.5) * (b - 0.5) + 0.5).collect();
        for numbers in [&a, &b] {
            assert!((moments(numbers)[0] - 0.5).abs() < 0.01 && moments(numbers)[2].abs() < 0.03);
        }
        assert!((moments(&mixed)[0] - 0.5).abs() < 0.002, "{:?}", moments(&mixed));
        let mut fast = vec![0.0f32; 20_000];
        op.fill_uniform(Some(1), &mut fast);
        assert_eq!(fast, draw(1).to_f32s());
        assert_ne!(a, run(op.clone(), &[&shape]).unwrap().to_f64s());
    }

    #[test]
    fn numbers_have_their_distribution() {
        for (from, expected) in
            [(Distribution::Uniform, [0.5, 1.0 / 12f64.sqrt(), 0.0]), (Distribution::Normal, [0.0, 1.0, 0.0])]
        {
            for seed in [0.0, 1.0, 2.5] {
                let found = moments(&draw(from, DType::F32, seed, 100_000));
                let near = found.iter().zip(expected).all(|(f, e)| (f - e).abs() < 0.015);
                assert!(near, "{from:?}: {found:?} instead of {expected:?}");
            }
        }
        let small = draw(Distribution::Uniform, DType::BF16, 3.0, 10_000);
        assert!(small.iter().all(|v| (0.0..1.0).contains(v)));
    }

    #[test]
    fn seeds_tell_streams_apart_and_hostile_shapes_are_refused() {
        assert_eq!(
            draw(Distribution::Normal, DType::F64, 4.0, 9),
            draw(Distribution::Normal, DType::F64, 4.0, 9)
        );
        assert_ne!(
            draw(Distribution::Normal, DType::F64, 4.0, 9),
            draw(Distribution::Normal, DType::F64, 5.0, 9)
        );
        let op = |dtype| Random { from: Distribution::Uniform, dtype, seed: Real(0.0) };
        assert!(run(op(DType::I32), &[&Tensor::vector(&[2i64])]).is_err());
        assert!(run(op(DType::F32), &[&Tensor::vector(&[-2i64])]).is_err());
        assert!(run(op(DType::F32), &[&Tensor::vector(&[1i64 << 40, 1 << 40])]).is_err());
    }
}
