//! The network in single precision that is quantized: as it is, or as rungs of the ladder have rewritten it and zeros were made in it.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

use sora_exec::Options as ExecOptions;
use sora_tensor::Tensor;

use super::grams::Grams;
use super::rounding::Chosen;
use super::{Change, RUNGS};
use crate::calibrate::calibrate;
use crate::feed::Feed;
use crate::layers::Network;
use crate::method::{Observations, requests};
use crate::placement::{Plan, Ranges};
use crate::{CompressError, Progress, prune};

/// A network in single precision with what calibration saw of it.
pub(crate) struct Base {
    pub(crate) network: Network,
    pub(crate) observations: Observations,
    pub(crate) ranges: Ranges,
    grams: RefCell<Option<Rc<Grams>>>,
    pub(crate) chosen: Chosen,
    /// Its weights with zeros among them, by layer and percent.
    pruned: RefCell<HashMap<(usize, u32), Tensor>>,
}

/// How to run a network on the calibration samples.
pub(crate) struct Calibration<'a> {
    pub(crate) feed: &'a Feed,
    pub(crate) samples: &'a [usize],
    pub(crate) batch: usize,
    pub(crate) exec: &'a ExecOptions,
    pub(crate) progress: &'a dyn Progress,
}

impl Base {
    fn new(network: Network, calibration: &Calibration) -> Result<Self, CompressError> {
        let Calibration { feed, samples, batch, exec, progress } = *calibration;
        progress.stage("Calibrating", Some(samples.len() as u64));
        let wanted = requests(&network);
        let observations = match wanted.is_empty() {
            true => Observations::default(),
            false => calibrate(&network, feed, samples, &wanted, batch, exec, progress)?,
        };
        let ranges = Ranges::new(observations.histograms.clone());
        let (grams, chosen, pruned) = (RefCell::default(), RefCell::default(), RefCell::default());
        Ok(Base { network, observations, ranges, grams, chosen, pruned })
    }

    /// What the products of the network multiply, observed when it is first asked for.
    pub(crate) fn grams(&self, calibration: &Calibration) -> Result<Rc<Grams>, CompressError> {
        if let Some(grams) = &*self.grams.borrow() {
            return Ok(Rc::clone(grams));
        }
        let grams = Rc::new(Grams::observe(&self.network, calibration)?);
        Ok(Rc::clone(self.grams.borrow_mut().insert(grams)))
    }

    /// The weights of a linear layer of which so many percent are zeros, the others making up for them.
    pub(crate) fn pruned(
        &self,
        layer: usize,
        zeros: u32,
        calibration: &Calibration,
    ) -> Result<Tensor, CompressError> {
        if let Some(known) = self.pruned.borrow().get(&(layer, zeros)) {
            return Ok(known.clone());
        }
        let exact =
            self.network.layers[layer].linear().and_then(|l| self.network.graph.const_value(l.weight));
        let Some(exact) = exact else {
            let name = &self.network.layers[layer].name;
            let what = format!(
                "the layer `{name}` is no product with constant weights: it cannot have zeros made in it"
            );
            return Err(CompressError::Option { what });
        };
        let found = prune::sparsified(&*self.grams(calibration)?, layer, exact, f64::from(zeros) / 100.0)?;
        self.pruned.borrow_mut().insert((layer, zeros), found.clone());
        Ok(found)
    }

    /// The network with zeros in these layers, in percent, calibrated anew. What its products multiply counts as before.
    fn sparse(&self, zeros: &BTreeMap<usize, u32>, calibration: &Calibration) -> Result<Base, CompressError> {
        let mut network = self.network.clone();
        for (&layer, &percent) in zeros {
            let pruned = self.pruned(layer, percent, calibration)?;
            if let Some(weight) = network.layers[layer].linear().map(|linear| linear.weight) {
                network.graph.set_const(weight, pruned)?;
            }
        }
        let sparse = Base::new(network, calibration)?;
        *sparse.grams.borrow_mut() = Some(self.grams(calibration)?);
        Ok(sparse)
    }
}

/// What makes a base: rungs that rewrite networks, and percents of zeros by layer.
type Making = (BTreeSet<usize>, BTreeMap<usize, u32>);

/// The bases by what made them, when they are first asked for. Constants change only, so all bases have the same layers, nodes and
/// values.
pub(crate) struct Bases<'a> {
    pub(crate) calibration: Calibration<'a>,
    made: RefCell<Vec<(Making, Rc<Base>)>>,
}

impl<'a> Bases<'a> {
    /// With the network as it is.
    pub(crate) fn new(network: &Network, calibration: Calibration<'a>) -> Result<Self, CompressError> {
        let plain = Rc::new(Base::new(network.clone(), &calibration)?);
        Ok(Bases { calibration, made: RefCell::new(vec![(Making::default(), plain)]) })
    }

    /// The network that the rungs of a plan make, in their order in the ladder, and then its zeros; without the last rung where it finds
    /// nothing to do.
    pub(crate) fn of(&self, plan: &Plan) -> Result<Rc<Base>, CompressError> {
        let rungs = plan.rungs.iter().copied().filter(|&rung| !RUNGS[rung].rounds());
        self.made(rungs.collect(), plan.zeros.clone())
    }

    fn made(&self, rungs: BTreeSet<usize>, zeros: BTreeMap<usize, u32>) -> Result<Rc<Base>, CompressError> {
        let making = (rungs, zeros);
        let known =
            self.made.borrow().iter().find(|(known, _)| *known == making).map(|(_, base)| Rc::clone(base));
        if let Some(base) = known {
            return Ok(base);
        }
        let (mut rungs, zeros) = making.clone();
        let base = if zeros.is_empty() {
            let last = rungs.pop_last();
            let base = self.made(rungs, zeros)?;
            match last.map(|rung| &RUNGS[rung].change) {
                Some(Change::Network(rewrite)) => match rewrite(&base.network, &base.observations)? {
                    Some(rewritten) => Rc::new(Base::new(rewritten, &self.calibration)?),
                    None => base,
                },
                _ => base,
            }
        } else {
            let dense = self.made(rungs, BTreeMap::new())?;
            Rc::new(dense.sparse(&zeros, &self.calibration)?)
        };
        self.made.borrow_mut().push((making, Rc::clone(&base)));
        Ok(base)
    }
}
