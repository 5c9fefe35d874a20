//! Making batches of a dataset's samples.
#![cfg_attr(not(test), deny(clippy::as_conversions, clippy::indexing_slicing, clippy::unwrap_used))]

use rayon::prelude::*;
use sora_tensor::{Tensor, TensorError};

use crate::augment::Augmentation;
use crate::dataset::Source;
use crate::picture::Picture;
use crate::preprocess::{ArrayPictures, Prepared, assemble, check_alike, from_array, pass_through, prepare};
use crate::random::Random;
use crate::{Batch, Batches, DataError, Dataset, ErrorKind, Preprocess, folder};

/// What is done to the samples of a batch besides preparing them.
pub(crate) struct Changes<'a> {
    /// Augmentations, in order.
    pub(crate) augment: &'a [Augmentation],
    /// The random numbers of the sample at a place of the batch.
    pub(crate) sample: &'a (dyn Fn(usize) -> Random + Sync),
    /// The random numbers of the batch as a whole.
    pub(crate) batch: Random,
    /// The number of classes that mixed labels tell the probabilities of.
    pub(crate) classes: usize,
    /// Whether samples that cannot be read are left out, as long as one can be; else the first one is an error.
    pub(crate) skip_unreadable: bool,
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
                let load = |index: usize| match paths.get(index) {
                    Some(path) => folder::decode(path, self.max_pixels()),
                    None => Err(self.no_sample(index)),
                };
                return self.pictures(&load, indices, pre, changes);
            }
            Source::Arrays(arrays) => arrays.as_slice(),
        };
        let inputs = match arrays {
            [(name, one)] if !changes.augment.is_empty() => {
                let source = ArrayPictures::of(one, pre, self.place())?;
                let load = |index: usize| {
                    source.levels(index).ok_or_else(|| {
                        let what = format!("the pictures are stored as {}, not as 8-bit levels", one.dtype());
                        let hint = "store them as u8, or leave out the augmentations";
                        DataError::new(ErrorKind::Usage, what, self.place(), hint)
                    })
                };
                let mut batch = self.pictures(&load, indices, source.pre(), changes)?;
                batch.inputs.iter_mut().for_each(|input| input.0.clone_from(name));
                return Ok(batch);
            }
            [(name, one)] => vec![(name.clone(), from_array(one, indices, pre, self.place())?)],
            _ if !changes.augment.is_empty() => {
                let what = "augmentations are for pictures, but the samples have several arrays";
                return Err(DataError::new(
                    ErrorKind::Usage,
                    what,
                    self.place(),
                    "leave out the augmentations",
                ));
            }
            several => {
                let gathered = several.iter().map(|(name, t)| Ok((name.clone(), pass_through(t, indices)?)));
                gathered.collect::<Result<_, DataError>>()?
            }
        };
        Ok(Batch { inputs, labels: self.labels_of(indices), len: indices.len(), ..Batch::default() })
    }

    /// A batch of pictures: each loaded, prepared and changed, then all of them mixed.
    fn pictures(
        &self,
        load: &(dyn Fn(usize) -> Result<Picture<u8>, DataError> + Sync),
        indices: &[usize],
        pre: &Preprocess,
        mut changes: Changes,
    ) -> Result<Batch, DataError> {
        // The outer error is the batch's, the inner one that of a sample that cannot be read.
        let ready = |(at, &index): (usize, &usize)| -> Result<Result<Picture<u8>, DataError>, DataError> {
            let loaded = match load(index) {
                Err(error) if changes.skip_unreadable => return Ok(Err(error)),
                loaded => loaded?,
            };
            let mut picture = prepare(loaded, pre, || self.sample_place(index))?;
            let mut random = (changes.sample)(at);
            changes.augment.iter().for_each(|augmentation| augmentation.change(&mut picture, &mut random));
            Ok(Ok(picture))
        };
        let samples = indices.par_iter().enumerate().map(ready).collect::<Result<Vec<_>, _>>()?;
        let (mut pictures, mut kept, mut skipped) = (Vec::new(), Vec::new(), Vec::new());
        for (sample, &index) in samples.into_iter().zip(indices) {
            match sample {
                Ok(picture) => {
                    pictures.push(picture);
                    kept.push(index);
                }
                Err(error) => skipped.push(error),
            }
        }
        match skipped.first() {
            Some(first) if pictures.is_empty() => {
                let what = format!("no sample of a whole batch can be read; {}", first.what);
                return Err(DataError { what, ..first.clone() });
            }
            _ => {}
        }
        let place = |i: usize| kept.get(i).map_or(String::new(), |&i| self.sample_place(i));
        let labels = self.labels_of(&kept);
        let mut targets = None;
        if changes.augment.iter().any(Augmentation::mixes) {
            check_alike(pictures.iter().map(|p| (p.size, p.channels)), place)?;
            targets = Some(mix(&mut pictures, &labels, &mut changes)?);
        }
        let pictures: Vec<Prepared> = pictures.into_iter().map(Prepared::Levels).collect();
        let inputs = vec![(None, assemble(&pictures, pre, place)?)];
        Ok(Batch { inputs, labels, targets, len: kept.len(), skipped })
    }

    fn labels_of(&self, indices: &[usize]) -> Vec<usize> {
        indices.iter().filter_map(|&index| self.label(index)).collect()
    }
}

/// Mixes pictures of one shape; the result is the probability of each class for each of them.
fn mix(pictures: &mut [Picture<u8>], labels: &[usize], changes: &mut Changes) -> Result<Tensor, DataError> {
    let classes = changes.classes;
    let class_of = |label: usize| (0..classes).map(move |class| if class == label { 1f32 } else { 0.0 });
    let mut rows: Vec<f32> = labels.iter().flat_map(|&label| class_of(label)).collect();
    for augmentation in changes.augment {
        if let Some(mixture) = augmentation.mix(pictures, &mut changes.batch) {
            mixture.mix_labels(&mut rows, classes);
        }
    }
    Tensor::from_slice(&[labels.len(), classes], &rows).map_err(|error: TensorError| {
        DataError::new(ErrorKind::TooLarge, error.to_string(), "the mixed labels", "use a smaller batch")
    })
}
