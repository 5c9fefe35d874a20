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
        if rows == 3 {
            // Colour planes to pixels.
            let (r, rest) = src.split_at(cols);
            let (g, b) = rest.split_at(cols);
            for (((to, &r), &g), &b) in dst.as_chunks_mut::<3>().0.iter_mut().zip(r).zip(g).zip(b) {
                *to = [r, g, b];
            }
            return;
        }
        for i0 in (0..rows).step_by(BLOCK) {
            let height = BLOCK.min(rows - i0);
            for j0 in (0..cols).step_by(BLOCK) {
                for j in j0..cols.min(j0 + BLOCK) {
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

/// Copies one line of a window, `len` elements, into each row of `rows`, from sources `step` apart.
#[inline(always)]
fn copy_lines<T: Copy>(rows: &mut [T], row_len: usize, at: usize, len: usize, src: &[T], step: usize) {
    /// The same for a constant length, without a call per line.
    #[inline(always)]
    fn fixed<const N: usize, T: Copy>(rows: &mut [T], row_len: usize, at: usize, src: &[T], step: usize) {
        for (i, row) in rows.chunks_exact_mut(row_len).enumerate() {
            if let (Some(to), Some(from)) = (row[at..].first_chunk_mut(), src[i * step..].first_chunk::<N>())
            {
                *to = *from;
            }
        }
    }
    match len {
        1 => fixed::<1, T>(rows, row_len, at, src, step),
        3 => fixed::<3, T>(rows, row_len, at, src, step),
        5 => fixed::<5, T>(rows, row_len, at, src, step),
        7 => fixed::<7, T>(rows, row_len, at, src, step),
        9 => fixed::<9, T>(rows, row_len, at, src, step),
        15 => fixed::<15, T>(rows, row_len, at, src, step),
        21 => fixed::<21, T>(rows, row_len, at, src, step),
        _ => {
            for (i, row) in rows.chunks_exact_mut(row_len).enumerate() {
                row[at..at + len].copy_from_slice(&src[i * step..][..len]);
            }
        }
    }
}

/// Output columns whose whole line of taps lies inside the input, as a range.
fn interior(window: &Window) -> core::ops::Range<usize> {
    let (w, pad, stride) = (window.input[1], window.pad[1], window.stride[1]);
    let reach = (window.kernel[1] - 1) * window.dilation[1];
    let start = pad.div_ceil(stride);
    let end = match (w + pad).checked_sub(reach + 1) {
        Some(last) => last / stride + 1,
        None => 0,
    };
    start..end.max(start)
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
        assert!(row_len >= used && used > 0, "rows of {row_len} cannot hold {used} elements");
        assert_eq!(dst.len() % row_len, 0, "the destination is not whole rows");
        let [kh, kw] = window.kernel;
        let line = kw * c;
        let contiguous = window.dilation[1] == 1 && window.pixel_stride == c;
        let inside = interior(window);
        dst.fill(pad);
        let mut done = 0;
        let total = dst.len() / row_len;
        while done < total {
            // The rest of one row of outputs.
            let out = [(first + done) / window.output[1], (first + done) % window.output[1]];
            let count = (window.output[1] - out[1]).min(total - done);
            let rows = &mut dst[done * row_len..(done + count) * row_len];
            done += count;
            for i in 0..kh {
                let y = (out[0] * window.stride[0] + i * window.dilation[0]).wrapping_sub(window.pad[0]);
                // Output columns copied as whole lines.
                let whole = if contiguous && y < window.input[0] {
                    inside.start.clamp(out[1], out[1] + count)..inside.end.clamp(out[1], out[1] + count)
                } else {
                    out[1]..out[1]
                };
                if !whole.is_empty() {
                    let x = whole.start * window.stride[1] - window.pad[1];
                    let rows = &mut rows[(whole.start - out[1]) * row_len..(whole.end - out[1]) * row_len];
                    let from = &src[(y * window.input[1] + x) * c..];
                    copy_lines(rows, row_len, i * line, line, from, window.stride[1] * c);
                }
                for (column, row) in (out[1]..).zip(rows.chunks_exact_mut(row_len)) {
                    if whole.contains(&column) {
                        continue;
                    }
                    for (j, cell) in row[i * line..][..line].chunks_exact_mut(c).enumerate() {
                        let x = (column * window.stride[1] + j * window.dilation[1]).wrapping_sub(window.pad[1]);
                        if y < window.input[0] && x < window.input[1] {
                            let at = (y * window.input[1] + x) * window.pixel_stride;
                            cell.copy_from_slice(&src[at..at + c]);
                        }
                    }
                }
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
