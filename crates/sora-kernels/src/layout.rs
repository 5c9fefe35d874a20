//! Moving data between layouts, and describing convolution windows.

use alloc::vec::Vec;

use crate::{
    Kernels,
    isa::per_isa,
    operands::{Dense, PAD},
};

/// Side of the square blocks that a transpose moves, in elements.
const BLOCK: usize = 16;

per_isa! {
    /// `dst[j][i] = src[i][j]` for a row-major `rows × cols` matrix.
    ///
    /// # Panics
    /// When either slice is not `rows * cols` long.
    pub fn transpose {T: Copy} (src: &[T], rows: usize, cols: usize, dst: &mut [T]) {
        assert_eq!(src.len(), rows * cols, "source of a {rows}x{cols} transpose");
        assert_eq!(dst.len(), rows * cols, "destination of a {rows}x{cols} transpose");
        for i0 in (0..rows).step_by(BLOCK) {
            let height = BLOCK.min(rows - i0);
            for j0 in (0..cols).step_by(BLOCK) {
                let width = BLOCK.min(cols - j0);
                for j in j0..j0 + width {
                    let to = &mut dst[j * rows + i0..][..height];
                    for (to, from) in to.iter_mut().zip(src[i0 * cols + j..].iter().step_by(cols)) {
                        *to = *from;
                    }
                }
            }
        }
    }
}

/// One image from channels-first (`[c][hw]`) to channels-last (`[hw][c]`).
pub fn nchw_to_nhwc<T: Copy>(kernels: Kernels, src: &[T], c: usize, hw: usize, dst: &mut [T]) {
    if c == 1 || hw == 1 {
        dst.copy_from_slice(src);
    } else {
        transpose(kernels, src, c, hw, dst);
    }
}

/// One image from channels-last (`[hw][c]`) to channels-first (`[c][hw]`).
pub fn nhwc_to_nchw<T: Copy>(kernels: Kernels, src: &[T], c: usize, hw: usize, dst: &mut [T]) {
    nchw_to_nhwc(kernels, src, hw, c, dst);
}

/// A two-dimensional convolution or pooling window over a channels-last image.
///
/// Arrays are `[vertical, horizontal]`. One-dimensional windows have height 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Height and width of the input.
    pub input: [usize; 2],
    /// Elements from one input pixel to the next: all channels, even when only a group is read.
    pub pixel_stride: usize,
    /// Taps per axis.
    pub kernel: [usize; 2],
    /// Step between outputs.
    pub stride: [usize; 2],
    /// Step between taps.
    pub dilation: [usize; 2],
    /// Padding at the top and at the left (that at the other ends follows from `output`).
    pub pad: [usize; 2],
    /// Height and width of the output.
    pub output: [usize; 2],
}

impl Window {
    /// Taps per output pixel.
    pub fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    /// Output pixels.
    pub fn outputs(&self) -> usize {
        self.output[0] * self.output[1]
    }

    /// The input pixel that tap `tap` of output pixel `out` reads; `None` in the padding.
    #[inline(always)]
    pub fn pixel(&self, out: usize, tap: usize) -> Option<usize> {
        let o = [out / self.output[1], out % self.output[1]];
        let k = [tap / self.kernel[1], tap % self.kernel[1]];
        let at = |axis: usize| {
            (o[axis] * self.stride[axis] + k[axis] * self.dilation[axis])
                .checked_sub(self.pad[axis])
                .filter(|&i| i < self.input[axis])
        };
        Some(at(0)? * self.input[1] + at(1)?)
    }

    /// How many taps of output pixel `out` lie inside the input.
    pub fn inside(&self, out: usize) -> usize {
        (0..self.taps()).filter(|&tap| self.pixel(out, tap).is_some()).count()
    }

    /// The offset table of [`crate::Indirect`]: `[outputs][taps]`.
    pub fn offsets(&self) -> Vec<u32> {
        let mut offsets = Vec::with_capacity(self.outputs() * self.taps());
        for out in 0..self.outputs() {
            for tap in 0..self.taps() {
                offsets.push(match self.pixel(out, tap) {
                    None => PAD,
                    Some(pixel) => u32::try_from(pixel * self.pixel_stride)
                        .ok()
                        .filter(|&offset| offset != PAD)
                        .expect("an image holds fewer than 2^32 - 1 elements"),
                });
            }
        }
        offsets
    }
}

/// `copy_from_slice` without a call for the lengths of small windows on one or three channels.
#[inline(always)]
fn copy_line<T: Copy>(to: &mut [T], from: &[T]) {
    #[inline(always)]
    fn whole<const N: usize, T: Copy>(to: &mut [T], from: &[T]) {
        if let (Some(to), Some(from)) = (to.first_chunk_mut::<N>(), from.first_chunk::<N>()) {
            *to = *from;
        }
    }
    match to.len() {
        3 => whole::<3, T>(to, from),
        5 => whole::<5, T>(to, from),
        7 => whole::<7, T>(to, from),
        9 => whole::<9, T>(to, from),
        15 => whole::<15, T>(to, from),
        21 => whole::<21, T>(to, from),
        _ => to.copy_from_slice(from),
    }
}

per_isa! {
    /// Writes the windows of output pixels `first..` as rows of `row_len` elements: for each tap the
    /// `c` channels of its pixel (or `pad`), then `pad` up to `row_len`. As many rows as `dst` holds.
    ///
    /// Meant for few channels, where one long row beats many short pieces; wrap the result in
    /// [`Dense`] with `k = row_len`, and pack the weights with the same padding.
    ///
    /// # Panics
    /// When `row_len < taps * c`, `dst` is not whole rows, or the window exceeds `src`.
    pub fn im2col {T: Copy} (src: &[T], window: &Window, c: usize, pad: T, first: usize, row_len: usize, dst: &mut [T]) {
        let used = window.taps() * c;
        assert!(row_len >= used && row_len > 0, "rows of {row_len} cannot hold {used} elements");
        assert_eq!(dst.len() % row_len, 0, "the destination is not whole rows");
        let [kh, kw] = window.kernel;
        let mut out = [first / window.output[1], first % window.output[1]];
        for row in dst.chunks_exact_mut(row_len) {
            let (body, rest) = row.split_at_mut(used);
            rest.fill(pad);
            let x0 = out[1] * window.stride[1];
            let dx = window.dilation[1];
            for (i, line) in body.chunks_exact_mut((kw * c).max(1)).enumerate().take(kh) {
                let y = (out[0] * window.stride[0] + i * window.dilation[0]).wrapping_sub(window.pad[0]);
                if y >= window.input[0] {
                    line.fill(pad);
                    continue;
                }
                let start = x0.wrapping_sub(window.pad[1]);
                let whole = x0 >= window.pad[1] && start + (kw - 1) * dx < window.input[1];
                let at = y * window.input[1];
                if whole && dx == 1 && window.pixel_stride == c {
                    copy_line(line, &src[(at + start) * c..][..kw * c]);
                    continue;
                }
                for (j, cell) in line.chunks_exact_mut(c).enumerate() {
                    let x = start.wrapping_add(j * dx);
                    if x < window.input[1] {
                        cell.copy_from_slice(&src[(at + x) * window.pixel_stride..][..c]);
                    } else {
                        cell.fill(pad);
                    }
                }
            }
            out[1] += 1;
            if out[1] == window.output[1] {
                out = [out[0] + 1, 0];
            }
        }
    }
}

/// The rows that [`im2col`] wrote.
pub fn im2col_rows<T>(rows: &[T], row_len: usize) -> Dense<'_, T> {
    Dense { data: rows, rows: rows.len() / row_len, stride: row_len, k: row_len }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use fastrand::Rng;

    #[test]
    fn transposes_match_indices() {
        for kernels in Kernels::all_available() {
            for (rows, cols) in [(1, 1), (3, 5), (16, 16), (17, 40), (64, 33), (0, 4), (4, 0)] {
                let src: Vec<u32> = (0..rows * cols).map(|i| i as u32).collect();
                let mut dst = vec![0; rows * cols];
                transpose(kernels, &src, rows, cols, &mut dst);
                for i in 0..rows {
                    for j in 0..cols {
                        assert_eq!(dst[j * rows + i], src[i * cols + j]);
                    }
                }
                let mut back = vec![0; rows * cols];
                nhwc_to_nchw(kernels, &dst, rows, cols, &mut back);
                assert_eq!(back, src);
            }
        }
    }

    #[test]
    fn im2col_matches_the_offset_table() {
        let mut rng = Rng::with_seed(4);
        for _ in 0..300 {
            let c = rng.usize(1..5);
            let mut window = Window {
                input: [rng.usize(1..12), rng.usize(1..12)],
                pixel_stride: c + rng.usize(0..2),
                kernel: [rng.usize(1..4), rng.usize(1..4)],
                stride: [rng.usize(1..3), rng.usize(1..3)],
                dilation: [rng.usize(1..3), rng.usize(1..3)],
                pad: [rng.usize(0..3), rng.usize(0..3)],
                output: [0, 0],
            };
            for axis in 0..2 {
                let reach = (window.kernel[axis] - 1) * window.dilation[axis] + 1;
                let padded = window.input[axis] + 2 * window.pad[axis];
                window.output[axis] = (padded.max(reach) - reach) / window.stride[axis] + 1;
            }
            let pixels = window.input[0] * window.input[1];
            let src: Vec<u8> = (0..pixels * window.pixel_stride).map(|_| rng.u8(..)).collect();
            let offsets = window.offsets();
            let row_len = (window.taps() * c).next_multiple_of(4);
            let first = rng.usize(0..window.outputs());
            for kernels in Kernels::all_available() {
                let mut dst = vec![1u8; (window.outputs() - first) * row_len];
                im2col(kernels, &src, &window, c, 9, first, row_len, &mut dst);
                for (r, row) in dst.chunks(row_len).enumerate() {
                    for (i, &got) in row.iter().enumerate() {
                        let (tap, channel) = (i / c, i % c);
                        let want = match offsets.get((first + r) * window.taps() + tap) {
                            Some(&offset) if tap < window.taps() && offset != PAD => {
                                src[offset as usize + channel]
                            }
                            _ => 9,
                        };
                        assert_eq!(got, want, "{window:?} row {r} element {i}");
                    }
                }
            }
        }
    }
}
