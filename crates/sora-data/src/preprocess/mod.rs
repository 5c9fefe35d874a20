//! The description of how a stored sample becomes a model's input.

mod apply;
mod infer;
mod text;

use std::path::Path;

use serde::{Deserialize, Serialize};
use sora_tensor::DType;

use crate::{DataError, ErrorKind, SampleKind, Sound};

pub(crate) use apply::{ArrayPictures, Prepared, assemble, check_alike, from_array, pass_through, prepare};
pub use text::Scale;
pub(crate) use text::keywords;

/// Height and width in pixels, written `HEIGHTxWIDTH`; one number alone is a square.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

/// The size that a picture is resized to, written `HEIGHTxWIDTH` or `SHORTER`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resize {
    /// The shorter side gets this length and the longer one keeps the aspect, rounded down.
    Shorter(usize),
    /// Exactly this size, whatever the aspect.
    Exact(Size),
}

text::keywords! {
    /// How pixels are combined when a picture is resized. Pixel centres lie at half integers; all filters
    /// but `nearest` antialias when shrinking. 8-bit results equal those of Pillow 11's `Image.resize`.
    Filter {
        /// Triangle filter (Pillow's `BILINEAR`).
        #[default]
        Bilinear = "bilinear",
        /// The nearest source pixel.
        Nearest = "nearest",
        /// Keys' cubic with a = -0.5 (Pillow's `BICUBIC`).
        Bicubic = "bicubic",
        /// The mean of the covered pixels (Pillow's `BOX`).
        Area = "area",
    }
}

text::keywords! {
    /// The channels of a picture.
    Color {
        /// One channel; colours become ITU-R BT.601 luma.
        Gray = "gray",
        /// Red, green, blue.
        #[default]
        Rgb = "rgb",
        /// Blue, green, red.
        Bgr = "bgr",
    }
}

text::keywords! {
    /// The order of a picture batch's axes.
    Layout {
        /// Batch, channels, height, width.
        #[default]
        Nchw = "nchw",
        /// Batch, height, width, channels.
        Nhwc = "nhwc",
        /// Batch, height, width: one channel without an axis of its own.
        Nhw = "nhw",
        /// Batch and one axis: rows, then columns, then channels for pictures; other arrays as they lie.
        Flat = "flat",
    }
}

text::keywords! {
    /// The element type of a prepared batch.
    Output {
        /// f32, normalized by scale, mean and std.
        #[default]
        F32 = "f32",
        /// The dtype of the stored samples, values untouched: for token ids and other integers.
        Stored = "stored",
    }
}

/// How a stored sample becomes a model's input: read as `shape`, converted to `color`, resized by `filter`,
/// cropped in the middle, normalized to `(value * scale - mean) / std`, and laid out.
///
/// What is `None` has its default; [`Preprocess::infer`] fills in what the model's input shape implies. Text
/// form: `resize=256,crop=224,layout=nchw,mean=0.485:0.456:0.406,std=0.229:0.224:0.225,scale=1/255`; a TOML
/// file has the same keys.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preprocess {
    /// The shape that a stored array's values are read as, row-major, without the batch axis; for texts, the number of
    /// tokens that they are padded to or cut off at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shape: Option<Vec<usize>>,
    /// Channels to convert a picture to; by default they stay as stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub color: Option<Color>,
    /// Size to resize a picture to; by default it keeps its size.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "text::form")]
    pub resize: Option<Resize>,
    /// Filter of `resize`, by default bilinear.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<Filter>,
    /// Size of the middle part that is kept after resizing. An odd margin is halved to the even offset.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "text::form")]
    pub crop: Option<Size>,
    /// Factor on the stored value: by default 1/255 for u8 and 1 for all others.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "text::form")]
    pub scale: Option<Scale>,
    /// Subtracted after `scale`: one value, or one for each channel. By default 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean: Option<Vec<f32>>,
    /// Divisor after `mean`: one value, or one for each channel. By default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub std: Option<Vec<f32>>,
    /// Order of the axes; by default as stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layout: Option<Layout>,
    /// What becomes of a sound: by default `log_mel` at 16 kHz, one second.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "text::form")]
    pub sound: Option<Sound>,
    /// Element type: by default f32 for u8 and floats, as stored for other integers and truth values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<Output>,
}

impl Preprocess {
    /// The description in `argument`: the path of a TOML file when it ends in `.toml`, else the text form.
    ///
    /// # Errors
    /// A [`DataError`] that names the key that cannot be understood, or the file that cannot be read.
    pub fn from_argument(argument: &str) -> Result<Self, DataError> {
        match argument.ends_with(".toml") {
            true => Self::load(Path::new(argument)),
            false => argument.parse(),
        }
    }

    /// Reads a TOML file.
    ///
    /// # Errors
    /// As for [`Preprocess::from_argument`].
    pub fn load(path: &Path) -> Result<Self, DataError> {
        let text = std::fs::read_to_string(path).map_err(|e| DataError::io(path, &e))?;
        let read: Self = toml::from_str(&text).map_err(|e| {
            let hint = format!("the keys are {}", text::KEYS.join(", "));
            let what = e.message().trim().to_owned();
            DataError::new(ErrorKind::Usage, what, path.display().to_string(), hint)
        })?;
        read.validate()?;
        Ok(read)
    }

    /// The description with the defaults that follow from the samples alone: scale, dtype, filter.
    pub(crate) fn with_defaults(&self, kind: &SampleKind) -> Result<Self, DataError> {
        self.validate()?;
        let mut filled = self.clone();
        let dtype = match kind {
            SampleKind::Files => DType::U8,
            SampleKind::Sounds => {
                let picture = self.color.is_some() || self.resize.is_some() || self.crop.is_some();
                if picture || self.shape.is_some() || self.dtype == Some(Output::Stored) {
                    let what = "shape, color, resize, crop and dtype=stored are not for sounds";
                    return Err(usage(what, "leave them out; sound= says what becomes of a sound"));
                }
                filled.sound.get_or_insert_default();
                DType::F32
            }
            SampleKind::Tokens => {
                let stored = Preprocess { shape: self.shape.clone(), ..Self::stored() };
                let given = Preprocess { dtype: Some(Output::Stored), ..self.clone() };
                let one = self.shape.as_ref().is_none_or(|shape| shape.len() == 1);
                return match given == stored && one && self.dtype != Some(Output::F32) {
                    true => Ok(stored),
                    false => Err(usage(
                        "of tokens, only their number can be given",
                        "leave out all but shape=NUMBER",
                    )),
                };
            }
            SampleKind::Array { dtype, .. } => *dtype,
            SampleKind::Named(_) if *self == Self::default() || *self == Self::stored() => {
                return Ok(Self::stored());
            }
            SampleKind::Named(_) => {
                let what = "preprocessing is for one input, but the samples have several";
                return Err(usage(
                    what,
                    "store the arrays as the model takes them, and give no preprocessing",
                ));
            }
        };
        if self.sound.is_some() && *kind != SampleKind::Sounds {
            return Err(usage(format!("sound= is for sounds, the samples are {kind}"), "leave it out"));
        }
        if self.resize.is_some() {
            filled.filter.get_or_insert_default();
        }
        let normalizes = self.scale.is_some() || self.mean.is_some() || self.std.is_some();
        let float = normalizes || dtype == DType::U8 || dtype.is_float();
        let output = *filled.dtype.get_or_insert(if float { Output::F32 } else { Output::Stored });
        match output {
            Output::Stored if normalizes => {
                return Err(usage("dtype=stored excludes scale, mean and std", "drop one of them"));
            }
            Output::Stored => {}
            Output::F32 => {
                filled.scale.get_or_insert(Scale(if dtype == DType::U8 { 1.0 / 255.0 } else { 1.0 }));
            }
        }
        Ok(filled)
    }

    /// Whether a picture's pixels or axes are rearranged.
    fn rearranges(&self) -> bool {
        let axes = matches!(self.layout, Some(Layout::Nchw | Layout::Nhwc | Layout::Nhw));
        self.color.is_some() || self.resize.is_some() || self.crop.is_some() || axes
    }

    /// Values as stored, nothing rearranged.
    fn stored() -> Self {
        Preprocess { dtype: Some(Output::Stored), ..Self::default() }
    }

    fn validate(&self) -> Result<(), DataError> {
        let sizes = self.shape.iter().flatten().copied();
        let sizes = sizes.chain(self.crop.into_iter().flat_map(|s| [s.height, s.width]));
        let resized = match self.resize {
            Some(Resize::Shorter(n)) => vec![n],
            Some(Resize::Exact(s)) => vec![s.height, s.width],
            None => vec![],
        };
        if sizes.chain(resized).any(|n| n == 0 || n > text::MAX_EXTENT) {
            return Err(usage(
                "an extent is zero or too large",
                format!("give sizes from 1 to {}", text::MAX_EXTENT),
            ));
        }
        let finite = |values: &Option<Vec<f32>>| values.iter().flatten().all(|v| v.is_finite());
        if !finite(&self.mean) || !finite(&self.std) || self.scale.is_some_and(|s| !s.0.is_finite()) {
            return Err(usage("scale, mean and std must be finite", "give numbers"));
        }
        if self.std.iter().flatten().any(|&s| s == 0.0) {
            return Err(usage("std is zero", "leave out std, or give what the model was trained with"));
        }
        if self.mean.as_ref().is_some_and(Vec::is_empty) || self.std.as_ref().is_some_and(Vec::is_empty) {
            return Err(usage("mean or std has no value", "give one value, or one for each channel"));
        }
        Ok(())
    }
}

/// An error in the description itself.
fn usage(what: impl Into<String>, hint: impl Into<String>) -> DataError {
    DataError::new(ErrorKind::Usage, what, "the preprocessing", hint)
}
