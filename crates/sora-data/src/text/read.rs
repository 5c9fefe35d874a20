//! Reading texts and their labels, still as words.
#![cfg_attr(not(test), deny(clippy::as_conversions, clippy::indexing_slicing, clippy::unwrap_used))]

use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde_json::Value;

use super::TextOptions;
use crate::settings::suggestion;
use crate::stream::{self, Limited};
use crate::{DataError, ErrorKind};

/// A text and its label.
type Row = (String, Option<String>);

pub(super) fn rows(path: &Path, options: &TextOptions) -> Result<Vec<Row>, DataError> {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_ascii_lowercase();
    let name = name.strip_suffix(".gz").unwrap_or(&name);
    let open = || Ok(Limited::new(stream::open(path)?, options.max_bytes));
    let place = path.display().to_string();
    if name.ends_with(".jsonl") {
        json_lines(open()?, options, &place)
    } else if name.ends_with(".csv") {
        csv(open()?, options, &place)
    } else {
        let what = "the format of this file of texts is unknown";
        Err(DataError::new(ErrorKind::Usage, what, place, "give .jsonl or .csv, also compressed as .gz"))
    }
}

fn json_lines(file: impl Read, options: &TextOptions, place: &str) -> Result<Vec<Row>, DataError> {
    let mut rows = Vec::new();
    for (number, line) in BufReader::new(file).lines().enumerate() {
        let line = line.map_err(|e| DataError::stream(place, &e))?;
        if line.trim().is_empty() {
            continue;
        }
        let where_ = || format!("{place}, line {}", number + 1);
        let value: Value = serde_json::from_str(&line)
            .map_err(|e| DataError::malformed(format!("the line is no JSON: {e}"), &where_()))?;
        let lacking = |what: String| {
            let keys: Vec<&str> =
                value.as_object().into_iter().flat_map(|o| o.keys().map(String::as_str)).collect();
            let hint = if keys.is_empty() {
                "write an object a line".to_owned()
            } else {
                format!("its keys are {}", keys.join(", "))
            };
            DataError::new(ErrorKind::Malformed, what, where_(), hint)
        };
        let text = value.get(&options.text).and_then(Value::as_str);
        let text = text.ok_or_else(|| lacking(format!("there is no text under `{}`", options.text)))?;
        let label = match &options.label {
            None => None,
            Some(key) => match value.get(key) {
                Some(Value::String(word)) => Some(word.clone()),
                Some(Value::Number(number)) => Some(number.to_string()),
                Some(Value::Bool(truth)) => Some(u8::from(*truth).to_string()),
                _ => return Err(lacking(format!("there is no word or number under `{key}`"))),
            },
        };
        rows.push((text.to_owned(), label));
    }
    Ok(rows)
}

fn csv(file: impl Read, options: &TextOptions, place: &str) -> Result<Vec<Row>, DataError> {
    let mut reader = csv::Reader::from_reader(file);
    let broken = |e: csv::Error| match e.kind() {
        csv::ErrorKind::UnequalLengths { pos, expected_len, len } => {
            let line = pos.as_ref().map_or(0, csv::Position::line);
            let what = format!("the line has {len} fields, the header has {expected_len} fields");
            DataError::malformed(what, &format!("{place}, line {line}"))
                .with_hint("put texts with commas in quotation marks")
        }
        _ => DataError::malformed(format!("the table cannot be read: {e}"), place),
    };
    let names: Vec<String> = reader.headers().map_err(broken)?.iter().map(|n| n.trim().to_owned()).collect();
    let column = |wanted: &String| {
        names.iter().position(|name| name == wanted).ok_or_else(|| {
            let known: Vec<&str> = names.iter().map(String::as_str).collect();
            let what = format!("there is no column `{wanted}`");
            DataError::new(ErrorKind::Malformed, what, place, suggestion(wanted, &known))
        })
    };
    let text = column(&options.text)?;
    let label = options.label.as_ref().map(column).transpose()?;
    let row = |record: Result<csv::StringRecord, csv::Error>| {
        let record = record.map_err(broken)?;
        let field = |at: usize| record.get(at).unwrap_or_default().to_owned();
        Ok((field(text), label.map(field)))
    };
    reader.records().map(row).collect()
}
