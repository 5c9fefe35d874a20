//! Values as products and sums: how one pattern covers the many spellings of a formula.

use sora_ir::ValueId;
use sora_ir::ops::{Binary, BinaryKind};

use crate::View;
use crate::view::input;

/// `scale · factors[0] · factors[1] · …`
#[derive(Clone, Debug)]
pub(crate) struct Product {
    pub(crate) scale: f64,
    pub(crate) factors: Vec<ValueId>,
}

/// Depth of trees that are looked into.
const MAX_DEPTH: usize = 6;

impl Product {
    /// Takes products, quotients by scalars and small powers apart, down to values that have other readers too.
    pub(crate) fn of(view: &View, value: ValueId) -> Self {
        let mut product = Product { scale: 1.0, factors: Vec::new() };
        product.multiply(view, value, 0);
        product
    }

    fn multiply(&mut self, view: &View, value: ValueId, depth: usize) {
        if let Some(scalar) = view.scalar(value) {
            self.scale *= scalar;
            return;
        }
        let open = depth == 0 || (depth < MAX_DEPTH && view.single_use(value));
        let made = view.made_by::<Binary>(value).filter(|_| open);
        if let Some((Binary { kind }, node)) = made
            && let (Some(a), Some(b)) = (input(node, 0), input(node, 1))
        {
            match (kind, view.scalar(b)) {
                (BinaryKind::Mul, _) => {
                    self.multiply(view, a, depth + 1);
                    self.multiply(view, b, depth + 1);
                    return;
                }
                (BinaryKind::Div, Some(by)) => {
                    self.multiply(view, a, depth + 1);
                    self.scale /= by;
                    return;
                }
                (BinaryKind::Pow, Some(n @ (2.0 | 3.0))) => {
                    let count = if n == 2.0 { 2 } else { 3 };
                    self.factors.extend(std::iter::repeat_n(a, count));
                    return;
                }
                _ => {}
            }
        }
        self.factors.push(value);
    }

    /// Whether this is `scale · x^power`.
    pub(crate) fn is_power(&self, scale: f64, x: ValueId, power: usize) -> bool {
        near(self.scale, scale) && self.factors.len() == power && self.factors.iter().all(|&f| f == x)
    }

    /// `x` and `f` if this is `scale · x · f`, in both orders.
    pub(crate) fn pairs(&self, scale: f64) -> Vec<(ValueId, ValueId)> {
        match self.factors[..] {
            [a, b] if near(self.scale, scale) => vec![(a, b), (b, a)],
            _ => Vec::new(),
        }
    }
}

/// `x` if `value` is `x + offset`.
pub(crate) fn minus_offset(view: &View, value: ValueId, offset: f64) -> Option<ValueId> {
    let (Binary { kind: BinaryKind::Add }, node) = view.made_by::<Binary>(value)? else { return None };
    let (a, b) = (input(node, 0)?, input(node, 1)?);
    let is = |v| view.scalar(v).is_some_and(|c| near(c, offset));
    if is(b) { Some(a) } else { is(a).then_some(b) }
}

/// Whether a constant of a formula is meant: files hold it rounded, to four or five digits or to `f16`.
pub(crate) fn near(a: f64, b: f64) -> bool {
    (a - b).abs() <= 3e-4 * b.abs()
}
