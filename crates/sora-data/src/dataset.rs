//! Opening datasets.
#![cfg_attr(not(test), deny(clippy::as_conversions, clippy::indexing_slicing, clippy::unwrap_used))]

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sora_tensor::{DType, Tensor};

use crate::{
    Corruption, DataError, ErrorKind, TextInput, Tokenizer, folder, idx, npy, npz, parquet, suggestion, table,
};

const KINDS: &str = "give a folder with one sub-folder of PNG or JPEG pictures or of WAV files per class, an .npz with `x` and `y`, .parquet files of pictures, \
                     a .csv or .csv.gz, a .jsonl of texts for a model that was trained on texts, or an IDX pair (…-images-idx3-ubyte and …-labels-idx1-ubyte, also .gz)";
const LABELS_FILE: &str = "labels.txt";
const MAX_LABELS_FILE: u64 = 1 << 24;

/// Which column of a CSV file is the label.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LabelColumn {
    /// The first of `label`, `y`, `class` and `target` that the header names in any case; without one, the
    /// last column.
    #[default]
    Auto,
    /// The column with this name in the header.
    Name(String),
    /// The column at this position, from zero.
    Index(usize),
    /// There are no labels: every column is a feature.
    None,
}

/// What the data itself does not say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenOptions {
    /// The label column of a CSV file.
    pub label: LabelColumn,
    /// Whether the first line of a CSV file is a header; `None` decides by whether it holds a cell that is no
    /// number.
    pub header: Option<bool>,
    /// The most bytes that samples may take in memory, and the longest text of a CSV file; 8 GiB by default.
    pub max_bytes: u64,
    /// The most pixels that one picture file may have; 2^26 by default.
    pub max_pixels: u64,
    /// Names of the classes by number, as the model has them: where there is no `labels.txt` and they name every
    /// sub-folder of an image folder, they number its classes.
    pub classes: Option<Vec<String>>,
    /// Arrays of an `.npz` that are no inputs but what a model is to tell of a sample: [`Dataset::targets`].
    pub targets: Vec<String>,
    /// What makes tokens of the texts in a `.jsonl` or `.csv` file; without it, a `.csv` file holds numbers. An `.npz` holds tokens.
    pub text: Option<TextInput>,
}

impl Default for OpenOptions {
    fn default() -> Self {
        OpenOptions {
            label: LabelColumn::Auto,
            header: None,
            max_bytes: 8 << 30,
            max_pixels: 1 << 26,
            classes: None,
            targets: Vec::new(),
            text: None,
        }
    }
}

/// What one stored sample is.
#[derive(Clone, Debug, PartialEq)]
pub enum SampleKind {
    /// A PNG or JPEG file: 8-bit, one or three channels, of any size.
    Files,
    /// A WAV file, of any length and rate.
    Sounds,
    /// The tokens of a text, as many as it has: [`Texts::tokenize`](crate::Texts::tokenize).
    Tokens,
    /// One array.
    Array {
        /// Type of its elements.
        dtype: DType,
        /// Its shape without the sample axis.
        shape: Vec<usize>,
    },
    /// Several named arrays, each with its dtype and its shape without the sample axis.
    Named(Vec<(String, DType, Vec<usize>)>),
}

impl fmt::Display for SampleKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SampleKind::Files => f.write_str("picture files"),
            SampleKind::Sounds => f.write_str("sound files"),
            SampleKind::Tokens => f.write_str("tokens of texts"),
            SampleKind::Array { dtype, shape } => write!(f, "{dtype}{shape:?}"),
            SampleKind::Named(arrays) => {
                let one =
                    |(name, dtype, shape): &(String, DType, Vec<usize>)| format!("{name}: {dtype}{shape:?}");
                f.write_str(&arrays.iter().map(one).collect::<Vec<_>>().join(", "))
            }
        }
    }
}

/// Samples with labels. Clones share the samples.
#[derive(Clone, Debug)]
pub struct Dataset {
    inner: Arc<Inner>,
    corruption: Option<Corruption>,
}

#[derive(Debug)]
struct Inner {
    place: String,
    source: Source,
    labels: Option<Vec<usize>>,
    targets: Vec<(String, Tensor)>,
    classes: Option<Vec<String>>,
    max_pixels: u64,
}

/// Where samples come from.
#[derive(Debug)]
pub(crate) enum Source {
    /// Files of pictures.
    Files(Vec<PathBuf>),
    /// Pictures as they lie in files.
    Encoded(Vec<Vec<u8>>),
    /// Files of sounds.
    Sounds(Vec<PathBuf>),
    /// The tokens of texts.
    Tokens(Tokens),
    /// Arrays with the sample axis first.
    Arrays(Vec<(Option<String>, Tensor)>),
}

/// The tokens of texts, and how they came to be.
#[derive(Debug)]
pub(crate) struct Tokens {
    pub(crate) tokens: Vec<Vec<u32>>,
    texts: Arc<[String]>,
    tokenizer: Tokenizer,
    most: usize,
}

impl Tokens {
    /// The first `most` tokens of each text.
    pub(crate) fn new(texts: Arc<[String]>, tokenizer: &Tokenizer, most: usize) -> Self {
        let tokens = texts.iter().map(|text| tokenizer.encode(text, most)).collect();
        Tokens { tokens, texts, tokenizer: tokenizer.clone(), most }
    }

    /// Those of a text, which is corrupted first.
    pub(crate) fn corrupted(&self, index: usize, corruption: Corruption) -> Option<Vec<u32>> {
        let text = corruption.text(self.texts.get(index)?, index);
        Some(self.tokenizer.encode(&text, self.most))
    }
}

impl Dataset {
    /// Opens what lies at `path`:
    /// - a folder with one IDX pair, or the path of its images; the labels lie beside them;
    /// - a `.parquet` file of pictures, or a folder of such files that belong together, as Hugging Face's `datasets` write them;
    /// - a folder whose sub-folders are classes, numbered by sorted name, of PNG and JPEG pictures, which are
    ///   decoded when a batch needs them; pictures without sub-folders are unlabelled;
    /// - the same of WAV files, as Google's Speech Commands lie: sub-folders whose name starts with `_` are no classes;
    /// - `.npz`: `y` are the labels, one other array is the input (named unless it is `x`), several are named
    ///   inputs;
    /// - `.csv` or `.csv.gz`: numbers, of which one column is the label ([`LabelColumn`]);
    /// - `.jsonl` or `.csv`, also `.gz`, where [`OpenOptions::text`] says how: texts, as [`Texts`](crate::Texts) reads them.
    ///
    /// A `labels.txt` in the folder, or the one above it, names the classes, one a line; the sub-folders of an
    /// image folder are then numbered by its lines, or else by [`OpenOptions::classes`].
    ///
    /// # Errors
    /// A [`DataError`] when nothing is found, the files are damaged, truncated or too large, a feature is NaN
    /// or infinite, or labels are missing, no integers, too many or too few.
    pub fn open(path: impl AsRef<Path>, options: &OpenOptions) -> Result<Self, DataError> {
        let path = path.as_ref();
        let metadata = fs::metadata(path).map_err(|e| DataError::io(path, &e))?;
        if !metadata.is_dir() && !metadata.is_file() {
            let what = "this is neither a folder nor a regular file";
            return Err(DataError::new(ErrorKind::Usage, what, path.display().to_string(), KINDS));
        }
        let home = if metadata.is_dir() { path } else { path.parent().unwrap_or(path) };
        let names = class_names(home)?;
        let mut classes = names.clone();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_ascii_lowercase();
        // Tokens lie in arrays, if somebody else made them.
        let texts = metadata.is_file() && !name.ends_with(".npz");
        if let (true, Some(text)) = (texts, &options.text) {
            return text.open(path, options);
        }
        let mut targets = Vec::new();
        let shards = if metadata.is_dir() { parquet::files(path)? } else { Vec::new() };
        let (source, labels) = if parquet::is_one(path) || !shards.is_empty() {
            let shards = if shards.is_empty() { vec![path.to_owned()] } else { shards };
            let pictures = parquet::read(&shards, options.max_bytes)?;
            classes = classes.or(pictures.classes);
            (Source::Encoded(pictures.encoded), pictures.labels)
        } else if metadata.is_dir() {
            match idx_pair(path)? {
                Some(images) => in_memory(idx::read(&images, options.max_bytes)?),
                None => {
                    let files = folder::list(path, names.as_deref(), options.classes.as_deref())?;
                    if files.paths.is_empty() {
                        let what = "this folder holds no data that is understood";
                        return Err(DataError::new(
                            ErrorKind::Empty,
                            what,
                            path.display().to_string(),
                            KINDS,
                        ));
                    }
                    if !files.classes.is_empty() {
                        classes = Some(files.classes);
                    }
                    (
                        if files.sounds { Source::Sounds(files.paths) } else { Source::Files(files.paths) },
                        files.labels,
                    )
                }
            }
        } else if name.ends_with(".npz") {
            let arrays = from_npz(path, options)?;
            targets = arrays.targets;
            (Source::Arrays(arrays.inputs), arrays.labels)
        } else if name.ends_with(".csv") || name.ends_with(".csv.gz") {
            let (features, labels) = table::read(path, options)?;
            (Source::Arrays(vec![(None, features)]), labels)
        } else if idx::is_images(path) {
            in_memory(idx::read(path, options.max_bytes)?)
        } else {
            let what = "the format of this file is unknown";
            return Err(DataError::new(ErrorKind::Usage, what, path.display().to_string(), KINDS));
        };
        Self::build(path.display().to_string(), source, labels, targets, classes, options.max_pixels)
    }

    /// A dataset of arrays in memory: inputs `[samples, …]`, and the class of each sample if known.
    ///
    /// # Errors
    /// [`ErrorKind::Empty`] without samples, [`ErrorKind::Mismatch`] or [`ErrorKind::Label`] when the numbers of
    /// samples differ, [`ErrorKind::NotFinite`] when a value is NaN or infinite.
    pub fn from_arrays(
        inputs: Vec<(Option<String>, Tensor)>,
        labels: Option<Vec<usize>>,
    ) -> Result<Self, DataError> {
        let max_pixels = OpenOptions::default().max_pixels;
        Self::build("memory".to_owned(), Source::Arrays(inputs), labels, Vec::new(), None, max_pixels)
    }

    /// A dataset of the tokens of texts.
    pub(crate) fn from_tokens(
        place: String,
        texts: Tokens,
        labels: Option<Vec<usize>>,
        classes: Option<Vec<String>>,
    ) -> Result<Self, DataError> {
        let max_pixels = OpenOptions::default().max_pixels;
        Self::build(place, Source::Tokens(texts), labels, Vec::new(), classes, max_pixels)
    }

    fn build(
        place: String,
        source: Source,
        labels: Option<Vec<usize>>,
        targets: Vec<(String, Tensor)>,
        classes: Option<Vec<String>>,
        max_pixels: u64,
    ) -> Result<Self, DataError> {
        if let Source::Arrays(arrays) = &source {
            let named = targets.iter().map(|(name, array)| (Some(name.clone()), array.clone()));
            check_arrays(&[&arrays[..], &named.collect::<Vec<_>>()].concat(), &place)?;
        }
        let inner = Arc::new(Inner { place, source, labels, targets, classes, max_pixels });
        let data = Dataset { inner, corruption: None };
        if data.is_empty() {
            let hint = "give data with at least one sample";
            return Err(DataError::new(ErrorKind::Empty, "there are no samples", data.place(), hint));
        }
        if let Some(found) = data.inner.labels.as_ref().map(Vec::len).filter(|&found| found != data.len()) {
            let what = format!("there are {} samples, but {found} labels", data.len());
            return Err(DataError::new(
                ErrorKind::Label,
                what,
                data.place(),
                "give one label for each sample",
            ));
        }
        if let Some(classes) = data.classes() {
            data.check_labels(classes.len()).map_err(|e| {
                DataError { what: format!("{}, as {LABELS_FILE} says", e.what), ..e }
                    .with_hint(format!("correct the labels, or complete {LABELS_FILE}"))
            })?;
        }
        Ok(data)
    }

    /// The number of samples; never zero.
    pub fn len(&self) -> usize {
        match &self.inner.source {
            Source::Files(paths) | Source::Sounds(paths) => paths.len(),
            Source::Encoded(pictures) => pictures.len(),
            Source::Tokens(texts) => texts.tokens.len(),
            Source::Arrays(arrays) => samples(arrays),
        }
    }

    /// Whether there are no samples: always false.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where the data lies.
    pub fn place(&self) -> &str {
        &self.inner.place
    }

    pub(crate) fn source(&self) -> &Source {
        &self.inner.source
    }

    /// What happens to samples as they are read.
    pub(crate) fn corruption(&self) -> Option<Corruption> {
        self.corruption
    }

    pub(crate) fn with_corruption(&self, corruption: Corruption) -> Self {
        Dataset { corruption: Some(corruption), ..self.clone() }
    }

    pub(crate) fn max_pixels(&self) -> u64 {
        self.inner.max_pixels
    }

    /// What one sample is.
    pub fn sample_kind(&self) -> SampleKind {
        let rest = |t: &Tensor| t.shape().get(1..).unwrap_or_default().to_vec();
        match &self.inner.source {
            Source::Files(_) | Source::Encoded(_) => SampleKind::Files,
            Source::Sounds(_) => SampleKind::Sounds,
            Source::Tokens(_) => SampleKind::Tokens,
            Source::Arrays(arrays) => match arrays.as_slice() {
                [(_, one)] => SampleKind::Array { dtype: one.dtype(), shape: rest(one) },
                several => {
                    let describe = |(name, t): &(Option<String>, Tensor)| {
                        (name.clone().unwrap_or_default(), t.dtype(), rest(t))
                    };
                    SampleKind::Named(several.iter().map(describe).collect())
                }
            },
        }
    }

    /// The length of every sample, where they differ in it: the number of tokens of texts.
    pub fn lengths(&self) -> Option<Vec<usize>> {
        match &self.inner.source {
            Source::Tokens(texts) => Some(texts.tokens.iter().map(Vec::len).collect()),
            _ => None,
        }
    }

    /// The names of the classes, by label.
    pub fn classes(&self) -> Option<&[String]> {
        self.inner.classes.as_deref()
    }

    /// The class of every sample, unless the data is unlabelled.
    pub fn labels(&self) -> Option<&[usize]> {
        self.inner.labels.as_deref()
    }

    /// What a model is to tell of the samples besides their class, by name, the first axis being the sample.
    pub fn targets(&self) -> &[(String, Tensor)] {
        &self.inner.targets
    }

    /// The class of sample `index`.
    pub fn label(&self, index: usize) -> Option<usize> {
        self.labels()?.get(index).copied()
    }

    /// Confirms that every label is below `classes`, the number of the model's outputs.
    ///
    /// # Errors
    /// [`ErrorKind::Label`] naming the first sample out of range.
    pub fn check_labels(&self, classes: usize) -> Result<(), DataError> {
        let Some(labels) = self.labels() else { return Ok(()) };
        let Some((index, label)) = labels.iter().enumerate().find(|&(_, &label)| label >= classes) else {
            return Ok(());
        };
        let what = format!("the label {label} is out of range: there are {classes} classes");
        let hint = "labels count from 0; give the data that the model was trained for";
        Err(DataError::new(ErrorKind::Label, what, self.sample_place(index), hint))
    }

    pub(crate) fn sample_place(&self, index: usize) -> String {
        match &self.inner.source {
            Source::Files(paths) | Source::Sounds(paths) => {
                paths.get(index).map_or(String::new(), |p| p.display().to_string())
            }
            Source::Encoded(_) | Source::Tokens(_) | Source::Arrays(_) => {
                format!("{}, sample {index}", self.place())
            }
        }
    }
}

/// One line: number and kind of the samples, number of classes.
impl fmt::Display for Dataset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} samples of {}", self.len(), self.sample_kind())?;
        match (self.classes(), self.labels()) {
            (Some(classes), Some(_)) => write!(f, " in {} classes", classes.len()),
            (None, Some(labels)) => {
                let last = labels.iter().max().copied().unwrap_or(0);
                write!(f, " with labels 0 to {last}")
            }
            (_, None) => f.write_str(" without labels"),
        }
    }
}

/// The class number in `value`, or what is wrong with it.
pub(crate) fn integer_label(value: f64) -> Result<usize, String> {
    if value.fract() != 0.0 || !value.is_finite() {
        return Err(format!("the label {value} is not an integer"));
    }
    // Every integer up to this bound is exact in f64, and its text has no exponent.
    const MAX: f64 = 4_294_967_295.0;
    match (0.0..=MAX).contains(&value) {
        true => value.abs().to_string().parse().map_err(|_| format!("the label {value} is no class number")),
        false => Err(format!("the label {value} is no class number")),
    }
}

fn in_memory((pixels, labels): (Tensor, Vec<usize>)) -> (Source, Option<Vec<usize>>) {
    (Source::Arrays(vec![(None, pixels)]), Some(labels))
}

/// The images file of the only IDX pair in `folder`.
fn idx_pair(folder: &Path) -> Result<Option<PathBuf>, DataError> {
    let pairs: Vec<PathBuf> = folder::entries(folder)?.into_iter().filter(|p| idx::is_images(p)).collect();
    match pairs.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some(one.clone())),
        [first, ..] => {
            let what = format!("this folder holds {} IDX pairs", pairs.len());
            let hint = format!("give the images file of one of them, such as {}", first.display());
            Err(DataError::new(ErrorKind::Usage, what, folder.display().to_string(), hint))
        }
    }
}

/// What a `.npz` file holds.
struct Arrays {
    inputs: Vec<(Option<String>, Tensor)>,
    labels: Option<Vec<usize>>,
    targets: Vec<(String, Tensor)>,
}

fn from_npz(path: &Path, options: &OpenOptions) -> Result<Arrays, DataError> {
    let place = path.display().to_string();
    let arrays = npz::read(path, options.max_bytes)?;
    let names: Vec<String> = arrays.iter().map(|(name, _)| name.clone()).collect();
    let (targets, mut arrays): (Vec<_>, Vec<_>) =
        arrays.into_iter().partition(|(name, _)| options.targets.contains(name));
    if let Some(missing) = options.targets.iter().find(|wanted| !names.contains(wanted)) {
        let known: Vec<&str> = names.iter().map(String::as_str).collect();
        let what = format!("there is no array `{missing}` to train for");
        return Err(DataError::new(ErrorKind::Usage, what, place, suggestion(missing, &known)));
    }
    let y = arrays.iter().position(|(name, _)| name == "y").map(|at| arrays.remove(at).1);
    let labels = y.map(|y| array_labels(&y, &place)).transpose()?;
    if arrays.is_empty() {
        let hint = "save the inputs as `x` and the labels as `y`";
        return Err(DataError::new(ErrorKind::Empty, "there is no input array", place, hint));
    }
    let single = arrays.len() == 1;
    let named = |(name, array): (String, Tensor)| ((!(single && name == "x")).then_some(name), array);
    Ok(Arrays { inputs: arrays.into_iter().map(named).collect(), labels, targets })
}

fn array_labels(y: &Tensor, place: &str) -> Result<Vec<usize>, DataError> {
    if !matches!(y.shape(), [_] | [_, 1]) {
        let what = format!("`y` has shape {:?}, not one label for each sample", y.shape());
        let hint = "store class numbers: for one-hot labels, save y.argmax(axis=1)";
        return Err(DataError::new(ErrorKind::Label, what, place, hint));
    }
    let label = |(index, value): (usize, f64)| {
        integer_label(value).map_err(|what| {
            let hint = "labels are class numbers 0, 1, 2 …";
            DataError::new(ErrorKind::Label, what, format!("{place}, sample {index}"), hint)
        })
    };
    y.to_f64s().into_iter().enumerate().map(label).collect()
}

fn samples(arrays: &[(Option<String>, Tensor)]) -> usize {
    arrays.first().and_then(|(_, t)| t.shape().first()).copied().unwrap_or(0)
}

fn check_arrays(arrays: &[(Option<String>, Tensor)], place: &str) -> Result<(), DataError> {
    let count = samples(arrays);
    for (name, array) in arrays {
        let name = name.as_deref().unwrap_or("x");
        if array.shape().first() != Some(&count) {
            let shapes =
                arrays.iter().map(|(n, t)| format!("{}{:?}", n.as_deref().unwrap_or("x"), t.shape()));
            let shapes: Vec<String> = shapes.collect();
            let what = format!("the arrays differ in their number of samples: {}", shapes.join(", "));
            let hint = "save one set of samples a file: inputs (such as `x`) and labels `y`";
            return Err(DataError::new(ErrorKind::Mismatch, what, place, hint));
        }
        if count > 0 && array.is_empty() {
            let what = format!("the samples of `{name}` hold no values");
            return Err(DataError::new(ErrorKind::Empty, what, place, "give data with values"));
        }
        npy::check_finite(array, name, place)?;
    }
    Ok(())
}

/// The lines of `labels.txt` in `folder` or the one above it.
fn class_names(folder: &Path) -> Result<Option<Vec<String>>, DataError> {
    let above = folder.parent().map(|p| p.join(LABELS_FILE));
    let candidates = std::iter::once(folder.join(LABELS_FILE)).chain(above);
    let Some(path) = candidates.into_iter().find(|p| p.is_file()) else { return Ok(None) };
    let failed = |e: &std::io::Error| DataError::io(&path, e);
    if fs::metadata(&path).map_err(|e| failed(&e))?.len() > MAX_LABELS_FILE {
        let what = "this list of class names is too long";
        let hint = "give one name a line";
        return Err(DataError::new(ErrorKind::TooLarge, what, path.display().to_string(), hint));
    }
    let text = fs::read_to_string(&path).map_err(|e| failed(&e))?;
    let lines = text.trim_end().lines().map(|l| l.trim().to_owned());
    Ok(Some(lines.collect::<Vec<_>>()).filter(|names| !names.is_empty()))
}
