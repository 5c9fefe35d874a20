//! IDX: the gzipped pairs of pictures and labels of MNIST and its relatives.
//!
//! Source: "The IDX file format" on Y. LeCun's MNIST page: big-endian magic `0 0 type rank`, then the extents.
#![cfg_attr(not(test), deny(clippy::as_conversions, clippy::indexing_slicing, clippy::unwrap_used))]

use std::io::Read;
use std::path::{Path, PathBuf};

use sora_tensor::{Tensor, element_count};

use crate::stream::{open, read_promised};
use crate::{DataError, ErrorKind};

const UNSIGNED_BYTE: u8 = 8;

/// Whether `path` is named like a file of IDX pictures (`…images-idx3-ubyte`, also `.idx3`, also `.gz`).
pub(crate) fn is_images(path: &Path) -> bool {
    labels_name(path).is_some()
}

/// Pictures `u8[n, height, width]` and one label each.
pub(crate) fn read(images: &Path, max_bytes: u64) -> Result<(Tensor, Vec<usize>), DataError> {
    let labels = labels_of(images)?;
    let pixels = read_array(images, 3, max_bytes)?;
    let values = read_array(&labels, 1, max_bytes)?;
    let (pictures, found) = (pixels.shape().first().copied().unwrap_or(0), values.len());
    if pictures != found {
        let what = format!("there are {pictures} pictures, but {found} labels in {}", labels.display());
        let hint = "give the labels that belong to these pictures";
        return Err(DataError::new(ErrorKind::Label, what, images.display().to_string(), hint));
    }
    Ok((pixels, values.bytes().iter().map(|&b| usize::from(b)).collect()))
}

fn labels_name(images: &Path) -> Option<String> {
    let name = images.file_name()?.to_str()?;
    let stem = name.strip_suffix(".gz").unwrap_or(name);
    let front = stem.strip_suffix("idx3-ubyte")?;
    let kept = front.strip_suffix(['-', '.'])?.strip_suffix("images")?;
    let separator = front.get(front.len().checked_sub(1)?..)?;
    Some(format!("{kept}labels{separator}idx1-ubyte"))
}

/// The labels beside `images`, compressed or not.
fn labels_of(images: &Path) -> Result<PathBuf, DataError> {
    let name = labels_name(images).unwrap_or_default();
    let candidates = [images.with_file_name(format!("{name}.gz")), images.with_file_name(&name)];
    candidates.into_iter().find(|c| c.exists()).ok_or_else(|| {
        let what = format!("the labels of these pictures are missing: there is no `{name}[.gz]` beside them");
        let hint = "put the labels file into the same folder";
        DataError::new(ErrorKind::Label, what, images.display().to_string(), hint)
    })
}

fn read_array(path: &Path, rank: u8, max_bytes: u64) -> Result<Tensor, DataError> {
    parse(open(path)?, rank, max_bytes, &path.display().to_string())
}

fn parse(mut reader: impl Read, rank: u8, max_bytes: u64, where_: &str) -> Result<Tensor, DataError> {
    let mut magic = [0u8; 4];
    reader.read_exact(&mut magic).map_err(|e| DataError::stream(where_, &e))?;
    if magic != [0, 0, UNSIGNED_BYTE, rank] {
        let what = format!("this is not an IDX file of unsigned bytes in {rank} dimension(s)");
        return Err(DataError::malformed(what, where_));
    }
    let mut shape = Vec::new();
    for _ in 0..rank {
        let mut extent = [0u8; 4];
        reader.read_exact(&mut extent).map_err(|e| DataError::stream(where_, &e))?;
        let extent = usize::try_from(u32::from_be_bytes(extent));
        shape.push(extent.map_err(|e| DataError::malformed(e.to_string(), where_))?);
    }
    let too_large = || {
        let what = format!("its header promises {shape:?} bytes, more than the memory limit of {max_bytes}");
        DataError::new(ErrorKind::TooLarge, what, where_, "raise the memory limit or check the file")
    };
    let count = element_count(&shape).ok_or_else(too_large)?;
    if u64::try_from(count).map_or(true, |c| c > max_bytes) {
        return Err(too_large());
    }
    let bytes = read_promised(reader, count, where_)?;
    Tensor::from_slice(&shape, &bytes).map_err(|e| DataError::malformed(e.to_string(), where_))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> Vec<u8> {
        let mut bytes = vec![0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 3];
        bytes.extend(1..=12);
        bytes
    }

    #[test]
    fn pixels_come_back() {
        let tensor = parse(&file()[..], 3, 100, "t").unwrap();
        assert_eq!(tensor.shape(), [2, 2, 3]);
        assert_eq!(tensor.bytes(), (1..=12).collect::<Vec<u8>>());
    }

    #[test]
    fn truncation_and_lies_are_errors() {
        let whole = file();
        for cut in 0..whole.len() {
            assert_eq!(parse(&whole[..cut], 3, 100, "t").unwrap_err().kind, ErrorKind::Malformed);
        }
        for at in 0..16 {
            let mut damaged = whole.clone();
            damaged[at] = 0xff;
            assert!(parse(&damaged[..], 3, 1 << 40, "t").is_err(), "byte {at}");
        }
        assert_eq!(parse(&whole[..], 3, 11, "t").unwrap_err().kind, ErrorKind::TooLarge);
        assert!(parse(&[whole, vec![0]].concat()[..], 3, 100, "t").is_err());
    }

    #[test]
    fn label_names_follow_image_names() {
        let name = |n: &str| labels_name(Path::new(n));
        assert_eq!(name("t10k-images-idx3-ubyte.gz").unwrap(), "t10k-labels-idx1-ubyte");
        assert_eq!(name("train-images.idx3-ubyte").unwrap(), "train-labels.idx1-ubyte");
        assert_eq!(name("train-labels-idx1-ubyte"), None);
    }
}
