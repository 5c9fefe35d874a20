//! What reads hostile input, as targets for a fuzzer: whatever the bytes are, the answer is a value or an error, in
//! bounded memory and time.
//!
//! `cargo xtask fuzz TARGET` runs one under libFuzzer (`driver/`); inputs worth keeping are in `corpus/TARGET`, and
//! `tests/corpus.rs` replays them.
#![forbid(unsafe_code)]

use std::io::Write;

use sora::data::{Dataset, OpenOptions, Preprocess};
use sora::{exec, ir, onnx, rewrite, tensor};

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
    ("idx", idx),
    ("png", |bytes| picture(bytes, "png")),
    ("jpeg", |bytes| picture(bytes, "jpg")),
];

/// The target of this name.
pub fn find(name: &str) -> Option<Target> {
    TARGETS.iter().copied().find(|(known, _)| *known == name)
}

/// A graph that was accepted verifies, prints and optimizes, and where it is small the engine runs what the reference does.
fn use_graph(graph: &ir::Graph) {
    ir::verify(graph).expect("what was read is consistent");
    let printed = ir::text::print_elided(graph, 16);
    assert!(!printed.is_empty());
    let mut optimized = graph.clone();
    let options = rewrite::Options { check: true, ..rewrite::Options::default() };
    rewrite::optimize(&mut optimized, &options).expect("a consistent graph can be optimized");
    ir::verify(&optimized).expect("optimizing keeps a graph consistent");
    run(graph);
}

/// Values are not compared: what differs by rounding differs by any amount after a step function.
fn run(graph: &ir::Graph) {
    let Some(inputs) = given(graph) else { return };
    let shapes: Vec<(&str, &[usize])> = inputs.iter().map(|(name, t)| (name.as_str(), t.shape())).collect();
    let Ok(concrete) = graph.specialize(&shapes) else { return };
    if !is_small(&concrete) {
        return;
    }
    let inputs: Vec<_> = inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let Ok(expected) = ir::evaluate(graph, &inputs) else { return };
    let session = exec::Session::new(graph.clone(), exec::Options::default())
        .expect("a consistent graph can be lowered");
    let found = session.run(&inputs).expect("the engine runs what the reference does");
    for ((name, found), expected) in found.iter().zip(&expected) {
        assert_eq!((found.dtype(), found.shape()), (expected.dtype(), expected.shape()), "{name}");
    }
}

/// Inputs for a graph: open extents are 2, elements small numbers. Nothing where that takes too much.
fn given(graph: &ir::Graph) -> Option<Vec<(String, tensor::Tensor)>> {
    let one = |&id: &ir::ValueId| {
        let value = graph.value(id);
        let shape: Vec<usize> = value.ty.shape.iter().map(|dim| dim.known().unwrap_or(2)).collect();
        let count = tensor::element_count(&shape).filter(|&count| count <= 1 << 12)?;
        let elements: Vec<f64> =
            (0..count).map(|i| f64::from(u8::try_from(i % 5).unwrap_or(0)) - 2.0).collect();
        Some((value.name.clone(), tensor::Tensor::from_f64s(value.ty.dtype, &shape, &elements).ok()?))
    };
    graph.inputs().iter().map(one).collect()
}

/// Whether all values are known to be small and the work to be little, which a loop may never say.
fn is_small(graph: &ir::Graph) -> bool {
    let values = graph.values().all(|(_, value)| value.ty.known_len().is_some_and(|len| len <= 1 << 14));
    let little = |node: &ir::Node| {
        let inputs: Vec<_> = node.inputs.iter().map(|id| id.map(|id| graph.ty(id))).collect();
        let outputs: Vec<_> = node.outputs.iter().map(|&id| graph.ty(id)).collect();
        let macs = node.op.macs(&inputs, &outputs).known();
        let bodies = node.op.bodies().iter().all(|body| is_small(body.graph()));
        macs.is_some_and(|macs| macs <= 1 << 22) && bodies && !matches!(node.op, ir::Op::Loop(_))
    };
    values && graph.nodes().all(|(_, node)| little(node))
}

fn read_onnx(bytes: &[u8]) {
    if let Ok(imported) = onnx::from_bytes(bytes.to_vec(), None) {
        if let Ok(again) = onnx::to_bytes(&imported.graph, &onnx::ExportOptions::default()) {
            onnx::from_bytes(again, None).expect("what was exported can be read");
        }
        use_graph(&imported.graph);
    }
}

fn read_sora(bytes: &[u8]) {
    for file in [Some(bytes.to_vec()), repaired(bytes)].into_iter().flatten() {
        if let Ok((graph, ..)) = sora::format::read_bytes(tensor::Buffer::copy_of(&file)) {
            use_graph(&graph);
        }
    }
}

/// The file with its sections where they belong and with their checksums, which otherwise end the reading of almost all that
/// a fuzzer changes; see `docs/format.md`.
fn repaired(bytes: &[u8]) -> Option<Vec<u8>> {
    const HEADER: usize = 24;
    let count = usize::try_from(u32::from_le_bytes(bytes.get(12..16)?.try_into().ok()?)).ok()?;
    let table_end = HEADER + HEADER * count.min(8);
    let number = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?) as usize);
    let mut file = bytes.get(..table_end)?.to_vec();
    file.extend([0; 4]);
    for entry in (HEADER..table_end).step_by(HEADER) {
        let start = number(entry + 8)?.min(bytes.len());
        let section = &bytes[start..start.saturating_add(number(entry + 16)?).min(bytes.len())];
        file.resize(file.len().next_multiple_of(64), 0);
        let (offset, length) = (file.len() as u64, section.len() as u64);
        file[entry + 4..entry + 8].copy_from_slice(&crc32fast::hash(section).to_le_bytes());
        file[entry + 8..entry + 16].copy_from_slice(&offset.to_le_bytes());
        file[entry + 16..entry + 24].copy_from_slice(&length.to_le_bytes());
        file.extend_from_slice(section);
    }
    let length = file.len() as u64;
    file[16..24].copy_from_slice(&length.to_le_bytes());
    let checksum = crc32fast::hash(&file[..table_end]);
    file[table_end..table_end + 4].copy_from_slice(&checksum.to_le_bytes());
    Some(file)
}

fn parse_text(bytes: &[u8]) {
    let Ok(graph) = ir::text::parse(&String::from_utf8_lossy(bytes)) else { return };
    let printed = ir::text::print(&graph);
    let again = ir::text::parse(&printed).expect("what was printed can be parsed");
    assert_eq!(ir::text::print(&again), printed);
    use_graph(&graph);
}

/// Limits under which a file of a few kilobytes must stay.
fn limits() -> OpenOptions {
    OpenOptions { max_bytes: 1 << 24, max_pixels: 1 << 14, ..OpenOptions::default() }
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

/// A pair of images and labels, either of which is the input.
fn idx(bytes: &[u8]) {
    let count = bytes.get(4..8).unwrap_or(&[0; 4]);
    let many = count.iter().fold(0, |n: usize, &byte| (n << 8 | usize::from(byte)).min(1 << 12));
    let labels = [&[0u8, 0, 8, 1][..], count, &vec![1; many]].concat();
    let images = [0u8, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 1, 7, 9];
    for (images, labels) in [(bytes, &labels[..]), (&images[..], bytes)] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(folder.path().join("x-images-idx3-ubyte"), images).expect("a new file");
        std::fs::write(folder.path().join("x-labels-idx1-ubyte"), labels).expect("a new file");
        if let Ok(data) = Dataset::open(folder.path(), &limits()) {
            let last: Vec<usize> = data.len().checked_sub(1).into_iter().collect();
            let _ = data.batch(&last, &Preprocess::default());
        }
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
