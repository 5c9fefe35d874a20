//! Symbolic dimensions: integer polynomials over named symbols, in one canonical form.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::{Add, Mul, Sub};
use std::sync::Arc;

/// The extent of one dimension: a number, or an expression over symbols such as `batch` or `(H+1)/2`.
///
/// Sums and products are kept as a polynomial in canonical form, so two dimensions are equal exactly when
/// their expressions are. Arithmetic saturates; a negative constant is representable and is rejected where
/// it would become the shape of a value.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Dim(Repr);

#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Repr {
    Const(i64),
    /// At least one monomial with a factor; monomial → coefficient, the empty monomial is the constant.
    Poly(Arc<BTreeMap<Monomial, i64>>),
}

type Monomial = Vec<Atom>;

#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Atom {
    Symbol(Arc<str>),
    FloorDiv(Dim, i64),
}

impl Dim {
    /// A symbol of this name.
    pub fn symbol(name: &str) -> Self {
        Dim(Repr::Poly(Arc::new(BTreeMap::from([(vec![Atom::Symbol(name.into())], 1)]))))
    }

    /// The extent if it is a non-negative number.
    pub fn known(&self) -> Option<usize> {
        self.constant().and_then(|v| usize::try_from(v).ok())
    }

    /// The value if it is a number, negative ones included.
    pub fn constant(&self) -> Option<i64> {
        match self.0 {
            Repr::Const(v) => Some(v),
            Repr::Poly(_) => None,
        }
    }

    /// A symbol for an extent that inference cannot know, told apart by `place`: a node and an axis.
    pub(crate) fn unknown(place: &str) -> Self {
        Dim::symbol(&format!("?{place}"))
    }

    /// Whether this is a symbol that stands for what inference cannot know, and nothing more.
    pub fn is_unknown(&self) -> bool {
        self.as_symbol().is_some_and(|name| name.starts_with('?'))
    }

    /// Whether both could be the same extent: they are equal or at least one is not a number.
    pub fn compatible(&self, other: &Dim) -> bool {
        self == other || self.constant().is_none() || other.constant().is_none()
    }

    /// The more definite of two compatible extents; `None` when they are different numbers.
    pub fn unify(&self, other: &Dim) -> Option<Dim> {
        self.compatible(other).then(|| if self.constant().is_some() { self.clone() } else { other.clone() })
    }

    /// The extent that two broadcast to; `None` when they are different numbers, none of them 1. Of two that differ and are
    /// no numbers, either may be 1: the result is a symbol of its own, the same for the same two.
    pub fn broadcast(&self, other: &Dim) -> Option<Dim> {
        match (self.constant(), other.constant()) {
            (Some(1), _) => Some(other.clone()),
            (_, Some(1)) => Some(self.clone()),
            (None, None) if self != other => {
                let pair = if self < other { (self, other) } else { (other, self) };
                Some(Dim::symbol(&format!("?{:016x}", fingerprint(&("broadcast", pair)))))
            }
            _ => self.unify(other),
        }
    }

    /// Division by a positive number, rounded towards negative infinity. Multiples of it are taken out, so that
    /// `(N-1)/2+1` is `(N+1)/2`.
    pub fn floor_div(&self, by: i64) -> Dim {
        let by = by.max(1);
        let Repr::Poly(terms) = &self.0 else {
            return Dim::from(self.constant().unwrap_or(0).div_euclid(by));
        };
        let part = |f: &dyn Fn(i64) -> i64| Self::from_terms(terms.iter().map(|(m, &c)| (m.clone(), f(c))));
        let (whole, rest) = (part(&|c| c.div_euclid(by)), part(&|c| c.rem_euclid(by)));
        match rest.constant() {
            // Less than the divisor.
            Some(_) => whole,
            None => whole + Self::from_terms([(vec![Atom::FloorDiv(rest, by)], 1)]),
        }
    }

    /// Division by a positive number, rounded towards positive infinity.
    pub fn ceil_div(&self, by: i64) -> Dim {
        let by = by.max(1);
        (self.clone() + Dim::from(by - 1)).floor_div(by)
    }

    /// The value after replacing symbols; `None` while a symbol is unbound.
    pub fn eval(&self, lookup: &dyn Fn(&str) -> Option<usize>) -> Option<i64> {
        match &self.0 {
            Repr::Const(v) => Some(*v),
            Repr::Poly(terms) => terms.iter().try_fold(0i64, |sum, (monomial, &c)| {
                let product = monomial.iter().try_fold(c, |product, atom| {
                    let factor = match atom {
                        Atom::Symbol(name) => i64::try_from(lookup(name)?).ok()?,
                        Atom::FloorDiv(inner, by) => inner.eval(lookup)?.div_euclid(*by),
                    };
                    Some(product.saturating_mul(factor))
                })?;
                Some(sum.saturating_add(product))
            }),
        }
    }

    /// The name when the whole expression is one symbol.
    pub fn as_symbol(&self) -> Option<&str> {
        let Repr::Poly(terms) = &self.0 else { return None };
        match (terms.len(), terms.first_key_value()) {
            (1, Some((monomial, 1))) => match monomial.as_slice() {
                [Atom::Symbol(name)] => Some(name),
                _ => None,
            },
            _ => None,
        }
    }

    /// Adds the names of all symbols to `out`.
    pub fn symbols(&self, out: &mut BTreeSet<String>) {
        let Repr::Poly(terms) = &self.0 else { return };
        for atom in terms.keys().flatten() {
            match atom {
                Atom::Symbol(name) => {
                    out.insert(name.to_string());
                }
                Atom::FloorDiv(inner, _) => inner.symbols(out),
            }
        }
    }

    /// The quotient if `other` divides this expression exactly term by term: how Reshape infers `-1`.
    pub fn exact_div(&self, other: &Dim) -> Option<Dim> {
        if let (Some(a), Some(b)) = (self.constant(), other.constant()) {
            return (b != 0 && a % b == 0).then(|| Dim::from(a / b));
        }
        let divisor = other.terms();
        let (by, coefficient) = (divisor.len() == 1).then(|| divisor.first_key_value()).flatten()?;
        let mut quotient = Vec::new();
        for (monomial, c) in self.terms() {
            if *coefficient == 0 || c % coefficient != 0 {
                return None;
            }
            let mut rest = monomial;
            for atom in by {
                rest.remove(rest.iter().position(|a| a == atom)?);
            }
            quotient.push((rest, c / coefficient));
        }
        Some(Self::from_terms(quotient))
    }

    fn terms(&self) -> BTreeMap<Monomial, i64> {
        match &self.0 {
            Repr::Const(v) => BTreeMap::from([(Vec::new(), *v)]),
            Repr::Poly(terms) => (**terms).clone(),
        }
    }

    fn from_terms(terms: impl IntoIterator<Item = (Monomial, i64)>) -> Dim {
        let mut sum: BTreeMap<Monomial, i64> = BTreeMap::new();
        for (mut monomial, c) in terms {
            monomial.sort();
            let entry = sum.entry(monomial).or_insert(0);
            *entry = entry.saturating_add(c);
        }
        sum.retain(|_, c| *c != 0);
        match sum.keys().any(|m| !m.is_empty()) {
            true => Dim(Repr::Poly(Arc::new(sum))),
            false => Dim(Repr::Const(sum.get(&Vec::new()).copied().unwrap_or(0))),
        }
    }
}

/// Bounds of a polynomial, far above what networks have: beyond them a product becomes a symbol of its own, so that
/// no file can make shape arithmetic explode.
const MOST_TERMS: usize = 256;
const MOST_FACTORS: usize = 16;

/// The same for equal values, so that equal products stay equal.
fn fingerprint(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

impl From<i64> for Dim {
    fn from(value: i64) -> Self {
        Dim(Repr::Const(value))
    }
}

impl From<usize> for Dim {
    fn from(value: usize) -> Self {
        Dim(Repr::Const(i64::try_from(value).unwrap_or(i64::MAX)))
    }
}

impl Add for Dim {
    type Output = Dim;

    fn add(self, other: Dim) -> Dim {
        match (&self.0, &other.0) {
            (Repr::Const(a), Repr::Const(b)) => Dim::from(a.saturating_add(*b)),
            _ => Dim::from_terms(self.terms().into_iter().chain(other.terms())),
        }
    }
}

impl Sub for Dim {
    type Output = Dim;

    fn sub(self, other: Dim) -> Dim {
        self + other * Dim::from(-1i64)
    }
}

impl Mul for Dim {
    type Output = Dim;

    fn mul(self, other: Dim) -> Dim {
        if let (Repr::Const(a), Repr::Const(b)) = (&self.0, &other.0) {
            return Dim::from(a.saturating_mul(*b));
        }
        let (left, right) = (self.terms(), other.terms());
        let degree = |terms: &BTreeMap<Monomial, i64>| terms.keys().map(Vec::len).max().unwrap_or(0);
        if left.len() * right.len() > MOST_TERMS || degree(&left) + degree(&right) > MOST_FACTORS {
            return Dim::symbol(&format!("?{:016x}", fingerprint(&(&self, &other))));
        }
        Dim::from_terms(left.iter().flat_map(|(m, a)| {
            right.iter().map(move |(n, b)| ([m.as_slice(), n].concat(), a.saturating_mul(*b)))
        }))
    }
}

/// Prints what [`Dim::parse`] reads, for example `2*N+1`, `(H+1)/2` or `'odd name'`.
impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let terms = match &self.0 {
            Repr::Const(v) => return write!(f, "{v}"),
            Repr::Poly(terms) => terms,
        };
        // Longest monomials first, so that the constant comes last as people write it.
        for (i, (monomial, &c)) in terms.iter().rev().enumerate() {
            let sign = if c < 0 { "-" } else { "+" };
            if i > 0 || c < 0 {
                f.write_str(sign)?;
            }
            let size = c.unsigned_abs();
            if size != 1 || monomial.is_empty() {
                write!(f, "{size}")?;
            }
            for (j, atom) in monomial.iter().enumerate() {
                if j > 0 || size != 1 {
                    f.write_str("*")?;
                }
                match atom {
                    Atom::Symbol(name) if is_identifier(name) => f.write_str(name)?,
                    Atom::Symbol(name) => write!(f, "'{}'", name.replace('\'', ""))?,
                    Atom::FloorDiv(inner, by) => write!(f, "({inner})/{by}")?,
                }
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn is_identifier(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

impl Dim {
    /// Reads what `Display` prints; `None` for anything else.
    pub fn parse(text: &str) -> Option<Dim> {
        let mut parser = Parser { rest: text, depth: 0 };
        let dim = parser.sum()?;
        parser.rest.is_empty().then_some(dim)
    }
}

struct Parser<'a> {
    rest: &'a str,
    depth: usize,
}

impl<'a> Parser<'a> {
    fn eat(&mut self, token: char) -> bool {
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn sum(&mut self) -> Option<Dim> {
        self.depth += 1;
        if self.depth > 64 {
            return None;
        }
        let mut sum = if self.eat('-') { Dim::from(0i64) - self.product()? } else { self.product()? };
        loop {
            if self.eat('+') {
                sum = sum + self.product()?;
            } else if self.eat('-') {
                sum = sum - self.product()?;
            } else {
                self.depth -= 1;
                return Some(sum);
            }
        }
    }

    fn product(&mut self) -> Option<Dim> {
        let mut product = self.factor()?;
        while self.eat('*') {
            product = product * self.factor()?;
        }
        Some(product)
    }

    fn factor(&mut self) -> Option<Dim> {
        if self.eat('(') {
            let inner = self.sum()?;
            (self.eat(')') && self.eat('/')).then_some(())?;
            let by: i64 = self.take(|c| c.is_ascii_digit())?.parse().ok()?;
            return (by > 0).then(|| inner.floor_div(by));
        }
        if self.eat('\'') {
            let name = self.take(|c| c != '\'')?;
            return self.eat('\'').then(|| Dim::symbol(name));
        }
        let word = self.take(|c| c.is_ascii_alphanumeric() || c == '_')?;
        match word.starts_with(|c: char| c.is_ascii_digit()) {
            true => word.parse::<i64>().ok().map(Dim::from),
            false => Some(Dim::symbol(word)),
        }
    }

    fn take(&mut self, keep: impl Fn(char) -> bool) -> Option<&'a str> {
        let end = self.rest.find(|c| !keep(c)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        (!word.is_empty()).then_some(word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random_dim(rng: &mut fastrand::Rng, depth: u32) -> Dim {
        match rng.u32(0..if depth == 0 { 2 } else { 6 }) {
            0 => Dim::from(rng.i64(0..9)),
            1 => Dim::symbol(["N", "H", "odd name"][rng.usize(0..3)]),
            2 => random_dim(rng, depth - 1) + random_dim(rng, depth - 1),
            3 => random_dim(rng, depth - 1) - random_dim(rng, depth - 1),
            4 => random_dim(rng, depth - 1) * random_dim(rng, depth - 1),
            _ => random_dim(rng, depth - 1).floor_div(rng.i64(1..4)),
        }
    }

    #[test]
    fn what_is_open_broadcasts_to_neither() {
        let (n, m, one, four) = (Dim::symbol("N"), Dim::symbol("M"), Dim::from(1usize), Dim::from(4usize));
        assert_eq!(n.broadcast(&n), Some(n.clone()));
        assert_eq!(n.broadcast(&one), Some(n.clone()));
        assert_eq!(n.broadcast(&four), Some(four.clone()));
        assert_eq!(four.broadcast(&Dim::from(3usize)), None);
        let both = n.broadcast(&m).unwrap();
        assert!(both != n && both != m && both.constant().is_none());
        assert_eq!(m.broadcast(&n), Some(both));
    }

    #[test]
    fn printing_parses_back_and_arithmetic_agrees_with_numbers() {
        let mut rng = fastrand::Rng::with_seed(1);
        for _ in 0..2000 {
            let (a, b) = (random_dim(&mut rng, 3), random_dim(&mut rng, 3));
            assert_eq!(Dim::parse(&a.to_string()), Some(a.clone()), "{a}");
            let values = [rng.usize(0..7), rng.usize(0..7), rng.usize(0..7)];
            let lookup = |name: &str| Some(values[name.len() % 3]);
            let eval = |d: &Dim| d.eval(&lookup).unwrap();
            assert_eq!(eval(&(a.clone() + b.clone())), eval(&a) + eval(&b));
            assert_eq!(eval(&(a.clone() - b.clone())), eval(&a) - eval(&b));
            assert_eq!(eval(&(a.clone() * b.clone())), eval(&a) * eval(&b));
            assert_eq!(eval(&a.floor_div(3)), eval(&a).div_euclid(3));
            if let Some(q) = (a.clone() * b.clone()).exact_div(&b) {
                assert_eq!(eval(&(q * b.clone())), eval(&a) * eval(&b));
            }
        }
    }

    #[test]
    fn repeated_squaring_stays_small() {
        let mut dim = Dim::symbol("N") + Dim::from(1usize);
        for _ in 0..60 {
            dim = dim.clone() * dim + Dim::symbol("M");
        }
        assert!(dim.to_string().len() < 20_000);
        assert_eq!(Dim::parse(&dim.to_string()), Some(dim));
    }

    #[test]
    fn hostile_text_is_refused() {
        for text in ["", "N+", "(N", "(N)/0", "99999999999999999999", "N M", &"(".repeat(500)] {
            assert_eq!(Dim::parse(text), None, "{text}");
        }
    }
}
