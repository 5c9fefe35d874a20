//! Shortcuts past layers.

use sora_ir::ValueId;

use super::{Layer, LayerError, Network};

/// `f(x) + g(x)`: a list of layers, and one on the shortcut past them; an empty one is the identity.
/// Source: He et al. 2015.
pub struct Residual {
    layers: Vec<Box<dyn Layer>>,
    shortcut: Vec<Box<dyn Layer>>,
}

impl Residual {
    /// Layers whose result is added to what they read.
    pub fn new(layers: Vec<Box<dyn Layer>>) -> Self {
        Residual { layers, shortcut: Vec::new() }
    }

    /// Layers on the way past the others, as where these change the shape.
    #[must_use]
    pub fn shortcut(self, shortcut: Vec<Box<dyn Layer>>) -> Self {
        Residual { shortcut, ..self }
    }
}

impl Layer for Residual {
    fn name(&self) -> &'static str {
        "residual"
    }

    fn build(&self, net: &mut Network, x: ValueId) -> Result<ValueId, LayerError> {
        let chain = |net: &mut Network, layers: &[Box<dyn Layer>]| {
            layers.iter().try_fold(x, |x, layer| net.layer(x, layer.as_ref()))
        };
        let f = chain(net, &self.layers)?;
        let g = net.scope("shortcut", |net| chain(net, &self.shortcut))?;
        if net.ty(f) != net.ty(g) {
            let why = format!("the layers give {}, the shortcut {}", net.ty(f), net.ty(g));
            return Err(net.refuse(why));
        }
        net.add(f, g)
    }
}
