//! Matrix products with weights of a few bits, in blocks with scales of their own.

use sora_ir::ValueId;
use sora_ir::ops::{BinaryKind, DequantizeLinear, MatMul};
use sora_tensor::{DType, Tensor};

use super::node::{Built, NodeCx, size};
use super::rows::{Row, microsoft};
use crate::error::Refusal;
use crate::tensor::signed;

pub(super) const ROWS: &[Row] = &[microsoft("MatMulNBits", mat_mul_nbits)];

/// `A · Bᵀ`. Inputs: A `[…, K]`; B, bytes `[N, blocks, block·bits/8]`, the first number in the low bits; scales
/// `[N·blocks]`; zero points as bytes packed like B, or floats `[N·blocks]`; order of the groups; bias `[N]`.
/// The weights become bytes `[N·blocks, block]` in front of a DequantizeLinear along the first axis.
fn mat_mul_nbits(cx: &mut NodeCx) -> Built {
    let x = cx.input(0)?;
    let number = |name| size(cx.int(name, 0), name);
    let (columns, depth, block) = (number("N")?, number("K")?, number("block_size")?);
    let bits = size(cx.int("bits", 4), "bits")?;
    if columns == 0 || depth == 0 || block == 0 || ![2, 4, 8].contains(&bits) {
        return Err(Refusal::new(format!(
            "K={depth}, N={columns}, block_size={block}, bits={bits} is not a product"
        )));
    }
    if cx.opt(4).is_some() {
        return Err(Refusal::new("an order of its groups (g_idx) is not supported")
            .hint("quantize the model without activation order"));
    }
    let blocks = depth.div_ceil(block);
    let rows = columns.saturating_mul(blocks);
    let bytes = constant(cx, cx.input(1)?, "B")?;
    let numbers = unpacked(&bytes, rows, block, bits)?;
    let weights = made(cx, "weights", Tensor::from_slice(&[rows, block], &numbers))?;
    let scale = constant(cx, cx.input(2)?, "scales")?;
    let scale = made(cx, "scales", scale.reshape(&[rows]))?;
    let middle = 1u8 << (bits - 1);
    let zero_points = match cx.opt(3) {
        None => None,
        Some(value) => Some(constant(cx, value, "zero points")?),
    };
    let real = match zero_points {
        Some(points) if points.dtype().is_float() => {
            let points = made(cx, "zero_points", points.reshape(&[rows, 1]))?;
            let (dtype, scale) = (cx.dtype(scale), cx.reshape(scale, &[-1, 1])?);
            let points = cx.cast(points, dtype)?;
            let numbers = cx.cast(weights, dtype)?;
            let centred = cx.binary(BinaryKind::Sub, numbers, points)?;
            cx.binary(BinaryKind::Mul, centred, scale)?
        }
        points => {
            let points = match points {
                None => vec![middle; rows],
                Some(points) => unpacked(&points, columns, blocks, bits)?,
            };
            let points = made(cx, "zero_points", Tensor::from_slice(&[rows], &points))?;
            cx.step("dequantize", DequantizeLinear { axis: 0 }, [weights, scale, points])?
        }
    };
    let mut matrix = cx.reshape(real, &[signed(columns), signed(blocks.saturating_mul(block))])?;
    if blocks * block != depth {
        matrix = cx.cut(matrix, 1, [0, signed(depth), 1])?;
    }
    let matrix = cx.transpose(matrix, &[1, 0])?;
    let matrix = cx.cast(matrix, cx.dtype(x))?;
    let product = cx.op(MatMul {}, [x, matrix])?;
    match cx.opt(5) {
        None => Ok(vec![product]),
        Some(bias) => Ok(vec![cx.binary(BinaryKind::Add, product, bias)?]),
    }
}

fn constant(cx: &NodeCx, value: ValueId, what: &str) -> Result<Tensor, Refusal> {
    cx.constant(value).ok_or_else(|| Refusal::new(format!("its {what} {} is not constant", cx.ty(value))))
}

fn made<E: ToString>(cx: &mut NodeCx, part: &str, tensor: Result<Tensor, E>) -> Result<ValueId, Refusal> {
    tensor.map(|tensor| cx.make(part, tensor)).map_err(|e| Refusal::new(e.to_string()))
}

/// `rows` rows of `len` numbers of some bits, each row from a byte of its own on.
fn unpacked(bytes: &Tensor, rows: usize, len: usize, bits: usize) -> Result<Vec<u8>, Refusal> {
    let step = len.saturating_mul(bits).div_ceil(8);
    if bytes.dtype() != DType::U8 || step == 0 || Some(bytes.len()) != rows.checked_mul(step) {
        let why =
            format!("its bytes {} do not hold {rows} rows of {len} numbers", sora_ir::TensorType::of(bytes));
        return Err(Refusal::new(why));
    }
    let (each, mask) = (8 / bits, u8::MAX >> (8 - bits));
    let number =
        |row: &[u8], i: usize| row.get(i / each).map_or(0, |byte| (byte >> (i % each * bits)) & mask);
    Ok(bytes.bytes().chunks_exact(step).flat_map(|row| (0..len).map(move |i| number(row, i))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn low_bits_come_first_and_rows_start_with_a_byte() {
        let bytes = Tensor::vector(&[0b1110_0100u8, 0x9a, 0x21, 0xf3]);
        let all = |rows, len, bits| unpacked(&bytes, rows, len, bits).unwrap();
        assert_eq!(all(4, 1, 8), [0b1110_0100, 0x9a, 0x21, 0xf3]);
        assert_eq!(all(2, 3, 4), [4, 14, 10, 1, 2, 3]);
        assert_eq!(all(1, 8, 4), [4, 14, 10, 9, 1, 2, 3, 15]);
        assert_eq!(all(4, 3, 2)[..6], [0, 1, 2, 2, 2, 1]);
        assert!(unpacked(&bytes, 3, 2, 4).is_err() && unpacked(&bytes, 1, 9, 4).is_err());
    }
}
