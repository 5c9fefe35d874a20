//! Packed weights that can be kept in a file: their buffers, and the way back.

use alloc::{format, string::String, vec, vec::Vec};

use crate::{
    KERNELS, Kernels, PackedBf16, PackedF32, PackedI8, PackedWinograd, TileEdge,
    aligned::{Aligned, SharedBytes},
    pack::Panels,
    table::{gemm_bf16_tiles, gemm_f32_tiles, gemm_u8i8_tiles},
};

/// Packed weights whose memory is a few buffers of plain numbers, fixed by a shape and the kernels.
pub trait Saved: Send + Sync + Sized + 'static {
    /// What the packed form is called in files.
    const KIND: &'static str;
    /// What its size depends on, besides the kernels.
    type Shape: core::fmt::Debug + Copy;

    /// The memory, in the machine's byte order.
    fn buffers(&self) -> Vec<&[u8]>;

    /// The weights that such buffers hold, used where they lie; `None` when they are not of this shape or do
    /// not begin on cache lines. They must come from kernels with the same [`packing`].
    fn restore(kernels: Kernels, shape: Self::Shape, buffers: &[SharedBytes]) -> Option<Self>;
}

/// Names how these kernels want weights packed: equal names, equal bytes.
pub fn packing(kernels: Kernels) -> String {
    let rows = KERNELS.iter().filter(|row| kernels.isa().includes(row.isa));
    let names: String = rows.map(|row| format!("{} {:?};", row.name, row.tile)).collect();
    // FNV-1a: stable between builds, which the standard hashers do not promise.
    let hash = names
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{} {} {hash:016x}", env!("CARGO_PKG_VERSION"), kernels.isa())
}

/// `(taps, kc, n)`
pub(crate) type Extents = (usize, usize, usize);

macro_rules! reals {
    ($packed:ident, $kind:literal, $tiles:ident) => {
        impl Saved for $packed {
            const KIND: &'static str = $kind;
            type Shape = Extents;

            fn buffers(&self) -> Vec<&[u8]> {
                vec![self.panels.data.as_bytes()]
            }

            fn restore(kernels: Kernels, shape: Extents, buffers: &[SharedBytes]) -> Option<Self> {
                let [data] = buffers else { return None };
                let (tile, tiles) = $tiles(kernels);
                Some(Self { panels: Panels::restore(tile, tiles, shape, data.clone())? })
            }
        }
    };
}

reals!(PackedF32, "gemm.f32", gemm_f32_tiles);
reals!(PackedBf16, "gemm.bf16", gemm_bf16_tiles);

impl Saved for PackedI8 {
    const KIND: &'static str = "gemm.i8";
    type Shape = Extents;

    fn buffers(&self) -> Vec<&[u8]> {
        vec![self.panels.data.as_bytes(), self.sums.as_bytes()]
    }

    fn restore(kernels: Kernels, shape: Extents, buffers: &[SharedBytes]) -> Option<Self> {
        let [data, sums] = buffers else { return None };
        let (tile, tiles) = gemm_u8i8_tiles(kernels);
        let sums: Aligned<i32> = Aligned::shared(sums.clone())?;
        let fits = sums.as_slice().len() == shape.2.next_multiple_of(tile.nr);
        let panels = Panels::restore(tile, tiles, shape, data.clone()).filter(|_| fits)?;
        Some(Self { panels, sums })
    }
}

impl Saved for PackedWinograd {
    const KIND: &'static str = "winograd.f32";
    /// Tile, channels, columns.
    type Shape = (TileEdge, usize, usize);

    fn buffers(&self) -> Vec<&[u8]> {
        vec![self.bytes_of_panels()]
    }

    fn restore(kernels: Kernels, shape: Self::Shape, buffers: &[SharedBytes]) -> Option<Self> {
        let [data] = buffers else { return None };
        Self::restored(kernels, shape, data.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ARows, Dense, EpilogueF32, EpilogueI32, MatMut, Output, SparseF32, gemm_f32, gemm_u8i8, sparse_f32,
    };

    struct Copied(Aligned<i8>);

    impl AsRef<[u8]> for Copied {
        fn as_ref(&self) -> &[u8] {
            self.0.as_bytes()
        }
    }

    fn copies<P: Saved>(packed: &P) -> Vec<SharedBytes> {
        let copy = |bytes: &[u8]| {
            let mut to = Aligned::<i8>::zeroed(bytes.len());
            to.as_mut_slice().iter_mut().zip(bytes).for_each(|(to, &from)| *to = from as i8);
            SharedBytes::new(Copied(to))
        };
        packed.buffers().into_iter().map(copy).collect()
    }

    #[test]
    fn restored_weights_multiply_like_the_packed_ones() {
        let mut rng = fastrand::Rng::with_seed(11);
        for kernels in Kernels::all_available() {
            for _ in 0..20 {
                let (m, k, n) = (rng.usize(1..9), rng.usize(1..70), rng.usize(1..80));
                let weights: Vec<f32> = (0..k * n).map(|_| rng.f32() - 0.5).collect();
                let x: Vec<f32> = (0..m * k).map(|_| rng.f32() - 0.5).collect();
                let packed = PackedF32::from_kn(kernels, &weights, k, n, n);
                let product = |b: &PackedF32| {
                    let mut out = vec![0.0; m * n];
                    let rows = ARows::Dense(Dense { data: &x, rows: m, stride: k, k });
                    let out_matrix = Output::F32(MatMut::new(&mut out, m, n, n));
                    gemm_f32(kernels, &rows, b, 0, &EpilogueF32::default(), out_matrix);
                    out
                };
                let restored = PackedF32::restore(kernels, (1, k, n), &copies(&packed)).unwrap();
                assert_eq!(product(&packed), product(&restored));
                assert!(PackedF32::restore(kernels, (1, k + 8, n), &copies(&packed)).is_none());

                let weights: Vec<i8> = (0..k * n).map(|_| rng.i8(..)).collect();
                let x: Vec<u8> = (0..m * k).map(|_| rng.u8(..)).collect();
                let packed = PackedI8::from_kn(kernels, &weights, k, n, n);
                let scale = vec![1.0; n];
                let product = |b: &PackedI8| {
                    let mut out = vec![0.0; m * n];
                    let rows = ARows::Dense(Dense { data: &x, rows: m, stride: k, k });
                    let epilogue = EpilogueI32 {
                        bias: None,
                        scale: &scale,
                        offset: None,
                        residual: None,
                        activation: Default::default(),
                    };
                    let out_matrix = Output::F32(MatMut::new(&mut out, m, n, n));
                    gemm_u8i8(kernels, &rows, b, 0, &epilogue, out_matrix);
                    out
                };
                let restored = PackedI8::restore(kernels, (1, k, n), &copies(&packed)).unwrap();
                assert_eq!(product(&packed), product(&restored));
                assert_eq!(packed.col_sums(), restored.col_sums());
            }
        }
    }

    /// What a file says about where weights lie is checked before kernels follow it.
    #[test]
    fn sparse_weights_are_restored_if_they_lie_in_the_operand() {
        let mut rng = fastrand::Rng::with_seed(3);
        for kernels in Kernels::all_available() {
            let (k, n) = (19, 21);
            let weights: Vec<f32> = (0..k * n).map(|_| if rng.bool() { rng.f32() } else { 0.0 }).collect();
            let packed = SparseF32::pack(kernels, 1, k, n, |i, j| weights[i * n + j]);
            let x: Vec<f32> = (0..3 * k).map(|_| rng.f32()).collect();
            let product = |b: &SparseF32| {
                let mut out = vec![0.0; 3 * n];
                let rows = ARows::Dense(Dense { data: &x, rows: 3, stride: k, k });
                sparse_f32(
                    kernels,
                    &rows,
                    b,
                    0,
                    &EpilogueF32::default(),
                    Output::F32(MatMut::new(&mut out, 3, n, n)),
                );
                out
            };
            let given = copies(&packed);
            let restored = SparseF32::restore(kernels, (1, k, n), &given).unwrap();
            assert_eq!(product(&packed), product(&restored));
            let refused = |shape, buffers: &[SharedBytes]| {
                assert!(SparseF32::restore(kernels, shape, buffers).is_none(), "{shape:?}");
            };
            refused((1, k, n + 1), &given);
            refused((1, 1, n), &given);
            refused((1, k, n), &given[..1]);
            refused((1, k, n), &[given[1].clone(), given[0].clone()]);
        }
    }

    #[test]
    fn machines_with_other_kernels_have_other_packings() {
        let all: Vec<String> = Kernels::all_available().into_iter().map(packing).collect();
        for (i, a) in all.iter().enumerate() {
            assert!(all[..i].iter().all(|b| a != b));
        }
    }
}
