//! Pictures in memory: colour conversion and centre crop.

use crate::preprocess::{Color, Size};

/// A value of one channel of one pixel: 8-bit, or a real number.
pub(crate) trait Channel: Copy + Default + Send + Sync + 'static {
    /// ITU-R BT.601 luma of a red, green and blue value.
    fn luma(rgb: [Self; 3]) -> Self;
    /// How weights are held while values are summed.
    type Weight: Copy;
    /// Rounds a weight.
    fn weight(weight: f64) -> Self::Weight;
    /// The weighted sum of `values`; the weights sum to one.
    fn blend(values: impl Iterator<Item = (Self, Self::Weight)>) -> Self;
}

const WEIGHT_BITS: u32 = 22;

impl Channel for u8 {
    /// In 16-bit fixed point, rounded: the weights 0.299, 0.587 and 0.114 times 65536.
    fn luma([r, g, b]: [u8; 3]) -> u8 {
        ((u32::from(r) * 19595 + u32::from(g) * 38470 + u32::from(b) * 7471 + 0x8000) >> 16) as u8
    }

    /// Fixed point with [`WEIGHT_BITS`] fractional bits.
    type Weight = i64;

    fn weight(weight: f64) -> i64 {
        (weight * (1i64 << WEIGHT_BITS) as f64).round() as i64
    }

    /// Rounds and clamps.
    fn blend(values: impl Iterator<Item = (u8, i64)>) -> u8 {
        const HALF: i64 = 1 << (WEIGHT_BITS - 1);
        let sum = values.fold(HALF, |sum, (v, weight)| sum + i64::from(v) * weight);
        (sum >> WEIGHT_BITS).clamp(0, 255) as u8
    }
}

impl Channel for f32 {
    fn luma([r, g, b]: [f32; 3]) -> f32 {
        (f64::from(r) * 0.299 + f64::from(g) * 0.587 + f64::from(b) * 0.114) as f32
    }

    type Weight = f64;

    fn weight(weight: f64) -> f64 {
        weight
    }

    fn blend(values: impl Iterator<Item = (f32, f64)>) -> f32 {
        values.map(|(v, weight)| f64::from(v) * weight).sum::<f64>() as f32
    }
}

/// A picture whose pixels lie row by row, the channels of a pixel side by side.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Picture<T> {
    pub(crate) size: Size,
    pub(crate) channels: usize,
    pub(crate) data: Vec<T>,
}

impl<T: Channel> Picture<T> {
    /// Converts to `color`; a grey picture in colour repeats its value, a coloured one in grey becomes luma.
    pub(crate) fn convert(self, color: Color) -> Self {
        let Picture { size, channels, data } = self;
        let (channels, data) = match (color, channels) {
            (Color::Gray, 3) => (1, data.chunks_exact(3).map(|p| T::luma([p[0], p[1], p[2]])).collect()),
            (Color::Rgb | Color::Bgr, 1) => (3, data.iter().flat_map(|&v| [v; 3]).collect()),
            (Color::Bgr, 3) => (3, data.chunks_exact(3).flat_map(|p| [p[2], p[1], p[0]]).collect()),
            _ => (channels, data),
        };
        Picture { size, channels, data }
    }

    /// The `target` part in the middle; an odd margin is halved to the nearest even offset. `None` when the
    /// picture is smaller.
    pub(crate) fn crop(self, target: Size) -> Option<Self> {
        let margin = |whole: usize, part: usize| {
            let odd = whole.checked_sub(part)?;
            Some((odd as f64 / 2.0).round_ties_even() as usize)
        };
        let top = margin(self.size.height, target.height)?;
        let left = margin(self.size.width, target.width)?;
        if target == self.size {
            return Some(self);
        }
        let row = self.size.width * self.channels;
        let span = left * self.channels..(left + target.width) * self.channels;
        let rows = self.data.chunks_exact(row).skip(top).take(target.height);
        let data = rows.flat_map(|r| &r[span.clone()]).copied().collect();
        Some(Picture { size: target, data, ..self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(height: usize, width: usize, channels: usize) -> Picture<u8> {
        let data = (0..height * width * channels).map(|v| v as u8).collect();
        Picture { size: Size { height, width }, channels, data }
    }

    #[test]
    fn colours_convert() {
        let rgb = Picture { size: Size { height: 1, width: 1 }, channels: 3, data: vec![255u8, 0, 0] };
        assert_eq!(rgb.clone().convert(Color::Gray).data, [76]);
        assert_eq!(rgb.clone().convert(Color::Bgr).data, [0, 0, 255]);
        assert_eq!(rgb.convert(Color::Gray).convert(Color::Rgb).data, [76; 3]);
    }

    #[test]
    fn crops_take_the_middle() {
        assert_eq!(picture(4, 4, 1).crop(Size { height: 2, width: 2 }).unwrap().data, [5, 6, 9, 10]);
        assert_eq!(picture(1, 3, 2).crop(Size { height: 1, width: 1 }).unwrap().data, [2, 3]);
        // Margins of 1 and 3: half of 1 rounds to 0, half of 3 to 2.
        assert_eq!(picture(1, 2, 1).crop(Size { height: 1, width: 1 }).unwrap().data, [0]);
        assert_eq!(picture(1, 4, 1).crop(Size { height: 1, width: 1 }).unwrap().data, [2]);
        assert!(picture(2, 2, 1).crop(Size { height: 3, width: 1 }).is_none());
    }
}
