//! Depthwise convolution along the rows of an image, channels last: neighbouring windows share what
//! they read, and results are finished in registers.
//!
//! Every input pixel that a row of windows meets gets one entry in a table of pointers; padding
//! points to a row of zeros, so kernels know no edges. A kernel computes a row of pixels for one
//! block of channels.

use alloc::{vec, vec::Vec};
use core::{mem::MaybeUninit, ops::Range};

use super::{slide_f32::Clamp, slide_u8::Requant};
use crate::{
    Kernels, bf16,
    elementwise::{Unary, unary_inplace},
    epilogue::Activation,
    layout::Window,
    math::silu_inplace,
    operands::Quant,
    table::{slide_bf16_kernels, slide_f32_kernels, slide_u8i8_kernels},
};

/// What a kernel reads and writes: rows of pixels, one block of channels.
#[derive(Debug)]
pub(crate) struct SlideArgs<T, W, F> {
    /// Rows of `pitch` pixels of the input; the first one meets the first tap of the first output.
    pub(crate) columns: *const *const T,
    pub(crate) pitch: usize,
    /// How many entries on the pixels of the next output row begin.
    pub(crate) step: usize,
    /// Rows of the window.
    pub(crate) rows: usize,
    /// First channel of the block.
    pub(crate) channel: usize,
    /// Parameters of the block: see the kernels.
    pub(crate) weights: *const W,
    /// Output rows.
    pub(crate) height: usize,
    /// Pixels of an output row, at least 1.
    pub(crate) pixels: usize,
    /// The block's first channel of the first output pixel.
    pub(crate) out: *mut T,
    /// Distance between output pixels.
    pub(crate) stride: usize,
    /// Distance between output rows.
    pub(crate) row: usize,
    /// How sums become results.
    pub(crate) finish: F,
}

/// Computes rows of pixels of one block of channels.
///
/// # Safety
/// The instruction set of the kernel's row must run here. All that [`SlideArgs`] describes must be
/// readable, and writable: `(pixels - 1) * stride + kernel width` columns in each row of the windows,
/// each with the block's channels.
pub(crate) type SlideFn<T, W, F> = unsafe fn(&SlideArgs<T, W, F>);

/// The instances of a kernel for one width of blocks.
#[derive(Debug)]
pub struct SlideWidth<T: 'static, W: 'static, F: 'static> {
    /// Channels of a block.
    pub(crate) lanes: usize,
    /// By kernel width (3, 5), then stride (1, 2).
    pub(crate) kernels: [[SlideFn<T, W, F>; 2]; 2],
}

/// The instances of a kernel, widest blocks first.
#[derive(Debug)]
pub struct Slides<T: 'static, W: 'static, F: 'static> {
    pub(crate) widths: &'static [SlideWidth<T, W, F>],
    /// Rows of the window that one step multiplies.
    pub(crate) rows: usize,
}

/// Kernels of real weights.
pub type SlideF32Kernels = Slides<f32, f32, Clamp>;
/// Kernels of real weights for pixels in bf16.
pub type SlideBf16Kernels = Slides<u16, f32, Clamp>;
/// Kernels of byte weights, several to a word.
pub type SlideI8Kernels = Slides<u8, i32, Requant>;

/// Instances of `$f::<kernel width, stride, ..$rest>` for blocks of `$lanes` channels.
macro_rules! slide_width {
    ($lanes:expr, $f:ident $(, $rest:expr)*) => {
        $crate::depthwise::sliding::SlideWidth {
            lanes: $lanes,
            kernels: [
                [$f::<3, 1 $(, $rest)*>, $f::<3, 2 $(, $rest)*>],
                [$f::<5, 1 $(, $rest)*>, $f::<5, 2 $(, $rest)*>],
            ],
        }
    };
}
pub(crate) use slide_width;

/// Most rows of a window.
const MAX_ROWS: usize = 8;

/// Pointers of the table, which lies on the stack.
const TABLE: usize = 1024;

/// Bytes of an input that stay in the second-level cache.
const CACHED: usize = 256 * 1024;

/// Channels that one kernel computes at a time.
#[derive(Clone, Debug)]
struct Block<T: 'static, W: 'static, F: 'static> {
    first: usize,
    lanes: usize,
    kernel: SlideFn<T, W, F>,
    /// Where the block's parameters begin.
    weights: usize,
}

/// Weights by blocks of channels, with what they meet outside the image.
#[derive(Clone, Debug)]
struct Packed<T: 'static, W: 'static, F: 'static> {
    window: Window,
    channels: usize,
    blocks: Vec<Block<T, W, F>>,
    data: Vec<W>,
    pad: Vec<T>,
}

impl<T: Copy, W, F: Copy> Packed<T, W, F> {
    /// Cuts the channels into blocks; `parameters(first, lanes, data)` appends those of a block. The last
    /// block may overlap the one before it. `None` when there is no kernel for the window, or fewer
    /// channels than the narrowest block has.
    fn pack(
        slides: &'static Slides<T, W, F>,
        window: &Window,
        pad: T,
        parameters: impl Fn(usize, usize, &mut Vec<W>),
    ) -> Option<Self> {
        let channels = window.pixel_stride;
        let kernel = [3, 5].iter().position(|&k| k == window.kernel[1])?;
        let stride = [1, 2].iter().position(|&s| s == window.stride[1])?;
        let narrowest = slides.widths.last()?.lanes;
        let known = window.dilation == [1, 1] && (1..=MAX_ROWS).contains(&window.kernel[0]);
        if !known || channels < narrowest {
            return None;
        }
        let (mut blocks, mut data) = (Vec::new(), Vec::new());
        let mut first = 0;
        while first < channels {
            let left = channels - first;
            let (start, width) = match slides.widths.iter().find(|w| w.lanes <= left) {
                Some(width) => (first, width),
                None => (channels - narrowest, slides.widths.last()?),
            };
            let (lanes, kernel) = (width.lanes, width.kernels[kernel][stride]);
            blocks.push(Block { first: start, lanes, kernel, weights: data.len() });
            parameters(start, lanes, &mut data);
            first = start + lanes;
        }
        Some(Self { window: *window, channels, blocks, data, pad: vec![pad; channels] })
    }

    /// Fills the table with the pixels that output pixels from (`y`, `x`) on read: `rows` rows of `cols`.
    fn gather(
        &self,
        (data, slots): (&[T], usize),
        [y, x]: [usize; 2],
        [rows, cols]: [usize; 2],
        table: &mut [*const T],
    ) {
        let w = &self.window;
        let [height, width] = w.input;
        let pad = self.pad.as_ptr();
        let (top, left) = (y * w.stride[0], x * w.stride[1]);
        // The same in every row: padding before, pixels, padding behind.
        let before = w.pad[1].saturating_sub(left).min(cols);
        let start = (left + before).saturating_sub(w.pad[1]).min(width);
        let inside = (width - start).min(cols - before);
        let row_len = width * self.channels;
        let mut slot = top.saturating_sub(w.pad[0]) % slots;
        for (i, entries) in table[..rows * cols].chunks_exact_mut(cols).enumerate() {
            let at = top + i;
            if at < w.pad[0] || at - w.pad[0] >= height {
                entries.fill(pad);
                continue;
            }
            let mut pixel = data[slot * row_len..][..row_len][start * self.channels..].as_ptr();
            slot = if slot + 1 == slots { 0 } else { slot + 1 };
            let (front, rest) = entries.split_at_mut(before);
            let (middle, back) = rest.split_at_mut(inside);
            for entry in front {
                *entry = pad;
            }
            for entry in middle {
                *entry = pixel;
                pixel = pixel.wrapping_add(self.channels);
            }
            for entry in back {
                *entry = pad;
            }
        }
    }

    /// Computes rows `rows` of the output; `done` sees every stretch of finished pixels.
    fn run(
        &self,
        x: &[T],
        slots: usize,
        rows: Range<usize>,
        finish: F,
        out: &mut [T],
        done: impl Fn(&mut [T]),
    ) {
        let Self { window: w, channels, .. } = self;
        let (width, row_len) = (w.output[1], w.output[1] * channels);
        assert!(slots > 0 && x.len() >= slots.min(w.input[0]) * w.input[1] * channels, "input is too short");
        assert_eq!(out.len(), rows.len() * row_len, "output of {} rows", rows.len());
        let [kernel_rows, kernel_cols] = w.kernel;
        let cols_of = |pixels: usize| (pixels - 1) * w.stride[1] + kernel_cols;
        // As many pixels, then as many rows, as the table has room for.
        let mut segment = width.max(1);
        while cols_of(segment) * kernel_rows > TABLE {
            segment = segment.div_ceil(2);
        }
        let room = TABLE / cols_of(segment);
        // Blocks outside rows read the input once, but in short pieces: only good in a cache.
        let cached = size_of_val(x) <= CACHED;
        let band = if cached { (room - kernel_rows) / w.stride[0] + 1 } else { 1 };
        let mut table = [const { MaybeUninit::uninit() }; TABLE];
        for y in rows.clone().step_by(band) {
            let height = band.min(rows.end - y);
            let from = (y - rows.start) * row_len;
            let strip = &mut out[from..from + height * row_len];
            for x0 in (0..width).step_by(segment) {
                let pixels = segment.min(width - x0);
                let cols = cols_of(pixels);
                let read = [(height - 1) * w.stride[0] + kernel_rows, cols];
                let table = cleared(&mut table[..read[0] * cols]);
                self.gather((x, slots), [y, x0], read, table);
                for block in &self.blocks {
                    debug_assert!(block.first + block.lanes <= *channels);
                    assert!(x0 + pixels <= width);
                    let args = SlideArgs {
                        columns: table.as_ptr(),
                        pitch: cols,
                        step: w.stride[0] * cols,
                        rows: kernel_rows,
                        channel: block.first,
                        weights: self.data[block.weights..].as_ptr(),
                        height,
                        pixels,
                        out: strip[x0 * channels + block.first..].as_mut_ptr(),
                        stride: *channels,
                        row: row_len,
                        finish,
                    };
                    // SAFETY: the weights were packed for a handle, so the kernel's instruction set
                    // runs here. `gather` filled a row of `cols` pointers per row of each window,
                    // each to a whole pixel of the input or of the padding; the block lies within
                    // a pixel, and `strip` holds `height` rows of at least `x0 + pixels` output pixels.
                    unsafe { (block.kernel)(&args) };
                }
                for row in strip.chunks_exact_mut(row_len) {
                    done(&mut row[x0 * channels..][..pixels * channels]);
                }
            }
        }
    }
}

/// The table without anything in it.
fn cleared<T>(table: &mut [MaybeUninit<*const T>]) -> &mut [*const T] {
    table.fill(MaybeUninit::new(core::ptr::null()));
    // SAFETY: all of them were written, and such an element is laid out like a pointer.
    unsafe { &mut *(core::ptr::from_mut(table) as *mut [*const T]) }
}

/// Appends the parameters of a block of channels: bias, then weights by tap.
fn real_parameters(
    taps: usize,
    value: impl Fn(usize, usize) -> f32,
    bias: Option<&[f32]>,
) -> impl Fn(usize, usize, &mut Vec<f32>) {
    move |first, lanes, data| {
        let channels = first..first + lanes;
        data.extend(channels.clone().map(|c| bias.map_or(0.0, |bias| bias[c])));
        for tap in 0..taps {
            data.extend(channels.clone().map(|c| value(tap, c)));
        }
    }
}

/// A depthwise convolution in `f32`, packed with its bias.
#[derive(Clone, Debug)]
pub struct SlidingF32(Packed<f32, f32, Clamp>);

impl SlidingF32 {
    /// Packs `value(tap, channel)`, taps row by row, for images of `window.pixel_stride` channels.
    /// `None` when no kernel slides such a window: use [`crate::depthwise_f32`].
    ///
    /// # Panics
    /// When there are fewer biases than channels.
    pub fn pack(
        kernels: Kernels,
        window: &Window,
        value: impl Fn(usize, usize) -> f32,
        bias: Option<&[f32]>,
    ) -> Option<Self> {
        let parameters = real_parameters(window.taps(), value, bias);
        Packed::pack(slide_f32_kernels(kernels).1, window, 0.0, parameters).map(Self)
    }

    /// Memory taken.
    pub fn bytes(&self) -> usize {
        size_of_val(&self.0.data[..])
    }
}

/// A depthwise convolution of bf16 by `f32` weights, packed with its bias.
#[derive(Clone, Debug)]
pub struct SlidingBf16(Packed<u16, f32, Clamp>);

impl SlidingBf16 {
    /// See [`SlidingF32::pack`]; `None` for the same windows.
    ///
    /// # Panics
    /// When there are fewer biases than channels.
    pub fn pack(
        kernels: Kernels,
        window: &Window,
        value: impl Fn(usize, usize) -> f32,
        bias: Option<&[f32]>,
    ) -> Option<Self> {
        let parameters = real_parameters(window.taps(), value, bias);
        Packed::pack(slide_bf16_kernels(kernels).1, window, 0, parameters).map(Self)
    }

    /// Memory taken.
    pub fn bytes(&self) -> usize {
        size_of_val(&self.0.data[..])
    }
}

/// A depthwise convolution in bytes, packed with its bias and scales.
#[derive(Clone, Debug)]
pub struct SlidingI8 {
    packed: Packed<u8, i32, Requant>,
    offset: bool,
}

impl SlidingI8 {
    /// Packs `value(tap, channel)`, taps row by row, for images of `window.pixel_stride` channels whose
    /// byte `zero_point` stands for zero. `bias` is in steps of `scale`: input scale × weight scale; `offset` is added
    /// to what they scale.
    /// `None` when no kernel slides such a window: use [`crate::depthwise_u8i8`].
    ///
    /// # Panics
    /// When there are fewer biases, scales or offsets than channels.
    pub fn pack(
        kernels: Kernels,
        window: &Window,
        zero_point: u8,
        value: impl Fn(usize, usize) -> i8,
        bias: &[i32],
        scale: &[f32],
        offset: Option<&[f32]>,
    ) -> Option<Self> {
        let [rows, cols] = window.kernel;
        let (_, slides) = slide_u8i8_kernels(kernels);
        let word = |first_row: usize, col: usize, channel: usize| {
            let weight = |row: usize| if row < rows { value(row * cols + col, channel) } else { 0 };
            match slides.rows {
                4 => i32::from_le_bytes(core::array::from_fn(|r| weight(first_row + r) as u8)),
                _ => {
                    let [low, high] = [weight(first_row), weight(first_row + 1)].map(i32::from);
                    low & 0xffff | high << 16
                }
            }
        };
        let parameters = |first: usize, lanes: usize, data: &mut Vec<i32>| {
            // The order in which kernels hold channels: vector by vector, of four channels per 16 bytes.
            let quarter = lanes / 4;
            let order = (0..lanes).map(|i| (i / quarter, i % quarter));
            let channels: Vec<usize> = order.map(|(j, i)| first + i / 4 * 16 + 4 * j + i % 4).collect();
            let sum = |c: usize| (0..rows * cols).map(|tap| i32::from(value(tap, c))).sum::<i32>();
            let folded = |&c: &usize| bias[c].wrapping_sub(sum(c).wrapping_mul(zero_point.into()));
            data.extend(channels.iter().map(folded));
            for reals in [scale].into_iter().chain(offset) {
                data.extend(channels.iter().map(|&c| reals[c].to_bits() as i32));
            }
            for row in (0..rows).step_by(slides.rows) {
                for col in 0..cols {
                    data.extend(channels.iter().map(|&c| word(row, col, c)));
                }
            }
        };
        let packed = Packed::pack(slides, window, zero_point, parameters)?;
        Some(Self { packed, offset: offset.is_some() })
    }

    /// Memory taken.
    pub fn bytes(&self) -> usize {
        size_of_val(&self.packed.data[..])
    }
}

/// Rows `rows` of `activation(Σ x · w + bias)`.
///
/// Row `y` of the input is row `y % slots` of `x`, so that a buffer of few rows can hold what is needed of
/// a larger image; with the image's height it is the image itself.
///
/// # Panics
/// When `x` or `out` has a wrong length.
pub fn slide_f32(
    kernels: Kernels,
    x: &[f32],
    slots: usize,
    w: &SlidingF32,
    rows: Range<usize>,
    activation: Activation,
    out: &mut [f32],
) {
    match activation.bounds() {
        Some((low, high)) => w.0.run(x, slots, rows, Clamp { low, high }, out, |_| {}),
        None => {
            let activate = |y: &mut [f32]| match activation {
                Activation::Silu => silu_inplace(kernels, y),
                _ => unary_inplace(kernels, Unary::Activation(activation), y),
            };
            w.0.run(x, slots, rows, UNBOUNDED, out, activate);
        }
    }
}

/// [`slide_f32`] of bits of bf16: sums in `f32`, the result rounded. What an activation that does more than
/// clamp is applied to is rounded, too.
///
/// # Panics
/// When `x` or `out` has a wrong length.
pub fn slide_bf16(
    kernels: Kernels,
    x: &[u16],
    slots: usize,
    w: &SlidingBf16,
    rows: Range<usize>,
    activation: Activation,
    out: &mut [u16],
) {
    match activation.bounds() {
        Some((low, high)) => w.0.run(x, slots, rows, Clamp { low, high }, out, |_| {}),
        None => w.0.run(x, slots, rows, UNBOUNDED, out, |y| bf16::activate(kernels, activation, y)),
    }
}

const UNBOUNDED: Clamp = Clamp { low: f32::NEG_INFINITY, high: f32::INFINITY };

/// Rows `rows` of the quantized `activation(f32(Σ x · w + bias) · scale + offset)`, rounded like
/// [`crate::depthwise_u8i8`]; for `x`, `slots` and `rows` see [`slide_f32`].
///
/// # Panics
/// When `x` or `out` has a wrong length, or the activation does more than clamp
/// ([`Activation::only_clamps`]).
pub fn slide_u8i8(
    x: &[u8],
    slots: usize,
    w: &SlidingI8,
    rows: Range<usize>,
    activation: Activation,
    quant: Quant,
    out: &mut [u8],
) {
    let bounds = activation.bounds().expect("an activation that only clamps");
    let finish = Requant { offset: w.offset, ..Requant::new(bounds, quant) };
    w.packed.run(x, slots, rows, finish, out, |_| {});
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        EpilogueF32, EpilogueI32, Indirect, MatMut, Output, PackedDwF32, PackedDwI8, depthwise_f32,
        depthwise_u8i8, fold_zero_point,
    };
    use fastrand::Rng;

    fn random_window(rng: &mut Rng) -> Window {
        let input = [rng.usize(1..12), rng.usize(1..50)];
        let kernel = [rng.usize(1..7), *rng.choice(&[3, 5]).unwrap()];
        let stride = [rng.usize(1..4), rng.usize(1..3)];
        let pad = [rng.usize(0..4), rng.usize(0..4)];
        // Windows may hang over the image's end.
        let output = [0, 1].map(|i| (input[i] + pad[i]).div_ceil(stride[i]));
        let channels = [4, 8, 15, 16, 17, 24, 32, 33, 47, 48, 64, 80, 96, 100];
        Window {
            input,
            pixel_stride: *rng.choice(&channels).unwrap(),
            kernel,
            stride,
            dilation: [1, 1],
            pad,
            output,
        }
    }

    /// A ring of rows that holds, at the same places, the last `slots` rows before `end`.
    fn ring<T: Copy>(image: &[T], row: usize, slots: usize, end: usize) -> Vec<T> {
        let mut ring = image[..slots * row].to_vec();
        for y in end.saturating_sub(slots)..end {
            ring[y % slots * row..][..row].copy_from_slice(&image[y * row..][..row]);
        }
        ring
    }

    #[test]
    fn every_isa_matches_the_indirect_kernels() {
        let mut rng = Rng::with_seed(55);
        let mut slid = [0; 3];
        for round in 0..300 {
            let w = random_window(&mut rng);
            let (c, taps, m) = (w.pixel_stride, w.taps(), w.outputs());
            let zp = rng.u8(..);
            let x: Vec<u8> = (0..w.input[0] * w.input[1] * c).map(|_| rng.u8(..)).collect();
            let weights: Vec<i8> = (0..taps * c).map(|_| rng.i8(..)).collect();
            let weight = |tap: usize, ch: usize| weights[tap * c + ch];
            let bias: Vec<i32> = (0..c).map(|_| rng.i32(-9999..9999)).collect();
            let scale: Vec<f32> = (0..c).map(|_| rng.f32() * 1e-2).collect();
            let offset: Option<Vec<f32>> =
                rng.bool().then(|| (0..c).map(|_| rng.f32() * 9.0 - 4.0).collect());
            let offset = offset.as_deref();
            let quant = Quant::new(0.05 + rng.f32(), rng.i32(0..256));
            let activation = *rng
                .choice(&[Activation::None, Activation::Relu, Activation::Clip { min: -1.0, max: 6.0 }])
                .unwrap();
            let offsets = w.offsets();
            // A part of the rows, from a ring that holds no more than they read.
            let first = rng.usize(0..w.output[0]);
            let rows = first..rng.usize(first + 1..=w.output[0]);
            let part = rows.start * w.output[1] * c..rows.end * w.output[1] * c;
            let read = (rows.end - 1) * w.stride[0] + w.kernel[0];
            let end = read.saturating_sub(w.pad[0]).min(w.input[0]);
            let begin = (rows.start * w.stride[0]).saturating_sub(w.pad[0]);
            let slots = end.saturating_sub(begin).max(1);
            for k in Kernels::all_available() {
                let pad = vec![zp; c];
                let a = Indirect { base: &x[..], offsets: &offsets, taps, kc: c, pad: &pad };
                let packed = PackedDwI8::pack(k, taps, c, weight);
                let folded = fold_zero_point(Some(&bias), packed.col_sums(), zp.into());
                let ep =
                    EpilogueI32 { bias: Some(&folded), scale: &scale, offset, residual: None, activation };
                let mut want = vec![0; m * c];
                depthwise_u8i8(k, &a, &packed, &ep, Output::U8(MatMut::new(&mut want, m, c, c), quant));
                if let Some(packed) = SlidingI8::pack(k, &w, zp, weight, &bias, &scale, offset) {
                    slid[0] += 1;
                    let mut y = vec![0; m * c];
                    slide_u8i8(&x, w.input[0], &packed, 0..w.output[0], activation, quant, &mut y);
                    assert_eq!(y, want, "{round} {} {w:?}", k.isa());
                    let ring = ring(&x, w.input[1] * c, slots, end);
                    let mut y = vec![0; part.len()];
                    slide_u8i8(&ring, slots, &packed, rows.clone(), activation, quant, &mut y);
                    assert_eq!(y, want[part.clone()], "{round} {} {w:?} {slots}", k.isa());
                }

                let xf: Vec<f32> = x.iter().map(|&x| f32::from(x) / 256.0).collect();
                let weight = |tap, ch| f32::from(weight(tap, ch)) / 64.0;
                let bias: Vec<f32> = bias.iter().map(|&b| b as f32 / 999.0).collect();
                let activation = if round % 4 == 0 { Activation::Silu } else { activation };
                let pad = vec![0.0; c];
                let a = Indirect { base: &xf[..], offsets: &offsets, taps, kc: c, pad: &pad };
                let ep = EpilogueF32 { bias: Some(&bias), residual: None, activation };
                let mut want = vec![0.0; m * c];
                let packed = PackedDwF32::pack(k, taps, c, weight);
                depthwise_f32(k, &a, &packed, &ep, Output::F32(MatMut::new(&mut want, m, c, c)));
                if let Some(packed) = SlidingF32::pack(k, &w, weight, Some(&bias)) {
                    slid[1] += 1;
                    let mut y = vec![0.0; m * c];
                    slide_f32(k, &xf, w.input[0], &packed, 0..w.output[0], activation, &mut y);
                    // Σ|xw| ≤ 2 · taps, and the bias is at most 11.
                    let bound = (taps + 1) as f32 * (2 * taps + 11) as f32 * 1.2e-7;
                    for (y, want) in y.iter().zip(&want) {
                        assert!((y - want).abs() <= bound, "{round} {}: {y} {want}", k.isa());
                    }
                    let ring = ring(&xf, w.input[1] * c, slots, end);
                    let mut z = vec![0.0; part.len()];
                    slide_f32(k, &ring, slots, &packed, rows.clone(), activation, &mut z);
                    assert_eq!(z, y[part.clone()]);
                }

                // Inputs have no more than eight significant bits, so that only results are rounded.
                let halves: Vec<u16> = xf.iter().map(|&x| bf16::round(x)).collect();
                if let Some(packed) = SlidingBf16::pack(k, &w, weight, Some(&bias)) {
                    slid[2] += 1;
                    let mut y = vec![0; m * c];
                    slide_bf16(k, &halves, w.input[0], &packed, 0..w.output[0], activation, &mut y);
                    let bound = (taps + 1) as f32 * (2 * taps + 11) as f32 * 1.2e-7;
                    for (&y, want) in y.iter().zip(&want) {
                        // Rounded once or twice, by 2⁻⁸ each; SiLU is no steeper than 1.1.
                        let bound = 1.1 * bound + (want.abs() + 0.6) * 2.2 / 256.0;
                        let y = bf16::widen(y);
                        assert!((y - want).abs() <= bound, "{round} {}: {y} {want}", k.isa());
                    }
                    let ring = ring(&halves, w.input[1] * c, slots, end);
                    let mut z = vec![0; part.len()];
                    slide_bf16(k, &ring, slots, &packed, rows.clone(), activation, &mut z);
                    assert_eq!(z, y[part.clone()]);
                }
            }
        }
        assert!(slid.iter().all(|&n| n > 300), "{slid:?}");
    }

    #[test]
    fn windows_without_a_kernel_are_refused() {
        let window = random_window(&mut Rng::with_seed(1));
        let k = Kernels::best();
        let pack = |w: Window| SlidingF32::pack(k, &w, |_, _| 0.0, None).is_some();
        assert!(pack(Window { kernel: [3, 3], pixel_stride: 64, ..window }));
        assert!(!pack(Window { kernel: [3, 7], pixel_stride: 64, ..window }));
        assert!(!pack(Window { kernel: [3, 3], pixel_stride: 1, ..window }));
        assert!(!pack(Window { kernel: [3, 3], pixel_stride: 64, dilation: [1, 2], ..window }));
        assert!(!pack(Window { kernel: [3, 3], pixel_stride: 64, stride: [1, 3], ..window }));
    }
}
