//! What training must know of a network beyond its graph.

use sora_ir::{Graph, ValueId};

use crate::Penalty;

/// A constant that belongs to a layer and that training changes or follows.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    /// Full name, such as `layer1.conv2d.weight`.
    pub name: String,
    /// The constant.
    pub value: ValueId,
    /// Whether training moves it along its gradient; statistics are not.
    pub trainable: bool,
    /// Its learning rate, as a share of the others'.
    pub rate: f64,
    /// What its gradient is multiplied by before anything else. Optimizers that divide by the size of gradients, as Adam, hardly see it.
    pub gradient: f64,
    /// What its size adds to the loss.
    pub penalty: Penalty,
}

/// A value that passes unchanged in inference and loses elements at random in training. Source: Srivastava et al. 2014.
#[derive(Clone, Debug, PartialEq)]
pub struct Dropout {
    /// The result of an `Identity` node, so that only its readers are concerned.
    pub value: ValueId,
    /// The share of elements that become 0; the others grow by `1 / (1 - rate)`.
    pub rate: f64,
}

/// A network in the form of inference, with what training changes in it.
#[derive(Clone, Debug)]
pub struct Trainable {
    /// The graph. Its first output is what is trained.
    pub graph: Graph,
    /// The constants that training changes. A `BatchNorm` whose mean and variance are among them, and not trainable,
    /// takes those of its batch in training, which these then follow.
    pub parameters: Vec<Parameter>,
    /// Where elements are dropped.
    pub dropouts: Vec<Dropout>,
}
