//! What a program consists of and where its time goes.

use std::fmt;

use sora_ir::{Graph, Node, TensorType};
use sora_kernels::peak::Arithmetic;
use sora_tensor::DType;

use crate::Choice;

/// One step of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepInfo {
    /// Name of the last graph node that the step computes.
    pub name: String,
    /// Kernel, such as `conv.u8i8`, or `reference:Op` where the reference evaluator runs.
    pub kernel: String,
    /// Names of all graph nodes that the step computes, in order; empty for conversions.
    pub nodes: Vec<String>,
    /// Logical shape of the first result.
    pub shape: Vec<usize>,
    /// Dtype of the first result in memory.
    pub dtype: DType,
    /// Multiply-adds.
    pub macs: u64,
    /// Bytes of packed weights.
    pub weight_bytes: usize,
    /// Bytes of all inputs and outputs, packed weights included.
    pub bytes: u64,
    /// Share of the weights that are zero and skipped, in percent, where kernels skip them.
    pub zeros: Option<u8>,
    /// What else the step could do, where a [`crate::Tuning`] may choose.
    pub choice: Option<Choice>,
}

impl StepInfo {
    /// A step that computes one node.
    pub(crate) fn of(graph: &Graph, node: &Node, kernel: &str) -> Self {
        let types: Vec<_> = node.inputs.iter().map(|i| i.map(|i| graph.ty(i))).collect();
        let outputs: Vec<_> = node.outputs.iter().map(|&o| graph.ty(o)).collect();
        let bytes = |ty: &&TensorType| Some((ty.known_len()? * ty.dtype.size()) as u64);
        StepInfo {
            name: node.name.clone(),
            kernel: kernel.to_owned(),
            nodes: vec![node.name.clone()],
            shape: outputs.first().and_then(|ty| ty.known_shape()).unwrap_or_default(),
            dtype: outputs.first().map_or(DType::F32, |ty| ty.dtype),
            macs: node.op.macs(&types, &outputs).known().unwrap_or(0) as u64,
            weight_bytes: 0,
            bytes: types.iter().flatten().chain(&outputs).filter_map(bytes).sum(),
            zeros: None,
            choice: None,
        }
    }

    /// The kernel, with the share of zeros that it skips.
    pub fn described_kernel(&self) -> String {
        match self.zeros {
            Some(percent) => format!("{} ({percent} % zeros)", self.kernel),
            None => self.kernel.clone(),
        }
    }

    /// The arithmetic of the step's products, which the kernel's name ends with.
    pub fn arithmetic(&self) -> Option<Arithmetic> {
        match self.kernel.rsplit_once('.')?.1 {
            "f32" => Some(Arithmetic::F32),
            "u8i8" => Some(Arithmetic::I8),
            "bf16" => Some(Arithmetic::Bf16),
            _ => None,
        }
    }
}

/// A step with the time that one run spent in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepTime {
    /// The step.
    pub step: StepInfo,
    /// Wall-clock time.
    pub nanoseconds: u64,
}

/// Where the time of one run went, step by step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile {
    /// The steps in order of execution.
    pub steps: Vec<StepTime>,
}

impl Profile {
    /// Time of all steps together.
    pub fn total_nanoseconds(&self) -> u64 {
        self.steps.iter().map(|s| s.nanoseconds).sum()
    }

    /// Keeps, step by step, the smaller time of two runs of one program.
    pub fn keep_fastest(&mut self, other: &Profile) {
        for (mine, theirs) in self.steps.iter_mut().zip(&other.steps) {
            mine.nanoseconds = mine.nanoseconds.min(theirs.nanoseconds);
        }
    }
}

/// A table, one line per step.
impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = self.total_nanoseconds().max(1) as f64;
        writeln!(f, "{:>10}  {:>5}  {:>8}  {:<22} step", "us", "%", "GMAC/s", "kernel")?;
        for StepTime { step, nanoseconds } in &self.steps {
            let ns = *nanoseconds as f64;
            let rate =
                if step.macs > 0 { format!("{:.1}", step.macs as f64 / ns.max(1.0)) } else { String::new() };
            let (us, percent) = (ns / 1e3, 100.0 * ns / total);
            let nodes = if step.nodes.is_empty() { &step.name } else { &step.nodes.join(" + ") };
            writeln!(
                f,
                "{us:>10.2}  {percent:>5.1}  {rate:>8}  {:<22} {nodes} {:?}",
                step.described_kernel(),
                step.shape
            )?;
        }
        write!(f, "{:>10.2}  total", total / 1e3)
    }
}
