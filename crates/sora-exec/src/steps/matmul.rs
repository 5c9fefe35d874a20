//! Products of two run-time operands.

use std::sync::{Mutex, PoisonError};

use sora_kernels::{ARows, Dense, EpilogueF32, Kernels, MatMut, Output, PackedF32, gemm_f32};

use super::{Cx, Io, Work};

/// What is contiguous in the right operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Rows,
    Columns,
}

/// How the right operand of a product lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Right {
    pub(crate) order: Order,
    /// Distance between its rows or columns.
    pub(crate) step: usize,
}

impl Right {
    /// Packs the `k × n` matrix that begins at the start of `data`.
    pub(crate) fn pack(self, packed: &mut PackedF32, data: &[f32], k: usize, n: usize) {
        match self.order {
            Order::Rows => packed.repack_kn(data, k, n, self.step),
            Order::Columns => packed.repack_nk(data, k, n, self.step),
        }
    }
}

/// `[m, k] · [k, n]` for each pair of matrices of a batch.
pub(crate) struct BatchProduct {
    m: usize,
    k: usize,
    n: usize,
    /// Distance between rows of the left operand.
    a_step: usize,
    right: Right,
    /// By product: where its operands start.
    products: Vec<(usize, usize)>,
    /// Memory for the packed right operand, one per thread that needed one at the same time.
    packed: Mutex<Vec<PackedF32>>,
}

impl BatchProduct {
    pub(crate) fn new(
        [m, k, n]: [usize; 3],
        a_step: usize,
        right: Right,
        products: Vec<(usize, usize)>,
    ) -> Self {
        BatchProduct { m, k, n, a_step, right, products, packed: Mutex::default() }
    }

    fn range(&self, kernels: Kernels, a: &[f32], b: &[f32], first: usize, out: &mut [f32]) {
        let (m, k, n) = (self.m, self.k, self.n);
        let idle = self.packed.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut packed_from = None;
        let mut packed = match idle {
            Some(packed) => packed,
            None => PackedF32::pack(kernels, 1, k, n, |_, _| 0.0),
        };
        for (&(at, bt), out) in self.products[first..].iter().zip(out.chunks_exact_mut(m * n)) {
            if packed_from != Some(bt) {
                self.right.pack(&mut packed, &b[bt..], k, n);
                packed_from = Some(bt);
            }
            let rows = ARows::Dense(Dense { data: &a[at..], rows: m, stride: self.a_step, k });
            let out = Output::F32(MatMut::new(out, m, n, n));
            gemm_f32(kernels, &rows, &packed, 0, &EpilogueF32::default(), out);
        }
        self.packed.lock().unwrap_or_else(PoisonError::into_inner).push(packed);
    }
}

impl Work for BatchProduct {
    fn run(&self, cx: &Cx, mut io: Io) -> Result<(), String> {
        let (a, b, out) = (io.input::<f32>(0), io.input::<f32>(1), io.output::<f32>());
        let matrix = self.m * self.n;
        cx.threads.chunks(out.len() * self.k, matrix, out, |start, out| {
            self.range(cx.kernels, a, b, start / matrix, out);
        });
        Ok(())
    }
}
