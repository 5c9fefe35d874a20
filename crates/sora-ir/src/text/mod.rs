//! The text form of graphs: one line per input, constant, node and output.
//!
//! ```text
//! graph "tiny"
//! input %0 "x" f32[N,4]
//! const %1 "w" f32[4,2] = [1,0,0,1,1,0,0,1]
//! %2 "y" f32[N,2] = MatMul "dense" (%0, %1) {}
//! output "y" %2
//! ```
//!
//! Names are JSON strings, `{…}` holds the operator's attributes as JSON, `_` is an absent optional input. The
//! elements of a constant follow as a list, as `0x…` (its bytes, little endian), or as `@n`, the n-th entry of a
//! table of tensors kept beside the text. [`parse`] checks every declared type against the inferred one.

mod parse;
mod print;

pub use parse::{ParseError, parse, parse_with_table};
pub use print::{print, print_elided, print_with_table};

#[cfg(test)]
mod tests {
    use sora_tensor::{DType, Tensor, f16};

    use super::*;
    use crate::ops::{Conv, Unary, UnaryKind};
    use crate::{Dim, Graph, TensorType, verify};

    fn sample() -> Graph {
        let mut graph = Graph::new("a \"quoted\" name\n");
        let shape = [Dim::symbol("N"), Dim::from(3usize), Dim::symbol("odd name"), Dim::from(9usize)];
        let x = graph.input("x", TensorType::new(DType::F32, shape));
        let w: Vec<f32> = (0..4 * 3 * 9).map(|i| i as f32 * 0.1).collect();
        let w = graph.constant("weights", Tensor::from_slice(&[4, 3, 3, 3], &w).unwrap());
        let b = graph.constant("bias", Tensor::vector(&[0.1f32, -0.0, f32::INFINITY, 1e-40]));
        graph.constant("half", Tensor::vector(&[f16::NAN, f16::ONE]));
        let y = graph.op("conv", Conv::new(2), [x, w, b]).unwrap();
        let z = graph.op("relu", Unary { kind: UnaryKind::Relu }, [y]).unwrap();
        graph.output("result", z);
        graph
    }

    #[test]
    fn printing_parses_back_with_and_without_a_table() {
        let graph = sample();
        verify(&graph).unwrap();
        let text = print(&graph);
        assert_eq!(print(&parse(&text).unwrap()), text);
        let (with_table, table) = print_with_table(&graph);
        assert_eq!(table.len(), 1);
        assert_eq!(print(&parse_with_table(&with_table, &table).unwrap()), text);
        assert!(parse(&print_elided(&graph, 8)).is_err());
    }

    #[test]
    fn every_truncation_and_many_corruptions_are_errors_not_panics() {
        let text = print(&sample());
        for end in (0..text.len()).filter(|&i| text.is_char_boundary(i)) {
            let _ = parse(&text[..end]);
        }
        let mut rng = fastrand::Rng::with_seed(7);
        for _ in 0..3000 {
            let mut bytes = text.clone().into_bytes();
            let at = rng.usize(0..bytes.len());
            bytes[at] = rng.u8(b' '..b'~');
            if let Ok(graph) = parse(&String::from_utf8_lossy(&bytes)) {
                verify(&graph).unwrap();
            }
        }
    }

    #[test]
    fn errors_name_the_line() {
        let text = print(&sample()).replace("Relu", "Rule");
        assert_eq!(parse(&text).unwrap_err().line, 7);
    }
}
