//! How the elements of a tensor are coded in a file: as streams of bytes, each by its frequencies where that makes it
//! smaller. `docs/format.md` describes the bytes.
//!
//! Blocks of elements are coded on their own, with the frequencies of the whole tensor. Coded bytes are checked where
//! they enter ([`check`]); what passes decodes to some elements whatever it holds, so that weights that are decoded
//! when they are first read cannot fail then.

use super::rans::{Decoder, Frequencies, STATES, WORD, count};

/// Elements of a block: its streams stay in the cache of a core while they are decoded.
const BLOCK: usize = 1 << 17;

/// Most bytes of elements for each coded byte, so that a small file cannot ask for all memory.
const MOST_EXPANSION: usize = 1 << 8;

/// What a stream is made of. The numbers stand in files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Coding {
    /// The elements as they are; nothing is coded.
    Raw = 0,
    /// A stream for each byte of an element, the lowest first.
    Bytes = 1,
    /// A stream of flags, eight in a byte, that tell which elements have any bit set; then the streams of
    /// [`Coding::Bytes`] of only these elements.
    Mask = 2,
    /// Up to 256 different elements, and a stream of which of them each element is.
    Palette = 3,
}

impl Coding {
    /// All codings, by their numbers.
    const ALL: [Coding; 4] = [Coding::Raw, Coding::Bytes, Coding::Mask, Coding::Palette];

    /// The coding of a number in a file.
    pub(super) fn of(number: u8) -> Option<Coding> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// Its name in what is printed.
    pub fn name(self) -> &'static str {
        ["raw", "bytes", "mask", "palette"][self as usize]
    }

    /// The streams of elements of `size` bytes.
    fn streams(self, size: usize) -> usize {
        match self {
            Coding::Raw => 0,
            Coding::Bytes => size,
            Coding::Mask => 1 + size,
            Coding::Palette => 1,
        }
    }
}

/// The most bytes that coded elements may take for it to be worth decoding them: what is not coded is used where the
/// file is mapped. Weights of one byte are packed into another order anyway; for wider ones, the coding must find more
/// than the few bits that the exponents of any weights have to spare.
fn most_coded(elements: usize, size: usize) -> usize {
    match size {
        1 => elements - elements / 16,
        _ => elements * size / 4 * 3,
    }
}

/// Runs a function that is generic over the bytes of an element for elements of `size` bytes.
macro_rules! with_size {
    ($size:expr, $S:ident => $run:expr) => {
        match $size {
            1 => {
                const $S: usize = 1;
                $run
            }
            2 => {
                const $S: usize = 2;
                $run
            }
            4 => {
                const $S: usize = 4;
                $run
            }
            8 => {
                const $S: usize = 8;
                $run
            }
            _ => None,
        }
    };
}

/// The coding of elements of `size` bytes that is estimated to take the fewest bytes, with what it takes; `None` where
/// they are better left raw.
pub(super) fn choose(elements: &[u8], size: usize) -> Option<(Coding, usize)> {
    let most = most_coded(elements.len() / size, size);
    let (coding, estimate) = with_size!(size, S => estimate::<S>(elements.as_chunks().0))?;
    // A sample tells it well enough to spare large weights the rest.
    if estimate > most as f64 * 1.05 {
        return None;
    }
    let coded = encode(elements, size, coding)?.len();
    (coded <= most).then_some((coding, coded))
}

/// The coding that takes the fewest bytes, and how many, as far as a sample of many elements tells.
fn estimate<const S: usize>(elements: &[[u8; S]]) -> Option<(Coding, f64)> {
    const PIECES: usize = 64;
    const PIECE: usize = 4096;
    let sample: Vec<[u8; S]> = match elements.len() {
        ..=BLOCK => elements.to_vec(),
        len => (0..PIECES)
            .flat_map(|i| &elements[i * (len - PIECE) / (PIECES - 1)..][..PIECE])
            .copied()
            .collect(),
    };
    let scale = elements.len() as f64 / sample.len().max(1) as f64;
    let bytes = |coding: Coding| {
        let streams = Streams::of(&sample, coding)?;
        let counts = streams.counts(&sample);
        let bytes = |counts: &[u64; 256]| {
            let raw = counts.iter().sum::<u64>() as f64;
            let mut table = Vec::new();
            let coded = Frequencies::of(counts).map(|frequencies| {
                frequencies.write(&mut table);
                frequencies.bits(counts) / 8.0
            });
            (coded.unwrap_or(0.0) * scale + table.len() as f64).min(raw * scale)
        };
        let bytes: f64 = (streams.palette().len() * S) as f64 + counts.iter().map(bytes).sum::<f64>();
        Some((coding, bytes))
    };
    // A palette of bytes is another order of them.
    let codings = if S == 1 { &[Coding::Bytes, Coding::Mask][..] } else { &Coding::ALL[1..] };
    codings.iter().filter_map(|&coding| bytes(coding)).min_by(|a, b| a.1.total_cmp(&b.1))
}

/// What `elements` of `size` bytes are in the file; `None` if the coding
/// leaves them as they are, or cannot express them.
pub(super) fn encode(elements: &[u8], size: usize, coding: Coding) -> Option<Vec<u8>> {
    with_size!(size, S => encode_elements::<S>(elements.as_chunks().0, coding))
}

fn encode_elements<const S: usize>(elements: &[[u8; S]], coding: Coding) -> Option<Vec<u8>> {
    let streams = Streams::of(elements, coding)?;
    let mut coded = Vec::new();
    if let Streams::Palette(palette) = &streams {
        coded.push((palette.elements.len() - 1) as u8);
        coded.extend(palette.elements.as_flattened());
    }
    let mut frequencies = Vec::new();
    for counts in streams.counts(elements) {
        let (raw, found) = (counts.iter().sum::<u64>() as f64 * 8.0, Frequencies::of(&counts));
        // Noise, as the lowest bytes of floats are, is faster as it is.
        let found = found.filter(|found| found.bits(&counts) < raw * 63.0 / 64.0);
        coded.push(u8::from(found.is_some()));
        if let Some(found) = &found {
            found.write(&mut coded);
        }
        frequencies.push(found);
    }
    for block in elements.chunks(BLOCK) {
        let parts = streams.split(block);
        if coding == Coding::Mask {
            coded.extend((parts[1].len() as u32).to_le_bytes());
        }
        for (part, frequencies) in parts.iter().zip(&frequencies) {
            let Some(frequencies) = frequencies else {
                coded.extend(part);
                continue;
            };
            let start = coded.len();
            coded.extend([0; 4]);
            frequencies.encode(part, &mut coded);
            let len = (coded.len() - start - 4) as u32;
            coded[start..start + 4].copy_from_slice(&len.to_le_bytes());
        }
    }
    let least = (elements.len() * S).div_ceil(MOST_EXPANSION);
    coded.resize(coded.len().max(least), 0);
    Some(coded)
}

/// Slots of a palette's hash table: a power of two, most of which are free.
const SLOTS: usize = 1024;

/// The different elements of a tensor, by order of appearance.
struct Palette<const S: usize> {
    elements: Vec<[u8; S]>,
    /// A hash table of the elements' places, each plus one; zero is free.
    slots: [u16; SLOTS],
}

impl<const S: usize> Palette<S> {
    /// The slot of an element, or the one that it can take.
    fn slot(&self, element: &[u8; S]) -> usize {
        let mut bytes = [0; 8];
        bytes[..S].copy_from_slice(element);
        // The highest bits of a product depend on all bits of the element.
        let mixed = u64::from_le_bytes(bytes).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut slot = (mixed >> (64 - SLOTS.ilog2())) as usize;
        while self.slots[slot] != 0 && self.elements[usize::from(self.slots[slot]) - 1] != *element {
            slot = (slot + 1) % SLOTS;
        }
        slot
    }

    /// Those of `elements`; `None` if there are more than 256.
    fn of(elements: &[[u8; S]]) -> Option<Self> {
        let mut palette = Palette { elements: Vec::new(), slots: [0; SLOTS] };
        for element in elements {
            let slot = palette.slot(element);
            if palette.slots[slot] == 0 {
                if palette.elements.len() == 256 {
                    return None;
                }
                palette.elements.push(*element);
                palette.slots[slot] = palette.elements.len() as u16;
            }
        }
        Some(palette)
    }

    fn place(&self, element: &[u8; S]) -> u8 {
        (self.slots[self.slot(element)] - 1) as u8
    }
}

/// How the elements of one tensor become streams.
enum Streams<const S: usize> {
    Bytes,
    Mask,
    Palette(Box<Palette<S>>),
}

impl<const S: usize> Streams<S> {
    /// `None` if nothing is to be coded, or more than a palette holds.
    fn of(elements: &[[u8; S]], coding: Coding) -> Option<Self> {
        match coding {
            _ if elements.is_empty() => None,
            Coding::Raw => None,
            Coding::Bytes => Some(Streams::Bytes),
            Coding::Mask => Some(Streams::Mask),
            Coding::Palette => Some(Streams::Palette(Box::new(Palette::of(elements)?))),
        }
    }

    /// The elements that the streams refer to.
    fn palette(&self) -> &[[u8; S]] {
        match self {
            Streams::Palette(palette) => &palette.elements,
            _ => &[],
        }
    }

    /// The streams of these elements.
    fn split(&self, block: &[[u8; S]]) -> Vec<Vec<u8>> {
        let planes = |elements: &[[u8; S]]| -> Vec<Vec<u8>> {
            (0..S).map(|p| elements.iter().map(|e| e[p]).collect()).collect()
        };
        match self {
            Streams::Bytes => planes(block),
            Streams::Mask => {
                let is_set = |element: &[u8; S]| *element != [0; S];
                let flags = |eight: &[[u8; S]]| {
                    eight.iter().rev().fold(0, |flags, element| flags << 1 | u8::from(is_set(element)))
                };
                let set: Vec<[u8; S]> = block.iter().copied().filter(is_set).collect();
                let mut streams = planes(&set);
                streams.insert(0, block.chunks(8).map(flags).collect());
                streams
            }
            Streams::Palette(palette) => vec![block.iter().map(|element| palette.place(element)).collect()],
        }
    }

    /// How often each byte occurs in each stream.
    fn counts(&self, elements: &[[u8; S]]) -> Vec<[u64; 256]> {
        let mut counts = Vec::new();
        for block in elements.chunks(BLOCK) {
            let streams = self.split(block);
            counts.resize(streams.len(), [0; 256]);
            for (stream, counts) in streams.iter().zip(&mut counts) {
                count(stream, counts);
            }
        }
        counts
    }
}

/// The parts of a tensor in a file.
struct Parts<'a> {
    palette: &'a [u8],
    /// Those of each stream; `None` where its bytes are as they are.
    frequencies: Vec<Option<Frequencies>>,
    blocks: Vec<Block<'a>>,
}

/// Some elements of it.
struct Block<'a> {
    elements: usize,
    /// Each stream's bytes in the file, and how many it decodes to.
    streams: Vec<(&'a [u8], usize)>,
}

impl<'a> Parts<'a> {
    /// Finds the parts; `None` unless they follow each other as documented, and fill `coded` with `elements` elements
    /// of `size` bytes.
    fn find(mut coded: &'a [u8], coding: Coding, elements: usize, size: usize) -> Option<Self> {
        let all = elements.checked_mul(size)?;
        if all.div_ceil(MOST_EXPANSION) > coded.len() {
            return None;
        }
        let padded = all.div_ceil(MOST_EXPANSION) == coded.len();
        let mut palette: &[u8] = &[];
        if coding == Coding::Palette {
            let count = usize::from(*coded.split_off_first()?) + 1;
            palette = coded.split_off(..count * size)?;
        }
        let mut frequencies = Vec::new();
        for _ in 0..coding.streams(size) {
            frequencies.push(match coded.split_off_first()? {
                0 => None,
                1 => Some(Frequencies::read(&mut coded)?),
                _ => return None,
            });
        }
        let number = |coded: &mut &'a [u8]| {
            let bytes: &[u8; 4] = coded.split_off(..4)?.try_into().ok()?;
            usize::try_from(u32::from_le_bytes(*bytes)).ok()
        };
        let mut blocks = Vec::new();
        for start in (0..elements).step_by(BLOCK) {
            let elements = BLOCK.min(elements - start);
            let coded_elements = match coding {
                Coding::Mask => number(&mut coded).filter(|&set| set <= elements)?,
                _ => elements,
            };
            let mut streams = Vec::new();
            for (i, frequencies) in frequencies.iter().enumerate() {
                let decoded = match coding {
                    Coding::Mask if i == 0 => elements.div_ceil(8),
                    _ => coded_elements,
                };
                let len = match frequencies {
                    Some(_) => number(&mut coded).filter(|&len| len >= STATES && len % WORD == 0)?,
                    None => decoded,
                };
                streams.push((coded.split_off(..len)?, decoded));
            }
            blocks.push(Block { elements, streams });
        }
        let done = coded.is_empty() || padded && coded.iter().all(|&byte| byte == 0);
        done.then_some(Parts { palette, frequencies, blocks })
    }
}

/// Whether [`decode`] will find in `coded` so many elements of `size` bytes.
pub(super) fn check(coded: &[u8], coding: Coding, elements: usize, size: usize) -> bool {
    coding != Coding::Raw && Parts::find(coded, coding, elements, size).is_some()
}

/// Writes the elements, each of `size` bytes, over zeros in `out`. What [`check`] refuses leaves the zeros.
pub(super) fn decode(coded: &[u8], coding: Coding, size: usize, out: &mut [u8]) {
    let Some(parts) = Parts::find(coded, coding, out.len() / size, size) else { return };
    let decoded = with_size!(size, S => decode_elements::<S>(&parts, coding, out.as_chunks_mut().0));
    debug_assert!(decoded.is_some(), "no dtype has {size} bytes");
}

fn decode_elements<const S: usize>(parts: &Parts, coding: Coding, mut out: &mut [[u8; S]]) -> Option<()> {
    let decoder = |frequencies: &Option<Frequencies>| frequencies.as_ref().map(Decoder::new);
    let decoders: Vec<Option<Decoder>> = parts.frequencies.iter().map(decoder).collect();
    let mut palette = [[0; S]; 256];
    for (entry, given) in palette.iter_mut().zip(parts.palette.as_chunks().0) {
        *entry = *given;
    }
    let mut set = Vec::new();
    let mut scratch = vec![Vec::new(); decoders.len()];
    for block in &parts.blocks {
        let out = out.split_off_mut(..block.elements)?;
        if let (Coding::Bytes, 1, [(coded, _)], [Some(decoder)]) =
            (coding, S, &block.streams[..], &decoders[..])
        {
            decoder.decode(coded, out.as_flattened_mut());
            continue;
        }
        for (((coded, len), decoder), stream) in block.streams.iter().zip(&decoders).zip(&mut scratch) {
            stream.resize(*len, 0);
            match decoder {
                Some(decoder) => decoder.decode(coded, stream),
                None => stream.copy_from_slice(coded),
            }
        }
        match (coding, &scratch[..]) {
            (Coding::Bytes, planes) => join(planes, out),
            (Coding::Mask, [flags, planes @ ..]) => {
                set.resize(planes[0].len(), [0; S]);
                join(planes, &mut set);
                scatter(flags, &set, out);
            }
            (Coding::Palette, [places]) => {
                for (element, &place) in out.iter_mut().zip(places) {
                    *element = palette[usize::from(place)];
                }
            }
            _ => {}
        }
    }
    Some(())
}

/// Elements of their bytes.
fn join<const S: usize>(planes: &[Vec<u8>], out: &mut [[u8; S]]) {
    for (p, plane) in planes.iter().enumerate() {
        for (element, &byte) in out.iter_mut().zip(plane) {
            element[p] = byte;
        }
    }
}

/// Puts elements where flags are set, in order; flags and elements that have no counterpart are ignored.
fn scatter<const S: usize>(flags: &[u8], set: &[[u8; S]], out: &mut [[u8; S]]) {
    let mut set = set.iter();
    for (&flags, eight) in flags.iter().zip(out.chunks_mut(8)) {
        let mut flags = flags;
        while flags != 0 {
            if let (Some(place), Some(element)) = (eight.get_mut(flags.trailing_zeros() as usize), set.next())
            {
                *place = *element;
            }
            flags &= flags - 1;
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Bytes of elements that make each coding the smallest one, with the coding.
    pub(in super::super) fn samples(
        rng: &mut fastrand::Rng,
        elements: usize,
        size: usize,
    ) -> Vec<(Coding, Vec<u8>)> {
        let mut normal = |share: f64, levels: Option<u8>| -> Vec<u8> {
            let mut bytes = Vec::new();
            for _ in 0..elements {
                let sum: f64 = (0..4).map(|_| rng.f64() - 0.5).sum();
                let level = levels.map(|n| f64::from(rng.u8(..n) + 1) / 7.0);
                let value = if rng.f64() < share { level.unwrap_or(sum) } else { 0.0 };
                match size {
                    1 => bytes.push((value * 10.0) as i8 as u8),
                    2 => bytes.extend(sora_tensor::f16::from_f64(value).to_le_bytes()),
                    4 => bytes.extend((value as f32).to_le_bytes()),
                    _ => bytes.extend(value.to_le_bytes()),
                }
            }
            bytes
        };
        let sparse = (Coding::Mask, normal(0.1, None));
        match size {
            1 => vec![(Coding::Bytes, normal(1.0, None)), sparse],
            _ => vec![
                sparse,
                (Coding::Palette, normal(1.0, Some(32))),
                (Coding::Palette, normal(0.2, Some(15))),
            ],
        }
    }

    fn round_trip(elements: &[u8], size: usize, coding: Coding) -> usize {
        let coded = encode(elements, size, coding).unwrap();
        assert!(check(&coded, coding, elements.len() / size, size));
        let mut decoded = vec![0; elements.len()];
        decode(&coded, coding, size, &mut decoded);
        assert!(decoded == elements, "{coding:?} of {size} bytes");
        coded.len()
    }

    #[test]
    fn every_coding_of_every_size_gives_the_same_bits_again() {
        let mut rng = fastrand::Rng::with_seed(1);
        for size in [1, 2, 4, 8] {
            for elements in [1, 7, 8, 9, 1000, BLOCK, BLOCK + 3] {
                for (_, bytes) in samples(&mut rng, elements, size) {
                    round_trip(&bytes, size, Coding::Bytes);
                    round_trip(&bytes, size, Coding::Mask);
                    if encode(&bytes, size, Coding::Palette).is_some() {
                        round_trip(&bytes, size, Coding::Palette);
                    }
                }
                round_trip(&vec![0; elements * size], size, Coding::Mask);
                let noise: Vec<u8> = (0..elements * size).map(|_| rng.u8(..)).collect();
                round_trip(&noise, size, Coding::Bytes);
                round_trip(&noise, size, Coding::Mask);
            }
        }
    }

    #[test]
    fn weights_take_the_coding_that_is_made_for_them() {
        let mut rng = fastrand::Rng::with_seed(2);
        for size in [1, 2, 4, 8] {
            for (expected, bytes) in samples(&mut rng, 3 * BLOCK, size) {
                let (coding, len) = choose(&bytes, size).unwrap();
                assert_eq!(len, round_trip(&bytes, size, coding));
                let other = |coding: &Coding| {
                    encode(&bytes, size, *coding).is_none_or(|coded| coded.len() as f64 > 0.99 * len as f64)
                };
                assert!(Coding::ALL[1..].iter().all(other), "{size} {coding:?}");
                // Sparse bytes take the same either way.
                assert!(coding == expected || size == 1, "{size}: {coding:?}, not {expected:?}");
            }
        }
        let dense: Vec<u8> = (0..BLOCK).flat_map(|_| (rng.f32() - 0.5).to_le_bytes()).collect();
        assert_eq!(choose(&dense, 4), None);
        let noise: Vec<u8> = (0..BLOCK).map(|_| rng.u8(..)).collect();
        assert_eq!((choose(&noise, 1), choose(&[], 1), choose(&[3; 4], 4)), (None, None, None));
    }

    #[test]
    fn what_is_damaged_is_refused_or_decodes_to_something() {
        let mut rng = fastrand::Rng::with_seed(3);
        for size in [1, 4] {
            for (coding, bytes) in samples(&mut rng, 1000, size) {
                let coded = encode(&bytes, size, coding).unwrap();
                for end in 0..coded.len() {
                    assert!(!check(&coded[..end], coding, 1000, size), "{end}");
                }
                for elements in [0, BLOCK + 1, 1 << 40, usize::MAX] {
                    assert!(!check(&coded, coding, elements, size), "{elements}");
                }
                for _ in 0..3000 {
                    let mut hostile = coded.clone();
                    for _ in 0..rng.usize(1..4) {
                        let at = if rng.bool() { rng.usize(..60) } else { rng.usize(..coded.len()) };
                        hostile[at] = if rng.bool() { rng.u8(..) } else { 0xff };
                    }
                    let coding = if rng.u8(..8) == 0 { Coding::ALL[rng.usize(1..4)] } else { coding };
                    decode(&hostile, coding, size, &mut vec![0; bytes.len()]);
                }
            }
        }
    }
}
