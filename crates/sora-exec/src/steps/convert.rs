//! Choices and conversions, element by element, of any dtype.

use bytemuck::Pod;
use sora_tensor::{DType, Element, with_element};

use super::movement::with_size;
use super::{Cx, Io, Work};
use crate::threads::MOVE_COST;

/// Elements of the second input where the first, a truth value, holds, else of the third.
pub(crate) struct Choose {
    pub(crate) size: usize,
}

impl Work for Choose {
    fn run(&self, cx: &Cx, mut io: Io) -> Result<(), String> {
        let condition = io.input::<u8>(0);
        with_size!(self.size, T => choose::<T>(cx, condition, io.input(1), io.input(2), io.output()));
        Ok(())
    }
}

fn choose<T: Pod + Send + Sync>(cx: &Cx, condition: &[u8], x: &[T], y: &[T], out: &mut [T]) {
    cx.threads.chunks(out.len() * MOVE_COST, 64, out, |start, out| {
        let operands = condition[start..].iter().zip(&x[start..]).zip(&y[start..]);
        for (slot, ((&holds, &x), &y)) in out.iter_mut().zip(operands) {
            *slot = if holds != 0 { x } else { y };
        }
    });
}

/// Elements in another dtype, by the rules of [`Element`].
pub(crate) struct Cast {
    pub(crate) from: DType,
    pub(crate) to: DType,
}

impl Work for Cast {
    fn run(&self, _: &Cx, mut io: Io) -> Result<(), String> {
        with_element!(self.from, A => {
            let x = io.input::<A>(0);
            with_element!(self.to, B => cast::<A, B>(x, io.output()))
        });
        Ok(())
    }
}

fn cast<A: Element, B: Element>(x: &[A], out: &mut [B]) {
    for (slot, &x) in out.iter_mut().zip(x) {
        *slot = match A::DTYPE.is_float() {
            true => B::from_f64(x.to_f64()),
            false => B::from_i128(x.to_i128()),
        };
    }
}
