//! Speed of every GEMM row: `cargo bench -p sora-kernels [-- M N K]`.
//!
//! Prints billions of multiply-adds per second and, where it can be measured, the
//! share of the speed of a loop of nothing but independent multiply-adds.

use std::time::Instant;

use sora_kernels::{
    ARows, Activation, Dense, EpilogueF32, EpilogueI32, Family, Isa, KERNELS, KernelRow, Kernels, MatMut,
    Output, PackedBf16, PackedF32, PackedI8, Quant, bf16, gemm_bf16, gemm_f32, gemm_u8i8,
};

/// Best seconds per call over about a quarter of a second.
fn seconds(mut f: impl FnMut()) -> f64 {
    f();
    let begin = Instant::now();
    let mut best = f64::INFINITY;
    while begin.elapsed().as_secs_f64() < 0.25 {
        let start = Instant::now();
        f();
        best = best.min(start.elapsed().as_secs_f64());
    }
    best
}

/// Billions of multiply-adds per second of pure arithmetic.
#[cfg(target_arch = "x86_64")]
fn peak(row: &KernelRow) -> Option<f64> {
    const STEPS: u64 = 100_000;
    macro_rules! spin {
        ($lanes:literal, $instruction:literal, $r:literal: $($i:literal)*) => {{
            let time = seconds(|| {
                // SAFETY: the row's instruction set was checked; only declared registers change.
                unsafe {
                    std::arch::asm!(
                        "2:",
                        $(concat!($instruction, " ", $r, $i, ", ", $r, "14, ", $r, "15"),)*
                        "dec rcx",
                        "jnz 2b",
                        inout("rcx") STEPS => _,
                        clobber_abi("C"),
                        options(nomem, nostack),
                    );
                }
            });
            Some((STEPS * 12 * $lanes) as f64 / time / 1e9)
        }};
    }
    match (row.family, row.isa) {
        (Family::GemmF32, Isa::Avx2) => spin!(8, "vfmadd231ps", "ymm": 0 1 2 3 4 5 6 7 8 9 10 11),
        (Family::GemmF32, Isa::Avx512) => {
            spin!(16, "vfmadd231ps", "zmm": 0 1 2 3 4 5 6 7 8 9 10 11)
        }
        (Family::GemmBf16, Isa::Avx512Bf16) => {
            spin!(32, "vdpbf16ps", "zmm": 0 1 2 3 4 5 6 7 8 9 10 11)
        }
        (Family::GemmU8I8, Isa::Avx512Vnni) => {
            spin!(64, "vpdpbusd", "zmm": 0 1 2 3 4 5 6 7 8 9 10 11)
        }
        _ => None,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn peak(_: &KernelRow) -> Option<f64> {
    None
}

fn run_f32(kernels: Kernels, m: usize, n: usize, k: usize) -> f64 {
    let a = vec![0.5f32; m * k];
    let b = PackedF32::pack(kernels, 1, k, n, |i, j| ((i + j) % 7) as f32);
    let rows = ARows::Dense(Dense { data: &a, rows: m, stride: k, k });
    let mut c = vec![0.0f32; m * n];
    seconds(|| {
        let out = Output::F32(MatMut::new(&mut c, m, n, n));
        gemm_f32(kernels, &rows, &b, 0, &EpilogueF32::default(), out);
    })
}

fn run_bf16(kernels: Kernels, m: usize, n: usize, k: usize) -> f64 {
    let a = vec![0x3f00u16; m * k];
    let b = PackedBf16::pack(kernels, 1, k, n, |i, j| bf16::round(((i + j) % 7) as f32));
    let rows = ARows::Dense(Dense { data: &a, rows: m, stride: k, k });
    let mut c = vec![0u16; m * n];
    let bias = vec![0.5; n];
    let ep = EpilogueF32 { bias: Some(&bias), residual: None, activation: Activation::Relu };
    seconds(|| {
        let out = Output::Bf16(MatMut::new(&mut c, m, n, n));
        gemm_bf16(kernels, &rows, &b, 0, &ep, out);
    })
}

fn run_u8i8(kernels: Kernels, m: usize, n: usize, k: usize) -> f64 {
    let a = vec![77u8; m * k];
    let b = PackedI8::pack(kernels, 1, k, n, |i, j| ((i + j) % 7) as i8);
    let rows = ARows::Dense(Dense { data: &a, rows: m, stride: k, k });
    let mut c = vec![0u8; m * n];
    let scale = vec![0.01; n];
    let bias = vec![5; n];
    let ep = EpilogueI32 {
        bias: Some(&bias),
        scale: &scale,
        offset: None,
        residual: None,
        activation: Activation::Relu,
    };
    seconds(|| {
        let out = Output::U8(MatMut::new(&mut c, m, n, n), Quant::new(0.1, 3));
        gemm_u8i8(kernels, &rows, &b, 0, &ep, out);
    })
}

fn main() {
    let sizes: Vec<usize> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    let shapes = match sizes[..] {
        [m, n, k] => vec![(m, n, k)],
        _ => vec![(512, 512, 512), (1, 1024, 1024), (784, 64, 576), (3136, 64, 64), (10, 128, 1600)],
    };
    for row in KERNELS {
        let Ok(kernels) = Kernels::for_isa(row.isa) else { continue };
        let run = match row.family {
            Family::GemmF32 => run_f32,
            Family::GemmBf16 => run_bf16,
            Family::GemmU8I8 => run_u8i8,
            _ => continue,
        };
        let peak = peak(row);
        for &(m, n, k) in &shapes {
            let rate = (m * n * k) as f64 / run(kernels, m, n, k) / 1e9;
            let share = peak.map_or(String::new(), |p| format!("{:5.1} % of {p:.0}", 100.0 * rate / p));
            println!("{:<28} {m:>5} x {n:>5} x {k:>5} {rate:9.1} Gmac/s {share}", row.name);
        }
    }
}
