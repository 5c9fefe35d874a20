//! Names that are not taken.

use std::collections::{HashMap, HashSet};

/// The names in use, with a quick way to a new one.
#[derive(Default)]
pub(crate) struct Names {
    taken: HashSet<String>,
    /// Where the search for a free number goes on, by base name.
    next: HashMap<String, usize>,
}

impl Names {
    /// Keeps [`Names::fresh`] from giving `name` out.
    pub(crate) fn reserve(&mut self, name: &str) {
        self.taken.insert(name.to_owned());
    }

    /// `base`, or `base` with a number when it is taken; reserved from now on.
    pub(crate) fn fresh(&mut self, base: &str) -> String {
        if self.taken.insert(base.to_owned()) {
            return base.to_owned();
        }
        let next = self.next.entry(base.to_owned()).or_insert(1);
        loop {
            let name = format!("{base}_{next}");
            *next += 1;
            if self.taken.insert(name.clone()) {
                return name;
            }
        }
    }
}
