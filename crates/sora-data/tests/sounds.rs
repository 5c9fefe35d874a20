//! A folder of sounds as Speech Commands lies, from the files to batches.

use std::f32::consts::TAU;
use std::fs;
use std::path::Path;

use hound::{SampleFormat, WavSpec, WavWriter};
use sora_data::{
    Augmentation, Dataset, ErrorKind, Loader, LoaderOptions, OpenOptions, Preprocess, SampleKind,
};

/// Half a second of a tone at this rate.
fn write(path: &Path, rate: u32, hertz: f32) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let spec =
        WavSpec { channels: 1, sample_rate: rate, bits_per_sample: 16, sample_format: SampleFormat::Int };
    let mut writer = WavWriter::create(path, spec).unwrap();
    for i in 0..rate / 2 {
        writer.write_sample(((TAU * hertz * i as f32 / rate as f32).sin() * 8000.0) as i16).unwrap();
    }
    writer.finalize().unwrap();
}

/// Low tones are class `high`, say, so that names do not help: 12 files at two rates, and noise that is no class.
fn folder(path: &Path) -> Dataset {
    for i in 0..6u16 {
        let rate = if i % 2 == 0 { 16_000 } else { 22_050 };
        write(&path.join(format!("high/{i}.wav")), rate, 300.0 + 20.0 * f32::from(i));
        write(&path.join(format!("low/{i}.wav")), rate, 3000.0 + 100.0 * f32::from(i));
    }
    write(&path.join("_background_noise_/hum.wav"), 16_000, 50.0);
    fs::write(path.join("testing_list.txt"), "high/0.wav\n").unwrap();
    Dataset::open(path, &OpenOptions::default()).unwrap()
}

#[test]
fn folders_become_spectrograms_that_tell_the_tones_apart() {
    let dir = tempfile::tempdir().unwrap();
    let data = folder(dir.path());
    assert_eq!((data.len(), data.sample_kind()), (12, SampleKind::Sounds));
    assert_eq!(data.classes().unwrap(), ["high", "low"]);
    let pre = Preprocess::default().infer(&[None, Some(1), Some(98), Some(40)], &data.sample_kind()).unwrap();
    assert!(pre.to_string().starts_with("scale=1,layout=nchw,sound=log_mel:rate=16000"), "{pre}");
    let batch = data.batch(&(0..12).collect::<Vec<_>>(), &pre).unwrap();
    assert_eq!(batch.inputs[0].1.shape(), [12, 1, 98, 40]);
    let values = batch.inputs[0].1.to_f32s();
    for (sample, &label) in values.chunks(98 * 40).zip(&batch.labels) {
        // The loudest band of a frame in the sounding half; the other half is silent.
        let frame = &sample[20 * 40..21 * 40];
        let loudest = (0..40).max_by(|&a, &b| frame[a].total_cmp(&frame[b])).unwrap();
        assert_eq!(label, usize::from(loudest > 15), "{loudest}");
        assert!(sample[97 * 40..].iter().all(|&v| v < -10.0));
    }
    let error =
        Preprocess::default().infer(&[None, Some(1), Some(98), Some(41)], &data.sample_kind()).unwrap_err();
    assert!(error.kind == ErrorKind::Mismatch && error.what.contains("98 frames of 40"), "{error}");
    let waves = data.batch(&[0], &"sound=wave:length=8000,layout=flat".parse().unwrap()).unwrap();
    assert_eq!(waves.inputs[0].1.shape(), [1, 8000]);
    assert!(data.batch(&[0], &"resize=3".parse().unwrap()).is_err());
}

#[test]
fn loaders_augment_sounds_and_leave_out_broken_ones_on_demand() {
    let dir = tempfile::tempdir().unwrap();
    let data = folder(dir.path());
    let names = ["speed", "time_shift", "noise", "spec_augment", "mixup"];
    let augment = names.map(|name| Augmentation::new(name, &[].into()).unwrap()).to_vec();
    let options = LoaderOptions { batch: 5, augment, ..LoaderOptions::default() };
    let pre: Preprocess = "sound=mfcc:length=8000,mean=1,std=2".parse().unwrap();
    let indices: Vec<usize> = (0..12).collect();
    let epoch = |options: &LoaderOptions, number: u32, first: usize| {
        let loader = Loader::new(&data, &indices, None, &pre, options.clone()).unwrap();
        loader
            .epoch(number, first)
            .map(|batch| batch.map(|b| (b.inputs, b.mixed)))
            .collect::<Result<Vec<_>, _>>()
    };
    let whole = epoch(&options, 1, 0).unwrap();
    assert_eq!(whole[0].0[0].1.shape(), [5, 48, 13]);
    assert_eq!(whole[0].1.as_ref().unwrap().shape(), [5, 2]);
    assert_eq!(epoch(&LoaderOptions { workers: 3, ..options.clone() }, 1, 1).unwrap()[..], whole[1..]);
    assert_ne!(epoch(&options, 2, 0).unwrap(), whole);

    let rotation = vec![Augmentation::new("rotation", &[].into()).unwrap()];
    let turned = LoaderOptions { augment: rotation, ..options.clone() };
    let error = Loader::new(&data, &indices, None, &pre, turned).unwrap_err();
    assert!(error.what.contains("`rotation` is not for samples that are sound files"), "{error}");

    fs::write(dir.path().join("low/3.wav"), b"RIFF\0\0\0\0WAVE").unwrap();
    let error = epoch(&options, 0, 0).unwrap_err();
    assert!(error.where_.ends_with("3.wav"), "{error}");
    let skipping = LoaderOptions { skip_unreadable: true, ..options };
    let samples: usize =
        epoch(&skipping, 0, 0).unwrap().iter().map(|(inputs, _)| inputs[0].1.shape()[0]).sum();
    assert_eq!(samples, 11);
}
