//! Products of bytes that are summed in pairs of 16 bits, where the left operand proves that no pair leaves them.
//!
//! `vpmaddubsw` multiplies twice as many bytes as the products of widened ones, but saturates at 16 bits. With any
//! weights, the products of two bytes `x, y` stay within
//!
//! - unsigned: −128·(x + y) ..= 127·(x + y), which fits if x + y ≤ 256;
//! - signed, as (x − 128) and (y − 128) times weights that 128 was added to: 255 times the sums of what is
//!   positive and of what is negative, which fit if 128 ≤ x + y ≤ 384. Sums of the row and of the column,
//!   times 128, make up for both shifts.
//!
//! Activations behind ReLU and its like are mostly small, those around a zero point in the middle mostly near to
//! it, so few pairs break the rule. Of those the rows keep a half, and the rest is added to the sums one by one.
//! Rows with too many such pairs are widened instead. All ways give the same integers.

use alloc::{vec, vec::Vec};

use super::{TileArgs, TileFn};
use crate::{Kernels, operands::ARows};

/// A part of row `row` that its bytes lack: four bytes at depth `4 * step`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rest {
    pub(crate) row: u32,
    pub(crate) step: u32,
    pub(crate) word: i32,
}

/// Adds to a tile, whose first row and number of panels are given, the products of what its rows lack.
///
/// # Safety
/// As of [`TileFn`]; all must be of the tile's rows and depth.
type AddFn<A, B, C> = unsafe fn(&TileArgs<A, B>, &[Rest], (usize, usize), *mut C);

/// The code of a form of the left operand.
#[derive(Debug)]
pub(crate) struct Form<A: 'static, B: 'static, C: 'static> {
    /// As those of [`super::Tiles`], for rows of that form, of one piece; sums begin with [`super::TileArgs::begin`].
    pub(crate) by_rows: &'static [TileFn<A, B, C>],
    pub(crate) wide: TileFn<A, B, C>,
    pub(crate) add: AddFn<A, B, C>,
}

/// Chooses a form for rows of an operand, each in pieces of so many bytes, and writes them; `None` if none is good.
type Prepare<A, B, C> =
    fn(Kernels, &ARows<'_, A>, (usize, usize), &mut Rows) -> Option<&'static Form<A, B, C>>;

/// What the tiles of an instruction set know of these products.
#[derive(Debug)]
pub(crate) struct Narrow<A: 'static, B: 'static, C: 'static> {
    pub(crate) prepare: Prepare<A, B, C>,
}

/// Depths that are written together: rows have whole vectors.
const VECTOR: usize = 32;

/// Prepared rows.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    /// `[rows][stride]`
    data: Vec<u8>,
    stride: usize,
    /// What the sums of each row begin with.
    begin: Vec<i32>,
    /// In order of their rows.
    rests: Vec<Rest>,
    /// How many there are before each row, and in all.
    before: Vec<usize>,
    /// A row as it is gathered.
    pieces: Vec<u8>,
}

impl Rows {
    pub(crate) fn row(&self, row: usize) -> *const u8 {
        self.data[row * self.stride..][..self.stride].as_ptr()
    }

    pub(crate) fn begin(&self, row: usize) -> *const i32 {
        self.begin[row..].as_ptr()
    }

    /// What rows `from..to` lack.
    pub(crate) fn rests(&self, from: usize, to: usize) -> &[Rest] {
        &self.rests[self.before[from]..self.before[to]]
    }

    fn reset(&mut self, rows: usize, depth: usize) {
        self.stride = depth.next_multiple_of(VECTOR);
        if self.data.len() < rows * self.stride {
            self.data = vec![0; rows * self.stride];
        }
        self.begin.clear();
        self.rests.clear();
        self.before.clear();
        self.before.push(0);
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::AVX2;

#[cfg(target_arch = "x86_64")]
mod x86 {
    use core::arch::x86_64::*;

    use super::{Form, Narrow, Rest, Rows, VECTOR};
    use crate::{
        Isa, Kernels,
        gemm::{TileArgs, WIDE, tap_rows},
        operands::ARows,
        vector::prefetch,
    };

    /// Vectors of 8 columns per panel row.
    const NV: usize = 2;
    const NR: usize = 8 * NV;
    /// Bytes of a panel's step of four depths.
    const STEP: usize = 4 * NR;
    /// Of so many pairs, one may break the rule: what it takes to add a rest is then less than what is gained.
    const MOST: usize = 24;
    /// Rows that tell what the others are like.
    const SAMPLE: usize = 16;

    pub(crate) static AVX2: Narrow<u8, i8, i32> = Narrow { prepare };

    macro_rules! form {
        ($signed:literal: $($mr:literal)*) => {
            Form {
                by_rows: &[$(tile::<$mr, 1, $signed>),*],
                wide: tile::<1, WIDE, $signed>,
                add: add::<$signed>,
            }
        };
    }
    static UNSIGNED: Form<u8, i8, i32> = form!(false: 1 2 3 4 5);
    static SIGNED: Form<u8, i8, i32> = form!(true: 1 2 3 4 5);

    fn prepare(
        kernels: Kernels,
        a: &ARows<'_, u8>,
        (first, count): (usize, usize),
        rows: &mut Rows,
    ) -> Option<&'static Form<u8, i8, i32>> {
        assert!(kernels.isa().includes(Isa::Avx2));
        let places = a.kc().next_multiple_of(4);
        let depth = a.taps() * places;
        // Gathering short pieces takes longer than is gained.
        if depth == 0 || (a.taps() > 1 && a.kc() < 16) {
            return None;
        }
        rows.reset(count, depth);
        // SAFETY: the handle proves the instruction set.
        unsafe {
            let (mut broken, mut sampled) = ([0; 2], 0);
            for i in 0..count.min(SAMPLE) {
                let row = first + i * count / count.min(SAMPLE);
                let bytes = gathered(a, row, places, 0, &mut rows.pieces);
                for (sum, n) in broken.iter_mut().zip(breaks(bytes)) {
                    *sum += n;
                }
                sampled += bytes.len() / 2;
            }
            let signed = broken[1] < broken[0];
            // One row waits longer for its products, so that rests take less of its time.
            let share = if count == 1 { MOST / 4 } else { MOST };
            if broken[usize::from(signed)] > sampled / share {
                return None;
            }
            let most = (count * depth).div_ceil(share);
            match signed {
                false => written::<false>(a, (first, count), places, most, rows).then_some(&UNSIGNED),
                true => written::<true>(a, (first, count), places, most, rows).then_some(&SIGNED),
            }
        }
    }

    /// The bytes of a row: where they lie, or the pieces side by side with `fill` in places that round them up.
    fn gathered<'a>(
        a: &'a ARows<'_, u8>,
        row: usize,
        places: usize,
        fill: u8,
        pieces: &'a mut Vec<u8>,
    ) -> &'a [u8] {
        if a.taps() == 1 {
            return a.piece(row, 0);
        }
        pieces.clear();
        for tap in 0..a.taps() {
            pieces.extend_from_slice(a.piece(row, tap));
            pieces.resize((tap + 1) * places, fill);
        }
        pieces
    }

    /// How many pairs break the rule of unsigned, and that of signed bytes.
    #[target_feature(enable = "avx2")]
    fn breaks(bytes: &[u8]) -> [usize; 2] {
        let ones = _mm256_set1_epi8(1);
        let mut counts = [_mm256_setzero_si256(); 2];
        let (vectors, tail) = bytes.as_chunks::<VECTOR>();
        // Pairs of these break neither.
        let mut last = [64; VECTOR];
        last[..tail.len()].copy_from_slice(tail);
        for vector in vectors.iter().take(i16::MAX as usize).chain([&last]) {
            // SAFETY: a vector of bytes.
            let x = unsafe { _mm256_loadu_si256(vector.as_ptr().cast()) };
            let sums = _mm256_maddubs_epi16(x, ones);
            let above = _mm256_cmpgt_epi16(sums, _mm256_set1_epi16(256));
            let outside = _mm256_or_si256(
                _mm256_cmpgt_epi16(sums, _mm256_set1_epi16(384)),
                _mm256_cmpgt_epi16(_mm256_set1_epi16(128), sums),
            );
            counts[0] = _mm256_sub_epi16(counts[0], above);
            counts[1] = _mm256_sub_epi16(counts[1], outside);
        }
        // SAFETY: plain bits of equal size.
        let counts: [[u16; 16]; 2] = unsafe { core::mem::transmute(counts) };
        counts.map(|lanes| lanes.iter().map(|&n| usize::from(n)).sum())
    }

    /// Writes rows in one of the forms; false when more than `most` pairs break its rule.
    #[target_feature(enable = "avx2")]
    fn written<const SIGNED: bool>(
        a: &ARows<'_, u8>,
        (first, count): (usize, usize),
        places: usize,
        most: usize,
        rows: &mut Rows,
    ) -> bool {
        let fill = if SIGNED { 128 } else { 0 };
        let Rows { data, stride, begin, rests, before, pieces } = rows;
        for (row, out) in data.chunks_exact_mut((*stride).max(1)).enumerate().take(count) {
            let bytes = gathered(a, first + row, places, fill, pieces);
            let mut sums = _mm256_setzero_si256();
            let (from, tail) = bytes.as_chunks::<VECTOR>();
            let (to, _) = out.as_chunks_mut::<VECTOR>();
            let mut last = [fill; VECTOR];
            last[..tail.len()].copy_from_slice(tail);
            for (v, to) in to.iter_mut().enumerate() {
                let from = from.get(v).unwrap_or(&last);
                // SAFETY: vectors of bytes.
                unsafe {
                    let x = _mm256_loadu_si256(from.as_ptr().cast());
                    let pairs = _mm256_maddubs_epi16(x, _mm256_set1_epi8(1));
                    let mut broken =
                        _mm256_cmpgt_epi16(pairs, _mm256_set1_epi16(if SIGNED { 384 } else { 256 }));
                    let mut x = x;
                    if SIGNED {
                        let below = _mm256_cmpgt_epi16(_mm256_set1_epi16(128), pairs);
                        broken = _mm256_or_si256(broken, below);
                        x = _mm256_xor_si256(x, _mm256_set1_epi8(-128));
                        sums = _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
                    }
                    _mm256_storeu_si256(to.as_mut_ptr().cast(), x);
                    let broken = _mm256_movemask_epi8(broken);
                    if broken != 0 {
                        halve::<SIGNED>(to, broken, (row, v), rests);
                    }
                }
            }
            if rests.len() > most {
                return false;
            }
            before.push(rests.len());
            // Every byte stands for 128 less.
            begin.push(match SIGNED {
                false => 0,
                true => ((128 * VECTOR * to.len()) as i32).wrapping_sub(total(sums)).wrapping_mul(128),
            });
        }
        true
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn total(sums: __m256i) -> i32 {
        // SAFETY: plain bits of equal size.
        let lanes: [i32; 8] = unsafe { core::mem::transmute(sums) };
        lanes.iter().fold(0, |sum, &lane| sum.wrapping_add(lane))
    }

    /// Leaves a half of every pair whose bits in `broken` are set, and lists the rest.
    #[cold]
    fn halve<const SIGNED: bool>(
        bytes: &mut [u8; VECTOR],
        broken: i32,
        (row, vector): (usize, usize),
        rests: &mut Vec<Rest>,
    ) {
        for (step, word) in bytes.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            let mut rest = [0; 4];
            for j in 0..4 {
                if broken >> (4 * step + j) & 1 == 1 {
                    let half = if SIGNED { (word[j] as i8 >> 1) as u8 } else { word[j] >> 1 };
                    rest[j] = word[j].wrapping_sub(half);
                    word[j] = half;
                }
            }
            if rest != [0; 4] {
                let step = (vector * VECTOR / 4 + step) as u32;
                rests.push(Rest { row: row as u32, step, word: i32::from_le_bytes(rest) });
            }
        }
    }

    /// The products of four bytes with four weights of 8 columns each, summed.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn dot<const SIGNED: bool>(a: __m256i, b: __m256i) -> __m256i {
        let pairs = if SIGNED { _mm256_maddubs_epi16(b, a) } else { _mm256_maddubs_epi16(a, b) };
        _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))
    }

    /// A step of a panel, as the form multiplies it.
    ///
    /// # Safety
    /// The step must be readable.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn weights<const SIGNED: bool>(at: *const i8) -> [__m256i; NV] {
        let mut b = [_mm256_setzero_si256(); NV];
        for v in 0..NV {
            // SAFETY: by the contract.
            b[v] = unsafe { _mm256_loadu_si256(at.cast::<__m256i>().add(v)) };
            if SIGNED {
                b[v] = _mm256_xor_si256(b[v], _mm256_set1_epi8(-128));
            }
        }
        b
    }

    /// # Safety
    /// See [`crate::gemm::TileFn`].
    #[target_feature(enable = "avx2")]
    unsafe fn tile<const MR: usize, const NP: usize, const SIGNED: bool>(
        args: &TileArgs<u8, i8>,
        tile: *mut i32,
    ) {
        let mut acc = [[[_mm256_setzero_si256(); NV]; NP]; MR];
        // SAFETY: one piece of `kc` bytes per row, what its sums begin with, and panels of `kc * NR` elements with
        // their sums are readable, and the tile holds MR rows of NP * NR elements, by the contract.
        unsafe {
            for p in 0..NP {
                for v in 0..NV {
                    let mut column = _mm256_setzero_si256();
                    if SIGNED {
                        let sums = _mm256_loadu_si256(args.sums.add(p * NR + 8 * v).cast());
                        column = _mm256_slli_epi32::<7>(sums);
                    }
                    for i in 0..MR {
                        acc[i][p][v] = _mm256_add_epi32(_mm256_set1_epi32(*args.begin.add(i)), column);
                    }
                }
            }
            let (mut panel, mut ahead) = (args.panel, args.ahead);
            let rows = tap_rows::<MR, _, _>(args, 0);
            for step in 0..args.kc / 4 {
                prefetch(ahead);
                ahead = ahead.wrapping_add(4 * args.ahead_step);
                for p in 0..NP {
                    let b = weights::<SIGNED>(panel.add(p * args.panel_stride));
                    for i in 0..MR {
                        let a = _mm256_set1_epi32(rows[i].cast::<i32>().add(step).read_unaligned());
                        for v in 0..NV {
                            acc[i][p][v] = _mm256_add_epi32(acc[i][p][v], dot::<SIGNED>(a, b[v]));
                        }
                    }
                }
                panel = panel.add(STEP);
            }
            for i in 0..MR {
                for p in 0..NP {
                    for v in 0..NV {
                        let at = tile.add((i * NP + p) * NR + 8 * v);
                        _mm256_storeu_si256(at.cast(), acc[i][p][v]);
                    }
                }
            }
        }
    }

    /// # Safety
    /// See [`Form::add`].
    #[target_feature(enable = "avx2")]
    unsafe fn add<const SIGNED: bool>(
        args: &TileArgs<u8, i8>,
        rests: &[Rest],
        (first, panels): (usize, usize),
        tile: *mut i32,
    ) {
        for p in 0..panels {
            let mut next = 0;
            while let Some(&Rest { row, .. }) = rests.get(next) {
                // SAFETY: by the contract, the panel has the steps and the tile the rows.
                unsafe {
                    let panel = args.panel.add(p * args.panel_stride);
                    let at = tile.add(((row as usize - first) * panels + p) * NR).cast::<__m256i>();
                    let mut sums = [_mm256_loadu_si256(at), _mm256_loadu_si256(at.add(1))];
                    while let Some(rest) = rests.get(next).filter(|rest| rest.row == row) {
                        let b = weights::<SIGNED>(panel.add(rest.step as usize * STEP));
                        let a = _mm256_set1_epi32(rest.word);
                        for v in 0..NV {
                            sums[v] = _mm256_add_epi32(sums[v], dot::<SIGNED>(a, b[v]));
                        }
                        next += 1;
                    }
                    _mm256_storeu_si256(at, sums[0]);
                    _mm256_storeu_si256(at.add(1), sums[1]);
                }
            }
        }
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::{AVX2, Rows};
    use crate::{
        Isa, Kernels,
        operands::{ARows, Dense},
    };

    /// Every pair of bytes, among usual ones: what is written stays within 16 bits with any weights, and is, with
    /// what it lacks, what was read.
    #[test]
    fn every_pair_is_written_within_bounds() {
        let Ok(kernels) = Kernels::for_isa(Isa::Avx2) else { return };
        const DEPTH: usize = 1030;
        for (usual, signed) in [(40u8, false), (140, true)] {
            for x in 0..=255 {
                let mut data = [usual; 256 * DEPTH];
                for (y, row) in data.chunks_exact_mut(DEPTH).enumerate() {
                    row[4 * y] = x;
                    row[4 * y + 1] = y as u8;
                    row[DEPTH - 1] = x;
                }
                let a = ARows::Dense(Dense { data: &data, rows: 256, stride: DEPTH, k: DEPTH });
                let mut rows = Rows::default();
                assert!((AVX2.prepare)(kernels, &a, (0, 256), &mut rows).is_some());
                for (i, from) in data.chunks_exact(DEPTH).enumerate() {
                    // SAFETY: a whole row.
                    let row = unsafe { core::slice::from_raw_parts(rows.row(i), rows.stride) };
                    let mut sums = [0; DEPTH];
                    let mut add = |at: usize, bytes: &[u8]| {
                        for (k, pair) in bytes.chunks_exact(2).enumerate() {
                            let pair = [pair[0], pair[1]]
                                .map(|b| if signed { i32::from(b as i8) } else { i32::from(b) });
                            let of = |sign: i32| pair.iter().map(|p| (p * sign).max(0)).sum::<i32>();
                            assert!(if signed {
                                255 * of(1).max(of(-1)) <= 0x7fff
                            } else {
                                128 * of(1) <= 0x8000
                            });
                            for j in 0..2 {
                                if let Some(sum) = sums.get_mut(at + 2 * k + j) {
                                    *sum += pair[j]
                                }
                            }
                        }
                    };
                    add(0, row);
                    for rest in rows.rests(i, i + 1) {
                        add(4 * rest.step as usize, &rest.word.to_le_bytes());
                    }
                    let zero = if signed { 128 } else { 0 };
                    assert!(sums.iter().zip(from).all(|(&sum, &x)| sum == i32::from(x) - zero));
                    // SAFETY: one number for each row.
                    let begin = unsafe { *rows.begin(i) };
                    assert_eq!(begin, -zero * sums.iter().sum::<i32>());
                }
            }
        }
    }
}
