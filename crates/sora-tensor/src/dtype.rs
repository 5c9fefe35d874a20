//! The element types that tensors hold.

use std::fmt;
use std::str::FromStr;

use half::{bf16, f16};

/// The type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 half precision.
    F16,
    /// bfloat16: the upper half of an [`DType::F32`].
    BF16,
    /// IEEE 754 double precision.
    F64,
    /// Signed 8-bit integer.
    I8,
    /// Unsigned 8-bit integer.
    U8,
    /// Signed 16-bit integer.
    I16,
    /// Unsigned 16-bit integer.
    U16,
    /// Signed 32-bit integer.
    I32,
    /// Unsigned 32-bit integer.
    U32,
    /// Signed 64-bit integer.
    I64,
    /// Unsigned 64-bit integer.
    U64,
    /// Truth value in one byte, zero or one.
    Bool,
    /// Float of 4 exponent and 3 mantissa bits, up to 448, with NaN and without infinities.
    F8E4M3FN,
    /// As [`DType::F8E4M3FN`] up to 240, with one zero and one NaN.
    F8E4M3FNUZ,
    /// Float of 5 exponent and 2 mantissa bits, up to 57344, otherwise as IEEE 754.
    F8E5M2,
    /// As [`DType::F8E5M2`] with one zero, one NaN and no infinity.
    F8E5M2FNUZ,
    /// A power of two from 2^-127 to 2^127, or NaN: a scale.
    F8E8M0,
    /// Float of 2 exponent bits and 1 mantissa bit, up to 6, all of them finite.
    F4E2M1,
    /// Signed 4-bit integer.
    I4,
    /// Unsigned 4-bit integer.
    U4,
    /// Signed 2-bit integer.
    I2,
    /// Unsigned 2-bit integer.
    U2,
}

/// All dtypes with their names in the text form: the one list behind parsing and printing.
const NAMES: [(DType, &str); 23] = [
    (DType::F32, "f32"),
    (DType::F16, "f16"),
    (DType::BF16, "bf16"),
    (DType::F64, "f64"),
    (DType::I8, "i8"),
    (DType::U8, "u8"),
    (DType::I16, "i16"),
    (DType::U16, "u16"),
    (DType::I32, "i32"),
    (DType::U32, "u32"),
    (DType::I64, "i64"),
    (DType::U64, "u64"),
    (DType::Bool, "bool"),
    (DType::F8E4M3FN, "f8e4m3fn"),
    (DType::F8E4M3FNUZ, "f8e4m3fnuz"),
    (DType::F8E5M2, "f8e5m2"),
    (DType::F8E5M2FNUZ, "f8e5m2fnuz"),
    (DType::F8E8M0, "f8e8m0"),
    (DType::F4E2M1, "f4e2m1"),
    (DType::I4, "i4"),
    (DType::U4, "u4"),
    (DType::I2, "i2"),
    (DType::U2, "u2"),
];

impl DType {
    /// Every dtype, in declaration order.
    pub fn all() -> impl Iterator<Item = DType> {
        NAMES.iter().map(|&(dtype, _)| dtype)
    }

    /// Bytes of one element in memory.
    pub const fn size(self) -> usize {
        match self {
            DType::F16 | DType::BF16 | DType::I16 | DType::U16 => 2,
            DType::F32 | DType::I32 | DType::U32 => 4,
            DType::F64 | DType::I64 | DType::U64 => 8,
            _ => 1,
        }
    }

    /// Bits that tell an element from others of its dtype: fewer than its bytes have where files pack several
    /// elements into one byte.
    pub const fn bits(self) -> usize {
        match self {
            DType::F4E2M1 | DType::I4 | DType::U4 => 4,
            DType::I2 | DType::U2 => 2,
            _ => 8 * self.size(),
        }
    }

    /// Whether networks are stored in this type rather than computed with it: floats of 8 bits or fewer, integers of
    /// fewer than 8.
    pub const fn is_compact(self) -> bool {
        self.bits() < 8 || self.is_float() && self.size() == 1
    }

    /// Whether elements are floating-point numbers.
    pub const fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::F16 | DType::BF16 | DType::F64)
            || matches!(self, DType::F8E4M3FN | DType::F8E4M3FNUZ | DType::F8E5M2 | DType::F8E5M2FNUZ)
            || matches!(self, DType::F8E8M0 | DType::F4E2M1)
    }

    /// Whether elements are integers; [`DType::Bool`] is not.
    pub const fn is_int(self) -> bool {
        !self.is_float() && !matches!(self, DType::Bool)
    }

    /// The least and the greatest value of an integer dtype; `None` for the others.
    pub const fn int_range(self) -> Option<(i128, i128)> {
        Some(match self {
            DType::I8 => (i8::MIN as i128, i8::MAX as i128),
            DType::U8 => (0, u8::MAX as i128),
            DType::I16 => (i16::MIN as i128, i16::MAX as i128),
            DType::U16 => (0, u16::MAX as i128),
            DType::I32 => (i32::MIN as i128, i32::MAX as i128),
            DType::U32 => (0, u32::MAX as i128),
            DType::I64 => (i64::MIN as i128, i64::MAX as i128),
            DType::U64 => (0, u64::MAX as i128),
            DType::I4 => (-8, 7),
            DType::U4 => (0, 15),
            DType::I2 => (-2, 1),
            DType::U2 => (0, 3),
            _ => return None,
        })
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = NAMES.iter().find(|(dtype, _)| dtype == self);
        f.write_str(name.map_or("?", |&(_, name)| name))
    }
}

/// A string that names no dtype.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a dtype ({names})", names = NAMES.map(|(_, name)| name).join(", "))]
pub struct ParseDTypeError(pub String);

impl FromStr for DType {
    type Err = ParseDTypeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = NAMES.iter().find(|&&(_, name)| name == text);
        found.map(|&(dtype, _)| dtype).ok_or_else(|| ParseDTypeError(text.to_owned()))
    }
}

/// A string, the dtype's name.
impl serde::Serialize for DType {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for DType {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        name.parse().map_err(serde::de::Error::custom)
    }
}

/// One byte of a [`DType::Bool`] tensor; any byte but zero counts as true.
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub struct Bool(u8);

impl Bool {
    /// The truth value.
    pub const fn get(self) -> bool {
        self.0 != 0
    }
}

impl From<bool> for Bool {
    fn from(value: bool) -> Self {
        Bool(u8::from(value))
    }
}

impl PartialEq for Bool {
    fn eq(&self, other: &Self) -> bool {
        self.get() == other.get()
    }
}

/// A Rust type that a tensor can hold.
///
/// Conversions are the scalar domain of the reference evaluator: floats go through `f64`, integers and
/// truth values through `i128`; both are exact for every element.
pub trait Element: bytemuck::Pod + PartialEq + fmt::Debug + Send + Sync {
    /// The dtype of tensors of `Self`.
    const DTYPE: DType;
    /// Widens; integers above 2^53 round.
    fn to_f64(self) -> f64;
    /// Widens; floats truncate towards zero and saturate, NaN gives 0.
    fn to_i128(self) -> i128;
    /// Narrows a float: floats round to nearest even, those of 8 bits or fewer saturate; integers truncate towards zero
    /// and saturate, NaN gives 0.
    fn from_f64(value: f64) -> Self;
    /// Narrows an integer: integers wrap, floats round to nearest even, truth values test for non-zero.
    fn from_i128(value: i128) -> Self;
}

macro_rules! int_elements {
    ($($t:ty => $d:ident),*) => {$(
        impl Element for $t {
            const DTYPE: DType = DType::$d;
            fn to_f64(self) -> f64 { self as f64 }
            fn to_i128(self) -> i128 { self as i128 }
            fn from_f64(value: f64) -> Self { value as $t }
            fn from_i128(value: i128) -> Self { value as $t }
        }
    )*};
}
int_elements!(i8 => I8, u8 => U8, i16 => I16, u16 => U16, i32 => I32, u32 => U32, i64 => I64, u64 => U64);

macro_rules! float_elements {
    ($($t:ty => $d:ident, $to:expr, $from:expr);*) => {$(
        impl Element for $t {
            const DTYPE: DType = DType::$d;
            fn to_f64(self) -> f64 { $to(self) }
            fn to_i128(self) -> i128 { self.to_f64() as i128 }
            fn from_f64(value: f64) -> Self { $from(value) }
            fn from_i128(value: i128) -> Self { Self::from_f64(value as f64) }
        }
    )*};
}
float_elements!(
    f32 => F32, f64::from, |v| v as f32;
    f64 => F64, |v| v, |v| v;
    f16 => F16, f16::to_f64, f16::from_f64;
    bf16 => BF16, bf16::to_f64, bf16::from_f64
);

impl Element for Bool {
    const DTYPE: DType = DType::Bool;
    fn to_f64(self) -> f64 {
        f64::from(u8::from(self.get()))
    }
    fn to_i128(self) -> i128 {
        i128::from(self.get())
    }
    fn from_f64(value: f64) -> Self {
        Bool::from(value != 0.0)
    }
    fn from_i128(value: i128) -> Self {
        Bool::from(value != 0)
    }
}

/// Runs `$body` with `$T` naming the Rust type of `$dtype`.
///
/// ```
/// use sora_tensor::{DType, Element, with_element};
/// let size = with_element!(DType::BF16, T => std::mem::size_of::<T>());
/// assert_eq!(size, 2);
/// ```
#[macro_export]
macro_rules! with_element {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            $crate::DType::F32 => {
                type $T = f32;
                $body
            }
            $crate::DType::F16 => {
                type $T = $crate::f16;
                $body
            }
            $crate::DType::BF16 => {
                type $T = $crate::bf16;
                $body
            }
            $crate::DType::F64 => {
                type $T = f64;
                $body
            }
            $crate::DType::I8 => {
                type $T = i8;
                $body
            }
            $crate::DType::U8 => {
                type $T = u8;
                $body
            }
            $crate::DType::I16 => {
                type $T = i16;
                $body
            }
            $crate::DType::U16 => {
                type $T = u16;
                $body
            }
            $crate::DType::I32 => {
                type $T = i32;
                $body
            }
            $crate::DType::U32 => {
                type $T = u32;
                $body
            }
            $crate::DType::I64 => {
                type $T = i64;
                $body
            }
            $crate::DType::U64 => {
                type $T = u64;
                $body
            }
            $crate::DType::Bool => {
                type $T = $crate::Bool;
                $body
            }
            $crate::DType::F8E4M3FN => {
                type $T = $crate::F8E4M3FN;
                $body
            }
            $crate::DType::F8E4M3FNUZ => {
                type $T = $crate::F8E4M3FNUZ;
                $body
            }
            $crate::DType::F8E5M2 => {
                type $T = $crate::F8E5M2;
                $body
            }
            $crate::DType::F8E5M2FNUZ => {
                type $T = $crate::F8E5M2FNUZ;
                $body
            }
            $crate::DType::F8E8M0 => {
                type $T = $crate::F8E8M0;
                $body
            }
            $crate::DType::F4E2M1 => {
                type $T = $crate::F4E2M1;
                $body
            }
            $crate::DType::I4 => {
                type $T = $crate::I4;
                $body
            }
            $crate::DType::U4 => {
                type $T = $crate::U4;
                $body
            }
            $crate::DType::I2 => {
                type $T = $crate::I2;
                $body
            }
            $crate::DType::U2 => {
                type $T = $crate::U2;
                $body
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back() {
        for dtype in DType::all() {
            assert_eq!(dtype.to_string().parse(), Ok(dtype));
            assert_eq!(with_element!(dtype, T => (T::DTYPE, size_of::<T>())), (dtype, dtype.size()));
        }
        assert!("float".parse::<DType>().is_err());
    }

    #[test]
    fn narrowing_follows_the_contract() {
        assert_eq!(u8::from_f64(300.7), 255);
        assert_eq!(i8::from_f64(f64::NAN), 0);
        assert_eq!(i8::from_i128(130), -126);
        assert_eq!(bf16::from_f64(1.0).to_f64(), 1.0);
        assert!(Bool::from_f64(0.5).get());
    }
}
