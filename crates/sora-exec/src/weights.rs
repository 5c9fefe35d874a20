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
    /// By what they are and which constant they come from: parts that begin at multiples of 64 bytes.
    pub entries: BTreeMap<String, Vec<PackedPart>>,
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

/// A part of packed weights: bytes of a file, or those that programs of a session read. No copy of either.
#[derive(Clone)]
pub struct PackedPart(Place);

#[derive(Clone)]
enum Place {
    File(Buffer),
    /// One of the buffers.
    Kept(Arc<dyn Kept>, usize),
}

impl From<Buffer> for PackedPart {
    fn from(buffer: Buffer) -> Self {
        PackedPart(Place::File(buffer))
    }
}

impl AsRef<[u8]> for PackedPart {
    fn as_ref(&self) -> &[u8] {
        match &self.0 {
            Place::File(buffer) => buffer,
            Place::Kept(kept, index) => kept.buffers().get(*index).copied().unwrap_or_default(),
        }
    }
}

/// What weights are found by: constant, kind of kernel, shape, order.
fn key<P: Saved>(name: &str, order: &str, shape: P::Shape) -> String {
    format!("{name} {} {shape:?} {order}", P::KIND)
}

/// The position of the smallest cost, the first of equal ones.
pub(crate) fn cheapest(costs: &[usize]) -> usize {
    costs.iter().enumerate().min_by_key(|&(_, cost)| cost).map_or(0, |(way, _)| way)
}

/// The packed weights of a graph's constants.
pub(crate) struct WeightStore {
    kernels: Kernels,
    /// The constants by their origin, with their names. Held here, so that no other tensor comes to have it.
    constants: HashMap<(usize, usize), (String, Tensor)>,
    saved: BTreeMap<String, Vec<PackedPart>>,
    kept: Mutex<BTreeMap<String, Arc<dyn Kept>>>,
    /// By name of the constant and order: weights that no file holds.
    shared: Mutex<HashMap<(String, String), Arc<dyn Any + Send + Sync>>>,
    /// By name of the constant: the way of computing that its weights were packed for.
    packed_for: Mutex<HashMap<String, usize>>,
    /// By name of the constant: how many elements are not zero.
    nonzeros: Mutex<HashMap<String, usize>>,
    /// The store of the graph around this one, or of the graph that this one was made of.
    around: Option<Arc<WeightStore>>,
}

impl WeightStore {
    /// A store for the constants of `graph`. Weights saved for other kernels are left out.
    pub(crate) fn new(graph: &Graph, kernels: Kernels, saved: Option<PackedWeights>) -> Self {
        let saved = saved.filter(|s| s.packing == packing(kernels)).map_or_else(BTreeMap::new, |s| s.entries);
        let mut store = WeightStore { saved, ..Self::empty(kernels, None) };
        store.take(graph, "", &mut HashSet::new());
        store
    }

    /// A store for those constants of `graph` that `around` does not know, and through it for the others.
    pub(crate) fn inside(graph: &Graph, around: Arc<WeightStore>) -> Self {
        let mut store = Self::empty(around.kernels, Some(around));
        store.take(graph, "", &mut HashSet::new());
        store
    }

    fn empty(kernels: Kernels, around: Option<Arc<WeightStore>>) -> Self {
        let (constants, saved, kept) = Default::default();
        let (shared, packed_for, nonzeros) = Default::default();
        WeightStore { kernels, constants, saved, kept, shared, packed_for, nonzeros, around }
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

    /// The store that holds a constant, and the constant's name there.
    fn home(&self, constant: &Tensor) -> Option<(&WeightStore, &str)> {
        match self.constants.get(&constant.origin()) {
            Some((name, _)) => Some((self, name)),
            None => self.around.as_ref()?.home(constant),
        }
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
        // A constant made for one program has no name that another could find it by.
        let Some((home, name)) = self.home(constant) else { return Arc::new(pack()) };
        let key = key::<P>(name, order, shape);
        home.find(&key, shape).unwrap_or_else(|| home.keep(key, pack()))
    }

    /// As [`WeightStore::get`], of weights that no file holds, and that cannot always be made.
    pub(crate) fn share<P: Send + Sync + 'static>(
        &self,
        constant: &Tensor,
        order: &str,
        pack: impl FnOnce() -> Option<P>,
    ) -> Option<Arc<P>> {
        let Some((home, name)) = self.home(constant) else { return Some(Arc::new(pack()?)) };
        let key = (name.to_owned(), order.to_owned());
        let shared = home.shared.lock().unwrap_or_else(PoisonError::into_inner).get(&key).map(Arc::clone);
        if let Some(Ok(shared)) = shared.map(Arc::downcast::<P>) {
            return Some(shared);
        }
        let packed = Arc::new(pack()?);
        home.shared.lock().unwrap_or_else(PoisonError::into_inner).insert(key, packed.clone());
        Some(packed)
    }

    /// The weights of a key, packed before or saved in a file.
    fn find<P: Saved>(&self, key: &str, shape: P::Shape) -> Option<Arc<P>> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner).get(key).map(Arc::clone);
        if let Some(Ok(kept)) = kept.map(|kept| kept.as_any().downcast::<P>()) {
            return Some(kept);
        }
        let parts = self.saved.get(key)?.iter().map(|part| SharedBytes::new(part.clone()));
        let restored = P::restore(self.kernels, shape, &parts.collect::<Vec<_>>())?;
        Some(self.keep(key.to_owned(), restored))
    }

    /// Keeps weights that were made outside of the lock: at worst two threads do the same.
    fn keep<P: Saved>(&self, key: String, packed: P) -> Arc<P> {
        let packed = Arc::new(packed);
        let kept: Arc<dyn Kept> = packed.clone();
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).insert(key, kept);
        packed
    }

    /// Which of several ways to compute with a constant is taken, by their costs: the one that its weights were packed
    /// for first, while that costs at most twice as much as the cheapest. Packing them once more takes the time of many
    /// runs, and memory for good; without, a program for new shapes costs no more than planning it.
    pub(crate) fn prefer(&self, constant: &Tensor, costs: &[usize]) -> usize {
        let best = cheapest(costs);
        let Some((home, name)) = self.home(constant) else { return best };
        let mut packed_for = home.packed_for.lock().unwrap_or_else(PoisonError::into_inner);
        let dear = |way: usize| costs[way] / 2 > costs[best];
        match packed_for.get(name) {
            Some(&way) if way < costs.len() && !dear(way) => way,
            _ => {
                packed_for.insert(name.to_owned(), best);
                best
            }
        }
    }

    /// How many elements of a constant are not zero, counted once. `None` where a file holds the constant packed, but
    /// not as weights of this kind, without zeros: that did not pay, and weights in a file are not read to find out again.
    pub(crate) fn nonzeros(
        &self,
        constant: &Tensor,
        kind: &str,
        count: impl FnOnce(&Tensor) -> usize,
    ) -> Option<usize> {
        let Some((home, name)) = self.home(constant) else { return Some(count(constant)) };
        let known = home.nonzeros.lock().unwrap_or_else(PoisonError::into_inner).get(name).copied();
        if known.is_some() {
            return known;
        }
        let prefix = format!("{name} ");
        let mut kinds = home.saved.range(prefix.clone()..).map_while(|(key, _)| key.strip_prefix(&prefix));
        let is_sparse = |key: &str| key.split(' ').next() == Some(kind);
        if kinds.clone().next().is_some() && !kinds.any(is_sparse) {
            return None;
        }
        let counted = count(constant);
        home.nonzeros.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), counted);
        Some(counted)
    }

    /// Everything packed so far for the graph that a file holds.
    pub(crate) fn save(&self) -> PackedWeights {
        if let Some(around) = &self.around {
            return around.save();
        }
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let parts = |kept: &Arc<dyn Kept>| {
            let part = |index| PackedPart(Place::Kept(Arc::clone(kept), index));
            (0..kept.buffers().len()).map(part).collect()
        };
        let entries = kept.iter().map(|(key, kept)| (key.clone(), parts(kept))).collect();
        PackedWeights { packing: packing(self.kernels), entries }
    }
}
