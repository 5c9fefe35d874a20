//! Reading WAV files.
#![cfg_attr(not(test), deny(clippy::as_conversions, clippy::indexing_slicing, clippy::unwrap_used))]

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use hound::{SampleFormat, WavReader};

use super::resample::resampled;
use crate::{DataError, ErrorKind};

/// The most values of a file, all channels together: 26 minutes of stereo at 44,100 Hz in 8 bits.
const MAX_VALUES: usize = 1 << 27;

/// A wave of one channel.
#[derive(Clone, Debug, PartialEq)]
struct Wave {
    /// Samples a second.
    rate: u32,
    /// From -1 to 1.
    samples: Vec<f32>,
}

/// The samples of a WAV file of integers or floats at this rate, from -1 to 1: the first `length`, behind the end silence.
/// Several channels become their mean.
pub(crate) fn read(path: &Path, rate: usize, length: usize) -> Result<Vec<f32>, DataError> {
    let file = File::open(path).map_err(|e| DataError::io(path, &e))?;
    let Wave { rate: stored, mut samples } = decode(BufReader::new(file), &path.display().to_string())?;
    let stored = usize::try_from(stored).unwrap_or(usize::MAX);
    if stored != rate {
        // No more than is kept, and what the filter reaches beyond it.
        let needed = length.saturating_mul(stored).div_ceil(rate);
        samples.truncate(needed.saturating_add(needed / 8).saturating_add(1024));
        samples = resampled(&samples, crate::real(rate) / crate::real(stored));
    }
    samples.resize(length, 0.0);
    Ok(samples)
}

fn decode(file: impl Read, where_: &str) -> Result<Wave, DataError> {
    let broken = |e: hound::Error| {
        DataError::malformed(format!("the sound cannot be decoded: {e}"), where_)
            .with_hint("convert it to WAV with integers of 8 to 32 bits or floats of 32, or remove it")
    };
    let reader = WavReader::new(file).map_err(broken)?;
    let spec = reader.spec();
    if usize::try_from(reader.len()).unwrap_or(usize::MAX) > MAX_VALUES {
        let what = format!("the sound has {} values", reader.len());
        return Err(DataError::new(ErrorKind::TooLarge, what, where_, format!("cut it below {MAX_VALUES}")));
    }
    if spec.sample_rate == 0 || spec.channels == 0 {
        return Err(DataError::malformed("the sound has no channel, or no rate", where_));
    }
    let values: Vec<f32> = match spec.sample_format {
        SampleFormat::Float => reader.into_samples::<f32>().collect::<Result<_, _>>().map_err(broken)?,
        SampleFormat::Int => {
            let full = f64::from(spec.bits_per_sample - 1).exp2();
            let real = |value: Result<i32, hound::Error>| Ok(crate::narrow(f64::from(value?) / full));
            reader.into_samples::<i32>().map(real).collect::<Result<_, _>>().map_err(broken)?
        }
    };
    if values.iter().any(|value| !value.is_finite()) {
        let what = "a value of the sound is NaN or infinite";
        return Err(DataError::new(ErrorKind::NotFinite, what, where_, "replace or remove the sound"));
    }
    let samples = match spec.channels {
        1 => values,
        channels => {
            let mean = |frame: &[f32]| frame.iter().sum::<f32>() / f32::from(channels);
            values.chunks_exact(usize::from(channels)).map(mean).collect()
        }
    };
    Ok(Wave { rate: spec.sample_rate, samples })
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use hound::{WavSpec, WavWriter};

    use super::*;

    fn encode(bits: u16, channels: u16, values: &[i32]) -> Vec<u8> {
        let spec =
            WavSpec { channels, sample_rate: 8000, bits_per_sample: bits, sample_format: SampleFormat::Int };
        let mut bytes = Cursor::new(Vec::new());
        let mut writer = WavWriter::new(&mut bytes, spec).unwrap();
        values.iter().for_each(|&value| writer.write_sample(value).unwrap());
        writer.finalize().unwrap();
        bytes.into_inner()
    }

    #[test]
    fn integers_become_reals_and_channels_their_mean() {
        let read = |bytes: Vec<u8>| decode(Cursor::new(bytes), "t").unwrap();
        assert_eq!(
            read(encode(16, 1, &[0, 16384, -32768])),
            Wave { rate: 8000, samples: vec![0.0, 0.5, -1.0] }
        );
        assert_eq!(read(encode(8, 1, &[-128, 64])).samples, [-1.0, 0.5]);
        assert_eq!(read(encode(24, 2, &[1 << 22, 0, -(1 << 22), 1 << 22])).samples, [0.25, 0.0]);
    }

    #[test]
    fn files_get_the_rate_and_the_length_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.wav");
        let tone = |cycles: f64, i: i32| (f64::from(i) * cycles * std::f64::consts::TAU).sin();
        let values: Vec<i32> = (0..800).map(|i| (tone(0.05, i) * 20_000.0) as i32).collect();
        std::fs::write(&path, encode(16, 1, &values)).unwrap();
        let twice = read(&path, 16_000, 2000).unwrap();
        assert!(twice.len() == 2000 && twice[1700..].iter().all(|&v| v == 0.0));
        for i in 50..1500 {
            assert!((f64::from(twice[i as usize]) - tone(0.025, i) * 20_000.0 / 32_768.0).abs() < 0.01);
        }
        assert_eq!(read(&path, 8000, 300).unwrap().len(), 300);
        assert_eq!(read(&path.with_extension("no"), 8000, 300).unwrap_err().kind, ErrorKind::Missing);
    }

    #[test]
    fn truncation_and_damage_never_panic() {
        let whole = encode(16, 2, &(0..40).collect::<Vec<_>>());
        for cut in 0..whole.len() {
            assert!(decode(Cursor::new(&whole[..cut]), "t").is_err(), "{cut} bytes");
        }
        for at in 0..whole.len() {
            for value in [0u8, 1, 0x7f, 0xff] {
                let mut damaged = whole.clone();
                damaged[at] = value;
                let _ = decode(Cursor::new(damaged), "t");
            }
        }
    }
}
