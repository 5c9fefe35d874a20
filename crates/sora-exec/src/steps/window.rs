//! Sliding windows over channels-last images of any rank, as offset tables.

use sora_kernels::PAD;

/// The geometry of a convolution or pooling window; one entry per spatial axis.
#[derive(Clone, Debug)]
pub(crate) struct Geometry {
    pub(crate) input: Vec<usize>,
    pub(crate) kernel: Vec<usize>,
    pub(crate) strides: Vec<usize>,
    pub(crate) dilations: Vec<usize>,
    /// Padding before each axis; that behind follows from `output`.
    pub(crate) pads: Vec<usize>,
    pub(crate) output: Vec<usize>,
}

impl Geometry {
    /// Elements of the window.
    pub(crate) fn taps(&self) -> usize {
        self.kernel.iter().product()
    }

    /// Positions of the window in one image.
    pub(crate) fn outputs(&self) -> usize {
        self.output.iter().product()
    }

    /// Pixels of one input image.
    pub(crate) fn pixels(&self) -> usize {
        self.input.iter().product()
    }

    /// Whether output and input pixels are the same, so that there is nothing to gather.
    pub(crate) fn is_pointwise(&self) -> bool {
        self.taps() == 1
            && self.strides.iter().all(|&s| s == 1)
            && self.pads.iter().all(|&p| p == 0)
            && self.input == self.output
    }

    /// Padding behind each axis that the windows reach.
    pub(crate) fn pads_behind(&self) -> Vec<usize> {
        let behind = |axis: usize| {
            let reach = (self.output[axis] - 1) * self.strides[axis]
                + (self.kernel[axis] - 1) * self.dilations[axis]
                + 1;
            reach.saturating_sub(self.pads[axis] + self.input[axis])
        };
        (0..self.input.len()).map(behind).collect()
    }

    /// For each output pixel and tap, in order, the input pixel read; `None` in the padding.
    fn pixels_read(&self, forward: bool) -> impl Iterator<Item = Option<usize>> + '_ {
        let coordinates = |mut flat: usize, shape: &[usize]| {
            let mut index = vec![0; shape.len()];
            for (i, &extent) in index.iter_mut().zip(shape).rev() {
                (*i, flat) = (flat % extent, flat / extent);
            }
            index
        };
        let windows: Vec<_> = (0..self.taps()).map(|tap| coordinates(tap, &self.kernel)).collect();
        (0..self.outputs()).map(move |out| coordinates(out, &self.output)).flat_map(move |out| {
            let read = |tap: &Vec<usize>| {
                let mut pixel = 0;
                for axis in 0..out.len() {
                    let reach = tap[axis] * self.dilations[axis];
                    let at = if forward {
                        (out[axis] * self.strides[axis] + reach).checked_sub(self.pads[axis])?
                    } else {
                        // The output pixel that stride and tap carry an input pixel to.
                        let carried = (out[axis] + self.pads[axis]).checked_sub(reach)?;
                        if !carried.is_multiple_of(self.strides[axis]) {
                            return None;
                        }
                        carried / self.strides[axis]
                    };
                    if at >= self.input[axis] {
                        return None;
                    }
                    pixel = pixel * self.input[axis] + at;
                }
                Some(pixel)
            };
            windows.iter().map(read).collect::<Vec<_>>()
        })
    }

    /// For each output pixel, how many taps lie inside the input.
    pub(crate) fn taps_inside(&self) -> Vec<usize> {
        let read: Vec<bool> = self.pixels_read(true).map(|p| p.is_some()).collect();
        read.chunks(self.taps().max(1)).map(|taps| taps.iter().filter(|&&t| t).count()).collect()
    }
}

/// Windows over a batch of images: what [`sora_kernels::Indirect`] needs.
#[derive(Clone, Debug)]
pub(crate) struct Windows {
    /// Images of the batch.
    pub(crate) images: usize,
    /// Elements of one input image.
    pub(crate) image_len: usize,
    /// Output pixels per image.
    pub(crate) rows: usize,
    /// Pieces per window.
    pub(crate) taps: usize,
    /// Elements per piece.
    pub(crate) kc: usize,
    /// Distance between the pieces of a window, where it is the same in all and [`Windows::calls`] gives the
    /// offsets of first pieces only.
    pub(crate) step: Option<usize>,
    /// `[call_images][rows][taps]` offsets from the first image of a call, or those of first taps.
    offsets: Vec<u32>,
    /// Images that one kernel call covers.
    call_images: usize,
}

/// Entries of an offset table above which a batch is cut into several calls: the table should stay in the
/// second-level cache.
const TABLE: usize = 64 * 1024;

impl Windows {
    /// Windows whose pieces are `kc` elements at each tap; `stride` elements lie between pixels. With
    /// `forward` false the geometry is that of a transposed convolution. `None` when an image is too large
    /// for 32-bit offsets.
    pub(crate) fn new(
        geometry: &Geometry,
        images: usize,
        stride: usize,
        kc: usize,
        forward: bool,
    ) -> Option<Self> {
        let image_len = geometry.pixels() * stride;
        let image: Vec<Option<usize>> = geometry.pixels_read(forward).map(|p| Some(p? * stride)).collect();
        let fits = |images: usize| images.checked_mul(image_len).is_some_and(|n| n < PAD as usize);
        let mut call_images = (TABLE / image.len().max(1)).clamp(1, images.max(1));
        while call_images > 1 && !fits(call_images) {
            call_images /= 2;
        }
        if !fits(call_images) {
            return None;
        }
        let offset = |n: usize, at: &Option<usize>| at.map_or(PAD, |at| (n * image_len + at) as u32);
        let offsets = (0..call_images).flat_map(|n| image.iter().map(move |at| offset(n, at))).collect();
        let (rows, taps) = (geometry.outputs(), geometry.taps());
        Some(Windows { images, image_len, rows, taps, kc, step: None, offsets, call_images })
    }

    /// Keeps the first offset of each window where the others follow from it.
    pub(crate) fn stepped(mut self) -> Self {
        let [first, second, ..] = self.offsets[..] else { return self };
        if self.taps < 2 || second <= first {
            return self;
        }
        let step = second - first;
        let follows = |window: &[u32]| {
            let pairs = window.iter().zip(&window[1..]);
            window.iter().all(|&at| at != PAD)
                && pairs.into_iter().all(|(a, b)| a.checked_add(step) == Some(*b))
        };
        if self.offsets.chunks_exact(self.taps).all(follows) {
            self.step = Some(step as usize);
            self.offsets = self.offsets.chunks_exact(self.taps).map(|window| window[0]).collect();
        }
        self
    }

    /// The windows `first..end` of the batch as kernel calls: for each the range of windows, the first
    /// element of its images, and its offsets.
    pub(crate) fn calls(
        &self,
        first: usize,
        end: usize,
    ) -> impl Iterator<Item = (std::ops::Range<usize>, usize, &[u32])> {
        let mut next = first;
        std::iter::from_fn(move || {
            if next >= end {
                return None;
            }
            let image = next / self.rows;
            let stop = end.min((image + self.call_images) * self.rows);
            let each = if self.step.is_some() { 1 } else { self.taps };
            let local = (next - image * self.rows) * each..(stop - image * self.rows) * each;
            let range = next..stop;
            next = stop;
            Some((range, image * self.image_len, &self.offsets[local]))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_cover_all_windows_in_order() {
        let geometry = Geometry {
            input: vec![3, 4],
            kernel: vec![2, 2],
            strides: vec![1, 1],
            dilations: vec![1, 1],
            pads: vec![0, 1],
            output: vec![2, 4],
        };
        let windows = Windows::new(&geometry, 5, 3, 3, true).unwrap();
        let read: Vec<_> = windows.calls(3, 31).flat_map(|(range, _, _)| range).collect();
        assert_eq!(read, (3..31).collect::<Vec<_>>());
        let (_, base, offsets) = windows.calls(8, 9).next().unwrap();
        assert_eq!((base, offsets), (36, &[PAD, 0, PAD, 12][..]));
        assert_eq!(geometry.taps_inside()[0], 2);
    }

    #[test]
    fn windows_without_padding_step() {
        let geometry = |pads, kernel| Geometry {
            input: vec![6, 4],
            kernel,
            strides: vec![2, 1],
            dilations: vec![1, 1],
            pads,
            output: vec![2, 4],
        };
        let table = |pads, kernel| Windows::new(&geometry(pads, kernel), 3, 5, 5, true).unwrap();
        let whole = table(vec![0, 0], vec![3, 1]);
        let stepped = whole.clone().stepped();
        assert_eq!(stepped.step, Some(20));
        for (a, b) in whole.calls(3, 20).zip(stepped.calls(3, 20)) {
            assert_eq!((&a.0, a.1), (&b.0, b.1));
            let offsets = b.2.iter().flat_map(|&at| [at, at + 20, at + 40]);
            assert_eq!(a.2, offsets.collect::<Vec<_>>());
        }
        assert_eq!(table(vec![1, 0], vec![3, 1]).stepped().step, None);
        assert_eq!(table(vec![0, 0], vec![2, 2]).stepped().step, None);
        assert_eq!(table(vec![0, 0], vec![1, 1]).stepped().step, None);
    }
}
