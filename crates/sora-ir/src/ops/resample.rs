//! Where resized images take their elements from: the coordinates and weights of interpolation.

use serde::{Deserialize, Serialize};

/// How a position between elements gets its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Interpolation {
    /// One of the elements beside it.
    Nearest,
    /// The two elements beside it, weighted by distance.
    Linear,
    /// Four elements, weighted by a cubic polynomial of their distance.
    Cubic,
}

/// The element that [`Interpolation::Nearest`] takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Rounding {
    /// The nearer one, of two equally near ones the lower.
    PreferFloor,
    /// The nearer one, of two equally near ones the higher.
    PreferCeil,
    /// The one before.
    Floor,
    /// The one after.
    Ceil,
}

/// Which position of the input an element of the output stands for. `x` is the element's index, `n` the input's
/// extent, `m = n·scale` that of the output before rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Coordinates {
    /// Elements have centres: `(x + ½) / scale - ½`.
    HalfPixel,
    /// As half pixels, with the centre of the input at the centre of the output even where its extent was rounded.
    HalfPixelSymmetric,
    /// As half pixels; the single element of an output of extent 1 is the input's first.
    PytorchHalfPixel,
    /// First and last elements coincide: `x·(n - 1) / (m - 1)`.
    AlignCorners,
    /// First elements coincide: `x / scale`.
    Asymmetric,
    /// The corners of a region of the input, given between 0 and 1, coincide with those of the output.
    CropAndResize,
}

/// The weights of Keys' cubic convolution for an element at distance `d`, with the free coefficient `a`.
pub(crate) fn cubic(d: f64, a: f64) -> f64 {
    match d.abs() {
        d if d <= 1.0 => ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0,
        d if d < 2.0 => ((a * d - 5.0 * a) * d + 8.0 * a) * d - 4.0 * a,
        _ => 0.0,
    }
}

/// The elements of the input that one element of the output is made of, with their weights. None for a position
/// outside of the input that gets a value of its own.
pub type Taps = Vec<(usize, f64)>;

/// One axis of a resized tensor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Axis {
    /// Extent before.
    pub(crate) input: usize,
    /// Extent after.
    pub(crate) output: usize,
    /// Their ratio before the output was rounded.
    pub(crate) scale: f64,
    /// Begin and end of the region, for [`Coordinates::CropAndResize`].
    pub(crate) region: (f64, f64),
}

impl Axis {
    /// The input's position that `index` of the output stands for; `None` outside of the input where that matters.
    pub(crate) fn position(&self, coordinates: Coordinates, index: usize) -> Option<f64> {
        let (x, n, scale) = (index as f64, self.input as f64, self.scale);
        let m = n * scale;
        let half_pixel = (x + 0.5) / scale - 0.5;
        Some(match coordinates {
            Coordinates::HalfPixel => half_pixel,
            Coordinates::HalfPixelSymmetric => n / 2.0 * (1.0 - self.output as f64 / m) + half_pixel,
            Coordinates::PytorchHalfPixel => {
                if m == 1.0 {
                    -0.5
                } else {
                    half_pixel
                }
            }
            Coordinates::AlignCorners => {
                if m == 1.0 {
                    0.0
                } else {
                    x * (n - 1.0) / (m - 1.0)
                }
            }
            Coordinates::Asymmetric => x / scale,
            Coordinates::CropAndResize => {
                let (begin, end) = self.region;
                let width = (end - begin) * (n - 1.0);
                let along = if m == 1.0 { width / 2.0 } else { x * width / (m - 1.0) };
                return Some(begin * (n - 1.0) + along).filter(|at| (0.0..=n - 1.0).contains(at));
            }
        })
    }
}

/// The weights of an interpolation along one axis.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weights {
    pub(crate) interpolation: Interpolation,
    pub(crate) rounding: Rounding,
    /// Whether the window widens where the output is smaller than the input.
    pub(crate) antialias: bool,
    /// The free coefficient of cubic interpolation.
    pub(crate) coefficient: f64,
    /// Whether elements outside of the input weigh nothing, rather than repeat the border.
    pub(crate) exclude_outside: bool,
}

impl Weights {
    /// The elements of an axis of `extent` that the value at `x` is made of, when the output is `scale` times as
    /// large.
    pub(crate) fn taps(&self, x: f64, extent: usize, scale: f64) -> Taps {
        let last = extent.saturating_sub(1);
        let inside = |at: f64| (at.max(0.0) as usize).min(last);
        let reach = match self.interpolation {
            Interpolation::Nearest => {
                let nearest = match self.rounding {
                    Rounding::PreferFloor => (x - 0.5).ceil(),
                    Rounding::PreferCeil => (x + 0.5).floor(),
                    Rounding::Floor => x.floor(),
                    Rounding::Ceil => x.ceil(),
                };
                return vec![(inside(nearest), 1.0)];
            }
            Interpolation::Linear => 1.0,
            Interpolation::Cubic => 2.0,
        };
        let shrink = if self.antialias { scale.min(1.0) } else { 1.0 };
        let (low, high) = ((x - reach / shrink).floor() + 1.0, (x + reach / shrink).ceil() - 1.0);
        let mut taps = Taps::new();
        for at in low as i64..=high as i64 {
            let distance = (at as f64 - x) * shrink;
            let weight = match self.interpolation {
                Interpolation::Cubic => cubic(distance, self.coefficient),
                _ => (1.0 - distance.abs()).max(0.0),
            };
            let within = usize::try_from(at).is_ok_and(|at| at <= last);
            if within || !self.exclude_outside {
                taps.push((inside(at as f64), weight));
            }
        }
        let sum: f64 = taps.iter().map(|(_, weight)| weight).sum();
        if sum == 0.0 {
            return vec![(inside(x.round()), 1.0)];
        }
        if self.antialias || self.exclude_outside {
            taps.iter_mut().for_each(|(_, weight)| *weight /= sum);
        }
        taps
    }
}
