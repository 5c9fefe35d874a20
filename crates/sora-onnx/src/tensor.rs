//! Tensors of the file to and from tensors of the graph.

use std::io::{self, Write};

use prost::bytes::Bytes;
use sora_tensor::{Buffer, DType, Element, Tensor, element_count};

use crate::error::Refusal;
use crate::proto::{LOCATION_EXTERNAL, TensorProto};
use crate::source::External;

/// The element types of files that Sora has: their codes and names in `TensorProto.DataType`.
const DTYPES: [(i32, &str, DType); 23] = [
    (1, "FLOAT", DType::F32),
    (2, "UINT8", DType::U8),
    (3, "INT8", DType::I8),
    (4, "UINT16", DType::U16),
    (5, "INT16", DType::I16),
    (6, "INT32", DType::I32),
    (7, "INT64", DType::I64),
    (9, "BOOL", DType::Bool),
    (10, "FLOAT16", DType::F16),
    (11, "DOUBLE", DType::F64),
    (12, "UINT32", DType::U32),
    (13, "UINT64", DType::U64),
    (16, "BFLOAT16", DType::BF16),
    (17, "FLOAT8E4M3FN", DType::F8E4M3FN),
    (18, "FLOAT8E4M3FNUZ", DType::F8E4M3FNUZ),
    (19, "FLOAT8E5M2", DType::F8E5M2),
    (20, "FLOAT8E5M2FNUZ", DType::F8E5M2FNUZ),
    (21, "UINT4", DType::U4),
    (22, "INT4", DType::I4),
    (23, "FLOAT4E2M1", DType::F4E2M1),
    (24, "FLOAT8E8M0", DType::F8E8M0),
    (25, "UINT2", DType::U2),
    (26, "INT2", DType::I2),
];

/// Codes and names of the element types that Sora does not have.
const OTHER_TYPES: [(i32, &str); 4] =
    [(0, "undefined"), (8, "string"), (14, "complex64"), (15, "complex128")];

/// An extent as the `i64` that files store.
pub(crate) fn signed(extent: usize) -> i64 {
    i64::try_from(extent).unwrap_or(i64::MAX)
}

/// The dtype of a code.
pub(crate) fn dtype_of(code: i64) -> Result<DType, Refusal> {
    let known = DTYPES.iter().find(|&&(c, ..)| i64::from(c) == code);
    known.map(|&(.., dtype)| dtype).ok_or_else(|| {
        let name = OTHER_TYPES.iter().find(|&&(c, _)| i64::from(c) == code).map(|&(_, name)| name);
        unsupported(name.map_or_else(|| format!("with the code {code}"), str::to_owned))
    })
}

/// The dtype of a name in `TensorProto.DataType`.
pub(crate) fn dtype_named(name: &str) -> Result<DType, Refusal> {
    let known = DTYPES.iter().find(|&&(_, known, _)| known == name);
    known.map(|&(.., dtype)| dtype).ok_or_else(|| unsupported(format!("`{name}`")))
}

fn unsupported(name: String) -> Refusal {
    Refusal::new(format!("the element type {name} is not supported"))
        .hint("convert the model to float32, float16 or 8-bit integers")
}

/// The code of a dtype.
pub(crate) fn code_of(dtype: DType) -> i32 {
    DTYPES.iter().find(|&&(.., d)| d == dtype).map_or(0, |&(code, ..)| code)
}

/// The bytes that elements take in a file, which packs those of fewer than 8 bits; `None` when that overflows.
fn stored_bytes(dtype: DType, count: usize) -> Option<usize> {
    let bytes = match dtype.bits() {
        bits @ 1..8 => count.div_ceil(8 / bits),
        _ => count.checked_mul(dtype.size())?,
    };
    isize::try_from(bytes).is_ok().then_some(bytes)
}

/// The bytes that a tensor takes in a file.
pub(crate) fn stored_len(tensor: &Tensor) -> usize {
    stored_bytes(tensor.dtype(), tensor.len()).unwrap_or(usize::MAX)
}

/// Reads a tensor; elements in another file stay mapped.
pub(crate) fn from_proto(proto: &TensorProto, external: &mut External) -> Result<Tensor, Refusal> {
    let dtype = dtype_of(i64::from(proto.data_type))?;
    let shape = shape_of(&proto.dims)?;
    let count = element_count(&shape);
    let (Some(count), Some(bytes)) = (count, count.and_then(|n| stored_bytes(dtype, n))) else {
        return Err(Refusal::new(format!("the shape {:?} is too large", proto.dims)));
    };
    let wrap = |data: Buffer| {
        let data = if dtype.bits() < 8 { unpacked(&data, count, dtype)? } else { data };
        Tensor::new(dtype, &shape, data).map_err(|e| Refusal::new(e.to_string()))
    };
    if proto.data_location == Some(LOCATION_EXTERNAL) {
        return wrap(external.read(&proto.external_data, bytes)?);
    }
    if let Some(raw) = &proto.raw_data {
        return wrap(little_endian(external.raw(raw), dtype));
    }
    let found = [
        proto.float_data.len(),
        proto.int32_data.len(),
        proto.int64_data.len(),
        proto.double_data.len(),
        proto.uint64_data.len(),
    ];
    let typed = match dtype {
        DType::F32 => narrow(&proto.float_data, count, dtype, &shape, |&v| v),
        DType::F64 => narrow(&proto.double_data, count, dtype, &shape, |&v| v),
        DType::I64 => narrow(&proto.int64_data, count, dtype, &shape, |&v| v),
        DType::U64 => narrow(&proto.uint64_data, count, dtype, &shape, |&v| v),
        DType::U32 => narrow(&proto.uint64_data, count, dtype, &shape, |&v| u32::from_i128(i128::from(v))),
        DType::I32 => narrow(&proto.int32_data, count, dtype, &shape, |&v| v),
        DType::I16 => narrow(&proto.int32_data, count, dtype, &shape, |&v| i16::from_i128(i128::from(v))),
        // Half floats are stored by their bits.
        DType::U16 | DType::F16 | DType::BF16 => {
            narrow(&proto.int32_data, count, dtype, &shape, |&v| u16::from_i128(i128::from(v)))
        }
        DType::I8 => narrow(&proto.int32_data, count, dtype, &shape, |&v| i8::from_i128(i128::from(v))),
        DType::U8 => narrow(&proto.int32_data, count, dtype, &shape, |&v| u8::from_i128(i128::from(v))),
        DType::Bool => narrow(&proto.int32_data, count, dtype, &shape, |&v| u8::from(v != 0)),
        // Small floats are stored by their bits, types of fewer than 8 bits as the bytes that pack them.
        _ => {
            let bits: Vec<u8> = proto.int32_data.iter().map(|&v| u8::from_i128(i128::from(v))).collect();
            if bits.len() == bytes {
                return wrap(Buffer::copy_of(&bits));
            }
            None
        }
    };
    typed.ok_or_else(|| {
        let found: usize = found.iter().sum();
        Refusal::new(format!("the shape {shape:?} of {dtype} needs {count} elements, found {found}"))
    })
}

/// The values as a tensor of `dtype`, whose elements have the size of `T`; `None` when there are not `count`.
fn narrow<S, T: Element>(
    values: &[S],
    count: usize,
    dtype: DType,
    shape: &[usize],
    convert: impl Fn(&S) -> T,
) -> Option<Tensor> {
    let values: Vec<T> = (values.len() == count).then(|| values.iter().map(convert).collect())?;
    Tensor::new(dtype, shape, Buffer::copy_of(Tensor::vector(&values).bytes())).ok()
}

fn shape_of(dims: &[i64]) -> Result<Vec<usize>, Refusal> {
    let extent = |&d: &i64| {
        usize::try_from(d).map_err(|_| Refusal::new(format!("the shape {dims:?} has a negative extent")))
    };
    dims.iter().map(extent).collect()
}

/// The bytes turned from the file's order into the machine's, or back.
fn little_endian(mut data: Buffer, dtype: DType) -> Buffer {
    if cfg!(target_endian = "big") {
        data.bytes_mut().chunks_exact_mut(dtype.size()).for_each(<[u8]>::reverse);
    }
    data
}

/// `count` elements of fewer than 8 bits, the first in the lowest bits, one byte each.
fn unpacked(packed: &[u8], count: usize, dtype: DType) -> Result<Buffer, Refusal> {
    if stored_bytes(dtype, count) != Some(packed.len()) {
        let found = packed.len();
        return Err(Refusal::new(format!("{count} elements of {dtype} do not fit {found} bytes")));
    }
    let signed = dtype.int_range().is_some_and(|(low, _)| low < 0);
    // As wide as the element, to extend its sign.
    let spare = u32::try_from(8 - dtype.bits()).unwrap_or(0);
    let one = |byte: u8, first: usize| {
        let high = byte << (usize::try_from(spare).unwrap_or(0) - first);
        if signed { (high.cast_signed() >> spare).cast_unsigned() } else { high >> spare }
    };
    let firsts = || (0..8).step_by(dtype.bits());
    let elements = packed.iter().flat_map(|&byte| firsts().map(move |first| one(byte, first)));
    let elements: Vec<u8> = elements.take(count).collect();
    Ok(Buffer::copy_of(&elements))
}

/// The reverse of [`unpacked`].
fn packed(elements: &[u8], dtype: DType) -> Vec<u8> {
    let mask = u8::MAX >> (8 - dtype.bits());
    let byte = |group: &[u8]| {
        let placed = group.iter().zip((0..8).step_by(dtype.bits())).map(|(v, first)| (v & mask) << first);
        placed.fold(0, |byte, bits| byte | bits)
    };
    elements.chunks(8 / dtype.bits()).map(byte).collect()
}

/// A tensor that [`Bytes`] can share.
struct Shared(Tensor);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        self.0.bytes()
    }
}

/// Writes the elements as a file stores them, and lets go of what reading them took.
pub(crate) fn write_raw(tensor: &Tensor, out: &mut impl Write) -> io::Result<()> {
    if tensor.dtype().bits() < 8 || cfg!(target_endian = "big") {
        out.write_all(&raw_bytes(tensor))?;
    } else {
        out.write_all(tensor.detached().raw())?;
    }
    tensor.release();
    Ok(())
}

/// The elements as a file stores them; shares them with the tensor on little-endian machines.
pub(crate) fn raw_bytes(tensor: &Tensor) -> Bytes {
    if tensor.dtype().bits() < 8 {
        return packed(tensor.bytes(), tensor.dtype()).into();
    }
    if cfg!(target_endian = "big") {
        return Bytes::copy_from_slice(&little_endian(Buffer::copy_of(tensor.bytes()), tensor.dtype()));
    }
    Bytes::from_owner(Shared(tensor.clone()))
}

/// Dtype, shape and name of a tensor, without its elements.
pub(crate) fn header(name: &str, tensor: &Tensor) -> TensorProto {
    TensorProto {
        dims: tensor.shape().iter().copied().map(signed).collect(),
        data_type: code_of(tensor.dtype()),
        name: name.to_owned(),
        ..TensorProto::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_elements_come_back() {
        for dtype in [DType::I4, DType::U4, DType::I2, DType::U2, DType::F4E2M1] {
            for count in 0..9 {
                let values: Vec<f64> = (0..count).map(|i| f64::from(i % 4) - 2.0).collect();
                let tensor = Tensor::from_f64s(dtype, &[values.len()], &values).unwrap();
                let stored = raw_bytes(&tensor);
                assert_eq!(stored.len(), stored_len(&tensor));
                let proto = TensorProto { raw_data: Some(stored.clone()), ..header("t", &tensor) };
                assert_eq!(from_proto(&proto, &mut External::new(None)).unwrap(), tensor);
                let int32_data = stored.iter().map(|&b| i32::from(b)).collect();
                let typed = TensorProto { int32_data, ..header("t", &tensor) };
                assert_eq!(from_proto(&typed, &mut External::new(None)).unwrap(), tensor);
                let short = TensorProto { raw_data: Some(Bytes::from(vec![0; count as usize + 1])), ..proto };
                assert!(from_proto(&short, &mut External::new(None)).is_err());
            }
        }
        let tensor = Tensor::from_f64s(DType::I4, &[3], &[-8.0, 7.0, -1.0]).unwrap();
        assert_eq!(&raw_bytes(&tensor)[..], [0x78, 0x0f]);
    }
}
