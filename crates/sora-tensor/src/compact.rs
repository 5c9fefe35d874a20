//! Elements of eight bits or fewer that networks are stored in rather than computed with: small floats, and integers
//! of two and four bits. In memory each takes a byte; only files pack them.

use crate::{DType, Element};

/// How a small float uses its bits: sign, exponent, mantissa, from the highest to the lowest.
struct Format {
    exponent: u32,
    mantissa: u32,
    bias: i32,
    special: Special,
}

/// Which bits are no number.
#[derive(PartialEq)]
enum Special {
    /// As in IEEE 754: the greatest exponent is infinity or NaN.
    Ieee,
    /// All bits but the sign set: NaN. There is no infinity.
    Ones,
    /// What would be minus zero: NaN. There is no infinity.
    MinusZero,
    /// None.
    Nothing,
}

impl Format {
    const fn sign(&self) -> u8 {
        1 << (self.exponent + self.mantissa)
    }

    /// The bits of the greatest finite number.
    const fn greatest(&self) -> u8 {
        let ones = self.sign() - 1;
        match self.special {
            Special::Ieee => ones - (1 << self.mantissa),
            Special::Ones => ones - 1,
            Special::MinusZero | Special::Nothing => ones,
        }
    }

    fn decode(&self, bits: u8) -> f64 {
        let magnitude = bits & (self.sign() - 1);
        let negative = bits & self.sign() != 0;
        let value = if self.special == Special::MinusZero && negative && magnitude == 0 {
            f64::NAN
        } else if magnitude <= self.greatest() {
            let fraction = f64::from(magnitude & ((1 << self.mantissa) - 1)) / f64::from(1 << self.mantissa);
            match i32::from(magnitude >> self.mantissa) {
                0 => fraction * power_of_two(1 - self.bias),
                exponent => (1.0 + fraction) * power_of_two(exponent - self.bias),
            }
        } else if self.special == Special::Ieee && magnitude == self.greatest() + 1 {
            f64::INFINITY
        } else {
            f64::NAN
        };
        if negative { -value } else { value }
    }

    /// Rounds to nearest even. Beyond the greatest number: that number with `saturate`, else infinity, or NaN where
    /// there is none.
    fn encode(&self, value: f64, saturate: bool) -> u8 {
        let sign = if value.is_sign_negative() { self.sign() } else { 0 };
        let nan = match self.special {
            Special::MinusZero => self.sign(),
            // Without a NaN, the number that says least.
            Special::Nothing => self.sign(),
            Special::Ieee | Special::Ones => sign | (self.sign() - 1),
        };
        if value.is_nan() {
            return nan;
        }
        // The mantissa in units of its last place, on top of the exponent: a carry moves into the exponent by itself.
        let exponent = exponent_of(value.abs()).max(1 - self.bias);
        let last_place = power_of_two(exponent) / f64::from(1 << self.mantissa);
        let mantissa = (value.abs() / last_place).round_ties_even();
        let magnitude = f64::from((exponent + self.bias - 1) << self.mantissa) + mantissa;
        let magnitude = if magnitude > f64::from(self.greatest()) {
            match self.special {
                _ if saturate => self.greatest(),
                Special::Ieee => self.greatest() + 1,
                Special::Nothing => self.greatest(),
                Special::Ones | Special::MinusZero => return nan,
            }
        } else {
            magnitude as u8
        };
        match (magnitude, &self.special) {
            (0, Special::MinusZero) => 0,
            _ => sign | magnitude,
        }
    }
}

/// Exact for exponents from -1022 to 1023.
fn power_of_two(exponent: i32) -> f64 {
    f64::from_bits(((exponent.clamp(-1022, 1023) + 1023) as u64) << 52)
}

/// The exponent of the greatest power of two that is no greater than a positive number; infinity has that of the
/// greatest number, subnormal numbers and zero have -1023.
fn exponent_of(value: f64) -> i32 {
    (value.to_bits() >> 52).min(2046) as i32 - 1023
}

macro_rules! small_floats {
    ($($(#[$doc:meta])* $name:ident: $exponent:literal, $mantissa:literal, $bias:literal, $special:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
        #[repr(transparent)]
        pub struct $name(u8);

        impl $name {
            const FORMAT: Format = Format {
                exponent: $exponent, mantissa: $mantissa, bias: $bias, special: Special::$special,
            };

            /// As [`Element::from_f64`], but what lies beyond the range becomes infinity, or NaN where the type has
            /// no infinity.
            pub fn from_f64_unsaturated(value: f64) -> Self {
                Self(Self::FORMAT.encode(value, false))
            }
        }

        /// Beyond the range lies the greatest number, for infinity, too.
        impl Element for $name {
            const DTYPE: DType = DType::$name;
            fn to_f64(self) -> f64 { Self::FORMAT.decode(self.0) }
            fn to_i128(self) -> i128 { self.to_f64() as i128 }
            fn from_f64(value: f64) -> Self { Self(Self::FORMAT.encode(value, true)) }
            fn from_i128(value: i128) -> Self { Self::from_f64(value as f64) }
        }

        impl PartialEq for $name {
            fn eq(&self, other: &Self) -> bool { self.to_f64() == other.to_f64() }
        }
    )*};
}
small_floats! {
    /// An element of [`DType::F8E4M3FN`].
    F8E4M3FN: 4, 3, 7, Ones;
    /// An element of [`DType::F8E4M3FNUZ`].
    F8E4M3FNUZ: 4, 3, 8, MinusZero;
    /// An element of [`DType::F8E5M2`].
    F8E5M2: 5, 2, 15, Ieee;
    /// An element of [`DType::F8E5M2FNUZ`].
    F8E5M2FNUZ: 5, 2, 16, MinusZero;
    /// An element of [`DType::F4E2M1`], in the low half of the byte; NaN becomes -0.
    F4E2M1: 2, 1, 1, Nothing;
}

/// Which neighbour a conversion to [`F8E8M0`] takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PowerRounding {
    /// The greater one.
    Up,
    /// The lesser one.
    Down,
    /// The nearer one, of two the greater one.
    Nearest,
}

/// An element of [`DType::F8E8M0`]: a power of two from 2^-127 to 2^127, or NaN.
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub struct F8E8M0(u8);

impl F8E8M0 {
    const BIAS: i32 = 127;
    const GREATEST: i32 = 254;
    const NAN: F8E8M0 = F8E8M0(255);

    /// The neighbouring power of two; NaN for negative numbers. What lies beyond the range becomes its end with
    /// `saturate`, zero included, else NaN.
    pub fn rounded(value: f64, saturate: bool, rounding: PowerRounding) -> Self {
        if value.is_nan() || value < 0.0 {
            return Self::NAN;
        }
        let exponent = exponent_of(value);
        let fraction = value / power_of_two(exponent);
        let up = match rounding {
            PowerRounding::Up => fraction > 1.0,
            PowerRounding::Down => false,
            PowerRounding::Nearest => fraction >= 1.5,
        };
        let bits = exponent + i32::from(up) + Self::BIAS;
        match (0..=Self::GREATEST).contains(&bits) {
            true if value.is_finite() => F8E8M0(bits as u8),
            _ if saturate => F8E8M0(bits.clamp(0, Self::GREATEST) as u8),
            _ => Self::NAN,
        }
    }
}

impl Element for F8E8M0 {
    const DTYPE: DType = DType::F8E8M0;
    fn to_f64(self) -> f64 {
        match self.0 {
            255 => f64::NAN,
            bits => power_of_two(i32::from(bits) - Self::BIAS),
        }
    }
    fn to_i128(self) -> i128 {
        self.to_f64() as i128
    }
    /// Rounds up and saturates.
    fn from_f64(value: f64) -> Self {
        Self::rounded(value, true, PowerRounding::Up)
    }
    fn from_i128(value: i128) -> Self {
        Self::from_f64(value as f64)
    }
}

impl PartialEq for F8E8M0 {
    fn eq(&self, other: &Self) -> bool {
        self.to_f64() == other.to_f64()
    }
}

macro_rules! small_ints {
    ($($(#[$doc:meta])* $name:ident: $inner:ty, $bits:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
        #[repr(transparent)]
        pub struct $name($inner);

        impl $name {
            /// The lowest bits, with the sign of the highest of them where there are signs.
            const fn get(self) -> $inner {
                (self.0 << (8 - $bits)) >> (8 - $bits)
            }
        }

        impl Element for $name {
            const DTYPE: DType = DType::$name;
            fn to_f64(self) -> f64 { f64::from(self.get()) }
            fn to_i128(self) -> i128 { i128::from(self.get()) }
            fn from_f64(value: f64) -> Self {
                let (low, high) = (<$inner>::MIN >> (8 - $bits), <$inner>::MAX >> (8 - $bits));
                Self((value as $inner).clamp(low, high))
            }
            fn from_i128(value: i128) -> Self { Self(Self(value as $inner).get()) }
        }

        impl PartialEq for $name {
            fn eq(&self, other: &Self) -> bool { self.get() == other.get() }
        }
    )*};
}
small_ints! {
    /// An element of [`DType::I4`].
    I4: i8, 4;
    /// An element of [`DType::U4`].
    U4: u8, 4;
    /// An element of [`DType::I2`].
    I2: i8, 2;
    /// An element of [`DType::U2`].
    U2: u8, 2;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every bit pattern comes back, and the neighbours' middle rounds to the even one.
    fn check<T: Element>(patterns: u8) {
        let all: Vec<T> = (0..=patterns).map(|bits| *bytemuck::from_bytes(&[bits])).collect();
        let finite = |bits: &u8| all[usize::from(*bits)].to_f64().is_finite();
        let sign = patterns / 2 + 1;
        for bits in (0..=patterns).filter(finite) {
            let value = all[usize::from(bits)].to_f64();
            let back = T::from_f64(value);
            assert_eq!(bytemuck::bytes_of(&back), [bits], "{value}");
            if bits % sign + 1 < sign && finite(&(bits + 1)) {
                let next = all[usize::from(bits + 1)].to_f64();
                let even = if bits % 2 == 0 { value } else { next };
                assert_eq!(T::from_f64((value + next) / 2.0).to_f64(), even, "between {value} and {next}");
                assert_eq!(T::from_f64(value + (next - value) * 0.499).to_f64(), value);
            }
        }
    }

    #[test]
    fn small_floats_come_back_and_round_to_even() {
        check::<F8E4M3FN>(255);
        check::<F8E4M3FNUZ>(255);
        check::<F8E5M2>(255);
        check::<F8E5M2FNUZ>(255);
        check::<F4E2M1>(15);
    }

    #[test]
    fn the_ends_of_the_ranges_are_those_of_the_standards() {
        let greatest = |to: fn(f64) -> f64| (to(1e9), to(f64::NEG_INFINITY));
        assert_eq!(greatest(|v| F8E4M3FN::from_f64(v).to_f64()), (448.0, -448.0));
        assert_eq!(greatest(|v| F8E4M3FNUZ::from_f64(v).to_f64()), (240.0, -240.0));
        assert_eq!(greatest(|v| F8E5M2::from_f64(v).to_f64()), (57344.0, -57344.0));
        assert_eq!(greatest(|v| F8E5M2FNUZ::from_f64(v).to_f64()), (57344.0, -57344.0));
        assert_eq!(greatest(|v| F4E2M1::from_f64(v).to_f64()), (6.0, -6.0));
        assert_eq!(F8E5M2::from_f64_unsaturated(1e9).to_f64(), f64::INFINITY);
        assert!(F8E4M3FN::from_f64_unsaturated(465.0).to_f64().is_nan());
        assert_eq!(F8E4M3FN::from_f64_unsaturated(464.0).to_f64(), 448.0);
        assert!(F8E4M3FNUZ::from_f64(f64::NAN).to_f64().is_nan());
        assert!(F8E5M2FNUZ::from_f64(-0.0).to_f64().is_sign_positive());
        assert!(F8E5M2::from_f64(-0.0).to_f64().is_sign_negative());
    }

    #[test]
    fn powers_of_two_round_as_asked() {
        use PowerRounding::{Down, Nearest, Up};
        for (value, rounding, power) in
            [(1.1, Up, 2.0), (1.1, Down, 1.0), (1.5, Nearest, 2.0), (1.4, Nearest, 1.0), (4.0, Up, 4.0)]
        {
            assert_eq!(F8E8M0::rounded(value, true, rounding).to_f64(), power);
        }
        let (least, greatest) = (2f64.powi(-127), 2f64.powi(127));
        assert_eq!(F8E8M0::from_f64(0.0).to_f64(), least);
        assert_eq!(F8E8M0::from_f64(f64::INFINITY).to_f64(), greatest);
        for beyond in [0.0, -1.0, f64::INFINITY, f64::NAN, 2f64.powi(128)] {
            assert!(F8E8M0::rounded(beyond, false, Nearest).to_f64().is_nan(), "{beyond}");
        }
    }

    #[test]
    fn small_integers_saturate_floats_and_wrap_integers() {
        assert_eq!((I4::from_f64(-9.5).to_i128(), I4::from_f64(8.0).to_i128()), (-8, 7));
        assert_eq!((I4::from_i128(8).to_i128(), U4::from_i128(-1).to_i128()), (-8, 15));
        assert_eq!((U2::from_f64(f64::NAN).to_i128(), I2::from_i128(3).to_i128()), (0, -1));
    }
}
