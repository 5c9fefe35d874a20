//! Convolutions of bytes with 3×3 windows by F(4×4, 3×3), exactly.
//!
//! With rows scaled to integers, the transforms take bytes to 16 bits on both sides. Products are
//! summed modulo 2³² and transformed back to 576 = 9 · 64 times the result. 9 has an inverse modulo
//! 2³², and 64 is shifted out, which leaves the result if that fits 26 bits; whether it always
//! does, the weights tell.

use core::ops::Range;

use alloc::vec::Vec;

use crate::{
    Kernels,
    aligned::Aligned,
    epilogue::{EpilogueI32, Finish, Place, Scratch, finish_i32},
    gemm::driver::row_tiles,
    operands::Output,
    table::{Tile, winograd_u8i8_tiles},
};

/// Pixels along an edge of a tile of results.
const OUT: usize = 4;
/// Pixels along an edge of what it depends on.
const IN: usize = 6;
/// Elements of a transformed tile.
const ELEMENTS: usize = IN * IN;
/// Elements of a kernel.
const TAPS: usize = 9;
/// Results must be less than this: what is left of 32 bits without the factor of 64.
const LIMIT: i64 = 1 << 25;
/// Tiles that are finished together.
const GROUP: usize = 4;
/// Bytes of transformed input and products that stay in the second-level cache.
const BLOCK_BYTES: usize = 512 * 1024;

/// Channels-last images of bytes, and where windows of 3×3 lie on them.
#[derive(Clone, Copy, Debug)]
pub struct ByteImages<'a> {
    /// `[images][height][width][channels]`.
    pub data: &'a [u8],
    /// Number of images.
    pub images: usize,
    /// Height and width of an input image.
    pub input: [usize; 2],
    /// Channels of the input.
    pub channels: usize,
    /// Padding above and on the left; that on the other sides follows from `output`.
    pub pad: [usize; 2],
    /// What padding reads.
    pub zero: u8,
    /// Height and width of an output image.
    pub output: [usize; 2],
}

impl ByteImages<'_> {
    /// Rows of tiles in all images: the unit in which work is split.
    pub fn tile_rows(&self) -> usize {
        self.images * self.output[0].div_ceil(OUT)
    }

    /// Tiles in a row.
    pub fn across(&self) -> usize {
        self.output[1].div_ceil(OUT)
    }

    /// The first output pixel of a row of tiles, counted over all images.
    pub fn first_pixel(&self, tile_row: usize) -> usize {
        let per_image = self.output[0].div_ceil(OUT).max(1);
        let (image, row) = (tile_row / per_image, tile_row % per_image);
        (image * self.output[0] + row * OUT) * self.output[1]
    }

    /// Starts of the pixels that tile `tile` depends on; `padding` outside of the image.
    fn pixels(&self, tile: usize, padding: *const u8) -> [*const u8; ELEMENTS] {
        let per_image = self.output[0].div_ceil(OUT);
        let (tile_row, column) = (tile / self.across(), tile % self.across());
        let (image, row) = (tile_row / per_image, tile_row % per_image);
        let mut pixels = [padding; ELEMENTS];
        for i in 0..IN {
            // Wraps above and on the left, and is then beyond the image, too.
            let y = (row * OUT + i).wrapping_sub(self.pad[0]);
            if y >= self.input[0] {
                continue;
            }
            for j in 0..IN {
                let x = (column * OUT + j).wrapping_sub(self.pad[1]);
                if x < self.input[1] {
                    let pixel = (image * self.input[0] + y) * self.input[1] + x;
                    pixels[i * IN + j] = self.data[pixel * self.channels..][..self.channels].as_ptr();
                }
            }
        }
        pixels
    }
}

/// Transformed and packed weights of [`winograd_u8i8`].
#[derive(Debug)]
pub struct PackedWinogradI8 {
    /// `[n / nr][elements][channels / 2][nr][2]`.
    data: Aligned<i16>,
    sums: Vec<i32>,
    channels: usize,
    n: usize,
    tile: Tile,
    kernels: &'static WinogradI8Tiles,
}

impl PackedWinogradI8 {
    /// Packs `value(n, channel, tap)`; `None` where the instruction set has no such kernel, channels are
    /// no whole vectors, or weights are so large that a result might not fit.
    pub fn pack(
        kernels: Kernels,
        channels: usize,
        n: usize,
        value: impl Fn(usize, usize, usize) -> i8,
    ) -> Option<Self> {
        let (tile, tiles) = winograd_u8i8_tiles(kernels)?;
        if channels == 0 || !channels.is_multiple_of(tiles.lanes) {
            return None;
        }
        let mut data = Aligned::zeroed(n.next_multiple_of(tile.nr) * ELEMENTS * channels);
        let mut sums = Vec::with_capacity(n);
        let panel_len = ELEMENTS * channels * tile.nr;
        for col in 0..n {
            let (mut positive, mut negative) = (0i64, 0i64);
            let panel = &mut data.as_mut_slice()[col / tile.nr * panel_len..][..panel_len];
            for c in 0..channels {
                let taps: [i16; TAPS] = core::array::from_fn(|tap| i16::from(value(col, c, tap)));
                for w in taps {
                    if w > 0 { positive += i64::from(w) } else { negative -= i64::from(w) }
                }
                for (e, u) in transform_weights(&taps).into_iter().enumerate() {
                    panel[((e * channels + c) / 2 * tile.nr + col % tile.nr) * 2 + c % 2] = u;
                }
            }
            if 255 * positive.max(negative) >= LIMIT {
                return None;
            }
            sums.push((positive - negative) as i32);
        }
        Some(Self { data, sums, channels, n, tile, kernels: tiles })
    }

    /// Σ of the weights of each column; what [`crate::fold_zero_point`] needs.
    pub fn col_sums(&self) -> &[i32] {
        &self.sums
    }

    /// Memory taken.
    pub fn bytes(&self) -> usize {
        size_of_val(self.data.as_slice())
    }

    fn layout(&self, tiles: usize) -> Layout {
        let bytes = ELEMENTS * (2 * self.channels + 4 * self.tile.nr);
        let most = (BLOCK_BYTES / bytes).max(2 * self.tile.mr);
        let block = tiles.div_ceil(tiles.div_ceil(most).max(1));
        // Elements of a tile would fall into the same sets of the cache without the extra line.
        Layout { block, input: block * self.channels + 32, products: block * self.tile.nr + 16 }
    }

    /// Elements of scratch memory that a call of [`winograd_u8i8`] on `tiles` tiles needs.
    pub fn scratch_len(&self, tiles: usize) -> usize {
        let l = self.layout(tiles);
        self.channels.div_ceil(4) + ELEMENTS * (l.input / 2 + l.products)
    }
}

/// How a block of tiles lies in scratch memory: padding, the transformed input, products.
struct Layout {
    /// Most tiles of a block.
    block: usize,
    /// Distance between elements of the transformed input, in 16-bit numbers; even.
    input: usize,
    /// Distance between elements of the products.
    products: usize,
}

/// The rows of the transform, without their factors of 1/4, −1/6, −1/6, 1/24, 1/24 and 1.
fn transform_weights(taps: &[i16; TAPS]) -> [i16; ELEMENTS] {
    let row = |[a, b, c]: [i16; 3]| [a, a + b + c, a - b + c, a + 2 * b + 4 * c, a - 2 * b + 4 * c, c];
    let mut half = [[0; 3]; IN];
    for j in 0..3 {
        for (i, h) in row([taps[j], taps[3 + j], taps[6 + j]]).into_iter().enumerate() {
            half[i][j] = h;
        }
    }
    let mut out = [0; ELEMENTS];
    for (out, half) in out.as_chunks_mut::<IN>().0.iter_mut().zip(half) {
        *out = row(half);
    }
    out
}

/// Writes the products of `MR` rows, `row_stride` apart, of `pairs` pairs of 16-bit numbers with one
/// element of a panel, side by side.
type Product = unsafe fn(*const i16, usize, usize, *const i16, *mut i32);

/// The code of an instruction set.
#[derive(Debug)]
pub struct WinogradI8Tiles {
    /// 16-bit lanes of a vector.
    lanes: usize,
    /// Writes the transforms of pixels of that many channels, elements at a distance.
    input: unsafe fn(&[*const u8; ELEMENTS], usize, *mut i16, usize),
    /// `by_rows[i]` computes `i + 1` rows.
    by_rows: &'static [Product],
    /// Transforms products, elements at a distance, to rows of pixels of one panel each.
    output: unsafe fn(*const i32, usize, [*mut i32; OUT]),
}

/// `out = epilogue(conv(x, w))` for rows `tile_rows` of tiles and all columns; the sums are those of
/// [`crate::gemm_u8i8`].
///
/// Row 0 of `out` and of the residual is pixel [`ByteImages::first_pixel`] of the first row of tiles, and
/// they end where the next row would begin.
///
/// # Panics
/// When the shapes of the operands disagree, or `scratch` is shorter than
/// [`PackedWinogradI8::scratch_len`] of the tiles in `tile_rows`.
pub fn winograd_u8i8(
    kernels: Kernels,
    x: &ByteImages<'_>,
    tile_rows: Range<usize>,
    w: &PackedWinogradI8,
    ep: &EpilogueI32<'_>,
    scratch: &mut [i32],
    mut out: Output<'_>,
) {
    let (Tile { mr, nr, .. }, channels, n) = (w.tile, w.channels, w.n);
    let first_pixel = x.first_pixel(tile_rows.start);
    let across = x.across();
    let tiles = tile_rows.start * across..tile_rows.end * across;
    let l = w.layout(tiles.len());
    assert_eq!(x.channels, channels, "channels of the images and of the weights");
    assert_eq!(x.data.len(), x.images * x.input[0] * x.input[1] * channels, "elements of the images");
    assert!(tile_rows.end <= x.tile_rows(), "rows of tiles {tile_rows:?}");
    assert_eq!(out.rows(), x.first_pixel(tile_rows.end) - first_pixel, "rows of the output");
    assert_eq!(out.cols(), n, "columns of the output");
    assert!(scratch.len() >= w.scratch_len(tiles.len()), "scratch of {}", scratch.len());
    if tiles.is_empty() || n == 0 {
        return;
    }
    ep.validate(out.rows(), n);
    let finish = if nr == 16 { finish_i32::<16> } else { finish_i32::<32> };

    let (padding, rest) = scratch.split_at_mut(channels.div_ceil(4));
    let (input, products) = rest.split_at_mut(ELEMENTS * l.input / 2);
    padding.fill(i32::from_ne_bytes([x.zero; 4]));
    let (input, products) = (input.as_mut_ptr().cast::<i16>(), products.as_mut_ptr());
    let mut rows: [Scratch<i32>; OUT] = core::array::from_fn(|_| Scratch::new(0));

    for start in tiles.clone().step_by(l.block) {
        let count = l.block.min(tiles.end - start);
        for i in 0..count {
            let pixels = x.pixels(start + i, padding.as_ptr().cast());
            // SAFETY: the handle that the weights were packed for proves the instruction set; every
            // pixel holds all channels, which are whole vectors; the scratch memory was checked to hold
            // `l.input` numbers for each element, of which tile `i` takes `channels`.
            unsafe { (w.kernels.input)(&pixels, channels, input.add(i * channels), l.input) };
        }
        for (p, panel) in w.data.as_slice().chunks_exact(ELEMENTS * channels * nr).enumerate() {
            for (e, weights) in panel.chunks_exact(channels * nr).enumerate() {
                for (first, rows) in row_tiles(count, mr) {
                    let product = w.kernels.by_rows[rows - 1];
                    // SAFETY: as above; `weights` is one element of a panel, and the scratch memory was
                    // checked to hold `l.products` numbers for each element, `nr` for each tile.
                    unsafe {
                        let from = input.add(e * l.input + first * channels);
                        let to = products.add(e * l.products + first * nr);
                        product(from, channels, channels / 2, weights.as_ptr(), to);
                    }
                }
            }
            let mut done = 0;
            while done < count {
                let (tile_row, column) = ((start + done) / across, (start + done) % across);
                let group = GROUP.min(count - done).min(across - column);
                for i in 0..group {
                    let [a, b, c, d] = &mut rows;
                    let to = [a, b, c, d].map(|s| s.acc[i * OUT * nr..][..OUT * nr].as_mut_ptr());
                    // SAFETY: as above; there is room for four pixels of a panel in each row.
                    unsafe { (w.kernels.output)(products.add((done + i) * nr), l.products, to) };
                }
                let pixel = x.first_pixel(tile_row) - first_pixel + column * OUT;
                let top = tile_row % x.output[0].div_ceil(OUT) * OUT;
                for (y, row) in rows.iter_mut().enumerate().take(x.output[0] - top) {
                    let place = Place {
                        row: pixel + y * x.output[1],
                        rows: (group * OUT).min(x.output[1] - column * OUT),
                        col: p * nr,
                        cols: nr.min(n - p * nr),
                        n0: 0,
                    };
                    finish(kernels, ep, row, 0, place, &mut out);
                }
                done += group;
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{AVX2, AVX512, AVX512_VNNI};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use core::arch::x86_64::*;

    use super::{ELEMENTS, IN, OUT, WinogradI8Tiles};

    /// 9⁻¹ modulo 2³².
    const NINTH: i32 = 0x38E3_8E39;

    /// A register of integers.
    ///
    /// # Safety
    /// Every method needs the instruction set of the register, and pointers to as many elements.
    trait Register: Copy {
        /// 16-bit lanes.
        const LANES: usize;
        unsafe fn widen(from: *const u8) -> Self;
        unsafe fn load<T>(from: *const T) -> Self;
        unsafe fn store<T>(self, to: *mut T);
        unsafe fn add16(self, other: Self) -> Self;
        unsafe fn sub16(self, other: Self) -> Self;
        unsafe fn add32(self, other: Self) -> Self;
        unsafe fn sub32(self, other: Self) -> Self;
        /// `self / 9` modulo 2³², shifted right by 6 bits.
        unsafe fn unscale(self) -> Self;
    }

    macro_rules! register {
        ($v:ty, $lanes:literal, $widen:expr, $add16:ident $sub16:ident $add32:ident $sub32:ident $unscale:expr) => {
            impl Register for $v {
                const LANES: usize = $lanes;
                #[inline(always)]
                unsafe fn widen(from: *const u8) -> Self {
                    // SAFETY: by the contract, here and below.
                    unsafe { $widen(from) }
                }
                #[inline(always)]
                unsafe fn load<T>(from: *const T) -> Self {
                    // SAFETY: as above.
                    unsafe { from.cast::<Self>().read_unaligned() }
                }
                #[inline(always)]
                unsafe fn store<T>(self, to: *mut T) {
                    // SAFETY: as above.
                    unsafe { to.cast::<Self>().write_unaligned(self) }
                }
                #[inline(always)]
                unsafe fn add16(self, other: Self) -> Self {
                    // SAFETY: as above.
                    unsafe { $add16(self, other) }
                }
                #[inline(always)]
                unsafe fn sub16(self, other: Self) -> Self {
                    // SAFETY: as above.
                    unsafe { $sub16(self, other) }
                }
                #[inline(always)]
                unsafe fn add32(self, other: Self) -> Self {
                    // SAFETY: as above.
                    unsafe { $add32(self, other) }
                }
                #[inline(always)]
                unsafe fn sub32(self, other: Self) -> Self {
                    // SAFETY: as above.
                    unsafe { $sub32(self, other) }
                }
                #[inline(always)]
                unsafe fn unscale(self) -> Self {
                    // SAFETY: as above.
                    unsafe { $unscale(self) }
                }
            }
        };
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn widen256(from: *const u8) -> __m256i {
        // SAFETY: 16 bytes, by the contract of the caller.
        _mm256_cvtepu8_epi16(unsafe { _mm_loadu_si128(from.cast()) })
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn widen512(from: *const u8) -> __m512i {
        // SAFETY: 32 bytes, by the contract of the caller.
        _mm512_cvtepu8_epi16(unsafe { _mm256_loadu_si256(from.cast()) })
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn unscale256(x: __m256i) -> __m256i {
        _mm256_srai_epi32::<6>(_mm256_mullo_epi32(x, _mm256_set1_epi32(NINTH)))
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn unscale512(x: __m512i) -> __m512i {
        _mm512_srai_epi32::<6>(_mm512_mullo_epi32(x, _mm512_set1_epi32(NINTH)))
    }

    register!(__m256i, 16, widen256, _mm256_add_epi16 _mm256_sub_epi16 _mm256_add_epi32 _mm256_sub_epi32 unscale256);
    register!(__m512i, 32, widen512, _mm512_add_epi16 _mm512_sub_epi16 _mm512_add_epi32 _mm512_sub_epi32 unscale512);

    /// The transform of six inputs, in 16 bits.
    ///
    /// # Safety
    /// See [`Register`].
    #[inline(always)]
    unsafe fn forward<R: Register>(d: [R; IN]) -> [R; IN] {
        // SAFETY: by the contract.
        unsafe {
            let twice = d[3].sub16(d[1]);
            let twice = twice.add16(twice);
            let odd = d[4].sub16(d[2]);
            [
                quadruple16(d[0].sub16(d[2])).sub16(d[2]).add16(d[4]),
                d[3].add16(d[4]).sub16(quadruple16(d[1].add16(d[2]))),
                d[4].sub16(d[3]).add16(quadruple16(d[1].sub16(d[2]))),
                odd.add16(twice),
                odd.sub16(twice),
                quadruple16(d[1].sub16(d[3])).sub16(d[3]).add16(d[5]),
            ]
        }
    }

    /// # Safety
    /// See [`Register`].
    #[inline(always)]
    unsafe fn quadruple16<R: Register>(x: R) -> R {
        // SAFETY: by the contract.
        unsafe {
            let x = x.add16(x);
            x.add16(x)
        }
    }

    /// # Safety
    /// See [`Register`].
    #[inline(always)]
    unsafe fn double32<R: Register>(x: R) -> R {
        // SAFETY: by the contract.
        unsafe { x.add32(x) }
    }

    /// 24 times the transform of six products to four results, modulo 2³², with the factors that the
    /// weights were spared.
    ///
    /// # Safety
    /// See [`Register`].
    #[inline(always)]
    unsafe fn backward<R: Register>(m: [R; IN]) -> [R; OUT] {
        // SAFETY: by the contract.
        unsafe {
            let (low, low_odd) = (m[1].add32(m[2]), m[1].sub32(m[2]));
            let (high, high_odd) = (m[3].add32(m[4]), m[3].sub32(m[4]));
            let low4 = double32(double32(low));
            let low_odd4 = double32(double32(low_odd));
            let high_odd2 = double32(high_odd);
            let first = double32(m[0]);
            let last = double32(m[5]);
            let last = double32(double32(last.add32(double32(last))));
            [
                first.add32(double32(first)).sub32(low4).add32(high),
                high_odd2.sub32(low_odd4),
                double32(double32(high)).sub32(low4),
                double32(double32(high_odd2)).sub32(low_odd4).add32(last),
            ]
        }
    }

    /// # Safety
    /// See [`WinogradI8Tiles`].
    #[inline(always)]
    unsafe fn input<R: Register>(from: &[*const u8; ELEMENTS], channels: usize, to: *mut i16, stride: usize) {
        // SAFETY: by the contract; channels are whole registers.
        unsafe {
            for c in (0..channels).step_by(R::LANES) {
                let mut half = [[R::widen(from[0].add(c)); IN]; IN];
                for i in 0..IN {
                    let mut row = half[0];
                    for j in 0..IN {
                        row[j] = R::widen(from[i * IN + j].add(c));
                    }
                    half[i] = forward(row);
                }
                for j in 0..IN {
                    let column = [half[0][j], half[1][j], half[2][j], half[3][j], half[4][j], half[5][j]];
                    let column = forward(column);
                    for i in 0..IN {
                        column[i].store(to.add((i * IN + j) * stride + c));
                    }
                }
            }
        }
    }

    /// # Safety
    /// See [`WinogradI8Tiles`]; `N` columns.
    #[inline(always)]
    unsafe fn output<R: Register, const N: usize>(from: *const i32, stride: usize, to: [*mut i32; OUT]) {
        // SAFETY: by the contract.
        unsafe {
            for c in (0..N).step_by(R::LANES / 2) {
                let from = from.add(c);
                let mut half = [[R::load(from); IN]; OUT];
                for j in 0..IN {
                    let column = [
                        R::load(from.add(j * stride)),
                        R::load(from.add((IN + j) * stride)),
                        R::load(from.add((2 * IN + j) * stride)),
                        R::load(from.add((3 * IN + j) * stride)),
                        R::load(from.add((4 * IN + j) * stride)),
                        R::load(from.add((5 * IN + j) * stride)),
                    ];
                    let column = backward(column);
                    for i in 0..OUT {
                        half[i][j] = column[i];
                    }
                }
                for i in 0..OUT {
                    let row = backward(half[i]);
                    for j in 0..OUT {
                        row[j].unscale().store(to[i].add(j * N + c));
                    }
                }
            }
        }
    }

    /// Defines the functions of an instruction set: `$step` adds the products of pairs to sums.
    macro_rules! tiles {
        ($name:ident $module:ident $feature:literal $v:ty, $nr:literal, $zero:expr, $splat:ident, $step:expr; $($mr:literal)*) => {
            mod $module {
                use super::*;

                /// # Safety
                /// See [`WinogradI8Tiles`].
                #[target_feature(enable = $feature)]
                pub(super) unsafe fn transform(from: &[*const u8; ELEMENTS], channels: usize, to: *mut i16, stride: usize) {
                    // SAFETY: by the contract.
                    unsafe { input::<$v>(from, channels, to, stride) }
                }

                /// # Safety
                /// See [`WinogradI8Tiles`].
                #[target_feature(enable = $feature)]
                pub(super) unsafe fn result(from: *const i32, stride: usize, to: [*mut i32; OUT]) {
                    // SAFETY: by the contract.
                    unsafe { output::<$v, $nr>(from, stride, to) }
                }

                /// # Safety
                /// See [`super::super::Product`].
                #[target_feature(enable = $feature)]
                pub(super) unsafe fn product<const MR: usize>(
                    rows: *const i16,
                    row_stride: usize,
                    pairs: usize,
                    weights: *const i16,
                    to: *mut i32,
                ) {
                    // SAFETY: by the contract.
                    unsafe {
                        let mut acc = [[$zero; 2]; MR];
                        for pair in 0..pairs {
                            let at = weights.add(pair * 2 * $nr);
                            let b = [<$v>::load(at), <$v>::load(at.add($nr))];
                            for i in 0..MR {
                                let a = rows.add(i * row_stride + 2 * pair).cast::<i32>().read_unaligned();
                                let a = $splat(a);
                                for v in 0..2 {
                                    acc[i][v] = $step(acc[i][v], a, b[v]);
                                }
                            }
                        }
                        for i in 0..MR {
                            for v in 0..2 {
                                acc[i][v].store(to.add(i * $nr + v * $nr / 2));
                            }
                        }
                    }
                }
            }

            pub(crate) static $name: WinogradI8Tiles = WinogradI8Tiles {
                lanes: <$v as Register>::LANES,
                input: $module::transform,
                by_rows: &[$($module::product::<$mr>),*],
                output: $module::result,
            };
        };
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn step256(acc: __m256i, a: __m256i, b: __m256i) -> __m256i {
        _mm256_add_epi32(acc, _mm256_madd_epi16(a, b))
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn step512(acc: __m512i, a: __m512i, b: __m512i) -> __m512i {
        _mm512_add_epi32(acc, _mm512_madd_epi16(a, b))
    }

    tiles!(AVX2 avx2 "avx2" __m256i, 16, _mm256_setzero_si256(), _mm256_set1_epi32, step256; 1 2 3 4 5 6);
    tiles!(AVX512 avx512 "avx512f,avx512bw" __m512i, 32, _mm512_setzero_si512(), _mm512_set1_epi32, step512; 1 2 3 4 5 6 7 8 9 10 11 12);
    tiles!(AVX512_VNNI avx512vnni "avx512f,avx512bw,avx512vnni" __m512i, 32, _mm512_setzero_si512(), _mm512_set1_epi32, _mm512_dpwssd_epi32; 1 2 3 4 5 6 7 8 9 10 11 12);
}
