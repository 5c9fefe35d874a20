//! Numbers by name, with defaults: what rows of tables take.

use std::collections::BTreeMap;

use crate::{DataError, ErrorKind};

/// A number that a row takes.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Name.
    pub name: &'static str,
    /// Value where none is given.
    pub default: f64,
    /// Values that make sense.
    pub range: [f64; 2],
}

/// A setting of a row.
pub const fn setting(name: &'static str, default: f64, low: f64, high: f64) -> Setting {
    Setting { name, default, range: [low, high] }
}

/// The numbers of a row: given ones, and defaults.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings(Vec<(&'static str, f64)>);

impl Settings {
    /// The numbers for `row`, which takes `known`.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for a name that the row does not take, with the nearest one, or a number out of range.
    pub fn new(row: &str, known: &[Setting], given: &BTreeMap<String, f64>) -> Result<Self, DataError> {
        let error = |what, hint| Err(DataError::new(ErrorKind::Usage, what, format!("`{row}`"), hint));
        for (name, &value) in given {
            let Some(setting) = known.iter().find(|setting| setting.name == name) else {
                let names: Vec<&str> = known.iter().map(|setting| setting.name).collect();
                return error(format!("there is no setting `{name}`"), suggestion(name, &names));
            };
            let [low, high] = setting.range;
            if !(low..=high).contains(&value) {
                return error(
                    format!("`{name}` cannot be {value}"),
                    format!("give a number from {low} to {high}"),
                );
            }
        }
        let value = |setting: &Setting| given.get(setting.name).copied().unwrap_or(setting.default);
        Ok(Settings(known.iter().map(|setting| (setting.name, value(setting))).collect()))
    }

    /// A number of the row; 0 for one that it does not take.
    pub fn get(&self, name: &str) -> f64 {
        self.0.iter().find(|(known, _)| *known == name).map_or(0.0, |&(_, value)| value)
    }

    /// The numbers where none is given.
    pub fn defaults(known: &[Setting]) -> Self {
        Settings(known.iter().map(|setting| (setting.name, setting.default)).collect())
    }

    /// All of them with their names.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, f64)> {
        self.0.iter().copied()
    }
}

/// What to do about a name that is none of `names`.
pub fn suggestion(name: &str, names: &[&str]) -> String {
    match nearest(name, names) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("there are {}", names.join(", ")),
    }
}

/// The name most like `name`, if one is like it.
pub fn nearest<'a>(name: &str, names: &[&'a str]) -> Option<&'a str> {
    let near = names.iter().map(|&known| (distance(name, known), known)).min()?;
    (near.0 <= 1 + name.len() / 3).then_some(near.1)
}

/// Letters to insert, drop or replace. Source: Levenshtein 1966.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, &y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_what_is_near() {
        let known = [setting("padding", 4.0, 0.0, 64.0), setting("fill", 0.0, 0.0, 255.0)];
        let given = |name: &str, value| BTreeMap::from([(name.to_owned(), value)]);
        let settings = Settings::new("random_crop", &known, &given("padding", 2.0)).unwrap();
        assert_eq!((settings.get("padding"), settings.get("fill")), (2.0, 0.0));
        let text =
            |name, value| Settings::new("random_crop", &known, &given(name, value)).unwrap_err().to_string();
        assert!(text("paddign", 2.0).contains("did you mean `padding`?"));
        assert!(text("zebra", 2.0).contains("padding, fill"));
        assert!(text("fill", 300.0).contains("from 0 to 255"));
        assert!(text("fill", f64::NAN).contains("NaN"));
    }
}
