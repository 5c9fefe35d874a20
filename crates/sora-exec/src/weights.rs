//! Packed weights: made once, shared by the programs of a session, kept in files.

use std::any::Any;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use sora_ir::{Def, Graph};
use sora_kernels::{Kernels, Saved, SharedBytes, packing};
use sora_tensor::{Buffer, Tensor};

use crate::{ExecError, Options};

/// Weights as the kernels of one machine read them, to be kept in a file beside the graph.
///
/// They say the same as the graph's constants: whoever takes them from an untrusted file gets wrong results from
/// wrong bytes, and nothing worse.
#[derive(Clone, Default)]
pub struct PackedWeights {
    /// The kernels that read them; see [`PackedWeights::packing_for`].
    pub packing: String,
    /// By what they are and which constant they come from: buffers that begin at multiples of 64 bytes.
    pub entries: BTreeMap<String, Vec<Buffer>>,
}

impl std::fmt::Debug for PackedWeights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PackedWeights({}, {} entries)", self.packing, self.entries.len())
    }
}

impl PackedWeights {
    /// The packing that programs compiled with these options use: equal names, interchangeable weights.
    ///
    /// # Errors
    /// [`ExecError::Isa`] for an instruction set that does not run here.
    pub fn packing_for(options: &Options) -> Result<String, ExecError> {
        Ok(packing(options.kernels()?))
    }
}

/// What can be asked of packed weights of any kind.
trait Kept: Send + Sync {
    fn buffers(&self) -> Vec<&[u8]>;
    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
}

impl<P: Saved> Kept for P {
    fn buffers(&self) -> Vec<&[u8]> {
        Saved::buffers(self)
    }

    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

/// A part of a file that kernels read.
struct Part(Buffer);

impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// The packed weights of a session's constants.
pub(crate) struct WeightStore {
    kernels: Kernels,
    /// Names of the graph's constants by where their elements lie. The session keeps the graph, so no other
    /// tensor lies there meanwhile.
    names: HashMap<(usize, usize), String>,
    saved: BTreeMap<String, Vec<Buffer>>,
    kept: Mutex<BTreeMap<String, Arc<dyn Kept>>>,
}

/// Where a tensor's elements lie.
fn place(tensor: &Tensor) -> (usize, usize) {
    (tensor.raw().as_ptr().addr(), tensor.raw().len())
}

impl WeightStore {
    /// A store for the constants of `graph`, which must live as long. Weights saved for other kernels are
    /// left out.
    pub(crate) fn new(graph: &Graph, kernels: Kernels, saved: Option<PackedWeights>) -> Self {
        let constant = |value: &sora_ir::Value| match &value.def {
            Def::Const(tensor) if !tensor.is_empty() => Some((place(tensor), value.name.clone())),
            _ => None,
        };
        let names = graph.values().filter_map(|(_, value)| constant(value)).collect();
        let saved = saved.filter(|s| s.packing == packing(kernels)).map_or_else(BTreeMap::new, |s| s.entries);
        WeightStore { kernels, names, saved, kept: Mutex::default() }
    }

    /// The weights that `pack` makes of a constant, made the first time they are asked for. `order` tells apart
    /// what shape and kind do not: how the elements are arranged.
    pub(crate) fn get<P: Saved>(
        &self,
        constant: &Tensor,
        order: &str,
        shape: P::Shape,
        pack: impl FnOnce() -> P,
    ) -> Arc<P> {
        // A constant that an optimization made has no name that another run could find it by.
        let Some(name) = self.names.get(&place(constant)) else { return Arc::new(pack()) };
        let key = format!("{name} {} {shape:?} {order}", P::KIND);
        let find = || self.kept.lock().unwrap_or_else(PoisonError::into_inner).get(&key).map(Arc::clone);
        if let Some(Ok(kept)) = find().map(|kept| kept.as_any().downcast::<P>()) {
            return kept;
        }
        let restore = || {
            let parts: Vec<_> =
                self.saved.get(&key)?.iter().map(|b| SharedBytes::new(Part(b.clone()))).collect();
            P::restore(self.kernels, shape, &parts)
        };
        // Packed outside of the lock: at worst two threads do the same.
        let packed = Arc::new(restore().unwrap_or_else(pack));
        let kept: Arc<dyn Kept> = packed.clone();
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).insert(key, kept);
        packed
    }

    /// A copy of everything packed so far.
    pub(crate) fn save(&self) -> PackedWeights {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let copy = |kept: &Arc<dyn Kept>| kept.buffers().into_iter().map(Buffer::copy_of).collect();
        let entries = kept.iter().map(|(key, kept)| (key.clone(), copy(kept))).collect();
        PackedWeights { packing: packing(self.kernels), entries }
    }
}
