//! Epochs of batches for training.

use std::sync::Arc;

use rayon::{ThreadPool, ThreadPoolBuilder};
use serde::{Deserialize, Serialize};

use crate::make::{Caches, Changes};
use crate::order::{balanced, bucketed, shuffled};
use crate::random::Random;
use crate::{Augmentation, Batches, DataError, Dataset, ErrorKind, Order, Preprocess};

/// How samples become the batches of a training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoaderOptions {
    /// Samples of a batch.
    pub batch: usize,
    /// What all that is random follows from.
    pub seed: u64,
    /// The order of the samples in an epoch.
    pub order: Order,
    /// Whether the last batch of an epoch is left out when it would have fewer samples.
    pub drop_last: bool,
    /// Batches whose samples are sorted by length together, so that a batch holds samples of similar length; below 2,
    /// the lengths play no part.
    pub bucket: usize,
    /// Threads that make batches; 0 uses the global pool of rayon.
    pub workers: usize,
    /// Batches that are made before they are asked for.
    pub prefetch: usize,
    /// Whether samples that cannot be read are left out, and listed in [`Batch::skipped`](crate::Batch::skipped); else
    /// the first one is an error.
    pub skip_unreadable: bool,
    /// The most bytes of pictures or waves, prepared but not yet augmented, that are kept in memory from epoch to epoch
    /// instead of being read again; 0 keeps none.
    pub cache: usize,
    /// Random changes of the samples, in order.
    pub augment: Vec<Augmentation>,
    /// The number of classes that mixed labels tell the probabilities of; 0 takes what the data says.
    pub classes: usize,
}

impl Default for LoaderOptions {
    fn default() -> Self {
        LoaderOptions {
            batch: 32,
            seed: 0,
            order: Order::default(),
            drop_last: false,
            bucket: 0,
            workers: 0,
            prefetch: 4,
            skip_unreadable: false,
            cache: 0,
            augment: Vec::new(),
            classes: 0,
        }
    }
}

/// Makes the batches of any epoch.
///
/// All that is random follows from the seed, the epoch and the place of a sample or batch in it: an epoch comes out the
/// same whichever batch it starts from, and on any number of threads.
#[derive(Clone, Debug)]
pub struct Loader(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    data: Dataset,
    indices: Vec<usize>,
    lengths: Option<Vec<usize>>,
    preprocess: Preprocess,
    options: LoaderOptions,
    pool: Option<Arc<ThreadPool>>,
    caches: Caches,
}

/// What random numbers are for: each purpose has numbers of its own.
#[derive(Clone, Copy)]
enum Purpose {
    Order,
    Buckets,
    Sample,
    Mixture,
}

impl Loader {
    /// A loader of the samples `indices`. `lengths` has the length of every sample of `data`, for
    /// [`LoaderOptions::bucket`]; by default it is what the data says.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] when an option makes no sense or an index is out of range, [`ErrorKind::Empty`] when there is
    /// no batch in an epoch, [`ErrorKind::Label`] when balancing or mixing lacks labels, or one is out of range.
    pub fn new(
        data: &Dataset,
        indices: &[usize],
        lengths: Option<Vec<usize>>,
        preprocess: &Preprocess,
        mut options: LoaderOptions,
    ) -> Result<Self, DataError> {
        let error = |kind, what: String, hint: &str| DataError::new(kind, what, data.place(), hint);
        const MAX_WORKERS: usize = 256;
        for (name, value, range) in [
            ("batch", options.batch, 1..=1 << 20),
            ("workers", options.workers, 0..=MAX_WORKERS),
            ("prefetch", options.prefetch, 1..=1 << 10),
        ] {
            if !range.contains(&value) {
                let hint = format!("give a number from {} to {}", range.start(), range.end());
                return Err(error(ErrorKind::Usage, format!("`{name}` cannot be {value}"), &hint));
            }
        }
        data.check_indices(indices)?;
        let lengths = lengths.or_else(|| data.lengths());
        if options.order == Order::Balanced && data.labels().is_none() {
            let what = "an order that is balanced by class needs labels".to_owned();
            return Err(error(ErrorKind::Label, what, "choose the order `shuffled`"));
        }
        options.augment.iter().try_for_each(|augmentation| augmentation.check(&data.sample_kind()))?;
        if options.augment.iter().any(Augmentation::mixes) {
            let Some(labels) = data.labels() else {
                let what = "mixing samples needs labels".to_owned();
                return Err(error(ErrorKind::Label, what, "leave out mixup and cutmix"));
            };
            let known = data.classes().map_or(0, <[String]>::len);
            let said = labels.iter().max().map_or(0, |&last| last + 1).max(known);
            match options.classes {
                0 => options.classes = said,
                classes => data.check_labels(classes)?,
            }
        }
        if options.bucket > 1 && lengths.as_ref().is_none_or(|lengths| lengths.len() != data.len()) {
            let what = "buckets of similar length need the length of every sample".to_owned();
            return Err(error(ErrorKind::Usage, what, "set `bucket` to 0"));
        }
        let pool = match options.workers {
            0 => None,
            workers => {
                let name = |i| format!("sora-data {i}");
                let pool = ThreadPoolBuilder::new().num_threads(workers).thread_name(name).build();
                let pool = pool.map_err(|e| error(ErrorKind::Io, e.to_string(), "give fewer `workers`"))?;
                Some(Arc::new(pool))
            }
        };
        let (indices, preprocess) = (indices.to_vec(), preprocess.with_defaults(&data.sample_kind())?);
        let caches = Caches::new(data, options.cache);
        let loader = Loader(Arc::new(Inner {
            data: data.clone(),
            indices,
            lengths,
            preprocess,
            options,
            pool,
            caches,
        }));
        match loader.steps() {
            0 => Err(error(
                ErrorKind::Empty,
                "an epoch has no batch".to_owned(),
                "give more samples or smaller batches",
            )),
            _ => Ok(loader),
        }
    }

    /// Batches of an epoch.
    pub fn steps(&self) -> usize {
        let Inner { indices, options, .. } = self.0.as_ref();
        match options.drop_last {
            true => indices.len() / options.batch,
            false => indices.len().div_ceil(options.batch),
        }
    }

    /// The batches of `epoch` from number `first` on, both counted from 0: those that a training goes on with that was
    /// interrupted before batch `first`.
    pub fn epoch(&self, epoch: u32, first: usize) -> Batches {
        let inner = Arc::clone(&self.0);
        let batches = self.plan(epoch);
        let (ahead, pool) = (inner.options.prefetch, inner.pool.clone());
        Batches::start(first.min(batches.len())..batches.len(), ahead, pool, move |number| {
            let random = |purpose, place| inner.random(epoch, purpose, place);
            let changes = Changes {
                augment: &inner.options.augment,
                sample: &|at| random(Purpose::Sample, number * inner.options.batch + at),
                batch: random(Purpose::Mixture, number),
                caches: &inner.caches,
                classes: inner.options.classes,
                skip_unreadable: inner.options.skip_unreadable,
            };
            inner.data.make(&batches[number], &inner.preprocess, changes)
        })
    }

    /// The samples of each batch of an epoch.
    pub fn plan(&self, epoch: u32) -> Vec<Vec<usize>> {
        let Inner { data, indices, lengths, options, .. } = self.0.as_ref();
        let mut random = self.0.random(epoch, Purpose::Order, 0);
        let order = match options.order {
            Order::Shuffled => shuffled(indices, &mut random),
            Order::Balanced => balanced(indices, |index| data.label(index).unwrap_or(0), &mut random),
            Order::Sequential => indices.clone(),
        };
        let mut batches = match lengths {
            Some(lengths) if options.bucket > 1 => {
                let mut random = self.0.random(epoch, Purpose::Buckets, 0);
                bucketed(&order, options.batch, options.bucket, |index| lengths[index], &mut random)
            }
            _ => order.chunks(options.batch).map(<[usize]>::to_vec).collect(),
        };
        batches.truncate(self.steps());
        batches
    }
}

impl Inner {
    /// The numbers for a purpose, at a place in an epoch.
    fn random(&self, epoch: u32, purpose: Purpose, place: usize) -> Random {
        Random::of(&[self.options.seed, u64::from(epoch), purpose as u64, place as u64])
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::path::Path;

    use sora_tensor::Tensor;

    use super::*;
    use crate::{Batch, OpenOptions};

    /// A folder of 23 pictures of 4×4 in 2 classes, each of one value: its number.
    fn folder(path: &Path) -> Dataset {
        for i in 0..23u8 {
            let class = path.join(["a", "b"][usize::from(i >= 15)]);
            fs::create_dir_all(&class).unwrap();
            let picture = image::GrayImage::from_pixel(4, 4, image::Luma([i]));
            picture.save(class.join(format!("{i:02}.png"))).unwrap();
        }
        Dataset::open(path, &OpenOptions::default()).unwrap()
    }

    fn loader(data: &Dataset, options: LoaderOptions) -> Loader {
        let indices: Vec<usize> = (0..data.len()).collect();
        Loader::new(data, &indices, None, &"scale=1".parse().unwrap(), options).unwrap()
    }

    /// What a training sees: inputs, labels, and probabilities of the classes.
    fn seen(
        batches: impl Iterator<Item = Result<Batch, DataError>>,
    ) -> Vec<(Tensor, Vec<usize>, Option<Tensor>)> {
        batches.map(|batch| batch.map(|mut b| (b.inputs.remove(0).1, b.labels, b.mixed)).unwrap()).collect()
    }

    #[test]
    fn an_epoch_is_the_same_from_any_batch_and_on_any_number_of_workers() {
        let dir = tempfile::tempdir().unwrap();
        let data = folder(dir.path());
        for (order, augment) in [
            (Order::Sequential, &[][..]),
            (Order::Balanced, &["horizontal_flip", "rotation", "rand_augment"]),
            (Order::Shuffled, &["random_crop", "cutmix", "mixup"]),
        ] {
            let augment =
                augment.iter().map(|name| Augmentation::new(name, &BTreeMap::new()).unwrap()).collect();
            let options = LoaderOptions { batch: 4, seed: 7, order, augment, ..LoaderOptions::default() };
            let whole: Vec<_> =
                (0..3).map(|epoch| seen(loader(&data, options.clone()).epoch(epoch, 0))).collect();
            assert_eq!(
                whole[1].iter().map(|(_, labels, _)| labels.len()).collect::<Vec<_>>(),
                [4, 4, 4, 4, 4, 3]
            );
            assert_eq!(whole[0] == whole[1], order == Order::Sequential);
            for workers in [1, 2, 5] {
                let again = loader(&data, LoaderOptions { workers, prefetch: workers, ..options.clone() });
                for epoch in [2u32, 0, 1] {
                    for first in [0, 1, 5, 6, 9] {
                        let rest = seen(again.epoch(epoch, first));
                        assert_eq!(
                            rest[..],
                            whole[epoch as usize][first.min(6)..],
                            "{order} {workers} {first}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn labels_stay_with_their_samples_and_none_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let data = folder(dir.path());
        let batches = seen(loader(&data, LoaderOptions { batch: 5, ..LoaderOptions::default() }).epoch(3, 0));
        let mut values = Vec::new();
        for (pixels, labels, _) in &batches {
            for (pixel, &label) in pixels.to_f32s().chunks(16).zip(labels) {
                assert_eq!(label, usize::from(pixel[0] >= 15.0));
                values.push(pixel[0] as u8);
            }
        }
        assert!(!values.is_sorted());
        values.sort_unstable();
        assert_eq!(values, (0..23).collect::<Vec<u8>>());
        let dropping = LoaderOptions { batch: 5, drop_last: true, ..LoaderOptions::default() };
        let batches = seen(loader(&data, dropping).epoch(3, 0));
        assert!(batches.len() == 4 && batches.iter().all(|(_, labels, _)| labels.len() == 5));
    }

    #[test]
    fn what_is_cached_is_read_once_and_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let data = folder(dir.path());
        let augment = vec![Augmentation::new("random_crop", &BTreeMap::new()).unwrap()];
        let options = LoaderOptions { batch: 4, augment, ..LoaderOptions::default() };
        let expected = seen(loader(&data, options.clone()).epoch(1, 0));
        // Room for all of the 23 pictures of 16 bytes, and for some.
        for bytes in [400, 100] {
            let cached = loader(&data, LoaderOptions { cache: bytes, ..options.clone() });
            seen(cached.epoch(0, 0));
            assert_eq!(seen(cached.epoch(1, 0)), expected);
            if bytes == 400 {
                let away = dir.path().with_extension("away");
                fs::rename(dir.path(), &away).unwrap();
                assert_eq!(seen(cached.epoch(1, 0)), expected);
                fs::rename(&away, dir.path()).unwrap();
            }
        }
    }

    #[test]
    fn mixed_labels_are_what_the_pixels_say() {
        // Class 0 is black, class 1 white: a mixed pixel tells the share of class 1.
        let pixels: Vec<u8> = (0..20).flat_map(|i| [if i % 2 == 0 { 0 } else { 255 }; 4]).collect();
        let array = Tensor::from_slice(&[20, 2, 2], &pixels).unwrap();
        let labels = (0..20).map(|i| i % 2).collect();
        let data = Dataset::from_arrays(vec![(Some("image".into()), array)], Some(labels)).unwrap();
        let mixup = Augmentation::new("mixup", &BTreeMap::from([("alpha".to_owned(), 1.0)])).unwrap();
        let options =
            LoaderOptions { batch: 5, augment: vec![mixup], classes: 3, ..LoaderOptions::default() };
        let indices: Vec<usize> = (0..20).collect();
        let loader = Loader::new(&data, &indices, None, &Preprocess::default(), options.clone()).unwrap();
        for batch in loader.epoch(0, 0).map(Result::unwrap) {
            assert_eq!(batch.inputs[0].0.as_deref(), Some("image"));
            let targets = batch.mixed.unwrap();
            assert_eq!(targets.shape(), [5, 3]);
            for (row, pixels) in targets.to_f32s().chunks(3).zip(batch.inputs[0].1.to_f32s().chunks(4)) {
                assert!(
                    (row[1] - pixels[0]).abs() < 0.003
                        && (row[0] + row[1] - 1.0).abs() < 1e-6
                        && row[2] == 0.0
                );
            }
        }
        let refused =
            |options| Loader::new(&data, &indices, None, &Preprocess::default(), options).unwrap_err();
        assert_eq!(refused(LoaderOptions { classes: 1, ..options.clone() }).kind, ErrorKind::Label);
        let reals = Tensor::from_slice(&[1, 2, 2], &[0f32; 4]).unwrap();
        let reals = Dataset::from_arrays(vec![(None, reals)], Some(vec![0])).unwrap();
        let error = Loader::new(&reals, &[0], None, &Preprocess::default(), options).unwrap_err();
        assert!(error.what.contains("`mixup` is not for samples that are f32[2, 2]"), "{error}");
    }

    #[test]
    fn an_unreadable_sample_is_named_and_left_out_only_on_demand() {
        let dir = tempfile::tempdir().unwrap();
        let data = folder(dir.path());
        for name in ["a/03.png", "a/07.png", "b/20.png"] {
            fs::write(dir.path().join(name), b"\x89PNG\r\n\x1a\nbroken").unwrap();
        }
        let options = LoaderOptions { batch: 4, order: Order::Sequential, ..LoaderOptions::default() };
        let error = loader(&data, options.clone()).epoch(0, 0).find_map(Result::err).unwrap();
        assert!(error.kind == ErrorKind::Malformed && error.where_.ends_with("03.png"), "{error}");
        let skipping = LoaderOptions { skip_unreadable: true, ..options.clone() };
        let batches: Vec<Batch> = loader(&data, skipping.clone()).epoch(0, 0).map(Result::unwrap).collect();
        let skipped: Vec<String> = batches
            .iter()
            .flat_map(|b| &b.skipped)
            .map(|e| e.where_[e.where_.len() - 6..].to_owned())
            .collect();
        assert_eq!(skipped, ["03.png", "07.png", "20.png"]);
        assert_eq!(batches.iter().map(|b| b.len).sum::<usize>(), 20);
        assert!(batches.iter().all(|b| b.labels.len() == b.len && b.inputs[0].1.shape()[0] == b.len));
        // A batch of which nothing is left is an error all the same.
        let alone = Loader::new(&data, &[3, 7], None, &Preprocess::default(), skipping).unwrap();
        assert!(alone.epoch(0, 0).next().unwrap().unwrap_err().what.contains("no sample of a whole batch"));
    }

    #[test]
    fn options_that_make_no_sense_are_errors() {
        let array = Tensor::from_slice(&[3, 1], &[0f32, 1.0, 2.0]).unwrap();
        let data = Dataset::from_arrays(vec![(None, array)], None).unwrap();
        let refused = |indices: &[usize], options| {
            Loader::new(&data, indices, None, &Preprocess::default(), options).unwrap_err().kind
        };
        let with = LoaderOptions::default;
        assert_eq!(refused(&[0], LoaderOptions { batch: 0, ..with() }), ErrorKind::Usage);
        assert_eq!(refused(&[0], LoaderOptions { prefetch: 0, ..with() }), ErrorKind::Usage);
        assert_eq!(refused(&[3], with()), ErrorKind::Usage);
        assert_eq!(refused(&[], with()), ErrorKind::Empty);
        assert_eq!(refused(&[0], LoaderOptions { drop_last: true, ..with() }), ErrorKind::Empty);
        assert_eq!(refused(&[0], LoaderOptions { order: Order::Balanced, ..with() }), ErrorKind::Label);
        assert_eq!(refused(&[0], LoaderOptions { bucket: 4, ..with() }), ErrorKind::Usage);
        let read: LoaderOptions = toml::from_str("batch = 8\norder = \"balanced\"").unwrap();
        assert_eq!(read, LoaderOptions { batch: 8, order: Order::Balanced, ..with() });
        assert!(toml::from_str::<LoaderOptions>("bach = 8").is_err());
    }
}
