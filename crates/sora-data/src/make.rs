//! Making batches of a dataset's samples.
#![cfg_attr(not(test), deny(clippy::as_conversions, clippy::indexing_slicing, clippy::unwrap_used))]

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use sora_tensor::{Tensor, TensorError};

use crate::augment::{Augmentation, Mixable};
use crate::cache::{Bytes, Cache};
use crate::dataset::{Source, Tokens};
use crate::picture::Picture;
use crate::preprocess::{
    ArrayPictures, Layout, Prepared, assemble, check_alike, from_array, pass_through, prepare,
};
use crate::random::Random;
use crate::sound::features::Features;
use crate::sound::wav;
use crate::text::PADDING;
use crate::{Batch, Batches, DataError, Dataset, ErrorKind, Preprocess, folder};

/// What is done to the samples of a batch besides preparing them.
pub(crate) struct Changes<'a> {
    /// Augmentations, in order.
    pub(crate) augment: &'a [Augmentation],
    /// The random numbers of the sample at a place of the batch.
    pub(crate) sample: &'a (dyn Fn(usize) -> Random + Sync),
    /// The random numbers of the batch as a whole.
    pub(crate) batch: Random,
    /// Samples that are kept once they are prepared.
    pub(crate) caches: &'a Caches,
    /// The number of classes that mixed labels tell the probabilities of.
    pub(crate) classes: usize,
    /// Whether samples that cannot be read are left out, as long as one can be; else the first one is an error.
    pub(crate) skip_unreadable: bool,
}

/// Caches of samples of each kind; a dataset uses one of them.
#[derive(Debug)]
pub(crate) struct Caches {
    pictures: Cache<Picture<u8>>,
    waves: Cache<Vec<f32>>,
}

impl Caches {
    /// Caches of up to `bytes` for `data`, whose samples of files alone take time to read.
    pub(crate) fn new(data: &Dataset, bytes: usize) -> Self {
        let of = |fits: bool| if fits { bytes } else { 0 };
        Caches {
            pictures: Cache::new(
                data.len(),
                of(matches!(data.source(), Source::Files(_) | Source::Encoded(_))),
            ),
            waves: Cache::new(data.len(), of(matches!(data.source(), Source::Sounds(_)))),
        }
    }
}

impl Dataset {
    /// The samples `indices`, prepared for a model. Pictures are decoded and prepared in parallel on the
    /// current rayon pool.
    ///
    /// # Errors
    /// A [`DataError`] when an index is out of range, a picture cannot be decoded, the description does not fit
    /// the samples, or prepared pictures differ in size.
    pub fn batch(&self, indices: &[usize], preprocess: &Preprocess) -> Result<Batch, DataError> {
        self.check_indices(indices)?;
        let unchanged = Changes {
            augment: &[],
            sample: &|_| Random::of(&[]),
            batch: Random::of(&[]),
            caches: &Caches::new(self, 0),
            classes: 0,
            skip_unreadable: false,
        };
        self.make(indices, &preprocess.with_defaults(&self.sample_kind())?, unchanged)
    }

    /// Batches of `size` samples in the order of `indices`, the last one smaller when they do not divide. The
    /// next batch is prepared in a thread while the caller uses the current one. For training there is
    /// [`Loader`](crate::Loader).
    pub fn batches(&self, indices: &[usize], size: usize, preprocess: &Preprocess) -> Batches {
        let (data, indices, preprocess) = (self.clone(), indices.to_vec(), preprocess.clone());
        let size = size.max(1);
        Batches::start(0..indices.len().div_ceil(size), 1, None, move |number| {
            data.batch(indices.chunks(size).nth(number).unwrap_or_default(), &preprocess)
        })
    }

    /// Confirms that there are samples `indices`.
    pub(crate) fn check_indices(&self, indices: &[usize]) -> Result<(), DataError> {
        let Some(&index) = indices.iter().find(|&&i| i >= self.len()) else { return Ok(()) };
        Err(self.no_sample(index))
    }

    fn no_sample(&self, index: usize) -> DataError {
        let what = format!("there is no sample {index}: the dataset has {}", self.len());
        DataError::new(ErrorKind::Usage, what, self.place(), "give smaller indices")
    }

    /// A batch of the samples `indices`, which there are. `pre` has its defaults filled in.
    pub(crate) fn make(
        &self,
        indices: &[usize],
        pre: &Preprocess,
        changes: Changes,
    ) -> Result<Batch, DataError> {
        let arrays = match self.source() {
            Source::Files(paths) => {
                if pre.shape.is_some() {
                    let what = "shape= is for arrays, the samples are picture files";
                    let hint = "give resize= instead";
                    return Err(DataError::new(ErrorKind::Usage, what, "the preprocessing", hint));
                }
                let decode = |index: usize| folder::decode(self.path(paths, index)?, self.max_pixels());
                return self.pictures(decode, indices, pre, changes);
            }
            Source::Encoded(pictures) => {
                let find = |index: usize| pictures.get(index).ok_or_else(|| self.no_sample(index));
                let place = |index: usize| self.sample_place(index);
                let decode =
                    |index: usize| folder::decode_bytes(find(index)?, self.max_pixels(), &place(index));
                return self.pictures(decode, indices, pre, changes);
            }
            Source::Sounds(paths) => return self.sounds(paths, indices, pre, changes),
            Source::Tokens(texts) => return self.tokens(texts, indices, pre, &changes),
            Source::Arrays(arrays) => arrays.as_slice(),
        };
        let inputs = match arrays {
            [(name, one)] if !changes.augment.is_empty() || self.corruption().is_some() => {
                let source = ArrayPictures::of(one, pre, self.place())?;
                let lift = |index: usize| source.levels(index).ok_or_else(|| self.no_sample(index));
                let mut batch = self.pictures(lift, indices, source.pre(), changes)?;
                batch.inputs.iter_mut().for_each(|input| input.0.clone_from(name));
                return Ok(batch);
            }
            [(name, one)] => vec![(name.clone(), from_array(one, indices, pre, self.place())?)],
            several => {
                let gathered = several.iter().map(|(name, t)| Ok((name.clone(), pass_through(t, indices)?)));
                gathered.collect::<Result<_, DataError>>()?
            }
        };
        let (labels, targets) = (self.labels_of(indices), self.targets_of(indices)?);
        Ok(Batch { inputs, labels, targets, len: indices.len(), ..Batch::default() })
    }

    /// A batch of pictures.
    fn pictures(
        &self,
        decode: impl Fn(usize) -> Result<Picture<u8>, DataError> + Sync,
        indices: &[usize],
        pre: &Preprocess,
        changes: Changes,
    ) -> Result<Batch, DataError> {
        let prepare = |picture, index: usize| {
            let mut ready = prepare(picture, pre, || self.sample_place(index))?;
            self.corruption().iter().for_each(|corruption| corruption.picture(&mut ready, index));
            Ok(ready)
        };
        let change = |mut picture: Picture<u8>, random: &mut Random| {
            changes.augment.iter().for_each(|augmentation| augmentation.change(&mut picture, random));
            picture
        };
        let read = self.read(&changes.caches.pictures, decode, prepare, change, indices, &changes)?;
        self.finish(read, Prepared::Levels, pre, changes)
    }

    /// A batch of sounds.
    fn sounds(
        &self,
        paths: &[PathBuf],
        indices: &[usize],
        pre: &Preprocess,
        changes: Changes,
    ) -> Result<Batch, DataError> {
        let sound = pre.sound.clone().unwrap_or_default();
        let features = Features::new(&sound);
        let decode = |index: usize| {
            let mut wave = wav::read(self.path(paths, index)?, sound.rate(), sound.length())?;
            self.corruption().iter().for_each(|corruption| corruption.wave(&mut wave, sound.rate(), index));
            Ok(wave)
        };
        let change = |mut wave: Vec<f32>, random: &mut Random| {
            for augmentation in changes.augment {
                augmentation.change_wave(&mut wave, sound.rate(), random);
            }
            let mut picture = features.of(wave);
            changes
                .augment
                .iter()
                .for_each(|augmentation| augmentation.change_spectrogram(&mut picture, random));
            picture
        };
        let read = self.read(&changes.caches.waves, decode, |wave, _| Ok(wave), change, indices, &changes)?;
        let pre = Preprocess { layout: pre.layout.or(Some(Layout::Nhw)), ..pre.clone() };
        self.finish(read, Prepared::Reals, &pre, changes)
    }

    /// A batch of texts: their tokens, as many as the preprocessing's shape says or the longest one has.
    fn tokens(
        &self,
        texts: &Tokens,
        indices: &[usize],
        pre: &Preprocess,
        changes: &Changes,
    ) -> Result<Batch, DataError> {
        let find = |index: usize| {
            let found = match self.corruption() {
                Some(corruption) => texts.corrupted(index, corruption),
                None => texts.tokens.get(index).cloned(),
            };
            found.ok_or_else(|| self.no_sample(index))
        };
        let change = |mut tokens: Vec<u32>, random: &mut Random| {
            changes.augment.iter().for_each(|augmentation| augmentation.change_tokens(&mut tokens, random));
            tokens
        };
        let uncached = Cache::new(0, 0);
        let Read { samples, .. } =
            self.read(&uncached, find, |tokens, _| Ok(tokens), change, indices, changes)?;
        let longest = samples.iter().map(Vec::len).max().unwrap_or(0);
        let length = pre.shape.as_ref().and_then(|shape| shape.first().copied()).unwrap_or(longest);
        let padded = |tokens: &Vec<u32>| {
            let own = tokens.iter().copied().chain(std::iter::repeat(PADDING));
            own.take(length).map(i64::from).collect::<Vec<_>>()
        };
        let ids: Vec<i64> = samples.iter().flat_map(padded).collect();
        let tensor = Tensor::from_slice(&[indices.len(), length], &ids).map_err(|error: TensorError| {
            DataError::new(ErrorKind::TooLarge, error.to_string(), "a batch of texts", "use a smaller batch")
        })?;
        let lengths = Some(samples.iter().map(|tokens| tokens.len().min(length)).collect());
        let (labels, len) = (self.labels_of(indices), indices.len());
        Ok(Batch { inputs: vec![(None, tensor)], labels, lengths, len, ..Batch::default() })
    }

    /// Decodes samples, prepares and changes them, in parallel. Only what cannot be decoded may be left out, and what is
    /// prepared may be kept.
    fn read<D, P: Bytes + Clone + Send + Sync, T: Send>(
        &self,
        cache: &Cache<P>,
        decode: impl Fn(usize) -> Result<D, DataError> + Sync,
        prepare: impl Fn(D, usize) -> Result<P, DataError> + Sync,
        change: impl Fn(P, &mut Random) -> T + Sync,
        indices: &[usize],
        changes: &Changes,
    ) -> Result<Read<T>, DataError> {
        // The outer error is the batch's, the inner one that of a sample that cannot be read.
        let one = |(at, &index): (usize, &usize)| {
            let prepared = match cache.get(index) {
                Some(kept) => kept,
                None => {
                    let decoded = match decode(index) {
                        Err(error) if changes.skip_unreadable => return Ok(Err(error)),
                        decoded => decoded?,
                    };
                    let prepared = prepare(decoded, index)?;
                    cache.keep(index, &prepared);
                    prepared
                }
            };
            Ok(Ok(change(prepared, &mut (changes.sample)(at))))
        };
        let samples = indices.par_iter().enumerate().map(one).collect::<Result<Vec<_>, DataError>>()?;
        let mut read = Read { samples: Vec::new(), indices: Vec::new(), skipped: Vec::new() };
        for (sample, &index) in samples.into_iter().zip(indices) {
            match sample {
                Ok(sample) => {
                    read.samples.push(sample);
                    read.indices.push(index);
                }
                Err(error) => read.skipped.push(error),
            }
        }
        match read.skipped.first() {
            Some(first) if read.samples.is_empty() => {
                let what = format!("no sample of a whole batch can be read; {}", first.what);
                Err(DataError { what, ..first.clone() })
            }
            _ => Ok(read),
        }
    }

    /// The batch of samples that are ready, mixed and normalized.
    fn finish<T: Mixable>(
        &self,
        read: Read<Picture<T>>,
        prepared: fn(Picture<T>) -> Prepared,
        pre: &Preprocess,
        mut changes: Changes,
    ) -> Result<Batch, DataError> {
        let Read { mut samples, indices, skipped } = read;
        let place = |i: usize| indices.get(i).map_or(String::new(), |&i| self.sample_place(i));
        let labels = self.labels_of(&indices);
        let mut mixed = None;
        if changes.augment.iter().any(Augmentation::mixes) {
            check_alike(samples.iter().map(|p| (p.size, p.channels)), place)?;
            mixed = Some(mix(&mut samples, &labels, &mut changes)?);
        }
        let samples: Vec<Prepared> = samples.into_iter().map(prepared).collect();
        let inputs = vec![(None, assemble(&samples, pre, place)?)];
        let targets = self.targets_of(&indices)?;
        Ok(Batch { inputs, labels, mixed, targets, lengths: None, len: indices.len(), skipped })
    }

    fn path<'a>(&self, paths: &'a [PathBuf], index: usize) -> Result<&'a Path, DataError> {
        paths.get(index).map(PathBuf::as_path).ok_or_else(|| self.no_sample(index))
    }

    fn targets_of(&self, indices: &[usize]) -> Result<Vec<(String, Tensor)>, DataError> {
        self.targets().iter().map(|(name, array)| Ok((name.clone(), pass_through(array, indices)?))).collect()
    }

    fn labels_of(&self, indices: &[usize]) -> Vec<usize> {
        indices.iter().filter_map(|&index| self.label(index)).collect()
    }
}

/// Samples that could be read, with their indices, and why others could not.
struct Read<T> {
    samples: Vec<T>,
    indices: Vec<usize>,
    skipped: Vec<DataError>,
}

/// Mixes samples of one shape; the result is the probability of each class for each of them.
fn mix<T: Mixable>(
    samples: &mut [Picture<T>],
    labels: &[usize],
    changes: &mut Changes,
) -> Result<Tensor, DataError> {
    let classes = changes.classes;
    let class_of = |label: usize| (0..classes).map(move |class| if class == label { 1f32 } else { 0.0 });
    let mut rows: Vec<f32> = labels.iter().flat_map(|&label| class_of(label)).collect();
    for augmentation in changes.augment {
        if let Some(mixture) = augmentation.mix(samples, &mut changes.batch) {
            mixture.mix_labels(&mut rows, classes);
        }
    }
    Tensor::from_slice(&[labels.len(), classes], &rows).map_err(|error: TensorError| {
        DataError::new(ErrorKind::TooLarge, error.to_string(), "the mixed labels", "use a smaller batch")
    })
}
