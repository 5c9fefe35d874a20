//! Tensors of the file to and from tensors of the graph.

use prost::bytes::Bytes;
use sora_tensor::{Buffer, DType, Element, Tensor, element_count};

use crate::error::Refusal;
use crate::proto::{LOCATION_EXTERNAL, TensorProto};
use crate::source::External;

/// The codes of `TensorProto.DataType` that Sora computes with.
const DTYPES: [(i32, DType); 13] = [
    (1, DType::F32),
    (2, DType::U8),
    (3, DType::I8),
    (4, DType::U16),
    (5, DType::I16),
    (6, DType::I32),
    (7, DType::I64),
    (9, DType::Bool),
    (10, DType::F16),
    (11, DType::F64),
    (12, DType::U32),
    (13, DType::U64),
    (16, DType::BF16),
];

/// Names of the codes that Sora does not compute with.
const OTHER_TYPES: [(i32, &str); 11] = [
    (0, "undefined"),
    (8, "string"),
    (14, "complex64"),
    (15, "complex128"),
    (17, "float8e4m3fn"),
    (18, "float8e4m3fnuz"),
    (19, "float8e5m2"),
    (20, "float8e5m2fnuz"),
    (21, "uint4"),
    (22, "int4"),
    (23, "float4e2m1"),
];

/// An extent as the `i64` that files store.
pub(crate) fn signed(extent: usize) -> i64 {
    i64::try_from(extent).unwrap_or(i64::MAX)
}

/// The dtype of a code.
pub(crate) fn dtype_of(code: i64) -> Result<DType, Refusal> {
    let known = DTYPES.iter().find(|&&(c, _)| i64::from(c) == code);
    known.map(|&(_, dtype)| dtype).ok_or_else(|| {
        let name = OTHER_TYPES.iter().find(|&&(c, _)| i64::from(c) == code).map(|&(_, name)| name);
        let name = name.map_or_else(|| format!("with the code {code}"), str::to_owned);
        Refusal::new(format!("the element type {name} is not supported"))
            .hint("convert the model to float32, float16 or 8-bit integers")
    })
}

/// The code of a dtype.
pub(crate) fn code_of(dtype: DType) -> i32 {
    DTYPES.iter().find(|&&(_, d)| d == dtype).map_or(0, |&(code, _)| code)
}

/// Reads a tensor; elements in another file stay mapped.
pub(crate) fn from_proto(proto: &TensorProto, external: &mut External) -> Result<Tensor, Refusal> {
    let dtype = dtype_of(i64::from(proto.data_type))?;
    let shape = shape_of(&proto.dims)?;
    let count = element_count(&shape);
    let bytes = count.and_then(|n| n.checked_mul(dtype.size())).filter(|&n| isize::try_from(n).is_ok());
    let (Some(count), Some(bytes)) = (count, bytes) else {
        return Err(Refusal::new(format!("the shape {:?} is too large", proto.dims)));
    };
    let wrap = |data: Buffer| Tensor::new(dtype, &shape, data).map_err(|e| Refusal::new(e.to_string()));
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

/// A tensor that [`Bytes`] can share.
struct Shared(Tensor);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        self.0.bytes()
    }
}

/// The elements in the file's byte order; shares them with the tensor on little-endian machines.
pub(crate) fn raw_bytes(tensor: &Tensor) -> Bytes {
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
