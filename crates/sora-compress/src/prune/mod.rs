//! Structured pruning: channels, heads and recurrent units are really taken out of the graph.
//!
//! [`groups()`] follows every element along every axis through the network and finds which can only be removed together;
//! [`importance()`] says how much each unit matters, from weights and what [`observe()`] saw on samples; [`uniform`] and
//! [`by_saving`] choose; [`reconstruct()`] changes weights to make up for what goes, [`renormalize()`] estimates batch normalizations
//! anew, and [`remove()`] takes units out: all three are [`without`]. [`channels`] does all of that. [`taylor()`] ranks units by gradients
//! instead. Of what an operator does to its axes this module knows nothing: each says so itself, in [`OpDef::ties`](sora_ir::OpDef::ties).
//!
//! Source: G. Fang et al., "DepGraph: towards any structural pruning", CVPR 2023, here by elements instead of layers.
//!
//! Beside it stand zeros among the weights of a product, which leave its shape alone (`surgeon.rs`).

mod atoms;
mod extents;
mod groups;
mod importance;
mod observe;
mod reconstruct;
mod remove;
mod renormalize;
mod ridge;
mod surgeon;
mod taylor;
#[cfg(test)]
mod tests;

pub use groups::{Axis, Forbidden, Group, Groups, Sink, groups};
pub use importance::{by_saving, importance, uniform};
pub use observe::{Activations, Moments, observe};
pub use reconstruct::{RIDGE, reconstruct};
pub use remove::{remove, silence};
pub use renormalize::renormalize;
#[cfg(test)]
pub(crate) use ridge::solve;
pub(crate) use surgeon::sparsified;
pub use taylor::taylor;

use sora_data::{Dataset, Preprocess};
use sora_exec::Options;
use sora_ir::Graph;

use crate::{CompressError, Progress};

/// Elements of a vector register of AVX2, in f32: what the number of units left is a multiple of.
pub const LANES: usize = 8;

/// `graph`, optimized, without `fraction` of the units of every group, rounded so that a multiple of [`LANES`] elements stays:
/// those that matter least on `samples` of `data`, and weights that make up for them.
///
/// # Errors
/// [`CompressError::Option`] for a fraction outside of 0 to 1, and as [`observe()`].
pub fn channels(
    graph: &Graph,
    data: (&Dataset, &Preprocess),
    samples: &[usize],
    fraction: f64,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Graph, CompressError> {
    if !(0.0..1.0).contains(&fraction) {
        return Err(CompressError::Option {
            what: format!("cannot remove the fraction {fraction} of all units"),
        });
    }
    let groups = groups(graph)?;
    let seen = observe(graph, &groups, data, samples, options, progress)?;
    let keep = uniform(&groups, &importance(graph, &groups, Some(&seen)), fraction, LANES);
    without(graph, (&groups, &keep), &seen, data, samples, options, progress)
}

/// `graph` without the units that `keep` denies: weights and batch normalizations that are left make up for them on `samples` of `data`,
/// of which `seen` was observed.
///
/// # Errors
/// As [`observe()`] and [`remove()`].
pub fn without(
    graph: &Graph,
    (groups, keep): (&Groups, &[Vec<bool>]),
    seen: &Activations,
    data: (&Dataset, &Preprocess),
    samples: &[usize],
    options: &Options,
    progress: &dyn Progress,
) -> Result<Graph, CompressError> {
    let made_up = reconstruct(graph, groups, keep, seen, RIDGE)?;
    remove(&renormalize(graph, made_up, (groups, keep), data, samples, options, progress)?, groups, keep)
}
