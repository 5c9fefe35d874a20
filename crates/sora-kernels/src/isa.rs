//! Instruction sets, their run-time detection, and the proof that one runs here.

use alloc::{string::String, vec::Vec};
use core::{fmt, str::FromStr};

/// Instruction-set levels that kernels are written for.
///
/// A level means all the features it names. Levels of one architecture mostly build on each other
/// ([`Isa::includes`]); [`Isa::AvxVnni`] is a branch of its own, for processors that have the byte
/// products of AVX-512-VNNI without AVX-512.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// The target's baseline, in plain Rust.
    Portable,
    /// x86-64 with AVX2 and FMA.
    Avx2,
    /// [`Isa::Avx2`] with AVX-VNNI.
    AvxVnni,
    /// x86-64 with AVX-512 F, BW, VL and DQ.
    Avx512,
    /// [`Isa::Avx512`] with VNNI.
    Avx512Vnni,
    /// [`Isa::Avx512Vnni`] with BF16.
    Avx512Bf16,
    /// AArch64 with NEON.
    Neon,
    /// [`Isa::Neon`] with the dot-product instructions.
    NeonDot,
    /// [`Isa::NeonDot`] with the byte matrix products (I8MM).
    NeonI8mm,
}

/// Every level, ascending within an architecture.
pub const ALL_ISAS: [Isa; 9] = [
    Isa::Portable,
    Isa::Avx2,
    Isa::AvxVnni,
    Isa::Avx512,
    Isa::Avx512Vnni,
    Isa::Avx512Bf16,
    Isa::Neon,
    Isa::NeonDot,
    Isa::NeonI8mm,
];

/// Why an instruction set cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IsaError {
    /// No instruction set has this name.
    Unknown(String),
    /// This machine (or this build) cannot run it.
    Unavailable(Isa),
}

impl fmt::Display for IsaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(name) => write!(f, "unknown instruction set `{name}`")?,
            Self::Unavailable(isa) => write!(f, "this machine cannot run `{isa}`")?,
        }
        write!(f, "; available here:")?;
        for (i, isa) in Isa::available().iter().enumerate() {
            write!(f, "{} {isa}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl core::error::Error for IsaError {}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Isa {
    type Err = IsaError;

    fn from_str(s: &str) -> Result<Self, IsaError> {
        ALL_ISAS
            .into_iter()
            .find(|isa| isa.name().eq_ignore_ascii_case(s.trim()))
            .ok_or_else(|| IsaError::Unknown(s.trim().into()))
    }
}

impl Isa {
    /// The name that [`fmt::Display`] prints and [`FromStr`] reads.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::AvxVnni => "avxvnni",
            Self::Avx512 => "avx512",
            Self::Avx512Vnni => "avx512vnni",
            Self::Avx512Bf16 => "avx512bf16",
            Self::Neon => "neon",
            Self::NeonDot => "neondot",
            Self::NeonI8mm => "neoni8mm",
        }
    }

    /// The level that this one extends.
    const fn base(self) -> Option<Isa> {
        match self {
            Self::Portable => None,
            Self::Avx2 | Self::Neon => Some(Self::Portable),
            Self::AvxVnni | Self::Avx512 => Some(Self::Avx2),
            Self::Avx512Vnni => Some(Self::Avx512),
            Self::Avx512Bf16 => Some(Self::Avx512Vnni),
            Self::NeonDot => Some(Self::Neon),
            Self::NeonI8mm => Some(Self::NeonDot),
        }
    }

    /// Whether every machine that runs `self` also runs `other`.
    pub const fn includes(self, other: Isa) -> bool {
        let mut level = Some(self);
        while let Some(isa) = level {
            if isa as u8 == other as u8 {
                return true;
            }
            level = isa.base();
        }
        false
    }

    /// The levels this machine can run, ascending; never empty.
    pub fn available() -> &'static [Isa] {
        detect()
    }

    /// The highest level this machine can run.
    pub fn best() -> Isa {
        *Self::available().last().unwrap_or(&Isa::Portable)
    }

    /// Parses a value of `SORA_ISA` and checks that this machine can run it.
    pub fn from_env_str(s: &str) -> Result<Isa, IsaError> {
        let isa: Isa = s.parse()?;
        Kernels::for_isa(isa).map(Kernels::isa)
    }
}

/// The level that `SORA_ISA` names, or the best one when it is unset or empty.
pub fn selected() -> Result<Isa, IsaError> {
    #[cfg(feature = "std")]
    if let Some(value) = std::env::var_os("SORA_ISA") {
        let value = value.to_string_lossy();
        if !value.trim().is_empty() {
            return Isa::from_env_str(&value);
        }
    }
    Ok(Isa::best())
}

/// Handle that selects kernels: proof that its instruction set runs on this
/// machine. Every kernel takes one, so one process can compare all levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernels {
    isa: Isa,
}

impl Kernels {
    /// The handle for `isa`, unless this machine cannot run it.
    pub fn for_isa(isa: Isa) -> Result<Kernels, IsaError> {
        if Isa::available().contains(&isa) { Ok(Kernels { isa }) } else { Err(IsaError::Unavailable(isa)) }
    }

    /// The handle for the best level of this machine.
    pub fn best() -> Kernels {
        Kernels { isa: Isa::best() }
    }

    /// The handle for [`selected`].
    pub fn selected() -> Result<Kernels, IsaError> {
        selected().map(|isa| Kernels { isa })
    }

    /// One handle per available level, ascending.
    pub fn all_available() -> Vec<Kernels> {
        Isa::available().iter().map(|&isa| Kernels { isa }).collect()
    }

    /// The level of this handle.
    pub fn isa(self) -> Isa {
        self.isa
    }
}

/// Every level that adds what this machine has to a level that it runs.
#[cfg(all(feature = "std", any(target_arch = "x86_64", target_arch = "aarch64")))]
fn levels(adds: impl Fn(Isa) -> bool) -> Vec<Isa> {
    let mut found = Vec::new();
    for isa in ALL_ISAS {
        if isa.base().is_none_or(|base| found.contains(&base)) && adds(isa) {
            found.push(isa);
        }
    }
    found
}

#[cfg(all(feature = "std", target_arch = "x86_64"))]
fn detect() -> &'static [Isa] {
    use std::is_x86_feature_detected as has;
    static FOUND: std::sync::OnceLock<Vec<Isa>> = std::sync::OnceLock::new();
    FOUND.get_or_init(|| {
        levels(|isa| match isa {
            Isa::Portable => true,
            Isa::Avx2 => has!("avx2") && has!("fma"),
            Isa::AvxVnni => has!("avxvnni"),
            Isa::Avx512 => has!("avx512f") && has!("avx512bw") && has!("avx512vl") && has!("avx512dq"),
            Isa::Avx512Vnni => has!("avx512vnni"),
            Isa::Avx512Bf16 => has!("avx512bf16"),
            _ => false,
        })
    })
}

#[cfg(all(feature = "std", target_arch = "aarch64"))]
fn detect() -> &'static [Isa] {
    use std::arch::is_aarch64_feature_detected as has;
    static FOUND: std::sync::OnceLock<Vec<Isa>> = std::sync::OnceLock::new();
    FOUND.get_or_init(|| {
        levels(|isa| match isa {
            Isa::Portable => true,
            Isa::Neon => has!("neon"),
            Isa::NeonDot => has!("dotprod"),
            Isa::NeonI8mm => has!("i8mm"),
            _ => false,
        })
    })
}

#[cfg(not(all(feature = "std", any(target_arch = "x86_64", target_arch = "aarch64"))))]
fn detect() -> &'static [Isa] {
    &[Isa::Portable]
}

/// Defines a function whose plain-Rust body is compiled once per instruction
/// set and chosen by the handle in its first argument.
///
/// The body is inlined into each instance, so the autovectorizer sees the
/// instance's features; whatever it calls must be `#[inline(always)]` or small, for a
/// shared function is compiled for the baseline. Multiplications and additions stay separate (Rust never
/// contracts them), hence every instance returns the same bits.
macro_rules! per_isa {
    ($(#[$meta:meta])* $vis:vis fn $name:ident $([$(const $g:ident : $gt:ty),*])? $({$($t:ident : $bound:path),*})?
        ($($arg:ident : $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name<$($(const $g: $gt),*)? $($($t: $bound),*)?>(kernels: $crate::Kernels, $($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            fn body<$($(const $g: $gt),*)? $($($t: $bound),*)?>($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn avx2<$($(const $g: $gt),*)? $($($t: $bound),*)?>($($arg: $ty),*) $(-> $ret)? {
                    body::<$($($g),*)? $($($t),*)?>($($arg),*)
                }
                #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn avx512<$($(const $g: $gt),*)? $($($t: $bound),*)?>($($arg: $ty),*) $(-> $ret)? {
                    body::<$($($g),*)? $($($t),*)?>($($arg),*)
                }
                match kernels.isa() {
                    // SAFETY: a handle exists only for an ISA that this machine runs.
                    $crate::Isa::Avx2 | $crate::Isa::AvxVnni => return unsafe { avx2::<$($($g),*)? $($($t),*)?>($($arg),*) },
                    $crate::Isa::Avx512 | $crate::Isa::Avx512Vnni | $crate::Isa::Avx512Bf16 => {
                        // SAFETY: as above.
                        return unsafe { avx512::<$($($g),*)? $($($t),*)?>($($arg),*) };
                    }
                    _ => {}
                }
            }
            let _ = kernels;
            body::<$($($g),*)? $($($t),*)?>($($arg),*)
        }
    };
}
pub(crate) use per_isa;

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn names_round_trip_and_errors_list_what_is_available() {
        for isa in ALL_ISAS {
            assert_eq!(isa.to_string().parse(), Ok(isa));
        }
        let error = Isa::from_env_str("mmx").unwrap_err().to_string();
        assert!(error.contains("mmx") && error.contains("portable"), "{error}");
    }

    #[test]
    fn what_runs_here_is_closed_under_inclusion() {
        let available = Isa::available();
        assert_eq!(available[0], Isa::Portable);
        assert!(available.is_sorted());
        for isa in available {
            for low in ALL_ISAS.iter().filter(|&&low| isa.includes(low)) {
                assert!(low <= isa && available.contains(low), "{isa} {low}");
            }
        }
        assert!(Isa::Avx512Bf16.includes(Isa::Avx2) && Isa::NeonI8mm.includes(Isa::Neon));
        assert!(!Isa::Avx512Bf16.includes(Isa::AvxVnni) && !Isa::AvxVnni.includes(Isa::Avx512));
    }

    #[test]
    fn an_isa_of_another_architecture_is_refused() {
        for isa in ALL_ISAS {
            assert_eq!(Kernels::for_isa(isa).is_ok(), Isa::available().contains(&isa));
        }
    }
}
