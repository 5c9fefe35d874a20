//! Convolutions of 3×3 windows with stride 1 by fewer multiplications: tiles of the image are
//! transformed, multiplied element by element, and transformed back.
//!
//! Source: Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks" (2015). Each of the 16
//! or 36 elements of a transformed tile is a matrix product over channels, which the micro-kernels
//! of [`crate::gemm_f32`] compute. A block of tiles is transformed, then for each panel of output
//! channels all its products are computed and transformed back while they are in cache; weights are
//! stored in the order of reading.

pub(crate) mod bytes;
mod transform;

use core::ops::Range;

use crate::{
    Kernels, Unary,
    aligned::SharedBytes,
    elementwise,
    epilogue::{EpilogueF32, Residual},
    gemm::{TileArgs, driver::row_tiles},
    operands::MatMut,
    pack::Panels,
    table::{gemm_f32_tiles, winograd_f32_tiles},
    vector::Vector,
};
use transform::{Destination, KERNEL, MOST};

/// The edge of the tile of results that is computed at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TileEdge {
    /// F(2×2, 3×3): 2¼ times fewer multiplications, 16 products per tile.
    Two,
    /// F(4×4, 3×3): 4 times fewer, 36 products, and some 10 times the rounding error.
    Four,
}

impl TileEdge {
    /// Pixels along an edge.
    pub const fn pixels(self) -> usize {
        match self {
            Self::Two => 2,
            Self::Four => 4,
        }
    }

    /// Elements of a transformed tile.
    pub const fn elements(self) -> usize {
        let edge = self.pixels() + KERNEL - 1;
        edge * edge
    }

    /// Factor of the rounding error: every |result − exact| is at most
    /// `(channels + 24) · 2⁻²³ · error_factor · max|x| · Σ|w|` over the weights of its column. What
    /// is usual is a hundred times less.
    pub const fn error_factor(self) -> f32 {
        // The square of max over results of Σ |A| · max|G| · Σ|B|, element by element.
        match self {
            Self::Two => 16.0,
            Self::Four => 860.0,
        }
    }
}

/// Channels-last images, and where windows of 3×3 lie on them.
#[derive(Clone, Copy, Debug)]
pub struct Images<'a> {
    /// `[images][height][width][channels]`.
    pub data: &'a [f32],
    /// Number of images.
    pub images: usize,
    /// Height and width of an input image.
    pub input: [usize; 2],
    /// Channels of the input.
    pub channels: usize,
    /// Zeros above and on the left; those on the other sides follow from `output`.
    pub pad: [usize; 2],
    /// Height and width of an output image.
    pub output: [usize; 2],
}

impl Images<'_> {
    /// Rows of tiles in all images: the unit in which work is split.
    pub fn tile_rows(&self, edge: TileEdge) -> usize {
        self.images * self.output[0].div_ceil(edge.pixels())
    }

    /// The first output pixel of a row of tiles, counted over all images.
    pub fn first_pixel(&self, edge: TileEdge, tile_row: usize) -> usize {
        let per_image = self.output[0].div_ceil(edge.pixels()).max(1);
        let (image, row) = (tile_row / per_image, tile_row % per_image);
        (image * self.output[0] + row * edge.pixels()) * self.output[1]
    }
}

/// Transformed and packed weights of [`winograd_f32`].
#[derive(Debug)]
pub struct PackedWinograd {
    /// One tap per element of the transformed tile.
    panels: Panels<f32, f32, f32>,
    edge: TileEdge,
    tiles: &'static WinogradTiles,
}

impl PackedWinograd {
    /// Transforms and packs `weights`, `[n][channels][3][3]`, that `convert` makes numbers of.
    ///
    /// # Panics
    /// When there are fewer weights.
    pub fn pack<S: Copy>(
        kernels: Kernels,
        edge: TileEdge,
        channels: usize,
        n: usize,
        weights: &[S],
        convert: impl Fn(S) -> f32,
    ) -> Self {
        let (tile, gemm) = gemm_f32_tiles(kernels);
        let (_, tiles) = winograd_f32_tiles(kernels);
        let mut panels = Panels::new(tile, gemm, edge.elements(), channels, n);
        let (nr, panel_len) = (tile.nr, panels.stride());
        assert!(weights.len() >= n * channels * TAPS, "{} weights", weights.len());
        assert!(nr <= MOST_COLUMNS && nr.is_multiple_of(tiles.lanes));
        if panel_len > 0 {
            for (p, panel) in panels.data.as_mut_slice().chunks_exact_mut(panel_len).enumerate() {
                let mut taps = [0.0; TAPS * MOST_COLUMNS];
                let cols = nr.min(n - p * nr);
                for c in 0..channels {
                    for j in 0..cols {
                        let kernel = &weights[((p * nr + j) * channels + c) * TAPS..][..TAPS];
                        for (t, &w) in kernel.iter().enumerate() {
                            taps[t * nr + j] = convert(w);
                        }
                    }
                    let to = &mut panel[c * nr..];
                    // SAFETY: the table gives transforms that run here; `taps` holds nine times
                    // `nr` weights; the last element begins `channels * nr` before the end.
                    unsafe {
                        (tiles.of(edge).weights)(taps.as_ptr(), nr, to.as_mut_ptr(), channels * nr);
                    }
                }
            }
        }
        Self { panels, edge, tiles }
    }

    pub(crate) fn bytes_of_panels(&self) -> &[u8] {
        self.panels.data.as_bytes()
    }

    /// Weights that lie transformed and packed in `data`; `None` when it has another size.
    pub(crate) fn restored(
        kernels: Kernels,
        (edge, channels, n): (TileEdge, usize, usize),
        data: SharedBytes,
    ) -> Option<Self> {
        let (tile, gemm) = gemm_f32_tiles(kernels);
        let (_, tiles) = winograd_f32_tiles(kernels);
        let panels = Panels::restore(tile, gemm, (edge.elements(), channels, n), data)?;
        Some(Self { panels, edge, tiles })
    }

    /// The tile that the weights are transformed for.
    pub fn edge(&self) -> TileEdge {
        self.edge
    }

    /// Number of columns.
    pub fn n(&self) -> usize {
        self.panels.n
    }

    /// Columns per panel: work is split between columns only at multiples of it.
    pub fn col_granule(&self) -> usize {
        self.panels.tile.nr
    }

    /// Memory taken.
    pub fn bytes(&self) -> usize {
        size_of_val(self.panels.data.as_slice())
    }

    fn layout(&self, tiles: usize) -> Layout {
        let elements = self.edge.elements();
        let width = self.panels.kc.next_multiple_of(LINE);
        let bytes = |count: usize| elements * width * count * size_of::<f32>();
        // Bytes read from beyond the second-level cache: all weights for each block, and for each
        // panel the whole transformed input where a block of it does not stay.
        let fitting = tiles.div_ceil((BLOCK_BYTES / bytes(1).max(1)).max(1)).max(1);
        let panels = self.panels.n.div_ceil(self.panels.tile.nr);
        let count = if fitting * self.bytes() < self.bytes() + panels * bytes(tiles) { fitting } else { 1 };
        let block = tiles.div_ceil(count);
        // Elements of a tile would fall into the same sets of the cache without the extra line.
        Layout { width, block, stride: block * width + LINE, products: block * self.panels.tile.nr + LINE }
    }

    /// Elements of scratch memory that a call of [`winograd_f32`] on `tiles` tiles needs.
    pub fn scratch_len(&self, tiles: usize) -> usize {
        let l = self.layout(tiles);
        l.width + self.edge.elements() * (l.stride + l.products) + LINE
    }
}

/// Elements of a kernel.
const TAPS: usize = KERNEL * KERNEL;
/// The widest panel.
const MOST_COLUMNS: usize = 32;
/// Elements of a cache line.
const LINE: usize = 16;
/// Bytes of transformed input that stay in the second-level cache while all panels pass by.
const BLOCK_BYTES: usize = 640 * 1024;

/// How a block of tiles lies in scratch memory: a line of zeros, the transformed input, products.
#[derive(Clone, Copy)]
struct Layout {
    /// Channels, rounded up.
    width: usize,
    /// Most tiles of a block.
    block: usize,
    /// Distance between elements of the transformed input.
    stride: usize,
    /// Distance between elements of the products.
    products: usize,
}

/// The transforms of an instruction set.
#[derive(Debug)]
pub struct WinogradTiles {
    /// Panels and rows of the transformed input are whole vectors of this many reals.
    lanes: usize,
    two: Transforms,
    four: Transforms,
}

impl WinogradTiles {
    fn of(&self, edge: TileEdge) -> &Transforms {
        match edge {
            TileEdge::Two => &self.two,
            TileEdge::Four => &self.four,
        }
    }
}

/// The functions of [`transform`] for one vector and tile.
#[derive(Debug)]
struct Transforms {
    input: unsafe fn(&[*const f32; MOST], usize, *mut f32, usize),
    output: unsafe fn(*const f32, usize, &Destination),
    weights: unsafe fn(*const f32, usize, *mut f32, usize),
}

/// Instantiates the transforms for a vector type with its features.
macro_rules! transforms {
    ($(#[$meta:meta])* $name:ident $vector:ty $(, $feature:literal)?) => {
        $(#[$meta])*
        pub(crate) static $name: WinogradTiles = {
            /// # Safety
            /// See [`transform::input_tile`].
            $(#[target_feature(enable = $feature)])?
            unsafe fn input<const IN: usize>(from: &[*const f32; MOST], n: usize, to: *mut f32, stride: usize) {
                // SAFETY: by the contract.
                unsafe { transform::input_tile::<$vector, IN>(from, n, to, stride) }
            }
            /// # Safety
            /// See [`transform::output_tile`].
            $(#[target_feature(enable = $feature)])?
            unsafe fn output<const OUT: usize, const IN: usize>(from: *const f32, stride: usize, to: &Destination) {
                // SAFETY: by the contract.
                unsafe { transform::output_tile::<$vector, OUT, IN>(from, stride, to) }
            }
            /// # Safety
            /// See [`transform::weight_tile`].
            $(#[target_feature(enable = $feature)])?
            unsafe fn weights<const IN: usize>(from: *const f32, lanes: usize, to: *mut f32, stride: usize) {
                // SAFETY: by the contract.
                unsafe { transform::weight_tile::<$vector, IN>(from, lanes, to, stride) }
            }
            WinogradTiles {
                lanes: <$vector as Vector>::LANES,
                two: Transforms { input: input::<4>, output: output::<2, 4>, weights: weights::<4> },
                four: Transforms { input: input::<6>, output: output::<4, 6>, weights: weights::<6> },
            }
        };
    };
}

transforms!(PORTABLE [f32; 4]);
#[cfg(target_arch = "x86_64")]
transforms!(AVX2 core::arch::x86_64::__m256, "avx2,fma");
#[cfg(target_arch = "x86_64")]
transforms!(AVX512 core::arch::x86_64::__m512, "avx512f");

/// Convolves the windows of rows `tile_rows` of tiles with columns `n0 .. n0 + out.cols()` of `w`.
///
/// Row 0 of `out` and of the residual is pixel [`Images::first_pixel`] of the first row of tiles, and
/// they end where the next row would begin; columns count as in [`crate::gemm_f32`].
///
/// # Panics
/// When the shapes of the operands disagree, the residual is not real, `n0` is not a multiple of
/// [`PackedWinograd::col_granule`], or `scratch` is shorter than [`PackedWinograd::scratch_len`] of
/// the tiles in `tile_rows`.
#[allow(clippy::too_many_arguments)]
pub fn winograd_f32(
    kernels: Kernels,
    x: &Images<'_>,
    tile_rows: Range<usize>,
    w: &PackedWinograd,
    n0: usize,
    ep: &EpilogueF32<'_>,
    scratch: &mut [f32],
    mut out: MatMut<'_, f32>,
) {
    let (panels, edge) = (&w.panels, w.edge);
    let (nr, n) = (panels.tile.nr, out.cols());
    let first_pixel = x.first_pixel(edge, tile_rows.start);
    let across = x.output[1].div_ceil(edge.pixels());
    let tiles = tile_rows.start * across..tile_rows.end * across;
    let l = w.layout(tiles.len());

    assert_eq!(x.channels, panels.kc, "channels of the images and of the weights");
    assert_eq!(x.data.len(), x.images * x.input[0] * x.input[1] * x.channels, "elements of the images");
    assert!(tile_rows.end <= x.tile_rows(edge), "rows of tiles {tile_rows:?}");
    assert_eq!(out.rows(), x.first_pixel(edge, tile_rows.end) - first_pixel, "rows of the output");
    assert!(n0.is_multiple_of(nr) && n0 + n <= panels.n, "columns {n0}..{}", n0 + n);
    assert!(ep.bias.is_none_or(|b| b.len() >= n0 + n), "one bias per column");
    assert!(scratch.len() >= w.scratch_len(tiles.len()), "scratch of {}", scratch.len());
    if tiles.is_empty() || n == 0 {
        return;
    }
    let residual = match ep.residual {
        None => (&[][..], 0),
        Some(Residual::F32 { data, ld }) => {
            assert!((out.rows() - 1) * ld + n0 + n <= data.len(), "residual of {}", data.len());
            (&data[n0..], ld)
        }
        Some(_) => panic!("the residual of a real convolution is real"),
    };
    let clamps = ep.activation.bounds();
    let skip = scratch.as_ptr().align_offset(64).min(LINE);
    let (zeros, rest) = scratch[skip..].split_at_mut(l.width);
    let (input, products) = rest.split_at_mut(edge.elements() * l.stride);
    zeros.fill(0.0);

    let transforms = w.tiles.of(edge);
    let mut next = tiles.start;
    while next < tiles.end {
        let block = next..(next + l.block).min(tiles.end);
        for (i, tile) in block.clone().enumerate() {
            let pixels = x.tile(edge, Place::of(x, edge, tile), zeros);
            // SAFETY: the table gives transforms that run here; every pixel holds all channels; an
            // element takes `l.width` of the `l.stride` places.
            unsafe { (transforms.input)(&pixels, x.channels, input[i * l.width..].as_mut_ptr(), l.stride) };
        }
        for col in (0..n).step_by(nr) {
            multiply(panels, (n0 + col) / nr, block.len(), input, products, l);
            let cols = nr.min(n - col);
            let mut bias = [0.0; MOST_COLUMNS];
            if let Some(b) = ep.bias {
                bias[..cols].copy_from_slice(&b[n0 + col..][..cols]);
            }
            let (low, high) = clamps.unwrap_or((f32::NEG_INFINITY, f32::INFINITY));
            for (i, tile) in block.clone().enumerate() {
                let place = Place::of(x, edge, tile);
                let row = place.first_pixel(x) - first_pixel;
                let extent = [0, 1].map(|a| edge.pixels().min(x.output[a] - place.at[a]));
                let last = row + (extent[0] - 1) * x.output[1] + extent[1] - 1;
                assert!(last < out.rows());
                let destination = Destination {
                    cols,
                    bias: bias.as_ptr(),
                    residual: match residual {
                        ([], _) => core::ptr::null(),
                        (data, ld) => data[row * ld + col..].as_ptr(),
                    },
                    pixel: [out.ld(), residual.1],
                    row: [out.ld() * x.output[1], residual.1 * x.output[1]],
                    low,
                    high,
                    extent,
                    to: out.ptr_at(row, col),
                };
                // SAFETY: the table gives transforms that run here; `products` holds whole panels of
                // every element; the pixels of the extent are rows of the output and of the residual.
                unsafe { (transforms.output)(products[i * nr..].as_ptr(), l.products, &destination) };
                if clamps.is_none() {
                    for pixel in 0..extent[0] * extent[1] {
                        let at = row + pixel / extent[1] * x.output[1] + pixel % extent[1];
                        let y = &mut out.row_mut(at)[col..col + cols];
                        elementwise::unary_inplace(kernels, Unary::Activation(ep.activation), y);
                    }
                }
            }
        }
        next = block.end;
    }
}

/// Computes panel `panel` of every element's product of `tiles` tiles.
fn multiply(
    panels: &Panels<f32, f32, f32>,
    panel: usize,
    tiles: usize,
    input: &[f32],
    products: &mut [f32],
    l: Layout,
) {
    let (nr, mr) = (panels.tile.nr, panels.tiles.by_rows.len());
    let weights = &panels.data.as_slice()[panel * panels.stride()..][..panels.stride()];
    let depth = panels.kc * nr;
    let mut rows = [input.as_ptr(); MOST_ROWS];
    for e in 0..panels.taps {
        let (input, products) = (&input[e * l.stride..], &mut products[e * l.products..]);
        let weights = &weights[e * depth..][..depth];
        let calls = tiles.div_ceil(mr);
        for (call, (first, count)) in row_tiles(tiles, mr).enumerate() {
            for (i, row) in rows[..count].iter_mut().enumerate() {
                *row = input[(first + i) * l.width..][..panels.kc].as_ptr();
            }
            let args = TileArgs {
                rows: rows.as_ptr(),
                step: 0,
                taps: 1,
                kc: panels.kc,
                panel: weights.as_ptr(),
                panel_stride: 0,
                // The weights of the next element follow, and each call asks for its share of them.
                ahead: weights.as_ptr().wrapping_add(depth + call * panels.kc * nr.div_ceil(calls)),
                ahead_step: nr.div_ceil(calls),
                sums: core::ptr::null(),
                begin: core::ptr::null(),
            };
            let tile = &mut products[first * nr..][..count * nr];
            // SAFETY: the operand was packed for a handle, so the micro-kernel runs here; `count`
            // rows of `kc` elements, one panel, and a tile of `count * nr` elements.
            unsafe { (panels.tiles.by_rows[count - 1])(&args, tile.as_mut_ptr()) };
        }
    }
}

/// Rows of the tallest micro-kernel.
const MOST_ROWS: usize = 16;

/// Where a tile of results lies.
#[derive(Clone, Copy)]
struct Place {
    image: usize,
    /// Its first row and column of pixels.
    at: [usize; 2],
}

impl Place {
    fn of(x: &Images<'_>, edge: TileEdge, tile: usize) -> Self {
        let [down, across] = x.output.map(|extent| extent.div_ceil(edge.pixels()));
        let (row, column) = (tile / across, tile % across);
        Self { image: row / down, at: [row % down * edge.pixels(), column * edge.pixels()] }
    }

    /// The first of the tile's output pixels, counted over all images.
    fn first_pixel(self, x: &Images<'_>) -> usize {
        (self.image * x.output[0] + self.at[0]) * x.output[1] + self.at[1]
    }
}

impl Images<'_> {
    /// Starts of the pixels that a tile of results depends on; `zeros` in the padding.
    fn tile(&self, edge: TileEdge, place: Place, zeros: &[f32]) -> [*const f32; MOST] {
        let mut pixels = [zeros.as_ptr(); MOST];
        let size = edge.pixels() + KERNEL - 1;
        for i in 0..size {
            // Wraps above and on the left, and is then beyond the image, too.
            let y = (place.at[0] + i).wrapping_sub(self.pad[0]);
            if y >= self.input[0] {
                continue;
            }
            for j in 0..size {
                let x = (place.at[1] + j).wrapping_sub(self.pad[1]);
                if x < self.input[1] {
                    let pixel = (place.image * self.input[0] + y) * self.input[1] + x;
                    pixels[i * size + j] = self.data[pixel * self.channels..].as_ptr();
                }
            }
        }
        pixels
    }
}
