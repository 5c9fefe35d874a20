//! Carrying out a [`Preprocess`] on one batch.

use rayon::prelude::*;
use sora_tensor::{DType, Element, Tensor, TensorError, with_element};

use super::{Layout, Output, Preprocess, Resize, Size};
use crate::picture::{Channel, Picture};
use crate::resample::resize;
use crate::{DataError, ErrorKind};

/// The most pixels that resizing may make: guards against pictures with an absurd aspect.
const MAX_PIXELS: usize = 1 << 26;

/// Where the axes of a picture lie in a stored array of one sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct PictureShape {
    pub(super) size: Size,
    pub(super) channels: usize,
    layout: Layout,
}

impl PictureShape {
    /// `shape` as a picture: `[height, width]`, `[channels, height, width]` or `[height, width, channels]` with
    /// 1 or 3 channels; the latter when both readings are possible.
    pub(super) fn of(shape: &[usize]) -> Option<Self> {
        let (height, width, channels, layout) = match *shape {
            [h, w] => (h, w, 1, Layout::Nhw),
            [h, w, c @ (1 | 3)] => (h, w, c, Layout::Nhwc),
            [c @ (1 | 3), h, w] => (h, w, c, Layout::Nchw),
            _ => return None,
        };
        let size = Size { height, width };
        (height > 0 && width > 0).then_some(PictureShape { size, channels, layout })
    }
}

/// A picture that is ready but for normalization and layout.
pub(crate) enum Prepared {
    /// 8-bit.
    Levels(Picture<u8>),
    /// Real values.
    Reals(Picture<f32>),
}

impl Prepared {
    fn shape(&self) -> (Size, usize) {
        match self {
            Prepared::Levels(p) => (p.size, p.channels),
            Prepared::Reals(p) => (p.size, p.channels),
        }
    }
}

/// Converts, resizes and crops one picture.
pub(crate) fn prepare<T: Channel>(
    mut picture: Picture<T>,
    pre: &Preprocess,
    place: impl Fn() -> String,
) -> Result<Picture<T>, DataError> {
    let error = |what: String| {
        DataError::new(ErrorKind::Mismatch, what, place(), "change resize or crop, or drop the picture")
    };
    if let Some(color) = pre.color {
        picture = picture.convert(color);
    }
    if let Some(wanted) = pre.resize {
        let target = wanted.of(picture.size);
        if target.height.saturating_mul(target.width) > MAX_PIXELS {
            return Err(error(format!(
                "resize={wanted} would make a picture of {target} from {}",
                picture.size
            )));
        }
        picture = resize(picture, target, pre.filter.unwrap_or_default());
    }
    if let Some(crop) = pre.crop {
        let size = picture.size;
        picture = picture
            .crop(crop)
            .ok_or_else(|| error(format!("the picture of {size} is smaller than crop={crop}")))?;
    }
    Ok(picture)
}

impl Resize {
    /// The size that a picture of `size` gets.
    pub(crate) fn of(self, size: Size) -> Size {
        let longer = |n: usize, long: usize, short: usize| (n * long / short).max(1);
        match self {
            Resize::Exact(exact) => exact,
            Resize::Shorter(n) if size.height <= size.width => {
                Size { height: n, width: longer(n, size.width, size.height) }
            }
            Resize::Shorter(n) => Size { height: longer(n, size.height, size.width), width: n },
        }
    }
}

/// Confirms that all pictures of a batch have one shape.
pub(crate) fn check_alike(
    shapes: impl Iterator<Item = (Size, usize)>,
    place: impl Fn(usize) -> String,
) -> Result<(), DataError> {
    let mut shapes = shapes.enumerate();
    let Some((_, (size, channels))) = shapes.next() else { return Ok(()) };
    if let Some((odd, (other, count))) = shapes.find(|(_, shape)| *shape != (size, channels)) {
        let what = format!(
            "the picture is {other} with {count} channel(s), the one before it in the batch ({}) is {size} with {channels}",
            place(0)
        );
        let hint = "give resize=HEIGHTxWIDTH and color=rgb or gray, so that all pictures are alike";
        return Err(DataError::new(ErrorKind::Mismatch, what, place(odd), hint));
    }
    Ok(())
}

/// One batch of prepared pictures as a tensor; they must all have one size. `pre` has its defaults filled in.
pub(crate) fn assemble(
    pictures: &[Prepared],
    pre: &Preprocess,
    place: impl Fn(usize) -> String,
) -> Result<Tensor, DataError> {
    let Some(first) = pictures.first() else { return Ok(Tensor::vector::<f32>(&[])) };
    check_alike(pictures.iter().map(Prepared::shape), place)?;
    let (size, channels) = first.shape();
    let Size { height, width } = size;
    let n = pictures.len();
    let layout = pre.layout.unwrap_or(Layout::Nhwc);
    let shape = match layout {
        Layout::Nchw => vec![n, channels, height, width],
        Layout::Nhwc => vec![n, height, width, channels],
        Layout::Nhw => vec![n, height, width],
        Layout::Flat => vec![n, height * width * channels],
    };
    if layout == Layout::Nhw && channels != 1 {
        let what = format!("layout=nhw needs one channel, the pictures have {channels}");
        return Err(super::usage(what, "add color=gray"));
    }
    let normalize = Normalize::new(pre, channels)?;
    let planar = layout == Layout::Nchw;
    match (pre.dtype.unwrap_or_default(), first) {
        (Output::F32, _) => fill(&shape, pictures, |picture, out: &mut [f32]| match picture {
            Prepared::Levels(p) => spread(p, planar, out, |v, c| normalize.of(v.to_f64(), c)),
            Prepared::Reals(p) => spread(p, planar, out, |v, c| normalize.of(v.to_f64(), c)),
        }),
        (Output::Stored, Prepared::Levels(_)) => fill(&shape, pictures, |picture, out: &mut [u8]| {
            if let Prepared::Levels(p) = picture {
                spread(p, planar, out, |v, _| v);
            }
        }),
        (Output::Stored, Prepared::Reals(_)) => fill(&shape, pictures, |picture, out: &mut [f32]| {
            if let Prepared::Reals(p) = picture {
                spread(p, planar, out, |v, _| v);
            }
        }),
    }
}

/// A tensor of `shape` whose equal parts are filled from `pictures` in parallel.
fn fill<T: Element>(
    shape: &[usize],
    pictures: &[Prepared],
    write: impl Fn(&Prepared, &mut [T]) + Sync,
) -> Result<Tensor, DataError> {
    let mut tensor = Tensor::zeros(T::DTYPE, shape).map_err(memory)?;
    let part = (tensor.len() / pictures.len()).max(1);
    let values = tensor.as_mut_slice::<T>().map_err(memory)?;
    values.par_chunks_mut(part).zip(pictures).for_each(|(out, picture)| write(picture, out));
    Ok(tensor)
}

/// Writes a picture's values into `out`, channel by channel when `planar`.
fn spread<T: Copy, U>(picture: &Picture<T>, planar: bool, out: &mut [U], value: impl Fn(T, usize) -> U) {
    let channels = picture.channels;
    if planar {
        let plane = picture.size.height * picture.size.width;
        for (channel, part) in out.chunks_exact_mut(plane).enumerate() {
            let source = picture.data[channel..].iter().step_by(channels);
            part.iter_mut().zip(source).for_each(|(to, &from)| *to = value(from, channel));
        }
    } else {
        for (to, from) in out.chunks_exact_mut(channels).zip(picture.data.chunks_exact(channels)) {
            to.iter_mut().zip(from).enumerate().for_each(|(c, (to, &from))| *to = value(from, c));
        }
    }
}

/// An array whose samples are pictures.
pub(crate) struct ArrayPictures<'a> {
    array: &'a Tensor,
    shape: PictureShape,
    pre: Preprocess,
}

impl<'a> ArrayPictures<'a> {
    /// `array` as pictures. `pre` has its defaults filled in.
    pub(crate) fn of(array: &'a Tensor, pre: &Preprocess, file: &str) -> Result<Self, DataError> {
        let view = pre.view(array.shape().get(1..).unwrap_or_default())?;
        let shape = PictureShape::of(&view).ok_or_else(|| {
            let what = format!("samples of shape {view:?} are no pictures");
            let hint = "store [height, width], with 1 or 3 channels first or last; or give shape=";
            DataError::new(ErrorKind::Mismatch, what, file, hint)
        })?;
        let mut pre = pre.clone();
        let layout = *pre.layout.get_or_insert(shape.layout);
        if layout == Layout::Flat && shape.layout == Layout::Nchw && shape.channels > 1 {
            let what =
                "layout=flat of resized, cropped, converted or augmented pictures needs their channels last";
            return Err(super::usage(what, "store the pictures as [height, width, channels]"));
        }
        Ok(ArrayPictures { array, shape, pre })
    }

    /// How they are prepared: with a layout.
    pub(crate) fn pre(&self) -> &Preprocess {
        &self.pre
    }

    /// A sample, if they are of 8 bits.
    pub(crate) fn levels(&self, index: usize) -> Option<Picture<u8>> {
        (self.array.dtype() == DType::U8).then(|| lift(self.array, index, self.shape, |v: u8| v))
    }
}

/// The samples `indices` of an array `[samples, …]`, prepared. `pre` has its defaults filled in.
pub(crate) fn from_array(
    array: &Tensor,
    indices: &[usize],
    pre: &Preprocess,
    file: &str,
) -> Result<Tensor, DataError> {
    let shape = pre.view(array.shape().get(1..).unwrap_or_default())?;
    if pre.rearranges() {
        let source = ArrayPictures::of(array, pre, file)?;
        let pre = source.pre();
        let ready = |&index: &usize| {
            let place = || format!("{file}, sample {index}");
            match source.levels(index) {
                Some(levels) => prepare(levels, pre, place).map(Prepared::Levels),
                None => with_element!(array.dtype(), T => {
                    let lifted = lift(array, index, source.shape, |v: T| crate::narrow(v.to_f64()));
                    prepare(lifted, pre, place).map(Prepared::Reals)
                }),
            }
        };
        let pictures = indices.par_iter().map(ready).collect::<Result<Vec<_>, _>>()?;
        return assemble(&pictures, pre, |i| format!("{file}, sample {}", indices[i]));
    }
    let count: usize = shape.iter().product();
    let mut batch = vec![indices.len()];
    match pre.layout {
        Some(Layout::Flat) => batch.push(count),
        _ => batch.extend(&shape),
    }
    if pre.dtype == Some(Output::Stored) {
        return pass_through(array, indices)?.reshape(&batch).map_err(memory);
    }
    // Channel of element `i`: `i / inner % channels`.
    let (channels, inner) = match (PictureShape::of(&shape), shape.last()) {
        (Some(p), _) if p.layout == Layout::Nchw => (p.channels, p.size.height * p.size.width),
        (Some(p), _) => (p.channels, 1),
        (None, last) => (last.copied().unwrap_or(1).max(1), 1),
    };
    let normalize = Normalize::new(pre, channels)?;
    let mut tensor = Tensor::zeros(DType::F32, &batch).map_err(memory)?;
    let values = tensor.as_mut_slice::<f32>().map_err(memory)?;
    with_element!(array.dtype(), T => {
        let source = array.as_slice::<T>().map_err(memory)?;
        values.par_chunks_mut(count.max(1)).zip(indices).for_each(|(out, &index)| {
            let sample = &source[index * count..(index + 1) * count];
            for (i, (to, from)) in out.iter_mut().zip(sample).enumerate() {
                *to = normalize.of(from.to_f64(), i / inner % channels);
            }
        });
    });
    Ok(tensor)
}

/// The samples `indices` of an array `[samples, …]`, byte for byte.
pub(crate) fn pass_through(array: &Tensor, indices: &[usize]) -> Result<Tensor, DataError> {
    let mut shape = array.shape().to_vec();
    if let Some(first) = shape.first_mut() {
        *first = indices.len();
    }
    let mut tensor = Tensor::zeros(array.dtype(), &shape).map_err(memory)?;
    let size = tensor.byte_len().checked_div(indices.len()).unwrap_or(0);
    if size > 0 {
        let parts = tensor.bytes_mut().chunks_exact_mut(size);
        parts.zip(indices).for_each(|(to, &i)| to.copy_from_slice(&array.bytes()[i * size..(i + 1) * size]));
    }
    Ok(tensor)
}

/// Sample `index` of `array` as a picture with the channels of a pixel side by side.
fn lift<T: Element, U: Channel>(
    array: &Tensor,
    index: usize,
    shape: PictureShape,
    value: impl Fn(T) -> U,
) -> Picture<U> {
    let PictureShape { size, channels, layout } = shape;
    let plane = size.height * size.width;
    let count = plane * channels;
    let all = array.as_slice::<T>().unwrap_or_default();
    let sample = &all[index * count..(index + 1) * count];
    let data = match layout {
        Layout::Nchw => {
            (0..plane).flat_map(|p| sample[p..].iter().step_by(plane)).map(|&v| value(v)).collect()
        }
        _ => sample.iter().map(|&v| value(v)).collect(),
    };
    Picture { size, channels, data }
}

/// `(value * scale - mean) / std`, in f64, rounded to f32 once.
struct Normalize {
    scale: f64,
    mean: Vec<f64>,
    std: Vec<f64>,
}

impl Normalize {
    fn new(pre: &Preprocess, channels: usize) -> Result<Self, DataError> {
        let widen = |values: &Option<Vec<f32>>, default: f64, name: &str| match values.as_deref() {
            None => Ok(vec![default; channels]),
            Some(&[one]) => Ok(vec![f64::from(one); channels]),
            Some(many) if many.len() == channels => Ok(many.iter().copied().map(f64::from).collect()),
            Some(many) => {
                let what =
                    format!("{name} has {} values, the samples have {channels} channel(s)", many.len());
                Err(super::usage(what, "give one value, or one for each channel"))
            }
        };
        let mean = widen(&pre.mean, 0.0, "mean")?;
        let std = widen(&pre.std, 1.0, "std")?;
        Ok(Normalize { scale: pre.scale.map_or(1.0, |s| f64::from(s.0)), mean, std })
    }

    fn of(&self, value: f64, channel: usize) -> f32 {
        crate::narrow((value * self.scale - self.mean[channel]) / self.std[channel])
    }
}

fn memory(error: TensorError) -> DataError {
    let hint = "use a smaller batch or smaller pictures";
    DataError::new(ErrorKind::TooLarge, error.to_string(), "a batch", hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(text: &str, array: &Tensor, indices: &[usize]) -> Result<Tensor, DataError> {
        let kind = crate::SampleKind::Array { dtype: array.dtype(), shape: array.shape()[1..].to_vec() };
        let pre = text.parse::<Preprocess>()?.with_defaults(&kind)?;
        from_array(array, indices, &pre, "t")
    }

    #[test]
    fn layouts_move_the_right_values() {
        let values: Vec<u8> = (0..24).collect();
        let last = Tensor::from_slice(&[2, 2, 2, 3], &values).unwrap();
        let first = batch("layout=nchw,scale=1", &last, &[1]).unwrap();
        assert_eq!(first.shape(), [1, 3, 2, 2]);
        assert_eq!(first.to_f32s(), [12., 15., 18., 21., 13., 16., 19., 22., 14., 17., 20., 23.]);
        // And back, from an array whose channels come first.
        let planar = Tensor::from_slice(&[1, 3, 2, 2], &first.to_f32s()).unwrap();
        let back = batch("layout=nhwc", &planar, &[0]).unwrap();
        assert_eq!(back.to_f32s(), (12..24).map(|v| v as f32).collect::<Vec<_>>());
        let bgr = batch("color=bgr,layout=nhwc,dtype=stored", &last, &[0]).unwrap();
        assert_eq!(&bgr.bytes()[..6], [2, 1, 0, 5, 4, 3]);
        assert_eq!(batch("layout=flat,scale=1", &last, &[0, 1]).unwrap().shape(), [2, 12]);
    }

    #[test]
    fn normalization_is_per_channel_in_every_layout() {
        let values: Vec<u8> = (0..12).map(|v| v * 20).collect();
        let text = "scale=1/255,mean=0.1:0.2:0.3,std=1:2:4";
        let expected = |v: u8, c: usize| {
            (f64::from(v) * f64::from(1f32 / 255.0) - [0.1f32, 0.2, 0.3].map(f64::from)[c])
                / [1.0, 2.0, 4.0][c]
        };
        let last = Tensor::from_slice(&[1, 2, 2, 3], &values).unwrap();
        for layout in ["", ",layout=nhwc", ",layout=flat"] {
            let out = batch(&format!("{text}{layout}"), &last, &[0]).unwrap().to_f32s();
            for (i, &v) in out.iter().enumerate() {
                assert_eq!(v, expected(values[i], i % 3) as f32);
            }
        }
        let first = Tensor::from_slice(&[1, 3, 2, 2], &values).unwrap();
        for layout in ["", ",layout=nchw"] {
            let out = batch(&format!("{text}{layout}"), &first, &[0]).unwrap().to_f32s();
            for (i, &v) in out.iter().enumerate() {
                assert_eq!(v, expected(values[i], i / 4) as f32);
            }
        }
        assert_eq!(batch("mean=1:2", &last, &[0]).unwrap_err().kind, ErrorKind::Usage);
    }

    #[test]
    fn integers_pass_through_untouched() {
        let tokens = Tensor::from_slice(&[2, 3], &[5i64, -1, i64::MAX, 7, 8, 9]).unwrap();
        let out = batch("", &tokens, &[1, 0]).unwrap();
        assert_eq!(out.to_i64s(), [7, 8, 9, 5, -1, i64::MAX]);
        assert_eq!(batch("scale=2", &tokens, &[1]).unwrap().to_f32s(), [14., 16., 18.]);
    }

    #[test]
    fn sizes_follow_resize_and_crop() {
        let array = Tensor::zeros(DType::U8, &[1, 50, 100]).unwrap();
        let shape = |text: &str| batch(text, &array, &[0]).unwrap().shape().to_vec();
        assert_eq!(shape("resize=25,layout=nhw"), [1, 25, 50]);
        assert_eq!(shape("resize=25,crop=20x30,layout=nchw"), [1, 1, 20, 30]);
        assert_eq!(shape("resize=7x9,color=rgb,layout=nhwc"), [1, 7, 9, 3]);
        assert_eq!(batch("crop=60", &array, &[0]).unwrap_err().kind, ErrorKind::Mismatch);
        let strip = Tensor::zeros(DType::U8, &[1, 1, 60000]).unwrap();
        assert_eq!(batch("resize=2000,shape=1x60000", &strip, &[0]).unwrap_err().kind, ErrorKind::Usage);
        assert_eq!(batch("resize=2000", &strip, &[0]).unwrap_err().kind, ErrorKind::Mismatch);
    }
}
