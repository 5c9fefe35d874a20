//! The best elements along an axis, and elements written at places that are computed.

use std::cmp::Ordering;

use bytemuck::Pod;
use sora_tensor::DType;

use super::movement::{View, with_size};
use super::{Cx, Io, Work};
use crate::threads::MOVE_COST;

/// The best elements along an axis, best first, and their positions: of `[outer][extent][inner]`, `[outer][count][inner]`.
/// Equal elements stay in order; NaN is above every number.
pub(crate) struct Best {
    pub(crate) dtype: DType,
    pub(crate) extent: usize,
    pub(crate) count: usize,
    pub(crate) inner: usize,
    pub(crate) largest: bool,
}

impl Work for Best {
    fn run(&self, _: &Cx, io: Io) -> Result<(), String> {
        match self.dtype {
            DType::F32 => self.select::<f32>(io),
            DType::F64 => self.select::<f64>(io),
            DType::I32 => self.select::<i32>(io),
            _ => self.select::<i64>(io),
        }
        Ok(())
    }
}

impl Best {
    /// Whether there is a kernel for elements of `dtype`.
    pub(crate) fn takes(dtype: DType) -> bool {
        matches!(dtype, DType::F32 | DType::F64 | DType::I32 | DType::I64)
    }

    fn select<T: Pod + PartialOrd>(&self, mut io: Io) {
        let (x, values, positions) = (io.input::<T>(0), io.output::<T>(), io.output_at::<i64>(1));
        let &Best { extent, count, inner, largest, .. } = self;
        let is_nan = |x: &T| x.partial_cmp(x).is_none();
        let mut order = Vec::with_capacity(extent);
        for lane in 0..x.len() / extent {
            let (outer, column) = (lane / inner, lane % inner);
            let at = |i: usize| &x[(outer * extent + i) * inner + column];
            let better = |&i: &usize, &j: &usize| {
                let (a, b) = if largest { (at(j), at(i)) } else { (at(i), at(j)) };
                let ordered = a.partial_cmp(b).unwrap_or_else(|| is_nan(a).cmp(&is_nan(b)));
                if ordered == Ordering::Equal { i.cmp(&j) } else { ordered }
            };
            order.clear();
            order.extend(0..extent);
            if count < extent {
                order.select_nth_unstable_by(count, better);
            }
            let best = &mut order[..count];
            best.sort_unstable_by(better);
            for (rank, &i) in best.iter().enumerate() {
                let to = (outer * count + rank) * inner + column;
                (values[to], positions[to]) = (*at(i), i as i64);
            }
        }
    }
}

/// The first input with each element of the third at its own place, but where the second says on one axis.
pub(crate) struct Place {
    /// Where the updates go before the axis is taken into account, in elements.
    pub(crate) places: View,
    /// Extent of the axis, and elements from one position to the next.
    pub(crate) axis: (usize, usize),
    /// Bytes of an element.
    pub(crate) size: usize,
    /// Whether indices are `i64`, else `i32`.
    pub(crate) long: bool,
}

impl Work for Place {
    fn run(&self, cx: &Cx, mut io: Io) -> Result<(), String> {
        with_size!(self.size, T => self.place::<T>(cx, &mut io))
    }
}

impl Place {
    fn place<T: Pod + Send + Sync>(&self, cx: &Cx, io: &mut Io) -> Result<(), String> {
        let (x, updates, out) = (io.input::<T>(0), io.input::<T>(2), io.output::<T>());
        cx.threads.chunks(out.len() * MOVE_COST, 64, out, |start, out| {
            out.copy_from_slice(&x[start..][..out.len()]);
        });
        let (extent, stride) = self.axis;
        let indices: Vec<i64> = match self.long {
            true => io.input::<i64>(1).to_vec(),
            false => io.input::<i32>(1).iter().map(|&i| i64::from(i)).collect(),
        };
        for ((index, &update), place) in indices.into_iter().zip(updates).zip(self.places.offsets()) {
            out[place + position(index, extent)? * stride] = update;
        }
        Ok(())
    }
}

/// The first input, or zeros, with slices of the last input added where each line of the one before it says.
pub(crate) struct AddSlices {
    /// Extents of the axes that a line has coordinates of.
    pub(crate) extents: Vec<usize>,
    /// Elements of a slice.
    pub(crate) run: usize,
    /// Whether indices are `i64`, else `i32`.
    pub(crate) long: bool,
    /// Whether there is no first input.
    pub(crate) zeros: bool,
}

impl Work for AddSlices {
    fn run(&self, _: &Cx, mut io: Io) -> Result<(), String> {
        let (lines, out) = (usize::from(!self.zeros), io.output::<f32>());
        match self.zeros {
            true => out.fill(0.0),
            false => out.copy_from_slice(io.input::<f32>(0)),
        }
        let indices: Vec<i64> = match self.long {
            true => io.input::<i64>(lines).to_vec(),
            false => io.input::<i32>(lines).iter().map(|&i| i64::from(i)).collect(),
        };
        let updates = io.input::<f32>(lines + 1).chunks_exact(self.run);
        for (line, update) in indices.chunks_exact(self.extents.len()).zip(updates) {
            let mut slice = 0;
            for (&index, &extent) in line.iter().zip(&self.extents) {
                slice = slice * extent + position(index, extent)?;
            }
            out[slice * self.run..][..self.run].iter_mut().zip(update).for_each(|(sum, x)| *sum += x);
        }
        Ok(())
    }
}

/// The position that an index means, which counts from the end below 0.
fn position(index: i64, extent: usize) -> Result<usize, String> {
    let resolved = if index < 0 { index.saturating_add(extent as i64) } else { index };
    let position = usize::try_from(resolved).ok().filter(|&position| position < extent);
    position.ok_or_else(|| format!("index {index} is outside an axis of extent {extent}"))
}
