//! What becomes of a sound: the wave itself, or features of it.

pub(crate) mod features;
mod fft;
pub(crate) mod resample;
pub(crate) mod wav;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use crate::preprocess::Size;
use crate::settings::{Setting, Settings, setting, suggestion};

/// A kind of features.
#[derive(Debug)]
pub struct FeatureRow {
    /// Name.
    pub name: &'static str,
    /// Numbers it takes.
    pub settings: &'static [Setting],
}

/// Samples a second; files of another rate are resampled.
const RATE: Setting = setting("rate", 16_000.0, 1_000.0, 384_000.0);
/// Samples of a sound: longer ones are cut off, shorter ones end in silence. 0 is one second.
const LENGTH: Setting = setting("length", 0.0, 0.0, 16_777_216.0);
/// Samples of a frame, and from the start of one to the next.
const FRAME: Setting = setting("frame", 400.0, 2.0, 65_536.0);
const HOP: Setting = setting("hop", 160.0, 1.0, 65_536.0);
/// Bands of the mel scale, and the frequencies in Hz that they reach from and to; 0 is half of the rate.
const MELS: Setting = setting("mels", 40.0, 1.0, 512.0);
const LOW: Setting = setting("low", 20.0, 0.0, 192_000.0);
const HIGH: Setting = setting("high", 0.0, 0.0, 192_000.0);
/// Coefficients that are kept.
const COEFFICIENTS: Setting = setting("coefficients", 13.0, 1.0, 512.0);

/// All kinds of features.
///
/// - `wave`: the samples, from -1 to 1: one row.
/// - `log_mel`: the logarithm of the magnitudes in bands of the mel scale, plus 10⁻⁶: a row of `mels` for each frame.
/// - `mfcc`: the first coefficients of the cosine transform of these: a row of `coefficients` for each frame.
///
/// The definitions are those of TensorFlow: `tf.signal.stft` (Hann window, as many points as the next power of two, no
/// padding), `linear_to_mel_weight_matrix` and `mfccs_from_log_mel_spectrograms`; equal within 10⁻⁴.
pub const FEATURES: &[FeatureRow] = &[
    FeatureRow { name: "wave", settings: &[RATE, LENGTH] },
    FeatureRow { name: "log_mel", settings: &[RATE, LENGTH, FRAME, HOP, MELS, LOW, HIGH] },
    FeatureRow { name: "mfcc", settings: &[RATE, LENGTH, FRAME, HOP, MELS, LOW, HIGH, COEFFICIENTS] },
];

/// A row of [`FEATURES`] with its numbers, written `log_mel:rate=16000:frame=400:hop=160:mels=40`.
#[derive(Clone, Debug)]
pub struct Sound {
    row: &'static FeatureRow,
    settings: Settings,
}

impl Sound {
    /// The kind of features of this name.
    ///
    /// # Errors
    /// What is wrong, with the nearest name.
    pub fn new(name: &str, settings: &BTreeMap<String, f64>) -> Result<Self, String> {
        let row = FEATURES.iter().find(|row| row.name == name).ok_or_else(|| {
            let names: Vec<&str> = FEATURES.iter().map(|row| row.name).collect();
            format!("there are no features `{name}`; {}", suggestion(name, &names))
        })?;
        let settings = Settings::new(name, row.settings, settings).map_err(|e| e.to_string())?;
        let sound = Sound { row, settings };
        let (length, frame, [low, high]) = (sound.length(), sound.integer("frame"), sound.range());
        if frame > length {
            return Err(format!("a frame of {frame} is longer than a sound of {length} samples"));
        }
        if frame > 0 && (low >= high || high > sound.rate() as f64 / 2.0) {
            let half = sound.rate() / 2;
            return Err(format!(
                "bands from {low} to {high} Hz are not between 0 and half of the rate, {half} Hz"
            ));
        }
        if sound.integer("coefficients") > sound.integer("mels") {
            return Err("there are more coefficients than mel bands".to_owned());
        }
        Ok(sound)
    }

    /// Samples a second.
    pub fn rate(&self) -> usize {
        self.integer("rate")
    }

    /// Samples of a sound.
    pub fn length(&self) -> usize {
        match self.integer("length") {
            0 => self.rate(),
            length => length,
        }
    }

    /// Rows and columns of the features.
    pub fn size(&self) -> Size {
        let [height, width] = match self.row.name {
            "wave" => [1, self.length()],
            "log_mel" => [self.frames(), self.integer("mels")],
            _ => [self.frames(), self.integer("coefficients")],
        };
        Size { height, width }
    }

    /// Whole frames of a sound.
    fn frames(&self) -> usize {
        (self.length() - self.integer("frame")) / self.integer("hop").max(1) + 1
    }

    /// The frequencies that the bands reach from and to.
    fn range(&self) -> [f64; 2] {
        let high = match self.settings.get("high") {
            0.0 => self.rate() as f64 / 2.0,
            high => high,
        };
        [self.settings.get("low"), high]
    }

    fn integer(&self, name: &str) -> usize {
        self.settings.get(name) as usize
    }
}

impl Default for Sound {
    /// `log_mel` with its defaults.
    fn default() -> Self {
        let row = &FEATURES[1];
        Sound { row, settings: Settings::defaults(row.settings) }
    }
}

impl PartialEq for Sound {
    fn eq(&self, other: &Self) -> bool {
        self.row.name == other.row.name && self.settings == other.settings
    }
}

impl fmt::Display for Sound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row.name)?;
        self.settings.iter().try_for_each(|(name, value)| write!(f, ":{name}={value}"))
    }
}

impl FromStr for Sound {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(':');
        let name = parts.next().unwrap_or_default();
        let mut settings = BTreeMap::new();
        for part in parts {
            let number =
                part.split_once('=').and_then(|(key, value)| Some((key, value.parse::<f64>().ok()?)));
            let (key, value) = number.ok_or_else(|| format!("`{part}` is not name=number"))?;
            settings.insert(key.to_owned(), value);
        }
        Sound::new(name, &settings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptions_come_back_and_errors_name_what_is_near() {
        for text in ["wave:rate=8000", "log_mel", "mfcc:length=8000:low=125:high=7500:coefficients=20"] {
            let sound: Sound = text.parse().unwrap();
            assert_eq!(sound.to_string().parse::<Sound>().unwrap(), sound);
        }
        assert_eq!("log_mel".parse::<Sound>().unwrap(), Sound::default());
        assert_eq!(Sound::default().size(), Size { height: 98, width: 40 });
        assert_eq!("wave".parse::<Sound>().unwrap().size(), Size { height: 1, width: 16_000 });
        for (text, part) in [
            ("logmel", "did you mean `log_mel`?"),
            ("log_mel:mel=40", "did you mean `mels`?"),
            ("wave:mels=40", "there are rate, length"),
            ("log_mel:frame=x", "`frame=x`"),
            ("log_mel:length=100", "longer than a sound"),
            ("log_mel:high=9000", "half of the rate"),
            ("mfcc:mels=10", "more coefficients"),
            ("wave:rate=nan", "NaN"),
        ] {
            let error = text.parse::<Sound>().unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
