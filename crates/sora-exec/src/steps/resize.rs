//! Resizing of images.

use bytemuck::Pod;
use sora_kernels::resize::{self, Blend, Pixels};

use super::movement::with_size;
use super::{Cx, Io, Work};
use crate::threads::MOVE_COST;

/// Where the elements along one axis come from, as in [`Blend`].
#[derive(Clone, Debug, Default)]
pub(crate) struct Axis {
    pub(crate) low: Vec<u32>,
    pub(crate) high: Vec<u32>,
    pub(crate) weight: Vec<f32>,
}

impl Axis {
    fn blend(&self) -> Blend<'_> {
        Blend { low: &self.low, high: &self.high, weight: &self.weight }
    }
}

/// Resizes images along two axes, beside which pixels lie as runs.
pub(crate) struct Resize {
    pub(crate) from: Pixels,
    pub(crate) rows: Axis,
    pub(crate) columns: Axis,
    pub(crate) element: Element,
}

/// What becomes of the elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Element {
    /// They move; so many bytes each.
    Nearest(usize),
    /// They are interpolated.
    F32,
}

impl Resize {
    fn nearest<T: Pod + Send + Sync>(&self, cx: &Cx, x: &[T], out: &mut [T]) {
        let line = self.columns.low.len() * self.from.inner;
        cx.threads.chunks(out.len() * MOVE_COST, line, out, |start, out| {
            let (rows, columns) = (&self.rows.low, &self.columns.low);
            resize::nearest(cx.kernels, x, self.from, rows, columns, start / line, out);
        });
    }
}

impl Work for Resize {
    fn run(&self, cx: &Cx, mut io: Io) -> Result<(), String> {
        match self.element {
            Element::Nearest(size) => {
                with_size!(size, T => self.nearest(cx, io.input::<T>(0), io.output::<T>()))
            }
            Element::F32 => {
                let line = self.columns.low.len() * self.from.inner;
                let (x, out) = (io.input::<f32>(0), io.output::<f32>());
                cx.threads.chunks(out.len() * MOVE_COST, line, out, |start, out| {
                    let (rows, columns) = (self.rows.blend(), self.columns.blend());
                    resize::linear(cx.kernels, x, self.from, rows, columns, start / line, out);
                });
            }
        }
        Ok(())
    }
}
