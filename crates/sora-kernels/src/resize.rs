//! Resizing of images, a row of the result at a time.

use crate::isa::per_isa;

/// Where the elements along one axis of a resized image come from: `(1 - weight) · low + weight · high`.
#[derive(Clone, Copy, Debug)]
pub struct Blend<'a> {
    /// Indices into the image of one element.
    pub low: &'a [u32],
    /// Indices of the other.
    pub high: &'a [u32],
    /// Weight of the latter; 0 leaves it unread.
    pub weight: &'a [f32],
}

/// An image before resizing: pixels of `inner` elements.
#[derive(Clone, Copy, Debug)]
pub struct Pixels {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// Elements of a pixel.
    pub inner: usize,
}

/// Elements of a row of single-element pixels that are resized together.
const TILE: usize = 512;

/// `out[i] = x[index[i]]`, for pixels of `inner` elements; with `doubles` each pixel is one element and occurs twice.
#[inline(always)]
fn spread<T: Copy>(x: &[T], inner: usize, index: &[u32], doubles: bool, out: &mut [T]) {
    if doubles {
        // The most common enlargement: the vectorizer turns it into interleaving.
        for (pair, &x) in out.as_chunks_mut::<2>().0.iter_mut().zip(x) {
            *pair = [x, x];
        }
    } else if inner == 1 {
        for (out, &i) in out.iter_mut().zip(index) {
            *out = x[i as usize];
        }
    } else {
        for (out, &i) in out.chunks_exact_mut(inner).zip(index) {
            out.copy_from_slice(&x[i as usize * inner..][..inner]);
        }
    }
}

per_isa! {
    /// Rows `first..` of images whose row `r` and column `c` are row `rows[r]` and column `columns[c]` of `x`. Rows are
    /// counted through all images; `out` holds whole rows.
    ///
    /// # Panics
    /// When an index is outside of the image.
    pub fn nearest{T: Copy}(x: &[T], from: Pixels, rows: &[u32], columns: &[u32], first: usize, out: &mut [T]) {
        let (line, stride) = (columns.len() * from.inner, from.width * from.inner);
        if line == 0 || rows.is_empty() {
            return;
        }
        let doubles = from.inner == 1
            && columns.len() == 2 * from.width
            && columns.iter().enumerate().all(|(i, &column)| column as usize == i / 2);
        let mut before = usize::MAX;
        for i in 0..out.len() / line {
            let row = first + i;
            let source = row / rows.len() * from.height + rows[row % rows.len()] as usize;
            let (done, rest) = out.split_at_mut(i * line);
            match source == before {
                true => rest[..line].copy_from_slice(&done[(i - 1) * line..]),
                false => spread(&x[source * stride..][..stride], from.inner, columns, doubles, &mut rest[..line]),
            }
            before = source;
        }
    }
}

#[inline(always)]
fn mix(low: f32, high: f32, weight: f32) -> f32 {
    if weight == 0.0 { low } else { low * (1.0 - weight) + high * weight }
}

/// A row of single-element pixels, resized.
#[inline(always)]
fn stretch(x: &[f32], columns: Blend<'_>, out: &mut [f32]) {
    let taps = columns.low.iter().zip(columns.high).zip(columns.weight);
    for (out, ((&low, &high), &weight)) in out.iter_mut().zip(taps) {
        *out = mix(x[low as usize], x[high as usize], weight);
    }
}

/// One row of the result from two of the image, both with pixels of several elements.
#[inline(always)]
fn blend_rows(top: &[f32], bottom: &[f32], inner: usize, weight: f32, columns: Blend<'_>, out: &mut [f32]) {
    let taps = columns.low.iter().zip(columns.high).zip(columns.weight);
    for (out, ((&low, &high), &across)) in out.chunks_exact_mut(inner).zip(taps) {
        let (a, b) = (&top[low as usize * inner..][..inner], &top[high as usize * inner..][..inner]);
        let (c, d) = (&bottom[low as usize * inner..][..inner], &bottom[high as usize * inner..][..inner]);
        for (i, out) in out.iter_mut().enumerate() {
            *out = mix(mix(a[i], b[i], across), mix(c[i], d[i], across), weight);
        }
    }
}

per_isa! {
    /// Rows `first..` of linearly interpolated images. Rows are counted through all images; `out` holds whole rows.
    ///
    /// # Panics
    /// When an index is outside of the image, or the lists of an axis differ in length.
    pub fn linear(x: &[f32], from: Pixels, rows: Blend<'_>, columns: Blend<'_>, first: usize, out: &mut [f32]) {
        for axis in [rows, columns] {
            assert!(axis.low.len() == axis.high.len() && axis.low.len() == axis.weight.len(), "one weight per element");
        }
        let (count, stride) = (columns.low.len(), from.width * from.inner);
        let line = count * from.inner;
        if line == 0 || rows.low.is_empty() {
            return;
        }
        let source = |row: usize| {
            let (image, row) = (row / rows.low.len() * from.height, row % rows.low.len());
            (image + rows.low[row] as usize, image + rows.high[row] as usize, rows.weight[row])
        };
        let row_of = |source: usize| &x[source * stride..][..stride];
        if from.inner > 1 {
            for (i, out) in out.chunks_exact_mut(line).enumerate() {
                let (low, high, weight) = source(first + i);
                let high = if weight == 0.0 { low } else { high };
                blend_rows(row_of(low), row_of(high), from.inner, weight, columns, out);
            }
            return;
        }
        // Each row of the image is stretched once, and kept while rows of the result lie beside it.
        let (mut even, mut odd) = ([0f32; TILE], [0f32; TILE]);
        for begin in (0..count).step_by(TILE) {
            let end = count.min(begin + TILE);
            let columns = Blend {
                low: &columns.low[begin..end],
                high: &columns.high[begin..end],
                weight: &columns.weight[begin..end],
            };
            let (mut top, mut bottom) = (&mut even[..end - begin], &mut odd[..end - begin]);
            let mut held = [usize::MAX; 2];
            for (i, out) in out.chunks_exact_mut(line).enumerate() {
                let (low, high, weight) = source(first + i);
                let out = &mut out[begin..end];
                if held[0] != low && held[1] == low {
                    core::mem::swap(&mut top, &mut bottom);
                    held.swap(0, 1);
                }
                if held[0] != low {
                    stretch(row_of(low), columns, top);
                    held[0] = low;
                }
                if weight == 0.0 {
                    out.copy_from_slice(top);
                    continue;
                }
                if held[1] != high {
                    stretch(row_of(high), columns, bottom);
                    held[1] = high;
                }
                for ((out, &low), &high) in out.iter_mut().zip(&*top).zip(&*bottom) {
                    *out = low * (1.0 - weight) + high * weight;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::{vec, vec::Vec};

    use super::*;
    use crate::{Isa, Kernels};

    #[test]
    fn rows_follow_the_indices_on_every_isa() {
        for &isa in Isa::available() {
            let k = Kernels::for_isa(isa).unwrap();
            let x: Vec<u8> = (0..12).collect();
            let from = Pixels { height: 2, width: 3, inner: 1 };
            let mut out = vec![0u8; 2 * 4 * 6];
            nearest(k, &x, from, &[0, 0, 1, 1], &[0, 0, 1, 1, 2, 2], 0, &mut out);
            for (i, &found) in out.iter().enumerate() {
                let (image, y, x) = (i / 24, i / 6 % 4, i % 6);
                assert_eq!(usize::from(found), image * 6 + y / 2 * 3 + x / 2, "{isa}");
            }
            let mut part = vec![0u8; 12];
            nearest(k, &x, from, &[0, 0, 1, 1], &[0, 0, 1, 1, 2, 2], 3, &mut part);
            assert_eq!(part, out[18..30], "{isa}");
        }
    }

    #[test]
    fn linear_rows_are_the_weighted_means_of_their_neighbours() {
        for &isa in Isa::available() {
            let k = Kernels::for_isa(isa).unwrap();
            for inner in [1, 3, 20] {
                let (height, width) = (3, 700);
                let x: Vec<f32> = (0..2 * height * width * inner).map(|i| (i * 37 % 101) as f32).collect();
                let axis = |extent: u32| {
                    let low: Vec<u32> = (0..2 * extent).map(|i| (i / 2).min(extent - 1)).collect();
                    let high: Vec<u32> = low.iter().map(|&i| (i + 1).min(extent - 1)).collect();
                    let weight: Vec<f32> = (0..2 * extent).map(|i| (i % 2) as f32 * 0.5).collect();
                    (low, high, weight)
                };
                let (rows, columns) = (axis(3), axis(700));
                let rows = Blend { low: &rows.0, high: &rows.1, weight: &rows.2 };
                let columns = Blend { low: &columns.0, high: &columns.1, weight: &columns.2 };
                let from = Pixels { height, width, inner };
                let line = 2 * width * inner;
                let mut out = vec![0f32; 2 * 6 * line];
                linear(k, &x, from, rows, columns, 0, &mut out);
                for (i, &found) in out.iter().enumerate() {
                    let (row, column, channel) = (i / line, i % line / inner, i % inner);
                    let (image, y) = (row / 6 * height, row % 6);
                    let at =
                        |y: u32, c: u32| x[((image + y as usize) * width + c as usize) * inner + channel];
                    let across = |y: u32| {
                        let w = columns.weight[column];
                        at(y, columns.low[column]) * (1.0 - w) + at(y, columns.high[column]) * w
                    };
                    let w = rows.weight[y];
                    let expected = across(rows.low[y]) * (1.0 - w) + across(rows.high[y]) * w;
                    assert!((found - expected).abs() < 1e-4, "{isa} {inner} {i}: {found} {expected}");
                }
                let mut part = vec![0f32; 3 * line];
                linear(k, &x, from, rows, columns, 4, &mut part);
                assert_eq!(part, out[4 * line..7 * line], "{isa} {inner}");
            }
        }
    }

    #[test]
    fn an_element_without_weight_is_not_read() {
        let k = Kernels::for_isa(Isa::Portable).unwrap();
        let mut out = [0f32; 2];
        let columns = Blend { low: &[0, 0], high: &[1, 1], weight: &[0.0, 0.5] };
        let rows = Blend { low: &[0], high: &[0], weight: &[0.0] };
        let from = Pixels { height: 1, width: 2, inner: 1 };
        linear(k, &[1.0, f32::INFINITY], from, rows, columns, 0, &mut out);
        assert_eq!(out, [1.0, f32::INFINITY]);
    }
}
