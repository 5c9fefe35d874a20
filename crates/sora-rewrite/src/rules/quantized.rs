//! Integer products and tables of integers become the canonical form, float operators on dequantized constants.

use sora_ir::case::Gen;
use sora_ir::ops::{BinaryKind, Cast, DequantizeLinear, Gather, MatMul, QuantizeLinear};
use sora_ir::{Graph, IrError, Node, Op, ValueId, resolve_axis};
use sora_tensor::{DType, Tensor};

use super::Rule;
use super::product::Product;
use super::sample::Sketch;
use crate::view::{input, output};
use crate::{Patch, View};

pub(crate) const SCALE_INTEGER_PRODUCT: Rule = Rule {
    name: "scale_integer_product",
    doc: "float(int32(Q·W))·s·t, with integers Q and W read as floats, is (Q·s)·(W·t): DynamicQuantizeLinear and \
          MatMulInteger as onnxruntime's dynamic quantization writes them.",
    exact: false,
    apply: scale_integer_product,
    sample: |rng| integer_product(rng, true),
    near_misses: &[|rng| integer_product(rng, false)],
};

pub(crate) const DEQUANTIZE_TABLE: Rule = Rule {
    name: "dequantize_table",
    doc: "The rows that Gather takes from a constant table of bytes, then dequantized by column, are rows of the dequantized table: \
          only what is gathered becomes real when the network runs.",
    exact: true,
    apply: dequantize_table,
    sample: |rng| table(rng, true),
    near_misses: &[|rng| table(rng, false)],
};

fn dequantize_table(view: &View, node: &Node) -> Option<Patch> {
    let Op::DequantizeLinear(op) = &node.op else { return None };
    let (y, scale) = (output(node)?, input(node, 1)?);
    let (by, gather) = view.made_only_by::<Gather>(input(node, 0)?)?;
    let (table, indices) = (input(gather, 0)?, input(gather, 1)?);
    let &[_, columns] = view.constant(table).filter(|t| t.dtype() == DType::I8)?.shape() else { return None };
    let last = view.ty(y).rank().checked_sub(1);
    let by_column = view.constant(scale)?.shape() == [columns]
        && columns > 1
        && resolve_axis(op.axis, view.ty(y).rank()).ok() == last
        && resolve_axis(by.axis, 2) == Ok(0);
    by_column.then_some(())?;
    let mut patch = Patch::new();
    let rest = node.inputs.iter().skip(1).map(|v| v.map(Into::into));
    let inputs = [Some(table.into())].into_iter().chain(rest);
    let real = patch.node_with_optional(&node.name, DequantizeLinear { axis: 1 }, inputs);
    let rows = patch.node(&gather.name, Gather { axis: 0 }, [real, indices.into()]);
    Some(patch.replace(y, rows))
}

/// Rows of a table with scales by column; or columns of one with scales by what was a row.
fn table(rng: &mut Gen, fits: bool) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let (rows, columns) = (s.rng.size(2, 9), s.rng.size(2, 6));
    let levels = s.rng.tensor(DType::I8, &[rows, columns]);
    let levels = s.constant(levels);
    let shape = [s.rng.size(1, 3), s.rng.size(1, 4)];
    let (axis, extent) = if fits { (0, rows) } else { (1, columns) };
    let indices = s.rng.uniform(DType::I64, &shape, -(extent as f64), extent as f64);
    let indices = s.constant(indices);
    // Added to numbers that are known when it runs, so that they are not folded before.
    let zeros = s.input(&shape);
    let zeros = s.op(Cast { to: DType::I64 }, [zeros])?;
    let zeros = s.either(BinaryKind::Sub, zeros, zeros)?;
    let indices = s.either(BinaryKind::Add, indices, zeros)?;
    let gathered = s.op(Gather { axis }, [levels, indices])?;
    let (axis, extent) = if fits { (s.rng.pick(&[2, -1]), columns) } else { (0, rows) };
    let mut inputs = vec![gathered, s.between(&[extent], 0.01, 0.1)];
    if s.rng.flag() {
        let zero = s.rng.uniform(DType::I8, &[extent], -100.0, 100.0);
        inputs.push(s.constant(zero));
    }
    let y = s.op(DequantizeLinear { axis }, inputs)?;
    s.done(y)
}

/// An integer operand behind a `DequantizeLinear` whose scale is 1: the integers and the zero point.
fn whole(view: &View, value: ValueId) -> Option<(ValueId, Option<ValueId>)> {
    let (_, node) = view.made_by::<DequantizeLinear>(value)?;
    (view.uniform(input(node, 1)?) == Some(1.0)).then_some((input(node, 0)?, input(node, 2)))
}

fn scale_integer_product(view: &View, node: &Node) -> Option<Patch> {
    let Op::Binary(_) = node.op else { return None };
    let y = output(node)?;
    let product = Product::of(view, y);
    let sums = product.factors.iter().find_map(|&factor| {
        let (to, real) = view.made_only_by::<Cast>(factor)?;
        let (through, whole) = view.made_only_by::<Cast>(input(real, 0)?)?;
        let integers = input(whole, 0)?;
        let (_, product) = view.made_only_by::<MatMul>(integers)?;
        ((to.to, through.to) == (DType::F32, DType::I32)).then_some((factor, product))
    });
    let (sums, multiply) = sums?;
    let (a, a_zero) = whole(view, input(multiply, 0)?)?;
    let (b, b_zero) = whole(view, input(multiply, 1)?)?;
    let columns = *view.constant(b).filter(|b| b.rank() == 2)?.shape().last()?;

    // One scale of A that is known at run time only, and constants for the columns of B.
    let (mut scale, mut column_scales) = (None, vec![product.scale; columns]);
    for &factor in product.factors.iter().filter(|&&factor| factor != sums) {
        match view.constant(factor) {
            Some(constant) => {
                let fits = constant.len() == columns && constant.shape().last() == Some(&columns);
                fits.then_some(())?;
                column_scales.iter_mut().zip(constant.to_f64s()).for_each(|(s, c)| *s *= c);
            }
            None => {
                let one = view.ty(factor).rank() == 0 && view.ty(factor).dtype == DType::F32;
                (one && scale.replace(factor).is_none()).then_some(())?;
            }
        }
    }
    let a_zero_fits = a_zero.is_none_or(|zero| view.ty(zero).rank() == 0);
    (a_zero_fits && column_scales.iter().all(|s| *s > 0.0)).then_some(())?;
    let b_dtype = view.ty(b).dtype;
    let zeros = match b_zero {
        None => vec![0; columns],
        Some(zero) => match view.constant(zero)?.to_i64s() {
            one if one.len() == 1 => vec![one[0]; columns],
            all => (all.len() == columns).then_some(all)?,
        },
    };
    let zeros: Vec<f64> = zeros.into_iter().map(|z| z as f64).collect();

    let mut patch = Patch::new();
    let a_inputs = [Some(a.into()), Some(scale?.into()), a_zero.map(Into::into)];
    let given = if a_zero.is_some() { 3 } else { 2 };
    let name = |part: &str| format!("{}/{part}", multiply.name);
    let rows = DequantizeLinear { axis: 0 };
    let a = patch.node_with_optional(&name("rows"), rows, a_inputs.into_iter().take(given));
    let scales =
        patch.constant(&name("scales"), Tensor::from_f64s(DType::F32, &[columns], &column_scales).ok()?);
    let zeros = patch.constant(&name("zeros"), Tensor::from_f64s(b_dtype, &[columns], &zeros).ok()?);
    let b = patch.node(&name("weights"), DequantizeLinear { axis: 1 }, [b.into(), scales, zeros]);
    let product = patch.node(&multiply.name, MatMul {}, [a, b]);
    Some(patch.replace(y, product))
}

/// As onnxruntime writes it, the scales in some order; or with a vector that belongs to no column.
fn integer_product(rng: &mut Gen, fits: bool) -> Result<Graph, IrError> {
    let mut s = Sketch::new(rng);
    let (k, n) = (s.rng.size(2, 6), s.rng.size(2, 5));
    let x = s.batched(&[3, k]);
    let step = s.scalar_of_rank_0(0.05);
    let zero = s.constant(Tensor::scalar(120u8));
    let q = s.op(QuantizeLinear { axis: 0, to: DType::U8 }, [x, step, zero])?;
    let w = s.rng.tensor(DType::I8, &[k, n]);
    let w = s.constant(w);
    let one = s.scalar_of_rank_0(1.0);
    let a = s.op(DequantizeLinear { axis: -2 }, [q, one, zero])?;
    let b = match s.rng.flag() {
        true => s.op(DequantizeLinear { axis: -1 }, [w, one])?,
        false => {
            let ones = s.constant(Tensor::vector(&vec![1f32; n]));
            let zeros = s.constant(Tensor::vector(&vec![0i8; n]));
            s.op(DequantizeLinear { axis: -1 }, [w, ones, zeros])?
        }
    };
    let y = s.op(MatMul {}, [a, b])?;
    let y = s.op(Cast { to: DType::I32 }, [y])?;
    let y = s.op(Cast { to: DType::F32 }, [y])?;
    let scale = s.input(&[]);
    let scale = s.unary(sora_ir::ops::UnaryKind::Exp, scale)?;
    let shape: &[usize] = if fits { &[n] } else { &[3, 1] };
    let columns = s.between(shape, 0.01, 0.1);
    let both = s.either(BinaryKind::Mul, scale, columns)?;
    let y = s.either(BinaryKind::Mul, y, both)?;
    s.done(y)
}
