//! The operator table: every ONNX operator that can be imported, one row each.

use super::node::{Built, BuiltSlots, NodeCx};
use super::{
    attention, cast, constant, contrib, contrib_attention, control, conv, einsum, elementwise,
    flex_attention, index, linear_attention, loss, math, ml, nbits, ngram, norm, quant, quantize, random,
    recurrent, rotary, sequence, shape, signal, training, vision,
};
use crate::error::Refusal;

/// Builds core operators for one node. Opset differences are handled inside: what an operator did in opset 1
/// and what it does in the newest are read by the same function.
pub(super) type Import = fn(&mut NodeCx) -> Built;

/// As [`Import`], for operators that take or give sequences and optional values.
pub(super) type ImportSlots = fn(&mut NodeCx) -> BuiltSlots;

/// How an operator is read.
#[derive(Clone, Copy)]
pub(super) enum Reader {
    Tensors(Import),
    Slots(ImportSlots),
}

/// One ONNX operator.
pub(super) struct Row {
    /// Empty for ONNX's own.
    domain: &'static str,
    op: &'static str,
    import: Reader,
}

/// A row of ONNX's own domain.
pub(super) const fn onnx(op: &'static str, import: Import) -> Row {
    Row { domain: "", op, import: Reader::Tensors(import) }
}

/// A row of ONNX's own domain, of an operator that takes or gives sequences or optional values.
pub(super) const fn onnx_slots(op: &'static str, import: ImportSlots) -> Row {
    Row { domain: "", op, import: Reader::Slots(import) }
}

/// A row of onnxruntime's domain.
pub(super) const fn microsoft(op: &'static str, import: Import) -> Row {
    Row { domain: "com.microsoft", op, import: Reader::Tensors(import) }
}

/// A row of the domain of classical machine learning.
pub(super) const fn learning(op: &'static str, import: Import) -> Row {
    Row { domain: "ai.onnx.ml", op, import: Reader::Tensors(import) }
}

/// A row of the domain of operators that ONNX tries out.
pub(super) const fn preview(op: &'static str, import: Import) -> Row {
    Row { domain: "ai.onnx.preview", op, import: Reader::Tensors(import) }
}

/// A row of the domain of optimizers.
pub(super) const fn optimizer(op: &'static str, import: Import) -> Row {
    Row { domain: "ai.onnx.preview.training", op, import: Reader::Tensors(import) }
}

/// The domain of what Sora writes where ONNX has no operator: calls of functions that the file defines in ONNX's
/// operators, for other runtimes.
pub(crate) const SORA: &str = "ai.sora";

/// A row of Sora's own domain.
pub(super) const fn sora(op: &'static str, import: Import) -> Row {
    Row { domain: SORA, op, import: Reader::Tensors(import) }
}

const FAMILIES: &[&[Row]] = &[
    attention::ROWS,
    cast::ROWS,
    constant::ROWS,
    contrib::ROWS,
    contrib_attention::ROWS,
    control::ROWS,
    conv::ROWS,
    einsum::ROWS,
    elementwise::ROWS,
    flex_attention::ROWS,
    index::ROWS,
    linear_attention::ROWS,
    loss::ROWS,
    math::ROWS,
    nbits::ROWS,
    ml::ROWS,
    ngram::ROWS,
    norm::ROWS,
    quant::ROWS,
    quantize::ROWS,
    random::ROWS,
    recurrent::ROWS,
    rotary::ROWS,
    sequence::ROWS,
    shape::ROWS,
    signal::ROWS,
    training::ROWS,
    vision::ROWS,
];

/// What helps with operators that have no row.
const HINTS: &[(&[&str], &str)] = &[
    (
        &["StringNormalizer", "StringConcat", "StringSplit", "RegexFullMatch"],
        "cut the text processing off the model and run it in your program",
    ),
    (&["ImageDecoder"], "decoding pictures belongs to the data pipeline"),
];

/// Domain and name of every operator that can be read; the domain of ONNX's own is empty.
pub fn operators() -> impl Iterator<Item = (&'static str, &'static str)> {
    FAMILIES.iter().copied().flatten().map(|row| (row.domain, row.op))
}

/// The importer of an operator.
pub(super) fn find(domain: &str, op: &str) -> Result<Reader, Refusal> {
    let domain = if domain == "ai.onnx" { "" } else { domain };
    let row = FAMILIES.iter().copied().flatten().find(|row| row.op == op && row.domain == domain);
    row.map(|row| row.import).ok_or_else(|| {
        let hint = HINTS.iter().find(|(ops, _)| ops.contains(&op)).map(|&(_, hint)| hint);
        let default = match domain {
            "" => "simplifying the model with onnxsim may remove it",
            _ => "export the model with operators of the standard domain only",
        };
        Refusal::new("this operator is not supported").hint(hint.unwrap_or(default))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn no_operator_has_two_rows() {
        let mut seen = HashSet::new();
        for row in FAMILIES.iter().copied().flatten() {
            assert!(seen.insert((row.domain, row.op)), "{} has two rows", row.op);
        }
        assert!(find("ai.onnx", "Conv").is_ok() && find("", "NoSuch").is_err());
    }
}
