//! Integer accumulators to bytes in one pass through registers: the finish of most quantized layers.
//!
//! The steps and their roundings are those of [`crate::epilogue`], which finishes everything else.

use core::arch::x86_64::*;

use crate::{
    Isa, Kernels,
    epilogue::{EpilogueI32, Place, Residual, byte_bounds},
    operands::{Dequant, MatMut, Quant},
};

/// Accumulators that an instance works on at a time.
const LANES: usize = 16;

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
    /// `rows` rows, `acc_ld` apart.
    acc: *const i32,
    acc_ld: usize,
    rows: usize,
    cols: usize,
    /// `cols` rounded up to whole lanes are readable.
    bias: *const i32,
    scale: *const f32,
    /// What the product passes through before the residual is added, and the step of that.
    product: (Grid, f32),
    residual: *const u8,
    residual_ld: usize,
    input: Dequant,
    store: Grid,
    zero_point: i32,
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
    if !N.is_multiple_of(LANES) || !(wide || kernels.isa().includes(Isa::Avx2)) {
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
            assert!(place.rows == 0 || (place.rows - 1) * ld + place.cols <= data.len());
            (data.as_ptr(), ld)
        }
    };
    assert!(place.rows * N <= acc.len() && place.cols <= N);
    let grid = |quant: Quant, bounds, low| {
        let (bottom, top) = byte_bounds(bounds, quant, low);
        Grid { inv_scale: quant.inv_scale, bottom, top }
    };
    let through = product.unwrap_or(none);
    let whole = (f32::NEG_INFINITY, f32::INFINITY);

    // Of the last columns there may be less than whole lanes.
    let lanes = place.cols.next_multiple_of(LANES);
    let (mut biases, mut scales) = ([0; MAX_COLS], [0.0; MAX_COLS]);
    let bias = match e.bias {
        None => biases.as_ptr(),
        Some(bias) if bias.len() - first >= lanes => bias[first..].as_ptr(),
        Some(bias) => {
            biases[..place.cols].copy_from_slice(&bias[first..first + place.cols]);
            biases.as_ptr()
        }
    };
    let scale = if e.scale.len() - first >= lanes {
        e.scale[first..].as_ptr()
    } else {
        scales[..place.cols].copy_from_slice(&e.scale[first..first + place.cols]);
        scales.as_ptr()
    };
    let (out, out_ld) = out.window(place.row, place.rows, place.col, place.cols);
    let job = Job {
        acc: acc.as_ptr(),
        acc_ld: N,
        rows: place.rows,
        cols: place.cols,
        bias,
        scale,
        product: (grid(Quant::new(through.scale, through.zero_point), whole, 0), through.scale),
        residual,
        residual_ld,
        input,
        store: grid(quant, bounds, low),
        zero_point: quant.zero_point,
        out: out.cast(),
        out_ld,
    };
    // SAFETY: the handle proves the instruction set; the accumulators, the residual and the window
    // of the output were checked above, and the parameters reach to whole lanes.
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

/// # Safety
/// The features of `L` must be there, and the job's pointers valid.
#[inline(always)]
unsafe fn run<L: Lanes, const RESIDUAL: bool, const PRODUCT: bool>(job: &Job) {
    // SAFETY: all columns from `col` to `col + n` are within the job's.
    unsafe {
        for col in (0..job.cols).step_by(LANES) {
            let n = LANES.min(job.cols - col);
            let (bias, scale) = (L::load_ints(job.bias.add(col)), L::load_reals(job.scale.add(col)));
            for row in 0..job.rows {
                let acc = L::load_ints(job.acc.add(row * job.acc_ld + col));
                let mut y = L::mul(L::real(L::add_ints(acc, bias)), scale);
                if PRODUCT {
                    let (grid, step) = job.product;
                    y = L::mul(L::round(L::scale_and_clamp(y, grid)), L::splat(step));
                }
                if RESIDUAL {
                    let r = L::load_bytes(job.residual.add(row * job.residual_ld + col), n);
                    let r = L::real(L::add_ints(r, L::splat_int(job.input.zero_point.wrapping_neg())));
                    y = L::add(y, L::mul(r, L::splat(job.input.scale)));
                }
                let q = L::nearest(L::scale_and_clamp(y, job.store));
                let q = L::add_ints(q, L::splat_int(job.zero_point));
                L::store_bytes(job.out.add(row * job.out_ld + col), q, n);
            }
        }
    }
}

/// Arithmetic on [`LANES`] numbers.
///
/// # Safety
/// Every method needs the instruction set of its type; those that take pointers need
/// all lanes, or `n` bytes, behind them.
trait Lanes {
    type Ints: Copy;
    type Reals: Copy;
    unsafe fn load_ints(from: *const i32) -> Self::Ints;
    unsafe fn load_reals(from: *const f32) -> Self::Reals;
    unsafe fn load_bytes(from: *const u8, n: usize) -> Self::Ints;
    /// Stores the low bytes of the first `n` lanes.
    unsafe fn store_bytes(to: *mut u8, x: Self::Ints, n: usize);
    unsafe fn splat_int(x: i32) -> Self::Ints;
    unsafe fn splat(x: f32) -> Self::Reals;
    unsafe fn add_ints(a: Self::Ints, b: Self::Ints) -> Self::Ints;
    unsafe fn real(x: Self::Ints) -> Self::Reals;
    unsafe fn nearest(x: Self::Reals) -> Self::Ints;
    unsafe fn round(x: Self::Reals) -> Self::Reals;
    unsafe fn add(a: Self::Reals, b: Self::Reals) -> Self::Reals;
    unsafe fn mul(a: Self::Reals, b: Self::Reals) -> Self::Reals;
    /// `x * inv_scale`, at least `bottom`, at most `top`; `bottom` for NaN.
    unsafe fn scale_and_clamp(x: Self::Reals, grid: Grid) -> Self::Reals;
}

/// To the nearest integer, ties to even, without exceptions.
const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

struct Avx512;

impl Lanes for Avx512 {
    type Ints = __m512i;
    type Reals = __m512;

    #[inline(always)]
    unsafe fn load_ints(from: *const i32) -> __m512i {
        // SAFETY: by the contract.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn load_reals(from: *const f32) -> __m512 {
        // SAFETY: by the contract.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn load_bytes(from: *const u8, n: usize) -> __m512i {
        // SAFETY: by the contract; masked bytes are not read.
        unsafe {
            let bytes = match n {
                LANES => _mm_loadu_si128(from.cast()),
                _ => _mm_maskz_loadu_epi8((1 << n) - 1, from.cast()),
            };
            _mm512_cvtepu8_epi32(bytes)
        }
    }

    #[inline(always)]
    unsafe fn store_bytes(to: *mut u8, x: __m512i, n: usize) {
        // SAFETY: by the contract; masked bytes are not written.
        unsafe {
            let bytes = _mm512_cvtepi32_epi8(x);
            match n {
                LANES => _mm_storeu_si128(to.cast(), bytes),
                _ => _mm_mask_storeu_epi8(to.cast(), (1 << n) - 1, bytes),
            }
        }
    }

    #[inline(always)]
    unsafe fn splat_int(x: i32) -> __m512i {
        // SAFETY: by the contract.
        unsafe { _mm512_set1_epi32(x) }
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        // SAFETY: by the contract.
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn add_ints(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: by the contract.
        unsafe { _mm512_add_epi32(a, b) }
    }

    #[inline(always)]
    unsafe fn real(x: __m512i) -> __m512 {
        // SAFETY: by the contract.
        unsafe { _mm512_cvtepi32_ps(x) }
    }

    #[inline(always)]
    unsafe fn nearest(x: __m512) -> __m512i {
        // SAFETY: by the contract.
        unsafe { _mm512_cvt_roundps_epi32::<NEAREST>(x) }
    }

    #[inline(always)]
    unsafe fn round(x: __m512) -> __m512 {
        // SAFETY: by the contract.
        unsafe { _mm512_roundscale_ps::<NEAREST>(x) }
    }

    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        // SAFETY: by the contract.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        // SAFETY: by the contract.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn scale_and_clamp(x: __m512, grid: Grid) -> __m512 {
        // SAFETY: by the contract. NaN gives the second operand.
        unsafe {
            let x = _mm512_mul_ps(x, _mm512_set1_ps(grid.inv_scale));
            _mm512_min_ps(_mm512_max_ps(x, _mm512_set1_ps(grid.bottom)), _mm512_set1_ps(grid.top))
        }
    }
}

/// Two vectors of eight lanes.
struct Avx2;

impl Lanes for Avx2 {
    type Ints = [__m256i; 2];
    type Reals = [__m256; 2];

    #[inline(always)]
    unsafe fn load_ints(from: *const i32) -> [__m256i; 2] {
        // SAFETY: by the contract.
        unsafe { [_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(8).cast())] }
    }

    #[inline(always)]
    unsafe fn load_reals(from: *const f32) -> [__m256; 2] {
        // SAFETY: by the contract.
        unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))] }
    }

    #[inline(always)]
    unsafe fn load_bytes(from: *const u8, n: usize) -> [__m256i; 2] {
        // SAFETY: by the contract, `n` bytes are readable; the buffer holds all lanes.
        unsafe {
            let bytes = if n == LANES {
                _mm_loadu_si128(from.cast())
            } else {
                let mut buffer = [0u8; LANES];
                core::ptr::copy_nonoverlapping(from, buffer.as_mut_ptr(), n);
                _mm_loadu_si128(buffer.as_ptr().cast())
            };
            [_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128::<8>(bytes))]
        }
    }

    #[inline(always)]
    unsafe fn store_bytes(to: *mut u8, x: [__m256i; 2], n: usize) {
        // SAFETY: by the contract, `n` bytes are writable; the buffer holds all lanes.
        unsafe {
            // Low bytes only, so that neither step of packing saturates.
            let low = _mm256_set1_epi32(255);
            let words = _mm256_packus_epi32(_mm256_and_si256(x[0], low), _mm256_and_si256(x[1], low));
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
            let bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            if n == LANES {
                _mm_storeu_si128(to.cast(), bytes);
            } else {
                let mut buffer = [0u8; LANES];
                _mm_storeu_si128(buffer.as_mut_ptr().cast(), bytes);
                core::ptr::copy_nonoverlapping(buffer.as_ptr(), to, n);
            }
        }
    }

    #[inline(always)]
    unsafe fn splat_int(x: i32) -> [__m256i; 2] {
        // SAFETY: by the contract.
        unsafe { [_mm256_set1_epi32(x); 2] }
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> [__m256; 2] {
        // SAFETY: by the contract.
        unsafe { [_mm256_set1_ps(x); 2] }
    }

    #[inline(always)]
    unsafe fn add_ints(a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
        // SAFETY: by the contract.
        unsafe { [_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn real(x: [__m256i; 2]) -> [__m256; 2] {
        // SAFETY: by the contract.
        unsafe { [_mm256_cvtepi32_ps(x[0]), _mm256_cvtepi32_ps(x[1])] }
    }

    #[inline(always)]
    unsafe fn nearest(x: [__m256; 2]) -> [__m256i; 2] {
        // SAFETY: by the contract. The rounding mode of a Rust program is to nearest, ties to even.
        unsafe { [_mm256_cvtps_epi32(x[0]), _mm256_cvtps_epi32(x[1])] }
    }

    #[inline(always)]
    unsafe fn round(x: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: by the contract.
        unsafe { [_mm256_round_ps::<NEAREST>(x[0]), _mm256_round_ps::<NEAREST>(x[1])] }
    }

    #[inline(always)]
    unsafe fn add(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: by the contract.
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn mul(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: by the contract.
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn scale_and_clamp(x: [__m256; 2], grid: Grid) -> [__m256; 2] {
        // SAFETY: by the contract. NaN gives the second operand.
        unsafe {
            let (bottom, top) = (_mm256_set1_ps(grid.bottom), _mm256_set1_ps(grid.top));
            let x = Self::mul(x, Self::splat(grid.inv_scale));
            [_mm256_min_ps(_mm256_max_ps(x[0], bottom), top), _mm256_min_ps(_mm256_max_ps(x[1], bottom), top)]
        }
    }
}
