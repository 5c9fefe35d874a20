//! Moving elements without computing.

use bytemuck::Pod;
use sora_kernels::{layout, quantize};

use super::{Cx, Io, Work};
use crate::threads::MOVE_COST;

/// Runs `$body` with `$T` an unsigned integer of `$size` bytes.
macro_rules! with_size {
    ($size:expr, $T:ident => $body:expr) => {
        match $size {
            1 => {
                type $T = u8;
                $body
            }
            2 => {
                type $T = u16;
                $body
            }
            4 => {
                type $T = u32;
                $body
            }
            _ => {
                type $T = u64;
                $body
            }
        }
    };
}

pub(crate) use with_size;

/// Transposes each of `images` matrices of `rows × cols` elements of `size` bytes.
pub(crate) struct TransposeImages {
    pub(crate) images: usize,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) size: usize,
}

impl Work for TransposeImages {
    fn run(&self, cx: &Cx, mut io: Io) -> Result<(), String> {
        with_size!(self.size, T => self.transpose(cx, io.input::<T>(0), io.output::<T>()));
        Ok(())
    }
}

impl TransposeImages {
    fn transpose<T: Pod + Send + Sync>(&self, cx: &Cx, x: &[T], out: &mut [T]) {
        let image = (self.rows * self.cols).max(1);
        debug_assert_eq!(x.len(), self.images * image);
        cx.threads.chunks(x.len() * MOVE_COST, image, out, |start, out| {
            let x = &x[start..][..out.len()];
            for (x, out) in x.chunks_exact(image).zip(out.chunks_exact_mut(image)) {
                layout::transpose(cx.kernels, x, self.rows, self.cols, out);
            }
        });
    }
}

/// Copies a strided view of the input to a contiguous output: transposes, slices, broadcasts.
pub(crate) struct CopyView {
    pub(crate) view: View,
    pub(crate) size: usize,
}

/// Where the elements of a tensor lie in another one; counted in elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) start: usize,
    pub(crate) shape: Vec<usize>,
    pub(crate) strides: Vec<isize>,
}

impl View {
    /// The whole of a row-major tensor.
    pub(crate) fn of(shape: &[usize]) -> Self {
        let mut strides = vec![1; shape.len()];
        for axis in (1..shape.len()).rev() {
            strides[axis - 1] = strides[axis] * shape[axis] as isize;
        }
        View { start: 0, shape: shape.to_vec(), strides }
    }

    /// The view with its axes in another order.
    pub(crate) fn permuted(&self, order: &[usize]) -> Self {
        View {
            start: self.start,
            shape: order.iter().map(|&axis| self.shape[axis]).collect(),
            strides: order.iter().map(|&axis| self.strides[axis]).collect(),
        }
    }

    /// The view broadcast to `shape` by NumPy's rule.
    pub(crate) fn broadcast(&self, shape: &[usize]) -> Self {
        let skip = shape.len() - self.shape.len();
        let stride = |axis: usize| match axis.checked_sub(skip) {
            Some(i) if self.shape[i] == shape[axis] => self.strides[i],
            _ => 0,
        };
        View { start: self.start, shape: shape.to_vec(), strides: (0..shape.len()).map(stride).collect() }
    }

    /// The same elements with as few axes as possible: without extents of one, neighbours merged.
    pub(crate) fn collapsed(&self) -> Self {
        let mut shape: Vec<usize> = Vec::new();
        let mut strides: Vec<isize> = Vec::new();
        for (&extent, &stride) in self.shape.iter().zip(&self.strides) {
            if extent == 1 {
                continue;
            }
            match (shape.last_mut(), strides.last_mut()) {
                (Some(outer), Some(step)) if *step == stride * extent as isize => {
                    *outer *= extent;
                    *step = stride;
                }
                _ => {
                    shape.push(extent);
                    strides.push(stride);
                }
            }
        }
        View { start: self.start, shape, strides }
    }

    /// The position of every element, in order.
    pub(crate) fn offsets(&self) -> Vec<usize> {
        let mut offsets = Vec::new();
        self.runs(0, 0, |at| {
            offsets.push(at);
            true
        });
        offsets
    }

    /// Calls `visit` with the start of every run along the last `inner` axes, in order, from run `first` on.
    fn runs(&self, inner: usize, first: usize, mut visit: impl FnMut(usize) -> bool) {
        let outer = &self.shape[..self.shape.len() - inner];
        let mut index = vec![0; outer.len()];
        let (mut at, mut flat) = (self.start as isize, first);
        for axis in (0..outer.len()).rev() {
            index[axis] = flat % outer[axis];
            flat /= outer[axis];
            at += index[axis] as isize * self.strides[axis];
        }
        while visit(at as usize) {
            let Some(axis) = (0..outer.len()).rev().find(|&axis| index[axis] + 1 < outer[axis]) else {
                return;
            };
            for (i, stride) in index[axis + 1..].iter_mut().zip(&self.strides[axis + 1..]) {
                at -= *i as isize * stride;
                *i = 0;
            }
            index[axis] += 1;
            at += self.strides[axis];
        }
    }
}

impl Work for CopyView {
    fn run(&self, cx: &Cx, mut io: Io) -> Result<(), String> {
        with_size!(self.size, T => self.copy(cx, io.input::<T>(0), io.output::<T>()));
        Ok(())
    }
}

impl CopyView {
    fn copy<T: Pod + Send + Sync>(&self, cx: &Cx, x: &[T], out: &mut [T]) {
        let rank = self.view.shape.len();
        let matrix = match self.view.strides[..] {
            // The innermost two axes swapped: a matrix transpose, many elements at a time.
            [.., 1, step] => {
                let (rows, cols) = (self.view.shape[rank - 1], self.view.shape[rank - 2]);
                (step == cols as isize).then_some((rows, cols))
            }
            _ => None,
        };
        if let Some((rows, cols)) = matrix {
            return cx.threads.chunks(out.len() * MOVE_COST, rows * cols, out, |start, out| {
                let mut images = out.chunks_exact_mut(rows * cols);
                self.view.runs(2, start / (rows * cols), |at| {
                    let Some(image) = images.next() else { return false };
                    layout::transpose(cx.kernels, &x[at..][..rows * cols], rows, cols, image);
                    images.len() > 0
                });
            });
        }
        let (len, step) = match (self.view.shape.last(), self.view.strides.last()) {
            (Some(&len), Some(&step)) => (len, step),
            _ => (1, 1),
        };
        cx.threads.chunks(out.len() * MOVE_COST, len, out, |start, out| {
            let mut runs = out.chunks_exact_mut(len);
            self.view.runs(rank.min(1), start / len, |at| {
                let Some(run) = runs.next() else { return false };
                match step {
                    1 => run.copy_from_slice(&x[at..][..len]),
                    0 => run.fill(x[at]),
                    _ => {
                        let mut at = at as isize;
                        for slot in run {
                            *slot = x[at as usize];
                            at += step;
                        }
                    }
                }
                runs.len() > 0
            });
        });
    }
}

/// Joins inputs: the output is `[outer]` rows, each one row of every input in turn.
pub(crate) struct Join {
    /// Bytes per row of each input.
    pub(crate) rows: Vec<usize>,
}

impl Work for Join {
    fn run(&self, _: &Cx, mut io: Io) -> Result<(), String> {
        let out = io.output::<u8>();
        let total: usize = self.rows.iter().sum();
        let mut first = 0;
        for (x, &len) in io.ins.iter().zip(&self.rows) {
            for (row, x) in out.chunks_exact_mut(total).zip(x.chunks_exact(len)) {
                row[first..first + len].copy_from_slice(x);
            }
            first += len;
        }
        Ok(())
    }
}

/// Writes the input into the middle of an output filled with one value.
pub(crate) struct Frame {
    /// Where the input's elements go.
    inside: View,
    /// Bytes of the value.
    value: Vec<u8>,
}

impl Frame {
    /// Frames a tensor of `shape` with so many elements before and behind each axis.
    pub(crate) fn new(shape: &[usize], before: &[usize], behind: &[usize], value: Vec<u8>) -> Self {
        let (mut extents, mut edges) = (Vec::<usize>::new(), Vec::<[usize; 2]>::new());
        for ((&extent, &before), &behind) in shape.iter().zip(before).zip(behind) {
            match (extents.last_mut(), edges.last_mut()) {
                // An axis without frame continues the rows of the axis before it.
                (Some(outer), Some(edge)) if before + behind == 0 => {
                    *outer *= extent;
                    *edge = edge.map(|e| e * extent);
                }
                _ => {
                    extents.push(extent);
                    edges.push([before, behind]);
                }
            }
        }
        let whole: Vec<usize> = extents.iter().zip(&edges).map(|(n, [b, e])| b + n + e).collect();
        let target = View::of(&whole);
        let start = edges.iter().zip(&target.strides).map(|([before, _], &s)| before * s as usize).sum();
        Frame { inside: View { start, shape: extents, strides: target.strides }, value }
    }
}

impl Work for Frame {
    fn run(&self, _: &Cx, mut io: Io) -> Result<(), String> {
        with_size!(self.value.len(), T => self.frame(io.input::<T>(0), io.output::<T>()));
        Ok(())
    }
}

impl Frame {
    fn frame<T: Pod>(&self, x: &[T], out: &mut [T]) {
        let value: T = bytemuck::pod_read_unaligned(&self.value);
        out.fill(value);
        let inside = &self.inside;
        let len = inside.shape.last().copied().unwrap_or(1);
        let mut rows = x.chunks_exact(len.max(1));
        inside.runs(inside.shape.len().min(1), 0, |at| {
            let Some(row) = rows.next() else { return false };
            out[at..at + len].copy_from_slice(row);
            rows.len() > 0
        });
    }
}

/// Fills every axis with positions of the input's own axis: padding that repeats or mirrors elements.
pub(crate) struct Remap {
    /// By axis of the result: where its elements lie, counted in elements of the input.
    offsets: Vec<Vec<usize>>,
    size: usize,
}

impl Remap {
    /// `positions` names, by axis of the result, positions in an input of `shape`, of elements of `size` bytes.
    pub(crate) fn new(shape: &[usize], mut positions: Vec<Vec<usize>>, size: usize) -> Self {
        for (axis, stride) in positions.iter_mut().zip(View::of(shape).strides) {
            axis.iter_mut().for_each(|position| *position *= stride as usize);
        }
        Remap { offsets: positions, size }
    }
}

impl Work for Remap {
    fn run(&self, cx: &Cx, mut io: Io) -> Result<(), String> {
        with_size!(self.size, T => self.copy(cx, io.input::<T>(0), io.output::<T>()));
        Ok(())
    }
}

impl Remap {
    fn copy<T: Pod + Send + Sync>(&self, cx: &Cx, x: &[T], out: &mut [T]) {
        let Some((inner, outer)) = self.offsets.split_last() else { return out.copy_from_slice(x) };
        cx.threads.chunks(out.len() * MOVE_COST, inner.len(), out, |start, out| {
            for (n, run) in out.chunks_exact_mut(inner.len()).enumerate() {
                let mut flat = start / inner.len() + n;
                let mut at = 0;
                for axis in outer.iter().rev() {
                    at += axis[flat % axis.len()];
                    flat /= axis.len();
                }
                for (slot, &offset) in run.iter_mut().zip(inner) {
                    *slot = x[at + offset];
                }
            }
        });
    }
}

/// Picks slices along an axis by run-time indices: the inputs are data and indices.
pub(crate) struct Pick {
    /// Product of the extents before the axis.
    pub(crate) outer: usize,
    /// Extent of the axis.
    pub(crate) extent: usize,
    /// Bytes of one slice.
    pub(crate) bytes: usize,
    /// Whether indices are `i64`, else `i32`.
    pub(crate) long: bool,
}

impl Work for Pick {
    fn run(&self, _: &Cx, mut io: Io) -> Result<(), String> {
        let (data, indices) = (io.ins[0], picks(&io, self.long, self.extent)?);
        let mut slots = io.output::<u8>().chunks_exact_mut(self.bytes.max(1));
        for outer in 0..self.outer {
            for (&i, slot) in indices.iter().zip(&mut slots) {
                slot.copy_from_slice(&data[(outer * self.extent + i) * self.bytes..][..self.bytes]);
            }
        }
        Ok(())
    }
}

/// Picks rows of a matrix of `i8` by run-time indices and makes them real: the inputs are the matrix and indices.
pub(crate) struct PickReal {
    /// Rows of the matrix.
    pub(crate) extent: usize,
    /// Whether indices are `i64`, else `i32`.
    pub(crate) long: bool,
    /// By column.
    pub(crate) scales: Vec<f32>,
}

impl Work for PickReal {
    fn run(&self, cx: &Cx, mut io: Io) -> Result<(), String> {
        let (data, cols) = (io.input::<i8>(0), self.scales.len());
        let indices = picks(&io, self.long, self.extent)?;
        for (i, out) in indices.into_iter().zip(io.output::<f32>().chunks_exact_mut(cols)) {
            quantize::dequantize_columns_i8(cx.kernels, &data[i * cols..][..cols], &self.scales, out);
        }
        Ok(())
    }
}

/// The indices in input 1, those from the end of the axis counted from its beginning.
fn picks(io: &Io, long: bool, extent: usize) -> Result<Vec<usize>, String> {
    let resolve = |index: i64| {
        let wrapped = if index < 0 { index + extent as i64 } else { index };
        usize::try_from(wrapped)
            .ok()
            .filter(|&i| i < extent)
            .ok_or_else(|| format!("index {index} is outside an axis of extent {extent}"))
    };
    match long {
        true => io.input::<i64>(1).iter().map(|&i| resolve(i)).collect(),
        false => io.input::<i32>(1).iter().map(|&i| resolve(i.into())).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sora_kernels::Kernels;

    use crate::threads::Threads;

    #[test]
    fn views_copy_the_elements_that_indexing_names() {
        let mut rng = fastrand::Rng::with_seed(3);
        for _ in 0..300 {
            let rank = rng.usize(0..5);
            let shape: Vec<usize> = (0..rank).map(|_| rng.usize(1..6)).collect();
            let mut order: Vec<usize> = (0..rank).collect();
            rng.shuffle(&mut order);
            let data: Vec<u32> = (0..shape.iter().product::<usize>() as u32).collect();
            let view = View::of(&shape).permuted(&order);
            let mut out = vec![0u32; data.len()];
            let threads = Threads::new(1).unwrap();
            let cx = Cx { kernels: Kernels::best(), threads: &threads };
            CopyView { view: view.collapsed(), size: 4 }.copy(&cx, &data, &mut out);
            for (flat, &value) in out.iter().enumerate() {
                let (mut rest, mut at) = (flat, 0);
                for axis in (0..rank).rev() {
                    at += (rest % view.shape[axis]) as isize * view.strides[axis];
                    rest /= view.shape[axis];
                }
                assert_eq!(value, data[at as usize], "{shape:?} {order:?}");
            }
        }
    }
}
