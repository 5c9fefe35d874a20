//! Numbers by name, with defaults: what rows of the tables of losses, optimizers and schedules take.

use std::collections::BTreeMap;

use crate::TrainError;

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
pub(crate) const fn setting(name: &'static str, default: f64, low: f64, high: f64) -> Setting {
    Setting { name, default, range: [low, high] }
}

/// The numbers of a row: given ones, and defaults.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings(Vec<(&'static str, f64)>);

impl Settings {
    /// The numbers for `row`, which takes `known`.
    ///
    /// # Errors
    /// [`TrainError::Setting`] for a name that the row does not take, or a number out of range.
    pub fn new(row: &str, known: &[Setting], given: &BTreeMap<String, f64>) -> Result<Self, TrainError> {
        for (name, &value) in given {
            let Some(setting) = known.iter().find(|setting| setting.name == name) else {
                let names: Vec<&str> = known.iter().map(|setting| setting.name).collect();
                let why = match nearest(name, &names) {
                    Some(near) => format!("there is no such setting; did you mean `{near}`?"),
                    None if names.is_empty() => "it takes no settings".to_owned(),
                    None => format!("there is no such setting; it takes {}", names.join(", ")),
                };
                return Err(TrainError::Setting { row: row.to_owned(), name: name.clone(), why });
            };
            let [low, high] = setting.range;
            if !(low..=high).contains(&value) {
                let why = format!("{value} is not between {low} and {high}");
                return Err(TrainError::Setting { row: row.to_owned(), name: name.clone(), why });
            }
        }
        let value = |setting: &Setting| given.get(setting.name).copied().unwrap_or(setting.default);
        Ok(Settings(known.iter().map(|setting| (setting.name, value(setting))).collect()))
    }

    /// A number of the row; 0 for one that it does not take.
    pub(crate) fn get(&self, name: &str) -> f64 {
        self.0.iter().find(|(known, _)| *known == name).map_or(0.0, |&(_, value)| value)
    }
}

/// The row of this name.
///
/// # Errors
/// [`TrainError::Unknown`] with the nearest name there is.
pub(crate) fn find<'t, T>(
    what: &'static str,
    table: &'t [T],
    name_of: impl Fn(&T) -> &'static str,
    name: &str,
) -> Result<&'t T, TrainError> {
    table.iter().find(|row| name_of(row) == name).ok_or_else(|| {
        let names: Vec<&str> = table.iter().map(&name_of).collect();
        let hint = match nearest(name, &names) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("there are {}", names.join(", ")),
        };
        TrainError::Unknown { what, name: name.to_owned(), hint }
    })
}

/// The name most like `name`, if one is like it.
pub fn nearest<'a>(name: &str, names: &[&'a str]) -> Option<&'a str> {
    let near = names.iter().map(|&known| (distance(name, known), known)).min()?;
    (near.0 <= 1 + name.len() / 3).then_some(near.1)
}

/// Letters to insert, drop or replace (Levenshtein 1966).
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
        let known = [setting("momentum", 0.9, 0.0, 1.0), setting("decay", 0.0, 0.0, 1.0)];
        let given = |name: &str, value| BTreeMap::from([(name.to_owned(), value)]);
        let settings = Settings::new("sgd", &known, &given("momentum", 0.5)).unwrap();
        assert_eq!((settings.get("momentum"), settings.get("decay")), (0.5, 0.0));
        let text = |name, value| Settings::new("sgd", &known, &given(name, value)).unwrap_err().to_string();
        assert!(text("momentun", 0.5).contains("did you mean `momentum`?"));
        assert!(text("beta", 0.5).contains("momentum, decay"));
        assert!(text("decay", 1.5).contains("1.5 is not between 0 and 1"));
        assert!(text("decay", f64::NAN).contains("NaN"));
        assert_eq!(nearest("adma", &["sgd", "adam"]), Some("adam"));
        assert_eq!(nearest("zebra", &["sgd", "adam"]), None);
    }
}
