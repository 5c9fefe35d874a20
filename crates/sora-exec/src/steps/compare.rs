//! Comparisons, logic and the arithmetic of integers, element by element.

use bytemuck::Pod;
use sora_ir::ops::BinaryKind;
use sora_kernels::elementwise::Rhs;
use sora_tensor::DType;

use super::elementwise::Broadcast;
use super::{Cx, Io, Work};

/// A function of two tensors of one dtype, as [`BinaryKind`] defines it; the left one has the result's shape.
pub(crate) struct Compare {
    kind: BinaryKind,
    dtype: DType,
    broadcast: Broadcast,
}

impl Compare {
    /// The step for operands of `dtype`, where there is a kernel.
    pub(crate) fn new(kind: BinaryKind, dtype: DType, broadcast: Broadcast) -> Option<Self> {
        use BinaryKind::{
            Add, And, Equal, Greater, GreaterOrEqual, Less, LessOrEqual, Max, Min, Mul, Or, Sub, Xor,
        };
        let ordered = matches!(dtype, DType::F32 | DType::F64 | DType::I32 | DType::I64);
        let known = match kind {
            Equal | Greater | GreaterOrEqual | Less | LessOrEqual => ordered,
            And | Or | Xor => dtype == DType::Bool,
            Add | Sub | Mul | Min | Max => matches!(dtype, DType::I32 | DType::I64),
            _ => false,
        };
        known.then_some(Compare { kind, dtype, broadcast })
    }

    /// The function of the other operand's and this one's values, where it has a name.
    pub(crate) fn mirrored(kind: BinaryKind) -> Option<BinaryKind> {
        match kind {
            BinaryKind::Greater => Some(BinaryKind::Less),
            BinaryKind::GreaterOrEqual => Some(BinaryKind::LessOrEqual),
            BinaryKind::Less => Some(BinaryKind::Greater),
            BinaryKind::LessOrEqual => Some(BinaryKind::GreaterOrEqual),
            BinaryKind::Sub => None,
            symmetric => Some(symmetric),
        }
    }

    fn compare<T: Pod + PartialOrd + Send + Sync>(&self, cx: &Cx, mut io: Io) {
        match self.kind {
            BinaryKind::Equal => self.map(cx, &mut io, |a: T, b: T| u8::from(a == b)),
            BinaryKind::Greater => self.map(cx, &mut io, |a: T, b: T| u8::from(a > b)),
            BinaryKind::GreaterOrEqual => self.map(cx, &mut io, |a: T, b: T| u8::from(a >= b)),
            BinaryKind::Less => self.map(cx, &mut io, |a: T, b: T| u8::from(a < b)),
            _ => self.map(cx, &mut io, |a: T, b: T| u8::from(a <= b)),
        }
    }

    fn logic(&self, cx: &Cx, mut io: Io) {
        match self.kind {
            BinaryKind::And => self.map(cx, &mut io, |a: u8, b: u8| a & b),
            BinaryKind::Or => self.map(cx, &mut io, |a: u8, b: u8| a | b),
            _ => self.map(cx, &mut io, |a: u8, b: u8| a ^ b),
        }
    }

    fn map<T: Pod + Send + Sync, O: Pod + Send>(&self, cx: &Cx, io: &mut Io, f: impl Fn(T, T) -> O + Sync) {
        let (a, b, out) = (io.input::<T>(0), io.input::<T>(1), io.output::<O>());
        self.broadcast.each(cx, b, out, |start, rhs, out| {
            let a = &a[start..][..out.len()];
            match rhs {
                Rhs::Same(b) => zip(out, a, b, &f),
                Rhs::Scalar(b) => fill(out, a, b, &f),
                Rhs::Row(row) => {
                    for (out, a) in out.chunks_mut(row.len()).zip(a.chunks(row.len())) {
                        zip(out, a, row, &f);
                    }
                }
                Rhs::Column { values, period } => {
                    for ((out, a), &b) in out.chunks_mut(period).zip(a.chunks(period)).zip(values) {
                        fill(out, a, b, &f);
                    }
                }
            }
        });
    }
}

fn zip<T: Copy, O>(out: &mut [O], a: &[T], b: &[T], f: &impl Fn(T, T) -> O) {
    for ((slot, &a), &b) in out.iter_mut().zip(a).zip(b) {
        *slot = f(a, b);
    }
}

fn fill<T: Copy, O>(out: &mut [O], a: &[T], b: T, f: &impl Fn(T, T) -> O) {
    for (slot, &a) in out.iter_mut().zip(a) {
        *slot = f(a, b);
    }
}

/// Integer arithmetic wraps.
macro_rules! arithmetic {
    ($self:ident, $cx:ident, $io:ident, $T:ty) => {
        match $self.kind {
            BinaryKind::Add => $self.map($cx, &mut $io, <$T>::wrapping_add),
            BinaryKind::Sub => $self.map($cx, &mut $io, <$T>::wrapping_sub),
            BinaryKind::Mul => $self.map($cx, &mut $io, <$T>::wrapping_mul),
            BinaryKind::Min => $self.map($cx, &mut $io, <$T>::min),
            BinaryKind::Max => $self.map($cx, &mut $io, <$T>::max),
            _ => $self.compare::<$T>($cx, $io),
        }
    };
}

impl Work for Compare {
    fn run(&self, cx: &Cx, mut io: Io) -> Result<(), String> {
        match self.dtype {
            DType::F32 => self.compare::<f32>(cx, io),
            DType::F64 => self.compare::<f64>(cx, io),
            DType::I32 => arithmetic!(self, cx, io, i32),
            DType::I64 => arithmetic!(self, cx, io, i64),
            _ => self.logic(cx, io),
        }
        Ok(())
    }
}
