//! How weights begin: distributions, the rules that scale them, and the random numbers.

use sora_tensor::Tensor;

/// A rule that fits the spread of a layer's weights to its width, so that signals neither vanish nor grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Initializer {
    /// Uniform in ±√(6 / (fan in + fan out)). Source: Glorot & Bengio 2010.
    GlorotUniform,
    /// Normal of variance 2 / (fan in + fan out). Source: Glorot & Bengio 2010.
    GlorotNormal,
    /// Uniform in ±√(6 / fan in), for layers before a ReLU. Source: He et al. 2015.
    HeUniform,
    /// Normal of variance 2 / fan in, for layers before a ReLU. Source: He et al. 2015.
    HeNormal,
    /// Normal of variance 1 / fan in. Source: LeCun et al. 1998.
    LecunNormal,
}

impl Initializer {
    /// The distribution for weights that sum over `fan_in` inputs and feed `fan_out` outputs.
    pub fn distribution(self, fan_in: usize, fan_out: usize) -> Distribution {
        let (fan_in, both) = (fan_in as f64, (fan_in + fan_out) as f64);
        let (uniform, variance) = match self {
            Initializer::GlorotUniform => (true, 2.0 / both),
            Initializer::GlorotNormal => (false, 2.0 / both),
            Initializer::HeUniform => (true, 2.0 / fan_in),
            Initializer::HeNormal => (false, 2.0 / fan_in),
            Initializer::LecunNormal => (false, 1.0 / fan_in),
        };
        match uniform {
            true => {
                let limit = (3.0 * variance).sqrt();
                Distribution::Uniform { low: -limit, high: limit }
            }
            false => Distribution::Normal { mean: 0.0, std: variance.sqrt() },
        }
    }
}

/// Where the values of a parameter come from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Distribution {
    /// One value everywhere.
    Constant(f64),
    /// Uniform between two bounds.
    Uniform {
        /// Least value.
        low: f64,
        /// Greatest value.
        high: f64,
    },
    /// Normal.
    Normal {
        /// Mean.
        mean: f64,
        /// Standard deviation.
        std: f64,
    },
}

impl Distribution {
    /// A tensor of this shape.
    pub(super) fn tensor(self, shape: &[usize], rng: &mut Rng) -> Tensor {
        let mut draw = || match self {
            Distribution::Constant(value) => value,
            Distribution::Uniform { low, high } => low + (high - low) * rng.uniform(),
            Distribution::Normal { mean, std } => mean + std * rng.normal(),
        };
        let count = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|_| draw() as f32).collect();
        Tensor::from_slice(shape, &values).expect("as many values as the shape has elements")
    }
}

/// Random numbers that are the same on every machine and in every version: files made from a seed can be made again.
/// Source: SplitMix64, Steele, Lea & Flood 2014.
#[derive(Clone, Debug)]
pub(super) struct Rng {
    state: u64,
    spare: Option<f64>,
}

impl Rng {
    /// The stream of one name under `seed`.
    pub(super) fn new(seed: u64, name: &str) -> Self {
        // FNV-1a over the name, mixed with the seed by the generator's own steps.
        let hash = |h: u64, &byte: &u8| (h ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        let name = name.as_bytes().iter().fold(0xcbf2_9ce4_8422_2325, hash);
        let mut rng = Rng { state: seed, spare: None };
        rng.state = rng.next() ^ name;
        rng
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in 0..1.
    pub(super) fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Standard normal. Source: Box & Muller 1958.
    pub(super) fn normal(&mut self) -> f64 {
        if let Some(value) = self.spare.take() {
            return value;
        }
        let radius = (-2.0 * libm::log(1.0 - self.uniform())).sqrt();
        let (sin, cos) = libm::sincos(std::f64::consts::TAU * self.uniform());
        self.spare = Some(radius * sin);
        radius * cos
    }

    /// Uniform in `0..below`.
    pub(super) fn below(&mut self, below: i64) -> i64 {
        (self.uniform() * below as f64) as i64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moments(distribution: Distribution) -> (f64, f64) {
        let values = distribution.tensor(&[40_000], &mut Rng::new(3, "w")).to_f64s();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / values.len() as f64;
        (mean, variance)
    }

    #[test]
    fn rules_give_the_variance_they_promise() {
        use Initializer::*;
        let (fan_in, fan_out) = (50, 150);
        for (rule, expected) in [
            (GlorotUniform, 0.01),
            (GlorotNormal, 0.01),
            (HeUniform, 0.04),
            (HeNormal, 0.04),
            (LecunNormal, 0.02),
        ] {
            let (mean, variance) = moments(rule.distribution(fan_in, fan_out));
            assert!(mean.abs() < 4.0 * (expected / 40_000.0f64).sqrt(), "{rule:?} {mean}");
            assert!((variance / expected - 1.0).abs() < 0.03, "{rule:?} {variance}");
        }
        let (mean, variance) = moments(Distribution::Normal { mean: 2.0, std: 3.0 });
        assert!((mean - 2.0).abs() < 0.06 && (variance - 9.0).abs() < 0.3, "{mean} {variance}");
    }

    #[test]
    fn the_stream_of_a_seed_never_changes() {
        // The first outputs of SplitMix64 from state 0, as its authors print them.
        let mut rng = Rng { state: 0, spare: None };
        assert_eq!([rng.next(), rng.next()], [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4]);
        let first = |seed, name| Rng::new(seed, name).next();
        let all = [first(0, "a"), first(1, "a"), first(0, "b"), first(1, "b")];
        let distinct: std::collections::BTreeSet<u64> = all.into_iter().collect();
        assert_eq!(distinct.len(), 4);
    }
}
