//! Graph rewrites: passes, rules as data, and the manager that runs them to a fixed point.
//!
//! [`optimize`] is the entry. A pass is a verb and a file in `passes/`; an algebraic rule is a row of [`RULES`],
//! with a generator of graphs that it must rewrite, so that every rule is sampled through the reference
//! evaluator on both sides. No pass knows which network it sees, and none touches the names of inputs and outputs.
//!
//! Quantized graphs keep their one canonical form: constants behind DequantizeLinear stay integers, and pairs of
//! QuantizeLinear and DequantizeLinear stay where they are.
#![forbid(unsafe_code)]

mod editor;
mod manager;
mod passes;
mod patch;
mod report;
mod rules;
mod view;

pub use manager::{Options, RewriteError, optimize, write_out_control_flow};
pub use patch::{Patch, Term};
pub use report::{Fired, Report};
pub use rules::{RULES, Rule, Sample};
pub use view::View;
