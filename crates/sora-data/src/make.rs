//! Making batches of a dataset's samples.
#![cfg_attr(not(test), deny(clippy::as_conversions, clippy::indexing_slicing, clippy::unwrap_used))]

use std::path::PathBuf;

use rayon::prelude::*;

use crate::dataset::Source;
use crate::picture::Picture;
use crate::preprocess::{Prepared, assemble, from_array, pass_through, prepare};
use crate::{Batch, Batches, DataError, Dataset, ErrorKind, Preprocess, folder};

/// What becomes of samples that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unreadable {
    /// The first one is an error.
    Fail,
    /// They are left out, as long as one of a batch can be read.
    Skip,
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
        self.make(indices, &preprocess.with_defaults(&self.sample_kind())?, Unreadable::Fail)
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
        let what = format!("there is no sample {index}: the dataset has {}", self.len());
        Err(DataError::new(ErrorKind::Usage, what, self.place(), "give smaller indices"))
    }

    /// A batch of the samples `indices`, which there are. `pre` has its defaults filled in.
    pub(crate) fn make(
        &self,
        indices: &[usize],
        pre: &Preprocess,
        unreadable: Unreadable,
    ) -> Result<Batch, DataError> {
        match self.source() {
            Source::Files(paths) => self.pictures(paths, indices, pre, unreadable),
            Source::Arrays(arrays) => {
                let inputs = match arrays.as_slice() {
                    [(name, one)] => vec![(name.clone(), from_array(one, indices, pre, self.place())?)],
                    several => {
                        let gathered =
                            several.iter().map(|(name, t)| Ok((name.clone(), pass_through(t, indices)?)));
                        gathered.collect::<Result<_, DataError>>()?
                    }
                };
                Ok(Batch { inputs, labels: self.labels_of(indices), len: indices.len(), skipped: Vec::new() })
            }
        }
    }

    fn pictures(
        &self,
        paths: &[PathBuf],
        indices: &[usize],
        pre: &Preprocess,
        unreadable: Unreadable,
    ) -> Result<Batch, DataError> {
        if pre.shape.is_some() {
            let what = "shape= is for arrays, the samples are picture files";
            return Err(DataError::new(ErrorKind::Usage, what, "the preprocessing", "give resize= instead"));
        }
        // The outer error is the batch's, the inner one that of a sample that cannot be read.
        let ready = |&index: &usize| -> Result<Result<Prepared, DataError>, DataError> {
            match (self.decode(paths, index), unreadable) {
                (Ok(picture), _) => {
                    prepare(picture, pre, &self.sample_place(index)).map(Prepared::Levels).map(Ok)
                }
                (Err(error), Unreadable::Skip) => Ok(Err(error)),
                (Err(error), Unreadable::Fail) => Err(error),
            }
        };
        let samples = indices.par_iter().map(ready).collect::<Result<Vec<_>, _>>()?;
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
        let tensor = assemble(&pictures, pre, place)?;
        Ok(Batch { inputs: vec![(None, tensor)], labels: self.labels_of(&kept), len: kept.len(), skipped })
    }

    fn decode(&self, paths: &[PathBuf], index: usize) -> Result<Picture<u8>, DataError> {
        match paths.get(index) {
            Some(path) => folder::decode(path, self.max_pixels()),
            None => {
                Err(DataError::new(ErrorKind::Usage, format!("there is no sample {index}"), self.place(), ""))
            }
        }
    }

    fn labels_of(&self, indices: &[usize]) -> Vec<usize> {
        indices.iter().filter_map(|&index| self.label(index)).collect()
    }
}
