//! Filling in what the shape of the model's input implies.

use sora_tensor::element_count;

use super::apply::PictureShape;
use super::{Color, Layout, Preprocess, Resize, Size};
use crate::{DataError, ErrorKind, SampleKind};

impl Preprocess {
    /// Fills in what is not given so that batches fit the model's input.
    ///
    /// `model` is the input's shape with the batch axis first; `None` is a symbolic extent, an empty slice an
    /// unknown shape. What is given is kept; then:
    /// - arrays that already fit the model stay as they are, and flat arrays (CSV) with as many values as the
    ///   model's input get its shape;
    /// - layout: `nchw` when axis 1 has 1 or 3 channels, else `nhwc` when axis 3 has; `nhw` for rank 3, `flat`
    ///   for rank 2;
    /// - colour: gray for 1 channel, rgb for 3;
    /// - size: a picture of another size is resized to exactly the model's, without regard to its aspect; when
    ///   only `resize` is given and larger, the middle is cropped.
    ///
    /// For sounds, only the layout is filled in: the first of nchw, nhwc, nhw and flat that fits. For texts, the number of
    /// tokens is, where the model's is fixed. Samples with several
    /// named arrays pass through as stored. Integers other than u8 do too: the caller
    /// casts them when the model wants floats.
    ///
    /// # Errors
    /// [`ErrorKind::Mismatch`] naming both sides when no such filling exists, [`ErrorKind::Usage`] when the
    /// description contradicts itself.
    pub fn infer(&self, model: &[Option<usize>], kind: &SampleKind) -> Result<Self, DataError> {
        let mut filled = self.with_defaults(kind)?;
        let Some(axes) = model.get(1..).filter(|_| !matches!(kind, SampleKind::Named(_))) else {
            return Ok(filled);
        };
        let sides = Sides { model, kind };
        if *kind == SampleKind::Tokens {
            let given = filled.shape.as_ref().and_then(|shape| shape.first().copied());
            return match (axes, given) {
                (&[Some(length)], None) => Ok(Preprocess { shape: Some(vec![length]), ..filled }),
                (&[length], _) if length.is_none() || length == given => Ok(filled),
                _ => Err(sides.mismatch("texts are one row of tokens")),
            };
        }
        if let Some(sound) = &filled.sound {
            let Size { height, width } = sound.size();
            let layouts = [
                (Layout::Nchw, vec![1, height, width]),
                (Layout::Nhwc, vec![height, width, 1]),
                (Layout::Nhw, vec![height, width]),
                (Layout::Flat, vec![height * width]),
            ];
            let mut given =
                layouts.into_iter().filter(|(layout, _)| filled.layout.is_none_or(|l| l == *layout));
            let (layout, _) = given.find(|(_, shape)| fits(axes, shape)).ok_or_else(|| {
                sides
                    .mismatch(&format!("{height} frames of {width} values do not fit"))
                    .with_hint(format!("change layout=, or the lengths in sound={sound}"))
            })?;
            filled.layout = Some(layout);
            return Ok(filled);
        }
        let (size, channels) = match kind {
            SampleKind::Array { shape, .. } => {
                let shape = filled.view(shape)?;
                if !filled.rearranges() && filled.layout.is_none() {
                    if fits(axes, &shape) {
                        return Ok(filled);
                    }
                    let wanted: Option<Vec<usize>> = axes.iter().copied().collect();
                    match (shape.len(), wanted) {
                        (1, Some(wanted)) if element_count(&wanted) == Some(shape[0]) => {
                            filled.shape = Some(wanted);
                            return Ok(filled);
                        }
                        _ if axes.len() == 1 && fits(axes, &[shape.iter().product()]) => {
                            filled.layout = Some(Layout::Flat);
                            return Ok(filled);
                        }
                        _ => {}
                    }
                }
                let picture = PictureShape::of(&shape).ok_or_else(|| {
                    sides.mismatch("the samples do not have the model's shape, and they are no pictures")
                })?;
                (Some(picture.size), Some(picture.channels))
            }
            _ => (None, None),
        };
        let layout = match filled.layout {
            Some(layout) => layout,
            None => sides.layout(axes)?,
        };
        filled.layout = Some(layout);
        let at = |i: usize| axes.get(i).copied().flatten();
        let (height, width, wanted) = match (layout, axes.len()) {
            (Layout::Nchw, 3) => (at(1), at(2), at(0)),
            (Layout::Nhwc, 3) => (at(0), at(1), at(2)),
            (Layout::Nhw, 2) => (at(0), at(1), Some(1)),
            (Layout::Flat, 1) => {
                let final_size = filled.final_size(size);
                return filled.fit_flat(at(0), final_size, channels, &sides);
            }
            _ => return Err(sides.mismatch(&format!("layout {layout} has another rank than the model"))),
        };
        filled.fit_color(wanted, channels, &sides)?;
        filled.fit_size(height, width, size, &sides)?;
        Ok(filled)
    }

    /// The shape that stored arrays of `shape` are read as.
    pub(super) fn view(&self, shape: &[usize]) -> Result<Vec<usize>, DataError> {
        let Some(view) = &self.shape else { return Ok(shape.to_vec()) };
        if element_count(view) != element_count(shape) {
            let what = format!("shape={view:?} has another number of values than the samples, {shape:?}");
            return Err(super::usage(what, "give a shape with as many values"));
        }
        Ok(view.clone())
    }

    /// The size of a prepared picture that had `size`, as far as it is fixed.
    fn final_size(&self, size: Option<Size>) -> Option<Size> {
        let resized = match self.resize {
            None => size,
            Some(Resize::Exact(exact)) => Some(exact),
            Some(shorter) => size.map(|s| shorter.of(s)),
        };
        self.crop.or(resized)
    }

    fn fit_color(
        &mut self,
        wanted: Option<usize>,
        stored: Option<usize>,
        sides: &Sides,
    ) -> Result<(), DataError> {
        let given = self.color.map(Color::channels);
        match (given.or(stored), wanted) {
            (Some(have), Some(want)) if have == want => {}
            (Some(have), Some(_)) if given.is_some() => {
                let what = format!("color={} gives {have} channel(s)", self.color.unwrap_or_default());
                return Err(sides.mismatch(&what));
            }
            (_, Some(1)) => self.color = Some(Color::Gray),
            (_, Some(3)) => self.color = Some(Color::Rgb),
            (_, Some(want)) => {
                return Err(sides.mismatch(&format!("pictures cannot be given {want} channels")));
            }
            (None, None) => self.color = Some(Color::Rgb),
            (Some(_), None) => {}
        }
        Ok(())
    }

    fn fit_size(
        &mut self,
        height: Option<usize>,
        width: Option<usize>,
        stored: Option<Size>,
        sides: &Sides,
    ) -> Result<(), DataError> {
        let have = self.final_size(stored);
        let (Some(height), Some(width)) = (height, width) else {
            let fits = have
                .is_none_or(|s| height.is_none_or(|h| h == s.height) && width.is_none_or(|w| w == s.width));
            return if fits { Ok(()) } else { Err(sides.mismatch("the picture's size is not the model's")) };
        };
        let want = Size { height, width };
        if have == Some(want) {
            return Ok(());
        }
        match (self.crop, self.resize, have) {
            (None, None, _) => {
                self.resize = Some(Resize::Exact(want));
                self.filter.get_or_insert_default();
            }
            (None, _, Some(s)) if s.height >= height && s.width >= width => self.crop = Some(want),
            (None, Some(Resize::Shorter(n)), None) if n >= height.max(width) => self.crop = Some(want),
            (None, resize, _) => {
                let what = resize.map_or(String::new(), |r| format!("resize={r} is smaller than {want}"));
                return Err(sides.mismatch(&what));
            }
            (Some(crop), ..) => return Err(sides.mismatch(&format!("crop={crop} is not {want}"))),
        }
        Ok(())
    }

    fn fit_flat(
        mut self,
        wanted: Option<usize>,
        size: Option<Size>,
        stored: Option<usize>,
        sides: &Sides,
    ) -> Result<Self, DataError> {
        let size = size.ok_or_else(|| {
            let error = sides.mismatch("the size of the pictures is not fixed");
            error.with_hint("give resize=HEIGHTxWIDTH, so that their pixels fill the model's input")
        })?;
        let pixels = size.height * size.width;
        let channels = wanted.filter(|n| n.is_multiple_of(pixels)).map(|n| n / pixels);
        if wanted.is_some() && channels.is_none() {
            return Err(sides.mismatch(&format!("pictures of {size} do not fill the model's input")));
        }
        self.fit_color(channels, stored, sides)?;
        Ok(self)
    }
}

impl Color {
    /// The number of channels.
    pub fn channels(self) -> usize {
        match self {
            Color::Gray => 1,
            Color::Rgb | Color::Bgr => 3,
        }
    }
}

fn fits(axes: &[Option<usize>], shape: &[usize]) -> bool {
    axes.len() == shape.len() && axes.iter().zip(shape).all(|(axis, &n)| axis.is_none_or(|a| a == n))
}

/// The two sides of a mismatch.
struct Sides<'a> {
    model: &'a [Option<usize>],
    kind: &'a SampleKind,
}

impl Sides<'_> {
    fn layout(&self, axes: &[Option<usize>]) -> Result<Layout, DataError> {
        let channels = |axis: Option<usize>| matches!(axis, Some(1 | 3));
        match *axes {
            [_] => Ok(Layout::Flat),
            [_, _] => Ok(Layout::Nhw),
            [first, _, _] if channels(first) => Ok(Layout::Nchw),
            [_, _, last] if channels(last) => Ok(Layout::Nhwc),
            [_, _, _] => {
                let error = self.mismatch("the model's shape does not tell which axis holds the channels");
                Err(error.with_hint("give layout=nchw or layout=nhwc"))
            }
            _ => Err(self.mismatch("the model does not take pictures")),
        }
    }

    fn mismatch(&self, why: &str) -> DataError {
        let axis = |a: &Option<usize>| a.map_or("?".to_owned(), |n| n.to_string());
        let model = self.model.iter().map(axis).collect::<Vec<_>>().join(", ");
        let what = format!("{why}: the model takes [{model}], the samples are {}", self.kind);
        let hint = "change the preprocessing, or give data of the model's kind";
        DataError::new(ErrorKind::Mismatch, what, "the preprocessing", hint)
    }
}

#[cfg(test)]
mod tests {
    use sora_tensor::DType;

    use super::*;

    fn infer(text: &str, model: &[usize], kind: &SampleKind) -> Result<String, DataError> {
        // Zero stands for a symbolic extent.
        let model: Vec<Option<usize>> = model.iter().map(|&n| (n > 0).then_some(n)).collect();
        text.parse::<Preprocess>()?.infer(&model, kind).map(|p| p.to_string())
    }

    fn array(dtype: DType, shape: &[usize]) -> SampleKind {
        SampleKind::Array { dtype, shape: shape.to_vec() }
    }

    #[test]
    fn what_the_model_implies_is_filled_in() {
        let grey = array(DType::U8, &[28, 28]);
        let rgb = array(DType::U8, &[32, 32, 3]);
        let row = array(DType::F32, &[784]);
        let files = SampleKind::Files;
        for (text, model, kind, expected) in [
            ("", &[0, 28, 28, 1][..], &grey, "scale=1/255,layout=nhwc,dtype=f32"),
            ("", &[0, 1, 28, 28], &grey, "scale=1/255,layout=nchw,dtype=f32"),
            ("", &[0, 28, 28], &grey, "scale=1/255,dtype=f32"),
            ("", &[0, 784], &grey, "scale=1/255,layout=flat,dtype=f32"),
            (
                "",
                &[0, 3, 32, 32],
                &grey,
                "color=rgb,resize=32x32,filter=bilinear,scale=1/255,layout=nchw,dtype=f32",
            ),
            ("", &[0, 32, 32, 3], &rgb, "scale=1/255,dtype=f32"),
            ("", &[1, 3, 0, 0], &rgb, "scale=1/255,layout=nchw,dtype=f32"),
            (
                "resize=256",
                &[1, 3, 224, 200],
                &files,
                "color=rgb,resize=256,filter=bilinear,crop=224x200,scale=1/255,layout=nchw,dtype=f32",
            ),
            (
                "",
                &[1, 224, 224, 3],
                &files,
                "color=rgb,resize=224x224,filter=bilinear,scale=1/255,layout=nhwc,dtype=f32",
            ),
            (
                "resize=28x28",
                &[1, 784],
                &files,
                "color=gray,resize=28x28,filter=bilinear,scale=1/255,layout=flat,dtype=f32",
            ),
            ("", &[0, 784], &row, "scale=1,dtype=f32"),
            ("scale=1/255", &[0, 1, 28, 28], &row, "shape=1x28x28,scale=1/255,dtype=f32"),
            ("", &[0, 0], &array(DType::I64, &[128]), "dtype=stored"),
            ("", &[0, 5, 6, 7, 8], &array(DType::F32, &[5, 6, 7, 8]), "scale=1,dtype=f32"),
            ("", &[], &grey, "scale=1/255,dtype=f32"),
        ] {
            assert_eq!(infer(text, model, kind).as_deref(), Ok(expected), "{text} {model:?} {kind}");
        }
    }

    #[test]
    fn what_cannot_fit_names_both_sides() {
        let grey = array(DType::U8, &[28, 28]);
        for (text, model, kind) in [
            ("", &[0, 5][..], &array(DType::F32, &[4])),
            ("", &[0, 4, 28, 28], &grey),
            ("", &[0, 100], &grey),
            ("crop=20", &[0, 1, 28, 28], &grey),
            ("resize=20", &[0, 1, 28, 28], &grey),
            ("color=gray", &[0, 3, 28, 28], &grey),
            ("layout=nchw", &[0, 784], &grey),
            ("", &[0, 784], &SampleKind::Files),
            ("", &[0, 3, 4, 5, 6], &SampleKind::Files),
        ] {
            let error = infer(text, model, kind).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Mismatch, "{text} {model:?}");
            assert!(
                error.what.contains("the model takes [") && error.what.contains("the samples are"),
                "{error}"
            );
        }
        assert_eq!(infer("shape=3x3", &[0, 9], &grey).unwrap_err().kind, ErrorKind::Usage);
    }
}
