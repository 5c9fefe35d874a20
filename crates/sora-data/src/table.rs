//! CSV: one sample a line, one feature a column, one of the columns the label.
#![cfg_attr(not(test), deny(clippy::as_conversions, clippy::indexing_slicing, clippy::unwrap_used))]

use std::io::Read;
use std::path::Path;

use csv::ByteRecord;
use sora_tensor::Tensor;

use crate::dataset::{LabelColumn, OpenOptions, integer_label};
use crate::stream::{Limited, open};
use crate::{DataError, ErrorKind};

/// Header names that mark the label column, compared without case.
const LABEL_NAMES: [&str; 4] = ["label", "y", "class", "target"];

/// Features `f32[n, columns]` and, unless switched off, one label each.
pub(crate) type Table = (Tensor, Option<Vec<usize>>);

pub(crate) fn read(path: &Path, options: &OpenOptions) -> Result<Table, DataError> {
    parse(open(path)?, options, &path.display().to_string())
}

fn parse(reader: impl Read, options: &OpenOptions, where_: &str) -> Result<Table, DataError> {
    let limited = Limited::new(reader, options.max_bytes);
    let mut reader = csv::ReaderBuilder::new().has_headers(false).trim(csv::Trim::All).from_reader(limited);
    let mut record = ByteRecord::new();
    let mut next = |record: &mut ByteRecord| reader.read_byte_record(record).map_err(|e| broken(&e, where_));

    let mut more = next(&mut record)?;
    if !more {
        return Err(empty(where_));
    }
    let is_number = |cell: &[u8]| number(cell).is_some() || cell.is_empty();
    let has_header = options.header.unwrap_or_else(|| !record.iter().all(is_number));
    let header = has_header.then(|| record.clone());
    let columns = Columns { header, where_ };
    let label = columns.label(&options.label, record.len())?;
    if has_header {
        more = next(&mut record)?;
    }

    let width = record.len().saturating_sub(usize::from(label.is_some()));
    if more && width == 0 {
        let what = "there is no feature column beside the label";
        return Err(DataError::new(
            ErrorKind::Empty,
            what,
            where_,
            "add feature columns or choose the label",
        ));
    }
    let (mut features, mut labels) = (Vec::<f32>::new(), Vec::new());
    while more {
        let line = record.position().map_or(0, csv::Position::line);
        for (column, cell) in record.iter().enumerate() {
            if Some(column) == label {
                let value = number(cell).ok_or_else(|| columns.not_a_number(cell, line, column))?;
                labels.push(integer_label(value).map_err(|what| {
                    let hint =
                        "labels are class numbers 0, 1, 2 …; choose the label column if this is not it";
                    DataError::new(ErrorKind::Label, what, columns.place(line, column), hint)
                })?);
                continue;
            }
            let value = number(cell).ok_or_else(|| columns.not_a_number(cell, line, column))?;
            let narrow = crate::narrow(value);
            if !narrow.is_finite() {
                let what = format!("the value {value} is NaN, infinite or too large for f32");
                let hint = "clean the data: replace or drop such lines";
                return Err(DataError::new(ErrorKind::NotFinite, what, columns.place(line, column), hint));
            }
            features.push(narrow);
        }
        more = next(&mut record)?;
    }
    let samples = features.len().checked_div(width).unwrap_or(0);
    if samples == 0 {
        return Err(empty(where_));
    }
    let tensor = Tensor::from_slice(&[samples, width], &features);
    let tensor = tensor.map_err(|e| DataError::malformed(e.to_string(), where_))?;
    Ok((tensor, label.map(|_| labels)))
}

struct Columns<'a> {
    header: Option<ByteRecord>,
    where_: &'a str,
}

impl Columns<'_> {
    /// The position of the label among `count` columns.
    fn label(&self, wanted: &LabelColumn, count: usize) -> Result<Option<usize>, DataError> {
        let names = || self.header.iter().flatten().map(String::from_utf8_lossy);
        let missing = |what: String| {
            let hint = format!("choose one of the {count} columns, or none");
            Err(DataError::new(ErrorKind::Usage, what, self.where_, hint))
        };
        match wanted {
            LabelColumn::None => Ok(None),
            LabelColumn::Auto => {
                let named = LABEL_NAMES.iter().find_map(|l| names().position(|n| n.eq_ignore_ascii_case(l)));
                Ok(named.or(count.checked_sub(1)))
            }
            LabelColumn::Index(index) if *index < count => Ok(Some(*index)),
            LabelColumn::Index(index) => missing(format!("there is no column {}", index.saturating_add(1))),
            LabelColumn::Name(name) => match names().position(|n| n == *name) {
                Some(position) => Ok(Some(position)),
                None => missing(format!("no column is named `{name}`")),
            },
        }
    }

    fn place(&self, line: u64, column: usize) -> String {
        let name = self.header.as_ref().and_then(|h| h.get(column));
        let name = name.map_or(String::new(), |n| format!(" (`{}`)", String::from_utf8_lossy(n)));
        format!("{}, line {line}, column {}{name}", self.where_, column.saturating_add(1))
    }

    fn not_a_number(&self, cell: &[u8], line: u64, column: usize) -> DataError {
        let shown: String = String::from_utf8_lossy(cell).chars().take(40).collect();
        let what = match shown.is_empty() {
            true => "the cell is empty".to_owned(),
            false => format!("`{shown}` is not a number"),
        };
        let hint = "every cell must be a number; encode categories as numbers first";
        DataError::new(ErrorKind::Malformed, what, self.place(line, column), hint)
    }
}

fn number(cell: &[u8]) -> Option<f64> {
    std::str::from_utf8(cell).ok()?.trim_start_matches('\u{feff}').parse().ok()
}

fn empty(where_: &str) -> DataError {
    DataError::new(ErrorKind::Empty, "the table holds no samples", where_, "give a file with data lines")
}

fn broken(error: &csv::Error, where_: &str) -> DataError {
    match error.kind() {
        csv::ErrorKind::Io(e) if e.kind() == std::io::ErrorKind::FileTooLarge => DataError::new(
            ErrorKind::TooLarge,
            e.to_string(),
            where_,
            "raise the memory limit or split the file",
        ),
        csv::ErrorKind::Io(e) => DataError::stream(where_, e),
        csv::ErrorKind::UnequalLengths { pos, expected_len, len } => {
            let line = pos.as_ref().map_or(0, csv::Position::line);
            let what = format!("the line has {len} column(s), the lines above have {expected_len}");
            DataError::malformed(what, &format!("{where_}, line {line}"))
                .with_hint("complete or drop the line")
        }
        _ => DataError::malformed(error.to_string(), where_),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str) -> Result<Table, DataError> {
        parse(text.as_bytes(), &OpenOptions::default(), "t.csv")
    }

    #[test]
    fn the_label_is_found_by_name_or_comes_last() {
        let (x, y) = table("a,Label,b\n1,2,3\n4,5,6\n").unwrap();
        assert_eq!((x.to_f32s(), y), (vec![1., 3., 4., 6.], Some(vec![2, 5])));
        let (x, y) = table("a,b,c\n1,2,3\n").unwrap();
        assert_eq!((x.to_f32s(), y), (vec![1., 2.], Some(vec![3])));
        let (x, y) = table("\u{feff}1,2,3.0\n1e1, -2 ,4\n").unwrap();
        assert_eq!((x.shape(), x.to_f32s(), y), (&[2, 2][..], vec![1., 2., 10., -2.], Some(vec![3, 4])));
    }

    #[test]
    fn the_label_can_be_chosen() {
        let with = |label, header| {
            let options = OpenOptions { label, header, ..OpenOptions::default() };
            parse("7,8\n1,2\n".as_bytes(), &options, "t")
        };
        assert_eq!(with(LabelColumn::Index(0), None).unwrap().1, Some(vec![7, 1]));
        assert_eq!(with(LabelColumn::None, None).unwrap().1, None);
        assert_eq!(with(LabelColumn::Name("7".into()), Some(true)).unwrap().1, Some(vec![1]));
        assert_eq!(with(LabelColumn::Name("q".into()), None).unwrap_err().kind, ErrorKind::Usage);
        assert_eq!(with(LabelColumn::Index(2), None).unwrap_err().kind, ErrorKind::Usage);
    }

    #[test]
    fn errors_name_line_and_column() {
        let place = |text: &str| {
            let error = table(text).unwrap_err();
            (error.kind, error.where_)
        };
        let at = |kind, place: &str| (kind, format!("t.csv{place}"));
        assert_eq!(place("a,y\n1,2\nfoo,1\n"), at(ErrorKind::Malformed, ", line 3, column 1 (`a`)"));
        assert_eq!(place("1,2\nnan,1\n"), at(ErrorKind::NotFinite, ", line 2, column 1"));
        assert_eq!(place("1e39,1\n"), at(ErrorKind::NotFinite, ", line 1, column 1"));
        assert_eq!(place("1,2\n1,2.5\n"), at(ErrorKind::Label, ", line 2, column 2"));
        assert_eq!(place("1,2\n1,-1\n"), at(ErrorKind::Label, ", line 2, column 2"));
        assert_eq!(place("1,2\n1,2,3\n"), at(ErrorKind::Malformed, ", line 2"));
        assert_eq!(place(""), at(ErrorKind::Empty, ""));
        assert_eq!(place("a,y\n"), at(ErrorKind::Empty, ""));
        assert_eq!(place("y\n1\n"), at(ErrorKind::Empty, ""));
    }
}
