//! Sets of pictures as Parquet files, in the layout of Hugging Face's `datasets`.
//!
//! A picture is a group with its encoded `bytes`, or these alone; labels are integers, whose names the metadata
//! `huggingface` may hold.
#![cfg_attr(not(test), deny(clippy::as_conversions, clippy::indexing_slicing, clippy::unwrap_used))]

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};

use crate::{DataError, ErrorKind, folder};

/// Names of the column of labels, in the order in which they are looked for.
const LABELS: &[&str] = &["label", "labels", "fine_label", "target", "class", "y"];
const LAYOUT: &str = "a picture is a column of PNG or JPEG bytes, or a group with a field `bytes`, as Hugging Face's datasets write it; \
                      its label is an integer column `label`";

/// Pictures as they lie in files, with their labels.
#[derive(Debug, Default)]
pub(crate) struct Pictures {
    /// Encoded as PNG or JPEG.
    pub(crate) encoded: Vec<Vec<u8>>,
    /// The label of each.
    pub(crate) labels: Option<Vec<usize>>,
    /// Names of the classes.
    pub(crate) classes: Option<Vec<String>>,
}

/// Whether the ending is that of Parquet files.
pub(crate) fn is_one(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("parquet")) && !path.is_dir()
}

/// The Parquet files of a folder, in the order of their names.
pub(crate) fn files(path: &Path) -> Result<Vec<PathBuf>, DataError> {
    Ok(folder::entries(path)?.into_iter().filter(|path| is_one(path)).collect())
}

/// Reads all pictures of files that belong together; `max_bytes` bounds them.
pub(crate) fn read(paths: &[PathBuf], max_bytes: u64) -> Result<Pictures, DataError> {
    let mut all = Pictures::default();
    let mut labels = Vec::new();
    let mut left = max_bytes;
    for path in paths {
        let place = path.display().to_string();
        let file = File::open(path).map_err(|e| DataError::io(path, &e))?;
        // The reader is not ours: what it does not expect of a damaged file must not end the program.
        let rows = catch_unwind(AssertUnwindSafe(|| read_one(file, &place, &mut left, &mut all)));
        let damaged =
            |_| DataError::malformed("the file is damaged in a way that its reader does not know", &place);
        labels.extend(rows.map_err(damaged)??);
    }
    all.labels = (labels.len() == all.encoded.len()).then_some(labels);
    Ok(all)
}

/// Adds the pictures of a file, and gives its labels.
fn read_one(file: File, place: &str, left: &mut u64, all: &mut Pictures) -> Result<Vec<usize>, DataError> {
    let broken = |e: ParquetError| DataError::malformed(format!("the file cannot be read: {e}"), place);
    let reader = SerializedFileReader::new(file).map_err(broken)?;
    let metadata = reader.metadata().file_metadata();
    if let Some(pairs) = metadata.key_value_metadata()
        && let Some(json) = pairs.iter().find(|pair| pair.key == "huggingface").and_then(|p| p.value.as_ref())
    {
        all.classes = names(json).or(all.classes.take());
    }
    let mut labels = Vec::new();
    for row in reader.get_row_iter(None).map_err(broken)? {
        let row = row.map_err(broken)?;
        let Some(bytes) = row.get_column_iter().find_map(|(_, field)| picture(field)) else {
            let what = format!("row {} holds no picture", all.encoded.len());
            return Err(DataError::new(ErrorKind::Malformed, what, place, LAYOUT));
        };
        let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        *left = left.checked_sub(size).ok_or_else(|| {
            let what = "the pictures take more memory than is allowed".to_owned();
            DataError::new(ErrorKind::TooLarge, what, place, "give fewer files at a time")
        })?;
        all.encoded.push(bytes);
        labels.extend(label(&row, place, all.encoded.len())?);
    }
    Ok(labels)
}

/// The encoded picture in a field.
fn picture(field: &Field) -> Option<Vec<u8>> {
    match field {
        Field::Bytes(bytes) => Some(bytes.data().to_vec()),
        Field::Group(group) => {
            let bytes = group.get_column_iter().find(|(name, _)| *name == "bytes");
            bytes.and_then(|(_, field)| picture(field))
        }
        _ => None,
    }
}

/// The label of a row, if there is one.
fn label(row: &Row, place: &str, number: usize) -> Result<Option<usize>, DataError> {
    let column = |name: &&str| row.get_column_iter().find(|(known, _)| known == name).map(|(_, field)| field);
    let value = match LABELS.iter().find_map(column) {
        None => return Ok(None),
        Some(Field::Long(value)) => usize::try_from(*value).ok(),
        Some(Field::Int(value)) => usize::try_from(*value).ok(),
        Some(Field::Short(value)) => usize::try_from(*value).ok(),
        Some(Field::Byte(value)) => usize::try_from(*value).ok(),
        Some(Field::ULong(value)) => usize::try_from(*value).ok(),
        Some(Field::UInt(value)) => usize::try_from(*value).ok(),
        Some(Field::UByte(value)) => Some(usize::from(*value)),
        Some(_) => None,
    };
    let what = || format!("the label of row {} is no class number", number.saturating_sub(1));
    let value = value.ok_or_else(|| DataError::new(ErrorKind::Label, what(), place, LAYOUT))?;
    Ok(Some(value))
}

/// The names of the classes in what `datasets` says of a file: those of its only feature of classes.
fn names(json: &str) -> Option<Vec<String>> {
    let info: serde_json::Value = serde_json::from_str(json).ok()?;
    let features = info.get("info")?.get("features")?.as_object()?;
    let named = LABELS.iter().filter_map(|label| features.get(*label));
    let list = named.filter_map(|feature| feature.get("names")?.as_array()).next()?;
    list.iter().map(|name| name.as_str().map(str::to_owned)).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parquet::basic::Compression;
    use parquet::column::writer::ColumnWriter;
    use parquet::data_type::ByteArray;
    use parquet::file::metadata::KeyValue;
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;

    use super::*;
    use crate::{Dataset, OpenOptions, Preprocess, SampleKind};

    /// A file of pictures of 2×2, each of one value: its label times 10.
    fn write(path: &Path, labels: &[i64]) {
        let schema = "message schema { optional group image { optional binary bytes; optional binary path (UTF8); } optional int64 label; }";
        let names = r#"{"info": {"features": {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}"#;
        let properties = WriterProperties::builder()
            .set_compression(Compression::SNAPPY)
            .set_key_value_metadata(Some(vec![KeyValue::new("huggingface".into(), names.to_owned())]))
            .build();
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let mut writer =
            SerializedFileWriter::new(File::create(path).unwrap(), schema, Arc::new(properties)).unwrap();
        let mut group = writer.next_row_group().unwrap();
        let pictures: Vec<ByteArray> = labels
            .iter()
            .map(|&label| {
                let mut bytes = std::io::Cursor::new(Vec::new());
                let picture = image::GrayImage::from_pixel(2, 2, image::Luma([10 * label as u8]));
                picture.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
                bytes.into_inner().into()
            })
            .collect();
        let paths: Vec<ByteArray> = labels.iter().map(|_| "p.png".into()).collect();
        let mut column = 0;
        while let Some(mut writer) = group.next_column().unwrap() {
            match writer.untyped() {
                ColumnWriter::ByteArrayColumnWriter(typed) => {
                    let values = if column == 0 { &pictures } else { &paths };
                    typed.write_batch(values, Some(&vec![2; labels.len()]), None).unwrap();
                }
                ColumnWriter::Int64ColumnWriter(typed) => {
                    typed.write_batch(labels, Some(&vec![1; labels.len()]), None).unwrap();
                }
                _ => panic!("another column"),
            }
            writer.close().unwrap();
            column += 1;
        }
        group.close().unwrap();
        writer.close().unwrap();
    }

    #[test]
    fn files_of_a_folder_are_one_set() {
        let folder = tempfile::tempdir().unwrap();
        write(&folder.path().join("train-00000-of-00002.parquet"), &[1, 0, 1]);
        write(&folder.path().join("train-00001-of-00002.parquet"), &[0, 0]);
        for (path, labels) in [
            (folder.path().to_owned(), vec![1, 0, 1, 0, 0]),
            (folder.path().join("train-00001-of-00002.parquet"), vec![0, 0]),
        ] {
            let data = Dataset::open(&path, &OpenOptions::default()).unwrap();
            assert_eq!((data.len(), data.labels()), (labels.len(), Some(&labels[..])));
            assert_eq!(data.classes().unwrap(), ["cat", "dog"]);
            assert_eq!(data.sample_kind(), SampleKind::Files);
            let indices: Vec<usize> = (0..data.len()).collect();
            let batch = data.batch(&indices, &"scale=1,layout=flat".parse::<Preprocess>().unwrap()).unwrap();
            let expected: Vec<f32> = labels.iter().flat_map(|&label| [10.0 * label as f32; 4]).collect();
            assert_eq!(batch.inputs[0].1.to_f32s(), expected);
        }
        let few = OpenOptions { max_bytes: 100, ..OpenOptions::default() };
        assert_eq!(Dataset::open(folder.path(), &few).unwrap_err().kind, ErrorKind::TooLarge);
    }

    #[test]
    fn damage_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.parquet");
        write(&path, &[1, 0, 1]);
        let whole = std::fs::read(&path).unwrap();
        for cut in (0..whole.len()).step_by(7) {
            std::fs::write(&path, &whole[..cut]).unwrap();
            assert!(Dataset::open(&path, &OpenOptions::default()).is_err(), "{cut} bytes");
        }
        for at in (0..whole.len()).step_by(3) {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x55;
            std::fs::write(&path, &damaged).unwrap();
            let _ = Dataset::open(&path, &OpenOptions::default());
        }
    }
}
