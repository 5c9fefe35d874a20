//! Integer accumulators to bytes in one pass through registers: the finish of most quantized layers.
//!
//! The steps and their roundings are those of [`crate::epilogue`], which finishes everything else. Clamping
//! commutes with rounding, so the lower bound is applied to bytes, and saturating steps narrow four vectors at a time.

use core::arch::x86_64::*;

use crate::{
    Isa, Kernels,
    depthwise::slide_u8::Requant,
    epilogue::{EpilogueI32, Place, Residual, byte_bounds},
    operands::{Dequant, MatMut, Quant},
};

/// The most columns of a tile.
const MAX_COLS: usize = 32;

/// Real numbers to integers from `bottom` to `top`, counted from a zero point.
#[derive(Clone, Copy)]
struct Grid {
    inv_scale: f32,
    bottom: f32,
    top: f32,
}

/// A tile and what to do with it.
struct Job {
    /// `rows` rows, one or more, as far apart as a row is wide.
    acc: *const i32,
    rows: usize,
    cols: usize,
    /// May be null.
    bias: *const i32,
    scale: *const f32,
    /// What the product passes through before the residual is added, and the step of that.
    product: (Grid, f32),
    residual: *const u8,
    residual_ld: usize,
    input: Dequant,
    store: Requant,
    /// Added to the bytes, without a carry: what makes them signed.
    shift: u8,
    out: *mut u8,
    out_ld: usize,
}

/// Finishes the tile of `N` columns in `acc` if its epilogue is a common one: bounds for an activation
/// and at most a residual of unsigned bytes. Returns whether it did.
///
/// The caller validated the epilogue for the place. `T` is `u8` or `i8`, whose lowest value is `low`.
pub(crate) fn requantize<const N: usize, T>(
    kernels: Kernels,
    e: &EpilogueI32<'_>,
    acc: &[i32],
    place: Place,
    out: &mut MatMut<'_, T>,
    quant: Quant,
    low: i32,
) -> bool {
    const { assert!(size_of::<T>() == 1 && N <= MAX_COLS) };
    let wide = kernels.isa().includes(Isa::Avx512);
    let fits = if wide { N == 2 * Avx512::LANES } else { N == 2 * Avx2::LANES };
    if !fits || !kernels.isa().includes(Isa::Avx2) || place.rows == 0 || e.offset.is_some() {
        return false;
    }
    let Some(bounds) = e.activation.bounds() else { return false };
    let first = place.n0 + place.col;
    let none = Dequant { scale: 1.0, zero_point: 0 };
    let (residual, input, product) = match e.residual {
        None => (None, none, None),
        Some(Residual::U8 { data, ld, scale, zero_point }) => {
            (Some((data, ld)), Dequant { scale, zero_point }, None)
        }
        Some(Residual::QuantizedSum { product, data, ld, input }) => (Some((data, ld)), input, Some(product)),
        Some(_) => return false,
    };
    let (residual, residual_ld) = match residual {
        None => (core::ptr::null(), 0),
        Some((data, ld)) => {
            let data = &data[place.row * ld + first..];
            assert!((place.rows - 1) * ld + place.cols <= data.len());
            (data.as_ptr(), ld)
        }
    };
    assert!(place.rows * N <= acc.len() && place.cols <= N);
    let through = product.unwrap_or(none);
    let grid = Quant::new(through.scale, through.zero_point);
    let (bottom, top) = byte_bounds((f32::NEG_INFINITY, f32::INFINITY), grid, 0);
    let columns = first..first + place.cols;
    let (out, out_ld) = out.window(place.row, place.rows, place.col, place.cols);
    let job = Job {
        acc: acc.as_ptr(),
        rows: place.rows,
        cols: place.cols,
        bias: e.bias.map_or(core::ptr::null(), |bias| bias[columns.clone()].as_ptr()),
        scale: e.scale[columns].as_ptr(),
        product: (Grid { inv_scale: grid.inv_scale, bottom, top }, through.scale),
        residual,
        residual_ld,
        input,
        store: Requant::new(bounds, Quant { zero_point: quant.zero_point - low, ..quant }),
        shift: low as u8,
        out: out.cast(),
        out_ld,
    };
    // SAFETY: the handle proves the instruction set, whose tiles are `N` columns wide; the accumulators,
    // the parameters, the residual and the window of the output were checked above.
    unsafe {
        match (wide, residual.is_null(), product.is_some()) {
            (true, true, _) => avx512::<false, false>(&job),
            (true, false, false) => avx512::<true, false>(&job),
            (true, false, true) => avx512::<true, true>(&job),
            (false, true, _) => avx2::<false, false>(&job),
            (false, false, false) => avx2::<true, false>(&job),
            (false, false, true) => avx2::<true, true>(&job),
        }
    }
    true
}

/// # Safety
/// The features must be there, and the job's pointers valid.
#[target_feature(enable = "avx2")]
unsafe fn avx2<const RESIDUAL: bool, const PRODUCT: bool>(job: &Job) {
    // SAFETY: the same contract.
    unsafe { run::<Avx2, RESIDUAL, PRODUCT>(job) }
}

/// # Safety
/// The features must be there, and the job's pointers valid.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn avx512<const RESIDUAL: bool, const PRODUCT: bool>(job: &Job) {
    // SAFETY: the same contract.
    unsafe { run::<Avx512, RESIDUAL, PRODUCT>(job) }
}

/// Two rows at a time, the last one twice where their number is odd.
///
/// # Safety
/// The features of `L` must be there, and the job's pointers valid.
#[inline(always)]
unsafe fn run<L: Lanes, const RESIDUAL: bool, const PRODUCT: bool>(job: &Job) {
    let (mut bias, mut scale) = (job.bias, job.scale);
    let (mut biases, mut scales) = ([0; MAX_COLS], [0.0; MAX_COLS]);
    // SAFETY: all rows and columns are the job's; the buffers hold two vectors.
    unsafe {
        if job.cols < 2 * L::LANES {
            core::ptr::copy_nonoverlapping(scale, scales.as_mut_ptr(), job.cols);
            scale = scales.as_ptr();
            if !bias.is_null() {
                core::ptr::copy_nonoverlapping(bias, biases.as_mut_ptr(), job.cols);
                bias = biases.as_ptr();
            }
        }
        let scale = [L::load_reals(scale), L::load_reals(scale.add(L::LANES))];
        let bias = match bias.is_null() {
            true => [L::splat_int(0); 2],
            false => [L::load_ints(bias), L::load_ints(bias.add(L::LANES))],
        };
        let mut row = 0;
        while row < job.rows {
            let next = (row + 1).min(job.rows - 1);
            let a = quantized::<L, RESIDUAL, PRODUCT>(job, row, bias, scale);
            let b = quantized::<L, RESIDUAL, PRODUCT>(job, next, bias, scale);
            let to = [job.out.add(row * job.out_ld), job.out.add(next * job.out_ld)];
            L::store_bytes(to, [a, b], &job.store, job.shift, job.cols);
            row += 2;
        }
    }
}

/// A row, rounded to integers that count from the zero point.
///
/// # Safety
/// The features of `L` must be there, and the row one of the job's.
#[inline(always)]
unsafe fn quantized<L: Lanes, const RESIDUAL: bool, const PRODUCT: bool>(
    job: &Job,
    row: usize,
    bias: [L::Ints; 2],
    scale: [L::Reals; 2],
) -> [L::Ints; 2] {
    // SAFETY: all columns are the job's; accumulators are whole vectors.
    unsafe {
        let acc = job.acc.add(row * 2 * L::LANES);
        let mut residual = bias;
        if RESIDUAL {
            residual = L::load_bytes(job.residual.add(row * job.residual_ld), job.cols);
        }
        let mut q = bias;
        for v in 0..2 {
            let acc = L::add_ints(L::load_ints(acc.add(v * L::LANES)), bias[v]);
            let mut y = L::mul(L::real(acc), scale[v]);
            if PRODUCT {
                let (grid, step) = job.product;
                y = L::mul(L::round(L::scale_and_clamp(y, grid)), L::splat(step));
            }
            if RESIDUAL {
                let r = L::add_ints(residual[v], L::splat_int(job.input.zero_point.wrapping_neg()));
                y = L::add(y, L::mul(L::real(r), L::splat(job.input.scale)));
            }
            q[v] = L::nearest(L::at_most(L::mul(y, L::splat(job.store.inv_scale)), job.store.top));
        }
        q
    }
}

/// Arithmetic on vectors.
///
/// # Safety
/// Every method needs the instruction set of its type; those that take pointers need
/// all lanes, or `n` bytes, behind them.
trait Lanes {
    const LANES: usize;
    type Ints: Copy;
    type Reals: Copy;
    unsafe fn load_ints(from: *const i32) -> Self::Ints;
    unsafe fn load_reals(from: *const f32) -> Self::Reals;
    /// The first `n` bytes of two vectors; anything behind.
    unsafe fn load_bytes(from: *const u8, n: usize) -> [Self::Ints; 2];
    /// Stores the first `n` numbers of each of two rows, from a zero point on, as bytes.
    unsafe fn store_bytes(to: [*mut u8; 2], x: [[Self::Ints; 2]; 2], q: &Requant, shift: u8, n: usize);
    unsafe fn splat_int(x: i32) -> Self::Ints;
    unsafe fn splat(x: f32) -> Self::Reals;
    unsafe fn add_ints(a: Self::Ints, b: Self::Ints) -> Self::Ints;
    unsafe fn real(x: Self::Ints) -> Self::Reals;
    /// The nearest integers, ties to even; the least one for NaN.
    unsafe fn nearest(x: Self::Reals) -> Self::Ints;
    unsafe fn round(x: Self::Reals) -> Self::Reals;
    unsafe fn add(a: Self::Reals, b: Self::Reals) -> Self::Reals;
    unsafe fn mul(a: Self::Reals, b: Self::Reals) -> Self::Reals;
    /// `x`, at most `top`; NaN stays.
    unsafe fn at_most(x: Self::Reals, top: f32) -> Self::Reals;
    /// `x * inv_scale`, at least `bottom`, at most `top`; `bottom` for NaN.
    unsafe fn scale_and_clamp(x: Self::Reals, grid: Grid) -> Self::Reals;
}

/// To the nearest integer, ties to even, without exceptions.
const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

macro_rules! lanes {
    ($name:ident $lanes:literal $ints:ident $reals:ident
     $load:ident $load_ps:ident $splat:ident $splat_ps:ident $add:ident $to_ps:ident $to_i32:ident
     $round:ident $add_ps:ident $mul:ident $min:ident $max:ident
     $packs32:ident $adds16:ident $set16:ident $packus:ident $max8:ident $set8:ident $xor:ident
     load_bytes: |$from:ident, $n:ident| $load_bytes:expr,
     store: |$to:ident, $bytes:ident, $m:ident| $store:expr) => {
        struct $name;

        impl Lanes for $name {
            const LANES: usize = $lanes;
            type Ints = $ints;
            type Reals = $reals;

            #[inline(always)]
            unsafe fn load_ints(from: *const i32) -> $ints {
                // SAFETY: by the contract.
                unsafe { $load(from.cast()) }
            }

            #[inline(always)]
            unsafe fn load_reals(from: *const f32) -> $reals {
                // SAFETY: by the contract.
                unsafe { $load_ps(from) }
            }

            #[inline(always)]
            unsafe fn load_bytes($from: *const u8, $n: usize) -> [$ints; 2] {
                // SAFETY: by the contract, `n` bytes are readable.
                unsafe { $load_bytes }
            }

            #[inline(always)]
            unsafe fn store_bytes($to: [*mut u8; 2], x: [[$ints; 2]; 2], q: &Requant, shift: u8, $m: usize) {
                // SAFETY: by the contract, `n` bytes are writable.
                unsafe {
                    let zero_point = $set16(q.zero_point);
                    let a = $adds16($packs32(x[0][0], x[0][1]), zero_point);
                    let b = $adds16($packs32(x[1][0], x[1][1]), zero_point);
                    let bytes = $max8($packus(a, b), $set8(q.low as i8));
                    let $bytes = $xor(bytes, $set8(shift as i8));
                    $store
                }
            }

            #[inline(always)]
            unsafe fn splat_int(x: i32) -> $ints {
                // SAFETY: by the contract.
                unsafe { $splat(x) }
            }

            #[inline(always)]
            unsafe fn splat(x: f32) -> $reals {
                // SAFETY: by the contract.
                unsafe { $splat_ps(x) }
            }

            #[inline(always)]
            unsafe fn add_ints(a: $ints, b: $ints) -> $ints {
                // SAFETY: by the contract.
                unsafe { $add(a, b) }
            }

            #[inline(always)]
            unsafe fn real(x: $ints) -> $reals {
                // SAFETY: by the contract.
                unsafe { $to_ps(x) }
            }

            #[inline(always)]
            unsafe fn nearest(x: $reals) -> $ints {
                // SAFETY: by the contract. The rounding mode of a Rust program is to nearest, ties to even.
                unsafe { $to_i32(x) }
            }

            #[inline(always)]
            unsafe fn round(x: $reals) -> $reals {
                // SAFETY: by the contract.
                unsafe { $round::<NEAREST>(x) }
            }

            #[inline(always)]
            unsafe fn add(a: $reals, b: $reals) -> $reals {
                // SAFETY: by the contract.
                unsafe { $add_ps(a, b) }
            }

            #[inline(always)]
            unsafe fn mul(a: $reals, b: $reals) -> $reals {
                // SAFETY: by the contract.
                unsafe { $mul(a, b) }
            }

            #[inline(always)]
            unsafe fn at_most(x: $reals, top: f32) -> $reals {
                // SAFETY: by the contract. NaN gives the second operand.
                unsafe { $min($splat_ps(top), x) }
            }

            #[inline(always)]
            unsafe fn scale_and_clamp(x: $reals, grid: Grid) -> $reals {
                // SAFETY: by the contract. NaN gives the second operand.
                unsafe {
                    let x = $mul(x, $splat_ps(grid.inv_scale));
                    $min($max(x, $splat_ps(grid.bottom)), $splat_ps(grid.top))
                }
            }
        }
    };
}

lanes! { Avx512 16 __m512i __m512
    _mm512_loadu_si512 _mm512_loadu_ps _mm512_set1_epi32 _mm512_set1_ps _mm512_add_epi32 _mm512_cvtepi32_ps
    _mm512_cvtps_epi32 _mm512_roundscale_ps _mm512_add_ps _mm512_mul_ps _mm512_min_ps _mm512_max_ps
    _mm512_packs_epi32 _mm512_adds_epi16 _mm512_set1_epi16 _mm512_packus_epi16 _mm512_max_epu8
    _mm512_set1_epi8 _mm512_xor_si512
    load_bytes: |from, n| {
        let bytes = match n {
            MAX_COLS => _mm256_loadu_si256(from.cast()),
            _ => _mm256_maskz_loadu_epi8((1 << n) - 1, from.cast()),
        };
        [_mm512_cvtepu8_epi32(_mm256_castsi256_si128(bytes)), _mm512_cvtepu8_epi32(_mm256_extracti128_si256::<1>(bytes))]
    },
    store: |to, bytes, n| {
        // Each four bytes are of one vector's quarter: put the quarters of a row in order.
        let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        let bytes = _mm512_permutexvar_epi32(order, bytes);
        let rows = [_mm512_castsi512_si256(bytes), _mm512_extracti64x4_epi64::<1>(bytes)];
        for (to, row) in to.into_iter().zip(rows) {
            match n {
                MAX_COLS => _mm256_storeu_si256(to.cast(), row),
                _ => _mm256_mask_storeu_epi8(to.cast(), (1 << n) - 1, row),
            }
        }
    }
}

lanes! { Avx2 8 __m256i __m256
    _mm256_loadu_si256 _mm256_loadu_ps _mm256_set1_epi32 _mm256_set1_ps _mm256_add_epi32 _mm256_cvtepi32_ps
    _mm256_cvtps_epi32 _mm256_round_ps _mm256_add_ps _mm256_mul_ps _mm256_min_ps _mm256_max_ps
    _mm256_packs_epi32 _mm256_adds_epi16 _mm256_set1_epi16 _mm256_packus_epi16 _mm256_max_epu8
    _mm256_set1_epi8 _mm256_xor_si256
    load_bytes: |from, n| {
        let bytes = if n == 16 {
            _mm_loadu_si128(from.cast())
        } else {
            let mut buffer = [0u8; 16];
            core::ptr::copy_nonoverlapping(from, buffer.as_mut_ptr(), n);
            _mm_loadu_si128(buffer.as_ptr().cast())
        };
        [_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128::<8>(bytes))]
    },
    store: |to, bytes, n| {
        // Each four bytes are of one vector's half: put the halves of a row in order.
        let bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        let rows = [_mm256_castsi256_si128(bytes), _mm256_extracti128_si256::<1>(bytes)];
        for (to, row) in to.into_iter().zip(rows) {
            if n == 16 {
                _mm_storeu_si128(to.cast(), row);
            } else {
                let mut buffer = [0u8; 16];
                _mm_storeu_si128(buffer.as_mut_ptr().cast(), row);
                core::ptr::copy_nonoverlapping(buffer.as_ptr(), to, n);
            }
        }
    }
}
