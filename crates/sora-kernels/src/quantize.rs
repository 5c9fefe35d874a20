//! Between reals and bytes, and arithmetic on quantized bytes.

use crate::{
    Kernels,
    elementwise::{Binary, Piece, Rhs, broadcast},
    epilogue::{Activation, activate_and_quantize},
    isa::per_isa,
    lanes::{fold, greater, lesser},
    math,
    operands::{Dequant, Quant},
};

/// Elements that pass through the first-level cache at a time.
const BLOCK: usize = 1024;

/// `round_ties_even(x / scale) + zero_point`, saturated to `low..=low + 255`, in blocks.
#[inline(always)]
fn divide_and_quantize<B>(
    x: &[f32],
    scale: f32,
    zero_point: i32,
    low: i32,
    out: &mut [B],
    convert: impl Fn(u8) -> B,
) {
    assert_eq!(x.len(), out.len(), "input and output differ in length");
    let quant = Quant { inv_scale: 1.0, zero_point };
    let mut quotients = [0.0f32; BLOCK];
    let mut bytes = [0u8; BLOCK];
    for (x, out) in x.chunks(BLOCK).zip(out.chunks_mut(BLOCK)) {
        let (y, q) = (&mut quotients[..x.len()], &mut bytes[..x.len()]);
        for (y, &x) in y.iter_mut().zip(x) {
            *y = x / scale;
        }
        activate_and_quantize(y, Activation::None, quant, low, q);
        for (out, &q) in out.iter_mut().zip(&*q) {
            *out = convert(q);
        }
    }
}

per_isa! {
    /// `round_ties_even(x / scale) + zero_point`, saturated; NaN becomes 0. ONNX QuantizeLinear.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn quantize_u8(x: &[f32], scale: f32, zero_point: i32, out: &mut [u8]) {
        divide_and_quantize(x, scale, zero_point, 0, out, |q| q);
    }
}

per_isa! {
    /// `round_ties_even(x / scale) + zero_point`, saturated; NaN becomes −128. ONNX QuantizeLinear.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn quantize_i8(x: &[f32], scale: f32, zero_point: i32, out: &mut [i8]) {
        divide_and_quantize(x, scale, zero_point, -128, out, |q| q as i8);
    }
}

/// Lowest and highest of the values and 0, NaN left out.
#[inline(always)]
fn range_of(x: &[f32]) -> [f32; 2] {
    [
        fold(x, 0.0, |x| x, |a, b| if b < a { b } else { a }),
        fold(x, 0.0, |x| x, |a, b| if b > a { b } else { a }),
    ]
}

per_isa! {
    /// Lowest and highest of the values and 0.
    pub fn range(x: &[f32]) -> [f32; 2] {
        range_of(x)
    }
}

/// Scale and zero point of unsigned bytes over a range that holds 0. ONNX DynamicQuantizeLinear.
#[inline(always)]
pub fn dynamic_scale([low, high]: [f32; 2]) -> Dequant {
    let scale = (high - low) / 255.0;
    let scale = if scale == 0.0 { 1.0 } else { scale };
    let zero_point = math::round_ties_even(math::clamp(-low / scale, 0.0, 255.0));
    // The cast makes 0 of NaN.
    Dequant { scale, zero_point: zero_point as i32 }
}

per_isa! {
    /// Quantizes each row of `cols` values over its own range ([`dynamic_scale`]), as [`quantize_u8`] does.
    ///
    /// # Panics
    /// When `x` and `out` differ in length, or are not as many rows as there are scales and zero points.
    pub fn dynamic_rows_u8(x: &[f32], cols: usize, out: &mut [u8], scales: &mut [f32], zero_points: &mut [u8]) {
        let rows = scales.len();
        assert!(
            x.len() == rows * cols && out.len() == x.len() && zero_points.len() == rows,
            "{} values in {rows} rows of {cols} to {} bytes and {} zero points",
            x.len(),
            out.len(),
            zero_points.len()
        );
        for r in 0..rows {
            let row = r * cols..(r + 1) * cols;
            let Dequant { scale, zero_point } = dynamic_scale(range_of(&x[row.clone()]));
            (scales[r], zero_points[r]) = (scale, zero_point as u8);
            divide_and_quantize(&x[row.clone()], scale, zero_point, 0, &mut out[row], |q| q);
        }
    }
}

per_isa! {
    /// The reals of exact sums of products: `f32(sums[n] − zero_point · col_sums[n]) · (scale · scales[n])`, with
    /// scale and zero point of the left operand, and column sums and scales of the right one.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn dequantize_sums(sums: &[i32], left: Dequant, col_sums: &[i32], scales: &[f32], out: &mut [f32]) {
        let n = out.len();
        assert!(sums.len() == n && col_sums.len() == n && scales.len() == n, "vectors of {n} elements");
        for j in 0..n {
            let sum = sums[j].wrapping_sub(col_sums[j].wrapping_mul(left.zero_point));
            out[j] = sum as f32 * (left.scale * scales[j]);
        }
    }
}

#[inline(always)]
fn dequantize<T: Copy + Into<i32>>(x: &[T], input: Dequant, out: &mut [f32]) {
    for (y, &q) in out.iter_mut().zip(x) {
        *y = (q.into() - input.zero_point) as f32 * input.scale;
    }
}

per_isa! {
    /// `(q - zero_point) * scale`. ONNX DequantizeLinear.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn dequantize_u8(x: &[u8], input: Dequant, out: &mut [f32]) {
        assert_eq!(x.len(), out.len(), "input and output differ in length");
        dequantize(x, input, out);
    }
}

per_isa! {
    /// `(q - zero_point) * scale`. ONNX DequantizeLinear.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn dequantize_i8(x: &[i8], input: Dequant, out: &mut [f32]) {
        assert_eq!(x.len(), out.len(), "input and output differ in length");
        dequantize(x, input, out);
    }
}

per_isa! {
    /// `q * scale` of each row of a matrix, whose columns have scales of their own. ONNX DequantizeLinear along the last axis.
    ///
    /// # Panics
    /// When the lengths of `x` and `out` differ, or `scales` is empty.
    pub fn dequantize_columns_i8(x: &[i8], scales: &[f32], out: &mut [f32]) {
        assert_eq!(x.len(), out.len(), "input and output differ in length");
        for (x, out) in x.chunks(scales.len()).zip(out.chunks_mut(scales.len())) {
            for ((out, &q), &scale) in out.iter_mut().zip(x).zip(scales) {
                *out = f32::from(q) * scale;
            }
        }
    }
}

/// `out[i] = table[x[i]]`: any function of one quantized byte.
///
/// # Panics
/// When the lengths differ.
pub fn lut_u8(kernels: Kernels, x: &[u8], table: &[u8; 256], out: &mut [u8]) {
    assert_eq!(x.len(), out.len(), "input and output differ in length");
    #[cfg(all(feature = "std", target_arch = "x86_64"))]
    if permutes_bytes(kernels) {
        // SAFETY: the instructions run here; both slices have this length.
        return unsafe { permute_bytes(x.as_ptr(), table, out.as_mut_ptr(), x.len()) };
    }
    let _ = kernels;
    for (y, &q) in out.iter_mut().zip(x) {
        *y = table[usize::from(q)];
    }
}

/// `x[i] = table[x[i]]`.
pub fn lut_u8_inplace(kernels: Kernels, x: &mut [u8], table: &[u8; 256]) {
    #[cfg(all(feature = "std", target_arch = "x86_64"))]
    if permutes_bytes(kernels) {
        let at = x.as_mut_ptr();
        // SAFETY: the instructions run here; the slice is read and written through one pointer.
        return unsafe { permute_bytes(at, table, at, x.len()) };
    }
    let _ = kernels;
    for q in x {
        *q = table[usize::from(*q)];
    }
}

/// Whether a handle may look bytes up in registers. Not a level of its own: results are the same.
#[cfg(all(feature = "std", target_arch = "x86_64"))]
fn permutes_bytes(kernels: Kernels) -> bool {
    kernels.isa().includes(crate::Isa::Avx512) && std::is_x86_feature_detected!("avx512vbmi")
}

/// `to[i] = table[from[i]]`, 64 at a time: two look-ups in 128 entries, of which the upper bit chooses.
///
/// # Safety
/// `len` bytes must be readable and writable; the pointers may be equal.
#[cfg(all(feature = "std", target_arch = "x86_64"))]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
unsafe fn permute_bytes(from: *const u8, table: &[u8; 256], to: *mut u8, len: usize) {
    use core::arch::x86_64::*;
    // SAFETY: the table has four quarters of 64 bytes.
    let t: [__m512i; 4] =
        core::array::from_fn(|i| unsafe { _mm512_loadu_si512(table[64 * i..].as_ptr().cast()) });
    let look_up = |q: __m512i| {
        let low = _mm512_permutex2var_epi8(t[0], q, t[1]);
        let high = _mm512_permutex2var_epi8(t[2], q, t[3]);
        _mm512_mask_blend_epi8(_mm512_movepi8_mask(q), low, high)
    };
    let whole = len - len % 64;
    // SAFETY: within `len` bytes; the mask leaves out what lies behind them.
    unsafe {
        for i in (0..whole).step_by(64) {
            let y = look_up(_mm512_loadu_si512(from.add(i).cast()));
            _mm512_storeu_si512(to.add(i).cast(), y);
        }
        let rest = (1u64 << (len - whole)) - 1;
        let y = look_up(_mm512_maskz_loadu_epi8(rest, from.add(whole).cast()));
        _mm512_mask_storeu_epi8(to.add(whole).cast(), rest, y);
    }
}

per_isa! {
    /// Signed bytes as the unsigned bytes of a zero point 128 higher.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn i8_to_u8(x: &[i8], out: &mut [u8]) {
        assert_eq!(x.len(), out.len(), "input and output differ in length");
        for (y, &q) in out.iter_mut().zip(x) {
            *y = q as u8 ^ 128;
        }
    }
}

per_isa! {
    /// Unsigned bytes as the signed bytes of a zero point 128 lower.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn u8_to_i8(x: &[u8], out: &mut [i8]) {
        assert_eq!(x.len(), out.len(), "input and output differ in length");
        for (y, &q) in out.iter_mut().zip(x) {
            *y = (q ^ 128) as i8;
        }
    }
}

/// The right operand of [`binary_u8`].
pub type RhsU8<'a> = Rhs<'a, u8>;

#[inline(always)]
fn operate(op: Binary, a: f32, b: f32) -> f32 {
    match op {
        Binary::Add => a + b,
        Binary::Sub => a - b,
        Binary::RSub => b - a,
        Binary::Mul => a * b,
        Binary::Div => a / b,
        Binary::RDiv => b / a,
        Binary::Min => lesser(a, b),
        Binary::Max => greater(a, b),
        Binary::Pow => math::powf(a, b),
        Binary::RPow => math::powf(b, a),
    }
}

/// `a[i] = quantize(activation(f(real(a[i]), real(b[i]))))`, in blocks that pass through the
/// first-level cache.
#[inline(always)]
fn binary_blocks(
    a: &mut [u8],
    b: RhsU8<'_>,
    [da, db]: [Dequant; 2],
    activation: Activation,
    quant: Quant,
    f: impl Fn(f32, f32) -> f32,
) {
    let mut lhs = [0.0f32; BLOCK];
    let mut rhs = [0.0f32; BLOCK];
    if let Rhs::Row(b) = b
        && (1..=BLOCK / 2).contains(&b.len())
    {
        // A short row, repeated and dequantized once.
        Rhs::Row(b).check(a.len());
        let block = BLOCK - BLOCK % b.len();
        for y in rhs[..block].chunks_exact_mut(b.len()) {
            dequantize(b, db, y);
        }
        for a in a.chunks_mut(block) {
            let x = &mut lhs[..a.len()];
            dequantize(a, da, x);
            for (x, y) in x.iter_mut().zip(&rhs) {
                *x = f(*x, *y);
            }
            activate_and_quantize(x, activation, quant, 0, a);
        }
        return;
    }
    for (a, b) in broadcast(a, b) {
        for start in (0..a.len()).step_by(BLOCK) {
            let len = BLOCK.min(a.len() - start);
            let a = &mut a[start..start + len];
            let (x, y) = (&mut lhs[..len], &mut rhs[..len]);
            dequantize(a, da, x);
            match b {
                Piece::Each(b) => dequantize(&b[start..start + len], db, y),
                Piece::All(b) => y.fill((i32::from(b) - db.zero_point) as f32 * db.scale),
            }
            for (x, y) in x.iter_mut().zip(&*y) {
                *x = f(*x, *y);
            }
            activate_and_quantize(x, activation, quant, 0, a);
        }
    }
}

per_isa! {
    fn binary_u8_inplace(op: Binary, a: &mut [u8], d: [Dequant; 2], b: RhsU8<'_>, activation: Activation, quant: Quant) {
        // The common operators get loops of their own.
        match op {
            Binary::Add => binary_blocks(a, b, d, activation, quant, |a, b| a + b),
            Binary::Mul => binary_blocks(a, b, d, activation, quant, |a, b| a * b),
            _ => binary_blocks(a, b, d, activation, quant, |a, b| operate(op, a, b)),
        }
    }
}

/// `out[i] = quantize(activation(op(real(a[i]), real(b[i]))))`, `b` broadcast: both operands become
/// reals, the result is rounded once per step, in the same order on every instruction set.
///
/// # Panics
/// When the lengths of `a` and `out` differ, or `b` does not broadcast to them.
#[allow(clippy::too_many_arguments)]
pub fn binary_u8(
    kernels: Kernels,
    op: Binary,
    a: &[u8],
    da: Dequant,
    b: RhsU8<'_>,
    db: Dequant,
    activation: Activation,
    out: &mut [u8],
    quant: Quant,
) {
    assert_eq!(a.len(), out.len(), "input and output differ in length");
    out.copy_from_slice(a);
    binary_u8_inplace(kernels, op, out, [da, db], b, activation, quant);
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{vec, vec::Vec};
    use fastrand::Rng;

    #[test]
    fn quantize_follows_the_definition_on_every_isa() {
        let mut rng = Rng::with_seed(11);
        for len in [0, 1, 31, 32, 33, 500] {
            let scale = 0.01 + rng.f32();
            let mut x: Vec<f32> = (0..len).map(|_| (rng.f32() - 0.5) * 400.0 * scale).collect();
            for (i, v) in x.iter_mut().enumerate().skip(1).step_by(7) {
                *v = (i as f32 - 100.5) * scale;
            }
            for k in Kernels::all_available() {
                let (mut u, mut i) = (vec![0u8; len], vec![0i8; len]);
                quantize_u8(k, &x, scale, 120, &mut u);
                quantize_i8(k, &x, scale, -5, &mut i);
                for j in 0..len {
                    let rounded = (x[j] / scale).round_ties_even();
                    assert_eq!(f32::from(u[j]), (rounded + 120.0).clamp(0.0, 255.0));
                    assert_eq!(f32::from(i[j]), (rounded - 5.0).clamp(-128.0, 127.0));
                }
                let (mut yu, mut yi) = (vec![0.0; len], vec![0.0; len]);
                dequantize_u8(k, &u, Dequant { scale, zero_point: 120 }, &mut yu);
                dequantize_i8(k, &i, Dequant { scale, zero_point: -5 }, &mut yi);
                for j in 0..len {
                    assert_eq!(yu[j], (f32::from(u[j]) - 120.0) * scale);
                    assert_eq!(yi[j], (f32::from(i[j]) + 5.0) * scale);
                }
                let scales: Vec<f32> = (0..len.div_ceil(3).max(1)).map(|j| scale + j as f32).collect();
                dequantize_columns_i8(k, &i, &scales, &mut yi);
                for j in 0..len {
                    assert_eq!(yi[j], f32::from(i[j]) * scales[j % scales.len()]);
                }
                let (mut there, mut back) = (vec![0u8; len], vec![0i8; len]);
                i8_to_u8(k, &i, &mut there);
                u8_to_i8(k, &there, &mut back);
                assert_eq!(back, i);
                assert!(i.iter().zip(&there).all(|(&i, &u)| i32::from(i) + 128 == i32::from(u)));
            }
        }
    }

    #[test]
    fn rows_are_quantized_over_their_own_range_on_every_isa() {
        let mut rng = Rng::with_seed(21);
        for cols in [1, 5, 31, 32, 33, 100, 1500] {
            let rows = 4;
            let mut x: Vec<f32> =
                (0..rows * cols).map(|i| (rng.f32() - 0.3) * [1.0, 40.0][i / cols % 2]).collect();
            x[2 * cols..3 * cols].fill(0.0);
            for k in Kernels::all_available() {
                let (mut q, mut scales, mut zeros) = (vec![7u8; x.len()], vec![0.0; rows], vec![0u8; rows]);
                dynamic_rows_u8(k, &x, cols, &mut q, &mut scales, &mut zeros);
                for r in 0..rows {
                    let row = &x[r * cols..][..cols];
                    let low = row.iter().fold(0.0f32, |m, &v| m.min(v));
                    let high = row.iter().fold(0.0f32, |m, &v| m.max(v));
                    assert_eq!(range(k, row), [low, high]);
                    let scale = if low == high { 1.0 } else { (high - low) / 255.0 };
                    let zero = (-low / scale).round_ties_even();
                    assert_eq!((scales[r], f32::from(zeros[r])), (scale, zero));
                    for (&q, &v) in q[r * cols..].iter().zip(row) {
                        let want = ((v / scale).round_ties_even() + zero).clamp(0.0, 255.0);
                        assert_eq!(f32::from(q), want);
                    }
                }
            }
        }
        // What is no number does not spoil the range.
        assert_eq!(range(Kernels::best(), &[f32::NAN, 2.0, f32::NAN, -1.0]), [-1.0, 2.0]);
    }

    #[test]
    fn sums_become_reals() {
        let mut rng = Rng::with_seed(22);
        for n in [1, 33, 100] {
            let sums: Vec<i32> = (0..n).map(|_| rng.i32(-9_000_000..9_000_000)).collect();
            let cols: Vec<i32> = (0..n).map(|_| rng.i32(-40_000..40_000)).collect();
            let scales: Vec<f32> = (0..n).map(|_| rng.f32() * 0.01).collect();
            let left = Dequant { scale: 0.02, zero_point: 99 };
            for k in Kernels::all_available() {
                let mut y = vec![0.0; n];
                dequantize_sums(k, &sums, left, &cols, &scales, &mut y);
                for j in 0..n {
                    assert_eq!(y[j], (sums[j] - 99 * cols[j]) as f32 * (0.02 * scales[j]));
                }
            }
        }
    }

    #[test]
    fn tables_map_bytes() {
        let table: [u8; 256] = core::array::from_fn(|i| 255 - i as u8);
        let x: Vec<u8> = (0..=255).collect();
        let mut y = vec![0; 256];
        let mut rng = Rng::with_seed(13);
        for k in Kernels::all_available() {
            lut_u8(k, &x, &table, &mut y);
            assert_eq!(y, table);
            lut_u8_inplace(k, &mut y, &table);
            assert_eq!(y, x);
            let table: [u8; 256] = core::array::from_fn(|_| rng.u8(..));
            for len in [0, 1, 63, 64, 65, 200] {
                let x: Vec<u8> = (0..len).map(|_| rng.u8(..)).collect();
                let mut y = vec![0; len];
                lut_u8(k, &x, &table, &mut y);
                assert!(x.iter().zip(&y).all(|(&x, &y)| table[usize::from(x)] == y));
            }
        }
    }

    #[test]
    fn quantized_arithmetic_is_within_a_step_and_equal_on_every_isa() {
        let mut rng = Rng::with_seed(12);
        // A row longer than half a block, and short ones.
        let (rows, cols) = (9, 71);
        let a: Vec<u8> = (0..rows * cols).map(|_| rng.u8(..)).collect();
        let b: Vec<u8> = (0..rows * cols).map(|_| rng.u8(..)).collect();
        let da = Dequant { scale: 0.021, zero_point: 100 };
        let db = Dequant { scale: 0.013, zero_point: 17 };
        let quant = Quant::new(0.05, 60);
        type Exact = fn(f64, f64) -> f64;
        let ops: [(Binary, Exact); 5] = [
            (Binary::Add, |a, b| a + b),
            (Binary::Sub, |a, b| a - b),
            (Binary::RSub, |a, b| b - a),
            (Binary::Mul, |a, b| a * b),
            (Binary::Max, f64::max),
        ];
        let value = |q: u8, d: Dequant| (f64::from(q) - f64::from(d.zero_point)) * f64::from(d.scale);
        for (op, f) in ops {
            for (rhs, index) in [
                (Rhs::Same(&b[..]), &(|i| b[i]) as &dyn Fn(usize) -> u8),
                (Rhs::Scalar(9), &|_| 9),
                (Rhs::Row(&b[..cols]), &|i| b[i % cols]),
                (Rhs::Row(&b), &|i| b[i]),
                (Rhs::Column { values: &b[..rows], period: cols }, &|i| b[i / cols]),
            ] {
                let mut seen: Option<Vec<u8>> = None;
                for k in Kernels::all_available() {
                    let mut y = vec![0u8; a.len()];
                    binary_u8(k, op, &a, da, rhs, db, Activation::Relu, &mut y, quant);
                    for i in 0..a.len() {
                        let real = f(value(a[i], da), value(index(i), db)).max(0.0);
                        let want = (real * 20.0 + 60.0).clamp(0.0, 255.0);
                        assert!((f64::from(y[i]) - want).abs() < 0.51, "{op:?}");
                    }
                    assert_eq!(*seen.get_or_insert_with(|| y.clone()), y);
                }
            }
        }
    }
}
