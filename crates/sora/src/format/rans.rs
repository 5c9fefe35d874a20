//! Entropy coding of bytes by their frequencies: range asymmetric numeral systems, which spend fractions of a bit.
//!
//! Sources: J. Duda, "Asymmetric numeral systems: entropy coding combining speed of Huffman coding with compression
//! rate of arithmetic coding", arXiv:1311.2540, 2013; F. Giesen, "Interleaved entropy coders", arXiv:1402.3392, 2014,
//! for states that take turns and are filled with whole words. A state is a number `x` in `2^32..2^64`. To decode a
//! byte of frequency `f`, whose slots of `2^12` begin at `c`: `x mod 2^12` is a slot of that byte, and `x` becomes
//! `f · (x div 2^12) + x mod 2^12 - c`. Two bytes take at most 24 bits, so one word of 32 bits after each two is enough,
//! if `x` is below `2^32` then. Both together are a symbol of frequency `f · f'` in `2^24`, which the encoder's rule
//! for giving up a word follows from.

/// Frequencies add up to `1 << BITS`.
const BITS: u32 = 12;
const TOTAL: u32 = 1 << BITS;

/// The least state, which is also the first one of the encoder.
const LOW: u64 = 1 << 32;

/// States that take turns, as a processor works on all of them at once.
const LANES: usize = 4;

/// Bytes between two looks at the words: state `i` decodes bytes `i` and `i + LANES` of them.
const GROUP: usize = 2 * LANES;

/// Bytes of the states before the words.
pub(super) const STATES: usize = LANES * size_of::<u64>();

/// Bytes of a word.
pub(super) const WORD: usize = size_of::<u32>();

/// How often each byte occurs, in parts of [`TOTAL`].
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Frequencies([u16; 256]);

impl Frequencies {
    /// Those closest to `counts`; `None` where nothing was counted. What occurs has at least one part.
    pub(super) fn of(counts: &[u64; 256]) -> Option<Self> {
        let sum: u64 = counts.iter().sum();
        if sum == 0 {
            return None;
        }
        let part = |count: u64| (count as f64 * f64::from(TOTAL) / sum as f64).round() as u16;
        let mut parts = counts.map(|count| if count == 0 { 0 } else { part(count).max(1) });
        // One part more or less, where that changes the coded length for the better, or else the least: its
        // derivative by the frequency is the count divided by it.
        let by_gain = |parts: &[u16; 256], s: usize| counts[s] as f64 / f64::from(parts[s]);
        loop {
            let sum: u32 = parts.iter().map(|&f| u32::from(f)).sum();
            if sum == TOTAL {
                return Some(Frequencies(parts));
            }
            let gain = |&a: &usize, &b: &usize| by_gain(&parts, a).total_cmp(&by_gain(&parts, b));
            if sum > TOTAL {
                let least = (0..256).filter(|&s| parts[s] > 1).min_by(gain)?;
                parts[least] -= 1;
            } else {
                let most = (0..256).filter(|&s| parts[s] > 0).max_by(gain)?;
                parts[most] += 1;
            }
        }
    }

    /// The bits that coding takes whose bytes occur so often.
    pub(super) fn bits(&self, counts: &[u64; 256]) -> f64 {
        let bits = |(&count, &f): (&u64, &u16)| match count {
            0 => 0.0,
            _ => count as f64 * (f64::from(BITS) - f64::from(f).log2()),
        };
        counts.iter().zip(&self.0).map(bits).sum()
    }

    /// Appends them: up to 127 in a byte, more in two bytes, the higher one first with its highest bit set; zero is
    /// followed by how many zeros come behind it.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let mut rest = &self.0[..];
        while let [f, behind @ ..] = rest {
            rest = behind;
            match *f {
                0 => {
                    let zeros = behind.iter().take_while(|&&f| f == 0).count();
                    out.extend([0, zeros as u8]);
                    rest = &behind[zeros..];
                }
                f @ 1..128 => out.push(f as u8),
                f => out.extend([(f >> 8) as u8 | 0x80, f as u8]),
            }
        }
    }

    /// Takes from the front of `bytes` what [`Frequencies::write`] wrote; `None` for anything else.
    pub(super) fn read(bytes: &mut &[u8]) -> Option<Self> {
        let mut parts = [0u16; 256];
        let mut rest = parts.iter_mut();
        while let Some(f) = rest.next() {
            match *bytes.split_off_first()? {
                0 => {
                    let zeros = usize::from(*bytes.split_off_first()?);
                    rest = rest.into_slice().get_mut(zeros..)?.iter_mut();
                }
                low @ 1..0x80 => *f = u16::from(low),
                high => {
                    *f = u16::from(high & 0x7f) << 8 | u16::from(*bytes.split_off_first()?);
                    if *f < 0x80 {
                        return None;
                    }
                }
            }
        }
        let sum: u32 = parts.iter().map(|&f| u32::from(f)).sum();
        (sum == TOTAL).then_some(Frequencies(parts))
    }

    /// Appends `bytes`, all of which must have been counted: the states in which decoding begins, then the words that it
    /// takes, each little-endian.
    pub(super) fn encode(&self, bytes: &[u8], out: &mut Vec<u8>) {
        let mut starts = [0u32; 256];
        let mut end = 0;
        for (start, &f) in starts.iter_mut().zip(&self.0) {
            *start = end;
            end += u32::from(f);
        }
        let part = |byte: u8| u64::from(self.0[usize::from(byte)]);
        let put = |x: &mut u64, byte: u8| {
            *x = ((*x / part(byte)) << BITS) + *x % part(byte) + u64::from(starts[usize::from(byte)]);
        };
        let mut states = [LOW; LANES];
        let mut words: Vec<u32> = Vec::with_capacity(bytes.len() / WORD);
        // From the last byte to the first, as decoding undoes the last step first.
        let (groups, rest) = bytes.as_chunks::<GROUP>();
        for (i, &byte) in rest.iter().enumerate().rev() {
            put(&mut states[i % LANES], byte);
        }
        for group in groups.iter().rev() {
            for (i, x) in states.iter_mut().enumerate().rev() {
                let (first, second) = (group[i], group[i + LANES]);
                if *x >> (64 - 2 * BITS) >= part(first) * part(second) {
                    words.push(*x as u32);
                    *x >>= 32;
                }
                put(x, second);
                put(x, first);
            }
        }
        out.extend(states.iter().flat_map(|x| x.to_le_bytes()));
        out.extend(words.iter().rev().flat_map(|word| word.to_le_bytes()));
    }
}

/// What each slot decodes to: the byte in the lowest 8 bits, its frequency less one in 12 bits, and the slot's
/// place among those of the byte in 12 bits.
pub(super) struct Decoder(Box<[u32; TOTAL as usize]>);

impl Decoder {
    pub(super) fn new(frequencies: &Frequencies) -> Self {
        let mut slots = Box::new([0; TOTAL as usize]);
        let of_bytes = (0u32..).zip(&frequencies.0).flat_map(|(byte, &f)| {
            let f = u32::from(f);
            (0..f).map(move |place| byte | (f - 1) << 8 | place << 20)
        });
        for (slot, decoded) in slots.iter_mut().zip(of_bytes) {
            *slot = decoded;
        }
        Decoder(slots)
    }

    /// Fills `out` from what [`Frequencies::encode`] appended. Any bytes decode to something: those that are missing
    /// count as zero.
    pub(super) fn decode(&self, coded: &[u8], out: &mut [u8]) {
        let (states, words) = coded.split_at_checked(STATES).unwrap_or((&[], &[]));
        let mut lanes = [LOW; LANES];
        for (x, state) in lanes.iter_mut().zip(states.as_chunks().0) {
            *x = u64::from_le_bytes(*state);
        }
        let mut words = words.as_chunks().0;
        let (groups, rest) = out.as_chunks_mut();
        let mut groups = groups.iter_mut();
        while let Some(window) = words.first_chunk()
            && let Some(group) = groups.next()
        {
            words = &words[self.group(&mut lanes, window, group)..];
        }
        for group in groups {
            let mut window = [[0; WORD]; LANES];
            for (word, given) in window.iter_mut().zip(words) {
                *word = *given;
            }
            words = words.get(self.group(&mut lanes, &window, group)..).unwrap_or_default();
        }
        for (i, byte) in rest.iter_mut().enumerate() {
            *byte = self.step(&mut lanes[i % LANES]);
        }
    }

    /// Decodes a group and tells how many words of the window that took, which holds as many as it can take.
    #[inline(always)]
    fn group(
        &self,
        lanes: &mut [u64; LANES],
        window: &[[u8; WORD]; LANES],
        group: &mut [u8; GROUP],
    ) -> usize {
        for (i, byte) in group.iter_mut().enumerate() {
            *byte = self.step(&mut lanes[i % LANES]);
        }
        let mut used = 0;
        for x in lanes {
            // Without a branch: whether a state takes a word is as unpredictable as the weights.
            let filled = *x << 32 | u64::from(u32::from_le_bytes(window[used % LANES]));
            let takes = *x < LOW;
            *x = if takes { filled } else { *x };
            used += usize::from(takes);
        }
        used
    }

    /// Takes a byte out of a state.
    #[inline(always)]
    fn step(&self, x: &mut u64) -> u8 {
        let slot = self.0[(*x % u64::from(TOTAL)) as usize];
        *x = u64::from((slot >> 8) % TOTAL + 1) * (*x >> BITS) + u64::from(slot >> 20);
        slot as u8
    }
}

/// How often each byte occurs.
pub(super) fn count(bytes: &[u8], counts: &mut [u64; 256]) {
    for &byte in bytes {
        counts[usize::from(byte)] += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(bytes: &[u8]) -> [u64; 256] {
        let mut counts = [0; 256];
        count(bytes, &mut counts);
        counts
    }

    /// Bytes of which each is half as likely as the one before, `steep` times as fast.
    fn skewed(rng: &mut fastrand::Rng, len: usize, steep: f64) -> Vec<u8> {
        (0..len).map(|_| (-rng.f64().log2() / steep) as u8).collect()
    }

    #[test]
    fn all_lengths_and_distributions_decode_to_the_same_bytes() {
        let mut rng = fastrand::Rng::with_seed(1);
        for len in (1..40).chain([1000, 70_001]) {
            for bytes in [
                vec![7; len],
                (0..len).map(|_| rng.u8(..)).collect(),
                skewed(&mut rng, len, 8.0),
                skewed(&mut rng, len, 0.1),
            ] {
                let frequencies = Frequencies::of(&counted(&bytes)).unwrap();
                let (mut table, mut coded) = (Vec::new(), Vec::new());
                frequencies.write(&mut table);
                let mut rest = &table[..];
                assert_eq!(Frequencies::read(&mut rest).as_ref(), Some(&frequencies));
                assert!(rest.is_empty());
                frequencies.encode(&bytes, &mut coded);
                let mut decoded = vec![0; len];
                Decoder::new(&frequencies).decode(&coded, &mut decoded);
                assert_eq!(decoded, bytes);
            }
        }
    }

    #[test]
    fn the_coded_length_is_that_of_the_entropy() {
        let mut rng = fastrand::Rng::with_seed(2);
        for steep in [0.05, 0.5, 2.0, 6.0] {
            let bytes = skewed(&mut rng, 1 << 17, steep);
            let counts = counted(&bytes);
            let share = |&c: &u64| c as f64 / bytes.len() as f64;
            let entropy: f64 =
                counts.iter().filter(|&&c| c > 0).map(|c| -(*c as f64) * share(c).log2() / 8.0).sum();
            let frequencies = Frequencies::of(&counts).unwrap();
            let mut coded = Vec::new();
            frequencies.encode(&bytes, &mut coded);
            let (expected, found) = (frequencies.bits(&counts) / 8.0, (coded.len() - STATES) as f64);
            assert!((found / expected - 1.0).abs() < 0.005, "{steep}: {found} {expected}");
            assert!(found < 1.01 * entropy, "{steep}: {found} {entropy}");
        }
    }

    #[test]
    fn any_bytes_decode_to_something() {
        let mut rng = fastrand::Rng::with_seed(3);
        let frequencies = Frequencies::of(&counted(&skewed(&mut rng, 1000, 0.2))).unwrap();
        for _ in 0..500 {
            let coded: Vec<u8> = (0..rng.usize(..200)).map(|_| rng.u8(..)).collect();
            Decoder::new(&frequencies).decode(&coded, &mut vec![0; rng.usize(..300)]);
        }
    }

    #[test]
    fn frequencies_that_do_not_add_up_are_refused() {
        let mut rng = fastrand::Rng::with_seed(4);
        let mut table = Vec::new();
        Frequencies::of(&counted(&skewed(&mut rng, 1000, 0.2))).unwrap().write(&mut table);
        for end in 0..table.len() {
            assert_eq!(Frequencies::read(&mut &table[..end]), None);
        }
        for at in 0..table.len() {
            let mut changed = table.clone();
            changed[at] = changed[at].wrapping_add(1);
            // A longer or shorter run of zeros moves frequencies, or leaves too few.
            if let Some(Frequencies(parts)) = Frequencies::read(&mut &changed[..]) {
                assert_eq!(parts.iter().map(|&f| u32::from(f)).sum::<u32>(), TOTAL);
            }
        }
    }
}
