//! Packed weights: made once, shared by the programs of a session, kept in files.

use std::any::Any;
use std::collections::{BTreeMap, HashMap, HashSet};
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

/// The packed weights of a graph's constants.
pub(crate) struct WeightStore {
    kernels: Kernels,
    /// The constants by their origin, with their names. Held here, so that no other tensor comes to have it.
    constants: HashMap<(usize, usize), (String, Tensor)>,
    saved: BTreeMap<String, Vec<Buffer>>,
    kept: Mutex<BTreeMap<String, Arc<dyn Kept>>>,
    /// The store of the graph around this one, or of the graph that this one was made of.
    around: Option<Arc<WeightStore>>,
}

impl WeightStore {
    /// A store for the constants of `graph`. Weights saved for other kernels are left out.
    pub(crate) fn new(graph: &Graph, kernels: Kernels, saved: Option<PackedWeights>) -> Self {
        let saved = saved.filter(|s| s.packing == packing(kernels)).map_or_else(BTreeMap::new, |s| s.entries);
        let constants = HashMap::new();
        let mut store = WeightStore { kernels, constants, saved, kept: Mutex::default(), around: None };
        store.take(graph, "", &mut HashSet::new());
        store
    }

    /// A store for those constants of `graph` that `around` does not know, and through it for the others.
    pub(crate) fn inside(graph: &Graph, around: Arc<WeightStore>) -> Self {
        let (constants, saved) = Default::default();
        let kernels = around.kernels;
        let mut store =
            WeightStore { kernels, constants, saved, kept: Mutex::default(), around: Some(around) };
        store.take(graph, "", &mut HashSet::new());
        store
    }

    /// Takes the constants of a graph and of the bodies in it. Names are made unique, for they are what weights are
    /// found by.
    fn take(&mut self, graph: &Graph, prefix: &str, taken: &mut HashSet<String>) {
        for (_, value) in graph.values() {
            if let Def::Const(tensor) = &value.def
                && !tensor.is_empty()
                && !self.knows(tensor)
            {
                let mut name = format!("{prefix}{}", value.name);
                while !taken.insert(name.clone()) {
                    name.push('\'');
                }
                self.constants.insert(tensor.origin(), (name, tensor.detached()));
            }
        }
        for (_, node) in graph.nodes() {
            for (i, body) in node.op.bodies().into_iter().enumerate() {
                self.take(body.graph(), &format!("{prefix}{}.{i}/", node.name), taken);
            }
        }
    }

    fn knows(&self, constant: &Tensor) -> bool {
        self.constants.contains_key(&constant.origin())
            || self.around.as_ref().is_some_and(|around| around.knows(constant))
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
        let Some((name, _)) = self.constants.get(&constant.origin()) else {
            return match &self.around {
                Some(around) => around.get(constant, order, shape, pack),
                // A constant made for one program has no name that another could find it by.
                None => Arc::new(pack()),
            };
        };
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

    /// A copy of everything packed so far for the graph that a file holds.
    pub(crate) fn save(&self) -> PackedWeights {
        if let Some(around) = &self.around {
            return around.save();
        }
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let copy = |kept: &Arc<dyn Kept>| kept.buffers().into_iter().map(Buffer::copy_of).collect();
        let entries = kept.iter().map(|(key, kept)| (key.clone(), copy(kept))).collect();
        PackedWeights { packing: packing(self.kernels), entries }
    }
}
