//! NumPy's `.npy`: one array behind a short text header.
//!
//! Source: NEP 1, "A Simple File Format for NumPy Arrays", versions 1.0 to 3.0.
#![cfg_attr(not(test), deny(clippy::as_conversions, clippy::indexing_slicing, clippy::unwrap_used))]

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use sora_tensor::{Buffer, DType, Tensor, element_count};

use crate::{DataError, ErrorKind};

const MAGIC: &[u8] = b"\x93NUMPY";
const SUPPORTED: &str =
    "save it as float16/32/64, int8 to int64, uint8 to uint64 or bool (`array.astype(...)`)";

/// Reads one `.npy` file, in C or Fortran order and either byte order.
///
/// # Errors
/// A [`DataError`] when the file cannot be read, is not a valid `.npy`, is truncated or has bytes left over,
/// or holds elements other than numbers and truth values.
pub fn read(path: &Path) -> Result<Tensor, DataError> {
    let file = File::open(path).map_err(|e| DataError::io(path, &e))?;
    let bytes = Buffer::map(&file).map_err(|e| DataError::io(path, &e))?;
    parse(&bytes, &path.display().to_string())
}

/// Writes `tensor` as one `.npy` of version 1.0 (2.0 when the shape's text is very long), in C order.
///
/// # Errors
/// When writing fails, or the tensor holds bf16, for which NumPy has no type.
pub fn write(mut out: impl Write, tensor: &Tensor) -> io::Result<()> {
    out.write_all(&header(tensor)?)?;
    out.write_all(tensor.bytes())
}

/// The array in `bytes`, which must end with it.
pub(crate) fn parse(bytes: &[u8], where_: &str) -> Result<Tensor, DataError> {
    let bad = |what: &str| DataError::malformed(what, where_);
    let short = || bad("the file ends inside its header");
    let rest = bytes.strip_prefix(MAGIC).ok_or_else(|| bad("this is not a .npy array"))?;
    let (&major, rest) = rest.split_first().ok_or_else(short)?;
    let rest = rest.get(1..).ok_or_else(short)?;
    let (len, rest) = match major {
        1 => rest.split_first_chunk().map(|(n, r)| (u64::from(u16::from_le_bytes(*n)), r)),
        2 | 3 => rest.split_first_chunk().map(|(n, r)| (u64::from(u32::from_le_bytes(*n)), r)),
        _ => return Err(bad("the version of this .npy array is unknown")),
    }
    .ok_or_else(short)?;
    let len = usize::try_from(len).map_err(|_| short())?;
    let (text, data) = rest.split_at_checked(len).ok_or_else(short)?;
    let text = std::str::from_utf8(text).map_err(|_| bad("the header is not text"))?;

    let descr = value(text, "descr").ok_or_else(|| bad("the header names no dtype"))?;
    let (dtype, swapped) = dtype_of(descr).ok_or_else(|| {
        let shown: String = descr.split([',', '}']).next().unwrap_or_default().chars().take(24).collect();
        bad(&format!("arrays of dtype {shown} are not supported")).with_hint(SUPPORTED)
    })?;
    let fortran = match value(text, "fortran_order") {
        Some(v) if v.starts_with("False") => false,
        Some(v) if v.starts_with("True") => true,
        _ => return Err(bad("the header gives no order")),
    };
    let shape = value(text, "shape").and_then(shape_of).ok_or_else(|| bad("the header gives no shape"))?;

    let expected = element_count(&shape).and_then(|n| n.checked_mul(dtype.size()));
    if expected != Some(data.len()) {
        let what = format!("shape {shape:?} of {dtype} does not fit the {} bytes of data", data.len());
        return Err(bad(&what));
    }
    let mut values = if fortran { row_major(data, &shape, dtype.size()) } else { Buffer::copy_of(data) };
    if swapped {
        values.bytes_mut().chunks_exact_mut(dtype.size()).for_each(<[u8]>::reverse);
    }
    Tensor::new(dtype, &shape, values).map_err(|e| bad(&e.to_string()))
}

/// The text after `'key':`, without leading blanks.
fn value<'a>(header: &'a str, key: &str) -> Option<&'a str> {
    let quoted = [format!("'{key}'"), format!("\"{key}\"")];
    let (_, rest) = quoted.iter().find_map(|q| header.split_once(q.as_str()))?;
    Some(rest.trim_start().strip_prefix(':')?.trim_start())
}

/// `(3, 4)` as a list; a one-element tuple is `(3,)`.
fn shape_of(text: &str) -> Option<Vec<usize>> {
    let (inside, _) = text.strip_prefix('(')?.split_once(')')?;
    let parts = inside.split(',').map(str::trim).filter(|p| !p.is_empty());
    parts.map(|p| p.trim_end_matches('L').parse().ok()).collect()
}

/// `'<f4'` as a dtype, and whether its byte order is not this machine's.
fn dtype_of(descr: &str) -> Option<(DType, bool)> {
    let quote = descr.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    let (inside, _) = descr.strip_prefix(quote)?.split_once(quote)?;
    let order = inside.chars().next()?;
    let code = inside.strip_prefix(['<', '>', '|', '='])?;
    let (dtype, _) = CODES.iter().copied().find(|&(_, c)| c == code)?;
    let foreign = if cfg!(target_endian = "little") { '>' } else { '<' };
    Some((dtype, order == foreign && dtype.size() > 1))
}

const CODES: [(DType, &str); 12] = [
    (DType::F32, "f4"),
    (DType::F16, "f2"),
    (DType::F64, "f8"),
    (DType::I8, "i1"),
    (DType::U8, "u1"),
    (DType::I16, "i2"),
    (DType::U16, "u2"),
    (DType::I32, "i4"),
    (DType::U32, "u4"),
    (DType::I64, "i8"),
    (DType::U64, "u8"),
    (DType::Bool, "b1"),
];

/// Elements of `size` bytes whose first index runs fastest, reordered so that the last one does.
fn row_major(data: &[u8], shape: &[usize], size: usize) -> Buffer {
    let mut out = Buffer::zeroed(data.len());
    let strides: Vec<usize> = shape
        .iter()
        .scan(size, |stride, &d| Some(std::mem::replace(stride, stride.saturating_mul(d))))
        .collect();
    let mut index = vec![0usize; shape.len()];
    for element in out.bytes_mut().chunks_exact_mut(size) {
        let from: usize = index.iter().zip(&strides).map(|(i, s)| i * s).sum();
        if let Some(source) = data.get(from..from + size) {
            element.copy_from_slice(source);
        }
        for (i, &d) in index.iter_mut().zip(shape).rev() {
            *i += 1;
            if *i < d {
                break;
            }
            *i = 0;
        }
    }
    out
}

/// The header of `tensor`, padded so that the data starts at a multiple of 64 bytes.
fn header(tensor: &Tensor) -> io::Result<Vec<u8>> {
    let code = CODES.iter().find(|&&(d, _)| d == tensor.dtype()).map(|&(_, code)| code);
    let code =
        code.ok_or_else(|| io::Error::other(format!("NumPy has no {}: cast to f32 first", tensor.dtype())))?;
    let order = match (tensor.dtype().size(), cfg!(target_endian = "little")) {
        (1, _) => '|',
        (_, true) => '<',
        (_, false) => '>',
    };
    let dims: String = tensor.shape().iter().map(|d| format!("{d}, ")).collect();
    let mut text =
        format!("{{'descr': '{order}{code}', 'fortran_order': False, 'shape': ({}), }}", dims.trim_end());
    const BEFORE_TEXT: usize = 12;
    let total = (BEFORE_TEXT + text.len() + 1).next_multiple_of(64);
    text.extend(std::iter::repeat_n(' ', total - BEFORE_TEXT - text.len() - 1));
    text.push('\n');
    // Version 1.0 has a 16-bit length, so its text is two bytes longer at the same total.
    let mut out = MAGIC.to_vec();
    if let Ok(len) = u16::try_from(text.len() + 2) {
        out.extend([1, 0]);
        out.extend(len.to_le_bytes());
        text.insert_str(text.len() - 1, "  ");
    } else {
        out.extend([2, 0]);
        out.extend(u32::try_from(text.len()).map_err(io::Error::other)?.to_le_bytes());
    }
    out.extend(text.into_bytes());
    Ok(out)
}

/// The error of a tensor with a NaN or an infinity, naming the first sample along the first axis; `name` is
/// how the user calls the array.
pub(crate) fn check_finite(tensor: &Tensor, name: &str, where_: &str) -> Result<(), DataError> {
    let position = match tensor.dtype() {
        DType::F32 => tensor.as_slice::<f32>().ok().and_then(|v| v.iter().position(|x| !x.is_finite())),
        d if d.is_float() => tensor.to_f64s().iter().position(|x| !x.is_finite()),
        _ => None,
    };
    let Some(position) = position else { return Ok(()) };
    let samples = tensor.shape().first().copied().unwrap_or(1).max(1);
    let sample = position / (tensor.len() / samples).max(1);
    let what = format!("`{name}` holds a value that is NaN or infinite");
    let hint = "clean the data: replace or drop such samples";
    Err(DataError::new(ErrorKind::NotFinite, what, format!("{where_}, sample {sample}"), hint))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn npy(header: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend(u16::try_from(header.len()).unwrap().to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        bytes
    }

    #[test]
    fn every_dtype_comes_back() {
        for (dtype, _) in CODES {
            for shape in [&[][..], &[3], &[2, 3], &[0, 4]] {
                let values: Vec<f64> = (0..element_count(shape).unwrap()).map(|v| v as f64).collect();
                let tensor = Tensor::from_f64s(dtype, shape, &values).unwrap();
                let mut bytes = Vec::new();
                write(&mut bytes, &tensor).unwrap();
                assert!((bytes.len() - tensor.bytes().len()).is_multiple_of(64));
                assert_eq!(parse(&bytes, "t").unwrap(), tensor);
            }
        }
        assert!(write(Vec::new(), &Tensor::zeros(DType::BF16, &[1]).unwrap()).is_err());
    }

    #[test]
    fn byte_order_and_fortran_order_are_undone() {
        let data: Vec<u8> = [1i16, 4, 2, 5, 3, 6].iter().flat_map(|v| v.to_be_bytes()).collect();
        let bytes = npy("{'descr': '>i2', 'fortran_order': True, 'shape': (2, 3), }\n", &data);
        let tensor = parse(&bytes, "t").unwrap();
        assert_eq!(tensor.to_i64s(), [1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn hostile_headers_are_errors() {
        let whole = npy("{'descr': '|u1', 'fortran_order': False, 'shape': (2, 3), }\n", &[0; 6]);
        assert!(parse(&whole, "t").is_ok());
        for cut in 0..whole.len() {
            assert!(parse(&whole[..cut], "t").is_err(), "{cut} bytes");
        }
        for shape in ["(2, 3", "(18446744073709551615, 9)", "(-1,)", "(7,)", "7"] {
            let bytes =
                npy(&format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape} }}"), &[0; 6]);
            assert!(parse(&bytes, "t").is_err(), "{shape}");
        }
        for descr in ["'<U3'", "[('a', '<f4')]", "'O'", "'<f3'", "'", ""] {
            let bytes = npy(&format!("{{'descr': {descr}, 'fortran_order': False, 'shape': () }}"), &[0; 4]);
            assert!(parse(&bytes, "t").is_err(), "{descr}");
        }
    }

    #[test]
    fn nan_names_its_sample() {
        let tensor = Tensor::from_slice(&[3, 2], &[0f32, 1., 2., 3., f32::NAN, 5.]).unwrap();
        assert!(check_finite(&tensor, "x", "f").unwrap_err().where_.ends_with("sample 2"));
    }
}
