//! Random valid instances of operators, for the conformance suite.

use sora_tensor::{DType, Tensor};

use crate::{Graph, IrError, Op, TensorType};

/// One input of a [`Case`].
#[derive(Clone, Debug)]
pub enum Arg {
    /// A graph input.
    Var(Tensor),
    /// A constant of the graph, as weights are.
    Const(Tensor),
    /// An absent optional input.
    Absent,
}

impl Arg {
    /// The tensor, unless absent.
    pub fn tensor(&self) -> Option<&Tensor> {
        match self {
            Arg::Var(tensor) | Arg::Const(tensor) => Some(tensor),
            Arg::Absent => None,
        }
    }
}

/// An operator with inputs that it accepts.
#[derive(Clone, Debug)]
pub struct Case {
    /// The operator with its attributes.
    pub op: Op,
    /// Its inputs.
    pub inputs: Vec<Arg>,
    /// Greatest allowed error of a float kernel, relative to the largest magnitude of the reference output.
    pub tolerance: f64,
}

impl Case {
    /// A case with the default tolerance of 2e-5, what reordering a sum of some thousand terms costs in `f32`.
    pub fn new(op: impl Into<Op>, inputs: impl IntoIterator<Item = Arg>) -> Self {
        Case { op: op.into(), inputs: inputs.into_iter().collect(), tolerance: 2e-5 }
    }

    /// The same case under another tolerance.
    pub fn with_tolerance(self, tolerance: f64) -> Self {
        Case { tolerance, ..self }
    }
}

impl Case {
    /// A graph of this one node, its outputs named `y0, y1, …`, with the variable inputs by name.
    ///
    /// # Errors
    /// [`IrError::Infer`] when the operator refuses its own case.
    pub fn graph(&self) -> Result<(Graph, Vec<(String, Tensor)>), IrError> {
        let mut graph = Graph::new(self.op.name());
        let (mut ids, mut given) = (vec![None; self.inputs.len()], Vec::new());
        // Inputs before constants, the order of the text form: printing then numbers values as parsing does.
        for (i, arg) in self.inputs.iter().enumerate() {
            if let Arg::Var(tensor) = arg {
                given.push((format!("x{i}"), tensor.clone()));
                ids[i] = Some(graph.input(&format!("x{i}"), TensorType::of(tensor)));
            }
        }
        for (i, arg) in self.inputs.iter().enumerate() {
            if let Arg::Const(tensor) = arg {
                ids[i] = Some(graph.constant(&format!("c{i}"), tensor.clone()));
            }
        }
        for (i, output) in graph.add("node", self.op.clone(), ids)?.into_iter().enumerate() {
            graph.output(&format!("y{i}"), output);
        }
        Ok((graph, given))
    }
}

/// The random source of cases: every value follows from the seed.
pub struct Gen {
    rng: fastrand::Rng,
}

impl Gen {
    /// A source seeded with `seed`.
    pub fn new(seed: u64) -> Self {
        Gen { rng: fastrand::Rng::with_seed(seed) }
    }

    /// A number in `low..=high`.
    pub fn size(&mut self, low: usize, high: usize) -> usize {
        self.rng.usize(low..=high)
    }

    /// One of `options`.
    pub fn pick<T: Clone>(&mut self, options: &[T]) -> T {
        options[self.rng.usize(0..options.len())].clone()
    }

    /// True half of the time.
    pub fn flag(&mut self) -> bool {
        self.rng.bool()
    }

    /// A shape of the given rank with extents in `1..=7`.
    pub fn shape(&mut self, rank: usize) -> Vec<usize> {
        (0..rank).map(|_| self.size(1, 7)).collect()
    }

    /// A uniform number in `low..high`.
    pub fn real(&mut self, low: f64, high: f64) -> f64 {
        low + self.rng.f64() * (high - low)
    }

    /// A tensor of values uniform in `low..high`.
    pub fn uniform(&mut self, dtype: DType, shape: &[usize], low: f64, high: f64) -> Tensor {
        let len = shape.iter().product();
        let values: Vec<f64> = (0..len).map(|_| self.real(low, high)).collect();
        Tensor::from_f64s(dtype, shape, &values).expect("a case has a small shape")
    }

    /// A tensor of typical values: floats in -2..2, integers over a small range, random truth values.
    pub fn tensor(&mut self, dtype: DType, shape: &[usize]) -> Tensor {
        match dtype {
            DType::Bool => {
                let bits = self.uniform(DType::I32, shape, 0.0, 2.0);
                bits.cast(DType::Bool)
            }
            DType::F8E8M0 => self.uniform(dtype, shape, 0.01, 4.0),
            DType::U8 => self.uniform(dtype, shape, 0.0, 256.0),
            DType::I8 => self.uniform(dtype, shape, -128.0, 128.0),
            _ if dtype.int_range().is_some_and(|(low, _)| low == 0) => self.uniform(dtype, shape, 0.0, 100.0),
            _ if dtype.is_int() => self.uniform(dtype, shape, -100.0, 100.0),
            _ => self.uniform(dtype, shape, -2.0, 2.0),
        }
    }

    /// A variable `f32` input of typical values.
    pub fn var(&mut self, shape: &[usize]) -> Arg {
        Arg::Var(self.tensor(DType::F32, shape))
    }

    /// A constant `f32` input of typical values.
    pub fn weights(&mut self, shape: &[usize]) -> Arg {
        Arg::Const(self.tensor(DType::F32, shape))
    }
}
