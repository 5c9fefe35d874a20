//! Rows of tables by name.

use sora_data::suggestion;

use crate::TrainError;

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
        TrainError::Unknown { what, name: name.to_owned(), hint: suggestion(name, &names) }
    })
}
