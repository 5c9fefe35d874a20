//! The network in single precision that is quantized: as it is, or as rungs of the ladder have rewritten it.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use sora_exec::Options as ExecOptions;

use super::rounding::Grams;
use super::{Change, RUNGS};
use crate::calibrate::calibrate;
use crate::feed::Feed;
use crate::layers::Network;
use crate::method::{Observations, requests};
use crate::placement::Ranges;
use crate::{CompressError, Progress};

/// A network in single precision with what calibration saw of it.
pub(crate) struct Base {
    pub(crate) network: Network,
    pub(crate) observations: Observations,
    pub(crate) ranges: Ranges,
    grams: RefCell<Option<Rc<Grams>>>,
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
        Ok(Base { network, observations, ranges, grams: RefCell::default() })
    }

    /// What the products of the network multiply, observed when it is first asked for.
    pub(crate) fn grams(&self, calibration: &Calibration) -> Result<Rc<Grams>, CompressError> {
        if let Some(grams) = &*self.grams.borrow() {
            return Ok(Rc::clone(grams));
        }
        let grams = Rc::new(Grams::observe(&self.network, calibration)?);
        Ok(Rc::clone(self.grams.borrow_mut().insert(grams)))
    }
}

/// The bases by the rungs that rewrote them, made when they are first asked for. Rungs change constants only, so all bases have the
/// same layers, nodes and values.
pub(crate) struct Bases<'a> {
    pub(crate) calibration: Calibration<'a>,
    made: RefCell<Vec<(BTreeSet<usize>, Rc<Base>)>>,
}

impl<'a> Bases<'a> {
    /// With the network as it is.
    pub(crate) fn new(network: &Network, calibration: Calibration<'a>) -> Result<Self, CompressError> {
        let plain = Rc::new(Base::new(network.clone(), &calibration)?);
        Ok(Bases { calibration, made: RefCell::new(vec![(BTreeSet::new(), plain)]) })
    }

    /// The network that these rungs of the ladder make, in their order there; the one before where the last of them finds nothing
    /// to do.
    pub(crate) fn of(&self, rungs: &BTreeSet<usize>) -> Result<Rc<Base>, CompressError> {
        let mut rungs: BTreeSet<usize> =
            rungs.iter().copied().filter(|&rung| !RUNGS[rung].rounds()).collect();
        let known =
            self.made.borrow().iter().find(|(known, _)| *known == rungs).map(|(_, base)| Rc::clone(base));
        if let Some(base) = known {
            return Ok(base);
        }
        let whole = rungs.clone();
        let last = rungs.pop_last();
        let mut base = self.of(&rungs)?;
        if let Some(Change::Network(rewrite)) = last.map(|rung| &RUNGS[rung].change)
            && let Some(rewritten) = rewrite(&base.network, &base.observations)?
        {
            base = Rc::new(Base::new(rewritten, &self.calibration)?);
        }
        self.made.borrow_mut().push((whole, Rc::clone(&base)));
        Ok(base)
    }
}
