//! The `.sora` file: graph, weights and what a user must know about them, in one file that maps into memory.
//! `docs/format.md` describes the bytes.

mod coding;
mod rans;
mod read;
mod write;

pub use coding::Coding;
pub use read::{Stored, read, read_bytes, stored};
pub use write::{Encoded, to_bytes};

/// The first eight bytes: a name, and line ends that a transfer in text mode would damage.
const MAGIC: [u8; 8] = *b"SORA\r\n\x1a\n";

/// Versions of the layout: without and with packed weights; with coded tensors, and packed weights or not. A reader
/// refuses any other.
const VERSION: u32 = 1;
const VERSION_PACKED: u32 = 2;
const VERSION_CODED: u32 = 3;

/// How many times as long as a deflated text the text may be: a small file asks for little memory.
const INFLATION: usize = 256;

/// Alignment in bytes of every section and of every tensor in the file.
const ALIGNMENT: usize = 64;

/// Bytes before the section table: magic, version, number of sections, length of the file.
const HEADER: usize = 24;

/// Bytes of one entry of the section table: tag, checksum, offset, length.
const ENTRY: usize = 24;

/// The sections, each present exactly once, but for the last one, which only some files have.
mod tag {
    /// The graph in its text form, UTF-8.
    pub(super) const GRAPH: [u8; 4] = *b"GRPH";
    /// One record per tensor of the table that the graph's `@n` refer to.
    pub(super) const TENSORS: [u8; 4] = *b"TNSR";
    /// The elements of those tensors.
    pub(super) const DATA: [u8; 4] = *b"DATA";
    /// [`crate::Metadata`] as JSON.
    pub(super) const METADATA: [u8; 4] = *b"META";

    /// Weights as the kernels of one machine read them.
    pub(super) const PACKED: [u8; 4] = *b"PACK";

    /// Sections of a file without packed weights.
    pub(super) const COUNT: usize = 4;
}

#[cfg(test)]
mod tests {
    use sora_exec::PackedWeights;
    use sora_ir::ops::Conv;
    use sora_ir::{Graph, TensorType, text};
    use sora_tensor::{Buffer, DType, Tensor};

    use super::*;
    use crate::Metadata;

    fn sample() -> (Graph, Metadata) {
        let mut graph = Graph::new("sample");
        let x = graph.input("x", TensorType::new(DType::F32, [1usize, 3, 8, 8]));
        let values: Vec<f32> = (0..4 * 3 * 9).map(|i| i as f32).collect();
        let w = graph.constant("w", Tensor::from_slice(&[4, 3, 3, 3], &values).unwrap());
        let y = graph.op("conv", Conv::new(2), [x, w]).unwrap();
        graph.output("y", y);
        let metadata = Metadata { labels: Some(vec!["shirt".into(), "shoe".into()]), ..Metadata::default() };
        (graph, metadata)
    }

    /// Checks that no truncation of these bytes and none with a byte changed is read.
    fn refuses_all_damage(bytes: &[u8]) {
        for end in 0..bytes.len() {
            assert!(read_bytes(Buffer::copy_of(&bytes[..end])).is_err(), "truncated to {end}");
        }
        for at in 0..bytes.len() {
            let mut damaged = bytes.to_vec();
            damaged[at] ^= 0x41;
            // Padding between sections is the only part without a checksum: it is required to be zero.
            assert!(read_bytes(Buffer::copy_of(&damaged)).is_err(), "flipped byte {at}");
        }
    }

    #[test]
    fn files_read_back_equal() {
        let (graph, metadata) = sample();
        let bytes = to_bytes(&graph, &metadata, None).unwrap();
        let (again, read_metadata, _) = read_bytes(Buffer::copy_of(&bytes)).unwrap();
        assert_eq!(text::print(&again), text::print(&graph));
        assert_eq!(read_metadata, metadata);
    }

    fn packed_sample() -> PackedWeights {
        let buffer = |n: u8| Buffer::copy_of(&vec![n; usize::from(n)]).into();
        let entries =
            [("w gemm".to_owned(), vec![buffer(70), buffer(3)]), ("v gemm".to_owned(), vec![buffer(0)])];
        PackedWeights { packing: "this machine".to_owned(), entries: entries.into() }
    }

    #[test]
    fn packed_weights_read_back_equal_and_aligned() {
        let ((graph, metadata), packed) = (sample(), packed_sample());
        let bytes = to_bytes(&graph, &metadata, Some(&packed)).unwrap();
        let (again, _, read) = read_bytes(Buffer::copy_of(&bytes)).unwrap();
        let read = read.unwrap();
        assert_eq!(text::print(&again), text::print(&graph));
        assert_eq!(read.packing, packed.packing);
        for ((name, read), (expected, packed)) in read.entries.iter().zip(&packed.entries) {
            assert_eq!(name, expected);
            assert!(
                read.iter().zip(packed).all(|(a, b)| a.as_ref() == b.as_ref()) && read.len() == packed.len()
            );
        }
        refuses_all_damage(&bytes);
    }

    /// Puts other bytes into the first `most` of section number `at`, with the checksums that they need.
    fn hostile(bytes: &[u8], at: usize, most: usize, rng: &mut fastrand::Rng) -> Vec<u8> {
        let field = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
        let entry = HEADER + ENTRY * at;
        let (offset, length) = (field(entry + 8), field(entry + 16));
        let mut hostile = bytes.to_vec();
        for _ in 0..rng.usize(1..4) {
            hostile[offset + rng.usize(..length.min(most))] = if rng.bool() { rng.u8(..) } else { 0xff };
        }
        let checksum = crc32fast::hash(&hostile[offset..offset + length]);
        hostile[entry + 4..entry + 8].copy_from_slice(&checksum.to_le_bytes());
        let end = HEADER + ENTRY * usize::from(bytes[12]);
        let checksum = crc32fast::hash(&hostile[..end]);
        hostile[end..end + 4].copy_from_slice(&checksum.to_le_bytes());
        hostile
    }

    #[test]
    fn hostile_packed_sections_with_right_checksums_do_no_harm() {
        let ((graph, metadata), packed) = (sample(), packed_sample());
        let bytes = to_bytes(&graph, &metadata, Some(&packed)).unwrap();
        let mut rng = fastrand::Rng::with_seed(4);
        for _ in 0..20_000 {
            // An error or other buffers, all inside of the file: no panic.
            let _ = read_bytes(Buffer::copy_of(&hostile(&bytes, tag::COUNT, 120, &mut rng)));
        }
    }

    /// A graph with weights of each coding.
    fn coded_sample() -> (Graph, Metadata) {
        let (mut graph, metadata) = sample();
        let mut rng = fastrand::Rng::with_seed(5);
        for size in [1, 4] {
            for (i, (_, bytes)) in coding::tests::samples(&mut rng, 1000, size).into_iter().enumerate() {
                let dtype = if size == 1 { DType::I8 } else { DType::F32 };
                let tensor = Tensor::new(dtype, &[10, 100], Buffer::copy_of(&bytes)).unwrap();
                graph.constant(&format!("{dtype} {i}"), tensor);
            }
        }
        // As parsed, with constants before nodes.
        (text::parse(&text::print(&graph)).unwrap(), metadata)
    }

    #[test]
    fn coded_weights_read_back_equal_and_are_decoded_when_they_are_read() {
        let ((graph, metadata), packed) = (coded_sample(), packed_sample());
        for packed in [None, Some(&packed)] {
            let bytes = to_bytes(&graph, &metadata, packed).unwrap();
            assert_eq!(bytes[8], VERSION_CODED as u8);
            let (again, read_metadata, read_packed) = read_bytes(Buffer::copy_of(&bytes)).unwrap();
            let weights = |graph: &Graph| -> Vec<Tensor> {
                graph.values().filter_map(|(id, _)| graph.const_value(id)).cloned().collect()
            };
            let coded: Vec<bool> = weights(&again).iter().map(Tensor::is_computed).collect();
            assert_eq!(coded, [false, true, true, true, true, true], "the convolution's weights are dense");
            assert_eq!(weights(&again), weights(&graph));
            assert_eq!((text::print(&again), read_metadata), (text::print(&graph), metadata.clone()));
            assert_eq!(read_packed.is_some(), packed.is_some());
            // Written from coded weights, the file is the same.
            assert!(to_bytes(&again, &metadata, packed).unwrap() == bytes);
        }
    }

    #[test]
    fn hostile_coded_weights_with_right_checksums_do_no_harm() {
        let (graph, metadata) = coded_sample();
        let bytes = to_bytes(&graph, &metadata, None).unwrap();
        let mut rng = fastrand::Rng::with_seed(6);
        let mut read = 0;
        for round in 0..4000 {
            // The records of the tensors, and what they point to.
            let hostile = hostile(&bytes, 1 + round % 2, usize::MAX, &mut rng);
            if let Ok((again, _, _)) = read_bytes(Buffer::copy_of(&hostile)) {
                let decoded = again.values().filter_map(|(id, _)| again.const_value(id)).map(Tensor::bytes);
                assert!(decoded.map(<[u8]>::len).sum::<usize>() < 1 << 20);
                read += 1;
            }
        }
        assert!(read > 100, "changed weights are weights");
    }

    #[test]
    fn every_truncation_and_every_flipped_byte_is_refused() {
        for (graph, metadata) in [sample(), coded_sample()] {
            refuses_all_damage(&to_bytes(&graph, &metadata, None).unwrap());
        }
    }

    #[test]
    fn hostile_headers_with_right_checksums_are_refused() {
        let (graph, metadata) = sample();
        let bytes = to_bytes(&graph, &metadata, None).unwrap();
        let mut rng = fastrand::Rng::with_seed(3);
        let table_end = HEADER + ENTRY * tag::COUNT;
        for _ in 0..20_000 {
            let mut hostile = bytes.clone();
            for _ in 0..rng.usize(1..4) {
                let at = rng.usize(8..table_end);
                hostile[at] = if rng.bool() { rng.u8(..) } else { 0xff };
            }
            let checksum = crc32fast::hash(&hostile[..table_end]);
            hostile[table_end..table_end + 4].copy_from_slice(&checksum.to_le_bytes());
            if let Ok((again, _, _)) = read_bytes(Buffer::copy_of(&hostile)) {
                assert_eq!(text::print(&again), text::print(&graph));
            }
        }
    }
}
