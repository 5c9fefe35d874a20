//! What reads hostile input, as targets for a fuzzer: whatever the bytes are, the answer is a value or an error, in
//! bounded memory and time.
//!
//! `cargo xtask fuzz TARGET` runs one under libFuzzer (`driver/`); inputs worth keeping are in `corpus/TARGET`, and
//! `tests/corpus.rs` replays them.
#![forbid(unsafe_code)]

use std::io::Write;

use sora::data::{Dataset, OpenOptions, Preprocess};
use sora::{ir, onnx, rewrite, tensor};

/// A target's name and what it does with bytes.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: &[Target] = &[
    ("onnx", read_onnx),
    ("sora", read_sora),
    ("text", parse_text),
    ("npy", |bytes| open(bytes, ".npy")),
    ("npz", |bytes| open(bytes, ".npz")),
    ("csv", |bytes| open(bytes, ".csv")),
    ("idx", |bytes| open(bytes, "-images-idx3-ubyte")),
    ("png", |bytes| picture(bytes, "png")),
    ("jpeg", |bytes| picture(bytes, "jpg")),
];

/// The target of this name.
pub fn find(name: &str) -> Option<Target> {
    TARGETS.iter().copied().find(|(known, _)| *known == name)
}

/// A graph that was accepted verifies, optimizes, prints and, where ONNX has its operators, exports.
fn use_graph(mut graph: ir::Graph) {
    ir::verify(&graph).expect("what was read is consistent");
    let printed = ir::text::print_elided(&graph, 16);
    assert!(!printed.is_empty());
    let options = rewrite::Options { check: true, ..rewrite::Options::default() };
    rewrite::optimize(&mut graph, &options).expect("a consistent graph can be optimized");
    ir::verify(&graph).expect("optimizing keeps a graph consistent");
}

fn read_onnx(bytes: &[u8]) {
    if let Ok(imported) = onnx::from_bytes(bytes.to_vec(), None) {
        if let Ok(again) = onnx::to_bytes(&imported.graph, &onnx::ExportOptions::default()) {
            onnx::from_bytes(again, None).expect("what was exported can be read");
        }
        use_graph(imported.graph);
    }
}

fn read_sora(bytes: &[u8]) {
    if let Ok((graph, ..)) = sora::format::read_bytes(tensor::Buffer::copy_of(bytes)) {
        ir::verify(&graph).expect("what was read is consistent");
    }
}

fn parse_text(bytes: &[u8]) {
    let Ok(graph) = ir::text::parse(&String::from_utf8_lossy(bytes)) else { return };
    let printed = ir::text::print(&graph);
    let again = ir::text::parse(&printed).expect("what was printed can be parsed");
    assert_eq!(ir::text::print(&again), printed);
    use_graph(graph);
}

/// Limits under which a file of a few kilobytes must stay.
fn limits() -> OpenOptions {
    OpenOptions { max_bytes: 1 << 26, max_pixels: 1 << 20, ..OpenOptions::default() }
}

fn open(bytes: &[u8], ending: &str) {
    let mut file =
        tempfile::Builder::new().prefix("fuzz").suffix(ending).tempfile().expect("a temporary file");
    file.write_all(bytes).expect("a temporary file can be written");
    if let Ok(data) = Dataset::open(file.path(), &limits()) {
        let first = if data.is_empty() { Vec::new() } else { vec![0, data.len() - 1] };
        let _ = data.batch(&first, &Preprocess::default());
    }
    if ending == ".npy" {
        let _ = sora::data::npy::read(file.path());
    }
    if ending == ".npz" {
        let _ = sora::data::npz::read(file.path(), 1 << 26);
    }
}

/// An image folder of two classes that both hold the picture.
fn picture(bytes: &[u8], ending: &str) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for class in ["a", "b"] {
        let class = folder.path().join(class);
        std::fs::create_dir(&class).expect("a new folder");
        std::fs::write(class.join(format!("x.{ending}")), bytes).expect("a new file");
    }
    if let Ok(data) = Dataset::open(folder.path(), &limits()) {
        let _ = data.batch(&[0, 1], &Preprocess::default());
    }
}
